# SPDX-License-Identifier: GPL-3.0-or-later
"""Small clips made by the tests themselves."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from PIL import Image

GREEN = (20, 220, 40)


def frame(index: int, width: int = 96, height: int = 64, *, twist: float = 1.0) -> np.ndarray:
    """A red ball with a blue bar that turns, on nothing: uint8 [H, W, 4]."""
    row, column = np.mgrid[0:height, 0:width] + 0.5
    x, y = column - width / 2, row - height / 2
    rgba = np.zeros((height, width, 4), np.uint8)
    angle = 0.15 * twist * index
    along, across = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    rgba[(np.abs(along) < 26) & (np.abs(across) < 4)] = (30, 60, 200, 255)
    rgba[x**2 + y**2 < 15**2] = (220, 60, 40, 255)
    return rgba


def over(rgba: np.ndarray, ground=GREEN) -> np.ndarray:
    """Opaque, on a ground."""
    part = rgba[..., 3:] / 255
    rgb = (rgba[..., :3] * part + np.array(ground) * (1 - part)).round().astype(np.uint8)
    return np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])


def pictures(folder: Path, frames, suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, rgba in enumerate(frames):
        image = Image.fromarray(rgba)
        (image.convert("RGB") if suffix == ".jpg" else image).save(folder / f"shot {index + 8}{suffix}")
    return folder


def film(path: Path, frames, codec: str = "libx264", pixels: str = "yuv420p", times=None, options=None) -> Path:
    """A film at 12 frames a second, or with frame i at times[i] (ticks of 1/120 s)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12)
        first = frames[0]
        stream.width, stream.height, stream.pix_fmt = first.shape[1], first.shape[0], pixels
        stream.options = options or {}
        if times is not None:
            from fractions import Fraction

            stream.codec_context.time_base = stream.time_base = Fraction(1, 120)
        for index, rgba in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(rgba, format="rgba")
            if times is not None:
                picture.pts, picture.time_base = times[index], stream.codec_context.time_base
            for packet in stream.encode(picture):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def turn_flag(path: Path) -> None:
    """Set an MP4's display matrix to a quarter turn clockwise, as phones do."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    matrix = (0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    data[place : place + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(data)


# ---- a matting model ---------------------------------------------------------------------------------------------------


def _field(number: int, value) -> bytes:
    """One field of a protocol buffer."""

    def varint(n: int) -> bytes:
        out = b""
        while n > 127:
            out += bytes([n & 127 | 128])
            n >>= 7
        return out + bytes([n])

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def brightness_model(path: Path, size: int = 32) -> Path:
    """An ONNX network that takes what is bright for the object: the mean over the channels."""

    def tensor(name: str, channels: int) -> bytes:
        shape = b"".join(_field(1, _field(1, n)) for n in (1, channels, size, size))
        return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, shape)))

    axes = _field(1, "axes") + _field(8, 1) + _field(20, 7)
    node = _field(1, "picture") + _field(2, "mask") + _field(4, "ReduceMean") + _field(5, axes)
    graph = _field(1, node) + _field(2, "g") + _field(11, tensor("picture", 3)) + _field(12, tensor("mask", 1))
    path.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, _field(2, 13)))
    return path
