# SPDX-License-Identifier: GPL-3.0-or-later
"""The template: one clean mesh from the captured depth views, or from a density grid where there is no depth.

Fusion in three steps: every view carves the space it sees through (what no view sees through is inside), every captured
point keeps a shell around itself (so that sheets without thickness survive the carving), and the shell's outer surface is
moved back onto the captured points. Arrays are numpy, model space [-1, 1]³; faces are counter-clockwise from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage, sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csgraph
from scipy.spatial import ConvexHull, cKDTree

from ..shared import cameras
from ..shared.errors import LimError

SHELL = 0.9  # in cells: a sheet between grid points is cut open below 0.87 (half a cell's diagonal)
CUT = 1.5  # cells to either side of a contact that parts are cut apart by: less is closed by the shell
BAND = 3  # cells around the captured points in which distances are computed


# ---- captured points -----------------------------------------------------------------------------------------------
def captured_points(
    depth_planar: np.ndarray,
    camera_to_world: np.ndarray,
    intrinsics: np.ndarray,
    images: np.ndarray | None = None,
    *,
    stride: int = 1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every captured pixel as an oriented point.

    Args:
        depth_planar: [V, H, W], 0 where nothing is.
        images: [V, H, W, 3 or 4], any dtype; uint8 is scaled to [0, 1].
        stride: keep every stride-th pixel along both axes.
    Returns:
        points [P, 3], normals [P, 3] (unit, towards the camera; zero where a pixel has no neighbour on its surface),
        colours [P, 3] in [0, 1] (grey without images), and view [P] int32.
    """
    points, normals, colours, views = [], [], [], []
    for v in range(len(depth_planar)):
        depth = np.asarray(depth_planar[v], np.float32)
        mask = depth > 0
        if not mask.any():
            continue
        window, lens = cameras.window(mask, intrinsics[v])
        grid = cameras.unproject(depth[window], camera_to_world[v], lens)
        normal = grid_normals(grid, depth[window], camera_to_world[v], lens)
        if stride > 1:
            kept = np.zeros_like(mask)
            kept[stride // 2 :: stride, stride // 2 :: stride] = True
            mask = mask & kept
        mask = mask[window]
        points.append(grid[mask])
        normals.append(normal[mask])
        views.append(np.full(len(points[-1]), v, np.int32))
        if images is not None:
            colour = np.asarray(images[v])[window][mask][:, :3]
            colours.append(colour.astype(np.float32) / (255.0 if colour.dtype == np.uint8 else 1.0))
    if not points:
        return (
            np.zeros((0, 3), np.float32),
            np.zeros((0, 3), np.float32),
            np.zeros((0, 3), np.float32),
            np.zeros(0, np.int32),
        )
    points = np.concatenate(points)
    colours = np.concatenate(colours) if colours else np.full_like(points, 0.5)
    return points, np.concatenate(normals), colours, np.concatenate(views)


def grid_normals(
    grid: np.ndarray, depth: np.ndarray, camera_to_world: np.ndarray, intrinsics: np.ndarray
) -> np.ndarray:
    """Normals [H, W, 3] from the smaller of the two one-sided differences along each axis: none reaches over an edge."""
    tangents = []
    limit = 12.0 * depth / intrinsics[0, 0]  # a step of 12 pixels' width in depth: steeper than 85°, or an edge
    for axis in (0, 1):
        step = np.diff(grid, axis=axis)
        jump = np.abs(np.diff(depth, axis=axis))
        one, other = [slice(None)] * 2, [slice(None)] * 2
        one[axis], other[axis] = slice(1, None), slice(None, -1)
        one, other = tuple(one), tuple(other)
        jump = np.where((depth[one] > 0) & (depth[other] > 0), jump, np.inf)
        backward = np.full(depth.shape, np.inf, np.float32)
        forward = backward.copy()
        backward[one], forward[other] = jump, jump
        tangent = np.zeros_like(grid)
        tangent[other] = step
        use_backward = backward < forward
        shifted = np.zeros_like(grid)
        shifted[one] = step
        both = np.isfinite(backward) & np.isfinite(forward)
        both[both] = np.abs(backward[both] - forward[both]) < 0.3 * limit[both]
        tangent = np.where(both[..., None], tangent + shifted, np.where(use_backward[..., None], shifted, tangent))
        tangent[np.minimum(backward, forward) > limit] = 0
        tangents.append(tangent)
    normal = np.cross(tangents[0], tangents[1])
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    normal = np.divide(normal, length, out=np.zeros_like(normal), where=length > 1e-20)
    away = np.einsum("hwi,hwi->hw", normal, grid - camera_to_world[:3, 3]) > 0
    normal[away] *= -1
    return normal


# ---- fusion --------------------------------------------------------------------------------------------------------
def fuse_depth(
    depth_planar: np.ndarray,
    camera_to_world: np.ndarray,
    intrinsics: np.ndarray,
    *,
    resolution: int = 160,
    apart: Sequence[np.ndarray] = (),
    on_progress: Callable[[float], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Closed mesh of what the depth views saw at one keyframe.

    Space that no view sees through counts as inside (the visual hull, cut by the depth), so the mesh is closed and has no
    inner shells. Sheets without thickness come out as two layers a tenth of a cell apart.

    Args:
        depth_planar: [V, H, W] camera z in model units, 0 where nothing is.
        camera_to_world: [V, 4, 4]; intrinsics: [V, 3, 3] in pixels.
        resolution: cells along the longest side of the object; cells never get smaller than 1.3 pixels.
        apart: places [N, 3] each, around contacts of parts that are known to be apart: the space between them is empty.
    Returns:
        vertices [N, 3] float32, faces [M, 3] int32; some 2 · resolution² faces, not simplified.
    Raises:
        LimError empty_surface: no pixel of any view shows the object; bad_capture: the arrays do not fit or hold NaN.
    """
    depth_planar = np.asarray(depth_planar, np.float32)
    if depth_planar.ndim != 3 or len(camera_to_world) != len(depth_planar) or len(intrinsics) != len(depth_planar):
        raise LimError("bad_capture", "The captured depth and the cameras do not belong together.", "Capture again.")
    if not np.isfinite(depth_planar).all():
        raise LimError("bad_capture", "The captured depth holds values that are not numbers.", "Capture again.")
    report = on_progress or (lambda fraction: None)
    points, normals, _, _ = captured_points(depth_planar, camera_to_world, intrinsics)
    if len(points) < 16:
        raise LimError(
            "empty_surface", "The object is not visible from any camera.", "Check its visibility in renders."
        )
    low, high = points.min(0), points.max(0)
    footprint = float(np.median(depth_planar[depth_planar > 0]) / intrinsics[0, 0, 0])
    cell = max(float((high - low).max()) / resolution, 1.3 * footprint)
    low = low - (BAND + 2) * cell
    shape = np.ceil((high - low) / cell).astype(int) + BAND + 3
    report(0.1)

    inside = _carve(depth_planar, camera_to_world, intrinsics, low, cell, shape)
    # No view reaches the corners of the box: what lies outside the unit sphere is empty by the normalisation.
    x, y, z = (((low[a] + np.arange(shape[a]) * cell) ** 2).astype(np.float32) for a in range(3))
    inside &= x[:, None, None] + y[None, :, None] + z[None, None, :] <= (1 + cell) ** 2
    for axis in range(3):
        border = np.moveaxis(inside, axis, 0)
        border[0] = border[-1] = False
    report(0.5)
    # What is carved but not connected with the outside is a hole that nobody can look into: fill it.
    labels, _ = ndimage.label(~inside)
    inside |= labels != labels[0, 0, 0]
    empty = _between(apart, low, cell, shape)
    inside &= ~empty

    tree = cKDTree(points)
    near = np.zeros(shape, bool)
    near[tuple(np.round((points - low) / cell).astype(int).T)] = True
    near = ndimage.binary_dilation(near, np.ones((3, 3, 3), bool), iterations=BAND - 1)
    where = np.argwhere(near)
    distance, _ = tree.query(low + where * cell, distance_upper_bound=BAND * cell, workers=1)
    field = np.full(shape, BAND * cell, np.float32)
    field[near] = np.minimum(distance, BAND * cell)
    field[inside] *= -1
    # Where nothing was captured the field jumps from inside to outside: smooth it, or the steps of the grid show.
    smooth = ndimage.gaussian_filter(field, 1.0)
    unseen = np.abs(field) > 2 * cell
    field[unseen] = smooth[unseen]
    field[empty] = BAND * cell
    report(0.7)

    vertices, faces = _isosurface(field, SHELL * cell)
    vertices = low + vertices * cell
    vertices, faces = clean(vertices, faces, min_size=4 * cell)
    vertices = _settle(vertices, faces, tree, points, normals, cell)
    report(0.95)
    vertices, faces = clean(vertices, faces, min_size=4 * cell)
    report(1.0)
    return vertices, faces


def _carve(depth_planar, camera_to_world, intrinsics, low, cell, shape) -> np.ndarray:
    """inside [X, Y, Z] bool: grid points that no view sees through."""
    inside = np.ones(shape, bool).ravel()
    indices = np.arange(inside.size)
    for depth, pose, intrinsic in zip(depth_planar, camera_to_world, intrinsics, strict=True):
        # A point is free only if all pixels around it see past it: cracks of a pixel do not open the inside.
        seen = np.where(depth > 0, depth, np.inf)
        seen = ndimage.minimum_filter(seen, 3, mode="nearest")
        height, width = depth.shape
        rotation = (intrinsic @ pose[:3, :3].T).astype(np.float32)  # world offset → homogeneous pixel
        offset = rotation @ (low - pose[:3, 3]).astype(np.float32)
        x, y, z = np.unravel_index(indices, shape)
        steps = rotation * np.float32(cell)
        columns = [np.outer(steps[:, a], np.arange(shape[a], dtype=np.float32)) for a in range(3)]
        homogeneous = [columns[0][r][x] + columns[1][r][y] + columns[2][r][z] + np.float32(offset[r]) for r in range(3)]
        depth_here = np.maximum(homogeneous[2], 1e-6)
        u = (homogeneous[0] / depth_here).astype(np.int32)
        v = (homogeneous[1] / depth_here).astype(np.int32)
        in_picture = (u >= 0) & (u < width) & (v >= 0) & (v < height) & (homogeneous[2] > 0)
        free = np.zeros(len(indices), bool)
        u, v = np.clip(u, 0, width - 1), np.clip(v, 0, height - 1)
        free = in_picture & (seen[v, u] > depth_here + 0.5 * cell)
        inside[indices[free]] = False
        indices = indices[~free]
    return inside.reshape(shape)


def _between(apart: Sequence[np.ndarray], low: np.ndarray, cell: float, shape: np.ndarray) -> np.ndarray:
    """empty [X, Y, Z] bool: grid points in or beside the convex hull of one of the sets of places."""
    empty = np.zeros(shape, bool)
    for places in apart:
        corner = np.clip(np.floor((places.min(0) - low) / cell - CUT).astype(int), 0, shape)
        end = np.clip(np.ceil((places.max(0) - low) / cell + CUT).astype(int) + 1, 0, shape)
        # Places around a contact hardly span a volume: those of a ball around each do.
        ball = np.array([[x, y, z] for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if x or y or z], float)
        ball *= CUT * cell / np.linalg.norm(ball, axis=1, keepdims=True)
        hull = ConvexHull((places[:, None] + ball).reshape(-1, 3)).equations
        y, z = np.meshgrid(np.arange(corner[1], end[1]), np.arange(corner[2], end[2]), indexing="ij")
        for x in range(corner[0], end[0]):  # slice by slice: a hull may have hundreds of sides
            points = low + cell * np.stack([np.full_like(y, x), y, z], -1)
            empty[x, corner[1] : end[1], corner[2] : end[2]] |= (points @ hull[:, :3].T + hull[:, 3] <= 0).all(-1)
    return empty


def _isosurface(field: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Marching cubes in grid units; faces are counter-clockwise seen from where the field is above the level."""
    from skimage import measure

    if not field.min() < level < field.max():
        raise LimError("empty_surface", "No surface could be built from what the cameras saw.", "Try a higher quality.")
    vertices, faces, _, _ = measure.marching_cubes(field, level, gradient_direction="descent", allow_degenerate=False)
    return vertices.astype(np.float32), faces.astype(np.int32)


def _settle(vertices, faces, tree: cKDTree, points, normals, cell: float) -> np.ndarray:
    """Move the shell back onto the captured points: moving-least-squares planes of points that face the same way."""
    smoothing = _smoother(len(vertices), faces)
    vertices = taubin(vertices, faces, 4)
    for step in range(2):
        normal = vertex_normals(vertices, faces)
        distance, index = tree.query(vertices, k=24, distance_upper_bound=2.5 * cell, workers=1)
        found = np.isfinite(distance)
        index = np.where(found, index, 0)
        agree = np.einsum("vki,vi->vk", normals[index], normal)
        weight = np.exp(-((distance / (0.8 * cell)) ** 2), where=found, out=np.zeros_like(distance))
        weight *= np.clip(agree - 0.3, 0, None)
        total = weight.sum(1)
        offset = np.einsum("vki,vki->vk", points[index] - vertices[:, None], normals[index])
        plane = np.einsum("vki,vki->vk", normals[index], np.broadcast_to(normal[:, None], normals[index].shape))
        along = (weight * offset / np.maximum(plane, 0.3)).sum(1) / np.maximum(total, 1e-12)
        seen = total > 1e-4
        if step == 0:
            # The rim of a sheet has no points that face outwards: it goes back by the shell's thickness.
            rim = ~seen & (distance[:, 0] < 1.5 * SHELL * cell)
            along = np.where(seen, along, np.where(rim, -0.8 * SHELL * cell, 0.0))
        else:
            along = np.where(seen, along, 0.0)
        if step == 1:
            along += 0.05 * cell * seen  # keeps the two layers of a sheet apart
        along = np.clip(along, -1.8 * cell, 1.8 * cell)
        vertices = (vertices + along[:, None] * normal).astype(np.float32)
        unseen = ~seen
        if unseen.any():
            for _ in range(8 if step == 0 else 2):
                vertices[unseen] = (smoothing @ vertices)[unseen]
    return vertices


# ---- mesh care -----------------------------------------------------------------------------------------------------
def edges_of(faces: np.ndarray) -> np.ndarray:
    """Unique undirected edges [E, 2], smaller index first, sorted."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64)
    edges.sort(axis=1)
    count = int(edges.max(initial=0)) + 1
    keys = np.unique(edges[:, 0] * count + edges[:, 1])
    return np.stack([keys // count, keys % count], 1)


def components(vertex_count: int, faces: np.ndarray) -> tuple[int, np.ndarray]:
    """Number of connected components and the component of every vertex [V]."""
    edges = edges_of(faces)
    graph = sparse.coo_matrix((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), (vertex_count, vertex_count))
    return csgraph.connected_components(graph, directed=False)


def face_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Normals [F, 3] whose length is twice the face's area."""
    corner = vertices[faces]
    return np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])


def vertex_areas(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """A third of the area of every face at each of its corners [V]."""
    area = np.linalg.norm(face_normals(vertices, faces), axis=1) / 2
    return np.bincount(faces.ravel(), np.repeat(area / 3, 3), len(vertices))


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals [V, 3], faces weighted by area; zero for a vertex without faces."""
    normal = face_normals(vertices, faces)
    rows = faces.T.ravel()
    total = np.stack([np.bincount(rows, np.tile(normal[:, i], 3), len(vertices)) for i in range(3)], 1)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.divide(total, length, out=np.zeros_like(total), where=length > 1e-30).astype(np.float32)


def clean(
    vertices: np.ndarray, faces: np.ndarray, *, min_size: float = 0.0, min_share: float = 0.002
) -> tuple[np.ndarray, np.ndarray]:
    """Merge equal vertices, drop degenerate and double faces, faces on non-manifold edges' extra sides, and crumbs.

    Args:
        min_size: components whose box diagonal is below this (model units) are dropped...
        min_share: ...and so are those with less than this share of the area of the largest one.
    Raises:
        LimError empty_surface: nothing is left.
    """
    vertices, faces = np.asarray(vertices, np.float32), np.asarray(faces, np.int64)
    if len(faces):
        unique, first, inverse = np.unique(vertices, axis=0, return_index=True, return_inverse=True)
        if len(unique) < len(vertices):
            order = np.argsort(first)  # keep the order of the vertices
            rank = np.empty_like(order)
            rank[order] = np.arange(len(order))
            vertices, faces = vertices[np.sort(first)], rank[inverse.ravel()][faces]
        faces = _sound_faces(vertices, faces)
    if not len(faces):
        raise LimError(
            "empty_surface", "The surface is empty.", "Check that the object is visible at the first keyframe."
        )
    count, label = components(len(vertices), faces)
    if count > 1:
        area = np.linalg.norm(face_normals(vertices, faces), axis=1)
        face_label = label[faces[:, 0]]
        areas = np.bincount(face_label, area, count)
        low = np.stack([ndimage.minimum(vertices[:, i], label, np.arange(count)) for i in range(3)], 1)
        high = np.stack([ndimage.maximum(vertices[:, i], label, np.arange(count)) for i in range(3)], 1)
        keep = (areas >= min_share * areas.max()) & (np.linalg.norm(high - low, axis=1) >= min_size)
        keep[np.argmax(areas)] = True
        faces = faces[keep[face_label]]
    used, faces = np.unique(faces, return_inverse=True)
    return vertices[used], faces.reshape(-1, 3).astype(np.int32)


def _sound_faces(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    distinct = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    faces = faces[distinct]
    ordered = np.sort(faces, axis=1)
    _, first = np.unique(ordered, axis=0, return_index=True)
    faces = faces[np.sort(first)]
    # An edge may have two faces. Where it has more, the smallest ones go.
    for _ in range(3):
        edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
        keys = edges[:, 0] * len(vertices) + edges[:, 1]
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        crowded = counts[inverse] > 2
        if not crowded.any():
            break
        area = np.tile(np.linalg.norm(face_normals(vertices, faces), axis=1), 3)
        bad = np.flatnonzero(crowded)
        order = bad[np.lexsort((-area[bad], inverse[bad]))]
        start = np.r_[True, inverse[order][1:] != inverse[order][:-1]]
        rank = np.arange(len(order)) - np.maximum.accumulate(np.where(start, np.arange(len(order)), 0))
        drop = np.zeros(len(faces), bool)
        drop[order[rank >= 2] % len(faces)] = True
        faces = faces[~drop]
    return faces


def _smoother(count: int, faces: np.ndarray) -> sparse.csr_matrix:
    """Row-stochastic matrix [V, V] that replaces every vertex by the mean of its neighbours."""
    edges = edges_of(faces)
    rows, columns = np.r_[edges[:, 0], edges[:, 1]], np.r_[edges[:, 1], edges[:, 0]]
    degree = np.bincount(rows, minlength=count)
    matrix = sparse.csr_matrix((1.0 / degree[rows], (rows, columns)), (count, count))
    lonely = np.flatnonzero(degree == 0)
    return (matrix + sparse.csr_matrix((np.ones(len(lonely)), (lonely, lonely)), (count, count))).astype(np.float32)


def taubin(vertices: np.ndarray, faces: np.ndarray, iterations: int = 5) -> np.ndarray:
    """Smooth without shrinking (Taubin 1995, λ = 0.5, μ = -0.53). Shapes: vertices [V, 3] in and out."""
    matrix = _smoother(len(vertices), faces)
    for _ in range(iterations):
        for factor in (0.5, -0.53):
            vertices = vertices + np.float32(factor) * (matrix @ vertices - vertices)
    return vertices.astype(np.float32)


def simplify(vertices: np.ndarray, faces: np.ndarray, target_faces: int) -> tuple[np.ndarray, np.ndarray]:
    """Quadric edge collapse down to about `target_faces`; a mesh that is small enough comes back cleaned only.

    Raises:
        LimError empty_surface: nothing is left.
    """
    if len(faces) > target_faces:
        import fast_simplification

        vertices, faces = fast_simplification.simplify(
            np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.int32), target_count=target_faces
        )
        vertices, faces = unpinched(vertices, faces)
    return clean(vertices, faces)


def unpinched(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every edge with two faces and every vertex with one fan of them: where parts of a closed surface touch at an edge or
    a vertex, it is doubled, and each part's own is drawn into it a little.

    Quadric simplification pinches thin parts so: 20 to 50 edges with four faces on a mesh of 4000 triangles with fins or
    wings. Dropping two of the four left holes.

    Shapes: vertices [V, 3] and faces [F, 3], ccw from outside, in and out.
    """
    vertices, faces = np.asarray(vertices, np.float32), np.asarray(faces, np.int64)
    count, size = len(vertices), len(faces)
    start, end = faces.T.ravel(), np.roll(faces, -1, axis=1).T.ravel()  # half-edge i of face f is number i · F + f
    keys = np.minimum(start, end) * count + np.maximum(start, end)
    order = np.argsort(keys, kind="stable")
    first = np.flatnonzero(np.r_[True, keys[order][1:] != keys[order][:-1]])
    length = np.diff(np.r_[first, len(order)])
    one, two = (order[first[length == 2] + i] for i in (0, 1))
    opposite = start[one] == end[two]
    pairs = [np.stack([one[opposite], two[opposite]], 1)]
    for begin, many in zip(first[length > 2], length[length > 2]):
        pairs.append(_wedges(vertices, faces, start, end, order[begin : begin + many]))
    here, there = np.concatenate(pairs).T

    def after(half):  # the corner at the half-edge's end
        return (half + size) % (3 * size)

    joined = np.r_[here, after(here)], np.r_[after(there), there]
    graph = sparse.coo_matrix((np.ones(len(joined[0])), joined), (3 * size, 3 * size))
    copies, copy = csgraph.connected_components(graph, directed=False)
    own = np.zeros(copies, np.int64)
    own[copy] = start
    result = vertices[own]
    double = np.bincount(own, minlength=count)[own] > 1
    centre = vertices[faces].mean(1)[np.arange(3 * size) % size]
    middle = np.stack([np.bincount(copy, centre[:, i], copies) for i in range(3)], 1) / np.bincount(copy)[:, None]
    result[double] += (0.1 * (middle - result))[double].astype(np.float32)
    faces = copy.reshape(3, size).T
    # Two faces on the same three vertices are now a leaf of their own, without volume.
    _, number, times = np.unique(np.sort(faces, axis=1), axis=0, return_inverse=True, return_counts=True)
    return result, faces[times[number.ravel()] == 1]


def _wedges(vertices, faces, start, end, halves: np.ndarray) -> np.ndarray:
    """Half-edges at one edge in pairs [N, 2]: the two faces on both sides of the same piece of the inside."""
    a, b = sorted((int(start[halves[0]]), int(end[halves[0]])))
    axis = (vertices[b] - vertices[a]).astype(np.float64)
    axis /= max(float(np.linalg.norm(axis)), 1e-30)
    side = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
    across = vertices[faces[halves % len(faces), (halves // len(faces) + 2) % 3]] - vertices[a]
    angle = np.arctan2(across @ np.cross(axis, side), across @ side)
    forth, back = np.flatnonzero(start[halves] == a), np.flatnonzero(start[halves] == b)
    turn = (angle[forth][:, None] - angle[back][None]) % (2 * np.pi)  # the inside is behind a face, where angles fall
    return np.stack([halves[side[chosen]] for side, chosen in zip((forth, back), linear_sum_assignment(turn))], 1)


def marching_cubes(
    values: np.ndarray, level: float, low: float = -1.0, high: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Mesh of a density grid, for when there is no captured depth.

    Args:
        values: [N, N, N] at the points of `linspace(low, high, N)` along x, y, z; larger is inside. The grid's border
            counts as outside, so the mesh is closed.
    Returns:
        vertices [V, 3] float32, faces [F, 3] int32, outward.
    Raises:
        LimError empty_surface: the level is never crossed, or the values are not finite.
    """
    values = np.asarray(values, np.float32)
    if not np.isfinite(values).all():
        raise LimError(
            "empty_surface", "The reconstruction is not made of numbers.", "Check the weights with the doctor."
        )
    if values.max() <= level or values.min() >= level:
        raise LimError(
            "empty_surface",
            "The reconstruction is empty: no surface was found.",
            "Check that the object is visible and fills the views.",
        )
    size = values.shape[0]
    outside = min(float(values.min()), 2 * level - float(values.max()))
    padded = np.pad(values, 1, constant_values=outside)
    vertices, faces = _isosurface(-padded, -level)
    vertices = np.clip(low + (vertices - 1) * (high - low) / (size - 1), low, high)
    return clean(vertices, faces)
