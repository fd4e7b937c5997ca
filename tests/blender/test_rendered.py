# SPDX-License-Identifier: GPL-3.0-or-later
"""What is rendered is what is captured: who is shown, in which state, after which simulation."""

from __future__ import annotations

import contextlib
import json

import bpy
import numpy as np
import pytest
from lim_for_blender.blender_addon import command_line
from lim_for_blender.blender_addon.job import asking, capturing, job_folders, jobs
from lim_for_blender.blender_addon.source import capture_scene, evaluated, looks, mesh_arrays, rendered, simulated
from lim_for_blender.lim_core.shared.errors import LimError

from test_capture import add_cube, add_sphere, counts, spec


def captured(scene, objects, keyframes=(1.0,), **changes) -> tuple[list[dict[str, tuple]], dict[str, str]]:
    """At every keyframe the boxes of what is captured, (low [3], high [3]) of all proxies together and how many there are;
    and what is left out, with the reasons."""
    found = []
    with contextlib.ExitStack() as undo:
        looked = undo.enter_context(looks.Looks())
        wanted = spec(objects, keyframes, **changes)
        baked, left_out = capture_scene._bake_keyframes(undo, scene, wanted, lambda fraction, text: None, looked)
        for proxies in baked:
            points = np.concatenate([capture_scene._surface_points(proxy) for proxy in proxies])
            found.append((points.min(0), points.max(0), len(proxies)))
    return found, left_out


def widths(box: tuple) -> np.ndarray:
    return box[1] - box[0]


def geometry_group(name: str) -> bpy.types.NodeTree:
    group = bpy.data.node_groups.new(name, "GeometryNodeTree")
    for way in ("INPUT", "OUTPUT"):
        group.interface.new_socket("Geometry", in_out=way, socket_type="NodeSocketGeometry")
    return group


# ---- who is shown --------------------------------------------------------------------------------------------------


def a_rig(scene) -> bpy.types.Object:
    """A rig with a body, and what riggers hang beside it."""
    bpy.ops.object.armature_add()
    rig = bpy.context.object
    rig.name = "Rig"
    for name, size in (("Body", 1.0), ("Proxy", 3.0), ("LOD", 4.0), ("Catcher", 5.0)):
        part = add_cube(size)
        part.name, part.parent = name, rig
    scene.objects["Proxy"].hide_render = True
    scene.objects["Catcher"].is_shadow_catcher = True
    away = bpy.data.collections.new("LODs")
    scene.collection.children.link(away)
    away.objects.link(scene.objects["LOD"])
    scene.collection.objects.unlink(scene.objects["LOD"])
    away.hide_render = True
    return rig


def test_a_rig_is_what_the_render_shows_of_it(scene):
    (box,), left_out = captured(scene, [a_rig(scene)])
    assert widths(box) == pytest.approx([1, 1, 1])
    assert left_out == {
        "Proxy": rendered.HIDDEN, "LOD": rendered.UNSEEN_COLLECTION, "Catcher": rendered.CATCHER,
    }  # fmt: skip
    said = rendered.sentence(left_out)
    assert all(word in said for word in ("“Proxy” (hidden from rendering)", "“LOD”", "“Catcher” (a shadow catcher)"))


def test_bone_widgets_are_left_out(scene):
    rig = a_rig(scene)
    rig.pose.bones[0].custom_shape = scene.objects["Proxy"]
    _, left_out = captured(scene, [rig])
    assert left_out["Proxy"] == rendered.WIDGET and left_out["LOD"] == rendered.UNSEEN_COLLECTION


def test_a_hidden_source_is_what_its_own_flags_show(scene):
    """After a run the artist hides the source, and generates again."""
    rig = a_rig(scene)
    home = bpy.data.collections.new("character")
    scene.collection.children.link(home)
    for object in (rig, *rig.children):
        for collection in list(object.users_collection):
            collection.objects.unlink(object)
        home.objects.link(object)
    home.hide_render = True
    (box,), left_out = captured(scene, [rig])
    assert widths(box) == pytest.approx([4, 4, 4]), "the body, and the LOD that only its collection hid"
    assert set(left_out) == {"Proxy", "Catcher"}
    (box,), left_out = captured(scene, [scene.objects["Proxy"]])
    assert widths(box) == pytest.approx([3, 3, 3]) and not left_out, "by itself it was meant"


