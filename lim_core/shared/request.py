# SPDX-License-Identifier: GPL-3.0-or-later
"""What a job asks for: `request.json`, written by Blender, read by the backend.

Standard library only. An unknown key is an error that names it, so that a misspelt setting never passes silently.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from pathlib import Path

import numpy as np

from . import files, protocol
from .errors import LimError

QUALITIES = {
    # name: (capture size in pixels, extra views for geometry and texture, texture size, template faces)
    "draft": (256, 4, 512, 4000),
    "standard": (512, 8, 1024, 10000),
    "high": (768, 12, 2048, 20000),
}
DEVICES = ("auto", "cpu", "cuda", "mps")  # a ROCm build of torch calls its device "cuda"
SOURCES = ("objects", "poses", "video")
TEMPLATES = ("reconstructed", "mesh")
FOREGROUNDS = ("auto", "alpha", "mask", "key", "matting")


@dataclasses.dataclass(frozen=True)
class Request:
    """One job. Frames are Blender's (may be fractional); model space is [-1, 1]³, +Z up (docs/architecture.md)."""

    keyframes: tuple[float, ...]
    """Scene frames, strictly increasing, at least two. Keyframe k of the capture is `keyframes[k]`. Empty for a video,
    whose clip decides: `read` fills in these and the in-betweens once the clip has been imported."""
    inbetweens: int = 7
    """Frames made between each pair of keyframes, evenly spaced; 0 traces the keyframes only."""
    last_inbetweens: int = -1
    """The same of the last pair, where a clip's last keyframe comes sooner than the others; -1: as all."""
    world_to_model: tuple[tuple[float, ...], ...] = ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))
    """4×4 similarity, row-major, of the first keyframe; undone only when the result is written to the scene."""
    origins: tuple[tuple[float, ...], ...] = ()
    """Where the origin of model space is at each keyframe, model units from where it is at the first one: the cameras follow
    an object that walks away. Empty: they stand still. The result's positions are from the first one's."""
    source: str = "objects"
    name: str = "LIM"
    """Name of the resulting object."""
    fps: float = 24.0
    """Frames a second of the source scene: the result keeps its timing."""
    image_size: int = 512
    """Pixels along each side of every captured view."""
    rig_views: int = 4
    """The first views of the capture are the rig that the networks see; the others serve geometry and texture."""
    views: int = 12
    """Captured views in all."""
    has_depth: bool = True
    template: str = "reconstructed"
    template_faces: int = 10000
    texture_size: int = 1024
    fit: bool = True
    """Pull the keyframes onto the captured depth; off gives the networks' result alone."""
    smoothness: float = 0.5
    """0..1: how strongly neighbouring vertices move together (ARAP) against following each match exactly."""
    max_keys: int = 0
    """Shape keys at most; 0: one for every frame. The frames between them are played by mixing their neighbours."""
    device: str = "auto"
    weights: str = ""
    """Folder that holds the four checkpoints; empty: the bundled ones."""
    video: str = ""
    """For the source “video”, as all that follows: a film, a folder of pictures, or one picture of a numbered sequence."""
    video_first: int = 1
    """First clip frame that is used, counted from 1."""
    video_last: int = 0
    """Last clip frame that is used; 0: to the end."""
    video_step: int = 0
    """A keyframe every so many clip frames; 0: by how much the picture changes."""
    video_fps: float = 0.0
    """Clip frames a second; 0: as the file says (24 for pictures)."""
    video_start: float = 1.0
    """Scene frame at which `video_first` plays; one clip frame is one scene frame."""
    foreground: str = "auto"
    """What tells the object from the background, one of FOREGROUNDS."""
    mask: str = ""
    """For the foreground “mask”: pictures or a film, light where the object is."""
    key_colour: str = ""
    """For the foreground “key”: the background's colour as #rrggbb; empty: as along the picture's border."""
    matting: str = ""
    """For the foreground “matting”: a model, an .onnx file or a folder with one."""
    views_model: str = ""
    """Folder of the pipeline that makes the other views; empty: the bundled one."""
    elevation: float = 20.0
    """Degrees by which the clip's camera looks down on the object."""
    protocol: int = protocol.VERSION

    def frames(self) -> list[float]:
        """Every frame of the result, in order; keyframe k is entry `entry(k)`."""
        times: list[float] = []
        for k, (first, last) in enumerate(zip(self.keyframes, self.keyframes[1:])):
            steps = self.steps(k)
            times += [first + (last - first) * step / steps for step in range(steps)]
        return [*times, *self.keyframes[-1:]]

    def carried(self) -> list[tuple[float, ...]]:
        """The origin of model space at every frame of `frames()`: on straight lines between the keyframes'."""
        origins = self.origins or ((0.0, 0.0, 0.0),) * len(self.keyframes)
        return [tuple(a + alpha * (b - a) for a, b in zip(origins[k], origins[k + 1])) for k, alpha in self.intervals()]

    def steps(self, interval: int) -> int:
        """How many frames of the result the keyframe after an interval comes after the one before it."""
        last = self.last_inbetweens >= 0 and interval == len(self.keyframes) - 2
        return 1 + (self.last_inbetweens if last else self.inbetweens)

    def entry(self, keyframe: int) -> int:
        """The index of a keyframe among `frames()`."""
        return sum(self.steps(k) for k in range(keyframe))

    def reduced(self) -> bool:
        """Whether only some of the frames become shape keys."""
        return 0 < self.max_keys < len(self.frames())

    def intervals(self) -> list[tuple[int, float]]:
        """(keyframe index, alpha) for every frame of `frames()`; the last one is (last - 1, 1.0)."""
        pairs = [(k, i / self.steps(k)) for k in range(len(self.keyframes) - 1) for i in range(self.steps(k))]
        return [*pairs, (len(self.keyframes) - 2, 1.0)]


