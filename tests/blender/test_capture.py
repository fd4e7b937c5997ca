# SPDX-License-Identifier: GPL-3.0-or-later
"""The capture against analytic shapes and known colours, and that it leaves the scene alone."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

import bpy
import numpy as np
import pytest
from lim_for_blender.blender_addon.source import capture_scene, compat, evaluated, exr, png, stage
from lim_for_blender.lim_core.shared import cameras, protocol
from lim_for_blender.lim_core.shared.errors import Cancelled, LimError

SIZE = 96


def spec(objects, keyframes=(1.0, 9.0), **changes) -> capture_scene.CaptureSpec:
    names = tuple(o if isinstance(o, str) else o.name for o in objects)
    values = {"source": "objects", "image_size": SIZE, "views": 2, "rig_views": 2, **changes}
    return capture_scene.CaptureSpec(objects=names, keyframes=tuple(keyframes), **values)


def picture(job: Path, keyframe: int = 0, view: int = 0) -> np.ndarray:
    """uint8 [H, W, 4], row 0 at the top; read by Blender, so that our own writer is checked as well."""
    image = bpy.data.images.load(str(job / protocol.image_file(keyframe, view)))
    image.colorspace_settings.name = "Non-Color"
    image.alpha_mode = "CHANNEL_PACKED"  # straight as it stands in the file, not premultiplied
    width, height = image.size
    pixels = np.empty(width * height * 4, np.float32)
    image.pixels.foreach_get(pixels)
    bpy.data.images.remove(image)
    return np.rint(pixels.reshape(height, width, 4)[::-1] * 255).astype(np.uint8)


def depth(job: Path, keyframe: int = 0) -> np.ndarray:
    with np.load(job / protocol.depth_file(keyframe), allow_pickle=False) as arrays:
        return arrays["depth_planar"]


def rig(job: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(job / protocol.CAMERAS_FILE, allow_pickle=False) as arrays:
        return arrays["camera_to_world"], arrays["intrinsics"]


def colour(job: Path, keyframe: int = 0, view: int = 0) -> np.ndarray:
    """Median RGB of the surface."""
    image = picture(job, keyframe, view)
    return np.median(image[image[..., 3] == 255][:, :3], axis=0)


def counts() -> dict[str, int]:
    return {
        name: len(getattr(bpy.data, name))
        for name in dir(bpy.data)
        if isinstance(getattr(bpy.data, name), bpy.types.bpy_prop_collection)
    }


def add_sphere(radius: float = 1.0, location=(0, 0, 0), subdivisions: int = 6) -> bpy.types.Object:
    bpy.ops.mesh.primitive_ico_sphere_add(subdivisions=subdivisions, radius=radius, location=location)
    return bpy.context.object


def add_cube(size: float = 2.0, location=(0, 0, 0)) -> bpy.types.Object:
    bpy.ops.mesh.primitive_cube_add(size=size, location=location)
    return bpy.context.object


def material(object: bpy.types.Object, shader: str = "ShaderNodeBsdfPrincipled", **values):
    """A material of one shader; `Base_Color=(…)` sets the socket “Base Color”. Returns the tree and the shader."""
    made = compat.new_material("surface")
    nodes = made.node_tree.nodes
    output, surface = nodes.new("ShaderNodeOutputMaterial"), nodes.new(shader)
    made.node_tree.links.new(surface.outputs[0], output.inputs["Surface"])
    for name, value in values.items():
        surface.inputs[name.replace("_", " ")].default_value = value
    object.data.materials.clear()
    object.data.materials.append(made)
    return made.node_tree, surface


def srgb(*linear: float) -> np.ndarray:
    return png.encode_srgb(np.array(linear)) * 255


# ---- geometry ------------------------------------------------------------------------------------------------------


def ray_sphere(job: Path, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Silhouette [views, H, W] and planar depth of a sphere of `radius` model units at the origin; and the distance in
    model units by which each ray passes the rim."""
    origins, directions = cameras.rays(*rig(job), SIZE)
    a = (directions**2).sum(-1)
    b = (origins * directions).sum(-1)
    c = (origins**2).sum(-1) - radius**2
    inside = b * b - a * c
    planar = np.where(inside > 0, (-b - np.sqrt(np.maximum(inside, 0))) / a, 0.0)  # directions have z = 1
    nearest = np.sqrt(np.maximum((origins**2).sum(-1) - b * b / a, 0))
    return planar, nearest - radius


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_sphere_is_where_the_analytic_sphere_is(scene, tmp_path, scale):
    ball = add_sphere(radius=scale, location=(3 * scale, -2 * scale, scale))
    captured = capture_scene.capture(scene, spec([ball]), tmp_path)
    planar, rim = ray_sphere(tmp_path, 0.97)
    measured = depth(tmp_path)
    clear = np.abs(rim) > 0.003
    assert ((measured > 0) == (rim < 0))[clear].all()
    inner = rim < -0.05
    assert np.abs(measured - planar)[inner].max() < 2e-3
    matrix = np.array(captured.world_to_model)
    assert np.allclose(matrix @ [3 * scale, -2 * scale, scale, 1], [0, 0, 0, 1], atol=1e-3)
    assert captured.warnings == []


