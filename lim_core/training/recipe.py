# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core recipe PACKS WORK`: the four networks one after the other inside a time box, unattended.

Renders sequences in processes of its own (renderers.py) while the networks train: LRM → LRM̄ (from LRM) → LIM → LIM̄. All state
is in WORK, so that the same command is given again and again, each call as short as a rented machine demands:

    cache/, watched/            rendered sequences: replaced as time goes on; and those that are never trained on
    <network>/                  the run folders of `train`
    weights/<network>/          the best weights of each finished network, to be bundled or given as --weights
    progress.json               the time spent, and what each network was given
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from ..data.sequences import SHARD
from ..mesh import packs
from ..networks import checkpoint, config
from ..shared.errors import LimError, from_os_error
from . import bring_home, renderers, train
from .processes import Processes

SHARES = {"lrm": 0.42, "lrm-xyz": 0.14, "lim": 0.22, "lim-xyz": 0.22}
# What fits each preset: scenes in a step, target rays in a scene, learning rate.
SETTINGS = {"nano": (8, 384, 1.2e-3), "small": (48, 1024, 6e-4), "base": (32, 2048, 2e-4)}
FIRST_SEQUENCES = 6 * SHARD  # rendered before the first step
WATCH_SEQUENCES = 32
SHORTEST_SECONDS = 3.0  # less is no training
CLOSING_SECONDS = 15.0  # of a call, kept for what comes before and after: imports, the export


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="lim_core recipe", description=__doc__.splitlines()[0])
    p.add_argument("packs", help="folder of packs (python -m lim_core bake); “-” for generated objects alone")
    p.add_argument("work", help="folder for everything; the same command goes on where it was")
    p.add_argument("--minutes", type=float, default=110.0, help="time box for all four networks, over all calls")
    p.add_argument("--call-minutes", type=float, default=math.inf, help="return by then, with all state in WORK")
    p.add_argument(
        "--export", default="", metavar="DIR", help="at the end of the call, write what is to be brought home"
    )
    p.add_argument("--export-networks", default=",".join(config.NETWORKS), metavar="A,B", help="which, in this order")
    p.add_argument("--preset", default="nano", choices=config.PRESETS)
    p.add_argument(
        "--shares", default="", metavar="lrm=0.5,lim=0.3,…", help="of the time; a network with 0 is left out"
    )
    p.add_argument("--start", default="", metavar="WEIGHTS", help="folder of checkpoints that networks start from")
    p.add_argument("--cache", default="", help="where the sequences are kept, such as a RAM disk; default: in WORK")
    p.add_argument("--cache-gb", type=float, default=24.0, help="size of the cache; then its oldest part is replaced")
    p.add_argument("--renderers", type=int, default=max(1, (os.cpu_count() or 2) - 3), help="processes that render")
    p.add_argument(
        "--sequences", type=int, default=-1, help="render no more than so many; 0: without end; -1: 2048 without a GPU"
    )
    p.add_argument("--first", type=int, default=FIRST_SEQUENCES, help="sequences rendered before the first step")
    p.add_argument("--watch", type=int, default=WATCH_SEQUENCES, help="sequences that are watched")
    p.add_argument("--procedural", type=float, default=0.0, help="share of generated objects")
    p.add_argument("--supersampling", type=int, default=2)
    p.add_argument("--batch", type=int, default=0, help="0: what fits the preset")
    p.add_argument("--rays", type=int, default=0)
    p.add_argument("--lr", type=float, default=0.0)
    p.add_argument("--train", default="", metavar="ARGUMENTS", help="more arguments of `train`, as one string")
    p.add_argument("--processes", type=int, default=1, help="training processes, one for each GPU")
    p.add_argument("--device", default="auto")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--stop", action="store_true", help="only end the processes that render")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    work = Path(args.work).resolve()
    if args.stop:
        renderers.stop(work)
        return 0
    if importlib.util.find_spec("embreex") is None:
        raise LimError(
            "backend_broken", "Rendering needs the package embreex, which is not installed here.",
            "Bring its wheel along: see docs/training.md.",
        )  # fmt: skip
    call = renderers.lock(work / "call.lock")
    if call is None:
        raise LimError(
            "bad_request", f"A recipe is already running in {work}.", "Wait for it, or choose another folder."
        )
    try:
        done = run(args, work)
        if args.export:
            bring_home_now(args, work)
    finally:
        call.release()
    print("recipe: finished" if done else "recipe: to be continued; give the same command again", flush=True)
    return 0


