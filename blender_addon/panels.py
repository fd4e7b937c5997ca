# SPDX-License-Identifier: GPL-3.0-or-later
"""The sidebar tab “LIM”. It draws what `properties.py` holds; it computes nothing and never touches the disk."""

from __future__ import annotations

import bpy

from . import ids, operators

BUTTON_WORDS = {
    ids.BACKEND_INSTALL: ("Install the Backend", "IMPORT"),
    ids.OPEN_LOG: ("Open the Log", "TEXT"),
    ids.CACHE_CLEAR: ("Clear the Cache", "TRASH"),
}


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


class LIM_PT_result(_Tab, bpy.types.Panel):
    bl_idname = "LIM_PT_result"
    bl_parent_id = "LIM_PT_main"
    bl_label = "Result"

    @classmethod
    def poll(cls, context):
        return operators.result_object(context) is not None

    def draw(self, context):
        layout = self.layout
        job = context.window_manager.lim_job
        layout.label(text=operators.result_object(context).name, icon="MESH_DATA")
        if job.summary:
            layout.label(text=job.summary)
        column = layout.column(align=True)
        column.operator(ids.RESULT_SELECT, icon="RESTRICT_SELECT_OFF")
        column.operator(ids.RESULT_KEEP, icon="DUPLICATE")
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
        column.prop(settings, "device")
        column.prop(settings, "engine")


CLASSES = (LIM_UL_poses, LIM_PT_main, LIM_PT_result, LIM_PT_details)
