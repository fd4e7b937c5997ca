# SPDX-License-Identifier: GPL-3.0-or-later
"""The evaluations: what they measure, on data where the answer is known, and that they run to a summary."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from lim_core.data import packs, procedural
from lim_core.evaluation import evaluate, metrics, scenes


def test_metrics_on_known_answers():
    black, grey = np.zeros((16, 16, 3)), np.full((16, 16, 3), 0.1)
    assert metrics.psnr(black, grey) == pytest.approx(20)
    mask = np.zeros((16, 16), bool)
    mask[:4] = True
    half = black.copy()
    half[:4] = 0.1
    assert metrics.psnr(half, grey, mask) == pytest.approx(100) and metrics.psnr(half, grey, ~mask) == pytest.approx(20)
    assert math.isnan(metrics.psnr(black, grey, np.zeros((16, 16), bool)))
    assert metrics.ssim(grey, grey) == pytest.approx(1) and metrics.ssim(np.random.rand(16, 16, 3), grey) < 0.5
    assert metrics.iou(mask, mask) == 1 and metrics.iou(mask, ~mask) == 0
    points = np.random.default_rng(0).random((50, 3))
    assert metrics.chamfer(points, points) == 0
    assert metrics.chamfer(np.zeros((1, 3)), np.array([[0.3, 0, 0]])) == pytest.approx(0.6)


def test_surface_samples_are_even():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [3, 0, 0], [0, 3, 0]], float)
    faces = np.array([[0, 1, 2], [0, 3, 4]])
    points = metrics.sample_surface(vertices, faces, 20000)
    inner = points.sum(1) <= 1
    # The large triangle has 9 times the area; a ninth of it lies over the small one.
    assert inner.mean() == pytest.approx(0.2, abs=0.02)


def test_triplets_are_uniform_and_inside_their_clip(tmp_path):
    packs.save(procedural.make_object(1, frames=16), tmp_path / "one.npz")
    rows = list(scenes.triplets(tmp_path, 0.4, 3))
    assert len(rows) == 3
    for pack, clip, frames, motion in rows:
        assert frames[1] == pytest.approx((frames[0] + frames[2]) / 2)
        assert (frames[2] - frames[0]) / pack.fps == pytest.approx(0.4) and frames[2] <= pack.frames(clip) - 1
        assert motion >= 0


@pytest.mark.parametrize("what", ["reconstruction", "interpolation"])
def test_runs_to_a_summary(tmp_path, tiny_weights, what):
    for seed in (1, 2):
        packs.save(procedural.make_object(seed, frames=12), tmp_path / f"{seed}.npz")
    out = tmp_path / "out"
    arguments = [what, "--packs", str(tmp_path), "--out", str(out), "--limit", "1", "--weights", str(tiny_weights)]
    assert evaluate.main([*arguments, "--device", "cpu"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (out / "results.csv").read_text().count("\n") == 2 and (out / "sheet.png").is_file()
    if what == "interpolation":
        assert set(summary["rows"]) == {"linear", "flow", "lim", "oracle"} and summary["triplets"] == 1
        assert set(summary["gap_closed"]) == {"psnr", "psnr_fg"}
    else:
        assert {"psnr", "psnr_fg", "ssim", "lpips", "mask_iou", "depth_error", "chamfer", "scenes"} <= set(summary)
