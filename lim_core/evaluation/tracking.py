# SPDX-License-Identifier: GPL-3.0-or-later
"""What a traced mesh is measured by where the truth's correspondences are known.

Arrays are numpy, model space. Shapes: V vertices and F faces of the traced mesh, T times, W vertices of the true mesh, N
samples.
"""

from __future__ import annotations

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from scipy.spatial import cKDTree

from ..mesh.arap import Arap
from ..mesh.remesh import closest
from ..mesh.surface import face_normals, vertex_normals
from ..shared.errors import LimError
from . import metrics

SURFACE_SAMPLES = 100_000  # of the truth, among which the material point of a vertex is looked for
CHAMFER_SAMPLES = 10_000
FACING = 0.03  # model units that a surface at a right angle to the vertex's counts as further off
BINS = (0, 2, 5, 10, 20, 40, np.inf)
"""Edges of the classes of motion, in % of the box diagonal that a material point has gone since step 0."""


Places = tuple[np.ndarray, np.ndarray]
"""Material points of a mesh, as `metrics.surface_places` gives them: faces [N] and barycentric weights [N, 3]."""


def material_points(template: np.ndarray, faces: np.ndarray, truth: np.ndarray, truth_faces: np.ndarray) -> Places:
    """The point of the true surface that each template vertex [V, 3] stands for: the nearest at step 0, among those that
    face the same way or the opposite one (a sheet has two sides, its mesh may have one)."""
    template, truth = np.asarray(template, np.float64), np.asarray(truth, np.float64)
    faces_of, weights = metrics.surface_places(truth, truth_faces, SURFACE_SAMPLES)
    normals = face_normals(truth, truth_faces)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
    samples = metrics.at_places(truth, truth_faces, faces_of, weights)
    distance, near = cKDTree(samples).query(template, k=12)
    facing = np.abs(np.einsum("vkd,vd->vk", normals[faces_of[near]], vertex_normals(template, faces)))
    best = np.hypot(distance, FACING * (1 - facing)).argmin(1)
    face = faces_of[near[np.arange(len(template)), best]]
    return face, closest(template, truth[truth_faces[face]])


def chamfers(positions: np.ndarray, faces: np.ndarray, truth: np.ndarray, truth_faces: np.ndarray) -> dict[str, float]:
    """CD-3D, CD-4D and CD-M of a traced mesh [T, V, 3] against the true one [T, W, 3], in model units.

    Each is the mean nearest-neighbour distance between samples of both surfaces, both ways, summed, and averaged over the
    times; the cameras are known, so nothing is aligned. CD-3D spreads its samples over the surfaces anew at every time: the
    shape alone. CD-4D spreads them at step 0 and carries them along: where the mesh tears or bunches up it is larger. CD-M
    keeps the matching of step 0 as well: the motion.
    """
    ours = metrics.surface_places(positions[0], faces, CHAMFER_SAMPLES)
    theirs = metrics.surface_places(truth[0], truth_faces, CHAMFER_SAMPLES, 1)
    forth = back = None
    rows = []
    for t, (mine, true) in enumerate(zip(positions, truth)):
        a, b = metrics.at_places(mine, faces, *ours), metrics.at_places(true, truth_faces, *theirs)
        if forth is None:
            forth, back = cKDTree(b).query(a)[1], cKDTree(a).query(b)[1]
        fresh = metrics.sample_surface(true, truth_faces, CHAMFER_SAMPLES, 2 * t + 1)
        try:
            own = metrics.sample_surface(mine, faces, CHAMFER_SAMPLES, 2 * t)
        except LimError:  # a mesh that has shrunk to a point has no area; it is measured where it is
            own = a
        moved = np.linalg.norm(a - b[forth], axis=1).mean() + np.linalg.norm(b - a[back], axis=1).mean()
        rows.append((metrics.chamfer(own, fresh), metrics.chamfer(a, b), moved))
    return dict(zip(("cd3d", "cd4d", "cdm"), np.mean(rows, 0).tolist()))


def flipped(template: np.ndarray, positions: np.ndarray, faces: np.ndarray) -> float:
    """Share of the faces, over the times of positions [T, V, 3], that are turned inside out or have collapsed.

    A face is flipped where its normal points against the template's [V, 3], turned as its surroundings have turned (the
    ARAP rotations of its corners); collapsed where it has less than 1 % of its area.
    """
    rest = np.asarray(template, np.float64)
    arap, before = Arap(rest, faces), face_normals(rest, faces)
    area = np.linalg.norm(before, axis=1)
    sound = area > 1e-12
    bad = []
    for now in positions:
        turn = arap.rotations(now)[faces].mean(1)
        after = face_normals(np.asarray(now, np.float64), faces)
        against = np.einsum("fij,fj,fi->f", turn, before, after) < 0
        bad.append((against | (np.linalg.norm(after, axis=1) < 0.01 * area))[sound].mean())
    return float(np.mean(bad))


def self_intersections(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Share of the faces that an edge of the same mesh passes through, ends of the edge aside."""
    vertices, faces = np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.int32)
    scene = EmbreeScene()
    TriangleMesh(scene, vertices, faces)
    edges = np.unique(np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1), axis=0)
    start, along = vertices[edges[:, 0]], vertices[edges[:, 1]] - vertices[edges[:, 0]]
    margin = np.float32(1e-3)
    hit = scene.run(start + margin * along, along, np.full(len(edges), 1 - 2 * margin), query="INTERSECT", output=True)
    met = np.flatnonzero(hit["primID"] >= 0)
    own = (faces[hit["primID"][met]][:, :, None] == edges[met][:, None, :]).any((1, 2))
    return len(np.unique(hit["primID"][met[~own]])) / len(faces)


def jitter(positions: np.ndarray, true: np.ndarray) -> float:
    """Mean size of the acceleration of the vertices [T, V, 3], over that of their true positions [T, V, 3]."""
    ours, theirs = (np.linalg.norm(np.diff(p, 2, axis=0), axis=-1).mean() for p in (positions, true))
    return float(ours / max(theirs, 1e-9))


def by_motion(error: np.ndarray, motion: np.ndarray) -> list[tuple[int, float]]:
    """How many values, and their mean error, in every class of BINS; error and motion [T, V] in % of the diagonal."""
    place = np.digitize(motion.ravel(), BINS[1:-1])
    count = np.bincount(place, minlength=len(BINS) - 1)
    total = np.bincount(place, error.ravel(), len(BINS) - 1)
    return [(int(n), float(s / n) if n else 0.0) for n, s in zip(count, total)]


def join_classes(classes: list[list[tuple[int, float]]]) -> list[dict]:
    """`by_motion` of several assets as one: vertices × times, and their mean error, per class."""
    rows = []
    for of_class in zip(*classes):
        count = sum(n for n, _ in of_class)
        total = sum(n * mean for n, mean in of_class)
        rows.append({"points": count, "track_error": round(total / count, 4) if count else None})
    return rows
