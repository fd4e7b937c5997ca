# SPDX-License-Identifier: GPL-3.0-or-later
"""Where jobs live on disk: naming, one user at a time, whether a capture is still valid, size and clearing.

Plain Python. A job folder is kept after the job, so that the next run with the same source resumes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

from ...lim_core.shared import files, protocol
from ...lim_core.shared.errors import LimError, from_os_error

LOCK_FILE = "in_use.lock"
CAPTURE_RECORD = "capture/capture.json"
"""Written last by a capture: what it was made from, the transform, its warnings."""
SCENE_COPY = "scene.blend"
SPEC_FILE = "capture_spec.json"

_OURS = (protocol.REQUEST_FILE, protocol.LOG_FILE, protocol.CAPTURE_FOLDER, LOCK_FILE)


def name_for(blend: str, *identity: object) -> str:
    """Folder name of a job: readable, and the same for the same source.

    Args:
        blend: path of the scene's file, empty if it has none.
        identity: what else tells sources apart (scene, objects).
    """
    stem = re.sub(r"[^\w.-]+", "_", Path(blend).stem, flags=re.UNICODE).strip("._")[:40] or "unsaved"
    digest = hashlib.sha256(json.dumps([blend, *identity], default=str).encode()).hexdigest()[:10]
    return f"{stem}-{digest}"


def lock(folder: Path) -> files.Lock:
    """Keep a second job out of a folder, and take away what a killed one left unfinished.

    Raises BlockingIOError if a job is running in it.
    """
    held = files.Lock(folder / LOCK_FILE)
    for place in (folder, folder / protocol.CAPTURE_FOLDER):
        files.clear_leftovers(place)
    return held


def open_folder(parent: Path, name: str) -> tuple[Path, files.Lock]:
    """Make and lock the job folder, or its neighbour `name-2`, … if another job is running in it."""
    try:
        for number in range(1, 100):
            folder = parent / (name if number == 1 else f"{name}-{number}")
            folder.mkdir(parents=True, exist_ok=True)
            try:
                return folder, lock(folder)
            except BlockingIOError:
                continue
    except OSError as error:
        raise from_os_error(error, "making the job folder") from error
    raise LimError("internal", f"99 jobs are running in “{parent}”.", "Wait for one to end.")


def check_space(folder: Path, needed: int) -> None:
    """Raise LimError disk_full if fewer bytes than `needed` are free where the folder lies."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return  # not every file system can say; the writing itself will
    if free < needed:
        raise LimError(
            "disk_full",
            f"The job needs about {in_words(needed)} on the disk of “{folder}”, but only {in_words(free)} are free.",
            "Free some space, clear the cache, or choose a lower quality.",
        )


def write_json(path: Path, data: object) -> None:
    """Write whole or not at all."""
    files.write_text(path, json.dumps(data, indent=2, ensure_ascii=False))


def capture_key(spec: dict, fingerprint: object) -> str:
    """What a capture depends on, in one word."""
    text = json.dumps([protocol.VERSION, spec, fingerprint], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def valid_capture(folder: Path, key: str, keyframes: int, views: int, with_template: bool = False) -> dict | None:
    """The record of the capture in the folder if it was made with this key and is complete, else None."""
    try:
        record = json.loads((folder / CAPTURE_RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("key") != key or not key:
        return None
    needed = [protocol.CAMERAS_FILE, *([protocol.TEMPLATE_FILE] if with_template else [])]
    needed += [protocol.depth_file(k) for k in range(keyframes)]
    needed += [protocol.image_file(k, v) for k in range(keyframes) for v in range(views)]
    return record if all(_whole(folder / name) for name in needed) else None


def _whole(path: Path) -> bool:
    """Whether a file of a capture is there and has a beginning and an end; its pixels are the backend's to check."""
    try:
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:  # its table of contents lies at the end
                return bool(archive.namelist())
        with open(path, "rb") as file:
            begins = file.read(8) == b"\x89PNG\r\n\x1a\n"
            file.seek(-12, os.SEEK_END)
            return begins and file.read(8).endswith(b"IEND")
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def clear_capture(folder: Path) -> None:
    """Remove an old capture, so that no view of it can be mistaken for one of the next."""
    try:
        shutil.rmtree(folder / protocol.CAPTURE_FOLDER)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise from_os_error(error, "removing the old capture") from error


def drop_scene_capture(folder: Path) -> None:
    """Remove the capture of a scene, whose files those of a video are about to overwrite; a video's own stay."""
    if (folder / CAPTURE_RECORD).exists():
        clear_capture(folder)


def stamp(path: str | os.PathLike) -> list:
    """Identity of a file's content, cheaply: path, size, time of the last change."""
    try:
        state = os.stat(path)
        return [str(path), state.st_size, state.st_mtime_ns]
    except OSError:
        return [str(path), None, None]


def sequence(path: str | os.PathLike) -> list[str]:
    """The files that are numbered like this one, or that are tiles of it (<UDIM>)."""
    path = Path(path)
    numbers = re.compile(r"\d+|<UDIM>|<UVTILE>")
    alike = numbers.sub("#", path.name)
    return [str(found) for found in _children(path.parent) if numbers.sub("#", found.name) == alike]


def is_job(folder: Path) -> bool:
    """Whether a folder was made by a job; nothing else is ever removed."""
    return folder.is_dir() and not folder.is_symlink() and any((folder / name).exists() for name in _OURS)


def size(parent: Path) -> tuple[int, int]:
    """(jobs, bytes) below the cache folder. Touches the disk: not for draw()."""
    jobs = total = 0
    for folder in _children(parent):
        if is_job(folder):
            jobs += 1
            for here, _, names in os.walk(folder):
                for name in names:
                    try:
                        total += os.lstat(os.path.join(here, name)).st_size
                    except OSError:
                        continue  # removed meanwhile
    return jobs, total


def clear(parent: Path) -> tuple[int, int]:
    """Remove every job that is not running. Returns (removed, kept)."""
    removed = kept = 0
    for folder in _children(parent):
        if not is_job(folder):
            continue
        try:
            lock(folder).release()
        except OSError:
            kept += 1
            continue
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            kept += 1
        else:
            removed += 1
    return removed, kept


def _children(parent: Path) -> list[Path]:
    try:
        return sorted(parent.iterdir())
    except OSError:
        return []


def in_words(count: float) -> str:
    """1536 → "1.5 kB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1024 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return ""
