# SPDX-License-Identifier: GPL-3.0-or-later
"""Colours read from the pictures that show a place, and from the decoder where none does."""

import numpy as np
import torch
from torch import nn

from lim_core.job.capture import Capture
from lim_core.networks.image_colour import PLAIN
from lim_core.shared import cameras

SIZE = 64


class Grey(nn.Module):
    """Density 5 and mid-grey everywhere."""

    def forward(self, triplane, points):
        return torch.full(points.shape[:2], 5.0), torch.full_like(points, 0.5)


def wall(depth_at: float = 0.0) -> Capture:
    """One camera that looks at an upright square, red on its left half and blue on the right one."""
    camera, intrinsics = cameras.job_cameras(SIZE, 1)
    distance = float(np.linalg.norm(camera[0, :3, 3])) - depth_at
    rgba = np.zeros((1, 1, SIZE, SIZE, 4), np.uint8)
    rgba[0, 0, 16:48, 16:32] = (255, 0, 0, 255)
    rgba[0, 0, 16:48, 32:48] = (0, 0, 255, 255)
    depth = np.where(rgba[..., 3] > 0, distance, 0).astype(np.float32)
    return Capture(rgba, depth, camera, intrinsics, 1)


def places(capture: Capture, pixels, behind: float = 0.0) -> torch.Tensor:
    """Points [1, N, 3] on the wall at pixels (x, y), or so far behind it as seen from the camera."""
    grid = cameras.unproject(
        np.full((1, SIZE, SIZE), capture.depth_planar.max() + behind, np.float32),
        capture.camera_to_world,
        capture.intrinsics,
    )[0]
    return torch.from_numpy(np.stack([grid[y, x] for x, y in pixels]).astype(np.float32))[None]


def content(capture: Capture, points: torch.Tensor) -> np.ndarray:
    density, found = capture.image_colour(Grey(), 0)(torch.zeros(1), points)
    assert (density == 5).all() and found.shape == points.shape
    return found[0].numpy()


def test_what_a_picture_shows_has_its_colour():
    capture = wall()
    found = content(capture, places(capture, [(20, 30), (44, 30)]))
    share = PLAIN / (1 + PLAIN)
    assert np.allclose(found, np.array([[1, 0, 0], [0, 0, 1]]) * (1 - share) + 0.5 * share, atol=0.01)


def test_what_no_picture_shows_keeps_the_decoders():
    """Behind the wall, beside it, behind the camera."""
    capture = wall()
    behind = places(capture, [(20, 30), (44, 30)], behind=0.15)
    beside = places(capture, [(4, 4), (60, 60)])
    back = 2 * torch.from_numpy(capture.camera_to_world[:, :3, 3])[None] - places(capture, [(20, 30)])
    for points in (behind, beside, back):
        assert np.allclose(content(capture, points), 0.5, atol=1e-4)


def test_no_depth_no_pictures():
    capture = wall()
    capture.depth_planar = None
    decoder = Grey()
    assert capture.image_colour(decoder, 0) is decoder
