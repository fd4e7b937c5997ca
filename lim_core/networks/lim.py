# SPDX-License-Identifier: GPL-3.0-or-later
"""LIM: T̂_{k+α} = LIM(F_k, I_{k+1}, α), continuous in α (LIM, section 3.2), and its canonical twin LIM̄.

    stream  = LRM's features before its last blocks ⊕ sinusoidal encoding of α [+ the target's fused evidence]
    × blocks: LN → cross-attention to F_k's block i → +;  LN → cross-attention to the image tokens of k+1 → +;
              LN → self-attention → +;  LN → MLP → +
    triplane = head [refined with the evidence of both times, advanced to α]; the decoder that reads it is LRM's own, frozen.

The twin carries canonical coordinates: F̄_k comes from LRM̄ on the canonical renders of the source time, the image tokens
from the RGB of BOTH times (the target's canonical renders do not exist): joined as views of one token set, source first. Of the
target's evidence it sees the shape, so that untrained it says of every point of the target's surface that it was always there.
LIM can take its own features instead of LRM's (causal consistency, section 3.3).
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..shared.errors import LimError
from .config import ModelConfig
from .evidence import Advance, Pillars, PlaneTokens, Refine, fuse
from .images import Views
from .lrm import LRM, Attention, Features, ImageEncoder, TriplaneHead, mlp, sincos

NEIGHBOURS = 7  # cells along each side of the square in which nothing may move
ALPHA_SCALE = 1000.0  # α in [0, 1] is encoded as 0..1000, the range that the frequencies of `sincos` resolve


class LIMBlock(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.norm_feature = nn.LayerNorm(config.width)
        self.feature_attention = Attention(config.width, config.heads)
        self.norm_image = nn.LayerNorm(config.width)
        self.image_attention = Attention(config.width, config.heads)
        self.norm_self = nn.LayerNorm(config.width)
        self.self_attention = Attention(config.width, config.heads)
        self.norm_mlp = nn.LayerNorm(config.width)
        self.mlp = mlp(config.width)

    def forward(self, x: Tensor, feature: Tensor, image_tokens: Tensor) -> Tensor:
        x = x + self.feature_attention(self.norm_feature(x), self.norm_feature(feature))
        x = x + self.image_attention(self.norm_image(x), image_tokens)
        normed = self.norm_self(x)
        x = x + self.self_attention(normed, normed)
        return x + self.mlp(self.norm_mlp(x))


class LIM(nn.Module):
    """The interpolator on top of a reconstructor of the same configuration."""

    def __init__(self, config: ModelConfig, canonical: bool = False):
        super().__init__()
        self.config = config
        self.canonical = canonical
        self.encoder = ImageEncoder(config)
        if canonical:
            self.time_embed = nn.Parameter(torch.zeros(2, config.width))  # tells the source's tokens from the target's
        self.join_alpha = nn.Linear(2 * config.width, config.width)
        if config.evidence:
            self.pillars = Pillars(config)
            self.plane_tokens = PlaneTokens(config)
            self.join_evidence = nn.Linear(config.width, config.width)
            self.advance = Advance(config)
            self.refine = Refine(config)
        self.blocks = nn.ModuleList(LIMBlock(config) for _ in range(config.lim_blocks))
        self.head = TriplaneHead(config)

    @torch.no_grad()
    def initialise_from(self, lrm: LRM, rgb: LRM | None = None) -> None:
        """Start from the reconstructor's weights (LIM, appendix B).

        Args:
            lrm: the reconstructor whose features are read (LRM̄ for the canonical twin).
            rgb: for the canonical twin, the RGB reconstructor, whose encoder reads the pictures.
        """
        pictures = rgb or lrm
        self.encoder.load_state_dict(pictures.encoder.state_dict())
        self.head.load_state_dict(lrm.head.state_dict())
        width = self.config.width
        self.join_alpha.weight[:, :width] = torch.eye(width)
        self.join_alpha.weight[:, width:] *= 0.5
        self.join_alpha.bias.zero_()
        if self.config.evidence:
            assert lrm.pillars is not None and lrm.plane_tokens is not None and lrm.refine is not None
            self.pillars.load_state_dict(lrm.pillars.state_dict())
            self.plane_tokens.load_state_dict(lrm.plane_tokens.state_dict())
            self.refine.load_state_dict(lrm.refine.state_dict())
            self.join_evidence.weight.mul_(0.1)
            self.join_evidence.bias.zero_()
        for block, source in zip(self.blocks, lrm.blocks[-self.config.lim_blocks :]):
            for mine, theirs in (
                ("norm_feature", "norm_self"), ("feature_attention", "self_attention"),
                ("norm_image", "norm_image"), ("image_attention", "image_attention"),
                ("norm_self", "norm_self"), ("self_attention", "self_attention"),
                ("norm_mlp", "norm_mlp"), ("mlp", "mlp"),
            ):  # fmt: skip
                getattr(block, mine).load_state_dict(copy.deepcopy(getattr(source, theirs).state_dict()))

    def condition(self, target: Views, source: Views | None = None) -> tuple[Tensor, Tensor | None]:
        """What does not depend on α: the image tokens and the planes of the target's evidence. Compute once per pair of keyframes.

        Args:
            target: RGB views of the next keyframe.
            source: RGB views of this keyframe; for the canonical twin only.
        Raises:
            LimError: the two times have different rigs, or the twin was given no source.
        """
        if self.canonical != (source is not None):
            raise LimError("bad_capture", "The canonical interpolator needs the pictures of both keyframes.")
        tokens = self.encoder(target)
        if source is not None:
            if source.content.shape != target.content.shape:
                raise LimError("bad_capture", "Two keyframes were captured with different numbers of views.")
            tokens = torch.cat([self.encoder(source) + self.time_embed[0], tokens + self.time_embed[1]], 1)
        if (
            self.canonical
        ):  # LRM̄'s kind of evidence for a time whose canonical coordinates nobody knows: as if nothing moved
            target = target.with_content(torch.zeros_like(target.content))
        planes = self.pillars(fuse(target, self.config.plane_size)) if self.config.evidence else None
        return tokens, planes

    def forward(
        self,
        features: Features,
        condition: tuple[Tensor, Tensor | None],
        alpha: Float[Tensor, " B"],
        shown: Views | None = None,
    ) -> tuple[Float[Tensor, "B 3 C R R"], Features]:
        """T̂ at `alpha` between the features' time (0) and the condition's (1), and LIM's own features there.

        Args:
            shown: what is known to be seen at `alpha` (moved.py, or a fitted mesh drawn there): its evidence then takes the place
                of the advanced one.
        Raises:
            LimError: alpha outside [0, 1], or features of a network of another size.
        """
        if bool((alpha < 0).any()) or bool((alpha > 1).any()):
            raise LimError("bad_request", f"Alpha {alpha.tolist()} lies outside the interval from 0 to 1.")
        if len(features.blocks) != len(self.blocks) or features.entering.shape[-1] != self.config.width:
            raise LimError("weights_broken", "The interpolator was given features of another reconstructor.")
        tokens, target = condition
        batch = len(alpha)
        stream = features.entering.expand(batch, -1, -1)
        time = sincos(alpha.float() * ALPHA_SCALE, self.config.width).to(stream)[:, None].expand_as(stream)
        x = self.join_alpha(torch.cat([stream, time], -1))
        if target is not None:
            x = x + self.join_evidence(self.plane_tokens(target)).expand(batch, -1, -1)
        tokens = tokens.expand(batch, -1, -1)
        outputs = []
        for block, feature in zip(self.blocks, features.blocks):
            x = block(x, feature.expand(batch, -1, -1), tokens)
            outputs.append(x)
        triplane, planes = self.head(x), None
        if target is not None:
            assert features.planes is not None  # a reconstructor of the same configuration
            ends = [planes.expand(batch, -1, -1, -1, -1) for planes in (features.planes, target)]
            if shown is not None:
                planes = self.pillars(fuse(shown, self.config.plane_size))
            else:
                planes = self.advance(triplane, *ends, alpha)
            triplane = self.refine(triplane, planes)
        return triplane, Features(features.entering.expand(batch, -1, -1), outputs, planes)


ENDS = (0.0, 1.0)  # the α at which a condition's own keyframes lie


class Anchors:
    """What holds triplanes between two keyframes to LRM's own: at both ends, and all the way where nothing moves.

    T̂(α) + g^(4α(1−α)) · lerp(T_k − T̂(0), T_{k+1} − T̂(1), α), g near 1 in cells around which both triplanes agree. A step of
    ours after the paper's network: LIM by itself loses detail that both keyframes show at the same place. RGB only, as the
    canonical twin has no triplane at its target.
    """

    @torch.no_grad()
    def __init__(
        self, made: Float[Tensor, "2 3 C R R"], start: Float[Tensor, "1 3 C R R"], end: Float[Tensor, "1 3 C R R"]
    ):
        """made: what is to be held, at α = 0 and 1; start, end: LRM's triplanes there."""
        both = torch.cat([start, end])
        self.missing = both - made
        spread = both.std((0, 3, 4), keepdim=True).clamp_min(1e-6)
        moved = (((end - start) / spread) ** 2).mean(2).sqrt()  # 1 3 R R
        self.still = torch.exp(-(F.max_pool2d(moved, NEIGHBOURS, 1, NEIGHBOURS // 2) ** 2))[:, :, None]

    def hold(self, planes: Float[Tensor, "B 3 C R R"], alpha: Float[Tensor, " B"]) -> Float[Tensor, "B 3 C R R"]:
        """Triplanes at `alpha`, held."""
        share = alpha.to(planes)[:, None, None, None, None]
        return planes + self.still ** (4 * share * (1 - share)) * torch.lerp(self.missing[:1], self.missing[1:], share)