@pytest.mark.parametrize("flag", ["hide_render", "is_holdout", "visible_camera"])
def test_instanced_collections_hide_what_a_render_hides(scene, flag):
    stock = bpy.data.collections.new("asset")
    for name, size in (("Body", 1.0), ("Cutter", 3.0)):
        part = add_cube(size)
        part.name = name
        stock.objects.link(part)
        scene.collection.objects.unlink(part)
    setattr(bpy.data.objects["Cutter"], flag, flag != "visible_camera")
    instancer = bpy.data.objects.new("instancer", None)
    instancer.instance_type, instancer.instance_collection = "COLLECTION", stock
    scene.collection.objects.link(instancer)
    (box,), left_out = captured(scene, [instancer])
    assert widths(box) == pytest.approx([1, 1, 1])
    assert flag == "hide_render" or set(left_out) == {"Cutter"}


def test_a_hidden_source_of_particles_gives_its_instances(scene):
    leaf, ground = add_cube(0.2), add_cube(4)
    leaf.hide_render = True
    ground.modifiers.new("leaves", "PARTICLE_SYSTEM")
    settings = ground.particle_systems[0].settings
    settings.count, settings.frame_start, settings.frame_end, settings.lifetime = 60, 1, 1, 100
    settings.physics_type, settings.render_type, settings.instance_object = "NO", "OBJECT", leaf
    settings.display_percentage = 5
    ground.show_instancer_for_render = False
    everything = rendered.everything(scene, "LIM")
    assert [object.name for object in everything.objects] == [ground.name]
    (box,), _ = captured(scene, everything.objects, (2.0,))
    assert box[2] == 60, "all that a render has, not the 5 % of the viewport"


def test_a_hidden_source_of_geometry_nodes_gives_its_instances(scene):
    leaf, ground = add_cube(0.2), add_cube(4)
    leaf.hide_render = leaf.hide_viewport = True
    group = geometry_group("scatter")
    info, scatter = group.nodes.new("GeometryNodeObjectInfo"), group.nodes.new("GeometryNodeInstanceOnPoints")
    source, target = group.nodes.new("NodeGroupInput"), group.nodes.new("NodeGroupOutput")
    info.inputs["Object"].default_value = leaf
    group.links.new(source.outputs[0], scatter.inputs["Points"])
    group.links.new(info.outputs["Geometry"], scatter.inputs["Instance"])
    group.links.new(scatter.outputs[0], target.inputs[0])
    ground.modifiers.new("scatter", "NODES").node_group = group
    (box,), _ = captured(scene, [ground])
    assert box[2] == 8 and widths(box) == pytest.approx([4.2] * 3)


def test_what_appears_is_captured_from_then_on(scene):
    parts = [add_cube(1, (0, 0, 2 * k)) for k in range(3)]
    for k, part in enumerate(parts):
        for frame in (1, 13, 25):
            part.hide_render = part.hide_viewport = (frame - 1) / 12 < k
            part.keyframe_insert("hide_render", frame=frame)
            part.keyframe_insert("hide_viewport", frame=frame)
    scene.frame_set(1)
    shown = rendered.everything(scene, "LIM").objects
    assert set(shown) == set(parts), "also what is hidden at the current frame"
    boxes, _ = captured(scene, shown, (1, 13, 25))
    assert [round(box[1][2], 3) for box in boxes] == [0.5, 2.5, 4.5] and [box[2] for box in boxes] == [1, 2, 3]


def test_the_default_source_is_what_the_camera_sees(scene):
    hero = add_cube(1)
    hero.name = "Hero"
    for name in ("Floor", "Card", "Hole", "Cutter", "Viewport only"):
        add_cube(8).name = name
    scene.objects["Floor"].is_shadow_catcher = True
    scene.objects["Card"].visible_camera = False
    scene.objects["Hole"].is_holdout = True
    scene.objects["Cutter"].hide_render = True
    scene.objects["Viewport only"].hide_viewport = True
    result = bpy.data.collections.new("LIM")
    scene.collection.children.link(result)
    earlier = add_cube(2)
    scene.collection.objects.unlink(earlier)
    result.objects.link(earlier)
    found = rendered.everything(scene, "LIM")
    assert [object.name for object in found.objects] == ["Hero", "Viewport only"], "a render does not ask the viewport"
    assert found.left_out == {
        "Floor": rendered.CATCHER, "Card": rendered.UNSEEN, "Hole": rendered.HOLDOUT, "Cutter": rendered.HIDDEN,
    }  # fmt: skip


