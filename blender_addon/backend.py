# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the backend is installed, whether it is fit to run, and the commands that install and remove it. Plain Python."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..install import locations
from ..lim_core.errors import LimError
from . import ids

INSTALL_HINT = "Install it in the add-on's preferences, or with “python3 install backend”."


def home(chosen: str = "") -> Path:
    """LIM_HOME: the folder chosen in the preferences, else the platform's."""
    return Path(os.path.abspath(os.path.expanduser(chosen))) if chosen else locations.home()


def python(chosen_home: str = "") -> Path:
    """The backend's Python; it need not exist."""
    return locations.python_of(home(chosen_home) / "backend")


def state(chosen_home: str = "") -> str:
    """ "ready", "outdated", "unfinished" (an installation was interrupted) or "missing". Reads two small files."""
    folder = home(chosen_home) / "backend"
    if not locations.python_of(folder).exists():
        return "missing"
    stamp = locations.stamp_of(folder)
    if not stamp:
        return "unfinished"
    return "ready" if stamp.get("locks", {}).get("backend") == locations.lock_digest("backend") else "outdated"


def check(python_path: str) -> None:
    """Raise LimError if the backend cannot be started, before any work is done for it."""
    if not python_path:
        raise LimError("backend_missing", "The backend that does the computing is not installed.", INSTALL_HINT)
    if not Path(python_path).is_file():
        raise LimError("backend_missing", f"The backend is not installed: there is no “{python_path}”.", INSTALL_HINT)
    folder = Path(python_path).parents[1]
    if folder.name != "backend" or Path(python_path) != locations.python_of(folder):
        return  # an environment of the user's own; the backend's first words tell whether it fits
    found = state(str(folder.parent))
    if found == "unfinished":
        raise LimError(
            "backend_broken",
            "The installation of the backend did not finish.",
            "Install it again; what was downloaded is kept.",
        )
    if found == "outdated":
        raise LimError(
            "backend_outdated",
            "The installed backend belongs to another version of the add-on.",
            "Install it again; what has not changed is kept.",
        )


def install_command(*, device: str = "auto", wheels: str = "", repair: bool = False) -> list[str]:
    """The command that installs the backend; run it with `environment`."""
    command = [sys.executable, "-I", "-u", "-X", "utf8", str(ids.ROOT / "install"), "backend", "--device", device]
    command += ["--wheels", wheels] if wheels else []
    return [*command, "--repair"] if repair else command


def uninstall_command() -> list[str]:
    """The command that removes all that the installer made; run it with `environment`."""
    return [sys.executable, "-I", "-u", "-X", "utf8", str(ids.ROOT / "install"), "uninstall"]


def environment(chosen_home: str = "") -> dict[str, str]:
    """Environment variables for these commands."""
    from .worker import clean_environment

    return {**clean_environment(), "LIM_HOME": str(home(chosen_home))}
