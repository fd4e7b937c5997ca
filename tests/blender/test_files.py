# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of other programs as a source: clips, mesh sequences, what cannot be read, and what is said of all that."""

from __future__ import annotations

import json
import struct

import bpy
import numpy as np
import pytest
from lim_for_blender.blender_addon.source import import_file, keyframes, mesh_sequence
from lim_for_blender.blender_addon.ui import panel_settings
from lim_for_blender.lim_core.shared.errors import LimError

from field import files


def shown(objects, frame: float) -> np.ndarray:
    """World coordinates [N, 3] of all vertices that the objects show."""
    whole = int(np.floor(frame))
    bpy.context.scene.frame_set(whole, subframe=frame - whole)
    graph = bpy.context.evaluated_depsgraph_get()
    points = []
    for object in (object for object in objects if object.type == "MESH"):
        evaluated = object.evaluated_get(graph)
        matrix = np.array(evaluated.matrix_world)
        points += [matrix[:3, :3] @ np.array(v.co) + matrix[:3, 3] for v in evaluated.to_mesh().vertices]
        evaluated.to_mesh_clear()
    return np.array(points)


# ---- clips ---------------------------------------------------------------------------------------------------------
def test_clips_that_move_other_objects_play_together(tmp_path):
    path = tmp_path / "zwei.glb"
    files.build_two_movers(path)
    opened = import_file.open_or_import(str(path))
    assert len(opened.clips) == 2 and opened.notes == []
    for name, high in (("Left", 1.7), ("Right", -0.7)):
        assert shown([bpy.data.objects[name]], 13)[:, 2].max() == pytest.approx(high, abs=1e-3)


def test_one_clip_by_name_plays_alone_and_several_by_their_names(tmp_path):
    path = tmp_path / "zwei.glb"
    files.build_two_movers(path)
    both = import_file.open_or_import(str(path)).clips
    opened = import_file.open_or_import(str(path), both[1])
    assert opened.clips == both[1:] and opened.notes == []
    still = [name for name in ("Left", "Right") if abs(shown([bpy.data.objects[name]], 13)[:, 2].mean()) < 1e-3]
    assert len(still) == 1
    assert set(import_file.open_or_import(str(path), ",".join(both)).clips) == set(both)


def test_two_named_clips_that_move_the_same_are_refused():
    files.new_scene()
    bpy.ops.mesh.primitive_cube_add()
    cube = bpy.context.object
    for name, height in (("up", 1.0), ("down", -1.0)):
        if cube.animation_data:
            cube.animation_data.action = None
        files.keyed(cube, "location", {1: 0.0, 9: height}, index=2)
        action, slot = cube.animation_data.action, getattr(cube.animation_data, "action_slot", None)
        track = cube.animation_data.nla_tracks.new()
        track.name = name
        strip = track.strips.new(name, 1, action)
        if slot:
            strip.action_slot = slot
    with pytest.raises(LimError) as raised:
        import_file.choose_clips([cube], "up,down", "x")
    assert raised.value.code == "bad_request" and "“up”" in raised.value.message
    played, left_out = import_file.choose_clips([cube], "", "x")
    assert len(played) == 1 and len(left_out) == 1


# ---- stop motion by scale ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fps, sampled", [(24, False), (24, True), (12, True), (30, True)])
def test_every_pose_of_a_stop_motion_by_scale_is_a_keyframe(tmp_path, fps, sampled):
    path = tmp_path / "swap.glb"
    files.build_scale_swap(path, poses=8, hold=2, fps=fps, sampled=sampled)
    opened = import_file.open_or_import(str(path))
    scene = bpy.context.scene
    frames = keyframes.default(opened.objects, scene.frame_start, scene.frame_end)
    assert len(frames) == 8, "a pose that is left out is lost"
    for pose, frame in enumerate(frames):
        for other in range(8):
            object = bpy.data.objects[f"Pose {other}"]
            whole = np.ptp([vertex.co.x for vertex in object.data.vertices])
            wanted = whole if other == pose else 0.0
            assert np.ptp(shown([object], frame)[:, 0]) == pytest.approx(wanted, abs=1e-3), (pose, other, frame)


# ---- mesh sequences ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", mesh_sequence.SUFFIXES[:4])
def test_a_folder_of_numbered_meshes_plays(tmp_path, suffix):
    folder = tmp_path / "ein Ordner é"
    folder.mkdir()
    made = files.build_sheets(folder, suffix, numbers=(3, 4, 5, 7, 10))
    for source in (folder, made[0]):
        opened = import_file.open_or_import(str(source))
        (object,) = opened.objects
        assert (bpy.context.scene.frame_start, bpy.context.scene.frame_end) == (3, 10)
        assert keyframes.default(opened.objects, 3, 10) == (3, 4, 5, 7, 10)
        for frame, place in ((3, 0), (4, 1), (6, 2), (7, 3), (9, 3), (10, 4)):
            points = shown([object], frame)
            assert suffix != ".obj" or len(points) == (9 + 2 * (place % 3)) * 7, frame
            assert np.ptp(points, axis=0).min() == pytest.approx(0.1 * place, abs=1e-3), frame
    assert import_file.sequence_of(made[1]) == [], "only the first stands for all"


