# SPDX-License-Identifier: GPL-3.0-or-later
"""Keyframes pulled onto the captured evidence, and in-betweens that follow. Ours, not the paper's.

At each keyframe the capture knows depth and colour. The mesh of the keyframe before is carried over in two steps:
`correspond` finds which part went where (it compares distances along the surface, which bending leaves alone, colours and
places; it survives large motion), and `register` deforms the mesh onto the captured points (non-rigid ICP with ARAP,
from stiff to soft). The networks' trace, where there is one, enters both as further targets with its confidence.

Arrays are numpy, model space [-1, 1]³. Shapes: V template vertices, F faces, K keyframes, T times, P captured points.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from . import cameras
from .arap import Arap, Coarse, link, polar, rotation_matrices
from .errors import LimError
from .surface import captured_points, edges_of, face_normals, fuse_depth, simplify, vertex_normals
from .texture import see, see_points

NORMAL_SCALE = 0.08  # model units that opposite normals are apart by, times two
COLOUR_SCALE = 0.25  # model units that black and white are apart by, along each channel, while looking for large motion
FINE_COLOUR_SCALE = 0.1  # the same once all is nearly in place: a texture repeats itself


# ---- what one keyframe's capture says --------------------------------------------------------------------------------
class Capture:
    """The captured evidence of one keyframe, prepared for matching.

    Attributes:
        points, normals, colours: [P, 3], an even sample of what the views saw, normals outwards, colours in [0, 1].
        depth_planar [views, H, W], images [views, H, W, 4] uint8, camera_to_world, intrinsics: as captured.
    """

    def __init__(
        self,
        depth_planar: np.ndarray,
        images: np.ndarray,
        camera_to_world: np.ndarray,
        intrinsics: np.ndarray,
        *,
        count: int = 12000,
    ):
        """count: points kept, about.

        Raises:
            LimError empty_surface: no view shows the object.
        """
        self.depth_planar, self.images = np.asarray(depth_planar, np.float32), images
        self.camera_to_world, self.intrinsics = camera_to_world, intrinsics
        points, normals, colours, views = captured_points(self.depth_planar, camera_to_world, intrinsics, images)
        usable = np.abs(normals).sum(1) > 0
        points, normals, colours, views = points[usable], normals[usable], colours[usable], views[usable]
        if len(points) < 16:
            raise LimError("empty_surface", "The object is not visible from any camera at one of the keyframes.")
        towards = camera_to_world[views, :3, 3] - points
        slant = -np.einsum("pi,pi->p", normals, towards) / np.linalg.norm(towards, axis=1)
        order = np.argsort(slant, kind="stable")  # of each cell, the point seen most head-on is kept
        points, normals, colours = points[order], normals[order], colours[order]
        chosen = _thin(points, normals, count)
        self.points, self.normals, self.colours = (a[chosen].astype(np.float64) for a in (points, normals, colours))

    @functools.cached_property
    def nodes(self) -> Nodes:
        """A coarse graph over the surface, for `correspond`."""
        return Nodes(self)

    def hidden(self, vertices: np.ndarray, tolerance: float) -> np.ndarray:
        """Which vertices [V] lie behind captured surface in every view that has them in the picture, by more than
        `tolerance`: inside the object, or simply unseen."""
        hidden = np.ones(len(vertices), bool)
        for depth, pose, intrinsic in zip(self.depth_planar, self.camera_to_world, self.intrinsics, strict=True):
            pixel, z = cameras.project(vertices, pose, intrinsic)
            column, row = np.floor(pixel).astype(int).T
            height, width = depth.shape
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            here = depth[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
            hidden &= ~inside | ((here > 0) & (z > here + tolerance))
        return hidden


def _thin(points: np.ndarray, normals: np.ndarray, count: int) -> np.ndarray:
    """Indices of about `count` points, the first of every cell of a grid; the two sides of a sheet count apart."""
    side = (normals[:, 0] > 0) + 2 * (normals[:, 1] > 0) + 4 * (normals[:, 2] > 0)
    low, extent = points.min(0), float(np.ptp(points, axis=0).max())
    cell = extent / np.sqrt(count)
    for _ in range(4):
        key = np.floor((points - low) / cell).astype(np.int64)
        span = key.max(0) + 1
        key = ((key[:, 0] * span[1] + key[:, 1]) * span[2] + key[:, 2]) * 8 + side
        _, first = np.unique(key, return_index=True)
        if 0.8 * count <= len(first) <= 1.25 * count or (len(first) < count and len(points) < 2 * count):
            break
        cell *= np.clip(np.sqrt(len(first) / count), 0.3, 3.0)
    return np.sort(first)


class Nodes:
    """Some 250 places spread over a captured surface, with what bending does not change about them.

    Attributes:
        points [N, 3]; colours [N, 6] (means over a small and a large disc); area [N, 2] (of these discs);
        geodesic [N, N]: lengths along the surface.
    """

    def __init__(self, capture: Capture, count: int = 260):
        vertices, faces = fuse_depth(
            capture.depth_planar[:, ::2, ::2] if capture.depth_planar.shape[-1] >= 384 else capture.depth_planar,
            capture.camera_to_world,
            cameras.scale_intrinsics(capture.intrinsics, 0.5)
            if capture.depth_planar.shape[-1] >= 384
            else capture.intrinsics,
            resolution=72,
        )
        vertices, faces = simplify(vertices, faces, 5000)
        size = len(vertices)
        edges, _ = link(
            vertices, edges_of(faces), np.ones(len(edges_of(faces))), np.linalg.norm(np.ptp(vertices, axis=0))
        )
        length = np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1) + 1e-6
        graph = sparse.csr_matrix((length, (edges[:, 0], edges[:, 1])), (size, size))
        graph = graph + graph.T
        chosen, rows = [int(np.argmax(np.linalg.norm(vertices - vertices.mean(0), axis=1)))], []
        nearest = np.full(size, np.inf)
        while True:
            rows.append(csgraph.dijkstra(graph, indices=chosen[-1]))
            nearest = np.minimum(nearest, rows[-1])
            if len(chosen) == min(count, size):
                break
            chosen.append(int(np.argmax(nearest)))
        distances = np.stack(rows)
        self.vertices, self.vertex_node = vertices, distances.argmin(0)
        self.points = vertices[chosen].astype(np.float64)
        self.geodesic = 0.5 * (distances[:, chosen] + distances[:, chosen].T)
        normals = vertex_normals(vertices, faces)
        tree = cKDTree(np.concatenate([capture.points, NORMAL_SCALE * capture.normals], 1))
        _, near = tree.query(np.concatenate([vertices, NORMAL_SCALE * normals], 1), k=4)
        colour = capture.colours[near].mean(1)
        corner = vertices[faces]
        face_area = 0.5 * np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
        mass = np.bincount(faces.ravel(), np.repeat(face_area / 3, 3), size)
        self.scale = float(np.sqrt(mass.sum()))  # of the surface, hardly changed by a pose
        self.mass = np.bincount(self.vertex_node, mass, len(chosen)) / mass.sum()
        self.colours, self.area = [], []
        for radius in (0.05, 0.15):
            weight = np.exp(-((distances / (radius * self.scale)) ** 2)) * mass
            self.area.append(weight.sum(1) / (radius * self.scale) ** 2)
            self.colours.append((weight @ colour) / weight.sum(1, keepdims=True))
        self.colours, self.area = np.concatenate(self.colours, 1), np.stack(self.area, 1)

    @functools.cached_property
    def sideways(self) -> np.ndarray:
        """Unit normal [3] of the upright plane that the surface is most symmetric about: from its left to its right."""
        centred = self.points - self.mass @ self.points
        best = (np.inf, np.array([1.0, 0.0, 0.0]))
        for angle in np.arange(0, np.pi, np.pi / 36):
            normal = np.array([np.cos(angle), np.sin(angle), 0.0])
            mirrored = centred - 2 * np.outer(centred @ normal, normal)
            best = min(best, (cKDTree(centred).query(mirrored)[0].mean(), normal), key=lambda pair: pair[0])
        return best[1]


# ---- which part went where -------------------------------------------------------------------------------------------
def correspond(
    source: Capture,
    target: Capture,
    *,
    turn: np.ndarray | None = None,
    place_weight: float = 1.0,
    bend_weight: float = 20.0,
    horizon: float = 1.2,
    side_weight: float = 0.0,
    expected: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match the surfaces of two keyframes coarsely.

    Minimises, over soft assignments of the nodes of one to the nodes of the other, the difference of colours, local areas
    and places plus the change of the distances along the surface between every two nodes (fused Gromov–Wasserstein,
    Vayer et al. 2019; proximal steps with Sinkhorn scaling). The distances keep a leg from being matched half to the other
    leg; the places keep left and right apart. Done twice: the second time the places are compared after the whole has been
    moved by the rigid motion that the first answer implies.

    Args:
        turn: [3, 3], a rotation of the source about its centroid to begin with; then the centroids are aligned, too.
        place_weight: how much a node's place counts; 0 looks at the intrinsic shape alone.
        bend_weight: how much changed distances count; horizon: where they saturate, in units of the surface's size.
        side_weight: how much it counts to stay on the left or the right of the source's plane of symmetry, which legs
            do while they swing past each other.
        expected: where the source's nodes [N, 3] may be at the target, and how sure that is [N]; replaces the rigid motion.
    Returns:
        places on the source [N, 3], where they went [N, 3], confidence [N] in [0, 1].
    """
    one, two = source.nodes, target.nodes
    scale = 0.5 * (one.scale + two.scale)
    p, q = one.mass + 1e-4, two.mass + 1e-4
    p, q = p / p.sum(), q / q.sum()
    colour = ((one.colours[:, None] - two.colours[None]) ** 2).sum(2)
    area = (np.log(one.area[:, None] + 0.05) - np.log(two.area[None] + 0.05)) ** 2
    intrinsic = 8.0 * colour + 0.15 * area.sum(2)
    # Long distances change when parts touch: they saturate.
    first, second = (1 - np.exp(-n.geodesic / (horizon * scale)) for n in (one, two))
    fixed = (first**2 @ p)[:, None] + (second**2 @ q)[None]
    places = one.points if turn is None else (one.points - p @ one.points) @ turn.T + q @ two.points
    sure = 1.0
    if expected is not None:
        places, sure = expected[0], expected[1][:, None]
    side = one.sideways if turn is None else turn @ one.sideways
    for attempt in range(2 if expected is None else 1):
        place = ((places[:, None] - two.points[None]) ** 2).sum(2) / (0.25 * scale) ** 2
        unary = intrinsic + place_weight * sure * place / (1 + place)
        if side_weight:
            across = ((places @ side)[:, None] - (two.points @ side)[None]) ** 2 / (0.08 * scale) ** 2
            unary += side_weight * across / (1 + across)
        plan = _sinkhorn(np.exp(-unary / 0.3) * p[:, None] * q[None], p, q)
        for softness in (1.0,) * 12 + (0.4,) * 12:
            cost = unary + bend_weight * (fixed - 2 * first @ plan @ second)
            cost -= cost.min(1, keepdims=True)
            plan = _sinkhorn(plan * np.exp(-cost / softness) + 1e-300, p, q)
        share = plan / plan.sum(1, keepdims=True)
        best = share.argmax(1)
        # The matched place: mean over the nodes next to the best one.
        local = share * (two.geodesic[best] < 0.12 * scale)
        moved = (local @ two.points) / local.sum(1, keepdims=True)
        near = np.exp(-((one.geodesic / (0.25 * scale)) ** 2))
        bent = np.abs(one.geodesic - two.geodesic[best][:, best]) / scale
        stretch = (near * np.minimum(bent, 0.3)).sum(1) / near.sum(1)
        confidence = np.exp(-((stretch / 0.06) ** 2)) * np.clip(local.sum(1), 0, 1)
        if attempt == 0:
            places, rotation = _rigid(one.points, moved, confidence * p, 0.15 * scale)
            side = rotation @ one.sideways
    return one.points, moved, confidence


