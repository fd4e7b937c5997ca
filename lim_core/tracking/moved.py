# SPDX-License-Identifier: GPL-3.0-or-later
"""What two keyframes show, moved to α by the motion network, and drawn again for the networks that read pictures.

    depth pictures of both keyframes → sheets of triangles, cut where the depth jumps
    Motion between clouds of their points → every point of a sheet at α
    both sheets seen by the rig there → one picture and depth: where they agree the mean by age, else the surer one

Arrays are numpy, model space [-1, 1]³; the network runs where its weights are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from ..job.capture import Capture
from ..mesh import surface
from ..mesh.rays import Eyes
from ..networks.images import Views
from ..networks.point_motion import Cloud, Field, Held, Motion, carried, hold, rotate
from ..shared import cameras
from ..shared.errors import LimError

JUMP = 6.0  # pixels' width: a larger step in depth between two pixels is an edge of the object
AGREE = 0.06  # model units between the depths of both ends, below which they are of one surface
UNSURE = 0.08  # model units of expected error at which a lone end's word counts half
POINTS_PER_CONTROL = 4
SURE_SCATTER = 0.05  # model units of expected error at which a control's word counts half
SURE_CYCLE = 0.08  # the same of what is missed on the way there and back


@dataclasses.dataclass(frozen=True, eq=False)
class Sheets:
    """One keyframe's depth pictures as surfaces. Shapes: P points, F triangles.

    points, normals, colours: float32 [P, 3], normals towards the camera, colours in [0, 1]; faces int32 [F, 3].
    """

    points: np.ndarray
    normals: np.ndarray
    colours: np.ndarray
    faces: np.ndarray


def sheets(capture: Capture, keyframe: int, size: int) -> Sheets:
    """Of the rig's views at every pixel of a picture of `size` pixels; a triangle lies between pixels of one surface."""
    assert capture.depth_planar is not None
    step = max(capture.rgba.shape[2] // size, 1)
    offset = step // 2
    depth_all = capture.depth_planar[keyframe, : capture.rig_views, offset::step, offset::step]
    rgba = capture.rgba[keyframe, : capture.rig_views, offset::step, offset::step]
    count = depth_all.shape[1]
    points, normals, colours, faces, begun = [], [], [], [], 0
    for view, depth in enumerate(depth_all):
        mask = depth > 0
        if not mask.any():
            continue
        lens = capture.intrinsics[view].astype(np.float64).copy()
        lens[:2] /= step
        lens[:2, 2] += 0.5 - (offset + 0.5) / step  # the kept pixels' centres
        grid = cameras.unproject(depth, capture.camera_to_world[view], lens.astype(np.float32))
        normal = surface.grid_normals(grid, depth, capture.camera_to_world[view], lens.astype(np.float32))
        index = np.full((count, count), -1)
        index[mask] = np.arange(begun, begun + mask.sum())
        begun += int(mask.sum())
        points.append(grid[mask])
        normals.append(normal[mask])
        colours.append(rgba[view][mask][:, :3].astype(np.float32) / 255)
        limit = JUMP * depth / lens[0, 0]
        for corners in (((0, 0), (1, 0), (0, 1)), ((1, 1), (0, 1), (1, 0))):
            cut = [(slice(r, count - 1 + r), slice(c, count - 1 + c)) for r, c in corners]
            ids = np.stack([index[part] for part in cut], -1)
            deep = np.stack([depth[part] for part in cut], -1)
            whole = (ids >= 0).all(-1) & (np.ptp(deep, axis=-1) < limit[cut[0]])
            faces.append(ids[whole])
    if not points:
        empty = np.zeros((0, 3), np.float32)
        return Sheets(empty, empty, empty, np.zeros((0, 3), np.int32))
    return Sheets(
        np.concatenate(points).astype(np.float32), np.concatenate(normals).astype(np.float32),
        np.concatenate(colours).astype(np.float32), np.concatenate(faces).astype(np.int32),
    )  # fmt: skip


def cloud(sheet: Sheets, controls: int, device, seed: int = 0) -> Cloud:
    """Points of a sheet, drawn as in training: pixel by pixel, the controls among them; they repeat where it has fewer."""
    rng = np.random.default_rng(seed)
    sound = np.flatnonzero(np.abs(sheet.normals).sum(1) > 0)
    if not len(sound):
        raise LimError(
            "empty_surface", "A keyframe shows no surface.", "Choose another keyframe, or look at its capture."
        )
    count = POINTS_PER_CONTROL * controls
    chosen = sound[rng.permutation(len(sound))[:count]]
    chosen = np.resize(chosen, count)

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values[chosen], np.float32))[None].to(device)

    return Cloud(
        tensor(sheet.points), tensor(sheet.normals), tensor(sheet.colours), torch.arange(controls, device=device)[None]
    )


