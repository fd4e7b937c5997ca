# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core recipe`: the four networks one after the other inside a time box, unattended.

Renders sequences in processes of its own while the first network trains, trains LRM → LRM̄ (from LRM) → LIM → LIM̄, and keeps
everything in one work folder: `cache/`, one run folder a network, and `weights/<network>/`, ready to be bundled or to be given
as `--weights`. Interrupted, it goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from .. import config
from ..errors import LimError
from . import train

SHARES = {"lrm": 0.42, "lrm-xyz": 0.14, "lim": 0.2, "lim-xyz": 0.24}
FIRST_SEQUENCES = 192  # rendered before the first step


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="lim_core recipe", description=__doc__.splitlines()[0])
    p.add_argument("packs", help="folder of packs (python -m lim_core bake)")
    p.add_argument("work", help="folder for the cache, the runs and the weights")
    p.add_argument("--minutes", type=float, default=110.0, help="time box for all four networks")
    p.add_argument("--preset", default="nano", choices=config.PRESETS)
    p.add_argument("--sequences", type=int, default=2048, help="rendered in all")
    p.add_argument("--renderers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="processes that render")
    p.add_argument("--procedural", type=float, default=0.0, help="share of generated objects")
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--lr", type=float, default=1.2e-3)
    p.add_argument("--device", default="auto")
    p.add_argument("--threads", type=int, default=0)
    args = p.parse_args(argv)
    packs, work = Path(args.packs).resolve(), Path(args.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    size = config.PRESETS[args.preset]().image_size
    each = -(-args.sequences // args.renderers)
    renderers = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "lim_core",
                "cache",
                str(packs),
                str(work / "cache"),
                "--size",
                str(size),
                "--sequences",
                str(each),
                "--seed",
                str(i),
                "--procedural",
                str(args.procedural),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).resolve().parents[2],
        )  # fmt: skip
        for i in range(args.renderers)
    ]
    try:
        _wait_for_sequences(work / "cache", min(FIRST_SEQUENCES, args.sequences), renderers)
        for network in config.NETWORKS:
            command = [network, "--cache", str(work / "cache"), "--out", str(work / network), "--preset", args.preset]
            command += ["--minutes", str(args.minutes * SHARES[network]), "--batch", str(args.batch)]
            command += ["--device", args.device, "--threads", str(args.threads)]
            command += ["--lr", str(args.lr * (1.0 if network == "lrm" else 0.7))]
            weights = work / "weights"
            if network == "lrm-xyz":
                command += ["--start", str(weights / "lrm")]
            if network.startswith("lim"):
                command += ["--lrm", str(weights / network.replace("lim", "lrm"))]
            if network == "lim-xyz":
                command += ["--lrm-rgb", str(weights / "lrm")]
            train.main(command)
            shutil.copytree(work / network / "checkpoint", weights / network, dirs_exist_ok=True)
    finally:
        for process in renderers:
            if process.poll() is None:
                process.terminate()
    return 0


def _wait_for_sequences(cache: Path, wanted: int, renderers: list[subprocess.Popen]) -> None:
    from ..data.cache import Cache

    while len(Cache(cache).index) < wanted:
        if all(process.poll() is not None for process in renderers):
            if len(Cache(cache).index):
                return
            raise LimError("bad_pack", "No sequence could be rendered; the messages above say why.")
        time.sleep(2)
