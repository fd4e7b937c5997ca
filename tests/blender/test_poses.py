# SPDX-License-Identifier: GPL-3.0-or-later
"""Poses that do not correspond become one mesh with true in-betweens: the examples, and whole jobs with the real backend."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import bpy
import numpy as np
import pytest
from lim_for_blender.blender_addon.source import capture_scene, evaluated
from lim_for_blender.install.scenes import poses_scene
from mathutils.bvhtree import BVHTree

from headless_job import run_job

ROOT = Path(__file__).resolve().parents[2]
BACKEND = os.environ.get("LIM_BACKEND_PYTHON", "")
CAPTURED = {  # keyframes, options of the job
    "sculpts": ((1, 9, 17), ["--poses", "Blob pose 1,Blob pose 2,Blob pose 3"]),
    "metaball": ((1, 9, 17), ["--objects", "Caterpillar"]),
    "cut": ((1, 9, 17), ["--objects", "Melon"]),
    "frames": ((1, 5, 9), ["--objects", "Slug 1,Slug 2,Slug 3,Slug 4"]),
}


def shown(scene, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """World vertices [V, 3] and triangles [F, 3] of what the capture would take at each keyframe."""
    frames, options = CAPTURED[name]
    objects = tuple(options[1].split(","))
    source = options[0].removeprefix("--")
    spec = capture_scene.CaptureSpec(source, objects[: len(frames)] if source == "poses" else objects, frames)
    found = []
    with contextlib.ExitStack() as undo:
        for proxies in capture_scene._bake_keyframes(undo, scene, spec, lambda fraction, text: None)[0]:
            points, faces, count = [], [], 0
            for proxy in proxies:
                co = evaluated.coordinates(proxy.mesh).astype(np.float64)
                points.append(co @ proxy.matrix[:3, :3].T + proxy.matrix[:3, 3])
                faces.append(evaluated.triangles(proxy.mesh) + count)
                count += len(co)
            found.append((np.concatenate(points), np.concatenate(faces)))
    return found


@pytest.mark.parametrize("name", poses_scene.EXAMPLES)
def test_no_two_poses_of_an_example_correspond(scene, name):
    poses_scene.build(scene, name)
    found = shown(scene, name)
    assert len({len(points) for points, _ in found}) == 3
    assert len({len(faces) for _, faces in found}) == 3
    for (points, faces), (later, _) in zip(found, found[1:]):
        assert np.isfinite(points).all() and len(faces) > 500
        size = np.linalg.norm(np.ptp(points, axis=0))
        # They lie in the same place, and yet they are different: nearest points differ somewhere by a fifth of it at most.
        assert np.linalg.norm(points.mean(0) - later.mean(0)) < 0.35 * size
        tree = BVHTree.FromPolygons(points.tolist(), faces.tolist())
        apart = max(tree.find_nearest(p.tolist())[3] for p in later[::17])
        assert 0.05 * size < apart < 0.6 * size


def test_a_frame_of_stop_motion_shows_one_mesh(scene):
    built = poses_scene.build(scene, "frames")
    for frame, expected in ((1, 0), (4, 0), (5, 1), (12, 2), (13, 3)):
        scene.frame_set(frame)
        assert [not ob.hide_render for ob in built] == [i == expected for i in range(4)]


def test_meshes_that_an_add_on_swaps_are_captured(scene):
    """As Keymesh does it: one object, whose mesh a handler exchanges when the frame changes."""
    built = poses_scene.build(scene, "frames")
    meshes = [ob.data for ob in built]
    actor = built[0]
    actor.animation_data_clear()
    actor.hide_viewport = actor.hide_render = False

    def swap(scene, graph=None):
        actor.data = meshes[min(max(scene.frame_current - 1, 0) // 4, 3)]

    bpy.app.handlers.frame_change_pre.append(swap)
    try:
        spec = capture_scene.CaptureSpec("objects", (actor.name,), (1, 5, 9, 13))
        with contextlib.ExitStack() as undo:
            keyframes = capture_scene._bake_keyframes(undo, scene, spec, lambda fraction, text: None)[0]
            counts = [len(proxies[0].mesh.vertices) for proxies in keyframes]
    finally:
        bpy.app.handlers.frame_change_pre.remove(swap)
    assert counts == [len(mesh.vertices) for mesh in meshes] and len(set(counts)) == 4


@pytest.mark.skipif(not Path(BACKEND).is_file(), reason="LIM_BACKEND_PYTHON names no backend: python3 install test")
@pytest.mark.parametrize("name", poses_scene.EXAMPLES)
def test_poses_become_one_mesh_with_in_betweens(scene, tmp_path, name):
    poses_scene.build(scene, name)
    truth = shown(scene, name)
    path, out, report = (tmp_path / n for n in ("scene.blend", "out.blend", "report.json"))
    subprocess.run([sys.executable, ROOT / "install/scenes/poses_scene.py", "--", path, name], check=True, timeout=300)
    frames, options = CAPTURED[name]
    options = ["--input", path, *options, "--keyframes", ",".join(map(str, frames)), "--inbetweens", "1"]
    options += ["--quality", "draft", "--backend", BACKEND, "--job", tmp_path / "job", "--out", out]
    facts = run_job(options, report, 1500)
    bpy.ops.wm.open_mainfile(filepath=str(out))
    ob = bpy.data.objects[facts["object"]]
    keys = ob.data.shape_keys.key_blocks
    assert len(keys) == 6 and len(ob.data.uv_layers) == 1 and len(ob.material_slots) == 1
    matrix = np.array(ob.matrix_world)
    places = np.array([[tuple(point.co) for point in key.data] for key in keys])[1:] @ matrix[:3, :3].T + matrix[:3, 3]
    size = max(np.linalg.norm(np.ptp(points, axis=0)) for points, _ in truth)
    for (points, faces), place in zip(truth, places[::2]):  # at the keyframes it lies on what the scene shows
        tree = BVHTree.FromPolygons(points.tolist(), faces.tolist())
        off = np.array([tree.find_nearest(p.tolist())[3] for p in place])
        assert np.median(off) < 0.02 * size, (name, np.median(off) / size)
    for before, between, after in zip(places[:-2:2], places[1:-1:2], places[2::2]):
        way = np.linalg.norm(after - before, axis=1)
        assert way.max() > 0.05 * size  # it moves
        # An in-between is no blend of a fade: its vertices lie between those of its neighbours, give or take an arc.
        off = np.linalg.norm(between - (before + after) / 2, axis=1)
        assert np.median(off) < 0.5 * np.median(way) + 0.02 * size
