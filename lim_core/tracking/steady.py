# SPDX-License-Identifier: GPL-3.0-or-later
"""Fitted keyframes of a clip made to move evenly where the clip does not show how they move.

Every keyframe of a clip has a body of its own, guessed anew: how deep it is changes from one to the next for no reason, and what
stands still trembles. What the clip shows of a real motion, its place in the picture, is kept.

Arrays are numpy, model space. Shapes: K keyframes, V vertices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ALONG = 3.0
"""Weight of the change of velocity along the clip's line of sight, against the distance from the fit."""
ACROSS, TREMBLING = 0.5, 0.02
"""Weight across it, and the change of velocity, in model units, from which it counts as motion: its weight is then halved.
On a still part of a clip these leave a quarter of the trembling. Five times TREMBLING and twice the weight left a tenth of it, and
lost a tenth of the silhouette where a fox falls over in a third of a second."""
ROUNDS = 6  # of reweighting


def steady(fitted: np.ndarray, times: Sequence[float], camera_to_world: np.ndarray) -> np.ndarray:
    """The keyframes with the least of `Σ |x − fitted|² + w · |change of velocity|²`, vertex by vertex.

    Args:
        fitted: [K, V, 3]; times: [K], of the keyframes, at any distances.
        camera_to_world: [4, 4] of the clip's camera.
    Returns:
        [K, V, 3] float64; what moves at an even speed is left alone, and so are fewer than three keyframes.
    """
    fitted = np.asarray(fitted, np.float64)
    count = len(fitted)
    if count < 3:
        return fitted
    gap = np.diff(np.asarray(times, np.float64))
    gap = gap / gap.mean()
    bend = np.zeros((count - 2, count))
    for k in range(count - 2):
        bend[k, k : k + 3] = 1 / gap[k], -1 / gap[k] - 1 / gap[k + 1], 1 / gap[k + 1]
    sight = fitted.mean(0) - camera_to_world[:3, 3]
    sight /= np.maximum(np.linalg.norm(sight, axis=1, keepdims=True), 1e-12)
    deep = np.einsum("kvi,vi->kv", fitted, sight)[..., None] * sight
    still, result = np.eye(count), fitted - deep
    for _ in range(ROUNDS):
        change = np.linalg.norm(np.einsum("rk,kvi->rvi", bend, result), axis=-1)
        weight = ACROSS / (1 + (change / TREMBLING) ** 2)
        matrix = still + np.einsum("rk,rv,rj->vkj", bend, weight, bend)
        result = np.linalg.solve(matrix, (fitted - deep).transpose(1, 0, 2)).transpose(1, 0, 2)
    smooth = np.linalg.solve(still + ALONG * bend.T @ bend, deep.reshape(count, -1)).reshape(deep.shape)
    return result + smooth
