# SPDX-License-Identifier: GPL-3.0-or-later
"""The buttons. `execute` blocks, for scripts and in the background; `invoke` in a window works in steps, on a timer.

A LimError becomes a report, and stays in the panel until it is dismissed. What runs is kept in this module, because an
operator's own instance does not survive the loading of another file.
"""

import dataclasses
import os
import textwrap
import threading
import time
from pathlib import Path

import bpy
from bpy.app.handlers import persistent
from bpy.props import BoolProperty, EnumProperty, StringProperty

from ..lim_core import protocol
from ..lim_core.errors import Cancelled, LimError, from_os_error
from . import (
    backend,
    clip_camera,
    ids,
    import_video,
    job_folders,
    jobs,
    keyframes,
    preferences,
    preview_picture,
    shape_keys,
    vertex_colours,
)

TICK = 0.1
"""Seconds between two steps of a job in a window."""
LINE = 30
"""Letters that fit into one line of a box in the sidebar, beside an icon, at its usual width."""
SHEETS = {Path(protocol.CLIP_PREVIEW).name: 1, Path(protocol.VIEWS_PREVIEW).name: 4}
"""Pictures of a video's job that are worth more than those that follow, and their rows of square cells."""
EXPORTS = tuple((suffix, label, words) for suffix, (label, words, _) in shape_keys.EXPORTS.items() if label)

REDRAW_PAUSE = 1.0
"""Seconds between two redraws for progress alone; a stage or a message is drawn at once."""

_drawn = 0.0  # when progress was drawn last
_steps = None  # the iterator of the job that runs in a window
_installation: backend.Command | None = None


# ---- the live state --------------------------------------------------------------------------------------------------
def live(context=None) -> bpy.types.PropertyGroup | None:
    """`WindowManager.lim_job`; None while Blender starts or ends."""
    manager = getattr(context or bpy.context, "window_manager", None)
    return getattr(manager, "lim_job", None)


def redraw() -> None:
    """Redraw the sidebars and the preferences, nothing else."""
    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            if area.type in ("VIEW_3D", "PREFERENCES"):
                for region in area.regions:
                    if region.type == "UI" or area.type == "PREFERENCES":
                        region.tag_redraw()


def wrap(text: str) -> str:
    """Break a text into lines for the sidebar."""
    return "\n".join(line for part in text.splitlines() for line in textwrap.wrap(part, LINE) or [""])


def point(text: str) -> str:
    """Break a text into lines for a box that holds several texts: all but the first begin with a space."""
    first, *rest = wrap(text.strip()).splitlines() or [""]
    return "".join(f"{line}\n" for line in (first, *(f" {line}" for line in rest)))


def time_left(fraction: float, seconds: float | None) -> str:
    """ "42 %, 1 min 05 s left"."""
    percent = f"{fraction * 100:.0f} %"
    if seconds is None:
        return percent
    minutes, rest = divmod(int(seconds + 0.5), 60)
    if minutes >= 60:
        return f"{percent}, {minutes // 60} h {minutes % 60:02d} min left"
    return f"{percent}, {minutes} min {rest:02d} s left" if minutes else f"{percent}, {rest} s left"


def show(event: dict) -> None:
    """Put one event of a job into the live state."""
    global _drawn
    state = live()
    name = event["event"]
    if name == "stage":
        state.stage = event["label"]
    elif name == "progress":
        state.fraction = event["fraction"]
        state.progress_text = time_left(event["fraction"], event["seconds_left"])
        if time.monotonic() - _drawn < REDRAW_PAUSE:
            return
    elif name == "warning":
        state.warning_text += point(f"{event['message']} {event['hint']}")
    elif name == "preview":
        show_picture(state, event["path"], event["label"])
    else:
        return
    _drawn = time.monotonic()
    redraw()


def show_picture(state, path: str, label: str) -> None:
    """Put a job's picture into the panel. The generated views stay: they are what the artist has to judge."""
    name = Path(path).name
    if Path(state.picture).name in SHEETS and name not in SHEETS:
        return
    if time.monotonic() - _drawn < REDRAW_PAUSE and name not in SHEETS:
        return
    state.picture_icon = preview_picture.load(path, SHEETS.get(name, 0))
    state.picture, state.picture_label = path, label[:1].upper() + label[1:]


