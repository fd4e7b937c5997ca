# SPDX-License-Identifier: GPL-3.0-or-later
"""Triangles of the template: well-shaped, on the same surface, and no more than were asked for."""

import numpy as np
import pytest
import trimesh
from scipy.spatial import cKDTree

import shapes
from lim_core import cameras, remesh, surface
from lim_core.evaluation import metrics


@pytest.fixture(scope="module")
def fine():
    """A bent tube as it is fused from a capture: flat along its side, which quadrics fill with slivers."""
    vertices, faces = shapes.tube(rings=40, around=20)
    views = cameras.job_cameras(160, 8)
    depth = shapes.depth_of(shapes.bent(vertices, 0.8), faces, *views, 160)
    return surface.fuse_depth(depth, *views)


def closed(vertices, faces):
    return trimesh.Trimesh(vertices, faces, process=False).is_watertight


def test_slivers_go_and_the_surface_stays(fine):
    rough = surface.simplify(*fine, 1500)
    vertices, faces = remesh.reduce(*fine, 1500)
    worst, before = (np.percentile(remesh.quality(v[f].astype(float)), 1) for v, f in ((vertices, faces), rough))
    assert worst > 0.25 and worst > 2 * before
    assert closed(vertices, faces) and 1200 < len(faces) <= 1530
    ours, theirs = (metrics.sample_surface(*mesh, 40000, 0) for mesh in ((vertices, faces), fine))
    off = np.r_[cKDTree(ours).query(theirs)[0], cKDTree(theirs).query(ours)[0]]
    assert off.mean() < 0.004 and off.max() < 0.02


def test_the_budget_holds_where_the_fine_mesh_is_not_much_finer(fine):
    budget = int(0.6 * len(fine[1]))
    faces = remesh.reduce(*fine, budget)[1]
    assert 0.8 * budget < len(faces) <= 1.02 * budget


def test_flips_keep_creases():
    """Long thin rectangles of a box: their diagonals flip, its edges do not."""
    box = trimesh.creation.box((1.0, 1.0, 0.02))
    box = box.subdivide().subdivide()
    vertices, faces = np.array(box.vertices), np.array(box.faces)
    flipped = remesh.flip(vertices, faces, 0.01)
    assert closed(vertices, flipped)
    assert trimesh.Trimesh(vertices, flipped, process=False).volume == pytest.approx(box.volume, rel=1e-6)
    worst, before = (remesh.quality(vertices[f]).mean() for f in (flipped, faces))
    assert worst >= before


def test_a_flat_sliver_is_flipped():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0.5, 0.02, 0], [0.5, -0.9, 0.0], [0.5, 0.9, 0]])
    faces = np.array([[0, 1, 2], [0, 3, 1], [0, 2, 4], [2, 1, 4]])
    flipped = remesh.flip(vertices, faces, 0.01)
    assert remesh.quality(vertices[flipped]).min() > 5 * remesh.quality(vertices[faces]).min()
    assert (surface.face_normals(vertices, flipped)[:, 2] > 0).all()


def test_collapses_keep_the_topology():
    """A torus stays a torus, however much is collapsed: no pinching, no turned face."""
    torus = trimesh.creation.torus(0.7, 0.1, major_sections=64, minor_sections=16)
    vertices, faces = remesh.collapse(torus.vertices, torus.faces, 0.045, 0.01)
    assert len(faces) < 0.8 * len(torus.faces)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight and mesh.euler_number == 0
    near = cKDTree(torus.triangles_center).query(mesh.triangles_center)[1]
    assert (np.einsum("fi,fi->f", mesh.face_normals, torus.face_normals[near]) > 0).all()
