# SPDX-License-Identifier: GPL-3.0-or-later
"""The clip's keyframes seen from the rig's other cameras: a multi-view pipeline's pictures, made to agree with the clip.

Whatever a pipeline makes up, the clip is true: what other views show outside the space that the clip's silhouette allows is
taken away, and what the clip's own surface proves to be there is added to them.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from ..networks.images import pixel_rays
from ..shared import cameras
from .splat import distance, splat, unproject

ALONG = 96  # samples along a ray through the unit sphere
SURFACE = 0.05  # model units: points of one surface


def shrink(rgba: np.ndarray, size: int) -> Float[Tensor, "T 4 H W"]:
    """Cut-outs uint8 [T, S, S, 4] averaged down: colour on white and alpha, in [0, 1]."""
    pixels = torch.from_numpy(rgba).float() / 255
    stack = torch.cat([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], -1).permute(0, 3, 1, 2)
    small = F.adaptive_avg_pool2d(stack, size)
    return torch.cat([small[:, :3] + 1 - small[:, 3:], small[:, 3:]], 1)


def agree(
    made: Float[Tensor, "T V 5 H W"], camera_to_world: Float[Tensor, "V 4 4"], intrinsics: Float[Tensor, "V 3 3"]
) -> Float[Tensor, "T V 5 H W"]:
    """The same views without contradiction to the first (colour on white, alpha, depth beyond the origin's)."""
    frames, views, _, size, _ = made.shape
    camera, lens = (x[None].expand(frames, -1, -1, -1) for x in (camera_to_world, intrinsics))
    made = made.clone()
    away = distance(camera_to_world)[:, None, None]
    shape = made[:, :1, 3:4].flatten(0, 1)
    origins, directions = pixel_rays(camera_to_world[1:], intrinsics[1:], size)
    steps = torch.linspace(-1, 1, ALONG)
    depths = away[1:, ..., None] + steps  # V-1 1 1 S
    points = origins[..., None, :] + depths[..., None] * directions[..., None, :]
    in_sphere = points.norm(dim=-1) < 1
    local = (points - camera_to_world[0, :3, 3]) @ camera_to_world[0, :3, :3]
    pixel = (local / local[..., 2:].clamp_min(1e-3)) @ intrinsics[0].T
    grid = (pixel[..., :2] / size * 2 - 1).flatten(0, 2)
    for frame in range(frames):
        inside = F.grid_sample(shape[frame : frame + 1], grid[None], align_corners=False)[0, 0]
        inside = (inside.view(views - 1, size, size, ALONG) > 0.4) & in_sphere
        off = (steps - made[frame, 1:, 4][..., None]).abs() + 10.0 * ~inside
        near, place = off.min(-1)
        possible = near < 5
        made[frame, 1:, 4] = torch.where(possible & (near > 2 / ALONG), steps[place], made[frame, 1:, 4])
        made[frame, 1:, 3] *= possible
        made[frame, 1:, :3] = torch.where(possible[:, None], made[frame, 1:, :3], 1.0)
    points = unproject(made[:, :1, 4] + distance(camera)[:, :1, None, None], camera[:, :1], lens[:, :1]).flatten(1, 3)
    colour = made[:, 0, :3].permute(0, 2, 3, 1).flatten(1, 2)
    shown = splat(points, colour, made[:, 0, 3].flatten(1), camera, lens, size, SURFACE)
    missing = (shown[:, :, 4] > 0.5) & (made[:, :, 3] < 0.5)
    missing[:, 0] = False
    made[:, :, :3] = torch.where(missing[:, :, None], shown[:, :, :3], made[:, :, :3])
    made[:, :, 4] = torch.where(missing, shown[:, :, 3], made[:, :, 4])
    made[:, :, 3] = torch.where(missing, 1.0, made[:, :, 3])
    return made


def enlarge(
    made: Float[Tensor, "T V 5 H W"], clip: np.ndarray, camera_to_world: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What a capture holds: rgba uint8 [T, V, S, S, 4] and depth_planar float32 [T, V, S, S], the first view the clip itself.

    Args:
        clip: the cut-outs, uint8 [T, S, S, 4].
    """
    frames, views, _, small, _ = made.shape
    size = clip.shape[1]
    flat = made.flatten(0, 1)
    colour, alpha, depth = flat[:, :3], flat[:, 3:4], flat[:, 4:]
    premultiplied = (colour - 1 + alpha).clamp_min(0)
    solid = (alpha > 0.5).to(depth)
    stack = torch.cat([premultiplied, alpha], 1)
    stack = F.interpolate(stack, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)
    weight = F.interpolate(solid, size=(size, size), mode="bilinear", align_corners=False)
    deep = F.interpolate(depth * solid, size=(size, size), mode="bilinear", align_corners=False) / weight.clamp_min(
        1e-4
    )
    straight = stack[:, :3] / stack[:, 3:].clamp_min(1e-3)
    # Edges are decided, not soft: the surface is there or not, and its colour is not thinned by the ground.
    hard = ((stack[:, 3:] > 0.5) & (weight > 1e-3)).to(straight)
    rgba = (torch.cat([straight.clamp(0, 1) * hard, hard], 1) * 255).round().byte()
    rgba = rgba.permute(0, 2, 3, 1).unflatten(0, (frames, views)).numpy().copy()
    away = np.linalg.norm(camera_to_world[:, :3, 3], axis=1)[None, :, None, None]
    known = (weight > 1e-3).unflatten(0, (frames, views))[:, :, 0].numpy()
    deep = deep.unflatten(0, (frames, views))[:, :, 0].numpy() + away
    rgba[:, 0] = clip
    depth_planar = np.zeros(deep.shape, np.float32)
    for frame in range(frames):
        for view in range(views):
            here = rgba[frame, view, ..., 3] > 127
            if not known[frame, view].any():
                here[:] = False
            if (here & ~known[frame, view]).any():
                place = ndimage.distance_transform_edt(~known[frame, view], return_distances=False, return_indices=True)
                deep[frame, view] = deep[frame, view][tuple(place)]
            depth_planar[frame, view] = np.where(here, deep[frame, view], 0)
    return rgba, depth_planar


def sheet(rgba: np.ndarray, tile: int = 128, most: int = 12) -> np.ndarray:
    """Views below each other, keyframes side by side, on white: uint8 [H, W, 3]."""
    chosen = np.unique(np.linspace(0, len(rgba) - 1, min(most, len(rgba))).round().astype(int))
    step = max(1, rgba.shape[2] // tile)
    part = rgba[chosen][:, :, ::step, ::step].astype(np.float32)
    picture = part[..., :3] * (part[..., 3:] / 255) + 255 - part[..., 3:]
    return picture.transpose(1, 2, 0, 3, 4).reshape(-1, len(chosen) * part.shape[3], 3).round().astype(np.uint8)


def rig(elevation: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """camera_to_world [4, 4, 4] and intrinsics [4, 3, 3]: the clip's camera at its elevation, then the rig's others."""
    camera, intrinsics = cameras.job_cameras(size, len(cameras.RIG))
    camera[0] = cameras.look_at(0.0, elevation)
    return camera, intrinsics
