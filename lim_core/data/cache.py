# SPDX-License-Identifier: GPL-3.0-or-later
"""Rendered sequences on disk, from which training draws its batches.

A *sequence* is `STEPS` frames of one clip at equal distances, seen by the rig and by random target cameras, with what is
needed for every network: colour, alpha, position and the canonical coordinates relative to the first and to the last step
(so that a sequence can be read in both directions). Sequences are written in shards, so that training can begin while the
cache fills and several processes can write side by side. The arrays are memory-mapped: the cache may exceed the memory.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .. import cameras
from ..errors import LimError
from . import packs, rays
from .packs import Pack

STEPS = 5
RIG_VIEWS = 4
TARGET_VIEWS = 4
SHARD = 32  # sequences in a shard


def moving_window(pack: Pack, rng: np.random.Generator, tries: int = 3) -> tuple[int, np.ndarray]:
    """A clip and `STEPS` stored-frame times in it, 0.3 to 1.2 s long; of a few candidates the one that moves most."""
    best, best_motion = None, -1.0
    for _ in range(tries):
        clip = int(rng.integers(pack.clips))
        last = pack.frames(clip) - 1
        length = min(last, rng.uniform(0.3, 1.2) * pack.fps)
        start = rng.uniform(0, max(last - length, 0))
        frames = start + length * np.arange(STEPS) / (STEPS - 1)
        first, end = pack.positions(clip, frames[0]), pack.positions(clip, frames[-1])
        middle = pack.positions(clip, frames[STEPS // 2])
        extent = np.linalg.norm(np.ptp(first, 0)) + 1e-9
        motion = max(np.abs(end - first).mean(), np.abs(middle - first).mean()) / extent
        if motion > best_motion:
            best, best_motion = (clip, frames), motion
    return best


def augment(positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random yaw, mirror and non-uniform scale of [T, V, 3], then the job's normalisation with a little room."""
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    scale = np.diag(rng.uniform(0.85, 1.18, 3) * np.array([rng.choice([-1, 1]), 1, 1]))
    moved = positions @ (turn @ scale).T.astype(np.float32)
    return packs.transform(packs.unit_sphere(moved, margin=rng.uniform(0.02, 0.12)), moved)


