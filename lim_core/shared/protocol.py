# SPDX-License-Identifier: GPL-3.0-or-later
"""The one vocabulary between Blender and the backend; both sides import this file.

The backend writes one JSON object a line on stdout (an *event*), reads one JSON object a line on stdin (a *command*),
and writes text for people on stderr. A run ends with exactly one of `FINAL_EVENTS`; an exit without one is a crash.
Standard library only.
"""

from __future__ import annotations

import json

VERSION = 1

# ---- events: name -> fields that are always there ------------------------------------------------------------
EVENTS = {
    "hello": ("protocol", "version", "pid", "device"),  # first line
    "stage": ("stage", "index", "count"),  # a stage begins; index is 0-based
    "progress": ("stage", "fraction", "seconds_left"),  # fraction of the WHOLE run, 0..1; seconds_left may be null
    "preview": ("path", "label"),  # a picture in the job folder, relative to it
    "warning": ("code", "message", "hint"),  # the run goes on
    "result": ("path", "seconds"),  # result.json, relative to the job folder
    "error": ("code", "message", "hint"),  # code is a key of ERROR_CODES
    "cancelled": (),
}
FINAL_EVENTS = ("result", "error", "cancelled")

# ---- commands --------------------------------------------------------------------------------------------------
COMMANDS = {"cancel": ()}  # the end of stdin means the same: Blender is gone

# ---- stages, in the order they run ----------------------------------------------------------------------------
VIDEO_STAGES = {  # of a video job, before the others
    "import": "Reading the clip",
    "views": "Making the other views",
}
STAGES = {
    "reconstruct": "Reconstructing the keyframes",
    "surface": "Building the template mesh",
    "canonical": "Carrying the canonical coordinates",
    "trace": "Tracing the mesh through time",
    "fit": "Fitting the keyframes to the capture",
    "texture": "Baking the texture",
    "interpolate": "Drawing what lies between the keyframes",
}

# ---- error codes: code -> (exit code of the process, id of the operator that fixes it or "") --------------------
# Exit codes: 0 result, 1 crash, 2 wrong command line, 3 bad input, 4 backend or weights, 5 resources, 6 cancelled.
ERROR_CODES = {
    # bad input, seen by Blender or by the backend
    "nothing_selected": (3, ""),
    "one_keyframe": (3, ""),
    "keyframe_order": (3, ""),
    "keyframe_range": (3, ""),
    "empty_mesh": (3, ""),
    "outside_cameras": (3, ""),
    "unsaved_file": (3, ""),
    "bad_request": (3, ""),
    "bad_capture": (3, ""),
    "bad_template": (3, ""),
    "bad_pack": (3, ""),
    "missing_file": (3, ""),
    "bad_video": (3, ""),
    "no_foreground": (3, ""),
    # backend and weights
    "backend_missing": (4, "lim.backend_install"),
    "backend_outdated": (4, "lim.backend_install"),
    "backend_broken": (4, "lim.backend_install"),
    "backend_crashed": (4, "lim.open_log"),
    "weights_missing": (4, ""),
    "weights_broken": (4, ""),
    "no_device": (4, ""),
    "decoder_missing": (4, "lim.backend_install"),
    # resources
    "out_of_memory": (5, ""),
    "disk_full": (5, "lim.cache_clear"),
    "read_only": (5, ""),
    # what the stages can find
    "empty_surface": (3, ""),
    "blender_missing": (4, ""),
    "internal": (1, "lim.open_log"),
}
EXIT_RESULT, EXIT_CRASH, EXIT_USAGE, EXIT_INPUT, EXIT_BACKEND, EXIT_RESOURCES, EXIT_CANCELLED = 0, 1, 2, 3, 4, 5, 6

