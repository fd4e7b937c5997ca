# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core train multiview`: the embedded multi-view diffusion, on the rendered sequences of the other networks.

The run folder is that of the other networks (state.py); its `checkpoint/` is a diffusers pipeline in half precision.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from ..data.cache import RIG_VIEWS, STEPS, Cache
from ..networks import checkpoint, device
from ..networks.images import pixel_rays, plucker
from ..shared import cameras
from ..shared.errors import LimError
from ..video.multiview import TIMES, MultiviewPipeline, scheduler, settle
from ..video.network import MultiviewNetwork
from ..video.splat import exchange, prior
from .logs import Log
from .state import STATE, Counters, claim, record, restore, save

LOG_SECONDS = 20.0
SECOND_LOOK = 0.3  # share of batches that are shown what they made of it at first; each costs a third more


@dataclasses.dataclass(frozen=True)
class MultiviewConfig:
    """Sizes of `MultiviewNetwork`."""

    size: int = 64
    """Pixels along each side of a view; the cache's, or a whole part of it."""
    widths: tuple[int, ...] = (48, 96, 192)
    """Channels at a half, a quarter and an eighth of the size."""
    heads: int = 6


PRESETS = {
    "nano": MultiviewConfig(),
    "small": MultiviewConfig(128, (96, 192, 320, 320), 8),
    "base": MultiviewConfig(256, (128, 256, 512, 768, 768), 12),
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="lim_core train multiview", description=__doc__.splitlines()[0])
    p.add_argument("network", choices=("multiview",))
    p.add_argument("--cache", required=True, help="folder of rendered sequences (python -m lim_core cache)")
    p.add_argument("--out", required=True, help="run folder; a run that was interrupted goes on from there")
    p.add_argument("--preset", default="nano", choices=PRESETS)
    p.add_argument("--size", type=int, default=0, help="pixels along each side of a view, instead of the preset's")
    p.add_argument("--minutes", type=float, default=10.0, help="stop after this long in all, over every resumption")
    p.add_argument("--steps", type=int, default=0, help="stop after so many steps instead")
    p.add_argument("--batch", type=int, default=4, help="clips in a batch")
    p.add_argument("--frames", type=int, default=2, help="frames of a clip in a batch")
    p.add_argument("--start", default="", help="pipeline folder to start the weights from")
    p.add_argument("--single", type=float, default=0.7, help="share of batches of single frames instead of clips")
    p.add_argument("--pure-noise", type=float, default=0.8, help="share of clips shown as pure noise")
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--warmup", type=int, default=100)
    p.add_argument("--save-minutes", type=float, default=3.0)
    p.add_argument("--held-out", type=int, default=32, help="sequences kept for watching, never trained on")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="auto")
    p.add_argument("--threads", type=int, default=0)
    return p


# ---- batches -----------------------------------------------------------------------------------------------------------


def pictures(sequence: dict, step: int, views: list[int], size: int) -> np.ndarray:
    """Colour on white, alpha, depth beyond the origin's, and whether the depth is known: float32 [V, 6, S, S]."""
    rgba = sequence["rgba"][step][views]
    if "depth" in sequence:  # half of the time of a batch against the maps
        depth = sequence["depth"][step][views]
        known = (depth < 2).astype(np.float32)
    else:
        points = np.asarray(sequence["maps"][step])[views][..., :3].astype(np.float32)
        camera = sequence["camera_to_world"][step][views]
        known = (np.abs(points).sum(-1) > 0).astype(np.float32)
        depth = np.einsum("vhwi,vi->vhw", points - camera[:, None, None, :3, 3], camera[:, :3, 2])
        depth = depth - np.linalg.norm(camera[:, :3, 3], axis=-1)[:, None, None]
    factor = rgba.shape[1] // size
    stack = np.empty((*rgba.shape[:3], 6), np.float32)
    stack[..., 3] = rgba[..., 3] * np.float32(1 / 255)
    stack[..., :3] = rgba[..., :3] * (stack[..., 3:4] * np.float32(1 / 255))
    stack[..., 4], stack[..., 5] = depth * known, known
    # Slices added up: numpy's mean over two axes of so few entries takes five times as long.
    parts = [stack[:, i::factor, j::factor] for i in range(factor) for j in range(factor)]
    small = np.asarray(sum(parts)) / np.float32(factor * factor)
    small[..., 4] /= np.maximum(small[..., 5], 1e-6)
    small[..., 5] = (small[..., 5] > 0) & (small[..., 3] > 0.5)
    small[..., 4] *= small[..., 5]
    small[..., :3] += 1 - small[..., 3:4]
    return small.transpose(0, 3, 1, 2)


