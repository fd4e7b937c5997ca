# SPDX-License-Identifier: GPL-3.0-or-later
"""The evaluations: what they measure, on data where the answer is known, and that they run to a summary."""

from __future__ import annotations

import csv
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from conftest import TINY
from lim_core.data import procedural
from lim_core.evaluation import alpha, evaluate, interpolation, metrics, pictures, reconstruction, scenes, speed
from lim_core.mesh import packs
from lim_core.networks import checkpoint, config, perceptual
from lim_core.shared.errors import LimError


@pytest.fixture(scope="module")
def pack_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packs")
    for seed in (1, 2):
        packs.save(procedural.make_object(seed, frames=12), folder / f"object_{seed}.npz")
    return folder


@pytest.fixture(scope="module")
def foggy_weights(tmp_path_factory):
    """Untrained networks whose triplanes show something: an untrained density is nearly empty."""
    folder = tmp_path_factory.mktemp("foggy")
    torch.manual_seed(0)
    for network in config.NETWORKS:
        model = checkpoint.build(network, TINY).eval()
        with torch.no_grad():
            model.head.linear.weight.mul_(20)
            if network.startswith("lrm"):
                model.decoder.layers[-1].weight[0].mul_(20)
        checkpoint.save(folder / network, network, model, {"test": True})
    return folder


@pytest.fixture
def coarse(monkeypatch):
    """Pictures and grids that take a fraction of a second; fog leaves no empty space to skip."""
    monkeypatch.setattr(scenes, "SIZE", 32)
    monkeypatch.setattr(scenes, "SAMPLES", 16)
    monkeypatch.setattr(interpolation, "FIGURE_SIZE", 48)
    for module, name, value in (
        (speed, "PICTURE", 32),
        (speed, "TEMPLATE_GRID", 24),
        (reconstruction, "TEMPLATE_GRID", 24),
    ):
        monkeypatch.setattr(module, name, value)


def run(what, folder, out, weights, *more):
    arguments = [what, "--packs", str(folder), "--out", str(out), "--weights", str(weights), "--device", "cpu", *more]
    assert evaluate.main(arguments) == 0
    with (out / "results.csv").open() as file:
        return json.loads((out / "summary.json").read_text()), list(csv.DictReader(file))


# ---- measures
def test_metrics_on_known_answers():
    black, grey = np.zeros((16, 16, 3)), np.full((16, 16, 3), 0.1)
    assert metrics.psnr(black, grey) == pytest.approx(20)
    mask = np.zeros((16, 16), bool)
    mask[:4] = True
    half = black.copy()
    half[:4] = 0.1
    assert metrics.psnr(half, grey, mask) == pytest.approx(100) and metrics.psnr(half, grey, ~mask) == pytest.approx(20)
    assert math.isnan(metrics.psnr(black, grey, np.zeros((16, 16), bool)))
    assert metrics.iou(mask, mask) == 1 and metrics.iou(mask, ~mask) == 0
    points = np.random.default_rng(0).random((50, 3))
    assert metrics.chamfer(points, points) == 0
    assert metrics.chamfer(np.zeros((1, 3)), np.array([[0.3, 0, 0]])) == pytest.approx(0.6)


def test_metrics_against_their_definitions():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 24, 24, 3)).astype(np.float32)
    assert metrics.psnr(a, b) == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1.0), abs=1e-4)
    # Without structure, SSIM is its first factor: (2 μ₁μ₂ + C₁) / (μ₁² + μ₂² + C₁), C₁ = 0.01².
    one, two = np.full((16, 16, 3), 0.2), np.full((16, 16, 3), 0.6)
    assert metrics.ssim(one, two) == pytest.approx((2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4), abs=1e-6)
    assert metrics.ssim(a, a) == pytest.approx(1) and metrics.ssim(a, b) < 0.5


