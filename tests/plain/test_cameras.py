# SPDX-License-Identifier: GPL-3.0-or-later
"""Cameras: the conventions of docs/architecture.md, checked on points whose place in the picture is known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lim_core.shared import cameras  # noqa: E402

SIZE = 64


def test_the_front_camera_stands_where_blenders_front_view_does():
    matrix = cameras.look_at(0, 0)
    assert matrix[:3, 3] == pytest.approx([0, -cameras.DISTANCE, 0], abs=1e-6)
    right, down, forward = matrix[:3, :3].T
    assert right == pytest.approx([1, 0, 0], abs=1e-6)
    assert down == pytest.approx([0, 0, -1], abs=1e-6)
    assert forward == pytest.approx([0, 1, 0], abs=1e-6)


@pytest.mark.parametrize("angles", [*cameras.RIG, *cameras.EXTRA, *cameras.HELD_OUT])
def test_every_camera_is_a_rotation_that_looks_at_the_origin(angles):
    matrix = cameras.look_at(*angles).astype(np.float64)
    rotation = matrix[:3, :3]
    assert rotation.T @ rotation == pytest.approx(np.eye(3), abs=1e-6) and np.linalg.det(rotation) > 0.999
    pixel, depth = cameras.project(np.zeros((1, 3)), matrix, cameras.pinhole(SIZE))
    assert pixel[0] == pytest.approx([SIZE / 2] * 2, abs=1e-4) and depth[0] == pytest.approx(cameras.DISTANCE)


def test_up_is_up_and_right_is_right():
    matrix, pinhole = cameras.look_at(0, 20), cameras.pinhole(SIZE)
    up, _ = cameras.project(np.array([[0, 0, 0.5]]), matrix, pinhole)
    right, _ = cameras.project(np.array([[0.5, 0, 0]]), matrix, pinhole)
    assert up[0, 1] < SIZE / 2 and right[0, 0] > SIZE / 2


def test_the_unit_sphere_touches_the_edges_and_no_more():
    directions = np.random.default_rng(0).normal(size=(20_000, 3))
    sphere = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    for angles in cameras.RIG:
        pixel, _ = cameras.project(sphere, cameras.look_at(*angles), cameras.pinhole(SIZE))
        assert pixel.min() > -0.01 and pixel.max() < SIZE + 0.01
        assert pixel.min() < 0.02 * SIZE and pixel.max() > 0.98 * SIZE


def test_a_pixel_and_its_depth_give_the_point_back():
    points = np.random.default_rng(1).uniform(-0.5, 0.5, (50, 3))
    matrix, pinhole = cameras.look_at(30, 10), cameras.pinhole(SIZE)
    pixel, depth = cameras.project(points, matrix, pinhole)
    origins, directions = cameras.rays(matrix, pinhole, SIZE)
    column, row = (pixel[:, 0].astype(int), pixel[:, 1].astype(int))
    near = origins[row, column] + depth[:, None] * directions[row, column]
    assert np.abs(near - points).max() < cameras.DISTANCE * 2 / SIZE, "within the pixel"
    exact = (pixel - SIZE / 2) / pinhole[0, 0]
    local = np.concatenate([exact * depth[:, None], depth[:, None]], 1)
    assert local @ matrix[:3, :3].T + matrix[:3, 3] == pytest.approx(points, abs=1e-5)


def test_unproject_undoes_a_plane():
    matrix, pinhole = cameras.look_at(90, 0), cameras.pinhole(SIZE)
    points = cameras.unproject(np.full((SIZE, SIZE), cameras.DISTANCE, np.float32), matrix, pinhole)
    assert np.abs(points[..., 0]).max() < 1e-5, "the plane x = 0 as seen from +X"


def test_scaled_intrinsics_project_to_the_scaled_pixel():
    points = np.array([[0.2, -0.3, 0.4]])
    matrix, pinhole = cameras.look_at(10, 20), cameras.pinhole(SIZE)
    full, _ = cameras.project(points, matrix, pinhole)
    half, _ = cameras.project(points, matrix, cameras.scale_intrinsics(pinhole, 0.5))
    assert half == pytest.approx(full / 2, abs=1e-4)


def test_a_job_gets_the_rig_first_and_distinct_cameras():
    matrices, pinholes = cameras.job_cameras(SIZE, 16)
    assert matrices.shape == (16, 4, 4) and pinholes.shape == (16, 3, 3) and matrices.dtype == np.float32
    assert matrices[0] == pytest.approx(cameras.look_at(*cameras.RIG[0]))
    places = matrices[:, :3, 3]
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1) + 10 * np.eye(16)
    assert distances.min() > 0.3
    with pytest.raises(ValueError):
        cameras.job_cameras(SIZE, 100)


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_normalisation_puts_everything_into_the_unit_sphere(size):
    points = np.random.default_rng(2).uniform(-1, 1, (500, 3)) * size + np.array([5 * size, -3 * size, size])
    low, high = points.min(0), points.max(0)
    radius = np.linalg.norm(points - (low + high) / 2, axis=1).max()
    matrix = cameras.normalisation((low + high) / 2, radius)
    inside = points @ matrix[:3, :3].T + matrix[:3, 3]
    assert np.linalg.norm(inside, axis=1).max() == pytest.approx(0.97, abs=1e-9)
    back = np.linalg.inv(matrix)
    assert inside @ back[:3, :3].T + back[:3, 3] == pytest.approx(points, rel=1e-9)


def placed(clouds):
    low, high = np.array([c.min(0) for c in clouds]), np.array([c.max(0) for c in clouds])
    return cameras.placement(low, high, lambda k, centre: float(np.linalg.norm(clouds[k] - centre, axis=1).max()))


def test_cameras_follow_what_walks_away_and_show_it_as_large_as_if_it_stood():
    body = np.random.default_rng(3).uniform(-1, 1, (400, 3))
    clouds = [body + 7, body * 0.9 + [7, 13, 7], body + [7, 19, 8]]
    matrix, origins = placed(clouds)
    model = [c @ matrix[:3, :3].T + matrix[:3, 3] - o for c, o in zip(clouds, origins)]
    assert max(np.linalg.norm(m, axis=1).max() for m in model) == pytest.approx(0.97, abs=1e-9)
    assert model[0] == pytest.approx(model[2], abs=1e-9)  # the same from its own origin
    assert origins[0] == pytest.approx(0) and origins[2] == pytest.approx(matrix[0, 0] * np.array([0, 12, 1]))


def test_cameras_stand_still_where_following_gains_little():
    body = np.random.default_rng(3).uniform(-1, 1, (400, 3))
    clouds = [body, body + [0.6, 0, 0]]
    matrix, origins = placed(clouds)
    assert not origins.any()
    model = np.concatenate(clouds) @ matrix[:3, :3].T + matrix[:3, 3]
    assert np.linalg.norm(model, axis=1).max() == pytest.approx(0.97, abs=1e-9)
    assert model.min(0) + model.max(0) == pytest.approx(0, abs=1e-9)


def test_a_picture_is_looked_up_where_points_fall():
    camera, intrinsics = cameras.look_at(0, 0), cameras.pinhole(8)
    picture = np.arange(64).reshape(8, 8)
    middle = np.array([[0.01, 0, -0.01], [9, 0, 0], [0, -9, 0]])
    value, depth, inside = cameras.look_up(picture, middle, camera, intrinsics)
    assert value[0] == picture[4, 4] and depth[0] == pytest.approx(cameras.DISTANCE, abs=1e-6)
    assert inside.tolist() == [True, False, False], "one is beside the picture, one behind the camera"
