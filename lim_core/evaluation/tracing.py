# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core evaluate tracing`: one mesh through 8 steps of a clip, as in the paper's Table 3, and against the truth.

Every pack gives 8 steps, up to 0.2 s apart, of its liveliest clip. They are captured as Blender would capture them, and run
as a job. Every step is a keyframe, as every step of the paper's sequences has its frame set; half-way between two of them
the in-betweens are measured apart. With `--every 2` only every second step (and the last) is captured.

| row | what |
|---|---|
| `nn` | the paper's baseline: nearest surface point in position and colour, time after time, on the networks' surfaces |
| `lim` | the paper's trace: nearest canonical coordinate |
| `lim_arap` | canonical matching and ARAP together: the feed-forward result of a job |
| `register` | keyframes fitted onto the captured depth, without the networks |
| `lim_fit` | the same with the networks: the result of a job |

All rows share template and texture. The truth's correspondences serve to measure, never to trace.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from ..job import artefacts, capture, drawn
from ..job.artefacts import Artefact, Fitted, Found, Surfaces, Template, Textured
from ..job.capture import Capture
from ..job.reporter import Silent
from ..job.state import State, code_key, key_of
from ..mesh import packs, rays
from ..mesh.packs import Pack
from ..networks import checkpoint, perceptual
from ..networks import device as devices
from ..shared import cameras, protocol, request
from ..shared.request import Request
from ..stages import of_mesh, of_networks, pipeline
from ..tracking import trace
from . import metrics, pictures, scenes, tracking

STEPS = 8
STEP_SECONDS = 0.2
ROWS = ("nn", "lim", "lim_arap", "register", "lim_fit")
NAMES = (
    *metrics.PICTURE, "track_error", "track_error_p95", "between_error", "cd3d", "cd4d", "cdm", "flipped",
    "self_intersections", "jitter", "seconds",
)  # fmt: skip
SHOWN = ("lim_fit", "register", "lim_arap")  # on the contact sheet, beside the truth


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--every", type=int, default=1, choices=range(1, STEPS), help="steps from keyframe to keyframe")
    parser.add_argument("--quality", default="standard", choices=request.QUALITIES, help="of the capture")
    parser.add_argument("--lpips", default="", help="file with the weights of the perceptual distance; without: null")
    parser.add_argument("--gallery", default="", help="picture to write (.jpg): every asset, captured and traced")


def evaluate(
    packs_folder: str, out: str, *, weights: str = "", device="cpu", limit: int | None = None, every: int = 1,
    quality: str = "standard", lpips: str = "", gallery: str = "",
) -> dict:  # fmt: skip
    """Measure, write results.csv, summary.json and contact sheets into `out`, and return the summary.

    All but the sheets are written after every asset.

    Args:
        every: steps from keyframe to keyframe; quality: of the capture, one of `request.QUALITIES`.
        gallery: file of a picture of all assets, the traced mesh below what was captured.
    Raises:
        LimError: `bad_pack` where no pack can be measured; a single bad one is skipped and named in the summary.
    """
    out = Path(out)
    judge = perceptual.load(lpips).to(device) if lpips else None
    rows, sheet, exhibits = [], [], []
    skipped: list[dict] = []
    classes: dict[str, list] = {name: [] for name in ROWS}
    for path in scenes.evenly(packs.list_packs(packs_folder), limit):
        with scenes.skipping(skipped, path.stem):
            sequence = Sequence.liveliest(packs.load(path), every)
            job = out / "jobs" / path.stem
            asked = make_job(sequence, job, weights, quality)
            seen = capture.read(job, asked)
            traces, found = traced(job, asked, seen, device)
            row, images, by_motion = measure(sequence, asked, seen, traces, found, judge)
            rows.append({"asset": path.stem, "clip": sequence.pack.clip_names[sequence.clip]} | row)
            error = f"{row['lim_fit.track_error']:.2f} %"
            sheet.append(pictures.Row(path.stem, error, images))
            exhibits.append(exhibit(path.stem, error, asked, seen, traces["lim_fit"][0], found))
            for name in ROWS:
                classes[name].append(by_motion[name])
            summary = summarise(rows, classes, every, quality, device, skipped)
            metrics.write(out, rows, summary)
            if gallery:
                pictures.save(pictures.gallery(exhibits), Path(gallery))
            print(f"{path.stem}: " + " ".join(f"{n}={row[f'{n}.track_error']:.2f}" for n in ROWS), flush=True)
    scenes.need_any(rows, skipped, packs_folder)
    summary["skipped"] = skipped
    metrics.write(out, rows, summary)
    pictures.save_sheets(out, sheet, ["truth", "", "", *(n for name in SHOWN for n in (name, "", ""))])
    return summary


