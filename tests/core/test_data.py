# SPDX-License-Identifier: GPL-3.0-or-later
"""Packs, their renderer, and the half of the baker that runs outside Blender."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from lim_core.data import bake, creatures, motion, patterns, procedural, shapes
from lim_core.mesh import packs
from lim_core.shared import cameras
from lim_core.shared.errors import LimError

rays = pytest.importorskip("lim_core.mesh.rays", exc_type=ImportError)


def sphere(radius: float = 0.5, rows: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces of a sphere about the origin."""
    theta, phi = np.meshgrid(np.linspace(0, np.pi, rows + 1), np.arange(2 * rows) / rows * np.pi, indexing="ij")
    points = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], -1).reshape(-1, 3)
    i, j = np.meshgrid(np.arange(rows), np.arange(2 * rows), indexing="ij")
    a, b = i * 2 * rows + j, i * 2 * rows + (j + 1) % (2 * rows)
    faces = np.concatenate([np.stack([a, a + 2 * rows, b], -1), np.stack([b, a + 2 * rows, b + 2 * rows], -1)])
    return (points * radius).astype(np.float32), faces.reshape(-1, 3).astype(np.int32)


def make_pack(frames, faces, **changes) -> packs.Pack:
    """A pack of float frames [T, V, 3] in one clip, grey unless told otherwise."""
    frames = np.asarray(frames, np.float32)
    fields = {
        "name": "test", "faces": np.asarray(faces, np.int32), "uv": np.zeros((len(faces), 3, 2), np.float16),
        "face_material": np.zeros(len(faces), np.uint8), "texture_shape": np.array([[1, 1]], np.int32),
        "texture_start": np.zeros(1, np.int64), "texels": np.full((1, 3), 128, np.uint8), "clip_names": ("move",),
        "clip_start": np.array([0, len(frames)], np.int32), "fps": 10.0, "stored_positions": frames,
    }  # fmt: skip
    return packs.Pack(**(fields | changes))


def skinned_pack() -> packs.Pack:
    """Two bones; the second one turns and lifts. Two clips of 3 and 2 frames."""
    points, faces = sphere(rows=12)
    upper = np.clip(points[:, 2] * 2 + 0.5, 0, 1)
    weight = np.zeros((len(points), 4), np.uint8)
    weight[:, 1] = np.rint(upper * 255)
    weight[:, 0] = 255 - weight[:, 1]
    index = np.zeros((len(points), 4), np.uint8)
    index[:, 1] = 1
    bones = np.tile(np.eye(4)[:3], (5, 2, 1, 1))
    for t in range(5):
        c, s = np.cos(0.3 * t), np.sin(0.3 * t)
        bones[t, 1] = [[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0.1 * t]]
    return make_pack(
        points[None], faces, stored_positions=None, rest=points, bone_index=index, bone_weight=weight,
        bones=bones.astype(np.float16), clip_names=("turn", "ünö"), clip_start=np.array([0, 3, 5], np.int32),
    )  # fmt: skip


# ---- packs -----------------------------------------------------------------------------------------------------------
def test_float_pack_round_trip_is_within_half_a_step(tmp_path):
    points, faces = sphere(rows=12)
    frames = np.stack([points, points * 1.2 + 0.3, points * 0.4])
    original = make_pack(frames, faces, clip_names=("a", "b"), clip_start=np.array([0, 2, 3], np.int32))
    size = packs.save(original, tmp_path / "x.npz")
    assert size == (tmp_path / "x.npz").stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]  # no temporary file stays
    pack = packs.load(tmp_path / "x.npz")
    assert pack.clip_names == ("a", "b") and pack.frames(0) == 2 and pack.frames(1) == 1 and pack.fps == 10.0
    for clip, frame, truth in ((0, 0, frames[0]), (0, 1, frames[1]), (1, 0, frames[2])):
        found = pack.positions(clip, frame)
        assert found.dtype == np.float32
        assert (np.abs(found - truth) <= pack.position_step[clip] * 0.51 + 1e-6).all()
    np.testing.assert_array_equal(pack.faces, faces)


