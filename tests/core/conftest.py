# SPDX-License-Identifier: GPL-3.0-or-later
"""Shared by the tests of the backend: tiny networks and a job folder made without Blender."""

# ruff: noqa: E402 (the import hook comes before what it watches)
from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lim_core.shared import threads

threads.limit()  # as in a job, and before numpy comes: threads that wait for each other took five times a job's time

from jaxtyping import install_import_hook

# Every call of a function whose signature states shapes is checked against them (test_networks.py has the canary).
install_import_hook(
    [f"lim_core.networks.{name}" for name in ("evidence", "images", "lim", "lrm", "render", "triplane")],
    "beartype.beartype",
)

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lim_core.data import procedural
from lim_core.job.capture import Capture
from lim_core.mesh import rays
from lim_core.networks import checkpoint, config
from lim_core.networks.config import ModelConfig
from lim_core.networks.images import Views
from lim_core.shared import cameras, request

TINY = ModelConfig(
    image_size=32, patch=8, width=32, heads=2, encoder_blocks=1, blocks=3, lim_blocks=2, plane_tokens=4, upsample=4,
    channels=4, decoder_width=16, ray_samples=16, evidence_channels=8, refine_blocks=1,
)  # fmt: skip


def ball_views(model_config: ModelConfig, batch: int = 1, *, canonical: bool = False, shift: float = 0.0) -> Views:
    """A coloured ball of radius 0.6 seen by the rig, moved along x by `shift`."""
    inputs = checkpoint.golden_input(model_config)
    views = checkpoint.golden_views(inputs, canonical, "cpu")
    position = views.position + shift * torch.tensor([1.0, 0, 0]) * views.alpha[..., None]
    moved = Views(views.content, views.alpha, position, views.depth_known, views.camera_to_world, views.intrinsics)
    return Views(*(getattr(moved, n).expand(batch, *getattr(moved, n).shape[1:]) for n in moved.__dataclass_fields__))


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """Four untrained checkpoints of the tiny size."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for network in config.NETWORKS:
        checkpoint.save(folder / network, network, checkpoint.build(network, TINY).eval(), {"test": True})
    return folder


@pytest.fixture(scope="session")
def perceptual_file(tmp_path_factory) -> Path:
    """Random weights with the names and shapes of VGG-16 and the LPIPS heads."""
    torch.manual_seed(0)
    weights, channels = {}, 3
    widths = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256}
    widths |= dict.fromkeys((17, 19, 21, 24, 26, 28), 512)
    for layer, width in widths.items():
        weights[f"features.{layer}.weight"] = torch.randn(width, channels, 3, 3) * (2 / (9 * channels)) ** 0.5
        weights[f"features.{layer}.bias"] = torch.randn(width) * 0.1
        channels = width
    for head, width in enumerate((64, 128, 256, 512, 512)):
        weights[f"lin{head}.model.1.weight"] = torch.rand(1, width, 1, 1)
    path = tmp_path_factory.mktemp("perceptual") / "vgg.safetensors"
    save_file(weights, path)
    return path


def make_job(folder: Path, weights: Path | str = "", *, still: bool = False, seed: int = 3, **changes) -> Path:
    """A job folder as Blender would leave it: a generated moving object, three keyframes, eight views."""
    size, views = 96, 8
    pack = procedural.make_object(seed)
    last = pack.frames(0) - 1
    frames = [0, 0, 0] if still else [0, last * 0.2, last * 0.4]
    positions = pack.model_positions(0, frames)
    camera, intrinsics = cameras.job_cameras(size, views)
    seen = [rays.render(pack, vertices, camera, intrinsics, size) for vertices in positions]
    rgba, depth = (np.stack([getattr(row, name) for row in seen]) for name in ("rgba", "depth_planar"))
    Capture(rgba, depth, camera, intrinsics, rig_views=4).write(folder)
    settings = {
        "keyframes": (1.0, 5.0, 9.0),
        "inbetweens": 1,
        "image_size": size,
        "views": views,
        "template_faces": 600,
    }
    settings |= {"texture_size": 128, "weights": str(weights), "device": "cpu"}
    request.write(request.Request(**(settings | changes)), folder)
    return folder
