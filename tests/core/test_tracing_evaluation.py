# SPDX-License-Identifier: GPL-3.0-or-later
"""`evaluate tracing` and `evaluate job` on generated assets, with tiny untrained networks."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import shapes
from lim_core.data import procedural
from lim_core.evaluation import evaluate, job, tracing, tracking
from lim_core.job import capture
from lim_core.mesh import packs, surface
from lim_core.shared import cameras, protocol, request

SIZE = 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two assets that move, and whose motion the fit finds at once."""
    folder = tmp_path_factory.mktemp("packs")
    for seed in (11, 49):
        packs.save(procedural.make_object(seed), folder / f"asset_{seed}.npz")
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name in request.QUALITIES:
        monkeypatch.setitem(request.QUALITIES, name, request.Quality(SIZE, 2, 64, 300))
    monkeypatch.setattr(tracking, "CHAMFER_SAMPLES", 2000)


def test_every_row_is_measured_and_all_assets_are_in_the_gallery(folder, tmp_path, tiny_weights, capsys):
    picture = tmp_path / "pages" / "gallery.jpg"
    common = ["--packs", folder, "--out", tmp_path, "--weights", tiny_weights, "--device", "cpu", "--gallery", picture]
    # Two keyframes, the first and the last of the steps: six in-betweens.
    assert evaluate.main(list(map(str, ["tracing", *common, "--every", tracing.STEPS - 1]))) == 0
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    asked = {
        "psnr",
        "psnr_fg",
        "ssim",
        "lpips",
        "track_error",
        "track_error_p95",
        "cd3d",
        "cd4d",
        "cdm",
        "flipped",
        "seconds",
    }
    assert list(summary["rows"]) == ["nn", "lim", "lim_arap", "register", "lim_fit"] and summary["scenes"] == 2
    for values in summary["rows"].values():
        assert asked <= set(values) and values["lpips"] is None
        assert all(np.isfinite(values[name]) for name in asked - {"lpips"})
        assert values["track_error"] < values["track_error_p95"] and 5 < values["psnr"] < 60
    assert summary["texture_psnr_fg"] > 12 and summary["motion"] > 5
    points = [sum(entry["points"] for entry in row) for row in summary["error_by_motion"]["rows"].values()]
    assert len(set(points)) == 1 and points[0] > 0, "every vertex is in one class of motion"
    with (tmp_path / "results.csv").open(encoding="utf-8") as file:
        assert [row["asset"] for row in csv.DictReader(file)] == ["asset_11", "asset_49"]
    page = Image.open(picture)
    assert page.format == "JPEG" and page.width > 2 * 3 * 100
    middle, right = (
        np.asarray(page.crop((x, 40, x + page.width // 2, page.height)), float) for x in (0, page.width // 2)
    )
    assert middle.std() > 10 and right.std() > 10, "both assets are shown"


def test_what_walks_away_is_captured_large_and_measured_where_it_went(tmp_path):
    still = procedural.make_object(3)
    frames = range(still.frames(0))
    size = np.ptp(still.positions(0, 0), axis=0).max()
    way = np.array([0.4 * size, 0.1 * size, 0], np.float32)
    walking = dataclasses.replace(
        still, stored_positions=np.stack([still.positions(0, f) + f * way for f in frames]),
        rest=None, bone_index=None, bone_weight=None, bones=None, position_low=None, position_step=None,
        clip_start=np.array([0, len(frames)], np.int32), clip_names=still.clip_names[:1],
    )  # fmt: skip
    sequence = tracing.Sequence.liveliest(walking, tracing.STEPS - 1)
    asked = tracing.make_job(sequence, tmp_path, "", "draft")
    true = sequence.positions(sequence.keyframes).astype(float)
    middle = (true.min(1) + true.max(1)) / 2  # of the box at each keyframe, which the cameras follow
    scale = 0.97 / max(np.linalg.norm(t - m, axis=1).max() for t, m in zip(true, middle))
    np.testing.assert_allclose(asked.origins, scale * (middle - middle[0]), atol=1e-6)
    assert asked.origins[1][0] > 7, "it has walked several times its own size"
    seen = capture.read(tmp_path, asked)
    assert (seen.rgba[:, :4, ..., 3] > 0).mean() > 0.05, "it fills the pictures as if it stood"
    pixel = cameras.DISTANCE / seen.intrinsics[0, 0, 0] / scale  # an outline is seen up to the last pixel within it
    for k, points_true in enumerate(true):
        points, *_ = surface.captured_points(seen.depth_planar[k], seen.camera_to_world, seen.intrinsics)
        points = tracing.in_world(asked, points + np.array(asked.origins[k]))
        short = np.array([points.min(0) - points_true.min(0), points_true.max(0) - points.max(0)])
        assert short.min() > -1e-5 and short.max() < pixel


def test_a_mesh_that_shrinks_to_a_point_is_measured_not_left_out():
    vertices, faces = shapes.tube(rings=8, around=6)
    still = np.stack([vertices, vertices])
    gone = np.stack([vertices, np.zeros_like(vertices)])
    assert max(tracking.chamfers(still, faces, still, faces).values()) < 0.1
    assert min(tracking.chamfers(gone, faces, still, faces).values()) > 0.2


def test_a_whole_job_is_timed_stage_by_stage(folder, tmp_path, tiny_weights):
    summary = job.evaluate(
        folder, tmp_path, weights=str(tiny_weights), limit=1, inbetweens=1, faces=300, texture_size=64
    )
    assert set(protocol.STAGES) | {"wall", "cpu", "load_before", "load_after"} == set(summary["seconds"])
    stages = sum(summary["seconds"][stage] for stage in protocol.STAGES)
    assert 0 < stages <= summary["seconds"]["wall"] and summary["jobs"] == 1 and summary["inbetweens"] == 2
    asked = request.read(tmp_path / "jobs" / "asset_11")
    assert len(asked.frames()) == 5 and asked.template_faces == 300
    with (tmp_path / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert summary["texture_psnr_fg"] == pytest.approx(float(rows[0]["texture_psnr_fg"]), abs=1e-3)
    assert summary["texture_psnr_fg"] > 12
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"), float)
    captured, textured = (
        sheet[:, -4 * (job.TILE + 4) :][:, n * (job.TILE + 4) : (n + 1) * (job.TILE + 4)] for n in (0, 1)
    )
    assert captured.std() > 10 and np.abs(captured - textured).mean() < 0.5 * captured.std()
