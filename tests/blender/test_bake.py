# SPDX-License-Identifier: GPL-3.0-or-later
"""The baker end to end: small animated files made here, baked by a Blender process of its own."""

from __future__ import annotations

import contextlib
import math
import sys

import bpy
import numpy as np
import pytest
from lim_for_blender.lim_core.data import bake
from lim_for_blender.lim_core.mesh import packs
from lim_for_blender.lim_core.shared.errors import LimError

TOP, BOTTOM = (230, 40, 20), (20, 60, 220)  # of the tube's image, sRGB
RIGID = (0.5, 0.2, 0.05)  # of the box, linear
RINGS, SIDES, HEIGHT = 17, 12, 2.0
FRAMES = 30  # at 30 frames a second


def image(size: int = 512) -> bpy.types.Image:
    """Two colours, upper and lower half, packed into the file."""
    made = bpy.data.images.new("halves", size, size, alpha=True)
    pixels = np.ones((size, size, 4), np.float32)
    pixels[size // 2 :, :, :3] = np.array(TOP) / 255
    pixels[: size // 2, :, :3] = np.array(BOTTOM) / 255
    made.pixels.foreach_set(pixels.ravel())
    made.pack()
    return made


def material(name: str, colour=None, picture=None) -> bpy.types.Material:
    made = bpy.data.materials.new(name)
    with contextlib.suppress(AttributeError):  # always on from 5.0
        made.use_nodes = True
    shader = next(n for n in made.node_tree.nodes if n.type == "BSDF_PRINCIPLED")
    if picture is not None:
        node = made.node_tree.nodes.new("ShaderNodeTexImage")
        node.image = picture
        made.node_tree.links.new(node.outputs["Color"], shader.inputs["Base Color"])
    else:
        shader.inputs["Base Color"].default_value = (*colour, 1)
    return made


def add_mesh(name, points, faces, uv=None) -> bpy.types.Object:
    mesh = bpy.data.meshes.new(name)
    mesh.from_pydata(points, [], faces)
    if uv is not None:
        layer = mesh.uv_layers.new()
        corner = np.array([uv[loop.vertex_index] for loop in mesh.loops], np.float32)
        layer.data.foreach_set("uv", corner.ravel())
    ob = bpy.data.objects.new(name, mesh)
    bpy.context.collection.objects.link(ob)
    return ob


def build() -> tuple[bpy.types.Object, bpy.types.Object]:
    """A tube along +Z on two bones, whose upper one bends to +X, and a box above +Y that hangs on it by its parent."""
    points, uv = [], []
    for i in range(RINGS):
        for j in range(SIDES + 1):  # a seam, as UVs want it
            a, z = 2 * math.pi * j / SIDES, HEIGHT * i / (RINGS - 1)
            points.append((0.3 * math.cos(a), 0.3 * math.sin(a), z))
            uv.append((j / SIDES, z / HEIGHT))
    row = SIDES + 1
    faces = [
        (i * row + j, i * row + j + 1, (i + 1) * row + j + 1, (i + 1) * row + j)
        for i in range(RINGS - 1)
        for j in range(SIDES)
    ]
    tube = add_mesh("tube", points, faces, uv)
    tube.data.materials.append(material("halves", picture=image()))
    corners = [(x, y + 1, z) for z in (0, 0.4) for y in (0, 0.4) for x in (0, 0.4)]
    sides = [(0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5)]
    box = add_mesh("box", corners, sides)
    box.data.materials.append(material("flat", colour=RIGID))

    data = bpy.data.armatures.new("bones")
    rig = bpy.data.objects.new("rig", data)
    bpy.context.collection.objects.link(rig)
    bpy.context.view_layer.objects.active = rig
    bpy.ops.object.mode_set(mode="EDIT")
    lower, upper = data.edit_bones.new("lower"), data.edit_bones.new("upper")
    lower.head, lower.tail = (0, 0, 0), (0, 0, HEIGHT / 2)
    upper.head, upper.tail = (0, 0, HEIGHT / 2), (0, 0, HEIGHT)
    upper.parent = lower
    bpy.ops.object.mode_set(mode="OBJECT")
    groups = {name: tube.vertex_groups.new(name=name) for name in ("lower", "upper")}
    for i, p in enumerate(points):
        share = min(max(p[2] / HEIGHT * 2 - 0.5, 0), 1)
        groups["upper"].add([i], share, "REPLACE")
        groups["lower"].add([i], 1 - share, "REPLACE")
    tube.modifiers.new("rig", "ARMATURE").object = rig
    tube.parent = rig
    box.parent, box.parent_type, box.parent_bone = rig, "BONE", "upper"
    bpy.context.view_layer.update()
    box.matrix_world.identity()
    return tube, rig


def act(rig: bpy.types.Object, name: str, angle: float, as_track: bool = True) -> None:
    """An action in which the upper bone turns by `angle` over FRAMES; kept in an NLA track for the exporters."""
    rig.animation_data_create()
    action = bpy.data.actions.new(name)
    rig.animation_data.action = action
    bone = rig.pose.bones["upper"]
    bone.rotation_mode = "XYZ"
    for frame, value in ((0, 0.0), (FRAMES, angle)):
        bone.rotation_euler = (0, 0, value)
        bone.keyframe_insert("rotation_euler", frame=frame)
    if as_track:
        rig.animation_data.action = None
        track = rig.animation_data.nla_tracks.new()
        track.name = name
        track.strips.new(name, 0, action).name = name
        track.mute = True


def vertices(ob: bpy.types.Object) -> np.ndarray:
    evaluated = ob.evaluated_get(bpy.context.evaluated_depsgraph_get())
    mesh = evaluated.to_mesh()
    result = np.array([evaluated.matrix_world @ v.co for v in mesh.vertices])
    evaluated.to_mesh_clear()
    return result


def truth(track: str | None) -> np.ndarray:
    """World-space vertices of tube and box [11, V, 3] at every third frame of a clip."""
    rig = bpy.data.objects["rig"]
    for t in rig.animation_data.nla_tracks:
        t.mute = t.name != track
    result = []
    for frame in range(0, FRAMES + 1, 3):
        bpy.context.scene.frame_set(frame)
        result.append(np.concatenate([vertices(bpy.data.objects[n]) for n in ("tube", "box")]))
    for t in rig.animation_data.nla_tracks:
        t.mute = True
    return np.array(result)


@pytest.fixture
def thirty(scene):
    """An empty scene at the rate at which the baker imports."""
    scene.render.fps = 30
    scene.frame_start, scene.frame_end = 0, FRAMES
    return scene


def run(assets, out, **changes) -> dict[str, dict]:
    options = bake.BakeOptions(**changes)
    return bake.bake(assets, out, options, blender=sys.executable, timeout=300, show=lambda line: None)


def follow(pack: packs.Pack, clip: int, true: np.ndarray) -> float:
    """The largest distance, over all frames, of the true vertices from those baked vertices that lie nearest to them over
    the WHOLE clip: correspondence, not just shape."""
    baked = np.stack([pack.positions(clip, f) for f in range(pack.frames(clip))])
    assert len(baked) == len(true)
    distance = np.linalg.norm(true[:, :, None] - baked[:, None], axis=-1).max(0)
    return float(distance.min(1).max())


def check_surface(pack: packs.Pack) -> None:
    start = pack.positions(0, 0)[pack.faces].mean(1)
    uv = pack.uv.astype(float).mean(1)
    linear = np.array(RIGID)
    flat = np.rint((1.055 * linear ** (1 / 2.4) - 0.055) * 255)
    seen = {"top": 0, "bottom": 0, "box": 0}
    for centre, (u, v), m in zip(start, uv, pack.face_material, strict=True):
        texture = pack.texture(int(m))
        height, width = texture.shape[:2]
        texel = texture[int((1 - v % 1) * height) % height, int(u % 1 * width)].astype(int)
        if centre[1] > 0.5:
            want, part = flat, "box"
        else:
            want, part = (TOP, "top") if centre[2] > HEIGHT / 2 else (BOTTOM, "bottom")
        assert np.abs(texel - want).max() <= 2, (part, texel, want)
        seen[part] += 1
    assert seen["box"] == 12 and seen["top"] == seen["bottom"] == (RINGS - 1) * SIDES
    assert pack.texture_shape.max() == 64  # shrunk as the options say


@pytest.mark.parametrize("kind", ["glb", "blend", "fbx"])
def test_clips_textures_and_correspondences(thirty, tmp_path, kind):
    tube, rig = build()
    assets = tmp_path / "as sets"
    assets.mkdir()
    path = str(assets / f"tübe.{kind}")
    if kind == "glb":
        act(rig, "Bend", 1.2)
        act(rig, "Nod", -0.5)
        act(rig, "Still", 0.0)
        act(rig, "Bend again", 1.2)
        true = {name: truth(name) for name in ("Bend", "Nod")}
        bpy.ops.export_scene.gltf(filepath=path, export_format="GLB", export_animation_mode="NLA_TRACKS")
    else:
        act(rig, "Bend", 1.2, as_track=False)
        true = {"Bend": truth(None)}
        if kind == "blend":
            bpy.ops.wm.save_as_mainfile(filepath=path, check_existing=False)
        else:
            bpy.ops.export_scene.fbx(
                filepath=path, bake_anim_use_nla_strips=False, bake_anim_use_all_actions=False, add_leaf_bones=False,
                path_mode="COPY", embed_textures=True, bake_anim_simplify_factor=0.0,
            )  # fmt: skip
    rows = run(assets, tmp_path / "packs", texture=64)
    row = rows[f"tübe.{kind}"]
    assert row["status"] == "ok", row
    pack = packs.load(tmp_path / "packs" / "tübe.npz")
    assert pack.fps == 10
    assert "skin" in row["message"] and pack.rest is not None and pack.bones.shape[1] <= 4
    names = [name.split("|")[-1].removesuffix(" again") for name in pack.clip_names]
    if kind != "fbx":
        assert sorted(names) == sorted(true)
    if kind == "glb":
        assert "1 clips stand still, 1 are repeated" in row["message"]
    assert pack.vertices <= RINGS * SIDES + 8  # welded across the seam and the flat shading's splits
    for index, name in enumerate(names if kind != "fbx" else ["Bend"]):
        box = np.linalg.norm(np.ptp(true[name][0], axis=0))
        assert follow(pack, index, true[name]) < 0.0015 * box
        assert np.ptp(true[name], axis=0).max() > 0.2  # the truth moves
    check_surface(pack)


def test_shape_keys_are_kept_as_vertices(thirty, tmp_path):
    points = [(x * 0.1, y * 0.1, 0.0) for y in range(11) for x in range(11)]
    faces = [(y * 11 + x, y * 11 + x + 1, y * 11 + x + 12, y * 11 + x + 11) for y in range(10) for x in range(10)]
    sheet = add_mesh("sheet", points, faces)
    sheet.shape_key_add(name="Basis")
    key = sheet.shape_key_add(name="wave")
    for i, p in enumerate(points):
        key.data[i].co = (p[0], p[1], 0.3 * math.sin(6 * p[0]))
    for frame, value in ((0, 0.0), (FRAMES, 1.0)):
        key.value = value
        key.keyframe_insert("value", frame=frame)
    (tmp_path / "a").mkdir()
    true = []
    for frame in range(0, FRAMES + 1, 3):
        thirty.frame_set(frame)
        true.append(vertices(sheet))
    bpy.ops.export_scene.gltf(filepath=str(tmp_path / "a" / "sheet.glb"), export_format="GLB")
    row = run(tmp_path / "a", tmp_path / "p")["sheet.glb"]
    assert row["status"] == "ok" and row["message"].startswith("vertices")
    pack = packs.load(tmp_path / "p" / "sheet.npz")
    assert pack.stored_positions.dtype == np.uint16 and pack.vertices == 121
    assert follow(pack, 0, np.array(true)) < 1e-3


def test_outlines_and_cut_out_faces_are_left_out(thirty, tmp_path):
    """A red ball in a black hull turned inside out, behind a black sheet, with a sign half of which is cut out."""
    bpy.ops.mesh.primitive_uv_sphere_add(segments=16, ring_count=8, radius=0.5)
    ball = bpy.context.object
    ball.data.materials.append(material("red", colour=(0.8, 0.05, 0.05)))
    bpy.ops.mesh.primitive_uv_sphere_add(segments=16, ring_count=8, radius=0.55)
    hull = bpy.context.object
    hull.data.flip_normals()
    black = material("black", colour=(0, 0, 0))
    black.use_backface_culling = True
    hull.data.materials.append(black)
    corners = [(-0.3, -0.7, -0.3), (0.3, -0.7, -0.3), (0.3, -0.72, 0.3), (-0.3, -0.7, 0.3)]
    sheet = add_mesh("sheet", corners, [(0, 3, 2, 1)])
    sheet.data.materials.append(black)
    holes = image(64)
    pixels = np.ones((64, 64, 4), np.float32)
    pixels[:32, :, 3] = 0  # the lower half is not there
    pixels[:32, :, :3] = (0, 1, 0)
    holes.pixels.foreach_set(pixels.ravel())
    holes.pack()
    cut = material("sign", picture=holes)
    nodes = cut.node_tree.nodes
    shader = next(n for n in nodes if n.type == "BSDF_PRINCIPLED")
    texture = next(n for n in nodes if n.type == "TEX_IMAGE")
    cut.node_tree.links.new(texture.outputs["Alpha"], shader.inputs["Alpha"])
    points = [(x, 0.0, 1 + z) for z in (0, 0.5, 1) for x in (0, 1)]
    sign = add_mesh("sign", points, [(0, 1, 3, 2), (2, 3, 5, 4)], uv=[(x, z) for z in (0, 0.5, 1) for x in (0, 1)])
    sign.data.materials.append(cut)
    parts = [ball, hull, sheet, sign]
    for frame, z in ((0, 0.0), (FRAMES, 0.5)):
        for part in parts:
            part.location.z = z
            part.keyframe_insert("location", frame=frame)
    (tmp_path / "a").mkdir()
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "a" / "x.blend"), check_existing=False)
    row = run(tmp_path / "a", tmp_path / "p")["x.blend"]
    assert row["status"] == "ok", row
    pack = packs.load(tmp_path / "p" / "x.npz")
    # Four objects with an action each: one clip, in which all of them rise together.
    assert pack.clips == 1
    np.testing.assert_allclose(pack.positions(0, 10) - pack.positions(0, 0), [[0, 0, 0.5]] * pack.vertices, atol=1e-3)
    colours = np.array([pack.texture(m)[0, 0] for m in range(len(pack.texture_shape))])
    count = {tuple(c): int((pack.face_material == m).sum()) for m, c in enumerate(colours)}
    assert count.pop((0, 0, 0)) == 2  # the sheet stays, the hull is gone
    assert count.pop((255, 255, 255)) == 2  # the sign's upper half, white under its holes too
    assert sum(count.values()) == 16 * 6 * 2 + 16 * 2


def test_a_bad_asset_costs_only_itself(thirty, tmp_path):
    assets, out = tmp_path / "a", tmp_path / "p"
    assets.mkdir()
    (assets / "a broken.glb").write_bytes(b"glTF, says this file, but it is none")
    (assets / "b broken.blend").write_bytes(b"BLENDER")
    _, rig = build()
    act(rig, "Still", 0.0)
    bpy.ops.export_scene.gltf(filepath=str(assets / "c still.glb"), export_format="GLB")
    act(rig, "Bend", 1.0)
    bpy.ops.export_scene.gltf(
        filepath=str(assets / "d good.glb"), export_format="GLB", export_animation_mode="NLA_TRACKS"
    )
    rows = run(assets, out)
    assert [p.name for p in packs.list_packs(out)] == ["d good.npz"]
    assert rows["d good.glb"]["status"] == "ok"
    assert rows["c still.glb"]["status"] == "skipped" and "Nothing moves" in rows["c still.glb"]["message"]
    for name in ("a broken.glb", "b broken.blend"):
        assert rows[name]["status"] != "ok" and rows[name]["message"]
    with pytest.raises(LimError, match="no packs"):
        packs.list_packs(assets)
