# SPDX-License-Identifier: GPL-3.0-or-later
"""Loose parts that do not bend: found, followed as a whole by the least motion, and left alone where they bend after all."""

import numpy as np
import pytest
import trimesh

import shapes
from lim_core.mesh.arap import Arap
from lim_core.shared import cameras
from lim_core.tracking import between, fit
from lim_core.tracking.observation import Observation

SIZE = 128
VIEWS = cameras.job_cameras(SIZE, 8)
SIDES = (0.24, 0.14, 0.12)


def box(subdivisions: int = 3):
    """A box that looks nearly the same after half a turn about each axis."""
    made = trimesh.creation.box(SIDES)
    for _ in range(subdivisions):
        made = made.subdivide()
    made.merge_vertices()
    return np.array(made.vertices), np.array(made.faces)


def boxes(count: int):
    """Vertices at their own centres [V, 3], faces, the box of each vertex, and a colour for each."""
    vertices, faces = box()
    label = np.repeat(np.arange(count), len(vertices))
    all_faces = np.concatenate([faces + n * len(vertices) for n in range(count)])
    colours = np.array([[0.8, 0.1, 0.1], [0.1, 0.6, 0.1], [0.1, 0.2, 0.8], [0.8, 0.7, 0.1]])[:count]
    return np.tile(vertices, (count, 1)), all_faces, label, colours[label]


def observed(vertices, faces, paint):
    depth, rgba = shapes.capture_of(vertices, faces, paint, *VIEWS, SIZE)
    return Observation(depth, rgba, *VIEWS)


def tracker(vertices, faces, paint):
    return fit.Tracker(vertices, faces, Arap(vertices, faces), observed(vertices, faces, paint), 0.5)


def turn_about_z(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])


def test_boxes_that_pass_each_other_do_not_turn():
    vertices, faces, label, paint = boxes(4)
    start = np.array([[-0.6, 0.0, 0.0], [-0.2, 0.2, 0.0], [0.2, -0.2, 0.0], [0.6, 0.1, 0.0]])
    end = start + np.array([[0.05, 0.4, 0], [0.05, -0.4, 0], [0.05, 0.3, 0], [0.05, -0.35, 0]])
    before, after = vertices + start[label], vertices + end[label]
    track = tracker(before, faces, paint)
    found, residual = track.advance(before, observed(before, faces, paint), observed(after, faces, paint))
    assert np.linalg.norm(found - after, axis=1).max() < 0.01
    assert residual.misfit < fit.GOOD * track.rest.misfit


def test_a_part_that_turns_is_turned():
    """Its paint says so; and it turns by more than closest points alone would follow."""
    vertices, faces, label, paint = boxes(2)
    paint[vertices[:, 0] > 0.02] = [0.9, 0.9, 0.9]
    place = np.array([[-0.4, 0.0, 0.0], [0.4, 0.0, 0.0]])
    before = vertices + place[label]
    after = np.where(label[:, None] == 0, vertices @ turn_about_z(np.pi), vertices) + place[label]
    found, _ = tracker(before, faces, paint).advance(
        before, observed(before, faces, paint), observed(after, faces, paint)
    )
    assert np.linalg.norm(found - after, axis=1).max() < 0.01


def test_what_bends_a_little_is_not_held_stiff():
    """A small part of the surface moves by three pixels: the mean over the whole hardly changes, but the motion is kept."""
    bending = shapes.bending((0.0,), size=SIZE)
    vertices, faces = bending.vertices, bending.faces
    paint = shapes.paint(vertices)
    height = vertices[:, 2] - vertices[:, 2].max()
    after = vertices + np.array([0.05, 0, 0]) * np.clip(1 + height / 0.15, 0, 1)[:, None]
    track = tracker(vertices, faces, paint)
    _, rigid = track.parts.follow([vertices], observed(after, faces, paint))
    assert not rigid.any()
    still, rigid = track.parts.follow([vertices], observed(vertices, faces, paint))
    assert rigid.all() and np.linalg.norm(still - vertices, axis=1).max() < 0.002


def test_a_part_that_is_not_shown_is_not_judged():
    vertices, faces, label, paint = boxes(2)
    before = vertices + np.array([[-0.4, 0.0, 0.0], [0.4, 0.0, 0.0]])[label]
    alone = label[faces[:, 0]] == 0
    depth, rgba = shapes.capture_of(before, faces[alone], paint, *VIEWS, SIZE)
    _, rigid = tracker(before, faces, paint).parts.follow([before], Observation(depth, rgba, *VIEWS))
    assert rigid[label == 0].all() and not rigid[label == 1].any()


@pytest.mark.parametrize("turn", [0.0, 1.2])
def test_in_betweens_of_a_stiff_part_keep_its_shape(turn):
    """Two boxes that move apart from each other: each on a straight line, turning evenly, whatever they are linked to."""
    vertices, faces, label, _ = boxes(2)
    start, end = np.array([[-0.3, 0.0, 0.0], [0.3, 0.0, 0.0]]), np.array([[-0.3, 0.5, 0.0], [0.3, -0.5, 0.0]])
    shape = [vertices @ turn_about_z(share * turn) for share in (0.0, 0.25, 0.5, 1.0)]
    fitted = [shape[0] + start[label], shape[-1] + end[label]]
    result = between.interpolate(Arap(fitted[0], faces), np.stack(fitted), [0, 1], [0, 0.25, 0.5, 1])
    for share, found, wanted in zip((0.25, 0.5), result[1:3], shape[1:3]):
        truth = wanted + ((1 - share) * start + share * end)[label]
        assert np.abs(found - truth).max() < 1e-6


def test_an_eye_goes_with_its_head():
    """A stiff part that is tied to a turning one stays where it is tied, half-way too."""
    vertices, faces, label, _ = boxes(2)
    before = vertices + np.array([[0.0, 0.0, 0.0], [0.6, 0.0, 0.0]])[label]
    after = before @ turn_about_z(1.4)
    half = between.interpolate(Arap(before, faces), np.stack([before, after]), [0, 1], [0, 0.5, 1])[1]
    gap = [np.linalg.norm(shape[label == 0].mean(0) - shape[label == 1].mean(0)) for shape in (before, half)]
    assert gap[1] == pytest.approx(gap[0], rel=0.05)