def _rigid(points: np.ndarray, moved: np.ndarray, weight: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] under the rigid motion that most of the matches agree on (Geman–McClure over `scale`), and its
    rotation [3, 3]."""
    robust = np.ones(len(points))
    for _ in range(10):
        share = weight * robust + 1e-12
        share = share / share.sum()
        a, b = share @ points, share @ moved
        rotation = polar(((moved - b).T @ (share[:, None] * (points - a)))[None])[0]
        result = (points - a) @ rotation.T + b
        robust = 1 / (1 + ((result - moved) ** 2).sum(1) / scale**2) ** 2
    return result, rotation


def _sinkhorn(plan: np.ndarray, p: np.ndarray, q: np.ndarray, iterations: int = 20) -> np.ndarray:
    v = np.ones(len(q))
    u = np.ones(len(p))
    for _ in range(iterations):
        u = p / np.maximum(plan @ v, 1e-300)
        v = q / np.maximum(u @ plan, 1e-300)
    return u[:, None] * plan * v[None]


# ---- non-rigid registration ------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Residual:
    """How well a registered mesh explains a capture. Lengths in model units."""

    distance: float
    """mean distance between mesh and captured points, both ways"""
    colour: float
    """mean colour difference to the nearest captured point, 0..1"""
    stretch: float
    """root of the mean ARAP energy per edge, relative to the mean edge"""
    hidden: float
    """share of the vertices that no view sees"""

    @property
    def score(self) -> float:
        """Lower is better; in model units."""
        return self.distance + 0.4 * self.colour + 0.02 * self.stretch


STIFFNESS = (3.0, 2.0, 1.5, 1.0, 0.7, 0.5, 0.3, 0.3)
REACH = (0.35, 0.3, 0.25, 0.2, 0.2, 0.15, 0.12, 0.1)
"""Of the coarse steps: stiffness, and the distance in model units beyond which a captured point does not pull."""
FINE_STIFFNESS = (0.5, 0.3, 0.2, 0.15, 0.1, 0.1)
FINE_REACH = (0.1, 0.08, 0.06, 0.05, 0.04, 0.04)
SLIDE = 0.35  # share of the pull along the surface: all of it would pull vertices onto single samples


class Samples:
    """Places on the template that are matched with captured points: its vertices, and more where faces are large.

    Attributes:
        matrix: sparse [S, V], barycentric: samples are `matrix @ vertices`; the first V are the vertices.
    """

    def __init__(self, vertices: np.ndarray, faces: np.ndarray, count: int = 6000):
        """count: about as many samples as would cover the surface evenly; a mesh of half as many vertices gets no more."""
        size = len(vertices)
        area = 0.5 * np.linalg.norm(face_normals(np.asarray(vertices, np.float64), faces), axis=1)
        wanted = np.zeros(len(faces), np.int64)
        if size < count / 2:
            wanted = np.floor(area * count / max(area.sum(), 1e-12) + 0.5).astype(np.int64)
        face = np.repeat(np.arange(len(faces)), wanted)
        # Spread evenly within each face: an additive sequence on the unit square, folded into the triangle.
        number = np.arange(len(face)) - np.repeat(np.cumsum(wanted) - wanted, wanted) + 0.5
        u, v = (number * 0.7548776662) % 1.0, (number * 0.5698402910) % 1.0
        u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
        self.faces, self.face = faces, face
        corners = np.concatenate([np.repeat(np.arange(size)[:, None], 3, 1), faces[face]])
        barycentric = np.concatenate([np.tile([1.0, 0.0, 0.0], (size, 1)), np.stack([1 - u - v, u, v], 1)])
        rows = np.repeat(np.arange(len(corners)), 3)
        self.matrix = sparse.csr_matrix((barycentric.ravel(), (rows, corners.ravel())), (len(corners), size))
        self.spread = self.matrix.T.tocsr()

    def at(self, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points and unit normals [S, 3] when the mesh is at vertices [V, 3]."""
        flat = face_normals(vertices, self.faces)[self.face]
        flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-20)
        return self.matrix @ vertices, np.concatenate([vertex_normals(vertices, self.faces), flat])

    def colours(self, of_vertices: np.ndarray | None, vertices: np.ndarray, capture: Capture) -> np.ndarray | None:
        """Colours [S, 3] in [0, 1]: those of the vertices [V, 3], the others as a capture sees the mesh at `vertices`."""
        if of_vertices is None or not len(self.face):
            return of_vertices
        points, normals = (a[len(vertices) :] for a in self.at(vertices))
        views = (capture.images, capture.depth_planar, capture.camera_to_world, capture.intrinsics)
        return np.concatenate([of_vertices, see_points(points, normals, *views)[0]])


