# SPDX-License-Identifier: GPL-3.0-or-later
"""Example scenes in which no two poses correspond: their meshes differ in vertices, faces and origin from pose to pose.

`blender -b --python install/scenes/poses_scene.py -- OUT.blend NAME`, or with a Python that has bpy. NAME is one of
`EXAMPLES`; `python3 install demo --example NAME` builds it and runs it.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import bpy
import numpy as np

if __name__ == "__main__":
    _headless_path = Path(__file__).resolve().parents[2] / "blender_addon" / "headless.py"
    _spec = importlib.util.spec_from_file_location("lim_headless", _headless_path)
    _headless = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_headless)
    __package__ = _headless.load_package().__name__ + ".install.scenes"

from ...blender_addon.source import compat  # noqa: E402
from . import demo_scene  # noqa: E402
from .demo_scene import KEYFRAMES, Part  # noqa: E402


def build_metaball(scene: bpy.types.Scene) -> list[bpy.types.Object]:
    """A caterpillar of five metaballs that arches its back, then rears up. Its surface is meshed anew at every frame."""
    places = {
        1: [(-1.3, 0.32), (-0.65, 0.36), (0, 0.36), (0.65, 0.36), (1.3, 0.42)],
        9: [(-0.75, 0.32), (-0.5, 0.85), (0, 1.12), (0.5, 0.85), (0.78, 0.42)],
        17: [(-0.95, 0.32), (-0.35, 0.36), (0.25, 0.5), (0.6, 1.0), (0.72, 1.6)],
    }
    radii = (0.5, 0.58, 0.6, 0.58, 0.66)
    balls = []
    for index, radius in enumerate(radii):
        data = bpy.data.metaballs.new("Caterpillar")
        data.elements.new().radius = radius
        data.resolution = data.render_resolution = 0.09
        data.threshold = 0.3
        # Balls whose names differ in the number alone melt into the first one's surface.
        ball = bpy.data.objects.new("Caterpillar" if index == 0 else f"Caterpillar.{index:03d}", data)
        scene.collection.objects.link(ball)
        for frame, rows in places.items():
            ball.location = (rows[index][0], 0, rows[index][1])
            ball.keyframe_insert("location", frame=frame)
        balls.append(ball)
    # Colours lie along the scene's x, which is all that a metaball can be painted by.
    material, ramp, place = _ramp_material("Caterpillar")
    place.object = bpy.data.objects.new("Colours", None)
    scene.collection.objects.link(place.object)
    place.object.scale = (1.7, 1, 1)
    _stops(
        ramp,
        [(0.0, (0.90, 0.20, 0.10)), (0.35, (0.95, 0.60, 0.05)), (0.65, (0.35, 0.65, 0.10)), (1.0, (0.05, 0.35, 0.55))],
    )
    balls[0].data.materials.append(material)
    return balls


def build_cut(scene: bpy.types.Scene) -> list[bpy.types.Object]:
    """A melon out of which a boolean takes a bite that wanders over it and grows."""
    bpy.ops.mesh.primitive_uv_sphere_add(segments=48, ring_count=24, radius=1.0, location=(0, 0, 0.9))
    melon = bpy.context.object
    melon.name = "Melon"
    melon.scale = (1.15, 0.95, 0.9)
    bpy.ops.mesh.primitive_ico_sphere_add(subdivisions=4, radius=0.62)
    bite = bpy.context.object
    bite.name = "Bite"
    for frame, angle, height, size in ((1, -108, 1.0, 0.75), (9, -90, 1.25, 1.0), (17, -72, 1.1, 1.15)):
        a = math.radians(angle)
        bite.location, bite.scale = (1.15 * math.cos(a), 0.95 * math.sin(a), height), (size,) * 3
        for path in ("location", "scale"):
            bite.keyframe_insert(path, frame=frame)
    bite.display_type = "WIRE"
    bite.hide_render = True
    rind, ramp, place = _ramp_material("Rind")
    _stops(ramp, [(i / 7, ((0.05, 0.25, 0.06), (0.45, 0.65, 0.20))[i % 2]) for i in range(8)])
    place.object = melon
    melon.data.materials.append(rind)
    flesh = compat.new_material("Flesh")
    nodes, links = flesh.node_tree.nodes, flesh.node_tree.links
    output, surface = nodes.new("ShaderNodeOutputMaterial"), nodes.new("ShaderNodeBsdfPrincipled")
    surface.inputs["Base Color"].default_value = (0.85, 0.08, 0.10, 1)
    links.new(surface.outputs["BSDF"], output.inputs["Surface"])
    bite.data.materials.append(flesh)
    cut = melon.modifiers.new("Bite", "BOOLEAN")
    cut.operation, cut.object, cut.solver, cut.material_mode = "DIFFERENCE", bite, "EXACT", "TRANSFER"
    return [melon]


def build_frames(scene: bpy.types.Scene) -> list[bpy.types.Object]:
    """A slug as stop motion keeps it: one sculpted mesh for every fourth frame, each shown for its four frames alone."""
    poses = []
    for pose, (bow, stretch) in enumerate(((0.0, 1.0), (0.45, 0.8), (0.9, 0.62), (0.35, 0.95))):
        parts = _slug_parts(bow, stretch)
        mesh = demo_scene._surface_mesh(f"Slug {pose + 1}", parts, (0.045, 0.052, 0.041, 0.048)[pose])
        points = demo_scene._vertices(mesh).astype(np.float64)
        colours = np.concatenate([_slug_colours(parts, points) / 255, np.ones((len(points), 1))], 1)
        mesh.color_attributes.new("Paint", "BYTE_COLOR", "POINT").data.foreach_set(
            "color_srgb", colours.astype(np.float32).ravel()
        )
        mesh.materials.append(demo_scene.painted_by_vertex("Slug"))
        object = bpy.data.objects.new(mesh.name, mesh)
        scene.collection.objects.link(object)
        first = 1 + 4 * pose
        for frame, hidden in ((first - 1, True), (first, False), (first + 4, True)):
            object.hide_viewport = object.hide_render = hidden
            for path in ("hide_viewport", "hide_render"):
                object.keyframe_insert(path, frame=frame)
        poses.append(object)
    return poses


SLUG_KNOTS = 7


def _slug_parts(bow: float, stretch: float) -> list[Part]:
    """Round cones along a back that rises by `bow`; from the tail to the head, then the feelers with their eyes."""
    along = np.linspace(-1, 1, SLUG_KNOTS)
    height = 0.3 + bow * (1 - along**2) + 0.25 * np.clip(along - 0.4, 0, 1)
    spine = np.stack([along * 0, -1.35 * stretch * along, height], 1)
    radii = np.interp(along, [-1, -0.4, 0.4, 1], [0.12, 0.30, 0.32, 0.27])
    parts = [
        Part("", tuple(spine[i]), tuple(spine[i + 1]), radii[i], radii[i + 1], blend=0.1) for i in range(SLUG_KNOTS - 1)
    ]
    head = np.array(parts[-1].end)
    for side in (1, -1):
        tip = head + [side * 0.18, -0.12, 0.52]
        parts.append(Part("", tuple(head + [side * 0.1, -0.05, 0.15]), tuple(tip), 0.06, 0.05, blend=0.06))
        parts.append(Part("", tuple(tip), radii=(0.11, 0.11, 0.11), blend=0.03, paint="eye"))
    return parts


def _slug_colours(parts: list[Part], points: np.ndarray) -> np.ndarray:
    """sRGB 0..255 [N, 3]: bands along the back, by the part that is nearest, so that they go with the body."""
    body = [p for p in parts if p.paint != "eye"][: SLUG_KNOTS - 1]
    starts, ends = np.array([p.start for p in body]), np.array([p.end for p in body])
    axes = ends - starts
    shares = np.clip(np.einsum("nbi,bi->nb", points[:, None] - starts, axes) / (axes**2).sum(1), 0, 1)
    nearest = np.linalg.norm(points[:, None] - starts - shares[..., None] * axes, axis=-1).argmin(1)
    place = (nearest + shares[np.arange(len(points)), nearest]) / len(body)
    colour = np.tile(np.array((236, 120, 70), np.float32), (len(points), 1))
    colour = demo_scene._mix(colour, (250, 214, 120), demo_scene._step(np.sin(place * 2 * math.pi * 5), 0.0, 0.5))
    colour = demo_scene._mix(colour, (120, 60, 110), demo_scene._step(place, 0.88, 0.06))
    eyes = np.min([p.distance(points) for p in parts if p.paint == "eye"], 0)
    rest = np.min([p.distance(points) for p in parts if p.paint != "eye"], 0)
    return np.where((eyes < rest)[:, None], np.array((40, 140, 160.0)), colour)


def _ramp_material(name: str) -> tuple[bpy.types.Material, bpy.types.Node, bpy.types.Node]:
    """A material coloured along x from -1 to 1 of an object: itself, its ramp, and the node that names the object."""
    material = compat.new_material(name)
    nodes, links = material.node_tree.nodes, material.node_tree.links
    output, surface = nodes.new("ShaderNodeOutputMaterial"), nodes.new("ShaderNodeBsdfPrincipled")
    place, axis = nodes.new("ShaderNodeTexCoord"), nodes.new("ShaderNodeSeparateXYZ")
    map_range, ramp = nodes.new("ShaderNodeMapRange"), nodes.new("ShaderNodeValToRGB")
    map_range.inputs["From Min"].default_value = -1
    links.new(place.outputs["Object"], axis.inputs[0])
    links.new(axis.outputs["X"], map_range.inputs["Value"])
    links.new(map_range.outputs["Result"], ramp.inputs["Fac"])
    links.new(ramp.outputs["Color"], surface.inputs["Base Color"])
    links.new(surface.outputs["BSDF"], output.inputs["Surface"])
    return material, ramp, place


def _stops(ramp: bpy.types.Node, stops: list[tuple[float, tuple[float, float, float]]]) -> None:
    """Place of each colour, linear."""
    elements = ramp.color_ramp.elements
    while len(elements) < len(stops):
        elements.new(0.5)
    for element, (place, colour) in zip(elements, stops):
        element.position, element.color = place, (*colour, 1)


EXAMPLES = {
    "sculpts": demo_scene.build_poses,
    "metaball": build_metaball,
    "cut": build_cut,
    "frames": build_frames,
}


def build(scene: bpy.types.Scene, name: str) -> list[bpy.types.Object]:
    """Add an example to an empty scene; returns what is to be captured, in order."""
    scene.frame_start, scene.frame_end = KEYFRAMES[0], 13 if name == "frames" else KEYFRAMES[-1]
    scene.render.fps, scene.render.fps_base = 24, 1.0
    objects = EXAMPLES[name](scene)
    if scene.camera is None:
        demo_scene._add_camera_and_light(scene, (4.5, -5.5, 3.2), (0, 0, 0.7))
    scene.frame_set(scene.frame_start)
    return objects


def main(arguments: list[str]) -> int:
    """OUT.blend NAME: make an example in an empty file and save it."""
    if len(arguments) != 2 or not arguments[0].endswith(".blend") or arguments[1] not in EXAMPLES:
        print(f"usage: poses_scene.py -- OUT.blend {'|'.join(EXAMPLES)}", file=sys.stderr)
        return 2
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    built = build(scene, arguments[1])
    for object in scene.objects:
        if not object.hide_viewport:
            object.select_set(object in built)
    bpy.ops.wm.save_as_mainfile(filepath=str(Path(arguments[0]).resolve()), check_existing=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else sys.argv[1:]))
