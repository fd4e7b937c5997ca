# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside Blender's window: uses the add-on as an artist does, measures whether the window stays free, and asks for
pictures. Started by `run.sh`, which also takes the pictures and says what comes out.

What is done, in order: Generate to its end; one undo; Generate again from an empty cache, cancelled in the middle;
Generate once more, which goes on from what the cancelled run had finished; a video, which stops when its views are made
and goes on when they have been looked at.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import math
import os
import sys
import time
import traceback
from pathlib import Path

import addon_utils
import bpy
import numpy as np
from mathutils import Euler

ADDON = "bl_ext.user_default.lim"
OUT, WORK = Path(os.environ["LIM_GUI_OUT"]), Path(os.environ["LIM_GUI_WORK"])
PYTHON, WEIGHTS = Path(os.environ["LIM_GUI_PYTHON"]), os.environ["LIM_GUI_WEIGHTS"]
QUALITY, VIEWS = os.environ["LIM_GUI_QUALITY"], os.environ["LIM_GUI_VIEWS"]
ONLY = os.environ["LIM_GUI_ONLY"]
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "blender"))
from demo_film import film  # noqa: E402

TICK = 0.05
"""Seconds that the measured timer asks for."""
LONGEST_STEP = 0.2
"""Seconds that the add-on may keep Blender's main thread, at most; and the longest gap that five ticks a second allow."""
PATIENCE = 900.0
"""Seconds that a run may take."""

report: dict = {"blender": bpy.app.version_string, "checks": {}, "runs": {}}
spans: list[tuple[float, float, float, str]] = []  # began, ended, CPU seconds, what of ours kept the main thread
drawings: list[tuple[float, float, float, str]] = []  # the same of Blender's drawing
ticks: list[float] = []
loads: list[tuple[float, float]] = []
stages: list[str] = []  # what the panel said since the last Generate


# ---- measuring -------------------------------------------------------------------------------------------------------
def count() -> float:
    """The measured timer."""
    ticks.append(time.monotonic())
    loads.append((ticks[-1], os.getloadavg()[0]))
    return TICK


def timed(owner: type, name: str) -> None:
    """Note how long each call of a method keeps the main thread."""
    inner = getattr(owner, name)

    def note(self, context, *arguments):
        began, cpu = time.monotonic(), time.thread_time()
        stage = context.window_manager.lim_job.stage
        try:
            return inner(self, context, *arguments)
        finally:
            after = context.window_manager.lim_job.stage
            label = f"{owner.__name__}.{name}: {stage}" + (f" -> {after}" if after != stage else "")
            spans.append((began, time.monotonic(), time.thread_time() - cpu, label))

    # Blender counts the arguments.
    outer = (lambda self, context: note(self, context)) if name == "draw" else (lambda s, c, event: note(s, c, event))
    setattr(owner, name, outer)


def time_view() -> None:
    """Note Blender's own drawing of the 3D view, which takes long without a graphics card."""
    began = []

    def start():
        began[:] = [time.monotonic(), time.thread_time()]

    def end():
        if began:
            drawings.append((began[0], time.monotonic(), time.thread_time() - began[1], "3D view drawn by Blender"))
            began.clear()

    bpy.types.SpaceView3D.draw_handler_add(start, (), "WINDOW", "PRE_VIEW")
    bpy.types.SpaceView3D.draw_handler_add(end, (), "WINDOW", "POST_PIXEL")


def measured(since: float, until: float) -> dict:
    """What was measured between two moments."""
    times = [since, *(moment for moment in ticks if since < moment < until), until]
    gaps = np.diff(times)
    ours = [span for span in spans if span[1] > since and span[0] < until]
    drawn = [span for span in drawings if span[1] > since and span[0] < until]
    second = [sum(moment <= other < moment + 1.0 for other in times) for moment in times if moment < times[-1] - 1.0]
    longest = []
    for index in np.argsort(gaps)[::-1][:4]:
        began, ended = times[index], times[index + 1]
        inside = [span for span in ours + drawn if span[0] < ended and span[1] > began]
        longest.append(
            {
                "seconds": round(float(gaps[index]), 3),
                "after": round(began - since, 1),
                "known": {span[3]: round(span[1] - span[0], 3) for span in inside},
            }
        )
    steps = sorted(ours, key=lambda span: span[0] - span[1])[:3]
    load = [value for moment, value in loads if since <= moment <= until]
    return {
        "seconds": round(until - since, 1),
        "rate_hz": round((len(times) - 2) / (until - since), 2),
        "slowest_second_hz": min(second, default=0),
        "largest_gap": round(float(gaps.max()), 3),
        "gaps_over_0.2": int((gaps > LONGEST_STEP).sum()),
        "longest_gaps": longest,
        "our_longest_steps": [
            {"seconds": round(span[1] - span[0], 3), "cpu": round(span[2], 3), "what": span[3]} for span in steps
        ],
        "our_share": round(sum(span[1] - span[0] for span in ours) / (until - since), 4),
        "panel_drawn": sum("LIM_PT_main.draw" in span[3] for span in ours),
        "view_drawn": len(drawn),
        "load_average": [round(min(load), 1), round(max(load), 1)],
    }


