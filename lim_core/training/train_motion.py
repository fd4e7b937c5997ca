# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core train motion`: the motion of points, straight from the packs.

The run folder is that of the other networks (state.py). The rate is constant after the warm-up and falls over the last part
of the time, so that a run can be prolonged: give the same command more minutes. `--finish-minutes` works on a copy.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data import pairs
from ..data.pairs import Pair, PairOptions, Side
from ..networks import checkpoint, device
from ..networks.config import MotionConfig
from ..networks.point_motion import Cloud, Field, Motion, carried, hold, rotate
from ..shared.errors import LimError
from . import state
from .logs import Log
from .train import apply_gradients, make_optimiser, on_terminate

LOG_SECONDS = 20.0
QUERIES = 256  # points between the controls whose way is compared in a step
CAUSAL_SHARE = 0.25  # of the steps: their cost is half a step more
NEAR_MATCH = 0.04  # model units: controls of the other time this near to the true place count as matches
WATCHED_PAIRS = 48


@dataclasses.dataclass(frozen=True)
class MotionWeights:
    """Of the parts of the loss."""

    guess: float = 0.3
    match: float = 0.05
    way: float = 1.0
    scatter: float = 0.05
    cycle: float = 0.1
    causal: float = 0.5


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="lim_core train motion", description=__doc__.splitlines()[0])
    p.add_argument("network", choices=("motion",))
    p.add_argument("--packs", required=True, help="folder of packs (python -m lim_core bake)")
    p.add_argument("--out", required=True, help="run folder; a run that was interrupted goes on from there")
    p.add_argument("--minutes", type=float, default=30.0, help="stop after this long in all, over every resumption")
    p.add_argument(
        "--steps", type=int, default=0, help="stop after so many steps instead; the curve is then repeatable"
    )
    p.add_argument("--call-minutes", type=float, default=float("inf"), help="save and return by then")
    p.add_argument("--finish", type=float, default=0.3, help="last share of the time, over which the rate falls")
    p.add_argument("--start", default="", help="checkpoint folder to start the weights from")
    for field in dataclasses.fields(MotionConfig):
        p.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    p.add_argument("--batch", type=int, default=8, help="pairs in a step")
    p.add_argument("--lr", type=float, default=1.2e-3)
    p.add_argument("--warmup", type=int, default=100)
    p.add_argument("--save-minutes", type=float, default=5.0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="auto")
    p.add_argument("--threads", type=int, default=0)
    return p


# ---- loss ---------------------------------------------------------------------------------------------------------


