# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core COMMAND …`: every command of the backend. Each is imported only when it is asked for."""

from __future__ import annotations

import importlib
import sys

from . import __version__
from .shared import protocol
from .shared.errors import Cancelled, LimError

COMMANDS = {
    "run": ("worker", "run a job folder (what Blender starts)"),
    "doctor": ("doctor", "check the environment, the device and the weights"),
    "sheet": ("job.contact_sheet", "assemble a job's pictures into a contact sheet and a looping preview"),
    "bake": ("data.bake", "animated assets → packs"),
    "cache": ("data.command_line", "packs → rendered sequences for training"),
    "train": ("training.train", "train one of the four networks, the motion's (motion), or the video's (multiview)"),
    "evaluate": ("evaluation.evaluate", "measure the networks on packs they were not trained on"),
    "recipe": ("training.recipe", "render and train all four networks inside a time box"),
    "unpack": ("training.bring_home", "what a recipe exported → checkpoint folders"),
}

LOOPS = {("train", "multiview"): "training.multiview", ("train", "motion"): "training.train_motion"}
"""Networks that are not trained by `training.train`."""


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(f"LIM for Blender, backend {__version__}\n\nusage: python -m lim_core COMMAND …\n")
        for name, (_, text) in COMMANDS.items():
            print(f"  {name:<12}{text}")
        return protocol.EXIT_RESULT if argv else protocol.EXIT_USAGE
    if argv[0] not in COMMANDS:
        print(f"“{argv[0]}” is not a command; there are {', '.join(COMMANDS)}.", file=sys.stderr)
        return protocol.EXIT_USAGE
    name = LOOPS.get((argv[0], argv[1] if len(argv) > 1 else "")) or COMMANDS[argv[0]][0]
    try:
        module = importlib.import_module(f".{name}", __package__)
        return module.main(argv[1:]) or 0
    except ModuleNotFoundError as error:
        if not error.name or error.name.split(".")[0] == __package__:
            raise
        print(f"“{argv[0]}” needs the Python package “{error.name}”, which is not installed here.", file=sys.stderr)
        return protocol.ERROR_CODES["backend_broken"][0]
    except LimError as error:
        print(f"{error.message} {error.hint}".strip(), file=sys.stderr)
        return protocol.ERROR_CODES.get(error.code, (protocol.EXIT_CRASH, ""))[0]
    except (Cancelled, KeyboardInterrupt):
        return protocol.EXIT_CANCELLED


if __name__ == "__main__":
    sys.exit(main())
