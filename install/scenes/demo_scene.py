# SPDX-License-Identifier: GPL-3.0-or-later
"""The example scenes, made from nothing: a small dinosaur with a rig, a texture and an action; and three loose sculpts.

The shapes are signed distance functions (round cones and ellipsoids, blended): a voxel remesh gives the topology and the
vertices are then pulled onto the exact surface. Skin weights and paint come from the same parts. numpy and bpy only.

`blender -b --python install/scenes/demo_scene.py -- OUT.blend [--poses]`, or with a Python that has bpy.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import sys
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix, Quaternion, Vector

if __name__ == "__main__":
    _headless_path = Path(__file__).resolve().parents[2] / "blender_addon" / "headless.py"
    _spec = importlib.util.spec_from_file_location("lim_headless", _headless_path)
    _headless = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_headless)
    __package__ = _headless.load_package().__name__ + ".install.scenes"

from ...blender_addon.source import compat  # noqa: E402

KEYFRAMES = (1, 9, 17)
TEXTURE_SIZE = 768

# sRGB, 0..255
TEAL, DEEP, CREAM, ORANGE = (64, 178, 158), (24, 104, 118), (250, 232, 188), (244, 132, 52)
BLUSH, DARK, WHITE, BLACK = (242, 138, 128), (28, 58, 70), (252, 252, 250), (18, 20, 28)


# ---- shapes as distances -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Part:
    """A round cone from `start` to `end` (radii `r0`, `r1`), or, if `radii` is given, an ellipsoid around `start`."""

    bone: str
    start: tuple[float, float, float]
    end: tuple[float, float, float] = (0.0, 0.0, 0.0)
    r0: float = 0.0
    r1: float = 0.0
    radii: tuple[float, float, float] | None = None
    pitch: float = 0.0
    """Degrees by which an ellipsoid is turned about x."""
    blend: float = 0.08
    """How far it melts into what comes before."""
    paint: str = "skin"

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Signed distance [N] of points [N, 3]; negative inside."""
        start = np.array(self.start)
        if self.radii is None:
            axis = np.array(self.end) - start
            along = np.clip((points - start) @ axis / (axis @ axis), 0, 1)
            return np.linalg.norm(points - start - along[:, None] * axis, axis=1) - (
                self.r0 + (self.r1 - self.r0) * along
            )
        turn = np.array(Matrix.Rotation(math.radians(self.pitch), 3, "X"))
        local = (points - start) @ turn
        radii = np.array(self.radii)
        near, far = np.linalg.norm(local / radii, axis=1), np.linalg.norm(local / radii**2, axis=1)
        return near * (near - 1) / np.maximum(far, 1e-9)

    def hull(self, directions: np.ndarray) -> np.ndarray:
        """The part's surface, as a sphere's `directions` [N, 3] mapped onto it."""
        start, end = np.array(self.start), np.array(self.end)
        if self.radii is None:
            ahead = (directions @ (end - start) > 0)[:, None]
            return np.where(ahead, end + directions * self.r1, start + directions * self.r0)
        turn = np.array(Matrix.Rotation(math.radians(self.pitch), 3, "X"))
        return start + (directions * np.array(self.radii)) @ turn.T


def _both(part: Part) -> list[Part]:
    """The part on the left (.L, +x) and its mirror image (.R)."""
    (x, y, z), (u, v, w) = part.start, part.end
    sides = (".L", ".R") if part.bone + ".L" in BONES else ("", "")
    left, right = (dataclasses.replace(part, bone=part.bone + side) for side in sides)
    return [left, dataclasses.replace(right, start=(-x, y, z), end=(-u, v, w))]


def _blended(parts: list[Part], points: np.ndarray) -> np.ndarray:
    """Distance to the union of all parts, with smooth seams."""
    total = parts[0].distance(points)
    for part in parts[1:]:
        distance = part.distance(points)
        melt = np.maximum(part.blend - np.abs(total - distance), 0) / part.blend
        total = np.minimum(total, distance) - melt**2 * part.blend / 4
    return total


def _pull_onto(parts: list[Part], points: np.ndarray, limit: float) -> np.ndarray:
    """One Newton step towards the surface, no longer than `limit` along each axis."""
    step = 1e-4
    here = _blended(parts, points)
    slope = np.stack([(_blended(parts, points + offset) - here) / step for offset in np.eye(3) * step], 1)
    move = here[:, None] * slope / np.maximum((slope**2).sum(1, keepdims=True), 0.1)
    return points - np.clip(move, -limit, limit)


