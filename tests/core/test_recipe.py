# SPDX-License-Identifier: GPL-3.0-or-later
"""The recipe: calls that go on where the last one was, renderers of their own, a cache that is renewed, what is brought home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TINY
from lim_core import __main__ as command_line
from lim_core.networks import checkpoint, config
from lim_core.shared.errors import LimError
from lim_core.training import bring_home, recipe, renderers


def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path):
    path = tmp_path / "deep/one.lock"
    code = f"import sys, time; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
    code += "from pathlib import Path\nfrom lim_core.training import renderers\n"
    code += f"mine = renderers.lock(Path({str(path)!r}))\nprint('ok', flush=True)\ntime.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "ok\n"
        assert renderers.holder(path) == other.pid
        assert renderers.lock(path, patience=0.1) is None
    finally:
        other.kill()
        other.wait()
    assert renderers.holder(path) is None
    mine = renderers.lock(path)
    assert mine is not None and renderers.holder(path) == os.getpid()
    mine.release()
    assert renderers.holder(path) is None


def shard(cache: Path, name: str, size: int, age: float) -> None:
    (cache / name).mkdir(parents=True)
    (cache / name / "rgba.npy").write_bytes(bytes(size))
    (cache / name / "ready").write_text("")
    os.utime(cache / name / "ready", (1e9 - age, 1e9 - age))


def test_the_oldest_shards_are_replaced(tmp_path):
    for i, age in enumerate((5, 50, 20, 40)):
        shard(tmp_path, f"{100000 + i:04d}_0000", 1000, age)
    (tmp_path / "100009_0000").mkdir()  # being written: it has no mark yet
    assert renderers.make_room(tmp_path, 2500) == 2000
    assert sorted(os.listdir(tmp_path)) == ["100000_0000", "100002_0000", "100009_0000"]
    assert renderers.sequences(tmp_path) == 64
    assert renderers.make_room(tmp_path, 0) == 1000, "one shard stays: a training reads it"
    assert renderers.next_seed(tmp_path, 0) == 100010 and renderers.next_seed(tmp_path, 1) == 200000


def test_whole_assets_are_held_out():
    paths = [Path(f"{i:03d}") for i in range(60)]
    trained, watched = renderers.split(paths)
    assert watched == [Path("012"), Path("037")] and len(trained) == 58 and not set(trained) & set(watched)
    assert renderers.split(paths[:1]) == (paths[:1], paths[:1]) and renderers.split([]) == ([], [])


def test_shares():
    assert recipe.shares_of("") == recipe.SHARES and sum(recipe.SHARES.values()) == pytest.approx(1)
    assert recipe.shares_of("lrm=2, lim=0.5") == {"lrm": 2.0, "lrm-xyz": 0.0, "lim": 0.5, "lim-xyz": 0.0}
    with pytest.raises(LimError, match="“lrn=1” is not a share"):
        recipe.shares_of("lrn=1")


def finished_work(folder: Path, weights: Path) -> Path:
    for network in config.NETWORKS:
        (folder / network / "samples").mkdir(parents=True)
        Image.fromarray(np.full((8, 40, 3), 99, np.uint8)).save(folder / network / "samples/000007.png")
        (folder / network / "log.csv").write_text("step,loss\n" + "".join(f"{i},{1 / i}\n" for i in range(1, 4001)))
    (folder / "weights").mkdir()
    for network in config.NETWORKS[:3]:
        os.symlink(weights / network, folder / "weights" / network)
    os.symlink(weights / "lim-xyz", folder / "lim-xyz/best")  # not finished: its best so far
    return folder


def test_what_is_brought_home_unpacks_to_the_same_weights(tmp_path, tiny_weights, monkeypatch, capsys):
    work = finished_work(tmp_path / "work", tiny_weights)
    monkeypatch.setattr(bring_home, "SHARD_BYTES", 300_000)
    assert bring_home.export(work, tmp_path / "home", config.NETWORKS) == []
    files = sorted(path.name for path in (tmp_path / "home").iterdir())
    assert len(files) <= bring_home.FILES and {"metrics.json", "samples.png", "weights-00001.safetensors"} <= set(files)
    assert len(files) > 3, "several shards are tested"
    metrics = json.loads((tmp_path / "home/metrics.json").read_text())
    assert 1000 < len(metrics["lrm"]["log"]["loss"]) <= bring_home.ROWS and metrics["lrm"]["training"] == {"test": True}
    assert Image.open(tmp_path / "home/samples.png").size == (40, 4 * 28)
    assert command_line.main(["unpack", str(tmp_path / "home"), str(tmp_path / "weights")]) == 0
    for network in config.NETWORKS:
        one, two = (checkpoint.load(folder / network, network) for folder in (tiny_weights, tmp_path / "weights"))
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, two.state_dict()[name]), name
        assert checkpoint.replay_golden(tmp_path / "weights" / network, network, two) < 1e-4
    (tmp_path / "home/weights-00001.safetensors").unlink()
    with pytest.raises(LimError, match="not a whole export"):
        bring_home.unpack(tmp_path / "home", tmp_path / "again")


def test_what_does_not_fit_is_left_out_and_said(tmp_path, tiny_weights, monkeypatch):
    work = finished_work(tmp_path / "work", tiny_weights)
    monkeypatch.setattr(bring_home, "SHARD_BYTES", 100_000)
    left_out = bring_home.export(work, tmp_path / "home", ["lim", "lrm", "lrm-xyz", "lim-xyz"])
    kept = json.loads((tmp_path / "home/metrics.json").read_text())
    assert left_out and sorted([*left_out, *kept]) == sorted(config.NETWORKS) and "lim" in kept
    assert len(list((tmp_path / "home").iterdir())) <= bring_home.FILES
    assert all(path.stat().st_size <= bring_home.FILE_BYTES for path in (tmp_path / "home").iterdir())
    with pytest.raises(LimError, match="nothing to bring home"):
        bring_home.export(tmp_path / "nothing", tmp_path / "home", config.NETWORKS)


def test_a_missing_package_is_said(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "embreex", None)
    monkeypatch.setitem(sys.modules, "lim_core.training.recipe", recipe)
    monkeypatch.setattr(recipe.importlib.util, "find_spec", lambda name: None)
    assert command_line.main(["recipe", "-", str(tmp_path / "work")]) == 4
    assert "Rendering needs the package embreex" in capsys.readouterr().err


def test_one_recipe_at_a_time(tmp_path, monkeypatch):
    held = renderers.lock(tmp_path / "call.lock")
    with pytest.raises(LimError, match="already running"):
        recipe.main(["-", str(tmp_path)])
    held.release()


def test_renderers_that_fail_say_why(tmp_path):
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs/broken.npz").write_bytes(b"nothing")
    with pytest.raises(LimError, match="Nothing could be rendered: .*packs can be read"):
        recipe.main([str(tmp_path / "packs"), str(tmp_path / "work"), "--renderers", "1", "--first", "32"])


def test_short_calls_finish_the_four_networks(tmp_path, monkeypatch, capsys):
    """Generated objects, the tiny preset, a few steps a network; calls of a minute and less, as on a rented machine."""
    monkeypatch.setitem(config.PRESETS, "nano", lambda: TINY)
    monkeypatch.setattr(recipe, "CLOSING_SECONDS", 1.0)
    work, home = tmp_path / "work", tmp_path / "home"
    command = ["recipe", "-", str(work), "--minutes", "30", "--export", str(home), "--first", "32", "--renderers", "1"]
    command += ["--sequences", "96", "--supersampling", "1", "--batch", "2", "--rays", "32", "--device", "cpu"]
    command += ["--threads", "1", "--train=--warmup 2 --steps 3"]
    first = None
    try:
        for minutes in ("0.05", *["1"] * 20):  # the first ends before there is anything to train on
            started = time.monotonic()
            assert command_line.main([*command, "--call-minutes", minutes]) == 0
            assert time.monotonic() - started < 100, "a call ends by itself"
            said = capsys.readouterr().out
            if "recipe: finished" in said:
                break
            assert "to be continued" in said and ("nothing to bring home yet" in said or minutes != "0.05")
            until = time.monotonic() + 60
            while not (found := renderers.alive(work)) and time.monotonic() < until:
                time.sleep(0.2)  # the first call may be over before the renderer has begun
            assert len(found) == 1, "it goes on between the calls"
            first = first or found
            assert found == first, "and is not started twice"
        else:
            pytest.fail("the recipe does not come to its end")
        assert first
    finally:
        recipe.main(["-", str(work), "--stop"])
    until = time.monotonic() + 10
    while renderers.alive(work) and time.monotonic() < until:
        time.sleep(0.1)
    assert not renderers.alive(work)
    for network in config.NETWORKS:
        model = checkpoint.load(work / "weights" / network, network)
        assert checkpoint.replay_golden(work / "weights" / network, network, model) < 1e-4
        assert json.loads((work / network / "checkpoint/training.json").read_text())["step"] == 3
    given = [state["minutes"] for state in json.loads((work / "progress.json").read_text())["networks"].values()]
    assert 11 < given[0] < 0.42 * 30 and sum(given) > 30, "what the first ones leave, the next ones get"
    assert len(list(home.iterdir())) <= 8
    assert bring_home.unpack(home, tmp_path / "weights") == list(config.NETWORKS)