def check(request: Request) -> None:
    """Raise LimError, worded for an artist, if the request cannot be run."""
    keys = request.keyframes
    if request.source == "video":
        _check_video(request)
    elif len(keys) < 2:
        raise LimError(
            "one_keyframe",
            f"There {'is only one keyframe' if len(keys) == 1 else 'are no keyframes'}: nothing can be in-betweened.",
            "Give at least two keyframes.",
        )
    if not all(math.isfinite(k) for k in keys):
        raise LimError("bad_request", "A keyframe is not a number.", "Type frames such as 1, 9, 17.")
    for earlier, later in zip(keys, keys[1:]):
        if later == earlier:
            raise LimError("keyframe_order", f"Keyframe {later:g} is listed twice.", "Remove one of the two.")
        if later < earlier:
            raise LimError(
                "keyframe_order",
                f"Keyframe {later:g} comes after {earlier:g}, but lies before it in time.",
                "List the keyframes in increasing order.",
            )
    choices = {"source": SOURCES, "template": TEMPLATES, "device": DEVICES, "foreground": FOREGROUNDS}
    for field, allowed in choices.items():
        if getattr(request, field) not in allowed:
            raise LimError(
                "bad_request", f"“{getattr(request, field)}” is not a {field}.", f"Use {', '.join(allowed)}."
            )
    if request.max_keys == 1:
        raise LimError("bad_request", "One shape key cannot hold a motion.", "Allow two or more, or 0 for all frames.")
    limits = {
        "inbetweens": (0, 1000),
        "last_inbetweens": (-1, 1000),
        "max_keys": (0, 10**6),
        "image_size": (32, 4096),
        "rig_views": (1, 64),
        "views": (request.rig_views, 256),
        "template_faces": (100, 2_000_000),
        "texture_size": (16, 16384),
        "smoothness": (0, 1),
        "fps": (1e-3, 1e6),
    }
    for field, (low, high) in limits.items():
        value = getattr(request, field)
        if not (low <= value <= high):
            raise LimError("bad_request", f"{field} is {value}, but must lie between {low} and {high}.")
    matrix = request.world_to_model
    if len(matrix) != 4 or any(len(row) != 4 for row in matrix) or not all(math.isfinite(x) for r in matrix for x in r):
        raise LimError("bad_request", "world_to_model is not a 4×4 matrix of finite numbers.")
    places = request.origins
    if any(len(place) != 3 or not all(math.isfinite(x) for x in place) for place in places):
        raise LimError("bad_request", "origins are not places of three finite numbers.")
    if places and len(places) != len(keys):
        raise LimError("bad_request", f"There are {len(places)} origins for {len(keys)} keyframes.")
    if request.protocol != protocol.VERSION:
        raise LimError(
            "backend_outdated",
            f"The job speaks version {request.protocol} of the protocol, this backend speaks {protocol.VERSION}.",
            "Install the backend again from the add-on's preferences.",
        )


