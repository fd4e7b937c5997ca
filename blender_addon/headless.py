# SPDX-License-Identifier: GPL-3.0-or-later
"""LIM without a window: `blender -b scene.blend --python blender_addon/headless.py -- --keyframes 1,9,17 --out out.blend`."""

from __future__ import annotations

import importlib.util
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
