# SPDX-License-Identifier: GPL-3.0-or-later
"""A perceptual distance of pictures from weights that the user gives: LPIPS on VGG-16 (Zhang et al., 2018).

The weights are not ours to ship. The file is a safetensors file with these entries, named as torchvision's VGG-16 and the
authors' linear heads name them:

    features.{0,2,5,7,10,12,14,17,19,21,24,26,28}.weight, .bias    the 13 convolutions, 3 × 3
    lin{0,1,2,3,4}.model.1.weight [1, C, 1, 1]                     the heads, C = 64, 128, 256, 512, 512

Other entries (VGG's classifier) may be there and are ignored. With both state dicts at hand: `save_file({**vgg.state_dict(),
**heads}, FILE)`.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..shared.errors import LimError

# Channels of the convolutions between VGG-16's poolings; each stage ends in a feature that is compared.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SMALLEST = 16  # pixels along a side: the last stage sees a sixteenth
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pictures that VGG was trained on


class Perceptual(nn.Module):
    """LPIPS with frozen weights; make it with `load`."""

    def __init__(self):
        super().__init__()
        layers, channels, index = {}, 3, 0
        for number, stage in enumerate(STAGES):
            for width in stage:
                layers[str(index)] = nn.Conv2d(channels, width, 3, padding=1)
                channels, index = width, index + 2  # a ReLU lies between
            index += 1  # and a pooling
            self.add_module(
                f"lin{number}", nn.ModuleDict({"model": nn.ModuleDict({"1": nn.Conv2d(width, 1, 1, bias=False)})})
            )
        self.features = nn.ModuleDict(layers)
        self.requires_grad_(False)

    def compared(self, images: Float[Tensor, "N 3 H W"]) -> list[Tensor]:
        """The five features of pictures in [0, 1], each of unit length over its channels."""
        mean, deviation = (images.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        x = (images - mean) / deviation
        convolutions, found = iter(self.features.values()), []
        for number, stage in enumerate(STAGES):
            if number:
                x = F.max_pool2d(x, 2)
            for _ in stage:
                x = F.relu(next(convolutions)(x))
            found.append(x / x.square().sum(1, keepdim=True).clamp_min(1e-20).sqrt())
        return found

    def distance(self, a: Float[Tensor, "N 3 H W"], b: Float[Tensor, "N 3 H W"]) -> Float[Tensor, " N"]:
        """LPIPS of pairs of pictures in [0, 1]; 0 for equal ones. Gradients flow to both.

        Raises:
            LimError: `bad_capture` for pictures of less than 16 pixels or of two sizes.
        """
        if a.shape != b.shape or min(a.shape[-2:]) < SMALLEST:
            raise LimError(
                "bad_capture", f"Pictures of {tuple(a.shape)} and {tuple(b.shape)} cannot be compared perceptually.",
                f"Both must have one size, of {SMALLEST} pixels or more.",
            )  # fmt: skip
        total = a.new_zeros(len(a), dtype=torch.float32)
        for number, (one, two) in enumerate(zip(self.compared(a), self.compared(b))):
            head = getattr(self, f"lin{number}")["model"]["1"]
            total = total + head((one - two).square()).float().mean((1, 2, 3))
        return total


def load(path: str | Path) -> Perceptual:
    """The distance with the weights of a file; see the top of this module for its entries.

    Raises:
        LimError: `weights_missing` or `weights_broken`, naming the file and the first entry that is wrong.
    """
    if not Path(path).is_file():
        raise LimError("weights_missing", f"There is no file “{path}” with weights of the perceptual distance.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise LimError("weights_broken", f"The weights in “{path}” cannot be read: {error}.") from None
    model = Perceptual()
    wanted = model.state_dict()
    for name, tensor in wanted.items():
        if name not in tensors or tensors[name].shape != tensor.shape:
            raise LimError(
                "weights_broken", f"“{path}” lacks the entry {name} of shape {tuple(tensor.shape)}.",
                "It must hold VGG-16 and the LPIPS heads, named as in lim_core/networks/perceptual.py.",
            )  # fmt: skip
    model.load_state_dict({name: tensors[name].float() for name in wanted})
    return model.eval()
