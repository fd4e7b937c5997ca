# SPDX-License-Identifier: GPL-3.0-or-later
"""From cached sequences to what a training step needs.

    cache ─ collect ─► Compact (bytes and half floats, host) ─ Feed ─► the same on the device ─ unpack ─► Batch (fp32)

The widening happens where the network runs, so that a third of the memory travels.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.cache import RIG_VIEWS, STEPS, Cache
from ..networks.images import Views
from ..shared.errors import LimError

NEAR = 0.04  # of a picture's width: how far from the object half of the target pixels may lie
REFRESH_SECONDS = 20.0  # how often a reader looks for new shards


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

    def part(self, start: int, end: int) -> Rays:
        return Rays(*(getattr(self, field.name)[:, start:end] for field in dataclasses.fields(self)))


@dataclasses.dataclass
class Batch:
    """Source, middle and target time of B scenes; for the reconstructors there is the middle alone.

    `views_*` hold RGB; `canonical_*` [B, V, H, W, 3] the canonical renders relative to the SOURCE time. alpha [B].
    `patch`: rays through a square of neighbouring pixels, row by row, for the perceptual loss.
    """

    views_source: Views | None
    views_middle: Views
    views_target: Views | None
    canonical_source: Tensor | None
    canonical_middle: Tensor
    alpha: Tensor
    rays: Rays
    patch: Rays | None = None

    def to(self, device) -> Batch:
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Batch(*(None if value is None else value.to(device) for value in values))


@dataclasses.dataclass
class Compact:
    """A batch as it lies in the cache. T times: the middle, and for interpolation the source and the target.

    rgba uint8 [B, T, V, H, W, 4]; position float16 [B, T, V, H, W, 3]; canonical float16 [B, 1 or 2, V, H, W, 3] (middle,
    source); cameras float32 of the rig [B, T, V, 4, 4], [B, T, V, 3, 3], and of all views of the middle [B, A, 4, 4],
    [B, A, 3, 3]; rays: pixels int32 [B, R] into [A, H, W], colours uint8 [B, R, 4], maps float16 [B, R, 6].
    """

    rgba: Tensor
    position: Tensor
    canonical: Tensor
    camera_to_world: Tensor
    intrinsics: Tensor
    alpha: Tensor
    all_cameras: Tensor
    all_intrinsics: Tensor
    ray_pixel: Tensor
    ray_rgba: Tensor
    ray_maps: Tensor
    patch_rays: int = 0

    def each(self, change) -> Compact:
        names = [field.name for field in dataclasses.fields(self) if field.name != "patch_rays"]
        return dataclasses.replace(self, **{name: change(getattr(self, name)) for name in names})

    def pin_memory(self) -> Compact:  # called by the loader's pinning thread
        return self.each(Tensor.pin_memory)

    def unpack(self) -> Batch:
        """The batch in fp32, on the same device."""
        views = views_of(self.rgba, self.position, self.camera_to_world, self.intrinsics)
        times = [
            Views(*(getattr(views, field.name)[:, i] for field in dataclasses.fields(Views)))
            for i in range(self.rgba.shape[1])
        ]
        canonical = self.canonical.float()
        rays = rays_of(
            self.ray_pixel, self.ray_rgba, self.ray_maps, self.all_cameras, self.all_intrinsics, self.rgba.shape[-2]
        )
        patch = rays.part(rays.alpha.shape[1] - self.patch_rays, rays.alpha.shape[1]) if self.patch_rays else None
        return Batch(
            views_source=times[1] if len(times) > 1 else None,
            views_middle=times[0],
            views_target=times[2] if len(times) > 1 else None,
            canonical_source=canonical[:, 1] if len(times) > 1 else None,
            canonical_middle=canonical[:, 0],
            alpha=self.alpha,
            rays=rays.part(0, rays.alpha.shape[1] - self.patch_rays),
            patch=patch,
        )


# ---- one sequence -------------------------------------------------------------------------------------------------


def views_of(rgba: Tensor, position: Tensor, camera_to_world: Tensor, intrinsics: Tensor) -> Views:
    """Pictures [..., V, H, W, 4] uint8 on white, with their positions; a pixel at the very origin counts as unknown."""
    colour = rgba.float() / 255
    alpha = colour[..., 3]
    content = colour[..., :3] * alpha[..., None] + 1 - alpha[..., None]
    position = position.float()
    return Views(content, alpha, position, (position.abs().sum(-1) > 0).float(), camera_to_world, intrinsics)


def rays_of(pixel: Tensor, rgba: Tensor, maps: Tensor, camera_to_world: Tensor, intrinsics: Tensor, size: int) -> Rays:
    """Rays [B, R] through the centres of pixels (indices into [A, size, size]) of A cameras [B, A, 4, 4]."""
    pixel = pixel.long()
    view, place = pixel // (size * size), pixel % (size * size)
    u, v = (place % size).float() + 0.5, (place // size).float() + 0.5
    matrices = camera_to_world[..., :3, :3] @ torch.linalg.inv_ex(intrinsics)[0]  # inv would wait for the GPU

    def of_view(values: Tensor) -> Tensor:
        index = view[(..., *[None] * (values.ndim - 2))].expand(*view.shape, *values.shape[2:])
        return values.gather(1, index)

    m = of_view(matrices)
    directions = m[..., 0] * u[..., None] + m[..., 1] * v[..., None] + m[..., 2]
    origins, forward = of_view(camera_to_world[..., :3, 3]), of_view(camera_to_world[..., :3, 2])
    colour, maps = rgba.float() / 255, maps.float()
    position = maps[..., :3]
    known = (position.abs().sum(-1) > 0).float()
    depth = ((position - origins) * forward).sum(-1) * known
    on_white = colour[..., :3] * colour[..., 3:] + 1 - colour[..., 3:]
    return Rays(on_white, colour[..., 3], depth, maps[..., 3:], origins, directions)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))  # a copy: the cache is memory-mapped and read-only


def rig_views(sequence: dict[str, np.ndarray], step: int) -> Views:
    """The rig's pictures [V, H, W, …] of one step, on white."""
    names = (("rgba", 4), ("maps", 3), ("camera_to_world", 4), ("intrinsics", 3))
    return views_of(*(_tensor(sequence[name][step, :RIG_VIEWS, ..., :last]) for name, last in names))


