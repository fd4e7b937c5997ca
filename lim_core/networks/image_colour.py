# SPDX-License-Identifier: GPL-3.0-or-later
"""Colour from the pictures that a triplane was made of, where they show a place; from the decoder elsewhere.

Planes of 96² cells cannot hold a texture, and the pictures are at hand: image-based colour, as in pixelNeRF (Yu et al. 2021) and IBRNet
(Wang et al. 2021), by depth instead of learnt weights, so that it needs no training. Density stays the decoder's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

REACH = 0.03  # model units off a picture's depth at which its word counts 1/e
PLAIN = 0.1  # what the decoder's own word counts against a picture's
OPAQUE = 0.5  # alpha below which a pixel is background


class ImageColour(nn.Module):
    """A decoder with the same call as the one in it: points of a triplane → density and content."""

    def __init__(
        self,
        decoder: nn.Module,
        rgba: Float[Tensor, "V H W 4"],
        depth_planar: Float[Tensor, "V H W"],
        camera_to_world: Float[Tensor, "V 4 4"],
        intrinsics: Float[Tensor, "V 3 3"],
    ):
        """decoder: of RGB; rgba: in [0, 1], straight alpha; depth_planar: camera z, 0 where nothing is; model space."""
        super().__init__()
        self.decoder = decoder
        colour = torch.cat([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], -1)
        self.pictures = colour.permute(0, 3, 1, 2)  # V 4 H W, premultiplied
        self.depth = depth_planar[:, None]
        turn = camera_to_world[:, :3, :3]
        self.to_pixels = intrinsics @ turn.transpose(1, 2)
        self.place = camera_to_world[:, :3, 3]

    def forward(
        self, triplane: Float[Tensor, "1 3 C R R"], points: Float[Tensor, "1 P 3"]
    ) -> tuple[Float[Tensor, "1 P"], Float[Tensor, "1 P 3"]]:
        density, content = self.decoder(triplane, points)
        total, weight = PLAIN * content[0], torch.full_like(points[0, :, :1], PLAIN)
        size = self.pictures.shape[-1]
        for picture, depth, matrix, place in zip(self.pictures, self.depth, self.to_pixels, self.place):
            there = (points[0] - place) @ matrix.T
            z = there[:, 2]
            grid = (2 / size * there[:, :2] / z.clamp_min(1e-6)[:, None] - 1)[None, None]
            seen = F.grid_sample(picture[None], grid, align_corners=False)[0, :, 0].T
            deep = F.grid_sample(depth[None], grid, mode="nearest", align_corners=False)[0, 0, 0]
            near = torch.exp(-(((z - deep) / REACH) ** 2)) * ((deep > 0) & (z > 0) & (seen[:, 3] > OPAQUE))
            total = total + near[:, None] * seen[:, :3] / seen[:, 3:].clamp_min(OPAQUE)
            weight = weight + near[:, None]
        return density, (total / weight)[None]
