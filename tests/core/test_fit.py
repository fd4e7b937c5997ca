# SPDX-License-Identifier: GPL-3.0-or-later
"""Registration of a painted tube onto rendered captures of the same tube, bent."""

import numpy as np
import pytest

import shapes
from lim_core import cameras, fit, texture
from lim_core.arap import Arap
from lim_core.errors import LimError

ANGLES = (0.0, 1.9)


@pytest.fixture(scope="module")
def bending():
    vertices, faces = shapes.tube(rings=40, around=20)
    camera_to_world, intrinsics = cameras.job_cameras(192, 8)
    truth = np.stack([shapes.bent(vertices, a) for a in ANGLES])
    seen = [shapes.capture_of(v, faces, vertices, camera_to_world, intrinsics, 192) for v in truth]
    depth, images = (np.stack([s[i] for s in seen]) for i in (0, 1))
    return vertices, faces, truth, depth, images, camera_to_world, intrinsics, Arap(vertices, faces)


@pytest.fixture(scope="module")
def fitted(bending):
    vertices, faces, _, depth, images, camera_to_world, intrinsics, arap = bending
    return fit.fit_keyframes(vertices, faces, arap, depth, images, camera_to_world, intrinsics)


def test_tracks_a_bend_without_networks(bending, fitted):
    _, _, truth, *_, arap = bending
    positions, residuals = fitted
    error = np.linalg.norm(positions[1] - truth[1], axis=1) / arap.diagonal
    assert np.linalg.norm(truth[1] - truth[0], axis=1).mean() / arap.diagonal > 0.08
    assert error.mean() < 0.02
    assert np.percentile(error, 95) < 0.05
    assert np.array_equal(positions[0], truth[0])
    assert residuals[1].distance < 0.02 and residuals[1].colour < 0.1


def test_networks_that_are_wrong_do_not_tear_the_mesh(bending):
    """They say, rather surely, that nothing moves; the capture shows that it bends."""
    vertices, faces, truth, depth, images, camera_to_world, intrinsics, arap = bending
    traced = np.stack([vertices, vertices])
    positions, _ = fit.fit_keyframes(
        vertices, faces, arap, depth, images, camera_to_world, intrinsics, traced=traced,
        confidence=np.full(traced.shape[:2], 0.7),
    )  # fmt: skip
    error = np.linalg.norm(positions[1] - truth[1], axis=1) / arap.diagonal
    assert error.mean() < 0.02 and np.percentile(error, 95) < 0.05


def test_stays_where_nothing_moves(bending):
    vertices, faces, _, depth, images, camera_to_world, intrinsics, arap = bending
    still = [0, 0]
    positions, _ = fit.fit_keyframes(vertices, faces, arap, depth[still], images[still], camera_to_world, intrinsics)
    assert np.linalg.norm(positions[1] - vertices, axis=1).mean() / arap.diagonal < 0.005


def test_correspond_finds_the_other_end(bending):
    vertices, _, truth, depth, images, camera_to_world, intrinsics, arap = bending
    source, target = (fit.Capture(depth[k], images[k], camera_to_world, intrinsics) for k in (0, 1))
    places, moved, confidence = fit.correspond(source, target)
    expected = shapes.bent(places, ANGLES[1])
    assert np.linalg.norm(moved - expected, axis=1).mean() / arap.diagonal < 0.05
    assert confidence.min() >= 0 and confidence.max() <= 1


def test_the_residual_prefers_the_truth(bending):
    vertices, faces, truth, depth, images, camera_to_world, intrinsics, _ = bending
    target = fit.Capture(depth[1], images[1], camera_to_world, intrinsics)
    colours, _ = texture.see(vertices, faces, images[0], depth[0], camera_to_world, intrinsics)
    matcher = fit.Matcher(target, colours, colour_scale=0.05)
    upside_down = shapes.bent(vertices * [1, -1, -1], ANGLES[1])
    right, wrong, turned = (fit.residual(faces, p, matcher, 0.0) for p in (truth[1], truth[0], upside_down))
    assert right.score < 0.5 * wrong.score and right.score < 0.7 * turned.score