def test_view_layers_decide_together(scene):
    objects = {}
    for name in ("held out", "excluded", "elsewhere"):
        collection = bpy.data.collections.new(name)
        scene.collection.children.link(collection)
        objects[name] = add_cube(1)
        scene.collection.objects.unlink(objects[name])
        collection.objects.link(objects[name])
    second = scene.view_layers.new("second")
    for layer in scene.view_layers:
        layer.layer_collection.children["held out"].holdout = True
        layer.layer_collection.children["excluded"].exclude = True
    second.layer_collection.children["elsewhere"].exclude = True
    found = rendered.everything(scene, "LIM")
    assert found.objects == [objects["elsewhere"]]
    assert found.left_out == {
        objects["held out"].name: rendered.HOLDOUT,
        objects["excluded"].name: rendered.UNSEEN_COLLECTION,
    }
    scene.view_layers[0].use = False
    assert not rendered.everything(scene, "LIM").objects


def test_nothing_is_left_of_the_evaluation(scene):
    cube = add_cube()
    before = counts()
    settings = {name: getattr(scene.render, name) for name in ("engine", "resolution_percentage", "use_compositing")}
    second = scene.view_layers.new("second")
    second.use = False
    captured(scene, [cube])
    assert counts() == before and scene.camera is None
    assert settings == {name: getattr(scene.render, name) for name in settings}
    assert [layer.use for layer in scene.view_layers] == [True, False]
    assert not hasattr(bpy.types, "LIM_Evaluation")


# ---- in which state ------------------------------------------------------------------------------------------------


def test_modifiers_of_the_render(scene):
    """Also in what a modifier points at: the cutter is round only when it is rendered."""
    chain = add_cube(1)
    links = chain.modifiers.new("links", "ARRAY")
    links.count, links.relative_offset_displace, links.show_viewport = 5, (1.2, 0, 0), False
    noise = chain.modifiers.new("viewport only", "DISPLACE")
    noise.strength, noise.show_render = 9, False
    (box,), _ = captured(scene, [chain])
    assert widths(box) == pytest.approx([5.8, 1, 1])


def test_levels_of_the_render(scene):
    cube = add_cube(2)
    smooth = cube.modifiers.new("smooth", "SUBSURF")
    smooth.levels, smooth.render_levels = 0, 3
    (box,), _ = captured(scene, [cube])
    assert widths(box)[0] < 1.8


def test_my_own_mesh_has_the_modifiers_of_the_render_and_the_levels_of_the_viewport(scene):
    chain = add_cube(1)
    links = chain.modifiers.new("links", "ARRAY")
    links.count, links.show_viewport = 5, False
    smooth = chain.modifiers.new("smooth", "SUBSURF")
    smooth.levels, smooth.render_levels = 1, 3
    mesh, _ = evaluated.evaluated_template(scene, chain.name, 1)
    assert len(mesh.vertices) == 5 * 26 and links.show_viewport is False
    bpy.data.meshes.remove(mesh)


# ---- after which simulation ----------------------------------------------------------------------------------------


def grower(group_name: str = "grow") -> bpy.types.NodeTree:
    """A group that makes its geometry 6 % taller at every frame."""
    group = geometry_group(group_name)
    begin, end = group.nodes.new("GeometryNodeSimulationInput"), group.nodes.new("GeometryNodeSimulationOutput")
    begin.pair_with_output(end)
    taller = group.nodes.new("GeometryNodeTransform")
    taller.inputs["Scale"].default_value = (1, 1, 1.06)
    source, target = group.nodes.new("NodeGroupInput"), group.nodes.new("NodeGroupOutput")
    group.links.new(source.outputs[0], begin.inputs["Geometry"])
    group.links.new(begin.outputs["Geometry"], taller.inputs[0])
    group.links.new(taller.outputs[0], end.inputs["Geometry"])
    group.links.new(end.outputs["Geometry"], target.inputs[0])
    return group


