# SPDX-License-Identifier: GPL-3.0-or-later
"""Loose parts that move without bending: cars, cubes, the pieces of a machine. Ours, not the paper's.

A part that one rotation and one shift explain as well as its own keyframe is explained does not bend, however freely it might.
Where several motions explain it, the least one is taken: a box that is turned by half looks nearly the same, and a registration
that may bend is free to turn it a little further at every keyframe.

Arrays are numpy, model space [-1, 1]³. Shapes: V template vertices, S samples of the template, K parts.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.spatial import cKDTree

from ..mesh.arap import Arap, rigid_motion, rotation_matrices
from ..mesh.surface import components
from .observation import Observation
from .registration import FINE_COLOUR_SCALE, SLIDE, Matcher, Samples

MOST = 100  # parts that are looked at one by one
LEAST = 24  # samples that a part needs
POINTS = 300  # samples of a part that are asked where it goes
FIRM = 1.2  # times the misfit at its own keyframe: within the noise of the pixels
SURE = 0.5  # of the samples seen at its own keyframe: what must be seen for a part to be judged
GAIN = 0.03  # of the diagonal that a part goes and turns further, as misfit: of equal answers the least motion
COLOURS = (1.0, 0.3, FINE_COLOUR_SCALE)  # model units that black and white are apart by, from far to near
DOUBT = 0.2  # of what the last guess of a part's motion says otherwise, that an earlier one counts as motion
ROUNDS = (10, 6, 8)  # of matching, at each of them
KEPT = 3  # starts that are followed to the end
AROUND = 9  # samples, or captured points, that a local mean is of
BENT = ((50, 0.08), (90, 0.2), (99, 0.5), (100, 1.0))
"""What a part that does not bend may be off by, locally, beyond what it is at its own keyframe: percentiles, and pixels' widths. The
noise of the pixels reaches half of it or two thirds; a finger that moves by a pixel passes the last."""
ALIKE = 4  # nearest points whose colours are compared
FADED = 0.1  # model units that a change from black to white counts as being off


@dataclasses.dataclass(frozen=True, eq=False)
class Move:
    """Where one part is at a keyframe: `x = rotation @ (x of the template - centre) + place`."""

    rotation: np.ndarray
    """[3, 3]"""
    place: np.ndarray
    """[3], of the part's centre"""

    def of(self, points: np.ndarray, centre: np.ndarray) -> np.ndarray:
        """Points [N, 3] of the template, moved."""
        return (points - centre) @ self.rotation.T + self.place


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """One loose part of the template."""

    vertices: np.ndarray
    """numbers of its vertices"""
    samples: np.ndarray
    """numbers of the samples on it that are asked"""
    centre: np.ndarray
    """[3], of its vertices at the template's keyframe"""
    rest: float
    """its misfit there, model units"""
    shown: float
    """share of its samples that the views show there"""
    own: np.ndarray
    """numbers of all samples on it"""
    off: np.ndarray
    """how far these are off the capture there, as local means; NaN where hidden"""
    missed: np.ndarray
    """how far the captured points next to it are off there: the percentiles of BENT"""


