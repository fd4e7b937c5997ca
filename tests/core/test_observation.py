# SPDX-License-Identifier: GPL-3.0-or-later
"""What a capture says before anything is matched: which keyframe makes the best template."""

from __future__ import annotations

import numpy as np
import trimesh

import shapes
from lim_core.shared import cameras
from lim_core.tracking.observation import most_open


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


def test_contact_counts_not_area():
    """A rod whose ends touch shows as much surface as an open one; a template made of it would stay a ring."""
    rig = cameras.job_cameras(128, 12)
    ring, narrow, wide = (shapes.depth_of(*shapes.ring(gap), *rig, 128) for gap in (0.0, 0.9, 1.4))
    assert most_open(np.stack([ring, wide]), *rig) == 1
    assert most_open(np.stack([ring, ring, narrow]), *rig) == 2
    assert most_open(np.stack([narrow, ring, wide]), *rig) == 0, "nearly as open as another: the first is kept"
