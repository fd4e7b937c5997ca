# SPDX-License-Identifier: GPL-3.0-or-later
"""As-rigid-as-possible deformation against motions whose answer is known."""

import numpy as np
import pytest

import shapes
from lim_core.mesh.arap import Arap, Coarse, polar, rotation_matrices
from lim_core.shared.errors import LimError

TURN = rotation_matrices(np.array([[1.0, 2.0, 0.3]]))[0]


@pytest.fixture(scope="module")
def tube():
    vertices, faces = shapes.tube()
    return vertices, faces, Arap(vertices, faces)


def test_polar_equals_the_svd():
    matrices = np.random.default_rng(0).normal(size=(200, 3, 3))
    matrices[:50, :, 2] = 0  # flat neighbourhoods
    matrices[50:60, :, 1:] = 0  # lines
    u, _, vt = np.linalg.svd(matrices)
    u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    found = polar(matrices)
    assert np.abs(np.linalg.det(found) - 1).max() < 1e-9
    best = np.einsum("nij,nij->n", u @ vt, matrices)
    assert np.abs(np.einsum("nij,nij->n", found, matrices) - best).max() < 1e-9


def test_rigid_motion_is_exact(tube):
    vertices, _, arap = tube
    moved = vertices @ TURN.T + [0.3, -0.2, 0.1]
    weights = np.zeros(len(vertices))
    weights[::40] = 1.0
    found = arap.solve(moved, weights, vertices, iterations=200)
    assert np.abs(found - moved).max() < 1e-4
    assert arap.energy(found).max() < 1e-8


def test_bends_by_90_degrees_from_its_ends(tube):
    vertices, _, arap = tube
    truth = shapes.bent(vertices, np.pi / 2)
    weights = np.where(np.abs(vertices[:, 2]) > 0.65, 10.0, 0.0)
    found = arap.solve(truth, weights, vertices, iterations=100)
    assert np.linalg.norm(found - truth, axis=1).mean() < 0.015 * arap.diagonal
    straight = vertices.copy()  # the answer is not just the rest shape
    assert np.linalg.norm(straight - truth, axis=1).mean() > 0.05 * arap.diagonal


def test_stiffness_decides_between_noise_and_shape(tube):
    vertices, _, arap = tube
    noisy = vertices + np.random.default_rng(0).normal(scale=0.03, size=vertices.shape)
    ones = np.ones(len(vertices))
    stiff = np.linalg.norm(arap.solve(noisy, ones, vertices, stiffness=10.0) - vertices, axis=1).mean()
    soft = np.linalg.norm(arap.solve(noisy, ones, vertices, stiffness=0.01) - vertices, axis=1).mean()
    assert stiff < 0.01 < 0.03 < soft


def test_loose_parts_and_seams_move_along():
    vertices, faces = shapes.tube(rings=16, around=12)
    eye = 0.1 * vertices + [0.0, 0.2, 0.9]
    seam = vertices.copy()  # a second copy of the first part's vertices: a mesh that was split along a seam
    everything = np.concatenate([vertices, eye, seam])
    half = len(faces) // 2
    count = len(vertices)
    triangles = np.concatenate([faces[:half], faces[half:] + 2 * count, faces + count])
    arap = Arap(everything, triangles)
    turn = rotation_matrices(np.array([[0.3, 0.2, 0.1]]))[0]
    moved = everything @ turn.T + 0.1
    weights = np.zeros(len(everything))
    weights[:count:5] = 1.0
    found = arap.solve(moved, weights, everything, iterations=300)
    assert np.abs((found - moved)[:count]).max() < 1e-3
    assert np.linalg.norm((found - moved)[count : 2 * count].mean(0)) < 0.02  # it would be 0.4 off if it stayed
    assert np.abs(found[:count] - found[2 * count :]).max() == 0


def test_interpolation_turns_instead_of_shrinking(tube):
    vertices, _, arap = tube
    end = shapes.bent(vertices @ rotation_matrices(np.array([[0, 0, 2.5]]))[0].T, np.pi / 2)
    shapes_between = arap.interpolate(vertices, end, np.array([0.0, 0.5, 1.0]))
    assert np.array_equal(shapes_between[0], vertices) and np.array_equal(shapes_between[2], end)
    middle = shapes_between[1]
    lengths = np.linalg.norm(middle[arap.first][arap.edges[:, 0]] - middle[arap.first][arap.edges[:, 1]], axis=1)
    rest = np.linalg.norm(arap.rest_edges, axis=1)
    assert np.abs(lengths / rest - 1).mean() < 0.05
    straight = 0.5 * (vertices + end)
    shrunk = np.linalg.norm(straight[arap.first][arap.edges[:, 0]] - straight[arap.first][arap.edges[:, 1]], axis=1)
    assert np.abs(shrunk / rest - 1).mean() > 0.2  # what a plain blend does


