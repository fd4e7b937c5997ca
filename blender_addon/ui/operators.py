# SPDX-License-Identifier: GPL-3.0-or-later
"""The buttons. `execute` blocks, for scripts and in the background; `invoke` in a window works in steps, on a timer.

A LimError becomes a report, and stays in the panel until it is dismissed. What runs is kept in
`in_steps.running`.
"""

import dataclasses
from pathlib import Path

import bpy
from bpy.app.handlers import persistent
from bpy.props import BoolProperty

from ...lim_core.shared import protocol
from ...lim_core.shared.errors import Cancelled, LimError, from_os_error
from .. import ids
from ..job import asking, jobs
from . import preview_picture
from .choosing_source import LIM_OT_import_video, LIM_OT_pose_add, LIM_OT_pose_move, LIM_OT_pose_remove
from .in_steps import InSteps, running, stop
from .installing import LIM_OT_backend_install, LIM_OT_backend_uninstall, LIM_OT_cache_clear, LIM_OT_cache_measure
from .live import begin, dismiss, end, fail, finish, live, look_around, redraw, show, stopped
from .panel_settings import settings_from
from .using_result import (
    LIM_OT_clip_match,
    LIM_OT_export,
    LIM_OT_result_colour,
    LIM_OT_result_keep,
    LIM_OT_result_select,
)


# ---- the job ---------------------------------------------------------------------------------------------------------
class LIM_OT_generate(InSteps, bpy.types.Operator):
    """Capture the keyframes, let the networks make what lies between them, and write one textured mesh with a shape \
key per frame into the collection “LIM”. The source stays as it is"""

    bl_idname = ids.GENERATE
    bl_label = "Generate"
    bl_options = {"REGISTER", "UNDO"}

    go_on: BoolProperty(
        name="Go On",
        description="Do not stop after a video's other views are made",
        options={"SKIP_SAVE", "HIDDEN"},
    )
    _job = None

    @classmethod
    def poll(cls, context):
        return context.scene is not None and super().poll(context)

    def execute(self, context):
        state = live(context)
        begin(state)
        job = None
        try:
            job = jobs.Job(context.scene, self._settings(context), show)
            return finish(self, job.run())
        except LimError as error:
            return fail(self, error)
        except Cancelled:
            return stopped(self, job)
        except OSError as error:
            return fail(self, from_os_error(error))
        finally:
            if job and job.folder:
                state.job_folder = str(job.folder)
            end(state)

    def _settings(self, context) -> asking.Settings:
        settings = settings_from(context)
        return dataclasses.replace(settings, stop_after_views=settings.stop_after_views and not self.go_on)

    def _start(self, context) -> None:
        settings = self._settings(context)
        begin(live(context))
        self._job = jobs.Job(context.scene, settings, show, background=True)
        running.steps = self._job.steps()

    def _step(self, context) -> set[str] | None:
        if running.steps is None:  # stopped from outside, by the loading of another file
            return {"CANCELLED"}
        try:
            next(running.steps)
            return None
        except StopIteration:
            answer = finish(self, self._job.outcome)
        except LimError as error:
            answer = fail(self, error)
        except Cancelled:
            answer = stopped(self, self._job)
        self._leave(context)
        return answer

    def cancel(self, context):
        super().cancel(context)
        self._leave(context)

    def _leave(self, context) -> None:
        running.steps = None
        state = live(context)
        if state:
            state.job_folder = str(self._job.folder or "")
            end(state)


class LIM_OT_cancel(bpy.types.Operator):
    """Stop what is running; the scene stays as it is. The next run goes on after the last finished stage, and captures \
again if the file is not saved or has changed"""

    bl_idname = ids.CANCEL
    bl_label = "Cancel"

    @classmethod
    def poll(cls, context):
        state = live(context)
        return state is not None and (state.running or state.installing)

    def execute(self, context):
        state = live(context)
        if jobs.active:
            jobs.active.cancel()
            state.cancelling = True
        elif running.installation:
            running.installation.stop()
        else:
            state.running = state.installing = False  # nothing runs: left over from an operator that broke off
        redraw()
        return {"FINISHED"}


