# SPDX-License-Identifier: GPL-3.0-or-later
"""What the networks see: views of one time as a batch of tensors.

`Views` is the only form in which pictures enter a network. Everything in it is in model space and already averaged down
to the network's image size.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclasses.dataclass
class Views:
    """V calibrated pictures of each of B scenes at one time.

    Attributes:
        content: [B, V, H, W, 3] in [0, 1] (RGB) or [-1, 1] (canonical coordinates); background white, resp. 0.
        alpha: [B, V, H, W] coverage.
        position: [B, V, H, W, 3] model-space point seen by each pixel; meaningless where `depth_known` is 0.
        depth_known: [B, V, H, W] 1 where the capture knows the depth, 0 elsewhere (a video: everywhere 0).
        camera_to_world: [B, V, 4, 4]; intrinsics: [B, V, 3, 3] in pixels of H × W (cameras.py).
    """

    content: Float[Tensor, "*B V H W 3"]
    alpha: Float[Tensor, "*B V H W"]
    position: Float[Tensor, "*B V H W 3"]
    depth_known: Float[Tensor, "*B V H W"]
    camera_to_world: Float[Tensor, "*B V 4 4"]
    intrinsics: Float[Tensor, "*B V 3 3"]

    def to(self, device) -> Views:
        return Views(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))

    def with_content(self, content: Tensor) -> Views:
        return dataclasses.replace(self, content=content)

    def with_displacement(self) -> Views:
        """Canonical coordinates as seen from the points that carry them: 0 where nothing has moved, and on the background."""
        return self.with_content(self.content - self.position * self.depth_known[..., None])

    def without_depth(self, drop: Float[Tensor, " B"]) -> Views:
        """The same views with the depth hidden for the scenes where `drop` is 1."""
        keep = 1 - drop[:, None, None, None].to(self.depth_known)
        return dataclasses.replace(self, depth_known=self.depth_known * keep)


def pixel_rays(
    camera_to_world: Float[Tensor, "... 4 4"], intrinsics: Float[Tensor, "... 3 3"], size: int
) -> tuple[Float[Tensor, "... H W 3"], Float[Tensor, "... H W 3"]]:
    """cameras.rays for tensors: origins and directions with z = 1 in the camera's frame (not unit length)."""
    steps = torch.arange(size, device=intrinsics.device, dtype=intrinsics.dtype) + 0.5
    v, u = torch.meshgrid(steps, steps, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], -1)
    with torch.autocast(intrinsics.device.type, enabled=False):  # half precision would move rays by pixels
        rotation = camera_to_world[..., :3, :3] @ torch.linalg.inv(intrinsics)
        directions = torch.einsum("...ij,hwj->...hwi", rotation, pixels)
    return camera_to_world[..., None, None, :3, 3].expand_as(directions), directions


def plucker(origins: Float[Tensor, "... 3"], directions: Float[Tensor, "... 3"]) -> Float[Tensor, "... 6"]:
    """Plücker coordinates (unit direction, moment) of rays."""
    directions = F.normalize(directions, dim=-1)
    return torch.cat([directions, torch.linalg.cross(origins, directions)], -1)


def network_input(views: Views, evidence: bool) -> Float[Tensor, "B V H W C"]:
    """Pixels ⊕ Plücker rays (LIM, section 3.1), and with `evidence` also alpha, position and whether it is known."""
    size = views.content.shape[2]
    channels = [views.content, plucker(*pixel_rays(views.camera_to_world, views.intrinsics, size))]
    if evidence:
        known = views.depth_known[..., None]
        channels += [views.alpha[..., None], views.position * known, known]
    return torch.cat(channels, -1)


def input_channels(evidence: bool) -> int:
    return 14 if evidence else 9
