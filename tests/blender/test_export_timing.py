# SPDX-License-Identifier: GPL-3.0-or-later
"""Exports begin at zero and last as long as the animation, at any range and rate: each is imported again and compared."""

from __future__ import annotations

import json
import re
import struct

import bpy
import numpy as np
import pytest
from lim_for_blender.blender_addon.result import shape_keys
from lim_for_blender.blender_addon.result.export import export
from lim_for_blender.blender_addon.source import compat

from test_shape_keys import TO_MODEL, expected_positions, fake_job, world_positions

SHOTS = {
    "film": ((1001.0, 1017.0, 1033.0), 3, 24, 1.001, 32 * 1.001 / 24),
    "preroll": ((-20.0, -7.5, 4.0), 3, 25, 1.0, 24 / 25),
    "ordinary": ((1.0, 5.0, 9.0), 3, 24, 1.0, 8 / 24),
    "between": ((-7.5, 0.25, 3.0), 1, 30, 1.0, 10.5 / 30),
}
"""Name → keyframes, in-betweens, frames a second, their base, and the seconds that it lasts."""


@pytest.fixture(params=SHOTS)
def shot(request, scene, tmp_path):
    """A result with its arrays, its frames, its rate and how long it lasts."""
    keyframes, inbetweens, fps, base, lasts = SHOTS[request.param]
    scene.render.fps, scene.render.fps_base = fps, base
    scene.frame_start, scene.frame_end = int(np.floor(keyframes[0])), int(np.ceil(keyframes[-1]))
    asked, arrays = fake_job(tmp_path / "job", keyframes=keyframes, inbetweens=inbetweens)
    object = shape_keys.write_result(scene, tmp_path / "job")
    return object, arrays, np.array(asked.frames()), fps / base, lasts


def same_points(found: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-3) -> bool:
    """Whether each point of the one has one of the other at its place (importers split vertices)."""
    apart = np.linalg.norm(found[:, None] - wanted[None], axis=-1)
    return apart.min(0).max() < tolerance and apart.min(1).max() < tolerance


def at(arrays, frames, frame: float) -> np.ndarray:
    """World positions at any frame: straight lines between the result's."""
    after = int(np.clip(np.searchsorted(frames, frame), 1, len(frames) - 1))
    share = np.clip((frame - frames[after - 1]) / (frames[after] - frames[after - 1]), 0, 1)
    before, later = (expected_positions(arrays, TO_MODEL, i) for i in (after - 1, after))
    return before + share * (later - before)


def imported(importer, file, rate: float = 24.0) -> bpy.types.Object:
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.context.scene.render.fps, bpy.context.scene.render.fps_base = round(rate), round(rate) / rate
    importer(filepath=str(file))
    return next(o for o in bpy.data.objects if o.type == "MESH")


def test_glb(shot, tmp_path):
    object, arrays, frames, rate, lasts = shot
    (file,) = export(object, tmp_path / "x.glb")
    data = file.read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    about = json.loads(data[20 : 20 + length])
    assert struct.unpack_from("<I", data, 8)[0] == len(data)
    (channel,) = [c for c in about["animations"][0]["channels"] if c["target"]["path"] == "weights"]
    times = about["accessors"][about["animations"][0]["samplers"][channel["sampler"]]["input"]]
    assert times["min"] == [0] and times["max"][0] == pytest.approx(lasts, abs=1e-5)
    assert times["count"] == len(frames), "each of the result's frames is met, and no more is written"
    back = imported(bpy.ops.import_scene.gltf, file)  # its importer knows whole frame rates only
    curves = compat.fcurves(back.data.shape_keys)
    start = min(curve.range()[0] for curve in curves)
    for index, frame in enumerate(frames):
        points = world_positions(bpy.context.scene, back, start + (frame - frames[0]) / rate * 24)
        assert same_points(points, expected_positions(arrays, TO_MODEL, index)), frame


def test_alembic(shot, tmp_path):
    object, arrays, frames, rate, lasts = shot
    (file,) = export(object, tmp_path / "x.abc")
    back = imported(bpy.ops.wm.alembic_import, file, rate)
    assert bpy.context.scene.frame_start == 0
    assert bpy.context.scene.frame_end == pytest.approx(frames[-1] - frames[0], abs=0.51)
    for index, frame in enumerate(frames):
        points = world_positions(bpy.context.scene, back, frame - frames[0])
        assert np.abs(points - expected_positions(arrays, TO_MODEL, index)).max() < 2e-3, frame


