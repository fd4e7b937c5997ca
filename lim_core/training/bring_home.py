# SPDX-License-Identifier: GPL-3.0-or-later
"""What a recipe brings home from a rented machine, in few and small files; and back: `python -m lim_core unpack FOLDER WEIGHTS`.

weights-00001.safetensors …    fp16 tensors of all networks, named NETWORK/TENSOR
metrics.json                   for each network its sizes, training.json, log.csv and watch.csv
samples.png                    the last watched picture of each network
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..networks import checkpoint, config
from ..shared.errors import LimError, from_os_error
from . import logs

FILES = 8
FILE_BYTES = 16 * 1024 * 1024
SHARD_BYTES = FILE_BYTES - 256 * 1024  # room for the header
ROWS = 1500  # of a curve


def export(work: Path, out: Path, networks: Sequence[str], files: int = FILES) -> list[str]:
    """Write the folder anew; returns the networks that did not fit into `files` files, in the given order.

    Raises:
        LimError: there is no checkpoint of any of these networks yet, or the folder cannot be written.
    """
    sources = {network: source(work, network) for network in networks}
    sources = {network: folder for network, folder in sources.items() if folder is not None}
    if not sources:
        raise LimError(
            "weights_missing", f"There is nothing to bring home from {work} yet.", "Let the recipe run first."
        )
    shards: list[dict[str, Tensor]] = []
    taken: list[str] = []
    left_out: list[str] = []
    for network, folder in sources.items():
        tensors = {f"{network}/{name}": tensor.half() for name, tensor in _tensors(folder).items()}
        more = _packed(shards, tensors)
        if len(more) > files - 2:
            left_out.append(network)
        else:
            shards, taken = more, [*taken, network]
    if not taken:
        raise LimError("disk_full", f"“{next(iter(sources))}” alone needs more than {files} files of 16 MiB.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for old in [*out.glob("weights-*.safetensors"), out / "metrics.json", out / "samples.png"]:
            old.unlink(missing_ok=True)
        for number, shard in enumerate(shards):
            save_file(shard, out / f"weights-{number + 1:05d}.safetensors")
        _write_metrics(out / "metrics.json", {network: _metrics(work, network, sources[network]) for network in taken})
        _write_samples(out / "samples.png", work, networks)
    except OSError as error:
        raise from_os_error(error, f"writing {out}") from None
    except SafetensorError as error:
        raise LimError("disk_full", f"The weights could not be written to {out}: {error}.") from None
    return left_out


def source(work: Path, network: str) -> Path | None:
    """The best weights there are of a network."""
    for folder in (work / "weights" / network, work / network / "best", work / network / "checkpoint"):
        if (folder / "config.json").is_file():
            return folder
    return None


def _tensors(folder: Path) -> dict[str, Tensor]:
    found = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found.update(load_file(file))
    return found


def _packed(shards: list[dict[str, Tensor]], tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The shards with these tensors added, the largest first, each to the first shard that has room."""
    packed = [dict(shard) for shard in shards]
    sizes = [sum(tensor.nbytes for tensor in shard.values()) for shard in packed]
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].nbytes):
        place = next((i for i, size in enumerate(sizes) if size + tensor.nbytes <= SHARD_BYTES), None)
        if place is None:
            place = len(packed)
            packed.append({})
            sizes.append(0)
        packed[place][name] = tensor
        sizes[place] += tensor.nbytes
    return packed


def _metrics(work: Path, network: str, source: Path) -> dict:
    found = {name: json.loads((source / f"{name}.json").read_text(encoding="utf-8")) for name in ("config", "training")}
    for table in logs.TABLES:
        rows = logs.read(work / network / f"{table}.csv")
        rows = rows[:: max(1, -(-len(rows) // ROWS))]
        names = list(rows[0]) if rows else []
        found[table] = {
            name: [float(f"{float(row[name]):.5g}") if row[name] else None for row in rows] for name in names
        }
    return found


def _write_metrics(path: Path, metrics: dict) -> None:
    text = json.dumps(metrics, separators=(",", ":"))
    if len(text) > FILE_BYTES:
        raise LimError("disk_full", f"The curves are too long for one file: {len(text)} bytes.")
    path.write_text(text, encoding="utf-8")


def _write_samples(path: Path, work: Path, networks: Sequence[str]) -> None:
    """One page, truth above prediction, a strip for each network."""
    strips = []
    for network in networks:
        found = sorted((work / network / "samples").glob("*.png"))
        if found:
            strips.append((f"{network}, step {int(found[-1].stem)}", Image.open(found[-1]).convert("RGB")))
    if not strips:
        return
    height = sum(image.height + 20 for _, image in strips)
    page = Image.new("RGB", (max(image.width for _, image in strips), height), (255, 255, 255))
    draw, top = ImageDraw.Draw(page), 0
    for text, image in strips:
        draw.text((4, top + 4), text, (0, 0, 0))
        page.paste(image, (0, top + 20))
        top += image.height + 20
    page.save(path)
    while path.stat().st_size > FILE_BYTES:
        page = page.resize((page.width * 3 // 4, page.height * 3 // 4), Image.Resampling.LANCZOS)
        page.save(path)


def unpack(folder: Path, weights: Path) -> list[str]:
    """Checkpoint folders `<weights>/<network>` of what was brought home; returns the networks.

    Raises:
        LimError: the folder is not what `export` wrote, or not whole.
    """
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        tensors: dict[str, Tensor] = {}
        for file in sorted(folder.glob("weights-*.safetensors")):
            tensors.update(load_file(file))
        for network, found in metrics.items():
            sizes = {name: value for name, value in found["config"].items() if name != "network"}
            model = checkpoint.build(network, config.ModelConfig(**sizes))
            start = f"{network}/"
            model.load_state_dict({k[len(start) :]: v.float() for k, v in tensors.items() if k.startswith(start)})
            checkpoint.save(weights / network, network, model.eval(), found["training"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, RuntimeError) as error:
        raise LimError("weights_broken", f"“{folder}” is not a whole export of a recipe: {error}.") from None
    return list(metrics)


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="lim_core unpack", description="what a recipe exported → checkpoint folders")
    p.add_argument("export", help="folder that recipe --export wrote")
    p.add_argument("weights", help="folder for the checkpoints, usable as --weights")
    args = p.parse_args(argv)
    print("unpacked: " + ", ".join(unpack(Path(args.export), Path(args.weights))))
    return 0