def test_skinned_pack_round_trip_is_exact(tmp_path):
    original = skinned_pack()
    packs.save(original, tmp_path / "skin.npz")
    pack = packs.load(tmp_path / "skin.npz")
    assert pack.clip_names == ("turn", "ünö") and pack.stored_positions is None
    for clip in (0, 1):
        for frame in range(pack.frames(clip)):
            np.testing.assert_array_equal(pack.positions(clip, frame), original.positions(clip, frame))


def test_skinning_is_the_weighted_mean_of_the_bones():
    pack = skinned_pack()
    weight = pack.bone_weight.astype(float) / 255
    bones = pack.bones[4].astype(float)
    each = np.einsum("bij,vj->vbi", bones[:, :, :3], pack.rest) + bones[:, :, 3]
    truth = np.einsum("vk,vki->vi", weight, each[np.arange(len(each))[:, None], pack.bone_index])
    np.testing.assert_allclose(pack.positions(1, 1), truth, atol=1e-6)


@pytest.mark.parametrize("make", [skinned_pack, lambda: make_pack([sphere()[0] * s for s in (1, 2, 4)], sphere()[1])])
def test_frames_between_are_linear_and_clamped(make):
    pack = make()
    a, b, last = pack.positions(0, 1), pack.positions(0, 2), pack.positions(0, pack.frames(0) - 1)
    np.testing.assert_allclose(pack.positions(0, 1.25), 0.75 * a + 0.25 * b, atol=1e-6)
    np.testing.assert_array_equal(pack.positions(0, 99.5), last)
    np.testing.assert_array_equal(pack.positions(0, -1), pack.positions(0, 0))
    np.testing.assert_array_equal(pack.positions(0, 1), a)  # the interpolation has not written into the pack


def test_normalisation_is_that_of_a_job():
    points, faces = sphere()
    pack = make_pack([points * 3 + 5, points * 3 + [9, 5, 5]], faces)
    model = pack.model_positions(0, [0, 0.5, 1])
    low, high = model.min((0, 1)), model.max((0, 1))
    np.testing.assert_allclose(low + high, 0, atol=1e-4)
    assert np.linalg.norm(model, axis=-1).max() == pytest.approx(0.97, abs=1e-4)
    np.testing.assert_allclose(
        packs.transform(pack.world_to_model(0, [0, 0.5, 1]), pack.positions(0, 1)), model[2], atol=1e-5
    )
    # One similarity: the distance travelled keeps its proportion to the radius.
    assert np.linalg.norm(model[2, 0] - model[0, 0]) / np.ptp(model[0, :, 2]) == pytest.approx(4 / 3, rel=1e-3)


BROKEN = {
    "is empty": {"faces": np.zeros((0, 3), np.int32), "uv": np.zeros((0, 3, 2)), "face_material": np.zeros(0, int)},
    "vertex that does not exist": {"faces": np.full((4, 3), 7, np.int32)},
    "material that does not exist": {"face_material": np.full(4, 3, np.uint8)},
    "texture outside its texels": {"texture_shape": np.array([[2, 2]], np.int32)},
    "an empty clip": {"clip_start": np.array([0, 0], np.int32)},
    "do not add up": {"clip_start": np.array([0, 5], np.int32)},
    "no area in the clip 'move'": {"stored_positions": np.zeros((2, 4, 3), np.float32)},
    "broken vertices": {"stored_positions": np.full((2, 4, 3), np.nan, np.float32)},
    "no frame rate": {"fps": 0.0},
    "UVs that do not match": {"uv": np.zeros((3, 3, 2))},
}


@pytest.mark.parametrize("sentence", BROKEN)
def test_a_broken_pack_is_neither_written_nor_used(sentence, tmp_path):
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    faces = np.array([[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]])
    packs.validate(make_pack([corners, corners * 2], faces))
    with pytest.raises(LimError, match=sentence) as caught:
        packs.save(
            dataclasses.replace(make_pack([corners, corners * 2], faces), **BROKEN[sentence]), tmp_path / "bad one.npz"
        )
    assert caught.value.code == "bad_pack" and "bad one.npz" in caught.value.message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"bone_weight": np.zeros((0, 4), np.uint8)}, "wrong shape"),
        ({"bone_index": None}, "incomplete"),
        ({"bones": np.full((5, 2, 3, 4), np.inf)}, "not finite"),
        ({"bones": np.zeros((5, 1, 3, 4))}, "bone that does not exist"),
    ],
)
def test_broken_skinning_is_refused(change, sentence):
    with pytest.raises(LimError, match=sentence):
        packs.validate(dataclasses.replace(skinned_pack(), **change))


