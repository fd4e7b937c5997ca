# SPDX-License-Identifier: GPL-3.0-or-later
"""Endless random objects that move, as packs in memory: LRM-Zero's idea (random primitives, height fields, cuts, random
textures) made dynamic, with correspondences known by construction.

An object is a tree of parts. Each part is a closed surface that bends, twists and swells on its own, turns about its
joint, and sits on a triangle of its parent, so that it follows whatever the parent does. Some limbs come in mirrored pairs,
some open on a hinge or spin like a wheel; the root may be a body around a skeleton.
Asset units, right-handed, +Z up; the object stands around the origin and is about 2 units large.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from ..mesh.packs import Pack
from .creatures import creature
from .motion import bounce, deform, follow_triangle, move_whole, random_axis, rotations, wave
from .patterns import ALL_KINDS, KINDS, pick_colour, random_palette, random_texture
from .shapes import Part, cut, lathe, random_part


@dataclasses.dataclass(frozen=True)
class Variety:
    """Shares of what is added to plain assemblies, 0 to 1."""

    creatures: float = 0.0
    """objects whose root is a body around a skeleton"""
    cuts: float = 0.0
    """parts that other parts have bitten into"""
    hinges: float = 0.0
    """limbs that are stiff and open on a hinge, or spin like a wheel"""
    textures: dict[str, float] = dataclasses.field(default_factory=lambda: dict(KINDS))
    """how often each kind of texture is taken"""


RICH = Variety(creatures=0.4, cuts=0.3, hinges=0.3, textures=ALL_KINDS)


def objects(seed: int = 0, variety: Variety = RICH, **options) -> Iterator[Pack]:
    """Packs without end; the same seed gives the same ones. Options are those of `make_object`."""
    index = 0
    while True:
        yield make_object((seed, index), variety=variety, **options)
        index += 1


PLAIN = Variety()


def make_object(
    seed, *, frames: int = 16, fps: float = 10.0, parts: tuple[int, int] = (1, 7), variety: Variety = PLAIN
) -> Pack:
    """One object with one clip named "move".

    Args:
        seed: anything that `numpy.random.default_rng` takes, such as (run, index); decides everything.
        frames: stored frames of the clip.
        fps: stored frames per second; motions have periods of 1.2 to 5 seconds.
        parts: fewest and most parts, mirrored twins not counted; a creature counts for all but three of them.
    """
    rng = np.random.default_rng(seed)
    times = np.arange(frames) / fps
    surfaces: list[tuple[np.ndarray, Part]] = []  # moving points [T, V, 3], and their surface
    count = int(rng.integers(parts[0], parts[1] + 1))
    if variety.creatures and rng.random() < variety.creatures:
        moving, root = creature(rng, times)
        surfaces.append((moving, root))
        _add_limbs(rng, surfaces, times, max(count - 4, 0), rng.uniform(0.1, 0.3), symmetric=False, variety=variety)
    else:
        _assemble(rng, surfaces, times, count, variety)
    return _painted(rng, surfaces, times, f"procedural {seed}", float(fps), variety)


def _random_part(rng: np.random.Generator, variety: Variety, stout: bool = False) -> Part:
    part = random_part(rng, stout)
    return cut(rng, part) if variety.cuts and rng.random() < variety.cuts else part


def _assemble(rng, surfaces: list, times: np.ndarray, count: int, variety: Variety) -> None:
    """A root and what sits on it."""
    root = _random_part(rng, variety, stout=True)
    symmetric = rng.random() < 0.5
    size = np.exp(rng.uniform(-0.35, 0.35, 3))
    if symmetric:
        points = root.points * size
        # The twins sit where the root is its own mirror image: keep it stiff.
        moving = np.repeat(points[None], len(times), 0)
    else:
        moving = deform(rng, root.points * size, times)
    surfaces.append((moving, root))
    _add_limbs(rng, surfaces, times, count - 1, 1.0, symmetric, variety)


def _add_limbs(rng, surfaces: list, times, count: int, scale: float, symmetric: bool, variety: Variety) -> None:
    """Parts that sit on the root (surface 0) or on each other; where it is symmetric, in pairs."""
    frames = len(times)
    for _ in range(count):
        parent = int(rng.integers(0, len(surfaces))) if rng.random() < 0.4 else 0
        joint = rng.choice(["hinge", "wheel"]) if variety.hinges and rng.random() < variety.hinges else "ball"
        part = _random_part(rng, variety) if joint != "wheel" else lathe(rng)
        length = scale * rng.uniform(0.3, 1.0)
        size = np.array([*(length * np.exp(rng.uniform(-1.0, 0.2, 2))), length])
        if joint == "wheel":
            size = length * np.array([1.0, 1.0, rng.uniform(0.15, 0.5)])
        local = (
            deform(rng, part.points * size, times)
            if joint == "ball"
            else np.repeat(part.points[None] * size, frames, 0)
        )
        local[..., 2] -= 0.08 * length  # a little inside its parent: no gap at the joint
        origin, frame = follow_triangle(rng, surfaces[parent][0], surfaces[parent][1].sturdy_faces())
        if joint == "wheel":
            swing = rotations(np.array([0.0, 0, 1]), rng.choice([-1, 1]) * rng.uniform(0.8, 4.0) * times)
        elif joint == "hinge":  # a lid, a door, a jaw: it opens to one side
            axis = rotations(np.array([0.0, 0, 1]), rng.uniform(0, 2 * math.pi, 1))[0, :, 0]
            swing = rotations(axis, np.abs(wave(rng, times, rng.uniform(0.4, 1.6))) + rng.uniform(-0.2, 0.4))
        else:
            swing = rotations(random_axis(rng), wave(rng, times, rng.uniform(0.2, 1.1)))
        swing = swing @ rotations(random_axis(rng), np.full(1, rng.normal(0, 0.4)))
        moving = local @ (frame @ swing).transpose(0, 2, 1) + origin[:, None]
        surfaces.append((moving, part))
        if symmetric and parent == 0:
            shift = int(rng.integers(0, frames)) if rng.random() < 0.5 else 0
            twin = local if shift == 0 else bounce(local, shift)
            turn = frame @ (swing if shift == 0 else bounce(swing, shift))
            twin = twin @ turn.transpose(0, 2, 1) + origin[:, None]
            flipped = dataclasses.replace(part, faces=part.faces[:, ::-1], uv=part.uv[:, ::-1])
            surfaces.append((twin * [-1, 1, 1], flipped))


def _painted(rng, surfaces: list, times: np.ndarray, name: str, fps: float, variety: Variety) -> Pack:
    """All surfaces as one pack, moving as a whole, in colours of one palette."""
    positions = np.concatenate([s[0] for s in surfaces], 1)
    positions = move_whole(rng, positions, times)
    starts = np.cumsum([0] + [s[0].shape[1] for s in surfaces])
    palette = random_palette(rng)
    textures, uvs, materials = [], [], []
    for _, part in surfaces:
        textures.append(random_texture(rng, palette, variety.textures))
        uvs.append(part.uv * rng.integers(1, 4, 2))
        materials.append(np.full(len(part.faces), len(textures) - 1))
        if rng.random() < 0.25:  # a part of it in one flat colour
            textures.append(pick_colour(rng, palette).reshape(1, 1, 3))
            low = part.uv[:, :, 1].mean(1) < rng.uniform(0.2, 0.6)
            materials[-1][low] = len(textures) - 1
        for paint in range(1, 0 if part.paint is None else int(part.paint.max()) + 1):
            textures.append(random_texture(rng, palette, variety.textures))
            materials[-1][part.paint == paint] = len(textures) - 1
    texels = [np.rint(t * 255).astype(np.uint8).reshape(-1, 3) for t in textures]
    faces = [part.faces + start for (_, part), start in zip(surfaces, starts, strict=False)]
    return Pack(
        name=name,
        faces=np.concatenate(faces).astype(np.int32),
        uv=np.concatenate(uvs).astype(np.float32),
        face_material=np.concatenate(materials).astype(np.uint8),
        texture_shape=np.array([t.shape[:2] for t in textures], np.int32),
        texture_start=np.cumsum([0] + [len(t) for t in texels[:-1]]).astype(np.int64),
        texels=np.concatenate(texels),
        clip_names=("move",),
        clip_start=np.array([0, len(times)], np.int32),
        fps=fps,
        stored_positions=positions.astype(np.float32),
    )