def test_cube_has_the_silhouette_of_its_corners(scene, tmp_path):
    cube = add_cube(location=(0, 0, 1))
    cube.rotation_euler = (0.3, 0.2, 0.5)
    captured = capture_scene.capture(scene, spec([cube]), tmp_path)
    corners = np.array([cube.matrix_world @ v.co for v in cube.data.vertices])
    model = corners @ np.array(captured.world_to_model)[:3, :3].T + np.array(captured.world_to_model)[:3, 3]
    to_world, intrinsics = rig(tmp_path)
    measured = depth(tmp_path)
    for view in range(2):
        pixels, z = cameras.project(model, to_world[view], intrinsics[view])
        v, u = np.nonzero(measured[view])
        assert np.abs(pixels.min(0) - [u.min(), v.min()]).max() < 1.5
        assert np.abs(pixels.max(0) - [u.max() + 1, v.max() + 1]).max() < 1.5
        assert z.min() - 1e-3 < measured[view][measured[view] > 0].min() < z.max()


def test_one_sample_through_each_pixel_centre(scene, tmp_path):
    """A checker of single texels seen straight on: an antialiased picture would have greys."""
    ball = add_sphere()
    tree, surface = material(ball)
    checker = tree.nodes.new("ShaderNodeTexChecker")
    checker.inputs["Scale"].default_value = 40
    checker.inputs["Color1"].default_value = (1, 1, 1, 1)
    checker.inputs["Color2"].default_value = (0, 0, 0, 1)
    tree.links.new(checker.outputs["Color"], surface.inputs["Base Color"])
    capture_scene.capture(scene, spec([ball]), tmp_path)
    image = picture(tmp_path)
    assert set(np.unique(image[..., 3])) == {0, 255}
    assert set(np.unique(image[..., :3])) == {0, 255}


def test_keyframes_differ_and_share_one_transform(scene, tmp_path):
    cube = add_cube()
    cube.keyframe_insert("location", frame=1)
    cube.location.x = 1
    cube.keyframe_insert("location", frame=9)
    scene.frame_set(1)
    captured = capture_scene.capture(scene, spec([cube], (1, 5, 9)), tmp_path)
    u = [np.nonzero(depth(tmp_path, k)[0])[1].mean() for k in range(3)]
    assert u[0] < SIZE / 2 - 6 and abs(u[1] - SIZE / 2) < 2 and u[2] > SIZE / 2 + 6
    assert not np.any(captured.origins)


def test_fractional_keyframe(scene, tmp_path):
    cube = add_cube()
    for frame, x in ((1, 0.0), (2, 4.0)):
        cube.location.x = x
        cube.keyframe_insert("location", frame=frame)
    compat.fcurves(cube)[0].keyframe_points.foreach_set("interpolation", [compat.LINEAR] * 2)
    capture_scene.capture(scene, spec([cube], (1, 1.5, 2)), tmp_path)
    u = [np.nonzero(depth(tmp_path, k)[0])[1].mean() for k in range(3)]
    assert abs(u[1] - (u[0] + u[2]) / 2) < 1


# ---- albedo --------------------------------------------------------------------------------------------------------


def grey(ball):
    material(ball, Base_Color=(0.5, 0.5, 0.5, 1))
    return srgb(0.5, 0.5, 0.5)


def metallic_red(ball):
    material(ball, Base_Color=(0.8, 0.02, 0.02, 1), Metallic=1.0, Roughness=0.1)
    return srgb(0.8, 0.02, 0.02)


def glass(ball):
    material(ball, Base_Color=(0.2, 0.6, 0.3, 1), Transmission_Weight=1.0, Alpha=0.4)
    return srgb(0.2, 0.6, 0.3)


def emitter(ball):
    material(ball, "ShaderNodeEmission", Color=(0.1, 0.4, 0.9, 1), Strength=12.0)
    return srgb(0.1, 0.4, 0.9)


def glowing(ball):
    material(ball, Base_Color=(0, 0, 0, 1), Emission_Color=(0.9, 0.3, 0.1, 1), Emission_Strength=1.0)
    return srgb(0.9, 0.3, 0.1)


def mixed(ball):
    tree, surface = material(ball, "ShaderNodeMixShader")
    for slot, value in ((1, (1, 0, 0, 1)), (2, (0, 0, 1, 1))):
        part = tree.nodes.new("ShaderNodeBsdfDiffuse" if slot == 1 else "ShaderNodeBsdfAnisotropic")
        part.inputs["Color"].default_value = value
        tree.links.new(part.outputs[0], surface.inputs[slot])
    surface.inputs[0].default_value = 0.25
    return srgb(0.75, 0, 0.25)


