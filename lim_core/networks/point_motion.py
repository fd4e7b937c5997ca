# SPDX-License-Identifier: GPL-3.0-or-later
"""Motion: where the surface points of one keyframe are at the other, and at any α between them.

    clouds     = points that the captured views show at either time: place, normal, colour
    controls   = some of them; each reads its neighbours in its own cloud (after PointNet++, Qi et al. 2017)
    × blocks:    LN → self-attention → +;  LN → cross-attention to the other time → +;  LN → MLP → +   (both times alike)
    first guess: soft matches among the other time's controls, and a residual
    × blocks:    the same, now knowing the guess
    field      = place, rotation and confidence of every control at the other time, and an arc between both

It stands beside the paper's network: motion is a matter of points in space, and points are cheap to learn. Everything is
symmetric in the two times, so that one pass gives the field of both. Between controls a point moves rigidly with the
nearest ones, blended (embedded deformation, Sumner et al. 2007).
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..shared.errors import LimError
from .config import MotionConfig
from .lrm import Attention, sincos

FREQUENCIES = 5  # of places: half a wave over 2 units, then doubled
ALPHA_SCALE = 1000.0  # as in lim.py
HOLDERS = 6  # controls with which a point of the surface moves
NORMAL_WEIGHT = 0.15  # model units by which a control with a turned normal counts as farther away


@dataclasses.dataclass
class Cloud:
    """M points of the surface at one time, for each of B pairs, in model space. Some of them are the controls.

    Attributes:
        place, normal: [B, M, 3], normals of length 1; colour: [B, M, 3] in [0, 1].
        controls: [B, N], which of the points.
    """

    place: Float[Tensor, "B M 3"]
    normal: Float[Tensor, "B M 3"]
    colour: Float[Tensor, "B M 3"]
    controls: Int[Tensor, "B N"]

    def of_controls(self, values: Float[Tensor, "B M C"]) -> Float[Tensor, "B N C"]:
        return torch.gather(values, 1, self.controls[..., None].expand(-1, -1, values.shape[-1]))

    def to(self, device) -> Cloud:
        return Cloud(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))


@dataclasses.dataclass
class Field:
    """What `Motion` says of one time's controls, N of each of B pairs.

    Attributes:
        start, normal: [B, N, 3], as captured.
        guess: [B, N, 3], the first guess of `place`.
        place: [B, N, 3], at the other time.
        turn: [B, N, 4], unit quaternion (w, x, y, z): how the neighbourhood turns on the way there.
        scatter: [B, N], expected distance of `place` from the truth, model units.
        features: [B, N, 2 W], what the arc is read from.
        scores: [B, N, N'], logarithms of the match with each control of the other time; first and last.
    """

    start: Float[Tensor, "B N 3"]
    normal: Float[Tensor, "B N 3"]
    guess: Float[Tensor, "B N 3"]
    place: Float[Tensor, "B N 3"]
    turn: Float[Tensor, "B N 4"]
    scatter: Float[Tensor, "B N"]
    features: Float[Tensor, "B N F"]
    scores: tuple[Float[Tensor, "B N K"], Float[Tensor, "B N K"]]


@dataclasses.dataclass
class Held:
    """With which controls points of the surface move: `index` [B, Q, K] and `weight` [B, Q, K], which sums to 1."""

    index: Int[Tensor, "B Q K"]
    weight: Float[Tensor, "B Q K"]

    def gather(self, values: Float[Tensor, "B N C"]) -> Float[Tensor, "B Q K C"]:
        """The values of each point's controls."""
        count = values.shape[-1]
        flat = self.index.flatten(1)[..., None].expand(-1, -1, count)
        return torch.gather(values, 1, flat).unflatten(1, self.index.shape[1:])

    def blend(self, values: Float[Tensor, "B N C"]) -> Float[Tensor, "B Q C"]:
        return (self.gather(values) * self.weight[..., None]).sum(2)


def hold(
    field: Field, place: Float[Tensor, "B Q 3"], normal: Float[Tensor, "B Q 3"] | None = None, count: int = HOLDERS
) -> Held:
    """Hang points at the field's start time on their nearest controls; a control on another side counts as farther."""
    with torch.no_grad():
        distance = torch.cdist(place, field.start) ** 2
        if normal is not None:
            distance = distance + NORMAL_WEIGHT**2 * (1 - normal @ field.normal.transpose(1, 2))
        near, index = distance.topk(min(count, field.start.shape[1]), largest=False)
        reach = near[..., -1:].clamp_min(1e-8)
        weight = (1 - near / (1.05 * reach)) ** 2 + 1e-6
    return Held(index, weight / weight.sum(-1, keepdim=True))


def rotate(quaternion: Float[Tensor, "... 4"], vector: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3"]:
    """Turn vectors by unit quaternions (w, x, y, z)."""
    axis = quaternion[..., 1:].expand(*vector.shape)
    across = 2 * torch.linalg.cross(axis, vector)
    return vector + quaternion[..., :1] * across + torch.linalg.cross(axis, across)


def carried(
    start: Float[Tensor, "B N 3"],
    place: Float[Tensor, "B N 3"],
    turn: Float[Tensor, "B N 4"],
    held: Held,
    points: Float[Tensor, "B Q 3"],
) -> Float[Tensor, "B Q 3"]:
    """Points that hang on controls, after those have moved from `start` to `place` and turned."""
    offset = points[:, :, None] - held.gather(start)
    moved = held.gather(place) + rotate(held.gather(turn), offset)
    return (moved * held.weight[..., None]).sum(2)


class MotionBlock(nn.Module):
    """Both times alike: LN → self-attention → +;  LN → cross-attention → +;  LN → MLP → +"""

    def __init__(self, config: MotionConfig):
        super().__init__()
        self.norm_self = nn.LayerNorm(config.width)
        self.self_attention = Attention(config.width, config.heads)
        self.norm_cross = nn.LayerNorm(config.width)
        self.cross_attention = Attention(config.width, config.heads)
        self.norm_mlp = nn.LayerNorm(config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, 3 * config.width), nn.GELU(), nn.Linear(3 * config.width, config.width)
        )

    def forward(self, both: Float[Tensor, "B2 N W"]) -> Float[Tensor, "B2 N W"]:
        """The first half of the batch are the sources, the second half their targets."""
        normed = self.norm_self(both)
        both = both + self.self_attention(normed, normed)
        normed = self.norm_cross(both)
        both = both + self.cross_attention(normed, normed.roll(len(both) // 2, 0))
        return both + self.mlp(self.norm_mlp(both))


class Motion(nn.Module):
    """Fields of motion between two clouds."""

    def __init__(self, config: MotionConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.local = nn.Sequential(
            nn.Linear(9, config.local_width), nn.GELU(), nn.Linear(config.local_width, config.local_width)
        )
        self.enter = nn.Linear(9 + 6 * FREQUENCIES + config.local_width, width)
        self.blocks = nn.ModuleList(MotionBlock(config) for _ in range(config.blocks))
        self.match = nn.Linear(width, config.match_width)
        self.sharpness = nn.Parameter(torch.tensor(3.0))
        self.residual = _head(2 * width, width, 3)
        self.told = nn.Linear(6 + 6 * FREQUENCIES + 1, width)
        self.later_blocks = nn.ModuleList(MotionBlock(config) for _ in range(config.later_blocks))
        self.later_match = nn.Linear(width, config.match_width)
        self.later_sharpness = nn.Parameter(torch.tensor(3.0))
        self.later_residual = _head(2 * width, width, 8)
        self.arc = _head(3 * width, width, 7)

    def forward(self, source: Cloud, target: Cloud) -> tuple[Field, Field]:
        """The field from the source to the target, and the one back."""
        pair = (source, target)
        x = torch.cat([self._entering(cloud) for cloud in pair])
        start = torch.cat([cloud.of_controls(cloud.place) for cloud in pair])
        normal = torch.cat([cloud.of_controls(cloud.normal) for cloud in pair])
        for block in self.blocks:
            x = block(x)
        scores, place, context = _matches(x, self.match, self.sharpness, start)
        guess = place + self.residual(torch.cat([x, context], -1))
        sure = scores.exp().square().sum(-1, keepdim=True)
        x = x + self.told(torch.cat([guess, guess - start, _waves(guess), sure], -1))
        for block in self.later_blocks:
            x = block(x)
        later_scores, place, context = _matches(x, self.later_match, self.later_sharpness, start)
        features = torch.cat([x, context], -1)
        out = self.later_residual(features)
        turn = F.normalize(out[..., 3:7] + out.new_tensor([1.0, 0, 0, 0]), dim=-1)
        scatter = (out[..., 7] - 3).clamp(-9, 1).exp()
        values = (start, normal, guess, place + out[..., :3], turn, scatter, features)

        def of_time(half: int) -> Field:
            start, normal, guess, place, turn, scatter, features = (value.chunk(2)[half] for value in values)
            matches = (scores.chunk(2)[half], later_scores.chunk(2)[half])
            return Field(start, normal, guess, place, turn, scatter, features, matches)

        return of_time(0), of_time(1)

    def at(self, field: Field, alpha: Float[Tensor, " B"]) -> tuple[Float[Tensor, "B N 3"], Float[Tensor, "B N 4"]]:
        """Place and turn of the controls at `alpha` of the way from the field's own time (0) to the other (1).

        Raises:
            LimError: alpha outside [0, 1].
        """
        if bool((alpha < 0).any()) or bool((alpha > 1).any()):
            raise LimError("bad_request", f"Alpha {alpha.tolist()} lies outside the interval from 0 to 1.")
        share = alpha[:, None, None].to(field.place)
        time = sincos(alpha.float() * ALPHA_SCALE, self.config.width).to(field.features)
        time = time[:, None].expand(-1, field.features.shape[1], -1)
        out = self.arc(torch.cat([field.features, time], -1)) * (4 * share * (1 - share))
        place = torch.lerp(field.start, field.place, share) + out[..., :3]
        still = out.new_tensor([1.0, 0, 0, 0])
        return place, F.normalize(torch.lerp(still.expand_as(field.turn), field.turn, share) + out[..., 3:], dim=-1)

    def _entering(self, cloud: Cloud) -> Float[Tensor, "B N W"]:
        place, normal = cloud.of_controls(cloud.place), cloud.of_controls(cloud.normal)
        colour = cloud.of_controls(cloud.colour)
        with torch.no_grad():
            near = torch.cdist(place, cloud.place).topk(self.config.neighbours, largest=False).indices

        def around(values: Tensor) -> Tensor:
            flat = near.flatten(1)[..., None].expand(-1, -1, 3)
            return torch.gather(values, 1, flat).unflatten(1, near.shape[1:])

        offset = 8 * (around(cloud.place) - place[:, :, None])  # neighbours lie within about an eighth of a unit
        local = self.local(torch.cat([offset, around(cloud.normal), around(cloud.colour) - 0.5], -1)).amax(2)
        return self.enter(torch.cat([place, _waves(place), normal, colour - 0.5, local], -1))


def _head(width_in: int, width: int, width_out: int) -> nn.Sequential:
    """Says nothing before it is trained."""
    enter, leave = nn.Linear(width_in, width), nn.Linear(width, width_out)
    nn.init.zeros_(leave.weight)
    nn.init.zeros_(leave.bias)
    return nn.Sequential(nn.LayerNorm(width_in), enter, nn.GELU(), leave)


def _waves(place: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N F"]:
    wave = place[..., None, :] * (2.0 ** torch.arange(FREQUENCIES, device=place.device) * math.pi / 2)[:, None]
    return torch.cat([wave.sin().flatten(-2), wave.cos().flatten(-2)], -1)


def _matches(
    x: Float[Tensor, "B2 N W"], project: nn.Linear, sharpness: Tensor, start: Float[Tensor, "B2 N 3"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of each control's match among the other time's, the mean place of its matches, and their features."""
    features = F.normalize(project(x), dim=-1)
    other = len(x) // 2
    scores = (features @ features.roll(other, 0).transpose(1, 2) * sharpness.exp()).log_softmax(-1)
    share = scores.exp()
    return scores, share @ start.roll(other, 0), share @ x.roll(other, 0)
