# SPDX-License-Identifier: GPL-3.0-or-later
"""LIM for Blender, from a fresh clone: `python3 install COMMAND`. Needs Python 3.10 or newer and nothing else.

demo        set everything up and make a textured, animated mesh of a scene (ours, or --input FILE)
test        run the tests
backend     only install what computes (torch, in an environment of its own)
exec        python -m lim_core … in that environment:  python3 install exec -- doctor
extension   build and validate the extension's zip
uninstall   remove what the commands above installed
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036 (someone's python3 may well be older)
    sys.exit("LIM for Blender needs Python 3.10 or newer; this is Python %d.%d." % sys.version_info[:2])  # noqa: UP031

sys.dont_write_bytecode = True  # an installed extension is not to fill with caches
_HERE = Path(__file__).resolve().parent
for _folder in (str(_HERE.parent), str(_HERE)):
    if _folder not in sys.path:
        sys.path.insert(0, _folder)

import backend  # noqa: E402
import blender  # noqa: E402
from demo import EXAMPLES  # noqa: E402
from lim_core.shared import protocol  # noqa: E402
from lim_core.shared.errors import LimError, from_os_error  # noqa: E402


class _Parser(argparse.ArgumentParser):
    """Answers wrong usage with the whole help."""

    def error(self, message: str):
        self.print_help(sys.stderr)
        self.exit(protocol.EXIT_USAGE, f"\n{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    """The command line, whose help is the documentation."""
    top = _Parser(prog="python3 install", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    def backend_options(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--device", choices=backend.DEVICES, default="auto", help="what computes; auto looks for a GPU"
        )
        command.add_argument("--wheels", default="", metavar="DIR", help="install from this folder, without a network")
        command.add_argument(
            "--torch-index",
            default="",
            metavar="URL",
            help="where torch comes from: the address that pytorch.org shows for your system (its CPU build for Linux is "
            "a tenth of the usual one, which brings NVIDIA's libraries; its ROCm build is for AMD)",
        )

    command = commands.add_parser("backend", help="install the backend")
    backend_options(command)
    command.add_argument("--training", action="store_true", help="also what training needs")
    command.add_argument("--repair", action="store_true", help="check every installed file and mend what is damaged")

    command = commands.add_parser("exec", help="run python -m lim_core in the backend")
    command.add_argument("arguments", nargs=argparse.REMAINDER, metavar="-- ARGS")

    command = commands.add_parser("demo", help="set everything up and run the main job")
    command.add_argument(
        "--input",
        default="",
        metavar="FILE",
        help="what moves: a .blend, .glb, .fbx, .abc, .usd …, or a folder of numbered meshes",
    )
    command.add_argument(
        "--example", default="", choices=("", *EXAMPLES), help="poses that do not correspond, instead of the dinosaur"
    )
    command.add_argument(
        "--keyframes", default="", metavar="1,9,17", help="frames to capture (default: from the animation)"
    )
    command.add_argument("--inbetweens", type=int, default=7, metavar="N", help="frames made between each pair")
    command.add_argument("--quality", choices=("draft", "standard", "high"), default="draft")
    command.add_argument("--weights", default="", metavar="DIR", help="checkpoints to use instead of the bundled ones")
    command.add_argument("--out", default="demo_output", metavar="DIR", help="where the results go")
    command.add_argument(
        "--blender", default="", choices=("", *blender.WHEELS), help="a bpy wheel instead of the program"
    )
    backend_options(command)

    command = commands.add_parser("test", help="run the tests")
    command.add_argument(
        "--blender", default=blender.DEFAULT_WHEEL, metavar="4.2,4.5,5.0", help="bpy wheels to test with"
    )
    command.add_argument(
        "--layer", default="style,plain,core,blender", metavar="LAYERS",
        help="some of style,plain,core,blender; style is rules,form,types",
    )  # fmt: skip
    command.add_argument("--wheels", default="", metavar="DIR", help="install from this folder, without a network")
    command.add_argument(
        "--processors", nargs="?", const="all", default="", choices=("all", "pair"),
        help="instead: the numeric tests under several kernels of this processor (pair: two of them), and what changes",
    )  # fmt: skip
    command.add_argument(
        "--at-once", type=int, default=min(2, os.cpu_count() or 1), metavar="N",
        help="layers side by side, each with its share of the cores; 1: one after the other (for instance for -- --pdb)",
    )  # fmt: skip
    command.add_argument("pytest", nargs="*", metavar="-- ARGS", help="further arguments for pytest")

    command = commands.add_parser("extension", help="build and validate the zip")
    command.add_argument("--out", default="build", metavar="DIR", help="where the zip goes")

    command = commands.add_parser("uninstall", help="remove everything that was installed")
    command.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    return top


def main(argv: list[str]) -> int:
    top = parser()
    arguments = top.parse_args(argv)
    if not arguments.command:
        top.print_help()
        return protocol.EXIT_USAGE
    try:
        return run(arguments)
    except LimError as error:
        sys.stdout.flush()
        print(f"\n{error.message}", file=sys.stderr)
        if error.hint:
            print(error.hint, file=sys.stderr)
        return protocol.ERROR_CODES[error.code][0]
    except OSError as error:
        print(f"\n{from_os_error(error)}", file=sys.stderr)
        return protocol.ERROR_CODES[from_os_error(error).code][0]
    except KeyboardInterrupt:
        print("\nStopped. What was finished is kept; run it again to go on.", file=sys.stderr)
        return protocol.EXIT_CANCELLED


def run(arguments: argparse.Namespace) -> int:
    """Carry out one parsed command; its exit code."""
    if arguments.command == "backend":
        backend.ensure(
            arguments.device,
            wheels=arguments.wheels,
            torch_index=arguments.torch_index,
            extras=("training",) if arguments.training else (),
            repair=arguments.repair,
        )
        return 0
    if arguments.command == "exec":
        rest = arguments.arguments
        return backend.run_core(rest[1:] if rest[:1] == ["--"] else rest)
    if arguments.command == "demo":
        import demo

        return demo.run(arguments)
    if arguments.command == "test":
        import suite

        return suite.run(arguments)
    if arguments.command == "extension":
        import extension

        return extension.run(arguments.out)
    import uninstall

    return uninstall.run(dry_run=arguments.dry_run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
