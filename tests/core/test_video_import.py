# SPDX-License-Identifier: GPL-3.0-or-later
"""From a clip on disk to cut-out keyframes and a camera: every kind of file, and a sentence for every flaw."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import clips
from lim_core.job.artefacts import Imported
from lim_core.job.reporter import Silent
from lim_core.shared import cameras, protocol, request
from lim_core.shared.errors import LimError
from lim_core.shared.request import Request
from lim_core.shared.video_options import CLIP_PICTURES
from lim_core.video import clip, decode, foreground, importing


def asked(path, **changes) -> Request:
    return Request(keyframes=(), source="video", video=str(path), image_size=64, **{"video_step": 2, **changes})


def imported(path, **changes) -> tuple[Imported, list[str]]:
    """What the stage found, and the codes of its warnings."""
    found = importing.import_clip(asked(path, **changes), Silent())
    return found, found.warnings[:, 0].tolist()


def refused(path, **changes) -> LimError:
    with pytest.raises(LimError) as raised:
        imported(path, **changes)
    assert raised.value.message.endswith((".", "…")) and raised.value.code in protocol.ERROR_CODES
    return raised.value


def same_shape(one: np.ndarray, two: np.ndarray) -> float:
    a, b = one > 127, two > 127
    return (a & b).sum() / (a | b).sum()


# ---- decoding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "alpha"),
    [
        ("a.mp4", "libx264", "yuv420p", False),
        ("ten bits.mp4", "libx264", "yuv420p10le", False),
        ("b.webm", "libvpx-vp9", "yuva420p", True),
        ("b8.webm", "libvpx", "yuva420p", True),
        ("prores 4444.mov", "prores_ks", "yuva444p10le", True),
        ("animation.mov", "qtrle", "argb", True),
        ("ünï cödé.mkv", "ffv1", "bgra", True),
    ],
)
def test_every_kind_of_film(tmp_path, name, codec, pixels, alpha):
    frames = [clips.frame(i) for i in range(5)]
    options = {"auto-alt-ref": "0"} if codec == "libvpx" else {}
    path = clips.film(
        tmp_path / name, frames if alpha else [clips.over(f) for f in frames], codec, pixels, options=options
    )
    read = list(decode.frames(decode.open_source(path)))
    assert [frame.number for frame in read] == [1, 2, 3, 4, 5]
    assert np.allclose([frame.seconds for frame in read], np.arange(5) / 12, atol=0.01)
    found, warnings = imported(path, video_step=1)
    assert found.foreground == ("alpha" if alpha else "key") and not warnings
    for cut, true in zip(found.rgba, frames):
        assert same_shape(cut[..., 3], clip.cut(true, tuple(found.box), 64)[..., 3]) > (0.9 if alpha else 0.8)
        middle = cut[32, 32].astype(int)
        assert np.abs(middle[:3] - (220, 60, 40)).max() < 40 and middle[3] == 255


@pytest.mark.parametrize("clear", [True, False])
def test_an_animated_gif(tmp_path, clear):
    frames = [clips.frame(i) if clear else clips.over(clips.frame(i)) for i in range(5)]
    first, *rest = [Image.fromarray(f) for f in frames]
    first.save(tmp_path / "c.gif", save_all=True, append_images=rest, duration=80, disposal=2)
    found, warnings = imported(tmp_path / "c.gif", video_step=1)
    assert found.foreground == ("alpha" if clear else "key") and not warnings
    assert np.allclose(found.times, np.arange(5) * 0.08)
    for cut, true in zip(found.rgba, frames if clear else [clips.frame(i) for i in range(5)]):
        assert same_shape(cut[..., 3], clip.cut(true, tuple(found.box), 64)[..., 3]) > 0.9


def test_a_turned_phone_film_comes_upright(tmp_path):
    path = clips.film(tmp_path / "phone.mp4", [clips.over(clips.frame(0, twist=0))] * 3)
    clips.turn_flag(path)
    source = decode.open_source(path)
    rgba = next(decode.frames(source)).rgba
    assert source.rotation == 90 and rgba.shape == (96, 64, 4)
    blue = (rgba[..., 2] > 120) & (rgba[..., 1] < 120)
    row, column = np.nonzero(blue)
    assert np.ptp(row) > 2 * np.ptp(column), "the bar lay, and stands once the film is turned"


def test_a_film_of_varying_rate_keeps_its_times(tmp_path):
    times = [0, 10, 20, 60, 70, 80, 90]
    frames = [clips.over(clips.frame(i)) for i in range(7)]
    path = clips.film(tmp_path / "phone.mkv", frames, "ffv1", "bgra", times=times)
    found, warnings = imported(path, video_step=1, video_start=5)
    assert warnings == ["variable_rate"]
    importing.write_clip(tmp_path, asked(path, video_step=1, video_start=5), found)
    keyframes = json.loads((tmp_path / protocol.CLIP_FILE).read_text())["keyframes"]
    assert np.allclose(keyframes, 5 + np.array(times) / 10, atol=0.02)


def test_odd_sizes_and_pixels_that_are_not_square(tmp_path):
    frames = [clips.frame(i, 97, 61) for i in range(3)]
    path = clips.film(tmp_path / "odd.mkv", frames, "ffv1", "bgra")
    assert next(decode.frames(decode.open_source(path))).rgba.shape == (61, 97, 4)
    source = decode.open_source(path)
    source.pixel_aspect = 2.0
    assert next(decode.frames(source)).rgba.shape == (61, 194, 4)


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path):
    folder = clips.pictures(tmp_path / "clip", [clips.frame(i) for i in range(4)])
    source = decode.open_source(folder)
    assert [path.stem for path in source.pictures] == ["shot 8", "shot 9", "shot 10", "shot 11"]
    assert decode.open_source(folder / "shot 10.png").pictures == source.pictures
    assert source.fps == 24 and decode.open_source(folder, 12).fps == 12
    Image.fromarray((np.arange(12, dtype=np.uint16) * 5000).reshape(3, 4)).save(tmp_path / "deep.png")
    assert decode.picture(tmp_path / "deep.png")[2, 3, 0] == round(55000 / 257)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b"not a film at all" * 100, "cannot be read")],
)
def test_what_is_no_film_is_named(tmp_path, content, words):
    path = tmp_path / "holiday.mp4"
    path.write_bytes(content)
    error = refused(path)
    assert error.code == "bad_video" and "holiday.mp4" in error.message and words in error.message


def test_a_film_that_breaks_off(tmp_path):
    path = clips.film(tmp_path / "a.mkv", [clips.over(clips.frame(i)) for i in range(20)], "ffv1", "bgra")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3])
    try:
        found, _ = imported(path)
        assert len(found.rgba) < 11
    except LimError as error:
        assert error.code in ("bad_video", "one_keyframe")


@pytest.mark.parametrize("suffix", CLIP_PICTURES)
def test_every_kind_of_picture_is_read(tmp_path, suffix):
    """What counts as a picture of a clip, on both sides, can be decoded, in a folder and by one file's name."""
    kind = ".jpg" if suffix in (".jpg", ".jpeg", ".bmp") else suffix
    folder = clips.pictures(tmp_path / "clip", [clips.frame(i) for i in range(2)], kind)
    for file in list(folder.iterdir()):
        if suffix == ".bmp":
            Image.open(file).save(file.with_suffix(suffix))
            file.unlink()
        else:
            file.rename(file.with_suffix(suffix))
    for path in (folder, folder / f"shot 8{suffix}"):
        source = decode.open_source(path)
        assert [picture.name for picture in source.pictures] == [f"shot 8{suffix}", f"shot 9{suffix}"]
        assert [frame.rgba.shape for frame in decode.frames(source)] == [clips.frame(0).shape] * 2


