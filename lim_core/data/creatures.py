# SPDX-License-Identifier: GPL-3.0-or-later
"""Random bodies around a skeleton: one closed surface that bends at its joints, as characters and animals do.

A skeleton is a spine with a head, one to three pairs of limbs and perhaps a tail. The surface is where the blended distance
to its bones (round cones) is zero, meshed by marching cubes; each vertex follows the bones near it (linear blend skinning).
Asset units, right-handed, +Z up; the body stands on the origin and is about one unit large.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from skimage.measure import marching_cubes

from .motion import bounce, rotations, wave
from .shapes import Part

CELLS = 40  # along the longest side; a limb is 3 to 6 of them thick
BODY, LIMB, HEAD = range(3)  # paint


@dataclasses.dataclass(frozen=True)
class Bone:
    parent: int
    """-1 is none; parents come before their children"""
    head: np.ndarray
    """float64 [3], the joint"""
    tail: np.ndarray
    """float64 [3]"""
    radii: tuple[float, float]
    """at head and tail"""
    paint: int
    sway: float
    """radians, about"""
    twin: int = -1
    """the bone on the other side, if this is its mirror image in x"""


def creature(rng: np.random.Generator, times: np.ndarray) -> tuple[np.ndarray, Part]:
    """Vertices float64 [T, V, 3] at all times, and the surface (its points are those at rest)."""
    bones = random_skeleton(rng)
    part, distances = surface(bones, rng.uniform(0.015, 0.05))
    near = np.exp(-(distances - distances.min(1, keepdims=True)) / rng.uniform(0.015, 0.05))
    weights = near / near.sum(1, keepdims=True)
    matrices = pose(rng, bones, times)
    blended = (weights @ matrices.transpose(1, 0, 2, 3).reshape(len(bones), -1)).reshape(len(weights), len(times), 3, 4)
    moving = np.einsum("vtij,vj->tvi", blended[..., :3], part.points) + blended[..., 3].transpose(1, 0, 2)
    return moving, part


def random_skeleton(rng: np.random.Generator) -> list[Bone]:
    upright = rng.random() < 0.5
    along = np.array([0.0, rng.normal(0, 0.15), 1.0] if upright else [0.0, 1.0, rng.uniform(-0.1, 0.5)])
    along /= np.linalg.norm(along)
    count, length = int(rng.integers(2, 4)), rng.uniform(0.35, 0.8)
    thick = rng.uniform(0.06, 0.16)
    bones: list[Bone] = []
    joint = np.zeros(3)
    for i in range(count):
        tail = joint + along * length / count + [0, rng.normal(0, 0.02), rng.normal(0, 0.02)]
        radii = tuple(thick * rng.uniform(0.75, 1.25, 2))
        bones.append(Bone(i - 1, joint, tail, radii, BODY, rng.uniform(0.03, 0.25)))
        joint = tail
    front = np.array([0, rng.uniform(0.0, 0.5), 1.0] if upright else [0, 1.0, rng.uniform(-0.2, 1.0)])
    front *= rng.uniform(0.1, 0.25) / np.linalg.norm(front)
    if rng.random() < 0.85:
        bones.append(Bone(count - 1, joint, joint + front, (thick * 0.5, thick * 0.5), BODY, rng.uniform(0.05, 0.4)))
        size = rng.uniform(0.08, 0.2)
        end = joint + front + [0, rng.uniform(0, 0.15), rng.uniform(-0.05, 0.05)]
        bones.append(
            Bone(len(bones) - 1, joint + front, end, (size, size * rng.uniform(0.5, 1)), HEAD, rng.uniform(0.1, 0.5))
        )
    for _ in range(int(rng.integers(1, 4))):
        grow_limbs(rng, bones, int(rng.integers(0, count)), thick)
    if rng.random() < 0.4:
        start, back, parent = bones[0].head, -along + [0, 0, rng.uniform(-0.3, 0.6)], 0
        radius = thick * rng.uniform(0.3, 0.6)
        for _ in range(int(rng.integers(2, 4))):
            end = start + back * rng.uniform(0.1, 0.22) + rng.normal(0, 0.02, 3) * [0, 1, 1]
            bones.append(Bone(parent, start, end, (radius, radius * 0.7), LIMB, rng.uniform(0.15, 0.6)))
            start, parent, radius = end, len(bones) - 1, radius * 0.7
    return bones


def grow_limbs(rng: np.random.Generator, bones: list[Bone], spine: int, thick: float) -> None:
    """A pair of limbs of two or three bones, left and right of a bone of the spine."""
    share = rng.uniform(0.1, 0.9)
    middle = bones[spine].head + share * (bones[spine].tail - bones[spine].head)
    hip = middle + [thick * rng.uniform(0.6, 1.1), 0, 0]
    reach = np.array([rng.uniform(0.0, 0.9), rng.normal(0, 0.2), rng.choice([-1.0, -1.0, -0.5, 0.4])])
    reach *= rng.uniform(0.35, 0.8) / np.linalg.norm(reach)
    radius = rng.uniform(0.04, 0.08)
    count = int(rng.integers(2, 4))
    chain, joint = [], hip
    for i in range(count):
        last = count == 3 and i == 2
        step = reach / 2 + rng.normal(0, 0.04, 3) if not last else np.array([0, rng.uniform(0.06, 0.15), 0.0])
        chain.append((joint, joint + step, (radius, radius * 0.85), rng.uniform(0.25, 1.1) if i < 2 else 0.2))
        joint, radius = joint + step, max(radius * 0.85, 0.035)
    paint = LIMB if rng.random() < 0.7 else BODY
    left = len(bones)
    for side in (1, -1):
        for i, (head, tail, radii, sway) in enumerate(chain):
            flip = np.array([side, 1, 1])
            parent = spine if i == 0 else len(bones) - 1
            twin = left + i if side < 0 else -1
            bones.append(Bone(parent, head * flip, tail * flip, radii, paint, sway, twin))


def bone_distances(bones: list[Bone], points: np.ndarray) -> np.ndarray:
    """Signed distance float32 [N, B] of points [N, 3] to each bone's round cone."""
    points = points.astype(np.float32)
    found = np.empty((len(bones), len(points)), np.float32)
    for bone, row in zip(bones, found, strict=True):
        axis = (bone.tail - bone.head).astype(np.float32)
        local = points - bone.head.astype(np.float32)
        share = np.clip(local @ (axis / max(axis @ axis, 1e-9)), 0, 1)
        local -= share[:, None] * axis
        row[:] = np.sqrt(np.einsum("ni,ni->n", local, local))
        row -= bone.radii[0] + share * (bone.radii[1] - bone.radii[0])
    return found.T


