# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core evaluate job`: how long a whole job takes, from a capture on disk to the result, stage by stage; and
how well its textured template looks like what was captured.

Three keyframes around the liveliest moment of every pack, `--inbetweens` between each and the next, a template of `--faces`
triangles and a texture of 1024 pixels, in the quality “standard”. The load of the machine stands beside the seconds: other
programs on it make them longer.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch

from ..job import capture
from ..job.artefacts import Fitted, Found
from ..job.capture import Capture
from ..job.reporter import Silent
from ..mesh import packs, rays
from ..networks import device as devices
from ..shared import request
from ..shared.request import Request
from ..stages import pipeline
from . import metrics, pictures, scenes
from .tracing import STEP_SECONDS, painted, texture_psnr, write_job

KEYFRAMES = 3
TILE = 320  # pixels of a picture on the sheet


def evaluate(
    packs_folder: str, out: str, *, weights: str = "", device="cpu", limit: int | None = None, inbetweens: int = 7,
    faces: int = 20000, texture_size: int = 1024,
) -> dict:  # fmt: skip
    """Run the jobs anew, write results.csv, summary.json and contact sheets into `out`, and return the summary.

    Raises:
        LimError: `bad_pack` where no pack can be run.
    """
    out = Path(out)
    rows, sheet = [], []
    skipped: list[dict] = []
    for path in scenes.evenly(packs.list_packs(packs_folder), limit):
        with scenes.skipping(skipped, path.stem):
            job = out / "jobs" / path.stem
            shutil.rmtree(job, ignore_errors=True)
            asked = make_job(packs.load(path), job, weights, inbetweens, faces, texture_size)
            seconds, found = timed(job, asked, device)
            seen = capture.read(job, asked)
            textured, home = painted(found), found[Fitted].template.home
            quality = texture_psnr(textured, seen, home)
            rows.append({"asset": path.stem} | seconds | {"texture_psnr_fg": quality})
            metrics.write_rows(out, rows)
            sheet.append(pictures.Row(path.stem, f"{quality:.1f} dB", side_by_side(textured, seen, home)))
            print(f"{path.stem}: {seconds['wall']:.1f} s, of the processor {seconds['cpu']:.1f} s", flush=True)
    scenes.need_any(rows, skipped, packs_folder)
    summary = {
        "seconds": {name: metrics.mean(rows, name) for name in seconds},
        "texture_psnr_fg": metrics.mean(rows, "texture_psnr_fg"),
        "keyframes": KEYFRAMES,
        "inbetweens": (KEYFRAMES - 1) * inbetweens,
        "faces": faces,
        "texture_size": texture_size,
        "peak_megabytes": peak_memory(),
        "jobs": len(rows),
        "device": devices.describe(torch.device(device)),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "skipped": skipped,
    }
    metrics.write(out, rows, summary)
    pictures.save_sheets(out, sheet, ["captured", "textured"] * 2)
    return summary


def make_job(pack: packs.Pack, job: Path, weights: str, inbetweens: int, faces: int, texture_size: int) -> Request:
    """Three keyframes, two steps of `evaluate tracing` apart (or as far as the clip goes), as a job folder."""
    clip, middle = scenes.liveliest(pack)
    last = pack.frames(clip) - 1
    apart = min(2 * STEP_SECONDS * pack.fps, last / (KEYFRAMES - 1))
    start = np.clip(middle - apart, 0, last - (KEYFRAMES - 1) * apart)
    size, extra, *_ = request.QUALITIES["standard"]
    asked = Request(
        keyframes=tuple(1.0 + (inbetweens + 1) * k for k in range(KEYFRAMES)), inbetweens=inbetweens, image_size=size,
        views=4 + extra, template_faces=faces, texture_size=texture_size, weights=weights, name=job.name,
    )  # fmt: skip
    return write_job(pack, pack.model_positions(clip, [start + apart * k for k in range(KEYFRAMES)]), job, asked)


def timed(job: Path, asked: Request, device) -> tuple[dict[str, float], Found]:
    """Seconds of every stage, of the whole (`wall`) and of the processor, and the machine's load before and after; and what
    `pipeline.run` gives."""
    loads = hasattr(os, "getloadavg")
    before = os.getloadavg()[0] if loads else np.nan
    began, used = time.monotonic(), time.process_time()
    found = pipeline.run(job, asked, device, Silent())
    wall, cpu = time.monotonic() - began, time.process_time() - used
    after = os.getloadavg()[0] if loads else np.nan
    return found.seconds | {"wall": wall, "cpu": cpu, "load_before": before, "load_after": after}, found


def side_by_side(textured: packs.Pack, seen: Capture, home: int) -> list[np.ndarray]:
    """Two opposite views of keyframe `home`, each captured and drawn with the textured template."""
    size, images = seen.rgba.shape[2], []
    for view in (0, 2):
        camera, intrinsics = seen.camera_to_world[view, None], seen.intrinsics[view, None]
        pair = seen.rgba[home, view], rays.render(textured, textured.positions(0, 0), camera, intrinsics, size).rgba[0]
        window = pictures.crop(np.stack(pair)[..., 3] > 0)
        images += [pictures.resized(rays.over(image[window]), TILE) for image in pair]
    return images


def peak_memory() -> float | None:
    """Of this process so far, in MB; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(size / (1e6 if sys.platform == "darwin" else 1e3), 1)
