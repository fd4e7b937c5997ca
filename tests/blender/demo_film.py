# SPDX-License-Identifier: GPL-3.0-or-later
"""A clip whose truth is known: the demo's creature, seen by the first camera of the rig, as pictures with alpha."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path


def film(capture_scene, scene, names: tuple[str, ...], frames: tuple[int, ...], folder: Path, size: int = 256) -> Path:
    """Write film_001.png, … for the objects of these names; returns the folder.

    Args:
        capture_scene: the add-on's module, whatever package it is in.
    """
    spec = capture_scene.CaptureSpec("objects", names, frames, image_size=size, views=1, rig_views=1)
    with tempfile.TemporaryDirectory() as job:
        capture_scene.capture(scene, spec, job)
        folder.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(sorted(Path(job, "capture").glob("*.png")), 1):
            shutil.copyfile(picture, folder / f"film_{number:03d}.png")
    return folder
