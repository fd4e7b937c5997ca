# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core evaluate interpolation`: the middle of uniform triplets, as the paper measures it (section 4.1).

Rows: `linear` (blend of the keyframes' triplanes), `flow` (the input views blended along optical flow, then LRM), `lim`, and
`oracle` (LRM on the true middle). Four held-out views each. `flow` uses scikit-image's TV-L1; it has no depth to give the
reconstructor, since image-space interpolation knows none.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage.registration import optical_flow_tvl1
from skimage.transform import warp

from .. import checkpoint
from ..images import Views
from . import metrics, scenes

ROWS = ("linear", "flow", "lim", "oracle")
NAMES = ("psnr", "psnr_fg", "ssim")


@torch.no_grad()
def evaluate(
    packs_folder: str, out: str, *, weights: str, device, limit: int | None, gap: float = 0.4, per_clip: int = 2
) -> dict:
    folders = checkpoint.folders(weights)
    lrm = checkpoint.load(folders["lrm"], "lrm", device)
    lim = checkpoint.load(folders["lim"], "lim", device)
    size = lrm.config.image_size
    chosen = list(scenes.triplets(packs_folder, gap, per_clip))
    if limit is not None and len(chosen) > limit:
        chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, limit).round().astype(int)]
    rows, sheet = [], []
    for pack, clip, frames, motion in chosen:
        positions = pack.model_positions(clip, frames)
        seen = scenes.capture(pack, positions)
        views = [seen.network_views(i, size, device) for i in range(3)]
        real = scenes.truth(pack, positions[1], positions[0])
        (first, features), (middle, _), (last, _) = (lrm(v) for v in views)
        started = time.monotonic()
        between, _ = lim(features, lim.condition(views[2]), torch.tensor([0.5], device=device))
        seconds = time.monotonic() - started
        planes = {
            "linear": (first + last) / 2,
            "flow": lrm(flow_views(views[0], views[2]))[0],
            "lim": between,
            "oracle": middle,
        }
        row = {"asset": Path(pack.name).stem, "clip": pack.clip_names[clip], "start": frames[0], "motion": motion}
        pictures = [real.images]
        for name in ROWS:
            image = scenes.render(lrm.decoder, planes[name])[0].clip(0, 1)
            row[f"{name}.psnr"] = np.mean([metrics.psnr(a, b) for a, b in zip(image, real.images)])
            row[f"{name}.psnr_fg"] = np.nanmean(
                [metrics.psnr(a, b, m) for a, b, m in zip(image, real.images, real.mask)]
            )
            row[f"{name}.ssim"] = np.mean([metrics.ssim(a, b) for a, b in zip(image, real.images)])
            pictures.append(image)
        row["seconds"] = seconds
        rows.append(row)
        if len(sheet) < 16:
            sheet.append(np.concatenate([p[0] for p in pictures], 1))
        print(f"{row['asset']} {row['clip']}: " + " ".join(f"{n}={row[f'{n}.psnr_fg']:.2f}" for n in ROWS), flush=True)
    table = {name: {m: metrics.mean(rows, f"{name}.{m}") for m in NAMES} | {"lpips": None} for name in ROWS}
    summary = {
        "gap": gap,
        "rows": table,
        "gap_closed": {m: _gap_closed(table, m) for m in ("psnr", "psnr_fg")},
        "high_motion": _high_motion(rows),
        "scenes": len({row["asset"] for row in rows}),
        "triplets": len(rows),
        "seconds_per_frame": metrics.mean(rows, "seconds"),
    }
    metrics.write(Path(out), rows, summary)
    Image.fromarray((np.concatenate(sheet) * 255).round().astype(np.uint8)).save(Path(out) / "sheet.png")
    return summary


def _gap_closed(table: dict, measure: str) -> float | None:
    """(lim − linear) / (oracle − linear); None where there is no gap to close."""
    linear, lim, oracle = (table[name][measure] for name in ("linear", "lim", "oracle"))
    return round((lim - linear) / (oracle - linear), 4) if oracle - linear > 1e-3 else None


def _high_motion(rows: list[dict]) -> dict:
    """The same, over the third of the triplets that move most."""
    lively = sorted(rows, key=lambda row: -row["motion"])[: max(1, len(rows) // 3)]
    return {name: {m: metrics.mean(lively, f"{name}.{m}") for m in NAMES} for name in ROWS}


def flow_views(first: Views, last: Views) -> Views:
    """The rig's pictures half-way, blended along the optical flow between the two times."""
    images = []
    for one, two in zip(first.content[0].cpu().numpy(), last.content[0].cpu().numpy()):
        grey = [x.mean(-1) for x in (one, two)]
        v, u = optical_flow_tvl1(grey[0], grey[1])
        row, column = np.meshgrid(*(np.arange(n) for n in grey[0].shape), indexing="ij")
        forward = [warp(one[..., c], np.stack([row - v / 2, column - u / 2]), mode="edge") for c in range(3)]
        back = [warp(two[..., c], np.stack([row + v / 2, column + u / 2]), mode="edge") for c in range(3)]
        images.append((np.stack(forward, -1) + np.stack(back, -1)) / 2)
    content = torch.from_numpy(np.stack(images))[None].to(first.content)
    alpha = ((first.alpha + last.alpha) / 2 + (content < 0.98).any(-1).float()).clamp(0, 1)
    shown = dataclasses.replace(first, content=content, alpha=alpha)
    return shown.without_depth(torch.ones(1, device=content.device))
