# SPDX-License-Identifier: GPL-3.0-or-later
"""Sequences rendered from packs, and written in shards."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..mesh import packs, rays
from ..mesh.packs import Pack
from ..shared import files
from ..shared.errors import LimError, from_os_error
from . import augment
from .augment import Augmentation
from .cache import ARRAYS, RIG_VIEWS, STEPS, TARGET_VIEWS

SHARD = 32  # sequences in a shard


SEEN = 12  # pixels that all the pictures of a step must show together; fewer teach nothing


TRIES = 200  # sequences in a row that may fail before the packs are to blame


def moving_window(pack: Pack, rng: np.random.Generator, tries: int = 3) -> tuple[int, np.ndarray]:
    """A clip and `STEPS` stored-frame times in it, 0.3 to 1.2 s long; of a few candidates the one that moves most."""
    best: tuple[int, np.ndarray] | None = None
    best_motion = -1.0
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
    assert best is not None  # of one try or more
    return best


def render_sequence(
    pack: Pack, size: int, rng: np.random.Generator, *, augmentation: Augmentation | None = None,
    donors: Sequence[Pack] = (), supersample: int = 2,
) -> dict[str, np.ndarray]:  # fmt: skip
    """One sequence in the form in which it is stored (see ARRAYS, without N; `start` has S + 1 entries).

    Args:
        augmentation: None for the defaults; `augment.NONE` changes nothing but yaw and framing.
        donors: packs whose textures this one may be given.
    Raises:
        LimError: `bad_pack` naming a pack that shows nothing at some step, or that cannot be drawn.
    """
    augmentation = augmentation or Augmentation()
    clip, frames = moving_window(pack, rng)
    positions = np.stack([pack.positions(clip, f) for f in frames])
    if rng.random() < augmentation.mixed_poses:
        mixed = augment.mix_poses(pack, frames, clip, positions, rng)
        positions = positions if mixed is None else mixed
    if rng.random() < augmentation.textures:
        pack = augment.swap_textures(pack, donors, rng)
    positions = augment.vary_shape(positions, augmentation, rng)
    rig, rig_intrinsics = augment.rig_cameras(RIG_VIEWS, size, positions, augmentation, rng)
    rows: dict[str, list] = {name: [] for name in ARRAYS}
    rows["start"].append(0)
    for step in range(STEPS):
        extra, extra_intrinsics = augment.target_cameras(TARGET_VIEWS, size, rng)
        matrix, k = np.concatenate([rig, extra]), np.concatenate([rig_intrinsics, extra_intrinsics])
        seen = rays.sample(
            pack, positions[step], matrix, k, size, supersampling=supersample, canonical=(positions[0], positions[-1])
        )
        if len(seen.pixels) < SEEN:
            name = pack.clip_names[clip]
            raise LimError("bad_pack", f"'{pack.name}' shows nothing at frame {frames[step]:.1f} of its clip '{name}'.")
        mask = np.zeros(len(matrix) * size * size, bool)
        mask[seen.pixels] = True
        distance = np.linalg.norm(matrix[:, :3, 3], axis=1)[seen.pixels // (size * size)]
        depth = np.where(seen.depth_planar > 0, np.rint((seen.depth_planar - distance) * 32767) + 32768, 0)
        rows["bits"].append(np.packbits(mask))
        rows["start"].append(rows["start"][-1] + len(seen.pixels))
        rows["rgba"].append(seen.rgba)
        rows["depth"].append(depth.astype(np.uint16))
        canonical = seen.canonical.reshape(-1, 6) * 32767
        rows["canonical"].append((np.rint(canonical) + 32768).astype(np.uint16))
        rows["camera_to_world"].append(matrix)
        rows["intrinsics"].append(k)
    flat = ("rgba", "depth", "canonical")
    sequence = {name: (np.concatenate if name in flat else np.stack)(rows[name]) for name in ARRAYS}
    if rng.random() < augmentation.colours:
        sequence["rgba"][:, :3] = augment.recolour(sequence["rgba"][:, :3], rng)
    return sequence


def read_packs(paths: Sequence[Path], say: Callable[[str], None]) -> list[Pack]:
    """The packs that can be read; `say` is told about each other one.

    Raises:
        LimError: `bad_pack` where there were paths and none could be read.
    """
    found = []
    for path in paths:
        try:
            found.append(_load(path, path.stat().st_mtime_ns if path.exists() else 0))
        except LimError as error:
            say(f"Left out: {error}")
    if paths and not found:
        raise LimError("bad_pack", f"None of the {len(paths)} packs can be read.", "Bake them again.")
    return found


@functools.lru_cache(8192)
def _load(path: Path, changed: int) -> Pack:
    """A pack, read once: a process that fills caches in small portions would spend a quarter of its time on that."""
    return packs.load(path)


def fill(
    paths: Sequence[Path], folder: str | Path, *, size: int, sequences: int, seed: int,
    augmentation: Augmentation | None = None, procedural: float = 0.0, deadline: float = float("inf"),
    supersample: int = 2, say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> int:  # fmt: skip
    """Write shards until there are `sequences` of this seed in `folder` or the time is over; returns how many there are.

    Args:
        procedural: share of the sequences whose object is generated instead of taken from a pack.
        deadline: `time.monotonic()` value at which to stop.
        say: called with a line about each pack that is left out.
    Raises:
        LimError: `bad_pack` when there is nothing to render, `bad_request` where the folder holds pictures of another size,
            `disk_full` or `read_only` naming the folder; shards that were finished stay, a part of one does not.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, "making the cache") from error
    for ready in folder.glob("[!.]*/ready"):
        try:
            other = json.loads(ready.read_text()).get("size", size)
        except (OSError, ValueError):  # another process has just replaced it
            continue
        if other != size:
            message = f"The cache '{folder}' holds pictures of {other} pixels, {size} were asked for."
            raise LimError("bad_request", message, "Give another folder, or delete this one.")
        break
    loaded = read_packs(paths, say)
    if not loaded and procedural <= 0:
        raise LimError("bad_pack", "There is no pack to render from.", "Make some with: python -m lim_core bake")
    done, complained = 0, set()
    for shard in range((sequences + SHARD - 1) // SHARD):
        target = folder / f"{seed:04d}_{shard:04d}"
        if not (target / "ready").exists():
            rng = np.random.default_rng([seed, shard])
            rows: list[dict[str, np.ndarray]] = []
            failed = 0
            while len(rows) < SHARD:
                if time.monotonic() > deadline:
                    return done
                if not loaded or rng.random() < procedural:
                    from . import procedural as generator

                    pack = generator.make_object(int(rng.integers(1 << 31)), variety=generator.RICH)
                else:
                    pack = loaded[int(rng.integers(len(loaded)))]
                try:
                    rows.append(
                        render_sequence(
                            pack, size, rng, augmentation=augmentation, donors=loaded, supersample=supersample
                        )
                    )
                    failed = 0
                except LimError as error:
                    if error.code != "bad_pack":
                        raise
                    failed += 1
                    if pack.name not in complained:
                        complained.add(pack.name)
                        say(f"A sequence is left out: {error}")
                    if failed >= TRIES:
                        raise
            write_shard(target, rows, {"size": size, "seed": seed})
        done += SHARD
    return done


def write_shard(target: Path, rows: Sequence[dict[str, np.ndarray]], about: dict) -> None:
    """Write sequences as one shard, whole or not at all. Raises LimError disk_full or read_only."""
    starts = [0]
    for row in rows:
        starts += list(starts[-1] + row["start"][1:])
    arrays = {"start": np.array(starts, np.int64)}
    for name in ("rgba", "depth", "canonical"):
        arrays[name] = np.concatenate([row[name] for row in rows])
    for name in ("bits", "camera_to_world", "intrinsics"):
        arrays[name] = np.stack([row[name] for row in rows])
    files.clear_leftovers(target.parent)
    try:
        with files.writing_folder(target) as folder:
            for name, array in arrays.items():
                np.save(folder / f"{name}.npy", array)
            (folder / "ready").write_text(json.dumps({**about, "sequences": len(rows)}))
    except OSError as error:
        error.filename = error.filename or str(target)
        raise from_os_error(error, "writing the cache") from error
