# SPDX-License-Identifier: GPL-3.0-or-later
"""Renders packs on CPU cores: one Embree call per frame for all its views, colours looked up in numpy.

The conventions are those of `lim_core/cameras.py`: model space, planar depth, pixel centres at +0.5. Nothing is lit; what
comes out is the albedo, as a job's capture has it. Triangles are seen from both sides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from ..errors import LimError
from .packs import Pack


@dataclasses.dataclass(frozen=True, eq=False)
class Views:
    """Pictures of one frame. Shapes: N views, H = W = size."""

    rgba: np.ndarray
    """uint8 [N, H, W, 4], sRGB-encoded albedo, straight alpha; transparent pixels are 0"""
    depth_planar: np.ndarray
    """float32 [N, H, W], camera z at the pixel's centre, 0 where nothing is"""
    canonical: tuple[np.ndarray, ...]
    """float32 [N, H, W, 3] for each canonical array that was given, at the pixel's centre, 0 where nothing is"""

    @property
    def mask(self) -> np.ndarray:
        """bool [N, H, W]: whether the ray through the pixel's centre hits."""
        return self.depth_planar > 0


def render(
    pack: Pack,
    positions: np.ndarray,
    camera_to_world: np.ndarray,
    intrinsics: np.ndarray,
    size: int,
    *,
    supersampling: int = 1,
    canonical: Sequence[np.ndarray] = (),
    nearest: bool = False,
) -> Views:
    """Render one frame of a pack from N cameras.

    Args:
        positions: vertices [V, 3] in model space at this frame.
        camera_to_world, intrinsics: [N, 4, 4] and [N, 3, 3] (of a picture of `size` pixels).
        supersampling: s × s rays per pixel for colour and alpha, averaged premultiplied and as encoded, like a larger
            picture that is averaged down. Depth and canonical always come from the ray through the centre. Only pixels
            within one pixel of something hit are refined: an isolated part thinner than a pixel may be missed, as it
            may without supersampling.
        canonical: vertex arrays [V, 3], such as the positions at the start, carried to the pixels.
        nearest: the nearest texel instead of a bilinear mean.
    Raises:
        LimError: `bad_pack` where positions or a canonical array do not fit the pack.
    """
    positions = np.ascontiguousarray(positions, np.float32)
    canonical = [np.ascontiguousarray(c, np.float32) for c in canonical]
    for array in (positions, *canonical):
        if array.shape != (pack.vertices, 3):
            raise LimError("bad_pack", f"'{pack.name}' has {pack.vertices} vertices, {array.shape} were to be drawn.")
    views = len(camera_to_world)
    scene = EmbreeScene()
    TriangleMesh(scene, positions, pack.faces)

    boxes = [_pixel_box(positions, c, k, size) for c, k in zip(camera_to_world, intrinsics, strict=True)]
    pixels = np.concatenate([_box_pixels(view, box, size) for view, box in enumerate(boxes)])
    origins, directions = _directions(pixels, camera_to_world, intrinsics, size, 0.5, 0.5)
    hit = scene.run(origins, directions, query="INTERSECT", output=True)
    found = np.flatnonzero(hit["primID"] >= 0)
    pixels = pixels[found]
    face, u, v = hit["primID"][found], hit["u"][found], hit["v"][found]

    depth = np.zeros(views * size * size, np.float32)
    depth[pixels] = hit["tfar"][found]
    carried = []
    for array in canonical:
        image = np.zeros((views * size * size, 3), np.float32)
        corners = pack.faces[face]
        a = array[corners[:, 0]]
        image[pixels] = a + u[:, None] * (array[corners[:, 1]] - a) + v[:, None] * (array[corners[:, 2]] - a)
        carried.append(image.reshape(views, size, size, 3))

    rgba = np.zeros((views * size * size, 4), np.uint8)
    if supersampling == 1:
        rgba[pixels, :3] = albedo(pack, face, u, v, nearest) + np.float32(0.5)
        rgba[pixels, 3] = 255
    else:
        near = np.flatnonzero(_grown(depth.reshape(views, size, size) > 0))
        total = np.zeros((len(near), 4), np.float32)
        rows = np.arange(len(near))
        steps = (np.arange(supersampling) + 0.5) / supersampling
        for dv in steps:
            for du in steps:
                if du == dv == 0.5:
                    total[np.searchsorted(near, pixels), :3] += albedo(pack, face, u, v, nearest)
                    total[np.searchsorted(near, pixels), 3] += 1
                    continue
                origins, directions = _directions(near, camera_to_world, intrinsics, size, du, dv)
                hit = scene.run(origins, directions, query="INTERSECT", output=True)
                seen = rows[hit["primID"] >= 0]
                total[seen, :3] += albedo(pack, hit["primID"][seen], hit["u"][seen], hit["v"][seen], nearest)
                total[seen, 3] += 1
        total[:, :3] /= np.maximum(total[:, 3:], 1)
        total[:, 3] *= 255 / supersampling**2
        rgba[near] = total + np.float32(0.5)
    return Views(rgba.reshape(views, size, size, 4), depth.reshape(views, size, size), tuple(carried))


