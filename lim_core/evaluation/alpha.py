# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core evaluate alpha`: what happens between two keyframes, at nine moments against the true frames.

Rows: `linear` (blend of the keyframes' triplanes), `lim`, `anchored` (`lim.Anchors`), `reversed` (LIM with the keyframes swapped, at 1 − α), `oracle` (LRM on
the true moment). For each, pictures of two held-out views and the distance of its triplane to the oracle's. From them:

    ends          LIM minus LRM in dB, at α = 0 and at α = 1
    bump          the largest loss against the oracle over the mean of its two neighbours' losses, in dB
    reversal      how far LIM and its reversed self are apart
    acceleration  of surface points that are followed in the rendered depth, against the truth's own
    still         LIM between a keyframe and itself against LRM on that keyframe
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from ..mesh import packs
from ..networks import checkpoint, perceptual
from ..networks import device as devices
from ..networks.lim import ENDS, LIM, Anchors
from ..networks.lrm import LRM
from ..shared import cameras
from . import metrics, pictures, scenes
from .scenes import Span
from .speed import BATCH

ALPHAS = tuple(i / 8 for i in range(9))
ROWS = ("linear", "lim", "anchored", "reversed", "oracle")
VIEWS = 2  # of the held-out ones
FOLLOWED = 3000  # surface points
SEEN = 0.02  # model units between a point and the true depth at its pixel, above which something hides it
LOST = 0.2  # model units between a point and a row's depth at its pixel, above which the row shows something else there


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gap", type=float, default=0.4, help="seconds between the two keyframes")
    parser.add_argument("--lpips", default="", help="file with the weights of the perceptual distance; without: null")


@torch.no_grad()
def evaluate(
    packs_folder: str, out: str, *, weights: str = "", device="cpu", limit: int | None = None, gap: float = 0.4,
    lpips: str = "",
) -> dict:  # fmt: skip
    """Measure the middle of every asset's liveliest clip; write results.csv (a row per asset and moment), summary.json, contact
    sheets and curve.png into `out`, and return the summary.

    Raises:
        LimError: `bad_request` for an impossible gap, `bad_pack` where nothing can be measured, `backend_broken` where the
            curve cannot be drawn (all else is written by then).
    """
    out, device = Path(out), torch.device(device)
    folders = checkpoint.folders(weights)
    lrm = checkpoint.load(folders["lrm"], "lrm", device)
    lim = checkpoint.load(folders["lim"], "lim", device)
    judge = perceptual.load(lpips).to(device) if lpips else None
    rows, sheet = [], []
    skipped: list[dict] = []
    for span in scenes.evenly(scenes.liveliest_spans(packs_folder, gap, skipped), limit):
        with scenes.skipping(skipped, span.asset):
            measured, images = measure(span, lrm, lim, judge, device)
            rows += measured
            sheet += [pictures.Row(span.asset, name, shown) for name, shown in images.items()]
            metrics.write_rows(out, rows)
            loss = [row["oracle.psnr_fg"] - row["lim.psnr_fg"] for row in measured]
            print(f"{span.name}: below the oracle by " + " ".join(f"{x:.2f}" for x in loss) + " dB", flush=True)
    scenes.need_any(rows, skipped, packs_folder)
    summary = summarise(rows, gap) | {"device": devices.describe(device), "skipped": skipped}
    metrics.write(out, rows, summary)
    pictures.save_sheets(out, sheet, [f"alpha {a:g}" for a in ALPHAS])
    curves = summary["curves"]
    panels = {"foreground PSNR (dB)": "psnr_fg", "PSNR (dB)": "psnr", "distance to the oracle's triplane": "distance"}
    shown = {title: {row: curves[row][key] for row in ROWS if key in curves[row]} for title, key in panels.items()}
    pictures.curves(out / "curve.png", list(ALPHAS), shown)
    return summary


