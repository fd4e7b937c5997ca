# SPDX-License-Identifier: GPL-3.0-or-later
"""Geometry that the multi-view network is told instead of having to learn it.

`inflate` puffs the silhouette of one view up to a rounded body; `splat` shows the points of some views to others, so that at
every step of the diffusion each view is told what the others believe that it should see.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..networks.images import pixel_rays
from ..shared import cameras

SWEEPS = 160  # of the relaxation; at 64² with the object filling most of it the deepest point is within 3 % by then
ROUND = 2.0  # a disc inflates to a ball
LEAN = math.radians(25)  # that the upright middle of the inflated body may be off the picture plane
SHEETS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # of the inflated body, in half thicknesses


def inflate(alpha: Float[Tensor, "... H W"], field_of_view: float = cameras.FIELD_OF_VIEW) -> Float[Tensor, "... H W"]:
    """Half thickness, in model units, of the rounded body over a silhouette: 2·√u with ∇²u = −1 inside, 0 outside."""
    size = alpha.shape[-1]
    shape = alpha.shape
    inside = (alpha.reshape(-1, 1, size, size) > 0.5).to(alpha)
    # From coarse to fine, so that few sweeps reach the middle.
    u = None
    for level in (4, 2, 1):
        mask = F.max_pool2d(inside, level) if level > 1 else inside
        u = torch.zeros_like(mask) if u is None else 4 * F.interpolate(u, scale_factor=2.0, mode="nearest") * mask
        for _ in range(SWEEPS // 4):
            p = F.pad(u, (1, 1, 1, 1))
            around = p[..., :-2, 1:-1] + p[..., 2:, 1:-1] + p[..., 1:-1, :-2] + p[..., 1:-1, 2:]
            u = (around + 1) / 4 * mask
    pixel = 2 * cameras.DISTANCE * math.tan(field_of_view / 2) / size
    return ROUND * u.sqrt().reshape(shape) * pixel


def upright(
    camera_to_world: Float[Tensor, "B V 4 4"], intrinsics: Float[Tensor, "B V 3 3"], size: int
) -> Float[Tensor, "B V H W"]:
    """Planar depth of the plane through the origin that faces each camera and stands upright, as far as LEAN allows."""
    origins, directions = pixel_rays(camera_to_world, intrinsics, size)
    forward = camera_to_world[..., :3, 2]
    level = F.normalize(forward * forward.new_tensor([1.0, 1.0, 0.0]), dim=-1)
    angle = (forward * level).sum(-1, keepdim=True).clamp(-1, 1).acos()
    normal = F.normalize(torch.lerp(forward, level, (LEAN / angle.clamp_min(1e-3)).clamp_max(1)), dim=-1)
    normal = normal[:, :, None, None]
    return -(origins * normal).sum(-1) / (directions * normal).sum(-1)


def distance(camera_to_world: Float[Tensor, "... 4 4"]) -> Float[Tensor, "..."]:
    """Of each camera from the origin: what the depths of the views are counted from."""
    return camera_to_world[..., :3, 3].norm(dim=-1)


def unproject(
    depth: Float[Tensor, "B V H W"], camera_to_world: Float[Tensor, "B V 4 4"], intrinsics: Float[Tensor, "B V 3 3"]
) -> Float[Tensor, "B V H W 3"]:
    """Model-space points of planar depths."""
    origins, directions = pixel_rays(camera_to_world, intrinsics, depth.shape[-1])
    return origins + depth[..., None] * directions


def splat(
    points: Float[Tensor, "B N 3"],
    content: Float[Tensor, "B N 3"],
    weight: Float[Tensor, "B N"],
    camera_to_world: Float[Tensor, "B V 4 4"],
    intrinsics: Float[Tensor, "B V 3 3"],
    size: int,
    tolerance: float = 0.06,
) -> Float[Tensor, "B V 5 h w"]:
    """Points drawn into views of size²: mean content of the nearest, depth beyond the origin's distance, and coverage.

    Args:
        weight: points of weight below 0.5 are left out.
        intrinsics: in pixels of size².
        tolerance: points so much behind the nearest of their pixel still count as the same surface, model units.
    """
    batch, views = camera_to_world.shape[:2]
    local = points[:, None] - camera_to_world[:, :, None, :3, 3]
    local = torch.einsum("bvni,bvij->bvnj", local, camera_to_world[..., :3, :3])
    depth = local[..., 2].clamp_min(1e-3)
    pixel = torch.einsum("bvni,bvji->bvnj", local / depth[..., None], intrinsics)[..., :2].floor().long()
    column, row = pixel[..., 0], pixel[..., 1]
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size) & (weight > 0.5)[:, None]
    place = torch.arange(batch * views, device=points.device).view(batch, views, 1) * (size * size + 1)
    index = torch.where(inside, place + row * size + column, place + size * size).flatten()
    total = batch * views * (size * size + 1)
    flat = depth.flatten()
    nearest = flat.new_full((total,), 100.0).scatter_reduce(0, index, flat, "amin")
    front = (flat <= nearest[index] + tolerance).to(flat)
    beyond = depth - distance(camera_to_world)[..., None]
    values = torch.cat([content[:, None].expand(-1, views, -1, -1), beyond[..., None]], -1)
    values = torch.cat([values.flatten(0, 2), torch.ones_like(flat)[:, None]], 1) * front[:, None]
    summed = values.new_zeros(total, 5).index_add_(0, index, values)
    mean = torch.cat([summed[:, :4] / summed[:, 4:].clamp_min(1), (summed[:, 4:] > 0).to(values)], 1)
    mean = mean.view(batch, views, size * size + 1, 5)[:, :, :-1]
    return mean.transpose(2, 3).unflatten(-1, (size, size))


def prior(
    given: Float[Tensor, "B T 4 H W"], camera_to_world: Float[Tensor, "B V 4 4"], intrinsics: Float[Tensor, "B V 3 3"]
) -> Float[Tensor, "B T V 5 h w"]:
    """The first view's silhouette, inflated, both its sides painted as the picture, splatted into every view at half size.

    Its middle is the upright plane through the origin that faces the camera, as things stand that are seen from above.
    """
    batch, frames, _, size, _ = given.shape
    alpha = (given[:, :, 3] + 1) / 2
    half = inflate(alpha)
    camera, lens = (x[:, :1].repeat_interleave(frames, 0) for x in (camera_to_world, intrinsics))
    middle = upright(camera, lens, size).unflatten(0, (batch, frames))[:, :, 0]
    sheets = []
    for sign in SHEETS:
        sheets.append(unproject((middle + sign * half).flatten(0, 1)[:, None], camera, lens).flatten(1, 3))
    colour = given[:, :, :3].flatten(0, 1).flatten(2).transpose(1, 2).repeat(1, len(SHEETS), 1)
    weight = alpha.flatten(0, 1).flatten(1).repeat(1, len(SHEETS))
    return _into(torch.cat(sheets, 1), colour, weight, camera_to_world, intrinsics, frames, size)


def exchange(
    views: Float[Tensor, "B T V 5 H W"],
    camera_to_world: Float[Tensor, "B V 4 4"],
    intrinsics: Float[Tensor, "B V 3 3"],
) -> Float[Tensor, "B T V 5 h w"]:
    """All views' points splatted into every view at half size."""
    batch, frames, count, _, size, _ = views.shape
    flat = views.flatten(0, 1)
    camera, lens = (x.repeat_interleave(frames, 0) for x in (camera_to_world, intrinsics))
    points = unproject(flat[:, :, 4] + distance(camera)[..., None, None], camera, lens).flatten(1, 3)
    colour = flat[:, :, :3].permute(0, 1, 3, 4, 2).flatten(1, 3)
    weight = ((flat[:, :, 3] + 1) / 2).flatten(1)
    return _into(points, colour, weight, camera_to_world, intrinsics, frames, size)


def _into(points, colour, weight, camera_to_world, intrinsics, frames: int, size: int):
    half = intrinsics * intrinsics.new_tensor([0.5, 0.5, 1.0])[:, None]
    camera, lens = (x.repeat_interleave(frames, 0) for x in (camera_to_world, half))
    drawn = splat(points, colour, weight, camera, lens, size // 2)
    return drawn.unflatten(0, (-1, frames))
