# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing a result into the scene: reading it back gives the backend's numbers, and a broken one leaves nothing behind."""

from __future__ import annotations

import functools
import json
import struct
from pathlib import Path

import bpy
import mathutils
import numpy as np
import pytest
from lim_for_blender.blender_addon.result import export, shape_keys, vertex_colours
from lim_for_blender.blender_addon.source import capture_scene, compat, evaluated, exr, png
from lim_for_blender.lim_core.shared import protocol, request
from lim_for_blender.lim_core.shared.errors import LimError
from lim_for_blender.lim_core.tracking import reduction

KEYFRAMES = (1.0, 4.0, 10.0)
TO_MODEL = np.array([[0.25, 0, 0, -1.5], [0, 0.25, 0, 0.75], [0, 0, 0.25, -0.5], [0, 0, 0, 1]])


def counts() -> dict[str, int]:
    return {
        name: len(getattr(bpy.data, name))
        for name in dir(bpy.data)
        if isinstance(getattr(bpy.data, name), bpy.types.bpy_prop_collection)
    }


def fake_job(folder: Path, *, to_model=TO_MODEL, **changes) -> tuple[request.Request, dict[str, np.ndarray]]:
    """A job folder as a backend leaves it: a wobbling octahedron, two in-betweens in each interval."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"keyframes": KEYFRAMES, "inbetweens": 1, "name": "creature", **changes}
    asked = request.Request(world_to_model=tuple(map(tuple, np.asarray(to_model).tolist())), **values)
    request.write(asked, folder)
    corners = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], np.float32) * 0.6
    faces = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]], np.int32)
    random = np.random.default_rng(0)
    frames = np.array(asked.frames())
    arrays = {
        "positions": (corners + random.normal(0, 0.05, (len(frames), 6, 3))).astype(np.float32),
        "frames": frames,
        "faces": faces,
        "loop_uvs": random.random((len(faces), 3, 2)).astype(np.float32),
        "confidence": np.ones((len(frames), 6), np.float32),
    }
    arrays["feed_forward"] = arrays["positions"]
    if asked.reduced():
        arrays["keys"] = reduction.choose(arrays["positions"], frames, asked.max_keys)
    save(folder, asked, arrays)
    png.write(folder / protocol.TEXTURE_FILE, random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    return asked, arrays


def save(folder: Path, asked: request.Request, arrays: dict[str, np.ndarray], **about) -> None:
    np.savez(folder / protocol.RESULT_ARRAYS, **arrays)
    about = {"protocol": protocol.VERSION, "frames": asked.frames(), **about}
    (folder / protocol.RESULT_FILE).write_text(json.dumps(about), encoding="utf-8")


def world_positions(scene, object, frame: float) -> np.ndarray:
    whole, part = compat.frame_parts(frame)
    scene.frame_set(whole, subframe=part)
    graph = bpy.context.evaluated_depsgraph_get()
    shown = object.evaluated_get(graph)
    points = evaluated.coordinates(shown.data).astype(np.float64)
    matrix = np.array(shown.matrix_world, np.float64)
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def expected_positions(arrays, to_model, index: int) -> np.ndarray:
    back = np.linalg.inv(to_model)
    return arrays["positions"][index].astype(np.float64) @ back[:3, :3].T + back[:3, 3]


# ---- a good result -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_positions_at_every_frame_are_the_backends(scene, tmp_path, size):
    to_model = TO_MODEL.copy()
    to_model[:3, :3] /= size
    asked, arrays = fake_job(tmp_path, to_model=to_model)
    object = shape_keys.write_result(scene, tmp_path)
    for index, frame in enumerate(asked.frames()):
        error = np.abs(world_positions(scene, object, frame) - expected_positions(arrays, to_model, index)).max()
        assert error < 1e-5 * 4 * size


def test_between_frames_it_moves_linearly_and_holds_at_the_ends(scene, tmp_path):
    asked, arrays = fake_job(tmp_path)
    object = shape_keys.write_result(scene, tmp_path)
    first, second, last = (expected_positions(arrays, TO_MODEL, i) for i in (0, 1, -1))
    assert asked.frames()[:2] == [1.0, 2.5]
    middle = world_positions(scene, object, 1.75)
    assert np.abs(middle - (first + second) / 2).max() < 1e-5
    assert np.abs(world_positions(scene, object, -20) - first).max() < 1e-5
    assert np.abs(world_positions(scene, object, 99.5) - last).max() < 1e-5


def test_exactly_one_key_is_on_at_each_frame(scene, tmp_path):
    asked, _ = fake_job(tmp_path)
    keys = shape_keys.write_result(scene, tmp_path).data.shape_keys
    names = [block.name for block in keys.key_blocks]
    assert names == ["Basis", "Frame 1", "Frame 2.5", "Frame 4", "Frame 7", "Frame 10"]
    assert [block.value for block in keys.key_blocks[1:]].count(0.0) >= len(names) - 2
    for index, frame in enumerate(asked.frames()):
        values = [next(c for c in compat.fcurves(keys) if f'"{n}"' in c.data_path).evaluate(frame) for n in names[1:]]
        assert values == [float(i == index) for i in range(len(values))]
    for curve in compat.fcurves(keys):
        assert {point.interpolation for point in curve.keyframe_points} == {"LINEAR"}


def test_a_reduced_result_plays_in_time_and_within_what_it_states(scene, tmp_path):
    asked, arrays = fake_job(tmp_path, max_keys=3)
    object = shape_keys.write_result(scene, tmp_path)
    names = [block.name for block in object.data.shape_keys.key_blocks]
    kept = [asked.frames()[k] for k in arrays["keys"]]
    assert names == ["Basis", *(f"Frame {frame:g}" for frame in kept)] and list(object[shape_keys.FRAMES]) == kept
    rms, largest = reduction.errors(arrays["positions"], arrays["frames"], arrays["keys"])
    diagonal = np.linalg.norm(np.ptp(expected_positions(arrays, TO_MODEL, 0), axis=0))
    off = []
    for index, frame in enumerate(asked.frames()):
        shown = world_positions(scene, object, frame) - expected_positions(arrays, TO_MODEL, index)
        off.append(100 / diagonal * np.linalg.norm(shown, axis=1))
        assert index not in arrays["keys"] or off[-1].max() < 1e-3
    assert np.max(off) == pytest.approx(largest, rel=1e-3) and np.sqrt(np.mean(np.square(off))) == pytest.approx(
        rms, rel=1e-3
    )
    assert largest > 1, "a frame was dropped that the others do not replace"


@pytest.mark.parametrize("keys", [[0, 4], [0, 2, 3], [0, 3, 3, 4], [1, 2, 4], [0, 1, 2, 4], []])
def test_shape_keys_that_were_not_asked_for_are_refused(scene, tmp_path, keys):
    asked, arrays = fake_job(tmp_path, max_keys=3)
    save(tmp_path, asked, {**arrays, "keys": np.array(keys, np.int64)})
    if keys == [0, 4]:
        assert len(shape_keys.write_result(scene, tmp_path).data.shape_keys.key_blocks) == 3
        return
    before = counts()
    with pytest.raises(LimError) as raised:
        shape_keys.write_result(scene, tmp_path)
    assert raised.value.code == "backend_crashed" and counts() == before


def test_mesh_material_and_place(scene, tmp_path):
    _, arrays = fake_job(tmp_path)
    object = shape_keys.write_result(scene, tmp_path)
    mesh = object.data
    assert [c.name for c in object.users_collection] == ["LIM"]
    assert "LIM" in scene.collection.children
    assert object.name == mesh.name == "creature"
    assert np.allclose(object.location, np.linalg.inv(TO_MODEL)[:3, 3]) and tuple(object.scale) == (1, 1, 1)
    assert all(polygon.use_smooth for polygon in mesh.polygons)
    faces = np.array([polygon.vertices[:] for polygon in mesh.polygons])
    assert (faces == arrays["faces"]).all()
    assert len(mesh.uv_layers) == 1
    uvs = np.array([d.vector[:] for d in mesh.uv_layers[0].uv], np.float32).reshape(-1, 3, 2)
    assert np.allclose(uvs, arrays["loop_uvs"])
    (material,) = mesh.materials
    image = vertex_colours.base_image(mesh)
    assert image.packed_file and str(tmp_path) not in image.filepath
    assert material.node_tree.get_output_node("CYCLES").inputs["Surface"].is_linked


def test_it_is_captured_in_the_textures_colours(scene, tmp_path):
    fake_job(tmp_path / "one")
    png.write(tmp_path / "one" / protocol.TEXTURE_FILE, np.full((8, 8, 3), (180, 90, 45), np.uint8))
    object = shape_keys.write_result(scene, tmp_path / "one")
    spec = capture_scene.CaptureSpec("objects", (object.name,), KEYFRAMES, image_size=64, views=1, rig_views=1)
    capture_scene.capture(scene, spec, tmp_path / "two")
    image = bpy.data.images.load(str(tmp_path / "two" / protocol.image_file(0, 0)))
    pixels = np.array(image.pixels[:]).reshape(-1, 4)
    assert np.abs(np.median(pixels[pixels[:, 3] == 1], 0)[:3] * 255 - (180, 90, 45)).max() <= 2


def test_twice_makes_two_in_one_collection(scene, tmp_path):
    fake_job(tmp_path)
    first, second = (shape_keys.write_result(scene, tmp_path) for _ in range(2))
    assert first != second and first.users_collection == second.users_collection
    assert first.data.shape_keys.animation_data.action != second.data.shape_keys.animation_data.action


def test_it_survives_saving_and_opening(scene, tmp_path):
    asked, arrays = fake_job(tmp_path)
    shape_keys.write_result(scene, tmp_path)
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "saved.blend"))
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "saved.blend"))
    object, scene = bpy.data.objects["creature"], bpy.context.scene
    for index, frame in enumerate(asked.frames()):
        error = np.abs(world_positions(scene, object, frame) - expected_positions(arrays, TO_MODEL, index)).max()
        assert error < 4e-5
    assert vertex_colours.base_image(object.data).has_data or vertex_colours.base_image(object.data).packed_file


# ---- the artist's own mesh -----------------------------------------------------------------------------------------


def artists_mesh(scene) -> bpy.types.Object:
    bpy.ops.mesh.primitive_cube_add(size=2, location=(6, -3, 2))
    cube = bpy.context.object
    cube.scale = (1, 2, 1)
    cube.vertex_groups.new(name="left").add([0, 1, 2], 0.5, "REPLACE")
    cube.data.materials.append(bpy.data.materials.new("paint"))
    cube.modifiers.new("smooth", "SUBSURF").levels = 1
    return cube


def test_own_mesh_keeps_its_layers(scene, tmp_path):
    cube = artists_mesh(scene)
    spec = capture_scene.CaptureSpec(
        "objects", (cube.name,), KEYFRAMES, image_size=32, views=1, rig_views=1, template="mesh"
    )
    captured = capture_scene.capture(scene, spec, tmp_path)
    asked, arrays = fake_job(tmp_path, to_model=captured.world_to_model, template="mesh")
    with np.load(tmp_path / protocol.TEMPLATE_FILE) as template:
        vertices, faces = template["vertices"], template["faces"]
    lift = np.linspace(0, 0.3, len(asked.frames()), dtype=np.float32)[:, None, None] * np.array([0, 0, 1], np.float32)
    del arrays["loop_uvs"]
    arrays.update(positions=vertices + lift, faces=faces)
    save(tmp_path, asked, arrays)
    object = shape_keys.write_result(scene, tmp_path, template_object=cube)
    mesh = object.data
    assert len(mesh.polygons) == 24 and len(mesh.polygons[0].vertices) == 4
    assert [m.name for m in mesh.materials] == ["paint"]
    assert mesh.uv_layers.keys() == cube.data.uv_layers.keys()
    assert object.vertex_groups.keys() == ["left"] and mesh.vertices[0].groups[0].weight == pytest.approx(0.5)
    assert np.allclose(object.matrix_basis, cube.matrix_basis)
    assert not object.modifiers and len(cube.data.vertices) == 8 and cube.data.shape_keys is None
    matrix = np.array(captured.world_to_model)
    for index, frame in enumerate(asked.frames()):
        error = np.abs(world_positions(scene, object, frame) - expected_positions(arrays, matrix, index)).max()
        assert error < 4e-5


def test_own_mesh_that_changed_since(scene, tmp_path):
    cube = artists_mesh(scene)
    fake_job(tmp_path, template="mesh")
    before = counts()
    with pytest.raises(LimError) as caught:
        shape_keys.write_result(scene, tmp_path, template_object=cube)
    assert caught.value.code == "bad_template" and "26 vertices" in caught.value.message
    with pytest.raises(LimError) as caught:
        shape_keys.write_result(scene, tmp_path)
    assert caught.value.code == "bad_template"
    assert counts() == before


# ---- bad results ---------------------------------------------------------------------------------------------------


def _nan(folder, asked, arrays):
    arrays["positions"][2, 1, 0] = np.nan
    save(folder, asked, arrays)


def _truncated(folder, asked, arrays):
    path = folder / protocol.RESULT_ARRAYS
    path.write_bytes(path.read_bytes()[:-200])


def _truncated_inside(folder, asked, arrays):
    path = folder / protocol.RESULT_ARRAYS
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(data)


def _empty_file(folder, asked, arrays):
    (folder / protocol.RESULT_ARRAYS).write_bytes(b"")


def _not_a_zip(folder, asked, arrays):
    (folder / protocol.RESULT_ARRAYS).write_bytes(b"hello" * 100)


def _single_array(folder, asked, arrays):
    with open(folder / protocol.RESULT_ARRAYS, "wb") as file:
        np.save(file, arrays["positions"])


def _foreign(folder, asked, arrays):
    save(folder, asked, {"weights": np.zeros(3)})


def _pickled(folder, asked, arrays):
    save(folder, asked, {**arrays, "positions": np.array([{"a": 1}, None], object)})


def _wrong_shape(folder, asked, arrays):
    save(folder, asked, {**arrays, "positions": arrays["positions"][..., :2]})


def _wrong_kind(folder, asked, arrays):
    save(folder, asked, {**arrays, "faces": arrays["faces"].astype(np.float32)})


def _no_vertices(folder, asked, arrays):
    save(folder, asked, {**arrays, "positions": arrays["positions"][:, :0]})


def _frames_missing(folder, asked, arrays):
    save(folder, asked, {**arrays, "positions": arrays["positions"][:-1], "frames": arrays["frames"][:-1]})


def _other_frames(folder, asked, arrays):
    save(folder, asked, {**arrays, "frames": arrays["frames"] + 1})


def _face_of_nothing(folder, asked, arrays):
    arrays["faces"][0, 0] = 6
    save(folder, asked, arrays)


def _negative_face(folder, asked, arrays):
    arrays["faces"][0, 0] = -1
    save(folder, asked, arrays)


def _uvs_of_another(folder, asked, arrays):
    save(folder, asked, {**arrays, "loop_uvs": arrays["loop_uvs"][1:]})


def _no_uvs(folder, asked, arrays):
    del arrays["loop_uvs"]
    save(folder, asked, arrays)


def _old_protocol(folder, asked, arrays):
    save(folder, asked, arrays, protocol=0)


def _broken_json(folder, asked, arrays):
    (folder / protocol.RESULT_FILE).write_text("{", encoding="utf-8")


def _broken_texture(folder, asked, arrays):
    (folder / protocol.TEXTURE_FILE).write_bytes(b"\x89PNG\r\n\x1a\n nothing")


BROKEN = [
    _nan, _truncated, _truncated_inside, _empty_file, _not_a_zip, _single_array, _foreign, _pickled, _wrong_shape,
    _wrong_kind, _no_vertices, _frames_missing, _other_frames, _face_of_nothing, _negative_face, _uvs_of_another, _no_uvs,
    _old_protocol, _broken_json, _broken_texture,
]  # fmt: skip


@pytest.mark.parametrize("damage", BROKEN, ids=lambda damage: damage.__name__[1:])
def test_a_broken_result_changes_nothing(scene, tmp_path, damage):
    damage(tmp_path, *fake_job(tmp_path))
    before = counts()
    with pytest.raises(LimError) as caught:
        shape_keys.write_result(scene, tmp_path)
    assert caught.value.code == "backend_crashed" and caught.value.hint
    assert counts() == before


@pytest.mark.parametrize(
    "name", [protocol.REQUEST_FILE, protocol.RESULT_FILE, protocol.RESULT_ARRAYS, protocol.TEXTURE_FILE]
)
def test_a_missing_file_is_named(scene, tmp_path, name):
    fake_job(tmp_path)
    (tmp_path / name).unlink()
    before = counts()
    with pytest.raises(LimError) as caught:
        shape_keys.write_result(scene, tmp_path)
    assert caught.value.code == "missing_file" and name in caught.value.message
    assert counts() == before


@pytest.mark.parametrize("step", ["_add_keys", "_new_material", "_collection"])
def test_an_error_half_way_leaves_nothing(scene, tmp_path, monkeypatch, step):
    fake_job(tmp_path)
    before = counts()
    inner = getattr(shape_keys, step)

    def fail(*arguments):
        inner(*arguments)
        raise RuntimeError("half way")

    monkeypatch.setattr(shape_keys, step, fail)
    with pytest.raises(RuntimeError, match="half way"):
        shape_keys.write_result(scene, tmp_path)
    assert counts() == before


# ---- export --------------------------------------------------------------------------------------------------------


@pytest.fixture
def result(scene, tmp_path):
    _, arrays = fake_job(tmp_path / "job", keyframes=(1.0, 3.0, 5.0))
    return shape_keys.write_result(scene, tmp_path / "job"), arrays


def test_glb_comes_back_with_every_target(scene, tmp_path, result):
    object, arrays = result
    before = counts()
    (file,) = export.export(object, tmp_path / "Größe zwei.glb")
    assert counts() == before and bpy.context.scene == scene
    data = file.read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    gltf = json.loads(data[20 : 20 + length])
    assert len(gltf["meshes"]) == 1 and len(gltf["images"]) == 1
    (primitive,) = gltf["meshes"][0]["primitives"]
    assert len(primitive["targets"]) == 5
    (channel,) = [c for c in gltf["animations"][0]["channels"] if c["target"]["path"] == "weights"]
    times = gltf["accessors"][gltf["animations"][0]["samplers"][channel["sampler"]]["input"]]
    assert times["max"][0] - times["min"][0] == pytest.approx(4 / 24)
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.ops.import_scene.gltf(filepath=str(file))
    back = next(o for o in bpy.data.objects if o.type == "MESH" and o.data.shape_keys)
    assert len(back.data.shape_keys.key_blocks) == 6
    scene = bpy.context.scene
    start = compat.fcurves(back.data.shape_keys)[0].range()[0]
    for index in range(5):
        points = world_positions(scene, back, start + index)
        wanted = expected_positions(arrays, TO_MODEL, index)
        apart = np.linalg.norm(points[:, None] - wanted[None], axis=-1)
        assert apart.min(0).max() < 1e-3 and apart.min(1).max() < 1e-3


def uvs_of(mesh) -> np.ndarray:
    """Where each face's corners lie in the texture, faces and corners in an order of their own: [F, 6], sorted."""
    flat = np.empty(len(mesh.loops) * 2, np.float32)
    mesh.uv_layers.active.uv.foreach_get("vector", flat)
    corners = flat.reshape(-1, 3, 2)
    lowest = np.lexsort((corners[..., 1], corners[..., 0]))[:, 0]
    turned = np.stack([np.roll(face, -start, 0) for face, start in zip(corners, lowest)]).reshape(-1, 6)
    return turned[np.lexsort(turned.T[::-1])]


