# SPDX-License-Identifier: GPL-3.0-or-later
"""Well-shaped triangles for a simplified mesh: short edges collapsed, edges flipped, vertices spread evenly.

Quadric simplification leaves slivers wherever a surface is flat. A triangle a tenth as high as it is long turns over with
the noise of a tenth of an edge: on five assets with thin parts, seven of ten turned faces were such. Arrays are numpy,
model space; faces are counter-clockwise from outside.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from .surface import clean, edges_of, face_normals, simplify, vertex_normals

SHORT = 0.35  # of the mean edge: what is shorter is collapsed
LOW = 0.12  # of the mean edge: so is the shortest edge of a triangle that is less high
STRAY = 0.08  # of the mean edge, by which a flipped edge may leave the old one
SPARE = 1.3  # times the wanted faces to simplify to: a fifth to a quarter is collapsed after


def reduce(vertices: np.ndarray, faces: np.ndarray, target_faces: int) -> tuple[np.ndarray, np.ndarray]:
    """At most about `target_faces` well-shaped triangles for a fine mesh [V, 3], [F, 3]; float32 and int32.

    Raises:
        LimError empty_surface: nothing is left.
    """
    fine = (vertices, faces)
    vertices, faces = tidy(*simplify(*fine, round(SPARE * target_faces)), fine)
    if len(faces) > target_faces:
        vertices, faces = tidy(*simplify(vertices, faces, target_faces), fine, rounds=1)
    return vertices, faces


def tidy(
    vertices: np.ndarray, faces: np.ndarray, surface: tuple[np.ndarray, np.ndarray], rounds: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """Better triangles for the same surface; some per cent fewer than before.

    Args:
        vertices [V, 3], faces [F, 3]: a closed manifold mesh, as `surface.simplify` leaves it.
        surface: vertices [S, 3] and faces of the fine mesh that it was made from: where the vertices stay.
    Returns:
        vertices [N, 3] float32 and faces [M, 3] int32.
    """
    vertices, faces = np.asarray(vertices, np.float64), np.asarray(faces, np.int64)
    length = _lengths(vertices, faces).mean()
    fine = (np.asarray(surface[0], np.float64), vertex_normals(*surface).astype(np.float64))
    tree = cKDTree(fine[0])
    for _ in range(rounds):
        vertices, faces = collapse(vertices, faces, SHORT * length, LOW * length)
        faces = flip(vertices, faces, STRAY * length)
        vertices = _relaxed(vertices, faces, tree, fine, length)
    faces = flip(vertices, faces, STRAY * length)
    return clean(*collapse(vertices, faces, 0.5 * SHORT * length, 0.5 * LOW * length))


def quality(corners: np.ndarray) -> np.ndarray:
    """Shape [N] of triangles [N, 3, 3]: 1 is equilateral, 0 flat."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    squares = ((b - a) ** 2).sum(1) + ((c - b) ** 2).sum(1) + ((a - c) ** 2).sum(1)
    return 2 * np.sqrt(3) * area / np.maximum(squares, 1e-30)


def _lengths(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    edges = edges_of(faces)
    return np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1)


# ---- edge flips ------------------------------------------------------------------------------------------------------
def flip(vertices: np.ndarray, faces: np.ndarray, stray: float, *, rounds: int = 12) -> np.ndarray:
    """Faces [F, 3] with edges flipped where the worse of two neighbours gets a better shape.

    Args:
        stray: model units by which a new edge may pass the old one: more would change the surface.
    """
    faces = np.array(faces, np.int64)
    count = len(vertices)
    for _ in range(rounds):
        size = len(faces)
        start, end, across = (np.roll(faces, -i, axis=1).T.ravel() for i in range(3))  # of half-edges, by corner
        owner = np.tile(np.arange(size), 3)
        there, back = start * count + end, end * count + start
        order = np.argsort(there)
        place = np.minimum(np.searchsorted(there[order], back), len(order) - 1)
        twin = order[place]
        # Each edge once, and only where exactly one face lies on its other side.
        one = np.flatnonzero((there[twin] == back) & (start < end))
        two = twin[one]
        a, b, c, d = start[one], end[one], across[one], across[two]
        known = np.sort(np.minimum(start, end) * count + np.maximum(start, end))
        wanted = np.minimum(c, d) * count + np.maximum(c, d)
        at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        free = (known[at] != wanted) & (c != d)
        one, two, a, b, c, d, wanted = (x[free] for x in (one, two, a, b, c, d, wanted))
        before = [vertices[np.stack(x, 1)] for x in ((a, b, c), (b, a, d))]
        after = [vertices[np.stack(x, 1)] for x in ((c, d, b), (d, c, a))]
        gain = np.minimum(*map(quality, after)) - np.minimum(*map(quality, before))
        normal = sum(np.cross(x[:, 1] - x[:, 0], x[:, 2] - x[:, 0]) for x in before)
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
        facing = np.ones(len(gain))
        for x in after:
            new = np.cross(x[:, 1] - x[:, 0], x[:, 2] - x[:, 0])
            new /= np.maximum(np.linalg.norm(new, axis=1, keepdims=True), 1e-30)
            facing = np.minimum(facing, np.einsum("ni,ni->n", new, normal))
        cross = np.cross(vertices[b] - vertices[a], vertices[d] - vertices[c])
        width = np.linalg.norm(cross, axis=1)
        off = np.abs(np.einsum("ni,ni->n", cross, vertices[c] - vertices[a])) / np.maximum(width, 1e-30)
        good = np.flatnonzero((gain > 0.02) & (facing > 0.5) & (off < stray))
        if not len(good):
            break
        good = good[np.argsort(-gain[good])]
        good = np.sort(good[np.unique(wanted[good], return_index=True)[1]])
        good = good[np.argsort(-gain[good])]
        rank, best = np.arange(len(good)), np.full(size, len(good))
        left, right = owner[one[good]], owner[two[good]]
        np.minimum.at(best, left, rank)
        np.minimum.at(best, right, rank)
        chosen = (best[left] == rank) & (best[right] == rank)
        good, left, right = good[chosen], left[chosen], right[chosen]
        faces[left] = np.stack([c[good], d[good], b[good]], 1)
        faces[right] = np.stack([d[good], c[good], a[good]], 1)
    return faces


