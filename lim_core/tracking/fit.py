# SPDX-License-Identifier: GPL-3.0-or-later
"""Keyframes pulled onto the captured evidence, one after the other. Ours, not the paper's.

From one keyframe to the next there are several starts: where the mesh is, where it would go if it went on as before, where
the networks believe it is. The capture decides: the answer that explains it best wins. Only if none explains it as well
as the template explains its own keyframe, parts that moved far are looked for (`correspond`), and, once all keyframes have
an answer, the bad ones are tried again from their better neighbours.

Arrays are numpy, model space [-1, 1]³. Shapes: V template vertices, F faces, K keyframes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.spatial import cKDTree

from ..job.capture import Capture
from ..mesh.arap import Arap, Coarse
from ..mesh.texture import see
from .correspond import correspond, hypotheses
from .observation import Observation
from .registration import (
    FINE_COLOUR_SCALE,
    REACH,
    STIFFNESS,
    Matcher,
    Residual,
    Samples,
    follow,
    register,
    register_coarse,
    residual,
    rigid_start,
)
from .rigid import Parts
from .sheets import Sheets

GOOD = 1.08  # times the template's misfit at its own keyframe: good enough to look no further
BARELY = 1.02  # times the misfit that may be more for a part that keeps its shape
KINDS = 4  # of answers that are followed to the end
WAY = 0.03  # of the diagonal that a mesh goes against expectation, as misfit: a cube turned by a quarter looks the same
Guess = Callable[[int, int, np.ndarray], tuple[np.ndarray, np.ndarray] | tuple[None, None]]


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """Where the mesh may be at a keyframe."""

    nodes: np.ndarray
    """[N, 3] of the coarse mesh"""
    misfit: float
    cost: float
    """misfit, stretch and way: lower is better"""
    told: bool
    """held to the networks' guess"""