def test_names_without_zeros_and_numbers_in_the_middle(tmp_path):
    def names(folder, *given):
        folder.mkdir()
        for name in given:
            (folder / name).touch()
        return [(number, file.name) for number, file in mesh_sequence.in_folder(folder)]

    assert names(tmp_path / "a", "f2.obj", "f10.obj", "f1.obj", "f1.mtl") == [
        (1, "f1.obj"),
        (2, "f2.obj"),
        (10, "f10.obj"),
    ]
    assert [n for n, _ in names(tmp_path / "b", "c_0001_v2.ply", "c_0002_v2.ply", "c_0003_v2.ply")] == [1, 2, 3]
    assert [n for n, _ in names(tmp_path / "c", "s_20240101001.obj", "s_20240101002.obj")] == [1, 2]
    with pytest.raises(LimError) as raised:
        names(tmp_path / "d", "a_1.obj", "a_2.obj", "b_1.obj", "b_2.obj")
    assert raised.value.code == "bad_request" and "a_1.obj" in raised.value.hint
    with pytest.raises(LimError) as raised:
        names(tmp_path / "e", "hero.obj", "tree.obj")
    assert raised.value.code == "missing_file"


def test_a_broken_file_of_a_sequence_is_named_and_nothing_stays(tmp_path):
    made = files.build_sheets(tmp_path, ".glb", numbers=(1, 2))
    made[1].write_bytes(b"not a glb")
    with pytest.raises(LimError) as raised:
        import_file.open_or_import(str(tmp_path))
    assert made[1].name in raised.value.message
    assert not bpy.data.objects and not bpy.data.collections


# ---- what Blender does not read ------------------------------------------------------------------------------------
def glb(path, **about) -> None:
    """A .glb that says this of itself."""
    text = json.dumps({"asset": {"version": "2.0"}, **about}).encode()
    text += b" " * (-len(text) % 4)
    path.write_bytes(struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text), len(text), b"JSON") + text)


@pytest.mark.parametrize(
    "extension, command", [("EXT_meshopt_compression", "copy"), ("KHR_texture_basisu", "ktxdecompress")]
)
def test_a_compression_that_blender_does_not_read_has_a_hint_that_helps(tmp_path, extension, command):
    path = tmp_path / "packed.glb"
    glb(path, extensionsRequired=[extension], extensionsUsed=[extension], scenes=[{"nodes": [0]}], nodes=[{}])
    with pytest.raises(LimError) as raised:
        import_file.open_or_import(str(path))
    assert f"gltf-transform {command} packed.glb" in raised.value.hint
    assert "Check the file" not in raised.value.hint


def test_textures_that_blender_passes_over_are_said(tmp_path):
    path = tmp_path / "dull.glb"
    files.build_two_movers(path)
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    about = json.loads(data[20 : 20 + length])
    about["extensionsUsed"] = [*about.get("extensionsUsed", ()), "KHR_texture_basisu"]
    about["textures"] = [{"extensions": {"KHR_texture_basisu": {"source": 0}}}]
    text = json.dumps(about).encode()
    text += b" " * (-len(text) % 4)
    rest = data[20 + length :]
    path.write_bytes(
        struct.pack("<4sII", b"glTF", 2, 20 + len(text) + len(rest))
        + struct.pack("<I4s", len(text), b"JSON")
        + text
        + rest
    )
    ((code, message, hint),) = import_file.open_or_import(str(path)).notes
    assert code == "missing_texture" and "KTX2" in message and "ktxdecompress" in hint


# ---- the panel ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", [".obj", ".glb", ".abc", ".usda", ".usdc", ".fbx"])
def test_import_to_mesh_takes_the_file_as_the_source(scene, addon, tmp_path, suffix):
    path = tmp_path / "ein Ordner é"
    path.mkdir()
    if suffix == ".obj":
        files.build_sheets(path, suffix, numbers=range(5, 11))
    else:
        path = path / f"moving{suffix}"
        files.build_moving(path)
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    scene.frame_start, scene.frame_end = 100, 120
    scene.frame_set(110)
    bpy.ops.mesh.primitive_cube_add()
    other = bpy.context.object
    assert bpy.ops.lim.import_source(filepath=str(path)) == {"FINISHED"}
    assert (scene.frame_start, scene.frame_end, scene.frame_current) == (100, 120, 110)
    assert not other.select_get() and scene.lim.source == "SELECTED"
    settings = panel_settings.settings_from(bpy.context)
    assert other.name not in settings.objects and settings.objects
    wanted = (5, 10) if suffix == ".obj" else (1, 13)
    assert (settings.keyframes[0], settings.keyframes[-1]) == pytest.approx(wanted, abs=1.01)
    moving = [bpy.data.objects[name] for name in settings.objects]
    low, high = (shown(moving, frame)[:, 2].max() for frame in (settings.keyframes[0], settings.keyframes[-1]))
    assert high - low > 0.3, "it moves where the keyframes are"


def test_what_cannot_be_imported_is_said_in_the_panel(scene, addon, tmp_path):
    state = bpy.context.window_manager.lim_job
    (tmp_path / "x.blend").touch()
    (tmp_path / "leer").mkdir()
    for path, words in (
        (tmp_path / "gone.glb", "no file"),
        (tmp_path / "x.blend", "Blender file"),
        (tmp_path / "leer", "no"),
    ):
        with pytest.raises(RuntimeError):
            bpy.ops.lim.import_source(filepath=str(path))
        assert words in state.error_text.replace("\n", " ")
    assert not scene.objects
