# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows about what a render of the scene shows: who is seen, in which state, after which simulation, in which colours."""

from __future__ import annotations

import bpy
import numpy as np

from .bench import Bench, keyed, matte, new_scene, row, warned

RED, GREEN, BLUE = (0.8, 0.04, 0.04), (0.04, 0.6, 0.04), (0.04, 0.04, 0.8)


def cube(name: str, size, place=(0, 0, 0), material: bpy.types.Material | None = None) -> bpy.types.Object:
    bpy.ops.mesh.primitive_cube_add(size=1, location=place)
    made = bpy.context.object
    made.name = name
    for vertex in made.data.vertices:
        vertex.co = [c * s for c, s in zip(vertex.co, size if isinstance(size, tuple) else (size,) * 3)]
    made.data.materials.append(material or matte(name, (0.5, 0.5, 0.5)))
    return made


def ball(name: str, radius: float, place=(0, 0, 0), colour=(0.5, 0.5, 0.5)) -> bpy.types.Object:
    bpy.ops.mesh.primitive_uv_sphere_add(segments=32, ring_count=16, radius=radius, location=place)
    made = bpy.context.object
    made.name = name
    made.data.materials.append(matte(name, colour))
    return made


def geometry_group(name: str) -> bpy.types.NodeTree:
    group = bpy.data.node_groups.new(name, "GeometryNodeTree")
    for way in ("INPUT", "OUTPUT"):
        group.interface.new_socket("Geometry", in_out=way, socket_type="NodeSocketGeometry")
    return group


def put_into(collection: bpy.types.Collection, *objects: bpy.types.Object) -> None:
    for object in objects:
        for other in list(object.users_collection):
            other.objects.unlink(object)
        collection.objects.link(object)


def words(box: tuple[np.ndarray, np.ndarray]) -> str:
    low, high = box
    return "×".join(f"{width:.2f}" for width in high - low)


def is_wide(box: tuple[np.ndarray, np.ndarray], expected, tolerance: float = 0.12) -> bool:
    return bool(np.allclose(box[1] - box[0], expected, atol=tolerance))


def near(result, place, colour, reach: float) -> tuple[str, bool]:
    """The result's median colour around a place at its first frame, and whether it is the linear `colour`."""
    close = np.linalg.norm(result.positions[0] - np.array(place), axis=1) < reach
    seen = np.median(result.colours[close], axis=0) if close.any() else np.full(3, np.nan)
    wanted = np.where(np.array(colour) > 0.0031308, 1.055 * np.power(colour, 1 / 2.4) - 0.055, 12.92 * np.array(colour))
    return "(" + " ".join(f"{c:.2f}" for c in seen) + ")", bool(np.abs(seen - wanted).max() < 0.12)


# ---- who is seen ---------------------------------------------------------------------------------------------------


@row("material slots that are linked to the object", "two copies of one mesh, red and blue")
def object_materials(bench: Bench) -> tuple[str, bool]:
    scene = new_scene()
    first = cube("Left", 1.0)
    second = bpy.data.objects.new("Right", first.data)
    scene.collection.objects.link(second)
    for object, y, colour in ((first, -0.8, RED), (second, 0.8, BLUE)):
        object.material_slots[0].link = "OBJECT"
        object.material_slots[0].material = matte(object.name, colour)
        object.location.y = y
        keyed(object, "location", {1: 0.0, 17: 0.4}, 2)
    facts = bench.run_scene()
    result = bench.result(facts)
    found = [near(result, (0, y, 0), colour, 0.75) for y, colour in ((-0.8, RED), (0.8, BLUE))]
    return " ".join(text for text, _ in found), all(right for _, right in found)


@row("object-linked materials on my own mesh", "the result has the object's material")
def object_materials_own_mesh(bench: Bench) -> tuple[str, bool]:
    new_scene()
    own = cube("Own", 1.0)
    own.material_slots[0].link = "OBJECT"
    own.material_slots[0].material = matte("of the object", BLUE)
    keyed(own, "location", {1: 0.0, 17: 0.4}, 2)
    facts = bench.run_scene("--template", "Own")
    bench.result(facts)
    found = [material.name for material in bpy.data.objects[facts["object"]].data.materials]
    return ", ".join(found), found == ["of the object"]


