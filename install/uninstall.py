# SPDX-License-Identifier: GPL-3.0-or-later
"""Removes what the other commands installed, and nothing that they did not make."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import locations
from environment import say
from lim_core.shared.errors import from_os_error


def run(*, dry_run: bool = False) -> int:
    """Remove our folders in LIM_HOME, then LIM_HOME itself if nothing else lies there. Exit code 0."""
    home = locations.home()
    found = sorted({path for pattern in locations.KNOWN for path in home.glob(pattern)}) if home.is_dir() else []
    for path in found:
        if path.name != ".lock":
            say(f"{'would remove' if dry_run else 'removing'} “{path}” ({_size(path) / 1e6:.0f} MB)")
        if not dry_run:
            _remove(path)
    if not found:
        say(f"Nothing is installed in “{home}”.")
    if not dry_run and home.is_dir():
        left = sorted(home.iterdir())
        if left:
            say(f"Kept, because LIM did not make it: {', '.join(f'“{path}”' for path in left)}")
        else:
            home.rmdir()
            say(f"removed “{home}”")
    say("pip keeps downloads in a cache of its own: `python3 -m pip cache purge` empties it.")
    return 0


def _remove(path: Path) -> None:
    def writable_again(function, name, _):
        os.chmod(name, stat.S_IWRITE)  # Windows refuses to delete a read-only file
        function(name)

    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, onerror=writable_again)
        else:
            path.unlink()
    except OSError as error:
        raise from_os_error(error, "uninstalling; close Blender and every running job first") from error


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
