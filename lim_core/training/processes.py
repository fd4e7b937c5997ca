# SPDX-License-Identifier: GPL-3.0-or-later
"""One training run as several processes, started by `torchrun … -m lim_core train …`, on one machine or on many.

Each process takes its share of every batch; gradients are averaged; process 0 alone decides and writes. Without torchrun
there is one process, and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..networks import device
from ..shared.errors import LimError


class Processes:
    """Attributes: rank and count of this process among all; device, that of this process."""

    def __init__(self, wanted: str = "auto"):
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.count > 1 else 0
        self.device = device.pick(wanted)
        if self.count == 1:
            return
        try:
            from accelerate import Accelerator
        except ImportError:
            raise LimError(
                "backend_broken", "Training with several processes needs the package accelerate.",
                "Install the backend with --training.",
            ) from None  # fmt: skip
        self.accelerator = Accelerator(cpu=self.device.type == "cpu")
        self.device = self.accelerator.device
        # Decisions go over the CPU: they are a few bytes a step, and must not wait for the GPU's queue.
        self.control = torch.distributed.new_group(backend="gloo")

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, batch: int) -> range:
        """Which scenes of a batch are this process's own.

        Raises:
            LimError: the batch cannot be shared evenly.
        """
        if batch % self.count:
            raise LimError("bad_request", f"A batch of {batch} cannot be shared evenly by {self.count} processes.")
        own = batch // self.count
        return range(self.rank * own, (self.rank + 1) * own)

    def agree(self, value: Any) -> Any:
        """Process 0's value, in every process."""
        if self.count == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def same_start(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the values that process 0 has."""
        if self.count > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over all processes, in one message. The same tensors in every process."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        flat = self.accelerator.reduce(flat, reduction="mean")
        for tensor, values in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(values.view_as(tensor))

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """A parameter that a step did not touch in one process counts as a gradient of 0 there."""
        if self.count == 1:
            return
        parameters = [p for p in parameters if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.average([parameter.grad for parameter in parameters])

    def end(self) -> None:
        if self.count > 1:
            torch.distributed.destroy_process_group()
