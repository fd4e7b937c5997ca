# SPDX-License-Identifier: GPL-3.0-or-later
"""A job from its request to its result, in the order of the paper's section 3 and our additions.

    T_k, F_k = LRM(I_k, Π)                                       reconstruct
    template: fused depth of one keyframe, a triplane, or the artist's own mesh      surface
    Ω_k     = the positions that keyframe k's depth shows        canonical
    T̄̂_{k+α} = LIM̄(LRM̄(Ω_k), I_k, I_{k+1}, α)
    vertices → nearest canonical coordinate, with ARAP, chained over the keyframes   trace
    keyframes pulled onto the captured depth, in-betweens keep the networks' motion  fit
    one UV set, one image from all captured views                                    texture
    T̂_{k+α} = LRM(what the mesh shows there, Π), or LIM(F_k, I_{k+1}, α)             interpolate
    the frames that become shape keys, where not all do                              reduction

The template's own keyframe is `home`; from there the mesh is carried outwards, to later and to earlier keyframes. Canonical coordinates
are re-anchored at every keyframe: in each interval they are the positions at the interval's own first keyframe, so that errors
do not add up in what the networks are shown. Triplanes are made one at a time and not kept: with the number of in-betweens grow
only the vertices and the points that they are matched to.

Every stage finds one artefact (job/artefacts.py), which is kept in `state/` under the hash of all that it depends on, the code
included; a repeated run redoes only what changed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..job import artefacts, result
from ..job import capture as captures
from ..job.artefacts import (
    Artefact,
    Fitted,
    Found,
    Interpolated,
    Reconstruction,
    Surfaces,
    Template,
    Textured,
    Traced,
)
from ..job.capture import Capture
from ..job.reporter import Reporter
from ..job.state import State, code_key, key_of
from ..networks import checkpoint
from ..networks.checkpoint import weights_key
from ..networks.point_motion import Motion
from ..shared import protocol
from ..shared.request import Request, placed
from ..tracking import reduction
from .of_mesh import bake_texture, fit_apart, template_mesh, trace_template
from .of_networks import canonical, interpolate, reconstruct


@dataclasses.dataclass(frozen=True)
class Work:
    """What is there before the first stage."""

    job: Path
    request: Request
    capture: Capture
    folders: dict[str, Path]
    device: torch.device
    reporter: Reporter

    @property
    def networks(self) -> tuple[dict[str, Path], torch.device, Reporter]:
        """What every stage that runs networks is given last."""
        return self.folders, self.device, self.reporter

    @property
    def motion(self) -> Motion | None:
        """The network on points, where the weights have it. It has learnt from captured depth: what is made of a clip is another matter."""
        if "motion" not in self.folders or self.request.source == "video":
            return None
        return checkpoint.load(self.folders["motion"], "motion", self.device)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of a job.

    Attributes:
        name: as in `protocol.STAGES`.
        artefact: the type of what it finds.
        function: finds it, from the job and what the stages before found.
        share: of the time of a typical job on a CPU, for the progress bar.
        after: the stages whose finds it uses; without_depth: those that it uses, too, where nothing captured the depth. What these
            depend on need not be said again, and the capture and the code count for every stage.
        weights: the networks that it runs; settings: the fields of the request that it reads.
        leaves: the last file that it leaves beside its artefact: where that is gone, the stage is done again.
    """

    name: str
    artefact: type[Artefact]
    function: Callable[[Work, Found], Artefact]
    share: float
    after: tuple[str, ...] = ()
    without_depth: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    leaves: Callable[[Request], str] | None = None


TIMES = ("keyframes", "inbetweens", "last_inbetweens")