def build_rig() -> None:
    """A rig with a bending body, a proxy and a widget that are hidden from rendering."""
    scene = new_scene()
    bpy.ops.object.armature_add()
    rig = bpy.context.object
    rig.name = "Rig"
    body = cube("Body", (0.5, 0.5, 1.0), (0, 0, 0.5), matte("body", BLUE))
    body.parent = rig
    for name, size in (("CollisionProxy", 1.6), ("WGT-root", 2.4)):
        part = cube(name, size)
        part.parent, part.hide_render = rig, True
    keyed(rig, "rotation_euler", {1: 0.0, 17: 0.5}, 0)
    collection = bpy.data.collections.new("Char")
    scene.collection.children.link(collection)
    put_into(collection, rig, *rig.children)


@row("what is hidden from render, reached through a rig", "the body alone, 0.5×0.5×1.0, and what is left out is said")
def rig_hidden(bench: Bench) -> tuple[str, bool]:
    build_rig()
    facts = bench.run_scene("--objects", "Rig")
    said = warned(facts, "CollisionProxy", "hidden from rendering")
    box = bench.result(facts).box(1)
    return f"{words(box)}, {'said' if said else 'not said'}", said and is_wide(box, (0.5, 0.5, 1.0))


@row("what is hidden from render, reached through a collection", "the body alone, 0.5×0.5×1.0")
def collection_hidden(bench: Bench) -> tuple[str, bool]:
    build_rig()
    facts = bench.run_scene("--collection", "Char")
    said = warned(facts, "CollisionProxy", "hidden from rendering")
    box = bench.result(facts).box(1)
    return f"{words(box)}, {'said' if said else 'not said'}", said and is_wide(box, (0.5, 0.5, 1.0))


@row("what is hidden from render in an instanced collection", "the body alone, 1.0×0.6×0.6")
def inst_hidden(bench: Bench) -> tuple[str, bool]:
    scene = new_scene()
    asset = bpy.data.collections.new("Asset")
    body, proxy = cube("Body", (1.0, 0.6, 0.6), material=matte("body", BLUE)), cube("Proxy", 1.7)
    proxy.hide_render = True
    put_into(asset, body, proxy)
    placed = bpy.data.objects.new("Inst", None)
    placed.instance_type, placed.instance_collection = "COLLECTION", asset
    scene.collection.objects.link(placed)
    keyed(placed, "rotation_euler", {1: 0.0, 17: 0.8}, 2)
    box = bench.result(bench.run_scene()).box(1)
    return words(box), is_wide(box, (1.0, 0.6, 0.6))


@row("a render-hidden source of instances", "six leaves on a line, 5.3 long")
def hidden_source(bench: Bench) -> tuple[str, bool]:
    scene = new_scene()
    leaf = cube("Leaf", 0.3, material=matte("leaf", GREEN))
    leaf.hide_render = True
    line = bpy.data.meshes.new("line")
    line.from_pydata([(k, 0, 0) for k in range(6)], [], [])
    branch = bpy.data.objects.new("Branch", line)
    scene.collection.objects.link(branch)
    group = geometry_group("leaves")
    info, scatter = group.nodes.new("GeometryNodeObjectInfo"), group.nodes.new("GeometryNodeInstanceOnPoints")
    info.inputs["Object"].default_value = leaf
    group.links.new(group.nodes.new("NodeGroupInput").outputs[0], scatter.inputs["Points"])
    group.links.new(info.outputs["Geometry"], scatter.inputs["Instance"])
    group.links.new(scatter.outputs[0], group.nodes.new("NodeGroupOutput").inputs[0])
    branch.modifiers.new("leaves", "NODES").node_group = group
    keyed(branch, "rotation_euler", {1: 0.0, 17: 0.5}, 2)
    result = bench.result(bench.run_scene("--objects", "Branch"))
    box, parts = result.box(1), sum(len(part) > 20 for part in result.parts())
    return f"{words(box)}, {parts} parts", is_wide(box, (5.3, 0.3, 0.3)) and parts == 6


