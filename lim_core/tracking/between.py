# SPDX-License-Identifier: GPL-3.0-or-later
"""In-betweens from the fitted keyframes and, where they are sure, the networks' motion.

Between two keyframes the mesh moves as rigidly as it can, at an even rate. Two corrections are added: towards a velocity that
goes on through the keyframes, and what the networks know of the way.

Arrays are numpy, model space. Shapes: V vertices, K keyframes, A times of an interval, its two ends included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from ..mesh.arap import Arap, rigid_motion
from ..mesh.surface import components

LIMIT = 1.5  # times the slower of the velocities before and after a keyframe: what stands still does not swing out
MISS, SLACK = 0.5, 0.01  # of a vertex's way and of the diagonal: missing it by so much halves the networks' word
STIFF = 1e-5  # of the diagonal: what a part's vertices may be off one rigid motion, for it not to have bent
ALONE = 0.1  # of their length, by which the links of a loose part change on average where it moves on its own
STEP = 0.04  # of an interval, over which its velocities at the ends are measured
Moves = tuple[np.ndarray, np.ndarray]


def interpolate(
    arap: Arap,
    fitted: np.ndarray,
    times: Sequence[float],
    alphas: Sequence[float] | Sequence[Sequence[float]],
    moves: Sequence[Moves] | None = None,
    *,
    on_progress: Callable[[float], None] | None = None,
) -> np.ndarray:
    """Shapes at all times between the keyframes.

    `x(α) = rigid(α) + (1 − c) · spline(α) + c · (traced(α) − straight(α))`: `rigid` interpolates two fitted keyframes as
    rigidly as possible, `straight` does the same to the ends of the networks' trace; `spline` is the cubic that gives every
    vertex one velocity at each keyframe (Catmull–Rom, limited). c is the networks' confidence, less
    where they miss the way that the fitted keyframes show. Faces that the corrections turn over are unfolded, and a loose part that did
    not bend from one keyframe to the next does not bend between them either. If it moves on its own, away from what it is next to, it
    turns at an even rate and its centre goes along the spline; an eye goes with its head.

    Args:
        fitted: [K, V, 3]; times: [K], of the keyframes.
        alphas: [A] in [0, 1], 0 and 1 included, the same for every interval, or one such list for each.
        moves: per interval the networks' positions [A, V, 3] and confidence [A, V], in the order of the alphas.
    Returns:
        [1 + Σ (A − 1), V, 3] float64; the keyframes are the fitted ones, exactly.
    """
    fitted = np.asarray(fitted, np.float64)
    count = len(fitted) - 1
    each = [np.asarray(a, np.float64) for a in (alphas if np.ndim(alphas[0]) else [alphas] * count)]
    if all(len(a) == 2 for a in each):
        return fitted
    length = np.diff(np.asarray(times, np.float64))
    rigid, start, end = [], [], []
    for k in range(count):
        first, *shapes, last = arap.interpolate(fitted[k], fitted[k + 1], np.r_[STEP, each[k][1:-1], 1 - STEP])
        rigid.append(shapes)
        start.append((first - fitted[k]) / (STEP * length[k]))
        end.append((fitted[k + 1] - last) / (STEP * length[k]))
        if on_progress:
            on_progress((k + 1) / (2 * count))
    velocity = _velocities(start, end, length)
    result = [fitted[0]]
    parts = _parts(arap)
    centres = np.stack([[shape[part].mean(0) for part in parts] for shape in fitted])  # [K, parts, 3]
    even = np.diff(centres, axis=0) / length[:, None, None]
    pace = _velocities(even, even, length)
    for k in range(count):
        stiff = [
            n for n, part in enumerate(parts)
            if np.abs(_moved_as(fitted[k][part], fitted[k + 1][part]) - fitted[k + 1][part]).max() < STIFF * arap.diagonal
        ]  # fmt: skip
        free = _free(arap, parts, fitted[k], fitted[k + 1])
        leaving, arriving = length[k] * (velocity[k] - start[k]), length[k] * (velocity[k + 1] - end[k])
        parting, coming = length[k] * (pace[k] - even[k]), length[k] * (pace[k + 1] - even[k])
        known = None if moves is None else _known(arap, *moves[k], each[k], fitted[k], fitted[k + 1])
        for i, a in enumerate(each[k][1:-1]):
            leave, arrive = a**3 - 2 * a**2 + a, a**3 - a**2
            off = leave * leaving + arrive * arriving
            if known is not None:
                off = (1 - known[1][i])[:, None] * off + known[0][i]
            shape = arap.untangle(rigid[k][i] + off)
            way = (1 - a) * centres[k] + a * centres[k + 1] + leave * parting + arrive * coming
            for n in stiff:
                part = parts[n]
                if free[n]:
                    shape[part] = way[n] + _turned(fitted[k][part], fitted[k + 1][part], a)
                else:
                    shape[part] = _moved_as(fitted[k][part], shape[part])
            result.append(shape)
        result.append(fitted[k + 1])
        if on_progress:
            on_progress(0.5 + (k + 1) / (2 * count))
    return np.stack(result)


def _parts(arap: Arap) -> list[np.ndarray]:
    """Numbers of the vertices of each loose part, links between them aside."""
    label = components(arap.size, arap.faces)[1][arap.weld]
    order = np.argsort(label, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(label[order])) + 1)


def _free(arap: Arap, parts: list[np.ndarray], before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Which parts move on their own from one keyframe [V, 3] to another: what they are linked to goes another way."""
    label = np.zeros(len(before), np.int64)
    for n, part in enumerate(parts):
        label[part] = n
    links = arap.first[arap.edges]
    links = links[label[links[:, 0]] != label[links[:, 1]]]
    one, two = (np.linalg.norm(x[links[:, 0]] - x[links[:, 1]], axis=1) for x in (before, after))
    change = np.abs(one - two) / np.maximum(np.maximum(one, two), 0.01 * arap.diagonal)
    ends = label[links].T.ravel()
    count = np.bincount(ends, minlength=len(parts))
    mean = np.bincount(ends, np.tile(change, 2), len(parts)) / np.maximum(count, 1)
    return (mean > ALONE) | (count == 0)


