# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast packs are rendered: `python -m lim_core cache PACKS_DIR --benchmark [--processes N]`."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..mesh import packs
from . import procedural, sequences

CASES = tuple((size, supersampling) for size in (64, 128, 256) for supersampling in (1, 2))
SECONDS = 6.0


def measure(
    paths: Sequence[Path], seed: int, size: int, supersampling: int, seconds: float
) -> tuple[int, float, float]:
    """Views rendered into sequences, wall seconds, seconds of the processor. Without paths, of generated objects."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(paths))[:40]
    loaded = [packs.load(paths[i]) for i in chosen] or list(itertools.islice(procedural.objects(seed), 40))
    sequences.render_sequence(loaded[0], size, rng, supersample=supersampling)
    views, wall, processor = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        sequence = sequences.render_sequence(loaded[views % len(loaded)], size, rng, supersample=supersampling)
        views += sequence["bits"].shape[0] * len(sequence["camera_to_world"][0])
    return views, time.perf_counter() - wall, time.process_time() - processor


def main(folder: str, processes: int) -> int:
    """Print a table; the exit code."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that are started
    paths = [] if folder == "-" else packs.list_packs(folder)
    print(f"{processes} processes on {os.cpu_count()} logical processors, {SECONDS:g} s each")
    if not paths:
        made, began = 0, time.process_time()
        for _ in itertools.islice(procedural.objects(1), 60):
            made += 1
        print(f"{made / (time.process_time() - began):.0f} objects generated per second of a processor")
    print("| size | rays per pixel | views/s in all | views/s per second of a processor |\n|---|---|---|---|")
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for size, supersampling in CASES:
            jobs = [(paths, seed, size, supersampling, SECONDS) for seed in range(processes)]
            found = pool.starmap(measure, jobs, chunksize=1)
            rate = sum(views / wall for views, wall, _ in found)
            each = np.mean([views / processor for views, _, processor in found])
            print(f"| {size}² | {supersampling}² | {rate:.0f} | {each:.0f} |", flush=True)
    return 0
