# SPDX-License-Identifier: GPL-3.0-or-later
"""A video as the source: what the panel and the command line ask for, and the mesh that covers the clip in its camera."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import bpy
import numpy as np
import pytest
from bpy_extras.object_utils import world_to_camera_view
from lim_for_blender.blender_addon import command_line, folders, ids
from lim_for_blender.blender_addon.job import asking, job_folders, jobs
from lim_for_blender.blender_addon.result import export, shape_keys
from lim_for_blender.blender_addon.source import clip_camera, compat, import_video, png
from lim_for_blender.blender_addon.ui import panel_settings, preview_picture
from lim_for_blender.lim_core.shared import cameras, protocol, request
from lim_for_blender.lim_core.shared.errors import Cancelled, LimError
from mathutils import Vector

from test_addon import run, snapshot

pytestmark = pytest.mark.usefixtures("small")

SIZE, CROP = (64, 48), (20, -2, 44)
"""Of the clip that the fake backend reads: its resolution, and x, y and side of the square with the object."""
COLOURS = np.linspace(30, 220, 9).round().astype(np.uint8)
"""The grey of each picture."""
RATE = 30000 / 1001


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder of nine pictures, numbered from 5, each grey of its own."""
    folder = tmp_path / "ein Clip é"
    folder.mkdir()
    for number, grey in enumerate(COLOURS):
        png.write(folder / f"f_{number + 5:03d}.png", np.full((48, 64, 3), grey, np.uint8))
    return folder


@pytest.fixture
def film(pictures, tmp_path) -> Path:
    """The same as a film, written by Blender."""
    path = tmp_path / "film ü.mkv"
    write_film(pictures, path)
    return path


def write_film(folder: Path, path: Path) -> None:
    scene = bpy.data.scenes.new("film")
    editor = scene.sequence_editor_create()
    names = sorted(found.name for found in folder.glob("*.png"))
    strips = editor.strips if hasattr(editor, "strips") else editor.sequences
    strip = strips.new_image("clip", str(folder / names[0]), 1, 1)
    for name in names[1:]:
        strip.elements.append(name)
    render = scene.render
    scene.frame_start, scene.frame_end = 1, len(names)
    render.resolution_x, render.resolution_y = SIZE
    render.fps, render.fps_base = 30, 1.001
    if hasattr(render.image_settings, "media_type"):
        render.image_settings.media_type = "VIDEO"
    render.image_settings.file_format = "FFMPEG"
    render.ffmpeg.format, render.ffmpeg.codec = "MKV", "FFV1"
    render.use_file_extension, render.filepath = False, str(path)
    scene.view_settings.view_transform = "Standard"
    with bpy.context.temp_override(scene=scene), compat.quiet_output():
        bpy.ops.render.render(animation=True, scene=scene.name)
    bpy.data.scenes.remove(scene)
    assert path.is_file()


@pytest.fixture
def settings(scene, tmp_path, fake):
    """A function that gives the settings of a video's job."""

    def make(path: Path, mode: str = "good", stop_after_views: bool = False, **video) -> asking.Settings:
        return asking.Settings(
            source="video", video={"video": str(path), **video}, quality="draft", backend=fake(mode),
            cache=str(tmp_path / "jöbs"), name="Rose", stop_after_views=stop_after_views,
        )  # fmt: skip

    return make


def project(points: np.ndarray, frame_size: tuple[int, int] = SIZE) -> np.ndarray:
    """Where the backend's camera sees points in model space: pixels of the clip's full picture, row 0 at the top."""
    to_world, intrinsics = cameras.job_cameras(CROP[2], 4, 4)
    intrinsics = intrinsics[0].copy()
    intrinsics[:2, 2] += CROP[:2]
    return cameras.project(points, to_world[0], intrinsics)[0]