def test_the_measures_of_pictures_are_means_over_views(perceptual_file):
    rng = np.random.default_rng(0)
    images, truth = rng.random((2, 2, 32, 32, 3)).astype(np.float32)
    mask = np.zeros((2, 32, 32), bool)
    mask[0, :8] = True  # the second view sees nothing: it has no foreground to measure
    found = metrics.pictures(images, truth, mask, judge := perceptual.load(perceptual_file))
    assert found["psnr"] == pytest.approx(np.mean([metrics.psnr(a, b) for a, b in zip(images, truth)]))
    assert found["psnr_fg"] == pytest.approx(metrics.psnr(images[0], truth[0], mask[0]))
    tensors = [torch.from_numpy(x).permute(0, 3, 1, 2) for x in (images, truth)]
    assert found["lpips"] == pytest.approx(float(judge.distance(*tensors).mean()), rel=1e-5)
    assert metrics.pictures(images, truth, mask)["lpips"] is None


def test_pictures_of_two_sizes_are_refused():
    for measure in (metrics.psnr, metrics.ssim):
        with pytest.raises(LimError, match="64×32 and 16×16 pixels"):
            measure(np.zeros((32, 64, 3)), np.zeros((16, 16, 3)))


def test_surface_samples_are_even_and_stay_on_their_material():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [3, 0, 0], [0, 3, 0]], float)
    faces = np.array([[0, 1, 2], [0, 3, 4]])
    points = metrics.sample_surface(vertices, faces, 20000)
    # The large triangle has 9 times the area; a ninth of it lies over the small one.
    assert (points.sum(1) <= 1).mean() == pytest.approx(0.2, abs=0.011)  # 4 standard deviations
    places = metrics.surface_places(vertices, faces, 50)
    twice = metrics.at_places(np.stack([vertices, vertices * 2 + 1]), faces, *places)
    np.testing.assert_allclose(twice[1], twice[0] * 2 + 1)
    with pytest.raises(LimError, match="no area"):
        metrics.sample_surface(np.zeros((3, 3)), np.array([[0, 1, 2]]), 10)


def test_means_leave_out_what_was_not_measured(tmp_path):
    rows = [{"a": 1.0, "b": None}, {"a": math.nan, "b": None}, {"a": 3.0, "b": None, "c": 2.0}]
    assert metrics.mean(rows, "a") == 2 and metrics.mean(rows, "b") is None and metrics.mean(rows, "c") == 2
    metrics.write(tmp_path, rows, {"a": 2})
    assert (tmp_path / "results.csv").read_text().splitlines()[0] == "a,b,c"


# ---- which scenes
def test_spans_are_uniform_and_inside_their_clip(tmp_path):
    packs.save(procedural.make_object(1, frames=16), tmp_path / "one.npz")
    found = scenes.spans(tmp_path, 0.4, 3, [])
    assert len(found) == 3
    pack = packs.load(tmp_path / "one.npz")
    for span in found:
        assert span.length / span.fps == pytest.approx(0.4)
        assert 0 <= span.start and span.start + span.length <= pack.frames(span.clip) - 1
        three = span.positions(pack, (0, 0.5, 1))
        same = pack.model_positions(span.clip, [span.start, span.start + span.length / 2, span.start + span.length])
        np.testing.assert_array_equal(three, same)
        assert scenes.motion(three) > 0 and scenes.motion(three[:1]) == 0
        named = scenes.named_span(tmp_path, span.name, 0.4)
        assert named.clip == span.clip and named.start == pytest.approx(span.start, abs=1e-2)
    assert scenes.spans(tmp_path, 100.0, 3, []) == []


@pytest.mark.parametrize(
    "name, why",
    [("none/x@0", "no pack"), ("object_1/none@0", "no clip"), ("object_1/{clip}@99", "leaves its clip"), ("x", "no pack")],
)  # fmt: skip
def test_triplets_that_do_not_exist(pack_folder, name, why):
    clip = packs.load(pack_folder / "object_1.npz").clip_names[0]
    with pytest.raises(LimError, match=why):
        scenes.named_span(pack_folder, name.format(clip=clip), 0.4)


def test_a_limit_is_spread_evenly():
    assert scenes.evenly(list(range(10)), 3) in ([0, 4, 9], [0, 5, 9])
    assert scenes.evenly([1, 2], 5) == [1, 2] == scenes.evenly([1, 2], None)


