# SPDX-License-Identifier: GPL-3.0-or-later
"""The buttons of the preferences: the backend and the cache."""

from __future__ import annotations

import time
from pathlib import Path

import bpy
from bpy.props import BoolProperty

from ...lim_core.shared.errors import LimError
from .. import folders, ids
from ..job import backend, job_folders
from .in_steps import TICK, InSteps, running
from .live import cache_words, dismiss, fail, live, look_around, redraw, wrap


class _Installation(InSteps):
    """Runs the installer, its last line in the preferences."""

    def execute(self, context):
        try:
            self._start(context)
        except LimError as error:
            return fail(self, error)
        while running.installation.running:
            time.sleep(TICK)
        return self._finish(context)

    def _step(self, context) -> set[str] | None:
        if running.installation is None:
            return {"CANCELLED"}
        state = live(context)
        line = running.installation.last_line
        if line and line != state.install_text:
            state.install_text = line
            redraw()
        return None if running.installation.running else self._finish(context)

    def _start(self, context) -> None:
        running.installation = backend.Command(self._command(), backend.environment(folders.backend_home()))
        state = live(context)
        state.installing = True
        state.install_text = "Starting …"

    def _finish(self, context) -> set[str]:
        ended, running.installation = running.installation, None
        state = live(context)
        state.installing = False
        look_around()
        if ended.stopped:
            state.install_text = "Stopped; what was finished is kept."
            answer = {"CANCELLED"}
        elif ended.returncode == 0:
            state.install_text = wrap(ended.last_line)
            if state.error_fix == ids.BACKEND_INSTALL:
                dismiss(state)
            self.report({"INFO"}, ended.last_line or "Done")
            answer = {"FINISHED"}
        else:
            said = ended.tail.strip() or f"The installer stopped with exit code {ended.returncode}."
            state.install_text = wrap(said)
            answer = fail(self, LimError("backend_broken", said.replace("\n", " "), ""))
        redraw()
        return answer


def may_download() -> bool:
    """What Blender's preferences say about using the network."""
    return bpy.app.online_access


class LIM_OT_backend_install(_Installation, bpy.types.Operator):
    """Install the backend that does the computing, in an environment of its own; nothing goes into Blender's Python. \
It can be stopped and started again"""

    bl_idname = ids.BACKEND_INSTALL
    bl_label = "Install Backend"

    repair: BoolProperty(
        name="Repair", description="Check every installed file and mend what is damaged", options={"SKIP_SAVE"}
    )

    def _command(self) -> list[str]:
        chosen = folders.get()
        wheels = bpy.path.abspath(chosen.wheels_folder) if chosen and chosen.wheels_folder else ""
        if not wheels and not may_download():
            raise LimError(
                "backend_missing",
                "Blender is not allowed to use the network, and the backend must be downloaded.",
                "Allow Online Access in Preferences > System, or name a wheels folder in the add-on's preferences.",
            )
        device = chosen.install_device if chosen else "auto"
        return backend.install_command(device=device, wheels=wheels, repair=self.repair)


class LIM_OT_backend_uninstall(_Installation, bpy.types.Operator):
    """Remove the backend's environment and everything else that the installer made"""

    bl_idname = ids.BACKEND_UNINSTALL
    bl_label = "Uninstall Backend"

    def invoke(self, context, event):
        if bpy.app.background or context.window is None:
            return self.execute(context)
        return context.window_manager.invoke_confirm(self, event)

    def _command(self) -> list[str]:
        return backend.uninstall_command()


class LIM_OT_cache_measure(bpy.types.Operator):
    """Measure how much the jobs in the cache folder take"""

    bl_idname = ids.CACHE_MEASURE
    bl_label = "Measure Cache"

    @classmethod
    def poll(cls, context):
        return live(context) is not None

    def execute(self, context):
        live(context).cache_text = cache_words(*job_folders.size(Path(folders.cache_folder())))
        redraw()
        return {"FINISHED"}


class LIM_OT_cache_clear(bpy.types.Operator):
    """Remove the captures and finished stages of all jobs that are not running. Results in your scenes are not touched"""

    bl_idname = ids.CACHE_CLEAR
    bl_label = "Clear Cache"

    @classmethod
    def poll(cls, context):
        state = live(context)
        return state is not None and not state.running

    def invoke(self, context, event):
        if bpy.app.background:
            return self.execute(context)
        return context.window_manager.invoke_confirm(self, event)

    def execute(self, context):
        folder = Path(folders.cache_folder())
        removed, kept = job_folders.clear(folder)
        text = f"Removed {removed} job{'' if removed == 1 else 's'}"
        self.report({"INFO"}, f"{text}, kept {kept}" if kept else text)
        live(context).cache_text = cache_words(*job_folders.size(folder))
        redraw()
        return {"FINISHED"}
