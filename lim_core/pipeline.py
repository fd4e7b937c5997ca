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

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree

from . import (
    between,
    cameras,
    checkpoint,
    contacts,
    fit,
    protocol,
    reduction,
    remesh,
    result,
    surface,
    texture,
    trace,
    triplane,
)
from . import capture as captures
from .arap import Arap
from .capture import Capture
from .errors import LimError
from .images import pixel_rays
from .lim import ENDS, Anchors
from .observation import most_open
from .render import occupancy, render_image
from .request import Request
from .steady import steady
from .worker import Reporter

SURFACE_LEVEL = 15.0  # density (per model unit) of the isosurface: half opaque after 0.05 units
SURFACE_GRID = 64  # of the canonical surfaces that vertices are matched to
TEMPLATE_GRID = 128  # of a template taken from the triplane
RAY_SAMPLES = 64  # along a ray of a view that is rendered: every one and a half cells of a triplane
PREVIEW_VIEWS = 2
MADE_UP = 0.05  # what a generated view counts in the texture against the clip itself
SHARES = {  # of the time of a typical job on a CPU, for the progress bar
    "reconstruct": 0.04, "interpolate": 0.12, "surface": 0.12, "canonical": 0.1, "trace": 0.12, "fit": 0.35, "texture": 0.15,
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


def run(job: Path, request: Request, device: torch.device, reporter: Reporter) -> dict[str, dict[str, np.ndarray]]:
    """Compute a job folder's result; returns what every stage left, as in `state/`.

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
    weak = float((confidence < 0.2).mean())
    if weak > 0.5:
        warn(
            "weak_matches",
            f"For {weak:.0%} of the mesh the networks gave no clear motion: it moves as rigidly as the captured keyframes allow.",
            "If a part goes astray between two keyframes, add one there.",
        )
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
def interpolated(
    request: Request, capture: Capture, lrm, lim, device, *, anchored: bool = True
) -> Iterator[torch.Tensor]:
    """T̂ [1, 3, C, R, R] at every frame: the keyframes as LRM sees them, between them LIM's, anchored to them (or not)."""
    size = lrm.config.image_size
    pair, end = None, (None, None)
    for k, alpha in request.intervals():
        if pair != k:
            start, features = end if pair is not None else lrm(capture.network_views(k, size, device))
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
def interpolate(job: Path, request: Request, capture: Capture, folders, device, reporter: Reporter):
    """T̂ at every frame, rendered: previews/triplane_fNNN_vVV.png. The triplanes themselves are not kept."""
    lrm = checkpoint.load(folders["lrm"], "lrm", device)
    lim = checkpoint.load(folders["lim"], "lim", device)
    frames = request.frames()
    pixels = lrm.config.image_size
    for index, planes in enumerate(interpolated(request, capture, lrm, lim, device)):
        busy = occupancy(lrm.decoder, planes)
        for view in range(min(PREVIEW_VIEWS, capture.rig_views)):
            reporter.check()
            camera = torch.from_numpy(capture.camera_to_world[view]).to(device)
            scaled = cameras.scale_intrinsics(capture.intrinsics[view], pixels / request.image_size)
            intrinsics = torch.from_numpy(scaled).to(device)
            colour, _, mask = render_image(
                lrm.decoder, planes, camera, intrinsics, pixels, samples=RAY_SAMPLES, busy=busy
            )
            rgba = torch.cat([colour, mask[..., None]], -1).clamp(0, 1).mul(255).round().byte().cpu().numpy()
            name = protocol.preview_file("triplane", index, view)
            result.save_image(job / name, np.ascontiguousarray(rgba[..., :3]))
            if view == 0:
                reporter.event("preview", path=name, label=f"frame {frames[index]:g}")
        reporter.progress((index + 1) / len(frames))
    return {"frames": np.array(frames)}


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
def canonical(request: Request, capture: Capture, reconstruction, home: int, folders, device, reporter: Reporter):
    """Surfaces labelled with canonical coordinates, for every interval, from its end nearer to keyframe `home` outwards.

    `points` and `canonical` float32 [S, 3] of all of them, one after the other; `start` int64 [entries + 1]; `interval` and
    `alpha` [entries], α = 0 at the end that the interval is traced from. An entry may be empty where the networks see no
    surface.
    """
    lrm = checkpoint.load(folders["lrm"], "lrm", device)
    twin = checkpoint.load(folders["lrm-xyz"], "lrm-xyz", device)
    lim = checkpoint.load(folders["lim-xyz"], "lim-xyz", device)
    size = lrm.config.image_size
    intervals = range(len(request.keyframes) - 1)
    alphas = [interval_alphas(request, k) for k in intervals]
    points, labels, start = [], [], [0]
    for k in intervals:
        source, target = (k, k + 1) if k >= home else (k + 1, k)
        now, then = (capture.network_views(i, size, device) for i in (source, target))
        omega = (
            now.with_content(now.position)
            if capture.depth_planar is not None
            else _rendered_positions(
                lrm, torch.from_numpy(reconstruction["triplanes"][source]).float().to(device)[None], now
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
    return {
        "points": np.concatenate(points),
        "canonical": np.concatenate(labels),
        "start": np.array(start, np.int64),
        "interval": np.repeat(intervals, [len(part) for part in alphas]),
        "alpha": np.concatenate(alphas),
    }


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


def interval_alphas(request: Request, interval: int) -> list[float]:
    """α of every frame of an interval, both ends included."""
    steps = request.steps(interval)
    return [step / steps for step in range(steps + 1)]


# ---- the mesh's stages -----------------------------------------------------------------------------------------------


def template_mesh(job: Path, request: Request, capture: Capture, reconstruction, folders, device, reporter: Reporter):
    """`vertices` float32 [V, 3] at keyframe `home`, `faces` int32 [F, 3].

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
        planes = torch.from_numpy(reconstruction["triplanes"][0]).float().to(device)[None]
        grid = triplane.density_grid(lrm.decoder, planes, TEMPLATE_GRID).cpu().numpy()
        # A network that is unsure of the shape gives a thin fog: its surface is where half of the thickest is reached.
        level = min(SURFACE_LEVEL, 0.5 * float(grid.max()))
        vertices, faces = surface.clean(*surface.marching_cubes(grid, level))
        vertices, faces = remesh.reduce(surface.taubin(vertices, faces), faces, request.template_faces)
    return {"vertices": vertices.astype(np.float32), "faces": faces.astype(np.int32), "home": np.array(home)}


def fused_mesh(
    request: Request,
    capture: Capture,
    keyframe: int,
    apart: Sequence[np.ndarray] = (),
    on_progress: Callable[[float], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """vertices [V, 3] and faces [F, 3] of what the depth of one keyframe shows; `apart` as in `surface.fuse_depth`."""
    report = on_progress or (lambda fraction: None)
    seen = (capture.depth_planar[keyframe], capture.camera_to_world, capture.intrinsics)
    vertices, faces = surface.fuse_depth(*seen, apart=apart, on_progress=lambda fraction: report(0.8 * fraction))
    vertices, faces = remesh.reduce(vertices, faces, request.template_faces)
    return remesh.without_slivers(remesh.settle(vertices, faces, *remesh.captured(*seen)), faces)


def matches(surfaces: dict[str, np.ndarray]) -> list[trace.Matches]:
    """What `canonical` found, interval by interval."""
    bounds = list(zip(surfaces["start"], surfaces["start"][1:]))
    found = []
    for k in np.unique(surfaces["interval"]):
        parts = [slice(*bounds[row]) for row in np.flatnonzero(surfaces["interval"] == k)]
        found.append(trace.Matches([surfaces["points"][p] for p in parts], [surfaces["canonical"][p] for p in parts]))
    return found


def trace_template(request: Request, template, surfaces, reporter: Reporter, *, rigid: bool = True):
    """The feed-forward result: `positions` [T, V, 3], `confidence` [T, V]; chained over the keyframes, no captured depth.

    From the origin of every frame: `placed` puts them together.

    Args:
        rigid: match with ARAP; otherwise the bare nearest neighbour of the paper's section 3.4.
    """
    positions, confidence = trace.trace_outwards(
        template["vertices"],
        matches(surfaces),
        int(template["home"]),
        Arap(template["vertices"], template["faces"]) if rigid else None,
        stiffness=0.25 * 16 ** float(request.smoothness),  # 0.25 … 4
        on_progress=reporter.progress,
    )
    return {"positions": positions.astype(np.float32), "confidence": confidence.astype(np.float32)}


def placed(request: Request, positions: np.ndarray) -> np.ndarray:
    """Positions [T, V, 3] of all frames, each from its own origin, from the first keyframe's."""
    return positions + np.array(request.carried())[:, None]


def fit_apart(request: Request, capture: Capture, template, surfaces, traced, reporter: Reporter):
    """`fit_capture`; and once more, with the template cut apart, where the first time shows parts that only touched.

    What `fit_capture` gives of the better of the two. Where that is the second, the new template is in it, too, `vertices` and
    `faces`, and its feed-forward result, `traced` and `traced_confidence`.
    """
    with reporter.part(0.0, 0.7):
        first = fit_capture(request, capture, template, surfaces, traced, reporter)
    if request.template == "mesh" or not len(first["misfit"]):
        return first
    webs = contacts.webbed(template["vertices"], template["faces"], first["keyframes"], capture)
    apart = contacts.contacts(template["vertices"], template["faces"], webs)
    if not apart:
        return first
    try:
        vertices, faces = fused_mesh(request, capture, int(template["home"]), apart)
    except LimError:  # nothing would be left
        return first
    cut = template | {"vertices": vertices.astype(np.float32), "faces": faces.astype(np.int32)}
    with reporter.part(0.7, 0.75):
        traced = trace_template(request, cut, surfaces, reporter)
    # Where the mesh goes is known by now: the second time it only has to settle.
    distance, near = cKDTree(template["vertices"]).query(vertices, k=4)
    share = 1 / np.maximum(distance, 1e-6)
    share /= share.sum(1, keepdims=True)
    moved = np.asarray(first["keyframes"], np.float64) - template["vertices"]
    starts = vertices + np.einsum("vn,kvni->kvi", share, moved[:, near])
    with reporter.part(0.75, 1.0):
        second = fit_capture(request, capture, cut, surfaces, traced, reporter, starts=starts)
    left = contacts.webbed(cut["vertices"], cut["faces"], second["keyframes"], capture)
    before = contacts.area(template["vertices"], template["faces"][webs])
    after = contacts.area(cut["vertices"], cut["faces"][left])
    if after >= before or second["misfit"].mean() > first["misfit"].mean():  # no web, or one that is needed
        return first
    return second | {
        "vertices": cut["vertices"],
        "faces": cut["faces"],
        "traced": traced["positions"],
        "traced_confidence": traced["confidence"],
    }


def fit_capture(
    request: Request, capture: Capture, template, surfaces, traced, reporter: Reporter, starts: np.ndarray | None = None
):
    """Pull the keyframes onto the captured depth (`fit`); the in-betweens keep the networks' motion (`between`).

    `positions` [T, V, 3] from the first keyframe's origin, `confidence` [T, V], `residuals` [K] (mean distance to the captured
    points, model units) and `misfit` [K] (with what the colours miss), `keyframes` [K, V, 3], as they were fitted, from their own
    origins: those of a clip move more evenly in `positions` (`steady`). Without depth, or with the fit switched off, the feed-forward result is passed on.

    Args:
        surfaces: of `canonical`; None registers from keyframe to keyframe without the networks.
        traced: of `trace_template`.
        starts: [K, V, 3], where the mesh is known to be, nearly, at the keyframes.
    """
    entries = [request.entry(k) for k in range(len(request.keyframes))]
    if not request.fit or capture.depth_planar is None:
        return {
            "positions": placed(request, traced["positions"]),
            "confidence": traced["confidence"],
            "keyframes": traced["positions"][entries],
            "residuals": np.zeros(0),
            "misfit": np.zeros(0),
        }
    home, count = int(template["home"]), capture.keyframes
    arap = Arap(template["vertices"], template["faces"])
    networks = None if surfaces is None else matches(surfaces)

    def guess(k: int, to: int, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
        if networks is None or abs(to - home) < abs(k - home):  # they were carried outwards only
            return None, None
        positions, sure = networks[min(k, to)].moved(vertices, end=True)
        return positions[-1], sure[-1]

    fitted, residuals = fit.fit_keyframes(
        template["vertices"], template["faces"], arap, capture, home=home, guess=guess, starts=starts,
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
        moves = [move if k >= home else tuple(part[::-1] for part in move) for k, move in enumerate(moves)]
        for k, (way, sure) in enumerate(moves):
            these, outwards = slice(entries[k], entries[k + 1] + 1), slice(1, None) if k >= home else slice(0, -1)
            confidence[these][outwards] = sure[outwards]
            moves[k] = way + carried[these], sure
    positions = between.interpolate(
        arap, fitted + carried[entries], request.keyframes, [interval_alphas(request, k) for k in range(count - 1)], moves,
        on_progress=lambda f: reporter.progress(0.8 + 0.2 * f),
    )  # fmt: skip
    return {
        "positions": positions.astype(np.float32),
        "confidence": confidence.astype(np.float32),
        "keyframes": shown.astype(np.float32),
        "residuals": np.array([r.distance for r in residuals]),
        "misfit": np.array([r.misfit for r in residuals]),
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
        capture.intrinsics, request.texture_size, home=int(template["home"]), trust=trust,
        on_progress=lambda f: reporter.progress(0.3 + 0.7 * f),
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
        busy = occupancy(lrm.decoder, planes)
        for view in range(depth.shape[1]):
            camera = torch.from_numpy(capture.camera_to_world[view]).to(device)
            scaled = cameras.scale_intrinsics(capture.intrinsics[view], pixels / size)
            lens = torch.from_numpy(scaled).to(device)
            found = render_image(lrm.decoder, planes, camera, lens, pixels, samples=96, busy=busy)[1]
            depth[k, view] = found.cpu().numpy()[nearest][:, nearest]
    return depth