def _begin(state) -> None:
    dismiss(state)
    for name in (
        "cancelling", "stage", "fraction", "progress_text", "warning_text", "note", "summary", "waiting",
        "picture", "picture_label", "picture_icon",
    ):  # fmt: skip
        state.property_unset(name)
    preview_picture.clear()
    state.running = True


def _end(state) -> None:
    state.running = state.cancelling = False
    redraw()


def dismiss(state) -> None:
    """Forget the error."""
    for name in ("error_code", "error_text", "error_fix"):
        state.property_unset(name)


def fail(operator: bpy.types.Operator, error: LimError) -> set[str]:
    """Report the error and keep it in the panel; what an operator returns then."""
    state = live()
    state.error_code = error.code
    state.error_text = wrap(f"{error.message}\n{error.hint}")
    state.error_fix = protocol.ERROR_CODES[error.code][1]
    operator.report({"ERROR"}, str(error))
    redraw()
    return {"CANCELLED"}


def stopped(operator: bpy.types.Operator, job: jobs.Job) -> set[str]:
    """Say in the panel that the job was cancelled; what an operator returns then."""
    state = live()
    if job.stopped_to_look:
        state.waiting = True
        state.note = point("These are the other views. Go on with them, or change the settings and generate again.")
        operator.report({"INFO"}, "The other views are made")
        return {"CANCELLED"}
    state.note = point("Cancelled. Your scene is as it was. The next run goes on from what is finished.")
    operator.report({"INFO"}, "Cancelled; the finished parts are kept")
    return {"CANCELLED"}


def finish(operator: bpy.types.Operator, outcome: jobs.Outcome) -> set[str]:
    """Keep what the panel shows of a finished job; what an operator returns then."""
    state = live()
    state.result = outcome.object_name
    state.job_folder = str(outcome.job_folder)
    seconds = sum(outcome.seconds.values())
    state.summary = f"{len(outcome.request.frames())} frames in {seconds:.0f} s"
    measured = outcome.result.get("metrics", {})
    if "keys" in measured:
        off = f"{measured['reduced_rms']:.2g} %, at most {measured['reduced_max']:.2g} %"
        state.summary += f"\n{measured['keys']} shape keys: off by {off} of its size"
    camera = clip_camera.camera_of(bpy.data.objects.get(outcome.object_name))
    other = clip_camera.differences(bpy.context.scene, camera) if camera else []
    if other:
        names = " and ".join(filter(None, (", ".join(other[:-1]), other[-1])))
        state.note = point(f"The scene has another {names} than the clip. “Match Scene to Clip” sets them.")
    operator.report({"INFO"}, f"“{outcome.object_name}”: {state.summary}".replace("\n", "; "))
    look_around()
    return {"FINISHED"}


def result_object(context) -> bpy.types.Object | None:
    """The last result, or the active object if it is one."""
    state = live(context)
    last = context.scene.objects.get(state.result) if state and state.result else None
    return next((object for object in (context.active_object, last) if object and shape_keys.FRAMES in object), None)