def pixels_of(image) -> np.ndarray:
    return np.array(image.pixels[:]).reshape(image.size[1], image.size[0], -1)[..., :3]


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".usd", ".usdz"])
def test_uvs_and_texture_come_back(scene, tmp_path, result, suffix):
    object = result[0]
    export.export(object, tmp_path / f"x{suffix}")  # of an earlier result, with another texture
    png.write(tmp_path / "job" / protocol.TEXTURE_FILE, np.full((8, 8, 3), (1, 2, 3), np.uint8))
    bpy.data.objects.remove(object)
    bpy.data.images.remove(bpy.data.images["creature"])
    object = shape_keys.write_result(scene, tmp_path / "job")
    uvs, pixels = uvs_of(object.data), pixels_of(vertex_colours.base_image(object.data))
    file = next(f for f in export.export(object, tmp_path / f"x{suffix}") if f.suffix == suffix)
    bpy.ops.wm.read_factory_settings(use_empty=True)
    importers = {".glb": bpy.ops.import_scene.gltf, ".obj": bpy.ops.wm.obj_import}
    importers.get(suffix, bpy.ops.wm.usd_import)(filepath=str(file))
    back = next(o for o in bpy.data.objects if o.type == "MESH")
    assert np.abs(uvs_of(back.data) - uvs).max() < 1e-4
    assert np.abs(pixels_of(vertex_colours.base_image(back.data)) - pixels).max() < 1e-6


