# SPDX-License-Identifier: GPL-3.0-or-later
"""The button that imports what moves: a file of another program, or numbered meshes, as the source of the next job."""

from __future__ import annotations

from pathlib import Path

import bpy
from bpy.props import StringProperty

from ...lim_core.shared.errors import LimError
from .. import ids
from ..source import import_file, keyframes
from .choosing_source import open_tab
from .live import fail, live, point

STEPS = 4
"""Intervals between the keyframes that are set for a file without keys."""


class LIM_OT_import_source(bpy.types.Operator):
    """Import a file in which something moves, or a folder of numbered meshes (its first file stands for it), and take it \
as the source. Generate then makes one textured mesh of it"""

    bl_idname = ids.IMPORT_SOURCE
    bl_label = "Import to Mesh"
    bl_options = {"REGISTER", "UNDO"}

    filepath: StringProperty(
        name="File", description="The file or the folder", subtype="FILE_PATH", options={"SKIP_SAVE"}
    )
    filter_glob: StringProperty(
        description="Kinds of files that are shown",
        default=";".join(f"*{suffix}" for suffix in import_file.FOREIGN),
        options={"HIDDEN"},
    )
    filter_folder: bpy.props.BoolProperty(description="Show folders", default=True, options={"HIDDEN"})

    @classmethod
    def poll(cls, context):
        state = live(context)
        return context.scene is not None and state is not None and not state.running and context.mode == "OBJECT"

    def invoke(self, context, event):
        if self.filepath:  # dropped into the view
            return self.execute(context)
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def execute(self, context):
        scene = context.scene
        path = bpy.path.abspath(self.filepath)
        before = (scene.frame_start, scene.frame_end, scene.frame_current)
        try:
            if not path:
                raise LimError("missing_file", "No file is chosen.", "Choose one.")
            opened = import_file.import_into_scene(path)
            range_of_file = (scene.frame_start, scene.frame_end)
        except LimError as error:
            return fail(self, error)
        finally:
            scene.frame_start, scene.frame_end = before[:2]
            scene.frame_set(before[2])
        self._choose(context, opened.objects, range_of_file)
        state = live(context)
        state.note = "".join(point(f"{message} {hint}") for _, message, hint in opened.notes)
        count = len(opened.objects)
        self.report({"INFO"}, f"“{Path(path).name}”: {count} object{'' if count == 1 else 's'}")
        open_tab(context)
        return {"FINISHED"}

    @staticmethod
    def _choose(context, objects: list[bpy.types.Object], range_of_file: tuple[int, int]) -> None:
        """Select the objects, and look for keyframes where they move."""
        layer, chosen = context.view_layer, context.scene.lim
        for object in layer.objects:
            object.select_set(object in objects, view_layer=layer)
        layer.objects.active = next((object for object in objects if object.name in layer.objects), None)
        chosen.source, chosen.use_frame_range = "SELECTED", True
        frames = keyframes.of_actions(objects)
        if len(frames) >= 2:
            chosen.keyframe_mode = "KEYS"
            chosen.frame_start, chosen.frame_end = int(frames[0] // 1), int(-(-frames[-1] // 1))
            return
        chosen.keyframe_mode = "EVERY"  # a point cache has no keys
        chosen.frame_start, chosen.frame_end = range_of_file
        chosen.keyframe_step = max(1, (range_of_file[1] - range_of_file[0]) // STEPS)


class LIM_FH_source(bpy.types.FileHandler):
    """Takes files of other programs that are dropped into a 3D view."""

    bl_idname = "LIM_FH_source"
    bl_label = "Animation to Mesh (LIM)"
    bl_import_operator = ids.IMPORT_SOURCE
    bl_file_extensions = ";".join(import_file.FOREIGN)

    @classmethod
    def poll_drop(cls, context):
        return context.area is not None and context.area.type == "VIEW_3D"


def draw_import(self, context):
    """The entry in File > Import."""
    self.layout.operator(ids.IMPORT_SOURCE, text="Animation to Mesh (LIM)")


CLASSES = (LIM_OT_import_source, LIM_FH_source)


def attach() -> None:
    bpy.types.TOPBAR_MT_file_import.append(draw_import)


def detach() -> None:
    bpy.types.TOPBAR_MT_file_import.remove(draw_import)