def settings_from(context) -> jobs.Settings:
    """The job that the panel's settings ask for. Raises LimError."""
    scene = context.scene
    chosen = scene.lim
    common = dict(
        quality=chosen.quality,
        fit=chosen.fit,
        smoothness=chosen.smoothness,
        max_keys=chosen.max_keys,
        device=chosen.device,
        name=chosen.name.strip() or "LIM",
        backend=preferences.backend_python(),
        weights=preferences.weights_folder(),
        cache=preferences.cache_folder(),
    )
    if chosen.source == "VIDEO":
        if not chosen.video:
            raise LimError("bad_video", "No clip is chosen.", "Choose it with Import Video.")
        return jobs.Settings(
            source="video", video=import_video.fields(chosen), stop_after_views=chosen.stop_after_views, **common
        )
    start, end = float(scene.frame_start), float(scene.frame_end)
    if chosen.use_frame_range:
        start, end = float(chosen.frame_start), float(chosen.frame_end)
        if end <= start:
            raise LimError("keyframe_range", f"The frame range {start:g} to {end:g} is empty.", "Raise its end.")
    source = "poses" if chosen.source == "POSES" else "objects"
    objects = _chosen_objects(context)
    if source == "poses":
        frames = tuple(start + index * float(chosen.pose_spacing) for index in range(len(objects)))
        end = max(end, frames[-1])
    elif chosen.keyframe_mode == "KEYS":
        frames = keyframes.offered(objects, start, end, chosen.keyframe_limit)
        if len(frames) < 2:
            raise LimError(
                "one_keyframe",
                f"The animation of the source has {len(frames) or 'no'} key{'' if len(frames) == 1 else 's'} between "
                f"frame {start:g} and {end:g}, and two are needed.",
                "Take every N frames, or type the keyframes.",
            )
    elif chosen.keyframe_mode == "MARKERS":
        frames = keyframes.within(keyframes.of_markers(scene), start, end)
    elif chosen.keyframe_mode == "EVERY":
        frames = keyframes.every(start, end, chosen.keyframe_step)
    else:
        frames = keyframes.parse(chosen.keyframe_text)
    return jobs.Settings(
        objects=tuple(object.name for object in objects),
        keyframes=frames,
        source=source,
        frame_range=(start, end),
        inbetweens=chosen.inbetweens,
        template=chosen.template,
        template_object=chosen.template_object.name if chosen.template_object else "",
        align_poses=chosen.align_poses,
        engine=chosen.engine,
        unchanged_file=_saved_file(),
        **common,
    )


def _saved_file() -> str:
    """The scene's file, if nothing was done to the scene since it was opened or saved; else ""."""
    if bpy.data.is_dirty or not bpy.data.is_saved or jobs.addons_that_move_things():
        return ""
    return bpy.data.filepath


def _chosen_objects(context) -> list[bpy.types.Object]:
    chosen = context.scene.lim
    if chosen.source == "COLLECTION":
        if chosen.collection is None:
            raise LimError("nothing_selected", "No collection is chosen.", "Choose the collection to capture.")
        objects = [object for object in chosen.collection.all_objects if jobs.has_surface(object)]
        where = f"The collection “{chosen.collection.name}” holds nothing"
    elif chosen.source == "POSES":
        objects = [pose.object for pose in chosen.poses if pose.object]
        where = "The list of poses holds no object"
        if len(objects) == 1:
            raise LimError("one_keyframe", "There is only one pose: nothing can be in-betweened.", "Add another pose.")
    else:
        from .capture_scene import FLESHLESS

        selected = [object for object in context.view_layer.objects if object.select_get(view_layer=context.view_layer)]
        objects = [object for object in selected if jobs.has_surface(object) or object.type in FLESHLESS]
        where = "Nothing is selected" if not selected else "The selection holds nothing"
        if not selected:
            raise LimError("nothing_selected", "Nothing is selected.", "Select the objects to capture.")
    if not objects:
        raise LimError("nothing_selected", f"{where} with a surface.", "Choose meshes, curves, text or metaballs.")
    return objects


class _InSteps:
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


# ---- the job ---------------------------------------------------------------------------------------------------------
class LIM_OT_generate(_InSteps, bpy.types.Operator):
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
        _begin(state)
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
            _end(state)

    def _settings(self, context) -> jobs.Settings:
        settings = settings_from(context)
        return dataclasses.replace(settings, stop_after_views=settings.stop_after_views and not self.go_on)

    def _start(self, context) -> None:
        global _steps
        settings = self._settings(context)
        _begin(live(context))
        self._job = jobs.Job(context.scene, settings, show, background=True)
        _steps = self._job.steps()

    def _step(self, context) -> set[str] | None:
        if _steps is None:  # stopped from outside, by the loading of another file
            return {"CANCELLED"}
        try:
            next(_steps)
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
        global _steps
        _steps = None
        state = live(context)
        if state:
            state.job_folder = str(self._job.folder or "")
            _end(state)


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
        elif _installation:
            _installation.stop()
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
class _Installation(_InSteps):
    """Runs the installer, its last line in the preferences."""

    def execute(self, context):
        try:
            self._start(context)
        except LimError as error:
            return fail(self, error)
        while _installation.running:
            time.sleep(TICK)
        return self._finish(context)

    def _step(self, context) -> set[str] | None:
        if _installation is None:
            return {"CANCELLED"}
        state = live(context)
        line = _installation.last_line
        if line and line != state.install_text:
            state.install_text = line
            redraw()
        return None if _installation.running else self._finish(context)

    def _start(self, context) -> None:
        global _installation
        _installation = backend.Command(self._command(), backend.environment(preferences.backend_home()))
        state = live(context)
        state.installing = True
        state.install_text = "Starting …"

    def _finish(self, context) -> set[str]:
        global _installation
        ended, _installation = _installation, None
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
        chosen = preferences.get()
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


