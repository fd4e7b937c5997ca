# SPDX-License-Identifier: GPL-3.0-or-later
"""Meshes as arrays, and arrays as meshes."""

from __future__ import annotations

import bpy
import numpy as np

FIELDS = {
    "FLOAT": ("value", 1), "INT": ("value", 1), "INT8": ("value", 1), "BOOLEAN": ("value", 1), "FLOAT2": ("vector", 2),
    "FLOAT_VECTOR": ("vector", 3), "FLOAT_COLOR": ("color", 4), "BYTE_COLOR": ("color", 4),
}  # fmt: skip
"""Data type of an attribute -> where its values lie, and how many there are for each element."""


def coordinates(mesh: bpy.types.Mesh) -> np.ndarray:
    """Vertices [V, 3] float32, in the mesh's own space."""
    points = np.empty(len(mesh.vertices) * 3, np.float32)
    mesh.vertices.foreach_get("co", points)
    return points.reshape(-1, 3)


def triangles(mesh: bpy.types.Mesh) -> np.ndarray:
    """[F, 3] int32 of the mesh's own vertices."""
    mesh.calc_loop_triangles()
    faces = np.empty(len(mesh.loop_triangles) * 3, np.int32)
    mesh.loop_triangles.foreach_get("vertices", faces)
    return faces.reshape(-1, 3)


def values(attribute: bpy.types.Attribute) -> np.ndarray | None:
    """[N, 1…4] float32; None for a type that is no number or colour."""
    if attribute.data_type not in FIELDS:
        return None
    field, width = FIELDS[attribute.data_type]
    flat = np.empty(len(attribute.data) * width, np.float32)
    attribute.data.foreach_get(field, flat)
    return flat.reshape(-1, width)


# ---- strands and points --------------------------------------------------------------------------------------------

THIN = 0.01  # the radius that Cycles gives to strands and points which have none
_OCTAHEDRON = np.array([(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)], np.float32)
_OCTANTS = np.array(
    [(0, 2, 4), (2, 1, 4), (1, 3, 4), (3, 0, 4), (2, 0, 5), (1, 2, 5), (3, 1, 5), (0, 3, 5)], np.int32
)  # fmt: skip


