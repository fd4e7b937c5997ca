# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast training is, and where the time goes: `train … --benchmark`, and the columns tflops and peak_share of log.csv."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ..networks import device


def matmul_peak(where: torch.device, seconds: float = 0.7) -> float:
    """FLOP/s of large square matrix products in the training dtype: the ceiling that a step is compared with.

    Random values: a GPU multiplies zeros faster than data.
    """
    size, dtype = (8192 if where.type == "cuda" else 1024), device.training_dtype(where)
    a, b = (torch.randn(size, size, device=where, dtype=torch.float32).to(dtype) for _ in range(2))
    best, end = float("inf"), 0.0
    for repeat in range(1000):
        if repeat == 2:  # the first two warm up
            best, end = float("inf"), time.monotonic() + seconds
        device.synchronise(where)
        started = time.perf_counter()
        a @ b
        device.synchronise(where)
        best = min(best, time.perf_counter() - started)
        if repeat > 4 and time.monotonic() > end:
            break
    return 2 * size**3 / best


def count_flops(run: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, convolutions and attention that `run()` executes, its backward pass
    included when it does one; what gradient checkpointing computes twice counts twice."""
    aten = torch.ops.aten
    of_the_cpu = {}
    for name, formula in (
        ("_scaled_dot_product_flash_attention_for_cpu", _attention),
        ("_scaled_dot_product_flash_attention_for_cpu_backward", _attention_backward),
    ):
        if hasattr(aten, name):
            of_the_cpu[getattr(aten, name)] = formula
    with FlopCounterMode(display=False, custom_mapping=of_the_cpu) as counter:
        run()
    return counter.get_total_flops()


def _attention(query, key, value, *_, out_shape=None, **__) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient, query, key, value, *_, out_shape=None, **__) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def compile_blocks(model: nn.Module) -> int:
    """torch.compile for every transformer block (equal ones share a compilation); returns how many. Names of weights stay."""
    lists = (part for name, part in model.named_modules() if name.split(".")[-1] == "blocks")
    blocks = [block for part in lists if isinstance(part, nn.ModuleList) for block in part]
    for block in blocks:
        block.compile()
    return len(blocks)


def timed(where: torch.device, run: Callable[[], object], repeats: int) -> float:
    """Median seconds of `run()`, after one that warms up."""
    run()
    times = []
    for _ in range(repeats):
        device.synchronise(where)
        started = time.perf_counter()
        run()
        device.synchronise(where)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def table(rows: list[tuple[str, float, float]], scenes: int, peak: float) -> str:
    """Lines for the screen of (what, seconds, FLOPs or 0); the last row is the whole step, of which the others are shares."""
    whole = rows[-1][1]
    lines = [f"{'':<36}{'ms':>9}{'share':>8}{'GFLOP':>9}{'TFLOP/s':>9}{'of peak':>9}"]
    for what, seconds, flops in rows:
        line = f"{what:<36}{seconds * 1e3:>9.1f}{seconds / whole:>8.0%}"
        if flops and seconds:
            line += f"{flops / 1e9:>9.1f}{flops / seconds / 1e12:>9.3g}{flops / seconds / peak:>9.1%}"
        lines.append(line)
    lines.append(f"{scenes / whole:.1f} scenes a second; matrix products reach {peak / 1e12:.3g} TFLOP/s")
    return "\n".join(lines)