def test_weights_that_do_not_sum_to_one_are_refused():
    pack = skinned_pack()
    weight = pack.bone_weight.copy()
    weight[3] = (255, 1, 0, 0)
    with pytest.raises(LimError, match="sum to one"):
        packs.validate(dataclasses.replace(pack, bone_weight=weight))


def test_files_that_are_no_packs_are_named(tmp_path):
    packs.save(skinned_pack(), tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "nothing.npz").write_bytes(b"")
    np.savez(tmp_path / "other.npz", faces=np.zeros((1, 3), np.int32))
    np.savez(tmp_path / "pickle.npz", faces=np.array([{"a": 1}], object))
    damaged = bytearray(whole)
    damaged[len(whole) // 3 : len(whole) // 3 + 64] = bytes(64)
    (tmp_path / "damaged.npz").write_bytes(damaged)
    for name in ("cut", "text", "nothing", "other", "pickle", "damaged"):
        with pytest.raises(LimError, match=f"{name}.npz") as caught:
            packs.load(tmp_path / f"{name}.npz")
        assert caught.value.code == "bad_pack", name
    with pytest.raises(LimError, match="absent.npz") as caught:
        packs.load(tmp_path / "absent.npz")
    assert caught.value.code == "missing_file"
    with pytest.raises(LimError, match="no packs"):
        packs.list_packs(tmp_path / "absent")


# ---- renderer --------------------------------------------------------------------------------------------------------
def test_depth_and_mask_of_a_sphere_are_analytic():
    radius, size = 0.5, 64
    points, faces = sphere(radius)
    camera, intrinsics = cameras.job_cameras(size, 8)
    found = rays.render(make_pack([points], faces), points, camera, intrinsics, size)
    origin, direction = cameras.rays(camera, intrinsics, size)
    a, b = (direction**2).sum(-1), (origin * direction).sum(-1)
    inside = b**2 - a * ((origin**2).sum(-1) - radius**2)
    truth = np.where(inside > 0, (-b - np.sqrt(np.maximum(inside, 0))) / a, 0)
    clear = np.abs(inside) > 0.02  # further from the outline than the facets' error
    np.testing.assert_array_equal(found.mask[clear], (inside > 0)[clear])
    assert (found.mask != (inside > 0)).mean() < 2e-3
    both = found.mask & clear
    assert both.sum() > 4000
    np.testing.assert_allclose(found.depth_planar[both], truth[both], atol=2e-3)
    assert found.depth_planar[~found.mask].max() == 0


def test_pictures_lie_as_the_cameras_say():
    """A marker on each positive axis: red +X, green +Y, blue +Z."""
    markers, faces = [], []
    for axis in range(3):
        points, own = sphere(0.1, 16)
        faces.append(own + len(points) * axis)
        markers.append(points + 0.6 * np.eye(3, dtype=np.float32)[axis])
    points, per = np.concatenate(markers), len(faces[0])
    pack = make_pack(
        [points], np.concatenate(faces), face_material=np.repeat(np.arange(3), per),
        texture_shape=np.ones((3, 2), np.int32), texture_start=np.arange(3), texels=np.diag([255] * 3).astype(np.uint8),
    )  # fmt: skip
    camera = np.stack([cameras.look_at(0, 0), cameras.look_at(90, 0), cameras.look_at(30, 20)])
    intrinsics = np.stack([cameras.pinhole(64)] * 3)
    rgba = rays.render(pack, points, camera, intrinsics, 64).rgba

    def centre(view, channel):
        row, column = np.nonzero(rgba[view, ..., channel] > 128)
        return np.array([column.mean() + 0.5, row.mean() + 0.5])

    assert centre(0, 0)[0] > 40 and abs(centre(0, 0)[1] - 32) < 1  # from the front, +X is to the right
    assert centre(0, 2)[1] < 24 and abs(centre(0, 2)[0] - 32) < 1  # +Z is up
    assert centre(1, 1)[0] > 40  # from +X, +Y is to the right
    for axis in range(3):
        pixel, _ = cameras.project(0.6 * np.eye(3)[axis][None], camera[2], intrinsics[2])
        np.testing.assert_allclose(centre(2, axis), pixel[0], atol=0.7)


def test_canonical_is_the_start_position_of_what_is_seen():
    points, faces = sphere()
    moved = points + np.array([0.2, -0.1, 0.15], np.float32)
    pack = make_pack([points, moved], faces)
    camera, intrinsics = cameras.job_cameras(48, 4)
    other = points * np.array([1, 2, 3], np.float32)
    still = rays.render(pack, points, camera, intrinsics, 48, canonical=[points], supersampling=2)
    seen = cameras.unproject(still.depth_planar, camera, intrinsics)
    np.testing.assert_allclose(still.canonical[0][still.mask], seen[still.mask], atol=1e-5)
    later = rays.render(pack, moved, camera, intrinsics, 48, canonical=[points, other])
    seen = cameras.unproject(later.depth_planar, camera, intrinsics)[later.mask]
    np.testing.assert_allclose(later.canonical[0][later.mask], seen - [0.2, -0.1, 0.15], atol=1e-5)
    np.testing.assert_allclose(later.canonical[1][later.mask], (seen - [0.2, -0.1, 0.15]) * [1, 2, 3], atol=1e-5)
    assert not later.canonical[0][~later.mask].any()


def quad_pack(texels: np.ndarray, uv_scale: float = 1.0) -> packs.Pack:
    """A square in the plane y = 0, seen from the front, u to the right and v up."""
    points = np.array([[-0.5, 0, -0.5], [0.5, 0, -0.5], [0.5, 0, 0.5], [-0.5, 0, 0.5]], np.float32)
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32) * uv_scale
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    return make_pack(
        [points],
        faces,
        uv=uv[faces],
        texture_shape=np.array([texels.shape[:2]], np.int32),
        texels=texels.reshape(-1, 3),
    )


