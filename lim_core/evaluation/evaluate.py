# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core evaluate WHAT --packs DIR --out DIR`: results.csv, summary.json and contact sheets.

WHAT is a module beside this one, with `evaluate(packs, out, *, weights, device, limit, …) -> summary`. What it takes beyond
that becomes an option of the same name; a module that has more to say about its options has `arguments(parser)`.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import sys
from collections.abc import Callable

from ..shared import threads

WHAT = ("reconstruction", "interpolation", "alpha", "matching", "tracing", "job", "video")
COMMON = ("weights", "device", "limit")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[2:] if argv is None else argv
    first = argparse.ArgumentParser(prog="lim_core evaluate", description=__doc__.splitlines()[0])
    first.add_argument("what", choices=WHAT, help="`evaluate WHAT --help` lists its options")
    what = first.parse_args(argv[:1]).what
    threads.limit()
    module = importlib.import_module(f".{what}", __package__)
    from ..networks import device  # torch reads the number of threads when it is imported

    p = argparse.ArgumentParser(
        prog=f"lim_core evaluate {what}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--packs", required=True, help="folder of packs that were not trained on")
    p.add_argument("--out", required=True, help="folder for the results")
    p.add_argument("--limit", type=_count, default=None, help="so many scenes or triplets, spread evenly")
    p.add_argument("--weights", default="", help="folder of the checkpoints; default: the bundled ones")
    p.add_argument("--device", default="auto")
    if hasattr(module, "arguments"):
        module.arguments(p)
    else:
        _from_signature(p, module.evaluate)
    options = vars(p.parse_args(argv[1:]))
    options["device"] = device.pick(options["device"])
    summary = module.evaluate(options.pop("packs"), options.pop("out"), **options)
    print(json.dumps(summary, indent=2))
    return 0


def _from_signature(parser: argparse.ArgumentParser, evaluate: Callable) -> None:
    for name, parameter in inspect.signature(evaluate).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and name not in COMMON:
            default = parameter.default
            parser.add_argument(
                "--" + name.replace("_", "-"), type=type(default), default=default, help="default: %(default)s"
            )


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return count
