# SPDX-License-Identifier: GPL-3.0-or-later
"""Training: the data it draws, that it learns, resumes to the same curve, and refuses what does not fit."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from conftest import TINY, ball_views
from lim_core.data import sequences
from lim_core.data.cache import STEPS, Cache
from lim_core.networks import checkpoint, config, evidence
from lim_core.shared.errors import LimError
from lim_core.training import batches, logs, losses, processes, speed, state, train, watch


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    done = sequences.fill([], folder, size=32, sequences=32, seed=0, procedural=1.0, supersample=1)
    assert done == 32
    return folder


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch):
    monkeypatch.setitem(config.PRESETS, "nano", lambda: TINY)
    monkeypatch.setattr(speed, "matmul_peak", lambda where: 1e13)  # test_speed.py measures it


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


def draws(cache, scenes, **changes):
    return batches.Draws(str(cache), (), scenes, 8, changes.pop("seed", 7), False, **changes)


def test_same_number_same_batch(cache):
    def take(first, **changes):
        feed = batches.Feed(draws(cache, range(2), **changes), torch.device("cpu"), first)
        rows = [feed.next().rays.rgb for _ in range(3)]
        feed.close()
        return rows

    assert torch.equal(take(0)[2], take(2)[0]) and not torch.equal(take(0)[0], take(2)[0])
    assert not torch.equal(take(0)[0], take(0, seed=8)[0])


def test_processes_share_a_batch(cache):
    whole = draws(cache, range(4))[5].unpack()
    parts = [draws(cache, scenes)[5].unpack() for scenes in (range(0, 2), range(2, 4))]
    for name in ("rgb", "directions", "canonical"):
        assert torch.equal(getattr(whole.rays, name), torch.cat([getattr(part.rays, name) for part in parts]))
    joined = torch.cat([part.views_middle.position for part in parts])
    assert torch.equal(whole.views_middle.position, joined)


def test_loader_processes_give_the_same_and_report_errors(cache, tmp_path):
    feed = batches.Feed(draws(cache, range(2)), torch.device("cpu"), 3, workers=2)
    for number in (3, 4, 5):
        assert torch.equal(feed.next().rays.rgb, draws(cache, range(2))[number].unpack().rays.rgb)
    feed.close()
    shutil.copytree(cache, tmp_path / "cache")
    name = next((tmp_path / "cache").glob("*/rgba.npy"))
    name.write_bytes(name.read_bytes()[:1000])
    feed = batches.Feed(draws(tmp_path / "cache", range(2)), torch.device("cpu"), workers=1)
    with pytest.raises(LimError, match="is damaged"):
        feed.next()


def test_a_replaced_shard_is_let_go(cache, tmp_path):
    shutil.copytree(cache, tmp_path / "cache")
    shutil.copytree(cache / "0000_0000", tmp_path / "cache/0001_0000")
    found = batches.open_cache(str(tmp_path / "cache"))
    assert len(found.index) == 64
    shutil.rmtree(tmp_path / "cache/0000_0000")
    batches.refresh(found, [("0001_0000", 3)])
    assert len(found.index) == 31 and {name for name, _ in found.index} == {"0001_0000"}
    assert ("0001_0000", 3) not in found.index


def test_the_patch_is_a_square_of_the_picture(cache):
    drawn = batches.Draws(str(cache), (), range(2), 8, 7, False, 16)[1]
    batch = drawn.unpack()
    assert batch.rays.alpha.shape == (2, 8) and batch.patch.rgb.shape == (2, 256, 3)
    view, place = (drawn.ray_pixel[0, 8:] // 1024, drawn.ray_pixel[0, 8:] % 1024)
    assert len(view.unique()) == 1 and place[0] + 1 == place[1] and place[0] + 32 == place[16]
    assert batch.patch.alpha.max() == 1, "it lies on the object"


def test_the_loss_falls_on_one_scene(cache):
    torch.manual_seed(0)
    from lim_core.networks.lrm import LRM

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


def test_interrupted_training_resumes_to_the_same_curve(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(train, "LOG_SECONDS", -1)  # a row for every step
    whole = run(tmp_path / "whole", cache, steps=6)
    # The same run, interrupted in its fifth step; the last state is of the step before.
    real, count = batches.Feed.next, [0]

    def interrupted(self):
        count[0] += 1
        if count[0] == 5:
            raise KeyboardInterrupt
        return real(self)

    with monkeypatch.context() as patched:
        patched.setattr(batches.Feed, "next", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", cache, "lrm", "--save-minutes", "0", steps=6)
    (tmp_path / "parts/log.csv").open("a").write("99\n")  # a row after the state, as a killed process leaves it
    parts = run(tmp_path / "parts", cache, steps=6)
    one, two = (logs.read(folder / "log.csv") for folder in (whole, parts))
    assert [row["step"] for row in one] == [row["step"] for row in two] == list("123456")
    for a, b in zip(one, two):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-5)
        assert float(a["norm"]) == pytest.approx(float(b["norm"]), rel=1e-4)
    one, two = (checkpoint.load(folder / "checkpoint", "lrm").state_dict() for folder in (whole, parts))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-3, rtol=2e-3)


def test_an_interpolator_resumes_with_its_scale(tmp_path, cache, tiny_weights):
    more = ("--lrm", str(tiny_weights / "lrm"), "--causal-from", "0")
    run(tmp_path / "run", cache, "lim", *more, steps=2)
    with safe_open(tmp_path / "run/state.safetensors", "pt") as file:
        scale = file.get_tensor("scale")
    assert scale.shape == (1, 3, TINY.channels, 1, 1) and (scale > 0).all()
    run(tmp_path / "run", cache, "lim", *more, steps=3)
    with safe_open(tmp_path / "run/state.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("scale"), scale)
        assert json.loads(file.metadata()["counters"])["step"] == 3


def test_a_call_returns_in_time_and_the_next_one_goes_on(tmp_path, cache):
    more = ("--call-minutes", "0.0001")
    run(tmp_path / "run", cache, "lrm", *more, steps=4)
    assert not (tmp_path / "run/log.csv").exists(), "its time was over before the first step"
    assert (tmp_path / "run/state.safetensors").exists()
    training = json.loads((tmp_path / "run/checkpoint/training.json").read_text())
    assert (training["step"], training["done"]) == (0, False) and not (tmp_path / "run/best").exists()
    run(tmp_path / "run", cache, steps=4)
    training = json.loads((tmp_path / "run/checkpoint/training.json").read_text())
    assert (training["step"], training["done"]) == (4, True) and (tmp_path / "run/best/model.safetensors").exists()


def test_minutes_are_kept_and_the_best_weights_too(tmp_path, cache, monkeypatch):
    scores = iter([3.0, 5.0, 4.0, 1.0])
    picture = np.zeros((4, 4, 3), np.uint8)
    monkeypatch.setattr(train, "watch", lambda *a, **k: ({"score": next(scores)}, picture))
    out = tmp_path / "run"
    for steps in (1, 2, 3):
        run(out, cache, steps=steps)
    best, last = (json.loads((out / name / "training.json").read_text()) for name in ("best", "checkpoint"))
    assert (best["step"], best["watched"]["score"], last["step"]) == (2, 5.0, 3)
    assert [row["score"] for row in logs.read(out / "watch.csv")] == ["3.0", "5.0", "4.0"]
    one, two = (checkpoint.load(out / name, "lrm").state_dict() for name in ("best", "checkpoint"))
    assert any(not torch.equal(one[name], two[name]) for name in one)
    started = time.monotonic()
    run(tmp_path / "timed", cache, "lrm", "--minutes", "0.05", steps=0)
    assert 3 < time.monotonic() - started < 30
    counters = json.loads((tmp_path / "timed/checkpoint/training.json").read_text())
    assert counters["step"] > 2 and counters["elapsed"] >= 3


def test_a_step_with_broken_gradients_changes_nothing():
    model = torch.nn.Linear(3, 2)
    optimiser = train.make_optimiser(model, 0.1)
    before = model.weight.detach().clone()
    model(torch.full((1, 3), torch.nan)).sum().backward()
    assert not torch.isfinite(train.apply_gradients(optimiser, model))
    assert torch.equal(model.weight, before)
    model.zero_grad()
    model(torch.ones(1, 3)).sum().backward()
    assert float(train.apply_gradients(optimiser, model)) == pytest.approx(8**0.5)
    assert (model.weight - before).abs().min() > 0.05


def test_two_processes_follow_the_curve_of_one(tmp_path, cache):
    """Half a batch each, gradients averaged. Random numbers are held still: two processes draw other ones than one."""
    pytest.importorskip("accelerate")
    launcher = tmp_path / "launcher.py"
    launcher.write_text(
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[2])]!r}\n"
        "import torch\n"
        "from conftest import TINY\n"
        "from lim_core.networks import config\n"
        "from lim_core.training import train\n"
        "torch.rand = lambda *shape, device=None, generator=None: torch.full(shape, 0.5, device=device)\n"
        "config.PRESETS['nano'] = lambda: TINY\n"
        "train.LOG_SECONDS = -1\n"
        "sys.exit(train.main(sys.argv[1:]))\n"
    )
    common = [str(launcher), "lrm", "--cache", str(cache), "--steps", "5", "--batch", "4", "--rays", "64", "--held-out"]
    common += ["8", "--device", "cpu", "--threads", "1", "--warmup", "2", "--save-minutes", "100"]
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, start in (("one", []), ("two", several)):
        command = [sys.executable, *start, *common, "--out", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (logs.read(tmp_path / name / "log.csv") for name in ("one", "two"))
    assert [row["step"] for row in two] == list("12345"), "one process writes"
    for a, b in zip(one, two):
        for name in ("loss", "norm", "content", "mask", "depth"):
            assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-4), name
    assert one[-1]["samples"] == two[-1]["samples"] == "20"
    one, two = (checkpoint.load(tmp_path / name / "checkpoint", "lrm").state_dict() for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-3, rtol=2e-3)


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    alone = processes.Processes("cpu")
    assert alone.share(6) == range(6) and alone.agree("x") == "x"
    alone.count, alone.rank = 4, 2
    assert alone.share(8) == range(4, 6)
    with pytest.raises(LimError, match="A batch of 6 cannot be shared evenly by 4"):
        alone.share(6)


def test_tensorboard_has_the_same_curve(tmp_path, cache, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = run(tmp_path / "run", cache, steps=2)
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    logged = logs.read(out / "log.csv")[-1]
    assert events.Scalars("log/loss")[-1].value == pytest.approx(float(logged["loss"]), rel=1e-5)
    assert events.Images("samples")[-1].step == 2
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as where it is not installed
    quiet = run(tmp_path / "quiet", cache, steps=1)
    assert not (quiet / "tensorboard").exists() and (quiet / "log.csv").exists()


def test_speeds_are_logged(tmp_path, cache):
    row = logs.read(run(tmp_path / "run", cache, steps=2) / "log.csv")[-1]
    assert 0 < float(row["peak_share"]) < 1 and 0 <= float(row["waiting"]) < 1
    assert float(row["tflops"]) > 0 and float(row["samples_per_second"]) > 0


def test_a_folder_of_another_run_is_refused(tmp_path, cache, monkeypatch):
    run(tmp_path / "run", cache, steps=1)
    before = (tmp_path / "run/state.safetensors").read_bytes()
    with pytest.raises(LimError, match="holds a run with network lrm, not lrm-xyz"):
        run(tmp_path / "run", cache, "lrm-xyz", steps=2)
    with pytest.raises(LimError, match="holds a run with batch 2, not 4"):
        run(tmp_path / "run", cache, "lrm", "--batch", "4", steps=2)
    monkeypatch.setitem(config.PRESETS, "nano", lambda: dataclasses.replace(TINY, blocks=4))
    with pytest.raises(LimError, match="holds a run with blocks 3, not 4"):
        run(tmp_path / "run", cache, steps=2)
    assert (tmp_path / "run/state.safetensors").read_bytes() == before
    with pytest.raises(LimError, match="something else than a training run"):
        run(tmp_path / "run/checkpoint", cache, steps=2)


def test_a_damaged_state_is_named(tmp_path, cache):
    out = run(tmp_path / "run", cache, steps=1)
    (out / "state.safetensors").write_bytes(b"nothing")
    with pytest.raises(LimError, match="training state in .*run is damaged"):
        run(out, cache, steps=2)


def test_a_start_of_another_size_is_refused(tmp_path, cache, tiny_weights, monkeypatch):
    other = dataclasses.replace(TINY, width=16, blocks=4)
    checkpoint.save(tmp_path / "other", "lrm", checkpoint.build("lrm", other).eval(), {})
    with pytest.raises(
        LimError, match="other does not fit: it holds lrm with width 16 instead of 32, blocks 4 instead of 3"
    ):
        run(tmp_path / "run", cache, "lrm", "--start", str(tmp_path / "other"))
    with pytest.raises(LimError, match="no checkpoint in “/nowhere”"):
        run(tmp_path / "run", cache, "lrm", "--start", "/nowhere")
    with pytest.raises(LimError, match="stands on a trained “lrm-xyz”"):
        run(tmp_path / "run", cache, "lim-xyz")
    with pytest.raises(LimError, match="holds weights of “lrm”, not of “lrm-xyz”"):
        run(tmp_path / "run", cache, "lim-xyz", "--lrm", str(tiny_weights / "lrm"))
    more = ("--lrm", str(tiny_weights / "lrm-xyz"), "--lrm-rgb", str(tmp_path / "other"))
    with pytest.raises(LimError, match="other does not fit: it holds a reconstructor with width 16"):
        run(tmp_path / "run", cache, "lim-xyz", *more)


def test_training_starts_from_half_precision_weights(tmp_path, cache, tiny_weights):
    out = run(tmp_path / "run", cache, "lrm", "--start", str(tiny_weights / "lrm"), "--lr", "1e-9", steps=1)
    one, two = (checkpoint.load(folder, "lrm").state_dict() for folder in (out / "checkpoint", tiny_weights / "lrm"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-3, rtol=1e-3)


def test_an_interpolator_follows_its_reconstructor(tmp_path, cache, tiny_weights):
    torch.manual_seed(1)
    before, now = checkpoint.load(tiny_weights / "lrm", "lrm"), checkpoint.build("lrm", TINY).eval()
    stood, expected = (checkpoint.build("lim", TINY).eval() for _ in range(2))
    stood.initialise_from(before)
    expected.initialise_from(now)
    checkpoint.save(tmp_path / "now", "lrm", now, {})
    checkpoint.save(tmp_path / "stood", "lim", stood, {})
    more = ["--start", str(tmp_path / "stood"), "--lrm", str(tmp_path / "now"), "--lr", "1e-9"]
    out = run(tmp_path / "run", cache, "lim", *more, "--start-lrm", str(tiny_weights / "lrm"), steps=1)
    found, kept = checkpoint.load(out / "checkpoint", "lim").state_dict(), stood.state_dict()
    taken_over = ("encoder.", "pillars.", "plane_tokens.", "refine.", "blocks.", "head.")
    for name, weight in expected.state_dict().items():
        wanted = weight if name.startswith(taken_over) else kept[name]
        torch.testing.assert_close(found[name], wanted, atol=2e-3, rtol=2e-3, msg=name)
    with pytest.raises(LimError, match="--start-lrm says what"):
        run(tmp_path / "other", cache, "lim", "--lrm", str(tmp_path / "now"), "--start-lrm", str(tiny_weights / "lrm"))


@pytest.mark.parametrize("network", ["lrm", "lim"])
def test_a_coarse_network_is_the_start_of_a_finer_one(tiny_weights, network):
    """The finer planes are the coarse ones resampled, as nearly as a network that is not trained can know."""
    torch.manual_seed(0)
    finer = dataclasses.replace(TINY, upsample=8)
    views = ball_views(TINY)

    def answers(model_config, start):
        """The triplane and the evidence's tokens."""
        base, model = checkpoint.build("lrm", model_config), checkpoint.build(network, model_config)
        state.begin_from(base, str(tiny_weights / "lrm"))
        if start:
            state.begin_from(model, str(tiny_weights / network))
        with torch.no_grad():
            tokens = model.plane_tokens(model.pillars(evidence.fuse(views, model_config.plane_size)))
            if network == "lrm":
                return model(views)[0], tokens
            return model(base(views)[1], model.condition(views), torch.tensor([0.5]))[0], tokens

    (coarse, told), (fine, finely_told), (other, _) = answers(TINY, True), answers(finer, True), answers(finer, False)
    assert (finely_told - told).std() < 0.45 * told.std()
    fine, other = (torch.nn.functional.avg_pool2d(planes[0], 2) for planes in (fine, other))
    assert (fine - coarse[0]).std() < 0.45 * coarse.std() < (other - coarse[0]).std()


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of a file's size there")
@pytest.mark.parametrize("limit, named", [(200_000, "state.safetensors"), (1_500_000, "checkpoint")])
def test_a_full_disk_is_said_and_the_last_state_is_kept(tmp_path, cache, monkeypatch, limit, named):
    """A file that may not grow over `limit` bytes fails as on a full disk; the state has 1.1 MB, the checkpoint 0.2 MB."""
    import resource

    out = run(tmp_path / "run", cache, steps=1)
    sizes = [(out / name).stat().st_size for name in ("state.safetensors", "checkpoint/model.safetensors")]
    if named == "checkpoint":
        monkeypatch.setattr(state, "save", lambda *a: None)
        limit = sizes[1] // 2
    assert limit < sizes[0]
    before = {path: path.read_bytes() for path in out.rglob("*.safetensors")}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(LimError, match=f"run/{named}.*”? ?(could not be written|:)|disk is full") as caught:
            run(out, cache, steps=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == "disk_full" and named in caught.value.message
    assert {path: path.read_bytes() for path in out.rglob("*.safetensors")} == before
    assert not list(out.rglob("*.tmp")), "nothing half-written stays"


def test_what_a_cache_lacks_is_said(tmp_path, cache):
    shutil.copytree(cache, tmp_path / "cache")
    with pytest.raises(LimError, match="32 sequences: too few to train on"):
        run(tmp_path / "run", tmp_path / "cache", "lrm", "--held-out", "32")
    with pytest.raises(LimError, match="empty holds 0 sequences"):
        run(tmp_path / "run", tmp_path / "empty")
    (tmp_path / "cache/0000_0000/rgba.npy").write_bytes(b"nothing")
    with pytest.raises(LimError, match="The shard .* is damaged"):
        run(tmp_path / "run", tmp_path / "cache")


def test_a_cache_of_another_size_is_refused(tmp_path, cache, monkeypatch):
    monkeypatch.setitem(config.PRESETS, "nano", lambda: dataclasses.replace(TINY, image_size=64))
    with pytest.raises(LimError, match="views of 32 pixels, this network sees 64"):
        run(tmp_path / "run", cache)


def test_losses_compute_in_bf16(cache):
    """As on a GPU: the blocks in bf16, what needs it in fp32, finite gradients everywhere."""
    torch.manual_seed(0)
    model = checkpoint.build("lrm", TINY)
    batch = batches.draw(Cache(cache), 2, 64, np.random.default_rng(0), interpolation=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = losses.reconstruction_loss(model, batch, losses.LossWeights(), canonical=False, drop_depth=0.5)
    loss.backward()
    exact, _ = losses.reconstruction_loss(model, batch, losses.LossWeights(), canonical=False, drop_depth=0.5)
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=0.05)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.requires_grad_(False)
    lim = checkpoint.build("lim", TINY)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = losses.interpolation_loss(lim, model, batch, torch.ones(1), losses.LossWeights(), samples=8)
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in lim.parameters() if p.grad is not None)