def loss_of(model: Motion, pair: Pair, weights: MotionWeights, *, causal: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Distances to the truth, both ways in time, at the other end and at α, of controls and of points between them."""
    source, target = pair.source, pair.target
    forth, back = model(source.cloud, target.cloud)
    parts: dict[str, Tensor] = {}
    for field, side, opposite, alpha, name in (
        (forth, source, target, pair.alpha[:, 0], "forth"),
        (back, target, source, 1 - pair.alpha[:, 0], "back"),
    ):
        truth = side.cloud.of_controls(side.other)
        error = (field.place - truth).norm(dim=-1)
        queries = side.cloud.place[:, :QUERIES]  # clouds are in random order
        held = hold(field, queries, side.cloud.normal[:, :QUERIES])
        between = (carried(field.start, field.place, field.turn, held, queries) - side.other[:, :QUERIES]).norm(dim=-1)
        place, turn = model.at(field, alpha)
        on_way = (place - side.cloud.of_controls(side.way[:, 0])).norm(dim=-1).mean(1)
        way_between = carried(field.start, place, turn, held, queries) - side.way[:, 0, :QUERIES]
        with torch.no_grad():
            near = torch.cdist(truth, opposite.cloud.of_controls(opposite.cloud.place))
            matches = torch.softmax(-((near / NEAR_MATCH) ** 2), -1)
            seen = (near.amin(-1) < 2 * NEAR_MATCH).float()  # what the other time does not show has no match
        path = pair.path
        parts[f"place_{name}"] = error.mean()
        parts[f"between_{name}"] = between.mean()
        parts[f"guess_{name}"] = (field.guess - truth).norm(dim=-1).mean()
        parts[f"way_{name}"] = ((on_way + way_between.norm(dim=-1).mean(1)) * path).sum() / path.sum().clamp_min(1) / 2
        scores = sum(-(matches * s).sum(-1) for s in field.scores) / 2
        parts[f"match_{name}"] = (scores * seen).sum() / seen.sum().clamp_min(1)
        parts[f"scatter_{name}"] = (error.detach() / field.scatter + field.scatter.log()).mean()
    parts["cycle"] = (there_and_back(forth, back) - forth.start).norm(dim=-1).mean()
    if causal:
        parts["causal"] = causal_loss(model, forth, pair)

    def both(name: str) -> Tensor:
        return (parts[f"{name}_forth"] + parts[f"{name}_back"]) / 2

    total = both("place") + both("between") + weights.guess * both("guess") + weights.match * both("match")
    total = total + weights.way * both("way") + weights.scatter * both("scatter") + weights.cycle * parts["cycle"]
    if causal:
        total = total + weights.causal * parts["causal"]
    shown = {name: both(name).detach() for name in ("place", "between", "guess", "way", "match", "scatter")}
    return total, shown | {name: parts[name].detach() for name in ("cycle", "causal") if name in parts}


def there_and_back(forth: Field, back: Field) -> Tensor:
    """[B, N, 3]: where the other time's field takes the controls from the places that they were said to have there."""
    held = hold(back, forth.place, rotate(forth.turn, forth.normal))
    return carried(back.start, back.place, back.turn, held, forth.place)


def causal_loss(model: Motion, forth: Field, pair: Pair) -> Tensor:
    """L_causal (LIM, equation 3) on points: from the prediction at α on to a later α′ and to the target."""
    cloud, alpha = pair.source.cloud, pair.alpha
    place, turn = model.at(forth, alpha[:, 0])
    held = hold(forth, cloud.place, cloud.normal)
    moved = carried(forth.start, place, turn, held, cloud.place)
    normal = torch.nn.functional.normalize(rotate(held.blend(turn), cloud.normal), dim=-1)
    middle = Cloud(moved, normal, cloud.colour, cloud.controls)
    onward, _ = model(middle, pair.target.cloud)
    beta = ((alpha[:, 1] - alpha[:, 0]) / (1 - alpha[:, 0]).clamp_min(1e-3)).clamp(0, 1)
    later, _ = model.at(onward, beta)
    end = (onward.place - cloud.of_controls(pair.source.other)).norm(dim=-1).mean()
    way = (later - cloud.of_controls(pair.source.way[:, 1])).norm(dim=-1).mean(1)
    return end + (way * pair.path).sum() / pair.path.sum().clamp_min(1)


# ---- the loop -----------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    if args.minutes <= 0 or args.batch < 1 or args.warmup < 1 or not 0 < args.finish <= 1:
        p.error("--minutes, --batch and --warmup must be more than 0, --finish lies between 0 and 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    train(args)
    return 0


def train(args: argparse.Namespace) -> None:
    """Train until the time, the call's time or the steps are over, or until the process is asked to end.

    Raises:
        LimError: see `state`, and `pairs.load_all`.
    """
    called = time.monotonic()
    out, where = Path(args.out), device.pick(args.device)
    device.tune(where)
    torch.manual_seed(args.seed)
    config = MotionConfig(**{field.name: getattr(args, field.name) for field in dataclasses.fields(MotionConfig)})
    every = pairs.load_all(args.packs)
    watched_names = [pack.name for pack in every[12::25]] or [every[-1].name]
    watched_names = [name for (name,) in state.claim(
        out, "motion", config, args.batch, vars(args), [[name] for name in watched_names])]  # fmt: skip
    trained_on = [pack for pack in every if pack.name not in watched_names] or every
    options = PairOptions(controls=config.controls, points=4 * config.controls)
    watched = watched_pairs([pack for pack in every if pack.name in watched_names], options)

    model = Motion(config).to(where).train()
    if args.start:
        begin_from(model, args.start)
    optimiser = make_optimiser(model, args.lr)
    average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    counters, log = state.Counters(), Log(out, True)
    if (out / state.STATE).exists():
        counters, _ = state.restore(out, model, average, optimiser)
        log.forget_after(counters.step)
        print(f"resumed at step {counters.step}, {counters.elapsed / 60:.1f} min", flush=True)
    live, averaged = list(model.state_dict().values()), list(average.values())
    stop = on_terminate()
    begun, saved, logged = time.monotonic() - counters.elapsed, time.monotonic(), time.monotonic()
    sums: dict[str, list[float]] = {}
    window, drawing = 0, 0.0
    while True:
        counters.elapsed = time.monotonic() - begun
        share = counters.step / args.steps if args.steps else counters.elapsed / (args.minutes * 60)
        over = share >= 1 or stop.is_set() or time.monotonic() - called > args.call_minutes * 60
        rate = args.lr * min(1, (counters.step + 1) / args.warmup) * max(0.02, min(1, (1 - share) / args.finish))
        if window and (over or time.monotonic() - logged > LOG_SECONDS):
            seconds = time.monotonic() - logged
            row = {"step": counters.step, "minutes": counters.elapsed / 60, "samples": counters.samples, "rate": rate}
            row |= {name: sum(values) / len(values) for name, values in sums.items()}
            log.row("log", row | {"samples_per_second": window * args.batch / seconds, "waiting": drawing / seconds})
            sums, window, drawing, logged = {}, 0, 0.0, time.monotonic()
        if over or time.monotonic() - saved > args.save_minutes * 60:
            state.save(out, counters, model, average, optimiser, None)
            state.save_checkpoint(
                out / "checkpoint", "motion", config, average, state.record(out, vars(args), counters)
            )
            row = watch(Motion(config).to(where), average, watched)
            log.row("watch", {"step": counters.step, **row})
            state.keep_best(out, row)
            saved = logged = time.monotonic()
        if over:
            break
        for group in optimiser.param_groups:
            group["lr"] = rate
        began = time.monotonic()
        rng = np.random.default_rng([args.seed, counters.step])
        batch = on(pairs.draw(trained_on, args.batch, options, rng), where)
        drawing += time.monotonic() - began
        loss, parts = loss_of(model, batch, MotionWeights(), causal=rng.random() < CAUSAL_SHARE)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = apply_gradients(optimiser, model)
        counters.step += 1
        counters.samples += args.batch
        window += 1
        with torch.no_grad():
            kept = min(0.998, (1 + counters.step) / (20 + counters.step))
            torch._foreach_lerp_(averaged, live, 1 - kept)
            for name, value in {"loss": loss.detach(), "norm": norm, **parts}.items():
                sums.setdefault(name, []).append(float(value))
    log.close()


def on(pair: Pair, where: torch.device) -> Pair:
    source, target = (
        Side(side.cloud.to(where), side.other.to(where), side.way.to(where)) for side in (pair.source, pair.target)
    )
    return Pair(source, target, pair.alpha.to(where), pair.path.to(where))


def begin_from(model: Motion, folder: str) -> None:
    """Load the weights of a checkpoint folder of the same sizes.

    Raises:
        LimError: no checkpoint there, a damaged one, or one of other sizes.
    """
    found = checkpoint.load(folder, "motion")
    try:
        model.load_state_dict(found.state_dict())
    except RuntimeError:
        raise LimError("weights_broken", f"The checkpoint {folder} has other sizes: {found.config}.") from None


def watched_pairs(all_packs: list, options: PairOptions) -> list[Pair]:
    """The same pairs in every run of a folder: assets that are never trained on."""
    rng = np.random.default_rng(1)
    return [pairs.draw(all_packs, 8, options, rng) for _ in range(WATCHED_PAIRS // 8)]


@torch.no_grad()
def watch(model: Motion, average: dict[str, Tensor], watched: list[Pair]) -> dict[str, float]:
    """Mean distances in model units with the averaged weights. `score`, which is to grow, is minus the place's and the way's."""
    model.load_state_dict(average)
    model.eval()
    device_ = next(model.parameters()).device
    rows = [loss_of(model, on(pair, device_), MotionWeights(), causal=False)[1] for pair in watched]
    row = {name: float(np.mean([float(r[name]) for r in rows])) for name in rows[0]}
    return row | {"score": -(row["between"] + row["way"])}