# ---- edge collapses --------------------------------------------------------------------------------------------------
def collapse(vertices: np.ndarray, faces: np.ndarray, short: float, low: float) -> tuple[np.ndarray, np.ndarray]:
    """Edges shorter than `short`, and the shortest edge of each triangle lower than `low` (model units), made points.

    An edge stays where its collapse would pinch the surface or turn a face around.
    """
    vertices, faces = np.array(vertices, np.float64), np.array(faces, np.int64)
    around: list[set[int]] = [set() for _ in vertices]
    for number, face in enumerate(faces.tolist()):
        for corner in face:
            around[corner].add(number)
    corner = vertices[faces]
    sides = np.linalg.norm(corner - np.roll(corner, -1, axis=1), axis=2)
    height = np.linalg.norm(face_normals(vertices, faces), axis=1) / np.maximum(sides.max(1), 1e-30)
    shortest = sides.argmin(1)
    rows = np.arange(len(faces))
    limit = np.where(height < low, 4 * short, short)
    wanted = sides.min(1) < limit
    order = rows[wanted][np.argsort(sides.min(1)[wanted])]
    alive = np.ones(len(faces), bool)
    for face in order:
        if not alive[face]:
            continue
        a, b = int(faces[face, shortest[face]]), int(faces[face, (shortest[face] + 1) % 3])
        shared = around[a] & around[b]
        if len(shared) != 2 or ((vertices[a] - vertices[b]) ** 2).sum() > limit[face] ** 2:  # it has grown meanwhile
            continue
        ring_a, ring_b = set(faces[list(around[a])].ravel().tolist()), set(faces[list(around[b])].ravel().tolist())
        if len(ring_a & ring_b) != 4:  # a, b and the two corners across: a third common neighbour would be pinched
            continue
        moved = [f for f in around[a] | around[b] if f not in shared]
        if len(moved) < 3:
            continue
        corners = faces[moved]
        before = face_normals(vertices, corners)
        area = np.linalg.norm(before, axis=1)
        firm = area > low * low
        best = None
        for place in (0.5 * (vertices[a] + vertices[b]), vertices[a], vertices[b]):
            new = vertices[corners]
            new[(corners == a) | (corners == b)] = place
            normal = np.cross(new[:, 1] - new[:, 0], new[:, 2] - new[:, 0])
            size = np.linalg.norm(normal, axis=1)
            cosine = np.einsum("ni,ni->n", normal, before) / np.maximum(size * area, 1e-30)
            worst = min(cosine[firm].min(initial=1.0), 4 * quality(new).min())
            if best is None or worst > best[0]:
                best = (worst, place)
        if best[0] < 0.3:
            continue
        vertices[a] = best[1]
        for f in shared:
            alive[f] = False
            for corner in faces[f].tolist():
                around[corner].discard(f)
        for f in around[b]:
            faces[f] = np.where(faces[f] == b, a, faces[f])
        around[a] |= around[b]
        around[b] = set()
    faces = faces[alive]
    used, faces = np.unique(faces, return_inverse=True)
    return vertices[used], faces.reshape(-1, 3)


# ---- even spread -----------------------------------------------------------------------------------------------------
def _relaxed(vertices, faces, tree: cKDTree, fine, length: float) -> np.ndarray:
    """Vertices [V, 3] moved along the surface towards the middle of their neighbours; those on creases stay."""
    count = len(vertices)
    edges = edges_of(faces)
    rows, columns = np.r_[edges[:, 0], edges[:, 1]], np.r_[edges[:, 1], edges[:, 0]]
    mean = sparse.csr_matrix((1.0 / np.bincount(rows, minlength=count)[rows], (rows, columns)), (count, count))
    normal = vertex_normals(vertices, faces).astype(np.float64)
    own = face_normals(vertices, faces)
    own /= np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-30)
    flat = np.ones(count)
    np.minimum.at(flat, faces.ravel(), np.einsum("fki,fi->fk", normal[faces], own).ravel())
    free = np.clip((flat - 0.75) / 0.2, 0, 1)
    step = mean @ vertices - vertices
    step -= np.einsum("vi,vi->v", step, normal)[:, None] * normal
    moved = vertices + 0.5 * free[:, None] * step
    distance, near = tree.query(moved, k=8, distance_upper_bound=length)
    found = np.isfinite(distance)
    near = np.where(found, near, 0)
    facing = np.einsum("vki,vi->vk", fine[1][near], normal)
    weight = np.where(found, np.exp(-((distance / (0.4 * length)) ** 2)), 0.0) * np.clip(facing - 0.5, 0, None)
    offset = np.einsum("vki,vki->vk", fine[0][near] - moved[:, None], fine[1][near]) / np.maximum(facing, 0.5)
    along = (weight * offset).sum(1) / np.maximum(weight.sum(1), 1e-12)
    return moved + (free * np.clip(along, -0.3 * length, 0.3 * length))[:, None] * normal
