# SPDX-License-Identifier: GPL-3.0-or-later
"""Seconds and memory of the networks at inference, as the evaluations report them."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from ..mesh import surface
from ..networks import checkpoint, device, triplane
from ..networks.images import Views
from ..networks.lim import LIM
from ..networks.lrm import LRM
from ..networks.render import render_image
from ..shared import cameras
from ..shared.errors import LimError
from ..stages.of_mesh import TEMPLATE_GRID
from ..stages.of_networks import SURFACE_LEVEL
from ..training.speed import timed
from .scenes import SAMPLES

BATCH = 4  # in-betweens of one pass
PICTURE = 256  # pixels of the timed render
REPEATS = 3


@torch.no_grad()
def of_reconstruction(lrm: LRM, views: Views) -> dict[str, float | None]:
    """Seconds of LRM on these views, of one 256² picture and of the mesh of a 128³ density grid; None for an empty one."""
    where = views.content.device
    planes = lrm(views)[0]
    camera = torch.from_numpy(cameras.look_at(*cameras.HELD_OUT[0])).to(where)
    intrinsics = torch.from_numpy(cameras.pinhole(PICTURE)).to(where)

    def mesh() -> None:
        surface.marching_cubes(triplane.density_grid(lrm.decoder, planes, TEMPLATE_GRID).cpu().numpy(), SURFACE_LEVEL)

    found: dict[str, float | None] = {
        "reconstruct": timed(where, lambda: lrm(views), REPEATS),
        "render_256": timed(
            where, lambda: render_image(lrm.decoder, planes, camera, intrinsics, PICTURE, samples=SAMPLES), REPEATS
        ),
    }
    try:
        found["mesh_128"] = timed(where, mesh, REPEATS)
    except LimError:
        found["mesh_128"] = None
    return {name: None if seconds is None else round(seconds, 4) for name, seconds in found.items()}


@torch.no_grad()
def of_interpolation(lrm: LRM, lim: LIM, first: Views, last: Views) -> dict[str, float]:
    """Seconds per in-between frame, alone and in batches of `BATCH`, and what a pair of keyframes costs once."""
    where = first.content.device
    features, condition = lrm(first)[1], lim.condition(last)
    alone = torch.tensor([0.5], device=where)
    together = torch.linspace(0.1, 0.9, BATCH, device=where)
    found = {
        "keyframes": timed(where, lambda: (lrm(first), lim.condition(last)), REPEATS),
        "per_frame": timed(where, lambda: lim(features, condition, alone), REPEATS),
        f"per_frame_of_{BATCH}": timed(where, lambda: lim(features, condition, together), REPEATS) / BATCH,
    }
    return {name: round(seconds, 4) for name, seconds in found.items()}


def memory(weights: str, where: torch.device, inbetweens: int) -> float | None:
    """Peak memory in MB of a process of its own that makes so many in-betweens; None where it cannot be read.

    On the CPU all of the process's (resident set); on a GPU what torch allocated there.
    """
    weights = str(Path(weights).resolve()) if weights else ""
    command = [sys.executable, "-m", __name__, "--weights", weights, "--device", where.type]
    command += ["--inbetweens", str(inbetweens)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise LimError("internal", f"Measuring the memory failed: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])


@torch.no_grad()
def make(weights: str, where: torch.device, inbetweens: int) -> float | None:
    """In-betweens of two golden scenes in batches, each batch dropped after it was looked at; returns the peak in MB."""
    folders = checkpoint.folders(weights)
    lrm, lim = checkpoint.load(folders["lrm"], "lrm", where), checkpoint.load(folders["lim"], "lim", where)
    views = checkpoint.golden_views(checkpoint.golden_input(lrm.config), False, where)
    features, condition = lrm(views)[1], lim.condition(views)
    for alphas in torch.linspace(0, 1, inbetweens, device=where).split(BATCH):
        planes, _ = lim(features, condition, alphas)
        if not torch.isfinite(planes).all():
            raise LimError("weights_broken", "The interpolator's answer is not made of numbers.")
    if where.type == "cuda":
        return round(torch.cuda.max_memory_allocated(where) / 1e6, 1)
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return round(int(peak.split()[1]) * 1024 / 1e6, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", default="")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--inbetweens", type=int, required=True)
    args = parser.parse_args()
    print(json.dumps(make(args.weights, device.pick(args.device), args.inbetweens)))