def albedo(pack: Pack, face: np.ndarray, u: np.ndarray, v: np.ndarray, nearest: bool = False) -> np.ndarray:
    """sRGB-encoded colour float32 [R, 3] in 0..255 at barycentric (u, v) [R] of faces [R]; textures repeat."""
    material = pack.face_material[face]
    start = pack.texture_start[material]
    colour = pack.texels[start].astype(np.float32)
    textured = np.flatnonzero((pack.texture_shape > 1).any(1)[material])
    if not len(textured):
        return colour
    corners = pack.uv[face[textured]].astype(np.float32)
    u, v = u[textured, None], v[textured, None]
    uv = corners[:, 0] + u * (corners[:, 1] - corners[:, 0]) + v * (corners[:, 2] - corners[:, 0])
    shape = pack.texture_shape[material[textured]]
    height, width = shape[:, 0], shape[:, 1]
    start = start[textured]
    x = (uv[:, 0] - np.floor(uv[:, 0])) * width
    y = (1 - (uv[:, 1] - np.floor(uv[:, 1]))) * height
    if nearest:
        colour[textured] = pack.texels[start + (y.astype(np.int64) % height) * width + x.astype(np.int64) % width]
        return colour
    x, y = (x - 0.5).astype(np.float32), (y - 0.5).astype(np.float32)
    left, top = np.floor(x), np.floor(y)
    right_part, low_part = (x - left)[:, None], (y - top)[:, None]
    left, top = left.astype(np.int64) % width, top.astype(np.int64) % height
    right, low = (left + 1) % width, (top + 1) % height
    upper, lower = start + top * width, start + low * width
    a, b = pack.texels[upper + left].astype(np.float32), pack.texels[upper + right].astype(np.float32)
    a += right_part * (b - a)
    c, d = pack.texels[lower + left].astype(np.float32), pack.texels[lower + right].astype(np.float32)
    c += right_part * (d - c)
    colour[textured] = a + low_part * (c - a)
    return colour


def over(rgba: np.ndarray, background: float | np.ndarray = 1.0) -> np.ndarray:
    """float32 [..., H, W, 3] in [0, 1]: straight-alpha uint8 pictures on a background (white)."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return rgba[..., :3].astype(np.float32) / 255 * alpha + background * (1 - alpha)


def _pixel_box(positions: np.ndarray, camera_to_world: np.ndarray, intrinsics: np.ndarray, size: int) -> tuple:
    """Rows and columns (top, bottom, left, right) that hold the object; everything where it comes near the camera."""
    local = (positions - camera_to_world[:3, 3].astype(np.float32)) @ camera_to_world[:3, :3].astype(np.float32)
    if local[:, 2].min() < 1e-3:
        return 0, size, 0, size
    pixel = local @ intrinsics[:2].T.astype(np.float32) / local[:, 2:]
    low = np.clip(np.floor(pixel.min(0)) - 1, 0, size).astype(int)
    high = np.clip(np.ceil(pixel.max(0)) + 1, 0, size).astype(int)
    return low[1], high[1], low[0], high[0]


def _box_pixels(view: int, box: tuple, size: int) -> np.ndarray:
    """Indices into [N, H, W] of a view's pixels within a box."""
    top, bottom, left, right = box
    rows = view * size * size + np.arange(top, bottom)[:, None] * size
    return (rows + np.arange(left, right)).ravel()


def _directions(pixels, camera_to_world, intrinsics, size, du, dv):
    """Origins and directions float32 [R, 3] through pixels (indices into [N, H, W]) at (du, dv) within each; the
    directions have z = 1 in the camera's frame, so that Embree's distances are planar depths."""
    view, rest = np.divmod(pixels, size * size)
    row, column = np.divmod(rest, size)
    matrices = (camera_to_world[:, :3, :3].astype(np.float64) @ np.linalg.inv(intrinsics.astype(np.float64))).astype(
        np.float32
    )
    column = column.astype(np.float32) + np.float32(du)
    row = row.astype(np.float32) + np.float32(dv)
    m = matrices[view]
    directions = m[:, :, 0] * column[:, None]
    directions += m[:, :, 1] * row[:, None]
    directions += m[:, :, 2]
    return camera_to_world[:, :3, 3].astype(np.float32)[view], directions


def _grown(mask: np.ndarray) -> np.ndarray:
    """A mask [N, H, W] and its eight neighbours."""
    grown = mask.copy()
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    across = grown.copy()
    across[:, :, 1:] |= grown[:, :, :-1]
    across[:, :, :-1] |= grown[:, :, 1:]
    return across