def summarise(rows: list[dict], classes: dict, every: int, quality: str, device, skipped: list[dict]) -> dict:
    """summary.json of what is measured so far."""
    return {
        "rows": {name: {m: metrics.mean(rows, f"{name}.{m}") for m in NAMES} for name in ROWS},
        "error_by_motion": {
            "edges": [*tracking.BINS[:-1], None],
            "rows": {name: tracking.join_classes(classes[name]) for name in ROWS},
        },
        "motion": metrics.mean(rows, "motion"),
        "straight_between_error": metrics.mean(rows, "straight_between_error"),
        "texture_psnr_fg": metrics.mean(rows, "texture_psnr_fg"),
        "steps": STEPS,
        "every": every,
        "quality": quality,
        "scenes": len(rows),
        "device": devices.describe(torch.device(device)),
        "skipped": skipped,
    }


# ---- sequences -------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True, eq=False)
class Sequence:
    """8 steps of a clip. Frames are the pack's; the job's frames are counted in steps."""

    pack: Pack
    clip: int
    start: float
    step: float
    every: int

    @classmethod
    def liveliest(cls, pack: Pack, every: int) -> Sequence:
        """Around the middle of the clip that moves most; on stored frames where it has enough of them."""
        clip, middle = scenes.liveliest(pack)
        last = pack.frames(clip) - 1
        longest = min(STEP_SECONDS * pack.fps, last / (STEPS - 1))
        step = max(1.0, np.floor(longest)) if last >= STEPS - 1 else longest
        start = np.clip(np.floor(middle - step * (STEPS - 1) / 2), 0, None)
        return cls(pack, clip, float(start), float(step), every)

    @property
    def keyframes(self) -> tuple[float, ...]:
        return tuple(float(s) for s in sorted({*range(0, STEPS, self.every), STEPS - 1}))

    @property
    def inbetweens(self) -> int:
        return max(1, self.every - 1)

    def positions(self, steps) -> np.ndarray:
        """The true vertices [T, V, 3] at steps [T], in the model space of the keyframes."""
        frames = [[self.start + self.step * s for s in some] for some in (self.keyframes, steps)]
        known, wanted = ([self.pack.positions(self.clip, f) for f in some] for some in frames)
        return packs.transform(packs.unit_sphere(known), np.stack(wanted))

    def stored(self, step: float) -> bool:
        """Whether the pack knows a step's truth without interpolating."""
        frame = self.start + self.step * step
        return abs(frame - round(frame)) < 1e-6


def make_job(sequence: Sequence, job: Path, weights: str, quality: str) -> Request:
    """Capture a sequence's keyframes into a job folder, as Blender does; a folder that is complete is left alone."""
    size, extra, texture_size, faces = request.QUALITIES[quality]
    asked = Request(
        keyframes=sequence.keyframes, inbetweens=sequence.inbetweens, image_size=size, views=4 + extra,
        template_faces=faces, texture_size=texture_size, weights=weights, name=job.name,
    )  # fmt: skip
    return write_job(sequence.pack, sequence.positions(sequence.keyframes), job, asked)


def write_job(pack: Pack, keyframes: np.ndarray, job: Path, asked: Request) -> Request:
    """The job folder of a pack whose vertices are at keyframes [K, V, 3]; one that is complete is left alone.

    The job's world is the space of `keyframes`, its model space where the cameras follow the object, as Blender's do.
    """
    to_model, origins = cameras.placement(
        keyframes.min(1), keyframes.max(1), lambda k, centre: float(np.linalg.norm(keyframes[k] - centre, axis=1).max())
    )
    asked = dataclasses.replace(
        asked,
        world_to_model=tuple(tuple(float(x) for x in row) for row in to_model),
        origins=tuple(tuple(float(x) for x in place) for place in origins),
    )
    if (job / protocol.REQUEST_FILE).is_file() and request.read(job) == asked:
        return asked
    camera_to_world, intrinsics = cameras.job_cameras(asked.image_size, asked.views)
    rgba, depth = [], []
    for positions in packs.transform(to_model, keyframes) - origins[:, None].astype(np.float32):
        seen = rays.render(pack, positions, camera_to_world, intrinsics, asked.image_size)
        rgba.append(seen.rgba)
        depth.append(seen.depth_planar)
    Capture(np.stack(rgba), np.stack(depth), camera_to_world, intrinsics, asked.rig_views).write(job)
    request.write(asked, job)
    return asked


