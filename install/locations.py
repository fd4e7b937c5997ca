# SPDX-License-Identifier: GPL-3.0-or-later
"""Where everything lies. Imports nothing of this project, so that the add-on can import this file too.

    <LIM_HOME>/backend/          environment of the backend (torch); backend.json in it is written last
    <LIM_HOME>/blender-4.5/      environment of one bpy wheel; blender.json in it is written last
    <LIM_HOME>/blender-user/     Blender's own settings folder while we run it: never the user's
    <LIM_HOME>/jobs/             job folders of runs without a window that name none
    <LIM_HOME>/.lock             held while something is being installed

LIM_HOME is the environment variable of that name, or `lim-blender` in the platform's folder for user data.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds lim_core, blender_addon and install."""

APPLICATION = "lim-blender"
KNOWN = ("backend", "blender-*", "jobs", ".lock")
"""All that we ever create in LIM_HOME, as patterns."""


def home() -> Path:
    """LIM_HOME, absolute; it need not exist yet."""
    chosen = os.environ.get("LIM_HOME")
    if chosen:
        return Path(os.path.abspath(os.path.expanduser(chosen)))
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = os.environ.get("XDG_DATA_HOME", "")
        base = base if os.path.isabs(base) else Path.home() / ".local" / "share"
    return Path(base) / APPLICATION


def backend_folder() -> Path:
    return home() / "backend"


def blender_folder(version: str) -> Path:
    """Environment of the bpy wheel of a Blender series such as "4.5"."""
    return home() / f"blender-{version}"


def blender_user_folder(version: str) -> Path:
    """What BLENDER_USER_RESOURCES is set to, so that the user's own settings are neither read nor written."""
    return home() / "blender-user" / version


def lock_file(name: str) -> Path:
    return Path(__file__).resolve().parent / f"{name}.lock.txt"


def python_of(environment: Path) -> Path:
    """The Python of a virtual environment; it need not exist."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def site_packages_of(environment: Path) -> Path | None:
    """The folder of installed packages, or None where there is none yet."""
    if os.name == "nt":
        folders = [environment / "Lib" / "site-packages"]
    else:
        folders = sorted((environment / "lib").glob("python3.*/site-packages"))
    return next((folder for folder in folders if folder.is_dir()), None)


def stamp_of(environment: Path) -> dict:
    """What the stamp of a finished environment says; {} where it is not finished."""
    path = environment / ("backend.json" if environment.name == "backend" else "blender.json")
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def lock_digest(name: str) -> str:
    """Changes when anything that the lock installs changes; the comments and the line ends do not count."""
    lines = lock_file(name).read_text(encoding="utf-8").splitlines()
    content = "\n".join(line.strip() for line in lines if not line.startswith("#"))
    return hashlib.sha256(content.encode()).hexdigest()


def backend_state() -> str:
    """ "ready", "outdated" (another version's packages) or "missing"; a few milliseconds, nothing is started."""
    folder = backend_folder()
    stamp = stamp_of(folder)
    if not stamp or not python_of(folder).exists():
        return "missing"
    return "ready" if stamp.get("locks", {}).get("backend") == lock_digest("backend") else "outdated"
