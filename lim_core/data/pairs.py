# SPDX-License-Identifier: GPL-3.0-or-later
"""Pairs of point clouds of one moving asset, with the truth: what `Motion` learns from. No picture is drawn.

The points are those that a capture shows: pixels of small views that meet the surface, with a little noise. Both times are
sampled apart. Where each point of one time is at the other, and on the way, is known from the pack.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from torch import Tensor

from ..mesh import packs, rays
from ..mesh.packs import Pack
from ..networks.point_motion import Cloud
from ..shared import cameras
from ..shared.errors import LimError

VIEW_SIZE = 64  # pixels of the views whose pixels become points
LARGEST = 60_000  # faces; larger packs cost more time than they teach
STILL = 0.02  # model units: pairs that move less are mostly left out
STRETCHED = 8.0  # stored frames: the way between times farther apart is not learnt, only the place at the other
TRIES = 20


@dataclasses.dataclass
class Side:
    """One time of a pair: a cloud, and where its points are at the other time and on the way.

    Attributes:
        cloud: see `Cloud`; other: [B, M, 3] at the other time; way: [B, 2, M, 3] at the pair's two values of α.
    """

    cloud: Cloud
    other: Tensor
    way: Tensor


@dataclasses.dataclass
class Pair:
    """B pairs of times. α counts from the source (0) to the target (1).

    Attributes:
        alpha: [B, 2], ascending; path: [B], 1 where the way between is to be learnt.
    """

    source: Side
    target: Side
    alpha: Tensor
    path: Tensor


@dataclasses.dataclass(frozen=True)
class PairOptions:
    """How pairs are drawn. Gaps are in stored frames."""

    points: int = 1536
    """Points of each cloud."""
    controls: int = 384
    gap: tuple[float, float] = (0.5, 6.0)
    """Shortest and longest usual distance in time."""
    any_gap: float = 0.12
    """Share of pairs of any two frames of a clip."""
    any_pose: float = 0.12
    """Share of pairs of any two frames of any two clips; only their ends are learnt."""
    plain: float = 0.15
    """Share of pairs whose colours say nothing."""
    noise: float = 0.002
    """Spread of the points along the ray, model units."""


def load_all(folder: str | Path) -> list[Pack]:
    """The packs of a folder that are small enough to be drawn from, by name.

    Raises:
        LimError: `missing_file` where there are none.
    """
    every = [packs.load(path) for path in packs.list_packs(folder)]
    kept = [pack for pack in every if len(pack.faces) <= LARGEST]
    if not kept:
        raise LimError("missing_file", f"No pack in “{folder}” has at most {LARGEST} faces.", "Bake smaller assets.")
    return kept


def draw(all_packs: Sequence[Pack], batch: int, options: PairOptions, rng: np.random.Generator) -> Pair:
    """A random batch. What moves much is drawn more often, and assets with many clips only somewhat more often."""
    share = np.array([min(pack.clips, 12) ** 0.5 for pack in all_packs])
    share /= share.sum()
    rows: list[dict] = []
    while len(rows) < batch:
        row = _drawn(all_packs[rng.choice(len(all_packs), p=share)], options, rng)
        if row is not None:
            rows.append(row)
    return collate(rows)


def _drawn(pack: Pack, options: PairOptions, rng: np.random.Generator) -> dict | None:
    for _ in range(TRIES):
        clip = int(rng.integers(pack.clips))
        last = pack.frames(clip) - 1
        kind = rng.random()
        alpha = np.sort(rng.random(2))
        if kind < options.any_pose and pack.vertices:
            clips = [clip, int(rng.integers(pack.clips))]
            ends = [pack.positions(c, rng.uniform(0, max(pack.frames(c) - 1, 0))) for c in clips]
            positions = np.stack([ends[0], *(ends[0] + a * (ends[1] - ends[0]) for a in alpha), ends[1]])
            path = 0.0
        else:
            if last < 1:
                continue
            far = kind < options.any_pose + options.any_gap
            gap = min(rng.uniform(0.5, last) if far else rng.uniform(*options.gap), last)
            start = rng.uniform(0, last - gap)
            frames = [start + gap * a for a in (0.0, *alpha, 1.0)]
            positions = np.stack([pack.positions(clip, frame) for frame in frames])
            path = float(gap <= STRETCHED)
        positions = packs.transform(packs.unit_sphere(positions[[0, -1]], 0.03), positions)
        if np.abs(positions[-1] - positions[0]).mean() < STILL and rng.random() < 0.85:
            continue
        return _augmented(pack, positions, alpha, path, options, rng)
    return None


def _augmented(
    pack: Pack, positions: np.ndarray, alpha: np.ndarray, path: float, options: PairOptions, rng: np.random.Generator
) -> dict | None:
    """Turned, stretched, mirrored, recoloured, and sometimes backwards in time."""
    angle = rng.uniform(0, 2 * math.pi)
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    if rng.random() < 0.25:  # lying, upside down: nothing says that objects stand
        turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    if rng.random() < 0.5:
        turn = turn @ np.diag([-1.0, 1, 1])
    stretch = np.diag(np.exp(rng.uniform(-0.18, 0.18, 3)))
    positions = positions @ (turn @ stretch).T.astype(np.float32)
    positions = positions / np.float32(max(np.linalg.norm(positions[[0, -1]], axis=-1).max() / 0.97, 1e-6))
    positions *= np.float32(rng.uniform(0.75, 1.0))
    if rng.random() < 0.5:
        positions, alpha = positions[::-1], 1 - alpha[::-1]
    row = sample_pair(pack, positions, alpha, options, rng)
    if row is None:
        return None
    order, gain = rng.permutation(3), rng.uniform(0.6, 1.2, 3)
    plain = rng.random() < options.plain
    for side in ("source", "target"):
        colour = np.clip(row[side]["colour"][:, order] * gain, 0, 1)
        row[side]["colour"] = np.full_like(colour, 0.5) if plain else colour
    row["path"] = path
    return row


def sample_pair(
    pack: Pack, positions: np.ndarray, alpha: np.ndarray, options: PairOptions, rng: np.random.Generator
) -> dict | None:
    """One pair: `positions` [4, V, 3] at the source, at both α [2], and at the target. None where a view shows nothing."""
    row: dict = {"alpha": np.asarray(alpha, np.float32), "path": 1.0}
    for side, own, other in (("source", 0, 3), ("target", 3, 0)):
        seen = _seen(pack, positions[own], rng)
        if seen is None:
            return None
        face, u, v, normal, along = seen
        chosen = rng.choice(len(face), options.points, replace=len(face) < options.points)
        face, u, v = face[chosen], u[chosen, None], v[chosen, None]
        corners = pack.faces[face]
        first, second, third = (positions[:, corners[:, i]] for i in range(3))
        places = first + u * (second - first) + v * (third - first)
        noise = options.noise * rng.standard_normal((options.points, 1)) * along[chosen]
        normals = normal[chosen] + 0.1 * rng.standard_normal((options.points, 3))
        row[side] = {
            "place": places[own] + noise,
            "normal": normals / np.linalg.norm(normals, axis=1, keepdims=True),
            "colour": rays.albedo(pack, face, u[:, 0], v[:, 0]) / 255,
            "controls": rng.permutation(options.points)[: options.controls],
            "other": places[other],
            "way": places[1:3],
        }
    return row


def _seen(pack: Pack, positions: np.ndarray, rng: np.random.Generator) -> tuple | None:
    """Faces, barycentric u and v, normals towards the camera and directions of the pixels that meet the surface."""
    count = 4 if rng.random() < 0.5 else 8
    camera, lens = cameras.job_cameras(VIEW_SIZE, count)
    scene = EmbreeScene()
    positions = np.ascontiguousarray(positions, np.float32)
    TriangleMesh(scene, positions, pack.faces)
    eyes = rays.Eyes(camera, lens, VIEW_SIZE)
    pixels = np.arange(count * VIEW_SIZE**2)
    rows, hit = eyes.shoot(scene, pixels, rng.random(), rng.random())
    if len(rows) < 32:
        return None
    _, along = eyes.rays(pixels[rows], 0.5, 0.5)
    corners = positions[pack.faces[hit["primID"]]]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    normal *= -np.sign((normal * along).sum(1, keepdims=True))
    along = along / np.linalg.norm(along, axis=1, keepdims=True)
    return hit["primID"].astype(np.int64), hit["u"], hit["v"], normal, along


def collate(rows: Sequence[dict]) -> Pair:
    """Rows of `sample_pair` as one batch."""

    def stack(side: str, name: str, kind=np.float32) -> Tensor:
        return torch.from_numpy(np.stack([row[side][name] for row in rows]).astype(kind))

    sides = []
    for side in ("source", "target"):
        place, normal, colour = (stack(side, name) for name in ("place", "normal", "colour"))
        cloud = Cloud(place, normal, colour, stack(side, "controls", np.int64))
        sides.append(Side(cloud, stack(side, "other"), stack(side, "way")))
    alpha = torch.from_numpy(np.stack([row["alpha"] for row in rows]))
    return Pair(sides[0], sides[1], alpha, torch.tensor([row["path"] for row in rows], dtype=torch.float32))