def grouped(ball):
    """Two levels of groups around the shader."""
    inner = bpy.data.node_groups.new("inner", "ShaderNodeTree")
    inner.interface.new_socket("Shader", in_out="OUTPUT", socket_type="NodeSocketShader")
    shader, output = inner.nodes.new("ShaderNodeBsdfPrincipled"), inner.nodes.new("NodeGroupOutput")
    shader.inputs["Base Color"].default_value = (0.3, 0.7, 0.1, 1)
    shader.inputs["Metallic"].default_value = 1
    inner.links.new(shader.outputs[0], output.inputs[0])
    outer = bpy.data.node_groups.new("outer", "ShaderNodeTree")
    outer.interface.new_socket("Shader", in_out="OUTPUT", socket_type="NodeSocketShader")
    inside, output = outer.nodes.new("ShaderNodeGroup"), outer.nodes.new("NodeGroupOutput")
    inside.node_tree = inner
    outer.links.new(inside.outputs[0], output.inputs[0])
    tree, surface = material(ball, "ShaderNodeBsdfDiffuse")
    group = tree.nodes.new("ShaderNodeGroup")
    group.node_tree = outer
    tree.links.new(group.outputs[0], tree.get_output_node("CYCLES").inputs["Surface"])
    return srgb(0.3, 0.7, 0.1)


def shader_to_rgb(ball):
    tree, surface = material(ball, "ShaderNodeEmission")
    diffuse, convert = tree.nodes.new("ShaderNodeBsdfDiffuse"), tree.nodes.new("ShaderNodeShaderToRGB")
    diffuse.inputs["Color"].default_value = (0.6, 0.2, 0.4, 1)
    tree.links.new(diffuse.outputs[0], convert.inputs[0])
    tree.links.new(convert.outputs["Color"], surface.inputs["Color"])
    return srgb(0.6, 0.2, 0.4)


def vertex_colour(ball):
    colours = ball.data.color_attributes.new("paint", "FLOAT_COLOR", "POINT")
    colours.data.foreach_set("color", np.tile(np.array([0.2, 0.5, 0.05, 1], np.float32), len(ball.data.vertices)))
    tree, surface = material(ball)
    node = tree.nodes.new("ShaderNodeVertexColor")
    node.layer_name = "paint"
    tree.links.new(node.outputs["Color"], surface.inputs["Base Color"])
    return srgb(0.2, 0.5, 0.05)


def sculpt_paint(ball):
    """Vertex colours and no material at all."""
    colours = ball.data.color_attributes.new("paint", "BYTE_COLOR", "CORNER")
    colours.data.foreach_set("color_srgb", np.tile(np.array([0.6, 0.2, 0.2, 1], np.float32), len(ball.data.loops)))
    return np.array([153, 51, 51])


def textured(ball):
    image = bpy.data.images.new("texture", 8, 8)
    image.pixels.foreach_set(np.tile(np.array([200 / 255, 100 / 255, 50 / 255, 1], np.float32), 64))
    image.pack()
    tree, surface = material(ball)
    node = tree.nodes.new("ShaderNodeTexImage")
    node.image = image
    tree.links.new(node.outputs["Color"], surface.inputs["Base Color"])
    return np.array([200, 100, 50])


def no_material(ball):
    return srgb(0.8, 0.8, 0.8)


def empty_slot(ball):
    ball.data.materials.append(None)
    return srgb(0.8, 0.8, 0.8)


PAINTS = [
    grey, metallic_red, glass, emitter, glowing, mixed, grouped, shader_to_rgb, vertex_colour, sculpt_paint, textured,
    no_material, empty_slot,
]  # fmt: skip


@pytest.mark.parametrize("paint", PAINTS, ids=lambda paint: paint.__name__)
def test_albedo_of_known_colours(scene, tmp_path, paint):
    scene.view_settings.exposure = 2.0  # colour management must not matter
    ball = add_sphere(subdivisions=3)
    expected = paint(ball)
    before = counts()
    capture_scene.capture(scene, spec([ball], views=1, rig_views=1), tmp_path)
    assert np.abs(colour(tmp_path) - expected).max() <= 2
    assert counts() == before


def test_world_lights_and_view_transform_do_not_matter(scene, tmp_path):
    ball = add_sphere(subdivisions=3)
    expected = grey(ball)
    bpy.ops.object.light_add(type="SUN")
    bpy.context.object.data.energy = 50
    scene.world = bpy.data.worlds.new("bright")
    capture_scene.capture(scene, spec([ball], views=1, rig_views=1), tmp_path)
    assert np.abs(colour(tmp_path) - expected).max() <= 1


