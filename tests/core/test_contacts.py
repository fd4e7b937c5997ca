# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts that touch in the template's keyframe and part in another: the template is cut apart where they only touched."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from scipy.spatial import cKDTree

import shapes
from lim_core.job.artefacts import Surfaces, Template
from lim_core.job.capture import Capture
from lim_core.job.reporter import Reporter
from lim_core.mesh import surface
from lim_core.shared import cameras
from lim_core.shared.request import Request
from lim_core.stages import of_mesh
from lim_core.tracking import contacts

BOX = trimesh.creation.box((0.3, 0.3, 0.6)).subdivide().subdivide().subdivide()
PLACES = np.array([[-0.15, 0.15], [-0.4, 0.15]])  # x of the two boxes at the keyframes


@pytest.fixture(scope="module")
def boxes() -> tuple[Capture, np.ndarray, np.ndarray]:
    """The capture of two keyframes, the boxes' vertices at both [2, V, 3] and their faces."""
    shift = np.stack([PLACES, 0 * PLACES, 0 * PLACES], -1)
    positions = (shift[:, :, None] + BOX.vertices).reshape(2, -1, 3)
    faces = np.concatenate([BOX.faces + i * len(BOX.vertices) for i in range(2)])
    rig = cameras.job_cameras(128, 12)
    seen = [shapes.capture_of(at, faces, 2 * positions[0], *rig, 128) for at in positions]
    depth, images = (np.stack([s[i] for s in seen]) for i in (0, 1))
    return Capture(images, depth, *rig, 4), positions, faces


ASKED = Request(keyframes=(1.0, 2.0), inbetweens=0, template_faces=2000, image_size=128, views=12)


def fused(capture: Capture, apart=()) -> tuple[np.ndarray, np.ndarray]:
    return of_mesh.fused_mesh(ASKED, capture, 0, apart)


def box_of(vertices: np.ndarray) -> np.ndarray:
    """Which box each vertex at the first keyframe belongs to."""
    return np.abs(vertices[:, :1] - PLACES[0]).argmin(1)


def test_what_is_known_to_be_apart_is_not_fused(boxes):
    capture, _, _ = boxes
    vertices, faces = fused(capture)
    assert surface.components(len(vertices), faces)[0] == 1, "they grew together"
    y, z = (g.ravel() for g in np.meshgrid(np.linspace(-0.15, 0.15, 5), np.linspace(-0.3, 0.3, 5)))
    vertices, faces = fused(capture, [np.stack([np.zeros_like(y), y, z], 1)])
    assert surface.components(len(vertices), faces)[0] == 2
    for place in PLACES[0]:  # and both are still what they were
        part = vertices[np.abs(vertices[:, 0] - place) < 0.16]
        assert np.abs(np.abs(part[:, 2]).max() - 0.3) < 0.02 and np.ptp(part[:, 0]) > 0.25


def test_a_web_is_what_hangs_where_a_view_looks_through(boxes):
    capture, positions, all_faces = boxes
    vertices, faces = fused(capture)
    box = box_of(vertices)
    fitted = np.stack([vertices, vertices + (PLACES[1] - PLACES[0])[box][:, None] * [1, 0, 0]])
    web = contacts.webbed(vertices, faces, fitted, capture)
    across = np.ptp(box[faces], axis=1) > 0
    assert across.sum() > 10
    assert (web & across).sum() > 0.8 * across.sum() and not (web & ~across).any()
    (places,) = contacts.contacts(vertices, faces, web)
    assert np.abs(places[:, 0]).max() < 0.06 and np.ptp(places[:, 2]) > 0.5
    # As long, but over something that is there: that is a stretched surface, no web.
    taller = positions[0] * [1.0, 1.0, 1.9]
    rig = (capture.camera_to_world, capture.intrinsics)
    depth, images = shapes.capture_of(taller, all_faces, positions[0], *rig, 128)
    there = Capture(images[None], depth[None], *rig, 4)
    assert not contacts.webbed(vertices, faces, vertices[None] * [1.0, 1.0, 1.9], there).any()
    assert contacts.contacts(vertices, faces, np.zeros(len(faces), bool)) == []
    assert contacts.contacts(vertices, faces, np.ones(len(faces), bool)) == [], "the mesh has gone astray"


def test_the_template_is_cut_where_parts_only_touched():
    """A ring that opens: fused from the keyframe in which its ends touch, and yet they part."""
    rig = cameras.job_cameras(128, 8)
    shut, faces = shapes.ring(0.0)
    opened, _ = shapes.ring(0.8)
    seen = [shapes.capture_of(at, faces, shut, *rig, 128) for at in (shut, opened)]
    capture = Capture(np.stack([s[1] for s in seen]), np.stack([s[0] for s in seen]), *rig, 4)
    asked = Request(keyframes=(1.0, 2.0), inbetweens=0, template_faces=1600, image_size=128, views=8)
    vertices, triangles = of_mesh.fused_mesh(asked, capture, 0)
    template = Template(vertices.astype(np.float32), triangles.astype(np.int32), home=0)
    still = np.concatenate([template.vertices] * 2)  # networks that know of no motion
    starts = np.array([0, len(vertices), 2 * len(vertices)])
    surfaces = Surfaces(still, still, interval=np.zeros(2, int), alpha=np.array([0.0, 1.0]), start=starts)
    reporter = Reporter(machine=False)
    traced = of_mesh.trace_template(asked, template, surfaces, reporter)
    result = of_mesh.fit_apart(asked, capture, template, surfaces, traced, None, reporter)

    def holes(vertices, faces) -> int:
        return 1 - (len(vertices) - len(surface.edges_of(faces)) + len(faces)) // 2

    cut = result.template
    assert holes(vertices, triangles) == 1 and holes(cut.vertices, cut.faces) == 0
    assert len(result.positions[1]) == len(cut.vertices) == len(result.traced.positions[1])
    assert len(template.vertices) == len(traced.positions[1]) == len(vertices), "what was found before stays as it was"
    assert not contacts.webbed(cut.vertices, cut.faces, result.keyframes, capture).any()
    there = surface.captured_points(capture.depth_planar[1], *rig)[0]
    off, _ = cKDTree(there).query(result.positions[1])
    assert off.mean() < 0.02 and np.percentile(off, 95) < 0.06