class Matcher:
    """Nearest captured points of samples of the mesh and the other way round, in place, normal and colour."""

    def __init__(
        self,
        capture: Capture,
        colours: np.ndarray | None,
        most: int | None = None,
        colour_scale: float = COLOUR_SCALE,
    ):
        """colours: [S, 3] of the samples, or None; most: use no more than so many captured points, and half as many
        samples; colour_scale: model units that black and white are apart by, along each channel."""
        step = 1 if most is None else max(1, len(capture.points) // most)
        self.capture, self.own_colours, self.most, self.colour_scale = capture, colours, most, colour_scale
        self.points, self.normals, self.colours = (
            a[::step] for a in (capture.points, capture.normals, capture.colours)
        )
        self.features = self._join(self.points, self.normals, self.colours)
        self.tree = cKDTree(self.features)

    def _join(self, points, normals, colours) -> np.ndarray:
        parts = [points, NORMAL_SCALE * normals]
        if self.own_colours is not None:
            parts.append(self.colour_scale * colours)
        return np.concatenate(parts, axis=1)

    def own(self, samples: Samples, position: np.ndarray):
        """Which samples are asked, their points, normals, colours and features when the mesh is at `position`."""
        points, normals = samples.at(position)
        chosen = np.arange(0, len(points), 1 if self.most is None else max(1, 2 * len(points) // self.most))
        colours = None if self.own_colours is None else self.own_colours[chosen]
        points, normals = points[chosen], normals[chosen]
        return chosen, points, normals, colours, self._join(points, normals, colours)

    def pull(self, samples: Samples, position: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
        """Where the capture wants the vertices [V, 3], and how much [V]."""
        chosen, points, normals, _, features = self.own(samples, position)
        count = len(points)
        distance, index = self.tree.query(features, distance_upper_bound=2 * reach, workers=1)
        found = np.flatnonzero(np.isfinite(distance))
        strength, step = self._step(points, normals, found, index[found], distance[found], reach)
        # What no view sees has no point of its own: the nearest one says little.
        strength = strength * np.where(self.capture.hidden(points[found], max(0.02, 0.3 * reach)), 0.2, 1.0)
        weight, goal = np.zeros(count), np.zeros((count, 3))
        weight[found], goal[found] = strength, strength[:, None] * step
        # The other way round: captured points pull the sample nearest to them, so that ends are not left behind.
        distance, near = cKDTree(features).query(self.features, distance_upper_bound=2 * reach, workers=1)
        used = np.flatnonzero(np.isfinite(distance))
        strength, step = self._step(points, normals, near[used], used, distance[used], reach)
        strength = strength * min(1.0, count / len(self.points))
        weight += np.bincount(near[used], strength, count)
        goal += np.stack([np.bincount(near[used], strength * step[:, i], count) for i in range(3)], 1)
        spread = samples.spread if len(chosen) == samples.spread.shape[1] else samples.spread[:, chosen]
        total = spread @ weight
        target = position + (spread @ goal) / np.maximum(total, 1e-9)[:, None]
        return target, np.minimum(total, 2.0) * (samples.spread.shape[1] / count)

    def _step(self, points, normals, sample, point, distance, reach):
        """Weight and offset of matches between samples and captured points (indices of equal length)."""
        offset = self.points[point] - points[sample]
        normal = self.normals[point]
        agree = np.clip((np.einsum("ni,ni->n", normal, normals[sample]) - 0.2) / 0.6, 0, 1)
        strength = agree * (1 - np.minimum(distance / (2 * reach), 1) ** 2) ** 2
        strength *= np.linalg.norm(offset, axis=1) < reach
        along = np.einsum("ni,ni->n", offset, normal)[:, None] * normal
        return strength, along + SLIDE * (offset - along)


def residual(
    faces: np.ndarray, position: np.ndarray, matcher: Matcher, stretch: float, samples: Samples | None = None
) -> Residual:
    """Measure the mesh at `position` [V, 3] against a capture.

    Args:
        matcher: with the colours of the samples.
        stretch: as the deformation model tells it, see `Residual`.
        samples: default: the vertices.
    """
    samples = samples or Samples(position, faces, 0)
    _, points, _, mine, features = matcher.own(samples, position)
    hidden = matcher.capture.hidden(points, 0.03)
    seen = np.flatnonzero(~hidden)
    _, forward = matcher.tree.query(features[seen])
    _, backward = cKDTree(features).query(matcher.features)
    there = np.minimum(np.linalg.norm(matcher.points[forward] - points[seen], axis=1), 0.3)
    back = np.minimum(np.linalg.norm(matcher.points - points[backward], axis=1), 0.3)
    colour = 0.0
    if mine is not None:
        colour = np.abs(matcher.colours[forward] - mine[seen]).mean() if len(seen) else 0.0
        colour = 0.5 * (colour + np.abs(matcher.colours - mine[backward]).mean())
    distance = 0.5 * ((there.mean() if len(seen) else 0.3) + back.mean())
    return Residual(float(distance), float(colour), float(stretch), float(hidden.mean()))


def register_coarse(
    coarse: Coarse,
    samples: Samples,
    nodes: np.ndarray,
    matcher: Matcher,
    *,
    targets: np.ndarray | None = None,
    confidence: np.ndarray | None = None,
    factor: float = 1.0,
    steps: Sequence[tuple[float, float]] = tuple(zip(STIFFNESS, REACH, strict=True)),
) -> np.ndarray:
    """Non-rigid ICP of the nodes [N, 3] of a `Coarse` mesh, from stiff to soft; arguments as in `register`."""
    for stiffness, reach in steps:
        target, weight = matcher.pull(samples, coarse.positions(nodes), reach)
        target, weight = _with_trace(target, weight, targets, confidence, 0.3)
        nodes = coarse.solve(target, weight, nodes, iterations=3, stiffness=factor * stiffness)
    return nodes


def register(
    arap: Arap,
    samples: Samples,
    initial: np.ndarray,
    matcher: Matcher,
    *,
    targets: np.ndarray | None = None,
    confidence: np.ndarray | None = None,
    factor: float = 1.0,
    steps: Sequence[tuple[float, float]] = tuple(zip(FINE_STIFFNESS, FINE_REACH, strict=True)),
) -> np.ndarray:
    """Deform a mesh that is nearly right onto a capture: the last word, every vertex on its own.

    Each step matches samples of the mesh to captured points and captured points to samples (nearest in place, normal and
    colour), pulls every vertex towards the tangent planes of its matches and, a little, towards the matches themselves,
    and solves with ARAP. Vertices that nothing sees follow their neighbours.

    Args:
        arap: behaviour of the mesh; its rest shape is kept as far as the evidence lets it.
        initial: [V, 3]; samples: of the mesh; matcher: of the capture and the samples' colours.
        targets, confidence: [V, 3] and [V], places that another source (the networks) believes in.
        factor: on all stiffnesses.
        steps: (stiffness, reach in model units) of each step.
    Returns:
        positions [V, 3] float64.
    """
    position = np.asarray(initial, np.float64)
    for stiffness, reach in steps:
        target, weight = matcher.pull(samples, position, reach)
        target, weight = _with_trace(target, weight, targets, confidence, 0.15)
        position = arap.solve(target, weight, position, iterations=3, stiffness=factor * stiffness)
    return position


def _with_trace(target, weight, targets, confidence, share: float):
    """Join the networks' word to the capture's."""
    if targets is None:
        return target, weight
    trust = share * confidence
    total = np.maximum(weight + trust, 1e-12)[:, None]
    return (weight[:, None] * target + trust[:, None] * targets) / total, weight + trust


def follow(
    coarse: Coarse, places: np.ndarray, moved: np.ndarray, confidence: np.ndarray, *, iterations: int = 5
) -> np.ndarray:
    """Node positions [N, 3] of a mesh whose rest shape lies at `places` [M, 3] and should go to `moved` [M, 3].

    Matches that the rest of the mesh disagrees with lose their say (Geman–McClure, from wide to narrow).
    """
    distance, vertex = cKDTree(coarse.rest).query(places)
    good = confidence * (distance < 0.05 * coarse.arap.diagonal)
    size = len(coarse.rest)
    goal, weight = np.zeros((size, 3)), np.bincount(vertex, good, size)
    for i in range(3):
        goal[:, i] = np.bincount(vertex, good * (moved - places)[:, i], size) / np.maximum(weight, 1e-9)
    goal += coarse.rest
    strength = size / max(len(places), 1)
    nodes, robust = coarse.rest[coarse.nodes], np.ones(size)
    for scale, stiffness in ((0.3, 1.0), (0.3, 0.5), (0.15, 0.5), (0.08, 0.3), (0.08, 0.3)):
        nodes = coarse.solve(goal, strength * weight * robust, nodes, iterations=iterations, stiffness=stiffness)
        off = np.linalg.norm(goal - coarse.positions(nodes), axis=1) / (scale * coarse.arap.diagonal)
        robust = 1 / (1 + off**2) ** 2
    return nodes


def rigid_start(previous: np.ndarray, source: Capture, target: Capture, iterations: int = 30) -> np.ndarray:
    """The previous mesh moved as a whole: trimmed ICP on place and colour between the two captures."""
    tree = cKDTree(np.concatenate([target.points, COLOUR_SCALE * target.colours], 1))
    points = source.points[:: max(1, len(source.points) // 3000)]
    colours = COLOUR_SCALE * source.colours[:: max(1, len(source.points) // 3000)]
    rotation, shift = np.eye(3), target.points.mean(0) - source.points.mean(0)
    for _ in range(iterations):
        moved = points @ rotation.T + shift
        distance, index = tree.query(np.concatenate([moved, colours], 1))
        kept = distance <= np.quantile(distance, 0.8)
        a, b = points[kept], target.points[index[kept]]
        rotation = polar(((b - b.mean(0)).T @ (a - a.mean(0)))[None])[0]
        shift = b.mean(0) - rotation @ a.mean(0)
    return previous @ rotation.T + shift


def advance(
    arap: Arap,
    coarse: Coarse,
    faces: np.ndarray,
    previous: np.ndarray,
    source: Capture,
    target: Capture,
    colours: np.ndarray | None = None,
    *,
    guess: np.ndarray | None = None,
    confidence: np.ndarray | None = None,
    smoothness: float = 0.5,
) -> tuple[np.ndarray, Residual]:
    """Carry a fitted mesh from one keyframe to the next: several starts, the one that explains the capture best wins.

    The networks' guess is one start among them, the only one that is also held to the guess on its way: whether they are
    to be believed is decided by the capture, like everything else. (Holding every answer to a wrong guess tore the mesh.)

    Args:
        previous: [V, 3], fitted to `source`.
        colours: [V, 3] in [0, 1] of the vertices (`texture.see` at the first keyframe), or None.
        guess, confidence: [V, 3] and [V], where the networks believe it is.
        smoothness: 0..1; 0.5 leaves the stiffness as it is, every 0.5 is a factor of 10.
    Returns:
        positions [V, 3] float64 and their residual.
    """
    factor = 10 ** (2 * (smoothness - 0.5))
    previous = np.asarray(previous, np.float64)
    coarse.set_rest(previous)
    samples = Samples(arap.rest, faces)
    colours = samples.colours(colours, previous, source)
    matcher = Matcher(target, colours, most=3000)
    judge = Matcher(target, colours, most=3000, colour_scale=0.5 * FINE_COLOUR_SCALE)
    steps = tuple(zip(STIFFNESS, REACH, strict=True))
    # Expected is what the networks say as far as they are sure, and no motion otherwise.
    expected = previous if guess is None else previous + confidence[:, None] * (guess - previous)

    def improve(nodes, part, told: bool = False) -> tuple[float, np.ndarray, bool]:
        targets = guess if told else None
        nodes = register_coarse(
            coarse, samples, nodes, matcher, targets=targets, confidence=confidence, factor=factor, steps=part
        )
        position = coarse.positions(nodes)
        # Of two answers that explain the capture alike (a cube, turned by a quarter), the one nearer to what is expected.
        way = 0.03 * np.linalg.norm(position - expected, axis=1).mean() / arap.diagonal
        stretch = np.sqrt(coarse.energy(nodes))
        return residual(faces, position, judge, stretch, samples).score + way, nodes, told

    starts = [previous[coarse.nodes], rigid_start(previous, source, target)[coarse.nodes]]
    starts += [follow(coarse, *match) for match in hypotheses(source, target)]

    def rematch(answer, place_weight: float) -> tuple[float, np.ndarray, bool]:
        """Most of a good answer is right: matched again from where it fits, the rest often falls into place."""
        position = coarse.positions(answer[1])
        _, points, _, _, features = judge.own(samples, position)
        off, _ = judge.tree.query(features)
        places = position[near].mean(1)
        _, around = cKDTree(points).query(places, k=min(12, len(points)))
        sure = np.exp(-((off[around].mean(1) / 0.04) ** 2))
        match = correspond(source, target, place_weight=place_weight, expected=(places, sure))
        return improve(follow(coarse, *match), steps)

    near = cKDTree(previous).query(source.nodes.points, k=min(30, len(previous)))[1]
    half = len(steps) // 2
    first = [improve(start, steps[:half]) for start in starts]
    if guess is not None:
        guessed = coarse.solve(guess, confidence, previous[coarse.nodes], iterations=15)
        first.append(improve(guessed, steps[:half], told=True))
    first.sort(key=lambda answer: answer[0])
    kept: list[tuple[float, np.ndarray, bool]] = []
    for answer in first:  # the best of each kind; four kinds are worth the rest of the way
        if all(np.linalg.norm(answer[1] - k[1], axis=1).mean() > 0.03 * arap.diagonal for k in kept) and len(kept) < 4:
            kept.append(answer)
    answers = [improve(nodes, steps[half:], told) for _, nodes, told in kept]
    answers += [rematch(answer, 1.0) for answer in answers]
    best = min(answers, key=lambda answer: answer[0])
    for _ in range(2):
        answer = rematch(best, 3.0)
        if answer[0] > 0.98 * best[0]:
            best = min(best, answer, key=lambda answer: answer[0])
            break
        best = answer
    fine = Matcher(target, colours, colour_scale=FINE_COLOUR_SCALE)
    told = guess if best[2] else None
    position = register(
        arap, samples, coarse.positions(best[1]), fine, targets=told, confidence=confidence, factor=factor
    )
    stretch = np.sqrt(arap.energy(position).mean()) / np.linalg.norm(arap.rest_edges, axis=1).mean()
    return position, residual(faces, position, judge, stretch, samples)


def hypotheses(source: Capture, target: Capture) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Different answers of `correspond`: trusting places less or shapes more, or turned about the vertical (root motion)."""
    settings: list[dict] = [
        {"place_weight": 0.3},
        {"place_weight": 0.3, "bend_weight": 12.0, "horizon": 0.5},
        {"bend_weight": 60.0},
        {"place_weight": 0.3, "side_weight": 1.0},
        {"place_weight": 0.3, "side_weight": 3.0, "bend_weight": 40.0},
    ]
    for turn in (0.0, 0.25, -0.25, 0.5, -0.5, 1.0):
        settings.append({"turn": rotation_matrices(np.array([[0.0, 0.0, turn * np.pi]]))[0]})
    found = []
    for setting in settings:
        answer = correspond(source, target, **setting)
        scale = source.nodes.scale
        if all(np.linalg.norm(answer[1] - other[1], axis=1).mean() > 0.01 * scale for other in found):
            found.append(answer)
    return found


def fit_keyframes(
    template: np.ndarray,
    faces: np.ndarray,
    arap: Arap,
    depth_planar: np.ndarray,
    images: np.ndarray,
    camera_to_world: np.ndarray,
    intrinsics: np.ndarray,
    *,
    traced: np.ndarray | None = None,
    confidence: np.ndarray | None = None,
    smoothness: float = 0.5,
    on_progress: Callable[[float], None] | None = None,
) -> tuple[np.ndarray, list[Residual]]:
    """Fit the template to every keyframe, one after the other.

    Args:
        template: [V, 3] at the first keyframe.
        depth_planar: [K, views, H, W]; images: [K, views, H, W, 4] uint8; camera_to_world, intrinsics: [views, ...].
        traced, confidence: [K, V, 3] and [K, V], the networks' trace at the keyframes; None registers without networks
            (row `register`).
    Returns:
        fitted [K, V, 3] float64 (the first is the template, settled), and K residuals.
    Raises:
        LimError empty_surface: a keyframe shows nothing.
    """
    template = np.asarray(template, np.float64)
    source = Capture(depth_planar[0], images[0], camera_to_world, intrinsics)
    colours, _ = see(template, faces, images[0], depth_planar[0], camera_to_world, intrinsics)
    coarse = Coarse(arap)
    judge = Matcher(source, colours, 3000, 0.5 * FINE_COLOUR_SCALE)
    fitted, residuals = [template], [residual(faces, template, judge, 0.0)]
    for k in range(1, len(depth_planar)):
        target = Capture(depth_planar[k], images[k], camera_to_world, intrinsics)
        position, rest = advance(
            arap,
            coarse,
            faces,
            fitted[-1],
            source,
            target,
            colours,
            guess=None if traced is None else traced[k],
            confidence=None if confidence is None else confidence[k],
            smoothness=smoothness,
        )
        fitted.append(position)
        residuals.append(rest)
        source = target
        if on_progress:
            on_progress(k / (len(depth_planar) - 1))
    return np.stack(fitted), residuals


# ---- in-betweens -----------------------------------------------------------------------------------------------------
def blend_corrections(
    traced: np.ndarray | None,
    fitted: np.ndarray,
    intervals: Sequence[tuple[int, float]],
    confidence: np.ndarray | None,
    arap: Arap,
    *,
    on_progress: Callable[[float], None] | None = None,
) -> np.ndarray:
    """In-betweens that pass through the fitted keyframes and move between them as the networks say.

    `x(α) = rigid(α) + c · (traced(α) − straight(α))`: `rigid` interpolates the two fitted keyframes as rigidly as
    possible, `straight` does the same to the two traced ones, so that where the networks add nothing (c = 0, or a trace
    that only repeats the ends) parts still turn instead of shrinking. The networks' difference is turned with the mesh
    and made smooth over the surface.

    Args:
        traced: [T, V, 3] or None; fitted: [K, V, 3].
        intervals: T pairs (keyframe index, α), as from `Request.intervals()`.
        confidence: [T, V] in [0, 1].
    Returns:
        positions [T, V, 3] float64; a time with α = 0 or 1 is the fitted keyframe, exactly.
    """
    fitted = np.asarray(fitted, np.float64)
    result = np.empty((len(intervals), *fitted.shape[1:]))
    keyframes = sorted({k for k, _ in intervals})
    ends = {}
    for t, (k, alpha) in enumerate(intervals):
        if alpha == 0:
            ends[k] = t
        elif alpha == 1:
            ends.setdefault(k + 1, t)
    for done, k in enumerate(keyframes):
        times = [t for t, (key, _) in enumerate(intervals) if key == k]
        alphas = np.array([intervals[t][1] for t in times])
        after = min(k + 1, len(fitted) - 1)
        result[times] = arap.interpolate(fitted[k], fitted[after], alphas)
        if traced is not None and k in ends and k + 1 in ends:
            straight = arap.interpolate(traced[ends[k]], traced[ends[k + 1]], alphas)
            for row, t in enumerate(times):
                if 0 < alphas[row] < 1:
                    trust = np.minimum(confidence[t], np.minimum(confidence[ends[k]], confidence[ends[k + 1]]))
                    result[t] += arap.smooth(traced[t] - straight[row], trust)
        if on_progress:
            on_progress((done + 1) / len(keyframes))
    return result