# ---- the camera --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("matched", [True, False])
@pytest.mark.parametrize("shape", [(1920, 1080), (1080, 1920), (333, 333)])
def test_the_mesh_covers_the_object_in_the_clip(scene, settings, pictures, shape, matched):
    scene.render.resolution_x, scene.render.resolution_y = shape
    scene.cursor.location = (3, -7, 1)
    outcome = jobs.run_job(scene, settings(pictures))
    object = scene.objects[outcome.object_name]
    camera = clip_camera.camera_of(object)
    if matched:
        clip_camera.match_scene(scene, camera)
    width, height = scene.render.resolution_x, scene.render.resolution_y
    for frame in (1, 5, 9):
        scene.frame_set(frame)
        shown = object.evaluated_get(bpy.context.evaluated_depsgraph_get())
        world = np.array([shown.matrix_world @ vertex.co for vertex in shown.data.vertices])
        seen = np.array([world_to_camera_view(scene, camera, Vector(point))[:2] for point in world])
        # Blender counts from the lower left, in parts of the render; the clip is as wide as the render, and centred.
        across = seen[:, 0] * SIZE[0]
        down = SIZE[1] / 2 - (seen[:, 1] - 0.5) * height / width * SIZE[0]
        wanted = project(world - (3, -7, 1))
        assert np.abs(np.stack([across, down], 1) - wanted).max() < 0.01
    assert np.ptp(world[:, 2]) > 0.01, "it moves"


def test_a_render_through_the_camera_covers_the_same_pixels(scene, settings, pictures, tmp_path):
    outcome = jobs.run_job(scene, settings(pictures))
    object = scene.objects[outcome.object_name]
    clip_camera.match_scene(scene, clip_camera.camera_of(object))
    scene.frame_set(1)
    scene.render.engine, scene.cycles.samples = "CYCLES", 1
    scene.render.film_transparent, scene.render.filepath = True, str(tmp_path / "seen.png")
    scene.render.image_settings.file_format, scene.render.image_settings.color_mode = "PNG", "RGBA"
    with compat.quiet_output():
        bpy.ops.render.render(write_still=True)
    image = bpy.data.images.load(scene.render.filepath)
    assert tuple(image.size) == SIZE
    alpha = np.array(image.pixels[:]).reshape(SIZE[1], SIZE[0], 4)[::-1, :, 3] > 0.5
    corners = project(np.array([vertex.co for vertex in object.data.vertices]))
    rows, columns = np.nonzero(alpha)
    low, high = corners.min(0), corners.max(0)
    assert np.abs([columns.min() - low[0], rows.min() - low[1]]).max() < 1.6
    assert np.abs([columns.max() + 1 - high[0], rows.max() + 1 - high[1]]).max() < 1.6


def shown_grey(scene, user, image, frame: int, tmp_path) -> float:
    """The grey, 0..255, that Blender reads for an image with these settings at a frame of the scene."""
    bpy.ops.mesh.primitive_plane_add(size=10)
    plane = bpy.context.object
    material = compat.new_material("screen")
    nodes = material.node_tree.nodes
    picture, light, out = (nodes.new(f"ShaderNode{kind}") for kind in ("TexImage", "Emission", "OutputMaterial"))
    picture.image = image
    for name in ("frame_start", "frame_duration", "frame_offset", "use_auto_refresh", "use_cyclic"):
        setattr(picture.image_user, name, getattr(user, name))
    material.node_tree.links.new(picture.outputs["Color"], light.inputs["Color"])
    material.node_tree.links.new(light.outputs["Emission"], out.inputs["Surface"])
    plane.data.materials.append(material)
    bpy.ops.object.camera_add(location=(0, 0, 3))
    scene.camera = bpy.context.object
    scene.render.engine, scene.cycles.samples, scene.cycles.use_denoising = "CYCLES", 4, False
    scene.render.resolution_x = scene.render.resolution_y = 4
    scene.render.dither_intensity = 0
    scene.view_settings.view_transform = "Standard"
    scene.render.image_settings.file_format, scene.render.filepath = "PNG", str(tmp_path / f"grey{frame}.png")
    scene.frame_set(frame)
    with compat.quiet_output():
        bpy.ops.render.render(write_still=True)
    result = bpy.data.images.load(scene.render.filepath)
    grey = result.pixels[0] * 255
    bpy.data.images.remove(result)
    bpy.data.objects.remove(plane)
    bpy.data.objects.remove(scene.camera)
    return grey


@pytest.mark.parametrize("kind", ["pictures", "film"])
def test_the_background_plays_the_clips_frames(scene, settings, kind, tmp_path, request):
    path = request.getfixturevalue(kind)
    outcome = jobs.run_job(scene, settings(path, video_first=3, video_start=20.0, video_step=2))
    assert list(outcome.request.keyframes) == [20, 22, 24, 26]
    camera = clip_camera.camera_of(scene.objects[outcome.object_name])
    (background,) = camera.data.background_images
    assert camera.data.show_background_images and background.alpha == 1 and background.display_depth == "BACK"
    assert background.image.source == ("SEQUENCE" if kind == "pictures" else "MOVIE")
    for frame in (18, 20, 23, 26):
        grey = shown_grey(scene, background.image_user, background.image, frame, tmp_path)
        assert grey == pytest.approx(COLOURS[frame - 18], abs=3), frame  # the scene's frame 18 is the file's first


