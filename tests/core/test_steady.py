# SPDX-License-Identifier: GPL-3.0-or-later
"""Keyframes of a clip: what it shows moving is kept, what was guessed anew each time is smoothed."""

import numpy as np
import pytest

from lim_core.shared import cameras
from lim_core.tracking import steady

TIMES = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 14.0]
CAMERA = cameras.look_at(0.0, 20.0)


def flying() -> np.ndarray:
    """Points that fly straight at an even speed: [K, V, 3]."""
    points = np.random.default_rng(1).normal(0, 0.2, (200, 3))
    return np.stack([points + (t - 7) * np.array([0.03, 0.01, -0.02]) for t in TIMES])


def trembling(positions: np.ndarray) -> float:
    return np.linalg.norm(np.diff(positions[:-1], 2, axis=0), axis=-1).mean()


def test_even_motion_is_left_alone_at_uneven_times():
    positions = flying()
    np.testing.assert_allclose(steady.steady(positions, TIMES, CAMERA), positions, atol=1e-6)
    assert np.array_equal(steady.steady(positions[:2], TIMES[:2], CAMERA), positions[:2])


@pytest.mark.parametrize(("axis", "size", "left"), [(2, 0.03, 0.2), (0, 0.01, 0.55)])
def test_trembling_is_smoothed_most_along_the_line_of_sight(axis, size, left):
    positions = flying()
    noise = size * np.random.default_rng(0).standard_normal((len(TIMES), 1, 1)) * CAMERA[:3, axis]
    result = steady.steady(positions + noise, TIMES, CAMERA)
    assert trembling(result) < left * trembling(positions + noise)
    assert np.linalg.norm(result - positions, axis=-1).mean() < np.linalg.norm(noise, axis=-1).mean()


def test_a_sudden_motion_across_the_picture_stays_sudden():
    positions = flying()[[0] * len(TIMES)]
    positions[4:] += 0.4 * CAMERA[:3, 0]
    off = (steady.steady(positions, TIMES, CAMERA) - positions) @ CAMERA[:3, :3]
    assert np.linalg.norm(off[..., :2], axis=-1).mean() < 0.01