@pytest.mark.parametrize("old_style", [False, True])
def test_masks_cut_picture_and_depth_alike(scene, tmp_path, old_style):
    bpy.ops.mesh.primitive_plane_add(size=2)
    plane = bpy.context.object
    plane.rotation_euler = (math.pi / 2, 0, 0)
    image = bpy.data.images.new("mask", 2, 1, alpha=True)
    image.pixels.foreach_set(np.array([1, 0, 0, 1, 1, 0, 0, 0], np.float32))
    image.pack()
    tree, surface = material(plane, Base_Color=(0.1, 0.5, 0.1, 1))
    node = tree.nodes.new("ShaderNodeTexImage")
    node.image, node.interpolation = image, "Closest"
    if old_style:
        mix, clear = tree.nodes.new("ShaderNodeMixShader"), tree.nodes.new("ShaderNodeBsdfTransparent")
        tree.links.new(node.outputs["Alpha"], mix.inputs[0])
        tree.links.new(clear.outputs[0], mix.inputs[1])
        tree.links.new(surface.outputs[0], mix.inputs[2])
        tree.links.new(mix.outputs[0], tree.get_output_node("CYCLES").inputs["Surface"])
    else:
        tree.links.new(node.outputs["Alpha"], surface.inputs["Alpha"])
    capture_scene.capture(scene, spec([plane]), tmp_path)
    shown, z = picture(tmp_path), depth(tmp_path)[0]
    assert ((shown[..., 3] == 255) == (z > 0)).all()
    u = np.nonzero(z)[1]
    assert u.min() < SIZE / 2 - 20 and u.max() <= SIZE / 2
    assert np.abs(colour(tmp_path) - srgb(0.1, 0.5, 0.1)).max() <= 2