def test_a_clip_that_blender_cannot_show_is_said_and_costs_no_mesh(scene, settings, tmp_path):
    path = tmp_path / "strange.mp4"
    path.write_bytes(b"not a film")
    outcome = jobs.run_job(scene, settings(path))
    camera = clip_camera.camera_of(scene.objects[outcome.object_name])
    assert not camera.data.background_images and not [i for i in bpy.data.images if "strange" in i.filepath]
    assert [w["code"] for w in outcome.warnings] == ["small_in_view", "no_background"]
    assert "strange.mp4" in outcome.warnings[1]["message"]


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (["000.png", "001.png"], 0),
        (["a7.png", "a8.png"], 7),
        (["a9.png", "a10.png"], None),
        (["a1.png", "a3.png"], None),
        (["a1.png", "b2.png"], None),
        (["left.png", "right.png"], None),
        (["v2_0010.png", "v2_0011.png"], 10),
        ([], None),
    ],
)
def test_what_is_a_sequence_for_blender(names, first):
    assert clip_camera.first_of_sequence(names) == first


def test_unnumbered_pictures_show_the_first_and_say_so(scene, settings, pictures):
    for number, name in enumerate(sorted(pictures.iterdir())):
        name.rename(pictures / ("abcdefghi"[number] + ".png"))
    outcome = jobs.run_job(scene, settings(pictures))
    assert "numbered" in outcome.warnings[-1]["message"]
    (background,) = clip_camera.camera_of(scene.objects[outcome.object_name]).data.background_images
    assert background.image.source == "FILE"


@pytest.mark.parametrize(("rotation", "stands"), [(0, True), (90, False), (270, False), (180, True)])
def test_a_lying_film_is_turned_upright(scene, settings, film, rotation, stands):
    job = jobs.Job(scene, settings(film))
    job.run()
    clip = json.loads((job.folder / protocol.CLIP_FILE).read_text(encoding="utf-8"))
    clip["rotation"], clip["resolution"] = rotation, SIZE if stands else SIZE[::-1]
    (job.folder / protocol.CLIP_FILE).write_text(json.dumps(clip), encoding="utf-8")
    object = shape_keys.write_result(scene, job.folder)
    (background,) = clip_camera.camera_of(object).data.background_images
    assert background.rotation == pytest.approx(0 if stands else np.radians(rotation))
    assert background.scale == pytest.approx(1 if stands else 64 / 48)


# ---- the scene stays the artist's --------------------------------------------------------------------------------------
def timing(scene) -> tuple:
    render = scene.render
    return (scene.frame_start, scene.frame_end, scene.frame_current, render.fps, render.fps_base,
            render.resolution_x, render.resolution_y)  # fmt: skip