def _surface_mesh(name: str, parts: list[Part], voxel: float) -> bpy.types.Mesh:
    """A closed mesh of the blended parts; edges are about `voxel` long."""
    sphere = bpy.data.meshes.new("sphere")
    _fill_sphere(sphere, 3)
    directions, faces = _vertices(sphere), np.array([p.vertices[:] for p in sphere.polygons])
    bpy.data.meshes.remove(sphere)
    rough = bpy.data.meshes.new("rough")
    points = np.concatenate([part.hull(directions) for part in parts])
    indices = np.concatenate([faces + k * len(directions) for k in range(len(parts))])
    rough.from_pydata(points.tolist(), [], indices.tolist())
    object = bpy.data.objects.new("rough", rough)
    scene = bpy.context.scene
    scene.collection.objects.link(object)
    remesh = object.modifiers.new("remesh", "REMESH")
    remesh.mode, remesh.voxel_size = "VOXEL", voxel
    graph = bpy.context.evaluated_depsgraph_get()
    mesh = bpy.data.meshes.new_from_object(object.evaluated_get(graph), depsgraph=graph)
    mesh.name = name
    bpy.data.objects.remove(object)
    bpy.data.meshes.remove(rough)
    points = _vertices(mesh).astype(np.float64)
    edges = np.array([e.vertices[:] for e in mesh.edges])
    for _ in range(4):
        for _ in range(2):
            points = 0.5 * points + 0.5 * _neighbour_mean(points, edges)
        points = _pull_onto(parts, points, voxel)
    mesh.vertices.foreach_set("co", points.astype(np.float32).ravel())
    mesh.update()
    mesh.shade_smooth()
    return mesh


def _fill_sphere(mesh: bpy.types.Mesh, subdivisions: int) -> None:
    import bmesh

    build = bmesh.new()
    bmesh.ops.create_icosphere(build, subdivisions=subdivisions, radius=1.0)
    build.to_mesh(mesh)
    build.free()


def _vertices(mesh: bpy.types.Mesh) -> np.ndarray:
    flat = np.empty(len(mesh.vertices) * 3, np.float32)
    mesh.vertices.foreach_get("co", flat)
    return flat.reshape(-1, 3)


def _neighbour_mean(points: np.ndarray, edges: np.ndarray) -> np.ndarray:
    total, count = np.zeros_like(points), np.zeros(len(points))
    for here, there in ((0, 1), (1, 0)):
        np.add.at(total, edges[:, here], points[edges[:, there]])
        np.add.at(count, edges[:, here], 1)
    return total / np.maximum(count, 1)[:, None]


# ---- the dinosaur ----------------------------------------------------------------------------------------------------

EYE, EYE_RADIUS = np.array([0.245, -1.10, 1.50]), 0.135

BONES = {
    # name: (head, tail, parent)
    "root": ((0, 0.25, 0.0), (0, 0.25, 0.3), None),
    "hips": ((0, 0.30, 0.66), (0, 0.60, 0.62), "root"),
    "chest": ((0, 0.30, 0.66), (0, -0.40, 0.74), "root"),
    "neck": ((0, -0.42, 0.82), (0, -0.72, 1.15), "chest"),
    "head": ((0, -0.72, 1.15), (0, -1.30, 1.35), "neck"),
    "tail.1": ((0, 0.70, 0.60), (0, 1.10, 0.47), "hips"),
    "tail.2": ((0, 1.10, 0.47), (0, 1.50, 0.44), "tail.1"),
    "tail.3": ((0, 1.50, 0.44), (0, 1.92, 0.60), "tail.2"),
    "arm.L": ((0.27, -0.36, 0.58), (0.34, -0.36, 0.30), "chest"),
    "hand.L": ((0.34, -0.36, 0.30), (0.35, -0.46, 0.05), "arm.L"),
    "leg.L": ((0.30, 0.48, 0.56), (0.38, 0.46, 0.30), "hips"),
    "foot.L": ((0.38, 0.46, 0.30), (0.39, 0.38, 0.05), "leg.L"),
}