def measure(span: Span, lrm: LRM, lim: LIM, judge, device) -> tuple[list[dict], dict[str, list[np.ndarray]]]:
    """Rows of one pair of keyframes, one for each α; and pictures of the first view, by row."""
    pack = packs.load(span.path)
    positions = span.positions(pack, ALPHAS)
    size = lrm.config.image_size
    capture = scenes.capture(pack, positions, size)
    real = [scenes.truth(pack, p, positions[0], views=VIEWS) for p in positions]
    moments = [capture.network_views(i, size, device) for i in range(len(ALPHAS))]
    planes, still = between(lrm, lim, moments)

    spread = torch.cat(planes["oracle"]).std((0, 3, 4), keepdim=True).clamp_min(1e-6)
    rendered = {row: [scenes.render(lrm.decoder, p, views=VIEWS) for p in planes[row]] for row in ROWS}
    images = {row: [content.clip(0, 1) for content, _, _ in rendered[row]] for row in ROWS}
    quiet = scenes.render(lrm.decoder, still, views=VIEWS)[0].clip(0, 1)
    depths = {row: np.stack([depth for _, depth, _ in rendered[row]]) for row in ROWS}
    depths["truth"] = np.stack([r.depth_planar for r in real])
    # Between its stored frames a pack moves in straight lines: accelerations are those of stored frames.
    stride = next((s for s in (1, 2) if s * span.length >= 0.99 * (len(ALPHAS) - 1)), 4)
    followed = accelerations(positions[::stride], pack.faces, {row: d[::stride] for row, d in depths.items()})
    table = []
    for i, alpha in enumerate(ALPHAS):
        row = {"asset": span.asset, "clip": span.clip_name, "start": span.start / span.fps, "alpha": alpha}
        row["motion"] = scenes.motion(positions)
        for name in ROWS:
            measured = metrics.pictures(images[name][i], real[i].images, real[i].mask, judge)
            if name != "oracle":
                measured["distance"] = _distance(planes[name][i], planes["oracle"][i], spread)
            row |= {f"{name}.{key}": value for key, value in measured.items()}
        pair = metrics.pictures(images["lim"][i], images["reversed"][i], real[i].mask)
        row |= {f"reversal.{key}": pair[key] for key in ("psnr", "psnr_fg")}
        row["reversal.distance"] = _distance(planes["lim"][i], planes["reversed"][i], spread)
        if i == 0:
            pair = metrics.pictures(quiet, images["oracle"][0], real[0].mask)
            row |= {f"still.{key}": pair[key] for key in ("psnr", "psnr_fg")}
            row["still.distance"] = _distance(still, planes["oracle"][0], spread)
            row |= {f"acceleration.{key}": value for key, value in followed.items()}
        table.append(row)
    shown = {row: [views[0] for views in images[row]] for row in ROWS}
    return table, shown | {"truth": [r.images[0] for r in real]}


def between(lrm: LRM, lim: LIM, moments: list) -> tuple[dict[str, list[torch.Tensor]], torch.Tensor]:
    """Triplanes [1, 3, C, R, R] of every row at every moment, and LIM's half-way between the first moment and itself."""
    oracle, features = zip(*(lrm(m) for m in moments))
    there, back = lim.condition(moments[-1]), lim.condition(moments[0])
    alphas = torch.tensor(ALPHAS, device=oracle[0].device)
    forward = torch.cat([lim(features[0], there, part)[0] for part in alphas.split(BATCH)])
    backward = torch.cat([lim(features[-1], back, part)[0] for part in (1 - alphas).split(BATCH)])
    anchors = Anchors(lim(features[0], there, oracle[0].new_tensor(ENDS))[0], oracle[0], oracle[-1])
    still = lim(features[0], back, alphas.new_tensor([0.5]))[0]
    planes = {
        "linear": [torch.lerp(oracle[0], oracle[-1], a) for a in alphas],
        "lim": list(forward.split(1)),
        "anchored": list(anchors.hold(forward, alphas).split(1)),
        "reversed": list(backward.split(1)),
        "oracle": list(oracle),
    }
    return planes, still


def _distance(one: torch.Tensor, two: torch.Tensor, spread: torch.Tensor) -> float:
    """Root mean square difference of triplanes, in the spread of each channel."""
    return float((((one - two) / spread) ** 2).mean().sqrt())


