# SPDX-License-Identifier: GPL-3.0-or-later
"""The stages that run networks: triplanes, in-between pictures, and surfaces with canonical coordinates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..job import drawn, result
from ..job.artefacts import Fitted, Interpolated, Reconstruction, Surfaces, Template, Textured
from ..job.capture import Capture
from ..job.reporter import Reporter
from ..mesh import surface
from ..mesh.packs import Pack
from ..networks import checkpoint, triplane
from ..networks.images import pixel_rays
from ..networks.lim import ENDS, Anchors
from ..networks.render import occupancy, render_image
from ..shared import cameras, protocol
from ..shared.errors import LimError
from ..shared.request import Request, interval_alphas

SURFACE_LEVEL = 15.0  # density (per model unit) of the isosurface: half opaque after 0.05 units


SURFACE_GRID = 64  # of the canonical surfaces that vertices are matched to


RAY_SAMPLES = 64  # along a ray of a view that is rendered: every one and a half cells of a triplane


PREVIEW_VIEWS = 2


@torch.no_grad()
def reconstruct(capture: Capture, folders, device, reporter: Reporter) -> Reconstruction:
    """T_k for every keyframe."""
    lrm = checkpoint.load(folders["lrm"], "lrm", device)
    planes = []
    for k in range(capture.keyframes):
        planes.append(lrm(capture.network_views(k, lrm.config.image_size, device))[0][0].cpu())
        reporter.progress((k + 1) / capture.keyframes)
    return Reconstruction(torch.stack(planes).half().numpy())


@torch.no_grad()
def interpolated(
    request: Request, capture: Capture, lrm, lim, device, *, anchored: bool = True
) -> Iterator[torch.Tensor]:
    """T̂ [1, 3, C, R, R] at every frame: the keyframes as LRM sees them, between them LIM's, anchored to them (or not)."""
    size = lrm.config.image_size
    pair, end = None, lrm(capture.network_views(0, size, device))
    for k, alpha in request.intervals():
        if pair != k:
            start, features = end
            following = capture.network_views(k + 1, size, device)
            end, condition = lrm(following), lim.condition(following)
            anchors = Anchors(lim(features, condition, start.new_tensor(ENDS))[0], start, end[0]) if anchored else None
            pair = k
        if alpha in (0, 1):
            yield end[0] if alpha else start
        else:
            at = torch.tensor([alpha], device=device)
            between = lim(features, condition, at)[0]
            yield anchors.hold(between, at) if anchors else between


@torch.no_grad()
def carried(
    request: Request, capture: Capture, lrm, pack: Pack, positions: np.ndarray, device
) -> Iterator[tuple[torch.Tensor, nn.Module]]:
    """T̂ [1, 3, C, R, R] at every frame, from the evidence that the fitted mesh carries there: LRM's of what the rig would capture of
    it, held to LRM's of the capture at the keyframes. With each, a decoder that reads the pictures of that evidence.

    Args:
        pack: the textured mesh; positions: [T, V, 3], each from its frame's own origin.
    """
    size, rig = lrm.config.image_size, slice(0, capture.rig_views)
    placed = capture.camera_to_world[rig], capture.intrinsics[rig]

    def of(evidence: Capture, keyframe: int) -> torch.Tensor:
        return lrm(evidence.network_views(keyframe, size, device))[0]

    def of_mesh(index: int) -> Capture:
        return drawn.shown(pack, positions[index], *placed, request.image_size)

    end = of(capture, 0)
    ends: dict[int, torch.Tensor] = {}
    anchors, pair = None, None
    for index, (k, alpha) in enumerate(request.intervals()):
        if pair != k:
            start, end, pair, anchors = end, of(capture, k + 1), k, None
        if alpha in (0, 1):
            yield end if alpha else start, capture.image_colour(lrm.decoder, k + int(alpha), device)
            continue
        if anchors is None:  # only where there is something between the two
            ends = {i: ends[i] if i in ends else of(of_mesh(request.entry(i)), 0) for i in (k, k + 1)}
            anchors = Anchors(torch.cat([ends[k], ends[k + 1]]), start, end)
        evidence = of_mesh(index)
        planes = anchors.hold(of(evidence, 0), torch.tensor([alpha], device=device))
        yield planes, evidence.image_colour(lrm.decoder, 0, device)


@torch.no_grad()
def interpolate(
    job: Path,
    request: Request,
    capture: Capture,
    fitted: Fitted,
    textured: Textured,
    folders,
    device,
    reporter: Reporter,
) -> Interpolated:
    """T̂ at every frame, rendered: previews/triplane_fNNN_vVV.png. The triplanes themselves are not kept.

    Where the keyframes were fitted, the textured mesh knows best what there is to be seen between them (`carried`). Otherwise LIM
    tells (`interpolated`).
    """
    lrm = checkpoint.load(folders["lrm"], "lrm", device)
    frames = request.frames()
    pixels = lrm.config.image_size
    if len(fitted.residuals) and textured.loop_uvs is not None and textured.image is not None:
        positions = fitted.positions - np.array(request.carried(), np.float32)[:, None]
        pack = drawn.textured(positions, fitted.template.faces, textured.loop_uvs, textured.image)
        made = carried(request, capture, lrm, pack, positions, device)
    else:
        lim = checkpoint.load(folders["lim"], "lim", device)
        made = ((planes, lrm.decoder) for planes in interpolated(request, capture, lrm, lim, device))
    for index, (planes, decoder) in enumerate(made):
        busy = occupancy(lrm.decoder, planes)
        for view in range(min(PREVIEW_VIEWS, capture.rig_views)):
            reporter.check()
            camera = torch.from_numpy(capture.camera_to_world[view]).to(device)
            scaled = cameras.scale_intrinsics(capture.intrinsics[view], pixels / request.image_size)
            intrinsics = torch.from_numpy(scaled).to(device)
            colour, _, mask = render_image(decoder, planes, camera, intrinsics, pixels, samples=RAY_SAMPLES, busy=busy)
            rgba = torch.cat([colour, mask[..., None]], -1).clamp(0, 1).mul(255).round().byte().cpu().numpy()
            name = protocol.preview_file("triplane", index, view)
            result.save_image(job / name, np.ascontiguousarray(rgba[..., :3]))
            if view == 0:
                reporter.event("preview", path=name, label=f"frame {frames[index]:g}")
        reporter.progress((index + 1) / len(frames))
    return Interpolated(np.array(frames, np.float64))