@pytest.mark.parametrize("mirrored", [False, True])
def test_outline_hulls_are_culled(scene, tmp_path, mirrored):
    """The inside-out black hull of a cel-shaded figure hides behind it, also if an object is mirrored by its scale."""
    ball, hull = add_sphere(subdivisions=4), add_sphere(1.2, subdivisions=4)
    expected = grey(ball)
    material(hull, Base_Color=(0, 0, 0, 1))
    hull.data.materials[0].use_backface_culling = True
    hull.data.flip_normals()
    hull.scale.x = -1 if mirrored else 1
    capture_scene.capture(scene, spec([ball, hull]), tmp_path)
    image = picture(tmp_path)
    assert np.abs(image[SIZE // 2, SIZE // 2, :3] - expected).max() <= 2
    edge = np.nonzero(image[SIZE // 2, :, 3])[0][2]
    assert image[SIZE // 2, edge, :3].max() == 0, "the outline is seen around it"


def test_generated_patterns_stick_to_a_deformed_surface(scene, tmp_path):
    ball = add_sphere(subdivisions=4)
    tree, surface = material(ball)
    gradient = tree.nodes.new("ShaderNodeTexGradient")  # its unlinked vector is Generated: x from 0 to 1
    tree.links.new(gradient.outputs["Color"], surface.inputs["Base Color"])
    basis, flat = ball.shape_key_add(name="Basis"), ball.shape_key_add(name="flat")
    points = np.array([k.co[:] for k in basis.data]) * [0.3, 1, 1]
    flat.data.foreach_set("co", points.astype(np.float32).ravel())
    for frame, value in ((1, 0.0), (9, 1.0)):
        flat.value = value
        flat.keyframe_insert("value", frame=frame)
    capture_scene.capture(scene, spec([ball]), tmp_path)
    for k in range(2):
        image = picture(tmp_path, k)
        row = image[SIZE // 2]
        row = row[row[:, 3] == 255, 0].astype(int)
        assert row[0] < 90 and row[-1] > 235, "the whole gradient is there, however wide the ball is"


def test_missing_texture_is_flat_and_told(scene, tmp_path):
    ball = add_sphere(subdivisions=3)
    image = bpy.data.images.new("lost", 4, 4)
    image.source = "FILE"
    image.filepath = str(tmp_path / "not there.png")
    tree, surface = material(ball, Base_Color=(0.25, 0.5, 0.75, 1))
    node = tree.nodes.new("ShaderNodeTexImage")
    node.image = image
    tree.links.new(node.outputs["Color"], surface.inputs["Base Color"])
    captured = capture_scene.capture(scene, spec([ball]), tmp_path)
    assert [w[0] for w in captured.warnings] == ["missing_texture"]
    assert "lost" in captured.warnings[0][1]
    assert np.abs(colour(tmp_path) - srgb(0.25, 0.5, 0.75)).max() <= 2


# ---- what can be captured ------------------------------------------------------------------------------------------


def text_object(scene):
    bpy.ops.object.text_add()
    bpy.context.object.data.extrude = 0.1
    return [bpy.context.object]


def curve_object(scene):
    bpy.ops.curve.primitive_bezier_circle_add()
    bpy.context.object.data.bevel_depth = 0.3
    return [bpy.context.object]


def nurbs_surface(scene):
    bpy.ops.surface.primitive_nurbs_surface_torus_add()
    return [bpy.context.object]


def metaball(scene):
    """Two elements of one family; only the second one, which is not the family's head, is chosen."""
    bpy.ops.object.metaball_add(type="BALL")
    bpy.ops.object.metaball_add(type="BALL", location=(1.5, 0, 0))
    return [bpy.context.object]


def collection_instance(scene):
    cube = add_cube()
    collection = bpy.data.collections.new("stock")  # not linked into the scene
    collection.objects.link(cube)
    scene.collection.objects.unlink(cube)
    instancer = bpy.data.objects.new("instancer", None)
    instancer.instance_type, instancer.instance_collection = "COLLECTION", collection
    scene.collection.objects.link(instancer)
    return [instancer]


def vertex_instances(scene):
    parent, child = add_cube(4), add_sphere(0.5, subdivisions=2)
    child.parent, parent.instance_type, parent.show_instancer_for_viewport = parent, "VERTS", False
    return [parent]


def geometry_nodes(scene):
    """Instances on points, of a mesh that no object has."""
    cube = add_cube()
    tree = bpy.data.node_groups.new("scatter", "GeometryNodeTree")
    for way in ("INPUT", "OUTPUT"):
        tree.interface.new_socket("Geometry", in_out=way, socket_type="NodeSocketGeometry")
    source, target = tree.nodes.new("NodeGroupInput"), tree.nodes.new("NodeGroupOutput")
    scatter, cone = tree.nodes.new("GeometryNodeInstanceOnPoints"), tree.nodes.new("GeometryNodeMeshCone")
    cone.inputs["Radius Bottom"].default_value = 0.5
    tree.links.new(source.outputs[0], scatter.inputs["Points"])
    tree.links.new(cone.outputs["Mesh"], scatter.inputs["Instance"])
    tree.links.new(scatter.outputs[0], target.inputs[0])
    cube.modifiers.new("scatter", "NODES").node_group = tree
    return [cube]


def hidden_everywhere(scene):
    cube = add_cube()
    cube.hide_viewport = cube.hide_render = True
    cube.hide_set(True)
    return [cube]


def in_an_excluded_collection(scene):
    cube = add_cube()
    collection = bpy.data.collections.new("away")
    scene.collection.children.link(collection)
    collection.objects.link(cube)
    scene.collection.objects.unlink(cube)
    collection.hide_viewport = collection.hide_render = True
    scene.view_layers[0].layer_collection.children["away"].exclude = True
    return [cube]


def sheared_by_its_parent(scene):
    parent = bpy.data.objects.new("parent", None)
    scene.collection.objects.link(parent)
    parent.scale, parent.rotation_euler = (3, 0.5, 1), (0, 0, 0.7)
    cube = add_cube()
    cube.parent = parent
    cube.rotation_euler = (0, 0, 0.8)
    return [cube]


def rig_alone(scene):
    """Only the armature is chosen; a mesh hangs on it by a modifier, without being its child."""
    bpy.ops.object.armature_add()
    armature = bpy.context.object
    cube = add_cube()
    cube.modifiers.new("rig", "ARMATURE").object = armature
    return [armature]


def several_at_once(scene):
    return [add_cube(), add_sphere(location=(2, 0, 0), subdivisions=3), *text_object(scene)]


def in_edit_mode(scene):
    cube = add_cube()
    bpy.context.view_layer.objects.active = cube
    bpy.ops.object.mode_set(mode="EDIT")
    return [cube]


KINDS = [
    text_object, curve_object, nurbs_surface, metaball, collection_instance, vertex_instances, geometry_nodes,
    hidden_everywhere, in_an_excluded_collection, sheared_by_its_parent, rig_alone, several_at_once, in_edit_mode,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_object_is_captured(scene, tmp_path, kind):
    objects = kind(scene)
    before = counts()
    flags = [(o.hide_viewport, o.hide_render, o.hide_get(), o.mode) for o in objects]
    captured = capture_scene.capture(scene, spec(objects), tmp_path)
    assert (depth(tmp_path) > 0).mean() > 0.02
    assert (depth(tmp_path)[0] > 0).sum() > 100
    assert captured.warnings == []
    assert counts() == before
    assert [(o.hide_viewport, o.hide_render, o.hide_get(), o.mode) for o in objects] == flags


def test_curves_and_instances_are_not_captured_twice(scene):
    objects = [*text_object(scene), *curve_object(scene)]
    with evaluated.evaluation(scene, objects) as at:
        proxies = evaluated.bake(at(1), objects)
    assert len(proxies) == 2
    bpy.data.batch_remove([proxy.mesh for proxy in proxies])
    instancer = vertex_instances(scene)
    with evaluated.evaluation(scene, instancer) as at:
        proxies = evaluated.bake(at(1), instancer)
    assert len(proxies) == 8 and len({proxy.mesh for proxy in proxies}) == 1


def test_shear_is_kept(scene, tmp_path):
    (cube,) = sheared_by_its_parent(scene)
    captured = capture_scene.capture(scene, spec([cube]), tmp_path)
    bpy.context.view_layer.update()
    matrix = np.array(captured.world_to_model)
    corners = np.array([cube.matrix_world @ v.co for v in cube.data.vertices]) @ matrix[:3, :3].T + matrix[:3, 3]
    to_world, intrinsics = rig(tmp_path)
    pixels, _ = cameras.project(corners, to_world[0], intrinsics[0])
    v, u = np.nonzero(depth(tmp_path)[0])
    assert np.abs(pixels.min(0) - [u.min(), v.min()]).max() < 1.5
    assert np.abs(pixels.max(0) - [u.max() + 1, v.max() + 1]).max() < 1.5


def test_topology_may_change(scene, tmp_path):
    cube = add_cube()
    cut = cube.modifiers.new("remesh", "REMESH")
    cut.mode = "VOXEL"
    for frame, size in ((1, 0.5), (9, 0.1)):
        cut.voxel_size = size
        cut.keyframe_insert("voxel_size", frame=frame)
    capture_scene.capture(scene, spec([cube], views=6), tmp_path)
    assert (depth(tmp_path, 0) > 0).any() and (depth(tmp_path, 1) > 0).any()


def test_unselected_objects_are_not_captured(scene, tmp_path):
    small, big = add_cube(1), add_cube(10)
    captured = capture_scene.capture(scene, spec([small]), tmp_path)
    assert captured.world_to_model[0][0] == pytest.approx(0.97 / (math.sqrt(3) / 2), rel=1e-4)
    assert big.name in scene.objects


def test_animated_visibility_decides_in_an_animation(scene, tmp_path):
    first, second = add_cube(), add_sphere(subdivisions=3)
    for object, hidden in ((first, (False, True)), (second, (True, False))):
        for frame, value in zip((1, 9), hidden):
            object.hide_viewport = object.hide_render = value
            object.keyframe_insert("hide_viewport", frame=frame)
            object.keyframe_insert("hide_render", frame=frame)
    capture_scene.capture(scene, spec([first, second]), tmp_path)
    cube, ball = depth(tmp_path, 0)[0] > 0, depth(tmp_path, 1)[0] > 0
    assert cube.sum() != ball.sum()
    with pytest.raises(LimError) as caught:
        capture_scene.capture(scene, spec([first]), tmp_path)
    assert caught.value.code == "empty_mesh" and "frame 9" in caught.value.message


@pytest.mark.parametrize("aligned", [True, False])
def test_poses_that_do_not_correspond(scene, tmp_path, aligned):
    poses = [add_cube(2, (0, 0, 0)), add_sphere(1, (5, 0, 0), 3), *text_object(scene)]
    poses[2].location = (10, 0, 0)
    poses[1].hide_viewport = True
    child = add_sphere(0.2, (0, 0, 1.5), 2)  # what hangs on a pose belongs to it
    child.parent = poses[0]
    captured = capture_scene.capture(scene, spec(poses, (1, 9, 17), source="poses", align_poses=aligned), tmp_path)
    u = [np.nonzero(depth(tmp_path, k)[0])[1].mean() for k in range(3)]
    assert max(u[:2]) - min(u[:2]) < 3
    apart = np.array(captured.origins) / captured.world_to_model[0][0]
    assert np.abs(apart).max() < 1e-6 if aligned else np.allclose(apart[1:, 0], [5, 10], atol=2)


def test_template_is_the_evaluated_mesh(scene, tmp_path):
    cube = add_cube(location=(1, 2, 3))
    cube.modifiers.new("smooth", "SUBSURF").levels = 1
    cube.scale = (1, 2, 1)
    captured = capture_scene.capture(scene, spec([cube], template="mesh", template_object=cube.name), tmp_path)
    with np.load(tmp_path / protocol.TEMPLATE_FILE, allow_pickle=False) as arrays:
        vertices, faces = arrays["vertices"], arrays["faces"]
    assert vertices.shape == (26, 3) and vertices.dtype == np.float32
    assert faces.shape == (48, 3) and faces.dtype == np.int32 and faces.max() == 25
    graph = bpy.context.evaluated_depsgraph_get()
    world = np.array([cube.matrix_world @ v.co for v in cube.evaluated_get(graph).data.vertices])
    matrix = np.array(captured.world_to_model)
    assert np.abs(world @ matrix[:3, :3].T + matrix[:3, 3] - vertices).max() < 1e-5


def test_workbench_colours(scene, tmp_path):
    pytest.importorskip("bpy")
    if not os.environ.get("LIM_TEST_WORKBENCH"):
        pytest.skip("Workbench needs OpenGL, which a machine without a screen may not have: set LIM_TEST_WORKBENCH=1")
    ball = add_sphere(subdivisions=3)
    expected = textured(ball)
    capture_scene.capture(scene, spec([ball], engine="workbench"), tmp_path)
    assert np.abs(colour(tmp_path) - expected).max() <= 3


def test_path_with_spaces_and_other_letters(scene, tmp_path):
    job = tmp_path / "Änderung zwei 狐"
    capture_scene.capture(scene, spec([add_cube()]), job)
    assert len(list((job / protocol.CAPTURE_FOLDER).iterdir())) == 2 * 2 + 2 + 1


# ---- the scene is left alone -----------------------------------------------------------------------------------------


class Broken(Exception):
    pass


def state(scene) -> dict:
    layer = scene.view_layers[0]
    return {
        "counts": counts(),
        "frame": (scene.frame_current, scene.frame_subframe),
        "selected": sorted(o.name for o in scene.objects if o.select_get(view_layer=layer)),
        "active": layer.objects.active.name if layer.objects.active else None,
        "layers": [v.name for v in scene.view_layers],
        "collections": [c.name for c in scene.collection.children_recursive],
        "active collection": layer.active_layer_collection.name,
        "engine": scene.render.engine,
        "size": (scene.render.resolution_x, scene.render.resolution_y, scene.render.filepath),
        "format": scene.render.image_settings.file_format,
        "camera": scene.camera,
        "scenes": [s.name for s in bpy.data.scenes],
        "visible": {o.name: (o.hide_viewport, o.hide_render, o.hide_get(view_layer=layer)) for o in scene.objects},
        "places": {o.name: tuple(tuple(row) for row in o.matrix_world) for o in scene.objects},
        "materials": {o.name: [m and m.name for m in o.data.materials] for o in scene.objects if o.type == "MESH"},
        "users": {m.name: m.users for m in bpy.data.materials},
        "attributes": {m.name: sorted(m.attributes.keys()) for m in bpy.data.meshes},
        "muted": [c.mute for o in scene.objects for c in compat.fcurves(o)],
    }


@pytest.mark.parametrize("ending", ["well", "cancel early", "cancel late", "error early", "error late", "poses"])
def test_scene_is_as_before(scene, tmp_path, monkeypatch, ending):
    cube, ball = add_cube(), add_sphere(subdivisions=3, location=(3, 0, 0))
    grouped(ball)
    ball.keyframe_insert("location", frame=1)
    ball.location.z = 2
    ball.keyframe_insert("location", frame=9)
    ball.hide_render = True
    ball.keyframe_insert("hide_render", frame=1)
    hidden = bpy.data.collections.new("hidden")
    scene.collection.children.link(hidden)
    hidden.objects.link(cube)
    scene.collection.objects.unlink(cube)
    scene.view_layers[0].layer_collection.children["hidden"].exclude = True
    ball.select_set(True)
    bpy.context.view_layer.objects.active = ball
    scene.frame_set(4, subframe=0.25)
    before = state(scene)
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return ending.startswith("cancel") and asked >= (2 if "early" in ending else 6)

    expected = contextlib.nullcontext()
    if ending.startswith("cancel"):
        expected = pytest.raises(Cancelled)
    elif ending.startswith("error"):
        expected = pytest.raises(Broken)

        def fail(*arguments, **named):
            raise Broken

        place = (evaluated, "_frozen_mesh") if "early" in ending else (stage.exr, "read")
        monkeypatch.setattr(*place, fail)
    with expected:
        source = "poses" if ending == "poses" else "objects"
        capture_scene.capture(scene, spec([cube, ball], source=source), tmp_path, is_cancelled=cancelled)
    assert state(scene) == before


def test_the_render_engine_goes_before_its_scene(scene, tmp_path, monkeypatch):
    """Else its dependency graph keeps a pointer to the removed scene, which Blender reads later, and sometimes crashes."""
    ball = add_sphere()
    import cycles

    made, alive = [], []
    create, free = cycles.engine.create, cycles.engine.free

    def created(engine, *arguments, **named):
        made.append(engine.as_pointer())
        alive.append(engine.as_pointer())
        return create(engine, *arguments, **named)

    def freed(engine):
        if engine.as_pointer() in alive:
            alive.remove(engine.as_pointer())
        return free(engine)

    monkeypatch.setattr(cycles.engine, "create", created)
    monkeypatch.setattr(cycles.engine, "free", freed)
    capture_scene.capture(scene, spec([ball]), tmp_path / "job")
    assert len(made) == 1, "one engine draws all views of all keyframes"
    assert not alive and "LIM capture" not in bpy.data.scenes


def test_progress_rises_to_one(scene, tmp_path):
    told: list[tuple[float, str]] = []
    capture_scene.capture(scene, spec([add_cube()]), tmp_path, on_progress=lambda *what: told.append(what))
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0 and all(text for _, text in told)


# ---- bad input -----------------------------------------------------------------------------------------------------


def code_of(scene, job, *arguments, **named) -> LimError:
    before = counts()
    with pytest.raises(LimError) as caught:
        capture_scene.capture(scene, spec(*arguments, **named), job)
    assert counts() == before
    assert caught.value.code in protocol.ERROR_CODES
    return caught.value


def test_nothing_selected(scene, tmp_path):
    assert code_of(scene, tmp_path, []).code == "nothing_selected"
    assert code_of(scene, tmp_path, ["ghost"]).code == "nothing_selected"


def test_wrong_keyframes(scene, tmp_path):
    cube = add_cube()
    assert code_of(scene, tmp_path, [cube], (1,)).code == "one_keyframe"
    assert code_of(scene, tmp_path, [cube], (9, 1)).code == "keyframe_order"
    assert code_of(scene, tmp_path, [cube], (1, 1)).code == "keyframe_order"
    assert code_of(scene, tmp_path, [cube], (1, 9), source="poses").code == "bad_request"


def test_empty_mesh_names_object_and_frame(scene, tmp_path):
    cube = add_cube()
    mask = cube.modifiers.new("nothing", "MASK")
    mask.mode, mask.vertex_group = "VERTEX_GROUP", cube.vertex_groups.new(name="none").name
    for frame, shown in ((1, False), (9, True)):
        mask.show_render = shown
        mask.keyframe_insert("show_render", frame=frame)
    error = code_of(scene, tmp_path, [cube])
    assert error.code == "empty_mesh" and "Cube" in error.message and "frame 9" in error.message


def test_lamp_has_no_surface(scene, tmp_path):
    bpy.ops.object.light_add()
    assert code_of(scene, tmp_path, [bpy.context.object]).code == "empty_mesh"


def test_invisible_material(scene, tmp_path):
    cube = add_cube()
    material(cube, Alpha=0.0)
    assert code_of(scene, tmp_path, [cube]).code == "outside_cameras"


def test_points_that_are_not_numbers(scene, tmp_path):
    cube = add_cube()
    cube.data.vertices[3].co.x = float("nan")
    assert code_of(scene, tmp_path, [cube]).code == "bad_capture"


def test_template_that_is_no_mesh(scene, tmp_path):
    text = text_object(scene)[0]
    assert code_of(scene, tmp_path, [text], template="mesh").code == "bad_template"


def test_folder_that_cannot_be_written(scene, tmp_path):
    blocked = tmp_path / "a file"
    blocked.write_text("")
    assert code_of(scene, blocked / "job", [add_cube()]).code in ("read_only", "missing_file")


def test_full_disk(scene, tmp_path, monkeypatch):
    import errno

    def full(*arguments, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(capture_scene.png, "write", full)
    assert code_of(scene, tmp_path, [add_cube()]).code == "disk_full"


def walking_cube(way=60.0):
    cube = add_cube()
    for frame, x in ((1, 0), (9, way)):
        cube.location.x = x
        cube.keyframe_insert("location", frame=frame)
    return cube


def test_what_walks_away_is_followed_and_seen_as_large_as_where_it_began(scene, tmp_path):
    captured = capture_scene.capture(scene, spec([walking_cube()]), tmp_path)
    scale = captured.world_to_model[0][0]
    assert not captured.warnings
    assert captured.origins[0] == pytest.approx((0, 0, 0), abs=1e-6)
    assert captured.origins[1] == pytest.approx((60 * scale, 0, 0), rel=1e-6)
    first, second = (np.load(tmp_path / protocol.depth_file(k))["depth_planar"] for k in (0, 1))
    assert (first > 0).mean() > 0.1 and np.abs(first - second).max() < 1e-4


def test_things_that_fly_apart_warn_that_little_is_seen(scene, tmp_path):
    still, moving = add_cube(), walking_cube()
    captured = capture_scene.capture(scene, spec([still, moving]), tmp_path)
    assert not np.any(captured.origins)
    assert {warning[0] for warning in captured.warnings} == {"small_in_view"}


# ---- files ---------------------------------------------------------------------------------------------------------


def test_png_writer_is_exact(tmp_path):
    (tmp_path / protocol.CAPTURE_FOLDER).mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (17, 23, 4), dtype=np.uint8)
    png.write(tmp_path / protocol.image_file(0, 0), pixels)
    assert (picture(tmp_path) == pixels).all()


def test_exr_reader_names_what_is_wrong(tmp_path):
    file = tmp_path / "x.exr"
    for content in (b"", b"PNG.....", b"\x76\x2f\x31\x01\x02\0\0\0channels\0chlist\0"):
        file.write_bytes(content)
        with pytest.raises(ValueError):
            exr.read(file)