def test_other_flaws_of_clips(tmp_path):
    assert refused(tmp_path / "nowhere.mp4").code == "missing_file"
    assert refused(clips.pictures(tmp_path / "none", [])).code == "bad_video"
    assert refused(clips.pictures(tmp_path / "one", [clips.frame(0)])).code == "one_keyframe"
    mixed = clips.pictures(tmp_path / "mixed", [clips.frame(0), clips.frame(1, 64, 64)])
    assert "64×64" in refused(mixed).message
    three = clips.pictures(tmp_path / "three", [clips.frame(i) for i in range(3)])
    assert "ends at frame 3" in refused(three, video_first=9).message
    (three / "shot 9.png").write_bytes(b"broken")
    assert "shot 9.png" in refused(three).message


def test_the_range_and_the_step(tmp_path):
    folder = clips.pictures(tmp_path / "clip", [clips.frame(i) for i in range(12)])
    found, _ = imported(folder, video_first=3, video_last=10, video_step=3, video_start=100)
    importing.write_clip(tmp_path, asked(folder, video_start=100), found)
    about = json.loads((tmp_path / protocol.CLIP_FILE).read_text())
    assert about["keyframes"] == [100, 103, 106, 107] and about["inbetweens"] == 2
    told = request.with_clip(asked(folder, video_start=100), tmp_path)
    assert told.frames() == [100, 101, 102, 103, 104, 105, 106, 107], "no frames that the clip does not have"
    assert [told.entry(k) for k in range(4)] == [0, 3, 6, 7] and told.intervals()[-2:] == [(2, 0.0), (2, 1.0)]
    assert (about["first"], about["last"], about["frame_start"]) == (3, 10, 98)


