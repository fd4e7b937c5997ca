# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core doctor`: is everything here, and does it compute what it should? A plain table, exit code 0 if so."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import time

from . import __version__
from .shared import protocol
from .shared.errors import LimError

LIBRARIES = ("numpy", "scipy", "skimage", "PIL", "safetensors", "xatlas", "fast_simplification", "torch")
GOLDEN_TOLERANCE = 1e-2  # of the answer's spread: other devices round differently, other weights are off by more


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="lim_core doctor", description=__doc__)
    p.add_argument("--weights", default="", help="folder with the four checkpoints; default: the bundled ones")
    p.add_argument("--device", default="auto")
    p.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    args = p.parse_args(argv)
    rows = list(check(args.weights, args.device))
    if args.json:
        print(json.dumps([{"what": what, "ok": ok, "detail": detail} for what, ok, detail in rows], ensure_ascii=False))
    else:
        width = max(len(what) for what, _, _ in rows)
        for what, ok, detail in rows:
            print(f"{'ok  ' if ok else 'FAIL'}  {what:<{width}}  {detail}")
    return protocol.EXIT_RESULT if all(ok for _, ok, _ in rows) else protocol.EXIT_BACKEND


def check(weights: str, device_name: str):
    """Rows of (what, ok, detail)."""
    yield "backend", True, f"{__version__}, protocol {protocol.VERSION}, Python {platform.python_version()}"
    missing = False
    for name in LIBRARIES:
        try:
            module = importlib.import_module(name)
            yield name, True, str(getattr(module, "__version__", "present"))
        except Exception as error:
            missing = True
            yield name, False, f"{type(error).__name__}: {error}"
    if missing:
        return
    from .networks import checkpoint, device

    try:
        where = device.pick(device_name)
        yield "device", True, device.describe(where)
    except LimError as error:
        yield "device", False, str(error)
        return
    for network, folder in checkpoint.folders(weights).items():
        try:
            model = checkpoint.load(folder, network, where)
            started = time.monotonic()
            difference = checkpoint.replay_golden(folder, network, model)
            size = sum(p.numel() for p in model.parameters()) / 1e6
            detail = f"{size:.1f} M parameters, golden pair off by {difference:.1e}, {time.monotonic() - started:.2f} s"
            yield network, difference < GOLDEN_TOLERANCE, detail
        except LimError as error:
            yield network, False, str(error)
