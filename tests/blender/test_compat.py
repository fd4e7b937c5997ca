# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs between the versions of Blender does the same through `compat`."""

from __future__ import annotations

import ast
import os
import warnings
from pathlib import Path

import bpy
import numpy as np
import pytest
from lim_for_blender.blender_addon.source import camera_rig, compat, png
from lim_for_blender.lim_core.shared import cameras

ADDON = Path(__file__).resolve().parents[2] / "blender_addon"


def test_only_compat_asks_for_the_version():
    """`bpy.app.version` compared anywhere else would spread the differences again (texts may show it)."""
    for path in ADDON.glob("*.py"):
        if path.name == "compat.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                assert "app.version" not in ast.unparse(node), f"{path.name}:{node.lineno}"


def test_action_plays_and_reads_back(scene):
    bpy.ops.mesh.primitive_cube_add()
    cube = bpy.context.object
    curves = compat.new_action(cube, "walk")
    compat.add_linear_fcurve(curves, "location", [1, 5, 9], [0.0, 4.0, 2.0], index=2)
    assert cube.animation_data.action.name == "walk"
    (found,) = compat.fcurves(cube)
    assert (found.data_path, found.array_index, found.extrapolation) == ("location", 2, "CONSTANT")
    for frame, z in ((-3, 0), (1, 0), (3, 2), (5, 4), (7, 3), (9, 2), (50, 2)):
        scene.frame_set(frame)
        assert cube.location.z == pytest.approx(z, abs=1e-6)


def test_no_action_has_no_curves(scene):
    bpy.ops.mesh.primitive_cube_add()
    assert compat.fcurves(bpy.context.object) == []
    bpy.context.object.animation_data_create()
    assert compat.fcurves(bpy.context.object) == []


def test_new_shape_keys_are_off(scene):
    bpy.ops.mesh.primitive_cube_add()
    assert [compat.add_shape_key(bpy.context.object, name).value for name in ("Basis", "one")] == [0.0, 0.0]


def test_new_material_has_an_empty_tree_and_warns_of_nothing(scene):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        material = compat.new_material("m")
        assert compat.has_nodes(material)
    assert len(material.node_tree.nodes) == 0


def test_file_format(scene):
    settings = scene.render.image_settings
    compat.set_multilayer_exr(settings)
    assert (settings.file_format, settings.exr_codec) == ("OPEN_EXR_MULTILAYER", "NONE")


def test_quiet_output_is_quiet_only_inside(capfd):
    os.write(1, b"before ")
    with pytest.raises(KeyError), compat.quiet_output():
        os.write(1, b"inside ")
        raise KeyError
    os.write(1, b"after")
    assert capfd.readouterr().out == "before after"


def test_the_curves_of_one_slot_or_of_all(scene):
    curves = compat.new_action(scene, "both")
    compat.add_linear_fcurve(curves, "gravity", [1, 5], [0.0, 1.0])
    action = scene.animation_data.action
    slot = getattr(scene.animation_data, "action_slot", None)
    if slot is not None:
        other = action.slots.new("OBJECT", "other")
        bag = action.layers[0].strips[0].channelbag(other, ensure=True)
        compat.add_linear_fcurve(bag.fcurves, "location", [1, 5], [0.0, 1.0])
        assert {curve.data_path for curve in compat.curves_of(action)} == {"gravity", "location"}
    assert [curve.data_path for curve in compat.curves_of(action, slot)] == ["gravity"]


def test_light_survives_the_srgb_curve():
    light = np.linspace(0, 1, 100)
    assert np.allclose(png.decode_srgb(png.encode_srgb(light)), light, atol=1e-6)


@pytest.mark.parametrize(("frame", "parts"), [(3, (3, 0)), (3.25, (3, 0.25)), (-1.5, (-2, 0.5)), (0, (0, 0))])
def test_frame_parts(scene, frame, parts):
    assert compat.frame_parts(frame) == parts
    scene.frame_set(parts[0], subframe=parts[1])
    assert scene.frame_current_final == frame


# ---- cameras -------------------------------------------------------------------------------------------------------


def test_blender_camera_sees_what_our_camera_sees(scene):
    """Blender's own projection of points against `cameras.project`."""
    from bpy_extras.object_utils import world_to_camera_view
    from mathutils import Matrix, Vector

    size = 128
    data = bpy.data.cameras.new("c")
    camera = bpy.data.objects.new("c", data)
    scene.collection.objects.link(camera)
    scene.render.resolution_x = scene.render.resolution_y = size
    data.sensor_width = camera_rig.SENSOR
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 3))
    for to_world, intrinsics in zip(*cameras.job_cameras(size, 16)):
        data.lens = camera_rig.lens(intrinsics, size)
        matrix = camera_rig.blender_matrix(to_world)
        assert np.allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-6)
        camera.matrix_world = Matrix(matrix.tolist())
        bpy.context.view_layer.update()
        expected, depth = cameras.project(points.astype(np.float32), to_world, intrinsics)
        for point, pixel, z in zip(points, expected, depth):
            x, y, distance = world_to_camera_view(scene, camera, Vector(point))
            assert np.allclose((x * size, (1 - y) * size), pixel, atol=0.01)
            assert distance == pytest.approx(z, rel=1e-4)


def test_lens_refuses_what_blender_cannot_do():
    intrinsics = cameras.pinhole(64)
    intrinsics[0, 2] += 3
    with pytest.raises(ValueError, match="centred"):
        camera_rig.lens(intrinsics, 64)
