# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core bake ASSETS_DIR PACKS_DIR`: animated assets to packs, through a Blender that it starts itself.

Packs that exist are left alone, so a stopped run goes on where it was. An asset that cannot be baked, or that crashes
Blender, costs only itself and a line in PACKS_DIR/report.csv.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ..mesh.packs import load
from ..shared import files, protocol
from ..shared.errors import LimError

SUFFIXES = (".glb", ".gltf", ".fbx", ".blend")
REPORT = "report.csv"
COLUMNS = ("file", "status", "message", "clips", "frames", "vertices", "bytes", "seconds")
SCRIPT = Path(__file__).resolve().parents[2] / "blender_addon" / "tools" / "bake_assets.py"


@dataclasses.dataclass(frozen=True)
class BakeOptions:
    """What is kept of an asset; the fields are the options of the command."""

    fps: float = 10.0
    """frames stored per second of animation"""
    frames: int = 160
    """most frames stored of one clip; the rest of it is dropped"""
    texture: int = 256
    """longest side of a texture in texels; larger ones are averaged down"""
    import_fps: int = 30
    """frame rate at which Blender imports formats that have none of their own"""


def blender_command(blender: str | None) -> list[str]:
    """The start of a command line that runs a script in a Blender, or in a Python that has bpy.

    Args:
        blender: path of either; where absent, `blender` on the PATH, else the Python that LIM_BLENDER_PYTHON names.
    Raises:
        LimError: `blender_missing`.
    """
    hint = "Give one with --blender PATH, or put the path of a Python that has bpy into LIM_BLENDER_PYTHON."
    found = blender or shutil.which("blender") or os.environ.get("LIM_BLENDER_PYTHON")
    if not found:
        raise LimError("blender_missing", "There is no Blender on the PATH.", hint)
    path = shutil.which(found)
    if path is None:
        raise LimError("blender_missing", f"'{found}' is no program that can be started.", hint)
    if Path(path).name.lower().startswith("python"):
        return [path]
    return [path, "--background", "--factory-startup", "--python-exit-code", "1", "--python"]


def find_assets(folder: Path) -> list[Path]:
    """The assets of a folder, sorted by name.

    Raises:
        LimError: `missing_file` where there are none, `bad_pack` where two would make the same pack.
    """
    found = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise LimError("missing_file", f"There are no assets in '{folder}'.", f"Known kinds: {', '.join(SUFFIXES)}.")
    names = [p.stem for p in found]
    for name in names:
        if names.count(name) > 1:
            raise LimError("bad_pack", f"Two assets would make the pack '{name}.npz'.", "Rename one of them.")
    return found


def read_report(path: Path) -> dict[str, dict]:
    """Rows of a report by file name; empty where there is none."""
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def write_report(path: Path, rows: dict[str, dict]) -> None:
    with files.writing(path, text=True, newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows[name] for name in sorted(rows))


def run_batch(
    command: Sequence[str], assets: Sequence[Path], packs_dir: Path, options: BakeOptions, timeout: float, on_row
) -> list[Path]:
    """Bake assets in one process, as far as it gets.

    Args:
        timeout: seconds for one asset; then the process is ended.
        on_row: called with each finished row of the report, also for the asset that crashed or was too slow.
    Returns:
        the assets that were not begun.
    """
    with tempfile.TemporaryDirectory(prefix="lim_bake_") as folder:
        tasks, events, log = (Path(folder) / n for n in ("tasks.json", "events.jsonl", "log.txt"))
        events.touch()
        pairs = [[str(a.resolve()), str(packs_dir.resolve() / f"{a.stem}.npz")] for a in assets]
        tasks.write_text(
            json.dumps({"assets": pairs, "events": str(events), "options": dataclasses.asdict(options)}),
            encoding="utf-8",
        )
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        environment["OPENBLAS_NUM_THREADS"] = (
            "1"  # 4×4 matrices: threads that wait for each other made it 10 times slower
        )
        left, current, since, read = list(assets), None, time.monotonic(), 0
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [*command, str(SCRIPT), "--", str(tasks)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment,
            )  # fmt: skip
            try:
                while True:
                    ended = process.poll() is not None
                    lines = events.read_text(encoding="utf-8").splitlines(keepends=True)
                    for line in lines[read:]:
                        if not line.endswith("\n"):
                            break
                        read += 1
                        event = json.loads(line)
                        since = time.monotonic()
                        if event["event"] == "begin":
                            current = left.pop(0)
                        else:
                            current = None
                            on_row({**event, "file": Path(event["file"]).name})
                    late = time.monotonic() - since > timeout
                    if ended or late:
                        break
                    time.sleep(0.1)
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
        seconds = round(time.monotonic() - since, 2)
        if current is not None:
            reason = f"took more than {timeout:g} s" if late else f"ended Blender with code {process.returncode}"
            row = {"clips": 0, "frames": 0, "vertices": 0, "bytes": 0, "seconds": seconds}
            on_row({"file": current.name, "status": "crashed", "message": f"The asset {reason}.", **row})
        elif len(left) == len(assets):
            tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
            raise LimError("blender_missing", f"'{command[0]}' could not run the bake: {' '.join(tail)}", "")
        return left


