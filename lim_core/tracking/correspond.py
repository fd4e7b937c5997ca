# SPDX-License-Identifier: GPL-3.0-or-later
"""Which part went where between two keyframes, for motion that is too large to be followed by the nearest points.

Arrays are numpy, model space [-1, 1]³. Shapes: N nodes of an observation.
"""

from __future__ import annotations

import numpy as np

from ..mesh.arap import polar, rotation_matrices
from .observation import Observation

TINY = 1e-30  # of a soft assignment in single precision: what it may not fall below


def correspond(
    source: Observation,
    target: Observation,
    *,
    turn: np.ndarray | None = None,
    place_weight: float = 1.0,
    bend_weight: float = 20.0,
    horizon: float = 1.2,
    side_weight: float = 0.0,
    expected: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match the surfaces of two keyframes coarsely.

    Minimises, over soft assignments of the nodes of one to the nodes of the other, the difference of colours, local areas
    and places plus the change of the distances along the surface between every two nodes (fused Gromov–Wasserstein,
    Vayer et al. 2019; proximal steps with Sinkhorn scaling). The distances keep a leg from being matched half to the other
    leg; the places keep left and right apart. Done twice: the second time the places are compared after the whole has been
    moved by the rigid motion that the first answer implies.

    Args:
        turn: [3, 3], a rotation of the source about its centroid to begin with; then the centroids are aligned, too.
        place_weight: how much a node's place counts; 0 looks at the intrinsic shape alone.
        bend_weight: how much changed distances count; horizon: where they saturate, in units of the surface's size.
        side_weight: how much it counts to stay on the left or the right of the source's plane of symmetry, which legs
            do while they swing past each other.
        expected: where the source's nodes [N, 3] may be at the target, and how sure that is [N]; replaces the rigid motion.
    Returns:
        places on the source [N, 3], where they went [N, 3], confidence [N] in [0, 1].
    """
    one, two = source.nodes, target.nodes
    scale = 0.5 * (one.scale + two.scale)
    p, q = one.mass + 1e-4, two.mass + 1e-4
    p, q = p / p.sum(), q / q.sum()
    colour = ((one.colours[:, None] - two.colours[None]) ** 2).sum(2)
    area = (np.log(one.area[:, None] + 0.05) - np.log(two.area[None] + 0.05)) ** 2
    intrinsic = 8.0 * colour + 0.15 * area.sum(2)
    # Long distances change when parts touch: they saturate.
    first, second = ((1 - np.exp(-n.geodesic / (horizon * scale))).astype(np.float32) for n in (one, two))
    fixed = ((first**2 @ p)[:, None] + (second**2 @ q)[None]).astype(np.float32)
    p, q = p.astype(np.float32), q.astype(np.float32)
    places = one.points if turn is None else (one.points - p @ one.points) @ turn.T + q @ two.points
    sure = np.ones(1)
    if expected is not None:
        places, sure = expected[0], expected[1][:, None]
    side = one.sideways if turn is None else turn @ one.sideways
    for attempt in range(2 if expected is None else 1):
        place = ((places[:, None] - two.points[None]) ** 2).sum(2) / (0.25 * scale) ** 2
        unary = intrinsic + place_weight * sure * place / (1 + place)
        if side_weight:
            across = ((places @ side)[:, None] - (two.points @ side)[None]) ** 2 / (0.08 * scale) ** 2
            unary += side_weight * across / (1 + across)
        unary = unary.astype(np.float32)
        plan = _sinkhorn(np.exp(-unary / 0.3) * p[:, None] * q[None] + TINY, p, q)
        for softness in (1.0,) * 12 + (0.4,) * 12:
            cost = unary + bend_weight * (fixed - 2 * first @ plan @ second)
            cost -= cost.min(1, keepdims=True)
            plan = _sinkhorn(plan * np.exp(-cost / softness) + TINY, p, q)
        share = plan / plan.sum(1, keepdims=True)
        best = share.argmax(1)
        # The matched place: mean over the nodes next to the best one.
        local = share * (two.geodesic[best] < 0.12 * scale)
        moved = (local @ two.points) / local.sum(1, keepdims=True)
        near = np.exp(-((one.geodesic / (0.25 * scale)) ** 2))
        bent = np.abs(one.geodesic - two.geodesic[best][:, best]) / scale
        stretch = (near * np.minimum(bent, 0.3)).sum(1) / near.sum(1)
        confidence = np.exp(-((stretch / 0.06) ** 2)) * np.clip(local.sum(1), 0, 1)
        if attempt == 0:
            places, rotation = _rigid(one.points, moved, confidence * p, 0.15 * scale)
            side = rotation @ one.sideways
    return one.points, moved, confidence


def _rigid(points: np.ndarray, moved: np.ndarray, weight: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] under the rigid motion that most of the matches agree on (Geman–McClure over `scale`), and its
    rotation [3, 3]."""
    robust = np.ones(len(points))
    for _ in range(10):
        share = weight * robust + 1e-12
        share = share / share.sum()
        a, b = share @ points, share @ moved
        rotation = polar(((moved - b).T @ (share[:, None] * (points - a)))[None])[0]
        result = (points - a) @ rotation.T + b
        robust = 1 / (1 + ((result - moved) ** 2).sum(1) / scale**2) ** 2
    return result, rotation


def _sinkhorn(plan: np.ndarray, p: np.ndarray, q: np.ndarray, iterations: int = 20) -> np.ndarray:
    v = np.ones_like(q)
    for _ in range(iterations):
        u = p / np.maximum(plan @ v, TINY)
        v = q / np.maximum(u @ plan, TINY)
    return u[:, None] * plan * v[None]


def hypotheses(source: Observation, target: Observation) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Different answers of `correspond`: trusting places less or shapes more, or turned about the vertical (root motion)."""
    settings: list[dict] = [
        {"place_weight": 0.3},
        {"place_weight": 0.3, "bend_weight": 12.0, "horizon": 0.5},
        {"bend_weight": 60.0},
        {"place_weight": 0.3, "side_weight": 1.0},
        {"place_weight": 0.3, "side_weight": 3.0, "bend_weight": 40.0},
    ]
    for turn in (0.0, 0.25, -0.25, 0.5, -0.5, 1.0):
        settings.append({"turn": rotation_matrices(np.array([[0.0, 0.0, turn * np.pi]]))[0]})
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for setting in settings:
        answer = correspond(source, target, **setting)
        scale = source.nodes.scale
        if all(np.linalg.norm(answer[1] - other[1], axis=1).mean() > 0.01 * scale for other in found):
            found.append(answer)
    return found