def test_only_the_button_changes_the_scenes_timing(addon, scene, settings, pictures, fake, monkeypatch, tmp_path):
    monkeypatch.setenv("LIM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(folders, "backend_python", lambda: fake("good"))
    before = timing(scene)
    assert bpy.ops.lim.import_video(filepath=str(pictures)) == {"FINISHED"}
    scene.lim.quality, scene.lim.name, scene.lim.video_start = "draft", "Rose", 101
    assert bpy.ops.lim.generate() == {"FINISHED"}
    assert timing(scene) == before
    state = bpy.context.window_manager.lim_job
    words = state.note.replace("\n", " ")
    assert "frame rate" in words and "Match Scene to Clip" in words
    camera = scene.objects["Rose Camera"]
    assert scene.camera == camera, "there was none"
    assert camera.users_collection == scene.objects["Rose"].users_collection
    assert bpy.ops.lim.clip_match(resolution=False, frame_rate=False, frame_range=True) == {"FINISHED"}
    assert (scene.frame_start, scene.frame_end) == (101, 109) and timing(scene)[3:] == before[3:]
    assert bpy.ops.lim.clip_match() == {"FINISHED"} and not state.note
    assert timing(scene)[5:] == SIZE and scene.render.fps / scene.render.fps_base == pytest.approx(RATE)
    assert not clip_camera.differences(scene, camera)


def test_the_artists_camera_stays(scene, settings, pictures):
    bpy.ops.object.camera_add()
    scene.camera = bpy.context.object
    jobs.run_job(scene, settings(pictures))
    assert scene.camera == bpy.data.objects["Camera"]


def test_a_deleted_camera_is_no_camera(addon, scene, settings, pictures):
    outcome = jobs.run_job(scene, settings(pictures))
    object = scene.objects[outcome.object_name]
    bpy.context.view_layer.objects.active = object
    assert bpy.ops.lim.clip_match.poll()
    bpy.data.objects.remove(clip_camera.camera_of(object))
    assert clip_camera.camera_of(object) is None and not bpy.ops.lim.clip_match.poll()


@pytest.mark.parametrize("suffix", [".glb", ".abc", ".usd", ".obj", ".pc2"])
def test_a_result_with_a_camera_is_exported_alone(scene, settings, pictures, tmp_path, suffix):
    outcome = jobs.run_job(scene, settings(pictures))
    files = export.export(scene.objects[outcome.object_name], tmp_path / f"rose{suffix}")
    assert files[0].stat().st_size > 1000


# ---- what goes wrong ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mode", "code"),
    [("bad_video", "bad_video"), ("crash_midway", "backend_crashed"), ("result_that_is_not_there", "backend_crashed"),
     ("no_clip_file", "missing_file")],
)  # fmt: skip
def test_nothing_is_half_imported(scene, settings, pictures, mode, code):
    before = snapshot(scene)
    with pytest.raises(LimError) as raised:
        jobs.run_job(scene, settings(pictures, mode))
    assert raised.value.code == code and raised.value.message and snapshot(scene) == before
    assert jobs.run_job(scene, settings(pictures)).object_name == "Rose"


def _not_json(clip: dict) -> str:
    return "{"


def _no_camera(clip: dict) -> str:
    del clip["camera_to_world"]
    return json.dumps(clip)


def _nan(clip: dict) -> str:
    clip["intrinsics"][0][0] = float("nan")
    return json.dumps(clip)


def _flat(clip: dict) -> str:
    clip["resolution"] = [64, 0]
    return json.dumps(clip)


def _list(clip: dict) -> str:
    return "[]"


