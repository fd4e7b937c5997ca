# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core evaluate matching`: where the points of one moment are at another, and half-way.

From the middle of every clip that moves, as the rig shows its two ends; points of the whole surface, seen or not. In percent of
the diagonal of the first moment; mean and median over the clips. Rows:

    still     nothing moves
    nearest   the nearest point of the other moment, in place and colour
    motion    the motion network
    straight  half-way on the straight line between the true ends (half-way only)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree

from ..mesh import packs, rays
from ..mesh.packs import Pack
from ..networks import checkpoint
from ..networks import device as devices
from ..networks.point_motion import Motion, carried, hold
from ..tracking import moved
from . import metrics, scenes

POINTS = 512  # of the surface whose places are compared
CLIPS = 4  # of an asset, so that no family counts for all
MOVING = 1.5  # percent of the diagonal: clips that move less are left out
COLOUR_WEIGHT = 0.3  # model units that a whole step of colour counts for the nearest point
ROWS = ("still", "nearest", "motion")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gap", type=float, default=0.2, help="seconds between the two moments")


@torch.no_grad()
def evaluate(
    packs_folder: str, out: str, *, weights: str = "", device="cpu", limit: int | None = None, gap: float = 0.2
):
    """Measure, write results.csv and summary.json into `out`, and return the summary.

    Args:
        weights: a folder of checkpoints, or the checkpoint of the motion network itself.
    Raises:
        LimError: `weights_missing`, `weights_broken`; `bad_pack` where nothing can be measured.
    """
    device = torch.device(device)
    root = Path(weights) if weights else checkpoint.BUNDLED
    folder = root if (root / "config.json").is_file() else root / "motion"
    network = checkpoint.load(folder, "motion", device)
    rows: list[dict] = []
    skipped: list[dict] = []
    for path in scenes.evenly(packs.list_packs(packs_folder), limit):
        pack = packs.load(path)
        length = gap * pack.fps
        for clip in range(min(pack.clips, CLIPS)):
            if pack.frames(clip) - 1 < length:
                continue
            with scenes.skipping(skipped, path.stem):
                row = measure(network, pack, clip, length, device)
                if row["still"] >= MOVING:
                    rows.append({"asset": path.stem, "clip": pack.clip_names[clip], **row})
    scenes.need_any(rows, skipped, packs_folder)
    names = [name for name in rows[0] if name not in ("asset", "clip")]
    summary = {
        "gap": gap,
        "clips": len(rows),
        "mean": {name: round(float(np.mean([row[name] for row in rows])), 2) for name in names},
        "median": {name: round(float(np.median([row[name] for row in rows])), 2) for name in names},
        "device": devices.describe(device),
        "skipped": skipped,
    }
    metrics.write(Path(out), rows, summary)
    return summary


def measure(network: Motion, pack: Pack, clip: int, length: float, device) -> dict[str, float]:
    """One clip's errors, in percent of the diagonal; of `motion` also over what the rig sees of the first moment."""
    start = (pack.frames(clip) - 1 - length) / 2
    positions = pack.model_positions(clip, (start, start + length / 2, start + length))
    face, weights = metrics.surface_places(positions[0], pack.faces, POINTS, 5)
    first, middle, last = (metrics.at_places(p, pack.faces, face, weights) for p in positions)
    diagonal = np.linalg.norm(np.ptp(positions[0], axis=0)) / 100
    capture = scenes.capture(pack, positions[[0, 2]], network_size := 128)
    sheets = [moved.sheets(capture, k, network_size) for k in (0, 1)]
    forth, _ = network(*(moved.cloud(s, network.config.controls, device) for s in sheets))
    corners = positions[0][pack.faces[face]]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    near, index = cKDTree(sheets[0].points).query(first)
    normal *= np.sign((normal * sheets[0].normals[index]).sum(1, keepdims=True))
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    points, normals = (torch.from_numpy(x.astype(np.float32))[None].to(device) for x in (first, normal))
    held = hold(forth, points, normals)
    there = carried(forth.start, forth.place, forth.turn, held, points)[0].cpu().numpy()
    half = carried(forth.start, *network.at(forth, torch.full((1,), 0.5, device=device)), held, points)[0].cpu().numpy()
    colour = rays.albedo(pack, face, weights[:, 1].astype(np.float32), weights[:, 2].astype(np.float32)) / 255
    tree = cKDTree(np.c_[sheets[1].points, COLOUR_WEIGHT * sheets[1].colours])
    nearest = sheets[1].points[tree.query(np.c_[first, COLOUR_WEIGHT * colour])[1]]

    def error(guess: np.ndarray, truth: np.ndarray) -> np.ndarray:
        return np.linalg.norm(guess - truth, axis=1) / diagonal

    seen = near < 2 * np.median(near) + 1e-3
    return {
        "still": float(error(first, last).mean()),
        "nearest": float(error(nearest, last).mean()),
        "motion": float(error(there, last).mean()),
        "motion_seen": float(error(there, last)[seen].mean()) if seen.any() else float("nan"),
        "half_straight": float(error((first + last) / 2, middle).mean()),
        "half_nearest": float(error((first + nearest) / 2, middle).mean()),
        "half_motion": float(error(half, middle).mean()),
    }
