# SPDX-License-Identifier: GPL-3.0-or-later
"""Rendered sequences: what is written is what is read, from any half-finished or damaged folder; and augmentation."""

import dataclasses
import errno
import sys
import time

import numpy as np
import pytest
from PIL import Image

from lim_core.data import augment, command_line, procedural, sequences, shapes
from lim_core.data import cache as caches
from lim_core.mesh import packs
from lim_core.shared import cameras
from lim_core.shared.errors import LimError

rays = pytest.importorskip("lim_core.mesh.rays", exc_type=ImportError)
SIZE = 32


def arm(bend: float = 1.2) -> packs.Pack:
    """A stick along +Z on two bones, the upper one hinged in the middle; clip 0 is straight, clip 1 bent by `bend`."""
    part = shapes.rounded_box(np.random.default_rng(0))
    rest = ((part.points - [0, 0, 0.5]) * [0.2, 0.2, 2.0]).astype(np.float32)
    weight = np.zeros((len(rest), 4), np.uint8)
    weight[:, 1] = np.rint(np.clip(rest[:, 2] * 3 + 0.5, 0, 1) * 255)
    weight[:, 0] = 255 - weight[:, 1]
    index = np.zeros_like(weight)
    index[:, 1] = 1
    bones = np.tile(np.eye(4)[:3], (6, 2, 1, 1))
    c, s = np.cos(bend), np.sin(bend)
    bones[3:, 1, :, :3] = [[1, 0, 0], [0, c, -s], [0, s, c]]
    flat = {"texture_shape": np.array([[1, 1]], np.int32), "texture_start": np.zeros(1, np.int64)}
    return packs.Pack(
        name="arm", faces=part.faces.astype(np.int32), uv=part.uv.astype(np.float16),
        face_material=np.zeros(len(part.faces), np.uint8), texels=np.full((1, 3), 90, np.uint8), clip_names=("a", "b"),
        clip_start=np.array([0, 3, 6], np.int32), fps=10.0, rest=rest, bone_index=index, bone_weight=weight,
        bones=bones.astype(np.float32), **flat,
    )  # fmt: skip


def vanishing() -> packs.Pack:
    """A box that shrinks to nothing."""
    part = shapes.rounded_box(np.random.default_rng(0))
    frames = part.points * np.array([1, 0.4, 1e-12])[:, None, None]
    changes = {"stored_positions": frames.astype(np.float32), "clip_start": np.array([0, 3], np.int32)}
    changes |= {"rest": None, "bone_index": None, "bone_weight": None, "bones": None, "clip_names": ("gone",)}
    return dataclasses.replace(arm(), name="vanishing.npz", **changes)


@pytest.fixture(scope="module", autouse=True)
def small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequences, "SHARD", 8)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("cache")
    assert sequences.fill([], made, size=SIZE, sequences=8, seed=5, procedural=1.0, supersample=2) == 8
    return made


# ---- what is stored --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("supersample", [1, 2])
def test_a_sequence_comes_back_as_it_was_rendered(tmp_path, monkeypatch, supersample):
    rendered, sample = [], rays.sample

    def listen(*args, **options):
        rendered.append((args, sample(*args, **options)))
        return rendered[-1][1]

    monkeypatch.setattr(rays, "sample", listen)
    plain = dataclasses.replace(augment.Augmentation(), colours=0)
    row = sequences.render_sequence(
        procedural.make_object(4), SIZE, np.random.default_rng(1), augmentation=plain, supersample=supersample
    )
    sequences.write_shard(tmp_path / "0000_0000", [row, row], {})
    sequence = caches.Cache(tmp_path).sequence(1)
    assert sequence["rgba"].shape == (5, 8, SIZE, SIZE, 4) and sequence["maps"].shape == (5, 8, SIZE, SIZE, 9)
    for step, ((_, positions, matrix, k, _), seen) in enumerate(rendered):
        views = seen.views(8, SIZE)
        np.testing.assert_array_equal(sequence["rgba"][step], views.rgba)
        np.testing.assert_array_equal(sequence["camera_to_world"][step], matrix)
        position = cameras.unproject(views.depth_planar, matrix, k)
        truth = np.concatenate([position, *views.canonical], -1) * views.mask[..., None]
        maps = sequence["maps"][step]
        assert maps.dtype == np.float16 and not maps[~views.mask].any() and views.mask.sum() > 50
        np.testing.assert_allclose(maps, truth, atol=6e-4)
        assert np.abs(positions).max() <= 1
    # Where the canonical coordinates are those of the step itself, they are the position.
    np.testing.assert_allclose(sequence["maps"][0][..., 3:6], sequence["maps"][0][..., :3], atol=6e-4)
    np.testing.assert_allclose(sequence["maps"][4][..., 6:], sequence["maps"][4][..., :3], atol=6e-4)