@pytest.mark.parametrize("suffix", [".abc", ".usd", ".usda", ".usdc", ".usdz"])
def test_caches_come_back(scene, tmp_path, result, suffix):
    object, arrays = result
    exporter = "alembic_export" if suffix == ".abc" else "usd_export"
    if exporter not in dir(bpy.ops.wm):
        pytest.skip("this Blender is built without it")
    before = counts()
    (file,) = export.export(object, tmp_path / f"cache{suffix}")
    assert counts() == before
    bpy.ops.wm.read_factory_settings(use_empty=True)
    if suffix == ".abc":
        bpy.ops.wm.alembic_import(filepath=str(file))
    else:
        bpy.ops.wm.usd_import(filepath=str(file))
    back = next(o for o in bpy.data.objects if o.type == "MESH")
    assert [m.type for m in back.modifiers] == ["MESH_SEQUENCE_CACHE"]
    for index in range(5):
        points = world_positions(bpy.context.scene, back, index)
        assert np.abs(points - expected_positions(arrays, TO_MODEL, index)).max() < 1e-4


def test_shape_keys_blur_in_motion(scene, tmp_path):
    """The vector pass knows how far each pixel goes: what a render's motion blur is made from."""
    asked, arrays = fake_job(tmp_path, keyframes=(1.0, 3.0))
    path = np.arange(3.0)[:, None, None] * (0.05, 0, 0)  # model units a frame, along x
    arrays["positions"] = (arrays["positions"][:1] + path).astype(np.float32)
    save(tmp_path, asked, arrays)
    object = shape_keys.write_result(scene, tmp_path)
    bpy.ops.object.camera_add(location=object.location + mathutils.Vector((0, 0, 30)))
    scene.camera = bpy.context.object
    scene.camera.data.type, scene.camera.data.ortho_scale = "ORTHO", 8.0
    scene.render.engine, scene.cycles.samples = "CYCLES", 1
    scene.render.resolution_x = scene.render.resolution_y = 32
    scene.view_layers[0].use_pass_vector = True
    compat.set_multilayer_exr(scene.render.image_settings)
    scene.render.filepath = str(tmp_path / "moving.exr")
    scene.frame_set(2)
    with compat.quiet_output():
        bpy.ops.render.render(write_still=True)
    channels = exr.read(tmp_path / "moving.exr")
    moved = {name[-1]: values for name, values in channels.items() if ".Vector." in f".{name}"}
    pixels = 0.05 / TO_MODEL[0, 0] * 32 / 8.0
    solid = moved["X"] != 0
    assert solid.mean() > 0.05 and np.abs(np.abs(moved["X"][solid]) - pixels).max() < 0.02
    assert np.abs(moved["Y"]).max() < 0.02