@row("parts whose visibility is keyed", "all that is shown at any keyframe: to z 2.4 at 25")
def appear(bench: Bench) -> tuple[str, bool]:
    new_scene(1, 25)
    for k, (name, colour) in enumerate((("Base", RED), ("Arm", GREEN), ("Cap", BLUE))):
        part = cube(name, 0.8, (0, 0, k), matte(name, colour))
        for flag in ("hide_render", "hide_viewport"):
            keyed(part, flag, {1 + 12 * step: step < k for step in range(3)})
    keyed(bpy.data.objects["Base"], "rotation_euler", {1: 0.0, 25: 0.7}, 2)
    result = bench.result(bench.run_scene())
    top = float(result.box(25)[1][2])
    return f"to z {top:.2f}", abs(top - 2.4) < 0.12


@row("shadow catchers, holdouts, light cards", "the hero alone, 1.0 wide")
def render_vis(bench: Bench) -> tuple[str, bool]:
    scene = new_scene()
    scene.render.engine = "CYCLES"
    hero = cube("Hero", 1.0, material=matte("hero", RED))
    keyed(hero, "rotation_euler", {1: 0.0, 17: 0.7}, 2)
    for name in ("Floor", "Card", "Hole"):
        cube(name, (6.0, 6.0, 0.1), (0, 0, -1))
    scene.objects["Floor"].is_shadow_catcher = True
    scene.objects["Card"].visible_camera = False
    scene.objects["Hole"].is_holdout = True
    facts = bench.run_scene()
    said = all(warned(facts, name) for name in ("Floor", "Card", "Hole"))
    box = bench.result(facts).box(1)
    return f"{words(box)}, {'said' if said else 'not said'}", said and is_wide(box, (1.0, 1.0, 1.0))


# ---- in which state, after which simulation --------------------------------------------------------------------------


@row("modifiers that only the render has", "five links, 5.8 long")
def render_mods(bench: Bench) -> tuple[str, bool]:
    new_scene()
    chain = cube("Chain", 1.0, material=matte("steel", (0.4, 0.5, 0.6)))
    links = chain.modifiers.new("links", "ARRAY")
    links.count, links.relative_offset_displace, links.show_viewport = 5, (1.2, 0, 0), False
    keyed(chain, "rotation_euler", {1: 0.0, 17: 0.6}, 2)
    box = bench.result(bench.run_scene()).box(1)
    return words(box), is_wide(box, (5.8, 1.0, 1.0), 0.2)


@row("a simulation one level down, in node groups", "3.4 high at 21")
def gn_nested_sim(bench: Bench) -> tuple[str, bool]:
    new_scene(1, 21)
    grower = ball("Grower", 0.5, colour=GREEN)
    inner, outer = geometry_group("inner"), geometry_group("outer")
    begin, end = inner.nodes.new("GeometryNodeSimulationInput"), inner.nodes.new("GeometryNodeSimulationOutput")
    begin.pair_with_output(end)
    taller = inner.nodes.new("GeometryNodeTransform")
    taller.inputs["Scale"].default_value = (1, 1, 1.06)
    inner.links.new(inner.nodes.new("NodeGroupInput").outputs[0], begin.inputs["Geometry"])
    inner.links.new(begin.outputs["Geometry"], taller.inputs[0])
    inner.links.new(taller.outputs[0], end.inputs["Geometry"])
    inner.links.new(end.outputs["Geometry"], inner.nodes.new("NodeGroupOutput").inputs[0])
    node = outer.nodes.new("GeometryNodeGroup")
    node.node_tree = inner
    outer.links.new(outer.nodes.new("NodeGroupInput").outputs[0], node.inputs[0])
    outer.links.new(node.outputs[0], outer.nodes.new("NodeGroupOutput").inputs[0])
    grower.modifiers.new("grow", "NODES").node_group = outer
    box = bench.result(bench.run_scene()).box(21)
    return words(box), is_wide(box, (1.0, 1.0, 3.4), 0.2)


