# SPDX-License-Identifier: GPL-3.0-or-later
"""A video as the source of a job: which files are one, what Blender knows of a clip, and the request's fields for it.

Blender only looks; the backend decodes (`lim_core/video/`).
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import bpy

from ...lim_core.shared.video_options import CLIP_PICTURES
from ..job import job_folders
from . import clip_camera

MOVIES = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi", ".gif", ".mpg", ".mpeg", ".ogv")
"""Suffixes of the films that may be dropped into Blender's window."""


def describe(path: str) -> str:
    """What a clip holds, in one line, as far as Blender knows; touches the disk."""
    if not path:
        return ""
    file = Path(path)
    if file.is_dir():
        count = sum(found.suffix.lower() in CLIP_PICTURES for found in file.iterdir())
        return f"{count} pictures" if count else "There are no pictures in this folder."
    if not file.is_file():
        return "There is no such file."
    try:
        clip = bpy.data.movieclips.load(str(file), check_existing=False) if hasattr(bpy.data, "movieclips") else None
    except (RuntimeError, TypeError):
        clip = None
    if clip is None:
        return "Blender cannot read it; the backend may."
    try:
        width, height = clip.size
        if not (width * height and clip.frame_duration > 0):
            return "Blender cannot decode it; the backend may."
        size = f"{width} × {height}"
        if file.suffix.lower() in CLIP_PICTURES:
            names = [Path(found).name for found in job_folders.sequence(file)]
            numbered = clip_camera.first_of_sequence(names) is not None
            return f"{len(names)} pictures, {size}" if numbered and len(names) > 1 else f"One picture, {size}"
        return f"{clip.frame_duration} frames, {clip.fps:g} a second, {size}"
    finally:
        bpy.data.movieclips.remove(clip)


def absolute(path: str) -> str:
    """A path as typed into Blender or a command line, for the backend; "" stays ""."""
    return os.path.abspath(bpy.path.abspath(path)) if path else ""


def hex_colour(colour) -> str:
    """(red, green, blue) in [0, 1], sRGB-encoded → "#rrggbb"."""
    return "#" + "".join(f"{round(255 * min(max(part, 0.0), 1.0)):02x}" for part in colour)


def fields(settings) -> dict[str, object]:
    """The fields of `request.Request` that the panel's settings (`Scene.lim`) give a video."""
    keyed = settings.foreground == "key" and settings.use_key_colour
    return {
        "video": absolute(settings.video),
        "video_first": settings.video_first if settings.use_video_range else 1,
        "video_last": settings.video_last if settings.use_video_range else 0,
        "video_step": settings.video_step if settings.video_keyframes == "EVERY" else 0,
        "video_fps": settings.video_fps,
        "video_start": float(settings.video_start),
        "foreground": settings.foreground,
        "mask": absolute(settings.mask) if settings.foreground == "mask" else "",
        "key_colour": hex_colour(settings.key_colour) if keyed else "",
        "matting": absolute(settings.matting) if settings.foreground in ("auto", "matting") else "",
        "views_model": absolute(settings.views_model),
        "elevation": round(math.degrees(settings.elevation), 4),
    }