def recolour(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One random change of all colours of a sequence, uint8 in and out: channel order, contrast, brightness, gain."""
    colour = rgb.astype(np.float32) / 255
    if rng.random() < 0.6:
        colour = colour[..., rng.permutation(3)]
    if rng.random() < 0.5:
        colour = colour ** rng.uniform(0.6, 1.6)
        colour = colour * rng.uniform(0.7, 1.1, 3).astype(np.float32) + rng.uniform(-0.05, 0.1)
    if rng.random() < 0.1:
        colour = 1 - colour
    return (colour.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def target_cameras(count: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random views: any azimuth, elevation −40° to 70°, a third of them with a longer lens."""
    matrices, intrinsics = [], []
    for _ in range(count):
        matrices.append(cameras.look_at(rng.uniform(0, 360), rng.uniform(-40, 70)))
        zoom = rng.uniform(1.0, 1.5) if rng.random() < 0.33 else 1.0
        intrinsics.append(cameras.pinhole(size, 2 * np.arctan(np.tan(cameras.FIELD_OF_VIEW / 2) / zoom)))
    return np.stack(matrices), np.stack(intrinsics)


def render_sequence(pack: Pack, size: int, rng: np.random.Generator, *, augmented: bool = True, supersample: int = 2):
    """One sequence as a dict of arrays (S steps, V views: the rig, then the targets).

    rgba uint8 [S, V, H, W, 4]; maps float16 [S, V, H, W, 9]: position, canonical relative to the first, to the last step;
    camera_to_world float32 [S, V, 4, 4]; intrinsics float32 [S, V, 3, 3].
    """
    clip, frames = moving_window(pack, rng)
    if augmented:
        positions = augment(np.stack([pack.positions(clip, f) for f in frames]), rng)
    else:
        positions = pack.model_positions(clip, frames)
    rig, rig_intrinsics = cameras.job_cameras(size, RIG_VIEWS)
    rgba, maps, matrices, intrinsics = [], [], [], []
    for step in range(STEPS):
        extra, extra_intrinsics = target_cameras(TARGET_VIEWS, size, rng)
        matrix, k = np.concatenate([rig, extra]), np.concatenate([rig_intrinsics, extra_intrinsics])
        image = rays.render(
            pack, positions[step], matrix, k, size, supersampling=supersample,
            canonical=(positions[step], positions[0], positions[-1]),
        )  # fmt: skip
        rgba.append(image.rgba)
        maps.append(np.concatenate(image.canonical, -1).astype(np.float16))
        matrices.append(matrix)
        intrinsics.append(k)
    rgba = np.stack(rgba)
    if augmented and rng.random() < 0.7:
        rgba[..., :3] = recolour(rgba[..., :3], rng)
    return {
        "rgba": rgba,
        "maps": np.stack(maps),
        "camera_to_world": np.stack(matrices),
        "intrinsics": np.stack(intrinsics),
    }


def fill(
    paths: Sequence[Path], folder: str | Path, *, size: int, sequences: int, seed: int, augmented: bool = True,
    procedural: float = 0.0, deadline: float = float("inf"), supersample: int = 2,
) -> int:  # fmt: skip
    """Write shards until there are `sequences` of this seed in `folder` or the time is over; returns how many there are.

    Args:
        procedural: share of the sequences whose object is generated instead of taken from a pack.
        deadline: `time.monotonic()` value at which to stop.
    Raises:
        LimError: `bad_pack` when no pack at all can be read.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    loaded = [packs.load(path) for path in paths]
    loaded = [pack for pack in loaded if pack.clips]
    if not loaded and procedural <= 0:
        raise LimError("bad_pack", "There is no pack to render from.")
    done = 0
    for shard in range((sequences + SHARD - 1) // SHARD):
        target = folder / f"{seed:04d}_{shard:04d}"
        if not (target / "ready").exists():
            rng = np.random.default_rng([seed, shard])
            rows = []
            while len(rows) < SHARD:
                if time.monotonic() > deadline:
                    return done
                if rng.random() < procedural:
                    from . import procedural as generator

                    pack = generator.make_object(int(rng.integers(1 << 31)))
                else:
                    pack = loaded[int(rng.integers(len(loaded)))]
                rows.append(render_sequence(pack, size, rng, augmented=augmented, supersample=supersample))
            target.mkdir(exist_ok=True)
            for key in rows[0]:
                np.save(target / f"{key}.npy", np.stack([row[key] for row in rows]))
            (target / "ready").write_text(json.dumps({"size": size, "seed": seed}))
        done += SHARD
    return done


class Cache:
    """Reads what is in a cache folder at the moment; `refresh` picks up shards that were finished since."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.shards: dict[str, dict[str, np.ndarray]] = {}
        self.refresh()

    def refresh(self) -> int:
        for entry in sorted(os.listdir(self.folder)) if self.folder.is_dir() else []:
            if entry not in self.shards and (self.folder / entry / "ready").exists():
                self.shards[entry] = {
                    key: np.load(self.folder / entry / f"{key}.npy", mmap_mode="r", allow_pickle=False)
                    for key in ("rgba", "maps", "camera_to_world", "intrinsics")
                }
        self.index = [(name, i) for name in sorted(self.shards) for i in range(len(self.shards[name]["rgba"]))]
        return len(self.index)

    def sequence(self, i: int) -> dict[str, np.ndarray]:
        name, row = self.index[i]
        return {key: array[row] for key, array in self.shards[name].items()}


def main(argv: list[str] | None = None) -> int:
    """`python -m lim_core cache PACKS_DIR CACHE_DIR`: render sequences for training."""
    p = argparse.ArgumentParser(prog="lim_core cache", description=main.__doc__)
    p.add_argument("packs")
    p.add_argument("cache")
    p.add_argument("--size", type=int, default=64, help="pixels along each side of a view")
    p.add_argument("--sequences", type=int, default=1024, help="how many this process renders")
    p.add_argument("--seed", type=int, default=0, help="give every process its own: their shards do not collide")
    p.add_argument("--supersampling", type=int, default=2)
    p.add_argument("--procedural", type=float, default=0.0, help="share of generated objects")
    p.add_argument("--minutes", type=float, default=float("inf"))
    args = p.parse_args(argv)
    started = time.monotonic()
    done = fill(
        packs.list_packs(args.packs), args.cache, size=args.size, sequences=args.sequences, seed=args.seed,
        procedural=args.procedural, supersample=args.supersampling, deadline=started + 60 * args.minutes,
    )  # fmt: skip
    seconds = time.monotonic() - started
    print(f"{done} sequences of {STEPS} frames × {RIG_VIEWS + TARGET_VIEWS} views in {seconds:.0f} s")
    return 0
