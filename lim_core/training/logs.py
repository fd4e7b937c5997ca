# SPDX-License-Identifier: GPL-3.0-or-later
"""The curves of a run: CSV tables, the same in TensorBoard's form where it is installed, and lines on the screen."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from ..shared import files

TABLES = ("log", "watch")


class Log:
    """Writes `log.csv`, `watch.csv`, `samples/*.png` and `tensorboard/` of a run folder; nothing when not `writes`."""

    def __init__(self, out: Path, writes: bool):
        self.out, self.writes, self.board = out, writes, None
        if not writes:
            return
        (out / "samples").mkdir(parents=True, exist_ok=True)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # an extra of training
            return
        self.board = SummaryWriter(str(out / "tensorboard"))

    def row(self, table: str, row: dict) -> None:
        """A row of `log` or `watch`; it has a column `step`."""
        if not self.writes:
            return
        append(self.out / f"{table}.csv", row)
        prefix = "" if table == "log" else f"{table} "
        print(prefix + " ".join(f"{name}={float(value):.4g}" for name, value in row.items()), flush=True)
        if self.board:
            for name, value in row.items():
                if name != "step":
                    self.board.add_scalar(f"{table}/{name}", float(value), row["step"])
            self.board.flush()

    def picture(self, step: int, image: np.ndarray) -> None:
        """uint8 [H, W, 3]"""
        if not self.writes:
            return
        Image.fromarray(image).save(self.out / "samples" / f"{step:06d}.png")
        if self.board:
            self.board.add_image("samples", image, step, dataformats="HWC")
            self.board.flush()

    def forget_after(self, step: int) -> None:
        """Drop what was written after the state that the run goes on from."""
        if not self.writes:
            return
        for table in TABLES:
            rows = read(self.out / f"{table}.csv")
            kept = [row for row in rows if int(float(row["step"])) <= step]
            if len(kept) < len(rows):
                _write(self.out / f"{table}.csv", list(rows[0]), kept)

    def close(self) -> None:
        if self.board:
            self.board.close()


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a table; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: dict) -> None:
    """Append to a table whose columns may grow (a loss that starts late)."""
    rows = read(path)
    if rows and set(row) <= set(rows[0]):
        with path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, list(rows[0])).writerow(row)
        return
    _write(path, list(dict.fromkeys([*(rows[0] if rows else ()), *row])), [*rows, row])


def _write(path: Path, columns: list[str], rows: list[dict]) -> None:
    with files.writing(path, text=True, newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
