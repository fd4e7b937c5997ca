# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints: folders of config.json, model*.safetensors, golden.safetensors, training.json and a model card.

Loading is local and strict, never downloads and never unpickles. Weights are fp16 on disk, fp32 in memory, in shards of at
most 15 MB. The golden pair is a small input and what the network answered when it was saved; `doctor` and the tests replay it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..shared import cameras, files
from ..shared.errors import LimError
from . import config
from .config import MOTION, ModelConfig, MotionConfig
from .images import Views
from .lim import LIM
from .lrm import LRM, Features
from .point_motion import Cloud, Motion

SHARD_BYTES = 15_000_000
BUNDLED = Path(__file__).resolve().parents[1] / "weights"


Network = LRM | LIM | Motion


@overload
def build(network: Literal["lrm", "lrm-xyz"], model_config: ModelConfig | MotionConfig) -> LRM: ...
@overload
def build(network: Literal["lim", "lim-xyz"], model_config: ModelConfig | MotionConfig) -> LIM: ...
@overload
def build(network: Literal["motion"], model_config: ModelConfig | MotionConfig) -> Motion: ...
@overload
def build(network: str, model_config: ModelConfig | MotionConfig) -> Network: ...
def build(network: str, model_config: ModelConfig | MotionConfig) -> Network:
    """The network of that name, freshly initialised."""
    if network == MOTION:
        assert isinstance(model_config, MotionConfig)
        return Motion(model_config)
    assert isinstance(model_config, ModelConfig)
    canonical = network.endswith("-xyz")
    return LRM(model_config, canonical) if network.startswith("lrm") else LIM(model_config, canonical)


def write_json(path: Path, data: dict) -> None:
    files.write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def save(folder: str | Path, network: str, model: Network, training: dict) -> None:
    """Write the checkpoint, its golden pair and training.json; a model card beside them is left alone."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files.clear_leftovers(folder)
    weights = {
        name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in model.state_dict().items()
    }
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in weights.items():
        if size + tensor.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    names = [
        "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        for i in range(len(shards))
    ]
    for name, shard in zip(names, shards):
        _save_tensors(folder / name, shard)
    for old in folder.glob("model*.safetensors"):
        if old.name not in names:
            old.unlink()
    files.write_text(folder / "config.json", config.to_json(model.config, network) + "\n")
    write_json(folder / "training.json", training)
    rounded = build(network, model.config)
    rounded.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    inputs = golden_points(model.config) if isinstance(model, Motion) else golden_input(model.config)
    answer = golden_answer(network, rounded, inputs)
    _save_tensors(folder / "golden.safetensors", {**{f"in.{k}": v for k, v in inputs.items()}, "out": answer})


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    with files.writing_path(path) as temporary:
        save_file(tensors, temporary)


@overload
def load(folder: str | Path, network: Literal["lrm", "lrm-xyz"], device: torch.device | str = "cpu") -> LRM: ...
@overload
def load(folder: str | Path, network: Literal["lim", "lim-xyz"], device: torch.device | str = "cpu") -> LIM: ...
@overload
def load(folder: str | Path, network: Literal["motion"], device: torch.device | str = "cpu") -> Motion: ...
@overload
def load(folder: str | Path, network: str, device: torch.device | str = "cpu") -> Network: ...
def load(folder: str | Path, network: str, device: torch.device | str = "cpu") -> Network:
    """The trained network, in eval mode.

    Raises:
        LimError: `weights_missing` or `weights_broken`, naming the folder or the file.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise LimError(
            "weights_missing",
            f"There are no weights for “{network}” in {folder}.",
            "Check the weights folder in the preferences.",
        )
    model_config, found = config.read(folder / "config.json")
    if found != network:
        raise LimError("weights_broken", f"{folder} holds weights of “{found}”, not of “{network}”.")
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise LimError("weights_missing", f"There are no weights for “{network}” in {folder}.")
    model = build(network, model_config)
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            state.update({name: tensor.float() for name, tensor in load_file(file).items()})
        except (SafetensorError, OSError, ValueError) as error:
            raise LimError("weights_broken", f"The weights file {file.name} in {folder} is damaged: {error}.") from None
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError:
        raise LimError("weights_broken", f"The weights in {folder} do not fit their own config.json.") from None
    if not all(torch.isfinite(tensor).all() for tensor in state.values()):
        raise LimError("weights_broken", f"The weights in {folder} contain values that are not numbers.")
    return model.to(device).eval()


def folders(weights: str | Path = "") -> dict[str, Path]:
    """Where each network's checkpoint lies: `<weights>/<network>`, for the bundled weights when empty; the motion network only where
    there is one."""
    root = Path(weights) if weights else BUNDLED
    motion = [MOTION] if (root / MOTION).is_dir() else []  # no job needs it
    return {network: root / network for network in (*config.NETWORKS, *motion)}


# ---- the golden pair -------------------------------------------------------------------------------------------


