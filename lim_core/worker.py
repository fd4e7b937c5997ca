# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core run JOB`: one job, one process. Events on stdout, commands on stdin, text for people on stderr.

By hand it prints sentences; with `--follow-stdin` (Blender) it prints JSON lines, and the end of stdin means that Blender
is gone: the job stops, its finished stages stay.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from . import __version__
from .job.reporter import Reporter
from .shared import protocol, request, threads, video_options
from .shared.errors import Cancelled, as_lim_error


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="lim_core run", description=__doc__.splitlines()[0])
    p.add_argument("job", help="job folder with request.json and capture/")
    video_options.add_arguments(p.add_argument_group("a video"))
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
            video_options.write_request(args)
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
    from .networks import device
    from .stages import pipeline

    where = device.pick(asked.device)
    reporter.event(
        "hello", protocol=protocol.VERSION, version=__version__, pid=os.getpid(), device=device.describe(where)
    )
    if asked.source == "video":
        from .video import importing

        asked = importing.run(job, asked, where, reporter)
    pipeline.run(job, asked, where, reporter)
    return time.monotonic() - started