@row("a cache that begins before the scene's range", "lowest point −0.12 at 1001")
def preroll(bench: Bench) -> tuple[str, bool]:
    new_scene(1001, 1017)
    bpy.ops.mesh.primitive_grid_add(x_subdivisions=16, y_subdivisions=16, size=2, location=(0, 0, 1.5))
    cape = bpy.context.object
    cape.data.materials.append(matte("cape", (0.5, 0.05, 0.4)))
    pins = cape.vertex_groups.new(name="pin")
    pins.add([vertex.index for vertex in cape.data.vertices if vertex.co.y > 0.99], 1, "REPLACE")
    cloth = cape.modifiers.new("cloth", "CLOTH")
    cloth.settings.vertex_group_mass = "pin"
    cloth.point_cache.frame_start, cloth.point_cache.frame_end = 981, 1017
    low = float(bench.result(bench.run_scene()).box(1001)[0][2])
    return f"{low:.2f}", abs(low + 0.12) < 0.15


# ---- in which colours ----------------------------------------------------------------------------------------------


def base_colour(material: bpy.types.Material) -> bpy.types.NodeSocket:
    return material.node_tree.nodes["Principled BSDF"].inputs["Base Color"]


@row("Object Info, attributes of objects, world positions", "as at the first keyframe: cyan, orange, low green")
def procedural(bench: Bench) -> tuple[str, bool]:
    new_scene()
    paint, index, height = (matte(name, (0, 0, 0)) for name in ("paint", "index", "height"))
    ask = paint.node_tree.nodes.new("ShaderNodeAttribute")
    ask.attribute_type, ask.attribute_name = "OBJECT", "paint"
    paint.node_tree.links.new(ask.outputs["Color"], base_colour(paint))
    for material, node, output, scale in (
        (index, "ShaderNodeObjectInfo", "Object Index", 0.25), (height, "ShaderNodeNewGeometry", "Position", 1.0),
    ):  # fmt: skip
        tree = material.node_tree
        value = tree.nodes.new(node).outputs[output]
        if output == "Position":
            split = tree.nodes.new("ShaderNodeSeparateXYZ")
            tree.links.new(value, split.inputs[0])
            value = split.outputs[2]
        factor, ramp = tree.nodes.new("ShaderNodeMath"), tree.nodes.new("ShaderNodeValToRGB")
        factor.operation, factor.inputs[1].default_value = "MULTIPLY", scale
        ramp.color_ramp.interpolation = "CONSTANT"
        ramp.color_ramp.elements[0].color, ramp.color_ramp.elements[1].color = (0, 0.4, 0, 1), (1, 0.5, 0, 1)
        ramp.color_ramp.elements[1].position = 0.6
        tree.links.new(value, factor.inputs[0])
        tree.links.new(factor.outputs[0], ramp.inputs[0])
        tree.links.new(ramp.outputs[0], base_colour(material))
    parts = [cube(m.name, 1.0, (0, 1.6 * k - 1.6, 0.0), m) for k, m in enumerate((paint, index, height))]
    parts[0]["paint"] = [0.0, 1.0, 1.0]
    parts[1].pass_index = 4
    for part in parts:
        keyed(part, "location", {1: 0.0, 17: 1.0}, 2)
    result = bench.result(bench.run_scene())
    wanted = (((0, -1.6, 0), (0, 1, 1)), ((0, 0, 0), (1, 0.5, 0)), ((0, 1.6, 0), (0, 0.4, 0)))
    found = [near(result, place, colour, 0.9) for place, colour in wanted]
    return " ".join(text for text, _ in found), all(right for _, right in found)


