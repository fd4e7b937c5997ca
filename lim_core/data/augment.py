# SPDX-License-Identifier: GPL-3.0-or-later
"""What is changed at random about a sequence before it is rendered: poses, shape, textures, colours, cameras.

Everything is drawn from the generator that is handed in: the same one gives the same sequence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from ..mesh import packs
from ..mesh.packs import Pack
from ..shared import cameras
from . import patterns


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Shares of the sequences that are changed in each way, 0 to 1. Yaw is always random, and a little room around."""

    mirror: float = 0.5
    stretch: float = 0.17
    """How much each axis is scaled on its own, at most (a logarithm), in every sequence"""
    mixed_poses: float = 0.12
    """Poses between two clips of the same skeleton"""
    textures: float = 0.12
    """All textures replaced by generated ones or by those of another asset"""
    colours: float = 0.7
    rig: float = 0.2
    """The rig's cameras stand a few degrees elsewhere, with a shorter or longer lens"""
    tight: float = 0.2
    """The lens of each camera of the rig is as long as the object allows"""


NONE = Augmentation(mirror=0, stretch=0, mixed_poses=0, textures=0, colours=0, rig=0, tight=0)


# ---- shape -----------------------------------------------------------------------------------------------------------
def vary_shape(positions: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Random yaw, mirror and non-uniform scale of [T, V, 3], then the job's normalisation with a little room."""
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    scale = np.exp(rng.uniform(-augmentation.stretch, augmentation.stretch, 3))
    scale[0] *= -1 if rng.random() < augmentation.mirror else 1
    moved = positions @ (turn * scale).T.astype(np.float32)
    return packs.transform(packs.unit_sphere(moved, margin=rng.uniform(0.02, 0.12)), moved)


# ---- poses -----------------------------------------------------------------------------------------------------------
TORN = 1.6  # an edge this much longer than in either of the two poses


def mix_poses(
    pack: Pack, frames: np.ndarray, clip: int, own: np.ndarray, rng: np.random.Generator
) -> np.ndarray | None:
    """Positions [T, V, 3] that leave `clip` at `frames` for another clip, or stay between the two.

    Args:
        own: positions [T, V, 3] of `clip` at `frames`.
    Returns:
        None where the pack has no bones or one clip, or where the mixture would tear the surface.
    """
    if pack.rest is None or pack.clips < 2:
        return None
    other = int(rng.choice([c for c in range(pack.clips) if c != clip]))
    last = pack.frames(other) - 1
    length = min(last, frames[-1] - frames[0])
    others = rng.uniform(0, max(last - length, 0)) + np.linspace(0, length, len(frames))
    time = np.linspace(0, 1, len(frames))
    weights = np.full(len(frames), rng.uniform(0.3, 0.7)) if rng.random() < 0.5 else time * time * (3 - 2 * time)
    if rng.random() < 0.5:
        weights = weights[::-1]
    mixed = np.stack([mixed_pose(pack, clip, a, other, b, w) for a, b, w in zip(frames, others, weights, strict=True)])
    edges = np.concatenate([pack.faces[:, :2], pack.faces[:, 1:], pack.faces[:, ::2]])
    for middle in (0, len(frames) // 2, len(frames) - 1):
        ends = (own[middle], pack.positions(other, others[middle]))
        before = np.max([np.linalg.norm(p[edges[:, 0]] - p[edges[:, 1]], axis=1) for p in ends], 0)
        after = np.linalg.norm(mixed[middle][edges[:, 0]] - mixed[middle][edges[:, 1]], axis=1)
        if np.quantile(after / np.maximum(before, 1e-4 * np.ptp(ends[0])), 0.99) > TORN:
            return None
    return mixed


def mixed_pose(pack: Pack, clip: int, frame: float, other: int, other_frame: float, weight: float) -> np.ndarray:
    """Vertices float32 [V, 3] between two poses of a skinned pack, 0 is the first. Each bone turns about its joint the
    short way, so that limbs keep their length, where a mean of the vertices would shrink them."""
    first, second = bone_matrices(pack, clip, frame), bone_matrices(pack, other, other_frame)
    turns, sizes = zip(*(polar(matrices[:, :, :3]) for matrices in (first, second)))
    way = Rotation.from_matrix(turns[0].transpose(0, 2, 1) @ turns[1]).as_rotvec()
    turn = turns[0] @ Rotation.from_rotvec(weight * way).as_matrix()
    linear = turn @ (sizes[0] + weight * (sizes[1] - sizes[0]))
    joint = joints(pack)[:, :, None]
    ends = [m[:, :, :3] @ joint + m[:, :, 3:] for m in (first, second)]
    place = ends[0] + weight * (ends[1] - ends[0]) - linear @ joint
    assert pack.rest is not None and pack.bone_index is not None and pack.bone_weight is not None
    return packs.skin(pack.rest, pack.bone_index, pack.bone_weight, np.concatenate([linear, place], 2))


def bone_matrices(pack: Pack, clip: int, frame: float) -> np.ndarray:
    """float64 [B, 3, 4] at a frame of a clip, linear between the stored ones, as `Pack.positions` has it."""
    assert pack.bones is not None  # it is skinned
    last = pack.frames(clip) - 1
    frame = min(max(float(frame), 0.0), float(last))
    before = min(int(frame), max(last - 1, 0))
    start = int(pack.clip_start[clip]) + before
    a, b = pack.bones[start].astype(float), pack.bones[min(start + 1, start - before + last)].astype(float)
    return a + (frame - before) * (b - a)


def polar(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotations [B, 3, 3] and what is left, so that rotation @ rest is the matrix; a reflection stays in the rest."""
    u, _, vt = np.linalg.svd(matrices)
    u[np.linalg.det(u @ vt) < 0, :, 2] *= -1
    turn = u @ vt
    return turn, turn.transpose(0, 2, 1) @ matrices


def joints(pack: Pack) -> np.ndarray:
    """Where each bone meets the others, at rest [B, 3]: the middle of the vertices that it shares, of all it has if none."""
    assert pack.rest is not None and pack.bone_index is not None
    assert pack.bone_weight is not None and pack.bones is not None
    weight = pack.bone_weight / 255.0
    share = weight * (1 - weight) + 1e-6 * weight
    total, place = np.zeros(pack.bones.shape[1]), np.zeros((pack.bones.shape[1], 3))
    np.add.at(total, pack.bone_index, share)
    np.add.at(place, pack.bone_index, share[..., None] * pack.rest[:, None])
    return place / np.maximum(total, 1e-15)[:, None]


# ---- colour ----------------------------------------------------------------------------------------------------------
def swap_textures(pack: Pack, donors: Sequence[Pack], rng: np.random.Generator) -> Pack:
    """The pack with every texture replaced, by generated ones or by those of a donor."""
    count = len(pack.texture_shape)
    if donors and rng.random() < 0.5:
        donor = donors[int(rng.integers(len(donors)))]
        images = [donor.texture(int(rng.integers(len(donor.texture_shape)))) for _ in range(count)]
    else:
        palette = patterns.random_palette(rng)
        images = [
            np.rint(patterns.random_texture(rng, palette, patterns.ALL_KINDS) * 255).astype(np.uint8)
            for _ in range(count)
        ]
    texels = [image.reshape(-1, 3) for image in images]
    return dataclasses.replace(
        pack,
        texture_shape=np.array([image.shape[:2] for image in images], np.int32),
        texture_start=np.cumsum([0] + [len(t) for t in texels[:-1]]).astype(np.int64),
        texels=np.concatenate(texels),
    )


def recolour(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One random change of all colours of a sequence, uint8 [..., 3] in and out: order, contrast, brightness, gain."""
    table = np.repeat(np.arange(256, dtype=np.float32)[:, None] / 255, 3, 1)
    order = rng.permutation(3) if rng.random() < 0.6 else np.arange(3)
    if rng.random() < 0.5:
        table = table ** rng.uniform(0.6, 1.6)
        table = table * rng.uniform(0.7, 1.1, 3).astype(np.float32) + rng.uniform(-0.05, 0.1)
    if rng.random() < 0.1:
        table = 1 - table
    table = (table.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return np.stack([table[rgb[..., order[c]], c] for c in range(3)], -1)


# ---- cameras ---------------------------------------------------------------------------------------------------------
def rig_cameras(
    count: int, size: int, positions: np.ndarray, augmentation: Augmentation, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The rig of a sequence: camera_to_world [count, 4, 4], intrinsics [count, 3, 3]; mostly the job's own.

    Args:
        positions: vertices [T, V, 3] at all steps, model space: nothing of them leaves a picture.
    """
    matrices, intrinsics = cameras.job_cameras(size, count, count)
    if rng.random() < augmentation.rig:
        field = np.radians(rng.uniform(28, 55))
        distance = 1 / np.sin(field / 2)  # the unit sphere touches the edges, as in a job
        angles = [(a + rng.uniform(-12, 12), e + rng.uniform(-12, 12)) for a, e in cameras.RIG[:count]]
        matrices = np.stack([cameras.look_at(*angle, distance) for angle in angles])
        intrinsics = np.stack([cameras.pinhole(size, field)] * count)
    if rng.random() < augmentation.tight:
        for matrix, k in zip(matrices, intrinsics, strict=True):
            pixel, _ = cameras.project(positions.reshape(-1, 3), matrix, k)
            reach = np.abs(pixel - size / 2).max() / (size / 2)
            zoom = np.clip(rng.uniform(0.85, 0.97) / max(reach, 1e-6), 1.0, 2.0)
            k[:2, :2] *= zoom
    return matrices, intrinsics


def target_cameras(count: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random views: any azimuth, elevation −40° to 70°, a third of them with a longer lens."""
    matrices, intrinsics = [], []
    for _ in range(count):
        matrices.append(cameras.look_at(rng.uniform(0, 360), rng.uniform(-40, 70)))
        zoom = rng.uniform(1.0, 1.5) if rng.random() < 0.33 else 1.0
        intrinsics.append(cameras.pinhole(size, 2 * np.arctan(np.tan(cameras.FIELD_OF_VIEW / 2) / zoom)))
    return np.stack(matrices), np.stack(intrinsics)
