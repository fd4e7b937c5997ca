# SPDX-License-Identifier: GPL-3.0-or-later
"""LRM: calibrated views of one time → triplane (LIM, section 3.1), and its canonical twin LRM̄.

    image tokens = ViT(patches of pixels ⊕ Plücker rays [+ DINOv2's tokens]), all views together
    stream       = plane tokens (sin-cos of plane and place) [+ the fused evidence]
    × blocks:      LN → cross-attention to the image tokens → +;  LN → self-attention → +;  LN → MLP → +
    triplane     = linear + pixel shuffle [+ convolutions of it and the evidence]

The twin has the same shape; instead of colours its content channels are canonical coordinates, relative to the points that
carry them: it needs their positions.
"""

from __future__ import annotations

import copy
import dataclasses
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .config import ModelConfig
from .evidence import Pillars, PlaneTokens, Refine, fuse
from .images import Views, input_channels, network_input
from .pretrained import Dino
from .triplane import TriplaneDecoder


@dataclasses.dataclass
class Features:
    """What LIM reads of a time: F_k, and the stream that enters the first of those blocks.

    Attributes:
        entering: [B, N, W] output of the block before the last `lim_blocks` (the paper: of block 6 of 12).
        blocks: `lim_blocks` tensors [B, N, W], the outputs of the last blocks, in order.
        planes: [B, 3, E, R, R] fused evidence of that time, None in the paper's form.
    """

    entering: Float[Tensor, "B N W"]
    blocks: list[Float[Tensor, "B N W"]]
    planes: Float[Tensor, "B 3 E R R"] | None = None


