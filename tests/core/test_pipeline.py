# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole jobs, with tiny untrained networks: what must hold whatever the networks have learnt."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import make_job
from lim_core.networks import checkpoint
from lim_core.shared import protocol, request
from lim_core.shared.errors import LimError
from lim_core.stages import pipeline

ROOT = Path(__file__).resolve().parents[2]


def start(job: Path, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "lim_core", "run", str(job), "--follow-stdin", *more], cwd=ROOT, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(process: subprocess.Popen) -> tuple[int, list[dict], str]:
    """Exit code, events and stderr of a run whose stdin stays open to the end."""
    lines = process.stdout.read().splitlines()
    errors = process.stderr.read()
    process.stdin.close()
    return process.wait(60), [protocol.decode_event(line) for line in lines], errors


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_weights):
    job = make_job(tmp_path_factory.mktemp("jobs") / "ein Auftrag äöü", tiny_weights)
    code, events, errors = finish(start(job))
    assert code == 0, errors
    return job, events


def test_events_follow_the_protocol(finished):
    _, events = finished
    names = [event["event"] for event in events]
    assert names[0] == "hello" and names[-1] == "result"
    assert sum(name in protocol.FINAL_EVENTS for name in names) == 1
    assert [e["stage"] for e in events if e["event"] == "stage"] == list(protocol.STAGES)
    fractions = [e["fraction"] for e in events if e["event"] == "progress"]
    assert fractions == sorted(fractions) and fractions[-1] == pytest.approx(1)


def test_result_is_whole(finished):
    job, _ = finished
    asked = request.read(job)
    with np.load(job / protocol.RESULT_ARRAYS, allow_pickle=False) as data:
        arrays = dict(data)
    times, vertices = arrays["positions"].shape[:2]
    assert times == len(asked.frames()) == 5 and arrays["frames"].tolist() == [1, 3, 5, 7, 9]
    assert arrays["loop_uvs"].shape == (len(arrays["faces"]), 3, 2)
    assert 0 <= arrays["loop_uvs"].min() and arrays["loop_uvs"].max() <= 1
    assert arrays["faces"].max() < vertices and np.isfinite(arrays["positions"]).all()
    assert np.abs(arrays["positions"]).max() < 1.1
    summary = json.loads((job / protocol.RESULT_FILE).read_text(encoding="utf-8"))
    assert summary["frames"] == [1, 3, 5, 7, 9] and summary["vertices"] == vertices
    assert (job / protocol.TEXTURE_FILE).is_file() and (job / "previews/triplane_f004_v00.png").is_file()
    # The moved keyframes lie as near to their capture as the template does to the first: the fit has worked, whatever
    # the networks know. (The distance contains the spacing of 300 vertices.)
    first, *later = summary["metrics"]["keyframe_distance"]
    assert first < 0.05 and max(later) < 1.3 * first
    assert np.linalg.norm(arrays["positions"][4] - arrays["positions"][0], axis=1).mean() > 0.03


def test_a_repeated_run_redoes_only_what_changed(finished):
    job, _ = finished
    before = {p.name: p.stat().st_mtime_ns for p in (job / "state").iterdir()}
    asked = request.read(job)
    request.write(type(asked)(**{**asked.__dict__, "texture_size": 64}), job)
    code, _, errors = finish(start(job))
    assert code == 0, errors
    changed = {p.name for p in (job / "state").iterdir() if p.stat().st_mtime_ns != before[p.name]}
    assert changed == {"texture.npz", "interpolate.npz"}  # the pictures show the texture
    assert list(json.loads((job / protocol.RESULT_FILE).read_text())["seconds"]) == ["texture", "interpolate"]


def test_a_stage_that_is_kept_in_another_form_or_lacks_pictures_is_redone(finished, tmp_path):
    job = tmp_path / "job"
    shutil.copytree(finished[0], job)
    with np.load(job / "state/fit.npz") as data:  # the key is right, the form is that of an older add-on
        older = {name: data[name] for name in ("key", "seconds", "positions", "confidence", "residuals")}
    np.savez(job / "state/fit.npz", **older)
    (job / protocol.preview_file("triplane", 4, 0)).unlink()
    before = {p.name: p.stat().st_mtime_ns for p in (job / "state").iterdir()}
    code, _, errors = finish(start(job))
    assert code == 0, errors
    assert (job / protocol.preview_file("triplane", 4, 0)).is_file()
    changed = {p.name for p in (job / "state").iterdir() if p.stat().st_mtime_ns != before[p.name]}
    assert changed == {"interpolate.npz", "fit.npz"}
    assert list(json.loads((job / protocol.RESULT_FILE).read_text())["seconds"]) == ["fit", "interpolate"]
    with np.load(job / protocol.RESULT_ARRAYS) as redone, np.load(finished[0] / protocol.RESULT_ARRAYS) as first:
        for name in ("positions", "faces", "confidence", "feed_forward", "loop_uvs"):
            np.testing.assert_array_equal(redone[name], first[name])