# ---- vertex colours ----------------------------------------------------------------------------------------------------


@pytest.fixture
def coloured(result):
    """The result with a texture that is red from left to right and green from bottom to top, in sRGB."""
    ramp = np.linspace(0, 1, 64)
    pixels = np.stack([*np.meshgrid(ramp, ramp), np.full((64, 64), 0.5), np.ones((64, 64))], -1)
    image = bpy.data.images.new("ramp", 64, 64)
    image.pixels.foreach_set(pixels.astype(np.float32).ravel())
    object = result[0]
    node = next(n for n in object.data.materials[0].node_tree.nodes if n.bl_idname == "ShaderNodeTexImage")
    node.image = image
    return object


def srgb_of(mesh) -> np.ndarray:
    """[V, 3] of the active colour attribute."""
    attribute = mesh.color_attributes[mesh.color_attributes.active_color_index]
    flat = np.empty(len(attribute.data) * 4, np.float32)
    attribute.data.foreach_get("color_srgb", flat)
    colours = flat.reshape(-1, 4)[:, :3]
    if attribute.domain == "POINT":
        return colours
    corners = np.empty(len(mesh.loops), np.int32)
    mesh.loops.foreach_get("vertex_index", corners)
    return np.stack([colours[corners == vertex].mean(0) for vertex in range(len(mesh.vertices))])


