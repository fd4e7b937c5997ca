# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core train NETWORK`: one visible loop for the four networks.

Several processes: `torchrun --nproc-per-node N -m lim_core train NETWORK …`. What a run folder holds: state.py, logs.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..data.cache import Cache
from ..networks import checkpoint, config, device
from ..networks.perceptual import SMALLEST, Perceptual
from ..networks.perceptual import load as load_perceptual
from ..shared.errors import LimError
from . import speed, state
from .batches import Batch, Draws, Feed, checked, collect, open_cache, refresh
from .logs import Log
from .losses import LossWeights, channel_scale, interpolation_loss, reconstruction_loss
from .processes import Processes
from .renderers import sequences
from .watch import watch

LOG_SECONDS = 20.0


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="lim_core train", description=__doc__.splitlines()[0])
    p.add_argument("network", choices=config.NETWORKS)
    p.add_argument("--cache", required=True, help="folder of rendered sequences (python -m lim_core cache)")
    p.add_argument("--out", default="", help="run folder; a run that was interrupted goes on from there")
    p.add_argument("--preset", default="nano", choices=config.PRESETS)
    p.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
        help="change a size of the preset (lim_core/networks/config.py); for the interpolators only lim_blocks",
    )  # fmt: skip
    p.add_argument("--minutes", type=float, default=10.0, help="stop after this long in all, over every resumption")
    p.add_argument(
        "--steps", type=int, default=0, help="stop after so many steps instead; the curve is then repeatable"
    )
    p.add_argument(
        "--call-minutes", type=float, default=math.inf, help="save and return by then; the same command goes on"
    )
    p.add_argument("--start", default="", help="checkpoint folder to start the weights from (an LRM for lrm-xyz)")
    p.add_argument("--encoder", default="", help="lrm, lrm-xyz of a preset with DINOv2: folder of its weights")
    p.add_argument("--lrm", default="", help="lim: frozen LRM; lim-xyz: frozen LRM of the canonical twin")
    p.add_argument("--lrm-rgb", default="", help="lim-xyz: RGB LRM folder whose picture encoder it starts from")
    p.add_argument(
        "--start-lrm", default="", help="lim, lim-xyz: folder of the LRM that --start stood on; follows it to --lrm"
    )
    p.add_argument("--batch", type=int, default=8, help="scenes in a step, over all processes")
    p.add_argument("--rays", type=int, default=384, help="target rays per scene")
    p.add_argument("--lr", type=float, default=1.2e-3)
    p.add_argument("--warmup", type=int, default=100, help="steps; again after --start")
    p.add_argument("--drop-depth", type=float, default=0.15, help="lrm: share of scenes whose depth evidence is hidden")
    p.add_argument("--causal", type=float, default=1.0)
    p.add_argument("--render", type=float, default=1.0)
    p.add_argument("--causal-from", type=float, default=0.5, help="share of the time after which L_causal is added")
    p.add_argument(
        "--perceptual",
        default="",
        metavar="FILE",
        help="weights of a perceptual loss (lim_core/networks/perceptual.py)",
    )
    p.add_argument("--perceptual-weight", type=float, default=0.2)
    p.add_argument("--perceptual-patch", type=int, default=32, help="pixels along each side of the compared square")
    p.add_argument("--save-minutes", type=float, default=3.0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="auto")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--loaders", type=int, default=-1, help="processes that read the cache; -1: 6 for a GPU, else none")
    p.add_argument("--compile", action="store_true", help="torch.compile the transformer blocks")
    p.add_argument(
        "--held-out", type=int, default=32, help="sequences of the cache kept for watching, never trained on"
    )
    p.add_argument("--watch-cache", default="", help="watch the first --held-out sequences of this cache instead")
    p.add_argument("--benchmark", action="store_true", help="only measure where the time of a step goes")
    return p


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    if not (args.out or args.benchmark):
        p.error("--out is missing")
    if args.minutes <= 0 or args.batch < 1 or args.rays < 1 or args.warmup < 1:
        p.error("--minutes, --batch, --rays and --warmup must be more than 0")
    if args.threads:
        torch.set_num_threads(args.threads)
    processes = Processes(args.device)
    try:
        if args.benchmark:
            print(benchmark(args, processes), flush=True)
        else:
            train(args, processes)
    finally:
        processes.end()
    return 0