def test_a_broken_pack_is_named_and_left_out(tmp_path, pack_folder, tiny_weights, coarse):
    (tmp_path / "a_broken.npz").write_bytes(b"nothing")
    with pytest.raises(LimError, match="could be measured.*a_broken"):
        run("reconstruction", tmp_path, tmp_path / "out", tiny_weights)
    flat = procedural.make_object(3, frames=12)
    flat = dataclasses.replace(flat, stored_positions=flat.stored_positions.copy())
    flat.stored_positions[1:] = 0  # sound at the first frame, without area at those that are measured
    packs.save(flat, tmp_path / "b_flat.npz")
    (tmp_path / "sound.npz").write_bytes((pack_folder / "object_1.npz").read_bytes())
    summary, rows = run("reconstruction", tmp_path, tmp_path / "out", tiny_weights)
    assert [row["asset"] for row in rows] == ["sound"] and summary["scenes"] == 1
    assert [s["asset"] for s in summary["skipped"]] == ["a_broken", "b_flat"]
    assert "a_broken" in summary["skipped"][0]["why"]


def test_impossible_options(tmp_path, pack_folder, tiny_weights):
    for what in ("interpolation", "alpha"):
        with pytest.raises(LimError, match="0 seconds long"):
            run(what, pack_folder, tmp_path, tiny_weights, "--gap", "0")
        with pytest.raises(LimError, match="No clip is long enough|has .* frames"):
            run(what, pack_folder, tmp_path, tiny_weights, "--gap", "60")
    with pytest.raises(SystemExit):
        run("alpha", pack_folder, tmp_path, tiny_weights, "--limit", "0")
    with pytest.raises(LimError, match="does not name a new row"):
        run("interpolation", pack_folder, tmp_path, tiny_weights, "--ablate", f"oracle={tiny_weights}")
    with pytest.raises(LimError, match="no file"):
        run("reconstruction", pack_folder, tmp_path, tiny_weights, "--lpips", str(tmp_path / "none.safetensors"))


# ---- the evaluations
def test_reconstruction_runs_to_a_summary(tmp_path, pack_folder, foggy_weights, coarse, perceptual_file):
    arguments = ("--limit", "1", "--lpips", str(perceptual_file))
    summary, rows = run("reconstruction", pack_folder, tmp_path, foggy_weights, *arguments)
    assert {"psnr", "psnr_fg", "ssim", "lpips", "mask_iou", "depth_error", "chamfer", "scenes"} <= set(summary)
    assert len(rows) == summary["scenes"] == 1 and summary["skipped"] == []
    assert summary["psnr"] == pytest.approx(float(rows[0]["psnr"]), abs=1e-3) and summary["lpips"] > 0
    assert summary["seconds"]["reconstruct"] > 0 and summary["seconds"]["render_256"] > 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 6 * scenes.SIZE


def test_interpolation_runs_to_a_summary(tmp_path, pack_folder, foggy_weights, coarse):
    shallow = dataclasses.replace(TINY, lim_blocks=1)
    checkpoint.save(tmp_path / "shallow", "lim", checkpoint.build("lim", shallow).eval(), {})
    out, figure = tmp_path / "out", tmp_path / "figure.png"
    span = scenes.spans(pack_folder, 0.4, 2, [])[1]
    arguments = ["--triplet", span.name, "--figure", str(figure)]
    arguments += ["--jobs", "--ablate", f"same={foggy_weights}", "--ablate", f"blocks=1={tmp_path / 'shallow'}"]
    summary, rows = run("interpolation", pack_folder, out, foggy_weights, *arguments)
    assert list(summary["rows"]) == [
        "linear",
        "flow",
        "flow_rgb",
        "lim",
        "anchored",
        "same",
        "blocks=1",
        "mesh",
        "carried",
        "carried_pictured",
        "straight",
        "oracle",
        "oracle_pictured",
    ]
    assert summary["triplets"] == len(rows) == 1 and rows[0]["asset"] == span.asset
    # The same weights give the same numbers, other weights give others.
    assert summary["rows"]["same"] == summary["rows"]["lim"] != summary["rows"]["blocks=1"]
    # The job's mesh is fitted to the captured depth: it lies right whatever the networks are.
    assert summary["rows"]["mesh"]["psnr"] > summary["rows"]["oracle"]["psnr"] + 3
    seen = interpolation.Triplet(span, TINY.image_size)
    mesh, vertices = interpolation.delivered(seen, out / "jobs", str(foggy_weights), "cpu")
    surface = metrics.sample_surface(vertices, mesh.faces, 2000)
    moments = [metrics.sample_surface(true, seen.pack.faces, 2000) for true in seen.positions]
    assert np.argmin([metrics.chamfer(surface, moment) for moment in moments]) == 1
    assert set(summary["gap_closed"]) == {"psnr", "psnr_fg"} and summary["rows"]["lim"]["lpips"] is None
    assert 0 < summary["seconds"][f"per_frame_of_{speed.BATCH}"] and summary["seconds_per_frame"] > 0
    with Image.open(figure) as picture:
        assert picture.width > 10 * interpolation.FIGURE_SIZE


