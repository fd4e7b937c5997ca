# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core run JOB`: one job, one process. Events on stdout, commands on stdin, text for people on stderr.

By hand it prints sentences; with `--follow-stdin` (Blender) it prints JSON lines, and the end of stdin means that Blender
is gone: the job stops, its finished stages stay.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from . import __version__, protocol, request, threads
from .errors import Cancelled, LimError, from_os_error
from .video import command_line

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


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="lim_core run", description=__doc__.splitlines()[0])
    p.add_argument("job", help="job folder with request.json and capture/")
    command_line.add_arguments(p.add_argument_group("a video"))
    p.add_argument("--follow-stdin", action="store_true", help="JSON lines on stdout; stop when stdin ends (Blender)")
    args = p.parse_args(argv)
    # Libraries that print must not garble the events: they get stderr, the events keep the real stdout.
    if args.follow_stdin:
        sys.stdout.flush()
        events = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        sys.stdout = events
    reporter = Reporter(machine=args.follow_stdin)
    if args.follow_stdin:
        reporter.follow(0)
    try:
        if args.video:
            command_line.write_request(args)
        seconds = _run(Path(args.job), reporter)
        reporter.event("result", path=protocol.RESULT_FILE, seconds=seconds)
        return protocol.EXIT_RESULT
    except Cancelled:
        reporter.event("cancelled")
        return protocol.EXIT_CANCELLED
    except Exception as failure:
        error = as_lim_error(failure)
        reporter.event("error", code=error.code, message=error.message, hint=error.hint)
        return protocol.ERROR_CODES[error.code][0]


def _run(job: Path, reporter: Reporter) -> float:
    started = time.monotonic()
    asked = request.read(job)
    threads.limit()  # before numpy and torch are imported, which happens only now: a broken request is reported at once
    from . import device, pipeline

    where = device.pick(asked.device)
    reporter.event(
        "hello", protocol=protocol.VERSION, version=__version__, pid=os.getpid(), device=device.describe(where)
    )
    if asked.source == "video":
        from .video import importing

        asked = importing.run(job, asked, where, reporter)
    pipeline.run(job, asked, where, reporter)
    return time.monotonic() - started


OUT_OF_MEMORY = ("out of memory", "defaultcpuallocator", "bad_alloc", "can't allocate memory", "unable to allocate")


def as_lim_error(failure: Exception) -> LimError:
    """Every failure as a sentence; the traceback goes to stderr, which Blender keeps in log.txt."""
    if isinstance(failure, LimError):
        return failure
    traceback.print_exc(file=sys.stderr)
    said = str(failure).lower()
    if isinstance(failure, MemoryError) or any(word in said for word in OUT_OF_MEMORY):
        return LimError(
            "out_of_memory",
            "The memory ran out.",
            "Choose a lower quality, fewer keyframes, or the CPU instead of the graphics card.",
        )
    if isinstance(failure, ImportError):
        return LimError(
            "backend_broken",
            f"A part of the backend is missing: {failure}.",
            "Install the backend again from the preferences.",
        )
    if isinstance(failure, OSError):
        return from_os_error(failure, "running the job")
    return LimError("internal", f"Something went wrong that should not have: {failure}.", "The log has more.")
