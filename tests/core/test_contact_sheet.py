# SPDX-License-Identifier: GPL-3.0-or-later
"""The contact sheet and the loop: the right picture at the right place, and whatever is missing is only missing."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lim_core.job import contact_sheet, result
from lim_core.shared import cameras, protocol, request
from lim_core.shared.errors import LimError


def paint(path, colour, alpha=255):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", (20, 20), (*colour, alpha)).save(path)


@pytest.fixture
def job(tmp_path):
    """Keyframes 1, 5, 9 with three in-betweens; red grows with time, green is the row, blue is the view."""
    asked = request.Request(keyframes=(1, 5, 9), inbetweens=3, fps=24)
    request.write(asked, tmp_path)
    for index in range(9):
        for view in range(2):
            if index % 4 == 0:
                paint(tmp_path / protocol.image_file(index // 4, view), (index * 20, 40, view * 200))
            paint(tmp_path / f"previews/triplane_f{index:03d}_v{view:02d}.png", (index * 20, 120, view * 200))
            paint(tmp_path / f"previews/traced_f{index:03d}_v{view:02d}.png", (index * 20, 200, view * 200))
    return tmp_path, asked


def middle(page, line, column):
    """Colour in the middle of a tile; `line` counts the rows of the first camera, then of the second."""
    step = contact_sheet.TILE + contact_sheet.GAP
    x = contact_sheet.LABEL + contact_sheet.GAP + column * step + contact_sheet.TILE // 2
    y = 34 + line * step + contact_sheet.TILE // 2 + (4 * contact_sheet.GAP if line > 2 else 0)
    return tuple(int(v) for v in np.asarray(page)[y, x])


def test_rows_are_kinds_and_columns_are_times(job):
    folder, asked = job
    page = contact_sheet.sheet(folder, asked)
    for line, (green, blue) in enumerate([(40, 0), (120, 0), (200, 0), (40, 200), (120, 200), (200, 200)]):
        for column in range(9):
            expected = (column * 20, green, blue)
            if green == 40 and column % 4:
                expected = contact_sheet.PAPER  # between the keyframes nothing was captured
            assert middle(page, line, column) == expected


def test_columns_hold_every_keyframe_and_few_in_betweens():
    def of(count, inbetweens):
        return contact_sheet.columns(request.Request(keyframes=tuple(range(count)), inbetweens=inbetweens))

    assert of(3, 7) == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert of(4, 7) == [0, 4, 8, 12, 16, 20, 24]
    assert of(2, 2) == [0, 1, 2, 3]
    assert of(2, 0) == [0, 1]
    assert of(5, 7) == [0, 4, 8, 12, 16, 20, 24, 28, 32]
    short = request.Request(keyframes=(1, 9, 17, 19), inbetweens=7, last_inbetweens=1)
    assert contact_sheet.columns(short) == [0, 4, 8, 12, 16, 17, 18]
    many = of(40, 3)
    assert len(many) == contact_sheet.COLUMNS and many[0] == 0 and many[-1] == 39 * 4
    assert all(index % 4 == 0 for index in many)


def test_a_missing_picture_is_an_empty_place_and_a_missing_row_is_left_out(job):
    folder, asked = job
    (folder / "previews/traced_f003_v00.png").unlink()
    (folder / "previews/triplane_f002_v00.png").write_bytes(b"\x89PNG cut short")
    page = contact_sheet.sheet(folder, asked)
    assert middle(page, 2, 3) == contact_sheet.EMPTY and middle(page, 1, 2) == contact_sheet.EMPTY
    whole = page.height
    for path in folder.glob("previews/traced_*"):
        path.unlink()
    assert whole - contact_sheet.sheet(folder, asked).height == 2 * (contact_sheet.TILE + contact_sheet.GAP)
    for path in [*folder.glob("previews/*"), *folder.glob("capture/*")]:
        path.unlink()
    with pytest.raises(LimError, match="no pictures"):
        contact_sheet.sheet(folder, asked)


def test_alpha_lies_on_paper(tmp_path):
    paint(tmp_path / "a.png", (0, 0, 0), alpha=0)
    assert np.asarray(contact_sheet.tile(tmp_path / "a.png", 8)).min() == 255


def test_the_loop_goes_there_and_back_at_the_sources_speed(job):
    folder, asked = job
    out = folder / "out" / "loop.gif"
    assert contact_sheet.main([str(folder), "--gif", str(out), "--out", str(folder / "out" / "sheet.png")]) == 0
    with Image.open(folder / "out" / "sheet.png") as page:
        assert page.format == "PNG"
    with Image.open(out) as loop:
        assert loop.info["loop"] == 0 and loop.n_frames == 16 and loop.size == (640, 320)
        assert loop.info["duration"] == 40, "1000 / 24 ms, in the hundredths of a second that a GIF counts"
        reds = []
        for index in range(loop.n_frames):
            loop.seek(index)
            pixels = np.asarray(loop.convert("RGB"))
            assert abs(int(pixels[160, 160, 1]) - 200) < 12, "the traced row"
            assert pixels[160, 160, 2] < 30 and pixels[160, 480, 2] > 170, "two cameras side by side"
            reds.append(int(pixels[160, 160, 0]))
    assert reds == sorted(reds[:9]) + sorted(reds[9:], reverse=True) and reds[8] > 140


def test_the_loops_paper_is_white(tmp_path):
    noise = np.random.default_rng(0).integers(180, 256, (64, 64, 3), np.uint8)
    noise[:, 32:] = 255
    contact_sheet.save_loop([Image.fromarray(noise)] * 2, 0.1, tmp_path / "loop.gif")
    with Image.open(tmp_path / "loop.gif") as loop:
        assert (np.asarray(loop.convert("RGB"))[4:-4, 40:] == 255).all()


def test_a_cycle_is_not_played_backwards(job):
    folder, asked = job
    for view in range(2):
        paint(folder / f"previews/traced_f008_v{view:02d}.png", (0, 200, view * 200))
    pictures, _ = contact_sheet.loop(folder, asked)
    assert len(pictures) == 8


def test_a_folder_that_is_no_job(tmp_path):
    with pytest.raises(LimError, match="not a job folder"):
        contact_sheet.main([str(tmp_path), "--out", str(tmp_path / "x.png")])


def test_every_picture_of_a_camera_shows_the_same_part(tmp_path):
    asked = request.Request(keyframes=(1, 2), inbetweens=0)
    request.write(asked, tmp_path)
    for keyframe, left in ((0, 40), (1, 50)):
        picture = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
        picture.paste((255, 0, 0, 255), (left, 30, left + 10, 40))
        (tmp_path / "capture").mkdir(exist_ok=True)
        picture.save(tmp_path / protocol.image_file(keyframe, 0))
    left, top, side = contact_sheet.part_in_use(tmp_path, asked, 0)
    assert side == pytest.approx(0.22) and left == pytest.approx(0.39) and top == pytest.approx(0.24)
    first, second = (
        np.asarray(contact_sheet.tile(tmp_path / protocol.image_file(k, 0), 22, (left, top, side))) for k in (0, 1)
    )
    assert tuple(first[11, 5]) == tuple(second[11, 16]) == (255, 0, 0)
    assert tuple(first[11, 16]) == tuple(second[11, 5]) == (255, 255, 255)
    assert contact_sheet.part_in_use(tmp_path, asked, 1) == contact_sheet.WHOLE


def test_a_result_is_drawn_without_blender(tmp_path):
    asked = request.Request(keyframes=(1, 3), inbetweens=1, image_size=128, views=4)
    request.write(asked, tmp_path)
    camera, lens = cameras.job_cameras(128, 4)
    across, up = camera[0, :3, 0], -camera[0, :3, 1]
    square = np.stack([-across - up, across - up, across + up, up - across]) * 0.3
    positions = np.stack([square - 0.4 * across, square, square + 0.4 * across]).astype(np.float32)
    faces, corners = np.array([[0, 1, 2], [0, 2, 3]], np.int32), np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    texture = np.zeros((64, 64, 3), np.uint8)
    texture[:32, :, 0], texture[32:, :, 2] = 200, 100  # red above, blue below
    result.save_arrays(tmp_path / protocol.CAMERAS_FILE, camera_to_world=camera, intrinsics=lens)
    out = str(tmp_path / "sheet.png")
    with pytest.raises(LimError, match="no pictures"):
        contact_sheet.main([str(tmp_path), "--out", out])

    def finish(positions):
        summary = {"frames": asked.frames(), "template": asked.template}
        arrays = {"positions": positions, "frames": np.array(asked.frames()), "faces": faces}
        result.write(tmp_path, summary, texture, **arrays, loop_uvs=corners[faces])
        assert contact_sheet.main([str(tmp_path), "--out", out]) == 0
        return [np.asarray(Image.open(tmp_path / protocol.preview_file("traced", t, 0))) for t in range(3)]

    pictures = finish(positions)
    places = [np.argwhere(picture[..., 3] > 127).mean(0) for picture in pictures]
    assert places[1] == pytest.approx([128, 128], abs=1) and places[0][1] < 128 < places[2][1]
    half = np.argwhere(pictures[1][..., 3] > 127)[:, 0].mean()
    assert tuple(pictures[1][int(half) - 20, 128]) == (200, 0, 0, 255)
    assert tuple(pictures[1][int(half) + 20, 128]) == (0, 0, 100, 255)
    assert np.array_equal(finish(positions[::-1])[0], pictures[2]), "a new result is drawn anew"
    paint(tmp_path / protocol.preview_file("traced", 0, 0), (1, 2, 3))
    assert contact_sheet.main([str(tmp_path), "--out", out]) == 0
    with Image.open(tmp_path / protocol.preview_file("traced", 0, 0)) as kept:
        assert kept.size == (20, 20), "Blender's picture is kept"
