# SPDX-License-Identifier: GPL-3.0-or-later
"""From packs to what an evaluation shows the networks and compares them with."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..job.capture import Capture
from ..mesh import packs, rays
from ..mesh.packs import Pack
from ..networks.render import occupancy, render_image
from ..shared import cameras
from ..shared.errors import LimError

SIZE = 128  # pixels of the rig's pictures and of the held-out views
SAMPLES = 96  # per ray of a rendered view
OF_THE_DATA = ("bad_pack", "missing_file", "outside_cameras", "empty_surface")  # errors that cost one sample only


@dataclasses.dataclass
class Truth:
    """Held-out views of one time: images float [V, H, W, 3] on white, mask bool, depth_planar, canonical [V, H, W, 3]."""

    images: np.ndarray
    mask: np.ndarray
    depth_planar: np.ndarray
    canonical: np.ndarray


@dataclasses.dataclass(frozen=True)
class Span:
    """A piece of a clip: `start` and `length` in stored frames from the clip's start."""

    path: Path
    clip: int
    clip_name: str
    start: float
    length: float
    fps: float

    @property
    def asset(self) -> str:
        return self.path.stem

    @property
    def place(self) -> str:
        """CLIP@SECONDS"""
        return f"{self.clip_name}@{self.start / self.fps:.3f}"

    @property
    def name(self) -> str:
        """ASSET/CLIP@SECONDS, as `named_span` takes it."""
        return f"{self.asset}/{self.place}"

    def positions(self, pack: Pack, alphas: Sequence[float]) -> np.ndarray:
        """Vertices float32 [T, V, 3] in model space at parts of the span; they share one similarity."""
        return pack.model_positions(self.clip, [self.start + a * self.length for a in alphas])


# ---- which ----------------------------------------------------------------------------------------------------------
def evenly(items: list, limit: int | None) -> list:
    """`limit` of the items, spread evenly; all of them where there are no more."""
    if limit is None or len(items) <= limit:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).round().astype(int)]


@contextlib.contextmanager
def skipping(skipped: list[dict], asset: str):
    """A sample whose data is not sound is named and left out; every other error goes on."""
    try:
        yield
    except LimError as error:
        if error.code not in OF_THE_DATA:
            raise
        skipped.append({"asset": asset, "why": error.message})
        print(f"{asset}: skipped. {error.message}", flush=True)


def need_any(rows: list, skipped: list[dict], folder: str | Path) -> None:
    """Raises LimError `bad_pack` where nothing could be measured."""
    if not rows:
        why = skipped[0]["why"] if skipped else "No clip is long enough."
        raise LimError("bad_pack", f"Nothing in “{folder}” could be measured. {why}")


def spans(folder: str | Path, seconds: float, per_clip: int, skipped: list[dict]) -> list[Span]:
    """Spans of `seconds`, `per_clip` of them spread over every clip that is long enough; broken packs are skipped."""
    _need_length(seconds)
    found = []
    for path in packs.list_packs(folder):
        with skipping(skipped, path.stem):
            pack = packs.load(path)
            for clip in range(pack.clips):
                last, length = pack.frames(clip) - 1, seconds * pack.fps
                if last >= length - 1e-6:
                    starts = np.unique(np.linspace(0, max(last - length, 0), per_clip).round(3))
                    name = pack.clip_names[clip]
                    found += [Span(path, clip, name, float(start), length, pack.fps) for start in starts]
    return found


def named_span(folder: str | Path, name: str, seconds: float) -> Span:
    """The span ASSET/CLIP@SECONDS.

    Raises:
        LimError: `bad_request` where there is no such asset, clip or time.
    """
    _need_length(seconds)
    place, _, start = name.rpartition("@")
    asset, _, clip_name = place.partition("/")
    path = Path(folder) / f"{asset}.npz"
    if not path.is_file():
        raise LimError("bad_request", f"“{name}” names no pack in “{folder}”.", "Write it as ASSET/CLIP@SECONDS.")
    pack = packs.load(path)
    try:
        clip, start = pack.clip_names.index(clip_name), float(start) * pack.fps
    except ValueError:
        known = ", ".join(pack.clip_names)
        raise LimError("bad_request", f"“{name}” names no clip and second of {asset}.", f"Clips: {known}.") from None
    length = seconds * pack.fps
    if not 0 <= start <= pack.frames(clip) - 1 - length + 1e-2:
        end = max((pack.frames(clip) - 1 - length) / pack.fps, 0)
        raise LimError("bad_request", f"“{name}” leaves its clip: the last start is {end:.3f} s.")
    return Span(path, clip, clip_name, start, length, pack.fps)


