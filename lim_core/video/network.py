# SPDX-License-Identifier: GPL-3.0-or-later
"""The network of the embedded multi-view diffusion: a U-Net over the rig's views of a few frames of one object.

Each view is a small picture of five channels: colour on white, alpha (all in [-1, 1]) and depth beyond the origin's, in model
units. The first view is the clip's own: its colour and alpha are given, its depth is made like everything else.

    per view:          half-size cells of the noisy picture ⊕ Plücker rays ⊕ the given picture ⊕ what other views say (splat.py)
    convolutions       32² → 16² → 8², conditioned on the noise level
    at 8²:             attention over all views of a frame, then over all frames of a view (factorised)
    back up            with skips → what the clean picture has beyond the splatted guess ("sample" prediction)

Attention over frames knows no order and no count: it works for any number of frames, and for one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn

CHANNELS = 5  # colour, alpha, depth
SPLAT_CHANNELS = 5  # colour, depth, coverage of what is seen from elsewhere
RAY_CHANNELS = 6


def encode_level(level: Float[Tensor, " B"], width: int) -> Float[Tensor, "B W"]:
    """Sinusoidal encoding of a noise level in [0, 1]."""
    frequency = torch.exp(math.log(1000.0) * torch.arange(width // 2, device=level.device) / (width // 2))
    angle = level[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


class Block(nn.Module):
    """Two convolutions with a skip, the noise level joined between them as scale and shift."""

    def __init__(self, channels_in: int, channels: int, level_width: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.level = nn.Linear(level_width, 2 * channels)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.level(level)[..., None, None].chunk(2, 1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(h))


class Attention(nn.Module):
    """Self-attention with a residual; starts as the identity."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Float[Tensor, "B N W"]) -> Float[Tensor, "B N W"]:
        parts = self.query_key_value(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return x + self.out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


class MultiviewNetwork(ModelMixin, ConfigMixin):
    """(noisy views, level, conditions) → clean views."""

    config_name = "config.json"

    @register_to_config
    def __init__(self, size: int = 64, widths: tuple[int, ...] = (48, 96, 192), heads: int = 6, views: int = 4):
        super().__init__()
        inputs = 4 * (CHANNELS + RAY_CHANNELS + 5) + 2 * SPLAT_CHANNELS  # 5: the given colour, alpha, and whether given
        level = 128
        self.level = nn.Sequential(nn.Linear(64, level), nn.SiLU(), nn.Linear(level, level), nn.SiLU())
        self.stem = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i, width in enumerate(widths):
            self.down.append(Block(widths[max(i - 1, 0)], width, level))
            if i < len(widths) - 1:
                self.up.insert(0, Block(widths[i + 1] + width, width, level))
        cells = (size // 2 // 2 ** (len(widths) - 1)) ** 2
        self.place = nn.Parameter(0.02 * torch.randn(views, cells, widths[-1]))
        self.attention = nn.ModuleList(Attention(widths[-1], heads) for _ in range(4))  # views, frames, views, frames
        self.middle = nn.ModuleList(Block(widths[-1], widths[-1], level) for _ in range(2))
        self.norm = nn.GroupNorm(8, widths[0])
        self.out = nn.Conv2d(widths[0], 4 * CHANNELS, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        noisy: Float[Tensor, "B T V 5 H W"],
        level: Float[Tensor, " B"],
        rays: Float[Tensor, "B V 6 H W"],
        given: Float[Tensor, "B T 4 H W"],
        prior: Float[Tensor, "B T V 5 h w"],
        seen: Float[Tensor, "B T V 5 h w"],
    ) -> Float[Tensor, "B T V 5 H W"]:
        """The clean views.

        Args:
            level: noise level in [0, 1].
            rays: Plücker coordinates of the views' pixels.
            given: colour and alpha of the first view, in [-1, 1].
            prior: the inflated silhouette splatted into every view, at half the size.
            seen: the views' own last estimate, each splatted into the others; 0 at the first step.
        """
        batch, frames, views = noisy.shape[:3]
        first = torch.zeros_like(noisy[:, :, :, :1])
        first[:, :, 0] = 1
        shown = given[:, :, None] * first
        rays = rays[:, None].expand(-1, frames, -1, -1, -1, -1)
        pixels = torch.cat([noisy, rays, shown, first], 3).flatten(0, 2)
        x = torch.cat([F.pixel_unshuffle(pixels, 2), prior.flatten(0, 2), seen.flatten(0, 2)], 1)
        level = self.level(encode_level(level, 64)).repeat_interleave(frames * views, 0)
        x = self.stem(x)
        skips = []
        for i, block in enumerate(self.down):
            if i:
                skips.append(x)
                x = F.avg_pool2d(x, 2)
            x = block(x, level)
        for i, block in enumerate(self.middle):
            size = x.shape[-1]
            tokens = x.flatten(2).transpose(1, 2).unflatten(0, (batch, frames, views))  # B T V N W
            tokens = tokens + self.place[:views]
            tokens = self.attention[2 * i](tokens.flatten(2, 3).flatten(0, 1)).view_as(tokens)
            across = tokens.permute(0, 2, 3, 1, 4)  # B V N T W
            across = self.attention[2 * i + 1](across.flatten(0, 2)).view_as(across)
            tokens = across.permute(0, 3, 1, 2, 4).flatten(0, 2)
            x = block(tokens.transpose(1, 2).unflatten(-1, (size, size)), level)
        for block in self.up:
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), skips.pop()], 1), level)
        x = F.pixel_shuffle(self.out(F.silu(self.norm(x))), 2) + _as_picture(prior.flatten(0, 2))
        return x.unflatten(0, (batch, frames, views))


def _as_picture(splatted: Float[Tensor, "N 5 h w"]) -> Float[Tensor, "N 5 H W"]:
    """What was splatted as a view of full size: white and alpha −1 where nothing is."""
    colour, depth, cover = splatted.split((3, 1, 1), 1)
    picture = torch.cat([colour * cover + 1 - cover, 2 * cover - 1, depth * cover], 1)
    return F.interpolate(picture, scale_factor=2.0, mode="bilinear")