# ---- the networks -------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Networks:
    """What is trained, the frozen reconstructor below it (interpolators only), and what their losses need."""

    model: nn.Module
    frozen: nn.Module | None
    canonical: bool
    weights: LossWeights
    drop_depth: float
    perceptual: Perceptual | None
    scale: Tensor | None = None

    def loss(self, batch: Batch, *, causal: bool) -> tuple[Tensor, dict[str, Tensor]]:
        with device.autocast(batch.alpha.device):
            if self.frozen is None:
                return reconstruction_loss(
                    self.model, batch, self.weights, canonical=self.canonical, drop_depth=self.drop_depth,
                    perceptual=self.perceptual,
                )  # fmt: skip
            weights = self.weights if causal else dataclasses.replace(self.weights, causal=0.0)
            return interpolation_loss(
                self.model, self.frozen, batch, self.scale, weights, samples=self.model.config.ray_samples,
                perceptual=self.perceptual,
            )  # fmt: skip


def build(args, where: torch.device) -> Networks:
    canonical, interpolates = args.network.endswith("-xyz"), args.network.startswith("lim")
    frozen = None
    if interpolates:
        twin = "lrm-xyz" if canonical else "lrm"
        if not args.lrm:
            raise LimError(
                "weights_missing", f"“{args.network}” stands on a trained “{twin}”.", "Give its folder as --lrm."
            )
        frozen = checkpoint.load(args.lrm, twin, where)
        frozen.requires_grad_(False)
        if any(not text.startswith("lim_blocks=") for text in args.settings):
            message = "An interpolator has the sizes of its reconstructor; only lim_blocks can be set."
            raise LimError("bad_request", message)
        frozen = frozen.with_lim_blocks(config.changed(frozen.config, args.settings).lim_blocks)
        rgb = checkpoint.load(args.lrm_rgb, "lrm") if args.lrm_rgb else None
        if rgb is not None:
            rgb = rgb.with_lim_blocks(frozen.config.lim_blocks)
            state.same_size(args.lrm_rgb, rgb.config, frozen.config)
        model = checkpoint.build(args.network, frozen.config)
        model.initialise_from(frozen.cpu(), rgb)
    else:
        model = checkpoint.build(args.network, config.changed(config.PRESETS[args.preset](), args.settings))
    if args.encoder:
        if interpolates or model.encoder.dino is None:
            raise LimError("bad_request", "These networks have no DINOv2 to take --encoder.", "Leave it away.")
        model.encoder.dino.read(args.encoder)
    if args.start:
        state.begin_from(model, args.start)
    if args.start_lrm:
        if not (interpolates and args.start):
            raise LimError("bad_request", "--start-lrm says what an interpolator's --start stood on.", "Give both.")
        before = checkpoint.load(args.start_lrm, twin).with_lim_blocks(frozen.config.lim_blocks)
        state.same_size(args.start_lrm, before.config, frozen.config)
        state.follow(model, before, frozen.cpu(), rgb)
    size = model.config.image_size
    if args.perceptual and not SMALLEST <= args.perceptual_patch <= size:
        raise LimError("bad_request", f"--perceptual-patch must lie between {SMALLEST} and {size}, the views' size.")
    perceptual = load_perceptual(args.perceptual).to(where) if args.perceptual and not canonical else None
    weights = LossWeights(causal=args.causal, render=args.render, perceptual=args.perceptual_weight)
    drop_depth = 0.0 if canonical else args.drop_depth  # the twin reads canonical coordinates from their positions
    frozen = frozen.to(where) if frozen is not None else None
    return Networks(model.to(where).train(), frozen, canonical, weights, drop_depth, perceptual)


def make_optimiser(model: nn.Module, rate: float) -> torch.optim.AdamW:
    decay = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    rest = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.02}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)