def _dinosaur_parts() -> list[Part]:
    parts = [
        Part("hips", (0, 0.36, 0.64), radii=(0.37, 0.48, 0.38)),
        Part("chest", (0, -0.20, 0.68), radii=(0.33, 0.44, 0.36), blend=0.25),
        Part("neck", (0, -0.42, 0.82), (0, -0.70, 1.18), 0.25, 0.23, blend=0.2),
        Part("head", (0, -0.86, 1.40), radii=(0.37, 0.40, 0.34), blend=0.12),
        Part("head", (0, -1.20, 1.27), radii=(0.27, 0.27, 0.20), blend=0.16),
        Part("tail.1", (0, 0.62, 0.62), (0, 1.12, 0.47), 0.31, 0.21, blend=0.2),
        Part("tail.2", (0, 1.12, 0.47), (0, 1.52, 0.44), 0.21, 0.13, blend=0.1),
        Part("tail.3", (0, 1.52, 0.44), (0, 1.92, 0.60), 0.13, 0.05, blend=0.1),
    ]
    for part in (
        Part("arm", (0.25, -0.36, 0.60), (0.34, -0.36, 0.30), 0.17, 0.125, blend=0.1),
        Part("hand", (0.34, -0.36, 0.30), (0.35, -0.38, 0.13), 0.125, 0.115, blend=0.06),
        Part("hand", (0.35, -0.45, 0.09), radii=(0.145, 0.19, 0.09), blend=0.08),
        Part("leg", (0.27, 0.48, 0.56), (0.38, 0.46, 0.30), 0.25, 0.15, blend=0.1),
        Part("foot", (0.38, 0.46, 0.30), (0.39, 0.46, 0.13), 0.15, 0.125, blend=0.06),
        Part("foot", (0.39, 0.37, 0.09), radii=(0.16, 0.21, 0.09), blend=0.08),
        Part("head", (0.19, -0.80, 1.66), (0.27, -0.68, 1.92), 0.085, 0.03, blend=0.05, paint="horn"),
    ):
        parts += _both(part)
    spine = [
        # bone, y, z, size, pitch
        ("head", -0.72, 1.70, 0.12, 20), ("neck", -0.42, 1.23, 0.13, 40), ("chest", -0.16, 1.05, 0.16, 15),
        ("chest", 0.14, 1.05, 0.19, 0), ("hips", 0.46, 1.02, 0.18, -8), ("hips", 0.76, 0.91, 0.15, -20),
        ("tail.1", 1.01, 0.75, 0.13, -20), ("tail.2", 1.26, 0.64, 0.11, -10), ("tail.2", 1.47, 0.59, 0.09, 0),
    ]  # fmt: skip
    for bone, y, z, size, pitch in spine:
        parts.append(Part(bone, (0, y, z), radii=(0.052, size * 0.8, size), pitch=pitch, blend=0.03, paint="plate"))
    return parts


def build_creature(scene: bpy.types.Scene) -> bpy.types.Object:
    """Add the dinosaur to `scene` (which must be the context's): mesh, armature, texture, an action of 17 frames at 24 a
    second with poses at `KEYFRAMES`, a camera and a sun. Returns the mesh object.

    About 2.4 units long, facing -Y, standing on the ground at the origin.
    """
    scene.frame_start, scene.frame_end = KEYFRAMES[0], KEYFRAMES[-1]
    scene.render.fps, scene.render.fps_base = 24, 1.0
    parts = _dinosaur_parts()
    mesh = _with_eyes(_surface_mesh("Dino", parts, 0.042))
    object = bpy.data.objects.new("Dino", mesh)
    scene.collection.objects.link(object)
    _unwrap(object)
    paints = _paint_distances(parts, _vertices(mesh).astype(np.float64))
    mesh.materials.append(_painted_material("Dino", mesh, paints, _dinosaur_colours))
    armature = _build_rig(scene)
    _bind(object, armature, parts)
    _animate(armature)
    _add_camera_and_light(scene, (5.2, -5.6, 3.0), (0, 0.15, 0.85))
    scene.frame_set(KEYFRAMES[0])
    return object


def _with_eyes(mesh: bpy.types.Mesh) -> bpy.types.Mesh:
    """Two balls, set into the head; a part of the same mesh."""
    ball = bpy.data.meshes.new("ball")
    _fill_sphere(ball, 4)
    points, faces = _vertices(ball), [tuple(p.vertices) for p in ball.polygons]
    bpy.data.meshes.remove(ball)
    all_points, all_faces = _vertices(mesh).tolist(), [tuple(p.vertices) for p in mesh.polygons]
    for side in (1, -1):
        base = len(all_points)
        all_points += (points * EYE_RADIUS + EYE * [side, 1, 1]).tolist()
        all_faces += [tuple(i + base for i in face) for face in faces]
    whole = bpy.data.meshes.new(mesh.name)
    bpy.data.meshes.remove(mesh)
    whole.from_pydata(all_points, [], all_faces)
    whole.name = "Dino"
    whole.update()
    whole.shade_smooth()
    return whole


def _build_rig(scene: bpy.types.Scene) -> bpy.types.Object:
    armature = bpy.data.objects.new("Dino rig", bpy.data.armatures.new("Dino rig"))
    scene.collection.objects.link(armature)
    bpy.context.view_layer.objects.active = armature
    bpy.ops.object.mode_set(mode="EDIT")
    wanted = dict(BONES)
    for name, (head, tail, parent) in BONES.items():
        if name.endswith(".L"):
            other = parent[:-2] + ".R" if parent.endswith(".L") else parent
            wanted[name[:-2] + ".R"] = ((-head[0], *head[1:]), (-tail[0], *tail[1:]), other)
    for name, (head, tail, parent) in wanted.items():
        bone = armature.data.edit_bones.new(name)
        bone.head, bone.tail = head, tail
        bone.parent = armature.data.edit_bones[parent] if parent else None
    bpy.ops.object.mode_set(mode="OBJECT")
    armature.data.bones["root"].use_deform = False
    return armature


