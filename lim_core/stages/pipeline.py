# SPDX-License-Identifier: GPL-3.0-or-later
"""A job from its request to its result, in the order of the paper's section 3 and our additions.

    T_k, F_k = LRM(I_k, Π)                                       reconstruct
    T̂_{k+α} = LIM(F_k, I_{k+1}, α)                               interpolate
    template: fused depth of one keyframe, a triplane, or the artist's own mesh      surface
    Ω_k     = the positions that keyframe k's depth shows        canonical
    T̄̂_{k+α} = LIM̄(LRM̄(Ω_k), I_k, I_{k+1}, α)
    vertices → nearest canonical coordinate, with ARAP, chained over the keyframes   trace
    keyframes pulled onto the captured depth, in-betweens keep the networks' motion  fit
    one UV set, one image from all captured views                                    texture
    the frames that become shape keys, where not all do                              reduction

The template's own keyframe is `home`; from there the mesh is carried outwards, to later and to earlier keyframes. Canonical coordinates are re-anchored at every keyframe: in each interval they are the positions at the interval's own first
keyframe, so that errors do not add up in what the networks are shown. Every stage is kept in `state/` under the hash of
all that it depends on, the code included; a repeated run redoes only what changed. Triplanes are made one at a time and not
kept: with the number of in-betweens grow only the vertices and the points that they are matched to.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from ..job import capture as captures
from ..job import result
from ..job.reporter import Reporter
from ..job.state import State, code_key, key_of
from ..networks import checkpoint
from ..networks.checkpoint import weights_key
from ..shared import protocol
from ..shared.request import Request, placed
from ..tracking import reduction
from .of_mesh import bake_texture, fit_apart, template_mesh, trace_template
from .of_networks import canonical, interpolate, reconstruct

SHARES = {  # of the time of a typical job on a CPU, for the progress bar
    "reconstruct": 0.04, "interpolate": 0.12, "surface": 0.12, "canonical": 0.1, "trace": 0.12, "fit": 0.35, "texture": 0.15,
}  # fmt: skip


def run(job: Path, request: Request, device: torch.device, reporter: Reporter) -> dict[str, dict[str, np.ndarray]]:
    """Compute a job folder's result; returns what every stage left, as in `state/`.

    Raises:
        LimError: whatever an artist can do something about; Cancelled between two steps.
    """
    reporter.check()
    state = State(job)
    code = code_key("stages.pipeline")
    capture = captures.read(job, request)
    folders = checkpoint.folders(request.weights)
    weights = {network: weights_key(folder, network) for network, folder in folders.items()}
    shown = key_of(
        code, captures.fingerprint(job), request.image_size, request.views, request.rig_views, request.has_depth
    )
    warnings: list[dict] = list(reporter.warnings)  # of a video's import

    def warn(code: str, message: str, hint: str = "") -> None:
        warnings.append({"code": code, "message": message, "hint": hint})
        reporter.warning(code, message, hint)

    if capture.depth_planar is None:
        warn("no_depth", "The source has no depth: the keyframes cannot be fitted to it.")
    times = (request.keyframes, request.inbetweens, request.last_inbetweens)
    keys: dict[str, str] = {}
    keys["reconstruct"] = key_of(shown, weights["lrm"])
    keys["interpolate"] = key_of(keys["reconstruct"], weights["lim"], times)
    keys["surface"] = key_of(
        shown, request.template, request.template_faces, "" if request.has_depth else keys["reconstruct"]
    )
    keys["canonical"] = key_of(keys["surface"], weights["lrm-xyz"], weights["lim-xyz"], times)
    keys["trace"] = key_of(keys["canonical"], keys["surface"], request.smoothness)
    keys["fit"] = key_of(keys["trace"], request.fit, request.origins)
    keys["texture"] = key_of(keys["fit"], request.texture_size)

    functions = {
        "reconstruct": lambda found: reconstruct(capture, folders, device, reporter),
        "interpolate": lambda found: interpolate(job, request, capture, folders, device, reporter),
        "surface": lambda found: template_mesh(job, request, capture, found["reconstruct"], folders, device, reporter),
        "canonical": lambda found: canonical(
            request, capture, found["reconstruct"], int(found["surface"]["home"]), folders, device, reporter
        ),
        "trace": lambda found: trace_template(request, found["surface"], found["canonical"], reporter),
        "fit": lambda found: fit_apart(
            request, capture, found["surface"], found["canonical"], found["trace"], reporter
        ),
        "texture": lambda found: bake_texture(
            request, capture, found["surface"], found["fit"], found["reconstruct"], folders, device, reporter
        ),
    }
    found: dict[str, dict[str, np.ndarray]] = {}
    begins = 0.0
    for index, stage in enumerate(protocol.STAGES):
        reporter.stage(stage, index, len(protocol.STAGES), begins, SHARES[stage])
        started = time.monotonic()
        arrays = state.load(stage, keys[stage])
        if (
            stage == "interpolate"
            and not (job / protocol.preview_file("triplane", len(request.frames()) - 1, 0)).is_file()
        ):
            arrays = None  # its pictures are the result, and someone has deleted them
        if arrays is None:
            arrays = functions[stage](found)
            state.seconds[stage] = time.monotonic() - started
            arrays["seconds"] = np.array(state.seconds[stage])
            state.keep(stage, keys[stage], arrays)
        found[stage] = arrays
        if (
            stage == "fit" and "vertices" in arrays
        ):  # the template was cut apart: this is the one that all else is about
            found["surface"] = found["surface"] | {name: arrays[name] for name in ("vertices", "faces")}
            found["trace"] = found["trace"] | {"positions": arrays["traced"], "confidence": arrays["traced_confidence"]}
        begins += SHARES[stage]
    reporter.progress(1.0)

    confidence = found["fit"]["confidence"]
    residuals = found["fit"]["residuals"]
    feed_forward = placed(request, found["trace"]["positions"])
    seconds = {stage: round(seconds, 3) for stage, seconds in state.seconds.items()}
    summary = {
        "protocol": protocol.VERSION,
        "frames": request.frames(),
        "seconds": {**reporter.seconds, **seconds},
        "warnings": warnings,
        "template": request.template,
        "template_frame": request.keyframes[int(found["surface"]["home"])],
        "vertices": int(found["fit"]["positions"].shape[1]),
        "faces": int(len(found["surface"]["faces"])),
        "metrics": {
            "keyframe_distance": [round(float(r), 5) for r in residuals],
            "confidence": round(float(confidence.mean()), 4),
            "moved_by_fit": round(float(np.abs(found["fit"]["positions"] - feed_forward).mean()), 5),
        },
    }
    arrays = {
        "positions": found["fit"]["positions"].astype(np.float32),
        "frames": np.array(request.frames(), np.float64),
        "faces": found["surface"]["faces"].astype(np.int32),
        "confidence": confidence.astype(np.float32),
        "feed_forward": feed_forward.astype(np.float32),
    }
    if request.reduced():
        keys = reduction.choose(arrays["positions"], arrays["frames"], request.max_keys)
        rms, largest = reduction.errors(arrays["positions"], arrays["frames"], keys)
        arrays["keys"] = keys
        summary["metrics"] |= {"keys": len(keys), "reduced_rms": round(rms, 5), "reduced_max": round(largest, 5)}
    image = None
    if request.template != "mesh":
        arrays["loop_uvs"] = found["texture"]["loop_uvs"]
        image = found["texture"]["image"]
    result.write(job, summary, image, **arrays)
    return found


# ---- the networks' stages --------------------------------------------------------------------------------------------


# ---- the mesh's stages -----------------------------------------------------------------------------------------------
