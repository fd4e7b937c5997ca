# SPDX-License-Identifier: GPL-3.0-or-later
"""A job from its request to its result, in the order of the paper's section 3 and our additions.

    T_k, F_k = LRM(I_k, Π)                                       reconstruct
    T̂_{k+α} = LIM(F_k, I_{k+1}, α)                               interpolate
    Ω_k     = the positions that keyframe k's depth shows        canonical
    T̄̂_{k+α} = LIM̄(LRM̄(Ω_k), I_k, I_{k+1}, α)
    template: fused depth of keyframe 0, its triplane, or the artist's own mesh      surface
    vertices → nearest canonical coordinate, with ARAP, chained over the keyframes   trace
    keyframes pulled onto the captured depth, in-betweens keep the networks' motion  fit
    one UV set, one image from all captured views                                    texture

Canonical coordinates are re-anchored at every keyframe: in each interval they are the positions at the interval's own first
keyframe, so that errors do not add up in what the networks are shown. Every stage is kept in `state/` under the hash of
all that it depends on, the code included; a repeated run redoes only what changed. Triplanes are made one at a time and not
kept: with the number of in-betweens grow only the vertices and the points that they are matched to.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch

from . import cameras, checkpoint, fit, protocol, result, surface, texture, trace, triplane
from . import capture as captures
from .arap import Arap, Coarse
from .capture import Capture
from .errors import LimError
from .images import pixel_rays
from .render import render_image
from .request import Request
from .worker import Reporter

SURFACE_LEVEL = 15.0  # density (per model unit) of the isosurface: half opaque after 0.05 units
SURFACE_GRID = 64  # of the canonical surfaces that vertices are matched to
TEMPLATE_GRID = 128  # of a template taken from the triplane
PREVIEW_VIEWS = 2
MADE_UP = 0.05  # what a generated view counts in the texture against the clip itself
SHARES = {  # of the time of a typical job on a CPU, for the progress bar
    "reconstruct": 0.04, "interpolate": 0.12, "canonical": 0.1, "surface": 0.12, "trace": 0.12, "fit": 0.35, "texture": 0.15,
}  # fmt: skip


class State:
    """What finished stages left behind: `state/<stage>.npz` and the key that it belongs to."""

    def __init__(self, job: Path):
        self.folder = job / protocol.STATE_FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        self.seconds: dict[str, float] = {}

    def load(self, stage: str, key: str) -> dict[str, np.ndarray] | None:
        """The arrays of a stage if it was finished under this key; a damaged file counts as absent."""
        try:
            arrays = captures.load_npz(self.folder / f"{stage}.npz")
            return arrays if str(arrays.pop("key")) == key else None
        except captures.UNREADABLE:
            return None

    def keep(self, stage: str, key: str, arrays: dict[str, np.ndarray]) -> None:
        result.save_arrays(self.folder / f"{stage}.npz", key=np.array(key), **arrays)


def code_key() -> str:
    """Hash of the backend's own code: what another version left behind is never taken over."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def key_of(*parts) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def run(job: Path, request: Request, device: torch.device, reporter: Reporter) -> None:
    """Compute a job folder's result.

    Raises:
        LimError: whatever an artist can do something about; Cancelled between two steps.
    """
    reporter.check()
    state = State(job)
    code = code_key()
    capture = captures.read(job, request)
    folders = checkpoint.folders(request.weights)
    weights = {network: _weights_key(folder, network) for network, folder in folders.items()}
    shown = key_of(
        code, captures.fingerprint(job), request.image_size, request.views, request.rig_views, request.has_depth
    )
    warnings: list[dict] = list(reporter.warnings)  # of a video's import

    def warn(code: str, message: str, hint: str = "") -> None:
        warnings.append({"code": code, "message": message, "hint": hint})
        reporter.warning(code, message, hint)

    if capture.depth_planar is None:
        warn("no_depth", "The source has no depth: the keyframes cannot be fitted to it.")
    times = (request.keyframes, request.inbetweens)
    keys: dict[str, str] = {}
    keys["reconstruct"] = key_of(shown, weights["lrm"])
    keys["interpolate"] = key_of(keys["reconstruct"], weights["lim"], times)
    keys["canonical"] = key_of(shown, weights["lrm"], weights["lrm-xyz"], weights["lim-xyz"], times)
    keys["surface"] = key_of(
        shown, request.template, request.template_faces, "" if request.has_depth else keys["reconstruct"]
    )
    keys["trace"] = key_of(keys["canonical"], keys["surface"], request.smoothness)
    keys["fit"] = key_of(keys["trace"], request.fit)
    keys["texture"] = key_of(keys["fit"], request.texture_size)

    functions = {
        "reconstruct": lambda found: reconstruct(capture, folders, device, reporter),
        "interpolate": lambda found: interpolate(job, request, capture, folders, device, reporter),
        "canonical": lambda found: canonical(request, capture, found["reconstruct"], folders, device, reporter),
        "surface": lambda found: template_mesh(job, request, capture, found["reconstruct"], folders, device, reporter),
        "trace": lambda found: trace_template(request, found["surface"], found["canonical"], reporter),
        "fit": lambda found: fit_capture(
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
            state.keep(stage, keys[stage], arrays)
            state.seconds[stage] = time.monotonic() - started
        found[stage] = arrays
        begins += SHARES[stage]
    reporter.progress(1.0)

    confidence = found["fit"]["confidence"]
    weak = float((confidence < 0.2).mean())
    if weak > 0.5:
        warn(
            "weak_matches",
            f"For {weak:.0%} of the mesh the networks gave no clear motion: it moves as rigidly as the captured keyframes allow.",
            "If a part goes astray between two keyframes, add one there.",
        )
    residuals = found["fit"]["residuals"]
    seconds = {stage: round(seconds, 3) for stage, seconds in state.seconds.items()}
    summary = {
        "protocol": protocol.VERSION,
        "frames": request.frames(),
        "seconds": {**reporter.seconds, **seconds},
        "warnings": warnings,
        "template": request.template,
        "vertices": int(found["fit"]["positions"].shape[1]),
        "faces": int(len(found["surface"]["faces"])),
        "metrics": {
            "keyframe_distance": [round(float(r), 5) for r in residuals],
            "confidence": round(float(confidence.mean()), 4),
            "moved_by_fit": round(float(np.abs(found["fit"]["positions"] - found["trace"]["positions"]).mean()), 5),
        },
    }
    arrays = {
        "positions": found["fit"]["positions"].astype(np.float32),
        "frames": np.array(request.frames(), np.float64),
        "faces": found["surface"]["faces"].astype(np.int32),
        "confidence": confidence.astype(np.float32),
        "feed_forward": found["trace"]["positions"].astype(np.float32),
    }
    image = None
    if request.template != "mesh":
        arrays["loop_uvs"] = found["texture"]["loop_uvs"]
        image = found["texture"]["image"]
    result.write(job, summary, image, **arrays)


def _weights_key(folder: Path, network: str) -> str:
    """Identity of a checkpoint, by content of its small files and the size of its large ones."""
    if not (folder / "config.json").is_file():
        raise LimError(
            "weights_missing",
            f"There are no weights for “{network}” in {folder}.",
            "Check the weights folder in the preferences, or empty it to use the bundled weights.",
        )
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix in (".json", ".safetensors"):
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


# ---- the networks' stages --------------------------------------------------------------------------------------------


@torch.no_grad()
def reconstruct(capture: Capture, folders, device, reporter: Reporter) -> dict[str, np.ndarray]:
    """T_k for every keyframe: `triplanes` float16 [K, 3, C, R, R]."""
    lrm = checkpoint.load(folders["lrm"], "lrm", device)
    planes = []
    for k in range(capture.keyframes):
        planes.append(lrm(capture.network_views(k, lrm.config.image_size, device))[0][0].cpu())
        reporter.progress((k + 1) / capture.keyframes)
    return {"triplanes": torch.stack(planes).half().numpy()}


@torch.no_grad()
def interpolate(job: Path, request: Request, capture: Capture, folders, device, reporter: Reporter):
    """T̂ at every frame, rendered: previews/triplane_fNNN_vVV.png. The triplanes themselves are not kept."""
    lrm = checkpoint.load(folders["lrm"], "lrm", device)
    lim = checkpoint.load(folders["lim"], "lim", device)
    size = lrm.config.image_size
    intervals = request.intervals()
    features = conditions = pair = None
    for index, (k, alpha) in enumerate(intervals):
        if pair != k:
            start, features = lrm(capture.network_views(k, size, device))
            conditions = lim.condition(capture.network_views(k + 1, size, device))
            pair = k
        if alpha == 0:
            planes = start
        elif alpha == 1:
            planes = lrm(capture.network_views(k + 1, size, device))[0]
        else:
            planes = lim(features, conditions, torch.tensor([alpha], device=device))[0]
        pixels = 2 * size
        for view in range(min(PREVIEW_VIEWS, capture.rig_views)):
            reporter.check()
            camera = torch.from_numpy(capture.camera_to_world[view]).to(device)
            scaled = cameras.scale_intrinsics(capture.intrinsics[view], pixels / request.image_size)
            intrinsics = torch.from_numpy(scaled).to(device)
            colour, _, mask = render_image(lrm.decoder, planes, camera, intrinsics, pixels, samples=96)
            rgba = torch.cat([colour, mask[..., None]], -1).clamp(0, 1).mul(255).round().byte().cpu().numpy()
            name = protocol.preview_file("triplane", index, view)
            result.save_image(job / name, np.ascontiguousarray(rgba[..., :3]))
            if view == 0:
                reporter.event("preview", path=name, label=f"frame {request.frames()[index]:g}")
        reporter.progress((index + 1) / len(intervals))
    return {"frames": np.array(request.frames())}


@torch.no_grad()
def canonical(request: Request, capture: Capture, reconstruction, folders, device, reporter: Reporter):
    """Surfaces labelled with canonical coordinates, for every interval at α = 0 and at each of its frames.

    `points` and `canonical` float32 [S, 3] of all of them, one after the other; `start` int64 [entries + 1]; `interval` and
    `alpha` [entries]. An entry may be empty where the networks see no surface.
    """
    lrm = checkpoint.load(folders["lrm"], "lrm", device)
    twin = checkpoint.load(folders["lrm-xyz"], "lrm-xyz", device)
    lim = checkpoint.load(folders["lim-xyz"], "lim-xyz", device)
    size = lrm.config.image_size
    entries = [(k, alpha) for k in range(len(request.keyframes) - 1) for alpha in interval_alphas(request)]
    points, labels, start = [], [], [0]
    pair = None
    for index, (k, alpha) in enumerate(entries):
        if pair != k:
            now, then = (capture.network_views(i, size, device) for i in (k, k + 1))
            omega = (
                now.with_content(now.position)
                if capture.depth_planar is not None
                else _rendered_positions(
                    lrm, torch.from_numpy(reconstruction["triplanes"][k]).float().to(device)[None], now
                )
            )
            _, features = twin(omega)
            condition = lim.condition(then, now)
            pair = k
        planes, _ = lim(features, condition, torch.tensor([alpha], device=device))
        grid = triplane.density_grid(twin.decoder, planes, SURFACE_GRID)
        try:
            vertices, _ = surface.marching_cubes(grid.cpu().numpy(), SURFACE_LEVEL)
        except LimError:
            vertices = np.zeros((0, 3), np.float32)
        points.append(vertices)
        if len(vertices):
            label = twin.decoder(planes, torch.from_numpy(vertices).to(device)[None])[1][0].cpu().numpy()
        else:
            label = vertices
        labels.append(label.astype(np.float32))
        start.append(start[-1] + len(vertices))
        reporter.progress((index + 1) / len(entries))
    return {
        "points": np.concatenate(points).astype(np.float32),
        "canonical": np.concatenate(labels),
        "start": np.array(start, np.int64),
        "interval": np.array([k for k, _ in entries]),
        "alpha": np.array([alpha for _, alpha in entries]),
    }


def _rendered_positions(lrm, planes: torch.Tensor, views):
    """Ω without captured depth: the triplane's own depth, rendered from the rig and unprojected (section 3.4)."""
    size = views.content.shape[2]
    position, known = torch.zeros_like(views.position), torch.zeros_like(views.depth_known)
    for v in range(views.content.shape[1]):
        camera, intrinsics = views.camera_to_world[0, v], views.intrinsics[0, v]
        _, depth, _ = render_image(lrm.decoder, planes, camera, intrinsics, size, samples=lrm.config.ray_samples)
        origins, directions = pixel_rays(camera, intrinsics, size)
        known[0, v] = (depth > 0).float()
        position[0, v] = (origins + depth[..., None] * directions) * known[0, v][..., None]
    return type(views)(position, views.alpha, position, known, views.camera_to_world, views.intrinsics)


def interval_alphas(request: Request) -> list[float]:
    """α of every frame of an interval, both ends included."""
    steps = request.inbetweens + 1
    return [step / steps for step in range(steps + 1)]


# ---- the mesh's stages -----------------------------------------------------------------------------------------------


def template_mesh(job: Path, request: Request, capture: Capture, reconstruction, folders, device, reporter: Reporter):
    """`vertices` float32 [V, 3] at the first keyframe, `faces` int32 [F, 3]."""
    if request.template == "mesh":
        vertices, faces = captures.read_template(job)
    elif capture.depth_planar is not None:
        vertices, faces = surface.fuse_depth(
            capture.depth_planar[0], capture.camera_to_world, capture.intrinsics, on_progress=reporter.progress
        )
        vertices, faces = surface.simplify(vertices, faces, request.template_faces)
    else:
        lrm = checkpoint.load(folders["lrm"], "lrm", device)
        planes = torch.from_numpy(reconstruction["triplanes"][0]).float().to(device)[None]
        grid = triplane.density_grid(lrm.decoder, planes, TEMPLATE_GRID).cpu().numpy()
        # A network that is unsure of the shape gives a thin fog: its surface is where half of the thickest is reached.
        level = min(SURFACE_LEVEL, 0.5 * float(grid.max()))
        vertices, faces = surface.clean(*surface.marching_cubes(grid, level))
        vertices, faces = surface.simplify(surface.taubin(vertices, faces), faces, request.template_faces)
    return {"vertices": vertices.astype(np.float32), "faces": faces.astype(np.int32)}


class Matches:
    """Where the networks believe the vertices of one keyframe are at the times of the interval that starts there.

    The canonical coordinate of a vertex is its position at that keyframe. What a network gets wrong about the still shape
    (a small triplane rounds thin parts) is the same at α = 0, where the truth is known: `moved` therefore adds to the
    vertex only what changes between α = 0 and α.
    """

    def __init__(self, surfaces: dict[str, np.ndarray], interval: int):
        rows = np.flatnonzero(surfaces["interval"] == interval)
        bounds = surfaces["start"]
        self.alphas = surfaces["alpha"][rows]
        self.points = [surfaces["points"][bounds[r] : bounds[r + 1]] for r in rows]
        self.canonical = [surfaces["canonical"][bounds[r] : bounds[r + 1]] for r in rows]

    def moved(self, vertices: np.ndarray, on_progress=None) -> tuple[np.ndarray, np.ndarray]:
        """positions [A, V, 3] float64 and confidence [A, V] at every α, for vertices [V, 3] at α = 0."""
        vertices = np.asarray(vertices, np.float64)
        positions, confidence = [vertices], [np.ones(len(vertices))]
        still = None
        for i in range(len(self.alphas)):
            if not len(self.points[i]) or not len(self.points[0]):
                matched, sure = vertices, np.zeros(len(vertices))
            else:
                matched, sure = trace.match_canonical(vertices, self.points[i], self.canonical[i])
            if i == 0:
                still, still_sure = matched, sure
            else:
                positions.append(vertices + matched - still)
                confidence.append(np.minimum(sure, still_sure))
            if on_progress:
                on_progress((i + 1) / len(self.alphas))
        return np.stack(positions), np.stack(confidence)


def trace_template(request: Request, template, surfaces, reporter: Reporter) -> dict[str, np.ndarray]:
    """The feed-forward result: `positions` [T, V, 3], `confidence` [T, V]; chained over the keyframes, no captured depth."""
    arap = Arap(template["vertices"], template["faces"])
    current = template["vertices"].astype(np.float64)
    positions, confidence = [current], [np.ones(len(current))]
    count = len(request.keyframes) - 1
    stiffness = 0.25 * 16 ** float(request.smoothness)  # 0.25 … 4
    for k in range(count):
        moved, sure = Matches(surfaces, k).moved(current)
        for i in range(1, len(moved)):
            current = arap.solve(moved[i], sure[i], current, iterations=6, stiffness=stiffness)
            positions.append(current)
            confidence.append(sure[i])
            reporter.progress((k + i / (len(moved) - 1)) / count)
    return {"positions": np.stack(positions).astype(np.float32), "confidence": np.stack(confidence).astype(np.float32)}


def fit_capture(request: Request, capture: Capture, template, surfaces, traced, reporter: Reporter):
    """Pull the keyframes onto the captured depth; the in-betweens keep the networks' motion. See `fit`.

    `positions` [T, V, 3], `confidence` [T, V], `residuals` [K] (mean distance to the captured points, model units), `keyframes`
    [K, V, 3]. Without depth, or with the fit switched off, the feed-forward result is passed on.
    """
    steps = request.inbetweens + 1
    if not request.fit or capture.depth_planar is None:
        return {
            "positions": traced["positions"],
            "confidence": traced["confidence"],
            "keyframes": traced["positions"][::steps],
            "residuals": np.zeros(0),
        }
    faces = template["faces"]
    arap = Arap(template["vertices"], faces)
    evidence = [
        fit.Capture(capture.depth_planar[k], capture.rgba[k], capture.camera_to_world, capture.intrinsics)
        for k in range(capture.keyframes)
    ]
    colours, _ = texture.see(
        template["vertices"],
        faces,
        capture.rgba[0],
        capture.depth_planar[0],
        capture.camera_to_world,
        capture.intrinsics,
    )
    fitted = [template["vertices"].astype(np.float64)]
    residuals = [fit.residual(faces, fitted[0], fit.Matcher(evidence[0], colours), 0.0).distance]
    coarse = Coarse(arap)
    positions, confidence = [fitted[0]], [np.ones(len(fitted[0]))]
    count = capture.keyframes - 1
    for k in range(count):
        moved, sure = Matches(surfaces, k).moved(fitted[k], lambda f, k=k: reporter.progress((k + 0.2 * f) / count))
        following, explained = fit.advance(
            arap, coarse, faces, fitted[k], evidence[k], evidence[k + 1], colours,
            guess=moved[-1], confidence=sure[-1], smoothness=request.smoothness,
        )  # fmt: skip
        fitted.append(following)
        residuals.append(explained.distance)
        reporter.progress((k + 0.7) / count)
        pairs = [(0, float(alpha)) for alpha in interval_alphas(request)]
        between = fit.blend_corrections(moved, np.stack(fitted[k : k + 2]), pairs, sure, arap)
        positions += list(between[1:])
        confidence += list(sure[1:])
        reporter.progress((k + 1) / count)
    return {
        "positions": np.stack(positions).astype(np.float32),
        "confidence": np.stack(confidence).astype(np.float32),
        "keyframes": np.stack(fitted).astype(np.float32),
        "residuals": np.array(residuals),
    }


def bake_texture(request, capture: Capture, template, fitted, reconstruction, folders, device, reporter: Reporter):
    """`loop_uvs` float32 [F, 3, 2] and `image` uint8 [S, S, 3]; nothing for the artist's own mesh, which keeps its own."""
    if request.template == "mesh":
        return {}
    loop_uvs = texture.unwrap(template["vertices"], template["faces"], request.texture_size)
    reporter.progress(0.3)
    depth = capture.depth_planar
    if depth is None:
        depth = _triplane_depth(capture, reconstruction, folders, device)
    trust = None
    if request.source == "video":  # the clip dominates where it sees; the made-up views fill the rest
        trust = np.where(np.arange(request.views) == 0, 1.0, MADE_UP)
    image = texture.bake(
        fitted["keyframes"], template["faces"], loop_uvs, capture.rgba, depth, capture.camera_to_world,
        capture.intrinsics, request.texture_size, trust=trust, on_progress=lambda f: reporter.progress(0.3 + 0.7 * f),
    )  # fmt: skip
    return {"loop_uvs": loop_uvs.astype(np.float32), "image": image}


@torch.no_grad()
def _triplane_depth(capture: Capture, reconstruction, folders, device) -> np.ndarray:
    """Depth [K, V, H, W] of every captured view, rendered from the triplanes: what decides visibility without a capture's."""
    lrm = checkpoint.load(folders["lrm"], "lrm", device)
    size, pixels = capture.rgba.shape[2], 2 * lrm.config.image_size
    nearest = (np.arange(size) * pixels) // size
    depth = np.zeros(capture.rgba.shape[:4], np.float32)
    for k in range(capture.keyframes):
        planes = torch.from_numpy(reconstruction["triplanes"][k]).float().to(device)[None]
        for view in range(depth.shape[1]):
            camera = torch.from_numpy(capture.camera_to_world[view]).to(device)
            scaled = cameras.scale_intrinsics(capture.intrinsics[view], pixels / size)
            found = render_image(lrm.decoder, planes, camera, torch.from_numpy(scaled).to(device), pixels, samples=96)[
                1
            ]
            depth[k, view] = found.cpu().numpy()[nearest][:, nearest]
    return depth
