# SPDX-License-Identifier: GPL-3.0-or-later
"""A picture of what a cache holds: a sequence a row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ..mesh import rays
from .cache import RIG_VIEWS, STEPS, Cache


def write(cache: Cache, path: Path, rows: int = 8) -> None:
    """The first view of the rig at every step, two target views, position and canonical coordinates of the last step (as
    colours), for `rows` sequences spread over the cache."""
    lines = []
    for i in np.linspace(0, len(cache.index) - 1, min(rows, len(cache.index))).astype(int):
        sequence = cache.sequence(int(i))
        pictures = [rays.over(sequence["rgba"][step, 0]) for step in range(STEPS)]
        pictures += [rays.over(sequence["rgba"][STEPS - 1, RIG_VIEWS + view]) for view in range(2)]
        maps = sequence["maps"][STEPS - 1, 0].astype(np.float32)
        for values in (maps[..., :3], maps[..., 3:6]):
            pictures.append(np.where((maps[..., :3] != 0).any(-1, keepdims=True), values / 2 + 0.5, 1))
        lines.append(np.concatenate(pictures, 1))
    sheet = np.rint(np.concatenate(lines) * 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path)