@torch.no_grad()
def labelled_surface(decoder, planes: torch.Tensor, device) -> tuple[np.ndarray, np.ndarray]:
    """The isosurface of a triplane: vertices float32 [S, 3] and the decoder's content there [S, 3]; empty where the
    network sees none."""
    grid = triplane.density_grid(decoder, planes, SURFACE_GRID)
    try:
        vertices, _ = surface.marching_cubes(grid.cpu().numpy(), SURFACE_LEVEL)
    except LimError:
        return np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)
    content = decoder(planes, torch.from_numpy(vertices).to(device)[None])[1][0].cpu().numpy()
    return vertices.astype(np.float32), content.astype(np.float32)


@torch.no_grad()
def canonical(
    request: Request,
    capture: Capture,
    reconstruction: Reconstruction,
    template: Template,
    folders,
    device,
    reporter: Reporter,
) -> Surfaces:
    """Surfaces labelled with canonical coordinates, for every interval, from its end nearer to the template's keyframe outwards."""
    lrm = checkpoint.load(folders["lrm"], "lrm", device)
    twin = checkpoint.load(folders["lrm-xyz"], "lrm-xyz", device)
    lim = checkpoint.load(folders["lim-xyz"], "lim-xyz", device)
    size = lrm.config.image_size
    intervals = range(len(request.keyframes) - 1)
    alphas = [interval_alphas(request, k) for k in intervals]
    points, labels, start = [], [], [0]
    for k in intervals:
        source, target = (k, k + 1) if k >= template.home else (k + 1, k)
        now, then = (capture.network_views(i, size, device) for i in (source, target))
        omega = (
            now.with_content(now.position)
            if capture.depth_planar is not None
            else _rendered_positions(
                lrm, torch.from_numpy(reconstruction.triplanes[source]).float().to(device)[None], now
            )
        )
        _, features = twin(omega)
        condition = lim.condition(then, now)
        for alpha in alphas[k]:
            planes, _ = lim(features, condition, torch.tensor([alpha], device=device))
            vertices, label = labelled_surface(twin.decoder, planes, device)
            points.append(vertices)
            labels.append(label)
            start.append(start[-1] + len(vertices))
            reporter.progress(len(points) / sum(len(part) for part in alphas))
    return Surfaces(
        points=np.concatenate(points),
        canonical=np.concatenate(labels),
        interval=np.repeat(intervals, [len(part) for part in alphas]),
        alpha=np.concatenate(alphas),
        start=np.array(start, np.int64),
    )


def _rendered_positions(lrm, planes: torch.Tensor, views):
    """Ω without captured depth: the triplane's own depth, rendered from the rig and unprojected (section 3.4)."""
    size = views.content.shape[2]
    position, known = torch.zeros_like(views.position), torch.zeros_like(views.depth_known)
    busy = occupancy(lrm.decoder, planes)
    for v in range(views.content.shape[1]):
        camera, intrinsics = views.camera_to_world[0, v], views.intrinsics[0, v]
        _, depth, _ = render_image(lrm.decoder, planes, camera, intrinsics, size, samples=RAY_SAMPLES, busy=busy)
        origins, directions = pixel_rays(camera, intrinsics, size)
        known[0, v] = (depth > 0).float()
        position[0, v] = (origins + depth[..., None] * directions) * known[0, v][..., None]
    return type(views)(position, views.alpha, position, known, views.camera_to_world, views.intrinsics)


@torch.no_grad()
def triplane_depth(capture: Capture, reconstruction: Reconstruction, folders, device) -> np.ndarray:
    """Depth [K, V, H, W] of every captured view, rendered from the triplanes: what decides visibility without a capture's."""
    lrm = checkpoint.load(folders["lrm"], "lrm", device)
    size, pixels = capture.rgba.shape[2], 2 * lrm.config.image_size
    nearest = (np.arange(size) * pixels) // size
    depth = np.zeros((capture.keyframes, len(capture.camera_to_world), size, size), np.float32)
    for k in range(capture.keyframes):
        planes = torch.from_numpy(reconstruction.triplanes[k]).float().to(device)[None]
        busy = occupancy(lrm.decoder, planes)
        for view in range(depth.shape[1]):
            camera = torch.from_numpy(capture.camera_to_world[view]).to(device)
            scaled = cameras.scale_intrinsics(capture.intrinsics[view], pixels / size)
            lens = torch.from_numpy(scaled).to(device)
            found = render_image(lrm.decoder, planes, camera, lens, pixels, samples=96, busy=busy)[1]
            depth[k, view] = found.cpu().numpy()[nearest][:, nearest]
    return depth
