# SPDX-License-Identifier: GPL-3.0-or-later
"""What a job tells: its stages, its progress, its warnings; and whether it is to stop."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator

from ..shared import protocol
from ..shared.errors import Cancelled

STAGE_WORDS = {**protocol.VIDEO_STAGES, **protocol.STAGES}


class Reporter:
    """Sends events, estimates the time left, and knows whether the user asked to stop."""

    def __init__(self, machine: bool):
        self.machine = machine
        self.cancelled = threading.Event()
        self.started = time.monotonic()
        self.lock = threading.Lock()
        self.last_sent = 0.0
        self.stage_name = ""
        self.stage_from, self.stage_share = 0.0, 0.0
        self.stages_before, self.share_before = 0, 0.0  # what ran before the pipeline's own stages (a video's import)
        self.seconds: dict[str, float] = {}  # of those stages
        self.warnings: list[dict] = []

    def event(self, name: str, **fields) -> None:
        with self.lock:
            if self.machine:
                print(protocol.encode_event(name, **fields), flush=True)
            elif name == "stage":
                print(f"[{fields['index'] + 1}/{fields['count']}] {STAGE_WORDS[fields['stage']]}", flush=True)
            elif name in ("error", "warning"):
                print(f"{name}: {fields['message']} {fields['hint']}".strip(), flush=True)
            elif name == "result":
                print(f"done in {fields['seconds']:.1f} s: {fields['path']}", flush=True)
            elif name == "cancelled":
                print("cancelled", flush=True)

    def stage(self, name: str, index: int, count: int, begins: float, share: float) -> None:
        """A stage begins that starts at `begins` of the whole run and takes `share` of it."""
        self.check()
        self.stage_name, self.stage_from, self.stage_share = name, begins, share
        self.event("stage", stage=name, index=index + self.stages_before, count=count + self.stages_before)
        self.progress(0.0)

    @contextlib.contextmanager
    def part(self, begins: float, ends: float) -> Iterator[None]:
        """What is reported meanwhile, from 0 to 1, is this part of the current stage."""
        kept = self.stage_from, self.stage_share
        self.stage_from += begins * self.stage_share
        self.stage_share *= ends - begins
        try:
            yield
        finally:
            self.stage_from, self.stage_share = kept

    def progress(self, fraction: float) -> None:
        """The current stage is done to `fraction`. Also the place where a cancellation takes effect."""
        self.check()
        now = time.monotonic()
        if fraction not in (0.0, 1.0) and now - self.last_sent < 0.2:
            return
        self.last_sent = now
        whole = min(1.0, self.stage_from + self.stage_share * min(max(fraction, 0.0), 1.0))
        whole = self.share_before + (1.0 - self.share_before) * whole
        elapsed = now - self.started
        left = elapsed * (1 - whole) / whole if whole > 0.02 else None
        self.event("progress", stage=self.stage_name, fraction=whole, seconds_left=left)

    def warning(self, code: str, message: str, hint: str = "") -> None:
        self.warnings.append({"code": code, "message": message, "hint": hint})
        self.event("warning", code=code, message=message, hint=hint)

    def check(self) -> None:
        if self.cancelled.is_set():
            raise Cancelled

    def follow(self, descriptor: int) -> None:
        """Read commands on a thread until the pipe ends; its end is a cancellation too.

        The file descriptor is read, not sys.stdin: a thread that waits inside a buffered stream when the interpreter
        exits makes it abort, and the exit code would be lost.
        """

        def read() -> None:
            rest = b""
            while block := os.read(descriptor, 65536):
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    try:
                        if protocol.decode_command(line)["command"] == "cancel":
                            self.cancelled.set()
                    except ValueError as error:
                        print(f"ignored a line on stdin: {error}", file=sys.stderr, flush=True)
            self.cancelled.set()

        threading.Thread(target=read, daemon=True).start()


class Silent(Reporter):
    """Tells nobody, and keeps the warnings."""

    def __init__(self):
        super().__init__(machine=False)

    def event(self, name: str, **fields) -> None:
        pass