def bake(
    assets_dir: Path,
    packs_dir: Path,
    options: BakeOptions,
    *,
    blender: str | None = None,
    batch: int = 20,
    timeout: float = 600.0,
    force: bool = False,
    show=print,
) -> dict[str, dict]:
    """Bake a folder of assets; returns the report's rows by file name.

    Args:
        batch: assets per Blender process: a bound on what a leak can take.
        force: bake again what has a pack already.
        show: called with one line of text per asset.
    Raises:
        LimError: no assets, no Blender. A single bad asset raises nothing.
    """
    command = blender_command(blender)
    assets = find_assets(assets_dir)
    packs_dir.mkdir(parents=True, exist_ok=True)
    report = packs_dir / REPORT
    rows = read_report(report)
    left = [a for a in assets if force or not _finished(packs_dir / f"{a.stem}.npz")]
    show(f"{len(assets)} assets, {len(assets) - len(left)} already baked")
    count, started = len(left), time.monotonic()
    done = 0

    def on_row(row: dict) -> None:
        nonlocal done
        done += 1
        rows[row["file"]] = {c: row.get(c, "") for c in COLUMNS}
        write_report(report, rows)
        remaining = (time.monotonic() - started) / done * (count - done)
        show(
            f"[{done}/{count}] {row['file']}: {row['status']}, {row['clips']} clips, {row['frames']} frames, "
            f"{int(row['bytes']) / 1e3:.0f} kB, {row['seconds']:.1f} s. {row['message']} ({remaining:.0f} s left)"
        )

    while left:
        now, left = left[:batch], left[batch:]
        left = run_batch(command, now, packs_dir, options, timeout, on_row) + left
    return rows


def _finished(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        load(path)
    except LimError:
        return False
    return True


def main(argv: Sequence[str]) -> int:
    """The command. Returns the exit code: 0 where at least one pack exists afterwards."""
    parser = argparse.ArgumentParser(prog="lim_core bake", description=__doc__.splitlines()[0])
    parser.add_argument("assets", type=Path, metavar="ASSETS_DIR", help="folder of .glb, .gltf, .fbx and .blend files")
    parser.add_argument("packs", type=Path, metavar="PACKS_DIR", help="folder for the packs and report.csv")
    parser.add_argument("--blender", metavar="PATH", help="a Blender, or a Python that has bpy")
    parser.add_argument("--batch", type=int, default=20, help="assets per Blender process (default 20)")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one asset (default 600)")
    parser.add_argument("--force", action="store_true", help="bake again what has a pack already")
    about = {"fps": "frames stored per second", "frames": "most frames of one clip", "texture": "longest texture side"}
    about["import_fps"] = "frame rate for formats that have none"
    for field in dataclasses.fields(BakeOptions):
        flag = f"--{field.name.replace('_', '-')}"
        kind = type(field.default)
        parser.add_argument(
            flag, type=kind, default=field.default, help=f"{about[field.name]} (default {field.default:g})"
        )
    arguments = parser.parse_args(argv)
    options = BakeOptions(**{f.name: getattr(arguments, f.name) for f in dataclasses.fields(BakeOptions)})
    if options.fps <= 0 or options.frames < 2 or options.texture < 1 or arguments.batch < 1:
        parser.error("fps, texture and batch must be above 0, frames above 1")
    try:
        rows = bake(
            arguments.assets, arguments.packs, options, blender=arguments.blender, batch=arguments.batch,
            timeout=arguments.timeout, force=arguments.force, show=lambda line: print(line, flush=True),
        )  # fmt: skip
    except LimError as error:
        print(error, file=sys.stderr)
        return protocol.ERROR_CODES[error.code][0]
    good = [row for row in rows.values() if row["status"] == "ok"]
    size = sum(int(row["bytes"]) for row in good)
    clips, frames = (sum(int(row[key]) for row in good) for key in ("clips", "frames"))
    print(
        f"{len(good)} packs, {clips} clips, {frames} frames, {size / 1e6:.1f} MB; {len(rows) - len(good)} without a pack"
    )
    return protocol.EXIT_RESULT if good else protocol.EXIT_INPUT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
