# SPDX-License-Identifier: GPL-3.0-or-later
"""Renders packs on CPU cores: one Embree call per frame for all its views, colours looked up in numpy.

The conventions are those of `lim_core/shared/cameras.py`: model space, planar depth, pixel centres at +0.5. Nothing is lit; what
comes out is the albedo, as a job's capture has it. Triangles are seen from both sides. `sample` gives the pixels that show
something, `render` whole pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from ..shared.errors import LimError
from .packs import Pack

NEAR = 1e-3  # a camera to which the object comes nearer than this stands in it


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


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """The pixels of one frame's pictures that show something. Shapes: P pixels of N views, C canonical arrays."""

    pixels: np.ndarray
    """int64 [P], ascending: indices into [N, H, W]"""
    rgba: np.ndarray
    """uint8 [P, 4], as in `Views`; alpha is above 0"""
    depth_planar: np.ndarray
    """float32 [P], 0 where the pixel's centre sees past the object"""
    canonical: np.ndarray
    """float32 [P, C, 3], 0 where the depth is"""

    def views(self, count: int, size: int) -> Views:
        """As pictures [count, size, size]."""
        rgba = np.zeros((count * size * size, 4), np.uint8)
        depth = np.zeros(count * size * size, np.float32)
        rgba[self.pixels], depth[self.pixels] = self.rgba, self.depth_planar
        carried = []
        for c in range(self.canonical.shape[1]):
            carried.append(np.zeros((count * size * size, 3), np.float32))
            carried[-1][self.pixels] = self.canonical[:, c]
        shape = (count, size, size)
        return Views(rgba.reshape(*shape, 4), depth.reshape(shape), tuple(c.reshape(*shape, 3) for c in carried))


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
    """Pictures of one frame of a pack from N cameras; arguments and errors as in `sample`."""
    samples = sample(
        pack, positions, camera_to_world, intrinsics, size,
        supersampling=supersampling, canonical=canonical, nearest=nearest,
    )  # fmt: skip
    return samples.views(len(camera_to_world), size)