STAGES = (
    Stage(
        "reconstruct", Reconstruction, lambda work, found: reconstruct(work.capture, *work.networks),
        share=0.04, weights=("lrm",),
    ),
    Stage(
        "surface", Template,
        lambda work, found: template_mesh(work.job, work.request, work.capture, found[Reconstruction], *work.networks),
        share=0.12, without_depth=("reconstruct",), settings=("template", "template_faces"),
    ),
    Stage(
        "canonical", Surfaces,
        lambda work, found: canonical(work.request, work.capture, found[Reconstruction], found[Template], *work.networks),
        share=0.1, after=("surface",), weights=("lrm-xyz", "lim-xyz"), settings=TIMES,
    ),
    Stage(
        "trace", Traced,
        lambda work, found: trace_template(work.request, found[Template], found[Surfaces], work.reporter),
        share=0.12, after=("surface", "canonical"), settings=("smoothness",),
    ),
    Stage(
        "fit", Fitted,
        lambda work, found: fit_apart(
            work.request, work.capture, found[Template], found[Surfaces], found[Traced], work.motion, work.reporter
        ),
        share=0.35, after=("trace",), weights=("motion",), settings=("fit", "origins"),
    ),
    Stage(
        "texture", Textured,
        lambda work, found: bake_texture(work.request, work.capture, found[Fitted], found[Reconstruction], *work.networks),
        share=0.15, after=("fit",), settings=("texture_size",),
    ),
    Stage(
        "interpolate", Interpolated,
        lambda work, found: interpolate(
            work.job, work.request, work.capture, found[Fitted], found[Textured], *work.networks
        ),
        share=0.12, after=("reconstruct", "texture"), weights=("lim",), settings=TIMES,
        leaves=lambda request: protocol.preview_file("triplane", len(request.frames()) - 1, 0),
    ),
)  # fmt: skip


def run(job: Path, request: Request, device: torch.device, reporter: Reporter) -> Found:
    """Compute a job folder's result; gives what every stage found.

    Raises:
        LimError: whatever an artist can do something about; Cancelled between two steps.
    """
    reporter.check()
    state = State(job)
    work = Work(job, request, captures.read(job, request), checkpoint.folders(request.weights), device, reporter)
    keys = stage_keys(work)
    if work.capture.depth_planar is None:
        reporter.warning("no_depth", "The source has no depth: the keyframes cannot be fitted to it.")
    found, begins = Found(state), 0.0
    for index, stage in enumerate(STAGES):
        reporter.stage(stage.name, index, len(STAGES), begins, stage.share)
        function = functools.partial(stage.function, work, found)
        whole = stage.leaves is None or (job / stage.leaves(request)).is_file()
        found.add(artefacts.obtain(state, stage.name, stage.artefact, keys[stage.name], function, whole))
        begins += stage.share
    reporter.progress(1.0)
    write_result(work, found, {**reporter.seconds, **{name: round(state.seconds[name], 3) for name in state.computed}})
    return found


def stage_keys(work: Work) -> dict[str, str]:
    """The hash of all that each stage's artefact depends on.

    Raises:
        LimError: `weights_missing`.
    """
    request = work.request
    shown = request.image_size, request.views, request.rig_views, request.has_depth
    source = key_of(code_key("stages.pipeline"), captures.fingerprint(work.job), shown)
    keys: dict[str, str] = {}
    for stage in STAGES:
        before = stage.after + (() if request.has_depth else stage.without_depth)
        keys[stage.name] = key_of(
            source,
            [keys[name] for name in before],
            [weights_key(work.folders[network], network) for network in stage.weights if network in work.folders],
            [getattr(request, name) for name in stage.settings],
        )
    return keys


def write_result(work: Work, found: Found, seconds: dict[str, float]) -> None:
    """result.npz, texture.png and result.json (docs/architecture.md).

    Args:
        seconds: of the stages that were computed, not taken over.
    """
    request, fitted, textured = work.request, found[Fitted], found[Textured]
    template = fitted.template
    feed_forward = placed(request, fitted.traced.positions)
    metrics = {
        "keyframe_distance": [round(float(r), 5) for r in fitted.residuals],
        "confidence": round(float(fitted.confidence.mean()), 4),
        "moved_by_fit": round(float(np.abs(fitted.positions - feed_forward).mean()), 5),
    }
    arrays = {
        "positions": fitted.positions,
        "frames": np.array(request.frames(), np.float64),
        "faces": template.faces,
        "confidence": fitted.confidence,
        "feed_forward": feed_forward.astype(np.float32),
    }
    if request.reduced():
        chosen = reduction.choose(arrays["positions"], arrays["frames"], request.max_keys)
        rms, largest = reduction.errors(arrays["positions"], arrays["frames"], chosen)
        arrays["keys"] = chosen
        metrics |= {"keys": len(chosen), "reduced_rms": round(rms, 5), "reduced_max": round(largest, 5)}
    if textured.loop_uvs is not None:
        arrays["loop_uvs"] = textured.loop_uvs
    summary = {
        "protocol": protocol.VERSION,
        "frames": request.frames(),
        "seconds": seconds,
        "warnings": work.reporter.warnings,
        "template": request.template,
        "template_frame": request.keyframes[template.home],
        "vertices": len(template.vertices),
        "faces": len(template.faces),
        "metrics": metrics,
    }
    result.write(work.job, summary, textured.image, **arrays)
