# SPDX-License-Identifier: GPL-3.0-or-later
"""How a run does on sequences that it is never trained on: numbers, one of which says which weights are the best, and a picture."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import torch
from torch import Tensor, nn

from ..data.cache import RIG_VIEWS, STEPS, Cache
from ..networks.images import Views
from ..networks.render import render_image
from .batches import canonical_views, draw, rig_views
from .losses import interpolation_diagnosis

COLUMNS = 8  # of the picture


@torch.no_grad()
def watch(
    model: nn.Module, frozen: nn.Module | None, cache: Cache, scale: Tensor | None, *, canonical: bool, device,
    deadline: float = math.inf,
) -> tuple[dict[str, float], np.ndarray] | None:  # fmt: skip
    """One novel view of the middle of every sequence: what was measured, and truth over prediction as uint8 [H, W, 3].
    None where `deadline` (of time.monotonic()) came first.

    `score` = psnr + psnr_fg, in dB: colour and outline (or canonical coordinate), with the object counting as much as all the
    rest. The best weights are those with the highest score.

    Args:
        frozen: the reconstructor that an interpolator stands on; None for a reconstructor.
        scale: for an interpolator, the spread of the triplane's channels.
    """
    was_training = model.training
    model.eval()
    psnr, psnr_fg, iou, pictures = [], [], [], []
    decoder = (frozen or model).decoder
    middle, last = STEPS // 2, STEPS - 1
    for i in range(len(cache.index)):
        if time.monotonic() > deadline:
            model.train(was_training)
            return None
        sequence = cache.sequence(i)
        views = {step: _one(rig_views(sequence, step)).to(device) for step in (0, middle, last)}
        coloured = views
        if canonical:
            coloured = {
                step: views[step].with_content(canonical_views(sequence, step, False)[None].to(device))
                for step in (0, middle)
            }
        if frozen is not None:
            _, features = frozen(coloured[0])
            condition = model.condition(views[last], views[0] if canonical else None)
            triplane, _ = model(features, condition, torch.tensor([0.5], device=device))
        else:
            triplane, _ = model(coloured[middle])
        view = RIG_VIEWS + i % (sequence["rgba"].shape[1] - RIG_VIEWS)
        matrix, intrinsics = (
            torch.from_numpy(np.array(sequence[name][middle, view])).to(device)
            for name in ("camera_to_world", "intrinsics")
        )
        image, _, mask = render_image(
            decoder, triplane.float(), matrix, intrinsics, sequence["rgba"].shape[-2], samples=64,
            background=0.0 if canonical else 1.0,
        )  # fmt: skip
        rgba = torch.from_numpy(np.array(sequence["rgba"][middle, view])).to(device).float() / 255
        truth = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
        if canonical:
            truth = torch.from_numpy(np.array(sequence["maps"][middle, view, ..., 3:6])).to(device).float()
            image, truth = image * 0.5 + 0.5, truth * 0.5 + 0.5
        solid = rgba[..., 3] > 0.5
        error = (image.clamp(0, 1) - truth) ** 2
        psnr.append(_decibel(error))
        psnr_fg.append(_decibel(error[solid]) if solid.any() else math.nan)
        hit = mask > 0.5
        iou.append(float((hit & solid).sum() / (hit | solid).sum().clamp_min(1)))
        pictures.append(torch.cat([truth, image.clamp(0, 1)]).cpu())
    row = {"psnr": float(np.mean(psnr)), "psnr_fg": float(np.nanmean(psnr_fg)), "iou": float(np.mean(iou))}
    row["score"] = row["psnr"] + row["psnr_fg"]
    if frozen is not None:
        batch = draw(cache, 16, 16, np.random.default_rng(1), interpolation=True).to(device)
        row |= interpolation_diagnosis(model, frozen, batch, scale)
    model.train(was_training)
    return row, _sheet(pictures)


def _one(views: Views) -> Views:
    return Views(*(getattr(views, field.name)[None] for field in dataclasses.fields(views)))


def _decibel(error: Tensor) -> float:
    return -10 * math.log10(float(error.mean()) + 1e-10)


def _sheet(pictures: list[Tensor]) -> np.ndarray:
    blank = torch.ones_like(pictures[0])
    columns = min(COLUMNS, len(pictures))
    pictures = pictures + [blank] * (-len(pictures) % columns)
    rows = [torch.cat(pictures[i : i + columns], 1) for i in range(0, len(pictures), columns)]
    return (torch.cat(rows).numpy() * 255).round().astype(np.uint8)