# ---- rows ------------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True, eq=False)
class Alternative(Artefact):
    """Where another way than the job's carries the template, at every frame: row `register` from the first keyframe's origin, the others
    from each frame's own."""

    positions: Float[np.ndarray, "T V 3"]


def traced(job: Path, asked: Request, seen: Capture, device) -> tuple[dict[str, tuple[np.ndarray, float]], Found]:
    """Every row's positions [T, V, 3] at `asked.frames()`, in the job's world, and the seconds that they took, and what the job's
    stages found.

    Rows are kept beside the stages, under the hash of code and capture.
    """
    reporter = Silent()
    found = pipeline.run(job, asked, device, reporter)
    seconds, folders = found.seconds, checkpoint.folders(asked.weights)
    fitted, surfaces = found[Fitted], found[Surfaces]
    template = fitted.template
    networks = seconds["surface"] + seconds["reconstruct"] + seconds["canonical"]
    functions = {
        "nn": lambda: nearest(asked, seen, template, folders, device),
        "lim": lambda: of_mesh.trace_template(asked, template, surfaces, reporter, rigid=False).positions,
        "register": lambda: of_mesh.fit_capture(asked, seen, template, None, fitted.traced, reporter).positions,
    }
    state = State(job)
    key = key_of(code_key("evaluation.tracing"), capture.fingerprint(job), dataclasses.asdict(asked))
    rows = {}
    for name, function in functions.items():
        stage = f"row_{name}"
        row = artefacts.obtain(state, stage, Alternative, key, lambda function=function: Alternative(function()))
        rows[name] = (row.positions, state.seconds[stage])
    rows["lim_arap"] = (fitted.traced.positions, seconds["trace"])
    rows["lim_fit"] = (fitted.positions, seconds["trace"] + seconds["fit"])
    for name in ("nn", "lim", "lim_arap"):  # each frame from its own origin
        rows[name] = (request.placed(asked, rows[name][0]), rows[name][1])
    before = {name: networks if name.startswith("lim") else seconds["surface"] for name in ROWS}
    return {name: (in_world(asked, rows[name][0]), rows[name][1] + before[name]) for name in ROWS}, found


def in_world(asked: Request, positions: np.ndarray) -> np.ndarray:
    """Positions [..., 3] of a job's model space at its first keyframe, in its world."""
    return packs.transform(np.linalg.inv(np.array(asked.world_to_model)), positions)


@torch.no_grad()
def nearest(asked: Request, seen: Capture, template: Template, folders, device) -> np.ndarray:
    """Row `nn`, [T, V, 3]: on the surfaces of the interpolated triplanes, at every frame."""
    lrm = checkpoint.load(folders["lrm"], "lrm", device)
    lim = checkpoint.load(folders["lim"], "lim", device)
    vertices, home = template.vertices, asked.entry(template.home)
    surfaces: list[tuple[np.ndarray, np.ndarray]] = []
    for planes in of_networks.interpolated(asked, seen, lrm, lim, device, anchored=False):
        if len(surfaces) == home:
            colours = lrm.decoder(planes, torch.from_numpy(vertices).to(device)[None])[1][0].cpu().numpy()
        surfaces.append(of_networks.labelled_surface(lrm.decoder, planes, device))

    def chain(part):
        return trace.nearest_surface(vertices, colours, [points for points, _ in part], [c for _, c in part])

    before, after = chain(surfaces[:home][::-1]), chain(surfaces[home + 1 :])
    return np.concatenate([before[:0:-1], after])


