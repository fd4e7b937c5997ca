# SPDX-License-Identifier: GPL-3.0-or-later
"""A motion by fewer shape keys: the frames that, played with straight lines between them, come closest to all frames.

Arrays are numpy. Shapes: T frames, V vertices, N chosen frames.
"""

from __future__ import annotations

import numpy as np

SAME = 1e-6  # of the box diagonal: what a further key must gain
CHUNK = 4096  # vertices at a time


def choose(positions: np.ndarray, frames: np.ndarray, most: int) -> np.ndarray:
    """The best frames to keep, by dynamic programming over the squared distance of all vertices at all frames.

    Args:
        positions: [T, V, 3]; frames: [T], increasing.
        most: 2 or more; fewer are returned where more gain nothing. T or more keeps every frame.
    Returns:
        indices [N] int64, increasing, the first and the last frame among them.
    """
    frames = np.asarray(frames, np.float64)
    count = len(frames)
    if most >= count:
        return np.arange(count)
    cost = _costs(_gram(positions), frames)
    best, before = np.full((most + 1, count), np.inf), np.zeros((most + 1, count), np.int64)
    best[1, 0] = 0
    for n in range(2, most + 1):
        total = best[n - 1][:, None] + cost
        before[n] = total.argmin(0)
        best[n] = total[before[n], np.arange(count)]
    error = np.sqrt(np.maximum(best[:, -1], 0) / (count * positions.shape[1]))
    n = int(np.argmax(error <= error.min() + SAME * _diagonal(positions)))
    chosen = [count - 1]
    while chosen[-1]:
        chosen.append(int(before[n, chosen[-1]]))
        n -= 1
    return np.array(chosen[::-1])


def errors(positions: np.ndarray, frames: np.ndarray, chosen: np.ndarray) -> tuple[float, float]:
    """Root mean square and largest distance of the vertices, at all frames, between a motion and what plays of it.

    Args:
        positions: [T, V, 3]; frames: [T]; chosen: [N], indices of the frames that are kept.
    Returns:
        Both in % of the diagonal of the box around the first frame.
    """
    frames = np.asarray(frames, np.float64)
    squares, largest = 0.0, 0.0
    for first, last in zip(chosen, chosen[1:]):
        start, end = (np.asarray(positions[k], np.float64) for k in (first, last))
        for t in range(first + 1, last):
            share = (frames[t] - frames[first]) / (frames[last] - frames[first])
            off = ((start + share * (end - start) - positions[t]) ** 2).sum(1)
            squares, largest = squares + off.sum(), max(largest, off.max())
    percent = 100 / _diagonal(positions)
    return percent * float(np.sqrt(squares / (len(frames) * positions.shape[1]))), percent * float(np.sqrt(largest))


def _diagonal(positions: np.ndarray) -> float:
    return max(float(np.linalg.norm(np.ptp(positions[0], axis=0))), 1e-12)


def _gram(positions: np.ndarray) -> np.ndarray:
    """Inner products [T, T] of the frames, about their mean."""
    gram = np.zeros((len(positions), len(positions)))
    for start in range(0, positions.shape[1], CHUNK):
        part = np.asarray(positions[:, start : start + CHUNK], np.float64).reshape(len(positions), -1)
        part = part - part.mean(0)
        gram += part @ part.T
    return gram


def _costs(gram: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """[i, j]: the squared distance of all vertices at the frames between i and j from the straight line; inf for j <= i."""
    count = len(frames)
    cost = np.full((count, count), np.inf)
    size = np.diag(gram)
    for i in range(count - 1):
        later = np.arange(i + 1, count)
        share = (frames[later] - frames[i]) / (frames[later, None] - frames[i])  # [j, t]
        rest = 1 - share
        off = size[later] - 2 * rest * gram[i, later] - 2 * share * gram[np.ix_(later, later)]
        off += rest**2 * size[i] + 2 * rest * share * gram[i, later, None] + share**2 * size[later, None]
        cost[i, later] = np.tril(off, -1).sum(1)
    return cost