# ---- the cache -------------------------------------------------------------------------------------------------------
class LIM_OT_cache_measure(bpy.types.Operator):
    """Measure how much the jobs in the cache folder take"""

    bl_idname = ids.CACHE_MEASURE
    bl_label = "Measure Cache"

    @classmethod
    def poll(cls, context):
        return live(context) is not None

    def execute(self, context):
        live(context).cache_text = _cache_words(*job_folders.size(Path(preferences.cache_folder())))
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
        folder = Path(preferences.cache_folder())
        removed, kept = job_folders.clear(folder)
        text = f"Removed {removed} job{'' if removed == 1 else 's'}"
        self.report({"INFO"}, f"{text}, kept {kept}" if kept else text)
        live(context).cache_text = _cache_words(*job_folders.size(folder))
        redraw()
        return {"FINISHED"}


def _cache_words(count: int, size: int) -> str:
    return f"{count} job{'' if count == 1 else 's'}, {job_folders.in_words(size)}" if count else "The cache is empty."


# ---- the result ------------------------------------------------------------------------------------------------------
class _OnResult:
    @classmethod
    def poll(cls, context):
        return context.scene is not None and result_object(context) is not None


class LIM_OT_result_select(_OnResult, bpy.types.Operator):
    """Select the result and make it the active object"""

    bl_idname = ids.RESULT_SELECT
    bl_label = "Select"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context):
        result = result_object(context)
        if result.name not in context.view_layer.objects:
            self.report({"WARNING"}, f"“{result.name}” lies in a collection that is excluded from this view layer.")
            return {"CANCELLED"}
        for object in list(context.view_layer.objects):
            object.select_set(object == result, view_layer=context.view_layer)
        result.hide_set(False)
        context.view_layer.objects.active = result
        return {"FINISHED"}


class LIM_OT_result_keep(_OnResult, bpy.types.Operator):
    """Copy the result, with a mesh, material and action of its own, out of the collection “LIM” into the scene"""

    bl_idname = ids.RESULT_KEEP
    bl_label = "Keep as Copy"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context):
        result = result_object(context)
        kept = result.copy()
        kept.data = result.data.copy()
        keys = kept.data.shape_keys
        if keys and keys.animation_data and keys.animation_data.action:
            slot = getattr(keys.animation_data, "action_slot", None)
            keys.animation_data.action = keys.animation_data.action.copy()
            if slot is not None:
                keys.animation_data.action_slot = keys.animation_data.action.slots[slot.identifier]
        for slot in kept.material_slots:
            if slot.material:
                slot.material = slot.material.copy()
        kept.name = f"{result.name} kept"
        context.scene.collection.objects.link(kept)
        self.report({"INFO"}, f"Kept as “{kept.name}”")
        return {"FINISHED"}


