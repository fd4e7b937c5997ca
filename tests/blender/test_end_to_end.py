# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole path with the real backend and the bundled weights: scene or clip → networks → mesh with shape keys."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import bpy
import numpy as np
import pytest
from lim_for_blender.blender_addon.source import capture_scene, compat
from lim_for_blender.install.scenes import demo_scene

from demo_film import film
from headless_job import run_job

ROOT = Path(__file__).resolve().parents[2]
BACKEND = os.environ.get("LIM_BACKEND_PYTHON", "")


@pytest.mark.skipif(not Path(BACKEND).is_file(), reason="LIM_BACKEND_PYTHON names no backend: python3 install test")
def test_the_creature_becomes_one_mesh(tmp_path):
    folder = tmp_path / "ein Ordner é"
    folder.mkdir()
    scene, out, glb, report = (folder / name for name in ("scene.blend", "out.blend", "out.glb", "report.json"))
    subprocess.run([sys.executable, ROOT / "install/scenes/demo_scene.py", "--", scene], check=True, timeout=300)
    options = ["--input", scene, "--keyframes", "1,9", "--inbetweens", "1", "--quality", "draft", "--backend", BACKEND]
    options += ["--job", folder / "job", "--out", out, "--glb", glb]
    facts = run_job(options, report, 500)
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


@pytest.mark.skipif(not Path(BACKEND).is_file(), reason="LIM_BACKEND_PYTHON names no backend: python3 install test")
@pytest.mark.skipif(not (ROOT / "lim_core/weights/multiview").is_dir(), reason="no weights for the views are bundled")
def test_a_clip_becomes_a_mesh_that_covers_it(tmp_path, scene):
    creature = demo_scene.build_creature(scene)
    clip = film(capture_scene, scene, (creature.name,), tuple(range(1, 10, 2)), tmp_path / "ein Clip é")
    out, report = tmp_path / "out.blend", tmp_path / "report.json"
    options = ["--video", clip, "--step", "2", "--quality", "draft", "--backend", BACKEND, "--job", tmp_path / "job"]
    options += ["--out", out, "--match-clip"]
    facts = run_job(options, report, 900)
    assert facts["keyframes"] == [1, 3, 5] and facts["frames"] == [1, 2, 3, 4, 5]
    assert {"import", "views", "reconstruct", "trace"} <= set(facts["seconds"])
    bpy.ops.wm.open_mainfile(filepath=str(out))
    scene = bpy.context.scene
    assert scene.camera.name == facts["camera"] and len(scene.objects[facts["object"]].data.shape_keys.key_blocks) == 6
    scene.render.engine, scene.cycles.samples, scene.cycles.use_denoising = "CYCLES", 1, False
    scene.render.film_transparent = True
    scene.render.image_settings.file_format, scene.render.image_settings.color_mode = "PNG", "RGBA"
    for frame in (1, 4, 5):
        scene.frame_set(frame)
        scene.render.filepath = str(tmp_path / f"seen_{frame}.png")
        with compat.quiet_output():
            bpy.ops.render.render(write_still=True)
        seen, shot = (_alpha(path) for path in (scene.render.filepath, clip / f"film_{frame:03d}.png"))
        overlap = (seen & shot).sum() / (seen | shot).sum()
        assert overlap > (0.9 if frame in facts["keyframes"] else 0.65), (frame, overlap)


def _alpha(path) -> np.ndarray:
    image = bpy.data.images.load(str(path))
    return np.array(image.pixels[:]).reshape(image.size[1], image.size[0], 4)[..., 3] > 0.5
