# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that can go wrong and that a person can do something about."""

from __future__ import annotations


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
