# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core cache`: packs → rendered sequences for training."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from ..mesh import packs
from ..shared import protocol
from . import augment
from .cache import RIG_VIEWS, STEPS, TARGET_VIEWS, Cache
from .sequences import fill


def main(argv: list[str] | None = None) -> int:
    """`python -m lim_core cache PACKS_DIR CACHE_DIR`: render sequences for training."""
    p = argparse.ArgumentParser(prog="lim_core cache", description=main.__doc__)
    p.add_argument("packs", help="folder of packs; “-” for generated objects alone")
    p.add_argument("cache", nargs="?", help="folder for the sequences; not for --benchmark")
    p.add_argument("--size", type=int, default=64, help="pixels along each side of a view")
    p.add_argument("--sequences", type=int, default=1024, help="how many each process renders")
    p.add_argument(
        "--seed", type=int, default=0, help="of the first process; each has its own, their shards do not collide"
    )
    p.add_argument("--processes", type=int, default=1, help="processes that render side by side")
    p.add_argument("--supersampling", type=int, default=2, help="s × s rays per pixel for colour and alpha")
    p.add_argument("--procedural", type=float, default=0.0, help="share of generated objects")
    p.add_argument("--plain", action="store_true", help="no augmentation but yaw and framing")
    p.add_argument("--minutes", type=float, default=float("inf"))
    p.add_argument("--sheet", metavar="FILE.png", help="a picture of some sequences, after rendering")
    p.add_argument("--benchmark", action="store_true", help="only measure views per second, at several sizes")
    args = p.parse_args(argv)
    if args.benchmark:
        from . import throughput

        return throughput.main(args.packs, args.processes)
    if not args.cache:
        p.error("the following arguments are required: cache")
    if args.size < 8 or args.size % 2 or args.supersampling < 1 or args.processes < 1:
        p.error("--size must be even and at least 8, --supersampling and --processes at least 1")
    started = time.monotonic()
    if args.processes > 1:
        code = _spread(sys.argv[2:] if argv is None else argv, args)
    else:
        code = protocol.EXIT_RESULT
        done = fill(
            [] if args.packs == "-" else packs.list_packs(args.packs), args.cache, size=args.size,
            sequences=args.sequences, seed=args.seed, augmentation=augment.NONE if args.plain else None,
            procedural=1.0 if args.packs == "-" else args.procedural, supersample=args.supersampling,
            deadline=started + 60 * args.minutes,
        )  # fmt: skip
        seconds = time.monotonic() - started
        print(f"{done} sequences of {STEPS} frames × {RIG_VIEWS + TARGET_VIEWS} views in {seconds:.0f} s")
    if args.sheet and code == protocol.EXIT_RESULT:
        from . import sheet

        sheet.write(Cache(args.cache), Path(args.sheet))
    return code


def _spread(argv: list[str], args: argparse.Namespace) -> int:
    """The same command once per process, each with a seed of its own; the worst exit code."""
    command = [sys.executable, "-m", "lim_core", "cache", *argv, "--processes", "1", "--sheet", ""]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    children = [
        subprocess.Popen([*command, "--seed", str(args.seed + i)], env=environment) for i in range(args.processes)
    ]
    try:
        return max(child.wait() for child in children)
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
