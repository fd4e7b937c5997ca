# SPDX-License-Identifier: GPL-3.0-or-later
"""Cameras in model space, shared by Blender, training and inference. numpy only.

Convention, decided once: `camera_to_world` is 4×4 with the camera's x to the right, y DOWN, z FORWARD (planar depth is
z); `intrinsics` is 3×3 in pixels with pixel centres at +0.5. Blender's cameras look along -z with y up: multiply by
`FLIP` on the right to go either way. Model space is right-handed, +Z up; everything lies in the unit sphere.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

FLIP = np.diag([1.0, -1.0, -1.0, 1.0]).astype(np.float32)
FIELD_OF_VIEW = math.radians(40.0)
DISTANCE = 1.0 / math.sin(FIELD_OF_VIEW / 2)  # the unit sphere touches the edges of the picture: 2.924
RIG = ((0.0, 20.0), (90.0, 20.0), (180.0, 20.0), (270.0, 20.0))  # (azimuth, elevation) in degrees, after the paper
# Extra views for geometry and texture, most useful first: between the rig's from below and above, then poles.
EXTRA = (
    (45.0, -20.0), (225.0, -20.0), (135.0, 50.0), (315.0, 50.0),
    (135.0, -20.0), (315.0, -20.0), (45.0, 50.0), (225.0, 50.0),
    (0.0, 85.0), (0.0, -80.0), (90.0, -50.0), (270.0, -50.0),
)  # fmt: skip
FOLLOW = 0.8  # of the size of everything: where each keyframe is smaller than that, the cameras go with the object
# Cameras that no job ever sees: the evaluations render these.
HELD_OUT = ((30.0, 10.0), (120.0, 35.0), (210.0, 0.0), (300.0, 45.0))


def look_at(azimuth: float, elevation: float, distance: float = DISTANCE) -> np.ndarray:
    """camera_to_world [4, 4] float32 of a camera that looks at the origin. Degrees; azimuth 0 looks along +Y
    (Blender's front view), 90 stands on +X."""
    a, e = math.radians(azimuth), math.radians(elevation)
    position = distance * np.array([math.cos(e) * math.sin(a), -math.cos(e) * math.cos(a), math.sin(e)])
    forward = -position / np.linalg.norm(position)
    right = np.array([math.cos(a), math.sin(a), 0.0])
    down = np.cross(forward, right)
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1], matrix[:3, 2], matrix[:3, 3] = right, down, forward, position
    return matrix.astype(np.float32)


def pinhole(size: int, field_of_view: float = FIELD_OF_VIEW) -> np.ndarray:
    """intrinsics [3, 3] float32 of a square picture of `size` pixels."""
    focal = size / 2 / math.tan(field_of_view / 2)
    return np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], np.float32)


