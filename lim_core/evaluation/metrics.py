# SPDX-License-Identifier: GPL-3.0-or-later
"""What the evaluations measure. Images are float [H, W, 3] in [0, 1] on white, masks bool [H, W]."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree
from skimage.metrics import structural_similarity

from ..networks.checkpoint import write_json
from ..networks.perceptual import Perceptual
from ..shared import files
from ..shared.errors import LimError, from_os_error

PICTURE = ("psnr", "psnr_fg", "ssim", "lpips")


def pictures(images, truth, mask, perceptual: Perceptual | None = None) -> dict[str, float | None]:
    """The measures of `PICTURE`, each a mean over the views; lpips is None without its network.

    Args:
        images, truth: [V, H, W, 3]; mask: bool [V, H, W], what counts as foreground (the truth's).
    """
    return {
        "psnr": float(np.mean([psnr(a, b) for a, b in zip(images, truth)])),
        "psnr_fg": finite_mean([psnr(a, b, m) for a, b, m in zip(images, truth, mask)]),
        "ssim": float(np.mean([ssim(a, b) for a, b in zip(images, truth)])),
        "lpips": None if perceptual is None else lpips(perceptual, images, truth),
    }


def psnr(image: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB, over the mask where one is given; NaN for an empty mask."""
    _one_size(image, truth)
    error = (image - truth) ** 2
    if mask is not None:
        error = error[mask]
    if not error.size:
        return math.nan
    return -10 * math.log10(max(float(error.mean()), 1e-10))


def ssim(image: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity (Wang et al., 2004), scikit-image's."""
    _one_size(image, truth)
    return float(structural_similarity(truth, image, channel_axis=-1, data_range=1.0))


def lpips(perceptual: Perceptual, images: np.ndarray, truth: np.ndarray) -> float:
    """Mean perceptual distance of pictures [V, H, W, 3]."""
    device = next(perceptual.parameters()).device
    one, two = (
        torch.from_numpy(np.ascontiguousarray(x, np.float32)).movedim(-1, 1).to(device) for x in (images, truth)
    )
    return float(perceptual.distance(one, two).mean())


def iou(one: np.ndarray, two: np.ndarray) -> float:
    """Intersection over union of masks; 1 where both are empty."""
    union = (one | two).sum()
    return float((one & two).sum() / union) if union else 1.0


def chamfer(one: np.ndarray, two: np.ndarray) -> float:
    """Mean nearest-neighbour distance both ways, summed (CD-3D), between point sets [N, 3] in model units."""
    if not len(one) or not len(two):
        return math.nan
    return float(cKDTree(two).query(one)[0].mean() + cKDTree(one).query(two)[0].mean())


def sample_surface(vertices: np.ndarray, faces: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """`count` points [N, 3] spread evenly over a mesh's area."""
    return at_places(vertices, faces, *surface_places(vertices, faces, count, seed))


def surface_places(vertices: np.ndarray, faces: np.ndarray, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Face [N] and barycentric weights [N, 3] of points spread evenly over a mesh's area: the same material at any time.

    Raises:
        LimError: `empty_surface` for a mesh without area.
    """
    corner = vertices[faces].astype(np.float64)
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    total = area.sum()
    if not total > 0 or not np.isfinite(total):
        raise LimError("empty_surface", "The mesh has no area.", "Leave this frame or this asset out.")
    rng = np.random.default_rng(seed)
    face = rng.choice(len(faces), count, p=area / total)
    a, b = rng.random((2, count))
    flip = a + b > 1
    a, b = np.where(flip, 1 - a, a), np.where(flip, 1 - b, b)
    return face, np.stack([1 - a - b, a, b], 1)


def at_places(vertices: np.ndarray, faces: np.ndarray, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Points [..., N, 3] of vertices [..., V, 3] at places of `surface_places`."""
    return np.einsum("...nkc,nk->...nc", vertices[..., faces[face], :].astype(np.float64), weights)


def finite_mean(values) -> float:
    """Mean without the NaNs; NaN where nothing is left."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else math.nan


def mean(rows: list[dict], name: str) -> float | None:
    """Mean of a column without its NaNs; None where nothing was measured."""
    value = finite_mean([row[name] for row in rows if row.get(name) is not None])
    return None if math.isnan(value) else round(value, 5)


def write_rows(out: Path, rows: list[dict]) -> None:
    """results.csv, a row per sample; called after each, so that an interrupted evaluation keeps what it has."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with files.writing(out / "results.csv", text=True, newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)
    except OSError as error:
        raise from_os_error(error, "writing the results") from error


def write(out: Path, rows: list[dict], summary: dict) -> None:
    """results.csv and summary.json."""
    write_rows(out, rows)
    try:
        write_json(out / "summary.json", summary)
    except OSError as error:
        raise from_os_error(error, "writing the results") from error


def _one_size(image: np.ndarray, truth: np.ndarray) -> None:
    if image.shape != truth.shape:
        one, two = (f"{x.shape[1]}×{x.shape[0]}" for x in (image, truth))
        raise LimError("bad_capture", f"Pictures of {one} and {two} pixels cannot be compared.", "Give both one size.")
