# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes what a job found: result.npz, texture.png and, last, result.json. Whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from ..shared import protocol


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """An npz under a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's own option, allow_pickle, is no array's name
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_image(path: Path, pixels: np.ndarray) -> None:
    """uint8 [H, W, 3 or 4] as PNG under a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        Image.fromarray(pixels).save(temporary, format="PNG", compress_level=4)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write(job: Path, summary: dict, texture: np.ndarray | None, **arrays: np.ndarray) -> None:
    """The result of a job (docs/architecture.md). `result.json` comes last: where it is, everything is."""
    (job / protocol.RESULT_FILE).unlink(missing_ok=True)
    save_arrays(job / protocol.RESULT_ARRAYS, **arrays)
    if texture is not None:
        save_image(job / protocol.TEXTURE_FILE, texture)
    temporary = job / (protocol.RESULT_FILE + ".tmp")
    temporary.write_text(json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, job / protocol.RESULT_FILE)
