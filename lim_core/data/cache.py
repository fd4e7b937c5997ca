# SPDX-License-Identifier: GPL-3.0-or-later
"""Rendered sequences on disk, from which training draws its batches.

A *sequence* is `STEPS` frames of one clip at equal distances, seen by the rig and by random target cameras, with what is
needed for every network: colour, alpha, position and the canonical coordinates relative to the first and to the last step
(so that a sequence can be read in both directions). Sequences are written in shards, so that training can begin while the
cache fills and several processes can write side by side. The arrays are memory-mapped: the cache may exceed the memory.

Only pixels that show something are stored, with 18 bytes each, and pictures are put together again as they are read.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .. import protocol
from ..errors import LimError, from_os_error
from . import augment, packs, rays
from .augment import Augmentation
from .packs import Pack

STEPS = 5
RIG_VIEWS = 4
TARGET_VIEWS = 4
SHARD = 32  # sequences in a shard
SEEN = 12  # pixels that all the pictures of a step must show together; fewer teach nothing
TRIES = 200  # sequences in a row that may fail before the packs are to blame

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


# ---- writing ---------------------------------------------------------------------------------------------------------
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
            rows, failed = [], 0
            while len(rows) < SHARD:
                if time.monotonic() > deadline:
                    return done
                if not loaded or rng.random() < procedural:
                    from . import procedural as generator

                    pack = generator.make_object(int(rng.integers(1 << 31)), variety=generator.RICH)
                else:
                    pack = loaded[int(rng.integers(len(loaded)))]
                try:
                    options = {"augmentation": augmentation, "donors": loaded, "supersample": supersample}
                    rows.append(render_sequence(pack, size, rng, **options))
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
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        (temporary / "ready").write_text(json.dumps({**about, "sequences": len(rows)}))
        shutil.rmtree(target, ignore_errors=True)  # what a crash left there
        temporary.rename(target)
    except OSError as error:
        error.filename = error.filename or str(target)
        raise from_os_error(error, "writing the cache") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
def main(argv: list[str] | None = None) -> int:
    """`python -m lim_core cache PACKS_DIR CACHE_DIR`: render sequences for training."""
    p = argparse.ArgumentParser(prog="lim_core cache", description=main.__doc__)
    p.add_argument("packs", help="folder of packs; “-” for generated objects alone")
    p.add_argument("cache", nargs="?", help="folder for the sequences; not for --benchmark")
    p.add_argument("--size", type=int, default=64, help="pixels along each side of a view")
    p.add_argument("--sequences", type=int, default=1024, help="how many each process renders")
    p.add_argument(
        "--seed", type=int, default=0, help="of the first process; each has its own, their shards do not collide"
    )
    p.add_argument("--processes", type=int, default=1, help="processes that render side by side")
    p.add_argument("--supersampling", type=int, default=2, help="s × s rays per pixel for colour and alpha")
    p.add_argument("--procedural", type=float, default=0.0, help="share of generated objects")
    p.add_argument("--plain", action="store_true", help="no augmentation but yaw and framing")
    p.add_argument("--minutes", type=float, default=float("inf"))
    p.add_argument("--sheet", metavar="FILE.png", help="a picture of some sequences, after rendering")
    p.add_argument("--benchmark", action="store_true", help="only measure views per second, at several sizes")
    args = p.parse_args(argv)
    if args.benchmark:
        from . import throughput

        return throughput.main(args.packs, args.processes)
    if not args.cache:
        p.error("the following arguments are required: cache")
    if args.size < 8 or args.size % 2 or args.supersampling < 1 or args.processes < 1:
        p.error("--size must be even and at least 8, --supersampling and --processes at least 1")
    started = time.monotonic()
    if args.processes > 1:
        code = _spread(sys.argv[2:] if argv is None else argv, args)
    else:
        code = protocol.EXIT_RESULT
        done = fill(
            [] if args.packs == "-" else packs.list_packs(args.packs), args.cache, size=args.size,
            sequences=args.sequences, seed=args.seed, augmentation=augment.NONE if args.plain else None,
            procedural=1.0 if args.packs == "-" else args.procedural, supersample=args.supersampling,
            deadline=started + 60 * args.minutes,
        )  # fmt: skip
        seconds = time.monotonic() - started
        print(f"{done} sequences of {STEPS} frames × {RIG_VIEWS + TARGET_VIEWS} views in {seconds:.0f} s")
    if args.sheet and code == protocol.EXIT_RESULT:
        from . import sheet

        sheet.write(Cache(args.cache), Path(args.sheet))
    return code


def _spread(argv: list[str], args: argparse.Namespace) -> int:
    """The same command once per process, each with a seed of its own; the worst exit code."""
    command = [sys.executable, "-m", "lim_core", "cache", *argv, "--processes", "1", "--sheet", ""]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    children = [
        subprocess.Popen([*command, "--seed", str(args.seed + i)], env=environment) for i in range(args.processes)
    ]
    try:
        return max(child.wait() for child in children)
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
