# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests that need Blender: run with a Python that has bpy, `python -m pytest tests/blender`."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_FAKE = _ROOT / "tests" / "plain" / "fake_backend.py"

if importlib.util.find_spec("bpy") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    sys.path.insert(0, str(_ROOT / "tests"))  # scenes of tests/field serve here too
    # Before bpy is imported: keeps the tests away from the user's configuration.
    _resources = tempfile.TemporaryDirectory(prefix="lim_blender_")
    os.environ["BLENDER_USER_RESOURCES"] = _resources.name

    _spec = importlib.util.spec_from_file_location("lim_headless", _ROOT / "blender_addon" / "headless.py")
    _headless = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_headless)
    _headless.load_package(_ROOT)

    import bpy
    from lim_for_blender import register, unregister
    from lim_for_blender.lim_core.shared import request

    @pytest.fixture
    def scene() -> bpy.types.Scene:
        """An empty scene, 24 frames a second, frames 1 to 250."""
        bpy.ops.wm.read_factory_settings(use_empty=True)
        return bpy.context.scene

    @pytest.fixture
    def small(monkeypatch):
        """Captures of 64² pixels and the rig alone."""
        monkeypatch.setitem(request.QUALITIES, "draft", request.Quality(64, 0, 64, 500))

    @pytest.fixture
    def addon():
        register()
        yield
        unregister()

    @pytest.fixture
    def fake(tmp_path):
        """A function that gives a backend's Python which misbehaves in the given way."""

        def make(mode: str) -> str:
            folder = tmp_path / f"bäckend {mode.replace(':', '_')}"
            folder.mkdir(exist_ok=True)
            python = folder / "python"
            python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{_FAKE}" {mode} "$@"\n', encoding="utf-8")
            python.chmod(0o755)
            return str(python)

        if os.name == "nt":
            pytest.skip("the fake backend is a shell script")
        return make
