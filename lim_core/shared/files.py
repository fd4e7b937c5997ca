# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are written whole or not at all, and locks that end with their process. Standard library only.

Whoever writes a file writes it beside its place, under a name that nobody can guess, and renames it at the end. The file is
made new: a link that lies at its name is not followed. What a killed process leaves is taken away by `clear_leftovers`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

UNFINISHED = ".lim_*.tmp"
"""What unfinished files and folders are called; a random word stands for the star."""
LEFT_SECONDS = 3600.0
"""An unfinished file that nobody has written to for so long is left from a process that was killed."""


def _beside(path: str | os.PathLike, suffix: str = "") -> Path:
    name = f"lim_{secrets.token_hex(8)}{suffix}" if suffix else UNFINISHED.replace("*", secrets.token_hex(8))
    return Path(path).with_name(name)


def _blame(failure: BaseException, temporary: Path, path: str | os.PathLike) -> None:
    """An error about the temporary name speaks of the file that was to be written."""
    if isinstance(failure, OSError) and isinstance(failure.filename, (str, os.PathLike)):
        if os.fspath(failure.filename) == str(temporary):
            failure.filename = os.fspath(path)


@contextlib.contextmanager
def writing(
    path: str | os.PathLike, *, text: bool = False, newline: str | None = None, suffix: str = ""
) -> Iterator[IO[Any]]:
    """A file open for writing that takes the place of `path` at the end, whole; on any failure all is as before.

    Args:
        text: UTF-8 text instead of bytes; `newline` as for `open`.
        suffix: of the temporary name, which is `file.name` and then not hidden. Empty: `UNFINISHED`.
    Raises:
        OSError: naming `path`; its folder must be there.
    """
    temporary, file = _beside(path, suffix), None
    try:
        with open(temporary, "x" if text else "xb", encoding="utf-8" if text else None, newline=newline) as file:
            yield file
        os.replace(temporary, path)
    except BaseException as failure:
        if file is not None:  # else the name is not ours
            with contextlib.suppress(OSError):
                temporary.unlink()
        _blame(failure, temporary, path)
        raise


@contextlib.contextmanager
def writing_path(path: str | os.PathLike, suffix: str = "") -> Iterator[Path]:
    """As `writing`, for those who want a name to write to: an empty file of our own, which they overwrite.

    Args:
        suffix: of that name, for those who choose the format by it or put the name into the file.
    """
    with writing(path, suffix=suffix) as file:
        file.close()
        yield Path(file.name)


@contextlib.contextmanager
def writing_folder(path: str | os.PathLike) -> Iterator[Path]:
    """An empty folder that takes the place of `path` at the end, with what was written to it; on any failure it goes.

    What lay at `path` is deleted just before, so that a reader may find nothing there for a moment, but never a part.
    """
    temporary = _beside(path)
    try:
        temporary.mkdir()
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    except BaseException as failure:
        shutil.rmtree(temporary, ignore_errors=True)
        _blame(failure, temporary, path)
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """UTF-8, whole or not at all."""
    with writing(path, text=True) as file:
        file.write(text)


def clear_leftovers(folder: str | os.PathLike) -> None:
    """Delete the unfinished files and folders that killed processes have left directly in a folder."""
    for left in Path(folder).glob(UNFINISHED):
        with contextlib.suppress(OSError):  # someone else has finished or deleted it
            inner = list(left.iterdir()) if left.is_dir() and not left.is_symlink() else []
            if time.time() - max(part.lstat().st_mtime for part in (left, *inner)) < LEFT_SECONDS:
                continue
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink()


# ---- locks ---------------------------------------------------------------------------------------------------------

_HELD = (errno.EAGAIN, errno.EACCES, errno.EDEADLK, getattr(errno, "EDEADLOCK", errno.EDEADLK))
"""What the systems answer where another process holds a lock. Other answers come from folders without locks."""
_BYTE = 1 << 20
"""The byte that Windows locks: beyond the file's text, which others may read."""


class Lock:
    """Keeps other processes out until `release`; the system lets go of it when the process ends, however it ends.

    In a network folder without locks nobody can be kept out: there everyone gets the lock.

    Args:
        path: of a file, which is made where it is not there and stays afterwards. Its content is the holder's to choose.
        patience: seconds to try again while another has it.
    Raises:
        BlockingIOError: another has it.
        OSError: the file cannot be made.
    """

    def __init__(self, path: str | os.PathLike, patience: float = 0.0):
        self.file: IO[bytes] = open(path, "a+b")
        until = time.monotonic() + patience
        try:
            while not _taken(self.file):
                if time.monotonic() >= until:
                    raise BlockingIOError(errno.EAGAIN, "in use", os.fspath(path))
                time.sleep(0.02)
        except BaseException:
            self.file.close()
            raise

    def release(self) -> None:
        """Let others in; a second time does nothing."""
        self.file.close()


def _taken(file: IO[bytes]) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _HELD
    return True
