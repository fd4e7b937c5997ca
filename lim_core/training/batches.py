# SPDX-License-Identifier: GPL-3.0-or-later
"""From cached sequences to what a training step needs."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from queue import Queue

import numpy as np
import torch
from torch import Tensor

from ..data.cache import RIG_VIEWS, STEPS, Cache
from ..images import Views


@dataclasses.dataclass
class Rays:
    """Target pixels of B scenes, R each: what a render of the triplane should show there.

    rgb and alpha [B, R, 3], [B, R]; depth_planar [B, R] (0 = background); canonical [B, R, 3]; origins, directions [B, R, 3].
    """

    rgb: Tensor
    alpha: Tensor
    depth_planar: Tensor
    canonical: Tensor
    origins: Tensor
    directions: Tensor

    def to(self, device) -> Rays:
        return Rays(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))


@dataclasses.dataclass
class Batch:
    """Source, middle and target time of B scenes; for the reconstructors only the middle is used.

    `views_*` hold RGB; `canonical_*` [B, V, H, W, 3] the canonical renders relative to the SOURCE time. alpha [B].
    """

    views_source: Views
    views_middle: Views
    views_target: Views
    canonical_source: Tensor
    canonical_middle: Tensor
    alpha: Tensor
    rays: Rays

    def to(self, device) -> Batch:
        return Batch(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))


def rig_views(sequence: dict[str, np.ndarray], step: int) -> Views:
    """The rig's pictures of one step, on white."""
    rgba = torch.from_numpy(sequence["rgba"][step, :RIG_VIEWS].astype(np.float32)) / 255
    maps = torch.from_numpy(sequence["maps"][step, :RIG_VIEWS, ..., :3].astype(np.float32))
    alpha = rgba[..., 3]
    content = rgba[..., :3] * alpha[..., None] + 1 - alpha[..., None]
    known = (maps.abs().sum(-1) > 0).float()
    return Views(
        content, alpha, maps, known,
        torch.from_numpy(sequence["camera_to_world"][step, :RIG_VIEWS].copy()),
        torch.from_numpy(sequence["intrinsics"][step, :RIG_VIEWS].copy()),
    )  # fmt: skip


def canonical_views(sequence: dict[str, np.ndarray], step: int, reverse: bool) -> Tensor:
    """Canonical renders [V, H, W, 3] of the rig at `step`, relative to the first step (the last, when reversed)."""
    low = 6 if reverse else 3
    return torch.from_numpy(sequence["maps"][step, :RIG_VIEWS, ..., low : low + 3].astype(np.float32))


def sample_rays(
    sequence: dict[str, np.ndarray], step: int, reverse: bool, count: int, rng: np.random.Generator
) -> Rays:
    """`count` pixels of all views of a step: half anywhere, half on the object or at its edge."""
    alpha = sequence["rgba"][step, ..., 3]
    views, height, width = alpha.shape
    foreground = np.flatnonzero(alpha.reshape(-1) > 0)
    anywhere = rng.integers(views * height * width, size=count)
    if len(foreground):
        chosen = foreground[rng.integers(len(foreground), size=count // 2)]
        anywhere[: count // 2] = chosen
    view, pixel = np.divmod(anywhere, height * width)
    row, column = np.divmod(pixel, width)
    rgba = sequence["rgba"][step][view, row, column].astype(np.float32) / 255
    low = 6 if reverse else 3
    maps = sequence["maps"][step][view, row, column].astype(np.float32)
    matrix = sequence["camera_to_world"][step][view]
    inverse = np.linalg.inv(sequence["intrinsics"][step][view])
    uv = np.stack([column + 0.5, row + 0.5, np.ones_like(row, np.float64)], -1).astype(np.float32)
    directions = np.einsum("nij,nj->ni", matrix[:, :3, :3] @ inverse, uv)
    known = np.abs(maps[:, :3]).sum(-1) > 0
    depth = np.einsum("ni,ni->n", maps[:, :3] - matrix[:, :3, 3], matrix[:, :3, 2]) * known
    tensors = (
        rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:], rgba[:, 3], depth, maps[:, low : low + 3], matrix[:, :3, 3], directions,
    )  # fmt: skip
    return Rays(*(torch.from_numpy(np.ascontiguousarray(x, np.float32)) for x in tensors))


def draw(cache: Cache, batch: int, rays: int, rng: np.random.Generator, *, interpolation: bool) -> Batch:
    """A random batch.

    With `interpolation`, source and target are 2 to 4 steps apart, in either direction of time, the middle strictly
    between; otherwise the middle is any step and the source is the end that its canonical coordinates refer to.
    """
    rows = []
    for _ in range(batch):
        sequence = cache.sequence(int(rng.integers(len(cache.index))))
        reverse = bool(rng.integers(2))
        if interpolation:
            gap = int(rng.integers(2, STEPS))
            middle = int(rng.integers(1, gap))
            source, middle, target = (STEPS - 1, STEPS - 1 - middle, STEPS - 1 - gap) if reverse else (0, middle, gap)
            alpha = (middle - source) / (target - source)
        else:
            middle = int(rng.integers(STEPS))
            source = target = STEPS - 1 if reverse else 0
            alpha = 0.0
        rows.append((
            rig_views(sequence, source), rig_views(sequence, middle), rig_views(sequence, target),
            canonical_views(sequence, source, reverse), canonical_views(sequence, middle, reverse),
            torch.tensor(alpha), sample_rays(sequence, middle, reverse, rays, rng),
        ))  # fmt: skip
    columns = list(zip(*rows))
    return Batch(*(_stack(column) for column in columns))


def _stack(items):
    if isinstance(items[0], Tensor):
        return torch.stack(items)
    return type(items[0])(*(torch.stack([getattr(i, f.name) for i in items]) for f in dataclasses.fields(items[0])))


class Prefetch:
    """Draws batches on a thread, so that the device never waits for the data.

    Batch n depends on (seed, n) alone: a resumed run sees what the uninterrupted one would have seen.
    """

    def __init__(self, make: Callable[[np.random.Generator], Batch], seed: int, first: int = 0, depth: int = 4):
        self.queue: Queue = Queue(depth)
        self.stopped = False

        def work() -> None:
            number = first
            while not self.stopped:
                try:
                    self.queue.put(make(np.random.default_rng([seed, number])))
                except Exception as error:
                    self.queue.put(error)
                    return
                number += 1

        threading.Thread(target=work, daemon=True).start()

    def next(self) -> Batch:
        batch = self.queue.get()
        if isinstance(batch, Exception):
            raise batch
        return batch

    def stop(self) -> None:
        self.stopped = True
        while not self.queue.empty():
            self.queue.get_nowait()
