# SPDX-License-Identifier: GPL-3.0-or-later
"""Where every vertex of the template is at each time, from surfaces that carry canonical coordinates (LIM, section 3.4).

A canonical coordinate is the place of a material point at the first keyframe, in model space; topology never changes, so
the rows of every result are shape keys in order. Arrays are numpy, model space [-1, 1]³.
Shapes: V template vertices, T times, S_t surface samples at time t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.spatial import cKDTree

from ..mesh.arap import Arap
from ..shared.errors import LimError

CANONICAL_SCALE = 0.06  # model units: a match this far off in canonical space has lost 63 % of its confidence
OUTVOTED = 0.04  # of the diagonal: a match this far from where the mesh around it goes keeps a quarter of its pull
SPREAD_SCALE = 0.08  # model units: the same for matches that disagree about where the vertex is


def match_canonical(
    template_canonical: np.ndarray, surface: np.ndarray, surface_canonical: np.ndarray, *, neighbours: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """Find each template vertex on one surface: the inverse-distance mean of the samples nearest in canonical space.

    Args:
        template_canonical: [V, 3]; surface, surface_canonical: [S, 3], positions and canonical coordinates of samples.
        neighbours: samples averaged per vertex; 1 is sharp and noisy, above 8 thin parts shrink.
    Returns:
        positions [V, 3] float64 and confidence [V] in [0, 1]: near 1 where the nearest samples have almost the vertex's
        own canonical coordinate and lie together in space; falls off over CANONICAL_SCALE and SPREAD_SCALE.
    Raises:
        LimError empty_surface: no samples.
    """
    if not len(surface):
        raise LimError("empty_surface", "There is no surface to trace at one of the in-betweens.")
    surface = np.asarray(surface, np.float64)
    count = min(neighbours, len(surface))
    distance, index = cKDTree(np.asarray(surface_canonical, np.float64)).query(template_canonical, k=count)
    distance, index = distance.reshape(-1, count), index.reshape(-1, count)
    weight = 1.0 / np.maximum(distance, 1e-9)
    weight /= weight.sum(1, keepdims=True)
    matched = surface[index]
    positions = np.einsum("vk,vki->vi", weight, matched)
    spread = np.sqrt(np.einsum("vk,vk->v", weight, ((matched - positions[:, None]) ** 2).sum(2)))
    # Samples that agree in canonical space but lie apart have been mixed up: the nearest one is the better guess.
    torn = spread > SPREAD_SCALE
    positions[torn] = matched[torn, 0]
    confidence = np.exp(-((distance[:, 0] / CANONICAL_SCALE) ** 2) - (spread / SPREAD_SCALE) ** 2)
    return positions, confidence


class Matches:
    """Where the networks believe the vertices of one keyframe are at the times of the interval that starts there.

    The canonical coordinate of a vertex is its position at that keyframe. What a network gets wrong about the still shape
    (a small triplane rounds thin parts) is the same at α = 0, where the truth is known: `moved` therefore adds to the
    vertex only what changes between α = 0 and α.
    """

    def __init__(self, points: Sequence[np.ndarray], canonical: Sequence[np.ndarray]):
        """points, canonical: for α = 0 and every further time of the interval, samples [S_t, 3] of the surface there and
        their canonical coordinates; empty where the networks see no surface."""
        _same_length(points, canonical)
        self.points, self.canonical = points, canonical

    def moved(self, vertices: np.ndarray, *, end: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """positions [A, V, 3] float64 and confidence [A, V] at every time, for vertices [V, 3] at α = 0; with `end` at α = 0
        and 1 only."""
        vertices = np.asarray(vertices, np.float64)
        positions, confidence = [vertices], [np.ones(len(vertices))]
        still, still_sure = self._match(vertices, 0)
        last = len(self.points) - 1
        for time in [last] if end else range(1, last + 1):
            matched, sure = self._match(vertices, time)
            positions.append(vertices + matched - still)
            confidence.append(np.minimum(sure, still_sure))
        return np.stack(positions), np.stack(confidence)

    def _match(self, vertices: np.ndarray, time: int) -> tuple[np.ndarray, np.ndarray]:
        if not len(self.points[time]) or not len(self.points[0]):
            return vertices, np.zeros(len(vertices))
        return match_canonical(vertices, self.points[time], self.canonical[time])


def trace_chain(
    template: np.ndarray,
    intervals: Sequence[Matches],
    arap: Arap | None,
    *,
    stiffness: float = 1.0,
    iterations: int = 5,
    on_progress: Callable[[float], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Carry the template through all intervals; the end of one is the start of the next.

    Without `arap` every vertex takes its match (section 3.4, row `lim`), with it canonical matching and the ARAP energy of
    the template are minimised together (appendix, row `lim_arap`), warm-started in time: matches pull with their
    confidence and are reweighed (Geman–McClure on the remaining distance), so that a patch of wrong ones is outvoted by
    the mesh around it.

    Args:
        template: [V, 3] at the first keyframe.
        stiffness: of the mesh against a match of full confidence; 1 evens out noise of about an edge's length.
    Returns:
        positions [T, V, 3] float64 of all times, keyframes once, and confidence [T, V].
    """
    positions, confidence = [np.asarray(template, np.float64)], [np.ones(len(template))]
    total = sum(len(interval.points) - 1 for interval in intervals)
    for interval in intervals:
        moved, sure = interval.moved(positions[-1])
        for target, weight in zip(moved[1:], sure[1:]):
            if arap is not None:
                target, weight = _deform(arap, positions[-1], target, weight, stiffness, iterations)
            positions.append(target)
            confidence.append(weight)
            if on_progress:
                on_progress((len(positions) - 1) / total)
    return np.stack(positions), np.stack(confidence)