def tubes(points: np.ndarray, starts: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Square tubes, closed at both ends, along strands.

    Args:
        points: [N, 3], strand after strand.
        starts: [C + 1] int, where each strand begins in `points`; the last is N.
        radii: [N].
    Returns:
        vertices [4 N, 3] float32; faces [F, 4] int32.
    """
    points = np.asarray(points, np.float32)
    strand = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    first, last = np.zeros(len(points), bool), np.zeros(len(points), bool)
    full = np.diff(starts) > 0
    first[starts[:-1][full]], last[starts[1:][full] - 1] = True, True
    following = np.where(last, np.arange(len(points)), np.arange(len(points)) + 1)
    before = np.where(first, np.arange(len(points)), np.arange(len(points)) - 1)
    along = points[following] - points[before]
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-20)
    # The axis that a whole strand is least along, so that no tube is twisted where the axis would change.
    reach = np.zeros((len(starts) - 1, 3), np.float32)
    np.maximum.at(reach, strand, np.abs(along))
    axis = np.eye(3, dtype=np.float32)[reach.argmin(1)][strand]
    side = np.cross(along, axis)
    side /= np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-20)
    other = np.cross(along, side)
    ring = np.stack([side, other, -side, -other], 1) * np.asarray(radii, np.float32)[:, None, None]
    vertices = (points[:, None] + ring).reshape(-1, 3)
    base = np.flatnonzero(~last)[:, None] * 4
    turn = np.array([[0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]])
    walls = (base[:, :, None] + turn[None]).reshape(-1, 4)
    ends = np.concatenate(
        [np.flatnonzero(first)[:, None] * 4 + [3, 2, 1, 0], np.flatnonzero(last)[:, None] * 4 + [0, 1, 2, 3]]
    )
    return vertices.astype(np.float32), np.concatenate([walls, ends]).astype(np.int32)


def spheres(points: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Octahedra whose edges are halved once and pushed out, one for each point: vertices [18 N, 3], faces [32 N, 3]."""
    edges = sorted({tuple(sorted((a, b))) for face in _OCTANTS for a, b in zip(face, np.roll(face, -1))})
    middle = {edge: 6 + number for number, edge in enumerate(edges)}
    halves = np.array([_OCTAHEDRON[a] + _OCTAHEDRON[b] for a, b in edges], np.float32)
    ball = np.concatenate([_OCTAHEDRON, halves / np.sqrt(2.0)])
    faces = []
    for a, b, c in _OCTANTS:
        ab, bc, ca = (middle[tuple(sorted(pair))] for pair in ((a, b), (b, c), (c, a)))
        faces += [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    points = np.asarray(points, np.float32)
    vertices = points[:, None] + ball[None] * np.asarray(radii, np.float32)[:, None, None]
    numbers = np.array(faces)[None] + (np.arange(len(points)) * len(ball))[:, None, None]
    return vertices.reshape(-1, 3).astype(np.float32), numbers.reshape(-1, 3).astype(np.int32)


def to_mesh(name: str, vertices: np.ndarray, faces: np.ndarray) -> bpy.types.Mesh:
    """A new mesh of faces that all have the same number of corners."""
    mesh = bpy.data.meshes.new(name)
    mesh.vertices.add(len(vertices))
    mesh.vertices.foreach_set("co", np.ascontiguousarray(vertices, np.float32).ravel())
    mesh.loops.add(faces.size)
    mesh.loops.foreach_set("vertex_index", np.ascontiguousarray(faces, np.int32).ravel())
    mesh.polygons.add(len(faces))
    mesh.polygons.foreach_set("loop_start", np.arange(len(faces), dtype=np.int32) * faces.shape[1])
    mesh.update(calc_edges=True)
    return mesh


def of_strands(data: bpy.types.ID) -> bpy.types.Mesh | None:
    """A new mesh of tubes or spheres for evaluated hair curves or a point cloud; None where there is nothing."""
    places = data.attributes.get("position")
    if places is None or not len(places.data):
        return None
    points = values(places)
    radius = data.attributes.get("radius")
    radii = values(radius)[:, 0] if radius is not None else np.full(len(points), THIN, np.float32)
    if isinstance(data, bpy.types.PointCloud):
        return to_mesh("LIM proxy", *spheres(points, radii))
    starts = np.empty(len(data.curve_offset_data), np.int32)
    data.curve_offset_data.foreach_get("value", starts)
    return to_mesh("LIM proxy", *tubes(points, starts, radii))


def of_hair(object: bpy.types.Object, system: bpy.types.ParticleSystem) -> bpy.types.Mesh | None:
    """A new mesh, in the object's space, of tubes along the strands of an evaluated hair system that is rendered."""
    settings = system.settings
    if settings.type != "HAIR" or settings.render_type != "PATH":
        return None
    parents, children = len(system.particles), len(system.child_particles)
    strands = range(0 if settings.use_parent_particles or not children else parents, parents + children)
    steps = 2**settings.render_step + 1
    points = np.array(
        [system.co_hair(object, particle_no=strand, step=step) for strand in strands for step in range(steps)],
        np.float32,
    ).reshape(-1, steps, 3)
    points = points[np.abs(np.diff(points, axis=1)).max((1, 2)) > 0] if len(points) else points
    if not len(points):
        return None
    to_object = np.linalg.pinv(np.array(object.matrix_world, np.float64))
    points = points @ to_object[:3, :3].T + to_object[:3, 3]
    ends = np.array([settings.root_radius, 0.0 if settings.use_close_tip else settings.tip_radius])
    radii = np.interp(np.linspace(0, 1, steps), [0, 1], ends) * settings.radius_scale / 2
    starts = np.arange(len(points) + 1) * steps
    return to_mesh("LIM proxy", *tubes(points.reshape(-1, 3), starts, np.tile(radii, len(points))))
