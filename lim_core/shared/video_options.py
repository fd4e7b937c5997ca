# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lim_core run JOB --video FILE …`: a clip's options, and the request that they make. Standard library only."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from . import request
from .request import Request

CLIP_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".tga")
"""Suffixes of the pictures that the backend reads as frames of a clip; what has another one is opened as a film."""
OPTIONS: dict[str, tuple[str, Callable[[str], object], str]] = {
    # option: (field of the request, type, help)
    "--first": ("video_first", int, "first clip frame, counted from 1"),
    "--last": ("video_last", int, "last clip frame; 0: to the end"),
    "--step": ("video_step", int, "a keyframe every so many clip frames; 0: by motion"),
    "--fps": ("video_fps", float, "clip frames a second; 0: as the file says"),
    "--mask": ("mask", os.path.abspath, "pictures or a film, light where the object is"),
    "--key-colour": ("key_colour", str, "the background's colour, #rrggbb; default: as along the border"),
    "--matting": ("matting", os.path.abspath, "a matting model: an .onnx file or a folder with one"),
    "--views-model": ("views_model", os.path.abspath, "folder of the pipeline that makes the other views"),
    "--elevation": ("elevation", float, "degrees by which the clip's camera looks down"),
    "--weights": ("weights", os.path.abspath, "folder of the four checkpoints"),
}


def add_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--video", default="", help="a film, a folder of pictures, or one picture of a sequence")
    group.add_argument("--foreground", choices=request.FOREGROUNDS, default="auto")
    group.add_argument("--quality", choices=tuple(request.QUALITIES), default="standard")
    group.add_argument("--device", choices=request.DEVICES, default="auto")
    for option, (field, kind, words) in OPTIONS.items():
        group.add_argument(option, dest=field, type=kind, help=words)


def write_request(args: argparse.Namespace) -> Path:
    """The job folder's request.json as the options say. Raises LimError bad_request."""
    size, extra, texture_size, faces = request.QUALITIES[args.quality]
    given = {field: getattr(args, field) for field, _, _ in OPTIONS.values() if getattr(args, field) is not None}
    asked = Request(
        keyframes=(), source="video", video=os.path.abspath(args.video), foreground=args.foreground, device=args.device,
        name=Path(args.video).stem or "LIM", image_size=size, views=4 + extra, texture_size=texture_size,
        template_faces=faces, **given,
    )  # fmt: skip
    Path(args.job).mkdir(parents=True, exist_ok=True)
    return request.write(asked, args.job)
