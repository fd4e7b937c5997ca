# SPDX-License-Identifier: GPL-3.0-or-later
"""Random closed surfaces: primitives, supershapes, height fields, tubes, and what is left of them after a cut."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ..shared.errors import LimError
from .patterns import value_noise


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A surface in its own space: it stands on the origin and grows along +Z for about one unit.

    Shapes: V vertices, F triangles.
    """

    points: np.ndarray
    """float64 [V, 3]"""
    faces: np.ndarray
    """int64 [F, 3]"""
    uv: np.ndarray
    """float64 [F, 3, 2]"""
    paint: np.ndarray | None = None
    """int [F]: faces of different numbers look different; None is 0 everywhere"""

    def sturdy_faces(self) -> np.ndarray:
        """Faces whose plane says where the surface turns: what is painted may be cut, and cuts leave slivers."""
        if self.paint is None:
            return self.faces
        a, b, c = self.points[self.faces].transpose(1, 0, 2)
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        longest = np.max([((p - q) ** 2).sum(1) for p, q in ((a, b), (b, c), (c, a))], 0)
        good = area > 0.2 * longest
        return self.faces[good] if good.any() else self.faces


def random_part(rng: np.random.Generator, stout: bool = False) -> Part:
    """One of the primitives. `stout` ones are fit to carry others."""
    kinds = [rounded_box, supershape, lathe, height_field]
    kinds += [supershape] if stout else [tube, tube]
    return kinds[rng.integers(len(kinds))](rng)


def grid_part(points: np.ndarray, wraps: bool = True) -> Part:
    """A part of a grid [rows, columns, 3], first row at the bottom. `wraps`: the last column meets the first."""
    rows, columns = points.shape[:2]
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(columns if wraps else columns - 1), indexing="ij")
    right = (j + 1) % columns
    a, b, c, d = i * columns + j, i * columns + right, (i + 1) * columns + right, (i + 1) * columns + j
    across = columns if wraps else columns - 1
    u0, u1, v0, v1 = j / across, (j + 1) / across, i / (rows - 1), (i + 1) / (rows - 1)
    corners = {"a": (u0, v0), "b": (u1, v0), "c": (u1, v1), "d": (u0, v1)}
    uv = [np.stack([np.stack(corners[k], -1) for k in triangle], -2) for triangle in ("abc", "acd")]
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    uv = np.concatenate([part.reshape(-1, 3, 2) for part in uv])
    points = points.reshape(-1, 3)
    edges = points[faces[:, 1:]] - points[faces[:, :1]]
    solid = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1) > 1e-9  # poles have flat triangles
    return Part(points, faces[solid], uv[solid])


def angles(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Polar angle from the bottom pole [rows, 1] and azimuth [1, columns]."""
    return np.linspace(0, math.pi, rows)[:, None], (np.arange(columns) / columns * 2 * math.pi)[None]


def supershape(rng: np.random.Generator) -> Part:
    """Gielis' superformula in both directions; a sphere or an ellipsoid every third time."""
    theta, phi = angles(25, 36)
    if rng.random() < 0.35:
        around, upward = np.ones_like(phi), np.ones_like(theta)
    else:
        around = superformula(phi, int(rng.integers(0, 7)), *np.exp(rng.uniform(-0.3, 2.0, 3)))
        upward = superformula(theta, int(rng.integers(0, 5)), *np.exp(rng.uniform(0.0, 2.0, 3)))
    flat = around * upward * np.sin(theta)
    points = np.stack([flat * np.cos(phi), flat * np.sin(phi), -upward * np.cos(theta) * np.ones_like(phi)], -1)
    return grid_part(stand(points + bumps(rng, points)))


def superformula(angle: np.ndarray, m: int, n1: float, n2: float, n3: float) -> np.ndarray:
    r = np.abs(np.cos(m * angle / 4)) ** n2 + np.abs(np.sin(m * angle / 4)) ** n3
    r = np.maximum(r, 1e-3) ** (-1 / n1)
    return np.clip(r / r.mean(), 0.3, 2.5)


def lathe(rng: np.random.Generator) -> Part:
    """A surface of revolution, closed at both ends: cylinders, cones, vases."""
    heights = np.linspace(0, 1, 19)
    kind = rng.integers(3)
    if kind == 0:
        radius = np.full(19, 0.35)
    elif kind == 1:
        radius = 0.4 + (rng.uniform(0.02, 0.3) - 0.4) * heights
    else:
        radius = np.interp(heights, np.linspace(0, 1, 5), rng.uniform(0.12, 0.5, 5))
        radius = np.convolve(np.pad(radius, 2, "edge"), [0.1, 0.2, 0.4, 0.2, 0.1], "valid")
    radius = np.concatenate([[0, radius[0] * 0.6], radius, [radius[-1] * 0.6, 0]])
    heights = np.concatenate([[0, 0], heights, [1, 1]])
    _, phi = angles(2, int(rng.choice([5, 6, 8, 24, 24, 24])))
    ring = np.stack([np.cos(phi), np.sin(phi)], -1) * radius[:, None, None]
    return grid_part(np.concatenate([ring, np.broadcast_to(heights[:, None, None], (*ring.shape[:2], 1))], -1))


def rounded_box(rng: np.random.Generator) -> Part:
    """A box with more or less sharp edges: a superellipsoid of a high power."""
    theta, phi = angles(29, 40)
    power = rng.uniform(3, 20)
    direction = np.stack(
        [np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), -np.cos(theta) * np.ones_like(phi)], -1
    )
    radius = (np.abs(direction) ** power).sum(-1) ** (-1 / power)
    return grid_part(stand(direction * radius[..., None]))