def _bind(object: bpy.types.Object, armature: bpy.types.Object, parts: list[Part]) -> None:
    """Weights: a soft choice among the parts by distance; the eyes go with the head."""
    points = _vertices(object.data).astype(np.float64)
    bones = sorted({part.bone for part in parts})
    nearest = np.full((len(points), len(bones)), np.inf)
    for part in parts:
        column = bones.index(part.bone)
        nearest[:, column] = np.minimum(nearest[:, column], part.distance(points))
    weights = np.exp(-np.maximum(nearest - nearest.min(1, keepdims=True), 0) / 0.06)
    weights[_is_eye(points)] = [float(bone == "head") for bone in bones]
    weights[weights < 0.02] = 0
    weights /= weights.sum(1, keepdims=True)
    steps = np.rint(weights * 50).astype(int)  # equal weights are added in one call
    for column, bone in enumerate(bones):
        group = object.vertex_groups.new(name=bone)
        for step in sorted(set(steps[:, column].tolist()) - {0}):
            group.add(np.nonzero(steps[:, column] == step)[0].tolist(), step / 50, "REPLACE")
    object.parent = armature
    object.modifiers.new("Armature", "ARMATURE").object = armature


def _is_eye(points: np.ndarray) -> np.ndarray:
    mirrored = np.abs(points * [1, 0, 0]) + points * [0, 1, 1]
    return np.abs(np.linalg.norm(mirrored - EYE, axis=1) - EYE_RADIUS) < 2e-4


X, Y, Z = (1, 0, 0), (0, 1, 0), (0, 0, 1)
POSES = {
    # frame: (where the root goes, {bone: [(axis, degrees), …]}); axes of the armature, turned in this order.
    1: (
        (0, 0.08, 0),
        {
            "neck": [(X, -6)], "head": [(X, -4), (Z, -24)],
            "tail.1": [(Z, 16)], "tail.2": [(Z, 20)], "tail.3": [(Z, 20), (X, -6)],
            "arm.L": [(X, 26)], "hand.L": [(X, -8)], "arm.R": [(X, -26)], "hand.R": [(X, 6)],
            "leg.L": [(X, -22)], "foot.L": [(X, 4)], "leg.R": [(X, 24)], "foot.R": [(X, -6)],
        },
    ),
    9: (
        (0, 0, 0.42),
        {
            "root": [(X, -16)], "chest": [(X, -10)], "neck": [(X, -6)], "head": [(X, 8)],
            "tail.1": [(X, 12)], "tail.2": [(X, 14)], "tail.3": [(X, 16)],
            "arm.L": [(X, -54), (Y, -22)], "hand.L": [(X, -10)], "arm.R": [(X, -54), (Y, 22)], "hand.R": [(X, -10)],
            "leg.L": [(X, 44), (Y, -10)], "foot.L": [(X, 14)], "leg.R": [(X, 44), (Y, 10)], "foot.R": [(X, 14)],
        },
    ),
    17: (
        (0, -0.08, 0),
        {
            "neck": [(X, 8)], "head": [(X, 10), (Z, 28), (Y, 10)],
            "tail.1": [(Z, -16)], "tail.2": [(Z, -22)], "tail.3": [(Z, -22), (X, 10)],
            "arm.L": [(X, -62), (Z, 16)], "hand.L": [(X, -34)], "arm.R": [(X, 20)], "hand.R": [(X, -4)],
            "leg.L": [(X, 20)], "foot.L": [(X, -4)], "leg.R": [(X, -18)], "foot.R": [(X, 4)],
        },
    ),
}  # fmt: skip


def _animate(armature: bpy.types.Object) -> None:
    for bone in armature.pose.bones:
        bone.rotation_mode = "QUATERNION"
    for frame, (place, turns) in POSES.items():
        for bone in armature.pose.bones:
            rest = bone.bone.matrix_local.to_3x3()
            turn = Quaternion()
            for axis, degrees in turns.get(bone.name, ()):
                turn = Quaternion(axis, math.radians(degrees)) @ turn
            bone.rotation_quaternion = (rest.inverted() @ turn.to_matrix() @ rest).to_quaternion()
            bone.keyframe_insert("rotation_quaternion", frame=frame)
            if bone.name == "root":
                bone.location = rest.inverted() @ Vector(place)
                bone.keyframe_insert("location", frame=frame)
    armature.animation_data.action.name = "Hop"


