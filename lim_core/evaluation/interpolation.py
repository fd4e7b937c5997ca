# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core evaluate interpolation`: the middle of uniform triplets, as the paper measures it (section 4.1).

Rows, four held-out views each:

    linear    half of each keyframe's triplane
    flow      the input pictures and their depth interpolated in the image (flow.py), then LRM
    flow_rgb  the same without the depth: what an interpolator of pictures gives by itself
    lim       LIM; one more row for each `--ablate NAME=FOLDER`
    anchored  LIM, held to LRM's triplanes where nothing moves (`lim.Anchors`)
    moved     what both ends show, moved by the motion network and drawn again (moved.py), then LRM, held as `anchored` is
    lim_moved LIM, with the evidence of what is moved
    mesh      with `--jobs`: the textured mesh that a job of the two ends makes, half-way between them
    carried   with `--jobs`: LRM on what the rig would capture of that mesh: what a job's pictures show between its keyframes
    carried_pictured, oracle_pictured  the same as `carried` and `oracle`, with colours from the pictures that LRM was shown where they
              show a place (networks/image_colour.py): what a job's pictures are, and the best that they could be
    straight  every material point half-way on the straight line between its true places at the ends, captured, then LRM:
              what can be had without knowing how things move
    oracle    LRM on the true middle
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..job import drawn
from ..job.artefacts import Fitted
from ..job.reporter import Silent
from ..mesh import packs
from ..networks import checkpoint, perceptual
from ..networks import device as devices
from ..networks.images import Views
from ..networks.lim import ENDS, LIM, Anchors
from ..networks.lrm import LRM
from ..networks.point_motion import Motion
from ..shared import request
from ..shared.errors import LimError
from ..stages import pipeline
from ..tracking import moved
from . import flow, metrics, pictures, scenes, speed, tracing
from .scenes import Span

SHOWN = 4  # triplets of a figure that nobody chose
FIGURE_SIZE = 256
MEMORY_OF = (4, 32)  # in-betweens


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gap", type=float, default=0.4, help="seconds between the ends of a triplet")
    parser.add_argument("--per-clip", type=int, default=2, help="triplets of every clip")
    parser.add_argument(
        "--triplet", action="append", default=[], metavar="ASSET/CLIP@SECONDS", dest="triplets",
        help="only this triplet; may be repeated (the labels of the contact sheets name them)",
    )  # fmt: skip
    parser.add_argument(
        "--ablate", action="append", default=[], metavar="NAME=FOLDER",
        help="a row for another LIM: a checkpoint, or a folder of checkpoints (its own lrm is used where it has one)",
    )  # fmt: skip
    parser.add_argument(
        "--frame-interpolator", default="", metavar="FILE",
        help="TorchScript model (FILM, RIFE) of two images [1, 3, H, W] and a time [1, 1], for the rows flow and flow_rgb",
    )  # fmt: skip
    parser.add_argument("--lpips", default="", help="file with the weights of the perceptual distance; without: null")
    parser.add_argument(
        "--figure", default="", metavar="FILE", help="picture of the triplets, or of the liveliest four"
    )
    parser.add_argument(
        "--jobs", action="store_true", help="the row mesh: a whole job for every triplet, kept in OUT/jobs (slow)"
    )
    parser.add_argument("--memory", action="store_true", help="measure the peak memory of 4 and of 32 in-betweens too")


@dataclasses.dataclass(frozen=True, eq=False)
class Mesh:
    """A textured mesh and where its vertices [V, 3] are."""

    pack: packs.Pack
    vertices: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Pictured:
    """A triplane, and a decoder that reads the pictures that it was made of."""

    planes: torch.Tensor
    decoder: nn.Module


Middle = torch.Tensor | Mesh | Pictured


