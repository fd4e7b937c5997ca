# SPDX-License-Identifier: GPL-3.0-or-later
"""The picture in the panel: what a job made last, as an icon that the panel can draw without touching the disk."""

from __future__ import annotations

import bpy
import bpy.utils.previews
import numpy as np

LARGEST = 512
"""Pixels of the icon's longer side."""
COLUMNS = 4
"""Columns of a wide sheet of square cells that are shown; the whole sheet would be too small to see."""

_icons: bpy.utils.previews.ImagePreviewCollection | None = None


def load(path: str, rows: int = 0) -> int:
    """Make the picture the one icon; its id, 0 if it cannot be read (or without a window).

    Args:
        rows: of the sheet's square cells; of a sheet that is wider than `COLUMNS`, some columns are taken, evenly
            spread. 0: the picture is no sheet.
    """
    try:
        image = bpy.data.images.load(path, check_existing=False)
    except RuntimeError:
        return 0
    try:
        (width, height), channels = image.size, image.channels
        if not width * height or channels != 4:
            return 0
        flat = np.empty(width * height * 4, np.float32)
        image.pixels.foreach_get(flat)
    finally:
        bpy.data.images.remove(image)
    pixels = chosen_columns(flat.reshape(height, width, 4), rows)
    step = -(-max(pixels.shape[:2]) // LARGEST)
    pixels = pixels[::step, ::step]
    icon = _fresh_icon()
    icon.image_size = pixels.shape[1::-1]
    icon.image_pixels_float.foreach_set(np.ascontiguousarray(pixels).ravel())
    return icon.icon_id


def chosen_columns(sheet: np.ndarray, rows: int) -> np.ndarray:
    """At most `COLUMNS` columns of a sheet [H, W, C] of `rows` rows of square cells; other pictures as they are."""
    cell = sheet.shape[0] // rows if rows else 0
    columns = sheet.shape[1] // cell if cell else 0
    if columns <= COLUMNS:
        return sheet
    taken = np.linspace(0, columns - 1, COLUMNS).round().astype(int)
    return np.concatenate([sheet[:, cell * column : cell * (column + 1)] for column in taken], 1)


def clear() -> None:
    """Forget the picture."""
    global _icons
    if _icons is not None:
        bpy.utils.previews.remove(_icons)
        _icons = None


def _fresh_icon():
    global _icons
    clear()
    _icons = bpy.utils.previews.new()
    return _icons.new("picture")
