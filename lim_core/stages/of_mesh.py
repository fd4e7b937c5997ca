# SPDX-License-Identifier: GPL-3.0-or-later
"""The stages that make the mesh: template, motion, fit and texture."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree

from ..job import capture as captures
from ..job.artefacts import Fitted, Reconstruction, Surfaces, Template, Textured, Traced
from ..job.capture import Capture
from ..job.reporter import Reporter
from ..mesh import remesh, surface, texture
from ..mesh.arap import Arap
from ..networks import checkpoint, triplane
from ..networks.point_motion import Motion
from ..shared.errors import LimError
from ..shared.request import Request, interval_alphas, placed
from ..tracking import between, contacts, fit, moved, trace
from ..tracking.observation import most_open
from ..tracking.sheets import Sheets
from ..tracking.steady import steady
from .of_networks import SURFACE_LEVEL, triplane_depth

MOTION_PIXELS = 128  # of the pictures whose points the motion network is shown
TEMPLATE_GRID = 128  # of a template taken from the triplane


MADE_UP = 0.05  # what a generated view counts in the texture against the clip itself


def template_mesh(
    job: Path, request: Request, capture: Capture, reconstruction: Reconstruction, folders, device, reporter: Reporter
) -> Template:
    """The mesh that is moved through time.

    The artist's own mesh is at home at the first keyframe, a fused one where the fewest parts touch.
    """
    home = 0
    if request.template == "mesh":
        vertices, faces = captures.read_template(job)
    elif capture.depth_planar is not None:
        home = most_open(capture.depth_planar, capture.camera_to_world, capture.intrinsics)
        reporter.progress(0.4)
        vertices, faces = fused_mesh(
            request, capture, home, on_progress=lambda fraction: reporter.progress(0.4 + 0.6 * fraction)
        )
    else:
        lrm = checkpoint.load(folders["lrm"], "lrm", device)
        planes = torch.from_numpy(reconstruction.triplanes[0]).float().to(device)[None]
        grid = triplane.density_grid(lrm.decoder, planes, TEMPLATE_GRID).cpu().numpy()
        # A network that is unsure of the shape gives a thin fog: its surface is where half of the thickest is reached.
        level = min(SURFACE_LEVEL, 0.5 * float(grid.max()))
        vertices, faces = surface.clean(*surface.marching_cubes(grid, level))
        vertices, faces = remesh.reduce(surface.taubin(vertices, faces), faces, request.template_faces)
    return Template(vertices.astype(np.float32), faces.astype(np.int32), int(home))


def fused_mesh(
    request: Request,
    capture: Capture,
    keyframe: int,
    apart: Sequence[np.ndarray] = (),
    on_progress: Callable[[float], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """vertices [V, 3] and faces [F, 3] of what the depth of one keyframe shows; `apart` as in `surface.fuse_depth`."""
    assert capture.depth_planar is not None
    report = on_progress or (lambda fraction: None)
    seen = (capture.depth_planar[keyframe], capture.camera_to_world, capture.intrinsics)
    vertices, faces = surface.fuse_depth(*seen, apart=apart, on_progress=lambda fraction: report(0.8 * fraction))
    vertices, faces = remesh.reduce(vertices, faces, request.template_faces)
    vertices, faces = remesh.lay(vertices, faces, *remesh.captured(*seen))
    return Sheets(vertices, faces).restored(vertices).astype(np.float32), faces


def matches(surfaces: Surfaces) -> list[trace.Matches]:
    """What `canonical` found, interval by interval."""
    bounds = list(zip(surfaces.start, surfaces.start[1:]))
    found = []
    for k in np.unique(surfaces.interval):
        parts = [slice(*bounds[row]) for row in np.flatnonzero(surfaces.interval == k)]
        found.append(trace.Matches([surfaces.points[p] for p in parts], [surfaces.canonical[p] for p in parts]))
    return found


def trace_template(
    request: Request, template: Template, surfaces: Surfaces, reporter: Reporter, *, rigid: bool = True
) -> Traced:
    """The feed-forward result: chained over the keyframes, no captured depth.

    Args:
        rigid: match with ARAP; otherwise the bare nearest neighbour of the paper's section 3.4.
    """
    positions, confidence = trace.trace_outwards(
        template.vertices,
        matches(surfaces),
        template.home,
        Arap(template.vertices, template.faces) if rigid else None,
        stiffness=0.25 * 16 ** float(request.smoothness),  # 0.25 … 4
        on_progress=reporter.progress,
    )
    return Traced(positions.astype(np.float32), confidence.astype(np.float32))


def fit_apart(
    request: Request,
    capture: Capture,
    template: Template,
    surfaces: Surfaces,
    traced: Traced,
    motion: Motion | None,
    reporter: Reporter,
) -> Fitted:
    """`fit_capture`; and once more, with the template cut apart, where the first time shows parts that only touched.

    The better of the two. Where that is the second, it is about the new template.
    """
    with reporter.part(0.0, 0.7):
        first = fit_capture(request, capture, template, surfaces, traced, reporter, motion)
    if request.template == "mesh" or not len(first.misfit):
        return first
    webs = contacts.webbed(template.vertices, template.faces, first.keyframes, capture)
    apart = contacts.contacts(template.vertices, template.faces, webs)
    if not apart:
        return first
    try:
        vertices, faces = fused_mesh(request, capture, template.home, apart)
    except LimError:  # nothing would be left
        return first
    cut = dataclasses.replace(template, vertices=vertices.astype(np.float32), faces=faces.astype(np.int32))
    with reporter.part(0.7, 0.75):
        retraced = trace_template(request, cut, surfaces, reporter)
    # Where the mesh goes is known by now: the second time it only has to settle.
    distance, near = cKDTree(template.vertices).query(vertices, k=4)
    share = 1 / np.maximum(distance, 1e-6)
    share /= share.sum(1, keepdims=True)
    moved = np.asarray(first.keyframes, np.float64) - template.vertices
    starts = vertices + np.einsum("vn,kvni->kvi", share, moved[:, near])
    with reporter.part(0.75, 1.0):
        second = fit_capture(request, capture, cut, surfaces, retraced, reporter, starts=starts)
    left = contacts.webbed(cut.vertices, cut.faces, second.keyframes, capture)
    before = contacts.area(template.vertices, template.faces[webs])
    after = contacts.area(cut.vertices, cut.faces[left])
    if after >= before or second.misfit.mean() > first.misfit.mean():  # no web, or one that is needed
        return first
    return second


def fit_capture(
    request: Request,
    capture: Capture,
    template: Template,
    surfaces: Surfaces | None,
    traced: Traced,
    reporter: Reporter,
    motion: Motion | None = None,
    starts: np.ndarray | None = None,
) -> Fitted:
    """Pull the keyframes onto the captured depth (`fit`); the in-betweens keep the networks' motion (`between`).

    A clip's keyframes move more evenly in `positions` (`steady`) than as they were fitted. Without depth, or with the fit switched
    off, the feed-forward result is passed on.

    Args:
        surfaces: None registers from keyframe to keyframe without the networks.
        traced: of this template.
        motion: says where the mesh may be at the next keyframe; without it the networks do.
        starts: [K, V, 3], where the mesh is known to be, nearly, at the keyframes.
    """
    entries = [request.entry(k) for k in range(len(request.keyframes))]
    if not request.fit or capture.depth_planar is None:
        return Fitted(
            template,
            traced,
            positions=placed(request, traced.positions).astype(np.float32),
            confidence=traced.confidence,
            keyframes=traced.positions[entries],
            residuals=np.zeros(0),
            misfit=np.zeros(0),
        )
    home, count = template.home, capture.keyframes
    arap = Arap(template.vertices, template.faces)
    networks = None if surfaces is None else matches(surfaces)

    @functools.cache
    def interval(first: int) -> moved.Between:
        assert motion is not None
        return moved.Between(motion, capture, first, first + 1, MOTION_PIXELS)

    def guess(k: int, to: int, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
        if motion is not None:
            arrays = interval(min(k, to)).arrays(0 if to > k else 1, (0.0, 1.0))
            positions, sure = moved.FieldMatches(arrays, template.faces).moved(vertices, end=True)
            return positions[-1], sure[-1]
        if networks is None or abs(to - home) < abs(k - home):  # they were carried outwards only
            return None, None
        positions, sure = networks[min(k, to)].moved(vertices, end=True)
        return positions[-1], sure[-1]

    fitted, residuals = fit.fit_keyframes(
        template.vertices, template.faces, arap, capture, home=home, guess=guess, starts=starts,
        smoothness=request.smoothness,
        on_progress=lambda f: reporter.progress(0.8 * f),
    )  # fmt: skip
    shown = fitted  # where the texture is seen
    if request.source == "video":
        fitted = steady(fitted, request.keyframes, capture.camera_to_world[0])
    carried = np.array(request.carried())[:, None]
    moves = None
    confidence = np.zeros((len(request.frames()), len(fitted[0])))
    confidence[entries[home]] = 1
    if networks is not None:
        moves = [networks[k].moved(fitted[k if k >= home else k + 1]) for k in range(count - 1)]
        moves = [(way, sure) if k >= home else (way[::-1], sure[::-1]) for k, (way, sure) in enumerate(moves)]
        for k, (way, sure) in enumerate(moves):
            these, outwards = slice(entries[k], entries[k + 1] + 1), slice(1, None) if k >= home else slice(0, -1)
            confidence[these][outwards] = sure[outwards]
            moves[k] = way + carried[these], sure
    positions = between.interpolate(
        arap, fitted + carried[entries], request.keyframes, [interval_alphas(request, k) for k in range(count - 1)], moves,
        on_progress=lambda f: reporter.progress(0.8 + 0.2 * f),
    )  # fmt: skip
    return Fitted(
        template,
        traced,
        positions=positions.astype(np.float32),
        confidence=confidence.astype(np.float32),
        keyframes=shown.astype(np.float32),
        residuals=np.array([r.distance for r in residuals], np.float64),
        misfit=np.array([r.misfit for r in residuals], np.float64),
    )


def bake_texture(
    request: Request,
    capture: Capture,
    fitted: Fitted,
    reconstruction: Reconstruction,
    folders,
    device,
    reporter: Reporter,
) -> Textured:
    """The paint of the fit's template, from all captured views; nothing for the artist's own mesh, which keeps its own."""
    if request.template == "mesh":
        return Textured()
    template = fitted.template
    loop_uvs = texture.unwrap(template.vertices, template.faces, request.texture_size)
    reporter.progress(0.3)
    depth = capture.depth_planar
    if depth is None:
        depth = triplane_depth(capture, reconstruction, folders, device)
    trust = None
    if request.source == "video":  # the clip dominates where it sees; the made-up views fill the rest
        trust = np.where(np.arange(request.views) == 0, 1.0, MADE_UP)
    image = texture.bake(
        fitted.keyframes, template.faces, loop_uvs, capture.rgba, depth, capture.camera_to_world,
        capture.intrinsics, request.texture_size, home=template.home, trust=trust,
        on_progress=lambda f: reporter.progress(0.3 + 0.7 * f),
    )  # fmt: skip
    return Textured(loop_uvs.astype(np.float32), image)
