# SPDX-License-Identifier: GPL-3.0-or-later
"""The fine mesh of a capture made a template: few, well-shaped triangles that lie on what was captured.

Quadric simplification leaves slivers wherever a surface is flat. A triangle a tenth as high as it is long turns over with
the noise of a tenth of an edge: on five assets with thin parts, seven of ten turned faces were such. And its vertices lie on the surface, so
that its edges cut every round corner: the outline was up to a pixel too small. MeshLab's isotropic remeshing, as a library of 280 MB, left
0.3, 0.6 and 1.9 % of triangles of a quality below 0.2 on three assets, with 5 to 30 % more faces than were asked for; this leaves 0.4,
0.05 and 0.4 %. Arrays are numpy, model space; faces are counter-clockwise from outside.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from ..shared import cameras
from .arap import factorise
from .surface import clean, edges_of, face_normals, grid_normals, simplify, vertex_normals

SHORT = 0.35  # of the mean edge: what is shorter is collapsed
LOW = 0.12  # of the mean edge: so is the shortest edge of a triangle that is less high
STRAY = 0.08  # of the mean edge, by which a flipped edge may leave the old one
LAST = 1.6  # times LOW and STRAY for the last of them
POINTS = 60_000  # captured points that the template is laid onto; half of them at outlines, where there are so many
BEYOND = (
    0.12  # pixels that the outline is looked for beyond the outermost pixels: 0 loses it, from 0.25 on it spills over
)
APART = 0.001  # model units that the sides of a sheet without thickness are each moved outwards
DEEPEST = 0.25 * APART  # below the captured points of its own side, a vertex of a sheet
NEIGHBOURS = 8  # points that say where a vertex's own side is
BEND = 0.003  # what an even displacement counts against the points
SPARE = 1.3  # times the wanted faces to simplify to: a tenth to a third is collapsed after


def reduce(vertices: np.ndarray, faces: np.ndarray, target_faces: int) -> tuple[np.ndarray, np.ndarray]:
    """At most about `target_faces` well-shaped triangles for a fine mesh [V, 3], [F, 3]; float32 and int32.

    Raises:
        LimError empty_surface: nothing is left.
    """
    fine = (vertices, faces)
    vertices, faces = tidy(*simplify(*fine, round(SPARE * target_faces)), fine)
    if len(faces) > target_faces:
        vertices, faces = tidy(*simplify(vertices, faces, target_faces), fine)
    return vertices, faces


def tidy(
    vertices: np.ndarray, faces: np.ndarray, surface: tuple[np.ndarray, np.ndarray], rounds: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Better triangles for the same surface; some per cent fewer than before.

    Args:
        vertices [V, 3], faces [F, 3]: a closed manifold mesh, as `surface.simplify` leaves it.
        surface: vertices [S, 3] and faces of the fine mesh that it was made from: where the vertices stay.
        rounds: of all three. Each takes detail where quadrics had put more triangles: four of them cost the textured outline
            0.8 dB against one (four assets, 4000 triangles).
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
    return without_slivers(vertices, faces)


def without_slivers(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The last slivers of a mesh of even triangles, [V, 3] float32 and [F, 3] int32: what creases protected so far."""
    length = _lengths(vertices, faces).mean()
    faces = flip(vertices, faces, LAST * STRAY * length)
    vertices, faces = collapse(vertices, faces, SHORT * length, LAST * LOW * length)
    return clean(vertices, flip(vertices, faces, LAST * STRAY * length))


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
        ends = vertices[[a, b]]
        places = np.concatenate([ends.mean(0, keepdims=True), ends])
        new = np.tile(vertices[corners], (3, 1, 1, 1))
        new[:, (corners == a) | (corners == b)] = places[:, None]
        normal = np.cross(new[:, :, 1] - new[:, :, 0], new[:, :, 2] - new[:, :, 0])
        size = np.sqrt(np.einsum("pni,pni->pn", normal, normal))
        cosine = np.einsum("pni,ni->pn", normal, before) / np.maximum(size * area, 1e-30)
        shape = quality(new.reshape(-1, 3, 3)).reshape(3, -1)
        worst = np.minimum(np.where(firm, cosine, 1.0).min(1), 4 * shape.min(1))
        if worst.max() < 0.3:
            continue
        vertices[a] = places[worst.argmax()]
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


