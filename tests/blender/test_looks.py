# SPDX-License-Identifier: GPL-3.0-or-later
"""What things look like where they stand: the capture against Cycles' own picture of the user's scene, and what is said of
that which a still picture cannot have."""

from __future__ import annotations

from pathlib import Path

import bpy
import numpy as np
import pytest
from lim_for_blender.blender_addon.source import camera_rig, capture_scene, compat, evaluated, exr, png
from mathutils import Matrix

from test_capture import SIZE, add_cube, add_sphere, colour, counts, material, picture, rig, spec, srgb
from test_rendered import geometry_group


def as_blender_renders(scene, captured: capture_scene.Captured, job: Path, frame: float, view: int = 0) -> np.ndarray:
    """uint8 [H, W, 4]: the user's scene itself at a frame, from where the capture's camera stands at its first keyframe."""
    to_world, intrinsics = rig(job)
    place = np.linalg.inv(np.array(captured.world_to_model)) @ camera_rig.blender_matrix(to_world[view])
    place[:3, :3] /= np.linalg.norm(place[:3, :3], axis=0)
    camera = bpy.data.objects.new("reference", bpy.data.cameras.new("reference"))
    camera.data.sensor_width, camera.data.sensor_fit = camera_rig.SENSOR, "HORIZONTAL"
    camera.data.lens = camera_rig.lens(intrinsics[view], SIZE)
    scene.collection.objects.link(camera)
    camera.matrix_world = Matrix(place.tolist())
    scene.camera = camera
    render, cycles = scene.render, scene.cycles
    render.engine, render.film_transparent = "CYCLES", True
    render.resolution_x = render.resolution_y = SIZE
    cycles.samples, cycles.max_bounces, cycles.transparent_max_bounces = 1, 0, 8
    cycles.use_adaptive_sampling = cycles.use_denoising = False
    cycles.pixel_filter_type, cycles.filter_width = "BOX", 0.01
    compat.set_multilayer_exr(render.image_settings)
    render.filepath = str(job / "reference.exr")
    whole, part = compat.frame_parts(frame)
    scene.frame_set(whole, subframe=part)
    with compat.quiet_output():
        bpy.ops.render.render(write_still=True)
    image = compat.render_pass(exr.read(Path(render.filepath)), "Combined")
    shown = np.clip(image[..., 3:], 0, 1)
    return np.rint(np.concatenate([png.encode_srgb(image[..., :3]), shown], -1) * 255).astype(np.uint8)


def same(seen: np.ndarray, truth: np.ndarray) -> None:
    """The two pictures show the same thing in the same colours, but for pixels at edges, and not one colour alone."""
    both = (seen[..., 3] == 255) & (truth[..., 3] == 255)
    assert both.sum() > 300 and (seen[..., 3] != truth[..., 3]).sum() < 0.03 * both.sum()
    off = np.abs(seen[both].astype(int) - truth[both]).max(1)
    assert np.quantile(off, 0.97) <= 3, f"{(off > 3).mean():.0%} of the pixels have another colour"
    assert np.ptp(truth[both][:, :3].astype(int), axis=0).max() > 20, "the scene shows that it matters"


