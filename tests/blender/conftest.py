# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests that need Blender: run with a Python that has bpy, `python -m pytest tests/blender`."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]

if importlib.util.find_spec("bpy") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    # Before bpy is imported: keeps the tests away from the user's configuration.
    _resources = tempfile.TemporaryDirectory(prefix="lim_blender_")
    os.environ["BLENDER_USER_RESOURCES"] = _resources.name

    _spec = importlib.util.spec_from_file_location("lim_headless", _ROOT / "blender_addon" / "headless.py")
    _headless = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_headless)
    _headless.load_package(_ROOT)

    import bpy

    @pytest.fixture
    def scene() -> bpy.types.Scene:
        """An empty scene, 24 frames a second, frames 1 to 250."""
        bpy.ops.wm.read_factory_settings(use_empty=True)
        return bpy.context.scene
