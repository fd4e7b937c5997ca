# SPDX-License-Identifier: GPL-3.0-or-later
"""How many cores the backend takes. Standard library only: the variables must be set before numpy and torch are imported."""

from __future__ import annotations

import os


def limit() -> int:
    """Leave a core to Blender's window; LIM_THREADS overrides. Returns the number of threads.

    Two hardware threads of one core gain nothing (1024³ matmul on such a machine: 175 GFLOP/s with one, 184 with two), and
    threads that wait for each other beside other work cost five times the time.
    """
    asked = os.environ.get("LIM_THREADS", "")
    threads = int(asked) if asked.isdigit() and int(asked) > 0 else max(1, (os.cpu_count() or 1) - 1)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, str(threads))
    return threads