@pytest.mark.parametrize("damage", [_not_json, _no_camera, _nan, _flat, _list], ids=lambda damage: damage.__name__[1:])
def test_a_broken_clip_changes_nothing(scene, settings, pictures, damage):
    job = jobs.Job(scene, settings(pictures))
    job.run()
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    path = job.folder / protocol.CLIP_FILE
    before = snapshot(scene)
    path.write_text(damage(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    with pytest.raises(LimError) as raised:
        shape_keys.write_result(scene, job.folder)
    assert raised.value.code == "backend_crashed" and snapshot(scene) == before


@pytest.mark.parametrize("step", ["add_camera", "_add_background"])
def test_an_error_at_the_camera_leaves_nothing(scene, settings, pictures, step, monkeypatch):
    inner = getattr(clip_camera, step)

    def fail(*arguments):
        inner(*arguments)
        raise RuntimeError("half way")

    before = snapshot(scene)
    monkeypatch.setattr(clip_camera, step, fail)
    with pytest.raises(LimError, match="half way"):
        jobs.run_job(scene, settings(pictures))
    assert snapshot(scene) == before


@pytest.mark.parametrize(
    ("video", "code", "words"),
    [
        ({"video": ""}, "bad_request", "No video"),
        ({"video": "/gone/clip.mp4"}, "missing_file", "/gone/clip.mp4"),
        ({"foreground": "mask"}, "bad_request", "mask"),
        ({"foreground": "mask", "mask": "/gone/mask.mp4"}, "missing_file", "/gone/mask.mp4"),
        ({"foreground": "matting", "matting": "/gone/model.onnx"}, "weights_missing", "/gone/model.onnx"),
        ({"views_model": "/gone/pipeline"}, "weights_missing", "/gone/pipeline"),
        ({"video_first": 5, "video_last": 3}, "bad_request", "range"),
        ({"key_colour": "green"}, "bad_request", "green"),
        ({"elevation": 80.0}, "bad_request", "elevation"),
    ],
)
def test_what_cannot_work_is_said_before_the_backend_starts(scene, settings, pictures, video, code, words):
    asked = settings(pictures, "killed", **video)
    with pytest.raises(LimError) as raised:
        jobs.run_job(scene, asked)
    assert raised.value.code == code and words in raised.value.message


# ---- stopping and going on ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stage", ["import", "views", "reconstruct", "write"])
def test_a_cancelled_job_leaves_the_scene_and_can_be_run_again(scene, settings, pictures, stage):
    before = snapshot(scene)
    job = jobs.Job(
        scene, settings(pictures, "good:6"), lambda event: job.cancel() if event.get("stage") == stage else None
    )
    with pytest.raises(Cancelled):
        job.run()
    assert snapshot(scene) == before and not job.stopped_to_look
    again = jobs.Job(scene, settings(pictures))
    again.run()
    assert again.folder == job.folder, "the clip decides the folder"


def test_the_views_are_shown_and_the_job_stops_there_and_goes_on(addon, scene, pictures, fake, monkeypatch, tmp_path):
    monkeypatch.setenv("LIM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(folders, "backend_python", lambda: fake("good:3"))
    shown = []
    load = preview_picture.load
    monkeypatch.setattr(
        preview_picture, "load", lambda path, rows=0: shown.append((Path(path).name, rows)) or load(path, rows) or 7
    )
    bpy.ops.lim.import_video(filepath=str(pictures))
    scene.lim.quality, scene.lim.stop_after_views = "draft", True
    before = snapshot(scene)
    assert bpy.ops.lim.generate() == {"CANCELLED"}
    state = bpy.context.window_manager.lim_job
    assert (
        state.waiting and not state.error_text and not state.running and "other views" in state.note.replace("\n", " ")
    )
    assert (
        Path(state.picture).name == "views.png" and state.picture_label == "Generated views" and state.picture_icon == 7
    )
    assert shown == [("clip.png", 1), ("views.png", 4)] and snapshot(scene) == before
    assert bpy.ops.lim.preview_open() == {"FINISHED"}
    assert bpy.ops.lim.generate(go_on=True) == {"FINISHED"}
    assert not state.waiting and Path(state.picture).name == "views.png", "the views stay to be looked at"
    assert scene.objects[state.result]
    assert bpy.ops.lim.generate() == {"CANCELLED"} and state.waiting, "going on is for once"


def test_a_wide_sheet_shows_some_of_its_columns():
    sheet = np.repeat(np.arange(9.0), 5)[None, :, None] * np.ones((20, 1, 4))
    shown = preview_picture.chosen_columns(sheet, 4)
    assert shown.shape == (20, 20, 4) and set(np.unique(shown)) == {0, 3, 5, 8}
    assert preview_picture.chosen_columns(sheet, 0) is sheet
    assert preview_picture.chosen_columns(sheet[:5], 1).shape == (5, 20, 4)
    assert preview_picture.chosen_columns(sheet[:, :15], 4).shape == (20, 15, 4)


def test_a_picture_becomes_an_icon_and_leaves_no_image(scene, tmp_path):
    pixels = np.zeros((40, 1200, 3), np.uint8)
    pixels[:20] = (255, 0, 51)
    png.write(tmp_path / "wide.png", pixels)
    before = len(bpy.data.images)
    preview_picture.load(str(tmp_path / "wide.png"))
    icon = preview_picture._icons["picture"]
    assert tuple(icon.image_size) == (400, 14) and len(bpy.data.images) == before
    assert np.allclose(icon.image_pixels_float[-4:], (1, 0, 0.2, 1), atol=0.01), "the last row is the upper one"
    assert preview_picture.load(str(tmp_path / "gone.png")) == 0
    preview_picture.clear()


def test_a_scenes_capture_and_a_clips_share_no_files(scene, settings, pictures, tmp_path):
    folder = tmp_path / "job"
    asked = jobs.Job(scene, settings(pictures)).settings
    (folder / "capture").mkdir(parents=True)
    for name in (protocol.image_file(0, 0), job_folders.CAPTURE_RECORD):
        (folder / name).write_text("of a scene")
    import dataclasses

    jobs.run_job(scene, dataclasses.replace(asked, job=str(folder)))
    assert not (folder / protocol.image_file(0, 0)).exists() and (folder / protocol.CLIP_FILE).exists()
    jobs.run_job(scene, dataclasses.replace(asked, job=str(folder), stop_after_views=False))
    assert (folder / protocol.CLIP_FILE).exists(), "a clip's own files stay"


# ---- the panel ---------------------------------------------------------------------------------------------------------
def test_the_panels_settings_become_the_request(addon, scene, pictures, tmp_path):
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "scene.blend"))
    chosen = bpy.context.scene.lim
    chosen.source, chosen.video = "VIDEO", "//ein Clip é/f_005.png"
    asked = lambda: asking.check(bpy.context.scene, panel_settings.settings_from(bpy.context))  # noqa: E731
    plain = asked()
    assert plain.video == str(pictures / "f_005.png") and plain.keyframes == () and plain.template == "reconstructed"
    defaults = request.Request(keyframes=())
    for name in ("video_first", "video_last", "video_step", "video_fps", "video_start", "foreground", "mask",
                 "key_colour", "matting", "views_model", "elevation"):  # fmt: skip
        assert getattr(plain, name) == getattr(defaults, name), name
    chosen.video_first, chosen.video_last, chosen.video_step, chosen.video_keyframes = 2, 8, 3, "EVERY"
    assert asked().video_last == 0
    chosen.use_video_range = True
    chosen.video_start, chosen.video_fps, chosen.elevation = 7, 12.5, np.radians(-10)
    chosen.foreground, chosen.use_key_colour, chosen.key_colour = "key", True, (0, 1, 0.2)
    chosen.views_model = "//"
    changed = asked()
    assert (changed.video_first, changed.video_last, changed.video_step) == (2, 8, 3)
    assert (changed.video_start, changed.video_fps, changed.elevation) == (7, 12.5, pytest.approx(-10))
    assert (changed.foreground, changed.key_colour) == ("key", "#00ff33")
    assert Path(changed.views_model) == tmp_path
    chosen.foreground, chosen.mask = "mask", "//ein Clip é"
    assert asked().mask == str(pictures) and asked().key_colour == ""
    chosen.template = "mesh"
    assert asked().template == "reconstructed", "a setting of another source"


def test_choosing_a_clip_says_what_it_holds(addon, scene, pictures, film, tmp_path):
    chosen = scene.lim
    chosen.use_video_range = True
    assert bpy.ops.lim.import_video(filepath=str(film)) == {"FINISHED"}
    assert chosen.source == "VIDEO" and chosen.video == str(film)
    assert chosen.video_text == "9 frames, 29.97 a second, 64 × 48"
    assert not chosen.use_video_range, "the range belonged to another clip"
    clips = len(bpy.data.movieclips)
    words = {
        "": "",
        str(pictures): "9 pictures",
        str(pictures / "f_006.png"): "9 pictures, 64 × 48",
        str(tmp_path / "gone.mp4"): "no such file",
        str(tmp_path): "no pictures",
        str(FAKE_TEXT(tmp_path)): "the backend may",
    }
    for path, expected in words.items():
        assert expected in import_video.describe(path), path
    single = tmp_path / "one.png"
    shutil.copy(pictures / "f_005.png", single)
    assert import_video.describe(str(single)) == "One picture, 64 × 48"
    for suffix, words in ((".exr", "There are no pictures in this folder."), (".tga", "1 pictures")):
        (tmp_path / suffix).mkdir()
        (tmp_path / suffix / f"0001{suffix}").touch()
        assert import_video.describe(str(tmp_path / suffix)) == words, "as the backend will see it"
    assert len(bpy.data.movieclips) == clips == 0
    for missing in ("", str(tmp_path / "gone.mp4")):
        with pytest.raises(RuntimeError, match="no such video"):
            bpy.ops.lim.import_video(filepath=missing)
    assert bpy.context.window_manager.lim_job.error_code == "missing_file" and chosen.video == str(film)


def FAKE_TEXT(folder: Path) -> Path:
    path = folder / "letter.mp4"
    path.write_text("Dear film")
    return path


def test_no_clip_is_a_report(addon, scene):
    scene.lim.source = "VIDEO"
    with pytest.raises(RuntimeError, match="No clip is chosen"):
        bpy.ops.lim.generate()
    assert bpy.context.window_manager.lim_job.error_code == "bad_video"


def test_films_can_be_dropped_into_a_view(addon):
    handler = bpy.types.LIM_FH_video
    assert handler.bl_import_operator == ids.IMPORT_VIDEO and ".mp4" in handler.bl_file_extensions.split(";")
    area = type("Area", (), {"type": "VIEW_3D"})()
    assert handler.poll_drop(type("Context", (), {"area": area})())
    area.type = "IMAGE_EDITOR"
    assert not handler.poll_drop(type("Context", (), {"area": area})())


# ---- the command line --------------------------------------------------------------------------------------------------
def test_a_video_without_a_window(pictures, fake, tmp_path):
    base = [
        "--video",
        pictures,
        "--quality",
        "draft",
        "--backend",
        fake("good"),
        "--job",
        tmp_path / "job",
        "--name",
        "Rose",
    ]
    more = [
        "--first",
        "2",
        "--last",
        "8",
        "--step",
        "3",
        "--start",
        "-5",
        "--elevation",
        "-10",
        "--foreground",
        "alpha",
    ]
    bpy.ops.wm.read_homefile(use_factory_startup=True)
    code, data = run(tmp_path, *base, *more, "--out", tmp_path / "out.blend", "--glb", tmp_path / "out.glb",
                     "--match-clip", "--vertex-colours")  # fmt: skip
    assert code == 0, data
    assert data["keyframes"] == [-5, -2, 1] and data["camera"] == "Rose Camera" and data["object"] == "Rose"
    asked = request.read(tmp_path / "job")
    assert (asked.video, asked.video_first, asked.video_last, asked.elevation) == (str(pictures), 2, 8, -10)
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "out.blend"))
    scene = bpy.context.scene
    assert {object.name for object in scene.objects} == {"Rose", "Rose Camera"}, "the start-up cube is nobody's"
    assert scene.camera.name == "Rose Camera" and scene.render.resolution_x == 64
    assert (scene.frame_start, scene.frame_end) == (0, 1), "no scene of Blender begins earlier"
    assert "Color" in scene.objects["Rose"].data.color_attributes
    assert scene.camera.data.background_images[0].image.source == "SEQUENCE"


