# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run keeps on disk, and what it begins from.

run.json            which run this folder is; written once
state.safetensors   everything to go on from: weights, their average, the optimiser; the counters in its metadata
checkpoint/         the averaged weights as the rest of the project loads them
best/               the same, of the moment with the highest score in watch.csv
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..networks import checkpoint, config
from ..networks.config import ModelConfig, MotionConfig
from ..networks.lim import LIM
from ..networks.lrm import LRM
from ..shared import files
from ..shared.errors import LimError, from_os_error
from . import logs

RUN, STATE = "run.json", "state.safetensors"
LOCAL = (
    "out",
    "cache",
    "watch_cache",
    "start",
    "start_lrm",
    "lrm",
    "lrm_rgb",
    "packs",
    "perceptual",
    "encoder",
    "call_minutes",
    "benchmark",
)
"""Arguments that say where and in how many calls a run was made, not what it learnt."""


@dataclasses.dataclass
class Counters:
    step: int = 0
    elapsed: float = 0.0
    """Seconds of training, over every resumption."""
    samples: int = 0


# ---- which run ----------------------------------------------------------------------------------------------------


def claim(
    out: Path, network: str, model_config: ModelConfig | MotionConfig, batch: int, arguments: dict, held_out: list
) -> list:
    """Make the folder this run's, or see that it is; returns the sequences that this run watches.

    Raises:
        LimError: the folder holds a run of another network, size or batch; or something else.
    """
    run = {"network": network, "config": dataclasses.asdict(model_config), "batch": batch}
    run = json.loads(json.dumps(run))  # as it is read again: tuples are lists there
    path = out / RUN
    if path.exists() and (out / STATE).exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            kept = [tuple(entry) for entry in found["held_out"]]
            mine = {"network": found["network"], "batch": found["batch"], **found["config"]}
        except (ValueError, KeyError, TypeError):
            raise LimError(
                "bad_request", f"“{path}” is damaged, so this run cannot go on.", "Choose another --out."
            ) from None
        for name, value in {"network": network, "batch": batch, **run["config"]}.items():
            if mine.get(name) != value:
                raise LimError(
                    "bad_request", f"{out} holds a run with {name} {mine.get(name)}, not {value}.",
                    "Choose another --out folder, or the same settings.",
                )  # fmt: skip
        return kept
    if (out / STATE).exists() or (out / "config.json").exists():
        raise LimError(
            "bad_request", f"{out} holds something else than a training run.", "Choose another --out folder."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        checkpoint.write_json(
            path, {**run, "arguments": {k: v for k, v in arguments.items() if k not in LOCAL}, "held_out": held_out}
        )
    except OSError as error:
        raise from_os_error(error, f"starting the training run {out}") from None
    return held_out


# ---- what it begins from ------------------------------------------------------------------------------------------


def begin_from(model: nn.Module, folder: str) -> None:
    """Load the weights of a checkpoint folder, of the same network or of its twin, into a network of the same sizes, but for
    the cells of a token (`regrid`).

    Raises:
        LimError: no checkpoint there, a damaged one, or one of other sizes (which the message names).
    """
    if not (Path(folder) / "config.json").is_file():
        raise LimError("weights_missing", f"There is no checkpoint in “{folder}” to start from.", "Check --start.")
    found, network = config.read(Path(folder) / "config.json")
    weights = checkpoint.load(folder, network).state_dict()
    try:
        model.load_state_dict(regrid(weights, found, model.config))
    except RuntimeError:
        raise LimError("weights_broken", _mismatch(folder, network, found, model.config), "Use its preset.") from None
    if network == "lrm" and model.canonical:  # colours say nothing of motion
        model.decoder.forget_content()


@torch.no_grad()
def follow(model: LIM, before: LRM, now: LRM, rgb: LRM | None) -> None:
    """Add to an interpolator what has changed in the weights that it took over from its reconstructor (`LIM.initialise_from`).

    It then reads the new one about as well as it read the old one, without training.

    Args:
        before, now: the reconstructor that it stood on, and the one that it is to stand on; rgb: as in `initialise_from`.
    """
    network = "lim-xyz" if model.canonical else "lim"
    ends = []
    for reconstructor in (before, now):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # what is not taken over is then the same in both
            end = checkpoint.build(network, model.config)
        end.initialise_from(reconstructor, rgb)
        ends.append(end.state_dict())
    for name, weight in model.state_dict().items():
        weight += ends[1][name] - ends[0][name]


def regrid(weights: dict[str, Tensor], found: ModelConfig, wanted: ModelConfig) -> dict[str, Tensor]:
    """The weights of a network whose tokens stand for another number of cells (`upsample`): resampled, so that it begins as
    what it was, only finer. Coarse training is cheap, and its weights are a good start. Everything else stays as it is."""
    before, now = found.upsample, wanted.upsample

    def resize(grids: Tensor) -> Tensor:
        """[N, before, before, C] → [N, now, now, C]"""
        grids = F.interpolate(grids.permute(0, 3, 1, 2), size=(now, now), mode="bilinear", align_corners=False)
        return grids.permute(0, 2, 3, 1)

    weights = dict(weights)
    for name, tensor in weights.items():
        if before == now:
            break
        if name.startswith("head.linear."):
            grids = resize(tensor.reshape(-1, before, before, tensor[0].numel()))
            weights[name] = grids.flatten(0, 2) if tensor.ndim == 2 else grids.flatten()
        elif name == "plane_tokens.weight":  # a token is a sum over its cells
            grids = resize(tensor.unflatten(1, (-1, before, before)).flatten(0, 1)) * (before / now) ** 2
            weights[name] = grids.unflatten(0, (3, -1)).flatten(1, 3)
    return weights


def same_size(folder: str, found: ModelConfig, wanted: ModelConfig) -> None:
    """Raises LimError where two networks that work together have other sizes."""
    if found != wanted:
        raise LimError("weights_broken", _mismatch(folder, "a reconstructor", found, wanted), "Use one preset for all.")


def _mismatch(folder: str, network: str, found: ModelConfig, wanted: ModelConfig) -> str:
    pairs = [(n, getattr(found, n), getattr(wanted, n)) for n in (f.name for f in dataclasses.fields(ModelConfig))]
    other = ", ".join(f"{name} {a} instead of {b}" for name, a, b in pairs if a != b)
    return f"The checkpoint {folder} does not fit: it holds {network} with {other or 'other parts'}."


# ---- what it keeps ------------------------------------------------------------------------------------------------


def save(
    out: Path,
    counters: Counters,
    model: nn.Module,
    average: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    scale: Tensor | None,
) -> None:
    """The state to go on from, replaced as a whole.

    Raises:
        LimError: `disk_full` and its like; the state that was there before is still whole.
    """
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | {f"average.{k}": v for k, v in average.items()}
    for i, parameter in enumerate(_parameters(optimiser)):
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser.{i}.{key}"] = torch.as_tensor(value)
    if scale is not None:
        tensors["scale"] = scale
    metadata = {"counters": json.dumps(dataclasses.asdict(counters))}
    files.clear_leftovers(out)
    try:
        with files.writing_path(out / STATE) as temporary:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, metadata)
    except (OSError, SafetensorError) as error:
        raise _not_written(error, out / STATE) from None