def sample(
    pack: Pack,
    positions: np.ndarray,
    camera_to_world: np.ndarray,
    intrinsics: np.ndarray,
    size: int,
    *,
    supersampling: int = 1,
    canonical: Sequence[np.ndarray] = (),
    nearest: bool = False,
) -> Samples:
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
        LimError: `bad_pack` where positions or a canonical array do not fit the pack, or a vertex has no place (not
            finite); `outside_cameras` where a camera stands inside the object or behind a part of it.
    """
    positions = np.ascontiguousarray(positions, np.float32)
    carried = [np.asarray(c, np.float32) for c in canonical]
    for array in (positions, *carried):
        if array.shape != (pack.vertices, 3):
            raise LimError("bad_pack", f"'{pack.name}' has {pack.vertices} vertices, {array.shape} were to be drawn.")
        if not np.isfinite(array).all():
            raise LimError("bad_pack", f"'{pack.name}' has vertices without a place (not a number).", "Bake it again.")
    scene = EmbreeScene()
    TriangleMesh(scene, positions, pack.faces)
    eyes = Eyes(camera_to_world, intrinsics, size)

    pixels = _object_pixels(pack.name, positions, camera_to_world, intrinsics, size)
    rows, hit = eyes.shoot(scene, pixels, 0.5, 0.5)
    pixels = pixels[rows]
    corners = pack.faces[hit["primID"]]
    together = np.concatenate(carried, 1) if carried else np.zeros((len(positions), 0), np.float32)
    first, u, v = together[corners[:, 0]], hit["u"][:, None], hit["v"][:, None]
    values = first + u * (together[corners[:, 1]] - first) + v * (together[corners[:, 2]] - first)
    values = values.reshape(len(pixels), len(carried), 3)
    if supersampling == 1:
        rgba = np.full((len(pixels), 4), 255, np.uint8)
        rgba[:, :3] = albedo(pack, hit["primID"], hit["u"], hit["v"], nearest) + np.float32(0.5)
        return Samples(pixels, rgba, hit["tfar"], values)

    mask = np.zeros((len(camera_to_world), size, size), bool)
    mask.reshape(-1)[pixels] = True
    near = np.flatnonzero(_grown(mask))
    total = np.zeros((len(near), 4), np.float32)
    centre = np.searchsorted(near, pixels)
    steps = (np.arange(supersampling) + 0.5) / supersampling
    for dv in steps:
        for du in steps:
            if du == dv == 0.5:
                seen, found = centre, hit
            else:
                seen, found = eyes.shoot(scene, near, du, dv)
            total[seen, :3] += albedo(pack, found["primID"], found["u"], found["v"], nearest)
            total[seen, 3] += 1
    total[:, :3] /= np.maximum(total[:, 3:], 1)
    total[:, 3] *= 255 / supersampling**2
    # A thread that only the pixel's centre meets covers nothing of it: the centre's depth then belongs to nobody.
    shown = total[:, 3] > 0
    depth, canonical_values = np.zeros(len(near), np.float32), np.zeros((len(near), len(carried), 3), np.float32)
    depth[centre], canonical_values[centre] = hit["tfar"], values
    return Samples(
        near[shown], (total[shown] + np.float32(0.5)).astype(np.uint8), depth[shown], canonical_values[shown]
    )


def depth(
    vertices: np.ndarray, faces: np.ndarray, camera_to_world: np.ndarray, intrinsics: np.ndarray, size: int
) -> np.ndarray:
    """Planar depth float32 [N, size, size] of a mesh alone, 0 where nothing is; errors as in `sample`."""
    vertices = np.ascontiguousarray(vertices, np.float32)
    scene = EmbreeScene()
    TriangleMesh(scene, vertices, np.ascontiguousarray(faces, np.int32))
    pixels = _object_pixels("the mesh", vertices, camera_to_world, intrinsics, size)
    rows, hit = Eyes(camera_to_world, intrinsics, size).shoot(scene, pixels, 0.5, 0.5)
    found = np.zeros(len(camera_to_world) * size * size, np.float32)
    found[pixels[rows]] = hit["tfar"]
    return found.reshape(-1, size, size)


def albedo(pack: Pack, face: np.ndarray, u: np.ndarray, v: np.ndarray, nearest: bool = False) -> np.ndarray:
    """sRGB-encoded colour float32 [R, 3] in 0..255 at barycentric (u, v) [R] of faces [R]; textures repeat."""
    material = pack.face_material[face]
    start = pack.texture_start[material]
    colour = pack.texels[start].astype(np.float32)
    textured = np.flatnonzero(pack.texture_shape.max(1)[material] > 1)
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


class Eyes:
    """Where rays come from and go, for all the views of a frame."""

    def __init__(self, camera_to_world: np.ndarray, intrinsics: np.ndarray, size: int):
        inverse = np.linalg.inv(intrinsics.astype(np.float64))
        self.matrices = (camera_to_world[:, :3, :3].astype(np.float64) @ inverse).astype(np.float32)
        self.places = camera_to_world[:, :3, 3].astype(np.float32)
        self.size = size

    def rays(self, pixels: np.ndarray, du: float, dv: float) -> tuple[np.ndarray, np.ndarray]:
        """Origins and directions float32 [R, 3] through ascending pixels (indices into [N, H, W]) at (du, dv) within each;
        the directions have z = 1 in the camera's frame, so that Embree's distances are planar depths."""
        area = self.size * self.size
        bounds = np.searchsorted(pixels, np.arange(len(self.places) + 1) * area)
        origins, directions = np.empty((len(pixels), 3), np.float32), np.empty((len(pixels), 3), np.float32)
        for view, m in enumerate(self.matrices):
            part = slice(bounds[view], bounds[view + 1])
            row, column = np.divmod((pixels[part] - view * area).astype(np.int32), np.int32(self.size))
            row, column = row.astype(np.float32) + np.float32(dv), column.astype(np.float32) + np.float32(du)
            for axis in range(3):
                directions[part, axis] = m[axis, 0] * column + m[axis, 1] * row + m[axis, 2]
            origins[part] = self.places[view]
        return origins, directions

    def shoot(self, scene: EmbreeScene, pixels: np.ndarray, du: float, dv: float) -> tuple[np.ndarray, dict]:
        """Which of the rays [R] meet something: their rows, and Embree's primID, u, v and tfar for them."""
        hit = scene.run(*self.rays(pixels, du, dv), query="INTERSECT", output=True)
        rows = np.flatnonzero(hit["primID"] >= 0)
        return rows, {key: hit[key][rows] for key in ("primID", "u", "v", "tfar")}


def _object_pixels(
    name: str, positions: np.ndarray, camera_to_world: np.ndarray, intrinsics: np.ndarray, size: int
) -> np.ndarray:
    """Ascending indices into [N, H, W] of the pixels within each view's box around the object."""
    found = []
    for view, (matrix, k) in enumerate(zip(camera_to_world, intrinsics, strict=True)):
        # Homogeneous pixels in one product: intrinsics × world-to-camera.
        turned = (k @ matrix[:3, :3].T).astype(np.float32)
        local = positions @ turned.T - turned @ matrix[:3, 3].astype(np.float32)
        depth = local[:, 2]
        if depth.min() < NEAR:
            raise LimError(
                "outside_cameras", f"Camera {view} stands inside '{name}', or a part of it lies behind.",
                "Put the object into the unit sphere first.",
            )  # fmt: skip
        low, high = (local[:, :2] / depth[:, None]).min(0), (local[:, :2] / depth[:, None]).max(0)
        left, top = np.clip(np.floor(low) - 1, 0, size).astype(int)
        right, bottom = np.clip(np.ceil(high) + 1, 0, size).astype(int)
        rows = view * size * size + np.arange(top, bottom)[:, None] * size
        found.append((rows + np.arange(left, right)).ravel())
    return np.concatenate(found)


def _grown(mask: np.ndarray) -> np.ndarray:
    """A mask [N, H, W] and its eight neighbours."""
    grown = mask.copy()
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    across = grown.copy()
    across[:, :, 1:] |= grown[:, :, :-1]
    across[:, :, :-1] |= grown[:, :, 1:]
    return across