def test_pictures_are_indexed_like_arrays(folder):
    sequence = caches.Cache(folder).sequence(7)
    pictures, whole = sequence["maps"], np.asarray(sequence["maps"])
    assert whole.shape == pictures.shape and whole.dtype == pictures.dtype == np.float16 and len(pictures) == 5
    np.testing.assert_array_equal(pictures[-1], whole[4])
    np.testing.assert_array_equal(pictures[2, :4, ..., :3], whole[2, :4, ..., :3])
    np.testing.assert_array_equal(pictures[1:3, 0], whole[1:3, 0])
    np.testing.assert_array_equal(pictures[3][[0, 5], [4, 4], [9, 30]], whole[3][[0, 5], [4, 4], [9, 30]])
    with pytest.raises(IndexError):
        pictures[5]


def test_only_what_shows_something_is_stored(folder):
    stored = sum(path.stat().st_size for path in folder.rglob("*.npy"))
    pixels = 8 * 5 * 8 * SIZE**2
    shown = sum((np.asarray(caches.Cache(folder).sequence(i)["rgba"])[..., 3] > 0).sum() for i in range(8))
    assert stored < 18 * shown + pixels / 8 + 8 * 40 * 120 < 0.4 * 22 * pixels


def test_whole_pictures_as_they_were_stored_before_are_still_read(folder, tmp_path):
    source = caches.Cache(folder).sequence(3)
    old = tmp_path / "0009_0000"
    old.mkdir()
    for name in caches.DENSE_ARRAYS:
        np.save(old / f"{name}.npy", np.asarray(source[name])[None])
    (old / "ready").write_text("{}")
    (folder / "0005_0000").rename(tmp_path / "0005_0000")
    try:
        both = caches.Cache(tmp_path)
        assert len(both.index) == 9
        for name in caches.DENSE_ARRAYS:
            np.testing.assert_array_equal(np.asarray(both.sequence(8)[name]), np.asarray(both.sequence(3)[name]))
    finally:
        (tmp_path / "0005_0000").rename(folder / "0005_0000")


def test_the_seed_decides(folder, tmp_path):
    sequences.fill([], tmp_path, size=SIZE, sequences=8, seed=5, procedural=1.0, supersample=2)
    for path in folder.rglob("*.npy"):
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes(), path.name
    sequences.fill([], tmp_path, size=SIZE, sequences=8, seed=6, procedural=1.0, supersample=2)
    found = caches.Cache(tmp_path)
    assert len(found.index) == 16
    assert (np.asarray(found.sequence(0)["rgba"]) != np.asarray(found.sequence(8)["rgba"])).any()


