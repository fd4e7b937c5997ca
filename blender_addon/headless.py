# SPDX-License-Identifier: GPL-3.0-or-later
"""LIM without a window: `blender -b scene.blend --python blender_addon/headless.py -- --keyframes 1,9,17 --out out.blend`.

With the bpy module instead of a Blender: `python blender_addon/headless.py scene.blend --keyframes 1,9,17 …`.
`--help` after the `--` lists the options; `command_line.py` holds them.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

PACKAGE = "lim_for_blender"


def load_package(root: Path | None = None) -> ModuleType:
    """The repository as the package `lim_for_blender`, wherever it lies and whatever its folder is called.

    An installed extension is a package already; a checkout is one only through this. Loading twice gives the same module.
    """
    if PACKAGE not in sys.modules:
        root = root or Path(__file__).resolve().parents[1]
        spec = importlib.util.spec_from_file_location(
            PACKAGE, root / "__init__.py", submodule_search_locations=[str(root)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[PACKAGE] = module
        spec.loader.exec_module(module)
    return sys.modules[PACKAGE]


def arguments(argv: list[str], *, module: bool) -> list[str]:
    """What is ours of a process's command line: all after “--”, and with the bpy module the file before it as `--input`.

    The module reads no command line: there the first option begins ours where “--” is missing.
    """
    if "--" in argv:
        split = argv.index("--")
        before, after = argv[1:split], argv[split + 1 :]
    elif module:
        split = next((i for i, argument in enumerate(argv) if i and argument.startswith("-")), len(argv))
        before, after = argv[1:split], argv[split:]
    else:
        return []
    files = [argument for argument in before if not argument.startswith("-")]
    return ["--input", files[0], *after] if module and files and "--input" not in after else after


def main() -> int:
    """Run by the command line of this process; the exit code."""
    load_package()
    from importlib import import_module

    import bpy

    command_line = import_module(f"{PACKAGE}.blender_addon.command_line")
    return command_line.main(arguments(sys.argv, module=not bpy.app.binary_path))


def leave(code: int) -> None:
    """Exit with this code. The bpy 4.2 module crashes at the interpreter's exit after a glTF export, which would turn
    every exit code into 139, so the module's process is left without it."""
    import bpy

    if bpy.app.binary_path:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    shutil.rmtree(bpy.app.tempdir, ignore_errors=True)
    os._exit(code)


if __name__ == "__main__":
    leave(main())