def test_gap_closed_is_the_share_of_the_way_to_the_oracle():
    table = {"linear": {"psnr": 10.0}, "lim": {"psnr": 13.0}, "oracle": {"psnr": 14.0}}
    assert interpolation.gap_closed(table, "psnr") == 0.75
    assert interpolation.gap_closed(table | {"oracle": {"psnr": 10.0}}, "psnr") is None


def test_the_figure_shows_the_liveliest_triplet_of_every_asset():
    rows = [{"asset": a, "motion": m} for a, m in (("x", 0.1), ("x", 0.5), ("y", 0.2), ("z", 0.9))]
    assert interpolation.liveliest(rows) == [3, 1, 2]


def test_memory_does_not_grow_with_the_number_of_inbetweens(tiny_weights):
    few, many = (speed.memory(str(tiny_weights), torch.device("cpu"), count) for count in (4, 400))
    if few is None:
        pytest.skip("this system does not tell a process's peak")
    assert many < few + 30  # MB; the 400 triplanes alone would be 1.2 MB each at the size of the default preset


def test_alpha_runs_to_a_summary(tmp_path, pack_folder, foggy_weights, coarse):
    pytest.importorskip("matplotlib")
    summary, rows = run("alpha", pack_folder, tmp_path, foggy_weights, "--limit", "1")
    assert len(rows) == len(alpha.ALPHAS) and summary["pairs"] == 1
    curves = summary["curves"]
    assert all(len(curves[row]["psnr"]) == len(alpha.ALPHAS) for row in alpha.ROWS)
    # At its ends, the blend of the keyframes is the reconstructor itself.
    for end in (0, -1):
        assert curves["linear"]["psnr"][end] == pytest.approx(curves["oracle"]["psnr"][end], abs=1e-3)
        assert curves["linear"]["distance"][end] == pytest.approx(0, abs=1e-4)
    assert curves["lim"]["distance"][4] > 0
    for part in ("ends", "bump", "reversal", "still", "acceleration"):
        assert summary[part]
    for name in ("curve.png", "sheet.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 9 * scenes.SIZE


# ---- what happens over α
def test_a_still_scene_stays_still():
    """The bundled networks: a keyframe and itself give that keyframe at every α, while a moving pair changes with α."""
    folders = checkpoint.folders()
    lrm, lim = (checkpoint.load(folders[name], name) for name in ("lrm", "lim"))
    pack = procedural.make_object(3)
    size = lrm.config.image_size
    seen = scenes.capture(pack, pack.model_positions(0, (0, 4)), size)
    first, last = (seen.network_views(i, size) for i in (0, 1))
    alphas = torch.tensor([0.25, 0.5, 0.75])
    with torch.no_grad():
        own, features = lrm(first)
        still, moving = (lim(features, lim.condition(target), alphas)[0] for target in (first, last))
        keyframe, *pictured = (
            scenes.render(lrm.decoder, planes[None], 64, views=1)[0][0].clip(0, 1)
            for planes in (own[0], *still, *moving)
        )
    assert min(metrics.psnr(image, keyframe) for image in pictured[:3]) > 26
    unchanged, changed = metrics.psnr(pictured[0], pictured[2]), metrics.psnr(pictured[3], pictured[5])
    assert unchanged > 40 and changed < unchanged - 10


def falling_plate(steps: int):
    """A flat square that moves with constant acceleration towards a camera above it: positions [T, 4, 3], faces, true."""
    time = np.linspace(0, 1, steps)
    square = np.array([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]])
    fall = np.array([0.05, 0.02, 0.3])
    positions = square + (time**2)[:, None, None] * fall / 2
    return positions.astype(np.float32), np.array([[0, 1, 2], [0, 2, 3]], np.int32), float(np.linalg.norm(fall))