def test_the_table_of_stages_is_whole():
    assert [stage.name for stage in pipeline.STAGES] == list(protocol.STAGES)
    assert sum(stage.share for stage in pipeline.STAGES) == pytest.approx(1)
    known = {field.name for field in dataclasses.fields(request.Request)}
    for index, stage in enumerate(pipeline.STAGES):
        before = {earlier.name for earlier in pipeline.STAGES[:index]}
        assert {*stage.after, *stage.without_depth} <= before and set(stage.settings) <= known, stage.name
    assert len({stage.artefact for stage in pipeline.STAGES}) == len(pipeline.STAGES), "`Found` knows them by type"


def test_fewer_shape_keys_are_chosen_at_the_end(finished):
    job, _ = finished
    asked = request.read(job)
    for most, count in ((3, 3), (9, None)):
        request.write(type(asked)(**{**asked.__dict__, "max_keys": most}), job)
        code, _, errors = finish(start(job))
        assert code == 0, errors
        summary = json.loads((job / protocol.RESULT_FILE).read_text())
        with np.load(job / protocol.RESULT_ARRAYS) as data:
            assert data["positions"].shape[0] == 5, "all frames stay"
            keys = data["keys"].tolist() if "keys" in data else None
        assert not set(summary["seconds"]) & {"trace", "fit"}, "nothing is redone"
        if count is None:
            assert keys is None and "keys" not in summary["metrics"]
        else:
            assert len(keys) == summary["metrics"]["keys"] <= count and keys[0] == 0 and keys[-1] == 4
            assert 0 < summary["metrics"]["reduced_rms"] < summary["metrics"]["reduced_max"] < 50


def test_a_still_scene_stays_still(tmp_path, tiny_weights):
    job = make_job(tmp_path / "still", tiny_weights, still=True)
    code, _, errors = finish(start(job))
    assert code == 0, errors
    with np.load(job / protocol.RESULT_ARRAYS) as data:
        positions = data["positions"]
    size = np.linalg.norm(np.ptp(positions[0], axis=0))
    assert np.linalg.norm(positions - positions[0], axis=-1).mean() < 0.005 * size


def test_a_followed_object_is_put_back_on_its_way(finished, tmp_path):
    """The same capture, taken by cameras that followed: the same shapes, each frame moved on by its part of the way."""
    job = tmp_path / "job"
    shutil.copytree(finished[0], job)
    origins = ((0.0, 0.0, 0.0), (1.5, -0.5, 0.25), (4.5, -1.5, 0.75))
    request.write(dataclasses.replace(request.read(job), origins=origins), job)
    code, _, errors = finish(start(job))
    assert code == 0, errors
    with np.load(finished[0] / protocol.RESULT_ARRAYS) as still, np.load(job / protocol.RESULT_ARRAYS) as walked:
        way = np.array(origins)[[0, 0, 1, 1, 2]] + [
            [0, 0, 0],
            [0.75, -0.25, 0.125],
            [0, 0, 0],
            [1.5, -0.5, 0.25],
            [0, 0, 0],
        ]
        np.testing.assert_allclose(walked["feed_forward"], still["feed_forward"] + way[:, None], atol=1e-5)
        at_keyframes = walked["positions"][::2] - way[::2, None]
        np.testing.assert_allclose(at_keyframes, still["positions"][::2], atol=1e-5)
        off = np.linalg.norm(walked["positions"] - way[:, None] - still["positions"], axis=2).max()
        assert off < 0.5, (
            "in between it speeds up, for the second half of the way is twice as long; it goes nowhere else"
        )
    assert (job / protocol.TEXTURE_FILE).read_bytes() == (finished[0] / protocol.TEXTURE_FILE).read_bytes()


