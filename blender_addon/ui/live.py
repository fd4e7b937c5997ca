# SPDX-License-Identifier: GPL-3.0-or-later
"""What the panel shows of a job while it runs and after it has ended."""

from __future__ import annotations

import textwrap
import threading
import time
from pathlib import Path

import bpy

from ...lim_core.shared import protocol
from ...lim_core.shared.errors import LimError
from .. import folders
from ..job import backend, job_folders, jobs
from ..result import shape_keys
from ..source import clip_camera
from . import preview_picture

LINE = 30
"""Letters that fit into one line of a box in the sidebar, beside an icon, at its usual width."""


SHEETS = {Path(protocol.CLIP_PREVIEW).name: 1, Path(protocol.VIEWS_PREVIEW).name: 4}
"""Pictures of a video's job that are worth more than those that follow, and their rows of square cells."""


REDRAW_PAUSE = 1.0
"""Seconds between two redraws for progress alone; a stage or a message is drawn at once."""


_drawn = 0.0  # when progress was drawn last


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


def begin(state) -> None:
    dismiss(state)
    for name in (
        "cancelling", "stage", "fraction", "progress_text", "warning_text", "note", "summary", "waiting",
        "picture", "picture_label", "picture_icon",
    ):  # fmt: skip
        state.property_unset(name)
    preview_picture.clear()
    state.running = True


def end(state) -> None:
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


def cache_words(count: int, size: int) -> str:
    return f"{count} job{'' if count == 1 else 's'}, {job_folders.in_words(size)}" if count else "The cache is empty."


def look_around() -> None:
    """Find out, off the drawing, whether the backend is installed and how much the cache holds."""
    state = live()
    if state is None:
        return
    state.backend_state = backend.state(folders.backend_home())
    folder = Path(folders.cache_folder())
    measured: list[tuple[int, int]] = []
    if bpy.app.background:
        state.cache_text = cache_words(*job_folders.size(folder))
        return
    threading.Thread(target=lambda: measured.append(job_folders.size(folder)), daemon=True).start()

    def collect():
        current = live()
        if current is None:
            return None
        if not measured:
            return 0.5
        current.cache_text = cache_words(*measured[0])
        redraw()
        return None

    bpy.app.timers.register(collect, first_interval=0.2)