def test_accelerations_of_a_known_motion():
    positions, faces, true = falling_plate(9)
    model = procedural.make_object(1, frames=2)
    model = dataclasses.replace(
        model, faces=faces, stored_positions=positions, uv=np.zeros((2, 3, 2), np.float32),
        face_material=np.zeros(2, np.uint8), clip_start=np.array([0, 9]), rest=None, bones=None, bone_index=None,
        bone_weight=None, position_low=None, position_step=None,
    )  # fmt: skip
    depth = np.stack([scenes.truth(model, p, positions[0], views=2).depth_planar for p in positions])
    shaken = depth.copy()
    shaken[::2] += 0.02 * (shaken[::2] > 0)  # every other moment further away: an acceleration of 4 · 0.02 · 8² / 2
    half = depth.copy()
    half[4] = 0  # nothing is shown at one moment
    found = alpha.accelerations(positions, faces, {"truth": depth, "shaken": shaken, "half": half})
    assert found["true"] == pytest.approx(true, rel=0.004)
    assert found["truth"] == pytest.approx(true, rel=0.01) and found["truth.error"] < 0.04 * true
    assert found["truth.share"] > 0.9 and found["half.share"] == pytest.approx(4 / 7 * found["truth.share"], rel=0.02)
    # Along the ray by 0.02 of planar depth: at most 1 / cos 20° of that.
    assert 2 * 0.02 * 64 * 0.98 < found["shaken.error"] < 2 * 0.02 * 64 * 1.1


def test_depth_between_pixels():
    row, column = np.mgrid[0:8, 0:8]
    plane = (2 + 0.01 * row + 0.02 * column).astype(np.float32)
    pixels = np.array([[3.5, 2.5], [3.75, 2.5], [4.0, 3.0], [0.2, 4.0], [7.9, 4.0]])
    found = alpha.sampled(plane, pixels)
    np.testing.assert_allclose(found[:3], [2.08, 2.085, 2.095], atol=1e-6)
    assert np.isnan(found[3:]).all()
    plane[2, 3] = 0
    assert np.isnan(alpha.sampled(plane, pixels[:2])).all()


def test_a_bump_is_seen():
    oracle = [20.0] * 9
    smooth = [19, 18.5, 18.2, 18.1, 18, 18.1, 18.2, 18.5, 19.0]
    assert alpha.bump(oracle, smooth) < 0.2
    assert alpha.bump(oracle, [*smooth[:3], 16.1, *smooth[4:]]) == pytest.approx(2.0, abs=0.001)


# ---- pictures
def test_long_results_fill_several_sheets(tmp_path):
    image = np.zeros((16, 16, 3))
    rows = [pictures.Row("an asset with a name that is far too long", "", [image])] * (pictures.ROWS_PER_SHEET + 1)
    pictures.save_sheets(tmp_path, rows, ["one"])
    with Image.open(tmp_path / "sheet.png") as first, Image.open(tmp_path / "sheet_2.png") as second:
        assert first.width == second.width and first.height > second.height


def test_crop_holds_everything_that_is_seen():
    masks = np.zeros((2, 64, 64), bool)
    masks[0, 10:20, 30:34], masks[1, 15:18, 40] = True, True
    part = pictures.crop(masks)
    assert masks[(..., *part)].sum() == masks.sum()
    assert part[0].stop - part[0].start == part[1].stop - part[1].start < 20
    assert pictures.crop(np.zeros((64, 64), bool)) == (slice(0, 64), slice(0, 64))
