# SPDX-License-Identifier: GPL-3.0-or-later
"""One UV set and one image for the template: unwrapped with xatlas, baked from the captured views of all keyframes.

Texels take their colour straight from the views that see them best; the template's own keyframe, where it fits best, is
asked first, the others fill what it does not show. Arrays are numpy; colours are sRGB-encoded 8 bit; texture row 0 is v = 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage, sparse
from scipy.spatial import cKDTree

from ..shared import cameras
from ..shared.errors import LimError
from . import rays
from .arap import factorise, link
from .surface import edges_of, grid_normals, vertex_normals

SHARPNESS = 5.0  # a view counts with its cosine to this power: 60° off counts 1/32 of head-on
ENOUGH = 0.02  # summed weight from which a texel needs no further keyframe: one view at 63°
EDGE = 0.02  # what a pixel at the edge of something counts: only where there is no other
SURFACE_ERROR = 0.005  # model units between the template and what it was made from
DOUBT = 0.1  # what a pixel at the own keyframe counts whose surface is not the template's: better than none
PADDING = 4  # texels between charts, so that the first two mip levels do not bleed


def unwrap(vertices: np.ndarray, faces: np.ndarray, texture_size: int = 1024) -> np.ndarray:
    """Texture coordinates per face corner, charts packed with PADDING texels between them.

    Args:
        vertices: [V, 3]; faces: [F, 3]. Neither is changed: seams split corners, not vertices.
    Returns:
        loop_uvs [F, 3, 2] float32 in [0, 1], v upwards.
    Raises:
        LimError bad_template: xatlas cannot unwrap the mesh.
    """
    import xatlas

    atlas = xatlas.Atlas()
    chart, pack = xatlas.ChartOptions(), xatlas.PackOptions()
    chart.max_iterations = 2
    pack.padding = PADDING
    pack.resolution = texture_size
    pack.bilinear = True
    try:
        atlas.add_mesh(np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.uint32))
        atlas.generate(chart_options=chart, pack_options=pack)
        _, indices, uvs = atlas[0]
    except RuntimeError as error:
        raise LimError("bad_template", f"The template mesh cannot be unwrapped: {error}.") from None
    if len(indices) != len(faces):
        raise LimError("bad_template", "The template mesh cannot be unwrapped.", "Try another number of faces.")
    return uvs[indices].astype(np.float32)


def rasterise(loop_uvs: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which face lies under each texel's centre.

    Returns:
        face [size, size] int32, -1 where there is none, and barycentric [size, size, 3] float32. Row 0 is v = 1.
    """
    corner = np.stack([loop_uvs[..., 0], 1.0 - loop_uvs[..., 1]], -1).astype(np.float64) * size - 0.5
    low = np.clip(np.ceil(corner.min(1)), 0, size - 1).astype(np.int64)
    high = np.clip(np.floor(corner.max(1)), 0, size - 1).astype(np.int64)
    extent = np.maximum(high - low + 1, 0)
    face_of = np.full(size * size, -1, np.int32)
    barycentric = np.zeros((size * size, 3), np.float32)
    a, b, c = corner[:, 0], corner[:, 1], corner[:, 2]
    double_area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    usable = np.flatnonzero((np.abs(double_area) > 1e-12) & (extent.min(1) > 0))
    # Faces whose boxes are of like size are tested together, so that the arrays are rectangles.
    bucket = np.ceil(np.log2(extent[usable].max(1).astype(float))).astype(int)
    for level in np.unique(bucket):
        members = usable[bucket == level]
        side = 1 << int(level)
        chunk = max(1, 2_000_000 // side**2)
        y, x = np.mgrid[0:side, 0:side].reshape(2, 1, -1)
        for start in range(0, len(members), chunk):
            faces = members[start : start + chunk]
            column, row = low[faces, 0, None] + x, low[faces, 1, None] + y
            px, py = column.astype(np.float64), row.astype(np.float64)
            area = double_area[faces, None]

            def side_of(p, q, px=px, py=py, faces=faces):
                p, q = p[faces], q[faces]
                return (q[:, 0, None] - p[:, 0, None]) * (py - p[:, 1, None]) - (q[:, 1, None] - p[:, 1, None]) * (
                    px - p[:, 0, None]
                )

            weights = [side_of(b, c) / area, side_of(c, a) / area]
            weights.append(1.0 - weights[0] - weights[1])
            hit = (np.minimum(np.minimum(*weights[:2]), weights[2]) >= -1e-9) & (column < size) & (row < size)
            f, t = np.nonzero(hit)
            texel = row[f, t] * size + column[f, t]
            face_of[texel] = faces[f]
            barycentric[texel] = np.stack([w[f, t] for w in weights], 1)
    return face_of.reshape(size, size), barycentric.reshape(size, size, 3)


def bake(
    positions: np.ndarray,
    faces: np.ndarray,
    loop_uvs: np.ndarray,
    images: np.ndarray,
    depth_planar: np.ndarray,
    camera_to_world: np.ndarray,
    intrinsics: np.ndarray,
    size: int = 1024,
    *,
    home: int = 0,
    trust: np.ndarray | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> np.ndarray:
    """Texture from the captured views.

    Args:
        positions: [K, V, 3] of the fitted mesh at each keyframe, model space.
        faces: [F, 3]; loop_uvs: [F, 3, 2].
        images: [K, views, H, W, 4] uint8, straight alpha; depth_planar: [K, views, H, W], 0 where nothing is.
        camera_to_world: [views, 4, 4]; intrinsics: [views, 3, 3]; the same at all keyframes.
        home: the template's own keyframe; the others fill, nearest first, what is not seen well there.
        trust: [views] what each view counts against the others; None: all alike.
    Returns:
        uint8 [size, size, 3], row 0 is v = 1. Gutters are filled from the nearest chart; what no view sees takes over the
        colours around it, along the surface.
    Raises:
        LimError bad_capture: the arrays do not fit together.
    """
    positions = np.asarray(positions, np.float32)
    if images.shape[:4] != depth_planar.shape[:2] + images.shape[2:4] or len(images) != len(positions):
        raise LimError("bad_capture", "The captured images and depths do not belong together.", "Capture again.")
    report = on_progress or (lambda fraction: None)
    face_of, barycentric = rasterise(loop_uvs, size)
    covered = face_of.ravel() >= 0
    corners = faces[face_of.ravel()[covered]]
    barycentric = barycentric.reshape(-1, 3)[covered]
    count = len(corners)
    colour, weight = np.zeros((count, 3), np.float32), np.zeros(count, np.float32)
    order = sorted(range(len(positions)), key=lambda k: (abs(k - home), k))
    for done, k in enumerate(order):
        todo = np.flatnonzero(weight < ENOUGH)  # the mesh fits nowhere better than at home
        if not len(todo):
            break
        normal = np.einsum("tk,tki->ti", barycentric[todo], vertex_normals(positions[k], faces)[corners[todo]])
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
        point = np.einsum("tk,tki->ti", barycentric[todo], positions[k][corners[todo]])
        views = (images[k], depth_planar[k], camera_to_world, intrinsics)
        drawn = rays.depth(positions[k], faces, camera_to_world, intrinsics, images.shape[3])
        colour_k, weight_k = _see(point, normal, *views, trust=trust, drawn=drawn, doubt=DOUBT if k == home else 0.0)
        # What is missing is added, so that there is no border where one keyframe ends and the next begins.
        weight_k = np.minimum(weight_k, ENOUGH - weight[todo])
        total = weight[todo] + weight_k
        share = np.divide(weight_k, total, out=np.zeros_like(total), where=total > 0)[:, None]
        colour[todo] = (1 - share) * colour[todo] + share * colour_k
        weight[todo] = total
        report(0.8 * (done + 1) / len(order))

    if not (weight > 0).any():
        raise LimError("bad_capture", "No texel of the template is visible in any captured view.", "Capture again.")
    unsure = np.flatnonzero(weight < ENOUGH)
    if len(unsure):
        around = _spread(positions[home], faces, corners, barycentric, colour, weight)
        share = (weight[unsure] / ENOUGH)[:, None]
        filled = np.einsum("tk,tki->ti", barycentric[unsure], around[corners[unsure]])
        colour[unsure] = share * colour[unsure] + (1 - share) * filled
    report(0.95)

    picture = np.zeros((size * size, 3), np.float32)
    picture[covered] = colour
    picture = picture.reshape(size, size, 3)
    nearest = ndimage.distance_transform_edt(~covered.reshape(size, size), return_distances=False, return_indices=True)
    picture = picture[tuple(nearest)]
    report(1.0)
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def _spread(vertices, faces, corners, barycentric, colour, weight) -> np.ndarray:
    """Colours [V, 3] of the vertices: what their texels have seen, and where that is nothing, the smoothest continuation
    along the surface (and across gaps between parts, to what is nearest)."""
    size = len(vertices)
    mass = barycentric * weight[:, None]
    known = np.bincount(corners.ravel(), mass.ravel(), size)
    total = [np.bincount(corners.ravel(), (mass * colour[:, i, None]).ravel(), size) for i in range(3)]
    diagonal = float(np.linalg.norm(np.ptp(vertices, axis=0)))
    edges, _ = link(vertices, edges_of(faces), np.ones(len(edges_of(faces))), diagonal)
    length = np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1) + 1e-4 * diagonal
    graph = sparse.coo_matrix((length.mean() / length, (edges[:, 0], edges[:, 1])), (size, size)).tocsr()
    graph = graph + graph.T
    hold = 100.0 * known / max(float(np.median(known[known > 0])), 1e-12)
    matrix = sparse.diags(np.asarray(graph.sum(1)).ravel() + hold + 1e-9) - graph
    right = hold[:, None] * np.stack(total, 1) / np.maximum(known, 1e-12)[:, None]
    return factorise(matrix.tocsc()).solve(right).astype(np.float32)


def see(
    vertices: np.ndarray,
    faces: np.ndarray,
    images: np.ndarray,
    depth_planar: np.ndarray,
    camera_to_world: np.ndarray,
    intrinsics: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Colours [V, 3] in [0, 1] of a mesh's vertices at one keyframe, and how well each is seen [V]; see `see_points`."""
    normals = vertex_normals(vertices, faces)
    return see_points(vertices, normals, images, depth_planar, camera_to_world, intrinsics)


def see_points(
    points: np.ndarray,
    normals: np.ndarray,
    images: np.ndarray,
    depth_planar: np.ndarray,
    camera_to_world: np.ndarray,
    intrinsics: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Colour of surface points at one keyframe.

    Args:
        points, normals: [N, 3], unit normals outwards; the rest as in `bake`, without the keyframes' axis.
    Returns:
        colours [N, 3] in [0, 1] and how well each is seen [N]; what no view sees gets the colour of the nearest seen one.
    """
    points, normals = np.asarray(points, np.float32), np.asarray(normals, np.float32)
    colour, weight = _see(points, normals, images, depth_planar, camera_to_world, intrinsics)
    seen = np.flatnonzero(weight > 1e-4)
    if 0 < len(seen) < len(points):
        colour = colour[seen[cKDTree(points[seen]).query(points)[1]]]
    return colour / 255.0, weight


def _see(point, normal, images, depths, poses, intrinsics, *, trust=None, drawn=None, doubt=0.0):
    """Colour [N, 3] float32 in 0..255 and summed weight [N] over the views of one keyframe.

    Args:
        drawn: depth [views, H, W] of the mesh itself, which decides what is seen; None: the captured depth does.
        doubt: as in `_sample`.
    """
    count, views = len(point), len(images)
    samples = np.zeros((views, count, 3), np.float32)
    weights = np.zeros((views, count), np.float32)
    for v in range(views):
        depth = np.asarray(depths[v], np.float32)
        if not (depth > 0).any():
            continue
        mesh = depth if drawn is None else drawn[v]
        window, lens = cameras.window((depth > 0) | (mesh > 0), intrinsics[v])
        towards = poses[v][:3, 3] - point
        cosine = np.einsum("ti,ti->t", normal, towards) / np.linalg.norm(towards, axis=1)
        facing = np.flatnonzero(cosine > 0.1)
        if not len(facing):
            continue
        depth = depth[window]
        mesh = depth if drawn is None else mesh[window]
        colour, quality = _sample(point[facing], normal[facing], images[v][window], depth, mesh, poses[v], lens, doubt)
        samples[v, facing] = colour
        weights[v, facing] = quality * cosine[facing] ** SHARPNESS * (1 if trust is None else trust[v])
    total = weights.sum(0)
    mean = np.einsum("vt,vti->ti", weights, samples) / np.maximum(total, 1e-12)[:, None]
    # A view that disagrees with the others has seen something else at the edge of an occluder: count it less.
    for _ in range(2):
        off = np.abs(samples - mean).max(2) / 40.0
        robust = weights / (1.0 + off**2) ** 2
        mean = np.einsum("vt,vti->ti", robust, samples) / np.maximum(robust.sum(0), 1e-12)[:, None]
    return mean, total


def _sample(point, normal, image, depth, drawn, pose, intrinsic, doubt: float) -> tuple[np.ndarray, np.ndarray]:
    """Bilinear colour [N, 3] over those of the four pixels that show this very surface, and their share [N] in 0..1.

    Args:
        depth, drawn: [H, W], captured, and of the mesh that the points are on.
        doubt: what a pixel counts whose captured surface is not the mesh's.
    """
    height, width = depth.shape
    pixel, z = cameras.project(point, pose, intrinsic)
    pixel = pixel - 0.5
    base = np.floor(pixel).astype(np.int64)
    part = pixel - base
    surface_normal, tolerance, edge = _surface(depth, pose, intrinsic)
    own_tolerance = tolerance
    if drawn is not depth:
        _, own_tolerance, own_edge = _surface(drawn, pose, intrinsic)
        edge = edge | own_edge
    trust = np.where(edge, EDGE, 1.0)
    trust = trust * np.maximum(1.0 / (1.0 + (np.abs(drawn - depth) / (tolerance + SURFACE_ERROR)) ** 4), doubt)
    trust[depth <= 0] = 0
    colour = np.zeros((len(point), 3), np.float32)
    total = np.zeros(len(point), np.float32)
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = base[:, 0] + dx, base[:, 1] + dy
            valid = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            column, row = np.clip(column, 0, width - 1), np.clip(row, 0, height - 1)
            here = drawn[row, column]
            valid &= (here > 0) & (np.abs(here - z) < own_tolerance[row, column] + SURFACE_ERROR)
            agree = np.einsum("ti,ti->t", surface_normal[row, column], normal)
            share = np.abs(1 - dx - part[:, 0]) * np.abs(1 - dy - part[:, 1]) * valid
            share = share * trust[row, column] * np.where(agree > 0.2, 1.0, doubt)
            colour += share[:, None] * image[row, column, :3]
            total += share
    return colour / np.maximum(total, 1e-9)[:, None], total


def _surface(depth, pose, intrinsic) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a depth picture: normals [H, W, 3]; within what depth [H, W] the next pixel of the same surface lies; and which
    pixels are at the edge of something, where a mesh a little off would be painted with it."""
    grid = cameras.unproject(depth, pose, intrinsic)
    normal = grid_normals(grid, depth, pose, intrinsic)
    towards = pose[:3, 3] - grid
    cosine = np.einsum("hwi,hwi->hw", normal, towards) / np.maximum(np.linalg.norm(towards, axis=2), 1e-9)
    slope = np.minimum(np.sqrt(1 - np.minimum(cosine**2, 1)) / np.maximum(cosine, 1e-3), 6.0)
    tolerance = depth / intrinsic[0, 0] * (1.0 + 1.5 * slope)
    nearest = ndimage.minimum_filter(np.where(depth > 0, depth, 0), 3, mode="nearest")
    furthest = ndimage.maximum_filter(depth, 3, mode="nearest")
    edge = (depth > nearest + 2 * tolerance) | (furthest > depth + 2 * tolerance)
    return normal, tolerance, edge
