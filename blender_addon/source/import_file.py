# SPDX-License-Identifier: GPL-3.0-or-later
"""Open or import a file for a headless job, and choose one of the clips that it brings along."""

from __future__ import annotations

from pathlib import Path

import bpy

from ...lim_core.shared.errors import LimError
from . import compat, keyframes

STILL = 1e-4  # a curve that changes by less moves nothing that one could see


def open_or_import(path: str, clip: str = "") -> tuple[list[bpy.types.Object], str]:
    """Open a .blend, or import another file into an empty scene; the objects that came with it, and the clip that plays.

    Args:
        clip: name of the action or animation to play; empty takes the first in which something moves. A .blend plays
            what it was saved with: see `choose_clip`.
    Raises:
        LimError: missing_file (there is no such file or clip, or it cannot be read), bad_request (a foreign format).
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise LimError("missing_file", f"There is no file “{path}”.", "Check the path.")
    importer = _importers().get(file.suffix.lower())
    if importer is None:
        raise LimError(
            "bad_request",
            f"“{file.name}” is of a kind that cannot be imported here.",
            f"Use one of {', '.join(sorted(_importers()))}.",
        )
    if file.suffix.lower() == ".blend":
        _call(file, importer)
        return list(bpy.context.scene.objects), ""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    with compat.quiet_output():
        _call(file, importer)
    objects = list(bpy.context.scene.objects)
    if not objects:
        raise LimError("missing_file", f"“{file.name}” holds no objects.", "Check the file in Blender.")
    clip = choose_clip(objects, clip, file.name)
    frames = keyframes.of_actions(objects)
    if len(frames) >= 2:
        scene = bpy.context.scene
        scene.frame_start, scene.frame_end = int(frames[0]), int(-(-frames[-1] // 1))
        scene.frame_set(scene.frame_start)
    return objects, clip


def choose_clip(objects: list[bpy.types.Object], clip: str, where: str) -> str:
    """Play one clip: its actions become the active ones and no NLA track is heard. Returns its name, "" for none.

    The glTF importer keeps each clip as one muted NLA track per animated data-block, all with the clip's name.
    """
    blocks = [block for block in keyframes.moving_blocks(objects) if getattr(block, "animation_data", None)]
    clips: dict[str, list] = {}
    for block in blocks:
        for track in block.animation_data.nla_tracks:
            if len(track.strips) == 1 and track.strips[0].action:
                clips.setdefault(track.name, []).append((block, track.strips[0]))
    if not clips:
        actions = {block.animation_data.action.name for block in blocks if block.animation_data.action}
        if clip and clip not in actions:
            raise LimError("missing_file", f"“{where}” has no clip “{clip}”.", _list(actions))
        return clip
    if clip and clip not in clips:
        raise LimError("missing_file", f"“{where}” has no clip “{clip}”.", _list(clips))
    # Tracks lie in reverse order of the file; the importer makes the file's first clip the active one.
    active = {block.animation_data.action.name for block in blocks if block.animation_data.action}
    order = sorted(reversed(list(clips)), key=lambda name: not any(s.action.name in active for _, s in clips[name]))
    chosen = clip or next((name for name in order if any(moves(s) for _, s in clips[name])), order[0])
    for block in blocks:
        animation = block.animation_data
        for track in animation.nla_tracks:
            track.mute = True
        strip = next((strip for owner, strip in clips[chosen] if owner == block), None)
        animation.action = strip.action if strip else None
        if strip and getattr(strip, "action_slot", None):
            animation.action_slot = strip.action_slot
    return chosen


def moves(strip: bpy.types.NlaStrip) -> bool:
    """Whether anything changes over the strip's action."""
    for curve in compat.curves_of(strip.action, getattr(strip, "action_slot", None)):
        points = [0.0] * (2 * len(curve.keyframe_points))
        curve.keyframe_points.foreach_get("co", points)
        values = points[1::2]
        if values and max(values) - min(values) > STILL:
            return True
    return False


def _importers() -> dict:
    """Suffix → operator, for what this build of Blender has."""
    operators = {
        ".blend": ("wm", "open_mainfile"),
        ".glb": ("import_scene", "gltf"),
        ".gltf": ("import_scene", "gltf"),
        ".fbx": ("import_scene", "fbx"),
        ".obj": ("wm", "obj_import"),
        ".ply": ("wm", "ply_import"),
        ".stl": ("wm", "stl_import"),
        ".abc": ("wm", "alembic_import"),
        ".usd": ("wm", "usd_import"),
        ".usdc": ("wm", "usd_import"),
        ".usdz": ("wm", "usd_import"),
    }
    return {
        suffix: getattr(getattr(bpy.ops, module), name)
        for suffix, (module, name) in operators.items()
        if name in dir(getattr(bpy.ops, module))
    }


def _call(file: Path, importer) -> None:
    try:
        importer(filepath=str(file))
    except RuntimeError as error:
        said = " ".join(str(error).replace("Error:", "").split())
        raise LimError("missing_file", f"“{file.name}” cannot be read: {said}", "Check the file in Blender.") from error


def _list(names) -> str:
    return f"It has {', '.join(f'“{name}”' for name in sorted(names))}." if names else "It has none."