def azimuth(camera_to_world: np.ndarray) -> float:
    """In radians, as cameras.look_at counts it."""
    return math.atan2(camera_to_world[0, 3], -camera_to_world[1, 3])


def facing(camera_to_world: np.ndarray) -> np.ndarray:
    """Cameras [V, 4, 4] in a world turned about its vertical so that the first stands at azimuth 0."""
    angle = azimuth(camera_to_world[0])
    turn = np.eye(4, dtype=np.float32)
    turn[:2, :2] = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    return turn @ camera_to_world


def draw(
    cache: Cache, batch: int, frames: int, size: int, single: float, rng: np.random.Generator
) -> dict[str, Tensor]:
    """A random batch: `pictures` [B, T, V, 6, S, S], `camera` [B, V, 4, 4], `lens` [B, V, 3, 3].

    Clips of `frames` steps seen by the rig, any of whose views may be the first; or, with probability `single`, so many more
    sequences of one step each, half of them with one of the sequence's random cameras as the first view: frames of one clip
    teach little more than one of them. The world is turned so that the first view stands at azimuth 0.
    """
    rows, camera, lens = [], [], []
    alone = rng.random() < single
    for _ in range(batch * frames if alone else batch):
        sequence = cache.sequence(int(rng.integers(len(cache.index))))
        steps = rng.permutation(STEPS)[: 1 if alone else frames]
        wild = alone and rng.random() < 0.5
        matrix, k = sequence["camera_to_world"][steps[0]], sequence["intrinsics"][steps[0]]
        first = int(rng.integers(RIG_VIEWS, len(matrix)) if wild else rng.integers(RIG_VIEWS))
        start = round((azimuth(matrix[first]) - azimuth(matrix[0])) / (math.pi / 2)) if wild else first
        views = [first, *((start + i) % RIG_VIEWS for i in range(1, RIG_VIEWS))]
        camera.append(facing(matrix[views]))
        lens.append(cameras.scale_intrinsics(k[views], size / sequence["rgba"].shape[2]))
        rows.append(np.stack([pictures(sequence, int(step), views, size) for step in steps]))
    arrays = {"pictures": rows, "camera": camera, "lens": lens}
    return {name: torch.from_numpy(np.stack(value).astype(np.float32)) for name, value in arrays.items()}


# ---- loss --------------------------------------------------------------------------------------------------------------


def loss_of(
    network: MultiviewNetwork, noise_schedule, batch: dict[str, Tensor], pure_noise: float
) -> tuple[Tensor, dict]:
    """Squared error of colour and alpha, absolute error of depth on the object; some batches have seen themselves."""
    known = batch["pictures"][:, :, :, 5:]
    truth = torch.cat([batch["pictures"][:, :, :, :4] * 2 - 1, batch["pictures"][:, :, :, 4:5]], 3)
    camera, lens, given = batch["camera"], batch["lens"], truth[:, :, 0, :4]
    size = truth.shape[-1]
    rays = plucker(*pixel_rays(camera, lens, size)).permute(0, 1, 4, 2, 3)
    count = len(truth)
    times = torch.randint(TIMES, (count,), device=truth.device)
    times = torch.where(torch.rand(count, device=truth.device) < pure_noise, TIMES - 1, times)
    noise = torch.randn_like(truth[:, :1]).expand_as(truth)
    noisy = noise_schedule.add_noise(truth, noise, times)
    level = times.float() / (TIMES - 1)
    hint = prior(given, camera, lens)
    seen = torch.zeros_like(hint)
    if torch.rand(()) < SECOND_LOOK:
        with torch.no_grad():
            seen = exchange(settle(network(noisy, level, rays, given, hint, seen), given), camera, lens)
    guess = network(noisy, level, rays, given, hint, seen)
    solid = (truth[:, :, :, 3:4] + 1) / 2
    others = slice(1, None)
    colour = ((guess - truth)[:, :, others, :3] ** 2 * (1 + 2 * solid[:, :, others])).mean()
    alpha = F.mse_loss(guess[:, :, others, 3], truth[:, :, others, 3])
    depth = ((guess - truth)[:, :, :, 4:].abs() * known).sum() / known.sum().clamp_min(1)
    source_depth = ((guess - truth)[:, :, :1, 4:].abs() * known[:, :, :1]).sum() / known[:, :, :1].sum().clamp_min(1)
    total = colour + alpha + 2 * depth
    return total, {"colour": colour, "alpha": alpha, "depth": depth, "source_depth": source_depth}