def state_of_scene() -> str:
    """A digest of everything in the file that a run could have touched, the settings included."""
    digest = hashlib.sha256()
    for kind in sorted(name for name in dir(bpy.data) if hasattr(getattr(bpy.data, name), "foreach_get")):
        digest.update(f"{kind} {sorted(block.name for block in getattr(bpy.data, kind))}".encode())
    for mesh in bpy.data.meshes:
        points = np.empty(len(mesh.vertices) * 3, np.float32)
        mesh.vertices.foreach_get("co", points)
        digest.update(points.tobytes())
    scene = bpy.context.scene
    layer = bpy.context.window.view_layer
    settings = [str(getattr(scene.lim, name)) for name in scene.lim.bl_rna.properties.keys() if name != "poses"]
    digest.update(repr((scene.frame_current_final, scene.render.engine, scene.camera, settings)).encode())
    for object in sorted(scene.objects, key=lambda object: object.name):
        about = (object.name, [tuple(row) for row in object.matrix_world], object.select_get(view_layer=layer),
                 object.hide_get(view_layer=layer), object.hide_render)  # fmt: skip
        digest.update(repr(about).encode())
    return digest.hexdigest()


def check(name: str, passed: bool) -> None:
    report["checks"][name] = bool(passed)
    print(f"{'ok    ' if passed else 'FAILED'} {name}", flush=True)


# ---- the window ------------------------------------------------------------------------------------------------------
def view() -> bpy.types.Area:
    return next(area for area in bpy.context.window_manager.windows[0].screen.areas if area.type == "VIEW_3D")


def region(kind: str) -> bpy.types.Region:
    return next(region for region in view().regions if region.type == kind)


def here():
    """The context of the 3D view, which a timer does not have."""
    return bpy.context.temp_override(window=bpy.context.window_manager.windows[0], area=view(), region=region("WINDOW"))


def clear_window():
    """Leave the 3D view and the timeline; nothing that is slow to draw without a graphics card."""
    chosen = bpy.context.preferences
    chosen.view.ui_scale = 1.1
    chosen.view.use_save_prompt = False
    chosen.system.viewport_aa = "OFF"
    yield 1.0
    window = bpy.context.window_manager.windows[0]
    window.cursor_warp(400, 420)  # Blender 4.3 crashes if the area under the pointer is closed
    yield 1.0
    for kind in ("PROPERTIES", "OUTLINER"):
        area = next(area for area in window.screen.areas if area.type == kind)
        with bpy.context.temp_override(window=window, area=area, region=area.regions[0]):
            bpy.ops.screen.area_close()
        yield 0.5
    space = view().spaces.active
    space.shading.type, space.shading.light, space.shading.color_type = "SOLID", "STUDIO", "TEXTURE"
    space.shading.studio_light = "paint.sl"  # shows the textures brightest
    space.overlay.show_extras = space.overlay.show_bones = space.overlay.show_cursor = False
    space.overlay.show_relationship_lines = space.overlay.show_object_origins = False
    space.show_region_toolbar = False
    space.show_region_tool_header = space.show_gizmo_navigate = space.overlay.show_text = False
    space.region_3d.view_perspective = "PERSP"
    space.region_3d.view_location = (0.45, 0.25, 1.18)
    space.region_3d.view_rotation = Euler((math.radians(74), 0, math.radians(40))).to_quaternion()
    space.region_3d.view_distance = 4.25


def open_tab():
    """The sidebar must have been drawn before its tab can be chosen."""
    view().spaces.active.show_region_ui = True
    for _ in range(40):
        view().tag_redraw()
        yield 0.5
        try:
            region("UI").active_panel_category = "LIM"
            return
        except (AttributeError, TypeError):
            pass
    raise RuntimeError("The tab LIM does not open.")


def picture(name: str):
    """Ask for a picture of the window and wait until it is taken; Blender goes on meanwhile."""
    (WORK / f"{name}.wanted").touch()
    while (WORK / f"{name}.wanted").exists():
        yield 0.1


def settle(seconds: float = 2.0):
    for area in bpy.context.window_manager.windows[0].screen.areas:
        area.tag_redraw()
    yield seconds