def apply_gradients(optimiser: torch.optim.AdamW, model: nn.Module) -> Tensor:
    """Clip and apply the gradients unless one of them is not finite; their norm. Never waits for the device."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.found_inf = (~torch.isfinite(norm)).float()  # read by the fused step, on the device
    optimiser.step()
    return norm


# ---- the loop -----------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace, processes: Processes) -> bool:
    """Train until the time or the steps are over; False when the call's own time was over first.

    Raises:
        LimError: see `state`, `batches` and `checkpoint.load`.
    """
    called = time.monotonic()
    out, where = Path(args.out), processes.device
    device.tune(where)
    torch.manual_seed(args.seed)
    watched = watched_sequences(args)
    networks = build(args, where)
    model, interpolates = networks.model, networks.frozen is not None
    if processes.first:
        watched.index = state.claim(out, args.network, model.config, args.batch, vars(args), watched.index)
    watched.index = processes.agree(watched.index)
    check_views(watched, model.config.image_size)

    optimiser = make_optimiser(model, args.lr)
    average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    counters = state.Counters()
    log = Log(out, processes.first)
    if (out / state.STATE).exists():
        counters, networks.scale = state.restore(out, model, average, optimiser)
        log.forget_after(counters.step)
        if processes.first:
            print(f"resumed at step {counters.step}, {counters.elapsed / 60:.1f} min", flush=True)
    live, averaged = list(model.state_dict().values()), list(average.values())
    processes.same_start([*live, *averaged])

    left_out = () if args.watch_cache else watched.index
    patch = args.perceptual_patch if networks.perceptual else 0
    draws = Draws(args.cache, left_out, processes.share(args.batch), args.rays, args.seed, interpolates, patch)
    if interpolates and networks.scale is None:
        networks.scale = processes.agree(measure_scale(draws, networks, where))
    if interpolates:
        networks.scale = networks.scale.to(where)
    first = checked(dataclasses.replace(draws)[counters.step]).each(lambda x: x.to(where)).unpack()
    flops = {causal: count_step(networks, first, causal) for causal in ((False, True) if interpolates else (False,))}
    peak = speed.matmul_peak(where)
    if processes.first:
        print(
            f"{device.describe(where)} × {processes.count}: matrix products reach {peak / 1e12:.3g} TFLOP/s in "
            f"{device.training_dtype(where)}; a step takes {flops[False] / 1e9:.1f} GFLOP on each",
            flush=True,
        )
    if args.compile:
        speed.compile_blocks(model)
    feed = Feed(draws, where, counters.step, loaders(args, where))

    stop = on_terminate()
    started, saved, logged = time.monotonic() - counters.elapsed, time.monotonic(), time.monotonic()
    saving, watching = 0.0, 0.0  # seconds that they take; 0 until they are known
    sums: dict[str, tuple[Tensor, int]] = {}
    window, window_flops, waited = 0, 0, feed.waited
    while True:
        now = time.monotonic()
        counters.elapsed = now - started
        share = counters.step / args.steps if args.steps else counters.elapsed / (args.minutes * 60)
        rest = args.call_minutes * 60 - (now - called)
        may_watch = rest > saving + (watching or 10)
        done = share >= 1 or not args.steps and counters.elapsed + saving + watching >= args.minutes * 60
        called_off = stop.is_set() or rest <= (saving or 20) or done and not may_watch
        done = done and may_watch
        decisions = share, done, called_off, now - saved > args.save_minutes * 60, now - logged > LOG_SECONDS
        share, done, called_off, save_now, log_now = processes.agree(decisions)
        over = done or called_off

        if window and (log_now or save_now or over):
            row = means(sums, processes)  # waits for the device
            seconds = time.monotonic() - logged
            speeds = {
                "samples_per_second": window * args.batch / seconds,
                "tflops": window_flops / seconds / 1e12,
                "peak_share": window_flops / seconds / peak,
                "waiting": (feed.waited - waited) / seconds,
            }
            if where.type == "cuda":
                speeds["memory_gb"] = torch.cuda.max_memory_allocated(where) / 1e9
            progress = {"step": counters.step, "minutes": counters.elapsed / 60, "samples": counters.samples}
            log.row("log", {**progress, "rate": rate, "sequences": sequences(Path(args.cache)), **row, **speeds})
            sums, window, window_flops, waited, logged = {}, 0, 0, feed.waited, time.monotonic()
        if save_now or over:
            if processes.first:
                began = time.monotonic()
                state.save(out, counters, model, average, optimiser, networks.scale)
                training = {**state.record(out, vars(args), counters), "done": done}
                state.save_checkpoint(out / "checkpoint", args.network, model.config, average, training)
                saving = time.monotonic() - began
                if may_watch and (done or not called_off):
                    score_average(out, networks, average, watched, log, counters.step, called + args.call_minutes * 60)
                    watching = time.monotonic() - began - saving
            saved = logged = time.monotonic()
        if over:
            break

        causal = interpolates and args.causal > 0 and share >= args.causal_from
        rate = (
            args.lr * min(1, (counters.step + 1) / args.warmup) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * share)))
        )
        for group in optimiser.param_groups:
            group["lr"] = rate
        torch.manual_seed((args.seed * 1_000_003 + counters.step) * 4099 + processes.rank)  # jitter, hidden depths
        loss, parts = networks.loss(feed.next(), causal=causal)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        processes.average_gradients(model.parameters())
        norm = apply_gradients(optimiser, model)
        counters.step += 1
        counters.samples += args.batch
        with torch.no_grad():
            keep = min(0.998, (1 + counters.step) / (20 + counters.step))
            torch._foreach_lerp_(averaged, live, 1 - keep)
            for name, value in {"loss": loss, "norm": norm, "skipped": optimiser.found_inf, **parts}.items():
                total, count = sums.get(name, (0.0, 0))
                sums[name] = (total + value.detach(), count + 1)
        window, window_flops = window + 1, window_flops + flops[causal]
        feed.fetch()
    feed.close()
    log.close()
    return done


def watched_sequences(args: argparse.Namespace) -> Cache:
    """The sequences that are never trained on, as a cache of their own.

    Raises:
        LimError: the cache holds too little.
    """
    cache = open_cache(args.cache)
    count = len(cache.index)
    if count <= (0 if args.watch_cache else args.held_out):
        raise LimError(
            "missing_file",
            f"The cache {args.cache} holds {count} sequences: too few to train on.",
            "Render more first.",
        )
    watched = open_cache(args.watch_cache) if args.watch_cache else cache
    watched.index = watched.index[: args.held_out]
    if not watched.index:
        raise LimError("missing_file", f"There is nothing to watch in {args.watch_cache or '--held-out 0'}.")
    return watched


def check_views(watched: Cache, size: int) -> None:
    missing = [name for name, _ in watched.index if name not in watched.shards]
    if missing:
        raise LimError("missing_file", f"{watched.folder} no longer holds “{missing[0]}”, which this run watches.")
    found = watched.sequence(0)["rgba"].shape[-2]
    if found != size:
        raise LimError(
            "bad_request", f"The cache {watched.folder} holds views of {found} pixels, this network sees {size}.",
            f"Render it with --size {size}.",
        )  # fmt: skip


def measure_scale(draws: Draws, networks: Networks, where: torch.device) -> Tensor:
    """The spread of the frozen triplane's channels over 32 scenes."""
    cache = open_cache(draws.folder)
    refresh(cache, draws.left_out)
    shown = []
    for i in range(4):
        rngs = [np.random.default_rng([draws.seed, 1 << 40, i, j]) for j in range(8)]
        batch = collect(cache, rngs, 1, interpolation=True).unpack().to(where)
        middle = batch.views_middle
        shown.append(middle.with_content(batch.canonical_middle) if networks.canonical else middle)
    return channel_scale(networks.frozen, shown).cpu()