# ---- laid onto the capture -------------------------------------------------------------------------------------------
def captured(
    depth_planar: np.ndarray, camera_to_world: np.ndarray, intrinsics: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a template has to lie on at its keyframe: an even choice of the captured points, outlines above all.

    Args:
        depth_planar: [V, H, W] camera z, 0 where nothing is; camera_to_world: [V, 4, 4]; intrinsics: [V, 3, 3].
    Returns:
        points [P, 3], unit normals towards the camera [P, 3] (zero where unknown), outline [P] bool. Points of an outline
        are moved BEYOND their pixel's centre, outwards. Sides of a sheet are kept APART.
    """
    points, normals, outline = [], [], []
    for depth, pose, intrinsic in zip(np.asarray(depth_planar, np.float32), camera_to_world, intrinsics, strict=True):
        if not (depth > 0).any():
            continue
        window, lens = cameras.window(depth > 0, intrinsic)
        depth = depth[window]
        grid = cameras.unproject(depth, pose, lens)
        mask = depth > 0
        height, width = depth.shape
        pixel = depth / intrinsic[0, 0]
        around = np.pad(np.where(mask, depth, np.inf), 1, constant_values=np.inf)
        out = np.zeros((height, width, 2), np.float32)
        for dy, dx in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)):
            beside = around[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width] > depth + 12 * pixel
            for axis, step in enumerate((dx, dy)):
                if step:
                    out[..., axis] += np.float32(step / np.hypot(dx, dy)) * beside
        length = np.linalg.norm(out, axis=2)
        edge = mask & (length > 0.5)
        out *= (BEYOND * edge * pixel / np.maximum(length, 1e-9))[..., None]
        normals.append(grid_normals(grid, depth, pose, lens)[mask])
        points.append((grid + out[..., :1] * pose[:3, 0] + out[..., 1:] * pose[:3, 1])[mask])
        outline.append(edge[mask])
    points, normals, outline = np.concatenate(points), np.concatenate(normals), np.concatenate(outline)
    random = np.random.default_rng(0)
    edges = random.permutation(np.flatnonzero(outline))[: POINTS // 2]
    inner = random.permutation(np.flatnonzero(~outline & (np.abs(normals).sum(1) > 0)))[: POINTS - len(edges)]
    chosen = np.r_[edges, inner]
    points, normals, outline = points[chosen].astype(np.float64), normals[chosen].astype(np.float64), outline[chosen]
    # The nearest point that faces the other way: as near as this across the surface, and the two are sides of a sheet.
    scale = 0.02
    tree = cKDTree(np.concatenate([points, scale * normals], 1))
    distance, near = tree.query(np.concatenate([points, -scale * normals], 1), distance_upper_bound=2 * scale)
    near = np.where(np.isfinite(distance), near, 0)
    gap = np.einsum("pi,pi->p", points - points[near], normals)
    other = np.isfinite(distance) & (np.einsum("pi,pi->p", normals[near], normals) < -0.3) & ~outline
    points += (other * np.clip(APART - 0.5 * np.abs(gap), 0, None))[:, None] * normals
    return points, normals, outline


def lay(
    vertices: np.ndarray, faces: np.ndarray, points: np.ndarray, normals: np.ndarray, outline: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The template, vertices [N, 3] float32 and faces [M, 3] int32: settled on the captured points, without slivers, and
    the sides of its sheets apart. That comes last: what is done to a sheet after it may join its sides again.

    Args:
        vertices [V, 3], faces [F, 3]: a mesh of even triangles, of `reduce`.
        points, normals, outline: of `captured`.
    """
    vertices, faces = without_slivers(settle(vertices, faces, points, normals, outline), faces)
    return _apart(vertices.astype(np.float64), faces, points, normals, outline).astype(np.float32), faces


def settle(
    vertices: np.ndarray,
    faces: np.ndarray,
    points: np.ndarray,
    normals: np.ndarray,
    outline: np.ndarray,
    steps: int = 3,
) -> np.ndarray:
    """Vertices [V, 3] float32 moved so that the captured points lie on the faces between them, in the least squares.

    Each point holds the place of the mesh that is nearest to it among those that face its way; displacements are smooth.

    Args:
        points, normals, outline: of `captured`; points further off than a mean edge are not asked.
    """
    position, faces = np.array(vertices, np.float64), np.asarray(faces, np.int64)
    count, edges = len(position), edges_of(faces)
    length = _lengths(position, faces).mean()
    rows, columns = np.r_[edges[:, 0], edges[:, 1]], np.r_[edges[:, 1], edges[:, 0]]
    joined = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), (count, count))
    uneven = sparse.diags(np.asarray(joined.sum(1)).ravel()) - joined
    stiff = BEND * (uneven.T @ uneven) + 0.005 * sparse.identity(count)
    spots = np.array([[2, 2, 2], [4, 1, 1], [1, 4, 1], [1, 1, 4]]) / 6.0
    numbers = np.repeat(np.arange(len(faces)), len(spots))
    for _ in range(steps):
        normal = face_normals(position, faces)
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
        spot = np.einsum("sk,fki->fsi", spots, position[faces]).reshape(-1, 3)
        tree = cKDTree(np.concatenate([spot, 0.5 * length * normal[numbers]], 1))
        near = numbers[tree.query(np.concatenate([points, 0.5 * length * normals], 1), k=5)[1]]
        best = np.full(len(points), np.inf)
        face, weights = np.zeros(len(points), np.int64), np.zeros((len(points), 3))
        for tried in near.T:
            found = closest(points, position[faces[tried]])
            off = np.linalg.norm(np.einsum("pk,pki->pi", found, position[faces[tried]]) - points, axis=1)
            off += np.where(outline, 0.0, 0.3 * length * (1 - np.einsum("pi,pi->p", normal[tried], normals)))
            better = off < best
            best[better], face[better], weights[better] = off[better], tried[better], found[better]
        offset = points - np.einsum("pk,pki->pi", weights, position[faces[face]])
        far = np.linalg.norm(offset, axis=1) / length
        trust = np.where(far < 1, 1 / (1 + (2 * far) ** 2) ** 2, 0.0) * count / len(points)
        trust *= outline | (np.einsum("pi,pi->p", normal[face], normals) > 0.3)
        where = (np.repeat(np.arange(len(points)), 3), faces[face].ravel())
        held = sparse.csr_matrix((weights.ravel(), where), (len(points), count))
        pull = held.T @ sparse.diags(trust)
        position += factorise((pull @ held + stiff).tocsc()).solve(pull @ offset)
    return position.astype(np.float32)


