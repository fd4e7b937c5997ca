# SPDX-License-Identifier: GPL-3.0-or-later
"""`evaluate tracing` and `evaluate job` on generated assets, with tiny untrained networks."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

import shapes
from lim_core import protocol, request
from lim_core.data import packs, procedural
from lim_core.evaluation import evaluate, job, tracing, tracking

SIZE = 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packs")
    for seed in (3, 4):
        packs.save(procedural.make_object(seed), folder / f"asset_{seed}.npz")
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name in request.QUALITIES:
        monkeypatch.setitem(request.QUALITIES, name, (SIZE, 2, 64, 300))


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
    assert summary["texture_psnr_fg"] > 12
    points = [sum(entry["points"] for entry in row) for row in summary["error_by_motion"]["rows"].values()]
    assert len(set(points)) == 1 and points[0] > 0, "every vertex is in one class of motion"
    with (tmp_path / "results.csv").open(encoding="utf-8") as file:
        assert [row["asset"] for row in csv.DictReader(file)] == ["asset_3", "asset_4"]
    page = Image.open(picture)
    assert page.format == "JPEG" and page.width > 2 * 3 * 100
    middle, right = (
        np.asarray(page.crop((x, 40, x + page.width // 2, page.height)), float) for x in (0, page.width // 2)
    )
    assert middle.std() > 10 and right.std() > 10, "both assets are shown"


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
    asked = request.read(tmp_path / "jobs" / "asset_3")
    assert len(asked.frames()) == 5 and asked.template_faces == 300
    with (tmp_path / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert summary["texture_psnr_fg"] == pytest.approx(float(rows[0]["texture_psnr_fg"]), abs=1e-3)
    assert summary["texture_psnr_fg"] > 12
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"), float)
    captured, textured = (sheet[:, -4 * (job.TILE + 4) :][:, n * (job.TILE + 4) : (n + 1) * (job.TILE + 4)] for n in (0, 1))
    assert captured.std() > 10 and np.abs(captured - textured).mean() < 0.5 * captured.std()
