# SPDX-License-Identifier: GPL-3.0-or-later
"""What four calibrated pictures prove about space, as features on the planes of the triplane.

    seen surface   every pixel of known depth falls into the voxel of the point that it sees
    hull           voxels that no picture shows to be empty: inside every mask, and not in front of any known depth
    pillars        each voxel of either kind → a small network of its features and its height over the plane → summed into the
                   plane's cell below it (after PointPillars, Lang et al. 2019)

Without depth the hull is the visual hull of the masks (Laurentini, 1994): the same weights then work on less.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .config import ModelConfig
from .images import Views
from .triplane import PLANE_AXES

VOXEL_FEATURES = 14
HEIGHT_FREQUENCIES = 6
TRUNCATION = 2.0  # voxels: how far behind a seen surface its distance still says something
COVERED = 0.3  # a pixel covered less than this sees background


@dataclasses.dataclass
class Voxels:
    """The voxels of B scenes of which something is known to be there or possible.

    scene [N]; cell [N, 3] index along x, y, z in [0, R); features [N, 14]: seen (1), content (3) and offset from the voxel's
    centre in voxels (3) of the surface seen in it; possible (1), signed distance behind the nearest seen surface in
    truncation lengths (1, −1 = hidden deep or unknown), share of views that see it (1), content (3) and its spread (1)
    over those views, or over all where none does.
    """

    scene: Int[Tensor, " N"]
    cell: Int[Tensor, "N 3"]
    features: Float[Tensor, "N 14"]
    batch: int
    resolution: int


@torch.no_grad()
def fuse(views: Views, resolution: int) -> Voxels:
    """Fuse the pictures of one time on a grid of `resolution`³ voxels over [-1, 1]³."""
    with torch.autocast(views.content.device.type, enabled=False):
        surface_key, surface = _seen_surface(views, resolution)
        hull_key, hull = _hull(views, resolution)
        keys, place = torch.unique(torch.cat([surface_key, hull_key]), return_inverse=True)
        count = len(keys)
        seen = surface.new_zeros(count, 7).index_add_(0, place[: len(surface_key)], surface)
        seen = seen / seen[:, :1].clamp_min(1)
        possible = surface.new_zeros(count, 7).index_add_(0, place[len(surface_key) :], hull)
        scene = keys // resolution**3
        z, y, x = (keys // resolution**2) % resolution, (keys // resolution) % resolution, keys % resolution
        return Voxels(scene, torch.stack([x, y, z], 1), torch.cat([seen, possible], 1), len(views.content), resolution)


def _key(scene: Tensor, cell: Tensor, resolution: int) -> Tensor:
    return ((scene * resolution + cell[:, 2]) * resolution + cell[:, 1]) * resolution + cell[:, 0]


def _seen_surface(views: Views, resolution: int) -> tuple[Tensor, Tensor]:
    """Every pixel of known depth: the key of its voxel, and (1, content, offset)."""
    scene, view, row, column = torch.nonzero((views.depth_known > 0.5) & (views.alpha > COVERED), as_tuple=True)
    place = (views.position[scene, view, row, column].float() + 1) * (resolution / 2)
    cell = place.floor().long().clamp(0, resolution - 1)
    content = views.content[scene, view, row, column].float()
    return _key(scene, cell, resolution), torch.cat([torch.ones_like(place[:, :1]), content, place - cell - 0.5], 1)


def _hull(views: Views, resolution: int) -> tuple[Tensor, Tensor]:
    """Voxels that no picture rules out: their keys, and (1, distance, share of views, content, spread)."""
    batch, count, height, width = views.alpha.shape
    device = views.alpha.device
    to_camera = torch.linalg.inv(views.camera_to_world.float())
    project = views.intrinsics.float() @ to_camera[..., :3, :]  # B V 3 4

    # Coarse grids against widened masks; the eight parts of what survives on the next finer one.
    size = resolution // 4
    scene = torch.arange(batch, device=device)[:, None].expand(batch, size**3).flatten()
    cell = _cells(torch.arange(size**3, device=device), size).expand(batch, -1, -1).flatten(0, 1)
    parts = _cells(torch.arange(8, device=device), 2)
    while True:
        scene, cell = _inside(
            _widen(views.alpha, size) if size < resolution else views.alpha, project, scene, cell, size
        )
        if size == resolution:
            break
        scene, cell, size = scene.repeat_interleave(8), (cell[:, None] * 2 + parts).flatten(0, 1), size * 2

    forward = views.camera_to_world[..., :3, 2].float()
    offset = views.position.float() - views.camera_to_world[:, :, None, None, :3, 3].float()
    depth = (offset * forward[:, :, None, None]).sum(-1)  # B V H W, planar
    pixel = _project(project, scene, cell, resolution)
    column, row, ok = _pixel(pixel, height, width)
    view = torch.arange(count, device=device)[None]
    at = (scene[:, None], view, row, column)
    known = views.depth_known[at] * ok
    behind = (depth[at] - pixel[..., 2]) / (TRUNCATION * 2 / resolution)
    distance = torch.where(known > 0.5, behind.clamp(-1, 1), torch.full_like(behind, -1.0))
    nearest = distance.amax(1)
    deep = (nearest < -0.99) & (cell % 2 == 1).any(1) & (views.depth_known.amax((1, 2, 3)) > 0.5)[scene]
    keep = (nearest < 0.99) & ~deep  # seen through by no view; of what lies deep, one in eight tells enough
    scene, cell, distance, known, nearest = scene[keep], cell[keep], distance[keep], known[keep], nearest[keep]
    content = views.content[tuple(index.expand(len(keep), count)[keep] for index in at)].float()
    sees = known * (distance.abs() < 0.99)
    weight = (sees + 1e-3)[..., None]
    total = weight.sum(1)
    mean = (weight * content).sum(1) / total
    spread = ((weight * (content - mean[:, None]) ** 2).sum(1) / total).mean(1, keepdim=True).sqrt()
    features = [torch.ones_like(nearest)[:, None], nearest[:, None], sees.mean(1, keepdim=True), mean, spread]
    return _key(scene, cell, resolution), torch.cat(features, 1)


def _pixel(projected: Float[Tensor, "... 3"], height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Column, row of homogeneous pixels, and whether they lie in the picture and before the camera."""
    depth = projected[..., 2]
    front = depth > 1e-3
    uv = projected[..., :2] / torch.where(front, depth, torch.ones_like(depth))[..., None]
    ok = front & (uv >= 0).all(-1) & (uv[..., 0] < width) & (uv[..., 1] < height)
    return uv[..., 0].long().clamp(0, width - 1), uv[..., 1].long().clamp(0, height - 1), ok


