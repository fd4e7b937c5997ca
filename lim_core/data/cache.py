# SPDX-License-Identifier: GPL-3.0-or-later
"""Rendered sequences on disk, from which training draws its batches.

A *sequence* is `STEPS` frames of one clip at equal distances, seen by the rig and by random target cameras, with what is
needed for every network: colour, alpha, position and the canonical coordinates relative to the first and to the last step
(so that a sequence can be read in both directions). Sequences are written in shards, so that training can begin while the
cache fills and several processes can write side by side. The arrays are memory-mapped: the cache may exceed the memory.

Only pixels that show something are stored, with 18 bytes each, and pictures are put together again as they are read.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..mesh import rays
from ..shared.errors import LimError

STEPS = 5
RIG_VIEWS = 4
TARGET_VIEWS = 4

# One shard, N sequences of S steps and V views, P stored pixels in all:
#   bits uint8 [N, S, V·H·W / 8]      which pixels are stored, packed
#   start int64 [N·S + 1]             the rows of each step
#   rgba uint8 [P, 4]                 straight alpha
#   depth uint16 [P]                  0 nothing; else planar depth minus the camera's distance from the origin, -1 … 1
#   canonical uint16 [P, 6]           relative to the first and to the last step, -1 … 1 each
#   camera_to_world, intrinsics       float32 [N, S, V, …]
ARRAYS = ("bits", "start", "rgba", "depth", "canonical", "camera_to_world", "intrinsics")
DENSE_ARRAYS = ("rgba", "maps", "camera_to_world", "intrinsics")  # what a shard had before: whole pictures


# ---- one sequence ----------------------------------------------------------------------------------------------------


# ---- writing ---------------------------------------------------------------------------------------------------------


# ---- reading ---------------------------------------------------------------------------------------------------------
class Pictures:
    """One array [S, V, H, W, C] of a sequence, put together one step at a time as it is asked for.

    The first index must be a step; what follows is numpy's.
    """

    def __init__(self, shape: tuple[int, ...], dtype: type, make: Callable[[int], np.ndarray]):
        self.shape, self.dtype, self.ndim = shape, np.dtype(dtype), len(shape)
        self._make = make
        self._made: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index) -> np.ndarray:
        step, rest = (index[0], index[1:]) if isinstance(index, tuple) else (index, ())
        if not isinstance(step, (int, np.integer)):
            return np.asarray(self)[index]
        step = range(len(self))[step]
        if step not in self._made:
            self._made[step] = self._make(step)
        return self._made[step][rest]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.stack([self[step] for step in range(len(self))]).astype(dtype or self.dtype, copy=False)


class Cache:
    """Reads what is in a cache folder at the moment; `refresh` picks up shards that were finished since."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.shards: dict[str, dict[str, np.ndarray]] = {}
        self.refresh()

    def refresh(self) -> int:
        """How many sequences there are now.

        Raises:
            LimError: `bad_pack` naming a shard that is damaged.
        """
        for entry in sorted(os.listdir(self.folder)) if self.folder.is_dir() else []:
            if entry not in self.shards and not entry.startswith(".") and (self.folder / entry / "ready").exists():
                self.shards[entry] = _open_shard(self.folder / entry)
        self.index = [
            (name, i) for name in sorted(self.shards) for i in range(len(self.shards[name]["camera_to_world"]))
        ]
        return len(self.index)

    def sequence(self, i: int) -> dict[str, np.ndarray | Pictures]:
        """Sequence i (S steps, V views: the rig, then the targets): rgba uint8 [S, V, H, W, 4]; maps float16
        [S, V, H, W, 9]: position, canonical relative to the first, to the last step, 0 where a pixel's centre sees nothing;
        camera_to_world float32 [S, V, 4, 4]; intrinsics float32 [S, V, 3, 3]; and, but for shards of the older form, depth
        float32 [S, V, H, W], planar, beyond the origin's, 2 where a pixel's centre sees nothing."""
        name, row = self.index[i]
        shard = self.shards[name]
        if "maps" in shard:
            return {key: shard[key][row] for key in DENSE_ARRAYS}
        matrix, k = shard["camera_to_world"][row], shard["intrinsics"][row]
        steps, views = matrix.shape[:2]
        size = round(float(2 * k[0, 0, 0, 2]))  # the principal point is the middle

        @functools.cache
        def stored(step: int) -> tuple[np.ndarray, slice]:
            mask = np.unpackbits(shard["bits"][row, step], count=views * size * size).view(bool)
            return np.flatnonzero(mask), slice(*shard["start"][row * steps + step : row * steps + step + 2])

        def rgba(step: int) -> np.ndarray:
            pixels, rows = stored(step)
            image = np.zeros((views * size * size, 4), np.uint8)
            image[pixels] = shard["rgba"][rows]
            return image.reshape(views, size, size, 4)

        def maps(step: int) -> np.ndarray:
            pixels, rows = stored(step)
            depth, canonical = shard["depth"][rows], shard["canonical"][rows]
            if not depth.all():
                met = depth > 0
                pixels, depth, canonical = pixels[met], depth[met], canonical[met]
            origins, directions = rays.Eyes(matrix[step], k[step], size).rays(pixels, 0.5, 0.5)
            distance = np.linalg.norm(matrix[step, :, :3, 3], axis=1)[pixels // (size * size)]
            planar = distance + (depth - np.float32(32768)) * np.float32(1 / 32767)
            values = np.empty((len(pixels), 9), np.float16)
            values[:, :3] = origins + planar[:, None] * directions
            values[:, 3:] = (canonical - np.float32(32768)) * np.float32(1 / 32767)
            image = np.zeros((views * size * size, 9), np.float16)
            image[pixels] = values
            return image.reshape(views, size, size, 9)

        def depths(step: int) -> np.ndarray:
            pixels, rows = stored(step)
            depth = shard["depth"][rows]
            image = np.full(views * size * size, 2, np.float32)
            image[pixels] = np.where(depth > 0, (depth - np.float32(32768)) * np.float32(1 / 32767), 2)
            return image.reshape(views, size, size)

        shape = (steps, views, size, size)
        return {
            "rgba": Pictures((*shape, 4), np.uint8, rgba),
            "maps": Pictures((*shape, 9), np.float16, maps),
            "depth": Pictures(shape, np.float32, depths),
            "camera_to_world": matrix,
            "intrinsics": k,
        }


def _open_shard(folder: Path) -> dict[str, np.ndarray]:
    names = DENSE_ARRAYS if (folder / "maps.npy").exists() else ARRAYS
    try:
        # As plain arrays: memmap's own indexing costs as much as the reading.
        return {n: np.asarray(np.load(folder / f"{n}.npy", mmap_mode="r", allow_pickle=False)) for n in names}
    except FileNotFoundError:
        raise  # replaced while it was opened, says the reader that knows
    except (OSError, ValueError, EOFError) as error:
        raise LimError("bad_pack", f"The shard '{folder}' is damaged: {error}.", "Delete that folder.") from error


# ---- the command -----------------------------------------------------------------------------------------------------
