# SPDX-License-Identifier: GPL-3.0-or-later
"""What Keymesh and Stop-motion-OBJ leave in a file is played without them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import bpy
import numpy as np
import pytest
from lim_for_blender.blender_addon.job import capturing, job_folders
from lim_for_blender.blender_addon.source import capture_scene, keyframes, mesh_swaps
from lim_for_blender.lim_core.shared import protocol

from field import swaps


def heights(object, frames) -> list[float]:
    """Half the height of the block that is shown at each frame; 0 for an empty one."""
    swap = mesh_swaps.of(object)
    assert swap is not None, object.name
    blocks = [swap.block_at(frame) for frame in frames]
    return [max((v.co.z for v in block.vertices), default=0.0) if block else float("nan") for block in blocks]


def reopened(tmp_path, name: str) -> bpy.types.Object:
    """The object after its file was saved and opened again."""
    path = tmp_path / "swap.blend"
    bpy.ops.wm.save_as_mainfile(filepath=str(path))
    bpy.ops.wm.open_mainfile(filepath=str(path))
    return bpy.data.objects[name]


@pytest.mark.parametrize("old", [False, True])
def test_keymesh_is_read_by_its_numbers(tmp_path, old):
    swaps.build_keymesh({1: 1.0, 9: 1.35, 17: 0.65, 25: 1.0}, old=old)
    object = reopened(tmp_path, "Blob")
    assert heights(object, (-5, 1, 8.9, 9, 16, 17, 24, 25, 99)) == pytest.approx(
        [1.0, 1.0, 1.0, 1.35, 1.35, 0.65, 0.65, 1.0, 1.0], abs=1e-3
    )
    assert mesh_swaps.of(object).frames == (1, 9, 17, 25)


@pytest.mark.skipif(bpy.app.version < (5, 0, 0), reason="groups became system properties in 5.0")
def test_a_group_that_an_older_blender_saved_is_read_too():
    object = swaps.build_keymesh({1: 1.0, 9: 1.35})
    meshes = [entry["block"] for entry in object.bl_system_properties_get()["keymesh"]["blocks"]]
    numbers = [mesh.bl_system_properties_get()["keymesh"]["Data"] for mesh in meshes]
    system = object.bl_system_properties_get()
    del system["keymesh"]
    for mesh, number in zip(meshes, numbers):
        del mesh.bl_system_properties_get()["keymesh"]
        mesh["keymesh"] = {"ID": 5, "Data": number}
    object["keymesh"] = {"active": 1, "animated": 1, "ID": 5, "blocks": [{"block": mesh} for mesh in meshes]}
    assert heights(object, (1, 9)) == pytest.approx([1.0, 1.35], abs=1e-3)


def test_a_muted_or_switched_off_keymesh_does_not_swap():
    object = swaps.build_keymesh({1: 1.0, 9: 1.35})
    curve = swaps.fcurves(object)[0]
    curve.mute = True
    assert mesh_swaps.of(object) is None
    curve.mute = False
    assert mesh_swaps.of(object) is not None
    with swaps.addons_properties():
        bpy.context.scene.keymesh.enable_handler = False
    assert mesh_swaps.of(object) is None
    assert mesh_swaps.unread([object]) == [], "it is off on purpose"


def test_a_number_without_a_block_keeps_the_last_one():
    object = swaps.build_keymesh({1: 1.0, 9: 1.35, 17: 0.65})
    lost = mesh_swaps.of(object).block_at(9)
    with swaps.addons_properties():
        lost.keymesh["Data"] = 999
    with mesh_swaps.playing([object]) as show:
        show(1)
        first = object.data
        show(9)
        assert object.data == first and mesh_swaps.of(object).frames == (1, 17)


@pytest.mark.parametrize(
    "mode, expected",
    [
        (mesh_swaps.BLANK, [0, 1.0, 1.0, 1.4, 1.2, 0, 0]),
        (mesh_swaps.EXTEND, [1.0, 1.0, 1.0, 1.4, 1.2, 1.2, 1.2]),
        (mesh_swaps.REPEAT, [1.2, 1.0, 1.0, 1.4, 1.2, 1.0, 0.6]),
        (mesh_swaps.BOUNCE, [1.0, 1.0, 1.0, 1.4, 1.2, 1.2, 1.4]),
    ],
)
def test_a_mesh_sequence_follows_its_formula(tmp_path, mode, expected):
    swaps.build_mesh_sequence(mode)
    object = reopened(tmp_path, "Scan")
    assert heights(object, (0, 3, 4, 5, 9, 11, 15)) == pytest.approx(expected, abs=1e-3)
    assert mesh_swaps.of(object).frames == (3, 5, 7, 9)


def test_a_keyed_mesh_sequence_follows_its_curve(tmp_path):
    swaps.build_mesh_sequence(mesh_swaps.KEYED, keys={1: 1, 5: 3, 9: 2})
    object = reopened(tmp_path, "Scan")
    for key in swaps.fcurves(object)[0].keyframe_points:
        key.interpolation = "CONSTANT"
    assert heights(object, (1, 4, 5, 8, 9)) == pytest.approx([1.0, 1.0, 0.6, 0.6, 1.4], abs=1e-3)
    assert mesh_swaps.of(object).frames == (1, 5, 9)


def test_a_streamed_sequence_is_said_to_need_its_addon():
    object = swaps.build_mesh_sequence(mesh_swaps.EXTEND, streaming=True)
    assert mesh_swaps.of(object) is None and mesh_swaps.unread([object]) == [("Scan", "Stop-motion-OBJ")]


def test_playing_puts_the_block_and_the_materials_back():
    object = swaps.build_keymesh({1: 1.0, 9: 1.35})
    mesh_swaps.of(object).show(1)
    own = swaps.matte("own", (0, 0, 1))
    object.material_slots[0].link, object.material_slots[0].material = "OBJECT", own
    mesh_swaps.of(object).block_at(9).materials.clear()
    before = object.data
    with mesh_swaps.playing([object]) as show:
        show(9)
        assert object.data != before
    assert object.data == before
    assert object.material_slots[0].link == "OBJECT" and object.material_slots[0].material == own


def test_twenty_blocks_are_twenty_keyframes():
    object = swaps.build_keymesh({1 + 2 * k: 0.6 + 0.04 * k for k in range(20)})
    assert keyframes.default([object], 1, 60) == tuple(range(1, 40, 2))
    swaps.keyed(object, "location", {1: 0.0, 12: 1.0, 60: 0.0}, index=0)
    assert keyframes.default([object], 1, 60) == (*range(1, 40, 2), 60), "with the ends of the other motion"
    assert len(keyframes.offered([object], 1, 60, 7)) == 21


def test_a_block_that_is_keyed_again_is_no_further_keyframe():
    object = swaps.build_keymesh({1: 1.0, 5: 1.0, 9: 1.35, 13: 1.35, 17: 0.65})
    assert keyframes.default([object], 1, 20) == (1, 9, 17) == keyframes.of_actions([object])


def test_other_animation_is_offered_as_before(scene):
    bpy.ops.mesh.primitive_cube_add()
    swaps.keyed(bpy.context.object, "scale", {1: (1, 1, 1), 40: (0, 0, 0)})
    swaps.keyed(bpy.context.object, "location", {k: float(k) for k in range(1, 40)}, index=0)
    assert len(keyframes.default([bpy.context.object], 1, 40)) == 5, "what shrinks slowly is no swap"
    assert np.all(np.diff(keyframes.default([bpy.context.object], 1, 40)) > 5)


# ---- in a capture --------------------------------------------------------------------------------------------------
def captured(tmp_path, keys, name: str = "Blob"):
    spec = capture_scene.CaptureSpec("objects", (name,), tuple(map(float, keys)), image_size=64, views=1, rig_views=1)
    found = capture_scene.capture(bpy.context.scene, spec, tmp_path / "job")
    shown = []
    for index in range(len(keys)):
        with np.load(tmp_path / "job" / protocol.depth_file(index), allow_pickle=False) as arrays:
            shown.append(int((arrays["depth_planar"] > 0).any(2).sum()))  # rows of the picture that show something
    return found, shown


def test_the_capture_shows_each_frames_block_and_leaves_the_object(tmp_path):
    object = swaps.build_keymesh({1: 1.0, 9: 1.6, 17: 0.5})
    before = object.data
    found, rows = captured(tmp_path, (1, 9, 17))
    assert rows[1] > 1.3 * rows[0] and rows[2] < 0.85 * rows[0]
    assert object.data == before and found.warnings == [] and found.moves


def test_a_block_is_shown_through_an_instanced_collection(tmp_path):
    object = swaps.build_keymesh({1: 1.0, 9: 1.6})
    asset = bpy.data.collections.new("Asset")
    bpy.context.scene.collection.objects.unlink(object)
    asset.objects.link(object)
    empty = bpy.data.objects.new("Placed", None)
    empty.instance_type, empty.instance_collection = "COLLECTION", asset
    bpy.context.scene.collection.objects.link(empty)
    _, rows = captured(tmp_path, (1, 9), "Placed")
    assert rows[1] > 1.3 * rows[0]


def test_an_animation_that_needs_an_absent_addon_is_said(tmp_path):
    object = swaps.build_mesh_sequence(mesh_swaps.EXTEND, streaming=True)
    object.data = swaps.blob("still", 1.0)
    found, _ = captured(tmp_path, (1, 9), "Scan")
    ((code, message, hint),) = found.warnings
    assert code == "addon_missing" and "Scan" in message and "Stop-motion-OBJ" in message and hint
    assert not found.moves


def test_a_key_on_what_only_an_addon_knows_is_said(tmp_path):
    class FieldRig(bpy.types.PropertyGroup):
        bend: bpy.props.FloatProperty()

    object = swaps.build_keymesh({1: 1.0, 9: 1.6})
    bpy.utils.register_class(FieldRig)
    bpy.types.Object.field_rig = bpy.props.PointerProperty(type=FieldRig)
    swaps.keyed(object.field_rig, "bend", {1: 0.0, 9: 1.0})
    del bpy.types.Object.field_rig
    bpy.utils.unregister_class(FieldRig)
    found, _ = captured(tmp_path, (1, 9))
    ((code, message, _),) = found.warnings
    assert code == "addon_missing" and "field_rig" in message and "Blob" in message


@pytest.mark.parametrize("moves", [True, False])
def test_what_does_not_move_is_said(scene, tmp_path, moves):
    bpy.ops.mesh.primitive_cube_add()
    cube = bpy.context.object
    if moves:
        swaps.keyed(cube, "rotation_euler", {1: 0.0, 9: 0.05}, index=2)
    found, _ = captured(tmp_path, (1, 9), cube.name)
    assert found.moves == moves
    capturing.capture_into(
        scene, {"source": "objects", "objects": [cube.name], "keyframes": [1.0, 9.0], "image_size": 32, "views": 1,
                "rig_views": 1}, "key", tmp_path / "job", lambda fraction: None, lambda: False,
    )  # fmt: skip
    record = json.loads((tmp_path / "job" / job_folders.CAPTURE_RECORD).read_text(encoding="utf-8"))
    assert [code for code, *_ in record["warnings"]] == ([] if moves else ["nothing_moves"])


def test_what_is_scaled_to_nothing_takes_no_room(scene, tmp_path):
    for name, x, tiny in (("near", 0.0, 0.0), ("far", 100.0, 1e-5)):
        bpy.ops.mesh.primitive_cube_add(location=(x, 0, 0))
        cube = bpy.context.object
        cube.name = name
        shown = 1 if name == "near" else 9
        swaps.keyed(cube, "scale", {frame: (1.0,) * 3 if frame == shown else (tiny,) * 3 for frame in (1, 9)})
    spec = capture_scene.CaptureSpec("objects", ("near", "far"), (1.0, 9.0), image_size=64, views=1, rig_views=1)
    found = capture_scene.capture(scene, spec, tmp_path / "job")
    assert found.world_to_model[0][0] > 0.3, "the cube fills the pictures"


def test_keymesh_is_not_started_in_the_other_blender(scene, monkeypatch):
    def mover(*_):
        pass

    monkeypatch.setattr(mover, "__module__", "pose_library.gui")
    loaded = bpy.app.handlers.load_post
    loaded.append(mover)
    try:
        assert "pose_library" not in capturing.addons_that_move_things(), (
            "it loads, and moves nothing from frame to frame"
        )
    finally:
        loaded.remove(mover)
    addons = [SimpleNamespace(module=name) for name in ("bl_ext.user_default.keymesh", "bl_ext.studio.mover")]
    functions = []
    for addon in addons:
        function = lambda *_: None  # noqa: E731
        function.__module__ = f"{addon.module}.handlers"
        functions.append(function)
    repository = SimpleNamespace(module="studio", name="Studio", directory="/studio/add-ons")
    preferences = SimpleNamespace(addons=addons, extensions=SimpleNamespace(repos=[repository]))
    monkeypatch.setattr(capturing.bpy, "context", SimpleNamespace(preferences=preferences), raising=False)
    bpy.app.handlers.frame_change_post.extend(functions)
    try:
        names = capturing.addons_that_move_things()
        assert names == ["bl_ext.studio.mover"]
        asked = capturing._enabling(names)
    finally:
        for function in functions:
            bpy.app.handlers.frame_change_post.remove(function)
    compile(asked, "expression", "exec")
    assert "repos.new(name='Studio', module='studio', custom_directory='/studio/add-ons')" in asked
    assert "default_set=True" in asked and "keymesh" not in asked


def test_a_good_capture_prints_no_error(scene, tmp_path, capfd):
    """Blender prints “Object does not have geometry data” for each rig and empty that is asked for a mesh."""
    bpy.ops.object.armature_add()
    rig = bpy.context.object
    bpy.ops.mesh.primitive_cube_add()
    bpy.context.object.parent = rig
    swaps.keyed(rig, "location", {1: 0.0, 9: 0.3}, index=2)
    capfd.readouterr()
    captured(tmp_path, (1, 9), rig.name)
    printed = capfd.readouterr()
    assert "Error" not in printed.out + printed.err