class LIM_OT_export(_OnResult, bpy.types.Operator):
    """Write the result to a file that other programs read"""

    bl_idname = ids.EXPORT
    bl_label = "Export"

    filepath: StringProperty(name="File", description="Where the file is written", subtype="FILE_PATH")
    format: EnumProperty(name="Format", description="What kind of file is written", items=EXPORTS)
    check_existing: BoolProperty(default=True, options={"HIDDEN"})

    def invoke(self, context, event):
        self.filepath = bpy.path.ensure_ext(bpy.path.clean_name(result_object(context).name), self.format)
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def check(self, context):
        stem, suffix = os.path.splitext(self.filepath)
        named = bool(os.path.basename(self.filepath))
        wanted = (
            (stem if suffix.lower() in shape_keys.EXPORTS else self.filepath) + self.format if named else self.filepath
        )
        changed, self.filepath = wanted != self.filepath, wanted
        return changed

    def execute(self, context):
        path = Path(bpy.path.abspath(self.filepath))
        if path.suffix.lower() not in shape_keys.EXPORTS:
            path = path.with_name(f"{path.name}{self.format}") if path.name else path
        try:
            if not os.path.basename(self.filepath):
                raise LimError("bad_request", "The file has no name.", "Type one.")
            written = shape_keys.export(result_object(context), path)
        except LimError as error:
            return fail(self, error)
        except OSError as error:
            return fail(self, from_os_error(error, "exporting"))
        self.report({"INFO"}, f"Wrote “{written[0]}”" + (f" and {len(written) - 1} more" if written[1:] else ""))
        return {"FINISHED"}


class LIM_OT_result_colour(_OnResult, bpy.types.Operator):
    """Give the vertices of the result the colours of its texture, as the colour attribute “Color”, for programs that \
show no textures"""

    bl_idname = ids.RESULT_COLOUR
    bl_label = "Bake Vertex Colours"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context):
        try:
            attribute = vertex_colours.bake(result_object(context))
        except LimError as error:
            return fail(self, error)
        self.report({"INFO"}, f"Baked into the colour attribute “{attribute.name}”")
        return {"FINISHED"}


# ---- the clip --------------------------------------------------------------------------------------------------------
class LIM_OT_import_video(bpy.types.Operator):
    """Choose a film, a folder of pictures or one picture of a sequence, in which one object moves, as the source. \
Generate then makes one textured mesh of it, and a camera that shows the clip behind it"""

    bl_idname = ids.IMPORT_VIDEO
    bl_label = "Import Video"
    bl_options = {"REGISTER", "UNDO"}

    filepath: StringProperty(
        name="Clip", description="The film, folder or picture", subtype="FILE_PATH", options={"SKIP_SAVE"}
    )
    filter_folder: BoolProperty(description="Show folders", default=True, options={"HIDDEN"})
    filter_movie: BoolProperty(description="Show films", default=True, options={"HIDDEN"})
    filter_image: BoolProperty(description="Show pictures", default=True, options={"HIDDEN"})

    @classmethod
    def poll(cls, context):
        state = live(context)
        return context.scene is not None and state is not None and not state.running

    def invoke(self, context, event):
        if self.filepath:  # dropped into the view
            return self.execute(context)
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def execute(self, context):
        path = bpy.path.abspath(self.filepath)
        if not path or not os.path.exists(path):
            named = f" “{path}”" if path else ""
            return fail(self, LimError("missing_file", f"There is no such video{named}.", "Choose one."))
        chosen = context.scene.lim
        chosen.source = "VIDEO"
        chosen.video = path
        self.report({"INFO"}, f"“{Path(path).name}”: {chosen.video_text}")
        _open_tab(context)
        return {"FINISHED"}


def _open_tab(context) -> None:
    """Show the sidebar's tab LIM where the clip was dropped."""
    if context.area is None or context.area.type != "VIEW_3D":
        return
    context.space_data.show_region_ui = True
    for region in context.area.regions:
        if region.type == "UI":
            try:
                region.active_panel_category = ids.TAB
            except (AttributeError, TypeError):
                pass  # it was never drawn: its tabs are not known yet
            region.tag_redraw()