class Parts:
    """The loose parts of a template, each of which may move rigidly."""

    def __init__(
        self, template: np.ndarray, arap: Arap, samples: Samples, colours: np.ndarray | None, home: Observation
    ):
        """template: [V, 3] at its keyframe, which `home` observes; colours: [S, 3] of the samples."""
        self.template, self.colours, self.diagonal = template, colours, arap.diagonal
        self.samples, (self.points, self.normals) = samples, samples.at(template)
        count, label = components(arap.size, arap.faces)
        label = label[arap.weld]
        owner = label[samples.matrix.indices[samples.matrix.indptr[:-1]]]
        self.parts: list[Part] = []
        if count > MOST:
            return
        judge = self._matcher(home, FINE_COLOUR_SCALE)
        off, missed, nearest = self._off(template, judge)
        self._owner = owner
        for k in range(count):
            vertices, asked = np.flatnonzero(label == k), np.flatnonzero(owner == k)
            if len(asked) < LEAST:
                continue
            few = asked[np.linspace(0, len(asked) - 1, min(POINTS, len(asked))).round().astype(int)]
            centre = template[vertices].mean(0)
            part = Part(
                vertices, few, centre, 0.0, 1.0, asked, self._around(asked, off), _levels(missed[owner[nearest] == k])
            )
            rest, shown = self._misfit(part, Move(np.eye(3), centre), judge)
            if shown >= SURE:
                self.parts.append(dataclasses.replace(part, rest=rest, shown=shown))

    def follow(
        self, near: list[np.ndarray], target: Observation, *, expected: int = 1, search: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Each part moved as a whole onto a keyframe, from where it may be.

        Args:
            near: meshes [V, 3] that a part may be next to; the first is where the mesh was.
            expected: how many of these, from the first on, motion is counted from: the nearest of them, and of two the later.
            search: look for parts that went further or turned, too; otherwise only next to `near`.
        Returns:
            positions [V, 3]: of the first mesh, with the parts that a rigid motion explains in their new place; and [V] bool,
            which vertices those are.
        """
        positions, rigid = np.array(near[0], np.float64), np.zeros(len(self.template), bool)
        if not self.parts:
            return positions, rigid
        far, half, fine = (self._matcher(target, scale) for scale in COLOURS)
        for part in self.parts:
            starts = [self._moved_as(part, mesh) for mesh in near]
            was, found = starts[:expected], starts
            if search:
                found = starts + [
                    self._matched(part, Move(was[0].rotation, s.place), far, ROUNDS[0], turn=False) for s in starts
                ]
            best = self._best(part, was, [*was, *found], half, fine)
            if search and not self._explained(part, best, fine):
                turned = [Move(turn @ was[0].rotation, best.place) for turn in _turns()]
                best = self._best(part, was, [best, *turned], half, fine)
            if self._explained(part, best, fine):
                positions[part.vertices] = best.of(self.template[part.vertices], part.centre)
                rigid[part.vertices] = True
        off, missed, nearest = self._off(positions, fine)
        allowed = _pixel(target) * np.array([limit for _, limit in BENT])
        for part in self.parts:
            if not rigid[part.vertices[0]]:
                continue
            more = self._around(part.own, off) - part.off
            left = _levels(missed[self._owner[nearest] == self._owner[part.own[0]]]) - part.missed
            rigid[part.vertices] = bool((_levels(more[np.isfinite(more)]) < allowed).all() and (left < allowed).all())
        return positions, rigid

    def _off(self, positions: np.ndarray, fine: Matcher) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How far the samples [S] of a mesh [V, 3] are off the capture, NaN where hidden; how far the captured points [P] are off the
        mesh, as local means; and the sample [P] that is nearest to each. Across the surface: the spacing of the points does not count.
        """
        points, normals = self.samples.at(positions)
        features = fine.features_of(points, normals, self.colours)
        spacing = np.median(cKDTree(fine.points).query(fine.points, k=2)[0][:, 1])

        def off(offset, normal, colour) -> np.ndarray:
            far = np.clip(np.linalg.norm(offset, axis=1) - 3 * spacing, 0, None)
            return np.abs(np.einsum("ni,ni->n", offset, normal)) + far + FADED * colour

        def faded(colours, others) -> np.ndarray | float:
            """Of the most alike of the nearest [N, ALIKE]: where the paint changes, the nearest may be across the border."""
            return 0.0 if colours is None else np.abs(colours[:, None] - others).mean(2).min(1)

        index = fine.tree.query(features, k=ALIKE)[1]
        mine = off(
            fine.points[index[:, 0]] - points, fine.normals[index[:, 0]], faded(self.colours, fine.colours[index])
        )
        mine[fine.capture.hidden(points, 0.03)] = np.nan
        alike = cKDTree(features).query(fine.features, k=ALIKE)[1]
        nearest = alike[:, 0]
        own, others = (None, None) if self.colours is None else (fine.colours, self.colours[alike])
        theirs = off(
            points[nearest] - fine.points,
            normals[nearest],
            faded(own, others),
        )
        theirs = theirs[cKDTree(fine.points).query(fine.points, k=AROUND)[1]].mean(1)
        return mine, theirs, nearest

    def _around(self, own: np.ndarray, off: np.ndarray) -> np.ndarray:
        """Local means [N] of values [S] over the samples `own` [N] of one part; NaN where all are hidden."""
        near = cKDTree(self.points[own]).query(self.points[own], k=AROUND)[1]
        values = off[own][near]
        known = np.isfinite(values)
        return np.where(known.any(1), np.where(known, values, 0.0).sum(1) / np.maximum(known.sum(1), 1), np.nan)

    def _best(self, part: Part, was: list[Move], starts: list[Move], half: Matcher, fine: Matcher) -> Move:
        """The motion of least cost that the starts lead to."""
        moves = [self._matched(part, start, half, ROUNDS[1]) for start in starts]
        moves = sorted(moves, key=lambda move: self._cost(part, move, was, fine))[:KEPT]
        moves = [self._matched(part, move, fine, ROUNDS[2]) for move in moves]
        best = min(moves, key=lambda move: self._cost(part, move, was, fine))
        # There, but not turned: a way that turned it may have led to a place that needs no turn.
        straight = [self._matched(part, Move(w.rotation, best.place), fine, ROUNDS[2]) for w in was]
        return min([best, *straight], key=lambda move: self._cost(part, move, was, fine))

    def _explained(self, part: Part, move: Move, fine: Matcher) -> bool:
        misfit, shown = self._misfit(part, move, fine)
        return misfit <= FIRM * part.rest and shown >= SURE * part.shown

    def _moved_as(self, part: Part, mesh: np.ndarray) -> Move:
        """The rigid motion that is nearest to what a mesh [V, 3] does with the part."""
        rotation, shift = rigid_motion(self.template[part.vertices], mesh[part.vertices])
        return Move(rotation, rotation @ part.centre + shift)

    def _matcher(self, observation: Observation, scale: float) -> Matcher:
        return Matcher(observation, self.colours, most=6000, colour_scale=scale)

    def _asked(self, part: Part, move: Move):
        """Points, normals and colours of the part's samples when it is moved so."""
        own = None if self.colours is None else self.colours[part.samples]
        return (
            move.of(self.points[part.samples], part.centre),
            self.normals[part.samples] @ move.rotation.T,
            own,
        )

    def _matched(self, part: Part, move: Move, matcher: Matcher, rounds: int, *, turn: bool = True) -> Move:
        """Iterated closest points: to the tangent planes, and a little to the points themselves, of what is seen; without
        `turn` only shifted, to the points."""
        for _ in range(rounds):
            points, normals, colours = self._asked(part, move)
            distance, index = matcher.tree.query(matcher.features_of(points, normals, colours))
            normal = matcher.normals[index]
            agree = np.clip((np.einsum("ni,ni->n", normal, normals) - 0.2) / 0.6, 0, 1)
            # The fifth that fits worst has no partner: hidden, or where another part is.
            weight = agree * (distance <= np.quantile(distance, 0.8))
            if weight.sum() < 6:
                return move
            offset = matcher.points[index] - points
            if not turn:
                move = Move(move.rotation, move.place + weight @ offset / weight.sum())
                continue
            arm = points - move.place
            along = np.einsum("ni,ni->n", offset, normal)
            rows = [(np.concatenate([np.cross(arm, normal), normal], 1), along, 1.0)]
            for axis, unit in enumerate(np.eye(3)):
                sideways = np.concatenate([np.cross(arm, unit), np.tile(unit, (len(arm), 1))], 1)
                rows.append((sideways, offset[:, axis], SLIDE**2))
            system = sum((share * weight[:, None] * row).T @ row for row, _, share in rows)
            right = sum((share * weight[:, None] * row).T @ wanted for row, wanted, share in rows)
            step = np.linalg.solve(system + 1e-9 * np.eye(6), right)
            move = Move(rotation_matrices(step[None, :3])[0] @ move.rotation, move.place + step[3:])
        return move

    def _misfit(self, part: Part, move: Move, matcher: Matcher) -> tuple[float, float]:
        """How badly the capture explains the part there (distance and colour, model units), and which share of it is seen."""
        points, normals, colours = self._asked(part, move)
        seen = ~matcher.capture.hidden(points, 0.03)
        if seen.sum() < 6:
            return np.inf, 0.0
        colours = None if colours is None else colours[seen]
        _, index = matcher.tree.query(matcher.features_of(points[seen], normals[seen], colours))
        distance = np.minimum(np.linalg.norm(matcher.points[index] - points[seen], axis=1), 0.3).mean()
        facing = np.einsum("ni,ni->n", matcher.normals[index], normals[seen])
        bent = 0.02 * np.clip(1 - facing, 0, 1).mean()
        colour = 0.0 if colours is None else np.abs(matcher.colours[index] - colours).mean()
        return float(distance + bent + 0.4 * colour), float(seen.mean())

    def _cost(self, part: Part, move: Move, was: list[Move], matcher: Matcher) -> float:
        misfit, shown = self._misfit(part, move, matcher)
        if shown < SURE * part.shown:
            return np.inf
        arm = self.points[part.samples] - part.centre

        def way(one: Move, two: Move) -> float:
            turned = np.linalg.norm(arm @ (one.rotation - two.rotation).T, axis=1).mean()
            return float(np.linalg.norm(one.place - two.place) + turned)

        return misfit + GAIN * min(way(move, w) + DOUBT * way(w, was[-1]) for w in was) / self.diagonal


def _turns() -> np.ndarray:
    """Rotations [N, 3, 3] that a part may have made since the last keyframe, beside those that closest points find."""
    axes = np.concatenate([np.eye(3), -np.eye(3)])
    return rotation_matrices(np.concatenate([0.25 * np.pi * axes, 0.5 * np.pi * axes, np.pi * np.eye(3)]))


def _levels(values: np.ndarray) -> np.ndarray:
    """The percentiles of BENT; zeros of nothing."""
    return np.percentile(values, [level for level, _ in BENT]) if len(values) else np.zeros(len(BENT))


def _pixel(observation: Observation) -> float:
    """Width of a pixel on what is captured, model units."""
    depth = observation.depth_planar
    return float(np.median(depth[depth > 0]) / np.median(observation.intrinsics[:, 0, 0]))