def expected_colours(mesh) -> np.ndarray:
    """[V, 3]: the mean, in linear light, of the ramp at every corner of the vertex."""
    uvs, corners = np.empty(len(mesh.loops) * 2, np.float32), np.empty(len(mesh.loops), np.int32)
    mesh.uv_layers.active.uv.foreach_get("vector", uvs)
    mesh.loops.foreach_get("vertex_index", corners)
    at = np.clip((uvs.reshape(-1, 2) * 64 - 0.5) / 63, 0, 1)
    linear = png.decode_srgb(np.stack([at[:, 0], at[:, 1], np.full(len(at), 0.5)], 1))
    return png.encode_srgb(np.stack([linear[corners == v].mean(0) for v in range(len(mesh.vertices))]))


def inside(mesh) -> None:
    """Keep the UVs off the picture's edge, where it would repeat."""
    uvs = np.empty(len(mesh.loops) * 2, np.float32)
    mesh.uv_layers.active.uv.foreach_get("vector", uvs)
    mesh.uv_layers.active.uv.foreach_set("vector", 0.05 + 0.9 * uvs)


def test_vertex_colours_are_the_textures(scene, coloured):
    mesh = coloured.data
    inside(mesh)
    for _ in range(2):
        attribute = vertex_colours.bake(coloured)
        assert attribute.name == "Color" and [a.name for a in mesh.color_attributes] == ["Color"]
        assert np.abs(srgb_of(mesh) - expected_colours(mesh)).max() < 0.01
    assert len(mesh.shape_keys.key_blocks) == 6, "the keys stay"