def restore(
    out: Path, model: nn.Module, average: dict[str, Tensor], optimiser: torch.optim.Optimizer
) -> tuple[Counters, Tensor | None]:
    """Put everything back as it was; the counters and the scale.

    Raises:
        LimError: the state is damaged or of another version.
    """
    try:
        with safe_open(out / STATE, "pt") as file:
            counters = Counters(**json.loads(file.metadata()["counters"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        for name in average:
            average[name].copy_(tensors[f"average.{name}"])
        for i, parameter in enumerate(_parameters(optimiser)):
            start = f"optimiser.{i}."
            state = {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}
            if state:
                fused = optimiser.defaults.get("fused")
                optimiser.state[parameter] = {
                    k: v.to(parameter.device) if k != "step" or fused else v for k, v in state.items()
                }
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise LimError(
            "weights_broken", f"The training state in {out} is damaged or of another version: {error}.",
            "Choose another --out folder, and its checkpoint as --start.",
        ) from None  # fmt: skip
    return counters, tensors.get("scale")


def _parameters(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimiser.param_groups for p in group["params"]]


def save_checkpoint(
    folder: Path, network: str, model_config: ModelConfig | MotionConfig, average: dict[str, Tensor], training: dict
) -> None:
    """The averaged weights as a checkpoint folder. Raises LimError like `save`."""
    averaged = checkpoint.build(network, model_config)
    averaged.load_state_dict({k: v.cpu() for k, v in average.items()})
    try:
        checkpoint.save(folder, network, averaged.eval(), training)
    except (OSError, SafetensorError) as error:
        raise _not_written(error, folder) from None


def keep_best(out: Path, watched: dict[str, float]) -> None:
    """Copy `checkpoint/` to `best/` if its score is the highest so far."""
    if watched["score"] <= best_score(out):
        return
    try:
        with files.writing_folder(out / "best") as temporary:
            shutil.copytree(out / "checkpoint", temporary, dirs_exist_ok=True)
            training = json.loads((temporary / "training.json").read_text(encoding="utf-8"))
            checkpoint.write_json(temporary / "training.json", {**training, "watched": watched})
    except (OSError, shutil.Error) as error:
        raise _not_written(error, out / "best") from None


def best_score(out: Path) -> float:
    """The score of `best/`; minus infinity where there is none yet."""
    try:
        return float(json.loads((out / "best" / "training.json").read_text(encoding="utf-8"))["watched"]["score"])
    except (OSError, ValueError, KeyError):
        return float("-inf")


def record(out: Path, arguments: dict, counters: Counters) -> dict:
    """training.json: what was run and how far it came."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git here
        commit = ""
    rows = logs.read(out / "log.csv")
    return {
        "commit": commit,
        "arguments": {k: v for k, v in arguments.items() if k not in LOCAL},
        **dataclasses.asdict(counters),
        "last_log_row": {k: float(v) for k, v in rows[-1].items() if v and math.isfinite(float(v))} if rows else {},
        "torch": torch.__version__,
    }


def _not_written(error: Exception, path: Path) -> LimError:
    if isinstance(error, OSError) and not isinstance(error, shutil.Error) and error.errno:
        wrong = from_os_error(error, f"writing {path}")
        return LimError(wrong.code, wrong.message, "Free some space and start the same command again: it goes on.")
    return LimError(
        "disk_full", f"“{path}” could not be written: {error}.", "Free some space and start the same command again."
    )
