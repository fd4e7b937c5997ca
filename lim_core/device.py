# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the networks run."""

from __future__ import annotations

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