@dataclasses.dataclass
class Networks:
    """What predicts: the pair that is measured, the ablations' pairs by name, an interpolator of pictures if given, the
    folder of the jobs if their meshes are measured too, and the motion network where there is one."""

    lrm: LRM
    lim: LIM
    ablations: dict[str, tuple[LRM, LIM]]
    interpolator: flow.FrameInterpolator | None
    jobs: Path | None = None
    weights: str = ""
    motion: Motion | None = None

    @property
    def rows(self) -> tuple[str, ...]:
        mesh = ("mesh", "carried", "carried_pictured") if self.jobs else ()
        by_motion = ("moved", "lim_moved") if self.motion else ()
        return (
            "linear",
            "flow",
            "flow_rgb",
            "lim",
            "anchored",
            *by_motion,
            *self.ablations,
            *mesh,
            "straight",
            "oracle",
            "oracle_pictured",
        )

    def render(
        self, row: str, middle: Middle, size: int | None = None, views: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Held-out views float [V, H, W, 3] of a row's middle, on white, and what it covers there, bool [V, H, W]."""
        if isinstance(middle, Mesh):
            seen = scenes.truth(middle.pack, middle.vertices, middle.vertices, size, views)
            return seen.images, seen.mask
        if isinstance(middle, torch.Tensor):
            middle = Pictured(middle, self.ablations.get(row, (self.lrm,))[0].decoder)
        images, _, mask = scenes.render(middle.decoder, middle.planes, size, views=views)
        return images.clip(0, 1), mask > 0.5


class Triplet:
    """A span's pack, what a job would have captured at its two ends and its middle, and the middle's truth.

    `motion` is the mean way from end to end, `bend` the mean distance of the middle from the straight line between them, in parts
    of the diagonal.
    """

    def __init__(self, span: Span, size: int, pixels: int | None = None):
        self.span, self.size = span, size
        self.pack = pack = packs.load(span.path)
        self.positions = positions = span.positions(pack, (0, 0.5, 1))
        halfway = (positions[0] + positions[2]) / 2
        self.motion = scenes.motion(positions)
        diagonal = np.linalg.norm(np.ptp(positions[0], axis=0))
        self.bend = float(np.linalg.norm(positions[1] - halfway, axis=-1).mean() / diagonal)
        self.capture = scenes.capture(pack, np.concatenate([positions, halfway[None]]), size)
        self.real = scenes.truth(pack, positions[1], positions[0], pixels)
        self.outer = [scenes.truth(pack, positions[i], positions[0], pixels, 1) for i in (0, 2)]

    def views(self, moment: int, device) -> Views:
        """What the networks see of the first (0), the middle (1) or the last moment (2), or of the straight middle (3)."""
        return self.capture.network_views(moment, self.size, device)


@torch.no_grad()
def evaluate(
    packs_folder: str, out: str, *, weights: str = "", device="cpu", limit: int | None = None, gap: float = 0.4,
    per_clip: int = 2, triplets=(), ablate=(), frame_interpolator: str = "", lpips: str = "", figure: str = "",
    jobs: bool = False, memory: bool = False,
) -> dict:  # fmt: skip
    """Measure, write results.csv, summary.json and contact sheets into `out`, and return the summary.

    Raises:
        LimError: `bad_request` for an impossible option, `bad_pack` where nothing can be measured.
    """
    out, device = Path(out), torch.device(device)
    networks = load(weights, ablate, frame_interpolator, device, out / "jobs" if jobs else None)
    judge = perceptual.load(lpips).to(device) if lpips else None
    size = networks.lrm.config.image_size
    skipped: list[dict] = []
    if triplets:
        chosen = [scenes.named_span(packs_folder, name, gap) for name in triplets]
    else:
        chosen = scenes.evenly(scenes.spans(packs_folder, gap, per_clip, skipped), limit)
    rows, sheet, done = [], [], []
    seconds: dict[str, float | None] = {}
    for span in chosen:
        with scenes.skipping(skipped, span.asset):
            seen = Triplet(span, size)
            middles, took = predict(networks, seen, device)
            row = {"asset": span.asset, "clip": span.clip_name, "start": span.start / span.fps}
            row |= {"motion": seen.motion, "bend": seen.bend}
            shown = []
            for name in networks.rows:
                images, solid = networks.render(name, middles[name])
                measured = metrics.pictures(images, seen.real.images, seen.real.mask, judge)
                measured["mask_iou"] = float(np.mean([metrics.iou(a, b) for a, b in zip(solid, seen.real.mask)]))
                row |= {f"{name}.{key}": value for key, value in measured.items()}
                shown.append(images[0])
            row["seconds"] = took
            seconds = seconds or speed.of_interpolation(
                networks.lrm, networks.lim, seen.views(0, device), seen.views(2, device)
            )
            rows.append(row)
            done.append(span)
            sheet.append(pictures.Row(span.asset, span.place, [*shown, seen.real.images[0]]))
            metrics.write_rows(out, rows)
            print(f"{span.name}: " + " ".join(f"{n}={row[f'{n}.psnr_fg']:.2f}" for n in networks.rows), flush=True)
    scenes.need_any(rows, skipped, packs_folder)
    summary = summarise(rows, networks.rows, gap) | {
        "seconds_per_frame": metrics.mean(rows, "seconds"),
        "seconds": seconds,
        "device": devices.describe(device),
        "skipped": skipped,
    }
    if memory:
        summary["peak_memory_mb"] = {str(n): speed.memory(weights, device, n) for n in MEMORY_OF}
    metrics.write(out, rows, summary)
    pictures.save_sheets(out, sheet, [*networks.rows, "truth"])
    if figure:
        drawn = done if triplets else [done[i] for i in liveliest(rows)]
        pictures.save(draw(networks, drawn, device), Path(figure))
    return summary


def load(weights: str, ablate, frame_interpolator: str, device: torch.device, jobs: Path | None = None) -> Networks:
    """The networks of a weights folder and of the ablations NAME=FOLDER.

    Raises:
        LimError: `bad_request` for an ablation without a name or of a row's name; `weights_missing`, `weights_broken`.
    """
    folders = checkpoint.folders(weights)
    lrm = checkpoint.load(folders["lrm"], "lrm", device)
    interpolator = flow.load(frame_interpolator, device) if frame_interpolator else None
    motion = checkpoint.load(folders["motion"], "motion", device) if "motion" in folders else None
    networks = Networks(lrm, checkpoint.load(folders["lim"], "lim", device), {}, interpolator, jobs, weights, motion)
    for text in ablate:
        name, _, folder = text.rpartition("=")  # a name may hold an equals sign itself: blocks=3
        if not name or name in networks.rows:
            raise LimError("bad_request", f"“{text}” does not name a new row and its folder.", "Write NAME=FOLDER.")
        place = Path(folder)
        lim = checkpoint.load(place / "lim" if (place / "lim").is_dir() else place, "lim", device)
        own = checkpoint.load(place / "lrm", "lrm", device) if (place / "lrm").is_dir() else lrm
        networks.ablations[name] = (own.with_lim_blocks(lim.config.lim_blocks), lim)
    return networks


def predict(networks: Networks, seen: Triplet, device) -> tuple[dict[str, Middle], float]:
    """Every row's middle, and the seconds of LIM's one."""
    lrm, first, last = networks.lrm, seen.views(0, device), seen.views(2, device)
    start, features = lrm(first)
    half = torch.tensor([0.5], device=device)
    condition = networks.lim.condition(last)
    devices.synchronise(device)
    started = time.monotonic()
    between, _ = networks.lim(features, condition, half)
    devices.synchronise(device)
    seconds = time.monotonic() - started
    end = lrm(last)[0]
    middle = flow.between(seen.capture, 0, 2, 0.5, networks.interpolator)
    true = lrm(seen.views(1, device))[0]
    middles: dict[str, Middle] = {
        "linear": (start + end) / 2,
        "flow": lrm(middle.network_views(0, seen.size, device))[0],
        "flow_rgb": lrm(dataclasses.replace(middle, depth_planar=None).network_views(0, seen.size, device))[0],
        "lim": between,
        "anchored": Anchors(networks.lim(features, condition, start.new_tensor(ENDS))[0], start, end).hold(
            between, half
        ),
        "straight": lrm(seen.views(3, device))[0],
        "oracle": true,
        "oracle_pictured": Pictured(true, seen.capture.image_colour(lrm.decoder, 1, device)),
    }
    if networks.motion:
        interval = moved.Between(networks.motion, seen.capture, 0, 2, seen.size)
        outer = torch.cat([lrm(interval.views_at(alpha))[0] for alpha in ENDS])
        shown = interval.views_at(0.5)
        middles["moved"] = Anchors(outer, start, end).hold(lrm(shown)[0], half)
        middles["lim_moved"] = networks.lim(features, condition, half, shown)[0]
    for name, (own, lim) in networks.ablations.items():
        given = features if own is lrm else own(first)[1]
        middles[name] = lim(given, lim.condition(last), half)[0]
    if networks.jobs:
        mesh = middles["mesh"] = Mesh(*delivered(seen, networks.jobs, networks.weights, device))
        rig = slice(0, seen.capture.rig_views)
        placed = seen.capture.camera_to_world[rig], seen.capture.intrinsics[rig]
        evidence = drawn.shown(mesh.pack, mesh.vertices, *placed, seen.capture.rgba.shape[2])
        planes = middles["carried"] = lrm(evidence.network_views(0, seen.size, device))[0]
        middles["carried_pictured"] = Pictured(planes, evidence.image_colour(lrm.decoder, 0, device))
    return middles, seconds


def delivered(seen: Triplet, jobs: Path, weights: str, device) -> tuple[packs.Pack, np.ndarray]:
    """The textured mesh of a job (draft quality) whose keyframes are a triplet's ends, and its vertices half-way [V, 3].

    Args:
        jobs: the job's folder is kept in here.
    """
    job = jobs / f"{seen.span.asset}_{seen.span.clip}_{seen.span.start:g}"
    asked = request.Request.for_quality(
        "draft", keyframes=(0.0, 2.0), inbetweens=1, weights=weights, name=seen.span.asset
    )
    asked = tracing.write_job(seen.pack, seen.positions[[0, 2]], job, asked)
    found = pipeline.run(job, asked, device, Silent())
    return tracing.painted(found), tracing.in_world(asked, found[Fitted].positions[1])


def summarise(rows: list[dict], names: tuple[str, ...], gap: float) -> dict:
    """The means of every row, how much of the gap from linear to oracle LIM closes, and the same for the liveliest third."""

    def table(some: list[dict]) -> dict:
        return {name: {m: metrics.mean(some, f"{name}.{m}") for m in (*metrics.PICTURE, "mask_iou")} for name in names}

    lively = sorted(rows, key=lambda row: -row["motion"])[: max(1, len(rows) // 3)]
    found, high = table(rows), table(lively)
    measures = ("psnr", "psnr_fg")
    return {
        "gap": gap,
        "motion": metrics.mean(rows, "motion"),
        "bend": metrics.mean(rows, "bend"),
        "rows": found,
        "gap_closed": {m: gap_closed(found, m) for m in measures},
        "gap_closed_by": {
            name: {m: gap_closed(found, m, name) for m in measures}
            for name in names
            if name not in ("linear", "oracle", "oracle_pictured")
        },
        "high_motion": {
            "rows": high,
            "gap_closed": {m: gap_closed(high, m) for m in measures},
            "triplets": len(lively),
        },
        "scenes": len({row["asset"] for row in rows}),
        "triplets": len(rows),
    }


def gap_closed(table: dict, measure: str, row: str = "lim") -> float | None:
    """(row − linear) / (oracle − linear); None where there is no gap to close. The oracle of a row `_pictured` is pictured, too."""
    best = "oracle_pictured" if row.endswith("_pictured") else "oracle"
    linear, lim, oracle = (table[name][measure] for name in ("linear", row, best))
    return round((lim - linear) / (oracle - linear), 4) if oracle - linear > 1e-3 else None


def liveliest(rows: list[dict]) -> list[int]:
    """Indices of the rows that move most, one for each asset, `SHOWN` of them."""
    best: dict[str, int] = {}
    for index in sorted(range(len(rows)), key=lambda i: -rows[i]["motion"]):
        best.setdefault(rows[index]["asset"], index)
    return list(best.values())[:SHOWN]


def draw(networks: Networks, spans: list[Span], device) -> Image.Image:
    """The paper's figure 4: for each triplet its ends, every row's middle and the true one, in one held-out view."""
    lines = []
    for span in spans:
        seen = Triplet(span, networks.lrm.config.image_size, FIGURE_SIZE)
        middles, _ = predict(networks, seen, device)
        shown = [networks.render(name, middles[name], FIGURE_SIZE, 1)[0][0] for name in networks.rows]
        ends = [end.images[0] for end in seen.outer]
        part = pictures.crop(np.stack([seen.real.mask[0], *(end.mask[0] for end in seen.outer)]))
        images = [pictures.resized(image[part], FIGURE_SIZE) for image in (*ends, *shown, seen.real.images[0])]
        lines.append(pictures.Row(span.asset, span.place, images))
    return pictures.sheet(lines, ["first", "last", *networks.rows, "truth"])
