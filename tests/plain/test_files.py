# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are written whole or not at all, and locks."""

from __future__ import annotations

import errno
import math
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lim_core.shared import files

NAMES = ["a.json", "two words.json", "Würfel – ‘1’.npz", "-rf", "%s{}*?[x].txt", ".hidden", "n" * 250 + ".txt"]
on_windows = pytest.mark.skipif(os.name == "nt", reason="names and links that Windows does not have")


def put(path, how: str, data: bytes) -> None:
    """Write `data` to `path` in one of the ways that there are."""
    if how == "bytes":
        with files.writing(path) as file:
            file.write(data)
    elif how == "text":
        files.write_text(path, data.decode())
    elif how == "path":
        with files.writing_path(path) as place:
            place.write_bytes(data)
    elif how == "suffix":
        with files.writing_path(path, suffix=".usdz") as place:
            assert place.suffix == ".usdz" and place.parent == path.parent
            place.write_bytes(data)


HOW = ["bytes", "text", "path", "suffix"]


@on_windows
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_written_and_replaced(tmp_path, name, how):
    for data in (b"first", b"second"):
        put(tmp_path / name, how, data)
        assert (tmp_path / name).read_bytes() == data
        assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("how", HOW)
def test_while_it_is_written_the_old_file_stands(tmp_path, how):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    suffix = ".usdz" if how == "suffix" else ""
    with files.writing_path(path, suffix) if how in ("path", "suffix") else files.writing(path, text=how == "text"):
        assert path.read_bytes() == b"old"
        assert len(os.listdir(tmp_path)) == 2
    assert path.read_bytes() == b""


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("how", HOW)
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, how, failure):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(failure if isinstance(failure, type) else type(failure)):
        if how in ("path", "suffix"):
            with files.writing_path(path, ".usdz" if how == "suffix" else "") as place:
                place.write_bytes(b"half")
                raise failure
        else:
            with files.writing(path, text=how == "text") as file:
                file.write("half" if how == "text" else b"half")
                raise failure
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("how", HOW)
def test_no_folder_is_made_and_the_error_names_the_file(tmp_path, how):
    path = tmp_path / "none" / "a.bin"
    with pytest.raises(FileNotFoundError) as told:
        put(path, how, b"x")
    assert told.value.filename == str(path) and not os.listdir(tmp_path)


@pytest.mark.parametrize("how", HOW)
def test_a_folder_in_the_way_stays(tmp_path, how):
    (tmp_path / "a.bin" / "inside").mkdir(parents=True)
    with pytest.raises(OSError) as told:
        put(tmp_path / "a.bin", how, b"x")
    assert told.value.filename == str(tmp_path / "a.bin")
    assert os.listdir(tmp_path) == ["a.bin"] and os.listdir(tmp_path / "a.bin") == ["inside"]


@on_windows
@pytest.mark.parametrize("how", HOW)
def test_a_planted_link_is_not_followed(tmp_path, monkeypatch, how):
    """Not under the names that were used before, and not even under the name that is used, if it were guessed."""
    mine, folder = tmp_path / "mine.txt", tmp_path / "shared"
    folder.mkdir()
    mine.write_bytes(b"mine")
    for name in ("a.bin.tmp", "a.tmp", f".a.bin.{os.getpid()}.tmp", "lim_part_a.bin"):
        (folder / name).symlink_to(mine)
    before = sorted(os.listdir(folder))
    put(folder / "a.bin", how, b"new")
    assert mine.read_bytes() == b"mine" and sorted(os.listdir(folder)) == sorted([*before, "a.bin"])
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "guessed")
    guessed = folder / ("lim_guessed.usdz" if how == "suffix" else ".lim_guessed.tmp")
    guessed.symlink_to(mine)
    with pytest.raises(FileExistsError):
        put(folder / "a.bin", how, b"newer")
    assert mine.read_bytes() == b"mine" and guessed.is_symlink() and (folder / "a.bin").read_bytes() == b"new"


@on_windows
def test_a_link_at_the_place_itself_is_replaced(tmp_path):
    (tmp_path / "mine.txt").write_bytes(b"mine")
    (tmp_path / "a.bin").symlink_to(tmp_path / "mine.txt")
    put(tmp_path / "a.bin", "bytes", b"new")
    assert (tmp_path / "mine.txt").read_bytes() == b"mine" and not (tmp_path / "a.bin").is_symlink()


