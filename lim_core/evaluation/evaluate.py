# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core evaluate WHAT --packs DIR --out DIR`: results.csv, summary.json and a contact sheet."""

from __future__ import annotations

import argparse
import importlib
import json

from .. import device, threads

WHAT = ("reconstruction", "interpolation")


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="lim_core evaluate", description=__doc__)
    p.add_argument("what", choices=WHAT)
    p.add_argument("--packs", required=True, help="folder of packs that were not trained on")
    p.add_argument("--out", required=True)
    p.add_argument("--limit", type=int, default=None, help="scenes or triplets, spread evenly")
    p.add_argument("--gap", type=float, default=None, help="interpolation: seconds between the ends of a triplet")
    p.add_argument("--weights", default="", help="folder of the checkpoints; default: the bundled ones")
    p.add_argument("--device", default="auto")
    args = p.parse_args(argv)
    threads.limit()
    module = importlib.import_module(f".{args.what}", __package__)
    more = {"gap": args.gap} if args.what == "interpolation" and args.gap else {}
    summary = module.evaluate(
        args.packs, args.out, weights=args.weights, device=device.pick(args.device), limit=args.limit, **more
    )
    print(json.dumps(summary, indent=2))
    return 0
