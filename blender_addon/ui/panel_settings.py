# SPDX-License-Identifier: GPL-3.0-or-later
"""The panel's settings as the settings of a job."""

from __future__ import annotations

import bpy

from ...lim_core.shared.errors import LimError
from .. import folders
from ..job import asking, capturing
from ..source import import_video, keyframes, rendered


def settings_from(context) -> asking.Settings:
    """The job that the panel's settings ask for. Raises LimError."""
    scene = context.scene
    chosen = scene.lim
    common = dict(
        quality=chosen.quality,
        fit=chosen.fit,
        smoothness=chosen.smoothness,
        max_keys=chosen.max_keys,
        device=chosen.device,
        name=chosen.name.strip() or "LIM",
        backend=folders.backend_python(),
        weights=folders.weights_folder(),
        cache=folders.cache_folder(),
    )
    if chosen.source == "VIDEO":
        if not chosen.video:
            raise LimError("bad_video", "No clip is chosen.", "Choose it with Import Video.")
        return asking.Settings(
            source="video", video=import_video.fields(chosen), stop_after_views=chosen.stop_after_views, **common
        )
    start, end = float(scene.frame_start), float(scene.frame_end)
    if chosen.use_frame_range:
        start, end = float(chosen.frame_start), float(chosen.frame_end)
        if end <= start:
            raise LimError("keyframe_range", f"The frame range {start:g} to {end:g} is empty.", "Raise its end.")
    source = "poses" if chosen.source == "POSES" else "objects"
    objects = _chosen_objects(context)
    if source == "poses":
        frames = tuple(start + index * float(chosen.pose_spacing) for index in range(len(objects)))
        end = max(end, frames[-1])
    elif chosen.keyframe_mode == "KEYS":
        frames = keyframes.offered(objects, start, end, chosen.keyframe_limit)
        if len(frames) < 2:
            raise LimError(
                "one_keyframe",
                f"The animation of the source has {len(frames) or 'no'} key{'' if len(frames) == 1 else 's'} between "
                f"frame {start:g} and {end:g}, and two are needed.",
                "Take every N frames, or type the keyframes.",
            )
    elif chosen.keyframe_mode == "MARKERS":
        frames = keyframes.within(keyframes.of_markers(scene), start, end)
    elif chosen.keyframe_mode == "EVERY":
        frames = keyframes.every(start, end, chosen.keyframe_step)
    else:
        frames = keyframes.parse(chosen.keyframe_text)
    return asking.Settings(
        objects=tuple(object.name for object in objects),
        keyframes=frames,
        source=source,
        frame_range=(start, end),
        inbetweens=chosen.inbetweens,
        template=chosen.template,
        template_object=chosen.template_object.name if chosen.template_object else "",
        align_poses=chosen.align_poses,
        engine=chosen.engine,
        unchanged_file=_saved_file(),
        **common,
    )


def _saved_file() -> str:
    """The scene's file, if nothing was done to the scene since it was opened or saved; else ""."""
    if bpy.data.is_dirty or not bpy.data.is_saved or capturing.addons_that_move_things():
        return ""
    return bpy.data.filepath


def _chosen_objects(context) -> list[bpy.types.Object]:
    chosen = context.scene.lim
    if chosen.source == "COLLECTION":
        if chosen.collection is None:
            raise LimError("nothing_selected", "No collection is chosen.", "Choose the collection to capture.")
        objects = [object for object in chosen.collection.all_objects if rendered.has_surface(object)]
        where = f"The collection “{chosen.collection.name}” holds nothing"
    elif chosen.source == "POSES":
        objects = [pose.object for pose in chosen.poses if pose.object]
        where = "The list of poses holds no object"
        if len(objects) == 1:
            raise LimError("one_keyframe", "There is only one pose: nothing can be in-betweened.", "Add another pose.")
    else:
        selected = [object for object in context.view_layer.objects if object.select_get(view_layer=context.view_layer)]
        objects = [object for object in selected if rendered.has_surface(object) or object.type in rendered.FLESHLESS]
        where = "Nothing is selected" if not selected else "The selection holds nothing"
        if not selected:
            raise LimError("nothing_selected", "Nothing is selected.", "Select the objects to capture.")
    if not objects:
        raise LimError("nothing_selected", f"{where} with a surface.", "Choose meshes, curves, text or metaballs.")
    return objects
