# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core evaluate reconstruction`: novel views of the reconstructors on packs they were not trained on.

Per pack, the middle of its liveliest clip: four rig views of 128 px in, four held-out views of 128 px compared. `lrm` as it is
bundled, and `lrm_no_depth` with the depth evidence hidden (what a video gives it).
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .. import cameras, checkpoint, surface, triplane
from ..data import packs, rays
from ..errors import LimError
from ..pipeline import SURFACE_LEVEL
from . import metrics, scenes


@torch.no_grad()
def evaluate(packs_folder: str, out: str, *, weights: str, device, limit: int | None) -> dict:
    folders = checkpoint.folders(weights)
    lrm = checkpoint.load(folders["lrm"], "lrm", device)
    twin = checkpoint.load(folders["lrm-xyz"], "lrm-xyz", device)
    size = lrm.config.image_size
    rows, sheet = [], []
    for path in packs.list_packs(packs_folder)[:limit]:
        pack = packs.load(path)
        clip, frame = scenes.liveliest(pack)
        start, now = pack.model_positions(clip, [max(frame - 2, 0), frame])
        views = scenes.capture(pack, now[None]).network_views(0, size, device)
        real = scenes.truth(pack, now, start)
        row = {"asset": path.stem, "clip": pack.clip_names[clip]}
        pictures = [real.images]
        for name, shown in (("", views), ("no_depth_", views.without_depth(torch.ones(1, device=device)))):
            started = time.monotonic()
            planes = lrm(shown)[0]
            seconds = time.monotonic() - started
            image, depth, mask = scenes.render(lrm.decoder, planes)
            image = image.clip(0, 1)
            solid = mask > 0.5
            both = solid & real.mask
            row |= {
                f"{name}psnr": np.mean([metrics.psnr(a, b) for a, b in zip(image, real.images)]),
                f"{name}psnr_fg": np.nanmean([metrics.psnr(a, b, m) for a, b, m in zip(image, real.images, real.mask)]),
                f"{name}ssim": np.mean([metrics.ssim(a, b) for a, b in zip(image, real.images)]),
                f"{name}mask_iou": np.mean([metrics.iou(a, b) for a, b in zip(solid, real.mask)]),
                f"{name}depth_error": np.abs(depth - real.depth_planar)[both].mean() if both.any() else np.nan,
                f"{name}seconds": seconds,
            }
            pictures.append(image)
            if not name:
                grid = triplane.density_grid(lrm.decoder, planes, 128).cpu().numpy()
                points = metrics.sample_surface(now, pack.faces, 10000)
                try:
                    mesh = surface.marching_cubes(grid, SURFACE_LEVEL)
                    row["chamfer"] = metrics.chamfer(metrics.sample_surface(*mesh, 10000), points)
                except LimError:
                    row["chamfer"] = np.nan
        # The twin, on the canonical renders of the true start, as L_can trains it.
        omega = _canonical_views(pack, now, start, views, size)
        label, _, mask = scenes.render(twin.decoder, twin(omega)[0], background=0.0)
        hit = (mask > 0.5) & real.mask
        diagonal = np.linalg.norm(np.ptp(start, axis=0))
        error = np.linalg.norm(label / np.maximum(mask, 1e-6)[..., None] - real.canonical, axis=-1)[hit]
        row["canonical_error"] = float(error.mean() / diagonal) if hit.any() else np.nan
        rows.append(row)
        sheet.append(np.concatenate([np.concatenate(list(p[:2]), 1) for p in pictures], 1))
        print(f"{path.stem}: " + " ".join(f"{k}={v:.3g}" for k, v in row.items() if isinstance(v, float)), flush=True)
    names = ("psnr", "psnr_fg", "ssim", "mask_iou", "depth_error", "chamfer", "canonical_error")
    summary = {name: metrics.mean(rows, name) for name in names} | {"lpips": None, "scenes": len(rows)}
    summary["no_depth"] = {
        n: metrics.mean(rows, f"no_depth_{n}") for n in ("psnr", "psnr_fg", "ssim", "mask_iou", "depth_error")
    }
    summary["seconds_per_reconstruction"] = metrics.mean(rows, "seconds")
    metrics.write(Path(out), rows, summary)
    Image.fromarray((np.concatenate(sheet) * 255).round().astype(np.uint8)).save(Path(out) / "sheet.png")
    return summary


def _canonical_views(pack, now, start, views, size):
    camera, intrinsics = cameras.job_cameras(size, 4)
    seen = rays.render(pack, now, camera, intrinsics, size, canonical=(start,))
    return views.with_content(torch.from_numpy(seen.canonical[0])[None].to(views.content))
