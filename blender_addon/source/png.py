# SPDX-License-Identifier: GPL-3.0-or-later
"""Write 8-bit PNG files exactly as given: Blender's own saving would pass them through colour management. numpy only."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np

from ...lim_core.shared import files


def write(path: str | os.PathLike, pixels: np.ndarray) -> None:
    """Write `pixels`, uint8 [H, W, 3 or 4], row 0 at the top, straight alpha; whole or not at all.

    Raises:
        OSError: the disk is full or the folder read-only.
    """
    height, width, channels = pixels.shape
    # The “up” filter (2) halves the size of flat and smooth areas and needs one subtraction in numpy.
    lines = pixels.reshape(height, width * channels)
    filtered = np.full((height, 1 + width * channels), 2, np.uint8)
    filtered[0, 1:] = lines[0]
    np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])
    size = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[channels], 0, 0, 0)
    with files.writing(path) as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, body in ((b"IHDR", size), (b"IDAT", zlib.compress(filtered.tobytes(), 4)), (b"IEND", b"")):
            file.write(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))


def encode_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light to the sRGB curve; values are clipped to [0, 1]."""
    linear = np.clip(linear, 0.0, 1.0)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * np.power(linear, 1 / 2.4) - 0.055)


def decode_srgb(encoded: np.ndarray) -> np.ndarray:
    """The sRGB curve to linear light, for values in [0, 1]."""
    return np.where(encoded <= 0.04045, encoded / 12.92, np.power((encoded + 0.055) / 1.055, 2.4))
