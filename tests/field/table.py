# SPDX-License-Identifier: GPL-3.0-or-later
"""Fill in the table of field testing: `PYTHON_OF_BLENDER tests/field/table.py --backend PYTHON [--rows A,B] [--out DIR]`.

Each row runs in a Blender of its own. Exit code 0: every row is right; 1: one is not; 2: wrong command line.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

ROWS_IN = ("field.files", "field.swaps", "field.scenes", "field.tracking")
"""The modules that hold rows, in the table's order; one that does not exist is passed over."""


def load_rows() -> dict:
    """All rows, by name."""
    for name in ROWS_IN:
        if (Path(__file__).parent / f"{name.rpartition('.')[2]}.py").is_file():
            importlib.import_module(name)
    from field import bench

    return bench.ROWS


def one(name: str, folder: Path, backend: str) -> dict:
    """Measure one row in this process."""
    from field import bench

    found, passed = load_rows()[name].measure(bench.Bench(folder, backend))
    return {"found": found, "passed": bool(passed)}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default=os.environ.get("LIM_BACKEND_PYTHON", ""), metavar="PYTHON")
    parser.add_argument("--rows", default="", metavar="A,B", help="default: all")
    parser.add_argument("--out", default="", metavar="DIR", help="keep what the rows write there")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    rows = load_rows()
    if options.list:
        print("\n".join(rows))
        return 0
    wanted = [name for name in options.rows.split(",") if name] or list(rows)
    unknown = [name for name in wanted if name not in rows]
    if unknown or not Path(options.backend).is_file():
        print(f"There is no row “{unknown[0]}”." if unknown else "Name the backend's Python with --backend.")
        return 2
    with tempfile.TemporaryDirectory(prefix="lim_field_") as temporary:
        out = Path(options.out or temporary).resolve()
        if options.one:
            try:
                answer = one(options.one, out, options.backend)
            except Exception as error:
                traceback.print_exc()
                answer = {"found": f"{type(error).__name__}: {error}"[:300], "passed": False}
            (out / "found.json").write_text(json.dumps(answer), encoding="utf-8")
            sys.stdout.flush()
            os._exit(0)  # the bpy module of 4.2 can crash while the interpreter ends
        print("| scene | kind | expected | found | seconds | pass |\n|---|---|---|---|---|---|", flush=True)
        right = 0
        for name in wanted:
            began = time.monotonic()
            answer = _in_a_process(name, out / name, options.backend)
            right += answer["passed"]
            cells = (name, rows[name].kind, rows[name].expected, answer["found"].replace("\n", " ").replace("|", "/"))
            seconds = f"{time.monotonic() - began:.0f}"
            print("| " + " | ".join((*cells, seconds, "yes" if answer["passed"] else "NO")) + " |", flush=True)
        print(f"\n{right} of {len(wanted)} rows are right.")
    return 0 if right == len(wanted) else 1


def _in_a_process(name: str, folder: Path, backend: str) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "found.json").unlink(missing_ok=True)
    run = subprocess.run(
        [sys.executable, __file__, "--one", name, "--out", folder, "--backend", backend],
        env={**os.environ, "BLENDER_USER_RESOURCES": str(folder / "user")},
        capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    (folder / "row.txt").write_text(run.stdout + run.stderr, encoding="utf-8")
    try:
        return json.loads((folder / "found.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"found": f"the row's process ended with {run.returncode}", "passed": False}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
