# SPDX-License-Identifier: GPL-3.0-or-later
"""The add-on around the capture: registering, settings, keyframes, jobs, the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import bpy
import pytest
from lim_for_blender import register, unregister
from lim_for_blender.blender_addon import command_line, folders, ids
from lim_for_blender.blender_addon.job import asking, capturing, job_folders, jobs, worker
from lim_for_blender.blender_addon.source import import_file, keyframes
from lim_for_blender.blender_addon.ui import (
    importing_source,
    in_steps,
    installing,
    live,
    operators,
    panel_settings,
    preferences,
    properties,
    using_result,
)
from lim_for_blender.lim_core.shared import protocol
from lim_for_blender.lim_core.shared.errors import Cancelled, LimError

ROOT = Path(__file__).resolve().parents[2]
HEADLESS = ROOT / "blender_addon" / "headless.py"


pytestmark = pytest.mark.usefixtures("small")  # these tests are not about pictures


@pytest.fixture
def cube(scene) -> bpy.types.Object:
    """A cube with keys at 1, 9 and 17, selected."""
    bpy.ops.mesh.primitive_cube_add()
    cube = bpy.context.object
    cube.name = "Würfel"
    for frame, x in ((1, 0.0), (9, 1.0), (17, 0.5)):
        cube.location.x = x
        cube.keyframe_insert("location", frame=frame)
    scene.frame_end = 24
    scene.frame_set(5)
    return cube


@pytest.fixture
def settings(cube, tmp_path, fake):
    """A function that gives the settings of a job on the cube."""

    def make(mode: str = "good", **changes) -> asking.Settings:
        values = {
            "objects": ("Würfel",), "keyframes": (1.0, 9.0), "inbetweens": 3, "quality": "draft",
            "backend": fake(mode), "cache": str(tmp_path / "jöbs"),
        }  # fmt: skip
        return asking.Settings(**{**values, **changes})

    return make


def snapshot(scene) -> dict:
    """What a job must leave as it was."""
    collections = [name for name in dir(bpy.data) if isinstance(getattr(bpy.data, name), bpy.types.bpy_prop_collection)]
    layer = bpy.context.view_layer
    return {
        "data": {name: sorted(item.name for item in getattr(bpy.data, name)) for name in collections},
        "frame": (scene.frame_current, scene.frame_subframe, scene.frame_start, scene.frame_end),
        "selected": sorted(object.name for object in layer.objects if object.select_get()),
        "active": layer.objects.active and layer.objects.active.name,
        "render": (scene.render.engine, scene.render.filepath, scene.render.resolution_x, scene.camera),
        "hidden": {object.name: (object.hide_render, object.hide_viewport) for object in bpy.data.objects},
        "place": {object.name: [tuple(row) for row in object.matrix_world] for object in bpy.data.objects},
        "file": bpy.data.filepath,
    }


# ---- registering -----------------------------------------------------------------------------------------------------
def _footprint() -> dict:
    handlers = [name for name in dir(bpy.app.handlers) if isinstance(getattr(bpy.app.handlers, name), list)]
    return {
        "types": {name for name in dir(bpy.types) if "LIM_" in name},
        "operators": set(dir(bpy.ops.lim)),
        "scene": hasattr(bpy.types.Scene, "lim"),
        "manager": hasattr(bpy.types.WindowManager, "lim_job"),
        "handlers": {name: len(getattr(bpy.app.handlers, name)) for name in handlers},
    }


def test_register_and_unregister_leave_nothing():
    before = _footprint()
    for _ in range(3):
        register()
        during = _footprint()
        assert during["scene"] and during["manager"] and len(during["operators"]) == len(ids.OPERATORS)
        unregister()
        assert _footprint() == before


def test_every_operator_of_the_list_exists_and_has_a_sentence(addon):
    made = [*operators.CLASSES, importing_source.LIM_OT_import_source]
    assert {cls.bl_idname for cls in made} == set(ids.OPERATORS)
    for cls in made:
        known = getattr(bpy.ops.lim, cls.bl_idname.partition(".")[2]).get_rna_type()
        words = known.description
        assert len(words) > 20 and not words.endswith("."), cls
        for setting in known.properties:
            if setting.identifier not in ("rna_type", "check_existing"):
                assert setting.description, (cls, setting.identifier)
    for group in (properties.LIM_PG_settings, preferences.LIM_AP_preferences):
        for setting in group.bl_rna.properties:
            if setting.identifier not in ("rna_type", "name", "bl_idname", "poses"):
                assert len(setting.description) > 10, setting.identifier


def test_every_poll_runs_without_a_window(addon, scene):
    for name in ids.OPERATORS:
        assert getattr(bpy.ops.lim, name.partition(".")[2]).poll() in (True, False)
    for cls in (bpy.types.LIM_PT_main, bpy.types.LIM_PT_picture, bpy.types.LIM_PT_result, bpy.types.LIM_PT_details):
        assert not hasattr(cls, "poll") or cls.poll(bpy.context) in (True, False)


def test_the_command_of_a_disabled_extension_is_gone(capfd):
    def is_taken() -> bool:
        handle = bpy.utils.register_cli_command(ids.COMMAND, print)
        bpy.utils.unregister_cli_command(handle)
        return "duplicate" in "".join(capfd.readouterr())

    register()
    assert is_taken()
    unregister()
    assert not is_taken()


# ---- operators ---------------------------------------------------------------------------------------------------------
def _report_of(operator, **options) -> str:
    with pytest.raises(RuntimeError) as raised:
        operator(**options)
    assert "Traceback" not in str(raised.value), raised.value
    return str(raised.value)


@pytest.mark.parametrize(
    ("prepare", "code", "words"),
    [
        (lambda s: bpy.context.object.select_set(False), "nothing_selected", "Nothing is selected"),
        (lambda s: setattr(s.lim, "source", "COLLECTION"), "nothing_selected", "No collection"),
        (lambda s: setattr(s.lim, "source", "POSES"), "nothing_selected", "poses"),
        (lambda s: setattr(s, "frame_start", 20), "one_keyframe", "no keys"),
        (lambda s: (setattr(s.lim, "keyframe_mode", "MARKERS")), "one_keyframe", "no keyframes"),
        (lambda s: (setattr(s.lim, "keyframe_mode", "TYPED"), setattr(s.lim, "keyframe_text", "9, 1")), "keyframe_order", "comes after"),
        (lambda s: (setattr(s.lim, "keyframe_mode", "TYPED"), setattr(s.lim, "keyframe_text", "1, 1")), "keyframe_order", "twice"),
        (lambda s: (setattr(s.lim, "keyframe_mode", "TYPED"), setattr(s.lim, "keyframe_text", "1, 99")), "keyframe_range", "99"),
        (lambda s: (setattr(s.lim, "keyframe_mode", "TYPED"), setattr(s.lim, "keyframe_text", "one")), "bad_request", "one"),
        (lambda s: setattr(s.lim, "template", "mesh"), "bad_template", "No template"),
        (lambda s: None, "backend_missing", "not installed"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_a_report_and_stays_in_the_panel(
    addon, cube, scene, prepare, code, words, monkeypatch, tmp_path
):
    monkeypatch.setenv("LIM_HOME", str(tmp_path / "nowhere"))
    prepare(scene)
    before = snapshot(scene)
    assert words in _report_of(bpy.ops.lim.generate)
    job = bpy.context.window_manager.lim_job
    assert job.error_code == code and words in job.error_text.replace("\n", " ")
    assert job.error_fix == protocol.ERROR_CODES[code][1] and not job.running
    assert snapshot(scene) == before
    assert bpy.ops.lim.dismiss() == {"FINISHED"} and not job.error_text


def test_generate_and_what_can_be_done_with_its_result(addon, cube, scene, fake, monkeypatch, tmp_path):
    monkeypatch.setenv("LIM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(folders, "backend_python", lambda: fake("good"))
    scene.lim.quality, scene.lim.inbetweens, scene.lim.name = "draft", 3, "Ergebnis"
    assert bpy.ops.lim.generate() == {"FINISHED"}
    job = bpy.context.window_manager.lim_job
    assert job.result == "Ergebnis" and not job.error_text and "The object is small" in job.warning_text
    result = scene.objects["Ergebnis"]
    assert result.users_collection[0].name == ids.COLLECTION
    assert len(result.data.shape_keys.key_blocks) >= 9, "two intervals of four frames"
    assert bpy.ops.lim.result_select() == {"FINISHED"} and bpy.context.active_object == result
    assert bpy.ops.lim.result_keep() == {"FINISHED"}
    kept = scene.objects["Ergebnis kept"]
    assert kept.data != result.data and kept.users_collection[0] == scene.collection
    assert kept.data.shape_keys.animation_data.action != result.data.shape_keys.animation_data.action
    assert len(keyframes.of_actions([kept])) >= 2, "its copy of the action plays"
    path = tmp_path / "füße" / "result.obj"
    path.parent.mkdir()
    assert bpy.ops.lim.export(filepath=str(path), format=".obj") == {"FINISHED"}
    assert list(path.parent.iterdir())
    for name, written in (("hero.v2", "hero.v2.glb"), ("hero.GLB", "hero.GLB"), ("hero", "hero.glb")):
        assert bpy.ops.lim.export(filepath=str(path.parent / name), format=".glb") == {"FINISHED"}
        assert (path.parent / written).is_file()
    for nameless in ("", str(path.parent) + os.sep):
        assert "no name" in _report_of(bpy.ops.lim.export, filepath=nameless)
    assert bpy.ops.lim.open_log() == {"FINISHED"}
    assert bpy.ops.lim.cache_measure() == {"FINISHED"} and "1 job," in job.cache_text
    foreign = tmp_path / "home" / "jobs" / "my pictures"
    foreign.mkdir()
    assert bpy.ops.lim.cache_clear() == {"FINISHED"} and job.cache_text == "The cache is empty."
    assert foreign.is_dir(), "only what is ours is removed"


def test_only_a_result_is_the_result(addon, cube, scene):
    state = bpy.context.window_manager.lim_job
    state.result = cube.name
    assert live.result_object(bpy.context) is None and not bpy.ops.lim.export.poll()
    cube["lim_frames"] = [1.0, 2.0]
    assert live.result_object(bpy.context) == cube


def test_another_file_does_not_bring_its_messages_along(addon, cube, scene, tmp_path):
    state = bpy.context.window_manager.lim_job
    state.running = state.cancelling = True
    state.error_text, state.warning_text, state.result, state.job_folder = "an error", "a warning", "Würfel", "/gone"
    state.backend_state, state.install_text = "ready", "The backend is ready."
    path = str(tmp_path / "with messages.blend")
    bpy.ops.wm.save_as_mainfile(filepath=path)
    bpy.ops.wm.open_mainfile(filepath=path, load_ui=False)
    state = bpy.context.window_manager.lim_job
    assert not (state.running or state.cancelling or state.error_text or state.warning_text or state.result)
    assert not state.job_folder and (state.backend_state, state.install_text) == ("ready", "The backend is ready.")


@pytest.mark.parametrize(
    ("typed", "suffix", "wanted"),
    [
        ("hero.v2", ".glb", "hero.v2.glb"),
        ("hero.obj", ".glb", "hero.glb"),
        ("hero", ".pc2", "hero.pc2"),
        ("", ".abc", ""),
    ],
)
def test_the_name_of_an_export_follows_its_format(typed, suffix, wanted):
    asked = type("Export", (), {"filepath": typed, "format": suffix})()
    assert using_result.LIM_OT_export.check(asked, None) == (typed != wanted) and asked.filepath == wanted


def test_the_list_of_poses(addon, scene):
    for name in ("b", "a", "c"):
        bpy.ops.mesh.primitive_cube_add()
        bpy.context.object.name = name
    bpy.ops.object.select_all(action="SELECT")
    assert bpy.ops.lim.pose_add() == {"FINISHED"}
    names = lambda: [pose.object.name for pose in scene.lim.poses]  # noqa: E731
    assert names() == ["a", "b", "c"]
    assert bpy.ops.lim.pose_add() == {"CANCELLED"}, "each object once"
    assert bpy.ops.lim.pose_move(direction="UP") == {"FINISHED"} and names() == ["a", "c", "b"]
    assert bpy.ops.lim.pose_move(direction="UP") == {"FINISHED"} and names() == ["c", "a", "b"]
    assert bpy.ops.lim.pose_move(direction="UP") == {"CANCELLED"}
    assert bpy.ops.lim.pose_remove() == {"FINISHED"} and names() == ["a", "b"]
    scene.lim.source, scene.lim.pose_spacing = "POSES", 6
    found = panel_settings.settings_from(bpy.context)
    assert found.source == "poses" and found.objects == ("a", "b") and found.keyframes == (1.0, 7.0)
    bpy.data.objects.remove(bpy.data.objects["a"])
    with pytest.raises(LimError) as raised:
        panel_settings.settings_from(bpy.context)
    assert raised.value.code == "one_keyframe"


def test_the_installer_is_not_started_against_the_users_will(addon, scene, monkeypatch):
    monkeypatch.setattr(installing, "may_download", lambda: False)
    assert "not allowed to use the network" in _report_of(bpy.ops.lim.backend_install)


def test_a_failing_installer_is_reported(addon, scene, monkeypatch, tmp_path):
    script = tmp_path / "installer.py"
    script.write_text(
        "print('Getting 1 GB'); print(); print('The disk is full.'); print('Free some.'); raise SystemExit(5)"
    )
    monkeypatch.setattr(installing, "may_download", lambda: True)
    monkeypatch.setattr(installing.backend, "install_command", lambda **options: [sys.executable, str(script)])
    report = _report_of(bpy.ops.lim.backend_install)
    assert "The disk is full. Free some." in report and "Getting" not in report
    assert not bpy.context.window_manager.lim_job.installing
    script.write_text("print('The backend is ready.')")
    assert bpy.ops.lim.backend_install() == {"FINISHED"}


def test_a_timer_takes_steps_until_there_is_an_answer(addon, scene):
    class Steps(in_steps.InSteps):
        answers = iter((None, None, {"FINISHED"}))

        def _step(self, context):
            return next(self.answers)

    removed = []
    context = SimpleNamespace(window_manager=SimpleNamespace(event_timer_remove=removed.append))
    tick, click = SimpleNamespace(type="TIMER"), SimpleNamespace(type="LEFTMOUSE")
    steps = Steps()
    steps._timer = "timer"
    said = [steps.modal(context, event) for event in (click, tick, tick, click)]
    assert said == [{"PASS_THROUGH"}] * 4 and not removed
    assert steps.modal(context, tick) == {"FINISHED"} and removed == ["timer"]
    steps.cancel(context)
    assert removed == ["timer"], "once"


# ---- keyframes ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "frames"),
    [
        ("1, 9, 17", (1, 9, 17)),
        ("1 9;17", (1, 9, 17)),
        ("1-17/4", (1, 5, 9, 13, 17)),
        ("1 - 18 / 4", (1, 5, 9, 13, 17)),
        ("-5, 2.5", (-5, 2.5)),
        ("-8--4/2, 0", (-8, -6, -4, 0)),
        ("1..3 10:12", (1, 2, 3, 10, 11, 12)),
        ("9, 1, 1", (9, 1, 1)),
        ("", ()),
        (" ,, ", ()),
        ("0.5-1.5/.5", (0.5, 1, 1.5)),
    ],
)
def test_typed_keyframes(text, frames):
    assert keyframes.parse(text) == tuple(map(float, frames))


@pytest.mark.parametrize("text", ["one", "1,x", "5-1", "1-9/0", "1-9/-2", "1e9-", "1--", "1-999999999", "1/2", "nan"])
def test_what_is_no_frame_is_named(text):
    with pytest.raises(LimError) as raised:
        keyframes.parse(text)
    assert raised.value.code in ("bad_request", "keyframe_order") and raised.value.hint


def test_thinning_keeps_the_ends_and_spreads():
    assert keyframes.thin(range(1, 62), 5) == (1, 16, 31, 46, 61)
    assert keyframes.thin([3, 1], 5) == (1, 3)
    assert keyframes.thin([1, 2, 3, 100], 3) in ((1, 3, 100), (1, 100))
    assert keyframes.every(1, 24, 8) == (1, 9, 17)


def test_keys_are_found_wherever_they_move_the_source(scene):
    def keyed(owner, path, *frames):
        for frame in frames:
            owner.keyframe_insert(path, frame=frame)

    bpy.ops.object.armature_add()
    rig = bpy.context.object
    keyed(rig.pose.bones[0], "location", 3, 7)
    bpy.ops.object.empty_add()
    parent = bpy.context.object
    keyed(parent, "location", 11)
    bpy.ops.object.empty_add()
    target = bpy.context.object
    keyed(target, "location", 13)
    bpy.ops.object.empty_add()
    stranger = bpy.context.object
    keyed(stranger, "location", 99)
    bpy.ops.mesh.primitive_cube_add()
    cube = bpy.context.object
    cube.modifiers.new("Armature", "ARMATURE").object = rig
    cube.constraints.new("COPY_LOCATION").target = target
    cube.parent = parent
    cube.shape_key_add(name="Basis")
    keyed(cube.shape_key_add(name="Key"), "value", 17)
    keyed(cube, "location", 1, 23)
    assert keyframes.of_actions([cube]) == (1, 3, 7, 11, 13, 17, 23)
    assert keyframes.of_actions([rig]) == (3, 7)
    assert keyframes.default([cube], 1, 250) == (1, 7, 11, 17, 23)
    assert keyframes.default([cube], 30, 60) == (30, 45, 60)


def test_strips_are_mapped_to_the_scenes_time(cube):
    action = cube.animation_data.action
    strip = cube.animation_data.nla_tracks.new().strips.new("strip", 101, action)
    strip.scale = 2.0
    cube.animation_data.action = None
    assert keyframes.of_actions([cube]) == (101, 117, 133)
    cube.animation_data.nla_tracks[0].mute = True
    assert keyframes.of_actions([cube]) == ()


def test_markers_are_keyframes(scene):
    for frame in (12, 4, 12):
        scene.timeline_markers.new("m", frame=frame)
    assert keyframes.of_markers(scene) == (4, 12)


# ---- jobs ----------------------------------------------------------------------------------------------------------------
def test_a_job_from_the_scene_to_the_result(scene, settings):
    events = []
    before = snapshot(scene)
    outcome = jobs.run_job(scene, settings(), events.append)
    after = snapshot(scene)
    assert {key: after[key] for key in ("frame", "selected", "active", "render", "file")} == {
        key: before[key] for key in ("frame", "selected", "active", "render", "file")
    }
    assert set(after["data"]["objects"]) - set(before["data"]["objects"]) == {outcome.object_name}
    assert scene.objects[outcome.object_name].users_collection[0].name == ids.COLLECTION
    fractions = [event["fraction"] for event in events if event["event"] == "progress"]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1
    stages = [event["stage"] for event in events if event["event"] == "stage"]
    order = list(jobs.STAGES)
    assert stages == sorted(stages, key=order.index) and {"capture", "backend", "trace", "write"} <= set(stages)
    assert outcome.warnings == [
        {"code": "small_in_view", "message": "The object is small in the pictures.", "hint": "Capture it by itself."}
    ]
    assert outcome.seconds["capture"] > 0 and outcome.result["vertices"] == 144
    assert jobs.active is None


def test_my_own_mesh_is_carried(scene, settings):
    outcome = jobs.run_job(scene, settings(template="mesh", template_object="Würfel"))
    assert len(scene.objects[outcome.object_name].data.vertices) == 8


@pytest.mark.parametrize(
    ("mode", "code"),
    [
        ("crash_midway", "backend_crashed"),
        ("killed", "out_of_memory"),
        ("missing_package", "backend_broken"),
        ("wrong_protocol", "backend_outdated"),
        ("error_event", "empty_surface"),
        ("result_that_is_not_there", "backend_crashed"),
        ("truncated_result", "backend_crashed"),
    ],
)
def test_a_bad_backend_leaves_the_scene_untouched_and_the_job_resumable(scene, settings, mode, code):
    before = snapshot(scene)
    job = jobs.Job(scene, settings(mode))
    with pytest.raises(LimError) as raised:
        job.run()
    assert raised.value.code == code and snapshot(scene) == before and jobs.active is None
    assert (job.folder / protocol.CAMERAS_FILE).is_file() and (job.folder / protocol.REQUEST_FILE).is_file()
    again = jobs.run_job(scene, settings())
    assert again.job_folder == job.folder, "the same settings use the same folder"


def _cancel_at(scene, asked, stage: str) -> jobs.Job:
    job = jobs.Job(scene, asked, lambda event: job.cancel() if event.get("stage") == stage else None)
    with pytest.raises(Cancelled):
        job.run()
    return job


@pytest.mark.parametrize("stage", ["capture", "backend", "trace"])
def test_a_cancelled_job_leaves_the_scene_untouched(scene, settings, stage):
    before = snapshot(scene)
    began = time.monotonic()
    job = _cancel_at(scene, settings("good:20"), stage)
    assert time.monotonic() - began < 15 and snapshot(scene) == before and jobs.active is None
    job_folders.lock(job.folder).release()


def test_a_cancel_at_the_last_moment_writes_nothing(scene, settings):
    before = snapshot(scene)
    _cancel_at(scene, settings(), "write")
    assert snapshot(scene) == before


def test_an_abandoned_job_ends_its_backend(scene, settings):
    job = jobs.Job(scene, settings("good:60"))
    steps = job.steps()
    while job._child is None:
        next(steps)
    process = job._child.process
    steps.close()
    assert process.poll() is not None and jobs.active is None


def test_a_capture_is_used_again_only_while_its_file_is_the_same(scene, settings, tmp_path):
    path = tmp_path / "sze ne.blend"
    bpy.ops.wm.save_as_mainfile(filepath=str(path))
    asked = settings(unchanged_file=str(path))

    def stages(wanted) -> list[str]:
        seen = []
        jobs.run_job(bpy.context.scene, wanted, lambda event: seen.append(event.get("stage")))
        return seen

    assert "capture" in stages(asked)
    assert "capture" not in stages(asked)
    assert "capture" not in stages(settings(unchanged_file=str(path), smoothness=0.9)), "only what depends on it"
    assert "capture" in stages(settings(unchanged_file=str(path), keyframes=(1.0, 17.0)))
    assert "capture" in stages(asked)
    os.utime(path, ns=(1, 1))
    assert "capture" in stages(asked)
    assert "capture" not in stages(asked)
    folder = next((tmp_path / "jöbs").iterdir())
    for name in (protocol.image_file(1, 2), protocol.depth_file(0), protocol.CAMERAS_FILE):
        (folder / name).unlink()
        assert "capture" in stages(asked), f"{name} is missing"
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
        assert "capture" in stages(asked), f"{name} is cut off"
        assert "capture" not in stages(asked)
    own = settings(unchanged_file=str(path), template="mesh", template_object="Würfel")
    assert "capture" in stages(own) and "capture" not in stages(own)
    (folder / protocol.TEMPLATE_FILE).write_bytes(b"")
    assert "capture" in stages(own), "the template is empty"
    assert "capture" in stages(settings()), "nobody vouches for the scene"


def test_the_panel_captures_an_unchanged_file_once(addon, cube, scene, fake, monkeypatch, tmp_path):
    """What a window does with a saved file; here, where there is none, every file counts as changed."""
    monkeypatch.setenv("LIM_HOME", str(tmp_path / "home"))
    path = str(tmp_path / "scene.blend")
    bpy.ops.wm.save_as_mainfile(filepath=path)
    scene = bpy.context.scene
    assert panel_settings._saved_file() == "" and panel_settings.settings_from(bpy.context).unchanged_file == ""
    scene.lim.quality, captures = "draft", []
    inner = capturing.capture_into
    monkeypatch.setattr(capturing, "capture_into", lambda *given, **named: captures.append(1) or inner(*given, **named))

    def generate(mode: str, file: str) -> int:
        monkeypatch.setattr(panel_settings, "_saved_file", lambda: file)
        monkeypatch.setattr(folders, "backend_python", lambda: fake(mode))
        try:
            bpy.ops.lim.generate()
        except RuntimeError:
            assert mode != "good"
        return len(captures)

    assert generate("crash_midway", path) == 1 and generate("good", path) == 1, "it goes on after the capture"
    assert generate("good", "") == 2, "now it has changed"


def test_poses_are_captured_at_the_frame_that_is_shown(scene, settings, tmp_path):
    asked = settings(unchanged_file=str(tmp_path / "x.blend"), source="poses")
    first = capturing.fingerprint_of(scene, asked)
    scene.frame_set(9)
    assert capturing.fingerprint_of(scene, asked) != first


@pytest.mark.parametrize("mode", ["bad_capture", "missing_file", "bad_template"])
def test_a_capture_that_the_backend_refuses_is_not_used_again(scene, settings, tmp_path, mode):
    path = tmp_path / "scene.blend"
    bpy.ops.wm.save_as_mainfile(filepath=str(path))
    job = jobs.Job(scene, settings(mode, unchanged_file=str(path)))
    with pytest.raises(LimError) as raised:
        job.run()
    assert raised.value.code == mode
    seen = []
    jobs.run_job(scene, settings(unchanged_file=str(path)), lambda event: seen.append(event.get("stage")))
    assert "capture" in seen


def _simulated_rig(scene, cube):
    bpy.ops.object.armature_add()
    cube.modifiers.new("Armature", "ARMATURE").object = bpy.context.object
    cube.modifiers.new("Cloth", "CLOTH")
    return bpy.context.object


def _mesh_cache(scene, cube):
    cube.modifiers.new("Cache", "MESH_CACHE").filepath = "/somewhere/cache.pc2"
    return cube


def _rigid_body(scene, cube):
    bpy.ops.rigidbody.world_add()
    bpy.ops.rigidbody.object_add()
    return cube


@pytest.mark.parametrize("make", [_simulated_rig, _mesh_cache, _rigid_body], ids=lambda make: make.__name__)
def test_nobody_vouches_for_what_is_simulated(scene, settings, cube, tmp_path, make):
    bpy.context.view_layer.objects.active = cube
    asked = settings(unchanged_file=str(tmp_path / "x.blend"))
    assert capturing.fingerprint_of(scene, asked) is not None
    asked = settings(unchanged_file=str(tmp_path / "x.blend"), objects=(make(scene, cube).name,))
    assert capturing.fingerprint_of(scene, asked) is None


def test_the_files_of_the_scene_and_the_clip_decide_the_capture(scene, settings, tmp_path):
    asked = settings(unchanged_file=str(tmp_path / "x.blend"), clip="hop")
    frames = [tmp_path / f"sea.{number:04d}.png" for number in (1, 2)]
    for frame in frames:
        image = bpy.data.images.new(frame.name, 4, 4)
        image.filepath_raw, image.file_format = str(frame), "PNG"
        image.save()
        bpy.data.images.remove(image)
    image = bpy.data.images.load(str(frames[0]))
    image.source, image.use_fake_user = "SEQUENCE", True
    bpy.data.volumes.new("smoke").filepath = str(tmp_path / "smoke.vdb")
    seen = [capturing.fingerprint_of(scene, asked)]
    for changed in (frames[1], tmp_path / "smoke.vdb"):
        changed.write_bytes(b"other")
        seen.append(capturing.fingerprint_of(scene, asked))
    seen.append(capturing.fingerprint_of(scene, settings(unchanged_file=str(tmp_path / "x.blend"), clip="jump")))
    keys = {job_folders.capture_key({}, fingerprint) for fingerprint in seen}
    assert len(keys) == len(seen)


def test_two_jobs_never_share_a_folder(scene, settings, tmp_path):
    first, lock = job_folders.open_folder(tmp_path / "jöbs", "x")
    second, other = job_folders.open_folder(tmp_path / "jöbs", "x")
    assert first != second
    assert job_folders.clear(tmp_path / "jöbs") == (0, 2), "a running job is not cleared away"
    with pytest.raises(LimError) as raised:
        jobs.run_job(scene, settings(job=str(first)))
    assert "Another job" in raised.value.message
    lock.release()
    other.release()
    assert job_folders.open_folder(tmp_path / "jöbs", "x")[0] == first


def test_a_full_disk_is_said_before_the_work(scene, settings, monkeypatch):
    monkeypatch.setattr(job_folders.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(LimError) as raised:
        jobs.run_job(scene, settings())
    assert raised.value.code == "disk_full" and "1000 bytes" in raised.value.message


@pytest.mark.parametrize(("number", "code"), [(28, "disk_full"), (30, "read_only")])
def test_a_disk_that_fills_up_midway_is_said(scene, settings, monkeypatch, number, code):
    def refuse(path, data):
        raise OSError(number, "no", str(path))

    monkeypatch.setattr(job_folders, "write_json", refuse)
    before = snapshot(scene)
    with pytest.raises(LimError) as raised:
        jobs.run_job(scene, settings())
    assert raised.value.code == code and snapshot(scene) == before


def test_an_inner_error_is_a_sentence_and_its_traceback_is_in_the_log(scene, settings, monkeypatch):
    monkeypatch.setattr(capturing, "fingerprint_of", lambda *_: 1 / 0)
    job = jobs.Job(scene, settings())
    with pytest.raises(LimError) as raised:
        job.run()
    assert raised.value.code == "internal" and "division by zero" in raised.value.message
    assert "Traceback" in (job.folder / protocol.LOG_FILE).read_text(encoding="utf-8")


def test_an_object_without_a_surface_cannot_be_captured(scene, settings):
    bpy.ops.object.light_add()
    with pytest.raises(LimError) as raised:
        jobs.run_job(scene, settings(objects=(bpy.context.object.name,)))
    assert raised.value.code == "nothing_selected" and "light" in raised.value.message


# ---- a window's way: another Blender captures ----------------------------------------------------------------------------
@pytest.fixture
def other_blender(monkeypatch):
    """The bpy module in a process of its own stands for the background Blender."""
    monkeypatch.setattr(
        capturing, "background_command",
        lambda copy, spec: [sys.executable, str(HEADLESS), str(copy), "--", "--capture-only", str(spec)],
    )  # fmt: skip


def test_the_capture_of_another_blender_is_the_same(scene, settings, other_blender, tmp_path):
    jobs.run_job(scene, settings(job=str(tmp_path / "here")))
    before = snapshot(scene)
    job = jobs.Job(scene, settings(job=str(tmp_path / "there")), background=True)
    slowest = 0.0
    steps = job.steps()
    while True:
        began = time.monotonic()
        if next(steps, steps) is steps:
            break
        if job._stage and job._stage[0] in ("capture", "trace"):
            slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.02)
    assert slowest < 0.5, "a step must not block the window"
    assert snapshot(scene)["file"] == before["file"], "saving the copy does not become the file"
    here, there = (tmp_path / name / protocol.image_file(1, 2) for name in ("here", "there"))
    assert here.read_bytes() == there.read_bytes()
    left = {path.name for path in (tmp_path / "there").iterdir()}
    assert job_folders.SCENE_COPY not in left and job_folders.SPEC_FILE not in left


def test_the_other_blender_hears_a_cancel(scene, settings, other_blender):
    before = snapshot(scene)
    job = jobs.Job(scene, settings(), background=True)
    steps = job.steps()
    with pytest.raises(Cancelled):
        for _ in steps:
            if job._child and job._child._saw_hello:
                job.cancel()
            time.sleep(0.02)
    assert snapshot(scene) == before and not (job.folder / job_folders.CAPTURE_RECORD).exists()


def test_what_the_other_blender_cannot_capture_has_its_own_sentence(scene, settings, other_blender, cube):
    cube.data.clear_geometry()
    with pytest.raises(LimError) as raised:
        jobs.Job(scene, settings(), background=True).run()
    assert raised.value.code == "empty_mesh" and "Würfel" in raised.value.message


def test_a_window_waits_for_object_mode_before_it_writes(scene, settings, other_blender, cube):
    labels = []
    job = jobs.Job(scene, settings(), lambda event: labels.append(event.get("label")), background=True)
    bpy.context.view_layer.objects.active = cube
    bpy.ops.object.mode_set(mode="EDIT")
    for _ in job.steps():
        if "Waiting for Object Mode" in labels:
            assert ids.COLLECTION not in bpy.data.collections
            bpy.ops.object.mode_set(mode="OBJECT")
        time.sleep(0.02)
    assert job.outcome and "Waiting for Object Mode" in labels


def test_the_other_blender_gets_the_addons_that_move_things(scene, monkeypatch):
    def mover(*_):
        pass

    mover.__module__ = "io_scene_gltf2.some.module"
    assert "io_scene_gltf2" not in capturing.addons_that_move_things()
    bpy.app.handlers.frame_change_post.append(mover)
    try:
        assert "io_scene_gltf2" in capturing.addons_that_move_things()
    finally:
        bpy.app.handlers.frame_change_post.remove(mover)
    monkeypatch.setitem(bpy.app.driver_namespace, "lim_test", mover)
    assert "io_scene_gltf2" in capturing.addons_that_move_things()


# ---- imports -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def clips(cube, tmp_path) -> Path:
    """A .glb with the clips “hop” (1 to 5) and “jump” (1 to 17)."""
    _add_tracks(cube, {"hop": ((1, 0.0), (5, 1.0))})
    path = tmp_path / "zwei Clips.glb"
    bpy.ops.export_scene.gltf(filepath=str(path), export_animation_mode="NLA_TRACKS")
    return path


def _add_tracks(cube, others: dict) -> None:
    """Put the cube's action into the track “jump”, and each of the others into one of its own."""
    animation = cube.animation_data
    actions = [("jump", animation.action, getattr(animation, "action_slot", None))]
    for name, keys in others.items():
        animation.action = None
        for frame, x in keys:
            cube.location = (x, 0, 0)
            cube.keyframe_insert("location", frame=frame)
        actions.append((name, animation.action, getattr(animation, "action_slot", None)))
    animation.action = None
    for name, action, slot in reversed(actions):
        track = animation.nla_tracks.new()
        track.name = name
        strip = track.strips.new(name, 1, action)
        if slot:
            strip.action_slot = slot


