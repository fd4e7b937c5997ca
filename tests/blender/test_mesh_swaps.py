# SPDX-License-Identifier: GPL-3.0-or-later
"""What Keymesh and Stop-motion-OBJ leave in a file is played without them."""

from __future__ import annotations

import bpy
import numpy as np
import pytest
from lim_for_blender.blender_addon import keyframes, mesh_swaps

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