# ---- what is done ----------------------------------------------------------------------------------------------------
def checkout():
    """The repository as a package, for what the extension leaves out."""
    root = Path(__file__).resolve().parents[2]
    spec = importlib.util.spec_from_file_location("lim_headless", root / "blender_addon" / "headless.py")
    headless = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(headless)
    package = headless.load_package(root)
    importlib.import_module(f"{package.__name__}.install.scenes.demo_scene")
    return package


def set_up():
    addon_utils.enable(ADDON, default_set=True)
    operators = importlib.import_module(f"{ADDON}.blender_addon.ui.operators")
    panels = importlib.import_module(f"{ADDON}.blender_addon.ui.panels")
    folders = importlib.import_module(f"{ADDON}.blender_addon.folders")
    chosen = folders.get()
    chosen.weights_folder = WEIGHTS
    if PYTHON.parents[1].name == "backend":
        chosen.backend_folder = str(PYTHON.parents[2])
    else:
        folders.backend_python = lambda: str(PYTHON)
    for name in ("invoke", "modal"):
        timed(operators.LIM_OT_generate, name)
    for panel in (panels.LIM_PT_main, panels.LIM_PT_result):
        timed(panel, "draw")
    time_view()
    yield from clear_window()
    for object in list(bpy.data.objects):
        bpy.data.objects.remove(object)
    demo = checkout().install.scenes.demo_scene
    with here():
        source = demo.build_creature(bpy.context.scene)
        for object in bpy.context.scene.objects:
            object.select_set(object == source)
        bpy.context.view_layer.objects.active = source
    bpy.context.scene.lim.quality = QUALITY
    window = bpy.context.window_manager.windows[0]
    timeline = next(area for area in window.screen.areas if area.type == "DOPESHEET_EDITOR")
    shown = next(region for region in timeline.regions if region.type == "WINDOW")
    with bpy.context.temp_override(window=window, area=timeline, region=shown):
        bpy.ops.action.view_all()
    yield from open_tab()
    with here():
        bpy.ops.ed.undo_push(message="Demo scene")
    yield from settle(3.0)


def generate(**options):
    job = bpy.context.window_manager.lim_job
    stages.clear()
    with here():
        answer = bpy.ops.lim.generate("INVOKE_DEFAULT", **options)
    check("Generate runs on in the background", answer == {"RUNNING_MODAL"} and job.running)
    yield 0.0


def redraw_alone(seconds: float):
    """What redrawing the sidebar costs here while nothing runs, for comparison."""
    since = time.monotonic()
    while time.monotonic() < since + seconds:
        region("UI").tag_redraw()
        yield 0.5
    report["runs"]["sidebar redrawn, nothing running"] = measured(since, time.monotonic())


def wait_for(done):
    """Wait until `done()`; the run may also end."""
    job = bpy.context.window_manager.lim_job
    end = time.monotonic() + PATIENCE
    while job.running and not done():
        if job.stage not in stages:
            stages.append(job.stage)
        if time.monotonic() > end:
            raise RuntimeError("The run takes too long.")
        yield 0.1


def script():
    yield from set_up()
    if ONLY == "video":
        bpy.app.timers.register(count)
        yield from video()
        return
    job = bpy.context.window_manager.lim_job
    scene = bpy.context.scene
    before = state_of_scene()
    yield from picture("panel")

    # A timer's ticks through a whole run.
    bpy.app.timers.register(count)
    yield 1.0
    yield from redraw_alone(8.0)
    since = time.monotonic()
    yield from generate()
    yield from wait_for(lambda: job.fraction > 0.55 and "left" in job.progress_text)
    check("the panel shows a stage and the time left", job.stage and "left" in job.progress_text)
    yield from picture("running")
    yield from wait_for(lambda: job.stage.startswith("Writing"))
    writing = time.monotonic()
    yield from wait_for(lambda: False)
    yield 2.0
    report["runs"]["generate"] = run = measured(since, writing)
    report["runs"]["result written and shown"] = end = measured(writing - 1.0, time.monotonic())
    check("Generate ends without an error", not job.error_text)
    result = scene.objects.get(job.result)
    check("the result is in the scene", result is not None and len(result.data.shape_keys.key_blocks) == 18)
    if result is None:
        raise RuntimeError(job.error_text or "There is no result.")
    report["summary"] = job.summary
    longest = max(part["our_longest_steps"][0]["seconds"] for part in (run, end))
    check(f"no step of ours is longer than {LONGEST_STEP} s", longest <= LONGEST_STEP)
    check("five ticks in every second", run["slowest_second_hz"] >= 5)

    # The result, at an in-between.
    with here():
        bpy.ops.lim.result_select()
        bpy.data.objects["Dino"].hide_set(True)
        bpy.data.objects["Dino rig"].hide_set(True)
        scene.frame_set(6)
    yield from settle()
    yield from picture("result")
    with here():
        scene.frame_set(1)
        for name in ("Dino", "Dino rig"):
            bpy.data.objects[name].hide_set(False)

    # One undo takes it all back.
    with here():
        bpy.ops.ed.undo()
    yield 1.0
    scene, job = bpy.context.scene, bpy.context.window_manager.lim_job
    check("undo restores the scene", state_of_scene() == before)

    # Cancelled in the middle, in a file that is saved.
    with here():
        bpy.ops.lim.cache_clear()
        bpy.ops.wm.save_as_mainfile(filepath=str(WORK / "scene.blend"))
    yield 1.0
    scene, job = bpy.context.scene, bpy.context.window_manager.lim_job
    before, since = state_of_scene(), time.monotonic()
    yield from generate()
    yield from wait_for(lambda: job.fraction > 0.35)
    stage = job.stage
    asked = time.monotonic()
    bpy.ops.lim.cancel()
    yield from wait_for(lambda: False)
    yield 0.5
    report["runs"]["cancelled"] = measured(since, time.monotonic())
    report["cancelled"] = {"stage": stage, "seconds_to_stop": round(time.monotonic() - asked - 0.5, 2)}
    check("a cancelled run leaves no error", not job.error_text and not job.running)
    check("a cancelled run leaves the scene untouched", state_of_scene() == before)
    yield from settle()
    yield from picture("cancelled")

    # Again: it goes on from there.
    since = time.monotonic()
    yield from generate()
    yield from wait_for(lambda: False)
    yield 0.5
    report["runs"]["resumed"] = measured(since, time.monotonic())
    check("the next run finishes", not job.error_text and job.result in scene.objects)
    check("the next run does not capture again", stages and not any("Capturing" in stage for stage in stages))
    yield from video()


