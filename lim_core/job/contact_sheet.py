# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core sheet JOB --out sheet.png --gif preview.gif`: a job's pictures on one page, and as a loop.

Reads, from the job folder, whatever is there of:

| row | file | made by |
|---|---|---|
| captured | `capture/kKKK_vVV.png` (RGBA) | Blender, at the keyframes |
| interpolated | `previews/triplane_fNNN_vVV.png` (RGB or RGBA) | the stage “interpolate” |
| traced | `previews/traced_fNNN_vVV.png` (RGB or RGBA) | Blender, from the result; where it has not, `drawn.py` |

KKK counts keyframes, NNN entries of `request.frames()`, VV views of the capture: one column shows the same camera and the
same time all the way down. A picture that is missing leaves its place empty; a row without pictures is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from ..shared import files, protocol, request
from ..shared.errors import LimError, from_os_error
from ..shared.request import Request

COLUMNS = 9
"""Times shown at most: every keyframe (or an even choice of them), and in-betweens evenly between."""
VIEWS = 2
TILE, LABEL, GAP = 176, 118, 6  # pixels
PAPER, EMPTY, INK, FAINT = (255, 255, 255), (246, 246, 246), (30, 30, 30), (130, 130, 130)
GIF_SIZE = 320
Part = tuple[float, float, float]
"""A square part of a picture: left, top and side, in parts of the picture's width."""
WHOLE: Part = (0.0, 0.0, 1.0)
_INKED = [255 if value > 8 else 0 for value in range(256)]
SLOWEST, FASTEST = 0.25, 0.04  # seconds per picture of the loop


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind of picture: its words, and where the picture of (index into request.frames(), view) lies, if anywhere."""

    label: str
    note: str
    file: Callable[[int, int], str | None]


def rows(asked: Request) -> list[Row]:
    """The rows of a sheet, top to bottom."""
    keyframes = {asked.entry(k): k for k in range(len(asked.keyframes))}

    def captured(index: int, view: int) -> str | None:
        return protocol.image_file(keyframes[index], view) if index in keyframes else None

    return [
        Row("captured", "the clip, and made up" if asked.source == "video" else "keyframes", captured),
        Row("interpolated", "rendered triplanes", functools.partial(protocol.preview_file, "triplane")),
        Row("traced", "one mesh, one texture", functools.partial(protocol.preview_file, "traced")),
    ]


def columns(asked: Request, most: int = COLUMNS) -> list[int]:
    """Indices into request.frames(): the keyframes and, where there is room, in-betweens evenly between them."""
    count = len(asked.keyframes)
    if count >= most:
        chosen = np.linspace(0, count - 1, most).round().astype(int)
        return [asked.entry(int(k)) for k in chosen]
    between = min(asked.inbetweens, (most - count) // (count - 1))
    shown: list[int] = []
    for k in range(count - 1):
        steps = asked.steps(k)
        offsets = {round(i * steps / (between + 1)) for i in range(between + 1)}
        shown += [asked.entry(k) + offset for offset in sorted(offsets - {steps})]
    return [*shown, asked.entry(count - 1)]


def on_paper(path: Path) -> Image.Image | None:
    """The picture without its alpha; None if it is missing or broken."""
    try:
        with Image.open(path) as image:
            picture = image.convert("RGBA")
    except (OSError, ValueError):
        return None
    return Image.alpha_composite(Image.new("RGBA", picture.size, (*PAPER, 255)), picture).convert("RGB")


def tile(path: Path, size: int, part: Part = WHOLE) -> Image.Image | None:
    """A square part of the picture, `size` pixels wide; None if it is missing or broken."""
    picture = on_paper(path)
    if picture is None:
        return None
    left, top, side = (value * picture.width for value in part)
    return picture.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))


def part_in_use(job: Path, asked: Request, view: int) -> Part:
    """The square of one camera's pictures that anything ever enters, with a margin: the same one for all of them.

    The interpolated pictures are not asked, because fog from an untrained network fills them to the edge.
    """
    low, high = np.ones(2), np.zeros(2)
    for row in rows(asked)[::2]:
        for index in range(len(asked.frames())):
            name = row.file(index, view)
            picture = on_paper(job / name) if name else None
            if picture is None:
                continue
            box = (
                ImageChops.difference(picture, Image.new("RGB", picture.size, PAPER))
                .convert("L")
                .point(_INKED)
                .getbbox()
            )
            if box:
                low = np.minimum(low, np.array(box[:2]) / picture.width)
                high = np.maximum(high, np.array(box[2:]) / picture.width)
    if (high <= low).any():
        return WHOLE
    side = min(1.0, 1.1 * float((high - low).max()))
    left, top = np.clip((low + high - side) / 2, 0.0, 1.0 - side)
    return float(left), float(top), side


def sheet(job: Path, asked: Request) -> Image.Image:
    """The contact sheet. Raises LimError missing_file if the job holds no pictures at all."""
    shown, frames = columns(asked), asked.frames()
    lines = []  # (row, view, the tiles of its columns)
    for view in range(min(VIEWS, asked.rig_views, asked.views)):
        part = part_in_use(job, asked, view)
        for row in rows(asked):
            files = [row.file(index, view) for index in shown]
            tiles = [tile(job / name, TILE, part) if name else None for name in files]
            if any(tiles):
                lines.append((row, view, tiles))
    if not lines:
        raise LimError("missing_file", f"There are no pictures in “{job}”.", "Run the job first.")
    small, bold = ImageFont.load_default(13), ImageFont.load_default(15)
    header = 34
    views = len({view for _, view, _ in lines})
    width = LABEL + len(shown) * (TILE + GAP) + GAP
    height = header + len(lines) * (TILE + GAP) + (views - 1) * 4 * GAP + GAP
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    keyframes = {asked.entry(k) for k in range(len(asked.keyframes))}
    for column, index in enumerate(shown):
        is_keyframe = index in keyframes
        text = f"keyframe {frames[index]:g}" if is_keyframe else f"{frames[index]:g}"
        middle = LABEL + GAP + column * (TILE + GAP) + TILE // 2
        draw.text((middle, 20), text, INK if is_keyframe else FAINT, bold if is_keyframe else small, anchor="mm")
    top, last_view = header, None
    for row, view, tiles in lines:
        if last_view is not None and view != last_view:
            top += 4 * GAP
            draw.line((GAP, top - 3 * GAP, width - GAP, top - 3 * GAP), fill=(220, 220, 220))
        last_view = view
        draw.text((10, top + TILE // 2 - 20), row.label, INK, bold, anchor="lm")
        draw.text((10, top + TILE // 2), _wrapped(row.note, 15), FAINT, small, anchor="la")
        draw.text((10, top + 12), f"camera {view + 1}", FAINT, small, anchor="lm")
        for column, picture in enumerate(tiles):
            left = LABEL + GAP + column * (TILE + GAP)
            if picture:
                page.paste(picture, (left, top))
                draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), outline=(232, 232, 232))
            elif row.label != "captured":
                draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), fill=EMPTY)
        top += TILE + GAP
    return page


def loop(job: Path, asked: Request) -> tuple[list[Image.Image], float]:
    """The pictures of the loop, there and back again, and the seconds each is shown.

    Shows the traced mesh from two cameras side by side; without it the interpolated pictures, else the captured ones.
    """
    frames = asked.frames()
    for row in reversed(rows(asked)):
        views = [v for v in range(min(VIEWS, asked.views)) if (job / (row.file(0, v) or "")).is_file()]
        parts = {view: part_in_use(job, asked, view) for view in views}
        pictures, times = [], []
        for index, frame in enumerate(frames):
            files = [(row.file(index, view), parts[view]) for view in views]
            tiles = [tile(job / name, GIF_SIZE, part) for name, part in files if name]
            there = [picture for picture in tiles if picture]
            if there and len(there) == len(tiles):
                page = Image.new("RGB", (GIF_SIZE * len(there), GIF_SIZE), PAPER)
                for place, picture in enumerate(there):
                    page.paste(picture, (place * GIF_SIZE, 0))
                pictures.append(page)
                times.append(frame)
        if len(pictures) > 1:
            seconds = (times[-1] - times[0]) / (len(times) - 1) / asked.fps
            closed = _difference(pictures[0], pictures[-1]) < 1.0  # it ends as it begins: no way back is needed
            back = [] if closed else pictures[-2:0:-1]
            forth = pictures[:-1] if closed else pictures
            return [*forth, *back], min(max(seconds, FASTEST), SLOWEST)
    raise LimError("missing_file", f"There are no pictures in “{job}” to make a loop of.", "Run the job first.")


def save_loop(pictures: list[Image.Image], seconds: float, path: Path) -> None:
    """An endlessly looping GIF, whole or not at all. One palette, so that nothing flickers."""
    width, height = (max(1, side // 4) for side in pictures[0].size)
    strip = Image.new("RGB", (width, height * len(pictures)))
    for place, picture in enumerate(pictures):
        strip.paste(picture.resize((width, height), Image.Resampling.NEAREST), (0, place * height))
    palette = strip.quantize(256, method=Image.Quantize.MEDIANCUT)
    colours = np.array(palette.getpalette(), np.int64).reshape(-1, 3)
    colours[np.abs(colours - PAPER).sum(1).argmin()] = PAPER  # the mean of nearly white is not white
    palette.putpalette(colours.astype(np.uint8).tobytes())
    small = [picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for picture in pictures]
    with files.writing(path) as file:
        small[0].save(
            file, format="GIF", save_all=True, append_images=small[1:], duration=round(seconds * 1000), loop=0
        )


def main(argv: list[str]) -> int:
    """The command line; exit code 0. Raises LimError."""
    parser = argparse.ArgumentParser(prog="python -m lim_core sheet", description="Put a job's pictures on one page.")
    parser.add_argument("job", help="job folder")
    parser.add_argument("--out", metavar="FILE.png", help="write the contact sheet here")
    parser.add_argument("--gif", metavar="FILE.gif", help="write a looping preview here")
    options = parser.parse_args(argv)
    job = Path(options.job)
    asked = request.read(job)
    try:
        from . import drawn

        drawn.draw(job, asked, min(VIEWS, asked.rig_views, asked.views))
        if options.out:
            path = Path(options.out)
            path.parent.mkdir(parents=True, exist_ok=True)
            from .result import save_image

            save_image(path, np.asarray(sheet(job, asked)))
        if options.gif:
            path = Path(options.gif)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_loop(*loop(job, asked), path)
    except OSError as error:
        raise from_os_error(error, "writing the contact sheet") from error
    return 0


def _wrapped(text: str, width: int) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _difference(first: Image.Image, last: Image.Image) -> float:
    return float(np.abs(np.asarray(first, np.float32) - np.asarray(last, np.float32)).mean())
