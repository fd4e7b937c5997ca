# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core evaluate reconstruction`: novel views of the reconstructors on packs they were not trained on.

Per pack, the middle of its liveliest clip: four rig views of 128 px in, four held-out views of 128 px compared. `lrm` as it is
bundled; the same with colours from the captured pictures where they show a place (`pictured`: what a job shows,
networks/image_colour.py); and with the depth hidden (`no_depth`: what a video gives it).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from ..job.capture import Capture
from ..mesh import packs, rays, surface
from ..networks import checkpoint, perceptual, triplane
from ..networks import device as devices
from ..networks.images import Views
from ..shared import cameras
from ..shared.errors import LimError
from ..stages.of_mesh import TEMPLATE_GRID
from ..stages.of_networks import SURFACE_LEVEL
from . import metrics, pictures, scenes, speed

POINTS = 10000  # of each surface for the chamfer distance
NAMES = (*metrics.PICTURE, "mask_iou", "depth_error")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lpips", default="", help="file with the weights of the perceptual distance; without: null")


@torch.no_grad()
def evaluate(
    packs_folder: str, out: str, *, weights: str = "", device="cpu", limit: int | None = None, lpips: str = ""
) -> dict:
    """Measure, write results.csv, summary.json and contact sheets into `out`, and return the summary.

    Raises:
        LimError: `bad_pack` where no pack can be measured; a single bad one is skipped and named in the summary.
    """
    out = Path(out)
    folders = checkpoint.folders(weights)
    lrm = checkpoint.load(folders["lrm"], "lrm", device)
    twin = checkpoint.load(folders["lrm-xyz"], "lrm-xyz", device)
    judge = perceptual.load(lpips).to(device) if lpips else None
    rows, sheet = [], []
    skipped: list[dict] = []
    seconds: dict[str, float | None] = {}
    for path in scenes.evenly(packs.list_packs(packs_folder), limit):
        with scenes.skipping(skipped, path.stem):
            pack = packs.load(path)
            row, images, views = measure(pack, lrm, twin, judge, device)
            seconds = seconds or speed.of_reconstruction(lrm, views)
            rows.append(row)
            sheet.append(pictures.Row(path.stem, f"{row['psnr_fg']:.1f} dB", images))
            metrics.write_rows(out, rows)
            print(
                f"{path.stem}: " + " ".join(f"{k}={v:.3g}" for k, v in row.items() if isinstance(v, float)), flush=True
            )
    scenes.need_any(rows, skipped, packs_folder)
    summary: dict[str, object] = {name: metrics.mean(rows, name) for name in (*NAMES, "chamfer", "canonical_error")}
    summary |= {
        "scenes": len(rows),
        "pictured": {name: metrics.mean(rows, f"pictured_{name}") for name in metrics.PICTURE},
        "no_depth": {name: metrics.mean(rows, f"no_depth_{name}") for name in NAMES},
        "seconds_per_reconstruction": metrics.mean(rows, "seconds"),
        "seconds": seconds,
        "device": devices.describe(torch.device(device)),
        "skipped": skipped,
    }
    metrics.write(out, rows, summary)
    pictures.save_sheets(out, sheet, ["truth", "", "LRM", "", "pictured", "", "no depth", ""])
    return summary


def measure(pack: packs.Pack, lrm, twin, judge, device) -> tuple[dict, list[np.ndarray], Views]:
    """The row of a pack, the pictures of its line in the contact sheet, and the views that the networks saw."""
    size = lrm.config.image_size
    clip, frame = scenes.liveliest(pack)
    start, now = pack.model_positions(clip, [max(frame - 2, 0), frame])
    capture = scenes.capture(pack, now[None], size)
    views = capture.network_views(0, size, device)
    real = scenes.truth(pack, now, start)
    row = {"asset": Path(pack.name).stem, "clip": pack.clip_names[clip], "frame": frame}
    images = list(real.images[:2])
    for name, shown in (("", views), ("no_depth_", views.without_depth(torch.ones(1, device=device)))):
        devices.synchronise(torch.device(device))
        started = time.monotonic()
        planes = lrm(shown)[0]
        devices.synchronise(torch.device(device))
        seconds = time.monotonic() - started
        image, depth, mask = scenes.render(lrm.decoder, planes)
        image, solid = image.clip(0, 1), mask > 0.5
        both = solid & real.mask
        measured = metrics.pictures(image, real.images, real.mask, judge) | {
            "mask_iou": float(np.mean([metrics.iou(a, b) for a, b in zip(solid, real.mask)])),
            "depth_error": metrics.finite_mean(np.abs(depth - real.depth_planar)[both]),
            "seconds": seconds,
        }
        if not name:
            pictured, _, _ = scenes.render(capture.image_colour(lrm.decoder, 0, device), planes)
            found = metrics.pictures(pictured.clip(0, 1), real.images, real.mask, judge)
            measured |= {f"pictured_{key}": value for key, value in found.items()}
            measured["chamfer"] = chamfer(lrm.decoder, planes, metrics.sample_surface(now, pack.faces, POINTS))
        row |= {f"{name}{key}": value for key, value in measured.items()}
        images += list(image[:2])
        if not name:
            images += list(pictured.clip(0, 1)[:2])
    row["canonical_error"] = canonical_error(pack, now, start, twin, real, device)
    return row, images, views


def chamfer(decoder, planes: torch.Tensor, points: np.ndarray) -> float:
    """Chamfer distance of the triplane's marching-cubes mesh to points [N, 3]; NaN where the triplane is empty."""
    grid = triplane.density_grid(decoder, planes, TEMPLATE_GRID).cpu().numpy()
    try:
        mesh = surface.marching_cubes(grid, SURFACE_LEVEL)
    except LimError:
        return float("nan")
    return metrics.chamfer(metrics.sample_surface(*mesh, POINTS), points)


def canonical_error(pack, now, start, twin, real: scenes.Truth, device) -> float:
    """Mean error of LRM̄'s rendered canonical coordinates on the surface, relative to the diagonal of the start's box.

    The twin is shown the canonical renders of the true start, as L_can trains it.
    """
    size = twin.config.image_size
    camera, intrinsics = cameras.job_cameras(size, 4)
    seen = rays.render(pack, now, camera, intrinsics, size, canonical=(start,))
    views = Capture(seen.rgba[None], seen.depth_planar[None], camera, intrinsics, 4).network_views(0, size, device)
    omega = views.with_content(torch.from_numpy(seen.canonical[0])[None].to(views.content))
    label, _, mask = scenes.render(twin.decoder, twin(omega)[0], background=0.0)
    hit = (mask > 0.5) & real.mask
    error = np.linalg.norm(label / np.maximum(mask, 1e-6)[..., None] - real.canonical, axis=-1)[hit]
    return metrics.finite_mean(error) / float(np.linalg.norm(np.ptp(start, axis=0)))