def test_usd(shot, tmp_path):
    object, arrays, frames, rate, lasts = shot
    (file,) = export(object, tmp_path / "x.usda")
    text = file.read_text(encoding="utf-8")
    about = {
        name: float(value) for name, value in re.findall(r"^\s*(\w+TimeCode|timeCodesPerSecond) = (\S+)", text, re.M)
    }
    assert about["startTimeCode"] == 0 and about["endTimeCode"] == np.ceil(frames[-1] - frames[0])
    assert about["timeCodesPerSecond"] == pytest.approx(rate, rel=1e-4)
    back = imported(bpy.ops.wm.usd_import, file, rate)
    for offset in range(int(np.ceil(frames[-1] - frames[0])) + 1):
        points = world_positions(bpy.context.scene, back, offset)
        assert np.abs(points - at(arrays, frames, frames[0] + offset)).max() < 1e-3, offset


def test_point_cache(shot, tmp_path):
    object, arrays, frames, rate, lasts = shot
    cache, mesh, *_ = export(object, tmp_path / "x.pc2")
    data = cache.read_bytes()
    _, _, points, start, step, count = struct.unpack_from("<12siiffi", data)
    assert (start, step, count) == (0, 1, int(np.ceil(frames[-1] - frames[0])) + 1)
    local = np.frombuffer(data, "<f4", offset=32).reshape(count, points, 3)
    matrix = np.array(object.matrix_world)
    for offset in range(count):
        y_up = local[offset] * (1, 1, -1)
        world = y_up[:, [0, 2, 1]] @ matrix[:3, :3].T + matrix[:3, 3]
        assert np.abs(world - at(arrays, frames, frames[0] + offset)).max() < 1e-3, offset
    back = imported(bpy.ops.wm.obj_import, mesh, rate)
    modifier = back.modifiers.new("Cache", "MESH_CACHE")
    modifier.cache_format, modifier.filepath, modifier.frame_start = "PC2", str(cache), 0
    moved = [world_positions(bpy.context.scene, back, offset) for offset in (0, count - 1)]
    assert np.ptp(moved, axis=0).max() > 0.01


def test_obj_files(shot, tmp_path):
    object, arrays, frames, rate, lasts = shot
    files = [file for file in export(object, tmp_path / "x.obj") if file.suffix == ".obj"]
    assert len(files) == int(np.ceil(frames[-1] - frames[0])) + 1
    for offset in {0, len(files) // 2, len(files) - 1}:
        back = imported(bpy.ops.wm.obj_import, files[offset])
        points = world_positions(bpy.context.scene, back, 1)
        assert same_points(points, at(arrays, frames, frames[0] + offset)), offset


@pytest.mark.parametrize("suffix", [".glb", ".abc", ".usd"])
def test_the_scene_and_its_animation_are_as_before(shot, tmp_path, suffix):
    object, *_ = shot
    keys = object.data.shape_keys

    def state():
        data = keys.animation_data
        curves = [[tuple(key.co) for key in curve.keyframe_points] for curve in compat.fcurves(keys)]
        scene = bpy.context.scene
        rates = (scene.render.fps, scene.render.fps_base, scene.frame_start, scene.frame_end, scene.frame_current)
        slot = getattr(data, "action_slot", None)
        return data.action, slot and slot.handle, curves, rates, len(bpy.data.actions), len(bpy.data.scenes)

    before = state()
    export(object, tmp_path / f"x{suffix}")
    assert state() == before


def test_what_an_artist_has_keyed_since_is_exported(scene, tmp_path):
    asked, _ = fake_job(tmp_path / "job", keyframes=(1.0, 9.0), inbetweens=0)
    object = shape_keys.write_result(scene, tmp_path / "job")
    object.keyframe_insert("location", frame=1)
    object.location.z += 2
    object.keyframe_insert("location", frame=5)
    height = object.location.z
    (file,) = export(object, tmp_path / "x.abc")
    back = imported(bpy.ops.wm.alembic_import, file)
    low, high = (world_positions(bpy.context.scene, back, offset)[:, 2].mean() for offset in (0, 4))
    assert high - low == pytest.approx(2, abs=0.2) and height > 0