def around(inner: bpy.types.NodeTree) -> bpy.types.NodeTree:
    group = geometry_group("around")
    node = group.nodes.new("GeometryNodeGroup")
    node.node_tree = inner
    source, target = group.nodes.new("NodeGroupInput"), group.nodes.new("NodeGroupOutput")
    group.links.new(source.outputs[0], node.inputs[0])
    group.links.new(node.outputs[0], target.inputs[0])
    return group


def in_nested_groups(scene):
    cube = add_cube(1)
    cube.modifiers.new("grow", "NODES").node_group = around(around(grower()))
    return cube


def in_an_instanced_collection(scene):
    cube = in_nested_groups(scene)
    stock = bpy.data.collections.new("stock")
    stock.objects.link(cube)
    scene.collection.objects.unlink(cube)
    instancer = bpy.data.objects.new("instancer", None)
    instancer.instance_type, instancer.instance_collection = "COLLECTION", stock
    scene.collection.objects.link(instancer)
    return instancer


def in_what_a_modifier_points_at(scene):
    cube, mirror = in_nested_groups(scene), add_cube(0.1)
    cube.hide_render = True
    group = geometry_group("take")
    info, target = group.nodes.new("GeometryNodeObjectInfo"), group.nodes.new("NodeGroupOutput")
    socket = group.interface.new_socket("What", in_out="INPUT", socket_type="NodeSocketObject")
    group.links.new(group.nodes.new("NodeGroupInput").outputs["What"], info.inputs["Object"])
    group.links.new(info.outputs["Geometry"], target.inputs[0])
    taking = mirror.modifiers.new("take", "NODES")
    taking.node_group = group
    taking[socket.identifier] = cube
    return mirror


def only_in_the_render(scene):
    cube = in_nested_groups(scene)
    cube.modifiers[0].show_viewport = False
    return cube


@pytest.mark.parametrize(
    "kind", [in_nested_groups, in_an_instanced_collection, in_what_a_modifier_points_at, only_in_the_render]
)
def test_a_simulation_is_stepped_wherever_it_is(scene, kind):
    scene.frame_start = 1
    boxes, _ = captured(scene, [kind(scene)], (1, 21))
    grown = widths(boxes[1])[2] / widths(boxes[0])[2]
    assert grown == pytest.approx(1.06**20, rel=1e-3)


def test_a_preroll_is_stepped(scene):
    bpy.ops.mesh.primitive_grid_add(x_subdivisions=8, y_subdivisions=8, size=2, location=(0, 0, 1.5))
    cape = bpy.context.object
    pins = cape.vertex_groups.new(name="pin")
    pins.add([v.index for v in cape.data.vertices if v.co.y > 0.99], 1, "REPLACE")
    cloth = cape.modifiers.new("cloth", "CLOTH")
    cloth.settings.vertex_group_mass = "pin"
    cloth.point_cache.frame_start, cloth.point_cache.frame_end = 981, 1017
    scene.frame_start, scene.frame_end = 1001, 1017
    assert simulated.earliest(scene, [cape]) == 981
    boxes, _ = captured(scene, [cape], (1001, 1017))
    assert -0.5 < boxes[0][0][2] < 0.3, "it hangs from its pins"


def test_what_is_not_simulated_is_not_stepped(scene):
    assert simulated.earliest(scene, [add_cube(), add_sphere(subdivisions=2)]) is None


# ---- strands and points --------------------------------------------------------------------------------------------