def _apart(
    position: np.ndarray, faces: np.ndarray, points: np.ndarray, normals: np.ndarray, outline: np.ndarray
) -> np.ndarray:
    """Vertices [V, 3] of sheets lifted back to their own side: none lies deeper than DEEPEST below the points of its side.

    The least squares leave the sides of a sheet where rounding happens to put them; which side a vertex belongs to is known.
    """
    inner = np.flatnonzero(~outline & (np.abs(normals).sum(1) > 0))
    if len(inner) < NEIGHBOURS:
        return position
    reach = 0.5 * _lengths(position, faces).mean()
    outwards = vertex_normals(position, faces)
    tree = cKDTree(np.concatenate([points[inner], reach * normals[inner]], 1))
    own = inner[tree.query(np.concatenate([position, reach * outwards], 1), k=NEIGHBOURS)[1]]
    other = inner[tree.query(np.concatenate([position, -reach * outwards], 1))[1]]
    across = position - points[other]
    gap = np.einsum("vi,vi->v", across, outwards)
    aside = np.linalg.norm(across - gap[:, None] * outwards, axis=1)
    sheet = (np.einsum("vi,vi->v", normals[other], outwards) < -0.3) & (np.abs(gap) < 4 * APART) & (aside < 2 * reach)
    mine = np.einsum("vki,vi->vk", normals[own], outwards) > 0.3
    height = np.einsum("vki,vki->vk", position[:, None] - points[own], normals[own])
    depth = -(height * mine).sum(1) / np.maximum(mine.sum(1), 1)
    lift = np.where(sheet & (mine.sum(1) >= 3), np.clip(depth - DEEPEST, 0, 2 * APART), 0.0)
    return position + lift[:, None] * outwards


def closest(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Barycentric coordinates [N, 3] of the point of each triangle [N, 3, 3] nearest to each point [N, 3]."""
    best, nearest = np.full(len(points), np.inf), np.zeros((len(points), 3))
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    normal = np.cross(b - a, c - a)
    double_area = np.maximum(np.einsum("nd,nd->n", normal, normal), 1e-30)
    inside = np.stack(
        [np.einsum("nd,nd->n", np.cross(q - p, points - p), normal) / double_area for p, q in ((b, c), (c, a), (a, b))],
        1,
    )
    choices = [(inside, (inside >= 0).all(1))]
    for i, j in ((0, 1), (1, 2), (2, 0)):
        edge = triangles[:, j] - triangles[:, i]
        along = np.einsum("nd,nd->n", points - triangles[:, i], edge)
        along = np.clip(along / np.maximum(np.einsum("nd,nd->n", edge, edge), 1e-30), 0, 1)
        on_edge = np.zeros((len(points), 3))
        on_edge[:, i], on_edge[:, j] = 1 - along, along
        choices.append((on_edge, np.ones(len(points), bool)))
    for barycentric, valid in choices:
        off = np.linalg.norm(np.einsum("nk,nkd->nd", barycentric, triangles) - points, axis=1)
        better = valid & (off < best)
        best[better], nearest[better] = off[better], barycentric[better]
    return nearest