@pytest.mark.parametrize("suffix", [".obj", ".pc2", ".abc", ".usd", ".glb"])
def test_vertex_colours_are_exported(scene, tmp_path, coloured, suffix):
    inside(coloured.data)
    vertex_colours.bake(coloured)
    wanted = srgb_of(coloured.data)
    files = export.export(coloured, tmp_path / f"x{suffix}")
    bpy.ops.wm.read_factory_settings(use_empty=True)
    if suffix == ".glb":
        bpy.ops.import_scene.gltf(filepath=str(files[0]))
    elif suffix in (".abc", ".usd"):
        (bpy.ops.wm.alembic_import if suffix == ".abc" else bpy.ops.wm.usd_import)(filepath=str(files[0]))
    else:
        bpy.ops.wm.obj_import(filepath=str(next(f for f in files if f.suffix == ".obj")))
    back = next(o for o in bpy.data.objects if o.type == "MESH")
    mesh = back.evaluated_get(bpy.context.evaluated_depsgraph_get()).data  # a cache's colours come with its modifier
    if suffix == ".glb":
        assert not mesh.color_attributes, "glTF would multiply them with the texture"
    else:
        assert np.abs(srgb_of(mesh) - wanted).max() < 0.01


def test_without_a_texture_there_are_no_vertex_colours(scene, coloured):
    coloured.data.materials.clear()
    with pytest.raises(LimError, match="no texture"):
        vertex_colours.bake(coloured)
    assert not coloured.data.color_attributes


