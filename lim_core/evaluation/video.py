# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core evaluate video`: clips of 16 frames rendered from one view, everything else made up (section 4.3).

Rows: `ours` (the whole video path), `single_view` (the reconstructor on the one view, frame by frame, as TripoSR in the
paper; its meshes tracked by the nearest point of the next), and `oracle_views` (the whole path on the rig's true views). What
is compared are the even frames, which are interpolated, from four cameras at random.

`fvd` (of the 4 × 7 pictures, stretched to 16 frames) and `lpips` need weights that are not shipped: null without.
`frechet_patch_distance` needs none: the Fréchet distance between Gaussians of small space-time patches (2 frames × 8 × 8
pixels of 64² pictures, 48 principal components of the truth). The summary is written anew after every clip.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import linalg
from scipy.spatial import cKDTree

from ..job import drawn
from ..job.capture import Capture
from ..job.reporter import Silent
from ..mesh import packs, rays, surface
from ..mesh.packs import Pack
from ..networks import checkpoint, perceptual, triplane
from ..networks import device as devices
from ..networks.render import occupancy, render_image
from ..shared import cameras, protocol
from ..shared.errors import LimError
from ..shared.request import Request
from ..stages import of_networks, pipeline
from ..video import adapters, importing
from . import metrics, pictures, scenes, tracking

ROWS = ("ours", "single_view", "oracle_views")
FRAMES, STEP, SIZE, SHOWN = 16, 2, 256, 128
NOVEL = 4
FACES, TEXTURE, GRID = 4000, 512, 96  # of a job's mesh; of a single view's surface
SECONDS = 1.25  # of the clip, at most
NAMES = (*metrics.PICTURE, "silhouette_iou", "track_error", "cd3d", "cd4d", "cdm", "jitter", "seconds")


@dataclasses.dataclass
class Moving:
    """A result to be measured: pictures float [E, N, H, W, 3] on white of the even frames, silhouettes bool [T, H, W] at the
    clip's view, positions [T, V, 3], faces [F, 3]."""

    pictures: np.ndarray
    silhouettes: np.ndarray
    positions: np.ndarray
    faces: np.ndarray
    seconds: float


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lpips", default="", help="file with the weights of the perceptual distance; without: null")
    parser.add_argument("--fvd", default="", help="TorchScript file of an I3D video network; without: null")
    parser.add_argument(
        "--rows", dest="asked", nargs="+", choices=ROWS, default=ROWS, help="only these, for a first look"
    )
    parser.add_argument("--views-model", default="", help="folder of the multi-view pipeline; default: the bundled one")


@torch.no_grad()
def evaluate(
    packs_folder: str, out: str, *, weights: str = "", device="cpu", limit: int | None = None, lpips: str = "",
    fvd: str = "", views_model: str = "", asked: Sequence[str] = ROWS,
) -> dict:  # fmt: skip
    """Measure, write results.csv, summary.json and contact sheets into `out`, and return the summary.

    Args:
        asked: of ROWS; the others are left out.
    Raises:
        LimError: `bad_pack` where no pack can be measured; a single bad one is skipped and named in the summary.
    """
    out, device = Path(out), torch.device(device)
    lrm = checkpoint.load(checkpoint.folders(weights)["lrm"], "lrm", device)
    model = adapters.load(Path(views_model) if views_model else checkpoint.BUNDLED / "multiview", device)
    judge = perceptual.load(lpips).to(device) if lpips else None
    asked = [name for name in ROWS if name in asked]
    rows, sheet = [], []
    skipped: list[dict] = []
    seen: dict[str, list[np.ndarray]] = {name: [] for name in ("truth", *asked)}
    for number, path in enumerate(scenes.evenly(packs.list_packs(packs_folder), limit)):
        with scenes.skipping(skipped, path.stem):
            pack = packs.load(path)
            clip, middle = scenes.liveliest(pack)
            half = min(middle, SECONDS * pack.fps / 2)
            positions = pack.model_positions(clip, np.linspace(middle - half, middle + half, FRAMES))
            truth = rendered(pack, positions, number, 0.0)
            shown_clip = pack, positions, number
            found = {}
            for name in asked:
                if name == "single_view":
                    found[name] = single_view(lrm, *shown_clip, device)
                else:
                    found[name] = whole_path(*shown_clip, weights, device, model if name == "ours" else None)
            row = {"asset": path.stem, "clip": pack.clip_names[clip]}
            for name, result in found.items():
                row |= {f"{name}.{k}": v for k, v in measure(result, truth, pack, positions, judge).items()}
            for name, result in {"truth": truth, **found}.items():
                seen[name].append(result.pictures)
            rows.append(row)
            middle = len(truth.pictures) // 2
            shown = [source_view(pack, positions[FRAMES // 2]), truth.pictures[middle, 0]]
            shown += [found[name].pictures[middle, 0] for name in asked]
            sheet.append(pictures.Row(path.stem, f"{row[f'{asked[0]}.psnr']:.1f} dB", shown))
            print(
                f"{path.stem}: " + " ".join(f"{k}={v:.3g}" for k, v in row.items() if isinstance(v, float)), flush=True
            )
            write(out, rows, seen, skipped, sheet, fvd, device)
    scenes.need_any(rows, skipped, packs_folder)
    return write(out, rows, seen, skipped, sheet, fvd, device)


def write(out: Path, rows: list[dict], seen: dict, skipped: list[dict], sheet: list[pictures.Row], fvd: str, device):
    """All results of the clips so far; returns the summary."""
    asked = [name for name in ROWS if name in seen]
    table = {name: {measured: metrics.mean(rows, f"{name}.{measured}") for measured in NAMES} for name in asked}
    for name in asked:
        table[name]["frechet_patch_distance"] = round(frechet(*(patches(seen[n]) for n in (name, "truth"))), 5)
        table[name]["fvd"] = (
            round(frechet(*(features(seen[n], fvd, device) for n in (name, "truth"))), 3) if fvd else None
        )
    summary = {
        "rows": table, "clips": len(rows), "frames": FRAMES, "keyframe_step": STEP, "elevation": cameras.RIG[0][1],
        "device": devices.describe(device), "skipped": skipped,
    }  # fmt: skip
    metrics.write(out, rows, summary)
    pictures.save_sheets(out, sheet, ["the clip", "truth", *(name.replace("_", " ") for name in asked)])
    return summary


# ---- what is compared --------------------------------------------------------------------------------------------------


def novel_cameras(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four cameras at random, the same for every row of a clip."""
    rng = np.random.default_rng([7, seed])
    places = [(rng.uniform(0, 360), rng.uniform(-10, 50)) for _ in range(NOVEL)]
    return np.stack([cameras.look_at(*p) for p in places]), np.stack([cameras.pinhole(SHOWN)] * NOVEL)


def even_frames() -> range:
    """Indices of the frames between keyframes: frames 2, 4, … of the clip; the last frame is a keyframe in any case."""
    return range(1, FRAMES - 1, 2)


def rendered(pack: Pack, positions: np.ndarray, seed: int, seconds: float) -> Moving:
    camera, lens = novel_cameras(seed)
    pictures = [
        rays.over(rays.render(pack, positions[t], camera, lens, SHOWN, supersampling=2).rgba) for t in even_frames()
    ]
    first, first_lens = cameras.job_cameras(SHOWN, 1, 1)
    silhouettes = [rays.render(pack, p, first, first_lens, SHOWN).mask[0] for p in positions]
    return Moving(np.stack(pictures), np.stack(silhouettes), positions, pack.faces, seconds)


def source_view(pack: Pack, positions: np.ndarray) -> np.ndarray:
    """What the clip shows, float [H, W, 3]."""
    camera, lens = cameras.job_cameras(SHOWN, 1, 1)
    return rays.over(rays.render(pack, positions, camera, lens, SHOWN, supersampling=2).rgba)[0]


def measure(found: Moving, truth: Moving, pack: Pack, positions: np.ndarray, judge) -> dict[str, float | None]:
    """Everything that is measured clip by clip; `track_error` in % of the object's diagonal at the first frame."""
    shown, real = (x.pictures.reshape(-1, *x.pictures.shape[2:]).clip(0, 1) for x in (found, truth))
    compared = metrics.pictures(shown, real, (real < 0.99).any(-1), judge)
    points = tracking.material_points(found.positions[0], found.faces, positions[0], pack.faces)
    true = metrics.at_places(positions, pack.faces, *points)
    diagonal = float(np.linalg.norm(np.ptp(positions[0], axis=0)))
    return compared | {
        "silhouette_iou": float(np.mean([metrics.iou(a, b) for a, b in zip(found.silhouettes, truth.silhouettes)])),
        "track_error": float(np.linalg.norm(found.positions[1:] - true[1:], axis=-1).mean() / diagonal * 100),
        **tracking.chamfers(found.positions, found.faces, positions, pack.faces),
        "jitter": tracking.jitter(found.positions, true),
        "seconds": found.seconds,
    }


# ---- the rows ----------------------------------------------------------------------------------------------------------


def whole_path(pack: Pack, positions: np.ndarray, seed: int, weights: str, device, model) -> Moving:
    """A job on the clip; with `model` None on the rig's true views instead of generated ones."""
    keyframes = [*range(0, FRAMES - 1, STEP), FRAMES - 1]
    asked = Request(
        keyframes=tuple(float(k + 1) for k in keyframes), inbetweens=STEP - 1, image_size=SIZE, views=4 + 4 * bool(model),
        template_faces=FACES, texture_size=TEXTURE, weights=weights, elevation=cameras.RIG[0][1],
        source="video" if model else "objects",
    )  # fmt: skip
    reporter = Silent()
    camera, lens = cameras.job_cameras(SIZE, 4)
    count = 1 if model else 4
    seen = [rays.render(pack, positions[k], camera[:count], lens[:count], SIZE) for k in keyframes]
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder)
        started = time.monotonic()
        if model:
            importing.make_views(job, asked, np.stack([s.rgba[0] for s in seen]), model, reporter)
        else:
            rgba, depth = np.stack([s.rgba for s in seen]), np.stack([s.depth_planar for s in seen])
            Capture(rgba, depth, camera, lens, asked.rig_views).write(job)
        pipeline.run(job, asked, device, reporter)
        seconds = time.monotonic() - started
        with np.load(job / protocol.RESULT_ARRAYS) as arrays:
            found = {name: arrays[name] for name in ("positions", "frames", "faces", "loop_uvs")}
        texture = np.asarray(Image.open(job / protocol.TEXTURE_FILE).convert("RGB"))
    index = [int(np.abs(found["frames"] - frame).argmin()) for frame in range(1, FRAMES + 1)]
    mesh = drawn.textured(found["positions"][index], found["faces"], found["loop_uvs"], texture)
    return rendered(mesh, found["positions"][index], seed, seconds)


def single_view(lrm, pack: Pack, positions: np.ndarray, seed: int, device) -> Moving:
    """Every frame by itself from the clip's view alone; the first frame's mesh follows the nearest points of the next."""
    size = lrm.config.image_size
    camera, lens = cameras.job_cameras(SIZE, 1, 1)
    novel, novel_lens = novel_cameras(seed)
    first, first_lens = cameras.job_cameras(SHOWN, 1, 1)
    started, measuring = time.monotonic(), 0.0
    pictures, silhouettes, followed, faces = [], [], [], None
    for t in range(FRAMES):
        began = time.monotonic()
        rgba = rays.render(pack, positions[t], camera, lens, SIZE).rgba
        measuring += time.monotonic() - began
        shown = Capture(rgba[None], None, camera, lens, 1).network_views(0, size, device)
        planes, _ = lrm(shown)
        grid = triplane.density_grid(lrm.decoder, planes, GRID).cpu().numpy()
        vertices, triangles = surface.marching_cubes(grid, min(of_networks.SURFACE_LEVEL, 0.5 * float(grid.max())))
        if faces is None:
            vertices, faces = surface.simplify(vertices, triangles, FACES)
            followed.append(vertices)
        else:
            points = metrics.sample_surface(vertices, triangles, 50_000)
            followed.append(points[cKDTree(points).query(followed[-1])[1]].astype(np.float32))
        began = time.monotonic()
        busy = occupancy(lrm.decoder, planes)
        if t in even_frames():
            pictures.append([_drawn(lrm, planes, busy, c, k)[0] for c, k in zip(novel, novel_lens)])
        silhouettes.append(_drawn(lrm, planes, busy, first[0], first_lens[0])[1])
        measuring += time.monotonic() - began
    seconds = time.monotonic() - started - measuring
    return Moving(np.array(pictures), np.stack(silhouettes), np.stack(followed), faces, seconds)


def _drawn(lrm, planes: torch.Tensor, busy: torch.Tensor, camera: np.ndarray, lens: np.ndarray):
    """A picture [H, W, 3] of a triplane and its silhouette [H, W]."""
    where = planes.device
    camera, lens = torch.from_numpy(camera).to(where), torch.from_numpy(lens).to(where)
    colour, _, mask = render_image(lrm.decoder, planes, camera, lens, SHOWN, samples=64, busy=busy)
    return colour.cpu().numpy().clip(0, 1), mask.cpu().numpy() > 0.5


# ---- distances between sets of videos ---------------------------------------------------------------------------------


def patches(videos: list[np.ndarray]) -> np.ndarray:
    """Space-time patches [P, 2·8·8·3] of videos [E, N, H, W, 3] (frames, cameras), each picture averaged down to 64²."""
    rows = []
    for pixels in videos:
        frames, views, size = pixels.shape[:3]
        factor = size // 64
        small = pixels.reshape(frames, views, 64, factor, 64, factor, 3).mean((3, 5))
        pairs = np.stack([small[:-1], small[1:]], 2)  # E-1 N 2 64 64 3
        cells = pairs.reshape(frames - 1, views, 2, 8, 8, 8, 8, 3).transpose(0, 1, 3, 5, 2, 4, 6, 7)
        rows.append(cells.reshape(-1, 2 * 8 * 8 * 3).astype(np.float32))
    return np.concatenate(rows)


def features(videos: list[np.ndarray], file: str, device) -> np.ndarray:
    """I3D features [V, D] of every camera's video, as FVD takes them: 224², at least 16 frames, values from -1 to 1.

    Raises:
        LimError: weights_broken.
    """
    try:
        network = torch.jit.load(file, map_location=device).eval()
        rows = []
        for pixels in videos:
            clip = torch.from_numpy(pixels).float().permute(1, 4, 0, 2, 3).to(device)  # N 3 E H W
            clip = torch.nn.functional.interpolate(clip, size=(max(16, clip.shape[2]), 224, 224), mode="trilinear")
            rows.append(network(clip * 2 - 1).flatten(1).cpu().numpy())
    except (RuntimeError, OSError, ValueError) as error:
        raise LimError("weights_broken", f"The video network {file} cannot be used: {error}.") from None
    return np.concatenate(rows)


def frechet(ours: np.ndarray, true: np.ndarray, components: int = 48) -> float:
    """|μ − μ'|² + tr(C + C' − 2 (C C')^½) of Gaussians, in at most so many principal components of the truth."""
    _, _, basis = np.linalg.svd(true - true.mean(0), full_matrices=False)
    ours, true = (x.astype(np.float64) @ basis[:components].T for x in (ours, true))
    one, two = np.cov(true, rowvar=False), np.cov(ours, rowvar=False)
    root = linalg.sqrtm(one @ two)
    return max(float(((true.mean(0) - ours.mean(0)) ** 2).sum() + np.trace(one + two - 2 * np.real(root))), 0.0)