def test_a_clip_is_imported_by_its_name(clips):
    for name, last in (("hop", 5), ("jump", 17)):
        opened = import_file.open_or_import(str(clips), name)
        assert opened.clips == (name,)
        assert max(keyframes.of_actions(opened.objects)) == pytest.approx(last, abs=1.01)
        assert bpy.context.scene.frame_end == pytest.approx(last, abs=1.01)
    with pytest.raises(LimError) as raised:
        import_file.open_or_import(str(clips), "swim")
    assert "swim" in raised.value.message and "jump" in raised.value.hint
    opened = import_file.open_or_import(str(clips))
    assert opened.clips in (("hop",), ("jump",)) and len(keyframes.of_actions(opened.objects)) >= 2
    (code, message, _), *more = opened.notes
    assert code == "clips_left_out" and "“hop”" in message and "“jump”" in message and not more


def test_the_first_clip_that_moves_is_chosen(cube):
    _add_tracks(cube, {"still": ((1, 0.0), (99, 0.0))})
    still = cube.animation_data.nla_tracks["still"].strips[0]
    cube.animation_data.action = still.action  # as an importer leaves the file's first clip active
    assert import_file.choose_clips([cube], "", "x") == (("jump",), ("still",))
    assert keyframes.of_actions([cube]) == (1, 9, 17), "the other clips are not heard"
    assert import_file.choose_clips([cube], "still", "x")[0] == ("still",)
    assert keyframes.of_actions([cube]) == (1, 99)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for name, content in (("x.glb", b"not a glb"), ("x.blend", b"not a blend"), ("x.doc", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LimError) as raised:
            import_file.open_or_import(str(tmp_path / name))
        assert name in raised.value.message and "Traceback" not in raised.value.message
    with pytest.raises(LimError):
        import_file.open_or_import(str(tmp_path / "gone.glb"))


# ---- the command line ------------------------------------------------------------------------------------------------------
@pytest.fixture
def blend(cube, tmp_path) -> Path:
    path = tmp_path / "ein Ordner 猫" / "würfel.blend"
    path.parent.mkdir()
    bpy.ops.wm.save_as_mainfile(filepath=str(path))
    return path


def run(tmp_path, *arguments) -> tuple[int, dict]:
    """The command line in this process: exit code and report."""
    report = tmp_path / "bericht.json"
    code = command_line.main([*map(str, arguments), "--json", str(report)])
    data = json.loads(report.read_text(encoding="utf-8"))
    assert data["exit_code"] == code and data["seconds"]["total"] >= 0
    return code, data


def test_fewer_shape_keys_by_panel_and_command_line(addon, cube, scene, blend, fake, monkeypatch, tmp_path):
    monkeypatch.setenv("LIM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(folders, "backend_python", lambda: fake("good"))
    scene.lim.quality, scene.lim.inbetweens, scene.lim.max_keys = "draft", 3, 4
    assert bpy.ops.lim.generate() == {"FINISHED"}
    job = bpy.context.window_manager.lim_job
    assert len(scene.objects[job.result].data.shape_keys.key_blocks) == 1 + 4
    assert "4 shape keys: off by 0.25 %, at most 1.5 %" in job.summary
    scene.lim.max_keys = 1
    with pytest.raises(RuntimeError, match="One shape key cannot hold a motion"):
        bpy.ops.lim.generate()
    base = ["--out", tmp_path / "x.blend", "--quality", "draft", "--backend", fake("good"), "--keyframes", "1,9"]
    bpy.ops.wm.open_mainfile(filepath=str(blend))
    code, data = run(tmp_path, *base, "--inbetweens", "3", "--max-keys", "3")
    assert code == 0 and data["metrics"] == {"keys": 3, "reduced_rms": 0.25, "reduced_max": 1.5}
    assert len(bpy.data.objects[data["object"]].data.shape_keys.key_blocks) == 1 + 3
    assert run(tmp_path, *base, "--max-keys", "1")[1]["code"] == "bad_request"


@pytest.mark.parametrize(
    ("argv", "module", "ours"),
    [
        (["headless.py", "a.blend", "--", "--out", "b"], True, ["--input", "a.blend", "--out", "b"]),
        (["headless.py", "a.blend", "--out", "b"], True, ["--input", "a.blend", "--out", "b"]),
        (["headless.py", "--video", "c.mp4"], True, ["--video", "c.mp4"]),
        (["headless.py", "a.blend", "--", "--input", "c.glb"], True, ["--input", "c.glb"]),
        (["headless.py"], True, []),
        (["blender", "-b", "a.blend", "--python", "headless.py", "--", "--out", "b"], False, ["--out", "b"]),
        (["blender", "-b", "a.blend", "--python", "headless.py"], False, []),
    ],
)
def test_what_of_a_command_line_is_ours(argv, module, ours):
    from lim_for_blender.blender_addon import headless

    assert headless.arguments(argv, module=module) == ours


def test_headless_in_a_process_of_its_own(blend, fake, tmp_path):
    out, report = tmp_path / "öut" / "result.blend", tmp_path / "report.json"
    command = [sys.executable, str(HEADLESS), str(blend), "--keyframes", "1,9", "--inbetweens", "1", "--out", str(out),
               "--glb", str(out.with_suffix(".glb")), "--json", str(report), "--quality", "draft", "--backend", fake("good"),
               "--job", str(tmp_path / "job")]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    data = json.loads(report.read_text(encoding="utf-8"))
    assert data["status"] == "done" and data["keyframes"] == [1, 9] and data["frames"] == [1, 5, 9]
    assert Path(data["blend"]).is_file() and Path(data["glb"]).is_file() and data["exports"] == [data["glb"]]
    assert {"capture", "trace", "write", "export", "total"} <= set(data["seconds"])
    assert data["warnings"][0]["code"] == "small_in_view"
    bpy.ops.wm.open_mainfile(filepath=str(out))
    assert data["object"] in bpy.context.scene.objects


def test_a_signal_cancels_the_headless_job(blend, fake, tmp_path):
    if os.name == "nt":
        pytest.skip("POSIX signals")
    report = tmp_path / "report.json"
    command = [sys.executable, str(HEADLESS), str(blend), "--", "--out", str(tmp_path / "x.blend"), "--json", str(report),
               "--quality", "draft", "--backend", fake("good:60"), "--job", str(tmp_path / "job")]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    for line in process.stdout:
        if "Starting the backend" in line:
            process.terminate()
            break
    process.stdout.read()
    assert process.wait(30) == protocol.EXIT_CANCELLED
    assert json.loads(report.read_text(encoding="utf-8"))["status"] == "cancelled"
    assert not (tmp_path / "x.blend").exists() and (tmp_path / "job" / protocol.CAMERAS_FILE).is_file()


def test_another_clip_is_another_capture(cube, fake, tmp_path):
    _add_tracks(cube, {"hop": ((1, 0.0), (5, 3.0))})
    path = tmp_path / "clips.blend"
    bpy.ops.wm.save_as_mainfile(filepath=str(path))
    base = ["--input", path, "--keyframes", "1,5", "--quality", "draft", "--backend", fake("good"),
            "--out", tmp_path / "x.blend"]  # fmt: skip
    records = []
    for clip in ("hop", "jump", "hop"):
        code, data = run(tmp_path, *base, "--clip", clip, "--job", tmp_path / "job")
        assert code == 0, data
        records.append(json.loads((tmp_path / "job" / job_folders.CAPTURE_RECORD).read_text(encoding="utf-8")))
    assert records[0]["world_to_model"] == records[2]["world_to_model"] != records[1]["world_to_model"]
    code, data = run(tmp_path, *base, "--clip", "swim")
    assert code == 3 and "swim" in data["message"]
    bpy.ops.wm.open_mainfile(filepath=str(path))
    found, _ = command_line.settings_for(command_line.parser().parse_args(["--clip", "hop", "--out", "x.blend"]))
    assert found.clip == "hop" and found.keyframes == (1, 5), "also in the file that is open"


def test_the_report_of_a_cancelled_job_has_what_is_known(blend, fake, tmp_path, monkeypatch):
    bpy.ops.wm.open_mainfile(filepath=str(blend))
    monkeypatch.setattr(command_line._Printer, "__call__", lambda _, event: event.get("stage") == "backend" and (
        jobs.active.cancel()))  # fmt: skip
    base = [
        "--out",
        tmp_path / "x.blend",
        "--quality",
        "draft",
        "--backend",
        fake("good:20"),
        "--job",
        tmp_path / "job",
    ]
    code, data = run(tmp_path, *base)
    assert code == 6 and data["status"] == "cancelled" and data["job"] == str(tmp_path / "job")
    assert data["seconds"]["capture"] > 0 and data["warnings"] == [] and data["keyframes"] == [1, 9, 17]


def test_frames_before_zero_are_no_options(blend, fake, tmp_path):
    bpy.ops.wm.open_mainfile(filepath=str(blend))
    base = ["--out", tmp_path / "x.blend", "--quality", "draft", "--backend", fake("good"), "--job", tmp_path / "job"]
    code, data = run(tmp_path, *base, "--keyframes", "-5,1", "--frame-range", "-9:20")
    assert code == 0 and data["keyframes"] == [-5, 1], data


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (["--keyframes", "9,1"], 3, "keyframe_order"),
        (["--keyframes", "1"], 3, "one_keyframe"),
        (["--keyframes", "1,900"], 3, "keyframe_range"),
        (["--keyframes", "1,x"], 3, "bad_request"),
        (["--objects", "Kugel"], 3, "nothing_selected"),
        (["--collection", "Keine"], 3, "nothing_selected"),
        (["--poses", "Würfel"], 3, "one_keyframe"),
        (["--template", "Kugel"], 3, "bad_template"),
        (["--scene", "Zwei"], 3, "missing_file"),
        (["--input", "gone.glb"], 3, "missing_file"),
        (["--backend", "/gone/python"], 4, "backend_missing"),
        (["--weights", "/gone"], 4, "weights_missing"),
        (["--quality", "superb"], 2, "usage"),
        (["--bogus"], 2, "usage"),
        (["--inbetweens", "many"], 2, "usage"),
        (["--glb", "x.blend"], 2, "usage"),
        (["--export", "x.doc"], 2, "usage"),
    ],
)
def test_exit_codes_and_the_report_say_what_was_wrong(blend, fake, tmp_path, arguments, exit_code, code):
    bpy.ops.wm.open_mainfile(filepath=str(blend))
    base = ["--out", tmp_path / "x.blend", "--quality", "draft", "--backend", fake("good")]
    assert run(tmp_path, *base, *arguments)[0] == exit_code
    data = run(tmp_path, *base, *arguments)[1]
    assert data["status"] == "error" and data["code"] == code and data["message"].endswith(".")
    assert not (tmp_path / "x.blend").exists()


