# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the networks run."""

from __future__ import annotations

import torch

from ..shared.errors import LimError


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


def training_dtype(device: torch.device) -> torch.dtype:
    """What matrix products are computed in while training: bf16 on a GPU that has it in hardware, else fp32."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


def autocast(device: torch.device) -> torch.autocast:
    """The context in which a training loss is computed."""
    half = training_dtype(device) is torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def tune(device: torch.device) -> None:
    """Settings of a training process: what stays in fp32 may use TF32, cuDNN measures which kernels are fastest."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


def synchronise(device: torch.device) -> None:
    """Wait until everything that was started on the device is done; before reading a clock."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
