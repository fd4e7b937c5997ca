# SPDX-License-Identifier: GPL-3.0-or-later
"""The buttons that do something with a result."""

from __future__ import annotations

import os
from pathlib import Path

import bpy
from bpy.props import BoolProperty, EnumProperty, StringProperty

from ...lim_core.shared.errors import LimError, from_os_error
from .. import ids
from ..result import export, vertex_colours
from ..source import clip_camera
from .live import fail, live, result_object

EXPORTS = tuple((suffix, label, words) for suffix, (label, words, _) in export.EXPORTS.items() if label)


class _OnResult:
    @classmethod
    def poll(cls, context):
        return context.scene is not None and result_object(context) is not None


class LIM_OT_result_select(_OnResult, bpy.types.Operator):
    """Select the result and make it the active object"""

    bl_idname = ids.RESULT_SELECT
    bl_label = "Select"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context):
        result = result_object(context)
        if result.name not in context.view_layer.objects:
            self.report({"WARNING"}, f"“{result.name}” lies in a collection that is excluded from this view layer.")
            return {"CANCELLED"}
        for object in list(context.view_layer.objects):
            object.select_set(object == result, view_layer=context.view_layer)
        result.hide_set(False)
        context.view_layer.objects.active = result
        return {"FINISHED"}


class LIM_OT_result_keep(_OnResult, bpy.types.Operator):
    """Copy the result, with a mesh, material and action of its own, out of the collection “LIM” into the scene"""

    bl_idname = ids.RESULT_KEEP
    bl_label = "Keep as Copy"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context):
        result = result_object(context)
        kept = result.copy()
        kept.data = result.data.copy()
        keys = kept.data.shape_keys
        if keys and keys.animation_data and keys.animation_data.action:
            slot = getattr(keys.animation_data, "action_slot", None)
            keys.animation_data.action = keys.animation_data.action.copy()
            if slot is not None:
                keys.animation_data.action_slot = keys.animation_data.action.slots[slot.identifier]
        for slot in kept.material_slots:
            if slot.material:
                slot.material = slot.material.copy()
        kept.name = f"{result.name} kept"
        context.scene.collection.objects.link(kept)
        self.report({"INFO"}, f"Kept as “{kept.name}”")
        return {"FINISHED"}


class LIM_OT_export(_OnResult, bpy.types.Operator):
    """Write the result to a file that other programs read"""

    bl_idname = ids.EXPORT
    bl_label = "Export"

    filepath: StringProperty(name="File", description="Where the file is written", subtype="FILE_PATH")
    format: EnumProperty(name="Format", description="What kind of file is written", items=EXPORTS)
    check_existing: BoolProperty(default=True, options={"HIDDEN"})

    def invoke(self, context, event):
        self.filepath = bpy.path.ensure_ext(bpy.path.clean_name(result_object(context).name), self.format)
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def check(self, context):
        stem, suffix = os.path.splitext(self.filepath)
        named = bool(os.path.basename(self.filepath))
        wanted = (stem if suffix.lower() in export.EXPORTS else self.filepath) + self.format if named else self.filepath
        changed, self.filepath = wanted != self.filepath, wanted
        return changed

    def execute(self, context):
        path = Path(bpy.path.abspath(self.filepath))
        if path.suffix.lower() not in export.EXPORTS:
            path = path.with_name(f"{path.name}{self.format}") if path.name else path
        try:
            if not os.path.basename(self.filepath):
                raise LimError("bad_request", "The file has no name.", "Type one.")
            written = export.export(result_object(context), path)
        except LimError as error:
            return fail(self, error)
        except OSError as error:
            return fail(self, from_os_error(error, "exporting"))
        self.report({"INFO"}, f"Wrote “{written[0]}”" + (f" and {len(written) - 1} more" if written[1:] else ""))
        return {"FINISHED"}


class LIM_OT_result_colour(_OnResult, bpy.types.Operator):
    """Give the vertices of the result the colours of its texture, as the colour attribute “Color”, for programs that \
show no textures"""

    bl_idname = ids.RESULT_COLOUR
    bl_label = "Bake Vertex Colours"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context):
        try:
            attribute = vertex_colours.bake(result_object(context))
        except LimError as error:
            return fail(self, error)
        self.report({"INFO"}, f"Baked into the colour attribute “{attribute.name}”")
        return {"FINISHED"}


class LIM_OT_clip_match(bpy.types.Operator):
    """Set the scene to the clip that the result was made from, so that the mesh covers it exactly when seen through its \
camera and plays at its speed"""

    bl_idname = ids.CLIP_MATCH
    bl_label = "Match Scene to Clip"
    bl_options = {"REGISTER", "UNDO"}

    resolution: BoolProperty(name="Resolution", description="Render pictures of the clip's size", default=True)
    frame_rate: BoolProperty(name="Frame Rate", description="Play as fast as the clip", default=True)
    frame_range: BoolProperty(name="Frame Range", description="Begin and end with the clip", default=True)
    active_camera: BoolProperty(name="Camera", description="Look through the clip's camera", default=True)

    @classmethod
    def poll(cls, context):
        return context.scene is not None and clip_camera.camera_of(result_object(context)) is not None

    def execute(self, context):
        camera = clip_camera.camera_of(result_object(context))
        clip_camera.match_scene(
            context.scene, camera, resolution=self.resolution, frame_rate=self.frame_rate,
            frame_range=self.frame_range, active_camera=self.active_camera,
        )  # fmt: skip
        live(context).property_unset("note")
        return {"FINISHED"}