def _moved_as(points: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Points [N, 3] moved as a whole, as near as can be to where they are `there` [N, 3]."""
    rotation, shift = rigid_motion(points, there)
    return points @ rotation.T + shift


def _turned(points: np.ndarray, there: np.ndarray, share: float) -> np.ndarray:
    """Points [N, 3] about their centre, turned by a share of the rotation that takes them `there` [N, 3]."""
    turn = Rotation.from_rotvec(share * Rotation.from_matrix(rigid_motion(points, there)[0]).as_rotvec())
    return turn.apply(points - points.mean(0))


def _velocities(
    start: Sequence[np.ndarray] | np.ndarray, end: Sequence[np.ndarray] | np.ndarray, length: np.ndarray
) -> list[np.ndarray]:
    """One velocity [N, 3] for each of K keyframes, from those at the starts and ends of the K - 1 intervals."""
    velocity = [start[0]]
    for k in range(1, len(length)):
        share = length[k] / (length[k - 1] + length[k])
        velocity.append(_limited(share * end[k - 1] + (1 - share) * start[k], end[k - 1], start[k]))
    return [*velocity, end[-1]]


def _limited(mean: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """A mean velocity [V, 3], at most LIMIT times the smaller of the two that it is the mean of."""
    size = np.linalg.norm(mean, axis=1)
    most = LIMIT * np.minimum(np.linalg.norm(before, axis=1), np.linalg.norm(after, axis=1))
    return mean * np.minimum(1.0, most / np.maximum(size, 1e-12))[:, None]


def _known(
    arap: Arap, traced: np.ndarray, confidence: np.ndarray, alphas: np.ndarray, start: np.ndarray, end: np.ndarray
) -> tuple[list, list]:
    """What the networks add to an even motion at the inner alphas, smooth over the surface, and how sure they are [V].

    Who misses how far a vertex goes (from start to end, [V, 3], the fitted keyframes) is not believed on its way.
    """
    straight = arap.interpolate(traced[0], traced[-1], alphas[1:-1])
    way = end - start
    off = np.linalg.norm(traced[-1] - traced[0] - way, axis=1)
    allowed = MISS * np.linalg.norm(way, axis=1) + SLACK * arap.diagonal
    sure = np.minimum(confidence[0], confidence[-1]) / (1 + (off / allowed) ** 2)
    trust = [np.minimum(now, sure) for now in confidence[1:-1]]
    return [arap.smooth(t - s, c) for t, s, c in zip(traced[1:-1], straight, trust)], trust