def test_nothing_to_read_or_to_write_is_a_wrong_command_line(blend, tmp_path):
    assert run(tmp_path)[0] == protocol.EXIT_USAGE
    out = ["--out", str(tmp_path / "x.blend")]
    assert command_line.main(out, program="blender --command lim") == protocol.EXIT_USAGE


@pytest.mark.parametrize(
    ("mode", "exit_code"), [("crash_midway", 4), ("memory_error", 5), ("error_event", 3), ("unknown_code", 1)]
)
def test_a_failed_job_has_its_exit_code_and_names_its_folder(blend, fake, tmp_path, mode, exit_code):
    bpy.ops.wm.open_mainfile(filepath=str(blend))
    job = tmp_path / "job"
    code, data = run(
        tmp_path, "--out", tmp_path / "x.blend", "--quality", "draft", "--backend", fake(mode), "--job", job
    )
    assert code == exit_code and data["job"] == str(job) and data["keyframes"] == [1, 9, 17]


def test_what_is_taken_if_nobody_says(blend, fake, tmp_path):
    bpy.ops.wm.open_mainfile(filepath=str(blend))
    bpy.ops.object.select_all(action="DESELECT")
    bpy.ops.object.camera_add()
    bpy.ops.mesh.primitive_uv_sphere_add()
    bpy.context.object.hide_render = True
    bpy.ops.object.text_add()
    bpy.context.object.name = "Schrift"
    options = command_line.parser().parse_args(["--out", "x.blend"])
    found, _ = command_line.settings_for(options)
    assert found.objects == ("Schrift", "Würfel") and found.keyframes == (1, 9, 17)
    options = command_line.parser().parse_args(["--out", "x.blend", "--poses", "Schrift,Würfel"])
    found, _ = command_line.settings_for(options)
    assert found.source == "poses" and found.keyframes == (1, 9)


def test_a_place_that_cannot_be_written_is_said_before_the_work(blend, fake, tmp_path):
    bpy.ops.wm.open_mainfile(filepath=str(blend))
    (tmp_path / "file").write_text("")
    began = time.monotonic()
    code, data = run(tmp_path, "--out", tmp_path / "file" / "x.blend", "--backend", fake("good"))
    assert code == 5 and data["code"] == "read_only" and time.monotonic() - began < 2


def test_importing_a_file_and_running_it(clips, fake, tmp_path):
    code, data = run(
        tmp_path, "--input", clips, "--clip", "jump", "--keyframes", "keys", "--glb", tmp_path / "out.glb",
        "--quality", "draft", "--backend", fake("good"), "--job", tmp_path / "job", "--inbetweens", "0",
    )  # fmt: skip
    assert code == 0, data
    assert len(data["keyframes"]) >= 3 and Path(data["glb"]).is_file()


def test_the_environments_python_gets_what_the_real_backend_reads(tmp_path):
    command = worker.backend_command("python", ids.ROOT, "run", "job", "--follow-stdin")
    assert "-I" in command and str(ids.ROOT) in command and (ids.ROOT / "lim_core" / "shared" / "protocol.py").is_file()
