# SPDX-License-Identifier: GPL-3.0-or-later
"""Matching and measuring a mesh against one keyframe's capture."""

import numpy as np
import pytest

import shapes
from lim_core.mesh import texture
from lim_core.mesh.arap import Arap
from lim_core.shared import cameras
from lim_core.tracking import correspond, registration
from lim_core.tracking.observation import Observation


@pytest.fixture(scope="module")
def bending():
    return shapes.bending()


def test_correspond_finds_the_other_end(bending):
    places, moved, confidence = correspond.correspond(bending.observation(0), bending.observation(1))
    expected = shapes.bent(places, bending.angles[1])
    assert np.linalg.norm(moved - expected, axis=1).mean() / bending.arap.diagonal < 0.05
    assert confidence.min() >= 0 and confidence.max() <= 1


def test_the_residual_prefers_the_truth(bending):
    target, source = bending.observation(1), bending.observation(0)
    colours, _ = texture.see(
        bending.vertices, bending.faces, source.images, source.depth_planar, source.camera_to_world, source.intrinsics
    )
    matcher = registration.Matcher(target, colours, colour_scale=0.05)
    upside_down = shapes.bent(bending.vertices * [1, -1, -1], bending.angles[1])
    right, wrong, turned = (
        registration.residual(bending.faces, p, matcher, 0.0) for p in (*bending.truth[::-1], upside_down)
    )
    assert right.score < 0.5 * wrong.score and right.score < 0.7 * turned.score


def test_stretch_counts_a_web_once(bending):
    """A few edges that are torn apart must not outweigh a mesh that is bent all over."""
    arap = bending.arap
    torn = bending.vertices.copy()
    torn[-1] += [0, 0, 30.0]
    squeezed = bending.vertices * [1, 1, 0.8]
    assert arap.stretch(bending.vertices) < 1e-6
    assert arap.stretch(torn) < 0.25 * arap.stretch(squeezed)


def test_samples_cover_large_faces():
    vertices, faces = shapes.tube(rings=9, around=8)
    samples = registration.Samples(vertices, faces, 2000)
    assert samples.matrix.shape[0] > 1500
    assert np.abs(np.linalg.norm(samples.at(vertices)[1], axis=1) - 1).max() < 1e-5


def test_a_thin_part_is_not_pulled_inside_out():
    """A sheet as thick as the depth is noisy: each of its sides finds points of the other."""
    vertices, faces = shapes.tube(rings=60, around=24)
    flat = vertices * [1, 0.06, 1]
    views = cameras.job_cameras(128, 8)
    depth, images = shapes.capture_of(flat, faces, vertices, *views, 128)
    noise = 0.012 * np.random.default_rng(0).normal(size=depth.shape)
    seen = Observation(np.where(depth > 0, depth + noise, 0).astype(np.float32), images, *views)
    arap, samples = Arap(flat, faces), registration.Samples(flat, faces)
    found = registration.register(arap, samples, flat, registration.Matcher(seen, None))
    assert np.abs(found - flat).max() > 0.01
    assert arap.turned(found).min() > 0
