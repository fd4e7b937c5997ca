# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core train NETWORK`: one visible loop for the four networks.

The run folder holds state.safetensors + state.json (everything to go on from), log.csv, samples/*.png and, at the end and at
every save, `checkpoint/`: the averaged weights in the form that the rest of the project loads.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from .. import checkpoint, config, device
from ..data.cache import RIG_VIEWS, STEPS, Cache
from ..errors import LimError
from ..render import render_image
from .batches import Prefetch, canonical_views, draw, rig_views
from .losses import (
    LossWeights,
    channel_scale,
    interpolation_diagnosis,
    interpolation_loss,
    reconstruction_loss,
)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="lim_core train", description=__doc__.splitlines()[0])
    p.add_argument("network", choices=config.NETWORKS)
    p.add_argument("--cache", required=True, help="folder of rendered sequences (python -m lim_core cache)")
    p.add_argument("--out", required=True, help="run folder; a run that was interrupted goes on from there")
    p.add_argument("--preset", default="nano", choices=config.PRESETS)
    p.add_argument("--minutes", type=float, default=10.0, help="stop after this long in all, over every resumption")
    p.add_argument(
        "--steps", type=int, default=0, help="stop after so many steps instead; the curve is then repeatable"
    )
    p.add_argument("--start", default="", help="checkpoint folder to start the weights from (an LRM for lrm-xyz)")
    p.add_argument("--lrm", default="", help="lim: frozen LRM; lim-xyz: frozen LRM of the canonical twin")
    p.add_argument("--lrm-rgb", default="", help="lim-xyz: RGB LRM or LIM folder whose picture encoder it starts from")
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--rays", type=int, default=384, help="target rays per scene")
    p.add_argument("--lr", type=float, default=1.2e-3)
    p.add_argument("--warmup", type=int, default=100)
    p.add_argument("--drop-depth", type=float, default=0.15, help="share of scenes whose depth evidence is hidden")
    p.add_argument("--causal", type=float, default=1.0)
    p.add_argument("--render", type=float, default=1.0)
    p.add_argument("--causal-from", type=float, default=0.5, help="share of the time after which L_causal is added")
    p.add_argument("--save-minutes", type=float, default=3.0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="auto")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument(
        "--held-out", type=int, default=32, help="sequences of the cache kept for watching, never trained on"
    )
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "samples").mkdir(exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    where = device.pick(args.device)
    torch.manual_seed(args.seed)
    canonical, interpolates = args.network.endswith("-xyz"), args.network.startswith("lim")

    cache = Cache(args.cache)
    if len(cache.index) <= args.held_out:
        raise LimError(
            "missing_file", f"The cache {args.cache} holds {len(cache.index)} sequences: too few to train on."
        )
    held_out = cache.index[: args.held_out]
    if (out / "state.json").exists():  # a resumed run goes on watching what it watched
        held_out = [tuple(entry) for entry in json.loads((out / "state.json").read_text())["held_out"]]

    def refresh() -> None:
        cache.refresh()
        cache.index = [entry for entry in cache.index if entry not in set(held_out)]

    refresh()
    watched = Cache(args.cache)
    watched.index = held_out

    # ---- the networks
    frozen = None
    if interpolates:
        frozen = checkpoint.load(args.lrm, "lrm-xyz" if canonical else "lrm", where)
        frozen.requires_grad_(False)
        model = checkpoint.build(args.network, frozen.config)
        model.initialise_from(frozen, checkpoint.load(args.lrm_rgb, "lrm") if args.lrm_rgb else None)
    else:
        model = checkpoint.build(args.network, config.PRESETS[args.preset]())
    if args.start:
        state = checkpoint.load(
            args.start, json.loads((Path(args.start) / "config.json").read_text())["network"]
        ).state_dict()
        model.load_state_dict(state)
    model.to(where).train()
    average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.02}, {"params": rest, "weight_decay": 0.0}], lr=args.lr, betas=(0.9, 0.95)
    )
    weights = LossWeights(causal=args.causal, render=args.render)
    step, elapsed, samples = 0, 0.0, 0
    if (out / "state.json").exists():
        step, elapsed, samples = restore(out, args, model, average, optimiser)
        print(f"resumed at step {step}, {elapsed / 60:.1f} min", flush=True)

    make = lambda rng: draw(cache, args.batch, args.rays, rng, interpolation=interpolates)  # noqa: E731
    source = Prefetch(make, args.seed, step)
    scale = None
    if interpolates:
        first = [make(np.random.default_rng([args.seed, 1 << 40, i])).to(where) for i in range(4)]
        scale = channel_scale(frozen, [_frozen_views(batch, canonical) for batch in first])

    # ---- the loop
    log = out / "log.csv"
    started, saved, logged = time.monotonic() - elapsed, time.monotonic(), time.monotonic()
    sums: dict[str, float] = {}
    window = 0
    while True:
        elapsed = time.monotonic() - started
        share = step / args.steps if args.steps else elapsed / (args.minutes * 60)
        if share >= 1:
            break
        torch.manual_seed(args.seed * 1_000_003 + step)  # of the rays' jitter and the hidden depths
        rate = args.lr * min(1, (step + 1) / args.warmup) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        batch = source.next().to(where)
        with torch.autocast(where.type, torch.bfloat16, enabled=where.type == "cuda"):
            if interpolates:
                now = weights if share >= args.causal_from else LossWeights(causal=0.0, render=args.render)
                loss, parts = interpolation_loss(model, frozen, batch, scale, now, samples=model.config.ray_samples)
            else:
                loss, parts = reconstruction_loss(
                    model, batch, weights, canonical=canonical, drop_depth=args.drop_depth
                )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if torch.isfinite(norm):
            optimiser.step()
        step += 1
        samples += args.batch
        keep = min(0.998, (1 + step) / (20 + step))
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                average[name].lerp_(tensor, 1 - keep)
        for name, value in {"loss": loss, "norm": norm, **parts}.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        window += 1
        if time.monotonic() - logged > 20:
            row = {
                "step": step,
                "minutes": elapsed / 60,
                "samples": samples,
                "rate": rate,
                "sequences": len(cache.index),
            }
            row |= {name: value / window for name, value in sums.items()}
            row["samples_per_second"] = window * args.batch / (time.monotonic() - logged)
            write_row(log, row)
            print(" ".join(f"{k}={v:.4g}" for k, v in row.items()), flush=True)
            sums, window, logged = {}, 0, time.monotonic()
            refresh()
        if time.monotonic() - saved > args.save_minutes * 60:
            save(out, args, held_out, model, average, optimiser, step, elapsed, samples)
            watch(out, args, model, average, frozen, watched, scale, step, where)
            saved = time.monotonic()
    source.stop()
    save(out, args, held_out, model, average, optimiser, step, elapsed, samples)
    watch(out, args, model, average, frozen, watched, scale, step, where)
    return 0


def _frozen_views(batch, canonical: bool):
    return batch.views_middle.with_content(batch.canonical_middle) if canonical else batch.views_middle


def write_row(path: Path, row: dict) -> None:
    """Append a row to a CSV whose columns may grow (a loss that starts late)."""
    rows = []
    if path.exists():
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    if rows and set(row) <= set(rows[0]):
        with path.open("a", newline="") as file:
            csv.DictWriter(file, rows[0]).writerow(row)
        return
    columns = list(dict.fromkeys([*(rows[0] if rows else ()), *row]))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows([*rows, row])


# ---- state ----------------------------------------------------------------------------------------------------


def save(out: Path, args, held_out, model, average, optimiser, step: int, elapsed: float, samples: int) -> None:
    """The state to resume from, then the checkpoint of the averaged weights."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | {f"average.{k}": v for k, v in average.items()}
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for i, parameter in enumerate(parameters):
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser.{i}.{key}"] = torch.as_tensor(value).reshape(-1) if key == "step" else value
    temporary = out / "state.safetensors.tmp"
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary)
        os.replace(temporary, out / "state.safetensors")
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise LimError("disk_full", f"The training state could not be written to {out}: {error}.") from None
    counts = {"step": step, "elapsed": elapsed, "samples": samples}
    checkpoint.write_json(out / "state.json", {**counts, "arguments": vars(args), "held_out": held_out})
    averaged = checkpoint.build(args.network, model.config)
    averaged.load_state_dict({k: v.cpu() for k, v in average.items()})
    checkpoint.save(out / "checkpoint", args.network, averaged.eval(), record(out, args, counts))


def record(out: Path, args, counts: dict) -> dict:
    """training.json: what was run and how far it came."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git here
        commit = ""
    kept = {k: v for k, v in vars(args).items() if k not in ("out", "cache", "start", "lrm", "lrm_rgb")}
    rows = list(csv.DictReader((out / "log.csv").open())) if (out / "log.csv").exists() else []
    last = {k: float(v) for k, v in rows[-1].items() if v} if rows else {}
    return {
        "commit": commit,
        "arguments": kept,
        **counts,
        "last_log_row": last,
        "torch": torch.__version__,
    }


def restore(out: Path, args, model, average, optimiser) -> tuple[int, float, int]:
    """Put everything back as it was.

    Raises:
        LimError: the folder holds a run of another network or size.
    """
    meta = json.loads((out / "state.json").read_text())
    for name in ("network", "preset", "batch"):
        if meta["arguments"][name] != getattr(args, name):
            raise LimError(
                "bad_request", f"{out} holds a run with {name} {meta['arguments'][name]}, not {getattr(args, name)}.",
                "Choose another --out folder, or the same settings.",
            )  # fmt: skip
    tensors = load_file(out / "state.safetensors")
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    for name in average:
        average[name].copy_(tensors[f"average.{name}"])
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for i, parameter in enumerate(parameters):
        state = {k.split(".")[2]: v for k, v in tensors.items() if k.startswith(f"optimiser.{i}.")}
        if state:
            state["step"] = state["step"].reshape(())
            optimiser.state[parameter] = {k: v.to(parameter.device) if k != "step" else v for k, v in state.items()}
    return meta["step"], meta["elapsed"], meta["samples"]


# ---- watching -------------------------------------------------------------------------------------------------


@torch.no_grad()
def watch(out: Path, args, model, average, frozen, watched: Cache, scale, step: int, where) -> None:
    """Numbers and a picture of held-out sequences, with the averaged weights."""
    live = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(average)
    model.eval()
    canonical, interpolates = args.network.endswith("-xyz"), args.network.startswith("lim")
    psnr, psnr_fg, iou, pictures = [], [], [], []
    decoder = frozen.decoder if interpolates else model.decoder
    for i in range(len(watched.index)):
        sequence = watched.sequence(i)
        middle = STEPS // 2
        views = {s: _one(rig_views(sequence, s)).to(where) for s in (0, middle, STEPS - 1)}
        if canonical:
            coloured = {s: views[s].with_content(canonical_views(sequence, s, False)[None].to(where)) for s in views}
        else:
            coloured = views
        if interpolates:
            _, features = frozen(coloured[0])
            condition = model.condition(views[STEPS - 1], views[0] if canonical else None)
            triplane, _ = model(features, condition, torch.tensor([0.5], device=where))
        else:
            triplane, _ = model(coloured[middle])
        view = RIG_VIEWS + i % (sequence["rgba"].shape[1] - RIG_VIEWS)
        matrix, intrinsics = (
            torch.from_numpy(np.array(sequence[k][middle, view])).to(where) for k in ("camera_to_world", "intrinsics")
        )
        size = sequence["rgba"].shape[2]
        image, _, mask = render_image(
            decoder, triplane, matrix, intrinsics, size, samples=64, background=0.0 if canonical else 1.0
        )
        rgba = torch.from_numpy(np.array(sequence["rgba"][middle, view])).to(where).float() / 255
        truth = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
        if canonical:
            truth = torch.from_numpy(np.array(sequence["maps"][middle, view, ..., 3:6])).to(where).float()
            image, truth = image * 0.5 + 0.5, truth * 0.5 + 0.5
        solid = rgba[..., 3] > 0.5
        error = (image.clamp(0, 1) - truth) ** 2
        psnr.append(-10 * math.log10(float(error.mean()) + 1e-10))
        psnr_fg.append(-10 * math.log10(float(error[solid].mean()) + 1e-10) if solid.any() else float("nan"))
        hit = mask > 0.5
        iou.append(float((hit & solid).sum() / (hit | solid).sum().clamp_min(1)))
        pictures.append(torch.cat([truth, image.clamp(0, 1)], 0))
    row = {"step": step, "psnr": np.mean(psnr), "psnr_fg": np.nanmean(psnr_fg), "iou": np.mean(iou)}
    if interpolates:
        rng = np.random.default_rng(1)
        batch = draw(watched, 16, 16, rng, interpolation=True).to(where)
        row |= interpolation_diagnosis(model, frozen, batch, scale)
    write_row(out / "watch.csv", row)
    print("watch " + " ".join(f"{k}={float(v):.4g}" for k, v in row.items()), flush=True)
    sheet = torch.cat([torch.cat(pictures[i : i + 8], 1) for i in range(0, len(pictures) // 8 * 8, 8)], 0)
    Image.fromarray((sheet.cpu().numpy() * 255).astype(np.uint8)).save(out / "samples" / f"{step:06d}.png")
    model.load_state_dict(live)
    model.train()


def _one(views):
    return type(views)(*(getattr(views, name)[None] for name in views.__dataclass_fields__))
