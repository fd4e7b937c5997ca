# SPDX-License-Identifier: GPL-3.0-or-later
"""In-betweens of keyframes whose motion is known."""

import numpy as np
import pytest

import shapes
from lim_core.mesh.arap import Arap, rotation_matrices
from lim_core.tracking import between

HALVES = [0.0, 0.5, 1.0]


@pytest.fixture(scope="module")
def tube():
    vertices, faces = shapes.tube(rings=24, around=16)
    return vertices, faces, Arap(vertices, faces)


def test_keyframes_are_kept_and_bends_are_rigid(tube):
    vertices, _, arap = tube
    keyframes = np.stack([vertices, shapes.bent(vertices, 1.9), vertices + 0.1])
    result = between.interpolate(arap, keyframes[:2], [1, 5], HALVES)
    assert np.array_equal(result[[0, 2]], keyframes[:2])
    half = shapes.bent(vertices, 0.95)
    drift = (result[1] - half) - (result[1] - half).mean(0)
    assert np.linalg.norm(drift, axis=1).mean() / arap.diagonal < 0.01
    result = between.interpolate(arap, keyframes, [1, 5, 6], HALVES)
    assert len(result) == 5 and np.array_equal(result[[0, 2, 4]], keyframes)
    assert np.array_equal(between.interpolate(arap, keyframes, [1, 5, 6], [0.0, 1.0]), keyframes)
    uneven = between.interpolate(arap, keyframes, [1, 5, 6], [[0.0, 0.25, 0.5, 0.75, 1.0], [0.0, 1.0]])
    assert len(uneven) == 6 and np.array_equal(uneven[[0, 4, 5]], keyframes)
    np.testing.assert_allclose(uneven[2], result[1], atol=1e-9)


def test_a_velocity_goes_on_through_the_keyframes(tube):
    """A tube that flies along a curve, turning: half-way it is nearer to the curve than the chord is."""
    vertices, _, arap = tube

    def at(time):
        turn = rotation_matrices(np.array([[0.5 * time, 0, 0]]))[0]
        return vertices @ turn.T + [0.3 * time, 0.3 * np.sin(1.2 * time), 0]

    keyframes = np.stack([at(k) for k in range(5)])
    result = between.interpolate(arap, keyframes, range(5), HALVES)
    straight = np.stack([arap.interpolate(a, b, [0.5])[0] for a, b in zip(keyframes, keyframes[1:])])
    middle = [1, 2]  # intervals with a neighbour on both sides
    truth = np.stack([at(k + 0.5) for k in middle])
    error, before = (np.linalg.norm(shape - truth, axis=2).mean() for shape in (result[1::2][middle], straight[middle]))
    assert error < 0.4 * before


def test_what_stands_still_does_not_swing_out(tube):
    vertices, _, arap = tube
    keyframes = np.stack([vertices, vertices, vertices + [0.5, 0, 0], vertices + [0.5, 0, 0]])
    result = between.interpolate(arap, keyframes, range(4), [0.0, 0.25, 0.5, 0.75, 1.0])
    assert np.abs(result[:5] - vertices).max() < 1e-6 and np.abs(result[-5:] - keyframes[-1]).max() < 1e-6
    assert result[..., 0].max() < (vertices + 0.5)[:, 0].max() + 1e-6


def test_the_networks_motion_counts_as_much_as_they_are_sure(tube):
    vertices, _, arap = tube
    hop = np.stack([vertices, shapes.bent(vertices, 0.95) + [0, 0.2, 0], shapes.bent(vertices, 1.9)])
    keyframes = hop[[0, 2]] + [0.05, 0, 0]  # the capture says that the trace is off by this much everywhere
    sure, mute = (
        between.interpolate(arap, keyframes, [0, 1], HALVES, [(hop, np.full((3, len(vertices)), c))])
        for c in (1.0, 0.0)
    )
    assert np.array_equal(sure[[0, 2]], keyframes) and np.array_equal(mute[[0, 2]], keyframes)
    assert np.linalg.norm(sure[1] - hop[1] - [0.05, 0, 0], axis=1).mean() < 0.05
    assert np.abs((sure[1] - mute[1]).mean(0)[1] - 0.2) < 0.02


def test_networks_that_miss_the_next_keyframe_are_not_believed_on_the_way(tube):
    vertices, _, arap = tube
    hop = np.stack([vertices, vertices + [0, 0.2, 0], vertices + [0.8, 0, 0]])  # sure of a hop to the wrong side
    keyframes = np.stack([vertices, vertices - [0.8, 0, 0]])
    wrong, mute = (
        between.interpolate(arap, keyframes, [0, 1], HALVES, [(hop, np.full((3, len(vertices)), c))])
        for c in (1.0, 0.0)
    )
    assert np.abs(wrong[1] - mute[1]).max() < 0.1 * np.linalg.norm(hop[1] - hop[[0, 2]].mean(0), axis=1).max()


def test_half_a_turn_keeps_its_size(tube):
    """A blade on a still body makes half a turn: every vertex of it turns the same way round."""
    vertices, faces, _ = tube
    blade = vertices[:, [2, 1, 0]] * 0.5 + [0, 0, 0.9]
    both = np.concatenate([vertices, blade])
    triangles = np.concatenate([faces, faces[:, ::-1] + len(vertices)])
    turned = both.copy()
    turned[len(vertices) :, :2] *= -1
    turned += np.random.default_rng(0).normal(scale=1e-3, size=both.shape)  # which way round is a matter of noise
    middle = between.interpolate(Arap(both, triangles), np.stack([both, turned]), [0, 1], HALVES)[1]
    assert np.ptp(middle[len(vertices) :], axis=0).max() > 0.95 * np.ptp(blade, axis=0).max()


def test_in_betweens_have_no_face_turned_over(tube):
    """The spline's and the networks' corrections go vertex by vertex: they may fold what the rigid motion kept."""
    vertices, faces, arap = tube
    keyframes = np.stack([vertices, shapes.bent(vertices, 0.6)])
    straight = between.interpolate(arap, keyframes, [0, 1], HALVES)[1]
    noise = 0.04 * np.random.default_rng(1).normal(size=vertices.shape)
    noise[vertices[:, 2] < 0.3] = 0
    rough = np.stack([vertices, straight + noise, keyframes[1]])
    sure = np.ones((3, len(vertices)))
    smooth = arap.smooth
    arap.smooth = lambda field, trust: field  # as if the networks' word were rough
    try:
        result = between.interpolate(arap, keyframes, [0, 1], HALVES, [(rough, sure)])[1]
    finally:
        arap.smooth = smooth
    assert arap.turned(result).min() > 0 and np.abs(result - straight).max() > 0.02