@row("attributes that geometry nodes store on instances", "a red, a green and a blue car")
def gn_instances(bench: Bench) -> tuple[str, bool]:
    new_scene()
    road = cube("Traffic", 0.1)
    car = matte("car", (0, 0, 0))
    ask = car.node_tree.nodes.new("ShaderNodeAttribute")
    ask.attribute_type, ask.attribute_name = "INSTANCER", "car"
    car.node_tree.links.new(ask.outputs["Color"], base_colour(car))
    group = geometry_group("traffic")
    nodes, links = group.nodes, group.links
    line, box, dress = (nodes.new(f"GeometryNode{kind}") for kind in ("MeshLine", "MeshCube", "SetMaterial"))
    line.inputs["Count"].default_value, line.inputs["Offset"].default_value = 3, (0, 1.2, 0)
    box.inputs["Size"].default_value = (0.8, 0.8, 0.5)
    dress.inputs["Material"].default_value = car
    scatter, store = nodes.new("GeometryNodeInstanceOnPoints"), nodes.new("GeometryNodeStoreNamedAttribute")
    store.data_type, store.domain = "FLOAT_COLOR", "INSTANCE"
    store.inputs["Name"].default_value = "car"
    colour = nodes.new("FunctionNodeCombineColor")
    number = nodes.new("GeometryNodeInputIndex").outputs[0]
    for k in range(3):
        same = nodes.new("FunctionNodeCompare")
        same.data_type, same.operation = "INT", "EQUAL"
        first, second = [socket for socket in same.inputs if socket.enabled and socket.name in ("A", "B")]
        links.new(number, first)
        second.default_value = k
        links.new(same.outputs[0], colour.inputs[k])
    links.new(box.outputs[0], dress.inputs[0])
    links.new(line.outputs[0], scatter.inputs["Points"])
    links.new(dress.outputs[0], scatter.inputs["Instance"])
    links.new(scatter.outputs[0], store.inputs["Geometry"])
    links.new(colour.outputs[0], next(s for s in store.inputs if s.name == "Value" and s.enabled))
    links.new(store.outputs[0], nodes.new("NodeGroupOutput").inputs[0])
    road.modifiers.new("traffic", "NODES").node_group = group
    keyed(road, "location", {1: 0.0, 17: 1.0}, 2)
    result = bench.result(bench.run_scene())
    found = [near(result, (0, 1.2 * k, 0), np.eye(3)[k], 0.55) for k in range(3)]
    return " ".join(text for text, _ in found), all(right for _, right in found)


@row("keyed colours", "a warning that names the object; red as at the first keyframe; the pose right")
def keyed_colours(bench: Bench) -> tuple[str, bool]:
    new_scene()
    screen = cube("Screen", (1.6, 0.4, 1.0), material=matte("screen", RED))
    socket = base_colour(screen.data.materials[0])
    keyed(socket, "default_value", {1: (*RED, 1), 17: (*BLUE, 1)})
    keyed(screen, "rotation_euler", {1: 0.0, 9: 0.5, 17: 0.0}, 2)
    facts = bench.run_scene()
    said, result = warned(facts, "Screen", "changes over time"), bench.result(facts)
    text, right = near(result, (0, 0, 0), RED, 1.2)
    top = float(result.box(17)[1][2])
    return f"{text}, z to {top:.2f}, {'said' if said else 'not said'}", said and right and abs(top - 0.5) < 0.05


@row("a texture that changes over time", "a warning that names object and image; z to 0.50 at 17")
def image_seq(bench: Bench) -> tuple[str, bool]:
    new_scene()
    folder = bench.folder / "film"
    folder.mkdir()
    for frame in range(1, 18):
        pixels = np.full((32, 32, 4), 0.1, np.float32)
        pixels[:, : 2 * frame - 2, :2] = (1, frame / 17)
        pixels[..., 3] = 1
        image = bpy.data.images.new("frame", 32, 32)
        image.pixels.foreach_set(pixels.ravel())
        image.filepath_raw, image.file_format = str(folder / f"film_{frame:04d}.png"), "PNG"
        image.save()
        bpy.data.images.remove(image)
    screen = cube("Screen", (1.6, 0.2, 1.0), material=matte("screen", RED))
    tree = screen.data.materials[0].node_tree
    node = tree.nodes.new("ShaderNodeTexImage")
    node.image = bpy.data.images.load(str(folder / "film_0001.png"))
    node.image.source = "SEQUENCE"
    node.image_user.frame_duration, node.image_user.frame_start, node.image_user.use_auto_refresh = 17, 1, True
    tree.links.new(node.outputs[0], base_colour(screen.data.materials[0]))
    keyed(screen, "rotation_euler", {1: 0.0, 9: 0.5, 17: 0.0}, 2)
    facts = bench.run_scene()
    said, top = warned(facts, "Screen", "film_0001.png"), float(bench.result(facts).box(17)[1][2])
    return f"z to {top:.2f}, {'said' if said else 'not said'}", said and abs(top - 0.5) < 0.05


