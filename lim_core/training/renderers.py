# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes that render sequences beside a training, and go on between its calls.

Each holds a lock file while it lives, so that none is started twice, whoever starts it. Together they fill the cache up to a
size, then replace its oldest shards. While nobody trains and the cache is full they wait; after half an hour they end.

    WORK/renderers/settings.json    what to render; read again for every few shards
    WORK/renderers/NN.lock, NN.log  one renderer: its process id, and what it said
    WORK/call.lock                  held by the call of `recipe` that is running
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..data.sequences import SHARD, fill
from ..shared import files
from ..shared.errors import LimError, from_os_error

SHARDS_AT_ONCE = 4  # between two looks at the settings and at the size of the cache
IDLE_SECONDS = 1800.0
SEEDS = 100_000  # of one renderer: a shard that was replaced never comes back
WATCH_EVERY = 25  # one pack in so many is watched and never trained on


# ---- locks --------------------------------------------------------------------------------------------------------


def lock(path: Path, patience: float = 1.0) -> files.Lock | None:
    """A lock whose file, in a folder that is made, holds the process id; None while another process has it.

    Args:
        patience: seconds to try again: who only asks whether a lock is held takes it for an instant.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        mine = files.Lock(path, patience)
    except BlockingIOError:
        return None
    mine.file.truncate(0)
    mine.file.write(str(os.getpid()).encode())
    mine.file.flush()
    return mine


def holder(path: Path) -> int | None:
    """The process that has a lock; None where nobody has it."""
    if not path.exists():
        return None
    mine = lock(path, patience=0)
    if mine is not None:
        mine.release()
        return None
    text = path.read_text(encoding="utf-8").strip()
    return int(text) if text.isdigit() else None


# ---- the callers' side --------------------------------------------------------------------------------------------


def start(work: Path, count: int, settings: dict) -> list[subprocess.Popen]:
    """Write the settings and start those of `count` renderers that are not there; returns what was started."""
    folder = work / "renderers"
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "settings.json", json.dumps(settings))
    path = os.pathsep.join(filter(None, (str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH"))))
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    started = []
    for index in range(count):
        if holder(folder / f"{index:02d}.lock") is not None:
            continue
        with (folder / f"{index:02d}.log").open("a") as said:
            command = [sys.executable, "-m", "lim_core.training.renderers", str(work), str(index)]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=variables, start_new_session=True
            )
            started.append(process)
    return started


def alive(work: Path) -> list[int]:
    """Process ids of the renderers that run."""
    found = (holder(path) for path in sorted((work / "renderers").glob("*.lock")))
    return [process for process in found if process is not None]


def stop(work: Path) -> None:
    """End the renderers of this work folder, and no other process. One that is only starting finds no settings and ends."""
    (work / "renderers" / "settings.json").unlink(missing_ok=True)
    for process in alive(work):
        try:
            os.kill(process, signal.SIGTERM)
        except ProcessLookupError:  # ended in this moment
            continue


def complaint(work: Path) -> str:
    """The last line that a renderer wrote."""
    logs = sorted((work / "renderers").glob("*.log"), key=lambda path: path.stat().st_mtime)
    lines = [line for path in logs for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line]
    return lines[-1] if lines else ""


# ---- the cache ----------------------------------------------------------------------------------------------------


def split(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Packs to train on, and packs to watch: whole assets are held out, not only other moments of them."""
    watched = list(paths[WATCH_EVERY // 2 :: WATCH_EVERY]) or list(paths[:1])
    trained = [path for path in paths if path not in watched]
    return (trained or list(paths)), watched


def make_room(cache: Path, limit: float) -> int:
    """Delete the oldest shards of a cache of more than `limit` bytes; returns how many bytes are left."""
    found = []
    for ready in cache.glob("[!.]*/ready"):
        try:
            size = sum(entry.stat().st_size for entry in os.scandir(ready.parent))
            found.append((ready.stat().st_mtime, size, ready.parent))
        except FileNotFoundError:  # another renderer was faster
            continue
    left = sum(size for _, size, _ in found)
    for _, size, folder in sorted(found)[:-1]:
        if left <= limit:
            break
        gone = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            os.rename(folder, gone)  # readers see a whole shard or none
        except OSError:
            continue
        shutil.rmtree(gone, ignore_errors=True)
        left -= size
    return left


def sequences(cache: Path) -> int:
    """How many are in a cache."""
    return SHARD * sum(1 for _ in cache.glob("[!.]*/ready"))


def next_seed(cache: Path, index: int) -> int:
    """A seed of renderer `index` that no shard in the cache has, higher than all that it has."""
    names = (name.split("_")[0] for name in os.listdir(cache)) if cache.is_dir() else ()
    used = [int(name) for name in names if name.isdigit() and int(name) // SEEDS == index + 1]
    return max(used, default=(index + 1) * SEEDS - 1) + 1


# ---- the renderer's side ------------------------------------------------------------------------------------------


def render(work: Path, index: int) -> None:
    """Until the work is stopped or left alone. Renderer 0 first renders what is watched."""
    mine = lock(work / "renderers" / f"{index:02d}.lock")
    if mine is None:
        return
    if hasattr(os, "nice"):
        os.nice(10)
    idle_since = time.monotonic()
    while time.monotonic() - idle_since < IDLE_SECONDS:
        try:
            settings = json.loads((work / "renderers" / "settings.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        cache, limit = Path(settings["cache"]), settings["cache_bytes"]
        common = {
            "size": settings["size"],
            "procedural": settings["procedural"],
            "supersample": settings["supersampling"],
        }
        if index == 0:
            paths = [Path(path) for path in settings["watched"]]
            fill(paths, work / "watched", sequences=settings["watch_sequences"], seed=0, **common)
        called = holder(work / "call.lock") is not None
        if called:
            idle_since = time.monotonic()
        full = make_room(cache, limit) > 0.9 * limit and not called  # and nobody takes from it
        lacking = settings["sequences"] - sequences(cache) if settings["sequences"] else math.inf
        if full or lacking <= 0:
            time.sleep(5)
            continue
        paths = [Path(path) for path in settings["packs"]]
        seed = next_seed(cache, index)
        count = min(SHARDS_AT_ONCE * SHARD, lacking)
        fill(paths, cache, sequences=count, seed=seed, **common)


def main(argv: list[str]) -> int:
    work, index = Path(argv[0]), int(argv[1])
    try:
        render(work, index)
    except LimError as error:
        print(error, flush=True)
        return 1
    except OSError as error:
        print(from_os_error(error, "rendering sequences"), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