def count_step(networks: Networks, batch: Batch, causal: bool) -> int:
    flops = speed.count_flops(lambda: networks.loss(batch, causal=causal)[0].backward())
    networks.model.zero_grad(set_to_none=True)
    return flops


def means(sums: dict[str, tuple[Tensor, int]], processes: Processes) -> dict[str, float]:
    """Means over the window and over all processes; the same names in every process."""
    values = torch.stack([(total / count).float() for total, count in sums.values()])
    processes.average([values])
    return dict(zip(sums, values.tolist()))


@torch.no_grad()
def score_average(out: Path, networks: Networks, average, watched: Cache, log: Log, step: int, deadline: float) -> None:
    """Watch with the averaged weights, and keep them if they are the best so far; nothing where the deadline comes first."""
    model = networks.model
    live = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(average)
    found = watch(
        model, networks.frozen, watched, networks.scale, canonical=networks.canonical,
        device=next(iter(live.values())).device, deadline=deadline,
    )  # fmt: skip
    model.load_state_dict(live)
    if found is not None:
        row, picture = found
        log.row("watch", {"step": step, **row})
        log.picture(step, picture)
        state.keep_best(out, row)


def loaders(args: argparse.Namespace, where: torch.device) -> int:
    return args.loaders if args.loaders >= 0 else 6 if where.type == "cuda" else 0


