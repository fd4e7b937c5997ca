# SPDX-License-Identifier: GPL-3.0-or-later
"""What the networks are trained on. Weights are ours: the paper does not state them."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from ..networks.images import Views
from ..networks.lim import LIM
from ..networks.lrm import LRM
from ..networks.perceptual import Perceptual
from ..networks.render import render_rays
from ..networks.triplane import TriplaneDecoder
from .batches import Batch, Rays
from .perceptual import patch_distance


@dataclasses.dataclass(frozen=True)
class LossWeights:
    content: float = 5.0
    """Mean squared error of colour on white, or of the canonical coordinate on the object."""
    mask: float = 0.3
    """Binary cross-entropy of the mask."""
    depth: float = 0.5
    """Mean absolute error of planar depth on the object, in model units."""
    causal: float = 1.0
    """L_causal against L_T."""
    perceptual: float = 0.2
    """The perceptual distance of rendered squares, where weights for it are given."""
    render: float = 1.0
    """The rendering loss of an interpolated triplane against L_T; 0 is the paper's form."""


def rendering_loss(
    decoder: TriplaneDecoder, triplane: Tensor, rays: Rays, samples: int, weights: LossWeights, *, canonical: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_rgb (or L_can) + L_mask + L_depth of rendered rays, and the parts for the log."""
    content, depth, mask = render_rays(
        decoder, triplane, rays.origins, rays.directions, samples=samples, jitter=True, focus=rays.depth_planar
    )
    solid = (rays.depth_planar > 0).float() * (rays.alpha > 0.5)
    share = solid / solid.sum(1, keepdim=True).clamp_min(1) / len(solid)  # every scene counts alike, in any batch
    if canonical:
        error = (content - mask[..., None].detach() * rays.canonical) ** 2
        loss_content = (error.mean(-1) * share).sum()
    else:
        loss_content = F.mse_loss(content + 1 - mask[..., None], rays.rgb)
    sure = mask.clamp(1e-4, 1 - 1e-4)  # written out: torch's binary_cross_entropy refuses to run under CUDA's autocast
    loss_mask = -(rays.alpha * sure.log() + (1 - rays.alpha) * torch.log1p(-sure)).mean()
    loss_depth = ((depth + (1 - mask) * rays.depth_planar - rays.depth_planar).abs() * share).sum()
    total = weights.content * loss_content + weights.mask * loss_mask + weights.depth * loss_depth
    with torch.no_grad():
        hit, true = mask > 0.5, rays.alpha > 0.5
        iou = (hit & true).sum() / (hit | true).sum().clamp_min(1)
    return total, {"content": loss_content, "mask": loss_mask, "depth": loss_depth, "iou": iou}


def reconstruction_loss(
    model: LRM, batch: Batch, weights: LossWeights, *, canonical: bool, drop_depth: float,
    perceptual: Perceptual | None = None,
):  # fmt: skip
    """The reconstructor's loss; the depth evidence is hidden for a random share of the scenes."""
    views = batch.views_middle
    if canonical:
        views = views.with_content(batch.canonical_middle)
    if drop_depth > 0:
        views = views.without_depth((torch.rand(len(batch.alpha), device=batch.alpha.device) < drop_depth).float())
    triplane, _ = model(views)
    samples = model.config.ray_samples
    total, parts = rendering_loss(model.decoder, triplane, batch.rays, samples, weights, canonical=canonical)
    if perceptual is not None:
        parts["perceptual"] = patch_distance(perceptual, model.decoder, triplane, batch.patch, samples)
        total = total + weights.perceptual * parts["perceptual"]
    return total, parts


def interpolation_loss(
    model: LIM, lrm: LRM, batch: Batch, scale: Tensor, weights: LossWeights, *, samples: int, generator=None,
    perceptual: Perceptual | None = None,
):  # fmt: skip
    """L_T + L_causal (LIM, equations 2 and 3), plus an optional rendering loss of the interpolated triplane.

    Args:
        lrm: the frozen reconstructor (LRM̄ for the twin) that gives F_src, the target triplane T_m and the decoder.
        scale: [1, 3, C, 1, 1] spread of the triplane's channels; errors are measured in it (channels differ 4×).
    """
    source, middle = batch.views_source, batch.views_middle
    if model.canonical:
        source, middle = source.with_content(batch.canonical_source), middle.with_content(batch.canonical_middle)
    with torch.no_grad():
        _, features = lrm(source)
        truth, _ = lrm(middle)
    condition = model.condition(batch.views_target, batch.views_source if model.canonical else None)
    direct, _ = model(features, condition, batch.alpha)
    loss_t = (((direct - truth) / scale) ** 2).mean()
    total = loss_t
    parts = {"triplane": loss_t}
    if weights.causal > 0:
        share = torch.rand(len(batch.alpha), device=batch.alpha.device, generator=generator)
        first = share * batch.alpha
        _, carried = model(features, condition, first)
        again, _ = model(carried, condition, ((batch.alpha - first) / (1 - first)).clamp(0, 1))
        parts["causal"] = (((again - truth) / scale) ** 2).mean()
        total = total + weights.causal * parts["causal"]
    if weights.render > 0:
        loss, more = rendering_loss(lrm.decoder, direct, batch.rays, samples, weights, canonical=model.canonical)
        total = total + weights.render * loss
        parts |= more
    if perceptual is not None:
        parts["perceptual"] = patch_distance(perceptual, lrm.decoder, direct, batch.patch, samples)
        total = total + weights.perceptual * parts["perceptual"]
    return total, parts


@torch.no_grad()
def interpolation_diagnosis(model: LIM, lrm: LRM, batch: Batch, scale: Tensor) -> dict[str, float]:
    """Where the interpolator stands: error relative to Linear, sensitivity to α and distance to the source.

    `versus_linear` below 1 beats the straight blend of the two keyframes' triplanes. `sensitivity` is
    ‖T̂(.75) − T̂(.25)‖ over ‖T_tgt − T_src‖ / 2: near 0 it ignores α. `copies_source` near 0 copies the source.
    For the canonical twin no target triplane exists at inference; Linear is then the source itself.
    """
    source, middle, target = batch.views_source, batch.views_middle, batch.views_target
    if model.canonical:
        source, middle = source.with_content(batch.canonical_source), middle.with_content(batch.canonical_middle)
    start, features = lrm(source)
    truth, _ = lrm(middle)
    condition = model.condition(batch.views_target, batch.views_source if model.canonical else None)
    ahead, _ = model(features, condition, batch.alpha)
    end = truth if model.canonical else lrm(target)[0]
    a = batch.alpha[:, None, None, None, None]
    linear = start if model.canonical else (1 - a) * start + a * end

    def size(x: Tensor) -> Tensor:
        return ((x / scale) ** 2).mean()

    quarter = torch.full_like(batch.alpha, 0.25)
    moved = model(features, condition, 1 - quarter)[0] - model(features, condition, quarter)[0]
    return {
        "versus_linear": float(size(ahead - truth) / size(linear - truth).clamp_min(1e-9)),
        "sensitivity": float((size(moved) / (size(end - start) / 4).clamp_min(1e-9)).sqrt()),
        "copies_source": float((size(ahead - start) / size(truth - start).clamp_min(1e-9)).sqrt()),
    }


def channel_scale(lrm: LRM, views: list[Views]) -> Tensor:
    """[1, 3, C, 1, 1] standard deviation of each plane channel over some scenes."""
    with torch.no_grad():
        planes = torch.cat([lrm(v)[0] for v in views])
    return planes.std(dim=(0, 3, 4), keepdim=True).clamp_min(1e-3)
