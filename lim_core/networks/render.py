# SPDX-License-Identifier: GPL-3.0-or-later
"""Emission–absorption ray marching through a triplane (the role of Lightplane in the paper), in plain PyTorch.

For samples t_i with spacing δ_i along a ray: a_i = 1 − exp(−σ_i δ_i), T_i = Π_{j<i} (1 − a_j), w_i = T_i a_i (Max, 1995). Content,
depth and mask are Σ w_i c_i, Σ w_i t_i and Σ w_i. Directions have z = 1 in the camera's frame, so t IS the planar depth.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .images import pixel_rays

RADIUS = 1.0  # everything lies in the unit sphere
SLAB = 12  # samples that are marched before rays are dropped behind which nothing can be seen any more
DARK = 1e-4  # share of the light below which a ray is dropped
FOCUS = 0.1  # half the length of a ray on which focused samples lie


def sphere_interval(
    origins: Float[Tensor, "... 3"], directions: Float[Tensor, "... 3"], radius: float = RADIUS
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Where rays enter and leave the sphere, in units of the direction; equal where they miss it."""
    a = (directions**2).sum(-1)
    b = (origins * directions).sum(-1)
    c = (origins**2).sum(-1) - radius**2
    half = (b**2 - a * c).clamp_min(0).sqrt()
    return ((-b - half) / a).clamp_min(0), ((-b + half) / a).clamp_min(0)


def composite(density: Float[Tensor, "... S"], content: Float[Tensor, "... S 3"], t: Tensor, delta: Tensor):
    """(content [..., 3], depth_planar [...], mask [...]) from samples; `delta` is the spacing in model units.

    Content and depth are premultiplied: divide by the mask for the surface's own.
    """
    optical = density * delta
    transmittance = torch.exp(-(torch.cumsum(optical, -1) - optical))
    weights = transmittance * -torch.expm1(-optical)
    return (weights[..., None] * content).sum(-2), (weights * t).sum(-1), weights.sum(-1)