def test_tubes_and_spheres_are_closed_and_as_thick_as_they_should_be():
    points = np.array([[0, 0, 0], [0, 0, 1], [0, 0.5, 2], [3, 0, 0], [4, 0, 0]], np.float32)
    for vertices, faces in (
        mesh_arrays.tubes(points, np.array([0, 3, 5]), np.full(5, 0.1)),
        mesh_arrays.spheres(points, np.full(5, 0.1)),
    ):
        edges = np.stack([faces, np.roll(faces, -1, 1)], -1).reshape(-1, 2)
        there, back = {tuple(e) for e in edges.tolist()}, {tuple(e[::-1]) for e in edges.tolist()}
        assert there == back and len(there) == len(edges), "every edge has two faces that agree which side is out"
        each = len(vertices) // len(points)
        off = np.linalg.norm(vertices.reshape(len(points), each, 3) - points[:, None], axis=2)
        assert np.allclose(off, 0.1, atol=1e-6)
        a, b, c = vertices[faces[:, 0]], vertices[faces[:, 1]], vertices[faces[:, 2]]
        assert (np.einsum("fi,fi->f", np.cross(b, c), a)).sum() > 0, "normals point out"


def test_hair_curves_become_tubes(scene):
    curves = bpy.data.hair_curves.new("fringe")
    curves.add_curves([4, 4])
    places = [(x, 0, z) for x in (0, 1) for z in range(4)]
    curves.attributes["position"].data.foreach_set("vector", np.array(places, np.float32).ravel())
    curves.attributes.new("radius", "FLOAT", "POINT").data.foreach_set("value", [0.05] * 8)
    object = bpy.data.objects.new("Fringe", curves)
    scene.collection.objects.link(object)
    (box,), _ = captured(scene, [object])
    assert widths(box) == pytest.approx([1.1, 0.1, 3], abs=0.03)


def test_hair_of_particles_becomes_tubes(scene):
    head = add_sphere(0.8, subdivisions=3)
    head.modifiers.new("hair", "PARTICLE_SYSTEM")
    settings = head.particle_systems[0].settings
    settings.type, settings.count, settings.hair_length = "HAIR", 50, 0.5
    settings.root_radius = settings.tip_radius = 1.0
    settings.radius_scale = 0.1
    head.location, head.rotation_euler, head.scale = (3, 1, 0), (0.5, 0.2, 0.1), (1, 1, 2)
    (box,), _ = captured(scene, [head])
    hairy = widths(box)
    assert box[2] == 2 and hairy.min() > 2.2
    assert np.allclose((box[0] + box[1]) / 2, (3, 1, 0), atol=0.3), "around the head, where it stands"
    head.modifiers["hair"].show_render = False
    (box,), _ = captured(scene, [head])
    assert box[2] == 1 and widths(box)[0] < hairy[0] - 0.5


# ---- in a job ------------------------------------------------------------------------------------------------------


def settings_of(scene, tmp_path, *options: str):
    path = tmp_path / "scene.blend"
    bpy.ops.wm.save_as_mainfile(filepath=str(path))
    parsed = command_line.parser().parse_args(["--input", str(path), "--out", str(tmp_path / "out.blend"), *options])
    return command_line.settings_for(parsed)[0]


def test_the_command_line_takes_what_a_render_shows(scene, tmp_path):
    rig = a_rig(scene)
    rig.keyframe_insert("location", frame=1)
    settings = settings_of(scene, tmp_path)
    assert settings.objects == ("Body",)
    ((code, message, hint),) = settings.notes
    assert code == "left_out" and "“Proxy” (hidden from rendering)" in message and hint
    for part in list(bpy.context.scene.objects):
        part.hide_render = True
    with pytest.raises(LimError) as caught:
        settings_of(bpy.context.scene, tmp_path)
    assert caught.value.code == "nothing_selected" and "render" in caught.value.message


def test_a_capture_that_stands_still_is_told_and_every_warning_once(scene, tmp_path, small):
    cube = add_cube()
    settings = asking.Settings(objects=(cube.name,), keyframes=(1.0, 9.0), quality="draft")
    wanted = capturing.capture_spec(settings, asking.check(scene, settings))
    capturing.capture_into(scene, wanted, "key", tmp_path, lambda fraction: None, lambda: False)
    record = json.loads((tmp_path / job_folders.CAPTURE_RECORD).read_text(encoding="utf-8"))
    ((code, message, hint),) = record["warnings"]
    assert code == "nothing_moves" and "“Cube”" in message and hint
    job = jobs.Job(scene, settings)
    for _ in range(2):
        job._emit("warning", code=code, message=message, hint=hint)
    assert len(job.warnings) == 1