def test_textures_stand_upright_and_repeat():
    texels = np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 250, 0]]], np.uint8)  # row 0 is the top
    camera, intrinsics = cameras.look_at(0, 0)[None], cameras.pinhole(64)[None]
    for scale in (1.0, 3.0):
        pack = quad_pack(texels, scale)
        found = rays.render(
            pack, pack.positions(0, 0), camera, intrinsics, 64, nearest=True, canonical=[pack.positions(0, 0)]
        )
        at = found.canonical[0][found.mask] + [0.5, 0, 0.5]
        column = np.floor(at[:, 0] * scale * 2 + 1e-5).astype(int) % 2
        row = 1 - np.floor(at[:, 2] * scale * 2 + 1e-5).astype(int) % 2
        assert (found.rgba[found.mask][:, :3] == texels[row, column]).all(-1).mean() > 0.99
        assert found.mask.sum() > 300


def test_bilinear_lookup_is_exact_between_texels():
    texels = np.array([[[0, 0, 0], [200, 0, 0]], [[0, 100, 0], [200, 100, 0]]], np.uint8)
    pack = quad_pack(texels)
    # In face 0 (u along the lower edge, v up at the right): barycentric (u, v) is (U - V, V).
    for place, truth in (((0.75, 0.25), (200, 100, 0)), ((0.5, 0.5), (100, 50, 0)), ((0.75, 0.5), (200, 50, 0))):
        u, v = np.array([place[0] - place[1]]), np.array([place[1]])
        np.testing.assert_allclose(rays.albedo(pack, np.array([0]), u, v)[0], truth, atol=1e-3)
    wrapped = rays.albedo(pack, np.array([0]), np.array([1.0 - 0.25]), np.array([0.25]))  # U = 1: half of either side
    np.testing.assert_allclose(wrapped[0], (100, 100, 0), atol=1e-3)