def test_a_videos_result_goes_into_the_scene_that_is_named(pictures, fake, tmp_path):
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.ops.mesh.primitive_cube_add()
    bpy.context.scene.render.resolution_x = 777
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "set.blend"))
    code, data = run(tmp_path, "--input", tmp_path / "set.blend", "--video", pictures, "--quality", "draft", "--backend",
                     fake("good"), "--job", tmp_path / "job", "--out", tmp_path / "out.blend")  # fmt: skip
    assert code == 0, data
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "out.blend"))
    assert {"Cube", "LIM", "LIM Camera"} == set(bpy.context.scene.objects.keys())
    assert bpy.context.scene.render.resolution_x == 777


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--objects", "Cube"], "--objects does not go with --video"),
        (["--keyframes", "1,9"], "--keyframes does not go with --video"),
        (["--template", "Cube"], "--template does not go"),
        (["--foreground", "magic"], "magic"),
        (["--first", "one"], "one"),
    ],
)
def test_options_that_do_not_go_with_a_video(pictures, tmp_path, arguments, words):
    code, data = run(tmp_path, "--video", pictures, "--out", tmp_path / "x.blend", *arguments)
    assert code == protocol.EXIT_USAGE and words in data["message"]


def test_options_of_a_video_need_one(tmp_path):
    for option in (["--step", "2"], ["--match-clip"], ["--foreground", "key"]):
        code, data = run(tmp_path, "--out", tmp_path / "x.blend", *option)
        assert code == protocol.EXIT_USAGE and f"{option[0]} needs --video" in data["message"]


@pytest.mark.parametrize(("mode", "exit_code"), [("bad_video", 3), ("no_clip_file", 3), ("crash_midway", 4)])
def test_a_videos_exit_codes(pictures, fake, tmp_path, mode, exit_code):
    code, data = run(tmp_path, "--video", pictures, "--out", tmp_path / "x.blend", "--quality", "draft",
                     "--backend", fake(mode), "--job", tmp_path / "job")  # fmt: skip
    assert code == exit_code and data["message"] and not (tmp_path / "x.blend").exists()


def test_the_commands_scene_is_not_needed_for_a_video(pictures, fake, tmp_path):
    options = ["--video", str(pictures), "--out", str(tmp_path / "x.blend"), "--quality", "draft",
               "--backend", fake("good"), "--job", str(tmp_path / "job"), "--quiet"]  # fmt: skip
    assert command_line.main(options, program="blender --command lim") == 0
