# SPDX-License-Identifier: GPL-3.0-or-later
"""Unwrapping and baking a torus whose colours are known everywhere."""

import numpy as np
import pytest
import trimesh

import shapes
from lim_core.mesh import texture
from lim_core.shared import cameras
from lim_core.shared.errors import LimError

SIZE = 256


@pytest.fixture(scope="module")
def torus():
    mesh = trimesh.creation.torus(0.55, 0.22, major_sections=48, minor_sections=24)
    vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.faces)
    camera_to_world, intrinsics = cameras.job_cameras(256, 12)
    depth, images = shapes.capture_of(vertices, faces, vertices, camera_to_world, intrinsics, 256)
    return vertices, faces, texture.unwrap(vertices, faces, SIZE), images, depth, camera_to_world, intrinsics


def test_unwrap_keeps_the_mesh_and_overlaps_nothing(torus):
    vertices, faces, loop_uvs, *_ = torus
    assert loop_uvs.shape == (len(faces), 3, 2) and loop_uvs.dtype == np.float32
    assert loop_uvs.min() >= 0 and loop_uvs.max() <= 1
    a, b = loop_uvs[:, 1] - loop_uvs[:, 0], loop_uvs[:, 2] - loop_uvs[:, 0]
    area = (np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) / 2).sum()
    face_of, _ = texture.rasterise(loop_uvs, SIZE)
    covered = (face_of >= 0).mean()
    assert area == pytest.approx(covered, rel=0.002)  # an overlap would cover less than its faces' areas
    assert covered > 0.3


def test_rasterise_puts_row_0_at_v_1():
    face_of, barycentric = texture.rasterise(np.array([[[0, 1], [1, 1], [0, 0.5]]], np.float32), 64)
    assert face_of[0, 0] == 0 and face_of[-1, 0] == -1
    uv = np.einsum("hwk,ki->hwi", barycentric, np.array([[0, 1], [1, 1], [0, 0.5]]))
    rows, columns = np.nonzero(face_of == 0)
    assert np.abs(uv[rows, columns, 0] - (columns + 0.5) / 64).max() < 1e-5
    assert np.abs(uv[rows, columns, 1] - (1 - (rows + 0.5) / 64)).max() < 1e-5


def test_bake_equals_the_paint(torus):
    vertices, faces, loop_uvs, images, depth, camera_to_world, intrinsics = torus
    baked = texture.bake(vertices[None], faces, loop_uvs, images[None], depth[None], camera_to_world, intrinsics, SIZE)
    assert baked.shape == (SIZE, SIZE, 3) and baked.dtype == np.uint8
    face_of, barycentric = texture.rasterise(loop_uvs, SIZE)
    inside = face_of >= 0
    points = np.einsum("tk,tki->ti", barycentric[inside], vertices[faces[face_of[inside]]])
    error = baked[inside].astype(float) - shapes.paint(points)
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 34
    # A gutter is filled from its chart: nothing stays black.
    assert baked.max(-1).min() > 20


def test_another_keyframe_fills_what_the_first_does_not_see(torus):
    vertices, faces, loop_uvs, images, depth, camera_to_world, intrinsics = torus
    blind_images, blind_depth = images.copy(), depth.copy()
    blind_images[1:], blind_depth[1:] = 0, 0  # only one view at the first keyframe
    face_of, barycentric = texture.rasterise(loop_uvs, SIZE)
    inside = face_of >= 0
    points = np.einsum("tk,tki->ti", barycentric[inside], vertices[faces[face_of[inside]]])

    def psnr(keyframes, colours, depths):
        positions = np.stack([vertices] * keyframes)
        baked = texture.bake(positions, faces, loop_uvs, colours, depths, camera_to_world, intrinsics, SIZE)
        return 10 * np.log10(255**2 / np.mean((baked[inside].astype(float) - shapes.paint(points)) ** 2))

    one = psnr(1, blind_images[None], blind_depth[None])
    two = psnr(2, np.stack([blind_images, images]), np.stack([blind_depth, depth]))
    assert one < 20 and two > 30


def baked_psnr(torus, baked):
    vertices, faces, loop_uvs, *_ = torus
    face_of, barycentric = texture.rasterise(loop_uvs, SIZE)
    inside = face_of >= 0
    points = np.einsum("tk,tki->ti", barycentric[inside], vertices[faces[face_of[inside]]])
    return 10 * np.log10(255**2 / np.mean((baked[inside].astype(float) - shapes.paint(points)) ** 2))


def test_the_templates_own_keyframe_is_asked_first(torus):
    vertices, faces, loop_uvs, images, depth, camera_to_world, intrinsics = torus
    positions = np.stack([vertices + [0, 0, 0.08], vertices])  # badly fitted to its capture, and well
    both = np.stack([images, images]), np.stack([depth, depth])
    own, other = (
        texture.bake(positions, faces, loop_uvs, *both, camera_to_world, intrinsics, SIZE, home=home) for home in (1, 0)
    )
    assert baked_psnr(torus, own) > 34 > 30 > baked_psnr(torus, other)


def test_a_template_that_is_off_takes_the_colours_that_stand_in_its_place(torus):
    vertices, faces, loop_uvs, images, depth, camera_to_world, intrinsics = torus
    axis = vertices * [1, 1, 0]
    axis *= 0.55 / np.linalg.norm(axis, axis=1, keepdims=True)
    thinner = axis + 0.8 * (vertices - axis)  # by 0.044
    baked = texture.bake(thinner[None], faces, loop_uvs, images[None], depth[None], camera_to_world, intrinsics, SIZE)
    assert baked_psnr(torus, baked) > 20


def test_what_nobody_sees_continues_its_surroundings(torus):
    vertices, faces, loop_uvs, images, depth, camera_to_world, intrinsics = torus
    below = camera_to_world[:, 2, 3] < 0.3  # nobody looks from above
    grey, dark = images.copy(), depth * below[:, None, None]
    grey[..., :3] = 90
    baked = texture.bake(vertices[None], faces, loop_uvs, grey[None], dark[None], camera_to_world, intrinsics, SIZE)
    assert 0 < below.sum() < len(below) and (np.abs(baked.astype(int) - 90) <= 1).all()


def test_vertex_colours(torus):
    vertices, faces, _, images, depth, camera_to_world, intrinsics = torus
    colours, weight = texture.see(vertices, faces, images, depth, camera_to_world, intrinsics)
    assert np.abs(colours * 255 - shapes.paint(vertices)).mean() < 4
    assert (weight > 0).mean() > 0.95


def test_foreign_arrays_are_refused(torus):
    vertices, faces, loop_uvs, images, depth, camera_to_world, intrinsics = torus
    with pytest.raises(LimError) as error:
        texture.bake(vertices[None], faces, loop_uvs, images[None], depth[None, :3], camera_to_world, intrinsics, 64)
    assert error.value.code == "bad_capture"