# ---- paint -----------------------------------------------------------------------------------------------------------


def _mix(under: np.ndarray, over: tuple, amount: np.ndarray) -> np.ndarray:
    return under + (np.array(over, np.float32) - under) * np.clip(amount, 0, 1).astype(np.float32)[:, None]


def _step(value: np.ndarray, edge: float, width: float) -> np.ndarray:
    """0 below `edge`, 1 above it, smooth over `width`."""
    t = np.clip((value - edge) / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


PAINTS = ("skin", "plate", "horn")


def _paint_distances(parts: list[Part], points: np.ndarray) -> np.ndarray:
    """[N, 3]: how far each point is from the nearest part of each of `PAINTS`."""
    return np.stack([np.min([p.distance(points) for p in parts if p.paint == paint], 0) for paint in PAINTS], 1)


def _dinosaur_colours(points: np.ndarray, normals: np.ndarray, paints: np.ndarray) -> np.ndarray:
    """sRGB 0..255 [N, 3] of points on the surface, in the rest pose; `paints` as `_paint_distances` gives them."""
    x, y, z = points.T
    side = np.abs(x)
    distances = dict(zip(PAINTS, paints.T))
    skin = np.tile(np.array(TEAL, np.float32), (len(points), 1))
    skin = _mix(skin, DEEP, 0.75 * _step(normals[:, 2], 0.55, 0.9) * _step(z, 0.45, 0.3))
    # Stripes over the tail and the legs, spots on the flanks.
    skin = _mix(skin, DEEP, 0.8 * _step(np.sin(y * 19), 0.35, 0.5) * _step(y, 1.05, 0.1))
    random = np.random.default_rng(5)
    spots: list[tuple[np.ndarray, float]] = []
    while len(spots) < 16:
        centre, size = np.array([0.36, *random.uniform((-0.45, 0.60), (0.95, 1.0))]), random.uniform(0.03, 0.085)
        if all(np.linalg.norm(centre - other) > 1.3 * (size + far) for other, far in spots):
            spots.append((centre, size))
    for centre, size in spots:
        off = np.sqrt(((side - centre[0]) * 0.35) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2)
        spot = 1 - _step(off, size, 0.02)
        skin = _mix(skin, ORANGE if size > 0.06 else DEEP, 0.9 * spot * _step(normals[:, 2], -0.3, 0.3))
    belly = _step(-normals[:, 2], 0.25, 0.35) * (1 - _step(side, 0.30, 0.08)) * _step(z, 0.22, 0.08)
    belly *= 1 - _step(y, 1.75, 0.2)
    throat = (
        _step(-normals[:, 1], 0.35, 0.3) * (1 - _step(side, 0.2, 0.1)) * (1 - _step(z, 1.08, 0.12)) * _step(z, 0.3, 0.1)
    )
    skin = _mix(skin, CREAM, np.maximum(belly, throat * _step(-y, 0.3, 0.2)))
    jaw = (1 - _step(z, 1.205, 0.03)) * _step(-y, 0.92, 0.12) * _step(z, 0.95, 0.1)
    skin = _mix(skin, CREAM, jaw)
    # Toes.
    feet = (1 - _step(z, 0.09, 0.03)) * (_step(np.sin(x * 62), 0.1, 0.5))
    ahead = np.maximum(_step(-y, 0.54, 0.04) * (y < 0), _step(-y, -0.27, 0.04) * (y > 0))
    skin = _mix(skin, CREAM, feet * ahead)
    # Face: blush, smile, nostrils.
    cheek = np.linalg.norm(np.stack([side - 0.30, y + 1.10, z - 1.28], 1), axis=1)
    skin = _mix(skin, BLUSH, 0.85 * (1 - _step(cheek, 0.085, 0.05)))
    smile = np.abs(z - (1.205 + 0.55 * side**2 + 0.25 * side))
    skin = _mix(skin, DARK, (1 - _step(smile, 0.013, 0.012)) * (1 - _step(side, 0.24, 0.02)) * _step(-y, 1.12, 0.05))
    nostril = np.linalg.norm(np.stack([side - 0.085, (y + 1.43) * 0.6, z - 1.36], 1), axis=1)
    skin = _mix(skin, DARK, 1 - _step(nostril, 0.022, 0.012))
    lid = np.linalg.norm(np.abs(points * [1, 0, 0]) + points * [0, 1, 1] - EYE, axis=1)
    skin = _mix(skin, DEEP, 0.8 * (1 - _step(lid, EYE_RADIUS + 0.035, 0.03)))
    plates = _mix(
        np.tile(np.array(ORANGE, np.float32), (len(points), 1)), (252, 196, 84), _step(distances["skin"], 0.08, 0.16)
    )
    skin = np.where((distances["plate"] < distances["skin"])[:, None], plates, skin)
    horns = _mix(np.tile(np.array(CREAM, np.float32), (len(points), 1)), ORANGE, 0.6 * _step(z, 1.84, 0.1))
    skin = np.where((distances["horn"] < np.minimum(distances["skin"], distances["plate"]))[:, None], horns, skin)
    # Eyes look ahead and a little outwards.
    look = np.array([0.50, -0.84, 0.16]) / np.linalg.norm([0.50, -0.84, 0.16])
    glint = np.array([0.40, -0.70, 0.60]) / np.linalg.norm([0.40, -0.70, 0.60])
    ball = (np.abs(points * [1, 0, 0]) + points * [0, 1, 1] - EYE) / EYE_RADIUS
    eye = np.tile(np.array(WHITE, np.float32), (len(points), 1))
    eye = _mix(eye, ORANGE, _step(ball @ look, 0.72, 0.04))
    eye = _mix(eye, BLACK, _step(ball @ look, 0.80, 0.04))
    eye = _mix(eye, WHITE, _step(ball @ glint, 0.965, 0.02))
    return np.where(_is_eye_surface(points)[:, None], eye, skin)


def _is_eye_surface(points: np.ndarray) -> np.ndarray:
    """As `_is_eye`, for points on the flat faces of the ball."""
    mirrored = np.abs(points * [1, 0, 0]) + points * [0, 1, 1]
    return np.abs(np.linalg.norm(mirrored - EYE, axis=1) - EYE_RADIUS) < 2e-3


def _unwrap(object: bpy.types.Object) -> None:
    view_layer = bpy.context.view_layer
    view_layer.update()
    for other in view_layer.objects:
        other.select_set(other == object)
    view_layer.objects.active = object
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.mesh.select_all(action="SELECT")
    bpy.ops.uv.smart_project(angle_limit=math.radians(66), island_margin=0.004)
    bpy.ops.object.mode_set(mode="OBJECT")


def _painted_material(name: str, mesh: bpy.types.Mesh, values: np.ndarray, colours) -> bpy.types.Material:
    """A material whose image is `colours(points, normals, values)` at every texel of the mesh's UV map.

    Args:
        values: [V, K] numbers per vertex, interpolated like the positions and normals.
    """
    image = bpy.data.images.new(name, TEXTURE_SIZE, TEXTURE_SIZE)
    pixels = _paint_texture(mesh, values, colours, TEXTURE_SIZE)
    image.pixels.foreach_set(
        np.concatenate([pixels / 255, np.ones((*pixels.shape[:2], 1))], -1).astype(np.float32).ravel()
    )
    image.update()
    image.pack()
    material = compat.new_material(name)
    nodes, links = material.node_tree.nodes, material.node_tree.links
    output, surface = nodes.new("ShaderNodeOutputMaterial"), nodes.new("ShaderNodeBsdfPrincipled")
    picture = nodes.new("ShaderNodeTexImage")
    picture.image = image
    surface.inputs["Roughness"].default_value = 0.55
    surface.location, picture.location = (-300, 0), (-600, 0)
    links.new(picture.outputs["Color"], surface.inputs["Base Color"])
    links.new(surface.outputs["BSDF"], output.inputs["Surface"])
    return material


def _paint_texture(mesh: bpy.types.Mesh, values: np.ndarray, colours, size: int) -> np.ndarray:
    """[size, size, 3] sRGB 0..255, row 0 at v = 0 (as Blender's pixels are)."""
    mesh.calc_loop_triangles()
    count = len(mesh.loop_triangles)
    corners, vertices = np.empty(count * 3, np.int32), np.empty(count * 3, np.int32)
    mesh.loop_triangles.foreach_get("loops", corners)
    mesh.loop_triangles.foreach_get("vertices", vertices)
    uvs = np.empty(len(mesh.loops) * 2, np.float32)
    mesh.uv_layers.active.uv.foreach_get("vector", uvs)
    uvs = uvs.reshape(-1, 2)[corners].reshape(-1, 3, 2) * size - 0.5
    normals = np.empty(len(mesh.vertices) * 3, np.float32)
    mesh.vertices.foreach_get("normal", normals)
    surface = np.concatenate([_vertices(mesh), normals.reshape(-1, 3), values.astype(np.float32)], 1)
    surface = surface[vertices].reshape(count, 3, -1)
    owner, weights = _texel_owners(uvs, size)
    there = owner >= 0
    found = np.einsum("nk,nkc->nc", weights[there], surface[owner[there]])
    pixels = np.zeros((size, size, 3), np.float32)
    pixels[there] = colours(found[:, :3], found[:, 3:6], found[:, 6:])
    return _bleed(pixels, there, 6)


def _texel_owners(uvs: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """For each texel the triangle of `uvs` [T, 3, 2] (in texels) that covers it, -1 for none, [size, size]; and its
    barycentric coordinates [size, size, 3]."""
    owner = np.full((size, size), -1, np.int32)
    weights = np.zeros((size, size, 3), np.float32)
    a, b, c = uvs[:, 0], uvs[:, 1], uvs[:, 2]
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    low = np.floor(uvs.min(1)).astype(int)
    extent = (np.ceil(uvs.max(1)).astype(int) - low).max(1) + 1
    # Triangles whose boxes are about equally large are tried together, each on its own square of texels.
    for window in sorted({1 << int(e - 1).bit_length() for e in extent}):
        (chosen,) = np.nonzero((extent <= window) & (extent > window // 2) & (area != 0))
        for few in np.array_split(chosen, max(1, len(chosen) * window**2 // 2_000_000)):
            v, u = np.mgrid[0:window, 0:window]
            u, v = u.ravel() + low[few, :1], v.ravel() + low[few, 1:]
            x, y = u - a[few, :1], v - a[few, 1:]
            ab, ac = b[few] - a[few], c[few] - a[few]
            second = (x * ac[:, 1:] - y * ac[:, :1]) / area[few, None]
            third = (ab[:, :1] * y - ab[:, 1:] * x) / area[few, None]
            shares = np.stack([1 - second - third, second, third], -1)
            inside = (shares.min(-1) >= -1e-4) & (u >= 0) & (v >= 0) & (u < size) & (v < size)
            owner[v[inside], u[inside]] = np.broadcast_to(few[:, None], inside.shape)[inside]
            weights[v[inside], u[inside]] = shares[inside]
    return owner, weights


def _bleed(pixels: np.ndarray, there: np.ndarray, steps: int) -> np.ndarray:
    """Let the islands' rims run outwards, so that filtering never meets the background."""
    there = there.copy()
    for _ in range(steps):
        for axis, shift in ((0, 1), (0, -1), (1, 1), (1, -1)):
            fresh = np.roll(there, shift, axis) & ~there
            pixels[fresh] = np.roll(pixels, shift, axis)[fresh]
            there |= fresh
    return pixels


# ---- three sculpts that do not correspond ----------------------------------------------------------------------------


def _blob_parts(pose: int) -> list[Part]:
    """A round fellow with arms: at rest, stretching, bowing."""
    lean, tall, wide = ((0.0, 0.0, 1.0), (0.0, 0.42, 0.82), (-0.45, -0.12, 1.1))[pose]
    top = (0, lean, 1.05 + tall)
    parts = [
        Part("", (0, 0, 0.42), radii=(0.55 * wide, 0.5 * wide, 0.42)),
        Part("", (0, 0, 0.5), top, 0.46 * wide, 0.36, blend=0.2),
        Part("", top, radii=(0.40, 0.38, 0.36), blend=0.15),
        Part("", (top[0], top[1], top[2] + 0.3), (top[0] + 0.05, top[1] + 0.04, top[2] + 0.62), 0.07, 0.03, blend=0.1),
        Part("", (top[0] + 0.06, top[1] + 0.04, top[2] + 0.68), radii=(0.11, 0.11, 0.11), blend=0.04, paint="ball"),
    ]
    arms = (
        ((0.86, -0.05, 0.62), (0.86, -0.05, 0.62)),
        ((0.78, 0.0, 1.75), (0.70, -0.25, 1.60)),
        ((0.76, -0.50, 0.78), (0.84, 0.28, 1.0)),
    )[pose]
    shoulder = 0.5 + 0.62 * (top[2] - 0.5)
    for side, hand in zip((1, -1), arms):
        start = (side * 0.36 * wide, lean * 0.5, shoulder)
        parts.append(Part("", start, (side * hand[0], *hand[1:]), 0.13, 0.11, blend=0.12))
        parts.append(Part("", (side * 0.24, -0.34, 0.08), radii=(0.19, 0.26, 0.11), blend=0.08, paint="ball"))
    return parts


def _blob_colours(pose: int, parts: list[Part], points: np.ndarray) -> np.ndarray:
    _, y, z = points.T
    top = np.array(parts[2].start)
    colour = np.tile(np.array((132, 110, 214), np.float32), (len(points), 1))
    colour = _mix(colour, (236, 204, 250), (1 - _step(np.hypot(points[:, 0], z - 0.46), 0.3, 0.06)) * (y < -0.1))
    colour = _mix(colour, (98, 72, 178), 0.8 * _step(np.sin(z * 17), 0.55, 0.3) * (y > -0.05))
    bright = np.min([p.distance(points) for p in parts if p.paint == "ball"], axis=0)
    body = np.min([p.distance(points) for p in parts if p.paint != "ball"], axis=0)
    colour = np.where((bright < body)[:, None], np.array((250, 176, 60.0)), colour)
    local = (points - top) * [1, 1, 1]
    ahead = local[:, 1] < -0.1
    for side in (1, -1):
        off = np.hypot(local[:, 0] - side * 0.15, local[:, 2] - 0.06)
        colour = _mix(colour, WHITE, (1 - _step(off, 0.105, 0.02)) * ahead)
        off = np.hypot(local[:, 0] - side * 0.14, local[:, 2] - 0.05)
        colour = _mix(colour, BLACK, (1 - _step(off, 0.06, 0.02)) * ahead)
        off = np.hypot(local[:, 0] - side * 0.25, local[:, 2] + 0.09)
        colour = _mix(colour, (250, 130, 150), 0.8 * (1 - _step(off, 0.05, 0.04)) * ahead)
    smile = np.abs(local[:, 2] + 0.14 - 1.6 * local[:, 0] ** 2)
    return _mix(colour, BLACK, (1 - _step(smile, 0.014, 0.015)) * (np.abs(local[:, 0]) < 0.12) * ahead)


def painted_by_vertex(name: str) -> bpy.types.Material:
    """The material of that name, which shows the colour attribute “Paint”."""
    if name in bpy.data.materials:
        return bpy.data.materials[name]
    material = compat.new_material(name)
    nodes, links = material.node_tree.nodes, material.node_tree.links
    output, surface = nodes.new("ShaderNodeOutputMaterial"), nodes.new("ShaderNodeBsdfPrincipled")
    paint = nodes.new("ShaderNodeVertexColor")
    paint.layer_name = "Paint"
    links.new(paint.outputs["Color"], surface.inputs["Base Color"])
    links.new(surface.outputs["BSDF"], output.inputs["Surface"])
    return material


def build_poses(scene: bpy.types.Scene) -> list[bpy.types.Object]:
    """Add three sculpts that stand side by side, 2.5 units apart: one figure in three poses, meshed anew each time, painted
    by vertex. Returns them in order; their origins lie between the feet."""
    scene.frame_start, scene.frame_end = KEYFRAMES[0], KEYFRAMES[-1]
    scene.render.fps, scene.render.fps_base = 24, 1.0
    material = painted_by_vertex("Blob")
    poses = []
    for pose, voxel in enumerate((0.034, 0.040, 0.037)):
        parts = _blob_parts(pose)
        mesh = _surface_mesh(f"Blob pose {pose + 1}", parts, voxel)
        colours = np.concatenate(
            [_blob_colours(pose, parts, _vertices(mesh).astype(np.float64)) / 255, np.ones((len(mesh.vertices), 1))], 1
        )
        mesh.color_attributes.new("Paint", "BYTE_COLOR", "POINT").data.foreach_set(
            "color_srgb", colours.astype(np.float32).ravel()
        )
        mesh.materials.append(material)
        object = bpy.data.objects.new(mesh.name, mesh)
        object.location.x = 2.5 * (pose - 1)
        scene.collection.objects.link(object)
        poses.append(object)
    _add_camera_and_light(scene, (0, -9.5, 2.6), (0, 0, 0.9))
    return poses


# ---- the rest of the scene -------------------------------------------------------------------------------------------


def _add_camera_and_light(scene: bpy.types.Scene, place: tuple, target: tuple) -> None:
    camera = bpy.data.objects.new("Camera", bpy.data.cameras.new("Camera"))
    camera.location = place
    camera.rotation_euler = (Vector(target) - Vector(place)).to_track_quat("-Z", "Y").to_euler()
    sun = bpy.data.objects.new("Sun", bpy.data.lights.new("Sun", "SUN"))
    sun.data.energy, sun.data.angle = 3.0, math.radians(8)
    sun.rotation_euler = (math.radians(42), math.radians(8), math.radians(28))
    for object in (camera, sun):
        scene.collection.objects.link(object)
    scene.camera = camera


def main(arguments: list[str]) -> int:
    """OUT.blend [--poses]: make an example scene in an empty file and save it."""
    names = [argument for argument in arguments if argument != "--poses"]
    if len(names) != 1 or not names[0].endswith(".blend"):
        print("usage: demo_scene.py -- OUT.blend [--poses]", file=sys.stderr)
        return 2
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    built = build_poses(scene) if "--poses" in arguments else [build_creature(scene)]
    for object in scene.objects:
        object.select_set(object in built)
    bpy.context.view_layer.objects.active = built[0]
    bpy.ops.wm.save_as_mainfile(filepath=str(Path(names[0]).resolve()), check_existing=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else sys.argv[1:]))