def canonical_views(sequence: dict[str, np.ndarray], step: int, reverse: bool) -> Tensor:
    """Canonical renders [V, H, W, 3] of the rig at `step`, relative to the first step (the last, when reversed)."""
    low = 6 if reverse else 3
    return _tensor(sequence["maps"][step, :RIG_VIEWS, ..., low : low + 3]).float()


def ray_pixels(alpha: np.ndarray, count: int, rng: np.random.Generator, patch: int = 0) -> np.ndarray:
    """Indices into [A, H, W] of `count` pixels: half on the object or near it, the rest anywhere; then a square of
    patch² neighbouring pixels around a pixel of the object."""
    views, height, width = alpha.shape
    foreground = np.flatnonzero(alpha)
    chosen = rng.integers(views * height * width, size=count)
    if len(foreground):
        # Both sides of the silhouette alike: pixels of the object alone would teach masks that are too wide.
        reach, half = round(width * NEAR), count // 2
        view, row, column = np.unravel_index(foreground[rng.integers(len(foreground), size=half)], alpha.shape)
        row, column = (
            (place + rng.integers(-reach, reach + 1, half)).clip(0, size - 1)
            for place, size in ((row, height), (column, width))
        )
        chosen[:half] = np.ravel_multi_index((view, row, column), alpha.shape)
    if patch:
        middle = foreground[rng.integers(len(foreground))] if len(foreground) else rng.integers(alpha.size)
        view, row, column = np.unravel_index(middle, alpha.shape)
        row, column = (int(np.clip(x - patch // 2, 0, height - patch)) for x in (row, column))
        corner = view * height * width + row * width + column
        chosen = np.concatenate([chosen, (corner + np.arange(patch)[:, None] * width + np.arange(patch)).ravel()])
    return chosen.astype(np.int32)


def _ray_arrays(sequence, step: int, reverse: bool, count: int, rng: np.random.Generator, patch: int):
    pixel = ray_pixels(np.array(sequence["rgba"][step, ..., 3]), count, rng, patch)
    size = sequence["rgba"].shape[-2]
    place = (pixel // (size * size), pixel // size % size, pixel % size)
    maps = sequence["maps"][step][place]
    low = 6 if reverse else 3
    return (
        sequence["camera_to_world"][step],
        sequence["intrinsics"][step],
        pixel,
        sequence["rgba"][step][place],
        np.concatenate([maps[:, :3], maps[:, low : low + 3]], -1),
    )


def sample_rays(
    sequence: dict[str, np.ndarray], step: int, reverse: bool, count: int, rng: np.random.Generator
) -> Rays:
    """`count` pixels of all views of a step [R, …]: half anywhere, half on the object or at its edge."""
    camera, intrinsics, pixel, rgba, maps = (
        _tensor(a)[None] for a in _ray_arrays(sequence, step, reverse, count, rng, 0)
    )
    rays = rays_of(pixel, rgba, maps, camera, intrinsics, sequence["rgba"].shape[-2])
    return Rays(*(getattr(rays, field.name)[0] for field in dataclasses.fields(Rays)))


# ---- a batch ------------------------------------------------------------------------------------------------------


def collect(
    cache: Cache, rngs: Sequence[np.random.Generator], rays: int, *, interpolation: bool, patch: int = 0
) -> Compact:
    """A random scene for each generator.

    With `interpolation`, source and target are 2 to 4 steps apart, in either direction of time, the middle strictly
    between; otherwise the middle is any step, its canonical coordinates relative to either end.

    Args:
        rays: target pixels per scene; `patch`² more as one square.
    """
    rows = []
    for rng in rngs:
        sequence = cache.sequence(int(rng.integers(len(cache.index))))
        reverse = bool(rng.integers(2))
        if interpolation:
            gap = int(rng.integers(2, STEPS))
            middle = int(rng.integers(1, gap))
            source, middle, target = (STEPS - 1, STEPS - 1 - middle, STEPS - 1 - gap) if reverse else (0, middle, gap)
            alpha, times = (middle - source) / (target - source), [middle, source, target]
        else:
            middle = int(rng.integers(STEPS))
            alpha, times = 0.0, [middle]
        low = 6 if reverse else 3
        maps = [sequence["maps"][time, :RIG_VIEWS] for time in times]
        rows.append((
            np.stack([sequence["rgba"][time, :RIG_VIEWS] for time in times]),
            np.stack([m[..., :3] for m in maps]),
            np.stack([m[..., low : low + 3] for m in maps[:2]]),
            np.stack([sequence["camera_to_world"][time, :RIG_VIEWS] for time in times]),
            np.stack([sequence["intrinsics"][time, :RIG_VIEWS] for time in times]),
            np.float32(alpha),
            *_ray_arrays(sequence, middle, reverse, rays, rng, patch),
        ))  # fmt: skip
    return Compact(*(torch.from_numpy(np.stack(column)) for column in zip(*rows)), patch_rays=patch * patch)


def draw(cache: Cache, batch: int, rays: int, rng: np.random.Generator, *, interpolation: bool) -> Batch:
    """A random batch of `batch` scenes, in memory."""
    return collect(cache, rng.spawn(batch), rays, interpolation=interpolation).unpack()


# ---- feeding a device ---------------------------------------------------------------------------------------------


def open_cache(folder: str) -> Cache:
    """Raises LimError where the folder holds something that is not a rendered sequence."""
    try:
        return Cache(folder)
    except (OSError, ValueError, EOFError) as error:
        raise LimError(
            "bad_pack",
            f"The cache {folder} is damaged: {error}.",
            "Delete the folder that is named, or the whole cache.",
        ) from None


def refresh(cache: Cache, left_out: Sequence[tuple[str, int]] = ()) -> None:
    """Pick up shards that were finished, let go of those that were replaced, and leave some sequences out."""
    for _ in range(3):
        for name in [name for name in cache.shards if not (cache.folder / name / "ready").exists()]:
            del cache.shards[name]
        try:
            cache.refresh()
            break
        except FileNotFoundError:  # a shard was replaced while it was opened
            continue
        except (OSError, ValueError, EOFError) as error:
            raise LimError("bad_pack", f"The cache {cache.folder} is damaged: {error}.", "Render it again.") from None
    kept = set(left_out)
    cache.index = [entry for entry in cache.index if entry not in kept]


@dataclasses.dataclass
class Draws(Dataset):
    """Batch number n. Its scene i depends on (seed, n, i) and the cache alone: a resumed run sees what an uninterrupted one
    would have seen, and P processes see the P parts of what one process would."""

    folder: str
    left_out: Sequence[tuple[str, int]]
    scenes: range
    rays: int
    seed: int
    interpolation: bool
    patch: int = 0

    def __post_init__(self):
        self.cache: Cache | None = None  # opened where it is read: in the loader's own processes
        self.refreshed = 0.0

    def __getitem__(self, number: int) -> Compact | Failure:
        try:
            if self.cache is None:
                self.cache = open_cache(self.folder)
            if time.monotonic() - self.refreshed > REFRESH_SECONDS:
                refresh(self.cache, self.left_out)
                self.refreshed = time.monotonic()
            rngs = [np.random.default_rng([self.seed, number, scene]) for scene in self.scenes]
            return collect(self.cache, rngs, self.rays, interpolation=self.interpolation, patch=self.patch)
        except LimError as error:  # crosses the process boundary as a value: it has more than one argument
            return Failure(error.code, error.message, error.hint)


@dataclasses.dataclass
class Failure:
    code: str
    message: str
    hint: str


def checked(item: Compact | Failure) -> Compact:
    """What the loader gave, or its error raised here."""
    if isinstance(item, Failure):
        raise LimError(item.code, item.message, item.hint)
    return item


class Feed:
    """Batches on the device, in order, each copied while the step before it runs.

    Attributes:
        waited: seconds in which the device had nothing to do because the next batch was not there.
    """

    def __init__(self, draws: Draws, device: torch.device, first: int = 0, workers: int = 0):
        cuda = device.type == "cuda"
        loader = DataLoader(
            draws, batch_size=None, sampler=_From(first), num_workers=workers, pin_memory=cuda,
            prefetch_factor=2 if workers else None,
        )  # fmt: skip
        self.loader = iter(loader)
        self.device = device
        self.stream = torch.cuda.Stream(device) if cuda else None
        self.ahead: Compact | None = None
        self.waited = 0.0

    def fetch(self) -> None:
        """Take the next batch from the loader and begin to copy it. Call it after a step was launched."""
        started = time.monotonic()
        compact = checked(next(self.loader))
        if self.stream is None:
            self.waited += time.monotonic() - started
            self.ahead = compact if self.device.type == "cpu" else compact.each(lambda x: x.to(self.device))
            return
        if torch.cuda.current_stream(self.device).query():  # all that was launched is done: the device did wait
            self.waited += time.monotonic() - started
        with torch.cuda.stream(self.stream):
            self.ahead = compact.each(lambda x: x.to(self.device, non_blocking=True))

    def next(self) -> Batch:
        if self.ahead is None:
            self.fetch()
        compact, self.ahead = self.ahead, None
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            compact.each(lambda x: x.record_stream(current) or x)
        return compact.unpack()

    def close(self) -> None:
        self.loader = None  # ends the loader's processes


@dataclasses.dataclass
class _From:
    first: int

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first)