class LIM_OT_open_log(bpy.types.Operator):
    """Open the log of the last job with the system's text editor"""

    bl_idname = ids.OPEN_LOG
    bl_label = "Open Log"

    @classmethod
    def poll(cls, context):
        state = live(context)
        return state is not None and bool(state.job_folder)

    def execute(self, context):
        log = Path(live(context).job_folder) / protocol.LOG_FILE
        if not log.is_file():
            self.report({"WARNING"}, f"There is no log at “{log}”.")
            return {"CANCELLED"}
        if bpy.app.background:
            self.report({"INFO"}, f"The log is “{log}”.")
            return {"FINISHED"}
        return bpy.ops.wm.path_open(filepath=str(log))


class LIM_OT_dismiss(bpy.types.Operator):
    """Remove the error message from the panel"""

    bl_idname = ids.DISMISS
    bl_label = "Dismiss"

    @classmethod
    def poll(cls, context):
        state = live(context)
        return state is not None and bool(state.error_text)

    def execute(self, context):
        dismiss(live(context))
        redraw()
        return {"FINISHED"}


# ---- the backend -----------------------------------------------------------------------------------------------------


# ---- the cache -------------------------------------------------------------------------------------------------------


# ---- the result ------------------------------------------------------------------------------------------------------


# ---- the clip --------------------------------------------------------------------------------------------------------


class LIM_OT_preview_open(bpy.types.Operator):
    """Open the whole picture with the system's viewer"""

    bl_idname = ids.PREVIEW_OPEN
    bl_label = "Open Picture"

    @classmethod
    def poll(cls, context):
        state = live(context)
        return state is not None and bool(state.picture)

    def execute(self, context):
        path = Path(live(context).picture)
        if not path.is_file():
            self.report({"WARNING"}, f"There is no picture at “{path}”.")
            return {"CANCELLED"}
        if bpy.app.background:
            self.report({"INFO"}, f"The picture is “{path}”.")
            return {"FINISHED"}
        return bpy.ops.wm.path_open(filepath=str(path))


# ---- coming and going ------------------------------------------------------------------------------------------------


@persistent
def _before_load(*_) -> None:
    stop()


@persistent
def _after_load(*_) -> None:
    """The window manager may outlive the file (a load without its UI does that): forget what was said about that one."""
    state = live()
    if state:
        for name in state.bl_rna.properties.keys():
            if name not in ("rna_type", "name", "backend_state", "install_text"):
                state.property_unset(name)
        preview_picture.clear()
        state.installing = running.installation is not None
        if not bpy.app.background:
            look_around()


def attach() -> None:
    """Called when the extension is enabled: the handlers, and a first look around once Blender is ready."""
    bpy.app.handlers.load_pre.append(_before_load)
    bpy.app.handlers.load_post.append(_after_load)
    if not bpy.app.background:
        bpy.app.timers.register(look_around, first_interval=0.5)


def detach() -> None:
    """Called when the extension is disabled: end what runs."""
    stop()
    preview_picture.clear()
    if bpy.app.timers.is_registered(look_around):
        bpy.app.timers.unregister(look_around)
    bpy.app.handlers.load_pre.remove(_before_load)
    bpy.app.handlers.load_post.remove(_after_load)


CLASSES = (
    LIM_OT_generate,
    LIM_OT_cancel,
    LIM_OT_open_log,
    LIM_OT_dismiss,
    LIM_OT_backend_install,
    LIM_OT_backend_uninstall,
    LIM_OT_cache_measure,
    LIM_OT_cache_clear,
    LIM_OT_result_select,
    LIM_OT_result_keep,
    LIM_OT_result_colour,
    LIM_OT_export,
    LIM_OT_import_video,
    LIM_OT_clip_match,
    LIM_OT_preview_open,
    LIM_OT_pose_add,
    LIM_OT_pose_remove,
    LIM_OT_pose_move,
)
