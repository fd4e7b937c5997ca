# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the networks run."""

from __future__ import annotations

import os

import torch

from .errors import LimError


def pick(wanted: str = "auto") -> torch.device:
    """The device to compute on. `auto`: CUDA (a ROCm build calls itself so too), then MPS, then the CPU.

    Raises:
        LimError: `no_device` when a device is asked for that this machine or this build of torch does not have.
    """
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if have[name]))
    if not have.get(wanted, False):
        raise LimError(
            "no_device",
            f"This computer has no device of the kind “{wanted}” that PyTorch can use.",
            "Choose Auto or CPU.",
        )
    return torch.device(wanted)


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return {"cpu": f"CPU, {torch.get_num_threads()} threads", "mps": "Apple GPU"}[device.type]


def limit_threads() -> None:
    """Leave a core to Blender's window; LIM_THREADS overrides.

    Call before numpy and scipy are imported: their BLAS reads the environment once. Two hardware threads of one core gain
    nothing (1024³ matmul: 175 GFLOP/s with one thread, 184 with two) and waiting for each other beside other work costs 5×.
    """
    asked = os.environ.get("LIM_THREADS", "")
    threads = int(asked) if asked.isdigit() and int(asked) > 0 else max(1, (os.cpu_count() or 1) - 1)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, str(threads))
    torch.set_num_threads(threads)