def accelerations(positions: np.ndarray, faces: np.ndarray, depths: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over followed surface points, in model units per squared interval between the keyframes.

    A material point is followed along its true pixel: where a row's depth puts the surface that is seen there. `<row>` is the
    size of the acceleration, `<row>.error` that of its difference from the material point's own, `true` the latter's size, and
    `<row>.share` the part of the truly visible points that the row shows at all three moments.

    Args:
        positions: [T, V, 3] at evenly spaced moments; depths: [T, N, H, W] planar, of N held-out views, by row; of them
            `truth` tells which points are visible.
    """
    places = metrics.surface_places(positions[0], faces, FOLLOWED)
    points = metrics.at_places(positions, faces, *places)
    moments, views, size = depths["truth"].shape[:3]
    squared = (1 / (moments - 1)) ** 2
    true = np.diff(points, n=2, axis=0) / squared
    sizes: dict[str, list[np.ndarray]] = {name: [] for name in ("true", *depths)}
    errors: dict[str, list[np.ndarray]] = {name: [] for name in depths}
    count = 0
    for view, (pose, lens) in enumerate(zip(*scenes.held_out(size, views))):
        pixels, z = (np.stack(x) for x in zip(*(cameras.project(p, pose, lens) for p in points)))
        shown = {name: np.stack([sampled(d[t, view], pixels[t]) for t in range(moments)]) for name, d in depths.items()}
        seen = np.abs(shown["truth"] - z) < SEEN
        visible = seen[:-2] & seen[1:-1] & seen[2:]
        sizes["true"].append(np.linalg.norm(true[visible], axis=-1))
        count += visible.sum()
        for name, depth in shown.items():
            # The point at that depth on the ray through the material point: its own, moved along the ray.
            track = pose[:3, 3] + (points - pose[:3, 3]) * (depth / z)[..., None]
            kept = np.abs(depth - z) < LOST
            kept = visible & kept[:-2] & kept[1:-1] & kept[2:]
            second = np.diff(track, n=2, axis=0)[kept] / squared
            sizes[name].append(np.linalg.norm(second, axis=-1))
            errors[name].append(np.linalg.norm(second - true[kept], axis=-1))
    answer = {name: metrics.finite_mean(np.concatenate(parts)) for name, parts in sizes.items()}
    answer |= {f"{name}.error": metrics.finite_mean(np.concatenate(parts)) for name, parts in errors.items()}
    return answer | {f"{name}.share": sum(map(len, parts)) / max(count, 1) for name, parts in errors.items()}


def sampled(depth_planar: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Bilinear depth [N] at pixels [N, 2]; NaN outside the picture and where one of the four neighbours has none or
    belongs to another surface."""
    height, width = depth_planar.shape
    place = pixels - 0.5
    low = np.floor(place).astype(int)
    inside = (low >= 0).all(1) & (low[:, 0] < width - 1) & (low[:, 1] < height - 1)
    column, row = np.clip(low[:, 0], 0, width - 2), np.clip(low[:, 1], 0, height - 2)
    corners = np.stack([depth_planar[row + i, column + j] for i in (0, 1) for j in (0, 1)])
    u, v = (place - low).T
    weights = np.stack([(1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u])
    sound = inside & (corners > 0).all(0) & (np.ptp(corners, axis=0) < 0.1)
    return np.where(sound, (corners * weights).sum(0), np.nan)


def summarise(rows: list[dict], gap: float) -> dict:
    """Curves over α, and the numbers that a reader looks for in them."""

    def at(alpha: float, name: str) -> float | None:
        return metrics.mean([row for row in rows if row["alpha"] == alpha], name)

    measures = (*metrics.PICTURE, "distance")
    curves = {name: {m: [at(a, f"{name}.{m}") for a in ALPHAS] for m in measures} for name in ROWS}
    del curves["oracle"]["distance"]

    def ahead(index: int) -> dict[str, float | None]:
        """LIM minus the oracle."""
        values = {m: (curves["lim"][m][index], curves["oracle"][m][index]) for m in ("psnr", "psnr_fg")}
        return {m: None if None in pair else round(pair[0] - pair[1], 4) for m, pair in values.items()}

    firsts = [row for row in rows if row["alpha"] == ALPHAS[0]]
    kept = [key for key in firsts[0] if key.startswith(("still.", "acceleration."))]
    return {
        "gap": gap,
        "alphas": list(ALPHAS),
        "curves": curves,
        "ends": {"first": ahead(0), "last": ahead(-1)},
        "bump": {m: bump(curves["oracle"][m], curves["lim"][m]) for m in ("psnr", "psnr_fg")},
        "reversal": {m: metrics.mean(rows, f"reversal.{m}") for m in ("psnr", "psnr_fg", "distance")},
        "still": {k.partition(".")[2]: metrics.mean(firsts, k) for k in kept if k.startswith("still.")},
        "acceleration": {k.partition(".")[2]: metrics.mean(firsts, k) for k in kept if k.startswith("acceleration.")},
        "scenes": len({row["asset"] for row in rows}),
        "pairs": len(firsts),
    }


def bump(oracle: list[float | None], lim: list[float | None]) -> float | None:
    """By how many dB the worst moment's loss stands above the mean of its neighbours'; below 0 the curve has no bump."""
    if None in oracle or None in lim:
        return None
    loss = np.subtract(oracle, lim)
    return round(float((loss[1:-1] - (loss[:-2] + loss[2:]) / 2).max()), 4)