def test_what_is_written_as_a_capture_is_read_as_it(tmp_path):
    """Without depth, too; nothing of an earlier, longer capture stays, and the same pictures make the same fingerprint."""
    from lim_core.job import capture

    make_job(tmp_path / "longer")
    asked = request.read(tmp_path / "longer")
    first = capture.read(tmp_path / "longer", asked)
    assert first.keyframes == 3 and first.depth_planar.any()
    first.write(tmp_path / "copy")
    assert capture.fingerprint(tmp_path / "copy") == capture.fingerprint(tmp_path / "longer")
    shorter = dataclasses.replace(first, rgba=255 - first.rgba[:2], depth_planar=None)
    shorter.write(tmp_path / "longer")
    assert not (tmp_path / "longer" / protocol.image_file(2, 0)).exists()
    assert not list((tmp_path / "longer" / protocol.CAPTURE_FOLDER).glob("*depth*"))
    again = capture.read(
        tmp_path / "longer", dataclasses.replace(asked, keyframes=asked.keyframes[:2], has_depth=False)
    )
    np.testing.assert_array_equal(again.rgba, shorter.rgba)
    np.testing.assert_array_equal(again.camera_to_world, first.camera_to_world)
    np.testing.assert_array_equal(again.intrinsics, first.intrinsics)
    assert again.depth_planar is None and again.rig_views == first.rig_views


def test_own_template_keeps_its_vertices(tmp_path, tiny_weights):
    job = make_job(tmp_path / "own", tiny_weights, template="mesh")
    with pytest.raises(LimError):
        from lim_core.job import capture

        capture.read_template(job)
    from lim_core.mesh import surface

    with np.load(job / protocol.depth_file(0)) as data, np.load(job / protocol.CAMERAS_FILE) as cameras:
        vertices, faces = surface.fuse_depth(
            data["depth_planar"], cameras["camera_to_world"], cameras["intrinsics"], resolution=48
        )
    np.savez(job / protocol.TEMPLATE_FILE, vertices=vertices, faces=faces)
    code, _, errors = finish(start(job))
    assert code == 0, errors
    with np.load(job / protocol.RESULT_ARRAYS) as data:
        assert "loop_uvs" not in data.files
        np.testing.assert_allclose(data["positions"][0], vertices, atol=1e-6)
        np.testing.assert_array_equal(data["faces"], faces)


def test_cancel_keeps_the_finished_stages(tmp_path, tiny_weights):
    job = make_job(tmp_path / "cancel", tiny_weights, still=True)
    process = start(job)
    for line in process.stdout:
        if protocol.decode_event(line).get("stage") == "surface":
            process.stdin.write(protocol.encode_command("cancel") + "\n")
            process.stdin.flush()
            break
    code, events, _ = finish(process)
    assert code == protocol.EXIT_CANCELLED and events[-1]["event"] == "cancelled"
    assert not (job / protocol.RESULT_FILE).exists() and (job / "state/reconstruct.npz").exists()
    assert not list(job.rglob("*.tmp"))
    stamp = (job / "state/reconstruct.npz").stat().st_mtime_ns
    code, events, errors = finish(start(job))
    assert code == 0, errors
    assert (job / "state/reconstruct.npz").stat().st_mtime_ns == stamp


def test_the_worker_stops_when_blender_is_gone(tmp_path, tiny_weights):
    job = make_job(tmp_path / "gone", tiny_weights)
    process = start(job)
    process.stdout.readline()
    process.stdin.close()
    started = time.monotonic()
    process.stdout.read()
    assert process.wait(30) == protocol.EXIT_CANCELLED and time.monotonic() - started < 30


def test_killed_in_the_middle_leaves_a_resumable_job(tmp_path, tiny_weights):
    job = make_job(tmp_path / "killed", tiny_weights, still=True)
    process = start(job)
    for line in process.stdout:
        if protocol.decode_event(line).get("stage") == "surface":
            process.send_signal(signal.SIGKILL)
            break
    process.wait(30)
    assert not (job / protocol.RESULT_FILE).exists()
    code, _, errors = finish(start(job))
    assert code == 0, errors


def spoil_request(job):
    data = json.loads((job / protocol.REQUEST_FILE).read_text())
    (job / protocol.REQUEST_FILE).write_text(json.dumps(data | {"colour": "red"}))