def _need_length(seconds: float) -> None:
    if not seconds > 0:
        raise LimError("bad_request", f"A piece of a clip cannot be {seconds:g} seconds long.", "Give --gap above 0.")


def motion(positions: np.ndarray) -> float:
    """Mean way of the vertices [T, V, 3] from the first to the last time, relative to the diagonal of the first's box."""
    way = np.linalg.norm(positions[-1] - positions[0], axis=-1).mean()
    return float(way / max(np.linalg.norm(np.ptp(positions[0], axis=0)), 1e-9))


def liveliest(pack: Pack, frames: float = 1.0) -> tuple[int, float]:
    """(clip, frame) in the middle of the clip that moves most, of those with so many frames.

    Raises:
        LimError: `bad_pack` where no clip is long enough.
    """

    def moves(clip: int) -> float:
        steps = np.linspace(0, pack.frames(clip) - 1, 5)
        first = pack.positions(clip, 0)
        return max(float(np.abs(pack.positions(clip, s) - first).mean()) for s in steps)

    clips = [clip for clip in range(pack.clips) if pack.frames(clip) >= frames]
    if not clips:
        raise LimError("bad_pack", f"No clip of '{pack.name}' has {frames:g} frames.")
    clip = max(clips, key=moves)
    return clip, (pack.frames(clip) - 1) / 2


def liveliest_spans(folder: str | Path, seconds: float, skipped: list[dict]) -> list[Span]:
    """One span an asset: the middle of the clip that moves most; packs that are broken or too short are skipped."""
    _need_length(seconds)
    found = []
    for path in packs.list_packs(folder):
        with skipping(skipped, path.stem):
            pack = packs.load(path)
            length = seconds * pack.fps
            clip, middle = liveliest(pack, length + 1 - 1e-6)
            start = float(int(middle - length / 2))  # a stored frame: between those a pack moves in straight lines
            found.append(Span(path, clip, pack.clip_names[clip], start, length, pack.fps))
    return found


# ---- what is shown and what is true ---------------------------------------------------------------------------------
def capture(pack: Pack, positions: np.ndarray, needed: int) -> Capture:
    """What a job would have captured of vertices [T, V, 3] in model space, antialiased, with the rig alone.

    Args:
        needed: pixels that the networks see; the pictures have `SIZE`, or these if they are more.
    """
    size = max(SIZE, needed)
    camera, intrinsics = cameras.job_cameras(size, 4)
    seen = [rays.render(pack, p, camera, intrinsics, size, supersampling=2) for p in positions]
    return Capture(np.stack([s.rgba for s in seen]), np.stack([s.depth_planar for s in seen]), camera, intrinsics, 4)


def truth(
    pack: Pack, positions: np.ndarray, canonical: np.ndarray, size: int | None = None, views: int | None = None
) -> Truth:
    """Held-out views of vertices [V, 3], labelled with the canonical coordinates [V, 3]; `SIZE` pixels if nothing else is said."""
    size = size or SIZE
    camera, intrinsics = held_out(size, views)
    seen = rays.render(pack, positions, camera, intrinsics, size, supersampling=2, canonical=(canonical,))
    return Truth(rays.over(seen.rgba), seen.mask, seen.depth_planar, seen.canonical[0])


def held_out(size: int | None = None, views: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The cameras that no job and no network ever sees, or the first `views` of them."""
    size = size or SIZE
    angles = cameras.HELD_OUT[:views]
    return np.stack([cameras.look_at(*a) for a in angles]), np.stack([cameras.pinhole(size)] * len(angles))


def render(
    decoder, triplane: torch.Tensor, size: int | None = None, *, views: int | None = None, background: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Held-out views of a triplane [1, 3, C, R, R]: content [V, H, W, 3], depth_planar [V, H, W], mask [V, H, W]."""
    size = size or SIZE
    camera, intrinsics = (torch.from_numpy(x).to(triplane.device) for x in held_out(size, views))
    busy = occupancy(decoder, triplane)
    seen = [
        render_image(decoder, triplane, c, k, size, samples=SAMPLES, background=background, busy=busy)
        for c, k in zip(camera, intrinsics)
    ]
    content, depth, mask = (torch.stack(parts).cpu().numpy() for parts in zip(*seen))
    return content, depth, mask