def sincos(place: Float[Tensor, "N"], width: int) -> Float[Tensor, "N W"]:
    """Sinusoidal encoding, half sines and half cosines, frequencies geometrically from 1 to 1/10000."""
    frequency = torch.exp(-math.log(10000.0) * torch.arange(width // 2, device=place.device) / (width // 2))
    angle = place[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


def sincos_grid(size: int, width: int) -> Float[Tensor, "N W"]:
    """2-D sin-cos encoding of a square grid, rows first; width divisible by 4."""
    steps = torch.arange(size, dtype=torch.float32)
    row, column = torch.meshgrid(steps, steps, indexing="ij")
    return torch.cat([sincos(row.flatten(), width // 2), sincos(column.flatten(), width // 2)], -1)


class Attention(nn.Module):
    """Multi-head attention from `x` to `context` (self-attention when they are the same)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B N W"], context: Float[Tensor, "B M W"]) -> Float[Tensor, "B N W"]:
        def split(tensor: Tensor) -> Tensor:
            return tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        key, value = self.key_value(context).chunk(2, -1)
        attended = F.scaled_dot_product_attention(split(self.query(x)), split(key), split(value))
        return self.out(attended.transpose(1, 2).flatten(2))


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class EncoderBlock(nn.Module):
    """A ViT block."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.norm_self = nn.LayerNorm(config.width)
        self.self_attention = Attention(config.width, config.heads)
        self.norm_mlp = nn.LayerNorm(config.width)
        self.mlp = mlp(config.width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm_self(x)
        x = x + self.self_attention(normed, normed)
        return x + self.mlp(self.norm_mlp(x))


class ImageEncoder(nn.Module):
    """Views → image tokens [B, V·tokens, W], all views attending to each other."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Linear(input_channels(config.evidence) * config.patch**2, config.width)
        self.dino = Dino(config) if config.dino_width else None
        self.register_buffer("place", sincos_grid(config.image_size // config.patch, config.width), persistent=False)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.encoder_blocks))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, views: Views) -> Float[Tensor, "B M W"]:
        patch, size = self.config.patch, self.config.image_size
        if views.content.shape[2] != size:
            raise ValueError(f"the network sees {size}² views, these are {views.content.shape[2]}²")
        pixels = network_input(views, self.config.evidence)
        count = size // patch
        patches = pixels.unflatten(3, (count, patch)).unflatten(2, (count, patch))  # B V gh p gw p C
        patches = patches.permute(0, 1, 2, 4, 3, 5, 6).flatten(4).flatten(2, 3)
        tokens = self.embed(patches) + self.place
        if self.dino is not None:
            tokens = tokens + self.dino(views.content)
        tokens = tokens.flatten(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class TriplaneHead(nn.Module):
    """Plane tokens → cells [B, 3, C, R, R]: a linear layer and a pixel shuffle (a deconvolution without overlap)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.width)
        self.linear = nn.Linear(config.width, config.channels * config.upsample**2)

    def forward(self, tokens: Float[Tensor, "B N W"]) -> Float[Tensor, "B 3 C R R"]:
        count = self.config.plane_tokens
        cells = self.linear(self.norm(tokens)).unflatten(1, (3, count, count)).permute(0, 1, 4, 2, 3)
        return F.pixel_shuffle(cells, self.config.upsample)


class LRMBlock(nn.Module):
    """LN → cross-attention to the image tokens → +;  LN → self-attention → +;  LN → MLP → +"""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.norm_image = nn.LayerNorm(config.width)
        self.image_attention = Attention(config.width, config.heads)
        self.norm_self = nn.LayerNorm(config.width)
        self.self_attention = Attention(config.width, config.heads)
        self.norm_mlp = nn.LayerNorm(config.width)
        self.mlp = mlp(config.width)

    def forward(self, x: Tensor, image_tokens: Tensor) -> Tensor:
        x = x + self.image_attention(self.norm_image(x), image_tokens)
        normed = self.norm_self(x)
        x = x + self.self_attention(normed, normed)
        return x + self.mlp(self.norm_mlp(x))


class LRM(nn.Module):
    """T_k, F_k = LRM(I_k, Π), for RGB or, with `canonical`, for canonical coordinates (LRM̄)."""

    def __init__(self, config: ModelConfig, canonical: bool = False):
        super().__init__()
        self.config, self.canonical = config, canonical
        self.encoder = ImageEncoder(config)
        planes = torch.cat([sincos_grid(config.plane_tokens, config.width)] * 3)
        self.tokens = nn.Parameter(planes + 0.02 * torch.randn_like(planes))
        self.plane_embed = nn.Parameter(0.5 * torch.randn(3, 1, config.width))
        self.pillars = Pillars(config) if config.evidence else None
        self.plane_tokens = PlaneTokens(config) if config.evidence else None
        self.blocks = nn.ModuleList(LRMBlock(config) for _ in range(config.blocks))
        self.head = TriplaneHead(config)
        self.refine = Refine(config) if config.evidence else None
        self.decoder = TriplaneDecoder(config, canonical)

    def forward(self, views: Views) -> tuple[Float[Tensor, "B 3 C R R"], Features]:
        if self.canonical:
            views = views.with_displacement()
        image_tokens = self.encoder(views)
        x = (self.tokens.unflatten(0, (3, -1)) + self.plane_embed).flatten(0, 1).expand(len(image_tokens), -1, -1)
        planes = None
        if self.pillars is not None and self.plane_tokens is not None:
            planes = self.pillars(fuse(views, self.config.plane_size))
            x = x + self.plane_tokens(planes)
        outputs = []
        for block in self.blocks:
            x = block(x, image_tokens)
            outputs.append(x)
        first = self.config.blocks - self.config.lim_blocks
        triplane = self.head(x)
        if self.refine is not None:
            triplane = self.refine(triplane, planes)
        return triplane, Features(outputs[first - 1], outputs[first:], planes)

    def with_lim_blocks(self, count: int) -> LRM:
        """The same reconstructor, sharing its weights, that hands out the features of its last `count` blocks."""
        if count == self.config.lim_blocks:
            return self
        other = copy.copy(self)
        other.config = dataclasses.replace(self.config, lim_blocks=count)
        return other
