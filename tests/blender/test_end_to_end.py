# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole path with the real backend and the bundled weights: scene → capture → networks → mesh with shape keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import bpy
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
BACKEND = os.environ.get("LIM_BACKEND_PYTHON", "")


@pytest.mark.skipif(not Path(BACKEND).is_file(), reason="LIM_BACKEND_PYTHON names no backend: python3 install test")
def test_the_creature_becomes_one_mesh(tmp_path):
    folder = tmp_path / "ein Ordner é"
    folder.mkdir()
    scene, out, glb, report = (folder / name for name in ("scene.blend", "out.blend", "out.glb", "report.json"))
    subprocess.run([sys.executable, ROOT / "blender_addon/demo_scene.py", "--", scene], check=True, timeout=300)
    options = ["--input", scene, "--keyframes", "1,9", "--inbetweens", "1", "--quality", "draft", "--backend", BACKEND]
    options += ["--job", folder / "job", "--out", out, "--glb", glb, "--json", report]
    run = subprocess.run([sys.executable, ROOT / "blender_addon/headless.py", "--", *options], timeout=500)
    facts = json.loads(report.read_text(encoding="utf-8"))
    assert run.returncode == 0 and facts["status"] == "done", facts
    bpy.ops.wm.open_mainfile(filepath=str(out))
    mesh = bpy.data.objects[facts["object"]]
    keys = mesh.data.shape_keys.key_blocks
    assert len(keys) == 4 and len(mesh.data.uv_layers) == 1 and len(mesh.material_slots) == 1
    places = np.array([[tuple(point.co) for point in key.data] for key in keys])
    size = np.linalg.norm(np.ptp(places[1], axis=0))
    # It moves, and half-way it is between its keyframes.
    assert np.linalg.norm(places[3] - places[1], axis=1).mean() > 0.03 * size
    middle = (places[1] + places[3]) / 2
    assert np.linalg.norm(places[2] - middle, axis=1).mean() < np.linalg.norm(places[3] - places[1], axis=1).mean() / 2
    assert glb.stat().st_size > 100_000