def shades(image: np.ndarray) -> set[tuple[int, ...]]:
    """The colours that are seen, coarsely."""
    return {tuple(rgb) for rgb in (image[image[..., 3] == 255][:, :3] // 8).tolist()}


# ---- a scene that every look is tried on ---------------------------------------------------------------------------


def emitting(feed) -> bpy.types.Material:
    """A material that glows in the colour of the socket that `feed(tree)` returns; a vector is brought into 0…1."""
    made = compat.new_material("asking")
    tree = made.node_tree
    output, glow = tree.nodes.new("ShaderNodeOutputMaterial"), tree.nodes.new("ShaderNodeEmission")
    tree.links.new(glow.outputs[0], output.inputs["Surface"])
    socket = feed(tree)
    if socket.type == "VECTOR":
        fit = tree.nodes.new("ShaderNodeVectorMath")
        fit.operation = "MULTIPLY_ADD"
        fit.inputs[1].default_value, fit.inputs[2].default_value = (0.15,) * 3, (0.5,) * 3
        tree.links.new(socket, fit.inputs[0])
        socket = fit.outputs[0]
    tree.links.new(socket, glow.inputs["Color"])
    return made


def crowd(scene, look: bpy.types.Material) -> list[bpy.types.Object]:
    """Two turned, sheared and coloured objects, and a collection that is instanced twice; all move."""
    parent = bpy.data.objects.new("parent", None)
    scene.collection.objects.link(parent)
    parent.scale, parent.rotation_euler = (1.5, 0.7, 1), (0, 0, 0.7)
    cube, ball = add_cube(1, (0.3, 0, 0.2)), add_sphere(0.6, (1.4, 0.8, 0), 3)
    cube.parent, cube.rotation_euler = parent, (0.3, 0.2, 0.8)
    cube.pass_index, ball.pass_index = 1, 3
    cube.color, ball.color = (0.9, 0.2, 0.1, 1), (0.1, 0.4, 0.8, 1)
    cube["paint"], ball["paint"] = [0.1, 0.8, 0.3], 0.4
    cube.data["stripe"] = 0.7
    stock = bpy.data.collections.new("stock")
    brick = add_cube(0.7)
    brick["paint"] = [0.9, 0.1, 0.9]
    scene.collection.objects.unlink(brick)
    stock.objects.link(brick)
    placed = []
    for k in range(2):
        empty = bpy.data.objects.new(f"placed {k}", None)
        empty.instance_type, empty.instance_collection = "COLLECTION", stock
        empty.location, empty.rotation_euler = (-1.2, 0.9 * k - 0.4, 0.3), (0, 0.4, k)
        empty["paint"] = [0.2, 0.3 + 0.4 * k, 0.9]
        scene.collection.objects.link(empty)
        placed.append(empty)
    for object in (cube, ball, brick):
        object.data.materials.append(look)
    for object in (cube, ball, *placed):
        for frame, up in ((1, 0.0), (9, 1.0)):
            object.location.z += up
            object.rotation_euler.z += up
            object.keyframe_insert("location", frame=frame)
            object.keyframe_insert("rotation_euler", frame=frame)
    return [cube, ball, *placed]


def output_of(kind: str, name: str, **settings):
    def feed(tree):
        node = tree.nodes.new(kind)
        for setting, value in settings.items():
            setattr(node, setting, value)
        return node.outputs[name]

    feed.__name__ = f"{kind.removeprefix('ShaderNode')} {name} {' '.join(map(str, settings.values()))}".strip()
    return feed


def scaled(feed, factor: float):
    def product(tree):
        node = tree.nodes.new("ShaderNodeMath")
        node.operation = "MULTIPLY"
        node.inputs[1].default_value = factor
        tree.links.new(feed(tree), node.inputs[0])
        return node.outputs[0]

    product.__name__ = feed.__name__
    return product


def in_a_group(feed):
    def node(tree):
        group = bpy.data.node_groups.new("inner", "ShaderNodeTree")
        group.interface.new_socket("Answer", in_out="OUTPUT", socket_type="NodeSocketColor")
        group.links.new(feed(group), group.nodes.new("NodeGroupOutput").inputs[0])
        outer = tree.nodes.new("ShaderNodeGroup")
        outer.node_tree = group
        return outer.outputs[0]

    node.__name__ = f"{feed.__name__} in a group"
    return node


def coordinates_of_another_object(tree):
    other = bpy.data.objects.new("other", None)
    bpy.context.scene.collection.objects.link(other)
    other.location, other.rotation_euler, other.scale = (0.5, -0.3, 0.2), (0.5, 0.1, 0.9), (0.6, 1.2, 1)
    bpy.context.view_layer.update()
    return output_of("ShaderNodeTexCoord", "Object", object=other)(tree)


def transformed(kind: str, source: str, target: str, feed):
    def node(tree):
        made = tree.nodes.new("ShaderNodeVectorTransform")
        made.vector_type, made.convert_from, made.convert_to = kind, source, target
        tree.links.new(feed(tree), made.inputs[0])
        return made.outputs[0]

    node.__name__ = f"{kind} {source} to {target}"
    return node


def attribute(kind: str, name: str, output: str = "Color"):
    return output_of("ShaderNodeAttribute", output, attribute_type=kind, attribute_name=name)


LOOKS = [
    output_of("ShaderNodeObjectInfo", "Random"),
    output_of("ShaderNodeObjectInfo", "Location"),
    output_of("ShaderNodeObjectInfo", "Color"),
    scaled(output_of("ShaderNodeObjectInfo", "Object Index"), 0.25),
    in_a_group(output_of("ShaderNodeObjectInfo", "Random")),
    output_of("ShaderNodeNewGeometry", "Position"),
    in_a_group(output_of("ShaderNodeNewGeometry", "Position")),
    output_of("ShaderNodeNewGeometry", "Normal"),
    output_of("ShaderNodeNewGeometry", "True Normal"),
    output_of("ShaderNodeTexCoord", "Object"),
    output_of("ShaderNodeTexCoord", "Normal"),
    output_of("ShaderNodeTexCoord", "Generated"),
    coordinates_of_another_object,
    attribute("OBJECT", "paint"),
    attribute("INSTANCER", "paint"),
    attribute("OBJECT", "stripe"),
    attribute("OBJECT", "color"),
    attribute("OBJECT", "location", "Vector"),
    attribute("VIEW_LAYER", "mood"),
    transformed("POINT", "OBJECT", "WORLD", output_of("ShaderNodeTexCoord", "Object")),
    transformed("POINT", "WORLD", "OBJECT", output_of("ShaderNodeNewGeometry", "Position")),
    transformed("VECTOR", "WORLD", "OBJECT", output_of("ShaderNodeNewGeometry", "Position")),
    transformed("NORMAL", "OBJECT", "WORLD", output_of("ShaderNodeTexCoord", "Normal")),
    transformed("NORMAL", "WORLD", "OBJECT", output_of("ShaderNodeNewGeometry", "Normal")),
]


@pytest.mark.parametrize("feed", LOOKS, ids=lambda feed: feed.__name__)
def test_a_look_is_what_blender_renders_at_the_first_keyframe(scene, tmp_path, feed):
    scene["mood"] = [0.3, 0.6, 0.9]
    look = emitting(feed)
    objects = crowd(scene, look)
    before = counts(), [node.bl_idname for node in look.node_tree.nodes]
    captured = capture_scene.capture(scene, spec(objects, (1, 9), views=1, rig_views=1), tmp_path)
    assert (counts(), [node.bl_idname for node in look.node_tree.nodes]) == before
    seen = picture(tmp_path)
    truth = as_blender_renders(scene, captured, tmp_path, 1)
    if "mood" in feed.__name__:  # one colour for all, and the only one that is so
        assert np.abs(colour(tmp_path) - srgb(0.3, 0.6, 0.9)).max() <= 2
    else:
        same(seen, truth)
    if "Random" in feed.__name__ or "paint" in feed.__name__:
        assert shades(seen) == shades(picture(tmp_path, 1)), "the same at every keyframe"


@pytest.mark.parametrize("stored_ids", [False, True])
def test_attributes_that_geometry_nodes_store_on_instances(scene, tmp_path, stored_ids):
    ground = add_cube(2)
    look = emitting(attribute("INSTANCER", "car"))
    group = geometry_group("traffic")
    nodes, links = group.nodes, group.links
    line, cube, dress = (nodes.new(f"GeometryNode{kind}") for kind in ("MeshLine", "MeshCube", "SetMaterial"))
    line.inputs["Count"].default_value, line.inputs["Offset"].default_value = 6, (0.9, 0, 0)
    cube.inputs["Size"].default_value = (0.6, 0.5, 0.4)
    dress.inputs["Material"].default_value = look
    scatter, store = nodes.new("GeometryNodeInstanceOnPoints"), nodes.new("GeometryNodeStoreNamedAttribute")
    store.data_type, store.domain = "FLOAT_COLOR", "INSTANCE"
    store.inputs["Name"].default_value = "car"
    numbers = nodes.new("FunctionNodeRandomValue")
    numbers.data_type = "FLOAT_VECTOR"
    links.new(cube.outputs[0], dress.inputs[0])
    links.new(line.outputs[0], scatter.inputs["Points"])
    links.new(dress.outputs[0], scatter.inputs["Instance"])
    made = scatter.outputs[0]
    if stored_ids:
        ids, mixed = nodes.new("GeometryNodeSetID"), nodes.new("FunctionNodeRandomValue")
        mixed.data_type = "INT"
        mixed.inputs["Max"].default_value = 10**6
        [low, high] = [s for s in mixed.inputs if s.enabled and s.name in ("Min", "Max")]
        low.default_value, high.default_value = 7, 10**6
        links.new(made, ids.inputs[0])
        links.new(next(s for s in mixed.outputs if s.enabled), ids.inputs["ID"])
        made = ids.outputs[0]
    links.new(made, store.inputs["Geometry"])
    links.new(
        next(s for s in numbers.outputs if s.enabled), next(s for s in store.inputs if s.name == "Value" and s.enabled)
    )
    links.new(store.outputs[0], nodes.new("NodeGroupOutput").inputs[0])
    ground.modifiers.new("traffic", "NODES").node_group = group
    for frame, z in ((1, 0.0), (9, 2.0)):
        ground.location.z = z
        ground.keyframe_insert("location", frame=frame)
    before = counts()
    captured = capture_scene.capture(scene, spec([ground], views=1, rig_views=1), tmp_path)
    assert counts() == before
    same(picture(tmp_path), as_blender_renders(scene, captured, tmp_path, 1))
    assert shades(picture(tmp_path, 1)) == shades(picture(tmp_path)), "the same at every keyframe"


def test_what_particles_and_instancers_tell_their_instances(scene, tmp_path):
    def feed(tree):
        node, mix = tree.nodes.new("ShaderNodeParticleInfo"), tree.nodes.new("ShaderNodeCombineXYZ")
        where = tree.nodes.new("ShaderNodeUVMap")
        where.from_instancer = True
        split = tree.nodes.new("ShaderNodeSeparateXYZ")
        tree.links.new(where.outputs[0], split.inputs[0])
        tree.links.new(node.outputs["Random"], mix.inputs[0])
        tree.links.new(split.outputs[0], mix.inputs[1])
        tree.links.new(node.outputs["Size"], mix.inputs[2])
        return mix.outputs[0]

    leaf, ground = add_cube(0.4), add_cube(4)
    leaf.data.materials.append(emitting(feed))
    leaf.hide_render = True
    ground.modifiers.new("leaves", "PARTICLE_SYSTEM")
    settings = ground.particle_systems[0].settings
    settings.count, settings.frame_start, settings.frame_end, settings.lifetime = 40, 1, 1, 100
    settings.physics_type, settings.render_type, settings.instance_object = "NO", "OBJECT", leaf
    settings.particle_size, settings.size_random = 1.0, 0.6
    settings.use_rotation_instance = True
    ground.show_instancer_for_render = False
    captured = capture_scene.capture(scene, spec([ground], (2, 9), views=1, rig_views=1), tmp_path)
    same(picture(tmp_path), as_blender_renders(scene, captured, tmp_path, 2))


# ---- materials of the object ---------------------------------------------------------------------------------------


def painted(rgb: tuple[float, float, float]) -> bpy.types.Material:
    made = compat.new_material("paint")
    output, surface = (
        made.node_tree.nodes.new(kind) for kind in ("ShaderNodeOutputMaterial", "ShaderNodeBsdfPrincipled")
    )
    made.node_tree.links.new(surface.outputs[0], output.inputs["Surface"])
    surface.inputs["Base Color"].default_value = (*rgb, 1)
    return made


def two_of_one_mesh(scene) -> list[bpy.types.Object]:
    """Linked duplicates: the mesh is grey, the objects are red and blue."""
    first = add_cube(1, (0, 0, 0))
    first.data.materials.append(painted((0.5, 0.5, 0.5)))
    second = bpy.data.objects.new("second", first.data)
    second.location.y = 2
    scene.collection.objects.link(second)
    for object, rgb in ((first, (0.8, 0.05, 0.05)), (second, (0.05, 0.05, 0.8))):
        object.material_slots[0].link = "OBJECT"
        object.material_slots[0].material = painted(rgb)
    return [first, second]


def test_materials_of_the_object(scene, tmp_path):
    capture_scene.capture(scene, spec(two_of_one_mesh(scene)), tmp_path)
    image = picture(tmp_path)
    seen = {tuple(rgb) for rgb in image[image[..., 3] == 255][:, :3].tolist()}
    wanted = {tuple(np.rint(srgb(*rgb)).astype(int).tolist()) for rgb in ((0.8, 0.05, 0.05), (0.05, 0.05, 0.8))}
    assert all(any(np.abs(np.subtract(a, b)).max() <= 2 for b in wanted) for a in seen) and len(seen) >= 2


def test_materials_of_the_object_on_my_own_mesh(scene):
    _, second = two_of_one_mesh(scene)
    mesh, _ = evaluated.evaluated_template(scene, second.name, 1)
    assert [m for m in mesh.materials] == [second.material_slots[0].material]
    bpy.data.meshes.remove(mesh)


def test_faces_keep_their_slots(scene, tmp_path):
    """One slot of the mesh, one of the object, one that geometry nodes add."""
    cube = add_cube(1)
    for rgb in ((0.8, 0.05, 0.05), (0.5, 0.5, 0.5)):
        cube.data.materials.append(painted(rgb))
    cube.material_slots[1].link = "OBJECT"
    cube.material_slots[1].material = painted((0.05, 0.05, 0.8))
    for face in cube.data.polygons:
        face.material_index = int(face.normal.y > 0.5 or face.normal.x > 0.5)
    capture_scene.capture(scene, spec([cube], views=4, rig_views=4), tmp_path)
    shades = [
        {tuple((c > 100) for c in rgb) for rgb in picture(tmp_path, 0, v)[..., :3].reshape(-1, 3)} for v in range(4)
    ]
    both = set().union(*shades)
    assert (True, False, False) in both and (False, False, True) in both and (True, True, True) not in both


# ---- what changes over time, and what cannot be shown -----------------------------------------------------------------


def told(captured) -> dict[str, str]:
    assert len({code for code, _, _ in captured.warnings}) == len(captured.warnings), "each once"
    assert all(hint for _, _, hint in captured.warnings)
    return {code: message for code, message, _ in captured.warnings}


def keyed_colour(cube, tmp_path):
    _, surface = material(cube, Base_Color=(0.8, 0.1, 0.1, 1))
    surface.inputs["Base Color"].keyframe_insert("default_value", frame=1)
    surface.inputs["Base Color"].default_value = (0.1, 0.1, 0.8, 1)
    surface.inputs["Base Color"].keyframe_insert("default_value", frame=9)
    return "paint"


def driven_ramp(cube, tmp_path):
    tree, surface = material(cube)
    ramp = tree.nodes.new("ShaderNodeValToRGB")
    ramp.color_ramp.elements[0].color, ramp.color_ramp.elements[1].color = (0.8, 0.1, 0.1, 1), (0.1, 0.1, 0.8, 1)
    tree.links.new(ramp.outputs[0], surface.inputs["Base Color"])
    ramp.inputs[0].driver_add("default_value").driver.expression = "(frame - 1) / 8"


def film(cube, tmp_path):
    tree, surface = material(cube)
    for frame in range(1, 10):
        image = bpy.data.images.new("f", 4, 4)
        image.pixels.foreach_set(
            np.tile(np.array([0.8, 0.1, 0.1, 1] if frame < 5 else [0.1, 0.1, 0.8, 1], np.float32), 16)
        )
        image.filepath_raw, image.file_format = str(tmp_path / f"film_{frame:04d}.png"), "PNG"
        image.save()
        bpy.data.images.remove(image)
    image = bpy.data.images.load(str(tmp_path / "film_0001.png"))
    image.source = "SEQUENCE"
    node = tree.nodes.new("ShaderNodeTexImage")
    node.image = image
    node.image_user.frame_duration, node.image_user.frame_start, node.image_user.use_auto_refresh = 9, 1, True
    tree.links.new(node.outputs[0], surface.inputs["Base Color"])


def object_colour(cube, tmp_path):
    tree, surface = material(cube)
    tree.links.new(tree.nodes.new("ShaderNodeObjectInfo").outputs["Color"], surface.inputs["Base Color"])
    for frame, rgb in ((1, (0.8, 0.1, 0.1, 1)), (9, (0.1, 0.1, 0.8, 1))):
        cube.color = rgb
        cube.keyframe_insert("color", frame=frame)


def scrolling_uvs(cube, tmp_path):
    tree, surface = material(cube)
    image = bpy.data.images.new("halves", 4, 1)
    image.pixels.foreach_set(np.array([0.8, 0.1, 0.1, 1] * 2 + [0.1, 0.1, 0.8, 1] * 2, np.float32))
    image.pack()
    node = tree.nodes.new("ShaderNodeTexImage")
    node.image, node.interpolation = image, "Closest"
    tree.links.new(node.outputs[0], surface.inputs["Base Color"])
    for corner in cube.data.uv_layers[0].data:
        corner.uv = (0.25, 0.5)
    warp = cube.modifiers.new("scroll", "UV_WARP")
    for frame, x in ((1, 0.0), (9, 0.5)):
        warp.offset[0] = x
        warp.keyframe_insert("offset", frame=frame)


@pytest.mark.parametrize("change", [keyed_colour, driven_ramp, film, object_colour, scrolling_uvs])
def test_a_look_that_changes_stays_as_it_was_and_is_told(scene, tmp_path, change):
    cube = add_cube(1)
    change(cube, tmp_path)
    cube.name = "Screen"
    scene.frame_set(5)  # what the scene shows now is neither
    captured = capture_scene.capture(scene, spec([cube]), tmp_path / "job")
    said = told(captured)
    assert set(said) == {"changing_look"} and "“Screen”" in said["changing_look"]
    first, last = colour(tmp_path / "job", 0), colour(tmp_path / "job", 1)
    assert first[0] > 150 and first[2] < 110, "the first keyframe's"
    assert np.abs(first - last).max() <= 2


def test_what_nobody_sees_change_is_not_told(scene, tmp_path):
    """Keys on the roughness, keys of a node that feeds nothing, a film that feeds nothing, keys that do not move."""
    cube = add_cube(1)
    film(cube, tmp_path)
    tree = cube.data.materials[0].node_tree
    surface = next(node for node in tree.nodes if node.bl_idname == "ShaderNodeBsdfPrincipled")
    tree.links.remove(surface.inputs["Base Color"].links[0])
    lost = tree.nodes.new("ShaderNodeRGB")
    for frame, value in ((1, 0.1), (9, 0.9)):
        surface.inputs["Roughness"].default_value = value
        surface.inputs["Roughness"].keyframe_insert("default_value", frame=frame)
        lost.outputs[0].default_value = (value,) * 4
        lost.outputs[0].keyframe_insert("default_value", frame=frame)
        surface.inputs["Base Color"].keyframe_insert("default_value", frame=frame)
    assert capture_scene.capture(scene, spec([cube]), tmp_path / "job").warnings == []


def hair_cards(scene) -> bpy.types.Object:
    """Three strips that are cut out by the alpha of an image."""
    image = bpy.data.images.new("strand", 8, 8, alpha=True)
    image.pixels.foreach_set(np.tile(np.array([[0.2, 0.1, 0, 1], [0.2, 0.1, 0, 0]], np.float32), (32, 1)).ravel())
    image.pack()
    bpy.ops.mesh.primitive_grid_add(x_subdivisions=2, y_subdivisions=6, size=2)
    cards = bpy.context.object
    cards.name = "Hair"
    tree, surface = material(cards)
    node = tree.nodes.new("ShaderNodeTexImage")
    node.image = image
    tree.links.new(node.outputs["Color"], surface.inputs["Base Color"])
    tree.links.new(node.outputs["Alpha"], surface.inputs["Alpha"])
    return cards


def test_cards_are_told_and_masked_bodies_are_not(scene, tmp_path):
    cards = hair_cards(scene)
    said = told(capture_scene.capture(scene, spec([cards]), tmp_path / "cards"))
    assert set(said) == {"alpha_cards"} and "“Hair”" in said["alpha_cards"]
    ball = add_sphere(subdivisions=3)
    ball.data.materials.append(cards.data.materials[0])
    assert told(capture_scene.capture(scene, spec([ball]), tmp_path / "ball")) == {}


@pytest.mark.parametrize("method", ["BUMP", "DISPLACEMENT", "BOTH"])
def test_displacement_of_a_material_is_told(scene, tmp_path, method):
    ball = add_sphere(subdivisions=3)
    ball.name = "Planet"
    tree, _ = material(ball)
    ball.data.materials[0].displacement_method = method
    node = tree.nodes.new("ShaderNodeDisplacement")
    output = next(n for n in tree.nodes if n.bl_idname == "ShaderNodeOutputMaterial")
    tree.links.new(node.outputs[0], output.inputs["Displacement"])
    said = told(capture_scene.capture(scene, spec([ball]), tmp_path))
    assert ("displaced" in said) == (method != "BUMP")
    assert "displaced" not in said or "“Planet”" in said["displaced"]


@pytest.mark.parametrize("output", ["Window", "Camera", "Reflection"])
def test_coordinates_of_a_camera_are_told(scene, tmp_path, output):
    cube = add_cube()
    cube.name = "Screen"
    tree, surface = material(cube)
    tree.links.new(tree.nodes.new("ShaderNodeTexCoord").outputs[output], surface.inputs["Base Color"])
    said = told(capture_scene.capture(scene, spec([cube]), tmp_path))
    assert "“Screen”" in said["camera_look"] and output in said["camera_look"]


def test_strands_are_told(scene, tmp_path):
    head = add_sphere(0.8, subdivisions=3)
    head.name = "Head"
    head.modifiers.new("hair", "PARTICLE_SYSTEM")
    settings = head.particle_systems[0].settings
    settings.type, settings.count, settings.hair_length = "HAIR", 20, 0.5
    said = told(capture_scene.capture(scene, spec([head]), tmp_path))
    assert set(said) == {"strands"} and "“Head”" in said["strands"]


def test_what_is_left_out_is_told_once(scene, tmp_path):
    bpy.ops.object.armature_add()
    bones = bpy.context.object
    for name, hidden in (("Body", False), ("Proxy", True)):
        part = add_cube(1)
        part.name, part.parent, part.hide_render = name, bones, hidden
    said = told(capture_scene.capture(scene, spec([bones]), tmp_path))
    assert set(said) == {"left_out"} and "“Proxy” (hidden from rendering)" in said["left_out"]


def test_whether_anything_moves(scene, tmp_path):
    cube, ball = add_cube(), add_sphere(0.5, (2, 0, 0), 2)
    assert not capture_scene.capture(scene, spec([cube, ball]), tmp_path / "still").moves
    for frame, turn in ((1, 0.0), (9, 0.3)):
        ball.rotation_euler.x = turn
        ball.keyframe_insert("rotation_euler", frame=frame)
    assert capture_scene.capture(scene, spec([cube, ball]), tmp_path / "turned").moves


def test_what_an_instance_asks_for_in_vain_is_told(scene, tmp_path):
    objects = crowd(scene, emitting(attribute("INSTANCER", "rust")))
    said = told(capture_scene.capture(scene, spec(objects), tmp_path))
    assert set(said) == {"lost_attribute"} and "“rust”" in said["lost_attribute"]