def tube(rng: np.random.Generator) -> Part:
    """A round tube along a smooth random curve, thinner towards its end."""
    steps = np.linspace(0, 1, 29)
    knots = np.cumsum(np.concatenate([[[0, 0, 0]], rng.normal(0, 0.16, (4, 3)) + [0, 0, 0.25]]), 0)
    # A cubic through five knots would overshoot; quadratic B-splines over the knots do not.
    curve = bspline(knots, steps)
    tangent = np.gradient(curve, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    side = np.empty_like(tangent)
    side[0] = np.cross(tangent[0], [0.0, 1.0, 0.1])
    for i in range(1, len(side)):  # parallel transport: the tube does not twist
        side[i] = side[i - 1] - (side[i - 1] @ tangent[i]) * tangent[i]
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    up = np.cross(tangent, side)
    radius = rng.uniform(0.06, 0.16) * (1 + (rng.uniform(0.3, 1.2) - 1) * steps)
    radius *= 1 + rng.uniform(0, 0.25) * np.sin(rng.uniform(4, 20) * steps)
    _, phi = angles(2, 14)
    ring = np.cos(phi)[..., None] * side[:, None] + np.sin(phi)[..., None] * up[:, None]
    body = curve[:, None] + ring * radius[:, None, None]
    return grid_part(np.concatenate([np.repeat(curve[:1, None], 14, 1), body, np.repeat(curve[-1:, None], 14, 1)]))


def bspline(knots: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """A uniform quadratic B-spline [S, 3] over knots [K, 3], clamped to both ends."""
    padded = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    place = steps * (len(knots) - 1)
    index = np.minimum(np.rint(place).astype(int), len(knots) - 1)
    t = (place - index + 0.5)[:, None]
    a, b, c = padded[index], padded[index + 1], padded[index + 2]
    return 0.5 * ((1 - t) ** 2 * a + (1 + 2 * t - 2 * t**2) * b + t**2 * c)


def height_field(rng: np.random.Generator) -> Part:
    """A slab whose upper side is a random landscape."""
    n = 26
    noise = value_noise(rng, 32, int(rng.integers(2, 6)))[:n, :n] * rng.uniform(0.1, 0.5)
    x = np.linspace(-0.6, 0.6, n)
    # One grid wrapped around the slab: bottom centre line, bottom rim, top. Rows go from the underside to the top.
    top = np.stack([*np.meshgrid(x, x, indexing="xy"), 0.25 + noise], -1)
    bottom = top.copy()
    bottom[..., 2] = 0
    under, over = grid_part(bottom, False), grid_part(top, False)
    rim = np.concatenate(
        [np.arange(n), np.arange(1, n) * n + n - 1, n * n - 2 - np.arange(n - 1), (n - 2 - np.arange(n - 2)) * n]
    )
    sides = grid_part(np.stack([under.points[rim], over.points[rim]]))
    side_faces = np.concatenate([rim, rim + n * n])[sides.faces]  # the slab's own vertices: closed, no seam opens
    faces = np.concatenate([under.faces[:, ::-1], over.faces + n * n, side_faces])
    points = np.concatenate([under.points, over.points])
    return Part(points, faces, np.concatenate([under.uv[:, ::-1], over.uv, sides.uv]))


def stand(points: np.ndarray) -> np.ndarray:
    """Scaled to one unit of height and put on the origin."""
    low, high = points[..., 2].min(), points[..., 2].max()
    return (points - [0, 0, low]) / (high - low)


def bumps(rng: np.random.Generator, points: np.ndarray) -> np.ndarray:
    """Smooth random offsets along the direction from the centre; none every other time."""
    if rng.random() < 0.5:
        return np.zeros_like(points)
    wave_vectors = rng.normal(0, rng.uniform(1.5, 5), (6, 3))
    offset = np.sin(points @ wave_vectors.T + rng.uniform(0, 2 * math.pi, 6)).mean(-1)
    return points * (rng.uniform(0.1, 0.5) * offset)[..., None]


# ---- cuts ------------------------------------------------------------------------------------------------------------
def cut(rng: np.random.Generator, part: Part) -> Part:
    """The part less one to three others, which leave bites, holes and flat faces; the cut faces get paint 1.

    What would leave too little of it, or cut it off its foot, is not done.
    """
    left = solid(part, 0)
    volume = left.volume()
    low, high = part.points.min(0), part.points.max(0)
    wanted = int(rng.integers(1, 4))
    for _ in range(wanted + 3):
        tool, kind = random_part(rng), rng.choice(["bite", "hole", "slice"])
        size = rng.uniform(0.2, 0.55) * float((high - low).max())
        scale = {"bite": [size] * 3, "hole": [size * 0.6, size * 0.6, 4 * size], "slice": [3.0] * 3}[kind]
        points = (tool.points - [0, 0, 0.5]) * scale
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        turn[:, 0] *= np.linalg.det(turn)
        place = part.points[int(rng.choice(np.flatnonzero(part.points[:, 2] >= low[2] + 0.3 * (high[2] - low[2]))))]
        if kind == "slice":
            away = place - (low + high) / 2
            place = place + away / max(np.linalg.norm(away), 1e-6) * (
                np.ptp(points @ turn.T, axis=0).max() / 2 - 0.2 * size
            )
        tried = left - solid(Part(points @ turn.T + place, tool.faces, tool.uv), 1)
        pieces = tried.decompose()
        largest = max(pieces, key=lambda piece: piece.volume()) if pieces else None
        if largest is not None and 0.4 * volume < largest.volume() < 0.985 * left.volume():
            if largest.bounding_box()[2] < low[2] + 0.05 * (high[2] - low[2]):
                left, wanted = largest, wanted - 1
        if wanted == 0:
            break
    return from_solid(left)


def solid(part: Part, paint: int):
    """A part as a `manifold3d.Manifold` that remembers UV and paint (its properties 3, 4 and 5).

    Raises:
        LimError: `backend_outdated` where manifold3d is not installed.
    """
    try:
        from manifold3d import Manifold, Mesh
    except ImportError as error:
        hint = "Install it with: python3 install backend --training"
        raise LimError("backend_outdated", "Cuts need the library manifold3d.", hint) from error
    faces, uv = part.faces, part.uv
    a, b, c = part.points[faces].transpose(1, 0, 2)
    if (a * np.cross(b, c)).sum() < 0:  # outwards
        faces, uv = faces[:, ::-1], uv[:, ::-1]
    # Every corner is a vertex of its own, for its UV; those that lie together are merged.
    corners = part.points[faces].reshape(-1, 3)
    _, welded = np.unique(np.rint(part.points * 1e6), axis=0, return_inverse=True)
    _, first, which = np.unique(welded.ravel()[faces], return_index=True, return_inverse=True)
    same = first[which.ravel()]
    apart = np.flatnonzero(same != np.arange(len(corners)))
    properties = np.concatenate([corners, uv.reshape(-1, 2), np.full((len(corners), 1), paint)], 1)
    return Manifold(
        Mesh(
            vert_properties=properties.astype(np.float32), tri_verts=np.arange(len(corners), dtype=np.uint32).reshape(-1, 3),
            merge_from_vert=apart.astype(np.uint32), merge_to_vert=same[apart].astype(np.uint32),
        )
    )  # fmt: skip


def from_solid(manifold) -> Part:
    mesh = manifold.to_mesh()
    properties, corners = np.asarray(mesh.vert_properties, np.float64), np.asarray(mesh.tri_verts, np.int64)
    same = np.arange(len(properties))
    same[np.asarray(mesh.merge_from_vert, np.int64)] = np.asarray(mesh.merge_to_vert, np.int64)
    used, faces = np.unique(same[corners], return_inverse=True)
    paint = (properties[corners, 5].mean(1) > 0.5).astype(np.int64)
    return Part(properties[used, :3], faces.reshape(-1, 3), properties[corners, 3:5], paint)