def test_names_cannot_be_guessed(tmp_path):
    seen = set()
    for _ in range(20):
        with files.writing_path(tmp_path / "a.bin") as place:
            seen.add(place.name)
    assert len(seen) == 20 and all(len(name) > 16 for name in seen)


@on_windows
@pytest.mark.parametrize("how", HOW)
def test_rights_are_those_of_any_new_file(tmp_path, how):
    before = os.umask(0o027)
    try:
        put(tmp_path / "a.bin", how, b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == 0o640


@pytest.mark.parametrize("how", HOW)
def test_many_writers_at_once(tmp_path, how):
    """Every reader finds one writer's file, whole; nothing is left over."""
    path, size, wrong = tmp_path / "a.bin", 200_000, []
    put(path, how, b"0" * size)

    def write(digit: bytes) -> None:
        try:
            for _ in range(30):
                put(path, how, digit * size)
        except BaseException as failure:
            wrong.append(failure)

    writers = [threading.Thread(target=write, args=(digit,)) for digit in (b"1", b"2")]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        data = path.read_bytes()
        assert data == data[:1] * size
    assert not wrong and os.listdir(tmp_path) == ["a.bin"]


def test_line_ends_are_the_callers(tmp_path):
    with files.writing(tmp_path / "a.csv", text=True, newline="") as file:
        file.write("ä\r\nb\n")
    assert (tmp_path / "a.csv").read_bytes() == "ä\r\nb\n".encode()


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "shard"
    for name in ("first", "second"):
        with files.writing_folder(path) as place:
            (place / name).touch()
        assert os.listdir(path) == [name] and os.listdir(tmp_path) == ["shard"]
    with pytest.raises(ValueError), files.writing_folder(path) as place:
        (place / "third").touch()
        raise ValueError
    assert os.listdir(path) == ["second"] and os.listdir(tmp_path) == ["shard"]
    with pytest.raises(FileNotFoundError) as told, files.writing_folder(tmp_path / "none" / "shard"):
        pass
    assert told.value.filename == str(tmp_path / "none" / "shard")


def test_leftovers_go_once_they_are_old(tmp_path):
    (tmp_path / "kept.tmp").touch()
    names = [".lim_a.tmp", ".lim_b.tmp", ".lim_c.tmp", ".lim_d.tmp"]
    for name in names[:2]:
        (tmp_path / name).touch()
    for name in names[2:]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "part.npy").touch()
    old = time.time() - files.LEFT_SECONDS - 60
    for path in (".lim_a.tmp", ".lim_c.tmp/part.npy", ".lim_c.tmp", ".lim_d.tmp", "kept.tmp"):
        os.utime(tmp_path / path, (old, old))
    files.clear_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".lim_b.tmp", ".lim_d.tmp", "kept.tmp"], "one is young, one is being filled"
    files.clear_leftovers(tmp_path / "none")


# ---- locks ---------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
sys.path.insert(0, {root!r})
from lim_core.shared import files
mine = files.Lock({path!r})
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path):
    path = tmp_path / "Schloß.lock"
    path.write_text("what its owner wrote")
    script = HOLD.format(root=str(Path(__file__).parents[2]), path=str(path))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            with pytest.raises(BlockingIOError) as told:
                files.Lock(path)
            assert told.value.filename == str(path)
            began = time.monotonic()
            with pytest.raises(BlockingIOError):
                files.Lock(path, patience=0.2)
            assert time.monotonic() - began >= 0.2
            assert path.read_text() == "what its owner wrote"
        finally:
            other.kill()
    files.Lock(path, patience=10).release()


def test_a_lock_is_let_go_and_waited_for(tmp_path):
    path = tmp_path / "a.lock"
    first = files.Lock(path)
    with pytest.raises(BlockingIOError):
        files.Lock(path)
    threading.Timer(0.2, first.release).start()
    second = files.Lock(path, patience=math.inf)
    first.release()
    with pytest.raises(BlockingIOError):  # a second release is not another's
        files.Lock(path)
    second.release()
    second.release()
    files.Lock(path).release()
    with pytest.raises(FileNotFoundError):
        files.Lock(tmp_path / "none" / "a.lock")


@on_windows
def test_where_there_are_no_locks_nobody_is_kept_out(tmp_path, monkeypatch):
    import fcntl

    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    first, second = files.Lock(tmp_path / "a.lock"), files.Lock(tmp_path / "a.lock", patience=math.inf)
    first.release()
    second.release()
