# SPDX-License-Identifier: GPL-3.0-or-later
"""A motion by fewer shape keys: none is lost where lines suffice, and the error that is stated is the one that is there."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lim_core.tracking import reduction


def motion(frames: int = 17, vertices: int = 40) -> np.ndarray:
    """A mesh that swings, faster towards the end."""
    random = np.random.default_rng(1)
    rest, way = random.normal(0, 0.3, (2, vertices, 3))
    time = np.linspace(0, 1, frames)
    return (rest + np.sin(9 * time**2)[:, None, None] * way + np.cos(5 * time)[:, None, None] * way[::-1]).astype(
        np.float32
    )


def played(positions: np.ndarray, frames: np.ndarray, keys: np.ndarray) -> np.ndarray:
    flat = positions[keys].reshape(len(keys), -1)
    return np.stack([np.interp(frames, frames[keys], column) for column in flat.T], 1).reshape(positions.shape)


def test_a_motion_along_straight_lines_loses_nothing():
    knots, frames = np.array([0, 5, 6, 13]), np.array([1, 2, 3, 4.5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16.0])
    shapes = np.random.default_rng(0).normal(0, 0.4, (4, 30, 3))
    positions = np.stack([np.interp(frames, frames[knots], c) for c in shapes.reshape(4, -1).T], 1).reshape(-1, 30, 3)
    for most in (4, 9, 13):
        assert reduction.choose(positions, frames, most).tolist() == knots.tolist(), "no more keys than needed"
    rms, largest = reduction.errors(positions, frames, knots)
    assert rms < 1e-6 and largest < 1e-6
    assert reduction.errors(positions, frames, reduction.choose(positions, frames, 3))[0] > 1


def test_what_stands_still_needs_two():
    assert reduction.choose(np.ones((9, 5, 3)), np.arange(9), 5).tolist() == [0, 8]


def test_no_other_choice_of_as_many_frames_is_better():
    positions, frames = motion(9), np.array([1, 2, 3, 4, 6, 8, 10, 12, 14.0])
    keys = reduction.choose(positions, frames, 4)
    best = min(
        reduction.errors(positions, frames, np.array([0, *inner, 8]))[0]
        for inner in itertools.combinations(range(1, 8), 2)
    )
    assert len(keys) == 4 and keys[0] == 0 and keys[-1] == 8
    assert reduction.errors(positions, frames, keys)[0] == pytest.approx(best, rel=1e-9)


def test_the_error_falls_with_the_number_and_is_the_one_of_the_playback():
    positions, frames = motion(), np.linspace(10, 50, 17)
    diagonal = np.linalg.norm(np.ptp(positions[0], axis=0))
    last = np.inf
    for most in range(2, 17):
        keys = reduction.choose(positions, frames, most)
        rms, largest = reduction.errors(positions, frames, keys)
        off = 100 / diagonal * np.linalg.norm(played(positions, frames, keys) - positions, axis=2)
        assert rms == pytest.approx(np.sqrt((off**2).mean()), rel=1e-4) and largest == pytest.approx(
            off.max(), rel=1e-4
        )
        assert len(keys) <= most and rms < last
        last = rms
    for most in (17, 40):
        assert reduction.choose(positions, frames, most).tolist() == list(range(17))
    assert reduction.errors(positions, frames, np.arange(17)) == (0, 0)
