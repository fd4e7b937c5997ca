# SPDX-License-Identifier: GPL-3.0-or-later
"""The perceptual distance, with random weights in the form that users give theirs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from lim_core.networks import perceptual
from lim_core.shared.errors import LimError

LAYERS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # torchvision's numbers of VGG-16's convolutions


def written_out(weights, a, b):
    """LPIPS as its authors define it, in float64: inputs in [-1, 1], their shift and scale."""

    def features(image):
        shift, scale = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
        x = (2 * image - 1 - torch.tensor(shift).view(3, 1, 1)) / torch.tensor(scale).view(3, 1, 1)
        x, found = x.double(), []
        for stage, layers in enumerate(LAYERS):
            x = F.max_pool2d(x, 2, 2) if stage else x
            for layer in layers:
                weight, bias = (weights[f"features.{layer}.{part}"].double() for part in ("weight", "bias"))
                x = F.conv2d(x, weight, bias, padding=1).relu()
            found.append(x / x.pow(2).sum(1, keepdim=True).sqrt().add(1e-10))
        return found

    heads = [weights[f"lin{stage}.model.1.weight"].double() for stage in range(5)]
    pairs = zip(features(a), features(b), heads)
    return sum(F.conv2d((x - y) ** 2, head).mean((1, 2, 3)) for x, y, head in pairs)


def test_it_is_the_distance_of_the_paper(perceptual_file):
    distance = perceptual.load(perceptual_file).distance
    torch.manual_seed(1)
    a, b = torch.rand(3, 3, 40, 32), torch.rand(3, 3, 40, 32)
    found = distance(a, b)
    assert found.shape == (3,) and (found > 0).all()
    torch.testing.assert_close(found.double(), written_out(load_file(perceptual_file), a, b), rtol=1e-4, atol=1e-7)
    assert distance(a, a).abs().max() == 0
    torch.testing.assert_close(distance(b, a), found)


def test_gradients_reach_the_pictures_and_stay_finite(perceptual_file):
    model = perceptual.load(perceptual_file)
    flat = torch.ones(1, 3, 32, 32, requires_grad=True)  # features of a flat picture may be 0 everywhere
    model.distance(flat, torch.rand(1, 3, 32, 32)).sum().backward()
    assert torch.isfinite(flat.grad).all() and flat.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_flaws_are_named(perceptual_file, tmp_path):
    with pytest.raises(LimError, match="no file"):
        perceptual.load(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(LimError, match="cannot be read"):
        perceptual.load(tmp_path / "broken.safetensors")
    weights = load_file(perceptual_file)
    del weights["lin3.model.1.weight"]
    save_file(weights, tmp_path / "part.safetensors")
    with pytest.raises(LimError, match=r"lacks the entry lin3.model.1.weight of shape \(1, 512, 1, 1\)"):
        perceptual.load(tmp_path / "part.safetensors")
    model = perceptual.load(perceptual_file)
    with pytest.raises(LimError, match="cannot be compared"):
        model.distance(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))
