# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the multilayer OpenEXR files that Blender writes without compression. numpy only.

Blender gives no other way to every pass of a render without a window: a Render Result has no pixels in background.
Handles what Blender writes with `exr_codec = 'NONE'`: scanline files, of one part (4.x) or several (5.x).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

_MAGIC = 20000630
_TILED, _MULTI_PART = 0x200, 0x1000
_SAMPLES: dict[int, np.dtype] = {0: np.dtype("<u4"), 1: np.dtype("<f2"), 2: np.dtype("<f4")}


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Every channel of the file: full channel name (“LIM.Combined.R”) -> float32 [H, W], row 0 at the top.

    Raises:
        ValueError: the file is not an uncompressed scanline OpenEXR file, or is cut off.
    """
    data = Path(path).read_bytes()
    try:
        return _parse(data)
    except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a whole OpenEXR file ({error})") from None


def _parse(data: bytes) -> dict[str, np.ndarray]:
    magic, flags = struct.unpack_from("<II", data, 0)
    if magic != _MAGIC:
        raise ValueError("not an OpenEXR file")
    if flags & _TILED:
        raise ValueError("tiled OpenEXR files are not read")
    several = bool(flags & _MULTI_PART)
    parts, at = [], 8
    while True:
        header, at = _header(data, at)
        parts.append(header)
        if not several:
            break
        if data[at] == 0:
            at += 1
            break
    tables = []
    for header in parts:
        _, top, _, bottom = header["dataWindow"]
        tables.append(struct.unpack_from(f"<{bottom - top + 1}Q", data, at))
        at += 8 * len(tables[-1])
    channels: dict[str, np.ndarray] = {}
    for header, table in zip(parts, tables):
        for name, pixels in _scanlines(data, header, table, 4 if several else 0):
            channels[name if "." in name or not several else f"{header['name']}.{name}"] = pixels
    return channels


def _header(data: bytes, at: int) -> tuple[dict, int]:
    """The attributes that matter here, and where the next thing begins."""
    header: dict = {}
    while data[at] != 0:
        name, at = _text(data, at)
        kind, at = _text(data, at)
        (size,) = struct.unpack_from("<I", data, at)
        value, at = data[at + 4 : at + 4 + size], at + 4 + size
        if name == "channels":
            header[name] = _channel_list(value)
        elif name == "dataWindow":
            header[name] = struct.unpack("<4i", value)
        elif name == "compression" and value[0] != 0:
            raise ValueError("the OpenEXR file is compressed")
        elif kind == "string":
            header[name] = value.decode()
    return header, at + 1


def _channel_list(value: bytes) -> list[tuple[str, np.dtype]]:
    found: list[tuple[str, np.dtype]] = []
    at = 0
    while value[at] != 0:
        name, at = _text(value, at)
        found.append((name, _SAMPLES[struct.unpack_from("<i", value, at)[0]]))
        at += 16
    return found


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(b"\0", at)
    return data[at:end].decode(), end + 1


def _scanlines(data: bytes, header: dict, table: tuple[int, ...], skip: int):
    """Yield (channel, float32 [H, W]); `skip` bytes (the part's number) stand before each line's own row and size."""
    left, top, right, bottom = header["dataWindow"]
    width, height = right - left + 1, bottom - top + 1
    line = np.dtype([(name, kind, (width,)) for name, kind in header["channels"]])
    rows = np.empty(height, line)
    for offset in table:
        (row,) = struct.unpack_from("<i", data, offset + skip)
        start = offset + skip + 8
        if start + line.itemsize > len(data):
            raise ValueError("the OpenEXR file is cut off")
        rows[row - top] = np.frombuffer(data, line, 1, start)[0]
    for name, _ in header["channels"]:
        yield name, rows[name].astype(np.float32)