def test_supersampling_is_a_larger_picture_averaged_down():
    points, faces = sphere(0.8)
    rng = np.random.default_rng(0)
    pack = make_pack(
        [points], faces, texture_shape=np.array([[8, 8]], np.int32), texels=rng.integers(0, 255, (64, 3), np.uint8),
        uv=rng.random((len(faces), 3, 2)),
    )  # fmt: skip
    camera, _ = cameras.job_cameras(32, 3)
    fine = rays.render(pack, points, camera, np.stack([cameras.pinhole(64)] * 3), 64)
    coarse = rays.render(pack, points, camera, np.stack([cameras.pinhole(32)] * 3), 32, supersampling=2)
    blocks = fine.rgba.reshape(3, 32, 2, 32, 2, 4).astype(float)
    alpha = blocks[..., 3:] / 255
    count = alpha.sum((2, 4))
    colour = (blocks[..., :3] * alpha).sum((2, 4)) / np.maximum(count, 1)
    truth = np.concatenate([np.where(count > 0, colour, 0), count * 255 / 4], -1)
    assert np.abs(coarse.rgba - truth).max() <= 1.01  # the fine picture was rounded before, this one after
    assert set(np.unique(coarse.rgba[..., 3])) > {0, 255}
    single = rays.render(pack, points, camera, np.stack([cameras.pinhole(32)] * 3), 32)
    np.testing.assert_array_equal(single.depth_planar, coarse.depth_planar)
    three = rays.render(pack, points, camera, np.stack([cameras.pinhole(32)] * 3), 32, supersampling=3)
    assert np.abs(three.rgba[..., 3].astype(int) - coarse.rgba[..., 3]).max() <= 85  # at most one sample of nine apart


def test_both_sides_are_seen_and_background_is_white():
    points, faces = sphere()
    camera, intrinsics = cameras.job_cameras(32, 2)
    out = rays.render(make_pack([points], faces), points, camera, intrinsics, 32)
    turned = rays.render(make_pack([points], faces[:, ::-1]), points, camera, intrinsics, 32)
    assert (out.mask == turned.mask).mean() > 0.999 and out.mask.any()
    picture = rays.over(out.rgba)
    np.testing.assert_allclose(picture[out.mask], 128 / 255, atol=1e-6)
    np.testing.assert_allclose(picture[~out.mask], 1)


def test_vertices_of_another_pack_are_refused():
    points, faces = sphere()
    camera, intrinsics = cameras.job_cameras(16, 1)
    with pytest.raises(LimError, match="vertices"):
        rays.render(make_pack([points], faces), points[:-1], camera, intrinsics, 16)


def test_a_camera_inside_the_object_is_refused():
    points, faces = sphere(10.0)
    camera, intrinsics = cameras.job_cameras(16, 1)
    with pytest.raises(LimError, match="Camera 0 stands inside 'test'") as caught:
        rays.render(make_pack([points], faces), points, camera, intrinsics, 16)
    assert caught.value.code == "outside_cameras"


def test_vertices_that_are_no_numbers_are_refused():
    points, faces = sphere()
    camera, intrinsics = cameras.job_cameras(16, 1)
    torn = points.copy()
    torn[7, 1] = np.nan
    for positions, canonical in ((torn, points), (points, torn)):
        with pytest.raises(LimError, match="'test' has vertices without a place") as caught:
            rays.render(make_pack([points], faces), positions, camera, intrinsics, 16, canonical=[canonical])
        assert caught.value.code == "bad_pack"


# ---- procedural objects ----------------------------------------------------------------------------------------------
def test_procedural_objects_depend_on_the_seed_alone():
    stream = procedural.objects(7)
    first, second = next(stream), next(stream)
    again = procedural.make_object((7, 1), variety=procedural.RICH)
    np.testing.assert_array_equal(second.stored_positions, again.stored_positions)
    np.testing.assert_array_equal(second.texels, again.texels)
    np.testing.assert_array_equal(second.faces, again.faces)
    assert (
        first.stored_positions.shape != second.stored_positions.shape or (first.texels[:1] != second.texels[:1]).any()
    )