def _cells(index: Tensor, resolution: int) -> Tensor:
    """[N, 3] cell along x, y, z of a running index with x fastest."""
    return torch.stack([index % resolution, (index // resolution) % resolution, index // resolution**2], -1)


def _widen(alpha: Float[Tensor, "B V H W"], resolution: int) -> Float[Tensor, "B V H W"]:
    """Masks widened so that a voxel that touches a covered pixel has its centre in the mask."""
    radius = math.ceil(0.65 * math.sqrt(3) * alpha.shape[-1] / resolution)
    wide = F.max_pool2d(alpha, (1, 2 * radius + 1), stride=1, padding=(0, radius))
    return F.max_pool2d(wide, (2 * radius + 1, 1), stride=1, padding=(radius, 0))


def _centres(cell: Tensor, resolution: int) -> Tensor:
    """[N, 4] homogeneous centres of voxels of [-1, 1]³."""
    return F.pad((cell + 0.5) * (2 / resolution) - 1, (0, 1), value=1.0)


def _inside(alpha: Tensor, project: Tensor, scene: Tensor, cell: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """The voxels whose centre every picture shows as covered."""
    keep = _centres(cell, resolution)[:, :3].norm(dim=1) < 1 + 2 / resolution
    scene, cell = scene[keep], cell[keep]
    column, row, ok = _pixel(_project(project, scene, cell, resolution), *alpha.shape[2:])
    pictures, views, height, width = alpha.shape
    start = (scene[:, None] * views + torch.arange(views, device=scene.device)) * (height * width)
    keep = ((alpha.flatten()[start + row * width + column] > COVERED) & ok).all(1)
    return scene[keep], cell[keep]


def _project(project: Float[Tensor, "B V 3 4"], scene: Tensor, cell: Tensor, resolution: int) -> Float[Tensor, "N V 3"]:
    """Homogeneous pixels of the centres of voxels, which come scene by scene."""
    counts = torch.bincount(scene, minlength=len(project)).tolist()
    parts = zip(_centres(cell, resolution).split(counts), project.flatten(1, 2))
    return torch.cat([points @ matrix.T for points, matrix in parts]).unflatten(1, (-1, 3))


class Pillars(nn.Module):
    """Fused voxels → features on the planes [B, 3, E, R, R]; all 0 where no voxel lies over a cell."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        width = config.evidence_channels
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(VOXEL_FEATURES + 1 + 2 * HEIGHT_FREQUENCIES, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
            )
            for _ in PLANE_AXES
        )  # fmt: skip

    def forward(self, voxels: Voxels) -> Float[Tensor, "B 3 E R R"]:
        size, width = voxels.resolution, self.config.evidence_channels
        place = (voxels.cell + 0.5) * (2 / size) - 1
        wave = place[..., None] * (torch.pi * 2.0 ** torch.arange(HEIGHT_FREQUENCIES, device=place.device) / 2)
        encoded = torch.cat([place[..., None], wave.sin(), wave.cos()], -1)  # N 3 13
        planes = []
        for layer, (a, b, c) in zip(self.layers, PLANE_AXES):
            value = layer(torch.cat([voxels.features, encoded[:, c]], 1)).float() / 4
            index = (voxels.scene * size + voxels.cell[:, b]) * size + voxels.cell[:, a]
            plane = value.new_zeros(voxels.batch * size * size, width).index_add(0, index, value)
            planes.append(plane.view(voxels.batch, size, size, width).permute(0, 3, 1, 2))
        return torch.stack(planes, 1)


class PlaneTokens(nn.Module):
    """Planes of evidence → plane tokens [B, 3·P², W], one linear layer for each plane."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.upsample = config.upsample
        width_in = config.evidence_channels * config.upsample**2
        self.weight = nn.Parameter(torch.randn(3, width_in, config.width) * width_in**-0.5)
        self.bias = nn.Parameter(torch.zeros(3, 1, config.width))

    def forward(self, planes: Float[Tensor, "B 3 E R R"]) -> Float[Tensor, "B N W"]:
        patches = F.pixel_unshuffle(planes, self.upsample).flatten(3).transpose(2, 3)
        return (torch.einsum("bpnc,pcw->bpnw", patches, self.weight.to(patches)) + self.bias).flatten(1, 2)


class ConvBlock(nn.Module):
    """GroupNorm → SiLU → 3×3 → GroupNorm → SiLU → 3×3 → +"""

    def __init__(self, width: int):
        super().__init__()
        enter, leave = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.layers = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), enter, nn.GroupNorm(8, width), nn.SiLU(), leave)
        nn.init.zeros_(leave.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Refine(nn.Module):
    """Cells of the head ⊕ evidence → triplane: the fine detail that one token per patch cannot carry."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.evidence_channels
        self.plane = nn.Parameter(torch.zeros(3, width, 1, 1))
        self.enter = nn.Conv2d(config.channels + width, width, 1)
        self.blocks = nn.Sequential(*(ConvBlock(width) for _ in range(config.refine_blocks)))
        self.leave = nn.Conv2d(width, config.channels, 1)

    def forward(self, cells: Float[Tensor, "B 3 C R R"], planes: Float[Tensor, "B 3 E R R"]):
        x = torch.cat([cells, planes.to(cells)], 2)
        x = self.enter(x.flatten(0, 1)).unflatten(0, x.shape[:2]) + self.plane
        return cells + self.leave(self.blocks(x.flatten(0, 1))).unflatten(0, x.shape[:2])


class Advance(nn.Module):
    """Evidence of the source time → evidence at α, from that of the target time and the cells of LIM's head.

    Starts as the blend of both ends, to which a small U-Net adds what moves.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.evidence_channels
        self.plane = nn.Parameter(torch.zeros(3, width, 1, 1))
        self.enter = nn.Conv2d(config.channels + 4 * width + 1, width, 1)
        self.down = nn.ModuleList(nn.Conv2d(width << i, width << (i + 1), 4, stride=2, padding=1) for i in range(2))
        self.inner = nn.ModuleList(ConvBlock(width << (i + 1)) for i in range(2))
        self.up = nn.ModuleList(nn.ConvTranspose2d(width << (i + 1), width << i, 2, stride=2) for i in range(2))
        self.outer = nn.ModuleList([nn.SiLU(), ConvBlock(width << 1)])  # at full size the last layer is enough
        self.leave = nn.Conv2d(width, width, 3, padding=1)
        assert self.leave.bias is not None
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(
        self,
        cells: Float[Tensor, "B 3 C R R"],
        source: Float[Tensor, "B 3 E R R"],
        target: Float[Tensor, "B 3 E R R"],
        alpha: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 3 E R R"]:
        share = alpha.to(source)[:, None, None, None, None]
        x = torch.cat(
            [cells, source, target, (1 - share) * source, share * target, share.expand_as(cells[:, :, :1])], 2
        )
        x = self.enter(x.flatten(0, 1)).unflatten(0, x.shape[:2]) + self.plane
        x = x.flatten(0, 1)
        skips = []
        for down, inner in zip(self.down, self.inner):
            skips.append(x)
            x = inner(down(x))
        for up, outer, skip in zip(reversed(self.up), reversed(self.outer), reversed(skips)):
            x = outer(up(x) + skip)
        return torch.lerp(source, target, share) + self.leave(x).unflatten(0, (-1, 3))
