# SPDX-License-Identifier: GPL-3.0-or-later
"""What the evaluations measure. Images are float [H, W, 3] in [0, 1] on white, masks bool [H, W]."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree
from skimage.metrics import structural_similarity

from .. import checkpoint


def psnr(image: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB, over the mask where one is given; NaN for an empty mask."""
    error = (image - truth) ** 2
    if mask is not None:
        error = error[mask]
    if not error.size:
        return math.nan
    return -10 * math.log10(max(float(error.mean()), 1e-10))


def ssim(image: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity (Wang et al., 2004), scikit-image's."""
    return float(structural_similarity(truth, image, channel_axis=-1, data_range=1.0))


def iou(one: np.ndarray, two: np.ndarray) -> float:
    union = (one | two).sum()
    return float((one & two).sum() / union) if union else 1.0


def chamfer(one: np.ndarray, two: np.ndarray) -> float:
    """Mean nearest-neighbour distance both ways, summed (CD-3D), between point sets [N, 3] in model units."""
    if not len(one) or not len(two):
        return math.nan
    return float(cKDTree(two).query(one)[0].mean() + cKDTree(one).query(two)[0].mean())


def sample_surface(vertices: np.ndarray, faces: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """`count` points [N, 3] spread evenly over a mesh's area."""
    corner = vertices[faces].astype(np.float64)
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    rng = np.random.default_rng(seed)
    chosen = corner[rng.choice(len(faces), count, p=area / area.sum())]
    a, b = rng.random((2, count, 1))
    flip = a + b > 1
    a, b = np.where(flip, 1 - a, a), np.where(flip, 1 - b, b)
    return chosen[:, 0] + a * (chosen[:, 1] - chosen[:, 0]) + b * (chosen[:, 2] - chosen[:, 0])


def mean(rows: list[dict], name: str) -> float | None:
    """Mean of a column without its NaNs; None where nothing was measured."""
    values = [row[name] for row in rows if row.get(name) is not None and not math.isnan(row[name])]
    return round(float(np.mean(values)), 5) if values else None


def write(out: Path, rows: list[dict], summary: dict) -> None:
    """results.csv (a row per sample) and summary.json."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    checkpoint.write_json(out / "summary.json", summary)
