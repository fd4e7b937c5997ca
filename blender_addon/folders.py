# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the backend, the weights and the jobs lie: what the preferences say, or the defaults outside an extension."""

from __future__ import annotations

import bpy

from . import ids
from .job import backend


def get() -> "LIM_AP_preferences | None":
    """The preferences, or None outside an installed extension."""
    addon = bpy.context.preferences.addons.get(ids.BASE_PACKAGE)
    return addon.preferences if addon else None


def backend_home() -> str:
    """The folder chosen for the backend, "" for the platform's."""
    chosen = get()
    return bpy.path.abspath(chosen.backend_folder) if chosen and chosen.backend_folder else ""


def backend_python() -> str:
    """The backend's Python; it need not exist."""
    return str(backend.python(backend_home()))


def weights_folder() -> str:
    """The folder of the checkpoints, "" for the bundled ones."""
    chosen = get()
    return bpy.path.abspath(chosen.weights_folder) if chosen and chosen.weights_folder else ""


def cache_folder() -> str:
    """The folder that holds the job folders."""
    chosen = get()
    if chosen and chosen.cache_folder:
        return bpy.path.abspath(chosen.cache_folder)
    if ids.INSTALLED:
        return bpy.utils.extension_path_user(ids.BASE_PACKAGE, path="jobs", create=True)
    return str(backend.home() / "jobs")