def job_cameras(size: int, views: int, rig_views: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """camera_to_world [views, 4, 4], intrinsics [views, 3, 3]: the rig, then as many extra views as asked for."""
    angles = (RIG[:rig_views] + EXTRA)[:views]
    if len(angles) < views:
        raise ValueError(f"only {len(RIG[:rig_views] + EXTRA)} standard views exist, {views} were asked for")
    return np.stack([look_at(*a) for a in angles]), np.stack([pinhole(size)] * views)


def scale_intrinsics(intrinsics: np.ndarray, factor: float) -> np.ndarray:
    """Intrinsics of the same camera when the picture is resized by `factor`."""
    return (intrinsics * np.array([[factor], [factor], [1.0]])).astype(np.float32)


def rays(camera_to_world: np.ndarray, intrinsics: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Origins and directions [..., size, size, 3] float32 for cameras [..., 4, 4] and [..., 3, 3].

    Directions have z = 1 in the camera's frame, NOT unit length: `origin + depth_planar * direction` is the point.
    """
    v, u = np.mgrid[0:size, 0:size].astype(np.float32) + 0.5
    pixels = np.stack([u, v, np.ones_like(u)], -1)
    inverse = np.linalg.inv(intrinsics.astype(np.float64)).astype(np.float32)
    rotation = camera_to_world[..., :3, :3] @ inverse
    directions = np.einsum("...ij,hwj->...hwi", rotation, pixels)
    origins = np.broadcast_to(camera_to_world[..., None, None, :3, 3], directions.shape)
    return np.ascontiguousarray(origins, np.float32), directions.astype(np.float32)


def project(points: np.ndarray, camera_to_world: np.ndarray, intrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates [..., 2] and planar depth [...] of points [N, 3] in one camera."""
    local = (points - camera_to_world[:3, 3]) @ camera_to_world[:3, :3]
    depth = local[:, 2]
    pixel = local @ intrinsics.T
    return pixel[:, :2] / np.maximum(depth, 1e-9)[:, None], depth


def look_up(
    picture: np.ndarray, points: np.ndarray, camera_to_world: np.ndarray, intrinsics: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a view's picture [H, W] holds at the pixels of points [N, 3], their planar depth, and which of them are in it."""
    pixel, depth = project(points, camera_to_world, intrinsics)
    column, row = np.floor(pixel).astype(int).T
    height, width = picture.shape
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (depth > 0)
    return picture[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)], depth, inside


def unproject(depth_planar: np.ndarray, camera_to_world: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Points [..., H, W, 3] of planar depths [..., H, W]; meaningless where the depth is 0 (mask them)."""
    origins, directions = rays(camera_to_world, intrinsics, depth_planar.shape[-1])
    return origins + depth_planar[..., None] * directions


def window(mask: np.ndarray, intrinsics: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray]:
    """The square around a mask [H, H] with a margin of two pixels, and the intrinsics [3, 3] of what it cuts out: most of a
    view is empty. The mask must not be."""
    size = len(mask)
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    side = min(size, max(int(np.ptp(rows)), int(np.ptp(columns))) + 5)
    top, left = (int(np.clip(inside[0] - 2, 0, size - side)) for inside in (rows, columns))
    lens = np.array(intrinsics, np.float32)
    lens[0, 2] -= left
    lens[1, 2] -= top
    return (slice(top, top + side), slice(left, left + side)), lens


def normalisation(centre: np.ndarray, radius: float, margin: float = 0.03) -> np.ndarray:
    """world_to_model [4, 4] float64 that puts everything within `radius` of `centre` [3] inside the unit sphere."""
    centre = np.asarray(centre, np.float64)
    scale = (1.0 - margin) / max(float(radius), 1e-12)
    matrix = np.eye(4)
    matrix[:3, :3] *= scale
    matrix[:3, 3] = -scale * centre
    return matrix


def placement(
    low: np.ndarray, high: np.ndarray, reach: Callable[[int, np.ndarray], float]
) -> tuple[np.ndarray, np.ndarray]:
    """Model space at every keyframe, inside the unit sphere: around one place, or following what walks away.

    Who stays in view of cameras that stand still becomes small in their pictures by as much as he goes. Where the spheres
    around him at each keyframe are smaller than `FOLLOW` times the one around all of them, the cameras go with him.

    Args:
        low, high: [K, 3], the world-space box of every keyframe.
        reach: the largest distance of any point of a keyframe from a place [3].
    Returns:
        world_to_model [4, 4] float64, a similarity, of the first keyframe; and origins [K, 3], model units: where the origin is
        at each keyframe from there. All zero where the cameras stand still.
    """
    keyframes = range(len(low))
    centres = (np.asarray(low, np.float64) + np.asarray(high, np.float64)) / 2
    common = (np.min(low, 0).astype(np.float64) + np.max(high, 0)) / 2
    radius = max(reach(k, common) for k in keyframes)
    own = max(reach(k, centres[k]) for k in keyframes)
    if own > FOLLOW * radius:
        return normalisation(common, radius), np.zeros((len(centres), 3))
    matrix = normalisation(centres[0], own)
    return matrix, (centres - centres[0]) @ matrix[:3, :3].T
