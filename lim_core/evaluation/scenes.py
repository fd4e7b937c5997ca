# SPDX-License-Identifier: GPL-3.0-or-later
"""From packs to what an evaluation shows the networks and compares them with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from .. import cameras
from ..capture import Capture
from ..data import packs, rays
from ..data.packs import Pack
from ..render import render_image

SIZE = 128  # pixels of the rig's pictures and of the held-out views


@dataclasses.dataclass
class Truth:
    """Held-out views of one time: images float [V, H, W, 3] on white, mask bool, depth_planar, canonical [V, H, W, 3]."""

    images: np.ndarray
    mask: np.ndarray
    depth_planar: np.ndarray
    canonical: np.ndarray


def capture(pack: Pack, positions: np.ndarray, size: int = SIZE) -> Capture:
    """What a job would have captured of vertices [T, V, 3] in model space, antialiased, with the rig alone."""
    camera, intrinsics = cameras.job_cameras(size, 4)
    seen = [rays.render(pack, p, camera, intrinsics, size, supersampling=2) for p in positions]
    return Capture(np.stack([s.rgba for s in seen]), np.stack([s.depth_planar for s in seen]), camera, intrinsics, 4)


def truth(pack: Pack, positions: np.ndarray, canonical: np.ndarray, size: int = SIZE) -> Truth:
    """Held-out views of vertices [V, 3], labelled with the canonical coordinates [V, 3]."""
    camera, intrinsics = held_out(size)
    seen = rays.render(pack, positions, camera, intrinsics, size, supersampling=2, canonical=(canonical,))
    return Truth(rays.over(seen.rgba), seen.mask, seen.depth_planar, seen.canonical[0])


def held_out(size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """The cameras that no job and no network ever sees."""
    return np.stack([cameras.look_at(*a) for a in cameras.HELD_OUT]), np.stack(
        [cameras.pinhole(size)] * len(cameras.HELD_OUT)
    )


def render(decoder, triplane: torch.Tensor, size: int = SIZE, *, background: float = 1.0):
    """Held-out views of a triplane [1, 3, C, R, R]: content [V, H, W, 3], depth_planar [V, H, W], mask [V, H, W]."""
    camera, intrinsics = held_out(size)
    device = triplane.device
    views = [
        render_image(decoder, triplane, torch.from_numpy(c).to(device), torch.from_numpy(k).to(device), size, samples=96,
                     background=background)
        for c, k in zip(camera, intrinsics)
    ]  # fmt: skip
    return tuple(torch.stack(parts).cpu().numpy() for parts in zip(*views))


def triplets(folder: str | Path, gap: float, per_clip: int) -> Iterator[tuple[Pack, int, np.ndarray, float]]:
    """(pack, clip, frames [3], motion): uniform triplets whose ends are `gap` seconds apart, spread over every clip.

    `motion` is the mean distance that the vertices go from the first to the last, relative to the box's diagonal.
    """
    for path in packs.list_packs(folder):
        pack = packs.load(path)
        for clip in range(pack.clips):
            last, length = pack.frames(clip) - 1, gap * pack.fps
            if last < length:
                continue
            starts = np.unique(np.linspace(0, last - length, per_clip).round(3))
            for start in starts:
                frames = start + length * np.array([0, 0.5, 1.0])
                first, end = pack.positions(clip, frames[0]), pack.positions(clip, frames[2])
                motion = np.linalg.norm(end - first, axis=1).mean() / np.linalg.norm(np.ptp(first, axis=0))
                yield pack, clip, frames, float(motion)


def liveliest(pack: Pack) -> tuple[int, float]:
    """(clip, frame) in the middle of the clip that moves most."""

    def motion(clip: int) -> float:
        steps: Sequence[float] = np.linspace(0, pack.frames(clip) - 1, 5)
        first = pack.positions(clip, 0)
        return max(float(np.abs(pack.positions(clip, s) - first).mean()) for s in steps)

    clip = max(range(pack.clips), key=motion)
    return clip, (pack.frames(clip) - 1) / 2