# ---- what can go wrong -----------------------------------------------------------------------------------------------
def test_a_run_that_was_stopped_goes_on_and_leaves_no_halves(folder, tmp_path):
    assert sequences.fill([], tmp_path, size=SIZE, sequences=16, seed=5, procedural=1.0, deadline=time.monotonic()) == 0
    assert not list(tmp_path.iterdir()) and not caches.Cache(tmp_path).index
    crashed = tmp_path / "0005_0000"  # a process that was killed while it wrote, by an older version
    crashed.mkdir()
    (crashed / "rgba.npy").write_bytes(b"half")
    assert not caches.Cache(tmp_path).index
    sequences.fill([], tmp_path, size=SIZE, sequences=8, seed=5, procedural=1.0, supersample=2)
    assert [p.name for p in tmp_path.iterdir()] == ["0005_0000"] and len(caches.Cache(tmp_path).index) == 8


def test_a_full_disk_is_said_and_costs_one_shard(tmp_path, monkeypatch):
    row = sequences.render_sequence(arm(), 16, np.random.default_rng(0))
    sequences.write_shard(tmp_path / "0000_0000", [row], {})
    written = []

    def full(path, array):
        written.append(path)
        if len(written) > 3:
            raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(LimError, match="0000_0001") as caught:
        sequences.write_shard(tmp_path / "0000_0001", [row], {})
    assert caught.value.code == "disk_full"
    assert [p.name for p in tmp_path.iterdir()] == ["0000_0000"]


def test_pictures_of_another_size_are_not_mixed_in(folder):
    with pytest.raises(LimError, match="holds pictures of 32 pixels, 64 were asked for") as caught:
        sequences.fill([], folder, size=64, sequences=8, seed=9, procedural=1.0)
    assert caught.value.code == "bad_request" and len(list(folder.iterdir())) == 1


def test_a_missing_library_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "manifold3d", None)
    lines: list[str] = []
    with pytest.raises(LimError, match="manifold3d"):
        sequences.fill([], tmp_path, size=16, sequences=64, seed=0, procedural=1.0, supersample=1, say=lines.append)
    assert not lines


