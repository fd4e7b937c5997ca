# SPDX-License-Identifier: GPL-3.0-or-later
"""The other end of `capturing`: the capture alone, in a Blender in the background."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import bpy

from ...lim_core import __version__
from ...lim_core.shared import protocol
from ...lim_core.shared.errors import Cancelled, as_lim_error
from . import capturing, job_folders
from .asking import scene_named


def capture_only(spec_file: str, blend: str = "") -> int:
    """The background Blender of a windowed job: capture, speaking the protocol as the backend does. Returns 0.

    stdout belongs to the events alone: what Blender itself prints goes to stderr, which the job's log keeps.

    Args:
        spec_file: what to capture, written by `jobs.Job`.
        blend: the saved copy, if it is not open yet (with the bpy module).
    """
    events = os.fdopen(os.dup(1), "w", encoding="ascii", buffering=1)
    os.dup2(2, 1)
    cancelled = threading.Event()
    began = time.monotonic()

    def say(name: str, **fields) -> None:
        events.write(protocol.encode_event(name, **fields) + "\n")
        events.flush()

    def listen() -> None:
        # os.read, not sys.stdin: a thread that waits in a buffered reader aborts the interpreter at its exit.
        heard = b""
        while b"\n" not in heard and (block := os.read(0, 4096)):
            heard += block
        cancelled.set()  # the only command there is, or the Blender that waits for us is gone

    try:
        say("hello", protocol=protocol.VERSION, version=__version__, pid=os.getpid(), device=bpy.app.version_string)
        threading.Thread(target=listen, daemon=True).start()
        if blend:
            bpy.ops.wm.open_mainfile(filepath=blend)
        wanted = json.loads(Path(spec_file).read_text(encoding="utf-8"))
        say("stage", stage="capture", index=0, count=1)
        folder = Path(wanted["job"])
        capturing.capture_into(
            scene_named(wanted["scene"]), wanted["spec"], wanted["key"], folder,
            on_fraction=lambda fraction: say("progress", stage="capture", fraction=fraction, seconds_left=None),
            is_cancelled=cancelled.is_set,
        )  # fmt: skip
        say("result", path=job_folders.CAPTURE_RECORD, seconds=round(time.monotonic() - began, 3))
    except Cancelled:
        say("cancelled")
    except BrokenPipeError:
        return protocol.EXIT_CANCELLED
    except Exception as error:
        found = as_lim_error(error)
        say("error", code=found.code, message=found.message, hint=found.hint)
    return protocol.EXIT_RESULT
