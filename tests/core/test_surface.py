# SPDX-License-Identifier: GPL-3.0-or-later
"""Fusion of rendered depth, against shapes whose surface is known."""

import numpy as np
import pytest
import trimesh

import shapes
from lim_core.mesh import surface
from lim_core.shared import cameras
from lim_core.shared.errors import LimError


def closed(vertices, faces) -> bool:
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    return bool((np.unique(edges, axis=0, return_counts=True)[1] == 2).all())


def volume(vertices, faces) -> float:
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return float(np.einsum("fi,fi->f", a, np.cross(b, c)).sum() / 6)


@pytest.fixture(scope="module")
def sphere():
    mesh = trimesh.creation.icosphere(4, 0.8)
    camera_to_world, intrinsics = cameras.job_cameras(256, 12)
    depth = shapes.depth_of(mesh.vertices, mesh.faces, camera_to_world, intrinsics, 256)
    return depth, camera_to_world, intrinsics, surface.fuse_depth(depth, camera_to_world, intrinsics, resolution=64)


def test_sphere_is_round_closed_and_outward(sphere):
    vertices, faces = sphere[3]
    error = np.abs(np.linalg.norm(vertices, axis=1) - 0.8) / 0.8
    assert error.max() < 0.01
    assert closed(vertices, faces)
    assert volume(vertices, faces) == pytest.approx(4 / 3 * np.pi * 0.8**3, rel=0.004)
    assert vertices.dtype == np.float32 and faces.dtype == np.int32


def test_simplify_meets_the_budget_and_stays_closed(sphere):
    vertices, faces = surface.simplify(*sphere[3], 2000)
    assert 1800 <= len(faces) <= 2000
    assert closed(vertices, faces)
    assert np.abs(np.linalg.norm(vertices, axis=1) / 0.8 - 1).max() < 0.01


def test_parts_that_touch_at_an_edge_come_apart():
    """Two boxes that share an edge: dropping faces there would open both. Each gives up what its ends of the edge are drawn in."""
    one, two = trimesh.creation.box((1, 1, 1)), trimesh.creation.box((1, 1, 1))
    two.apply_translation((1, 1, 0))
    merged = trimesh.util.concatenate([one, two])
    merged.merge_vertices()
    vertices, faces = np.array(merged.vertices), np.array(merged.faces)
    assert len(vertices) == 14 and not closed(vertices, faces)
    vertices, faces = surface.clean(*surface.unpinched(vertices, faces))
    assert closed(vertices, faces) and surface.components(len(vertices), faces)[0] == 2
    expected = 0.0
    for box in (one, two):
        corners, centres = np.array(box.vertices), box.triangles_center
        for i in np.flatnonzero(np.isclose(corners[:, :2], 0.5).all(1)):
            corners[i] += 0.1 * (centres[(box.faces == i).any(1)].mean(0) - corners[i])
        expected += volume(corners, box.faces)
    assert volume(vertices, faces) == pytest.approx(expected, rel=1e-6) and 1.9 < expected < 2
    assert np.array_equal(surface.unpinched(one.vertices, one.faces)[1].shape, one.faces.shape)


def test_simplified_fins_have_no_holes():
    """Thin crossed fins, which quadrics pinch together."""
    fins = [trimesh.creation.box((1.0, 0.8, 0.012)), trimesh.creation.box((0.012, 0.8, 1.0))]
    fins += [
        trimesh.creation.box((0.9, 0.012, 0.9)).apply_transform(trimesh.transformations.rotation_matrix(0.5, (1, 0, 1)))
    ]
    mesh = trimesh.util.concatenate(fins)
    views = cameras.job_cameras(160, 8)
    depth = shapes.depth_of(np.array(mesh.vertices), np.array(mesh.faces), *views, 160)
    vertices, faces = surface.simplify(*surface.fuse_depth(depth, *views), 600)
    assert closed(vertices, faces)


@pytest.mark.parametrize("edge_on", [False, True])
def test_sheet_without_thickness_survives(edge_on):
    # Edge on, the rig's first camera sees nothing of it: that must not carve it away.
    half = np.array([0.0, 0.5, 0.6]) if edge_on else np.array([0.6, 0.4, 0.0])
    corners = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)]) * half
    sheet = np.unique(corners, axis=0)
    faces = np.array([[0, 1, 2], [1, 3, 2]])
    camera_to_world, intrinsics = cameras.job_cameras(256, 12)
    depth = shapes.depth_of(sheet, faces, camera_to_world, intrinsics, 256)
    vertices, triangles = surface.fuse_depth(depth, camera_to_world, intrinsics, resolution=64)
    area = np.linalg.norm(surface.face_normals(vertices, triangles), axis=1).sum() / 2
    true = 2 * 4 * np.prod(half[half > 0])
    assert area == pytest.approx(true, rel=0.03)
    assert np.abs(vertices[:, half == 0]).max() < 0.005
    assert closed(vertices, triangles) and surface.components(len(vertices), triangles)[0] == 1


def test_two_objects_and_no_crumbs():
    one, two = trimesh.creation.icosphere(3, 0.3), trimesh.creation.box((0.3, 0.3, 0.3))
    vertices = np.concatenate([one.vertices - [0.5, 0, 0], two.vertices + [0.5, 0, 0]])
    faces = np.concatenate([one.faces, two.faces + len(one.vertices)])
    camera_to_world, intrinsics = cameras.job_cameras(256, 12)
    depth = shapes.depth_of(vertices, faces, camera_to_world, intrinsics, 256)
    assert surface.components(*_sizes(*surface.fuse_depth(depth, camera_to_world, intrinsics, resolution=64)))[0] == 2


def _sizes(vertices, faces):
    return len(vertices), faces


def test_nothing_to_see_is_said():
    camera_to_world, intrinsics = cameras.job_cameras(32, 4)
    with pytest.raises(LimError) as error:
        surface.fuse_depth(np.zeros((4, 32, 32), np.float32), camera_to_world, intrinsics)
    assert error.value.code == "empty_surface"
    with pytest.raises(LimError) as error:
        surface.fuse_depth(np.full((4, 32, 32), np.nan, np.float32), camera_to_world, intrinsics)
    assert error.value.code == "bad_capture"


def test_marching_cubes_of_a_density():
    axis = np.linspace(-1, 1, 48)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    vertices, faces = surface.marching_cubes(0.6 - np.linalg.norm(grid - [0.2, 0, -0.1], axis=-1), 0.0)
    assert np.abs(np.linalg.norm(vertices - [0.2, 0, -0.1], axis=1) - 0.6).max() < 0.01
    assert volume(vertices, faces) > 0 and closed(vertices, faces)
    with pytest.raises(LimError) as error:
        surface.marching_cubes(np.zeros((8, 8, 8)), 0.5)
    assert error.value.code == "empty_surface"


def test_clean_drops_what_is_no_surface():
    mesh = trimesh.creation.icosphere(2, 0.5)
    crumb = trimesh.creation.icosphere(1, 0.005)
    vertices = np.concatenate([mesh.vertices, crumb.vertices + 0.8])
    faces = np.concatenate([mesh.faces, crumb.faces + len(mesh.vertices), mesh.faces[:5], [[0, 0, 1]]])
    cleaned, triangles = surface.clean(vertices, faces)
    assert len(cleaned) == len(mesh.vertices) and len(triangles) == len(mesh.faces) and closed(cleaned, triangles)
