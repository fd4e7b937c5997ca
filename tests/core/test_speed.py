# SPDX-License-Identifier: GPL-3.0-or-later
"""What the training's own measurements count."""

from __future__ import annotations

import time
from types import SimpleNamespace

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


def test_the_peak_is_that_of_the_fastest_product(monkeypatch):
    """By a clock of its own: products that take 5, 4, 9, 8, 7, 6 … ms; the first two warm up."""
    seconds = iter([0.005, 0.004, 0.009, 0.008, 0.007, 0.006] + [0.0065] * 1000)
    now = [0.0]

    def tick() -> float:
        tick.calls += 1
        if tick.calls % 2 == 0:  # the end of a product
            now[0] += next(seconds)
        return now[0]

    tick.calls = 0
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=tick, monotonic=lambda: now[0]))
    peak = speed.matmul_peak(torch.device("cpu"), 0.1)
    assert peak == pytest.approx(2 * 1024**3 / 0.006)
    assert 0.1 < now[0] - 0.009 < 0.1 + 0.009, "for the time that was given, once it is warm"


def test_the_peak_is_measured():
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    own = []
    for _ in range(20):
        started = time.perf_counter()
        a @ b
        own.append(time.perf_counter() - started)
    peak = speed.matmul_peak(torch.device("cpu"), 0.2)
    assert 1 / 3 < peak / (2 * 1024**3 / min(own)) < 3


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
