# SPDX-License-Identifier: GPL-3.0-or-later
"""Operators that block when they are executed, and go in steps in a window."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import bpy

from ...lim_core.shared.errors import LimError
from ..job import backend
from .live import fail, live, redraw

TICK = 0.1
"""Seconds between two steps of a job in a window."""


@dataclasses.dataclass
class Running:
    """What runs in this Blender's window. An operator's own instance does not survive the loading of another file."""

    steps: Iterator | None = None
    """of the job"""
    installation: backend.Command | None = None


running = Running()


class InSteps:
    """An operator that blocks when executed; invoked in a window it takes a step at every tick of a timer.

    `_start` begins (and may raise LimError); `_step` returns None while there is more to do, then the operator's answer.
    """

    _timer = None

    @classmethod
    def poll(cls, context):
        state = live(context)
        return state is not None and not state.running and not state.installing

    def invoke(self, context, event):
        if bpy.app.background or context.window is None:
            return self.execute(context)
        try:
            self._start(context)
        except LimError as error:
            return fail(self, error)
        self._timer = context.window_manager.event_timer_add(TICK, window=context.window)
        context.window_manager.modal_handler_add(self)
        redraw()
        return {"RUNNING_MODAL"}

    def modal(self, context, event):
        if event.type != "TIMER":
            return {"PASS_THROUGH"}
        answer = self._step(context)
        if answer is None:
            return {"PASS_THROUGH"}
        self._remove_timer(context)
        return answer

    def cancel(self, context):
        """Called by Blender when it ends or loads another file meanwhile."""
        stop()
        self._remove_timer(context)

    def _remove_timer(self, context) -> None:
        if self._timer:
            context.window_manager.event_timer_remove(self._timer)
            self._timer = None


def stop() -> None:
    """End the job and the installation that run, at once."""
    if running.steps is not None:
        steps, running.steps = running.steps, None
        steps.close()
    if running.installation is not None:
        running.installation.stop()
