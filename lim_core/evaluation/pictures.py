# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of what was measured: labelled contact sheets, and curves over α."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..shared.errors import LimError, from_os_error

GAP, MARGIN, HEADER = 4, 118, 26  # pixels
PAPER, INK, FAINT = (255, 255, 255), (30, 30, 30), (130, 130, 130)
ROWS_PER_SHEET = 12
TILE, GALLERY_COLUMNS = 144, 4


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a contact sheet: its name, a note below it, and images float [H, W, 3] in [0, 1] of one size."""

    label: str
    note: str
    images: list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Exhibit:
    """An asset of a gallery: its name, a note, and two rows of as many images float [H, H, 3] in [0, 1]."""

    label: str
    note: str
    above: list[np.ndarray]
    below: list[np.ndarray]


def gallery(exhibits: list[Exhibit]) -> Image.Image:
    """All exhibits on one page, GALLERY_COLUMNS of them beside each other."""
    across = min(GALLERY_COLUMNS, len(exhibits))
    down = -(-len(exhibits) // across)
    width, height = len(exhibits[0].above) * (TILE + GAP) + 4 * GAP, HEADER + 2 * (TILE + GAP) + 2 * GAP
    page = Image.new("RGB", (across * width, down * height), PAPER)
    draw = ImageDraw.Draw(page)
    plain = ImageFont.load_default(14)
    for number, shown in enumerate(exhibits):
        left, top = number % across * width + 2 * GAP, number // across * height
        draw.text((left, top + HEADER // 2), shown.label, INK, plain, anchor="lm")
        draw.text((left + width - 5 * GAP, top + HEADER // 2), shown.note, FAINT, plain, anchor="rm")
        for line, images in enumerate((shown.above, shown.below)):
            for column, image in enumerate(images):
                eight = Image.fromarray((resized(image, TILE) * 255).round().astype(np.uint8))
                page.paste(eight, (left + column * (TILE + GAP), top + HEADER + line * (TILE + GAP)))
    return page


def sheet(rows: list[Row], columns: list[str]) -> Image.Image:
    """The rows' images under the columns' names."""
    height, width = rows[0].images[0].shape[:2]
    page = Image.new("RGB", (MARGIN + len(columns) * (width + GAP), HEADER + len(rows) * (height + GAP)), PAPER)
    draw = ImageDraw.Draw(page)
    plain, small = ImageFont.load_default(14), ImageFont.load_default(11)
    for number, name in enumerate(columns):
        draw.text((MARGIN + number * (width + GAP) + width // 2, HEADER // 2), name, INK, plain, anchor="mm")
    for line, row in enumerate(rows):
        top = HEADER + line * (height + GAP)
        for shift, text, colour in ((-8, row.label, INK), (8, row.note, FAINT)):
            draw.text((6, top + height // 2 + shift), _fitting(text, small), colour, small, anchor="lm")
        for number, image in enumerate(row.images):
            eight = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
            page.paste(Image.fromarray(eight), (MARGIN + number * (width + GAP), top))
    return page


def save_sheets(out: Path, rows: list[Row], columns: list[str]) -> None:
    """sheet.png, and sheet_2.png, … where one page does not hold them."""
    for page, first in enumerate(range(0, len(rows), ROWS_PER_SHEET)):
        name = f"sheet_{page + 1}.png" if page else "sheet.png"
        save(sheet(rows[first : first + ROWS_PER_SHEET], columns), out / name)


def save(image: Image.Image, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=88)  # of a .jpg; others have none
    except OSError as error:
        raise from_os_error(error, "writing a picture") from error


def crop(masks: np.ndarray, margin: float = 0.06) -> tuple[slice, slice]:
    """Rows and columns of the smallest square that holds all masks [..., H, W], with a margin."""
    size = masks.shape[-1]
    found = np.argwhere(masks.reshape(-1, size, size).any(0))
    low, high = (found.min(0), found.max(0) + 1) if len(found) else (np.zeros(2, int), np.full(2, size))
    side = min(size, int(np.ceil((high - low).max() * (1 + 2 * margin))))
    top, left = np.clip((low + high - side) // 2, 0, size - side)
    return slice(top, top + side), slice(left, left + side)


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """A picture float [H, H, 3] at another size."""
    eight = Image.fromarray((np.clip(image, 0, 1) * 255).round().astype(np.uint8))
    return np.asarray(eight.resize((size, size), Image.Resampling.LANCZOS), np.float32) / 255


def curves(path: Path, alphas: list[float], panels: dict[str, dict[str, list[float | None]]]) -> None:
    """A picture with a panel for each measure and in it a curve over α for each row; values None are left out.

    Raises:
        LimError: `backend_broken` without matplotlib, which only the training environment has.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise LimError(
            "backend_broken", f"{path.name} was not drawn: matplotlib is not installed. All other results are written.",
            "“python3 install backend --training” installs it.",
        ) from None  # fmt: skip

    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (measure, rows) in zip(every, panels.items()):
        for name, values in rows.items():
            axes.plot(alphas, [np.nan if v is None else v for v in values], marker="o", markersize=3, label=name)
        axes.set_xlabel("α")
        axes.set_title(measure, fontsize=10)
        axes.grid(alpha=0.25)
    every[0].legend(fontsize=8)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise from_os_error(error, "writing a picture") from error


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    while text and font.getlength(text) > MARGIN - 12:
        text = text[:-2].rstrip("…") + "…" if len(text) > 2 else ""
    return text