class FieldMatches:
    """Where the motion network believes the vertices of one keyframe are at the times of an interval (as `trace.Matches`).

    Shapes: N controls, A times of the interval, the vertices' own keyframe first.
    """

    def __init__(self, arrays: dict[str, np.ndarray], faces: np.ndarray | None = None):
        """arrays: of `Between.arrays`; faces: [F, 3] of the mesh whose vertices will be asked for: their normals tell the sides of
        a sheet apart."""
        self.times = len(arrays["place"])
        self.faces = faces
        self.place, self.turn = (torch.from_numpy(arrays[name])[:, None] for name in ("place", "turn"))
        start, normal, self.sure = (torch.from_numpy(arrays[name])[None] for name in ("start", "normal", "sure"))
        empty = start.new_zeros(1)
        self.field = Field(start, normal, start, start, self.turn[0], self.sure, empty, (empty, empty))

    def moved(self, vertices: np.ndarray, *, end: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """positions [A, V, 3] float64 and confidence [A, V] at every time, for vertices [V, 3] at the first; with `end` at the
        first and the last only."""
        points = torch.from_numpy(np.ascontiguousarray(vertices, np.float32))[None]
        normals = None
        if self.faces is not None:
            normals = torch.from_numpy(surface.vertex_normals(vertices, self.faces).astype(np.float32))[None]
        held = hold(self.field, points, normals)
        sure = held.blend(self.sure[..., None])[0, :, 0].numpy()
        positions, confidence = [np.asarray(vertices, np.float64)], [np.ones(len(vertices))]
        for time in [self.times - 1] if end else range(1, self.times):
            way = carried(self.field.start, self.place[time], self.turn[time], held, points)
            positions.append(way[0].numpy().astype(np.float64))
            confidence.append(sure)
        return np.stack(positions), np.stack(confidence)


class Between:
    """Everything of an interval that does not depend on α."""

    @torch.no_grad()
    def __init__(self, motion: Motion, capture: Capture, first: int, last: int, size: int):
        """size: pixels of the pictures that are drawn.

        Raises:
            LimError: `empty_surface`, a keyframe shows nothing, or the capture has no depth.
        """
        device = next(motion.parameters()).device
        self.motion, self.capture, self.size, self.device = motion, capture, size, device
        self.sheets = [sheets(capture, k, size) for k in (first, last)]
        self.fields: tuple[Field, Field] = motion(*(cloud(s, motion.config.controls, device) for s in self.sheets))
        self.held = [self._held(field, sheet) for field, sheet in zip(self.fields, self.sheets)]

    def _held(self, field: Field, sheet: Sheets) -> Held:
        points, normals = (torch.from_numpy(x)[None].to(self.device) for x in (sheet.points, sheet.normals))
        return hold(field, points, normals)

    @torch.no_grad()
    def points(self, end: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        """The points of the first (0) or last (1) keyframe's sheet at α, float32 [P, 3], and their expected error [P]."""
        field, held, sheet = self.fields[end], self.held[end], self.sheets[end]
        way = alpha if end == 0 else 1 - alpha
        place, turn = self.motion.at(field, torch.full((1,), float(way), device=self.device))
        moved = carried(field.start, place, turn, held, torch.from_numpy(sheet.points)[None].to(self.device))
        doubt = held.blend(field.scatter[..., None])[0, :, 0] * way
        return moved[0].cpu().numpy(), doubt.cpu().numpy()

    @torch.no_grad()
    def arrays(self, end: int, alphas: Sequence[float]) -> dict[str, np.ndarray]:
        """What `FieldMatches` needs, from the first (0) or the last (1) keyframe outwards.

        Args:
            alphas: [A] of the interval; of the last keyframe they are taken backwards.
        Returns:
            start, normal [N, 3]; place [A, N, 3], turn [A, N, 4] at each time; sure [N] in [0, 1]: near 1 where the network expects a
            small error and the way back leads to where it began.
        """
        field, opposite = self.fields[end], self.fields[1 - end]
        ways = [alpha if end == 0 else 1 - alpha for alpha in alphas][:: 1 if end == 0 else -1]
        places, turns = zip(*(self.motion.at(field, torch.full((1,), float(way), device=self.device)) for way in ways))
        back = hold(opposite, field.place, rotate(field.turn, field.normal))
        again = carried(opposite.start, opposite.place, opposite.turn, back, field.place)
        missed = (again - field.start).norm(dim=-1)
        sure = 1 / (1 + (field.scatter / SURE_SCATTER) ** 2) / (1 + (missed / SURE_CYCLE) ** 2)
        return {
            "start": field.start[0].cpu().numpy(), "normal": field.normal[0].cpu().numpy(),
            "place": torch.cat(places).cpu().numpy(), "turn": torch.cat(turns).cpu().numpy(),
            "sure": sure[0].cpu().numpy(),
        }  # fmt: skip

    def capture_at(self, alpha: float) -> Capture:
        """What the rig would show at α, as a capture of that one time."""
        size, rig = self.size, slice(0, self.capture.rig_views)
        camera = self.capture.camera_to_world[rig]
        lens = np.stack([
            cameras.scale_intrinsics(k, size / self.capture.rgba.shape[2]) for k in self.capture.intrinsics[rig]
        ])  # fmt: skip
        pixels = np.arange(len(camera) * size * size)
        ends = []
        for end in (0, 1):
            points, doubt = self.points(end, alpha)
            sheet = self.sheets[end]
            scene = EmbreeScene()
            TriangleMesh(scene, np.ascontiguousarray(points, np.float32), sheet.faces)
            rows, hit = Eyes(camera, lens, size).shoot(scene, pixels, 0.5, 0.5)
            corners = sheet.faces[hit["primID"]]
            weights = np.stack([1 - hit["u"] - hit["v"], hit["u"], hit["v"]], 1)
            seen = np.zeros((len(pixels), 5), np.float32)  # colour, doubt, depth
            seen[rows, :3] = np.einsum("pk,pkc->pc", weights, sheet.colours[corners])
            seen[rows, 3] = (weights * doubt[corners]).sum(1)
            seen[rows, 4] = hit["tfar"]
            ends.append(seen)
        rgba, depth = merge(ends[0], ends[1], alpha)
        shape = (1, len(camera), size, size)
        return Capture(rgba.reshape(*shape, 4), depth.reshape(shape), camera, lens, len(camera))

    def views_at(self, alpha: float) -> Views:
        """The same as the networks see it."""
        return self.capture_at(alpha).network_views(0, self.size, self.device)


def merge(first: np.ndarray, last: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of both ends [P, 5] (colour, expected error, depth; depth 0 where nothing is) as one: uint8 [P, 4] and depth [P]."""
    share = np.stack([np.full(len(first), 1 - alpha), np.full(len(last), alpha)])
    hit = np.stack([first[:, 4] > 0, last[:, 4] > 0])
    trust = share / (1 + (np.stack([first[:, 3], last[:, 3]]) / UNSURE) ** 2) * hit
    both = hit.all(0)
    apart = both & (np.abs(first[:, 4] - last[:, 4]) > AGREE)
    nearer = np.stack([first[:, 4] <= last[:, 4], first[:, 4] > last[:, 4]])
    # Of two surfaces the nearer one hides the other, unless it is much less sure.
    wins = np.where(nearer, 2 * trust, trust)
    trust = np.where(apart, trust * (wins == wins.max(0)), trust)
    total = np.maximum(trust.sum(0), 1e-9)
    mixed = (trust[0][:, None] * first + trust[1][:, None] * last) / total[:, None]
    # What only one end shows is there as far as that end's word goes.
    cover = np.where(both, 1.0, np.minimum(1.0, 2 * trust.sum(0)))
    cover = np.where(hit.any(0), cover, 0)
    rgba = np.concatenate([mixed[:, :3], cover[:, None]], 1)
    return (rgba.clip(0, 1) * 255).round().astype(np.uint8), np.where(cover > 0.4, mixed[:, 4], 0).astype(np.float32)
