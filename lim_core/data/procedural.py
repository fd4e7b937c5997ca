# SPDX-License-Identifier: GPL-3.0-or-later
"""Endless random objects that move, as packs in memory: LRM-Zero's idea (random primitives, height fields, random textures)
made dynamic, with correspondences known by construction. numpy only.

An object is a tree of parts. Each part is a closed grid surface that bends, twists and swells on its own, turns about its
joint, and sits on a triangle of its parent, so that it follows whatever the parent does. Some limbs come in mirrored pairs.
Asset units, right-handed, +Z up; the object stands around the origin and is about 2 units large.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from .packs import Pack

TEXTURE = 64  # texels per side; the objects fill a few dozen pixels of a training picture


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


def objects(seed: int = 0, **options) -> Iterator[Pack]:
    """Packs without end; the same seed gives the same ones. Options are those of `make_object`."""
    index = 0
    while True:
        yield make_object((seed, index), **options)
        index += 1


def make_object(seed, *, frames: int = 16, fps: float = 10.0, parts: tuple[int, int] = (1, 7)) -> Pack:
    """One object with one clip named "move".

    Args:
        seed: anything that `numpy.random.default_rng` takes, such as (run, index); decides everything.
        frames: stored frames of the clip.
        fps: stored frames per second; motions have periods of 1.2 to 5 seconds.
        parts: fewest and most parts, mirrored twins not counted.
    """
    rng = np.random.default_rng(seed)
    times = np.arange(frames) / fps
    surfaces: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # moving points [T, V, 3], faces, uv
    count = int(rng.integers(parts[0], parts[1] + 1))

    root = random_part(rng, stout=True)
    symmetric = rng.random() < 0.5
    size = np.exp(rng.uniform(-0.35, 0.35, 3))
    if symmetric:
        points = root.points * size
        moving = np.repeat(
            points[None], frames, 0
        )  # the twins sit where the root is its own mirror image: keep it stiff
    else:
        moving = deform(rng, root.points * size, times)
    surfaces.append((moving, root.faces, root.uv))

    for _ in range(count - 1):
        parent = int(rng.integers(0, len(surfaces))) if rng.random() < 0.4 else 0
        part = random_part(rng)
        length = rng.uniform(0.3, 1.0)
        size = np.array([*(length * np.exp(rng.uniform(-1.0, 0.2, 2))), length])
        local = deform(rng, part.points * size, times)
        local[..., 2] -= 0.08 * length  # a little inside its parent: no gap at the joint
        origin, frame = follow_triangle(rng, surfaces[parent][0], surfaces[parent][1])
        swing = rotations(random_axis(rng), wave(rng, times, rng.uniform(0.2, 1.1)))
        swing = swing @ rotations(random_axis(rng), np.full(1, rng.normal(0, 0.4)))
        moving = local @ (frame @ swing).transpose(0, 2, 1) + origin[:, None]
        surfaces.append((moving, part.faces, part.uv))
        if symmetric and parent == 0:
            shift = int(rng.integers(0, frames)) if rng.random() < 0.5 else 0
            twin = local if shift == 0 else bounce(local, shift)
            turn = frame @ (swing if shift == 0 else bounce(swing, shift))
            twin = twin @ turn.transpose(0, 2, 1) + origin[:, None]
            surfaces.append((twin * [-1, 1, 1], part.faces[:, ::-1], part.uv[:, ::-1]))

    positions = np.concatenate([s[0] for s in surfaces], 1)
    positions = move_whole(rng, positions, times)
    starts = np.cumsum([0] + [s[0].shape[1] for s in surfaces])
    palette = random_palette(rng)
    textures, uvs, materials = [], [], []
    for _, faces, uv in surfaces:
        textures.append(random_texture(rng, palette))
        uvs.append(uv * rng.integers(1, 4, 2))
        materials.append(np.full(len(faces), len(textures) - 1))
        if rng.random() < 0.25:  # a part of it in one flat colour
            textures.append(pick_colour(rng, palette).reshape(1, 1, 3))
            low = uv[:, :, 1].mean(1) < rng.uniform(0.2, 0.6)
            materials[-1][low] = len(textures) - 1
    texels = [np.rint(t * 255).astype(np.uint8).reshape(-1, 3) for t in textures]
    return Pack(
        name=f"procedural {seed}",
        faces=np.concatenate([s[1] + start for s, start in zip(surfaces, starts, strict=False)]).astype(np.int32),
        uv=np.concatenate(uvs).astype(np.float32),
        face_material=np.concatenate(materials).astype(np.uint8),
        texture_shape=np.array([t.shape[:2] for t in textures], np.int32),
        texture_start=np.cumsum([0] + [len(t) for t in texels[:-1]]).astype(np.int64),
        texels=np.concatenate(texels),
        clip_names=("move",),
        clip_start=np.array([0, frames], np.int32),
        fps=float(fps),
        stored_positions=positions.astype(np.float32),
    )


# ---- shapes ----------------------------------------------------------------------------------------------------------
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


# ---- motion ----------------------------------------------------------------------------------------------------------
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
    """A place on a moving surface: origin [T, 3] and frame [T, 3, 3] (columns) whose z points out of it."""
    first = moving[0][faces]
    area = np.linalg.norm(np.cross(first[:, 1] - first[:, 0], first[:, 2] - first[:, 0]), axis=1)
    a, b, c = moving[:, faces[rng.choice(len(faces), p=area / area.sum())]].transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
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


# ---- colour ----------------------------------------------------------------------------------------------------------
def random_palette(rng: np.random.Generator) -> np.ndarray:
    """sRGB-encoded colours [5, 3] in [0, 1] that share an object; some dull, some grey, some bright."""
    hue = rng.random() + rng.normal(0, rng.choice([0.04, 0.3]), 5)
    saturation = np.clip(rng.normal(rng.uniform(0.1, 0.7), 0.2, 5), 0, 1)
    value = rng.uniform(0.05, 1.0, 5) ** 0.6
    channel = np.clip(np.abs((hue[:, None] % 1 * 6 + [0, 4, 2]) % 6 - 3) - 1, 0, 1)
    return value[:, None] * (1 + saturation[:, None] * (channel - 1))


def pick_colour(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:
    return palette[rng.integers(len(palette))]


def value_noise(rng: np.random.Generator, size: int, octaves: int) -> np.ndarray:
    """Periodic noise [size, size] in [0, 1], coarse to fine; `size` is a power of two."""
    total, weight = np.zeros((size, size)), 1.0
    for octave in range(octaves):
        cells = min(2 ** (octave + 1), size)
        grid = rng.random((cells, cells))
        place = np.arange(size) * cells / size
        low = place.astype(int)
        part = place - low
        part = part * part * (3 - 2 * part)
        high = (low + 1) % cells
        rows = grid[low] + part[:, None] * (grid[high] - grid[low])
        total += weight * (rows[:, low] + part * (rows[:, high] - rows[:, low]))
        weight *= 0.6
    low, high = total.min(), total.max()
    return (total - low) / max(high - low, 1e-9)


def random_texture(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:
    """sRGB-encoded image [H, W, 3] in [0, 1] that repeats without a seam; flat ones are 1×1."""
    a, b, c = (pick_colour(rng, palette) for _ in range(3))
    kind = rng.choice(["flat", "noise", "stripes", "checks", "spots", "gradient"], p=[0.25, 0.3, 0.15, 0.1, 0.1, 0.1])
    if kind == "flat":
        return a.reshape(1, 1, 3)
    v, u = np.mgrid[0:TEXTURE, 0:TEXTURE] / TEXTURE
    if kind == "noise":
        amount = value_noise(rng, TEXTURE, int(rng.integers(2, 7)))
        if rng.random() < 0.4:
            amount = np.clip((amount - 0.5) * rng.uniform(3, 12) + 0.5, 0, 1)
    elif kind == "stripes":
        repeats = rng.integers(0, 7, 2) * rng.choice([[1, 0], [0, 1], [1, 1]])
        repeats = repeats if repeats.any() else np.array([0, 4])
        wobble = value_noise(rng, TEXTURE, 3) * rng.choice([0.0, 0.0, 0.5])
        amount = (np.sin(2 * math.pi * (repeats[0] * u + repeats[1] * v + wobble)) > rng.uniform(-0.7, 0.7)) * 1.0
    elif kind == "checks":
        repeats = 2 * rng.integers(1, 5, 2)
        amount = ((np.floor(u * repeats[0]) + np.floor(v * repeats[1])) % 2) * 1.0
    elif kind == "spots":
        amount = np.zeros((TEXTURE, TEXTURE))
        for x, y, radius in rng.uniform([0, 0, 0.04], [1, 1, 0.16], (int(rng.integers(4, 16)), 3)):
            du, dv = np.abs(u - x), np.abs(v - y)
            inside = np.minimum(du, 1 - du) ** 2 + np.minimum(dv, 1 - dv) ** 2 < radius**2
            amount[inside] = 1.0
    else:
        amount = 0.5 - 0.5 * np.cos(2 * math.pi * v)
    image = a + amount[..., None] * (b - a)
    if rng.random() < 0.4:
        fine = value_noise(rng, TEXTURE, 6)[..., None]
        image = image + (c - image) * fine * rng.uniform(0.1, 0.5)
    return np.clip(image, 0, 1)
