# SPDX-License-Identifier: GPL-3.0-or-later
"""The stages of a video job before the usual ones: `import` (frames, foreground, crop) and `views` (the rig's other cameras).

They leave what Blender's capture leaves, so that everything after them is the same. Each is kept in `state/` under the hash of
all that it depends on; the files of the capture are written at the very end, or not at all.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from ..job import artefacts, result
from ..job.artefacts import Generated, Imported
from ..job.capture import Capture
from ..job.reporter import Reporter
from ..job.state import State, code_key, key_of
from ..networks import checkpoint
from ..shared import cameras, protocol
from ..shared.errors import LimError
from ..shared.request import Request, with_clip
from ..shared.video_options import CLIP_PICTURES
from . import body, clip, decode, foreground, views

SHARES = {"import": 0.06, "views": 0.14}  # of the whole job
FIELDS = ("video_first", "video_last", "video_step", "video_fps", "foreground", "mask", "key_colour", "matting")


def run(job: Path, request: Request, device: torch.device, reporter: Reporter) -> Request:
    """Import the clip and make its views; the request as the later stages need it, with the clip's keyframes.

    Raises:
        LimError: whatever is wrong with the clip or the pipeline; Cancelled between two steps.
    """
    code = code_key("video.importing")
    state = State(job)
    count = len(protocol.STAGES) + len(SHARES)
    key = key_of(
        code, [stamp(p) for p in (request.video, request.mask, request.matting)], request.image_size,
        {name: getattr(request, name) for name in FIELDS},
    )  # fmt: skip
    reporter.stage("import", 0, count, 0.0, SHARES["import"])

    def imported() -> Imported:
        (job / protocol.CLIP_FILE).unlink(missing_ok=True)
        return import_clip(request, reporter)

    found = artefacts.obtain(state, "import", Imported, key, imported)
    for warning in found.warnings:
        reporter.warning(*map(str, warning))
    result.save_image(job / protocol.CLIP_PREVIEW, views.sheet(found.rgba[:, None]))
    write_clip(job, request, found)
    reporter.event("preview", path=protocol.CLIP_PREVIEW, label="the object in the clip")
    asked = with_clip(request, job)
    asked = dataclasses.replace(asked, has_depth=True, fps=found.fps)

    from . import adapters  # diffusers takes a second to import

    reporter.stage("views", 1, count, SHARES["import"], SHARES["views"])
    folder = Path(request.views_model) if request.views_model else checkpoint.BUNDLED / "multiview"
    key = key_of(key, adapters.weights_key(folder), request.elevation, request.views)
    whole = all((job / name).is_file() for name in capture_files(asked))
    artefacts.obtain(
        state, "views", Generated, key,
        lambda: make_views(job, asked, found.rgba, adapters.load(folder, device), reporter), whole,
    )  # fmt: skip
    reporter.seconds |= {stage: round(state.seconds[stage], 3) for stage in state.computed}
    reporter.event("preview", path=protocol.VIEWS_PREVIEW, label="generated views")
    reporter.stages_before, reporter.share_before = len(SHARES), sum(SHARES.values())
    return asked


def import_clip(request: Request, reporter: Reporter) -> Imported:
    """The keyframes cut out and cropped, and what there is to know of the clip; its warnings are not told yet."""
    source = decode.open_source(request.video, request.video_fps)
    plan = clip.plan(source, request, lambda fraction: reporter.progress(0.4 * fraction))
    warnings = list(plan.warnings)
    matte = foreground.choose(request, plan.samples, plan.numbers[-1])
    wanted = {plan.numbers[k]: i for i, k in enumerate(plan.keyframes)}
    pictures, crowded, cut_off = [], [], []
    for frame in decode.frames(source):
        if frame.number not in wanted:
            continue
        rgba = matte.cut_out(frame)
        alpha, others = foreground.largest(rgba[..., 3])
        if not (alpha > 127).any():
            raise LimError(
                "no_foreground", f"There is no object in frame {frame.number} of the clip.",
                "Leave the frame out of the range, or tell the object from the background in another way.",
            )  # fmt: skip
        if (alpha > 127).all():
            raise LimError(
                "no_foreground",
                f"Everything in frame {frame.number} of the clip counts as the object.",
                foreground.OPTIONS,
            )
        crowded += [frame.number] * others
        cut_off += [frame.number] * foreground.touches_edge(alpha)
        pictures.append(np.dstack([rgba[..., :3], alpha]))
        reporter.progress(0.4 + 0.5 * len(pictures) / len(wanted))
        if len(pictures) == len(wanted):
            break
    if crowded:
        warnings.append((
            "several_objects", f"There are several objects in {_listed(crowded)}: the largest is taken.",
            "Give masks that show one object.",
        ))  # fmt: skip
    if cut_off:
        warnings.append((
            "leaves_frame", f"The object is cut off by the edge of the picture in {_listed(cut_off)}: it ends there.",
            "Choose a range in which all of it is seen.",
        ))  # fmt: skip
    box = clip.square([picture[..., 3] for picture in pictures])
    rgba = np.stack([clip.cut(picture, box, request.image_size) for picture in pictures])
    return Imported(
        rgba=rgba,
        box=np.array(box, np.float64),
        resolution=np.array(plan.size),
        rotation=int(source.rotation),
        pixel_aspect=float(source.pixel_aspect),
        fps=float(plan.fps),
        first=plan.numbers[0],
        last=plan.numbers[-1],
        count=plan.count,
        step=plan.step,
        last_step=int(np.diff(plan.keyframes)[-1]),
        times=plan.seconds[plan.keyframes],
        foreground=matte.kind,
        pictures=np.array([path.name for path in source.pictures], dtype=str),
        folder=str(source.pictures[0].parent) if source.pictures else "",
        warnings=np.array(warnings, dtype=str).reshape(-1, 3),
    )


def write_clip(job: Path, request: Request, found: Imported) -> None:
    """capture/clip.json (docs/video.md)."""
    keyframes = request.video_start + np.round((found.times - found.times[0]) * found.fps, 3)
    camera, intrinsics = clip.full_camera(tuple(found.box), request.elevation)
    (job / protocol.CAPTURE_FOLDER).mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(job / protocol.CLIP_FILE, {
        "path": request.video,
        "files": [str(name) for name in found.pictures],
        "folder": found.folder,
        "resolution": [int(n) for n in found.resolution],
        "rotation": found.rotation,
        "pixel_aspect": found.pixel_aspect,
        "fps": found.fps, "first": found.first, "last": found.last, "count": found.count,
        "frame_start": request.video_start - (found.first - 1),
        "step": found.step, "keyframes": [float(frame) for frame in keyframes], "inbetweens": found.step - 1,
        "last_inbetweens": found.last_step - 1,
        "camera_to_world": camera.tolist(), "intrinsics": intrinsics.tolist(),
        "crop": [float(x) for x in found.box],
        "foreground": found.foreground,
    })  # fmt: skip


def make_views(job: Path, asked: Request, rgba: np.ndarray, model, reporter: Reporter) -> Generated:
    """Write the capture of cut-outs uint8 [K, S, S, 4] and of the views that the model makes of them, and the preview.

    Args:
        model: from `adapters.load`.
    """
    made = model(views.shrink(rgba, model.size), asked.elevation, lambda f: reporter.progress(0.5 * f))
    camera, lens = (torch.from_numpy(x) for x in model.cameras(asked.elevation, model.size))
    made = views.agree(made, camera, lens)
    camera, lens = cameras.job_cameras(asked.image_size, asked.views, asked.rig_views)
    camera[: asked.rig_views], _ = model.cameras(asked.elevation, asked.image_size)
    pictures, depth = views.enlarge(made, rgba, camera[: asked.rig_views])
    bodies = []
    for k in range(len(rgba)):
        bodies.append(body.capture(pictures[k], depth[k], camera, lens))
        reporter.progress(0.5 + 0.5 * (k + 1) / len(rgba))
    pictures, depth = (np.stack(part) for part in zip(*bodies))
    Capture(pictures, depth, camera, lens, asked.rig_views).write(job)
    result.save_image(job / protocol.VIEWS_PREVIEW, views.sheet(pictures[:, : asked.rig_views]))
    return Generated(made.half().numpy())


def capture_files(asked: Request) -> list[str]:
    keyframes = range(len(asked.keyframes))
    pictures = [protocol.image_file(k, v) for k in keyframes for v in range(asked.views)]
    return [protocol.CAMERAS_FILE, *pictures, *(protocol.depth_file(k) for k in keyframes), protocol.VIEWS_PREVIEW]


def stamp(path: str) -> list:
    """What tells a clip, or a folder of pictures, from a changed one."""
    if not path:
        return []
    place = Path(path)
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    if place.suffix.lower() in CLIP_PICTURES and place.is_file():
        files = sorted(p for p in place.parent.iterdir() if p.suffix == place.suffix)
    return [path, *([p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files if p.is_file())]


def _listed(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"frame {numbers[0]}"
    return f"{len(numbers)} of the keyframes, first in frame {numbers[0]}"