def run(args: argparse.Namespace, work: Path) -> bool:
    """One call; whether the recipe is finished.

    Raises:
        LimError: nothing can be rendered, or what `train` raises.
    """
    called = time.monotonic()
    shares, progress = shares_of(args.shares), read_progress(work)
    spent, states = progress["spent"], progress["networks"]
    networks = [network for network in config.NETWORKS if shares[network] > 0]

    def left_of_call() -> float:
        return args.call_minutes * 60 - (time.monotonic() - called) - CLOSING_SECONDS

    def left_of_box() -> float:
        return args.minutes * 60 - spent - (time.monotonic() - called)

    def waiting() -> list[str]:
        return [network for network in networks if not states.get(network, {}).get("done")]

    if waiting() and left_of_box() > SHORTEST_SECONDS:
        started = renderers.start(work, args.renderers, settings(args, work))
        enough = wait_for_sequences(args, work, started, called)
        while enough and waiting() and min(left_of_call(), left_of_box()) > SHORTEST_SECONDS:
            network = waiting()[0]
            state = states.setdefault(network, {"done": False})
            if "minutes" not in state:
                state["minutes"] = left_of_box() / 60 * shares[network] / sum(shares[n] for n in waiting())
                save_progress(work, progress)
            stretch = min(left_of_call(), left_of_box()) / 60
            state["done"] = train_network(args, work, network, state["minutes"], stretch)
            if state["done"]:
                keep_best(work, network)
            progress["spent"] = spent + time.monotonic() - called
            save_progress(work, progress)
            if not state["done"]:
                break
        progress["spent"] = spent + time.monotonic() - called
        save_progress(work, progress)
    if waiting() and left_of_box() <= SHORTEST_SECONDS:
        print(f"The {args.minutes:g} minutes are over; not finished: {', '.join(waiting())}.", flush=True)
        for network in waiting():
            keep_best(work, network)
    elif waiting():
        return False
    renderers.stop(work)
    return True


def train_network(args: argparse.Namespace, work: Path, network: str, minutes: float, call_minutes: float) -> bool:
    """One stretch of one network's training; whether it is finished."""
    batch, rays, rate = SETTINGS[args.preset]
    weights = work / "weights"
    command = [
        network, "--cache", str(cache_of(args, work)), "--watch-cache", str(work / "watched"), "--out", str(work / network),
        "--held-out", str(args.watch), "--preset", args.preset, "--minutes", f"{minutes:.4f}", "--call-minutes",
        f"{call_minutes:.4f}", "--batch", str(args.batch or batch), "--rays", str(args.rays or rays), "--device", args.device,
        "--threads", str(args.threads), "--lr", str((args.lr or rate) * (1.0 if network == "lrm" else 0.7)),
    ]  # fmt: skip
    start = Path(args.start) / network if args.start else None
    if start is None or not start.is_dir():
        start = weights / "lrm" if network == "lrm-xyz" else None
    if start is not None and start.is_dir():
        command += ["--start", str(start)]
    if network.startswith("lim"):
        command += ["--lrm", str(trained(args, work, network.replace("lim", "lrm")))]
    if network == "lim-xyz":
        command += ["--lrm-rgb", str(trained(args, work, "lrm"))]
    command += shlex.split(args.train)
    print(f"---- {network}: {minutes:.1f} min", flush=True)
    if args.processes == 1:
        options = train.parser().parse_args(command)
        if options.threads:
            torch.set_num_threads(options.threads)
        finished = train.train(options, Processes(options.device))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return finished
    several = [
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(args.processes),
        "-m",
        "lim_core",
        "train",
    ]
    code = subprocess.call([sys.executable, "-m", *several, *command], cwd=Path(__file__).resolve().parents[2])
    if code:
        raise LimError("internal", f"The training of {network} ended with code {code}.", "The lines above say why.")
    return json.loads((work / network / "checkpoint" / "training.json").read_text(encoding="utf-8"))["done"]


