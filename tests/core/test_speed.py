# SPDX-License-Identifier: GPL-3.0-or-later
"""What the training's own measurements count."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from conftest import TINY
from lim_core.networks import checkpoint
from lim_core.training import speed


def test_products_and_their_gradients_are_counted():
    a, b = torch.randn(5, 7, requires_grad=True), torch.randn(7, 11, requires_grad=True)
    assert speed.count_flops(lambda: a @ b) == 2 * 5 * 7 * 11
    assert speed.count_flops(lambda: (a @ b).sum().backward()) == 3 * 2 * 5 * 7 * 11


def test_attention_is_counted_on_the_cpu_too():
    query = torch.randn(2, 4, 64, 16)
    forward = 2 * (2 * 2 * 4 * 64 * 64 * 16)  # two products of [64, 16] and [64, 64] in each of 2 × 4 heads
    assert speed.count_flops(lambda: F.scaled_dot_product_attention(query, query, query)) == forward
    query.requires_grad_()
    run = lambda: F.scaled_dot_product_attention(query, query, query).sum().backward()  # noqa: E731
    assert speed.count_flops(run) == pytest.approx(3.5 * forward)  # flash attention computes the scores once more


def test_the_peak_is_measured():
    seconds = speed.timed(torch.device("cpu"), lambda: torch.randn(512, 512) @ torch.randn(512, 512), 3)
    peak = speed.matmul_peak(torch.device("cpu"), 0.1)
    assert 1e9 < peak < 1e14 and peak > 0.2 * 2 * 512**3 / seconds


def test_the_table_adds_up():
    text = speed.table([("reading", 0.5, 0.0), ("network", 1.5, 3e12), ("step", 2.0, 4e12)], 8, 8e12).splitlines()
    assert text[2].split() == ["network", "1500.0", "75%", "3000.0", "2", "25.0%"]
    assert text[3].split() == ["step", "2000.0", "100%", "4000.0", "2", "25.0%"]
    assert text[4].startswith("4.0 scenes a second")


@pytest.mark.parametrize("network", ("lrm", "lim"))
def test_compiling_keeps_the_names_of_weights(network):
    model = checkpoint.build(network, TINY)
    names = list(model.state_dict())
    assert speed.compile_blocks(model) == TINY.encoder_blocks + (TINY.blocks if network == "lrm" else TINY.lim_blocks)
    assert list(model.state_dict()) == names