class Tracker:
    """Carries one mesh from keyframe to keyframe."""

    def __init__(self, template: np.ndarray, faces: np.ndarray, arap: Arap, home: Observation, smoothness: float):
        """template: [V, 3] as observed by `home`; smoothness: 0..1; 0.5 leaves the stiffness as it is, every 0.5 is a
        factor of 10."""
        self.template, self.faces, self.arap = np.asarray(template, np.float64), faces, arap
        self.factor = 10 ** (2 * (smoothness - 0.5))
        self.coarse = Coarse(arap)
        self.samples = Samples(arap.rest, faces)
        colours, _ = see(template, faces, home.images, home.depth_planar, home.camera_to_world, home.intrinsics)
        self.colours = self.samples.colours(colours, self.template, home)
        self.rest = self.judge(self.template, self.judging(home), 0.0)
        self.sheets = Sheets(self.template, faces)
        self.parts = Parts(self.template, arap, self.samples, self.colours, home)

    def judging(self, observation: Observation) -> Matcher:
        return Matcher(observation, self.colours, most=3000, colour_scale=0.5 * FINE_COLOUR_SCALE)

    def judge(self, positions: np.ndarray, judging: Matcher, stretch: float) -> Residual:
        return residual(self.faces, positions, judging, stretch, self.samples)

    def advance(
        self,
        previous: np.ndarray,
        source: Observation,
        target: Observation,
        *,
        before: np.ndarray | None = None,
        guess: np.ndarray | None = None,
        confidence: np.ndarray | None = None,
    ) -> tuple[np.ndarray, Residual]:
        """Carry a fitted mesh from one keyframe to another.

        The networks' guess is one start among others, the only one that is also held to the guess on its way. (Holding
        every answer to a wrong guess tore the mesh.)

        Args:
            previous: [V, 3], fitted to `source`; before: [V, 3], where it was as long before, or None.
            guess, confidence: [V, 3] and [V], where the networks believe it is.
        Returns:
            positions [V, 3] float64 and their residual.
        """
        previous = np.asarray(previous, np.float64)
        coarse, diagonal = self.coarse, self.arap.diagonal
        coarse.set_rest(previous)
        matcher, judging = Matcher(target, self.colours, most=3000), self.judging(target)
        steps = tuple(zip(STIFFNESS, REACH, strict=True))
        half = len(steps) // 2
        expected = [previous]
        if before is not None:
            expected.append(2 * previous - before)
        if guess is not None:  # as far as the networks are sure, and no motion otherwise
            assert confidence is not None  # they come together
            expected.append(previous + confidence[:, None] * (guess - previous))

        def improve(nodes, part, told: bool = False) -> Answer:
            nodes = register_coarse(
                coarse, self.samples, nodes, matcher, targets=guess if told else None, confidence=confidence,
                factor=self.factor, steps=part,
            )  # fmt: skip
            position = coarse.positions(nodes)
            rest = self.judge(position, judging, coarse.stretch(nodes))
            way = min(np.linalg.norm(position - e, axis=1).mean() for e in expected) / diagonal
            return Answer(nodes, rest.misfit, rest.score + WAY * way, told)

        def finish(first: list[Answer]) -> list[Answer]:
            """The best of each kind, improved to the end."""
            kept: list[Answer] = []
            for answer in sorted(first, key=lambda a: a.cost):
                if all(np.linalg.norm(answer.nodes - k.nodes, axis=1).mean() > 0.03 * diagonal for k in kept):
                    kept.append(answer)
            return [improve(answer.nodes, steps[half:], answer.told) for answer in kept[:KINDS]]

        def rematch(answer: Answer, place_weight: float) -> Answer:
            """Most of a good answer is right: matched again from where it fits, the rest often falls into place."""
            position = coarse.positions(answer.nodes)
            _, points, _, _, features = judging.own(self.samples, position)
            off, _ = judging.tree.query(features)
            places = position[near].mean(1)
            _, around = cKDTree(points).query(places, k=min(12, len(points)))
            sure = np.exp(-((off[around].mean(1) / 0.04) ** 2))
            match = correspond(source, target, place_weight=place_weight, expected=(places, sure))
            return improve(follow(coarse, *match), steps)

        whole = rigid_start(previous, source, target)
        moved, rigid = self.parts.follow([*expected, whole], target, expected=len(expected))
        if rigid.all():
            answer = self.judge(moved, judging, self.arap.stretch(moved))
            if answer.misfit <= GOOD * self.rest.misfit:
                return moved, answer
        starts = [previous[coarse.nodes], whole[coarse.nodes]]
        if rigid.any():
            starts.append(moved[coarse.nodes])
        if before is not None:
            starts.append(coarse.solve(expected[1], np.ones(len(previous)), starts[0], iterations=10))
            starts.append(rigid_start(previous, source, target, expected[1])[coarse.nodes])
        first = [improve(start, steps[:half]) for start in starts]
        if guess is not None:
            assert confidence is not None
            guessed = coarse.solve(guess, confidence, starts[0], iterations=15)
            first.append(improve(guessed, steps[:half], told=True))
        answers = finish(first)
        best = min(answers, key=lambda a: a.cost)
        if best.misfit > GOOD * self.rest.misfit:
            near = cKDTree(previous).query(source.nodes.points, k=min(30, len(previous)))[1]
            found = [improve(follow(coarse, *match), steps[:half]) for match in hypotheses(source, target)]
            answers += finish(found)
            answers += [rematch(answer, 1.0) for answer in answers]
            best = min(answers, key=lambda a: a.cost)
            for _ in range(2):
                answer = rematch(best, 3.0)
                last, best = best, min(best, answer, key=lambda a: a.cost)
                if best.cost > 0.98 * last.cost:
                    break
        answer = self._last_word(best.nodes, target, judging, guess if best.told else None, confidence)
        return self._unbent(previous, *answer, target, judging)

    def refine(self, start: np.ndarray, target: Observation) -> tuple[np.ndarray, Residual]:
        """Pull the mesh onto a keyframe from nearly the right place [V, 3], without looking for another one."""
        self.coarse.set_rest(self.template)
        nodes = self.coarse.solve(start, np.ones(len(start)), start[self.coarse.nodes], iterations=10)
        steps = tuple(zip(STIFFNESS, REACH, strict=True))
        matcher = Matcher(target, self.colours, most=3000)
        nodes = register_coarse(
            self.coarse, self.samples, nodes, matcher, factor=self.factor, steps=steps[len(steps) // 2 :]
        )
        judging = self.judging(target)
        return self._unbent(start, *self._last_word(nodes, target, judging), target, judging)

    def _unbent(
        self, previous, position, rest: Residual, target: Observation, judging: Matcher
    ) -> tuple[np.ndarray, Residual]:
        """An answer with the parts that move as a whole in their own shape, if that explains the capture no worse."""
        unbent, rigid = self.parts.follow([previous, position], target, search=False)
        if rigid.any():
            unbent = np.where(rigid[:, None], unbent, position)
            judged = self.judge(unbent, judging, self.arap.stretch(unbent))
            if judged.misfit <= BARELY * rest.misfit:
                return unbent, judged
        return position, rest

    def _last_word(
        self, nodes, target: Observation, judging: Matcher, targets=None, confidence=None
    ) -> tuple[np.ndarray, Residual]:
        """Every vertex on its own, from where the coarse nodes are."""
        position = register(
            self.arap, self.samples, self.coarse.positions(nodes), Matcher(target, self.colours, colour_scale=FINE_COLOUR_SCALE),
            targets=targets, confidence=confidence, factor=self.factor,
        )  # fmt: skip
        position = self.sheets.restored(position)
        return position, self.judge(position, judging, self.arap.stretch(position))


def fit_keyframes(
    template: np.ndarray,
    faces: np.ndarray,
    arap: Arap,
    capture: Capture,
    *,
    home: int = 0,
    guess: Guess | None = None,
    starts: np.ndarray | None = None,
    smoothness: float = 0.5,
    on_progress: Callable[[float], None] | None = None,
) -> tuple[np.ndarray, list[Residual]]:
    """Fit the template to every keyframe, outwards from its own.

    Args:
        template: [V, 3] at keyframe `home`.
        capture: with depth.
        guess: from two neighbouring keyframes and the mesh [V, 3] fitted to the first of them, where the networks believe
            it is at the second [V, 3] and their confidence [V]; None registers without networks (row `register`).
        starts: [K, V, 3], where it is known to be, nearly; then nothing is searched for.
    Returns:
        fitted [K, V, 3] float64 (that of `home` is the template), and K residuals.
    Raises:
        LimError empty_surface: a keyframe shows nothing.
    """
    assert capture.depth_planar is not None
    count, depth_planar = capture.keyframes, capture.depth_planar
    report = on_progress or (lambda fraction: None)
    seen = [
        Observation(depth_planar[k], capture.rgba[k], capture.camera_to_world, capture.intrinsics) for k in range(count)
    ]
    tracker = Tracker(template, faces, arap, seen[home], smoothness)
    fitted, residuals = {home: tracker.template}, {home: tracker.rest}
    if starts is not None:
        for k in set(range(count)) - {home}:
            fitted[k], residuals[k] = tracker.refine(np.asarray(starts[k], np.float64), seen[k])
            report(len(fitted) / count)
        return np.stack([fitted[k] for k in range(count)]), [residuals[k] for k in range(count)]

    def advance(k: int, to: int) -> tuple[np.ndarray, Residual]:
        believed, confidence = guess(k, to, fitted[k]) if guess else (None, None)
        return tracker.advance(
            fitted[k], seen[k], seen[to], before=fitted.get(2 * k - to), guess=believed, confidence=confidence
        )

    for to in [*range(home + 1, count), *range(home - 1, -1, -1)]:
        fitted[to], residuals[to] = advance(to - 1 if to > home else to + 1, to)
        report(len(fitted) / count)
    for to in sorted(range(count), key=lambda k: -residuals[k].misfit):
        if to == home or residuals[to].misfit <= GOOD * tracker.rest.misfit:
            continue
        outer = to + 1 if to > home else to - 1
        if outer in fitted and residuals[outer].score < residuals[to].score:
            position, rest = advance(outer, to)
            if rest.score < residuals[to].score:
                fitted[to], residuals[to] = position, rest
    return np.stack([fitted[k] for k in range(count)]), [residuals[k] for k in range(count)]
