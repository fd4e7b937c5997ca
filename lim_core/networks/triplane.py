# SPDX-License-Identifier: GPL-3.0-or-later
"""The triplane: three planes of features, and the small network that reads density and content from them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .config import ModelConfig

PLANE_AXES = ((0, 1, 2), (0, 2, 1), (1, 2, 0))  # (column axis, row axis, axis looked along) of the planes XY, XZ, YZ
HEIGHT_WAVES = 11  # the height itself and five octaves of its sines and cosines
DENSITY_SCALE = 50.0
CPU_POINTS = 1 << 13  # read at once on a CPU, so that what is computed on the way stays in its cache: half the time
DENSITY_BIAS = 5.0  # an untrained triplane is nearly empty: the opposite start stays a grey blob


def sample_planes(triplane: Float[Tensor, "B 3 C R R"], points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 3*C"]:
    """Bilinear features of points in [-1, 1]³, those of the three planes side by side; 0 outside."""
    batch, _, channels, size, _ = triplane.shape
    grid = torch.stack([points[..., (a, b)] for a, b, _ in PLANE_AXES], 1).flatten(0, 1)[:, None]
    # In fp32 also while training in half precision, which would move points by half a cell.
    features = F.grid_sample(triplane.flatten(0, 1).float(), grid.float(), align_corners=False)  # [B*3, C, 1, N]
    return features.view(batch, 3 * channels, -1).transpose(1, 2)


class TriplaneDecoder(nn.Module):
    """Plane features → density (per model unit) and 3 content channels.

    The content is RGB in [0, 1] or the canonical coordinate: the point itself plus where its matter was beyond it, so that what
    stands still is exact at any size (as an absolute coordinate it was off by 4 % of the object). Beside the features themselves
    the network reads each plane's features times a learnt function of the height over it, so that a cell can hold a profile along its column,
    and the product of the three planes (K-Planes, Fridovich-Keil et al. 2023), which is local in space where a sum is not;
    the paper's form reads the features alone.
    """

    def __init__(self, config: ModelConfig, canonical: bool):
        super().__init__()
        width, channels = config.decoder_width, config.channels
        self.canonical = canonical
        self.height = nn.Parameter(torch.randn(3, HEIGHT_WAVES, channels) * 0.5) if config.evidence else None
        inputs = 7 * channels + 3 * HEIGHT_WAVES if config.evidence else 3 * channels
        self.layers = nn.Sequential(
            nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 4)
        )

    def forward(
        self, triplane: Float[Tensor, "B 3 C R R"], points: Float[Tensor, "B N 3"]
    ) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N 3"]]:
        at_once = max(1, CPU_POINTS // len(points)) if points.device.type == "cpu" else points.shape[1]
        parts = points.split(at_once, 1)
        if torch.is_grad_enabled():  # every sampling has a gradient of the size of the planes: one is enough
            sampled: Iterable[Tensor] = sample_planes(triplane, points).split(at_once, 1)
        else:
            sampled = (sample_planes(triplane, part) for part in parts)
        density, content = zip(*(self.read(*pair) for pair in zip(sampled, parts)))
        return torch.cat(density, 1), torch.cat(content, 1)

    @torch.no_grad()
    def forget_content(self) -> None:
        """Begin the content anew, at its middle: nothing moves."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        last.weight[1:].zero_()
        last.bias[1:].zero_()

    def read(
        self, features: Float[Tensor, "B N F"], points: Float[Tensor, "B N 3"]
    ) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N 3"]]:
        """Density and content of points, from the features of the three planes there (F = 3 C)."""
        inputs = [features]
        if self.height is not None:
            octaves = math.pi * 2.0 ** torch.arange(HEIGHT_WAVES // 2, device=points.device)
            over = points[..., [c for _, _, c in PLANE_AXES], None]
            wave = over * octaves
            height = torch.cat([over, wave.sin(), wave.cos()], -1)
            planes = features.unflatten(-1, (3, -1))  # B N 3 C
            profile = torch.einsum("bnph,phc->bnpc", height.to(planes), self.height.to(planes)) * planes
            one, two, three = (planes * torch.rsqrt(1 + planes**2)).unbind(2)
            inputs += [profile.flatten(2), one * two * three, height.flatten(2).to(features)]
        raw = self.layers(torch.cat(inputs, -1))
        density = DENSITY_SCALE * F.softplus(raw[..., 0].float() - DENSITY_BIAS)
        content = raw[..., 1:].float()
        return density, points + 2 * torch.tanh(content) if self.canonical else torch.sigmoid(content)


@torch.no_grad()
def density_grid(decoder: nn.Module, triplane: Float[Tensor, "1 3 C R R"], resolution: int, *, coarse: int = 32):
    """Density [resolution]³ on a grid over [-1, 1]³ (indexed x, y, z), evaluated only near where something is.

    A coarse grid is evaluated first; only its cells above a small density, and their neighbours, are refined; the rest
    is 0. At 128³ this is the difference between seconds and a fraction of one for a compact object.
    """
    device = triplane.device
    steps = torch.linspace(-1, 1, coarse, device=device)
    points = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), -1).view(1, -1, 3)
    rough = decoder(triplane, points)[0].view(1, 1, coarse, coarse, coarse)
    busy = F.max_pool3d(rough, 3, stride=1, padding=1) > 1.0
    mask = F.interpolate(busy.float(), size=(resolution,) * 3, mode="trilinear", align_corners=True)[0, 0] > 0
    index = torch.nonzero(mask)
    grid = torch.zeros(mask.shape, device=device)
    if len(index):
        values = [
            decoder(triplane, (part.float() * (2 / (resolution - 1)) - 1)[None])[0][0] for part in index.split(1 << 18)
        ]
        grid[mask] = torch.cat(values)
    return grid