def trained(args: argparse.Namespace, work: Path, network: str) -> Path:
    """Where a reconstructor lies that an interpolator stands on: trained here, or brought along."""
    own = work / "weights" / network
    return own if own.is_dir() or not args.start else Path(args.start) / network


def keep_best(work: Path, network: str) -> None:
    """Copy the best weights that a network has, if it has any, to `weights/`."""
    run_folder, target = work / network, work / "weights" / network
    found = [run_folder / name for name in ("best", "checkpoint") if (run_folder / name / "config.json").is_file()]
    if not found:
        return
    try:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(found[0], target)
    except OSError as error:
        raise from_os_error(error, f"keeping the weights of {network}") from None


# ---- data ---------------------------------------------------------------------------------------------------------


def cache_of(args: argparse.Namespace, work: Path) -> Path:
    return Path(args.cache).resolve() if args.cache else work / "cache"


def settings(args: argparse.Namespace, work: Path) -> dict:
    """What the renderers do."""
    paths = [] if args.packs == "-" else [path.resolve() for path in packs.list_packs(args.packs)]
    trained_on, watched = renderers.split(paths)
    return {
        "packs": [str(path) for path in trained_on],
        "watched": [str(path) for path in watched],
        "watch_sequences": args.watch,
        "cache": str(cache_of(args, work)),
        "cache_bytes": args.cache_gb * 1e9,
        "sequences": args.sequences if args.sequences >= 0 else 0 if torch.cuda.is_available() else 2048,
        "size": config.PRESETS[args.preset]().image_size,
        "procedural": 1.0 if args.packs == "-" else args.procedural,
        "supersampling": args.supersampling,
    }


def wait_for_sequences(args: argparse.Namespace, work: Path, started: list[subprocess.Popen], called: float) -> bool:
    """Until there is enough to begin with, or the call's time is over: whether there is enough.

    Raises:
        LimError: nothing renders any more and there is too little; with what a renderer said last.
    """
    while True:
        ready = renderers.sequences(cache_of(args, work)), renderers.sequences(work / "watched")
        if ready[0] >= args.first and ready[1] >= args.watch:
            return True
        if time.monotonic() - called > args.call_minutes * 60 - 2 * CLOSING_SECONDS:
            return False
        time.sleep(1)
        begun = any(process.poll() is None for process in started)  # it may not have its lock yet
        if not begun and not renderers.alive(work):
            raise LimError("bad_pack", f"Nothing could be rendered: {renderers.complaint(work) or 'no reason given'}")


# ---- bookkeeping --------------------------------------------------------------------------------------------------


def shares_of(text: str) -> dict[str, float]:
    """SHARES, or those of `lrm=0.5,lim=0.5`, where a network that is not named gets nothing.

    Raises:
        LimError: another network, or no number.
    """
    if not text:
        return dict(SHARES)
    found = dict.fromkeys(config.NETWORKS, 0.0)
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            config.NETWORKS.index(name.strip())
            found[name.strip()] = float(value)
        except ValueError:
            raise LimError("bad_request", f"“{part}” is not a share of a network; write lrm=0.5, say.") from None
    return found


def read_progress(work: Path) -> dict:
    path = work / "progress.json"
    if not path.exists():
        return {"spent": 0.0, "networks": {}}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise LimError("bad_request", f"“{path}” is damaged.", "Choose another folder.") from None


def save_progress(work: Path, progress: dict) -> None:
    try:
        checkpoint.write_json(work / "progress.json", progress)
    except OSError as error:
        raise from_os_error(error, "writing the recipe's progress") from None


def bring_home_now(args: argparse.Namespace, work: Path) -> None:
    networks = [name.strip() for name in args.export_networks.split(",")]
    if not any(bring_home.source(work, network) for network in networks):
        print("There is nothing to bring home yet.", flush=True)
        return
    left_out = bring_home.export(work, Path(args.export), networks)
    size = sum(path.stat().st_size for path in Path(args.export).iterdir()) / 1e6
    print(f"exported {size:.1f} MB to {args.export}", flush=True)
    if left_out:
        print(f"left out, for want of room: {', '.join(left_out)}; use --export-networks", flush=True)