def _deform(arap: Arap, current, matched, sure, stiffness: float, iterations: int):
    """The mesh at its matches [V, 3], and what is left of their confidence [V]."""
    robust = np.ones(len(sure))
    for _ in range(2):
        current = arap.solve(matched, sure * robust, current, iterations=iterations, stiffness=stiffness)
        off = np.linalg.norm(matched - current, axis=1) / (OUTVOTED * arap.diagonal)
        robust = 1 / (1 + off**2) ** 2
    return current, sure * robust


def trace_outwards(
    template: np.ndarray,
    intervals: Sequence[Matches],
    home: int,
    arap: Arap | None,
    *,
    stiffness: float = 1.0,
    on_progress: Callable[[float], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`trace_chain` in both directions from the template's own keyframe, `home`; the intervals before it begin at their end.

    Returns:
        positions [T, V, 3] and confidence [T, V] of all times, in their order.
    """
    report = on_progress or (lambda fraction: None)
    share = home / max(len(intervals), 1)
    before = trace_chain(
        template, intervals[:home][::-1], arap, stiffness=stiffness, on_progress=lambda f: report(share * f)
    )
    after = trace_chain(
        template, intervals[home:], arap, stiffness=stiffness, on_progress=lambda f: report(share + (1 - share) * f)
    )
    positions, confidence = (np.concatenate([b[:0:-1], a]) for b, a in zip(before, after))
    return positions, confidence


def nearest_surface(
    template: np.ndarray,
    template_colours: np.ndarray,
    surfaces: Sequence[np.ndarray],
    surface_colours: Sequence[np.ndarray],
    *,
    colour_weight: float = 0.1,
) -> np.ndarray:
    """Row `nn`, the paper's baseline: every vertex jumps to the nearest sample in position and colour, time after time.

    Args:
        template_colours: [V, 3]; surface_colours: T arrays [S_t, 3]; in [0, 1].
        surfaces: T arrays [S_t, 3]; where one is empty the mesh stays.
        colour_weight: model units that a colour difference of 1 is worth.
    Returns:
        positions [1 + T, V, 3] float64, the template first.
    """
    _same_length(surfaces, surface_colours)
    positions = [np.asarray(template, np.float64)]
    colours = colour_weight * np.asarray(template_colours, np.float64)
    for surface, colour in zip(surfaces, surface_colours):
        current = positions[-1]
        if len(surface):
            tree = cKDTree(np.concatenate([surface, colour_weight * np.asarray(colour)], axis=1))
            current = np.asarray(surface, np.float64)[tree.query(np.concatenate([current, colours], axis=1))[1]]
        positions.append(current)
    return np.stack(positions)


def _same_length(one: Sequence, other: Sequence) -> None:
    if len(one) != len(other):
        raise ValueError(f"{len(one)} surfaces, but {len(other)} sets of values")
