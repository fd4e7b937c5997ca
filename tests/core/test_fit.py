# SPDX-License-Identifier: GPL-3.0-or-later
"""Fitting a painted tube to rendered captures of the same tube, bent."""

import numpy as np
import pytest

import shapes
from lim_core.job.capture import Capture
from lim_core.mesh.arap import Arap
from lim_core.shared import cameras
from lim_core.shared.errors import LimError
from lim_core.tracking import fit


@pytest.fixture(scope="module")
def bending():
    return shapes.bending()


def error_of(bending, positions, truth):
    return np.linalg.norm(positions - truth, axis=1) / bending.arap.diagonal


def test_tracks_a_bend_without_networks(bending):
    positions, residuals = fit.fit_keyframes(bending.vertices, bending.faces, bending.arap, bending.capture)
    error = error_of(bending, positions[1], bending.truth[1])
    assert error_of(bending, bending.truth[1], bending.truth[0]).mean() > 0.08
    assert error.mean() < 0.02
    assert np.percentile(error, 95) < 0.05
    assert np.array_equal(positions[0], bending.truth[0])
    assert residuals[1].distance < 0.02 and residuals[1].colour < 0.1


def test_goes_outwards_from_the_templates_own_keyframe():
    """The template is at home in the middle; before and after it the tube bends to either side."""
    bending = shapes.bending((-0.8, 0.0, 0.8), size=128)
    positions, residuals = fit.fit_keyframes(bending.vertices, bending.faces, bending.arap, bending.capture, home=1)
    assert np.array_equal(positions[1], bending.vertices) and len(residuals) == 3
    for k in (0, 2):
        assert error_of(bending, positions[k], bending.truth[k]).mean() < 0.02


def test_goes_on_as_before():
    """A tube whose paint looks the same after a quarter turn: to have turned back by 45° is as near as to have turned on
    by 45°, unless one remembers that it was turning."""
    bending = shapes.bending((0.0,), size=96)
    x, y, z = bending.vertices.T
    angle, radius = 4 * np.arctan2(y, x), np.hypot(x, y)
    paint = np.stack([radius * np.cos(angle), radius * np.sin(angle), 0.3 * z], 1)
    views = (bending.capture.camera_to_world, bending.capture.intrinsics)
    truth = [bending.vertices @ turned_about_z(turn) for turn in (0.0, 0.7, 1.48)]
    seen = [shapes.capture_of(v, bending.faces, paint, *views, 96) for v in truth]
    capture = Capture(np.stack([s[1] for s in seen]), np.stack([s[0] for s in seen]), *views, 4)
    positions, _ = fit.fit_keyframes(bending.vertices, bending.faces, bending.arap, capture)
    assert error_of(bending, positions[1], truth[1]).mean() < 0.01
    assert error_of(bending, positions[2], truth[2]).mean() < 0.02


def turned_about_z(turn):
    return np.array([[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0], [0, 0, 1]])


def test_networks_that_are_wrong_do_not_tear_the_mesh(bending):
    """They say, rather surely, that nothing moves; the capture shows that it bends."""
    sure = np.full(len(bending.vertices), 0.7)
    positions, _ = fit.fit_keyframes(
        bending.vertices,
        bending.faces,
        bending.arap,
        bending.capture,
        guess=lambda k, to, mesh: (bending.vertices, sure),
    )
    error = error_of(bending, positions[1], bending.truth[1])
    assert error.mean() < 0.02 and np.percentile(error, 95) < 0.05


def test_stays_where_nothing_moves(bending):
    positions, _ = fit.fit_keyframes(bending.vertices, bending.faces, bending.arap, bending.at([0, 0]))
    assert error_of(bending, positions[1], bending.vertices).mean() < 0.005


def test_networks_help_where_the_capture_is_mute(bending):
    """All grey, and the tube turns about its own axis: only a trace can know."""
    turned = bending.vertices @ turned_about_z(0.6)
    seen = bending.at([0, 0])
    rgba, depth = seen.rgba[:, :, ::2, ::2], seen.depth_planar[:, :, ::2, ::2]
    grey = np.where(rgba[..., 3:] > 0, 128, 0).astype(np.uint8).repeat(4, axis=-1)
    capture = Capture(grey, depth, seen.camera_to_world, cameras.scale_intrinsics(seen.intrinsics, 0.5), 4)
    arguments = (bending.vertices, bending.faces, bending.arap, capture)
    alone, _ = fit.fit_keyframes(*arguments)
    helped, _ = fit.fit_keyframes(*arguments, guess=lambda k, to, mesh: (turned, np.ones(len(turned))))
    error = [np.linalg.norm(positions[1] - turned, axis=1).mean() for positions in (alone, helped)]
    assert error[1] < 0.6 * error[0]


def test_an_empty_keyframe_is_said(bending):
    capture = bending.at([0, 0])
    capture.depth_planar[1] = 0
    with pytest.raises(LimError) as error:
        fit.fit_keyframes(bending.vertices, bending.faces, bending.arap, capture)
    assert error.value.code == "empty_surface"


def test_large_faces_are_pulled_too(bending):
    """An artist's mesh may have few vertices: the captured points must reach the middle of its faces."""
    vertices, faces = shapes.tube(rings=9, around=8)
    arap = Arap(vertices, faces)
    positions, _ = fit.fit_keyframes(vertices, faces, arap, bending.capture)
    expected = shapes.bent(vertices, bending.angles[1])
    assert np.linalg.norm(positions[1] - expected, axis=1).mean() / arap.diagonal < 0.025
