# SPDX-License-Identifier: GPL-3.0-or-later
"""The worker against a backend that misbehaves in every way: each has one answer, and none blocks or lies."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).with_name("fake_backend.py")


def _load():
    spec = importlib.util.spec_from_file_location("lim_headless", ROOT / "blender_addon" / "headless.py")
    headless = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(headless)
    headless.load_package(ROOT)


_load()
from lim_for_blender.blender_addon.job import backend, worker  # noqa: E402
from lim_for_blender.lim_core.shared import protocol, request  # noqa: E402
from lim_for_blender.lim_core.shared.errors import Cancelled, LimError  # noqa: E402

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


@pytest.fixture
def job(tmp_path) -> Path:
    folder = tmp_path / "jöb mit Leerzeichen 猫"
    folder.mkdir()
    request.write(request.Request(keyframes=(1.0, 9.0)), folder)
    return folder


def start(mode: str, job: Path) -> worker.Worker:
    return worker.Worker([sys.executable, str(FAKE), mode, "run", str(job), "--follow-stdin"], job)


def finish(running: worker.Worker, seconds: float = 20.0) -> list[dict]:
    """Poll to the end; every poll must return at once."""
    events, deadline = [], time.monotonic() + seconds
    while True:
        began = time.monotonic()
        events += running.poll()
        assert time.monotonic() - began < 0.5, "poll blocked"
        if not running.running:
            return events + running.poll()
        assert time.monotonic() < deadline, "the worker does not end"
        time.sleep(0.01)


def outcome(mode: str, job: Path, seconds: float = 20.0):
    running = start(mode, job)
    events = finish(running, seconds)
    try:
        return running.result(), events, running
    except (LimError, Cancelled) as error:
        return error, events, running


def log(job: Path) -> str:
    return (job / protocol.LOG_FILE).read_text(encoding="utf-8")


def test_a_good_run_gives_its_events_in_order_and_its_result(job):
    result, events, running = outcome("good", job)
    names = [event["event"] for event in events]
    assert result["path"] == protocol.RESULT_FILE
    assert names[0] == "hello" and names[-1] == "result" and names.count("stage") == len(protocol.STAGES)
    assert running.process.returncode == 0
    assert not any(reader.is_alive() for reader in running._readers)


@pytest.mark.parametrize(
    "mode", ["garbage", "not_utf8", "huge_line", "split_line", "final_without_newline", "talks_without_end"]
)
def test_noise_does_not_hide_the_result(mode, job):
    result, events, _ = outcome(mode, job)
    assert isinstance(result, dict) and result["event"] == "result", result
    if mode == "garbage":
        assert "hello from a library" in log(job) and "dance" in log(job)
    if mode == "not_utf8":
        assert "broken words" in log(job)
    if mode == "huge_line":
        assert "too long" in log(job) and (job / protocol.LOG_FILE).stat().st_size < 10_000
    if mode == "split_line":
        assert [event["message"] for event in events if event["event"] == "warning"][0] == "in two parts"


@pytest.mark.parametrize(
    ("mode", "code", "words"),
    [
        ("crash_at_start", "backend_crashed", "no such thing as a start"),
        ("missing_package", "backend_broken", "torch"),
        ("crash_midway", "backend_crashed", "the ärmature exploded"),
        ("no_final_event", "backend_crashed", "without a result"),
        ("partial_line", "backend_crashed", "without a result"),
        ("wrong_protocol", "backend_outdated", "42"),
        ("error_event", "empty_surface", "frame 9"),
        ("unknown_code", "internal", "newer kind"),
        ("memory_error", "out_of_memory", "memory"),
        pytest.param("killed", "out_of_memory", "most likely because the memory ran out", marks=posix),
        pytest.param("terminated", "backend_crashed", "SIGTERM", marks=posix),
    ],
)
def test_each_bad_end_has_its_code_and_sentence(mode, code, words, job):
    began = time.monotonic()
    error, _, running = outcome(mode, job)
    assert isinstance(error, LimError), error
    assert error.code == code and words in error.message
    assert error.code in protocol.ERROR_CODES
    assert running.process.poll() is not None and time.monotonic() - began < 10


def test_the_first_of_two_final_events_counts(job):
    result, events, _ = outcome("two_finals", job)
    assert result["event"] == "result"
    assert [event["event"] for event in events].count("error") == 0 and "ignored after the end: error" in log(job)


def test_a_lingering_process_does_not_hold_up_its_result(job, monkeypatch):
    monkeypatch.setattr(worker, "EXIT_GRACE", 0.3)
    result, _, running = outcome("result_but_lingers", job, seconds=8)
    assert result["event"] == "result" and running.process.poll() is not None


def test_a_grandchild_that_holds_the_pipe_is_not_waited_for(job):
    began = time.monotonic()
    result, _, _ = outcome("orphan_holds_the_pipe", job, seconds=7)
    assert result["event"] == "result" and time.monotonic() - began < 7


def _until(running: worker.Worker, name: str) -> None:
    deadline = time.monotonic() + 20
    while name not in [event["event"] for event in running.poll()]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_cancel_is_heard(job):
    running = start("good:30", job)
    _until(running, "progress")
    running.cancel()
    finish(running, 5)
    with pytest.raises(Cancelled):
        running.result()
    assert running.process.returncode == 0, "it stopped by itself"


@posix
def test_a_cancel_that_is_ignored_ends_in_a_kill(job, monkeypatch):
    monkeypatch.setattr(worker, "CANCEL_GRACE", 0.3)
    monkeypatch.setattr(worker, "KILL_GRACE", 0.3)
    running = start("hangs", job)
    _until(running, "progress")
    running.cancel()
    running.cancel()
    finish(running, 8)
    with pytest.raises(Cancelled):
        running.result()
    assert running.process.returncode == -9


def test_closing_a_running_worker_ends_it_at_once(job):
    running = start("good:60", job)
    _until(running, "hello")
    began = time.monotonic()
    running.close()
    running.close()
    assert running.process.poll() is not None and time.monotonic() - began < 4


@posix
def test_the_backend_ends_when_its_blender_is_killed(job):
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); import test_worker as t; from pathlib import Path\n"
        "w = t.start('good:60', Path(sys.argv[2])); t._until(w, 'hello'); print(w.process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(FAKE.parent), str(job)], stdout=subprocess.PIPE, text=True
    )
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while _alive(child):
        assert time.monotonic() < deadline, "an orphan is left"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:  # a zombie that nobody reaps in a container counts as gone
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return not Path("/proc").exists()


def test_a_missing_backend_has_its_own_code(job, tmp_path):
    for path in ("", str(tmp_path / "nowhere" / "python")):
        with pytest.raises(LimError) as raised:
            backend.check(path)
        assert raised.value.code == "backend_missing"
    with pytest.raises(LimError) as raised:
        worker.start_backend(tmp_path / "nowhere", ROOT, job)
    assert raised.value.code == "backend_missing"


@posix
def test_a_backend_that_is_no_program_is_broken(job, tmp_path):
    python = tmp_path / "python"
    python.write_text("not a program")
    with pytest.raises(LimError) as raised:
        worker.start_backend(python, ROOT, job)
    assert raised.value.code in ("backend_broken",)


def test_an_installation_is_checked_before_any_work(tmp_path):
    python = backend.python(str(tmp_path))
    assert backend.state(str(tmp_path)) == "missing"
    python.parent.mkdir(parents=True)
    python.write_text("")
    assert backend.state(str(tmp_path)) == "unfinished"
    with pytest.raises(LimError) as raised:
        backend.check(str(python))
    assert raised.value.code == "backend_broken"
    (tmp_path / "backend" / "backend.json").write_text('{"locks": {"backend": "of another version"}}')
    with pytest.raises(LimError) as raised:
        backend.check(str(python))
    assert raised.value.code == "backend_outdated"


def test_the_real_command_runs_lim_core_isolated_from_blenders_variables(tmp_path, monkeypatch):
    root = tmp_path / "ein Ordner 猫"
    package = root / "lim_core"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text("import sys, os; print(sys.argv, __package__, os.environ.get('PYTHONHOME'))")
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    environment = worker.clean_environment()
    command = worker.backend_command(sys.executable, root, "run", "jöb", "--follow-stdin")
    said = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True).stdout
    assert said.strip() == "['%s', 'run', 'jöb', '--follow-stdin'] lim_core None" % (package / "__main__.py")


def test_a_log_that_cannot_be_written_is_an_error_with_a_sentence(job):
    (job / protocol.LOG_FILE).mkdir()
    with pytest.raises(LimError) as raised:
        start("good", job)
    assert raised.value.code == "read_only"
