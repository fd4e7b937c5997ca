# SPDX-License-Identifier: GPL-3.0-or-later
"""Tracing with canonical coordinates that are known."""

import numpy as np
import pytest

import shapes
from lim_core.mesh.arap import Arap
from lim_core.shared.errors import LimError
from lim_core.tracking import trace


@pytest.fixture(scope="module")
def moving():
    """A tube that bends: template, its faces, surfaces over time and their canonical coordinates."""
    vertices, faces = shapes.tube(rings=32, around=16)
    samples, _ = shapes.tube(rings=90, around=40)
    angles = np.linspace(0, 1.2, 5)
    surfaces = [shapes.bent(samples, a) for a in angles]
    return vertices, faces, surfaces, [samples] * 5, np.stack([shapes.bent(vertices, a) for a in angles])


def test_exact_where_the_canonical_coordinates_are(moving):
    vertices, _, _, _, truth = moving
    positions, confidence = trace.match_canonical(vertices, truth[-1], vertices)
    assert np.abs(positions - truth[-1]).max() < 1e-6
    assert confidence.min() > 0.9


def test_follows_the_material_points(moving):
    vertices, _, surfaces, canonical, truth = moving
    positions, confidence = trace.trace_chain(vertices, [trace.Matches(surfaces, canonical)], None)
    assert np.linalg.norm(positions - truth, axis=2).max() < 0.02
    assert np.linalg.norm(truth[-1] - vertices, axis=1).max() > 0.2
    assert confidence.shape == truth.shape[:2]


def test_a_still_scene_stays_still(moving):
    vertices, faces, surfaces, canonical, _ = moving
    still = trace.Matches([surfaces[0]] * 3, canonical[:3])
    for arap in (None, Arap(vertices, faces)):
        positions, _ = trace.trace_chain(vertices, [still, still], arap)
        assert len(positions) == 5
        assert np.linalg.norm(positions - vertices, axis=2).max() < 0.01


def test_confidence_knows_a_missing_part_and_a_torn_match(moving):
    vertices, _, surfaces, canonical, _ = moving
    kept = canonical[0][:, 2] < 0.3
    _, confidence = trace.match_canonical(vertices, surfaces[-1][kept], canonical[0][kept])
    assert confidence[vertices[:, 2] > 0.5].max() < 0.05 < 0.8 < confidence[vertices[:, 2] < 0.2].min()
    # Two places with the same canonical coordinate: the match is not sure of either.
    doubled = np.concatenate([surfaces[0], surfaces[0] + [1.0, 0, 0]])
    _, confidence = trace.match_canonical(vertices, doubled, np.concatenate([canonical[0]] * 2))
    assert np.median(confidence) < 0.05


def test_arap_outvotes_wrong_matches(moving):
    vertices, faces, surfaces, canonical, truth = moving
    rng = np.random.default_rng(0)
    noisy, broken = [], []
    for values, surface in zip(canonical, surfaces, strict=True):
        noisy.append(values + rng.normal(scale=0.02, size=values.shape))
        patch = np.linalg.norm(values - [0.16, 0, 0.3], axis=1) < 0.12
        broken.append(surface + np.where(patch[:, None], [0.0, 0.3, 0.2], 0.0))  # matches that are plainly wrong
    broken[0] = surfaces[0]
    matches = [trace.Matches(broken, noisy)]
    plain, _ = trace.trace_chain(vertices, matches, None)
    joint, confidence = trace.trace_chain(vertices, matches, Arap(vertices, faces))
    error = [np.linalg.norm(p - truth, axis=2) for p in (plain, joint)]
    assert error[1].mean() < 0.7 * error[0].mean()
    assert error[1].max() < 0.5 * error[0].max()


def test_nearest_surface_is_a_baseline_and_no_more(moving):
    vertices, _, surfaces, canonical, truth = moving
    colours = shapes.paint(vertices) / 255.0
    painted = [shapes.paint(c) / 255.0 for c in canonical]
    positions = trace.nearest_surface(vertices, colours, surfaces[1:], painted[1:])
    assert positions.shape == truth.shape
    from scipy.spatial import cKDTree

    for position, surface in zip(positions[1:], surfaces[1:], strict=True):
        assert cKDTree(surface).query(position)[0].max() < 1e-9


def test_intervals_are_chained_at_the_keyframes(moving):
    """Each starts from where the one before has ended, with the canonical coordinates of its own start."""
    vertices, faces, surfaces, canonical, truth = moving
    first = trace.Matches(surfaces[:3], canonical[:3])
    second = trace.Matches(surfaces[2:], [surfaces[2]] * 3)
    positions, _ = trace.trace_chain(vertices, [first, second], None)
    assert len(positions) == 5 and np.linalg.norm(positions - truth, axis=2).max() < 0.03


def test_outwards_from_the_middle(moving):
    """The interval before home was carried backwards, and begins at its end."""
    vertices, faces, surfaces, canonical, truth = moving
    after = trace.Matches(surfaces[2:], [surfaces[2]] * 3)
    before = trace.Matches(surfaces[2::-1], [surfaces[2]] * 3)
    positions, confidence = trace.trace_outwards(truth[2], [before, after], 1, Arap(truth[2], faces))
    assert positions.shape == truth.shape and confidence.shape == truth.shape[:2]
    assert np.array_equal(positions[2], truth[2]) and confidence[2].min() == 1
    assert np.linalg.norm(positions - truth, axis=2).max() < 0.05


def test_where_the_networks_see_nothing_the_mesh_stays_and_says_so(moving):
    vertices, faces, surfaces, canonical, _ = moving
    empty = np.zeros((0, 3))
    positions, confidence = trace.trace_chain(
        vertices, [trace.Matches([surfaces[0], empty], [canonical[0], empty])], Arap(vertices, faces)
    )
    assert np.abs(positions[1] - vertices).max() < 1e-6 and confidence[1].max() == 0
    with pytest.raises(LimError) as error:
        trace.match_canonical(vertices, empty, empty)
    assert error.value.code == "empty_surface"
