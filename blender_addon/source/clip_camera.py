# SPDX-License-Identifier: GPL-3.0-or-later
"""The clip of a video job in the scene: the camera that filmed it, with the clip behind the mesh, and its timing.

The camera stands and looks as the backend took it to (`capture/clip.json`), so the result covers the object in every
frame. What belongs to the artist (resolution, frame rate, range) is changed by `match_scene` alone, on request.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix

from ...lim_core.shared import protocol, request
from ...lim_core.shared.errors import LimError, from_os_error
from . import camera_rig

CLIP = "lim_clip"
"""Custom property of the camera's data: {"resolution": [w, h], "fps", "first_frame", "last_frame"} of the clip."""
CAMERA = "lim_camera"
"""Custom property of a result from a video: the camera object."""


def read_clip(job: Path) -> dict:
    """`capture/clip.json` of a finished job.

    Raises:
        LimError: missing_file, backend_crashed (it does not hold what it should).
    """
    try:
        clip = json.loads((job / protocol.CLIP_FILE).read_text(encoding="utf-8"))
        width, height = (int(size) for size in clip["resolution"])
        intrinsics = np.array(clip["intrinsics"], np.float64)
        camera_to_world = np.array(clip["camera_to_world"], np.float64)
        flaw = intrinsics.shape != (3, 3) or camera_to_world.shape != (4, 4) or min(width, height) < 1
        flaw = flaw or not (np.isfinite(intrinsics).all() and np.isfinite(camera_to_world).all())
        flaw = flaw or not (intrinsics[0, 0] > 0 and float(clip["fps"]) > 0 and int(clip["count"]) > 0)
        if flaw:
            raise ValueError("its camera is not one")
        return {
            "path": str(clip["path"]),
            "folder": str(clip["folder"]),
            "files": [str(name) for name in clip["files"]],
            "resolution": (width, height),
            "rotation": int(clip["rotation"]),
            "fps": float(clip["fps"]),
            "first": int(clip["first"]),
            "last": int(clip["last"]),
            "frame_start": float(clip["frame_start"]),
            "camera_to_world": camera_to_world,
            "intrinsics": intrinsics,
        }
    except OSError as error:
        raise from_os_error(error, "reading the result") from None
    except (ValueError, KeyError, TypeError) as error:
        raise LimError(
            "backend_crashed", f"{protocol.CLIP_FILE} cannot be used: {error}.", "Open the log, and run again."
        ) from None


def add_camera(
    scene: bpy.types.Scene, asked: request.Request, clip: dict, made: list[bpy.types.ID]
) -> tuple[bpy.types.Object, str]:
    """The clip's camera, not linked yet, with the clip as its background image.

    Args:
        clip: as `read_clip` gives it.
        made: receives every new data-block.
    Returns:
        The camera, and a sentence if Blender cannot show the clip behind the mesh ("" if it can).
    """
    width, height = clip["resolution"]
    (fx, _, cx), (_, _, cy) = clip["intrinsics"][:2]
    data = bpy.data.cameras.new(f"{asked.name} Camera")
    made.append(data)
    data.sensor_fit, data.sensor_width = "HORIZONTAL", camera_rig.SENSOR
    data.lens = camera_rig.SENSOR * fx / width
    data.shift_x, data.shift_y = (width / 2 - cx) / width, (cy - height / 2) / width
    to_world = np.linalg.inv(np.array(asked.world_to_model, np.float64))
    unit = abs(np.linalg.det(to_world[:3, :3])) ** (1 / 3)
    data.clip_start, data.clip_end = camera_rig.NEAR * unit, 100 * camera_rig.FAR * unit
    data.display_size = 0.3 * unit
    first, last = (
        max(0, int(clip["frame_start"] + clip[end] - 1)) for end in ("first", "last")
    )  # no scene begins earlier
    data[CLIP] = {"resolution": [width, height], "fps": clip["fps"], "first_frame": first, "last_frame": last}
    camera = bpy.data.objects.new(data.name, data)
    made.append(camera)
    matrix = to_world @ camera_rig.blender_matrix(clip["camera_to_world"])
    matrix[:3, :3] /= unit
    camera.matrix_world = Matrix(matrix.tolist())
    return camera, _add_background(scene, data, clip, made)


