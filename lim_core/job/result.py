# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes what a job found: result.npz, texture.png and, last, result.json. Whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from ..shared import files, protocol


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """An npz, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.writing(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's own option, allow_pickle, is no array's name


def save_image(path: Path, pixels: np.ndarray) -> None:
    """uint8 [H, W, 3 or 4] as PNG, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.writing(path) as file:
        Image.fromarray(pixels).save(file, format="PNG", compress_level=4)


def write(job: Path, summary: dict, texture: np.ndarray | None, **arrays: np.ndarray) -> None:
    """The result of a job (docs/architecture.md). `result.json` comes last: where it is, everything is."""
    (job / protocol.RESULT_FILE).unlink(missing_ok=True)
    save_arrays(job / protocol.RESULT_ARRAYS, **arrays)
    if texture is not None:
        save_image(job / protocol.TEXTURE_FILE, texture)
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    files.write_text(job / protocol.RESULT_FILE, text)