@pytest.mark.parametrize("variety", [procedural.PLAIN, procedural.RICH], ids=["plain", "rich"])
def test_procedural_objects_are_sound_and_move_smoothly(variety):
    camera, intrinsics = cameras.job_cameras(32, 4)
    moved, stepped, textured, kinds = [], [], 0, set()
    for index in range(40):
        pack = procedural.make_object((3, index), frames=16, variety=variety)
        packs.validate(pack)
        stack = pack.model_positions(0, range(16))
        step = np.linalg.norm(np.diff(stack, axis=0), axis=-1)
        stepped.append(step.max())
        moved.append(np.linalg.norm(stack - stack[:1], axis=-1).max())
        textured += (pack.texture_shape > 1).any()
        kinds.add((pack.vertices, len(pack.faces)))
        views = rays.render(pack, stack[8], camera, intrinsics, 32, canonical=[stack[0]])
        assert (views.mask.sum((1, 2)) > 15).all()
        assert np.linalg.norm(views.canonical[0], axis=-1).max() < 1
    assert np.median(moved) > 0.2 and np.min(moved) > 0.005
    assert np.max(stepped) < 0.6 and np.median(stepped) < 0.25  # of a unit sphere, in a tenth of a second
    assert textured > 25 and len(kinds) > 25


def closed(points: np.ndarray, faces: np.ndarray) -> bool:
    """Whether every edge belongs to two triangles, run through once in each direction: so there is an inside."""
    # Vertices that coincide are one: the poles are rows of them.
    _, place = np.unique(np.rint(points * 1e7), axis=0, return_inverse=True)
    faces = place.ravel()[faces]
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    forward = {tuple(e) for e in edges.tolist()}
    return len(forward) == len(edges) and all((b, a) in forward for a, b in forward)


