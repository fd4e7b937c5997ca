# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked for: the settings of a job, and the checks that nothing forbids it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import bpy

from ...lim_core.shared import request
from ...lim_core.shared.errors import LimError
from ...lim_core.shared.request import Request
from ..source import keyframes, rendered


def scene_named(name: str) -> bpy.types.Scene:
    scene = bpy.data.scenes.get(name) if name else bpy.context.scene
    if scene is None:
        raise LimError("missing_file", f"There is no scene “{name}” in the file.", "Check the name.")
    return scene


CLIP_KEYFRAMES = 16
"""Keyframes that a clip is taken to have while it has not been read."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a job is told. Objects are named, not referenced: undo may replace them while the job runs."""

    objects: tuple[str, ...] = ()
    keyframes: tuple[float, ...] = ()
    source: str = Request.source
    """"objects": all of them, animated. "poses": object k is the pose at keyframe k. "video": see `video`."""
    frame_range: tuple[float, float] | None = None
    """Keyframes outside it are refused; None allows any."""
    inbetweens: int = Request.inbetweens
    template: str = Request.template
    template_object: str = ""
    align_poses: bool = True
    quality: str = request.QUALITY
    fit: bool = Request.fit
    smoothness: float = Request.smoothness
    max_keys: int = Request.max_keys
    device: str = Request.device
    engine: str = "cycles"
    name: str = Request.name
    backend: str = ""
    """The backend's Python."""
    weights: str = ""
    cache: str = ""
    """Folder in which the job folder is made."""
    job: str = ""
    """The job folder itself, instead of one in the cache."""
    clip: str = ""
    """Which clips of the file play; the scene holds them, and the file alone does not say it."""
    notes: tuple[tuple[str, str, str], ...] = ()
    """Warnings that are known before the job begins: code, message, hint."""
    video: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """For the source "video": the clip's fields of `request.Request`, from `video` on. The backend reads the clip, and
    the clip decides the keyframes and in-betweens; nothing of the scene is captured."""
    stop_after_views: bool = False
    """End a video's job as cancelled once the other views are made, so that they can be looked at."""
    unchanged_file: str = ""
    """A file that alone decides what is captured: while it and the files it uses stay as they are, an earlier capture
    is used again. Empty: always capture."""


def check(scene: bpy.types.Scene, settings: Settings) -> request.Request:
    """The request that the settings ask for, without its transform. Raises LimError for whatever cannot work."""
    if settings.source != "video":
        _check_objects(scene, settings)
    wanted = Request.for_quality(
        settings.quality,
        keyframes=tuple(float(frame) for frame in settings.keyframes),
        inbetweens=settings.inbetweens,
        source=settings.source,
        name=settings.name,
        fps=scene.render.fps / scene.render.fps_base,
        template=settings.template,
        fit=settings.fit,
        smoothness=settings.smoothness,
        max_keys=settings.max_keys,
        device=settings.device,
        weights=settings.weights,
        **settings.video,
    )
    if settings.source == "video":
        at = scene.cursor.location  # where Blender adds whatever is new
        wanted = dataclasses.replace(
            wanted,
            world_to_model=((1.0, 0.0, 0.0, -at.x), (0.0, 1.0, 0.0, -at.y), (0.0, 0.0, 1.0, -at.z), (0, 0, 0, 1)),
        )
    request.check(wanted)
    if settings.source == "video":
        _check_files(wanted)
    if settings.frame_range:
        keyframes.check_range(wanted.keyframes, *settings.frame_range)
    if settings.template == "mesh":
        _check_template(scene, settings.template_object)
    if settings.weights and not Path(settings.weights).is_dir():
        raise LimError(
            "weights_missing", f"There is no weights folder “{settings.weights}”.", "Correct it, or leave it empty."
        )
    return wanted


def _check_objects(scene: bpy.types.Scene, settings: Settings) -> None:
    if not settings.objects:
        raise LimError("nothing_selected", "Nothing is selected.", "Select the objects to capture.")
    for name in settings.objects:
        if name not in scene.objects:
            raise LimError(
                "nothing_selected", f"There is no object “{name}” in the scene “{scene.name}”.", "Check the name."
            )
        if not (rendered.has_surface(scene.objects[name]) or scene.objects[name].type in rendered.FLESHLESS):
            kind = scene.objects[name].type.replace("_", " ").lower()
            raise LimError(
                "nothing_selected",
                f"“{name}” is of type {kind}, which has no surface to capture.",
                "Choose meshes, curves, text, metaballs, collection instances, or the rig that moves them.",
            )
    if settings.source == "poses" and len(settings.objects) != len(settings.keyframes):
        raise LimError(
            "one_keyframe" if len(settings.keyframes) < 2 else "bad_request",
            f"There are {len(settings.objects)} poses for {len(settings.keyframes)} keyframes.",
            "Give each pose one keyframe.",
        )
    if settings.source == "poses" and len(set(settings.objects)) < len(settings.objects):
        twice = next(name for name in settings.objects if settings.objects.count(name) > 1)
        raise LimError("bad_request", f"“{twice}” is listed twice as a pose.", "Remove it, or use a copy of it.")


def _check_files(wanted: request.Request) -> None:
    """The files that a video's request names are there; what is in them, the backend finds out."""
    named = {
        "video": ("missing_file", wanted.video),
        "mask": ("missing_file", wanted.mask if wanted.foreground == "mask" else ""),
        "matting model": ("weights_missing", wanted.matting if wanted.foreground in ("auto", "matting") else ""),
        "folder for the other views": ("weights_missing", wanted.views_model),
    }
    for what, (code, path) in named.items():
        if path and not Path(path).exists():
            raise LimError(code, f"There is no {what} “{path}”.", "Choose it again.")


def _check_template(scene: bpy.types.Scene, name: str) -> None:
    mesh = scene.objects.get(name)
    if mesh is None:
        raise LimError(
            "bad_template",
            f"There is no template “{name}” in the scene." if name else "No template mesh is chosen.",
            "Choose the mesh that should be carried through the motion.",
        )
    if mesh.type != "MESH":
        raise LimError("bad_template", f"The template “{name}” is not a mesh.", "Convert it to a mesh first.")
    if mesh.mode != "EDIT" and not mesh.data.polygons:
        raise LimError("bad_template", f"The template “{name}” has no faces.", "Choose a mesh with faces.")


def space_needed(wanted: request.Request) -> int:
    """Bytes that the capture and the result take, generously."""
    keyframes = len(wanted.keyframes) or CLIP_KEYFRAMES
    capture = keyframes * wanted.views * wanted.image_size**2 * 8
    result = (len(wanted.frames()) or 2 * CLIP_KEYFRAMES) * wanted.template_faces * 12
    return capture + 2 * result + 4 * wanted.texture_size**2 + (64 << 20)
