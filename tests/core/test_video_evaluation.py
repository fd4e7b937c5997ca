# SPDX-License-Identifier: GPL-3.0-or-later
"""What clips are measured by: the whole evaluation with tiny networks, and its distances on known answers."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from conftest import TINY
from lim_core.data import procedural
from lim_core.evaluation import evaluate, tracking, video
from lim_core.mesh import packs
from lim_core.networks import checkpoint, config
from lim_core.shared.errors import LimError
from lim_core.stages import of_networks
from lim_core.video.multiview import MultiviewPipeline, scheduler
from lim_core.video.network import MultiviewNetwork


@pytest.fixture
def weights(tmp_path):
    """Untrained networks of which only the reconstructor shows something: what is not there is quickly drawn."""
    torch.manual_seed(0)
    for network in config.NETWORKS:
        model = checkpoint.build(network, TINY).eval()
        if network == "lrm":
            with torch.no_grad():
                model.head.linear.weight.mul_(20)
                model.decoder.layers[-1].weight[0].mul_(20)
        checkpoint.save(tmp_path / "weights" / network, network, model, {"test": True})
    return tmp_path / "weights"


@pytest.fixture
def small(monkeypatch):
    """Clips of five frames with two keyframes, in pictures and grids that take a fraction of a second."""
    for module, name, value in (
        (video, "FRAMES", 5), (video, "STEP", 4), (video, "SIZE", 64), (video, "SHOWN", 64), (video, "NOVEL", 2), (video, "FACES", 150),
        (video, "TEXTURE", 64), (video, "GRID", 24), (of_networks, "SURFACE_GRID", 24),
        (tracking, "SURFACE_SAMPLES", 5000), (tracking, "CHAMFER_SAMPLES", 1000),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)


def test_clips_are_measured_to_a_summary(tmp_path, weights, small):
    torch.manual_seed(0)
    MultiviewPipeline(MultiviewNetwork(32, (16, 24, 32), 2).half(), scheduler()).save_pretrained(tmp_path / "views")
    packs.save(procedural.make_object(1, frames=12), tmp_path / "packs" / "thing.npz")
    out = tmp_path / "out"
    asked = ["video", "--packs", str(tmp_path / "packs"), "--out", str(out), "--weights", str(weights)]
    asked += ["--views-model", str(tmp_path / "views")]
    assert evaluate.main([*asked, "--device", "cpu"]) == 0
    rows = json.loads((out / "summary.json").read_text())["rows"]
    measured = {"psnr", "ssim", "lpips", "fvd", "silhouette_iou", "track_error", "cd3d", "cd4d", "cdm", "seconds"}
    assert list(rows) == ["ours", "single_view", "oracle_views"]
    for row in rows.values():
        assert measured <= set(row)
        assert {name for name, value in row.items() if value is None} == {"lpips", "fvd"}, "they need weights"
    # True views are better than those of a network that has learnt nothing, and these than a reconstructor's that has not.
    for better, worse in (("oracle_views", "ours"), ("ours", "single_view")):
        assert rows[better]["psnr"] > rows[worse]["psnr"]
        for measured in ("cd3d", "cdm", "track_error", "frechet_patch_distance"):
            assert rows[better][measured] < rows[worse][measured], measured
    for row in ("ours", "oracle_views"):  # both know the silhouette at the clip's camera
        assert rows[row]["silhouette_iou"] > 0.8 > rows["single_view"]["silhouette_iou"]
    with (out / "results.csv").open() as file:
        assert [row["asset"] for row in csv.DictReader(file)] == ["thing"]
    assert (out / "sheet.png").is_file()
    command = [*asked, "--out", str(tmp_path / "one"), "--device", "cpu", "--rows", "single_view"]
    assert evaluate.main(command) == 0
    again = json.loads((tmp_path / "one" / "summary.json").read_text())["rows"]
    assert list(again) == ["single_view"] and (tmp_path / "one" / "sheet.png").is_file()
    same = [name for name in again["single_view"] if name != "seconds"]
    assert all(again["single_view"][name] == rows["single_view"][name] for name in same)


def test_the_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(20_000, 3)) * (1, 2, 3)
    moved = one + (0.5, 0, 1)
    wider = one * (2, 1, 1)  # (σ - σ')² = 1 in one direction
    assert video.frechet(one, one) == pytest.approx(0, abs=1e-6)
    assert video.frechet(moved, one) == pytest.approx(1.25, rel=1e-3)
    assert video.frechet(wider, one) == pytest.approx(1, rel=0.05)


def test_patches_hold_two_frames_of_one_place():
    clip = np.zeros((3, 1, 64, 64, 3))
    clip[1, 0, 8:16, 16:24] = 1  # the second frame, second row, third column of cells
    found = video.patches([clip]).reshape(2, 64, 2, 64 * 3)
    assert found[0, 8 + 2, 1].all() and found[1, 8 + 2, 0].all()
    assert found.sum() == 2 * 64 * 3


def test_a_video_network_gives_fvd(tmp_path):
    class Mean(torch.nn.Module):
        def forward(self, clip: torch.Tensor) -> torch.Tensor:  # N 3 T 224 224 → N 3
            return clip.mean((2, 3, 4))

    torch.jit.script(Mean()).save(str(tmp_path / "i3d.pt"))
    clip = np.random.default_rng(0).random((7, 4, 32, 32, 3))
    found = video.features([clip, clip], str(tmp_path / "i3d.pt"), "cpu")
    assert found.shape == (8, 3) and np.allclose(found[:4], 2 * clip.mean((0, 2, 3)) - 1, atol=0.02)
    (tmp_path / "broken.pt").write_bytes(b"no network")
    with pytest.raises(LimError) as error:
        video.features([clip], str(tmp_path / "broken.pt"), "cpu")
    assert error.value.code == "weights_broken"
