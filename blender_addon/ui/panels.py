# SPDX-License-Identifier: GPL-3.0-or-later
"""The sidebar tab “LIM”. It draws what `properties.py` holds; it computes nothing and never touches the disk."""

from __future__ import annotations

import bpy

from .. import ids
from ..source import clip_camera, import_video
from . import live

BUTTON_WORDS = {
    ids.BACKEND_INSTALL: ("Install the Backend", "IMPORT"),
    ids.OPEN_LOG: ("Open the Log", "TEXT"),
    ids.CACHE_CLEAR: ("Clear the Cache", "TRASH"),
}
PICTURE_SCALE = 10.0
"""Size of a picture, in heights of a button."""


class LIM_UL_poses(bpy.types.UIList):
    """The poses in the order of their keyframes."""

    def draw_item(self, context, layout, data, item, icon, active_data, active_property, index):
        row = layout.row(align=True)
        row.label(text=str(index + 1))
        row.prop(item, "object", text="", emboss=False, icon="MESH_DATA")


class _Tab:
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = ids.TAB


class LIM_PT_main(_Tab, bpy.types.Panel):
    bl_idname = "LIM_PT_main"
    bl_label = "LIM"

    def draw(self, context):
        layout = self.layout
        settings, job = context.scene.lim, context.window_manager.lim_job
        column = layout.column()
        column.use_property_split = True
        column.use_property_decorate = False
        column.enabled = not job.running
        self._draw_source(column, settings)
        column.separator()
        if settings.source == "VIDEO":
            self._draw_clip(column, settings)
        else:
            self._draw_keyframes(column, context.scene, settings)
            column.separator()
            column.prop(settings, "template")
            if settings.template == "mesh":
                column.prop(settings, "template_object")
        column.prop(settings, "quality")

        layout.separator()
        if job.running:
            layout.label(text=job.stage)
            layout.progress(factor=job.fraction, type="BAR", text=job.progress_text)
            row = layout.row()
            row.enabled = not job.cancelling
            row.operator(ids.CANCEL, text="Cancelling …" if job.cancelling else "Cancel", icon="CANCEL")
        else:
            row = layout.row()
            row.scale_y = 1.5
            row.operator(ids.GENERATE, text="Generate", icon="PLAY")
            if job.waiting:
                row.operator(ids.GENERATE, text="Go On", icon="FRAME_NEXT").go_on = True
        self._draw_messages(layout, job)

    @staticmethod
    def _draw_source(column, settings):
        column.prop(settings, "source")
        if settings.source == "COLLECTION":
            column.prop(settings, "collection")
        elif settings.source == "POSES":
            row = column.row()
            row.template_list("LIM_UL_poses", "", settings, "poses", settings, "pose_index", rows=4)
            buttons = row.column(align=True)
            buttons.operator(ids.POSE_ADD, text="", icon="ADD")
            buttons.operator(ids.POSE_REMOVE, text="", icon="REMOVE")
            buttons.separator()
            buttons.operator(ids.POSE_MOVE, text="", icon="TRIA_UP").direction = "UP"
            buttons.operator(ids.POSE_MOVE, text="", icon="TRIA_DOWN").direction = "DOWN"
            column.prop(settings, "align_poses")
        elif settings.source == "VIDEO":
            column.operator(ids.IMPORT_VIDEO, icon="FILE_MOVIE")
            column.prop(settings, "video")
            if settings.video_text:
                column.label(text=settings.video_text)

    @staticmethod
    def _draw_clip(column, settings):
        column.prop(settings, "use_video_range")
        if settings.use_video_range:
            row = column.row(align=True)
            row.prop(settings, "video_first", text="Range")
            row.prop(settings, "video_last", text="")
        column.prop(settings, "video_keyframes")
        if settings.video_keyframes == "EVERY":
            column.prop(settings, "video_step")
        column.separator()
        column.prop(settings, "foreground")
        if settings.foreground == "mask":
            column.prop(settings, "mask")
        elif settings.foreground == "key":
            column.prop(settings, "use_key_colour")
            if settings.use_key_colour:
                column.prop(settings, "key_colour")
        elif settings.foreground in ("auto", "matting"):
            column.prop(settings, "matting")
        column.separator()
        column.prop(settings, "elevation")
        column.prop(settings, "stop_after_views")

    @staticmethod
    def _draw_keyframes(column, scene, settings):
        if settings.source == "POSES":
            column.prop(settings, "pose_spacing")
        else:
            column.prop(settings, "keyframe_mode")
            if settings.keyframe_mode == "KEYS":
                column.prop(settings, "keyframe_limit")
            elif settings.keyframe_mode == "EVERY":
                column.prop(settings, "keyframe_step")
            elif settings.keyframe_mode == "TYPED":
                column.prop(settings, "keyframe_text")
        column.prop(settings, "use_frame_range")
        if settings.use_frame_range:
            row = column.row(align=True)
            row.prop(settings, "frame_start", text="Range")
            row.prop(settings, "frame_end", text="")
        column.prop(settings, "inbetweens")

    @staticmethod
    def _draw_messages(layout, job):
        if job.error_text:
            box = layout.box()
            lines = box.column(align=True)
            lines.alert = True
            for number, line in enumerate(job.error_text.splitlines()):
                lines.label(text=line, icon="ERROR" if number == 0 else "BLANK1")
            row = box.row()
            if job.error_fix in BUTTON_WORDS:
                text, icon = BUTTON_WORDS[job.error_fix]
                row.operator(job.error_fix, text=text, icon=icon)
            row.operator(ids.DISMISS, text="Dismiss", icon="X")
        if job.note or job.warning_text:
            lines = layout.box().column(align=True)
            for line in (job.note + job.warning_text).splitlines():
                lines.label(text=line.strip(), icon="INFO" if line[:1] != " " else "BLANK1")