def _check_video(request: Request) -> None:
    if not request.video:
        raise LimError("bad_request", "No video is named.", "Choose a film or a folder of pictures.")
    if request.template == "mesh":
        raise LimError("bad_request", "A video cannot move a mesh of your own.", "Let the mesh be reconstructed.")
    limits = {
        "video_first": (1, 10**7),
        "video_last": (0, 10**7),
        "video_step": (0, 1000),
        "video_fps": (0, 1000),
        "video_start": (-(10**6), 10**6),
        "elevation": (-30, 60),
    }
    for field, (low, high) in limits.items():
        value = getattr(request, field)
        if not (low <= value <= high):
            raise LimError("bad_request", f"{field} is {value}, but must lie between {low} and {high}.")
    if request.video_last and request.video_last <= request.video_first:
        raise LimError(
            "bad_request",
            f"The clip's range ends at frame {request.video_last}, before it has begun at {request.video_first}.",
            "Give a last frame after the first.",
        )
    if request.key_colour and not re.fullmatch(r"#[0-9a-fA-F]{6}", request.key_colour):
        raise LimError("bad_request", f"“{request.key_colour}” is not a colour.", "Write it as #00ff00.")
    if request.foreground == "mask" and not request.mask:
        raise LimError("bad_request", "The foreground is to come from a mask, but none is named.", "Choose the masks.")


def to_json(request: Request) -> str:
    return json.dumps(dataclasses.asdict(request), indent=2, ensure_ascii=False)


def from_json(text: str) -> Request:
    """Parse and check a request; any flaw is a LimError that names it."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise LimError("bad_request", f"request.json is not readable as JSON: {error}.") from None
    if not isinstance(data, dict):
        raise LimError("bad_request", "request.json does not hold an object.")
    fields = {field.name: field for field in dataclasses.fields(Request)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise LimError("bad_request", f"request.json has an unknown key: {unknown[0]}.", "Remove or correct it.")
    if "keyframes" not in data:
        raise LimError("bad_request", "request.json has no keyframes.")
    values = {}
    for name, value in data.items():
        wanted = str(fields[name].type)  # as it is written above
        try:
            values[name] = _convert(wanted, value)
        except (TypeError, ValueError, OverflowError):
            raise LimError("bad_request", f"{name} should be {wanted}, but is {value!r}.") from None
    request = Request(**values)
    check(request)
    return request


def _convert(wanted: str, value):
    if wanted == "bool":
        if not isinstance(value, bool):
            raise TypeError
        return value
    if wanted == "str":
        if not isinstance(value, str):
            raise TypeError
        return value
    if wanted == "int":
        if isinstance(value, bool) or int(value) != value:
            raise TypeError
        return int(value)
    if wanted == "float":
        return _number(value)
    if not isinstance(value, (list, tuple)):
        raise TypeError
    if wanted == "tuple[float, ...]":
        return tuple(_number(x) for x in value)
    return tuple(tuple(_number(x) for x in row) for row in value)


def _number(value) -> float:
    if isinstance(value, (bool, str)):
        raise TypeError
    return float(value)


def write(request: Request, job: str | os.PathLike) -> Path:
    """Write request.json into the job folder, whole or not at all."""
    check(request)
    path = Path(job) / protocol.REQUEST_FILE
    files.write_text(path, to_json(request))
    return path


def read(job: str | os.PathLike) -> Request:
    """The job's request; that of a video with the keyframes which its clip has given, if it was imported already."""
    path = Path(job) / protocol.REQUEST_FILE
    if not path.is_file():
        raise LimError("missing_file", f"“{job}” is not a job folder: it has no {protocol.REQUEST_FILE}.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise LimError("bad_request", f"{path.name} is not a text file in UTF-8.", "Start the job again.") from None
    request = from_json(text)
    return with_clip(request, job) if request.source == "video" else request


def with_clip(request: Request, job: str | os.PathLike) -> Request:
    """The request with the keyframes and in-betweens in capture/clip.json; unchanged while there is no such file."""
    try:
        clip = json.loads((Path(job) / protocol.CLIP_FILE).read_text(encoding="utf-8"))
        keyframes, inbetweens = tuple(float(frame) for frame in clip["keyframes"]), int(clip["inbetweens"])
        last = int(clip.get("last_inbetweens", -1))
    except (OSError, ValueError, KeyError, TypeError):
        return request
    return dataclasses.replace(request, keyframes=keyframes, inbetweens=inbetweens, last_inbetweens=last)


def interval_alphas(request: Request, interval: int) -> list[float]:
    """α of every frame of an interval, both ends included."""
    steps = request.steps(interval)
    return [step / steps for step in range(steps + 1)]


def placed(request: Request, positions: np.ndarray) -> np.ndarray:
    """Positions [T, V, 3] of all frames, each from its own origin, from the first keyframe's."""
    return positions + np.array(request.carried())[:, None]