# ---- what can hardly be shown ----------------------------------------------------------------------------------------


@row("hair curves and hair particles", "a warning that names the objects and says what to do")
def hair(bench: Bench) -> tuple[str, bool]:
    scene = new_scene()
    head = ball("Head", 0.6, colour=(0.9, 0.6, 0.5))
    head.modifiers.new("hair", "PARTICLE_SYSTEM")
    settings = head.particle_systems[0].settings
    settings.type, settings.count, settings.hair_length = "HAIR", 200, 0.3
    keyed(head, "rotation_euler", {1: 0.0, 17: 0.8}, 1)
    curves = bpy.data.hair_curves.new("fringe")
    curves.add_curves([4] * 12)
    places = [(1.6 + 0.1 * k, 0.0, 0.4 - 0.3 * z) for k in range(12) for z in range(4)]
    curves.attributes["position"].data.foreach_set("vector", np.array(places, np.float32).ravel())
    curves.attributes.new("radius", "FLOAT", "POINT").data.foreach_set("value", [0.06] * 48)
    fringe = bpy.data.objects.new("Fringe", curves)
    scene.collection.objects.link(fringe)
    facts = bench.run_scene()
    said = warned(facts, "Head", "Fringe", "tubes")
    box = bench.result(facts).box(1)
    return f"to x {box[1][0]:.2f}, {'said' if said else 'not said'}", said


@row("alpha cards", "a warning that names the object and says what to do")
def cards(bench: Bench) -> tuple[str, bool]:
    new_scene()
    head = ball("Head", 0.6, colour=(0.9, 0.65, 0.5))
    image = bpy.data.images.new("strand", 8, 8, alpha=True)
    image.pixels.foreach_set(np.tile(np.array([[0.2, 0.1, 0, 1], [0.2, 0.1, 0, 0]], np.float32), (32, 1)).ravel())
    image.pack()
    for k in range(6):
        bpy.ops.mesh.primitive_plane_add(
            size=0.7, location=(0.7 * np.cos(k), 0.7 * np.sin(k), 0), rotation=(1.57, 0, k + 1.57)
        )
        strip = bpy.context.object
        strip.name, strip.parent = f"Hair {k}", head
        strip.data.materials.append(bpy.data.materials.get("hair") or matte("hair", (0.2, 0.1, 0.02)))
        if not k:
            tree = strip.data.materials[0].node_tree
            node = tree.nodes.new("ShaderNodeTexImage")
            node.image = image
            tree.links.new(node.outputs["Alpha"], tree.nodes["Principled BSDF"].inputs["Alpha"])
    keyed(head, "rotation_euler", {1: 0.0, 17: 0.6}, 1)
    facts = bench.run_scene()
    said = warned(facts, "Hair", "transparency")
    return f"{facts['status']}, {'said' if said else 'not said'}", said and facts["status"] == "done"


@row("displacement of a material", "a warning that names the object and says what to do")
def matdisp(bench: Bench) -> tuple[str, bool]:
    scene = new_scene()
    scene.render.engine = "CYCLES"
    planet = ball("Planet", 1.0, colour=(0.5, 0.4, 0.3))
    material = planet.data.materials[0]
    material.displacement_method = "DISPLACEMENT"
    node = material.node_tree.nodes.new("ShaderNodeDisplacement")
    material.node_tree.links.new(node.outputs[0], material.node_tree.nodes["Material Output"].inputs["Displacement"])
    keyed(planet, "rotation_euler", {1: 0.0, 17: 0.8}, 2)
    facts = bench.run_scene()
    said = warned(facts, "Planet", "displaced", "Displace modifier")
    return f"{facts['status']}, {'said' if said else 'not said'}", said and facts["status"] == "done"


@row("nothing that moves", "a warning that says so")
def still(bench: Bench) -> tuple[str, bool]:
    new_scene()
    cube("Rock", 1.0)
    facts = bench.run_scene()
    said = warned(facts, "Rock", "moves")
    return f"{facts['status']}, {'said' if said else 'not said'}", said and facts["status"] == "done"