def golden_input(model_config: ModelConfig) -> dict[str, Tensor]:
    """A little synthetic scene: a coloured ball seen by the rig. Small enough to store, seeded by nothing."""
    size = model_config.image_size
    camera, intrinsics = cameras.job_cameras(size, 4)
    origins, directions = cameras.rays(camera, intrinsics, size)
    origins, directions = torch.tensor(origins), torch.tensor(directions)
    a, b = (directions**2).sum(-1), (origins * directions).sum(-1)
    inside = b**2 - a * ((origins**2).sum(-1) - 0.36)
    position = origins + ((-b - inside.clamp_min(0).sqrt()) / a)[..., None] * directions
    alpha = (inside > 0).float()
    return {"position": (position * alpha[..., None])[None], "alpha": alpha[None]}


def golden_views(inputs: dict[str, Tensor], canonical: bool, device) -> Views:
    position, alpha = inputs["position"].to(device).float(), inputs["alpha"].to(device).float()
    size = alpha.shape[-1]
    camera, intrinsics = (torch.tensor(x, device=device)[None] for x in cameras.job_cameras(size, 4))
    content = position if canonical else position * 0.5 + 0.5
    content = content * alpha[..., None] + (0 if canonical else 1) * (1 - alpha[..., None])
    return Views(content, alpha, position, alpha, camera, intrinsics)


def golden_points(model_config: MotionConfig) -> dict[str, Tensor]:
    """A coloured ellipsoid and the same, bent: places and normals [2, M, 3], colours [M, 3]."""
    count = 2 * model_config.controls
    steps = torch.arange(count) + 0.5
    height, angle = 1 - 2 * steps / count, steps * 2.399963  # a golden-angle spiral: even all over, and no seed
    ball = torch.stack([(1 - height**2).sqrt() * angle.cos(), (1 - height**2).sqrt() * angle.sin(), height], 1)
    axes = torch.tensor([0.5, 0.3, 0.8])
    place, normal = ball * axes, torch.nn.functional.normalize(ball / axes, dim=1)
    bent = place + torch.stack([0.3 * place[:, 2] ** 2, 0.1 * place[:, 2], torch.zeros(count)], 1)
    return {
        "place": torch.stack([place, bent]), "normal": torch.stack([normal, normal]), "colour": ball * 0.5 + 0.5,
    }  # fmt: skip


@torch.no_grad()
def golden_motion(model: Motion, inputs: dict[str, Tensor]) -> Tensor:
    """Places at the other time and at a third of the way, turns and scatter of the controls."""
    device = next(model.parameters()).device
    place, normal, colour = (inputs[name].to(device).float() for name in ("place", "normal", "colour"))
    controls = torch.arange(0, len(colour), 2, device=device)[None]
    clouds = [Cloud(place[i][None], normal[i][None], colour[None], controls) for i in range(2)]
    field, _ = model(*clouds)
    on_way = model.at(field, torch.full((1,), 1 / 3, device=device))[0]
    parts = (field.place - field.start, on_way - field.start, field.turn, field.scatter.log())
    return torch.cat([part.flatten() for part in parts]).float().cpu().contiguous()


@torch.no_grad()
def golden_answer(network: str, model: Network, inputs: dict[str, Tensor]) -> Tensor:
    """Of the motion network: `golden_motion`. Else every 7th value of the network's triplane for the golden input; for a reconstructor also what its decoder reads there."""
    device = next(model.parameters()).device
    if isinstance(model, Motion):
        return golden_motion(model, inputs)
    canonical = network.endswith("-xyz")
    if isinstance(model, LRM):
        triplane = model(golden_views(inputs, canonical, device))[0]
        steps = torch.linspace(-0.75, 0.75, 7, device=device)
        points = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), -1).view(1, -1, 3)
        density, content = model.decoder(triplane, points)
        decoded = [density.log1p().flatten(), content.flatten()]
    else:
        views = golden_views(inputs, False, device)
        condition = model.condition(views, views) if canonical else model.condition(views)
        tokens = condition[0][:, : 3 * model.config.plane_tokens**2].mean(1, keepdim=True)
        stream = tokens.expand(-1, 3 * model.config.plane_tokens**2, -1)
        features = Features(stream, [stream] * model.config.lim_blocks, condition[1])
        triplane = model(features, condition, torch.tensor([0.5], device=device))[0]
        decoded = []
    return torch.cat([triplane.flatten()[::7], *decoded]).float().cpu().contiguous()


def replay_golden(folder: str | Path, network: str, model: Network) -> float:
    """Largest difference between the stored answer and the one given now, relative to the answer's spread."""
    try:
        stored = load_file(Path(folder) / "golden.safetensors")
        inputs = {name[3:]: tensor for name, tensor in stored.items() if name.startswith("in.")}
        answer = golden_answer(network, model, inputs)
        if answer.shape != stored["out"].shape:
            raise ValueError("it has another size")
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise LimError("weights_broken", f"The golden pair in {folder} is missing or damaged: {error}.") from None
    return float((answer - stored["out"]).abs().max() / stored["out"].std().clamp_min(1e-9))


def weights_key(folder: Path, network: str) -> str:
    """Identity of a checkpoint, by content of its small files and the size of its large ones."""
    if not (folder / "config.json").is_file():
        raise LimError(
            "weights_missing",
            f"There are no weights for “{network}” in {folder}.",
            "Check the weights folder in the preferences, or empty it to use the bundled weights.",
        )
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix in (".json", ".safetensors"):
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