def on_terminate() -> threading.Event:
    """Set when the machine asks the process to end (SIGTERM): the run saves its state and returns."""
    asked = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: asked.set())
    return asked


# ---- where the time goes ------------------------------------------------------------------------------------------


def benchmark(args: argparse.Namespace, processes: Processes, repeats: int = 5) -> str:
    """A table of the parts of one step, each timed apart after a warm-up; writes nothing."""
    where = processes.device
    device.tune(where)
    torch.manual_seed(args.seed)
    networks = build(args, where)
    model, frozen = networks.model, networks.frozen
    patch = args.perceptual_patch if networks.perceptual else 0
    draws = Draws(args.cache, (), processes.share(args.batch), args.rays, args.seed, frozen is not None, patch)
    if frozen is not None:
        networks.scale = measure_scale(draws, networks, where).to(where)
    read = iter(range(1, 1000))
    reading = speed.timed(torch.device("cpu"), lambda: checked(draws[next(read)]), repeats)
    compact = checked(draws[0])
    carrying = speed.timed(where, lambda: compact.each(lambda x: x.to(where)).unpack(), repeats)
    batch = compact.each(lambda x: x.to(where)).unpack()
    check_size = model.config.image_size
    if batch.views_middle.content.shape[-2] != check_size:
        raise LimError("bad_request", f"The cache {args.cache} does not hold views of {check_size} pixels.")
    causal = frozen is not None and args.causal > 0
    optimiser = make_optimiser(model, args.lr)
    average, live = [tensor.clone() for tensor in model.state_dict().values()], list(model.state_dict().values())

    def network() -> None:
        with device.autocast(where):
            if frozen is None:
                triplane, _ = model(batch.views_middle)
            else:
                triplane, _ = model(features, model.condition(*ends), batch.alpha)
        triplane.float().square().mean().backward()

    def whole() -> None:
        networks.loss(batch, causal=causal)[0].backward()

    def update() -> None:
        apply_gradients(optimiser, model)
        with torch.no_grad():
            torch._foreach_lerp_(average, live, 0.002)

    parts: list[tuple[str, Callable[[], object]]] = [("network, forward and backward", network)]
    if frozen is not None:
        source = batch.views_source
        ends = (batch.views_target, source) if networks.canonical else (batch.views_target,)
        shown = source.with_content(batch.canonical_source) if networks.canonical else source

        def reconstruct() -> None:
            with torch.no_grad(), device.autocast(where):
                frozen(shown)

        with torch.no_grad(), device.autocast(where):
            features = frozen(shown)[1]
        parts.append(("frozen reconstructor, once", reconstruct))
    flops = {name: speed.count_flops(run) for name, run in [*parts, ("whole", whole)]}
    if args.compile:
        speed.compile_blocks(model)
    rows = [("reading the cache, one process", reading, 0.0), ("copy and unpack", carrying, 0.0)]
    rows += [(name, speed.timed(where, run, repeats), flops[name]) for name, run in parts]
    computing = speed.timed(where, whole, repeats)
    updating = speed.timed(where, update, repeats)
    rest = max(computing - sum(seconds for _, seconds, _ in rows[2:]), 0.0)
    rest_flops = flops["whole"] - sum(flops[name] for name, _ in parts)
    rows += [("rendering and the rest of the loss", rest, rest_flops), ("optimiser and average", updating, 0.0)]
    rows += [("step, without reading", carrying + computing + updating, flops["whole"])]
    heading = f"{args.network} {args.preset}, batch {len(draws.scenes)}, {args.rays} rays, {device.describe(where)}"
    return heading + "\n" + speed.table(rows, len(draws.scenes), speed.matmul_peak(where))