# ---- warning codes ------------------------------------------------------------------------------------------------
WARNING_CODES = (
    "missing_texture",  # a source image file was not found: drawn in flat colour
    "clips_left_out",  # a file holds more clips than can play at once
    "addon_missing",  # the animation needs an add-on that is not there
    "left_out",  # parts of the source that the render does not show
    "nothing_moves",  # the source looks the same at every keyframe
    "changing_look",  # colours, textures or UVs change over time: they stay as at the first keyframe
    "camera_look",  # a material reads coordinates of the camera
    "lost_attribute",  # a material asks its instancer for an attribute that was not found
    "displaced",  # displacement of a material is not captured
    "alpha_cards",  # sheets cut out by transparency become one opaque shell
    "strands",  # hair and points are captured as tubes and spheres
    "small_in_view",  # the object fills little of the views (large root motion, say)
    "no_depth",  # no captured depth: the fit stage is skipped
    "no_background",  # Blender cannot show the clip behind the result
    "video_cut",  # the clip holds several shots: the longest is used
    "leaves_frame",  # the object touches the picture's edge
    "several_objects",  # the largest is kept
    "variable_rate",  # the frames of the clip do not follow at one rate
    "long_clip",  # so many frames that keyframes are further apart than the motion asks for
)

# ---- files of a job folder, relative to it --------------------------------------------------------------------------
REQUEST_FILE = "request.json"
CAPTURE_FOLDER = "capture"
CAMERAS_FILE = "capture/cameras.npz"
CLIP_FILE = "capture/clip.json"
TEMPLATE_FILE = "capture/template.npz"
STATE_FOLDER = "state"
PREVIEW_FOLDER = "previews"
CLIP_PREVIEW = "previews/clip.png"
VIEWS_PREVIEW = "previews/views.png"
LOG_FILE = "log.txt"
RESULT_FILE = "result.json"
RESULT_ARRAYS = "result.npz"
TEXTURE_FILE = "texture.png"


def image_file(keyframe: int, view: int) -> str:
    """RGBA, 8 bit, sRGB-encoded albedo, straight alpha. `keyframe` and `view` are indices, not frames."""
    return f"{CAPTURE_FOLDER}/k{keyframe:03d}_v{view:02d}.png"


def depth_file(keyframe: int) -> str:
    """npz with `depth_planar`, float32 [views, height, width]: camera z in model space, 0 where nothing is."""
    return f"{CAPTURE_FOLDER}/k{keyframe:03d}_depth.npz"


def preview_file(kind: str, index: int, view: int) -> str:
    """A picture of entry `index` of `request.frames()` in camera `view`; kind is “triplane” or “traced”."""
    return f"{PREVIEW_FOLDER}/{kind}_f{index:03d}_v{view:02d}.png"


# ---- lines ----------------------------------------------------------------------------------------------------------
def encode_event(name: str, **fields) -> str:
    """One event as one line without its newline: `{"event": name, ...fields}`, ASCII only, so that no console's
    encoding can break it. Raises ValueError if the event is unknown, lacks a field, or holds NaN or infinity."""
    return _encode("event", EVENTS, name, fields)


def decode_event(line: str | bytes) -> dict:
    """The event in one line; ValueError if the line is anything else (the reader logs it and goes on)."""
    return _decode("event", EVENTS, line)


def encode_command(name: str, **fields) -> str:
    """One command as one line without its newline: `{"command": name, ...fields}`."""
    return _encode("command", COMMANDS, name, fields)


def decode_command(line: str | bytes) -> dict:
    """The command in one line; ValueError if the line is anything else."""
    return _decode("command", COMMANDS, line)


def _encode(kind: str, known: dict, name: str, fields: dict) -> str:
    _check(kind, known, name, fields)
    return json.dumps({kind: name, **fields}, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _decode(kind: str, known: dict, line: str | bytes) -> dict:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get(kind), str):
        raise ValueError(f"not a {kind}")
    _check(kind, known, data[kind], data)
    return data


def _check(kind: str, known: dict, name: str, fields: dict) -> None:
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}")
    missing = [field for field in known[name] if field not in fields]
    if missing:
        raise ValueError(f"{kind} {name!r} has no {missing[0]!r}")