def volume(points: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = points[faces].transpose(1, 0, 2)
    return float((a * np.cross(b, c)).sum() / 6)


def test_procedural_parts_are_closed():
    for maker in (shapes.rounded_box, shapes.supershape, shapes.lathe, shapes.tube, shapes.height_field):
        for seed in range(4):
            part = maker(np.random.default_rng(seed))
            assert np.isfinite(part.points).all() and part.uv.shape == (len(part.faces), 3, 2)
            assert closed(part.points, part.faces), maker.__name__


def test_cuts_take_something_away_and_leave_a_closed_surface():
    pytest.importorskip("manifold3d")
    less = 0
    for seed in range(12):
        whole = shapes.rounded_box(np.random.default_rng(seed))
        part = shapes.cut(np.random.default_rng(seed), whole)
        assert closed(part.points, part.faces)
        assert part.uv.shape == (len(part.faces), 3, 2) and set(np.unique(part.paint)) <= {0, 1}
        share = volume(part.points, part.faces) / abs(volume(whole.points, whole.faces))
        assert 0.38 < share < 1.0001 and part.points[:, 2].min() < 0.05
        if share < 0.98:
            less += 1
            # The faces of paint 0 lie on the box, those of paint 1 inside it.
            inside = part.points[part.faces[part.paint == 1]].mean(1)
            distance = np.linalg.norm(inside[:, None] - whole.points[None, ::7], axis=-1).min(1)
            assert len(inside) > 10 and distance.max() > 0.05
    assert less > 6


def test_a_creature_is_one_closed_surface_that_follows_its_bones():
    times = np.arange(12) / 10
    for seed in range(6):
        moving, part = creatures.creature(np.random.default_rng(seed), times)
        assert closed(part.points, part.faces) and volume(part.points, part.faces) > 0
        assert moving.shape == (12, len(part.points), 3) and np.isfinite(moving).all()
        edges = part.faces[:, :2]
        rest = np.linalg.norm(part.points[edges[:, 0]] - part.points[edges[:, 1]], axis=1)
        now = np.linalg.norm(moving[:, edges[:, 0]] - moving[:, edges[:, 1]], axis=-1)
        assert 0.7 < np.median(now / rest) < 1.3  # it bends, it does not swell
        assert np.ptp(part.uv, axis=1).max() < 1.5, "no triangle runs back around the seam"
    bones = creatures.random_skeleton(np.random.default_rng(3))
    still = creatures.pose(np.random.default_rng(0), [dataclasses.replace(b, sway=0.0) for b in bones], times)
    np.testing.assert_allclose(still, np.broadcast_to(np.eye(4)[:3], still.shape), atol=1e-12)
    posed = creatures.pose(np.random.default_rng(0), bones, times)
    for index, bone in enumerate(bones):  # no bone leaves its joint
        if bone.parent >= 0:
            own, parent = (posed[:, i, :, :3] @ bone.head + posed[:, i, :, 3] for i in (index, bone.parent))
            np.testing.assert_allclose(own, parent, atol=1e-9)


def test_wheels_turn_and_lids_stay_stiff():
    """The vertices of a limb keep their distances; the root, which comes before it, bends."""
    stiff = procedural.Variety(hinges=1.0)
    for seed in range(6):
        pack = procedural.make_object((1, seed), parts=(2, 2), variety=stiff)
        limb = pack.stored_positions[:, -100:].astype(float)
        near = np.linalg.norm(limb[:, :50] - limb[:, 50:], axis=-1)
        np.testing.assert_allclose(near, near[:1].repeat(len(near), 0), rtol=2e-3, atol=1e-4)


def test_every_kind_of_texture_repeats_without_a_seam():
    for kind in patterns.ALL_KINDS:
        for seed in range(3):
            rng = np.random.default_rng(seed)
            image = patterns.random_texture(rng, patterns.random_palette(rng), {kind: 1.0})
            assert image.min() >= 0 and image.max() <= 1 and image.shape[2] == 3
            if kind in ("noise", "image", "gradient"):
                across = np.abs(image[:, 0] - image[:, -1]).mean()
                assert across <= 2.5 * np.abs(np.diff(image, axis=1)).mean() + 0.02, kind
    assert patterns.ALL_KINDS.keys() > patterns.KINDS.keys()
    assert sum(patterns.ALL_KINDS.values()) == pytest.approx(1)


def test_deformations_leave_the_joint_and_keep_lengths():
    axis = np.zeros((21, 3))
    axis[:, 2] = np.linspace(0, 1, 21)
    bent = motion.bend(np.repeat(axis[None], 3, 0), np.array([0.0, 0.7, -1.2]), 1.0)
    np.testing.assert_allclose(bent[:, 0], 0, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(np.diff(bent, axis=1), axis=-1).sum(1), 1, atol=1e-3)
    np.testing.assert_allclose(bent[0], axis, atol=1e-3)
    assert bent[1, -1, 0] > 0.2 and bent[2, -1, 0] < -0.2
    turned = motion.rotations(np.array([0.0, 0.0, 1.0]), np.array([np.pi / 2]))[0] @ [1, 0, 0]
    np.testing.assert_allclose(turned, [0, 1, 0], atol=1e-12)


def test_limbs_stay_on_what_carries_them():
    """The triangle that a limb follows keeps its place in the frame that it is given."""
    rng = np.random.default_rng(5)
    part = shapes.rounded_box(rng)
    moving = motion.deform(np.random.default_rng(0), part.points, np.arange(12) / 10)
    assert np.abs(moving - moving[:1]).max() > 0.05
    origin, frame = motion.follow_triangle(rng, moving, part.faces)
    np.testing.assert_allclose(frame @ frame.transpose(0, 2, 1), np.broadcast_to(np.eye(3), frame.shape), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(frame), 1, atol=1e-9)
    centres = moving[:, part.faces].mean(2)
    assert np.linalg.norm(centres - origin[:, None], axis=-1).max(0).min() < 1e-9  # one triangle's centre at all times
    assert ((origin - moving.mean(1)) * frame[:, :, 2]).sum(1)[0] > 0  # it points outwards


# ---- the baker outside Blender ---------------------------------------------------------------------------------------
FAKE = """#!{python}
# Stands in for a Python with bpy: bakes by name.
import json, os, sys, time
sys.path.insert(0, {root!r})
tasks = json.load(open(sys.argv[-1]))
def tell(**event):
    with open(tasks["events"], "a") as file:
        file.write(json.dumps(event) + "\\n")
for source, target in tasks["assets"]:
    tell(event="begin", file=source)
    name = os.path.basename(source)
    if name.startswith("crash"):
        os.abort()
    if name.startswith("hang"):
        time.sleep(60)
    row = dict(clips=0, frames=0, vertices=0, bytes=0, seconds=0.1, status="skipped", message="Nothing moves.")
    if name.startswith("good"):
        import shutil
        shutil.copy({pack!r}, target)
        row.update(status="ok", message="skin", clips=2, frames=5, bytes=10)
    tell(event="end", file=source, **row)
"""


@pytest.fixture
def fake_blender(tmp_path):
    packs.save(skinned_pack(), tmp_path / "template.npz")
    program = tmp_path / "python-fake"
    root = str(Path(__file__).resolve().parents[2])
    program.write_text(FAKE.format(python=sys.executable, root=root, pack=str(tmp_path / "template.npz")))
    program.chmod(0o755)
    return str(program)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for Blender is a script with a #! line")
def test_a_crash_or_a_hang_costs_one_asset(tmp_path, fake_blender, capsys):
    assets, out = tmp_path / "ass ets", tmp_path / "pä cks"
    assets.mkdir()
    for name in ("bad", "crash", "good_1", "good_2", "hang", "z_bad"):
        (assets / f"{name}.glb").write_bytes(b"")
    assert bake.main([str(assets), str(out), "--blender", fake_blender, "--timeout", "5", "--batch", "4"]) == 0
    rows = bake.read_report(out / bake.REPORT)
    assert {name: row["status"] for name, row in rows.items()} == {
        "bad.glb": "skipped", "crash.glb": "crashed", "good_1.glb": "ok", "good_2.glb": "ok", "hang.glb": "crashed",
        "z_bad.glb": "skipped",
    }  # fmt: skip
    assert "more than 5 s" in rows["hang.glb"]["message"] and "code" in rows["crash.glb"]["message"]
    assert [p.name for p in packs.list_packs(out)] == ["good_1.npz", "good_2.npz"]
    assert "2 packs, 4 clips, 10 frames" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for Blender is a script with a #! line")
def test_finished_packs_are_left_alone_and_broken_ones_are_not(tmp_path, fake_blender):
    assets, out = tmp_path / "a", tmp_path / "p"
    assets.mkdir()
    for name in ("good_1", "good_2"):
        (assets / f"{name}.glb").write_bytes(b"")
    lines: list[str] = []
    bake.bake(assets, out, bake.BakeOptions(), blender=fake_blender, show=lines.append)
    before = (out / "good_1.npz").stat().st_mtime_ns
    (out / "good_2.npz").write_bytes(b"cut")
    lines.clear()
    rows = bake.bake(assets, out, bake.BakeOptions(), blender=fake_blender, show=lines.append)
    assert lines[0] == "2 assets, 1 already baked" and len(lines) == 2 and len(rows) == 2
    assert (out / "good_1.npz").stat().st_mtime_ns == before
    packs.load(out / "good_2.npz")
    bake.bake(assets, out, bake.BakeOptions(), blender=fake_blender, force=True, show=lines.append)
    assert (out / "good_1.npz").stat().st_mtime_ns != before


def test_a_missing_blender_and_an_empty_folder_are_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("LIM_BLENDER_PYTHON", raising=False)
    with pytest.raises(LimError) as caught:
        bake.blender_command(None)
    assert caught.value.code == "blender_missing" and "LIM_BLENDER_PYTHON" in str(caught.value)
    monkeypatch.setenv("LIM_BLENDER_PYTHON", sys.executable)
    assert bake.blender_command(None) == [sys.executable]
    assert bake.main([str(tmp_path), str(tmp_path / "out")]) == 3
    assert "no assets" in capsys.readouterr().err
    (tmp_path / "a.glb").write_bytes(b"")
    (tmp_path / "a.fbx").write_bytes(b"")
    with pytest.raises(LimError, match="a.npz"):
        bake.find_assets(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for Blender is a script with a #! line")
def test_a_program_that_is_no_blender_is_said(tmp_path):
    program = tmp_path / "python-broken"
    program.write_text("#!/bin/sh\necho no bpy here >&2\nexit 1\n")
    program.chmod(0o755)
    assets = tmp_path / "a"
    assets.mkdir()
    (assets / "x.glb").write_bytes(b"")
    with pytest.raises(LimError, match="no bpy here") as caught:
        bake.bake(assets, tmp_path / "p", bake.BakeOptions(), blender=str(program), show=lambda line: None)
    assert caught.value.code == "blender_missing"


def test_the_report_survives_commas_and_quotes(tmp_path):
    row = dict.fromkeys(bake.COLUMNS, "0") | {"file": "ä,b.glb", "message": 'He said "no", twice.'}
    bake.write_report(tmp_path / "r.csv", {"ä,b.glb": row})
    assert bake.read_report(tmp_path / "r.csv") == {"ä,b.glb": row}
    assert json.dumps(row)  # plain text only