# ---- what it begins from -----------------------------------------------------------------------------------------------


def begin_from(network: MultiviewNetwork, folder: str) -> None:
    """Load the weights of a pipeline's folder into a network of the same sizes, but for the size of its pictures.

    Raises:
        LimError: no such pipeline there, a damaged one, or one of other sizes (which the message names).
    """
    if not (Path(folder) / "network" / "config.json").is_file():
        raise LimError("weights_missing", f"There is no pipeline in “{folder}” to start from.", "Check --start.")
    try:
        found = MultiviewNetwork.from_pretrained(Path(folder) / "network", local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise LimError("weights_broken", f"The pipeline in “{folder}” cannot be read: {error}.") from None
    pairs = [(n, getattr(found.config, n), getattr(network.config, n)) for n in ("widths", "heads", "views")]
    other = ", ".join(f"{n} {a} instead of {b}" for n, a, b in pairs if json.dumps(a) != json.dumps(b))
    if other:
        raise LimError("weights_broken", f"The pipeline in “{folder}” has {other}.", "Use its preset.")
    weights = found.float().state_dict()
    views, cells, width = weights["place"].shape  # the only one that knows the size
    square = weights["place"].transpose(1, 2).unflatten(-1, (math.isqrt(cells),) * 2)
    wanted = math.isqrt(network.place.shape[1])
    square = F.interpolate(square, size=(wanted, wanted), mode="bilinear", antialias=True)
    network.load_state_dict(weights | {"place": square.flatten(2).transpose(1, 2)})


# ---- the loop ----------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    out, config = Path(args.out), PRESETS[args.preset]
    config = dataclasses.replace(config, size=args.size or config.size)
    if args.threads:
        torch.set_num_threads(args.threads)
    where = device.pick(args.device)
    cache, watched = Cache(args.cache), Cache(args.cache)
    if len(cache.index) <= args.held_out:
        raise LimError(
            "missing_file", f"The cache {args.cache} holds {len(cache.index)} sequences: too few to train on."
        )
    watched.index = claim(out, "multiview", config, args.batch, vars(args), cache.index[: args.held_out])
    torch.manual_seed(args.seed)
    network = MultiviewNetwork(**dataclasses.asdict(config)).to(where, memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.01)
    schedule, counters, log = scheduler(), Counters(), Log(out, True)
    if args.start and not (out / STATE).exists():
        begin_from(network, args.start)
    average = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    if (out / STATE).exists():
        counters, _ = restore(out, network, average, optimiser)
        log.forget_after(counters.step)
        print(f"resumed at step {counters.step}, {counters.elapsed / 60:.1f} min", flush=True)

    def keep() -> None:
        save(out, counters, network, average, optimiser, None)
        averaged = MultiviewNetwork(**dataclasses.asdict(config))
        averaged.load_state_dict({k: v.cpu() for k, v in average.items()})
        MultiviewPipeline(averaged.half(), schedule).save_pretrained(out / "checkpoint", max_shard_size="15MB")
        checkpoint.write_json(out / "checkpoint" / "training.json", record(out, vars(args), counters))
        watch(out, watched, config.size, counters.step, where, log)

    started, saved, logged = time.monotonic() - counters.elapsed, time.monotonic(), time.monotonic()
    sums: dict[str, float] = {}
    window = 0

    def share_done() -> float:
        return counters.step / args.steps if args.steps else (time.monotonic() - started) / (args.minutes * 60)

    while (share := share_done()) < 1:
        rate = args.lr * min(1, (counters.step + 1) / args.warmup)
        rate *= 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimiser.param_groups:
            group["lr"] = rate
        torch.manual_seed(args.seed * 1_000_003 + counters.step)
        rng = np.random.default_rng([args.seed, counters.step])
        cache.refresh()
        cache.index = [entry for entry in cache.index if entry not in set(watched.index)]
        batch = {k: v.to(where) for k, v in draw(cache, args.batch, args.frames, config.size, args.single, rng).items()}
        with torch.autocast(where.type, torch.bfloat16, enabled=where.type == "cuda"):
            loss, parts = loss_of(network, schedule, batch, args.pure_noise)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        if torch.isfinite(norm):
            optimiser.step()
        counters = Counters(counters.step + 1, time.monotonic() - started, counters.samples + args.batch * args.frames)
        share_kept = min(0.998, (1 + counters.step) / (20 + counters.step))
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                average[name].lerp_(tensor, 1 - share_kept)
        for name, value in {"loss": loss, **parts}.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        window += 1
        if time.monotonic() - logged > LOG_SECONDS:
            speed = window * args.batch * args.frames / (time.monotonic() - logged)
            row = {"step": counters.step, "minutes": counters.elapsed / 60, "rate": rate, "frames_per_second": speed}
            log.row("log", row | {name: value / window for name, value in sums.items()})
            sums, window, logged = {}, 0, time.monotonic()
        if time.monotonic() - saved > args.save_minutes * 60:
            keep()
            saved = time.monotonic()
    keep()
    log.close()
    return 0


@torch.no_grad()
def watch(out: Path, watched: Cache, size: int, step: int, where, log: Log) -> None:
    """Numbers and a picture of held-out sequences: what the saved pipeline makes of two frames of each."""
    pipeline = MultiviewPipeline.from_pretrained(out / "checkpoint").to(where, torch.float32)
    psnr, iou, depth, source_depth, rows = [], [], [], [], []
    for i in range(len(watched.index)):
        sequence = watched.sequence(i)
        full = sequence["rgba"].shape[2]
        matrix = torch.from_numpy(facing(sequence["camera_to_world"][0][:RIG_VIEWS]))
        k = torch.from_numpy(cameras.scale_intrinsics(sequence["intrinsics"][0][:RIG_VIEWS], size / full))
        truth = np.stack([pictures(sequence, s, list(range(RIG_VIEWS)), size) for s in (0, STEPS - 1)])
        made = pipeline(torch.from_numpy(truth[:, 0, :4]), matrix, k).numpy()
        psnr.append(-10 * math.log10(((made - truth[:, :, :5])[:, 1:, :3] ** 2).mean() + 1e-10))
        one, two = made[:, 1:, 3] > 0.5, truth[:, 1:, 3] > 0.5
        iou.append((one & two).sum() / max((one | two).sum(), 1))
        both = (made[:, :, 3] > 0.5) & (truth[:, :, 5] > 0.5)
        error = np.abs(made[:, :, 4] - truth[:, :, 4])
        depth.append(error[:, 1:][both[:, 1:]].mean() if both[:, 1:].any() else np.nan)
        source_depth.append(error[:, 0][both[:, 0]].mean() if both[:, 0].any() else np.nan)
        if i % 4 == 0:
            grid = [[row[v] for v in range(RIG_VIEWS)] for row in (truth[0], made[0], made[1])]
            rows.append(np.concatenate([np.concatenate([_shown(p) for p in line], 1) for line in grid], 1))
    row = {
        "step": step, "psnr": np.mean(psnr), "iou": np.mean(iou), "depth_error": np.nanmean(depth),
        "source_depth_error": np.nanmean(source_depth),
    }  # fmt: skip
    log.row("watch", row)
    log.picture(step, np.concatenate(rows))


def _shown(picture: np.ndarray) -> np.ndarray:
    """Colour above depth, uint8 [2S, S, 3]."""
    depth = np.repeat(np.where(picture[3] > 0.5, 0.5 - picture[4] / 2, 1)[None], 3, 0)
    both = np.concatenate([picture[:3], depth], 1).transpose(1, 2, 0)
    return (both.clip(0, 1) * 255).astype(np.uint8)