def test_samples_lie_between_the_pixels():
    pixels = np.arange(12.0).reshape(3, 4, 1)
    assert vertex_colours.sample(
        pixels, np.array([[0.5 / 4, 0.5 / 3], [1 / 4, 0.5 / 3], [0.5 / 4, 1 / 3]])
    ).ravel().tolist() == [0, 0.5, 2]
    assert vertex_colours.sample(pixels, np.array([[1.0 + 1.5 / 4, 0.5 / 3], [0.0, 0.5 / 3]])).ravel().tolist() == [
        1,
        1.5,
    ]


def z_up(points: np.ndarray) -> np.ndarray:
    return points[..., [0, 2, 1]] * np.array([1, -1, 1])


def test_pc2_and_obj(scene, tmp_path, result):
    object, arrays = result
    files = export.export(object, tmp_path / "cache.pc2")
    assert [f.name for f in files] == ["cache.pc2", "cache_lim.obj", "cache_lim.png", "cache_lim.mtl"]
    data = files[0].read_bytes()
    magic, version, vertices, start, step, frames = struct.unpack_from("<12siiffi", data)
    assert (magic, version, vertices, start, step, frames) == (b"POINTCACHE2\0", 1, 6, 0.0, 1.0, 5)
    points = z_up(np.frombuffer(data, "<f4", offset=32).reshape(5, 6, 3)) + np.array(object.location)
    assert np.abs(points - [expected_positions(arrays, TO_MODEL, i) for i in range(5)]).max() < 1e-5
    files = export.export(object, tmp_path / "sequence" / "frame.obj")
    objs = [f for f in files if f.suffix == ".obj"]
    assert [f.name for f in objs] == [f"frame_lim_{i:04d}.obj" for i in range(1, 6)]
    lines = objs[3].read_text(encoding="utf-8").splitlines()
    points = z_up(np.array([[float(x) for x in line.split()[1:]] for line in lines if line.startswith("v ")]))
    assert np.abs(points - expected_positions(arrays, TO_MODEL, 3)).max() < 1e-4
    assert sum(line.startswith("f ") for line in lines) == 8