def test_the_perceptual_loss_is_an_option(tmp_path, cache, perceptual_file):
    out = run(tmp_path / "run", cache, "lrm", "--perceptual", str(perceptual_file), "--perceptual-patch", "16", steps=2)
    assert float(logs.read(out / "log.csv")[-1]["perceptual"]) > 0
    with pytest.raises(LimError, match="no file “/nowhere”"):
        run(tmp_path / "other", cache, "lrm", "--perceptual", "/nowhere", "--perceptual-patch", "16")
    with pytest.raises(LimError, match="must lie between 16 and 32"):
        run(tmp_path / "other", cache, "lrm", "--perceptual", str(perceptual_file), "--perceptual-patch", "64")


@pytest.mark.parametrize("network", ("lrm", "lim-xyz"))
def test_the_benchmark_times_the_parts(cache, tiny_weights, capsys, network):
    arguments = [network, "--cache", str(cache), "--benchmark", "--batch", "2", "--rays", "32", "--device", "cpu"]
    if network == "lim-xyz":
        arguments += ["--lrm", str(tiny_weights / "lrm-xyz")]
    assert train.main(arguments) == 0
    said = capsys.readouterr().out
    parts = (
        "reading the cache",
        "copy and unpack",
        "network, forward",
        "rendering",
        "optimiser",
        "step, without reading",
    )
    assert all(part in said for part in parts) and ("frozen reconstructor" in said) == (network == "lim-xyz")
    shares = [int(line.split("%")[0].split()[-1]) for line in said.splitlines() if "%" in line]
    assert shares[-1] == 100 and len(shares) == (7 if network == "lim-xyz" else 6)


def test_watching_ends_at_its_deadline(cache):
    model = checkpoint.build("lrm", TINY)
    watched = batches.open_cache(str(cache))
    watched.index = watched.index[:3]
    options = {"canonical": False, "device": torch.device("cpu")}
    row, picture = watch.watch(model, None, watched, None, **options)
    assert row["score"] == pytest.approx(row["psnr"] + row["psnr_fg"]) and picture.shape == (64, 96, 3)
    assert watch.watch(model, None, watched, None, **options, deadline=time.monotonic()) is None
    assert model.training
