# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that can go wrong and that a person can do something about."""

from __future__ import annotations

import errno
import sys
import traceback


class LimError(Exception):
    """An expected failure, worded for an artist.

    Args:
        code: one of `protocol.ERROR_CODES`; stable, for scripts and for the report file.
        message: one sentence that says what is wrong, naming the object, frame or file.
        hint: one sentence that says what to do about it; may be empty.
    """

    def __init__(self, code: str, message: str, hint: str = ""):
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class Cancelled(Exception):
    """The user asked to stop. Not an error: nothing is reported but the fact."""


def from_os_error(error: OSError, doing: str = "") -> LimError:
    """The LimError for what the operating system refused; the one place where errno becomes a sentence.

    Args:
        doing: what was being done, to finish "… while"; for instance "writing the capture".
    """
    where = f" “{error.filename}”" if error.filename else ""
    during = f" while {doing}" if doing else ""
    windows = getattr(error, "winerror", None)
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", -1), errno.EFBIG) or windows in (39, 112):
        return LimError(
            "disk_full",
            f"The disk is full{during}{': ' + where.strip() if where else ''}.",
            "Free some space, or clear the cache in the add-on's preferences; the finished parts of the job are kept.",
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) or windows == 5:
        return LimError(
            "read_only",
            f"Access to{where or ' the folder'} is not allowed{during}.",
            "Choose a folder that you may read and write.",
        )
    if error.errno in (errno.EEXIST, errno.EISDIR):
        return LimError(
            "read_only",
            f"Something of another kind is in the way at{where or ' that place'}{during}.",
            "Use another name.",
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return LimError("missing_file", f"There is no{where or ' such file'}{during}.", "Check the path.")
    if error.errno == errno.ENOMEM:
        return LimError("out_of_memory", f"The memory ran out{during}.", "Close other programs or lower the quality.")
    return LimError("internal", f"The system reported “{error.strerror or error}”{where}{during}.", "The log has more.")


OUT_OF_MEMORY = ("out of memory", "defaultcpuallocator", "bad_alloc", "can't allocate memory", "unable to allocate")


def as_lim_error(failure: Exception) -> LimError:
    """Every failure as a sentence; the traceback goes to stderr, which Blender keeps in log.txt."""
    if isinstance(failure, LimError):
        return failure
    traceback.print_exc(file=sys.stderr)
    said = str(failure).lower()
    if isinstance(failure, MemoryError) or any(word in said for word in OUT_OF_MEMORY):
        return LimError(
            "out_of_memory",
            "The memory ran out.",
            "Choose a lower quality, fewer keyframes, or the CPU instead of the graphics card.",
        )
    if isinstance(failure, ImportError):
        return LimError(
            "backend_broken",
            f"A part of the backend is missing: {failure}.",
            "Install the backend again from the preferences.",
        )
    if isinstance(failure, OSError):
        return from_os_error(failure, "running the job")
    return LimError("internal", f"Something went wrong that should not have: {failure}.", "The log has more.")
