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

from .arap import Arap
from .errors import LimError

CANONICAL_SCALE = 0.06  # model units: a match this far off in canonical space has lost 63 % of its confidence
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


def trace_vertices(
    template: np.ndarray,
    template_canonical: np.ndarray,
    surfaces: Sequence[np.ndarray],
    surfaces_canonical: Sequence[np.ndarray],
    *,
    neighbours: int = 4,
    on_progress: Callable[[float], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The paper's trace (row `lim`): canonical matching at every time on its own.

    Args:
        template: [V, 3], returned where a time's surface is None (the first keyframe itself, say).
        surfaces, surfaces_canonical: T arrays [S_t, 3] each, in the order of the times.
    Returns:
        positions [T, V, 3] float64, confidence [T, V].
    Raises:
        LimError empty_surface: a time has no samples; the message names it.
    """
    _same_length(surfaces, surfaces_canonical)
    positions, confidence = [], []
    for t, (surface, canonical) in enumerate(zip(surfaces, surfaces_canonical, strict=True)):
        if surface is None:
            matched, sure = np.asarray(template, np.float64), np.ones(len(template))
        else:
            _check_samples(surface, t)
            matched, sure = match_canonical(template_canonical, surface, canonical, neighbours=neighbours)
        positions.append(matched)
        confidence.append(sure)
        if on_progress:
            on_progress((t + 1) / len(surfaces))
    return np.stack(positions), np.stack(confidence)


def trace_arap(
    template: np.ndarray,
    template_canonical: np.ndarray,
    surfaces: Sequence[np.ndarray],
    surfaces_canonical: Sequence[np.ndarray],
    arap: Arap,
    *,
    stiffness: float = 1.0,
    neighbours: int = 4,
    iterations: int = 10,
    on_progress: Callable[[float], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Row `lim_arap`: canonical matching and the ARAP energy of the template minimised together, warm-started in time.

    Matches are pulled with their confidence and reweighed (Geman–McClure on the remaining distance), so that a patch of
    wrong matches is outvoted by the mesh around it; unsure vertices follow their neighbours.

    Args:
        stiffness: of the mesh against a match of full confidence; 1 evens out noise of about an edge's length.
    Returns:
        positions [T, V, 3] float64, confidence [T, V] of the matches after the reweighing.
    Raises:
        LimError empty_surface: a time has no samples; the message names it.
    """
    _same_length(surfaces, surfaces_canonical)
    current = np.asarray(template, np.float64)
    positions, confidence = [], []
    scale = 0.04 * arap.diagonal
    for t, (surface, canonical) in enumerate(zip(surfaces, surfaces_canonical, strict=True)):
        if surface is None:
            matched, sure = np.asarray(template, np.float64), np.ones(len(template))
            current = matched
        else:
            _check_samples(surface, t)
            matched, sure = match_canonical(template_canonical, surface, canonical, neighbours=neighbours)
            # The first solve believes every match alike; the following ones discount what the mesh disagrees with.
            robust = np.ones(len(sure))
            for _ in range(3):
                current = arap.solve(matched, sure * robust, current, iterations=iterations, stiffness=stiffness)
                distance = np.linalg.norm(matched - current, axis=1)
                robust = (scale**2 / (scale**2 + distance**2)) ** 2
            sure = sure * robust
        positions.append(current)
        confidence.append(sure)
        if on_progress:
            on_progress((t + 1) / len(surfaces))
    return np.stack(positions), np.stack(confidence)


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
        colour_weight: model units that a colour difference of 1 is worth.
    Returns:
        positions [T, V, 3] float64.
    Raises:
        LimError empty_surface: a time has no samples; the message names it.
    """
    _same_length(surfaces, surface_colours)
    current, positions = np.asarray(template, np.float64), []
    colours = colour_weight * np.asarray(template_colours, np.float64)
    for t, (surface, colour) in enumerate(zip(surfaces, surface_colours, strict=True)):
        if surface is not None:
            _check_samples(surface, t)
            tree = cKDTree(np.concatenate([surface, colour_weight * np.asarray(colour)], axis=1))
            current = np.asarray(surface, np.float64)[tree.query(np.concatenate([current, colours], axis=1))[1]]
        positions.append(current)
    return np.stack(positions)


def _check_samples(surface: np.ndarray, time: int) -> None:
    if not len(surface):
        raise LimError(
            "empty_surface",
            f"No surface was found at in-between {time}.",
            "Use keyframes that lie closer together.",
        )


def _same_length(one: Sequence, other: Sequence) -> None:
    if len(one) != len(other):
        raise ValueError(f"{len(one)} surfaces, but {len(other)} sets of values")
