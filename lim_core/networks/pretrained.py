# SPDX-License-Identifier: GPL-3.0-or-later
"""DINOv2 (Oquab et al., 2023) as the eyes of the large presets, through Hugging Face's transformers.

Its weights (Apache 2.0) are read from a local folder when a training begins, are never trained, and travel in the checkpoint
from then on: nothing is fetched, and what uses the checkpoint needs the package but not the folder.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from ..shared.errors import LimError
from .config import ModelConfig

PATCH = 14
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pictures that it was trained on


class Dino(nn.Module):
    """One token for every patch of the pictures, projected to the network's width."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig):
        """Raises LimError `backend_broken` where transformers is missing."""
        super().__init__()
        self.count = config.image_size // config.patch
        self.model = _transformers().Dinov2Model(
            _transformers().Dinov2Config(
                hidden_size=config.dino_width, num_hidden_layers=config.dino_blocks, num_attention_heads=config.dino_heads,
                patch_size=PATCH, image_size=518,
            )
        )  # fmt: skip
        self.model.requires_grad_(False)
        self.project = nn.Linear(config.dino_width, config.width)
        self.register_buffer("mean", torch.tensor(MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(STD), persistent=False)

    def forward(self, content: Float[Tensor, "B V H W 3"]) -> Float[Tensor, "B V N W"]:
        """content: as in `Views`; RGB in [0, 1]. Canonical coordinates go in as they are."""
        pictures = ((content - self.mean) / self.std).flatten(0, 1).permute(0, 3, 1, 2)
        size = (self.count * PATCH,) * 2
        pictures = F.interpolate(pictures, size, mode="bilinear", antialias=True, align_corners=False)
        with torch.no_grad():
            tokens = self.model.eval()(pixel_values=pictures).last_hidden_state[:, 1:]
        return self.project(tokens).unflatten(0, content.shape[:2])

    def read(self, folder: str | Path) -> None:
        """Take the weights of a folder as `Dinov2Model.save_pretrained` writes it, safetensors only.

        Raises:
            LimError: `weights_missing`, or `weights_broken` for another model or another size.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise LimError("weights_missing", f"There is no DINOv2 in “{folder}”.", "Check --encoder.")
        try:
            found = _transformers().Dinov2Model.from_pretrained(folder, local_files_only=True, use_safetensors=True)
            self.model.load_state_dict(found.state_dict())
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            message = f"“{folder}” does not hold a DINOv2 of the preset's size: {reason}"
            raise LimError("weights_broken", message, "Use the size that lim_core/networks/config.py names.") from None


def _transformers():
    try:
        import transformers
    except ImportError:
        raise LimError(
            "backend_broken", "These networks look through DINOv2, for which the package transformers is missing.",
            "Run: python3 install backend --training",
        ) from None  # fmt: skip
    return transformers