def truncate_depth(job):
    path = job / protocol.depth_file(1)
    path.write_bytes(path.read_bytes()[:-2000])


def foreign_depth(job):
    np.savez(job / protocol.depth_file(1), something=np.zeros(3))


def nan_depth(job):
    with np.load(job / protocol.depth_file(1)) as data:
        depth = data["depth_planar"].copy()
    depth[0, 0, 0] = np.nan
    np.savez(job / protocol.depth_file(1), depth_planar=depth)


def pickled_cameras(job):
    np.savez(job / protocol.CAMERAS_FILE, camera_to_world=np.array([object()]), intrinsics=np.zeros(3))


def missing_picture(job):
    (job / protocol.image_file(2, 1)).unlink()


def broken_picture(job):
    (job / protocol.image_file(2, 1)).write_bytes(b"not a picture")


def invisible(job):
    for view in range(4):
        Image.new("RGBA", (96, 96)).save(job / protocol.image_file(1, view))


def wrong_archive(job):
    path = job / protocol.CAMERAS_FILE
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def wrong_frames(job):
    data = json.loads((job / protocol.REQUEST_FILE).read_text())
    (job / protocol.REQUEST_FILE).write_text(json.dumps(data | {"keyframes": "123"}))


@pytest.mark.parametrize(
    ("spoil", "code", "named"),
    [
        (spoil_request, "bad_request", "colour"),
        (truncate_depth, "bad_capture", "k001_depth.npz"),
        (foreign_depth, "bad_capture", "k001_depth.npz"),
        (nan_depth, "bad_capture", "depth_planar"),
        (pickled_cameras, "bad_capture", "cameras.npz"),
        (wrong_archive, "bad_capture", "cameras.npz"),
        (wrong_frames, "bad_request", "keyframes"),
        (missing_picture, "missing_file", "k002_v01.png"),
        (broken_picture, "bad_capture", "k002_v01.png"),
        (invisible, "outside_cameras", "frame 5"),
    ],
)
def test_bad_input_gets_a_sentence(tmp_path, tiny_weights, spoil, code, named):
    job = make_job(tmp_path / "bad", tiny_weights)
    spoil(job)
    exit_code, events, _ = finish(start(job))
    assert events[-1]["event"] == "error" and events[-1]["code"] == code
    assert named in events[-1]["message"] and events[-1]["message"].rstrip().endswith(".")
    assert exit_code == protocol.ERROR_CODES[code][0]


def test_missing_weights_are_named(tmp_path):
    job = make_job(tmp_path / "weights", tmp_path / "no such folder")
    exit_code, events, _ = finish(start(job))
    assert events[-1]["code"] == "weights_missing" and "no such folder" in events[-1]["message"]
    assert exit_code == protocol.EXIT_BACKEND


def test_what_libraries_print_cannot_garble_the_events(tmp_path, tiny_weights):
    job = make_job(tmp_path / "print", tiny_weights, still=True)
    program = (
        "import sys, os; sys.path.insert(0, sys.argv[1])\n"
        "from lim_core import worker\nfrom lim_core.stages import pipeline\n"
        "def noisy(*a):\n    os.write(1, b'a library says hello\\n')\n"
        "pipeline.run = noisy\n"
        "sys.exit(worker.main([sys.argv[2], '--follow-stdin']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(ROOT), str(job)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    code, events, errors = finish(process)
    assert code == 0 and "a library says hello" in errors
    assert [event["event"] for event in events] == ["hello", "result"]


@pytest.mark.skipif(
    not (checkpoint.BUNDLED / "lrm/config.json").is_file(), reason="no trained weights in this checkout"
)
def test_without_depth_the_triplane_is_the_template(tmp_path):
    """What a video gives: pictures and cameras alone, all the way to a texture."""
    job = make_job(tmp_path / "no depth", has_depth=False)
    for keyframe in range(3):
        (job / protocol.depth_file(keyframe)).unlink()
    code, events, errors = finish(start(job))
    assert code == 0, errors
    assert "no_depth" in [event.get("code") for event in events]
    with np.load(job / protocol.RESULT_ARRAYS) as data:
        assert len(data["faces"]) > 100 and np.abs(data["positions"]).max() < 1.2
    with Image.open(job / protocol.TEXTURE_FILE) as image:
        assert np.asarray(image).std() > 1