def test_a_face_is_turned_over_against_its_surroundings(tube):
    """However the whole lies: a tube that is bent has none, one vertex pushed through its neighbours has."""
    vertices, faces, arap = tube
    assert arap.turned(vertices).min() > 0.99
    turn = rotation_matrices(np.array([[0.3, 2.0, 0.7]]))[0]
    assert arap.turned(shapes.bent(vertices, 1.9) @ turn.T).min() > 0.8
    pushed = vertices.copy()
    neighbours = np.unique(faces[(faces == 100).any(1)])
    pushed[100] += 2.5 * (vertices[neighbours[0]] - vertices[100])
    assert arap.turned(pushed).min() < 0
    assert set(np.flatnonzero(arap.folded(pushed))) <= set(np.unique(faces[np.isin(faces, neighbours).any(1)]))


def test_untangling_unfolds_and_leaves_the_rest_alone(tube):
    vertices, faces, arap = tube
    bent = shapes.bent(vertices, 1.5)
    assert np.array_equal(arap.untangle(bent), bent)
    upper = np.flatnonzero(vertices[:, 2] > 0.3)
    noisy = bent.copy()
    noisy[upper] += 0.03 * np.random.default_rng(0).normal(size=(len(upper), 3))
    assert (arap.turned(noisy) < 0).mean() > 0.05
    straight = arap.untangle(noisy)
    assert arap.turned(straight).min() > 0
    assert np.array_equal(straight[vertices[:, 2] < 0], bent[vertices[:, 2] < 0])
    assert np.linalg.norm(straight - bent, axis=1).mean() < np.linalg.norm(noisy - bent, axis=1).mean()


def test_what_never_had_an_area_is_not_turned_over(tube):
    """An artist's own mesh may have faces without area: nothing is to be unfolded there."""
    vertices, faces, _ = tube
    points = np.concatenate([vertices, 0.5 * (vertices[:1] + vertices[1:2])])
    arap = Arap(points, np.concatenate([faces, [[0, 1, len(vertices)]]]))
    moved = arap.rest + 0.1
    assert np.array_equal(arap.untangle(moved), moved)


def test_coarse_nodes_carry_the_mesh(tube):
    vertices, _, arap = tube
    coarse = Coarse(arap, 120)
    moved = vertices @ TURN.T + 0.2
    nodes = coarse.solve(moved, np.ones(len(vertices)), vertices[coarse.nodes], iterations=40, stiffness=0.1)
    assert np.abs(coarse.positions(nodes) - moved).max() < 1e-3
    assert coarse.stretch(nodes) < 1e-3
    assert np.abs(coarse.positions(vertices[coarse.nodes]) - vertices).max() < 1e-9


def test_meshes_that_are_none():
    for vertices, faces in (
        (np.zeros((0, 3)), np.zeros((0, 3), int)),
        (np.zeros((3, 3)), np.array([[0, 1, 3]])),
        (np.full((3, 3), np.nan), np.array([[0, 1, 2]])),
    ):
        with pytest.raises(LimError) as error:
            Arap(vertices, faces)
        assert error.value.code == "bad_template"


def test_through_a_crumpled_bridge_nothing_makes_a_full_turn():
    """A strip that is twisted to and fro in its middle; both its ends hardly turn."""
    angles = [0.05] * 5 + [1.5, 2.6, 3.1, -2.6, -1.7] + [-0.05] * 5
    count = len(angles)
    vertices = np.array([[x, y, 0.0] for x in range(count) for y in range(2)])
    faces = [f for i in range(0, 2 * count - 2, 2) for f in ((i, i + 2, i + 1), (i + 1, i + 2, i + 3))]
    vectors = np.repeat([[angle, 0.0, 0.0] for angle in angles], 2, axis=0)
    strip = Arap(vertices, np.array(faces))
    turned = strip._unwind(vectors[strip.first], rotation_matrices(vectors[strip.first]))[strip.weld]
    np.testing.assert_allclose(turned[:10, 0], 0.05)
    np.testing.assert_allclose(turned[-10:, 0], -0.05)
    assert turned[16, 0] > np.pi, "between them it goes on turning one way"
