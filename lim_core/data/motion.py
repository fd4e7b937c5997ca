# SPDX-License-Identifier: GPL-3.0-or-later
"""Smooth random motions with known correspondences: waves over time, bends, twists, turns. numpy only."""

from __future__ import annotations

import math

import numpy as np


def wave(rng: np.random.Generator, times: np.ndarray, amplitude: float) -> np.ndarray:
    """A smooth random function of time [T], about ±amplitude: swinging, or going from one place to another once."""
    if rng.random() < 0.25:
        middle, width = rng.uniform(times[0], times[-1] + 1e-9), rng.uniform(0.25, 0.8)
        return amplitude * np.tanh((times - middle) / width) * rng.choice([-1, 1])
    base = 1 / rng.uniform(1.2, 5.0)
    phase = rng.uniform(0, 2 * math.pi, 2)
    second = rng.uniform(0, 0.4)
    angle = 2 * math.pi * base * times
    return amplitude * (np.sin(angle + phase[0]) + second * np.sin(2 * angle + phase[1])) / (1 + second)


def bounce(array: np.ndarray, shift: int) -> np.ndarray:
    """The same motion `shift` frames later in a loop there and back, so that it stays smooth."""
    period = max(2 * (len(array) - 1), 1)
    index = (np.arange(len(array)) + shift) % period
    return array[np.where(index < len(array), index, period - index)]


def deform(rng: np.random.Generator, points: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Bend, twist, squash and stretch over time [T, V, 3]. The origin, where the part is fixed, stays."""
    moving = np.repeat(points[None], len(times), 0)
    height = max(float(points[:, 2].max()), 1e-6)
    if rng.random() < 0.4:  # squash and stretch, keeping the volume
        stretch = np.exp(wave(rng, times, rng.uniform(0.1, 0.35)))[:, None]
        moving[..., 2] *= stretch
        moving[..., :2] /= np.sqrt(stretch)[..., None]
    if rng.random() < 0.4:  # twist about its axis
        angle = wave(rng, times, rng.uniform(0.3, 1.5))[:, None] * (moving[..., 2] / height)
        c, s = np.cos(angle), np.sin(angle)
        x, y = moving[..., 0].copy(), moving[..., 1].copy()
        moving[..., 0], moving[..., 1] = c * x - s * y, s * x + c * y
    if rng.random() < 0.6:  # bend towards a side that is random but fixed
        turn = rotations(np.array([0.0, 0.0, 1.0]), rng.uniform(0, 2 * math.pi, 1))[0]
        moving = bend(moving @ turn.T, wave(rng, times, rng.uniform(0.3, 1.4)), height) @ turn
    return moving


def bend(moving: np.ndarray, angle: np.ndarray, height: float) -> np.ndarray:
    """Points [T, V, 3] bent by angle [T] over `height` towards +X: the axis becomes an arc of the same length."""
    curvature = np.where(np.abs(angle) < 1e-4, 1e-4, angle)[:, None] / height
    radius, a = 1 / curvature, moving[..., 2] * curvature
    reach = radius - moving[..., 0]
    return np.stack([radius - reach * np.cos(a), moving[..., 1], reach * np.sin(a)], -1)


def follow_triangle(rng: np.random.Generator, moving: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A place on a moving surface: origin [T, 3] and frame [T, 3, 3] (columns) whose z points out of it.

    Triangles that turn over at once, where the surface folds through itself, are passed by if there are others.
    """
    first = moving[0][faces]
    area = np.linalg.norm(np.cross(first[:, 1] - first[:, 0], first[:, 2] - first[:, 0]), axis=1)
    for _ in range(8):
        a, b, c = moving[:, faces[rng.choice(len(faces), p=area / area.sum())]].transpose(1, 0, 2)
        normal = np.cross(b - a, c - a)
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
        if (normal[1:] * normal[:-1]).sum(1).min(initial=1.0) > 0.3:
            break
    middle = (a + b + c) / 3
    if ((middle - moving.mean(1)) * normal).sum(1)[0] < 0:
        normal = -normal
    x = b - a
    x -= (x * normal).sum(1, keepdims=True) * normal
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return middle, np.stack([x, np.cross(normal, x), normal], -1)


def random_axis(rng: np.random.Generator) -> np.ndarray:
    axis = rng.normal(size=3) * [1, 1, 0.5]  # turning about its own length shows little
    return axis / np.linalg.norm(axis)


def rotations(axis: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Matrices [T, 3, 3] about a unit axis by angles [T] (Rodrigues)."""
    x, y, z = axis
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    s, c = np.sin(angle)[:, None, None], np.cos(angle)[:, None, None]
    return np.eye(3) + s * k + (1 - c) * (k @ k)


def move_whole(rng: np.random.Generator, positions: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Turn the object somehow, let it drift and sway as a whole, centre it at the origin, about 2 units large."""
    centre = (positions[0].min(0) + positions[0].max(0)) / 2
    positions = (positions - centre) * (2 / np.ptp(positions[0], axis=0).max())
    if rng.random() < 0.3:  # most things stand upright
        positions = positions @ rotations(random_axis(rng), rng.uniform(-math.pi, math.pi, 1))[0].T
    positions = positions @ rotations(np.array([0.0, 0.0, 1.0]), rng.uniform(-math.pi, math.pi, 1))[0].T
    if rng.random() < 0.5:
        sway = rotations(random_axis(rng), wave(rng, times, rng.uniform(0.05, 0.5)))
        positions = positions @ sway.transpose(0, 2, 1)
    if rng.random() < 0.5:
        drift = np.stack([wave(rng, times, amplitude) for amplitude in rng.uniform(0, 0.25, 3)], -1)
        positions = positions + drift[:, None]
    return positions
