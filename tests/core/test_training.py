# SPDX-License-Identifier: GPL-3.0-or-later
"""Training: the data it draws, that it learns, resumes to the same curve, and refuses what does not fit."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest
import torch

from conftest import TINY
from lim_core import checkpoint, config
from lim_core.data import cache as caches
from lim_core.data.cache import STEPS, Cache
from lim_core.errors import LimError
from lim_core.training import batches, losses, train


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    done = caches.fill([], folder, size=32, sequences=32, seed=0, procedural=1.0, supersample=1)
    assert done == 32
    return folder


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch):
    monkeypatch.setitem(config.PRESETS, "nano", lambda: TINY)


def run(out, cache, network="lrm", *more, steps=6):
    arguments = [
        network,
        "--cache",
        str(cache),
        "--out",
        str(out),
        "--steps",
        str(steps),
        "--batch",
        "2",
        "--rays",
        "64",
    ]
    arguments += ["--held-out", "8", "--device", "cpu", "--threads", "1", "--warmup", "2", "--save-minutes", "100"]
    assert train.main([*arguments, *more]) == 0
    return out


def test_canonical_renders_agree_with_the_positions(cache):
    """At the step that they refer to, canonical coordinates ARE the positions; at the other end they are not."""
    sequence = Cache(cache).sequence(3)
    seen = np.abs(sequence["maps"][0, ..., :3]).sum(-1) > 0
    position, first, last = (sequence["maps"][0][..., i : i + 3][seen].astype(np.float32) for i in (0, 3, 6))
    np.testing.assert_allclose(first, position, atol=2e-3)
    assert np.abs(last - position).max() > 0.01


def test_rays_hit_the_points_that_they_promise(cache):
    sequence = Cache(cache).sequence(5)
    rays = batches.sample_rays(sequence, 2, False, 400, np.random.default_rng(0))
    hit = rays.depth_planar > 0
    assert 100 < hit.sum() < 400
    points = (rays.origins + rays.depth_planar[:, None] * rays.directions)[hit].numpy()
    everything = sequence["maps"][2, ..., :3].reshape(-1, 3).astype(np.float32)
    everything = everything[np.abs(everything).sum(1) > 0]
    nearest = np.sqrt(((points[:, None] - everything[None]) ** 2).sum(-1)).min(1)
    assert nearest.max() < 0.01


def test_triplets_are_ordered_and_go_both_ways(cache):
    batch = batches.draw(Cache(cache), 64, 8, np.random.default_rng(0), interpolation=True)
    assert (batch.alpha > 0).all() and (batch.alpha < 1).all() and len(batch.alpha.unique()) >= 4
    assert (batch.canonical_source - batch.views_source.position).abs().max() < 2e-3
    assert STEPS == 5


def test_same_number_same_batch(cache):
    def take(first):
        source = batches.Prefetch(lambda rng: batches.draw(Cache(cache), 1, 8, rng, interpolation=False), 7, first)
        rows = [source.next().rays.rgb for _ in range(3)]
        source.stop()
        return rows

    assert torch.equal(take(0)[2], take(2)[0]) and not torch.equal(take(0)[0], take(2)[0])


def test_the_loss_falls_on_one_scene(cache):
    torch.manual_seed(0)
    from lim_core.lrm import LRM

    model = LRM(TINY)
    batch = batches.draw(Cache(cache), 1, 256, np.random.default_rng(0), interpolation=False)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    history = []
    for _ in range(60):
        loss, _ = losses.reconstruction_loss(model, batch, losses.LossWeights(), canonical=False, drop_depth=0.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(float(loss.detach()))
    assert np.mean(history[-5:]) < 0.6 * np.mean(history[:5])


def test_all_four_networks_train_and_load(tmp_path, cache):
    run(tmp_path / "lrm", cache)
    lrm = str(tmp_path / "lrm/checkpoint")
    run(tmp_path / "xyz", cache, "lrm-xyz", "--start", lrm)
    run(tmp_path / "lim", cache, "lim", "--lrm", lrm, "--causal-from", "0.3")
    run(tmp_path / "lim-xyz", cache, "lim-xyz", "--lrm", str(tmp_path / "xyz/checkpoint"), "--lrm-rgb", lrm)
    for folder, network in (("lrm", "lrm"), ("xyz", "lrm-xyz"), ("lim", "lim"), ("lim-xyz", "lim-xyz")):
        model = checkpoint.load(tmp_path / folder / "checkpoint", network)
        assert checkpoint.replay_golden(tmp_path / folder / "checkpoint", network, model) < 1e-4
    with (tmp_path / "lim/watch.csv").open() as file:
        row = next(csv.DictReader(file))
    assert {"versus_linear", "sensitivity", "copies_source", "psnr_fg"} <= set(row)
    assert list((tmp_path / "lim/samples").glob("*.png"))


def test_interrupted_training_resumes_to_the_same_weights(tmp_path, cache, monkeypatch):
    whole = run(tmp_path / "whole", cache, steps=6)
    # The same run, interrupted after three of its six steps.
    real, count = batches.Prefetch.next, [0]

    def interrupted(self):
        count[0] += 1
        if count[0] == 4:
            raise KeyboardInterrupt
        return real(self)

    saved = []
    original = train.save
    monkeypatch.setattr(batches.Prefetch, "next", interrupted)
    monkeypatch.setattr(train, "save", lambda *a: saved.append(1) or original(*a))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", cache, "lrm", "--save-minutes", "0", steps=6)
    monkeypatch.undo()
    config.PRESETS["nano"] = lambda: TINY
    try:
        assert len(saved) == 3
        parts = run(tmp_path / "parts", cache, steps=6)
    finally:
        config.PRESETS["nano"] = config.nano
    one, two = (checkpoint.load(folder / "checkpoint", "lrm").state_dict() for folder in (whole, parts))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-3, rtol=2e-3)


def test_a_folder_of_another_run_is_refused(tmp_path, cache):
    run(tmp_path / "run", cache, steps=2)
    with pytest.raises(LimError, match="holds a run with network lrm, not lrm-xyz"):
        run(tmp_path / "run", cache, "lrm-xyz", steps=2)


def test_too_little_data_is_said(tmp_path, cache):
    shutil.copytree(cache, tmp_path / "cache")
    with pytest.raises(LimError, match="too few to train on"):
        run(tmp_path / "run", tmp_path / "cache", "lrm", "--held-out", "32")