def test_the_automatic_step_follows_the_motion(tmp_path):
    slow = np.stack([clip.thumbnail(clips.frame(i, twist=0.1)) for i in range(40)])
    fast = np.stack([clip.thumbnail(clips.frame(i, twist=3.0)) for i in range(40)])
    assert clip.automatic_step(slow) > clip.automatic_step(fast) == 2


def test_a_cut_leaves_the_longest_shot(tmp_path):
    other = [np.full((64, 96, 4), 255, np.uint8) * np.uint8([0, 0, 1, 1]) for _ in range(3)]
    frames = [clips.over(clips.frame(i)) for i in range(9)]
    found, warnings = imported(clips.pictures(tmp_path / "clip", [*other, *frames]))
    assert warnings == ["video_cut"] and (found.first, found.last) == (4, 12)


def test_a_long_clip_gets_no_more_keyframes_than_can_be_worked_on(tmp_path):
    folder = clips.pictures(tmp_path / "clip", [clips.frame(i, 80, 80) for i in range(80)])
    found, warnings = imported(folder, video_step=1)
    assert warnings == ["long_clip"] and len(found.rgba) <= clip.MOST_KEYFRAMES


# ---- foreground --------------------------------------------------------------------------------------------------------


def test_a_white_object_on_white_keeps_what_the_ground_does_not_reach():
    rgba = clips.over(clips.frame(0), (255, 255, 255))
    rgba[28:36, 44:52, :3] = 246
    alpha = foreground.keyed(rgba, np.ones(3, np.float32))[..., 3]
    assert alpha[32, 48] == 255 and alpha[2, 2] == 0
    rgba[28:36, 44:52, :3] = 255
    assert foreground.keyed(rgba, np.ones(3, np.float32))[32, 48, 3] == 0, "the very ground is seen through a hole"


def test_a_screen_is_ground_wherever_it_is_seen():
    rgba = clips.over(clips.frame(0))
    rgba[28:36, 44:52, :3] = clips.GREEN
    alpha = foreground.keyed(rgba, np.array(clips.GREEN, np.float32) / 255)[..., 3]
    assert alpha[32, 48] == 0 and alpha[32, 40] == 255


def uneven(kind: str, shape: tuple[int, int]) -> np.ndarray:
    """How much light [H, W] falls on each point of a screen, of 1."""
    row, column = np.mgrid[0 : shape[0], 0 : shape[1]]
    x, y = 2 * column / (shape[1] - 1) - 1, 2 * row / (shape[0] - 1) - 1
    shadow = np.where((y > 0.6) & (np.abs(x) < 0.5), 0.6, 1.0)
    return {"across": 1 + x / 6, "down": 1 + y / 6, "spot": 7 / 6 - np.hypot(x, y) / 4, "shadow": shadow}[kind]


