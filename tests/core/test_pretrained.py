# SPDX-License-Identifier: GPL-3.0-or-later
"""DINOv2 before the networks: a tiny random one of the same form."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch

from conftest import TINY, ball_views
from lim_core.networks import checkpoint, config
from lim_core.networks.lim import LIM
from lim_core.networks.lrm import LRM
from lim_core.shared.errors import LimError
from lim_core.training import train

transformers = pytest.importorskip("transformers")
SIGHTED = dataclasses.replace(TINY, dino_width=24, dino_blocks=2, dino_heads=2)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(5)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 518}
    model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    model.save_pretrained(tmp_path / "dino ü")
    return tmp_path / "dino ü"


def test_its_tokens_reach_the_triplane_and_it_is_not_trained(folder):
    torch.manual_seed(0)
    lrm = LRM(SIGHTED)
    views = ball_views(SIGHTED)
    before, _ = lrm(views)
    lrm.encoder.dino.read(folder)
    after, _ = lrm(views)
    assert (after - before).abs().max() > 1e-4
    after.sum().backward()
    assert lrm.encoder.dino.project.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in lrm.encoder.dino.model.parameters())
    trained = {id(p) for group in train.make_optimiser(lrm, 1e-3).param_groups for p in group["params"]}
    assert not trained & {id(p) for p in lrm.encoder.dino.model.parameters()}


def test_it_travels_in_the_checkpoint_and_reaches_lim(folder, tmp_path):
    lrm = LRM(SIGHTED).eval()
    lrm.encoder.dino.read(folder)
    checkpoint.save(tmp_path / "lrm", "lrm", lrm, {})
    again = checkpoint.load(tmp_path / "lrm", "lrm")
    with torch.no_grad():
        torch.testing.assert_close(
            again(ball_views(SIGHTED))[0], lrm(ball_views(SIGHTED))[0], atol=0.05, rtol=0.05
        )  # fp16
    lim = LIM(SIGHTED)
    lim.initialise_from(lrm)
    mine, theirs = lim.encoder.dino.state_dict(), lrm.encoder.dino.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_what_is_no_dino_of_this_size_is_refused(folder, tmp_path):
    with pytest.raises(LimError, match="no DINOv2"):
        LRM(SIGHTED).encoder.dino.read(tmp_path)
    with pytest.raises(LimError, match="preset's size"):
        LRM(dataclasses.replace(SIGHTED, dino_width=32)).encoder.dino.read(folder)
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(LimError, match="preset's size"):
        LRM(SIGHTED).encoder.dino.read(folder)
    with pytest.raises(LimError, match="go together"):
        config.changed(config.nano(), ["dino_width=24"])
    args = train.parser().parse_args(["lrm", "--cache", "x", "--encoder", str(folder)])
    with pytest.raises(LimError, match="no DINOv2 to take"):
        train.build(args, torch.device("cpu"))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(LimError, match="package transformers"):
        LRM(SIGHTED)