def _add_background(scene: bpy.types.Scene, data: bpy.types.Camera, clip: dict, made: list[bpy.types.ID]) -> str:
    path = Path(clip["folder"], clip["files"][0]) if clip["files"] else Path(clip["path"])
    try:
        image = bpy.data.images.load(str(path), check_existing=False)
    except RuntimeError:
        return f"Blender cannot read “{path.name}”; the camera has no background."
    made.append(image)
    if 0 in image.size:
        made.remove(image)
        bpy.data.images.remove(image)
        return f"This Blender cannot decode “{path.name}”; the camera has no background."
    background = data.background_images.new()
    background.image = image
    background.alpha, background.display_depth = 1.0, "BACK"
    data.show_background_images = True
    user = background.image_user
    user.frame_start, user.use_auto_refresh = int(clip["frame_start"]), True
    trouble = ""
    if not clip["files"]:
        user.frame_duration = image.frame_duration
    else:
        user.frame_duration = len(clip["files"])
        number = first_of_sequence(clip["files"])
        if number is not None:
            image.source, user.frame_offset = "SEQUENCE", number - 1
        elif len(clip["files"]) > 1:
            trouble = "The pictures are not numbered one by one, so the camera's background shows only the first."
    _turn(background, clip)
    frame_background(scene, data)
    return trouble


def first_of_sequence(names: list[str]) -> int | None:
    """The number of the first picture, if the names differ by one consecutive number at their end alone."""
    found = [re.fullmatch(r"(.*?)(\d+)(\.[^.]+)", name) for name in names]
    if not names or not all(found) or len({(m[1], m[3]) for m in found}) > 1:
        return None
    numbers = [int(m[2]) for m in found]
    padded = len({len(m[2]) for m in found}) == 1
    return numbers[0] if padded and numbers == list(range(numbers[0], numbers[0] + len(names))) else None


def _turn(background: bpy.types.CameraBackgroundImage, clip: dict) -> None:
    """Blenders that do not follow a file's rotation flag show the picture lying: turn it upright."""
    (width, height), (shown_width, shown_height) = clip["resolution"], background.image.size
    if clip["rotation"] in (90, 270) and (shown_width - shown_height) * (width - height) < 0:
        background.rotation = math.radians(clip["rotation"])
        background.scale = max(width, height) / min(width, height)


def frame_background(scene: bpy.types.Scene, data: bpy.types.Camera) -> None:
    """Make the background as wide as the camera's picture, whatever shape the scene renders: the lens is set by width."""
    render = scene.render
    shape = render.resolution_x * render.pixel_aspect_x / (render.resolution_y * render.pixel_aspect_y)
    width, height = data[CLIP]["resolution"]
    for background in data.background_images:
        turned = background.rotation != 0.0
        wider = shape > (width / height)
        background.frame_method = "CROP" if wider and not turned else "FIT"


def camera_of(object: bpy.types.Object | None) -> bpy.types.Object | None:
    """The clip's camera of a result; None if it is from no video, or its camera was deleted."""
    camera = object.get(CAMERA) if object else None
    return camera if camera is not None and camera.type == "CAMERA" and CLIP in camera.data else None


def differences(scene: bpy.types.Scene, camera: bpy.types.Object) -> list[str]:
    """In what the scene differs from the clip: some of "resolution", "frame rate", "frame range", "camera"."""
    clip, render = camera.data[CLIP], scene.render
    rate = abs(render.fps / render.fps_base - clip["fps"]) > 1e-3
    size = [render.resolution_x, render.resolution_y] != list(clip["resolution"])
    frames = (scene.frame_start, scene.frame_end) != (clip["first_frame"], clip["last_frame"])
    flags = {"resolution": size, "frame rate": rate, "frame range": frames, "camera": scene.camera != camera}
    return [name for name, differs in flags.items() if differs]


def match_scene(
    scene: bpy.types.Scene,
    camera: bpy.types.Object,
    *,
    resolution: bool = True,
    frame_rate: bool = True,
    frame_range: bool = True,
    active_camera: bool = True,
) -> None:
    """Set the scene to the clip: the shape of its renders, its speed, its range, its camera."""
    clip, render = camera.data[CLIP], scene.render
    if resolution:
        render.resolution_x, render.resolution_y = clip["resolution"]
        render.pixel_aspect_x = render.pixel_aspect_y = 1.0
    if frame_rate:
        whole = max(1, round(clip["fps"]))
        render.fps, render.fps_base = whole, whole / clip["fps"]
    if frame_range:
        scene.frame_start, scene.frame_end = clip["first_frame"], clip["last_frame"]
    if active_camera:
        scene.camera = camera
    frame_background(scene, camera.data)
