# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts of the template that only touched where it was made: seen once it has been fitted to keyframes where they are apart.

There the web between them is stretched, and hangs where a view looks through. Ours, not the paper's.
Arrays are numpy, model space [-1, 1]³. Shapes: V template vertices, F faces, K keyframes.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..job.capture import Capture
from ..mesh.surface import components, face_normals
from ..shared import cameras

STRETCHED = 1.8  # times its length in the template: an edge of a web; skin bends and bulges less
PASSED = 0.03  # model units that a view looks past a face: more than a fit is off by
LEAST = 3  # faces that hang together: one alone is noise
MOST = 0.1  # of all faces: more of them are no webs, but a mesh that has gone astray


def webbed(template: np.ndarray, faces: np.ndarray, fitted: np.ndarray, capture: Capture) -> np.ndarray:
    """Which faces [F] are stretched over empty space in one of the keyframes.

    Args:
        template: [V, 3]; fitted: [K, V, 3], the template at every keyframe; capture: with depth.
    """
    assert capture.depth_planar is not None
    found = np.zeros(len(faces), bool)
    rest = np.maximum(_lengths(template, faces), 1e-4)
    for positions, depth in zip(fitted, capture.depth_planar):
        stretched = np.flatnonzero((_lengths(positions, faces) > STRETCHED * rest).any(1))
        found[stretched[_passed(positions[faces[stretched]].mean(1), depth, capture)]] = True
    return found


def _lengths(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    corners = np.asarray(vertices, np.float64)[faces]
    return np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2)


def _passed(points: np.ndarray, depth_planar: np.ndarray, capture: Capture) -> np.ndarray:
    """Which points [N, 3] a view of one keyframe looks past, by all pixels around each."""
    passed = np.zeros(len(points), bool)
    for depth, pose, intrinsics in zip(depth_planar, capture.camera_to_world, capture.intrinsics):
        seen = ndimage.minimum_filter(np.where(depth > 0, depth, np.inf), 3, mode="nearest")
        there, z, inside = cameras.look_up(seen, points, pose, intrinsics)
        passed |= inside & (there > z + PASSED)
    return passed


def contacts(template: np.ndarray, faces: np.ndarray, web: np.ndarray) -> list[np.ndarray]:
    """The centres [N, 3] of the faces of every web on the template; none where it is few faces, or a large part of all.

    Args:
        web: [F] bool, of `webbed`.
    """
    hanging = faces[web]
    if not 0 < len(hanging) < MOST * len(faces):
        return []
    part = components(len(template), hanging)[1][hanging[:, 0]]
    sets = [hanging[part == label] for label in np.unique(part)]
    return [np.asarray(template, np.float64)[some].mean(1) for some in sets if len(some) >= LEAST]


def area(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Of some faces [N, 3] of a mesh, in square model units."""
    return 0.5 * float(np.linalg.norm(face_normals(vertices, faces), axis=1).sum())
