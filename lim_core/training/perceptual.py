# SPDX-License-Identifier: GPL-3.0-or-later
"""The optional perceptual loss: a square of neighbouring pixels, rendered and compared with the truth."""

from __future__ import annotations

from torch import Tensor, nn

from ..networks.perceptual import Perceptual
from ..networks.render import render_rays
from .batches import Rays


def patch_distance(perceptual: Perceptual, decoder: nn.Module, triplane: Tensor, patch: Rays, samples: int) -> Tensor:
    """Mean perceptual distance of the patches [B, P², …], on white."""
    content, _, mask = render_rays(
        decoder, triplane, patch.origins, patch.directions, samples=samples, jitter=True, focus=patch.depth_planar
    )
    side = round(patch.alpha.shape[1] ** 0.5)
    shown = content + 1 - mask[..., None]
    images = (x.float().unflatten(1, (side, side)).permute(0, 3, 1, 2) for x in (shown, patch.rgb))
    return perceptual.distance(*images).mean()