@pytest.mark.parametrize("screen", [(20, 180, 40), (30, 60, 190), (110, 200, 120)])
@pytest.mark.parametrize("kind", ["across", "down", "spot", "shadow"])
def test_a_screen_that_is_lit_unevenly_is_ground(screen, kind):
    bare = clips.frame(3, 240, 160)
    light = uneven(kind, bare.shape[:2])[..., None]
    bare[..., :3][bare[..., 2] == 200] = (229, 200, 169)  # no bar of the blue screen's colour
    whole = np.where(bare[..., 3:] > 0, bare[..., :3], np.array(screen) * light)
    noise = np.random.default_rng(0).normal(0, 2, whole.shape)
    rgba = np.dstack([(whole + noise).clip(0, 255), np.full(light.shape, 255)]).astype(np.uint8)
    key, share = foreground.border_colour([rgba])
    alpha = foreground.keyed(rgba, key)[..., 3]
    ground, inside = bare[..., 3] == 0, bare[..., 3] > 0
    assert share > 0.95, "it is found to be a screen without being told"
    assert (alpha[ground] > 0.05 * 255).mean() < 0.02
    assert (alpha[inside] > 0.95 * 255).mean() > 0.97


def test_a_dull_object_of_the_screens_hue_stays():
    rgba = clips.over(clips.frame(0), (20, 180, 40))
    rgba[clips.frame(0)[..., 3] > 0, :3] = (60, 90, 60)
    alpha = foreground.keyed(rgba, np.array((20, 180, 40), np.float32) / 255)[..., 3]
    assert (alpha[clips.frame(0)[..., 3] > 0] == 255).mean() > 0.95 and alpha[2, 2] == 0


def test_edges_are_freed_of_the_screen():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[..., 3] = 255
    rgba[0, :, :3] = clips.GREEN, (0.9 * np.array(clips.GREEN) + 0.1 * np.array((250, 0, 0))), (250, 0, 0)
    cut = foreground.keyed(rgba, np.array(clips.GREEN, np.float32) / 255)
    assert 0 < cut[0, 1, 3] < 255 and cut[0, 1, 1] < 0.9 * 220


def test_masks_are_followed(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (6, 64, 96, 3), dtype=np.uint8)
    frames = [np.dstack([n, np.full((64, 96), 255, np.uint8)]) for n in noise]
    folder = clips.pictures(tmp_path / "clip", frames)
    error = refused(folder)
    assert error.code == "no_foreground" and "mask" in error.hint and "matting" in error.hint
    grey = [np.dstack([*[clips.frame(i)[..., 3]] * 3, np.full((64, 96), 255, np.uint8)]) for i in range(6)]
    masks = clips.pictures(tmp_path / "masks", grey)
    found, _ = imported(folder, foreground="mask", mask=str(masks))
    assert found.foreground == "mask"
    true = clip.cut(clips.frame(0), tuple(found.box), 64)[..., 3]
    assert same_shape(found.rgba[0, ..., 3], true) > 0.95
    few = clips.pictures(tmp_path / "few", grey[:2])
    assert "2 masks" in refused(folder, foreground="mask", mask=str(few)).message


def test_a_matting_model_from_a_folder(tmp_path):
    frames = []
    rng = np.random.default_rng(0)
    for i in range(4):
        rgba = clips.frame(i)
        ground = rng.integers(0, 60, (64, 96, 3), dtype=np.uint8)
        rgb = np.where(rgba[..., 3:] > 0, 250, ground).astype(np.uint8)
        frames.append(np.dstack([rgb, np.full((64, 96), 255, np.uint8)]))
    folder = clips.pictures(tmp_path / "clip", frames)
    (tmp_path / "model").mkdir()
    clips.brightness_model(tmp_path / "model" / "tiny.onnx", 64)
    found, _ = imported(folder, foreground="matting", matting=str(tmp_path / "model"))
    true = clip.cut(clips.frame(0), tuple(found.box), 64)[..., 3]
    assert found.foreground == "matting" and same_shape(found.rgba[0, ..., 3], true) > 0.8
    assert refused(folder, foreground="matting").code == "no_foreground"
    assert refused(folder, foreground="matting", matting=str(tmp_path / "clip")).code == "missing_file"
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    assert refused(folder, foreground="matting", matting=str(tmp_path / "broken.onnx")).code == "weights_broken"