# ---- measures --------------------------------------------------------------------------------------------------------
def measure(sequence: Sequence, asked: Request, seen: Capture, rows, found: Found, judge):
    """One asset's line of results.csv, its pictures for the sheet, and the rows' errors by motion.

    Args:
        rows, found: as `traced` gives them.
    """
    times = np.array(asked.frames())
    mesh = found[Fitted].template
    home, faces = asked.entry(mesh.home), mesh.faces
    template = in_world(asked, mesh.vertices + np.array(asked.carried()[home]))
    real, real_faces = sequence.positions(times).astype(np.float64), sequence.pack.faces
    percent = 100 / np.linalg.norm(np.ptp(real[0], axis=0))
    true = metrics.at_places(real, real_faces, *tracking.material_points(template, faces, real[home], real_faces))
    steps = np.flatnonzero(times == np.round(times))
    moved = steps[steps != home]
    between = [t for t in range(len(times)) if times[t] not in asked.keyframes and sequence.stored(times[t])]
    motion = percent * np.linalg.norm(true - true[home], axis=2)
    held_out = [scenes.truth(sequence.pack, real[t], real[0]) for t in moved]
    images, mask = (np.concatenate([getattr(t, name) for t in held_out]) for name in ("images", "mask"))
    textured = painted(found)
    row = {
        "template_step": times[home],
        "motion": motion[moved].mean(),
        "template_error": percent * np.linalg.norm(template - true[home], axis=1).mean(),
        "texture_psnr_fg": texture_psnr(textured, seen, mesh.home),
    }
    if between and asked.inbetweens == 1:  # what is to be had without knowing more than the keyframes
        straight = np.stack([0.5 * (true[t - 1] + true[t + 1]) - true[t] for t in between])
        row["straight_between_error"] = percent * np.linalg.norm(straight, axis=2).mean()
    views = len(held_out[0].images)
    shown = [i * views for i in np.linspace(0, len(moved) - 1, 3).round().astype(int)]
    window = pictures.crop(mask[::views])
    sheet, by_motion = {"truth": [images[i][window] for i in shown]}, {}
    for name in ROWS:
        positions, seconds = rows[name]
        error = percent * np.linalg.norm(positions - true, axis=2)
        shot = np.concatenate([render(textured, positions[t]) for t in moved])
        values = metrics.pictures(shot, images, mask, judge) | {
            "track_error": error[moved].mean(),
            "track_error_p95": np.percentile(error[moved], 95),
            "between_error": error[between].mean() if between else np.nan,
            "flipped": tracking.flipped(template, positions[moved], faces),
            "self_intersections": np.mean([tracking.self_intersections(positions[t], faces) for t in moved]),
            "jitter": tracking.jitter(positions[steps], true[steps]),
            "seconds": seconds,
        }
        values |= tracking.chamfers(positions[steps], faces, real[steps], real_faces)
        row |= {f"{name}.{m}": None if values[m] is None else float(values[m]) for m in NAMES}
        by_motion[name] = tracking.by_motion(error[moved], motion[moved])
        sheet[name] = [shot[i][window] for i in shown]
    line = [pictures.resized(image, scenes.SIZE) for name in ("truth", *SHOWN) for image in sheet[name]]
    return row, line, by_motion


def exhibit(
    name: str, note: str, asked: Request, seen: Capture, positions: np.ndarray, found: Found
) -> pictures.Exhibit:
    """The first, the middle and the last keyframe as the first camera captured them, and the traced mesh in their place.

    Args:
        positions: [T, V, 3] in the job's world.
    """
    textured = painted(found)
    camera, intrinsics, size = seen.camera_to_world[:1], seen.intrinsics[:1], seen.rgba.shape[2]
    shown = [0, seen.keyframes // 2, seen.keyframes - 1]
    above = [seen.rgba[k, 0] for k in shown]
    model = packs.transform(np.array(asked.world_to_model), positions) - np.array(asked.carried(), np.float32)[:, None]
    below = [rays.render(textured, model[asked.entry(k)], camera, intrinsics, size).rgba[0] for k in shown]
    window = pictures.crop(np.stack([*above, *below])[..., 3] > 0)
    return pictures.Exhibit(name, note, *([rays.over(image[window]) for image in row] for row in (above, below)))


def painted(found: Found) -> Pack:
    """A job's textured template as a pack that `rays.render` can draw at any positions."""
    mesh, paint = found[Fitted].template, found[Textured]
    return drawn.textured(mesh.vertices[None], mesh.faces, paint.loop_uvs, paint.image)


def render(textured: Pack, positions: np.ndarray) -> np.ndarray:
    """Held-out views float [V, H, W, 3] on white."""
    camera, intrinsics = scenes.held_out()
    return rays.over(rays.render(textured, positions, camera, intrinsics, scenes.SIZE, supersampling=2).rgba)


def texture_psnr(textured: Pack, seen: Capture, home: int) -> float:
    """PSNR of the textured template (`painted`) against the captured views of its keyframe `home`, over the captured foreground."""
    size = seen.rgba.shape[2]
    shot = rays.render(textured, textured.positions(0, 0), seen.camera_to_world, seen.intrinsics, size).rgba
    pairs = zip(rays.over(shot), rays.over(seen.rgba[home]), seen.rgba[home, ..., 3] > 0)
    return metrics.finite_mean([metrics.psnr(a, b, mask) for a, b, mask in pairs])
