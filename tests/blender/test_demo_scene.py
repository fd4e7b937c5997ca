# SPDX-License-Identifier: GPL-3.0-or-later
"""The example scenes are what they say they are, and the previews show the result from the job's cameras."""

from __future__ import annotations

import bpy
import numpy as np
import pytest
from lim_for_blender.blender_addon.result import render_preview, shape_keys, vertex_colours
from lim_for_blender.blender_addon.source import capture_scene, png
from lim_for_blender.blender_addon.source.evaluated import coordinates
from lim_for_blender.install.scenes import demo_scene
from lim_for_blender.lim_core.shared import protocol, request
from lim_for_blender.lim_core.shared.errors import Cancelled


def evaluated(scene, object, frame: int) -> np.ndarray:
    scene.frame_set(frame)
    shown = object.evaluated_get(bpy.context.evaluated_depsgraph_get())
    matrix = np.array(shown.matrix_world)
    return coordinates(shown.data) @ matrix[:3, :3].T + matrix[:3, 3]


def test_the_dinosaur_is_one_textured_mesh_that_moves(scene):
    dino = demo_scene.build_creature(scene)
    mesh = dino.data
    assert (scene.frame_start, scene.frame_end, scene.render.fps) == (1, 17, 24)
    assert 2000 < len(mesh.vertices) < 15000 and len(mesh.uv_layers) == 1
    assert dino.parent.type == "ARMATURE" and len(dino.vertex_groups) == 15
    weights = [sum(g.weight for g in v.groups) for v in mesh.vertices]
    assert min(weights) > 0.9 and max(weights) < 1.1
    image = vertex_colours.base_image(mesh)
    assert image.packed_file
    pixels = np.array(image.pixels[:]).reshape(-1, 4)[:, :3]
    assert len(np.unique((pixels * 8).astype(int), axis=0)) > 30, "the texture has many colours"
    places = [evaluated(scene, dino, frame) for frame in demo_scene.KEYFRAMES]
    assert all(np.isfinite(p).all() for p in places)
    for earlier, later in zip(places, places[1:]):
        moved = np.linalg.norm(later - earlier, axis=1)
        assert np.median(moved) > 0.2 and moved.max() < 2.0
    assert abs(places[0][:, 2].min()) < 0.15, "it stands on the ground"


def test_the_sculpts_do_not_correspond(scene):
    poses = demo_scene.build_poses(scene)
    assert len(poses) == 3 and len({len(pose.data.vertices) for pose in poses}) == 3
    assert all(pose.data.color_attributes.active_color.name == "Paint" for pose in poses)
    assert poses[1].location.x - poses[0].location.x == pytest.approx(2.5)


def test_previews_show_the_result_where_the_capture_showed_its_source(scene, tmp_path):
    bpy.ops.mesh.primitive_monkey_add(location=(2, 1, 0))
    monkey = bpy.context.object
    keyframes = (1.0, 9.0)
    for frame, z in zip(keyframes, (0, 1)):
        monkey.location.z = z
        monkey.keyframe_insert("location", frame=frame)
    spec = capture_scene.CaptureSpec(
        "objects", (monkey.name,), keyframes, image_size=128, views=2, rig_views=2, template="mesh"
    )
    captured = capture_scene.capture(scene, spec, tmp_path)
    asked = request.Request(
        keyframes=keyframes, inbetweens=1, world_to_model=captured.world_to_model, image_size=128, rig_views=2, views=2,
        name="monkey",
    )  # fmt: skip
    request.write(asked, tmp_path)
    with np.load(tmp_path / protocol.TEMPLATE_FILE) as template:
        vertices, faces = template["vertices"], template["faces"]
    scale = captured.world_to_model[0][0]
    positions = np.stack([vertices + np.array([0, 0, lift * scale], np.float32) for lift in (0, 0.5, 1)])
    uvs = np.zeros((len(faces), 3, 2), np.float32)
    np.savez(tmp_path / protocol.RESULT_ARRAYS, positions=positions, frames=asked.frames(), faces=faces, loop_uvs=uvs)
    (tmp_path / protocol.RESULT_FILE).write_text(f'{{"protocol": {protocol.VERSION}}}', encoding="utf-8")
    png.write(tmp_path / protocol.TEXTURE_FILE, np.full((4, 4, 3), (200, 60, 30), np.uint8))
    result = shape_keys.write_result(scene, tmp_path)
    scene.frame_set(3)
    files = render_preview.render_previews(scene, result, tmp_path, size=128)
    assert scene.frame_current == 3 and len(bpy.data.scenes) == 1
    assert files == [protocol.preview_file("traced", i, v) for i in range(3) for v in range(2)]
    for k in range(2):
        for view in range(2):
            captured, shown = (
                np.array(bpy.data.images.load(str(tmp_path / name)).pixels[:]).reshape(128, 128, 4)
                for name in (protocol.image_file(k, view), files[4 * k + view])
            )
            assert ((captured[..., 3] > 0.5) != (shown[..., 3] > 0.5)).mean() < 0.01
            assert np.abs(np.median(shown[shown[..., 3] == 1], 0)[:3] * 255 - (200, 60, 30)).max() <= 2
    with pytest.raises(Cancelled):
        render_preview.render_previews(scene, result, tmp_path, is_cancelled=lambda: True)
    assert len(bpy.data.scenes) == 1