def test_obj_and_pc2_come_back_at_the_scenes_frames(scene, tmp_path):
    asked, arrays = fake_job(tmp_path / "job", keyframes=(1.0, 3.0, 8.0))
    object = shape_keys.write_result(scene, tmp_path / "job")
    assert asked.frames() == [1.0, 2.0, 3.0, 5.5, 8.0]
    frames = range(1, 9)
    wanted = [world_positions(scene, object, frame) for frame in frames]
    sequence = [f for f in export.export(object, tmp_path / "hero.obj") if f.suffix == ".obj"]
    cache, still, *_ = export.export(object, tmp_path / "hero.pc2")
    assert len(sequence) == len(frames)
    place = np.array(object.location)
    own = bpy.data.objects.new("own", object.data.copy())
    own.shape_key_clear()
    scene.collection.objects.link(own)
    for file, points in zip(sequence, wanted):
        bpy.ops.wm.obj_import(filepath=str(file))
        assert np.abs(world_positions(scene, bpy.context.object, 1) - points).max() < 1e-4
    bpy.ops.wm.obj_import(filepath=str(still))
    for moved, axes in ((bpy.context.object, ("POS_Y", "POS_Z")), (own, ("POS_Z", "NEG_Y"))):
        modifier = moved.modifiers.new("cache", "MESH_CACHE")
        modifier.cache_format, modifier.filepath, modifier.frame_start = "PC2", str(cache), 1
        modifier.forward_axis, modifier.up_axis = axes
        for frame, points in zip(frames, wanted):
            assert np.abs(world_positions(scene, moved, frame) + place - points).max() < 1e-4, (moved.name, frame)


def test_obj_and_pc2_touch_no_other_file(scene, tmp_path, result):
    for suffix in (".obj", ".mtl", ".png"):
        (tmp_path / f"hero{suffix}").write_text("mine")
    for kind in (".pc2", ".obj"):
        export.export(result[0], tmp_path / f"hero{kind}")
        export.export(result[0], tmp_path / f"hero{kind}")
        assert {(tmp_path / f"hero{suffix}").read_text() for suffix in (".obj", ".mtl", ".png")} == {"mine"}


@pytest.mark.parametrize("kind", ["file", "itself", "painted", "generated", "packed_jpeg", "gone"])
def test_an_own_meshs_image_is_exported_whatever_it_is(scene, tmp_path, result, kind):
    object = result[0]
    node = next(n for n in object.data.materials[0].node_tree.nodes if n.bl_idname == "ShaderNodeTexImage")
    made = bpy.data.images.new("paint", 4, 4)
    made.pixels[:] = [0.2, 0.4, 0.6, 1.0] * 16
    path = tmp_path / {"itself": "x_lim.png"}.get(kind, "paint.jpg" if kind == "packed_jpeg" else "paint.png")
    if kind != "generated":
        made.filepath_raw, made.file_format = str(path), "JPEG" if path.suffix == ".jpg" else "PNG"
        made.save()
        made = bpy.data.images.load(str(path))
    if kind == "painted":
        made.pixels[:] = [0.8, 0.4, 0.6, 1.0] * 16
    if kind == "packed_jpeg":
        made.pack()
        made.filepath_raw = "//paint.png"
    if kind == "gone":
        made.filepath = str(tmp_path / "nowhere.png")
        made.reload()
    node.image = made
    if kind == "gone":
        with pytest.raises(LimError) as caught:
            export.export(object, tmp_path / "x.obj")
        assert caught.value.code == "missing_file" and "paint" in caught.value.message
        return
    picture, material = export.export(object, tmp_path / "x.obj")[-2:]
    assert picture.name == ("x_lim.jpg" if kind == "packed_jpeg" else "x_lim.png")
    assert f"map_Kd {picture.name}" in material.read_text(encoding="utf-8")
    assert (picture.read_bytes()[:2] == b"\xff\xd8") == (kind == "packed_jpeg")
    red = bpy.data.images.load(str(picture)).pixels[0]
    assert red == pytest.approx(0.8 if kind == "painted" else 0.2, abs=0.02)


def test_a_failed_exporter_leaves_no_part_behind(scene, tmp_path, result, monkeypatch):
    def half(path):
        path.write_bytes(b"half")
        raise RuntimeError("Error: the disk went away")

    monkeypatch.setitem(export.EXPORTS, ".glb", ("", "", functools.partial(export._export_scene, half, export._whole)))
    with pytest.raises(LimError, match="went away"):
        export.export(result[0], tmp_path / "x.glb")
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_export_refuses_what_it_cannot_do(scene, tmp_path, result):
    with pytest.raises(LimError) as caught:
        export.export(result[0], tmp_path / "x.fbx")
    assert caught.value.code == "bad_request"
    bpy.ops.mesh.primitive_cube_add()
    with pytest.raises(LimError) as caught:
        export.export(bpy.context.object, tmp_path / "x.glb")
    assert caught.value.code == "nothing_selected"
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(LimError) as caught:
        export.export(result[0], blocked / "x.pc2")
    assert caught.value.code in ("read_only", "missing_file", "internal")