def render_rays(
    decoder: nn.Module,
    triplane: Float[Tensor, "B 3 C R R"],
    origins: Float[Tensor, "B N 3"],
    directions: Float[Tensor, "B N 3"],
    *,
    samples: int,
    jitter: bool = False,
    focus: Float[Tensor, "B N"] | None = None,
    chunk: int = 1 << 20,
) -> tuple[Float[Tensor, "B N 3"], Float[Tensor, "B N"], Float[Tensor, "B N"]]:
    """Premultiplied content, premultiplied planar depth and mask of rays.

    Args:
        samples: points per ray, evenly spaced inside the unit sphere.
        jitter: stratified samples (training) instead of the middles.
        focus: planar depth around which the second half of the samples is gathered, 0 where none is known (training:
            the true depth, so that few samples resolve a surface).
        chunk: points evaluated at once; with gradients each chunk is recomputed in the backward pass, so memory does
            not grow with the number of rays.
    """

    def spread(near: Tensor, far: Tensor, number: int) -> Tensor:
        offset = torch.rand(*near.shape, number, device=near.device) if jitter else 0.5
        return near[..., None] + (far - near)[..., None] / number * (torch.arange(number, device=near.device) + offset)

    def march(origins: Tensor, directions: Tensor, focus: Tensor | None = None):
        batch, count = origins.shape[:2]
        near, far = sphere_interval(origins, directions)
        if focus is None:
            t = spread(near, far, samples)
            step = ((far - near) / samples)[..., None].expand_as(t)
        else:
            known = (focus > 0) & (far > near)
            low = torch.where(known, focus - FOCUS, near).clamp(near, far)
            high = torch.where(known, focus + FOCUS, far).clamp(near, far)
            t = torch.cat([spread(near, far, samples - samples // 2), spread(low, high, samples // 2)], -1).sort(-1)[0]
            edges = torch.cat([near[..., None], (t[..., 1:] + t[..., :-1]) / 2, far[..., None]], -1)
            step = edges.diff(dim=-1)
        points = origins[..., None, :] + t[..., None] * directions[..., None, :]
        density, content = decoder(triplane, points.flatten(1, 2))
        delta = step * directions.norm(dim=-1, keepdim=True)
        shape = (batch, count, samples)
        return composite(density.view(shape), content.view(*shape, 3), t, delta)

    size = max(1, chunk // (samples * triplane.shape[0]))
    rays = (origins, directions) if focus is None else (origins, directions, focus)
    if origins.shape[1] <= size:
        return march(*rays)
    parts = []
    for part in zip(*(tensor.split(size, 1) for tensor in rays)):
        parts.append(checkpoint(march, *part, use_reentrant=False) if torch.is_grad_enabled() else march(*part))
    content, depth, mask = (torch.cat(part, 1) for part in zip(*parts))
    return content, depth, mask


@torch.no_grad()
def occupancy(decoder: nn.Module, triplane: Float[Tensor, "1 3 C R R"], grid: int = 48) -> Bool[Tensor, "G G G"]:
    """Cells of [-1, 1]³ (indexed x, y, z) in or beside which a coarse grid finds any density."""
    steps = (torch.arange(grid, device=triplane.device) + 0.5) * (2 / grid) - 1
    cells = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), -1)
    inside = cells.norm(dim=-1) < RADIUS + math.sqrt(3) / grid  # no ray is marched beyond
    rough = torch.zeros(inside.shape, device=triplane.device)
    rough[inside] = decoder(triplane, cells[inside][None])[0][0]
    return (F.max_pool3d(rough[None, None], 3, stride=1, padding=1) > 0.5)[0, 0]


@torch.no_grad()
def render_image(
    decoder: nn.Module,
    triplane: Float[Tensor, "1 3 C R R"],
    camera_to_world: Float[Tensor, "4 4"],
    intrinsics: Float[Tensor, "3 3"],
    size: int,
    *,
    samples: int,
    background: float = 1.0,
    busy: Bool[Tensor, "G G G"] | None = None,
) -> tuple[Float[Tensor, "H W 3"], Float[Tensor, "H W"], Float[Tensor, "H W"]]:
    """One view: content over the background, planar depth (0 where the mask is below 1/2) and mask.

    Only samples in busy cells are evaluated, and none behind what lets less than `DARK` of the light pass.

    Args:
        busy: `occupancy` of this triplane, for several views of it; computed where it is not given.
    """
    device = triplane.device
    if busy is None:
        busy = occupancy(decoder, triplane)
    grid = len(busy)
    origins, directions = (x.reshape(-1, 3) for x in pixel_rays(camera_to_world, intrinsics, size))
    near, far = sphere_interval(origins, directions)
    step = (far - near) / samples
    delta = step * directions.norm(dim=-1)
    light = (step > 1e-6).to(near)  # what reaches the next slab from behind; rays past the sphere have none to lose
    colour, depth, mask = torch.zeros_like(origins), torch.zeros_like(near), torch.zeros_like(near)
    for first in range(0, samples, SLAB):
        rays = (light > DARK).nonzero()[:, 0]
        places = torch.arange(first, min(first + SLAB, samples), device=device) + 0.5
        t = near[rays, None] + step[rays, None] * places
        points = origins[rays, None] + t[..., None] * directions[rays, None]
        x, y, z = ((points + 1) * (grid / 2)).clamp_(0, grid - 1).long().unbind(-1)
        active = busy[x, y, z]
        met = active.any(1)
        rays, t, active, points = rays[met], t[met], active[met], points[met]
        if not len(rays):
            continue
        density, content = torch.zeros_like(t), torch.zeros_like(points)
        values = [decoder(triplane, part[None]) for part in points[active].split(1 << 18)]
        density[active] = torch.cat([value[0][0] for value in values])
        content[active] = torch.cat([value[1][0] for value in values])
        parts = composite(density, content, t, delta[rays, None])
        here = light[rays]
        colour[rays] += here[:, None] * parts[0]
        depth[rays] += here * parts[1]
        mask[rays] += here * parts[2]
        light[rays] = here * (1 - parts[2])
    colour = colour + background * (1 - mask[:, None])
    depth = torch.where(mask > 0.5, depth / mask.clamp_min(1e-6), torch.zeros_like(depth))
    return colour.view(size, size, 3), depth.view(size, size), mask.view(size, size)
