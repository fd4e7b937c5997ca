# SPDX-License-Identifier: GPL-3.0-or-later
"""Clips from disk: films through PyAV (FFmpeg), picture sequences through Pillow.

Frames are read one after the other and never all kept: a first pass looks at thumbnails, a second takes the keyframes. They
come upright (the rotation flag of phones applied), with square pixels, as 8-bit RGBA with straight alpha.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..shared.errors import LimError
from ..shared.video_options import CLIP_PICTURES

PICTURE_RATE = 24.0
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders leave the alpha of WebM out
HINT = "Convert it to MP4 (H.264) or to PNG pictures."


@dataclasses.dataclass
class Frame:
    """number: from 1; seconds: since the clip's first frame; rgba: uint8 [H, W, 4]."""

    number: int
    seconds: float
    rgba: np.ndarray


@dataclasses.dataclass
class Source:
    """What is known of a clip before its frames are read.

    Attributes:
        pictures: the files of a sequence, in order; empty for a film.
        fps: as the file says or as was asked for; 0 where the file does not know.
        rotation: degrees clockwise by which the file asks to be turned; frames come turned.
    """

    path: Path
    pictures: list[Path]
    fps: float
    rotation: int = 0
    pixel_aspect: float = 1.0


def open_source(path: str | Path, fps: float = 0.0) -> Source:
    """Find out what `path` is: a film, a folder of pictures, or one of a numbered sequence (or a single picture).

    Raises:
        LimError: missing_file, bad_video, decoder_missing.
    """
    path = Path(path)
    if path.is_dir():
        pictures = sorted((p for p in path.iterdir() if p.suffix.lower() in CLIP_PICTURES), key=natural)
        if not pictures:
            raise LimError("bad_video", f"There are no pictures in the folder “{path.name}”.", "Choose another.")
        return Source(path, pictures, fps or PICTURE_RATE)
    if not path.is_file():
        raise LimError("missing_file", f"There is no clip “{path}”.", "Check the path.")
    if path.stat().st_size == 0:
        raise LimError("bad_video", f"The clip “{path.name}” is an empty file.", "Export it again.")
    if path.suffix.lower() in CLIP_PICTURES:
        number = re.search(r"(\d+)(?!.*\d)", path.stem)
        pictures = [path]
        if number:
            pattern = re.compile(
                re.escape(path.stem[: number.start()]) + r"\d+" + re.escape(path.stem[number.end() :]) + "$"
            )
            pictures = [p for p in path.parent.iterdir() if p.suffix == path.suffix and pattern.match(p.stem)]
        return Source(path, sorted(pictures, key=natural), fps or PICTURE_RATE)
    av = _av()
    with _opened(av, path) as container:
        stream = _stream(container, path)
        aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        rate = float(stream.average_rate or stream.guessed_rate or 0)
    return Source(path, [], fps or rate, pixel_aspect=aspect)


def natural(path: Path) -> list:
    """Sorts 2 before 10."""
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", path.name)]


def frames(source: Source) -> Iterator[Frame]:
    """Every frame in order. Sets `source.rotation` from the first. Raises LimError bad_video, naming the frame."""
    if source.pictures:
        for index, path in enumerate(source.pictures):
            yield Frame(index + 1, index / source.fps, picture(path))
        return
    first = None
    number = 0
    for number, (seconds, rotation, rgba) in enumerate(_film(source), 1):
        if seconds is None:
            seconds = (number - 1) / (source.fps or PICTURE_RATE)
        if first is None:
            first, source.rotation = seconds, -rotation % 360
        rgba = np.rot90(rgba, round(rotation / 90) % 4)
        if abs(source.pixel_aspect - 1) > 1e-3:
            image = Image.fromarray(np.ascontiguousarray(rgba))
            turned = round(rotation / 90) % 2
            width, height = image.size
            size = (
                (width, round(height * source.pixel_aspect)) if turned else (round(width * source.pixel_aspect), height)
            )
            rgba = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
        yield Frame(number, seconds - first, np.ascontiguousarray(rgba))
    if not number:
        raise LimError("bad_video", f"The clip “{source.path.name}” holds no frames.", HINT)


def picture(path: Path) -> np.ndarray:
    """uint8 [H, W, 4]. Raises LimError bad_video."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16") or image.mode == "I":
                image = Image.fromarray((np.asarray(image, np.float64) / 257).clip(0, 255).astype(np.uint8))
            return np.asarray(image.convert("RGBA"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        raise LimError("bad_video", f"The picture “{path.name}” is damaged.", "Replace it, or leave it out.") from None


def _av():
    try:
        import av
    except ImportError:
        raise LimError(
            "decoder_missing",
            "The backend has no decoder for films.",
            "Install the backend again, or use PNG pictures.",
        ) from None
    return av


def _opened(av, path: Path):
    try:
        return av.open(str(path), metadata_errors="ignore")
    except (av.error.FFmpegError, OSError) as error:
        raise LimError("bad_video", f"“{path.name}” cannot be read as a film: {_said(error)}.", HINT) from None


def _stream(container, path: Path):
    streams = [s for s in container.streams.video if s.codec_context is not None]
    if not streams:
        known = "there is no decoder for its picture" if container.streams.video else "it has no picture"
        raise LimError("bad_video", f"“{path.name}” cannot be read: {known}.", HINT)
    return streams[0]


def _film(source: Source) -> Iterator[tuple[float | None, int, np.ndarray]]:
    """(seconds, degrees counter-clockwise to turn, RGBA) of every frame."""
    av = _av()
    number = 0
    with _opened(av, source.path) as container:
        stream = _stream(container, source.path)
        decoder = None
        name = ALPHA_DECODERS.get(stream.codec_context.name)
        if name and stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) == "1":
            decoder = av.CodecContext.create(name, "r")
        stream.thread_type = "AUTO"
        try:
            for packet in container.demux(stream):
                for frame in decoder.decode(packet) if decoder else packet.decode():
                    number += 1
                    seconds = None if frame.pts is None else float(frame.pts * (frame.time_base or stream.time_base))
                    yield seconds, frame.rotation, _pixels(frame)
        except av.error.EOFError:
            return
        except (av.error.FFmpegError, ValueError) as error:
            raise LimError(
                "bad_video", f"“{source.path.name}” is damaged after frame {number}: {_said(error)}.",
                f"End the range before it, or: {HINT[0].lower()}{HINT[1:]}",
            ) from None  # fmt: skip


def _pixels(frame) -> np.ndarray:
    if any(component.is_alpha for component in frame.format.components) or frame.format.has_palette:
        return frame.to_ndarray(format="rgba")
    rgb = frame.to_ndarray(format="rgb24")
    return np.concatenate([rgb, np.full_like(rgb[..., :1], 255)], -1)


def _said(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).strip().rstrip(".").lower()