def test_what_is_wrong_with_the_object_is_said(tmp_path):
    two = [np.roll(clips.frame(i), 60, 1) | np.roll(clips.frame(0, twist=0), 0, 1) for i in range(3)]
    two = [np.concatenate([clips.frame(i), clips.frame(i)[:, 20:76]], 1) for i in range(3)]
    found, warnings = imported(clips.pictures(tmp_path / "two", two))
    assert warnings == ["several_objects"]
    assert same_shape(found.rgba[0, ..., 3], clip.cut(clips.frame(0), tuple(found.box), 64)[..., 3]) > 0.0
    leaving = [np.roll(clips.frame(i), -12 * i, 1)[:, :60] for i in range(3)]
    assert "leaves_frame" in imported(clips.pictures(tmp_path / "leaving", leaving))[1]
    gone = [clips.frame(0), clips.frame(1), np.zeros_like(clips.frame(0))]
    error = refused(clips.pictures(tmp_path / "gone", gone))
    assert error.code == "no_foreground" and "frame 3" in error.message
    clear = clips.pictures(tmp_path / "clear", [np.zeros_like(clips.frame(0))] * 3)
    assert "transparent" in refused(clear).message
    assert refused(
        clips.pictures(tmp_path / "plain", [clips.over(clips.frame(i)) for i in range(3)]), foreground="alpha"
    )


# ---- the square and its camera -----------------------------------------------------------------------------------------


def test_the_full_camera_puts_points_where_the_square_has_them(tmp_path):
    found, _ = imported(clips.pictures(tmp_path / "clip", [clips.frame(i, 160, 90) for i in range(3)]))
    request = asked(tmp_path / "clip", elevation=12.0)
    importing.write_clip(tmp_path, request, found)
    about = json.loads((tmp_path / protocol.CLIP_FILE).read_text())
    points = np.array([[0, 0, 0], [0.5, 0.1, -0.3], [-0.2, 0.6, 0.4]])
    view, lens = cameras.look_at(0, 12.0), cameras.pinhole(64)
    small, _ = cameras.project(points, view, lens)
    full, _ = cameras.project(points, np.array(about["camera_to_world"]), np.array(about["intrinsics"]))
    x, y, side = about["crop"]
    assert np.allclose(full, small * side / 64 + (x, y), atol=1e-3)
    assert np.allclose(full[0], (80, 45), atol=1.0), "the object stands in the middle of its square"
    assert about["resolution"] == [160, 90]


def test_one_square_for_the_whole_clip():
    moving = [np.roll(clips.frame(0, twist=0)[..., 3], 10 * i, 1) for i in (-1, 0, 1)]
    x, y, side = clip.square(moving)
    assert side > 46 * 2 / 2 + 20 and abs(x + side / 2 - 48) < 1
    for alpha in moving:
        cut = clip.cut(np.dstack([alpha] * 4), (x, y, side), 64)[..., 3] > 127
        assert not (cut[0].any() or cut[-1].any() or cut[:, 0].any() or cut[:, -1].any())


def test_nothing_is_half_imported(tmp_path):
    folder = clips.pictures(tmp_path / "clip", [clips.frame(0), clips.frame(1), np.zeros_like(clips.frame(0))])
    job = tmp_path / "job"
    job.mkdir()
    with pytest.raises(LimError):
        importing.run(job, asked(folder), torch.device("cpu"), Silent())
    assert not [path for path in job.rglob("*") if path.is_file()]