class LIM_PT_picture(_Tab, bpy.types.Panel):
    bl_idname = "LIM_PT_picture"
    bl_parent_id = "LIM_PT_main"
    bl_label = "Preview"

    @classmethod
    def poll(cls, context):
        return context.window_manager.lim_job.picture_icon != 0

    def draw(self, context):
        job = context.window_manager.lim_job
        row = self.layout.row()
        row.label(text=job.picture_label)
        row.operator(ids.PREVIEW_OPEN, text="", icon="ZOOM_IN", emboss=False)
        self.layout.template_icon(icon_value=job.picture_icon, scale=PICTURE_SCALE)


class LIM_PT_result(_Tab, bpy.types.Panel):
    bl_idname = "LIM_PT_result"
    bl_parent_id = "LIM_PT_main"
    bl_label = "Result"

    @classmethod
    def poll(cls, context):
        return live.result_object(context) is not None

    def draw(self, context):
        layout = self.layout
        job = context.window_manager.lim_job
        layout.label(text=live.result_object(context).name, icon="MESH_DATA")
        lines = layout.column(align=True)
        for line in job.summary.splitlines():
            lines.label(text=line)
        column = layout.column(align=True)
        column.operator(ids.RESULT_SELECT, icon="RESTRICT_SELECT_OFF")
        column.operator(ids.RESULT_KEEP, icon="DUPLICATE")
        column.operator(ids.RESULT_COLOUR, icon="GROUP_VCOL")
        if clip_camera.camera_of(live.result_object(context)):
            column.operator(ids.CLIP_MATCH, icon="CAMERA_DATA")
        column.operator(ids.EXPORT, icon="EXPORT")
        column.operator(ids.OPEN_LOG, icon="TEXT")


class LIM_PT_details(_Tab, bpy.types.Panel):
    bl_idname = "LIM_PT_details"
    bl_parent_id = "LIM_PT_main"
    bl_label = "Details"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context):
        column = self.layout.column()
        column.use_property_split = True
        column.use_property_decorate = False
        column.enabled = not context.window_manager.lim_job.running
        settings = context.scene.lim
        column.prop(settings, "name")
        column.prop(settings, "fit")
        column.prop(settings, "smoothness")
        column.prop(settings, "max_keys")
        column.prop(settings, "device")
        if settings.source == "VIDEO":
            column.prop(settings, "video_start")
            column.prop(settings, "video_fps")
            column.prop(settings, "views_model")
        else:
            column.prop(settings, "engine")


class LIM_FH_video(bpy.types.FileHandler):
    """Takes films that are dropped into a 3D view."""

    bl_idname = "LIM_FH_video"
    bl_label = "Video to Mesh (LIM)"
    bl_import_operator = ids.IMPORT_VIDEO
    bl_file_extensions = ";".join(import_video.MOVIES)

    @classmethod
    def poll_drop(cls, context):
        return context.area is not None and context.area.type == "VIEW_3D"


def draw_import(self, context):
    """The entry in File > Import."""
    self.layout.operator(ids.IMPORT_VIDEO, text="Video to Mesh (LIM)")


CLASSES = (LIM_UL_poses, LIM_PT_main, LIM_PT_picture, LIM_PT_result, LIM_PT_details, LIM_FH_video)


def attach() -> None:
    bpy.types.TOPBAR_MT_file_import.append(draw_import)


def detach() -> None:
    bpy.types.TOPBAR_MT_file_import.remove(draw_import)