def test_networks_help_where_the_capture_is_mute(bending):
    """All grey, and the tube turns about its own axis: only a trace can know."""
    vertices, faces, _, depth, images, camera_to_world, intrinsics, arap = bending
    turn = 0.6
    turned = vertices @ np.array([[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    intrinsics, depth, images = (
        cameras.scale_intrinsics(intrinsics, 0.5),
        depth[:1, :, ::2, ::2],
        images[:1, :, ::2, ::2],
    )
    grey = np.where(images[..., 3:] > 0, 128, 0).astype(np.uint8).repeat(4, axis=-1)
    still = [0, 0]
    arguments = (vertices, faces, arap, depth[still], grey[still], camera_to_world, intrinsics)
    alone, _ = fit.fit_keyframes(*arguments)
    traced = np.stack([vertices, turned])
    helped, _ = fit.fit_keyframes(*arguments, traced=traced, confidence=np.ones(traced.shape[:2]))
    error = [np.linalg.norm(positions[1] - turned, axis=1).mean() for positions in (alone, helped)]
    assert error[1] < 0.6 * error[0]


def test_an_empty_keyframe_is_said(bending):
    vertices, faces, _, depth, images, camera_to_world, intrinsics, arap = bending
    empty = np.stack([depth[0], np.zeros_like(depth[0])])
    with pytest.raises(LimError) as error:
        fit.fit_keyframes(vertices, faces, arap, empty, images, camera_to_world, intrinsics)
    assert error.value.code == "empty_surface"


def test_blend_passes_through_the_keyframes(bending):
    vertices, _, truth, *_, arap = bending
    intervals = [(0, 0.0), (0, 0.5), (1, 0.0), (1, 0.5), (1, 1.0)]
    keyframes = np.stack([truth[0], truth[1], truth[0] + 0.1])
    result = fit.blend_corrections(None, keyframes, intervals, None, arap)
    assert np.array_equal(result[[0, 2, 4]], keyframes)
    half = shapes.bent(vertices, ANGLES[1] / 2)
    drift = (result[1] - half) - (result[1] - half).mean(0)
    assert np.linalg.norm(drift, axis=1).mean() / arap.diagonal < 0.01


def test_blend_keeps_the_networks_motion_where_they_are_sure(bending):
    vertices, _, truth, *_, arap = bending
    intervals = [(0, 0.0), (0, 0.5), (0, 1.0)]
    keyframes = truth + [0.05, 0, 0]  # the capture says that the trace is off by this much everywhere
    hop = np.stack([truth[0], shapes.bent(vertices, ANGLES[1] / 2) + [0, 0.2, 0], truth[1]])
    sure = fit.blend_corrections(hop, keyframes, intervals, np.ones((3, len(vertices))), arap)
    mute = fit.blend_corrections(hop, keyframes, intervals, np.zeros((3, len(vertices))), arap)
    assert np.array_equal(sure[[0, 2]], keyframes) and np.array_equal(mute[[0, 2]], keyframes)
    assert np.linalg.norm(sure[1] - hop[1] - [0.05, 0, 0], axis=1).mean() < 0.05
    assert np.abs((sure[1] - mute[1]).mean(0)[1] - 0.2) < 0.02


def test_large_faces_are_pulled_too(bending):
    """An artist's mesh may have few vertices: the captured points must reach the middle of its faces."""
    _, _, truth, depth, images, camera_to_world, intrinsics, _ = bending
    vertices, faces = shapes.tube(rings=9, around=8)
    arap = Arap(vertices, faces)
    positions, _ = fit.fit_keyframes(vertices, faces, arap, depth, images, camera_to_world, intrinsics)
    expected = shapes.bent(vertices, ANGLES[1])
    assert np.linalg.norm(positions[1] - expected, axis=1).mean() / arap.diagonal < 0.025
    samples = fit.Samples(vertices, faces, 2000)
    assert samples.matrix.shape[0] > 1500
    assert np.abs(np.linalg.norm(samples.at(vertices)[1], axis=1) - 1).max() < 1e-5
