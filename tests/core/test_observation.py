# SPDX-License-Identifier: GPL-3.0-or-later
"""What a capture says before anything is matched: which keyframe makes the best template."""

from __future__ import annotations

import numpy as np
import trimesh

import shapes
from lim_core import cameras
from lim_core.observation import most_open


def test_the_keyframe_where_parts_are_apart_is_the_most_open():
    one, two = trimesh.creation.box((0.3, 0.5, 0.5)), trimesh.creation.box((0.3, 0.5, 0.5))
    faces = np.concatenate([one.faces, two.faces + len(one.vertices)])
    camera_to_world, intrinsics = cameras.job_cameras(128, 12)
    touching, apart = (
        shapes.depth_of(
            np.concatenate([one.vertices - [gap, 0, 0], two.vertices + [gap, 0, 0]]),
            faces,
            camera_to_world,
            intrinsics,
            128,
        )
        for gap in (0.15, 0.35)
    )
    for depths, best in (([touching, apart, touching], 1), ([apart, touching], 0), ([touching, touching], 0)):
        assert most_open(np.stack(depths), camera_to_world, intrinsics) == best


def bent_rod(gap: float) -> np.ndarray:
    """Depth [views, 128, 128] of a rod bent to a ring that lacks `gap` radians."""
    angle = np.linspace(gap / 2, 2 * np.pi - gap / 2, 60)
    path = 0.6 * np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
    turn = np.linspace(0, 2 * np.pi, 17)[:-1]
    profile = 0.12 * np.stack([np.cos(turn), np.sin(turn)], 1)
    outwards = path / 0.6
    rings = path[:, None] + profile[None, :, :1] * outwards[:, None] + profile[None, :, 1:] * np.array([0, 0, 1.0])
    i, j = np.meshgrid(np.arange(59), np.arange(16), indexing="ij")
    a, b, c, d = i * 16 + j, i * 16 + (j + 1) % 16, (i + 1) * 16 + (j + 1) % 16, (i + 1) * 16 + j
    sides = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    caps = [[start, start + k, start + k + 1] for start in (0, 59 * 16) for k in range(1, 15)]
    return shapes.depth_of(rings.reshape(-1, 3), np.concatenate([sides, caps]), *cameras.job_cameras(128, 12), 128)


def test_contact_counts_not_area():
    """A rod whose ends touch shows as much surface as an open one; a template made of it would stay a ring."""
    ring, narrow, wide = bent_rod(0.0), bent_rod(0.9), bent_rod(1.4)
    rig = cameras.job_cameras(128, 12)
    assert most_open(np.stack([ring, wide]), *rig) == 1
    assert most_open(np.stack([ring, ring, narrow]), *rig) == 2
    assert most_open(np.stack([narrow, ring, wide]), *rig) == 0, "nearly as open as another: the first is kept"