def surface(bones: list[Bone], blend: float) -> tuple[Part, np.ndarray]:
    """The body at rest, and the distances [V, B] of its vertices to the bones. `blend`: how far bones melt together."""
    ends = np.concatenate([[b.head, b.tail] for b in bones])
    room = max(max(b.radii) for b in bones) + 2 * blend
    low, high = ends.min(0) - room, ends.max(0) + room
    cell = float((high - low).max()) / CELLS
    shape = np.ceil((high - low) / cell).astype(int) + 2
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1).reshape(-1, 3) * cell + low
    each = bone_distances(bones, grid)
    nearest = each.min(1)
    near = nearest < 3 * cell + 3 * blend  # elsewhere the surface is not
    field = nearest.copy()
    field[near] -= blend * np.log(np.exp((nearest[near, None] - each[near]) / blend).sum(1))
    points, faces, _, _ = marching_cubes(field.reshape(shape), 0.0, spacing=(cell,) * 3, gradient_direction="descent")
    points = points.astype(np.float64) + low
    distances = bone_distances(bones, points)
    owner = distances[faces].sum(1).argmin(1)
    paint = np.array([b.paint for b in bones])[owner]
    return Part(points, faces.astype(np.int64), bone_uv(bones, points[faces], owner), paint), distances


def bone_uv(bones: list[Bone], corners: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """UVs [F, 3, 2] of triangles [F, 3, 3]: around the bone that owns each, and along it."""
    axis = np.stack([b.tail - b.head for b in bones])
    axis /= np.maximum(np.linalg.norm(axis, axis=1, keepdims=True), 1e-9)
    side = np.cross(axis, np.where(np.abs(axis[:, :1]) < 0.9, [[1.0, 0, 0]], [[0, 1.0, 0]]))
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    local = corners - np.stack([b.head for b in bones])[owner][:, None]
    x = np.einsum("fki,fi->fk", local, side[owner])
    y = np.einsum("fki,fi->fk", local, np.cross(axis, side)[owner])
    around = np.arctan2(y, x) / (2 * math.pi)
    around -= np.rint(around - around[:, :1])  # no triangle runs back around the seam
    return np.stack([around, 3 * np.einsum("fki,fi->fk", local, axis[owner])], -1)


def pose(rng: np.random.Generator, bones: list[Bone], times: np.ndarray) -> np.ndarray:
    """Matrices [T, B, 3, 4] from rest to each time. Twins do what their side did, at once or some frames later."""
    turns: list[np.ndarray] = []
    shift = int(rng.integers(0, len(times))) if rng.random() < 0.7 else 0
    mirror = np.diag([-1.0, 1, 1])
    for bone in bones:
        if bone.twin >= 0:
            turns.append(mirror @ bounce(turns[bone.twin], shift) @ mirror)
            continue
        axis = np.array([1.0, 0, 0]) + rng.normal(0, 0.5, 3)  # most joints fold forwards and back
        turns.append(rotations(axis / np.linalg.norm(axis), wave(rng, times, bone.sway)))
    matrices = np.zeros((len(times), len(bones), 3, 4))
    for b, bone in enumerate(bones):
        own = np.concatenate([turns[b], (bone.head - turns[b] @ bone.head)[..., None]], 2)
        if bone.parent >= 0:
            base = matrices[:, bone.parent]
            own = np.concatenate([base[..., :3] @ own[..., :3], base[..., :3] @ own[..., 3:] + base[..., 3:]], 2)
        matrices[:, b] = own
    return matrices