def video():
    """A clip of the source, the other views looked at, and the result over the clip."""
    operators = importlib.import_module(f"{ADDON}.blender_addon.ui.operators")
    root = Path(operators.ids.ROOT)
    if not VIEWS and not (root / "lim_core/weights/multiview").is_dir():
        report["video"] = "There are no weights for a video's views."
        return
    clip_camera = importlib.import_module(f"{ADDON}.blender_addon.source.clip_camera")
    scene, job = bpy.context.scene, bpy.context.window_manager.lim_job
    with here():
        scene.frame_set(1)
        capture_scene = importlib.import_module(f"{ADDON}.blender_addon.source.capture_scene")
        clip = film(capture_scene, scene, ("Dino",), tuple(range(1, 10, 2)), WORK / "film")
        bpy.data.batch_remove(list(scene.objects))
        bpy.ops.lim.import_video(filepath=str(clip))
    check("the panel says what the clip holds", "5 pictures" in scene.lim.video_text)
    scene.lim.video_keyframes, scene.lim.views_model, scene.lim.stop_after_views = "EVERY", VIEWS, True
    before = state_of_scene()
    yield from generate()
    yield from wait_for(lambda: False)
    check("the views are shown, and the run waits", job.waiting and job.picture_icon and not job.error_text)
    check("a run that waits leaves the scene untouched", state_of_scene() == before)
    yield from settle()
    yield from picture("video_views")
    timing = (scene.frame_start, scene.frame_end, scene.render.fps, scene.render.resolution_x)
    since = time.monotonic()
    yield from generate(go_on=True)
    yield from wait_for(lambda: False)
    yield 0.5
    report["runs"]["video"] = measured(since, time.monotonic())
    camera = clip_camera.camera_of(scene.objects.get(job.result))
    check("the video's mesh has its camera", camera is not None and not job.error_text)
    after = (scene.frame_start, scene.frame_end, scene.render.fps, scene.render.resolution_x)
    check("the scene keeps its timing", after == timing)
    if camera is None:
        return
    with here():
        bpy.ops.lim.result_select()
        bpy.ops.lim.clip_match()
        scene.frame_set(3)
        space = view().spaces.active
        space.region_3d.view_perspective, space.overlay.show_extras = "CAMERA", True
        bpy.ops.view3d.view_center_camera()
    yield from settle()
    yield from picture("video_result")


def drive(steps=None):
    """Take the script's next step; each yields the seconds to wait. The last writes the report and ends Blender."""
    steps = steps or script()

    def step():
        try:
            return next(steps)
        except StopIteration:
            pass
        except BaseException:
            traceback.print_exc()
            report["error"] = traceback.format_exc()
        passed = "error" not in report and all(report["checks"].values())
        report["passed"] = passed
        (OUT / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        sys.stdout.flush()
        os._exit(0 if passed else 1)

    bpy.app.timers.register(step, first_interval=1.0, persistent=True)


bpy.context.preferences.view.show_splash = False  # before the window is drawn
drive()
