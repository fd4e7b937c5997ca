# SPDX-License-Identifier: GPL-3.0-or-later
"""One small job, computed by several kernels of the same processor: the same mesh at the same places."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from conftest import make_job
from lim_core.evaluation import metrics

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ({"OPENBLAS_CORETYPE": "Haswell"}, {"OPENBLAS_CORETYPE": "Sandybridge", "ATEN_CPU_CAPABILITY": "default"})
SETTINGS = {key for kernel in KERNELS for key in kernel}
ALLOWED = 0.002  # of the diagonal


def run(job: Path, kernel: dict[str, str]) -> dict[str, np.ndarray]:
    environment = {key: value for key, value in os.environ.items() if key not in SETTINGS} | kernel
    command = [sys.executable, "-m", "lim_core", "run", str(job)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=900)
    with np.load(job / "result.npz") as arrays:
        return dict(arrays)


def apart(one: tuple, other: tuple, seed: int) -> float:
    """Mean distance between points sampled on two meshes, there and back."""
    a, b = metrics.sample_surface(*one, 20000, 0), metrics.sample_surface(*other, 20000, seed)
    return float(np.r_[cKDTree(a).query(b)[0], cKDTree(b).query(a)[0]].mean())


def test_every_kernel_gives_the_same_mesh(tmp_path, tiny_weights):
    """Where the template has the same triangles, every vertex is compared. It need not: of two edges that are equally short,
    rounding decides which one is collapsed. Then the surfaces are compared, beyond what sampling them costs."""
    first, *others = (run(make_job(tmp_path / str(i), tiny_weights), k) for i, k in enumerate(({}, *KERNELS)))
    diagonal = np.linalg.norm(np.ptp(first["positions"][0], axis=0))
    for kernel, result in zip(KERNELS, others):
        assert len(result["positions"]) == len(first["positions"])
        if np.array_equal(result["faces"], first["faces"]):
            off = np.linalg.norm(result["positions"] - first["positions"], axis=-1).max()
        else:
            assert abs(len(result["faces"]) / len(first["faces"]) - 1) < 0.02, kernel
            moments = zip(first["positions"], result["positions"])
            pairs = [((a, first["faces"]), (b, result["faces"])) for a, b in moments]
            off = max(apart(a, b, 1) - apart(a, a, 2) for a, b in pairs)
        assert off < ALLOWED * diagonal, kernel