def test_a_broken_pack_is_left_out_and_named(tmp_path):
    packs.save(arm(), tmp_path / "good.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:500])
    lines: list[str] = []
    found = sequences.read_packs(packs.list_packs(tmp_path), lines.append)
    assert [pack.name for pack in found] == ["good.npz"] and len(lines) == 1 and "cut.npz" in lines[0]
    with pytest.raises(LimError, match="None of the 1 packs can be read"):
        sequences.read_packs([tmp_path / "cut.npz"], lines.append)
    with pytest.raises(LimError, match="no pack to render"):
        sequences.fill([], tmp_path / "out", size=16, sequences=1, seed=0)


def test_a_pack_that_vanishes_is_named_and_the_others_go_on(tmp_path, monkeypatch):
    with pytest.raises(LimError, match="'vanishing.npz' shows nothing at frame 2.0 of its clip 'gone'"):
        sequences.render_sequence(vanishing(), 16, np.random.default_rng(0))
    monkeypatch.setattr(sequences, "read_packs", lambda paths, say: [vanishing(), arm()])
    lines: list[str] = []
    assert sequences.fill([], tmp_path, size=16, sequences=8, seed=0, supersample=1, say=lines.append) == 8
    assert len(lines) == 1 and "vanishing.npz" in lines[0]
    monkeypatch.setattr(sequences, "read_packs", lambda paths, say: [vanishing()])
    monkeypatch.setattr(sequences, "TRIES", 5)
    with pytest.raises(LimError, match="vanishing.npz"):
        sequences.fill([], tmp_path, size=16, sequences=8, seed=1, say=lines.append)


@pytest.mark.parametrize("name", ["rgba", "bits"])
def test_a_damaged_shard_is_named(folder, tmp_path, name):
    (tmp_path / "0005_0000").mkdir()
    for path in (folder / "0005_0000").iterdir():
        (tmp_path / "0005_0000" / path.name).write_bytes(path.read_bytes())
    broken = tmp_path / "0005_0000" / f"{name}.npy"
    broken.write_bytes(broken.read_bytes()[:900])
    with pytest.raises(LimError, match="0005_0000' is damaged") as caught:
        caches.Cache(tmp_path)
    assert caught.value.code == "bad_pack"


def test_the_command_spreads_over_processes_and_draws_a_sheet(tmp_path, capsys):
    options = ["-", str(tmp_path / "ca che"), "--size", "16", "--sequences", "32", "--supersampling", "1"]
    assert command_line.main([*options, "--processes", "2", "--seed", "3", "--sheet", str(tmp_path / "s.png")]) == 0
    assert sorted(p.name for p in (tmp_path / "ca che").iterdir()) == ["0003_0000", "0004_0000"]
    picture = np.array(Image.open(tmp_path / "s.png"))
    assert picture.shape == (8 * 16, 9 * 16, 3) and len(np.unique(picture)) > 50
    with pytest.raises(SystemExit):
        command_line.main(["-", str(tmp_path), "--size", "17"])


def test_the_benchmark_prints_its_table(tmp_path, monkeypatch, capsys):
    from lim_core.data import throughput

    monkeypatch.setattr(throughput, "CASES", ((16, 1),))
    monkeypatch.setattr(throughput, "SECONDS", 0.2)
    assert command_line.main(["-", "--benchmark"]) == 0
    row = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 16²")]
    assert len(row) == 1 and float(row[0].split("|")[3]) > 1


# ---- augmentation ----------------------------------------------------------------------------------------------------
def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_shapes_are_mirrored_and_stretched_but_stay_in_the_sphere():
    pack = procedural.make_object(2)
    stack = np.stack([pack.positions(0, frame) for frame in (0, 4, 8)])
    flipped, radii = 0, []
    for seed in range(40):
        moved = augment.vary_shape(stack, augment.Augmentation(), rng(seed))
        radii.append(np.linalg.norm(moved, axis=-1).max())
        centred = [p - p.mean(0) for p in (stack[0], moved[0])]
        flipped += np.linalg.det(centred[0].T @ centred[1]) < 0
    assert 0.87 < min(radii) and max(radii) < 0.981 and 10 < flipped < 30
    still = augment.vary_shape(stack, augment.NONE, rng())
    scale = np.linalg.norm(still[0, 5] - still[0, 80]) / np.linalg.norm(stack[0, 5] - stack[0, 80])
    between = np.linalg.norm(still[2] - still[0, :1], axis=-1) / np.linalg.norm(stack[2] - stack[0, :1], axis=-1)
    np.testing.assert_allclose(between, scale, rtol=1e-3)  # one similarity for all frames


def test_a_mixed_pose_turns_about_the_joint():
    pack = arm(1.2)
    straight, bent = pack.positions(0, 0), pack.positions(1, 0)
    np.testing.assert_allclose(augment.mixed_pose(pack, 0, 0, 1, 0, 0.0), straight, atol=1e-5)
    np.testing.assert_allclose(augment.mixed_pose(pack, 0, 0, 1, 0, 1.0), bent, atol=1e-5)
    np.testing.assert_allclose(augment.mixed_pose(pack, 0, 0, 1, 0, 0.5), arm(0.6).positions(1, 0), atol=1e-4)
    tip = pack.rest[:, 2] > 0.95
    assert np.linalg.norm(((straight + bent) / 2)[tip].mean(0)) < 0.9  # what a mean of the vertices would make of it
    assert np.linalg.norm(augment.mixed_pose(pack, 0, 0, 1, 0, 0.5)[tip].mean(0)) > 0.97


def test_joints_and_reflections():
    assert np.abs(augment.joints(arm())).max() < 0.02
    matrices = rng().normal(size=(20, 3, 3))
    matrices[0] = np.diag([1, 1, -2])
    turn, rest = augment.polar(matrices)
    np.testing.assert_allclose(turn @ rest, matrices, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(turn), 1)


def test_poses_are_mixed_only_where_there_are_bones_and_nothing_tears():
    pack, frames = arm(), np.linspace(0, 2, 5)
    own = np.stack([pack.positions(0, f) for f in frames])
    mixed = augment.mix_poses(pack, frames, 0, own, rng(1))
    assert mixed.shape == own.shape and np.abs(mixed - own).max() > 0.1
    stiff = dataclasses.replace(pack, clip_names=("a",), clip_start=np.array([0, 3], np.int32), bones=pack.bones[:3])
    assert augment.mix_poses(stiff, frames, 0, own, rng()) is None
    assert augment.mix_poses(procedural.make_object(0), frames, 0, own, rng()) is None
    # Two halves that turn by a little less and a little more than half a turn: the short ways part.
    twisted, sharp = pack.bones.copy(), np.zeros_like(pack.bone_weight)
    for bone, angle in enumerate(np.radians([170, 190])):
        c, s = np.cos(angle), np.sin(angle)
        twisted[3:, bone] = [[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0]]
        sharp[:, bone] = 255 * ((pack.rest[:, 2] > 0) == bone)
    torn = dataclasses.replace(pack, bones=twisted, bone_weight=sharp)
    assert all(augment.mix_poses(torn, frames, 0, own, rng(seed)) is None for seed in range(8))


def test_textures_come_from_elsewhere():
    pack, donor = procedural.make_object(3), procedural.make_object(8)
    kinds = set()
    for seed in range(20):
        swapped = augment.swap_textures(pack, [donor], rng(seed))
        packs.validate(swapped)
        assert len(swapped.texture_shape) == len(pack.texture_shape) and swapped.faces is pack.faces
        own = {donor.texture(m).tobytes() for m in range(len(donor.texture_shape))}
        kinds.add(all(swapped.texture(m).tobytes() in own for m in range(len(swapped.texture_shape))))
        np.testing.assert_array_equal(swapped.texels, augment.swap_textures(pack, [donor], rng(seed)).texels)
    assert kinds == {True, False}


def test_recolouring_is_one_map_of_colours():
    colours = rng().integers(0, 255, (500, 3), np.uint8)
    doubled = np.concatenate([colours, colours[::-1]])
    changed = 0
    for seed in range(20):
        found = augment.recolour(doubled, rng(seed))
        np.testing.assert_array_equal(found[:500], found[500:][::-1])
        assert found.dtype == np.uint8 and np.ptp(found) > 60
        changed += (found != doubled).any()
    assert 10 < changed < 20


def test_the_rig_changes_a_little_and_loses_nothing():
    stack = procedural.make_object(5).model_positions(0, [0, 4, 8])
    usual = cameras.job_cameras(64, 4, 4)
    kept, fields = 0, []
    always = augment.Augmentation(rig=1.0, tight=0.5)
    for seed in range(30):
        found = augment.rig_cameras(4, 64, stack, augment.Augmentation(), rng(seed))
        kept += all((a == b).all() for a, b in zip(usual, found, strict=True))
        matrices, intrinsics = augment.rig_cameras(4, 64, stack, always, rng(seed))
        for matrix, k, (azimuth, elevation) in zip(matrices, intrinsics, cameras.RIG, strict=True):
            pixel, depth = cameras.project(stack.reshape(-1, 3), matrix, k)
            assert 0 <= pixel.min() and pixel.max() <= 64 and depth.min() > 0.5
            assert k[0, 2] == k[1, 2] == 32 and k[0, 0] == k[1, 1]
            towards = cameras.look_at(azimuth, elevation)[:3, 2] @ matrix[:3, 2]
            assert towards > np.cos(np.radians(18))
            fields.append(float(np.degrees(2 * np.arctan(32 / k[0, 0]))))
    assert 12 < kept < 28, "mostly the job's own rig"
    assert min(fields) < 33 and max(fields) > 48
    near = augment.rig_cameras(4, 64, stack * 0.3, augment.Augmentation(rig=0, tight=1.0), rng())[1]
    assert (near[:, 0, 0] > 1.9 * usual[1][:, 0, 0]).all()
