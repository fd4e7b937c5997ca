# SPDX-License-Identifier: GPL-3.0-or-later
"""Random colours, noise and textures for generated objects. numpy only."""

from __future__ import annotations

import math

import numpy as np

TEXTURE = 64  # texels per side; the objects fill a few dozen pixels of a training picture


def random_palette(rng: np.random.Generator) -> np.ndarray:
    """sRGB-encoded colours [5, 3] in [0, 1] that share an object; some dull, some grey, some bright."""
    hue = rng.random() + rng.normal(0, rng.choice([0.04, 0.3]), 5)
    saturation = np.clip(rng.normal(rng.uniform(0.1, 0.7), 0.2, 5), 0, 1)
    value = rng.uniform(0.05, 1.0, 5) ** 0.6
    channel = np.clip(np.abs((hue[:, None] % 1 * 6 + [0, 4, 2]) % 6 - 3) - 1, 0, 1)
    return value[:, None] * (1 + saturation[:, None] * (channel - 1))


def pick_colour(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:
    return palette[rng.integers(len(palette))]


def value_noise(rng: np.random.Generator, size: int, octaves: int, first: int = 0) -> np.ndarray:
    """Periodic noise [size, size] in [0, 1], coarse to fine from octave `first` on; `size` is a power of two."""
    total, weight = np.zeros((size, size)), 1.0
    for octave in range(first, first + octaves):
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


KINDS = {"flat": 0.25, "noise": 0.3, "stripes": 0.15, "checks": 0.1, "spots": 0.1, "gradient": 0.1}
ALL_KINDS = {**KINDS, "flat": 0.15, "noise": 0.2, "stripes": 0.1, "image": 0.15, "patches": 0.1}


def random_texture(rng: np.random.Generator, palette: np.ndarray, kinds: dict[str, float] = KINDS) -> np.ndarray:
    """sRGB-encoded image [H, W, 3] in [0, 1] that repeats without a seam; flat ones are 1×1.

    Args:
        kinds: how often each kind is taken; the numbers sum to one.
    """
    a, b, c = (pick_colour(rng, palette) for _ in range(3))
    kind = rng.choice(list(kinds), p=list(kinds.values()))
    if kind == "flat":
        return a.reshape(1, 1, 3)
    if kind == "image":
        return noise_image(rng, palette)
    if kind == "patches":
        return patches(rng, palette)
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


def noise_image(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:
    """Colours that vary on several scales at once, each channel on its own, about a colour of the palette."""
    image = np.zeros((TEXTURE, TEXTURE, 3)) + pick_colour(rng, palette)
    roughness = rng.uniform(0.35, 0.8)  # how slowly the scales lose strength
    for octave in range(1, 7):
        grey = rng.uniform(0, 1)
        noise = [value_noise(rng, TEXTURE, 1, octave) - 0.5 for _ in range(4)]
        image += roughness**octave * (grey * noise[3][..., None] + (1 - grey) * np.stack(noise[:3], -1))
    return np.clip(image, 0, 1)


def patches(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:
    """Rectangles of the palette's colours over each other, as on clothes and in atlases."""
    image = np.zeros((TEXTURE, TEXTURE, 3)) + pick_colour(rng, palette)
    for _ in range(int(rng.integers(4, 16))):
        top, left = rng.integers(0, TEXTURE, 2)
        height, width = rng.integers(4, TEXTURE // 2, 2)
        rows, columns = (top + np.arange(height)) % TEXTURE, (left + np.arange(width)) % TEXTURE
        image[rows[:, None], columns] = pick_colour(rng, palette)
    return image
