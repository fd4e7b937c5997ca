# SPDX-License-Identifier: GPL-3.0-or-later
"""The sizes of the networks. Frozen dataclasses; on disk they are `config.json`; an unknown key is an error."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..shared.errors import LimError

NETWORKS = ("lrm", "lrm-xyz", "lim", "lim-xyz")
"""The paper's, which work on triplanes and share one `ModelConfig`."""
MOTION = "motion"
"""The network on points; it has a `MotionConfig` of its own."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One reconstructor and the interpolator on top of it; both twins (RGB, canonical) share the sizes."""

    image_size: int = 128
    """Pixels along each side of an input view; captures are averaged down to it."""
    patch: int = 16
    """Pixels along each side of an image token."""
    width: int = 128
    heads: int = 4
    dino_width: int = 0
    dino_blocks: int = 0
    dino_heads: int = 0
    """Of a DINOv2 whose tokens join those of the patches (pretrained.py); all 0: none."""
    encoder_blocks: int = 2
    """Self-attention blocks over all views' image tokens before they condition the planes."""
    blocks: int = 6
    """LRM blocks (the paper: 12)."""
    lim_blocks: int = 3
    """LIM blocks, one for each of the last LRM blocks (the paper: 6)."""
    plane_tokens: int = 12
    """Tokens along each side of a plane; the triplane has 3 × plane_tokens²."""
    upsample: int = 8
    """Each token becomes upsample² cells of the plane."""
    channels: int = 32
    """Features per plane cell."""
    decoder_width: int = 64
    """Hidden units of the two-layer network that turns plane features into density and content."""
    ray_samples: int = 24
    evidence: bool = True
    """Fuse masks and, where the capture has them, position maps (evidence.py) into the planes, refine the planes by
    convolutions, and let the decoder know heights. Off is the paper's form (RGB and Plücker rays only)."""
    evidence_channels: int = 32
    """Features of the fused evidence per plane cell; divisible by 8."""
    refine_blocks: int = 1
    """Convolution blocks between the cells of the tokens ⊕ the evidence and the triplane."""

    @property
    def plane_size(self) -> int:
        """Cells along each side of a plane; divisible by 4."""
        return self.plane_tokens * self.upsample


@dataclasses.dataclass(frozen=True)
class MotionConfig:
    """Sizes of `Motion` (point_motion.py)."""

    controls: int = 384
    """Points of each time that attend to each other."""
    neighbours: int = 16
    """Points of the own cloud that a control reads."""
    width: int = 128
    heads: int = 4
    local_width: int = 64
    """Features of a neighbour."""
    match_width: int = 64
    """Features in which matches are looked for."""
    blocks: int = 3
    """Before the first guess."""
    later_blocks: int = 3
    """After it."""


def nano() -> ModelConfig:
    """For tests and for training on a CPU."""
    return ModelConfig()


def small() -> ModelConfig:
    """The bundled size once a GPU has trained it: the paper's depth, as wide as four networks in 100 MB allow."""
    return ModelConfig(
        image_size=128, patch=8, width=224, heads=4, encoder_blocks=2, blocks=12, lim_blocks=6, plane_tokens=32, upsample=4,
        ray_samples=64, refine_blocks=2,
    )  # fmt: skip


def base() -> ModelConfig:
    """The scale of the paper's family, with DINOv2 ViT-B/14 before it, for those with a cluster."""
    return ModelConfig(
        image_size=256, patch=16, width=768, heads=12, dino_width=768, dino_blocks=12, dino_heads=12, encoder_blocks=4,
        blocks=12, lim_blocks=6, plane_tokens=32, upsample=4, channels=48, ray_samples=96, evidence_channels=64,
        refine_blocks=3,
    )  # fmt: skip


PRESETS = {"nano": nano, "small": small, "base": base}


def changed(config: ModelConfig, settings: Sequence[str]) -> ModelConfig:
    """The configuration with some entries set, each as NAME=VALUE.

    Raises:
        LimError: `bad_request` for an unknown name, a value of another kind, or sizes that do not go together.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(ModelConfig)}
    values: dict[str, Any] = {}  # of the kinds above
    for text in settings:
        name, _, value = text.partition("=")
        if name not in kinds:
            raise LimError("bad_request", f"“{text}” sets nothing.", f"Write NAME=VALUE; names: {', '.join(kinds)}.")
        try:
            values[name] = {"true": True, "false": False}[value.lower()] if kinds[name] == "bool" else int(value)
        except (KeyError, ValueError):
            expected = "true or false" if kinds[name] == "bool" else "a whole number"
            raise LimError("bad_request", f"“{text}”: {name} is {expected}.") from None
        if values[name] < 1 and kinds[name] != "bool":
            raise LimError("bad_request", f"“{text}”: {name} is 1 or more.")
    config = dataclasses.replace(config, **values)
    divisors = {"image_size": config.patch, "plane_size": 4, "evidence_channels": 8, "width": 4 * config.heads}
    for name, divisor in divisors.items():
        if getattr(config, name) % divisor:
            raise LimError("bad_request", f"{name} {getattr(config, name)} is not divisible by {divisor}.")
    dino = (config.dino_width, config.dino_blocks, config.dino_heads)
    if any(dino) and (not all(dino) or config.dino_width % config.dino_heads):
        raise LimError("bad_request", f"dino_width, dino_blocks and dino_heads {dino} do not go together.")
    if not config.lim_blocks < config.blocks:
        raise LimError("bad_request", f"lim_blocks {config.lim_blocks} is not less than blocks {config.blocks}.")
    return config


def to_json(config: ModelConfig | MotionConfig, network: str) -> str:
    return json.dumps({"network": network, **dataclasses.asdict(config)}, indent=2)


def read(path: str | Path) -> tuple[ModelConfig | MotionConfig, str]:
    """The configuration in a checkpoint's config.json and the network's name; flaws are `weights_broken`."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        network = data.pop("network")
        kind = MotionConfig if network == MOTION else ModelConfig
        kinds = {field.name: bool if field.type == "bool" else int for field in dataclasses.fields(kind)}
        if any(type(value) is not kinds.get(name, type(value)) for name, value in data.items()):
            raise ValueError
    except (ValueError, KeyError, AttributeError, TypeError):
        raise LimError("weights_broken", f"“{path}” is not a checkpoint's configuration.") from None
    unknown = sorted(set(data) - set(kinds))
    if unknown or network not in (*NETWORKS, MOTION):
        raise LimError("weights_broken", f"“{path}” has an unknown entry: {unknown[0] if unknown else network}.")
    return kind(**data), network
