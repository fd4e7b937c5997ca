# SPDX-License-Identifier: GPL-3.0-or-later
"""Non-rigid registration of a mesh onto what one keyframe's capture shows: non-rigid ICP with ARAP, from stiff to soft.

Arrays are numpy, model space [-1, 1]³. Shapes: V vertices, F faces, S samples of the mesh, P captured points.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from ..mesh.arap import Arap, Coarse, rigid_motion
from ..mesh.surface import face_normals, vertex_normals
from ..mesh.texture import see_points
from .observation import NORMAL_SCALE, Observation

COLOUR_SCALE = 0.25  # model units that black and white are apart by, along each channel, while looking for large motion
FINE_COLOUR_SCALE = 0.1  # the same once all is nearly in place: a texture repeats itself


@dataclasses.dataclass(frozen=True)
class Residual:
    """How well a registered mesh explains a capture. Lengths in model units."""

    distance: float
    """mean distance between mesh and captured points, both ways"""
    colour: float
    """mean colour difference to the nearest captured point, 0..1"""
    stretch: float
    """mean share of their length by which edges are not rigid; an edge of a web counts 1 at most"""
    hidden: float
    """share of the vertices that no view sees"""

    @property
    def misfit(self) -> float:
        """What of the capture is not explained; in model units."""
        return self.distance + 0.4 * self.colour

    @property
    def score(self) -> float:
        """Lower is better; in model units."""
        return self.misfit + 0.02 * self.stretch


STIFFNESS = (3.0, 2.0, 1.5, 1.0, 0.7, 0.5, 0.3, 0.3)
REACH = (0.35, 0.3, 0.25, 0.2, 0.2, 0.15, 0.12, 0.1)
"""Of the coarse steps: stiffness, and the distance in model units beyond which a captured point does not pull."""
FINE_STIFFNESS = (0.5, 0.3, 0.2, 0.15, 0.1, 0.1)
FINE_REACH = (0.1, 0.08, 0.06, 0.05, 0.04, 0.04)
DOUBT = 0.5  # of its pull that a vertex keeps after every fine step that has turned a face near it over
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

    def colours(self, of_vertices: np.ndarray | None, vertices: np.ndarray, capture: Observation) -> np.ndarray | None:
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
        capture: Observation,
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
        self.features = self.features_of(self.points, self.normals, self.colours)
        self.tree = cKDTree(self.features)

    def features_of(self, points, normals, colours) -> np.ndarray:
        """What is compared: points, normals and colours [N, 3], each by its scale, side by side; [N, 6] without own colours."""
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
        return chosen, points, normals, colours, self.features_of(points, normals, colours)

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
    and solves with ARAP. Vertices that nothing sees follow their neighbours. What pulls a face over is believed less and
    less, and what is still turned over at the end is unfolded: thin parts, whose two sides pull at each other's vertices,
    came out with 1 to 2 % of their faces inside out.

    Args:
        arap: behaviour of the mesh; its rest shape is kept as far as the evidence lets it.
        initial: [V, 3]; samples: of the mesh; matcher: of the capture and the samples' colours.
        targets, confidence: [V, 3] and [V], places that another source (the networks) believes in.
        factor: on all stiffnesses.
        steps: (stiffness, reach in model units) of each step.
    Returns:
        positions [V, 3] float64.
    """
    position = arap.untangle(initial)
    belief = np.ones(len(position))
    for stiffness, reach in steps:
        target, weight = matcher.pull(samples, position, reach)
        target, weight = _with_trace(target, belief * weight, targets, confidence, 0.15)
        position = arap.solve(target, weight, position, iterations=3, stiffness=factor * stiffness)
        belief[arap.folded(position, rings=1)] *= DOUBT
    return arap.untangle(position)


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


def rigid_start(
    previous: np.ndarray,
    source: Observation,
    target: Observation,
    expected: np.ndarray | None = None,
    iterations: int = 30,
) -> np.ndarray:
    """The previous mesh [V, 3] moved as a whole: trimmed ICP on place and colour between the two captures.

    Args:
        expected: [V, 3], where to begin; default: with the centroids of the captures on each other.
    """
    tree = cKDTree(np.concatenate([target.points, COLOUR_SCALE * target.colours], 1))
    step = max(1, len(source.points) // 3000)
    points, colours = source.points[::step], COLOUR_SCALE * source.colours[::step]
    rotation, shift = np.eye(3), target.points.mean(0) - source.points.mean(0)
    if expected is not None:
        rotation, shift = rigid_motion(previous, expected)
    for _ in range(iterations):
        moved = points @ rotation.T + shift
        distance, index = tree.query(np.concatenate([moved, colours], 1))
        kept = distance <= np.quantile(distance, 0.8)
        rotation, shift = rigid_motion(points[kept], target.points[index[kept]])
    return previous @ rotation.T + shift