class LIM_OT_clip_match(bpy.types.Operator):
    """Set the scene to the clip that the result was made from, so that the mesh covers it exactly when seen through its \
camera and plays at its speed"""

    bl_idname = ids.CLIP_MATCH
    bl_label = "Match Scene to Clip"
    bl_options = {"REGISTER", "UNDO"}

    resolution: BoolProperty(name="Resolution", description="Render pictures of the clip's size", default=True)
    frame_rate: BoolProperty(name="Frame Rate", description="Play as fast as the clip", default=True)
    frame_range: BoolProperty(name="Frame Range", description="Begin and end with the clip", default=True)
    active_camera: BoolProperty(name="Camera", description="Look through the clip's camera", default=True)

    @classmethod
    def poll(cls, context):
        return context.scene is not None and clip_camera.camera_of(result_object(context)) is not None

    def execute(self, context):
        camera = clip_camera.camera_of(result_object(context))
        clip_camera.match_scene(
            context.scene, camera, resolution=self.resolution, frame_rate=self.frame_rate,
            frame_range=self.frame_range, active_camera=self.active_camera,
        )  # fmt: skip
        live(context).property_unset("note")
        return {"FINISHED"}


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


# ---- the poses -------------------------------------------------------------------------------------------------------
class LIM_OT_pose_add(bpy.types.Operator):
    """Add the selected objects to the list of poses, in the order of their names"""

    bl_idname = ids.POSE_ADD
    bl_label = "Add Selected"
    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context):
        return context.scene is not None and context.view_layer is not None

    def execute(self, context):
        chosen = context.scene.lim
        listed = {pose.object for pose in chosen.poses}
        new = [
            object
            for object in sorted(context.view_layer.objects, key=lambda object: object.name)
            if object.select_get(view_layer=context.view_layer) and jobs.has_surface(object) and object not in listed
        ]
        if not new:
            self.report({"WARNING"}, "Select objects with a surface that are not in the list yet.")
            return {"CANCELLED"}
        for object in new:
            chosen.poses.add().object = object
        chosen.pose_index = len(chosen.poses) - 1
        return {"FINISHED"}


class _OnPose:
    @classmethod
    def poll(cls, context):
        chosen = getattr(context.scene, "lim", None)
        return chosen is not None and 0 <= chosen.pose_index < len(chosen.poses)


class LIM_OT_pose_remove(_OnPose, bpy.types.Operator):
    """Remove the pose from the list; the object stays in the scene"""

    bl_idname = ids.POSE_REMOVE
    bl_label = "Remove Pose"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context):
        chosen = context.scene.lim
        chosen.poses.remove(chosen.pose_index)
        chosen.pose_index = max(0, min(chosen.pose_index, len(chosen.poses) - 1))
        return {"FINISHED"}


class LIM_OT_pose_move(_OnPose, bpy.types.Operator):
    """Move the pose to an earlier or a later keyframe"""

    bl_idname = ids.POSE_MOVE
    bl_label = "Move Pose"
    bl_options = {"REGISTER", "UNDO"}

    direction: EnumProperty(
        name="Direction",
        description="Towards the first or the last keyframe",
        items=(("UP", "Up", "One keyframe earlier"), ("DOWN", "Down", "One keyframe later")),
    )

    def execute(self, context):
        chosen = context.scene.lim
        target = chosen.pose_index + (-1 if self.direction == "UP" else 1)
        if not 0 <= target < len(chosen.poses):
            return {"CANCELLED"}
        chosen.poses.move(chosen.pose_index, target)
        chosen.pose_index = target
        return {"FINISHED"}


# ---- coming and going ------------------------------------------------------------------------------------------------
def stop() -> None:
    """End the job and the installation that run, at once."""
    global _steps
    if _steps is not None:
        steps, _steps = _steps, None
        steps.close()
    if _installation is not None:
        _installation.stop()


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
        state.installing = _installation is not None
        if not bpy.app.background:
            look_around()


def look_around() -> None:
    """Find out, off the drawing, whether the backend is installed and how much the cache holds."""
    state = live()
    if state is None:
        return
    state.backend_state = backend.state(preferences.backend_home())
    folder = Path(preferences.cache_folder())
    measured: list[tuple[int, int]] = []
    if bpy.app.background:
        state.cache_text = _cache_words(*job_folders.size(folder))
        return
    threading.Thread(target=lambda: measured.append(job_folders.size(folder)), daemon=True).start()

    def collect():
        current = live()
        if current is None:
            return None
        if not measured:
            return 0.5
        current.cache_text = _cache_words(*measured[0])
        redraw()
        return None

    bpy.app.timers.register(collect, first_interval=0.2)


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
