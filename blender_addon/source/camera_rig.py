# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the cameras stand, in Blender's terms. Plain numpy: nothing here needs bpy.

Blender's cameras look along their -z with y up; `lim_core.shared.cameras` looks along +z with y down. `cameras.FLIP` is the
whole difference, and this is the only file of the add-on that applies it.
"""

from __future__ import annotations

import math

import numpy as np

from ...lim_core.shared import cameras

SENSOR = 36.0  # millimetres; Blender's default sensor, only the ratio lens : sensor matters
NEAR = 0.02 * (cameras.DISTANCE - 1.0)  # model units; the object begins at DISTANCE - 1
FAR = 2.0 * (cameras.DISTANCE + 1.0)


def blender_matrix(camera_to_world: np.ndarray) -> np.ndarray:
    """Matrix [4, 4] float64 of a Blender camera object, in the same space as `camera_to_world` [4, 4]."""
    return np.asarray(camera_to_world, np.float64) @ cameras.FLIP


def lens(intrinsics: np.ndarray, size: int) -> float:
    """Focal length in millimetres, on a sensor of `SENSOR`, of a square picture of `size` pixels.

    Raises:
        ValueError: the principal point is not the centre, or the pixels are not square: no job has such a camera.
    """
    (fx, skew, cx), (_, fy, cy) = np.asarray(intrinsics, np.float64)[:2]
    if not (
        math.isclose(fx, fy, rel_tol=1e-5) and abs(skew) < 1e-6 and max(abs(cx - size / 2), abs(cy - size / 2)) < 1e-3
    ):
        raise ValueError("only centred cameras with square pixels can be set up in Blender")
    return SENSOR * fx / size
