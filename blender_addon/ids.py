# SPDX-License-Identifier: GPL-3.0-or-later
"""Names that several files agree on. Plain Python."""

from __future__ import annotations

from pathlib import Path

BASE_PACKAGE = __package__.rpartition(".")[0]
"""The package that Blender knows: `bl_ext.<repository>.lim`, or `lim_for_blender` outside an installed extension."""

ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds `blender_addon`, `lim_core` and `install`."""

INSTALLED = BASE_PACKAGE.startswith("bl_ext.")
"""Whether this runs as an installed extension, and not from a checkout."""

TAB = "LIM"
COLLECTION = "LIM"
"""Name of the collection that results are put into."""

COMMAND = "lim"
"""`blender --command lim`."""

GENERATE = "lim.generate"
CANCEL = "lim.cancel"
OPEN_LOG = "lim.open_log"
DISMISS = "lim.dismiss"
BACKEND_INSTALL = "lim.backend_install"
BACKEND_UNINSTALL = "lim.backend_uninstall"
CACHE_CLEAR = "lim.cache_clear"
CACHE_MEASURE = "lim.cache_measure"
RESULT_SELECT = "lim.result_select"
RESULT_KEEP = "lim.result_keep"
EXPORT = "lim.export"
RESULT_COLOUR = "lim.result_colour"
CLIP_MATCH = "lim.clip_match"
IMPORT_VIDEO = "lim.import_video"
IMPORT_SOURCE = "lim.import_source"
PREVIEW_OPEN = "lim.preview_open"
POSE_ADD = "lim.pose_add"
POSE_REMOVE = "lim.pose_remove"
POSE_MOVE = "lim.pose_move"
OPERATORS = (
    GENERATE, CANCEL, OPEN_LOG, DISMISS, BACKEND_INSTALL, BACKEND_UNINSTALL, CACHE_CLEAR, CACHE_MEASURE,
    RESULT_SELECT, RESULT_KEEP, RESULT_COLOUR, EXPORT, CLIP_MATCH, IMPORT_VIDEO, IMPORT_SOURCE, PREVIEW_OPEN, POSE_ADD, POSE_REMOVE, POSE_MOVE,
)  # fmt: skip
