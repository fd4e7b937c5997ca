# SPDX-License-Identifier: GPL-3.0-or-later
"""The buttons that choose a source: a clip, or a list of poses."""

from __future__ import annotations

import os
from pathlib import Path

import bpy
from bpy.props import BoolProperty, EnumProperty, StringProperty

from ...lim_core.shared.errors import LimError
from .. import ids
from ..source import rendered
from .live import fail, live


class LIM_OT_import_video(bpy.types.Operator):
    """Choose a film, a folder of pictures or one picture of a sequence, in which one object moves, as the source. \
Generate then makes one textured mesh of it, and a camera that shows the clip behind it"""

    bl_idname = ids.IMPORT_VIDEO
    bl_label = "Import Video"
    bl_options = {"REGISTER", "UNDO"}

    filepath: StringProperty(
        name="Clip", description="The film, folder or picture", subtype="FILE_PATH", options={"SKIP_SAVE"}
    )
    filter_folder: BoolProperty(description="Show folders", default=True, options={"HIDDEN"})
    filter_movie: BoolProperty(description="Show films", default=True, options={"HIDDEN"})
    filter_image: BoolProperty(description="Show pictures", default=True, options={"HIDDEN"})

    @classmethod
    def poll(cls, context):
        state = live(context)
        return context.scene is not None and state is not None and not state.running

    def invoke(self, context, event):
        if self.filepath:  # dropped into the view
            return self.execute(context)
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def execute(self, context):
        path = bpy.path.abspath(self.filepath)
        if not path or not os.path.exists(path):
            named = f" “{path}”" if path else ""
            return fail(self, LimError("missing_file", f"There is no such video{named}.", "Choose one."))
        chosen = context.scene.lim
        chosen.source = "VIDEO"
        chosen.video = path
        self.report({"INFO"}, f"“{Path(path).name}”: {chosen.video_text}")
        open_tab(context)
        return {"FINISHED"}


def open_tab(context) -> None:
    """Show the sidebar's tab LIM where the clip was dropped."""
    if context.area is None or context.area.type != "VIEW_3D":
        return
    context.space_data.show_region_ui = True
    for region in context.area.regions:
        if region.type == "UI":
            try:
                region.active_panel_category = ids.TAB
            except (AttributeError, TypeError):
                pass  # it was never drawn: its tabs are not known yet
            region.tag_redraw()


class LIM_OT_pose_add(bpy.types.Operator):
    """Add the selected objects to the list of poses, in the order of their names"""

    bl_idname = ids.POSE_ADD
    bl_label = "Add Selected"
    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context):
        return context.scene is not None and context.view_layer is not None

    def execute(self, context):
        chosen = context.scene.lim
        listed = {pose.object for pose in chosen.poses}
        new = [
            object
            for object in sorted(context.view_layer.objects, key=lambda object: object.name)
            if object.select_get(view_layer=context.view_layer)
            and rendered.has_surface(object)
            and object not in listed
        ]
        if not new:
            self.report({"WARNING"}, "Select objects with a surface that are not in the list yet.")
            return {"CANCELLED"}
        for object in new:
            chosen.poses.add().object = object
        chosen.pose_index = len(chosen.poses) - 1
        return {"FINISHED"}


class _OnPose:
    @classmethod
    def poll(cls, context):
        chosen = getattr(context.scene, "lim", None)
        return chosen is not None and 0 <= chosen.pose_index < len(chosen.poses)


class LIM_OT_pose_remove(_OnPose, bpy.types.Operator):
    """Remove the pose from the list; the object stays in the scene"""

    bl_idname = ids.POSE_REMOVE
    bl_label = "Remove Pose"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context):
        chosen = context.scene.lim
        chosen.poses.remove(chosen.pose_index)
        chosen.pose_index = max(0, min(chosen.pose_index, len(chosen.poses) - 1))
        return {"FINISHED"}


class LIM_OT_pose_move(_OnPose, bpy.types.Operator):
    """Move the pose to an earlier or a later keyframe"""

    bl_idname = ids.POSE_MOVE
    bl_label = "Move Pose"
    bl_options = {"REGISTER", "UNDO"}

    direction: EnumProperty(
        name="Direction",
        description="Towards the first or the last keyframe",
        items=(("UP", "Up", "One keyframe earlier"), ("DOWN", "Down", "One keyframe later")),
    )

    def execute(self, context):
        chosen = context.scene.lim
        target = chosen.pose_index + (-1 if self.direction == "UP" else 1)
        if not 0 <= target < len(chosen.poses):
            return {"CANCELLED"}
        chosen.poses.move(chosen.pose_index, target)
        chosen.pose_index = target
        return {"FINISHED"}
