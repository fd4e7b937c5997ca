# SPDX-License-Identifier: GPL-3.0-or-later
"""One body for each keyframe, out of views that agree only roughly: after it, everything that is captured agrees.

Every view votes for each cell of a grid: inside its silhouette and behind its surface. The clip has a veto, the made-up views
decide by majority, and what lies just behind the clip's own surface is inside in any case. The capture's depth, and what
other cameras see, are taken from this body; the clip's pictures stay what they are.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..mesh import rays, surface, texture
from ..mesh.packs import Pack
from ..shared import cameras

GRID = 96
LEVEL = 0.45  # of the smoothed votes
SOFT = 0.01  # model units over which a view's vote changes at its surface
SHELL = 0.06  # behind the clip's surface, model units
CLOSE = 0.025  # that a colour's depth may be off to count as seen


def body(
    rgba: np.ndarray, depth_planar: np.ndarray, camera_to_world: np.ndarray, intrinsics: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Closed mesh of one keyframe.

    Args:
        rgba: uint8 [V, H, W, 4], the clip's view first; depth_planar: [V, H, W], 0 where nothing is.
        camera_to_world: [V, 4, 4]; intrinsics: [V, 3, 3].
    Returns:
        vertices [N, 3] float32, faces [M, 3] int32.
    Raises:
        LimError: empty_surface.
    """
    steps = np.linspace(-1, 1, GRID, dtype=np.float32)
    points = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    points = points[np.linalg.norm(points, axis=1) < 1]
    votes = []
    for view in range(len(rgba)):
        pixel, z = cameras.project(points, camera_to_world[view], intrinsics[view])
        alpha = rgba[view, ..., 3].astype(np.float32) / 255
        known = depth_planar[view] > 0
        if not known.any():
            votes.append(np.zeros(len(points), np.float32))
            continue
        nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
        place = (pixel - 0.5).T[::-1]
        inside = ndimage.map_coordinates(alpha, place, order=1, mode="constant")
        behind = z - ndimage.map_coordinates(depth_planar[view][tuple(nearest)], place, order=1, mode="nearest")
        votes.append(inside / (1 + np.exp(np.clip(-behind / SOFT, -30, 30))))
        if view == 0:
            shell = inside * np.exp(-((behind - 0.67 * SHELL) ** 2) / SHELL**2)
    most = np.clip(3 * np.mean(votes[1:], 0) - 1, 0, 1)  # one of three is none, two of three are all
    field = np.maximum(votes[0] * most, shell)
    grid = np.zeros((GRID, GRID, GRID), np.float32)
    index = np.rint((points + 1) * ((GRID - 1) / 2)).astype(int)
    grid[tuple(index.T)] = field
    vertices, faces = surface.marching_cubes(ndimage.gaussian_filter(grid, 0.7), LEVEL)
    vertices, faces = surface.clean(vertices, faces)
    return surface.taubin(vertices, faces), faces.astype(np.int32)


def capture(
    rgba: np.ndarray, depth_planar: np.ndarray, camera_to_world: np.ndarray, intrinsics: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One keyframe from every camera of the job: uint8 [V, H, W, 4] and depth_planar float32 [V, H, W], of one body.

    Args:
        rgba, depth_planar: as in `body`, of the first cameras alone.
        camera_to_world: [V, 4, 4]; intrinsics: [V, 3, 3] of all cameras.
    """
    made, size = len(rgba), rgba.shape[1]
    vertices, faces = body(rgba, depth_planar, camera_to_world[:made], intrinsics[:made])
    pack = _pack(vertices, faces)
    seen = rays.render(pack, vertices, camera_to_world, intrinsics, size)
    depth = seen.depth_planar
    shown = np.where(rgba[..., 3] > 127, depth[:made], 0)
    colour, _ = texture.see(vertices, faces, rgba, shown, camera_to_world[:made], intrinsics[:made])
    carried = rays.render(pack, vertices, camera_to_world, intrinsics, size, canonical=(colour,)).canonical[0]
    pictures = np.zeros((len(camera_to_world), size, size, 4), np.uint8)
    pictures[..., :3] = (carried.clip(0, 1) * 255).round()
    pictures[..., 3] = 255 * (depth > 0)
    own = (rgba[1:, ..., 3] > 127) & (np.abs(depth_planar[1:] - depth[1:made]) < 2 * CLOSE) & (depth[1:made] > 0)
    pictures[1:made][own] = rgba[1:][own]
    pictures[0] = rgba[0]
    depth[0] = np.where(rgba[0, ..., 3] > 127, depth[0], 0)
    return pictures, depth


def _pack(vertices: np.ndarray, faces: np.ndarray) -> Pack:
    """The body as an asset without colours, for the renderer."""
    return Pack(
        name="body", faces=faces, uv=np.zeros((len(faces), 3, 2), np.float32), face_material=np.zeros(len(faces), np.uint8),
        texture_shape=np.array([[1, 1]]), texture_start=np.array([0]), texels=np.full((1, 3), 128, np.uint8),
        clip_names=("body",), clip_start=np.array([0, 1]), fps=1.0, stored_positions=vertices[None],
    )  # fmt: skip
