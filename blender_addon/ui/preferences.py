# SPDX-License-Identifier: GPL-3.0-or-later
"""The extension's preferences: where the backend, the weights and the jobs lie.

Outside an installed extension there are none, and the functions below give the defaults.
"""

import bpy
from bpy.props import EnumProperty, StringProperty

from .. import ids

STATE_WORDS = {
    "": ("The backend has not been looked for yet.", "QUESTION"),
    "ready": ("The backend is installed.", "CHECKMARK"),
    "outdated": ("The backend belongs to another version of the add-on.", "ERROR"),
    "unfinished": ("The installation of the backend did not finish.", "ERROR"),
    "missing": ("The backend is not installed.", "ERROR"),
}


def _look_again(self, context) -> None:
    from . import live

    live.look_around()


class LIM_AP_preferences(bpy.types.AddonPreferences):
    bl_idname = ids.BASE_PACKAGE

    backend_folder: StringProperty(
        name="Backend Folder",
        description="Where the backend's own environment is installed (some 1 to 6 GB); empty: the usual place for "
        "an application's data",
        subtype="DIR_PATH",
        update=_look_again,
    )
    install_device: EnumProperty(
        name="Install For",
        description="Which build of the backend is installed",
        items=(
            ("auto", "Automatic", "What this computer has"),
            ("cpu", "CPU", "The smallest; works everywhere"),
            ("cuda", "NVIDIA (CUDA)", "A graphics card by NVIDIA"),
            ("rocm", "AMD (ROCm)", "A graphics card by AMD, on Linux; needs a folder of wheels"),
            ("mps", "Apple (Metal)", "A Mac with an Apple chip"),
        ),
    )
    wheels_folder: StringProperty(
        name="Wheels Folder",
        description="Install from the packages in this folder instead of downloading them; empty: download",
        subtype="DIR_PATH",
    )
    weights_folder: StringProperty(
        name="Weights Folder",
        description="The folder with the four checkpoints of the networks; empty: the ones that come with the add-on",
        subtype="DIR_PATH",
    )
    cache_folder: StringProperty(
        name="Cache Folder",
        description="Where jobs keep their capture and finished stages, so that they can be resumed; empty: the add-on's own",
        subtype="DIR_PATH",
        update=_look_again,
    )

    def draw(self, context):
        layout = self.layout
        job = context.window_manager.lim_job
        layout.use_property_split = True

        box = layout.box()
        text, icon = STATE_WORDS.get(job.backend_state, STATE_WORDS[""])
        box.label(text=text, icon=icon)
        column = box.column()
        column.enabled = not job.installing
        column.prop(self, "backend_folder")
        column.prop(self, "install_device")
        column.prop(self, "wheels_folder")
        row = box.row()
        row.enabled = not job.installing
        ready = job.backend_state == "ready"
        repair = row.operator(
            ids.BACKEND_INSTALL, text="Repair" if ready else "Install", icon="FILE_REFRESH" if ready else "IMPORT"
        )
        repair.repair = ready
        row.operator(ids.BACKEND_UNINSTALL, text="Uninstall", icon="TRASH")
        if job.installing:
            row = box.row()
            row.label(text=job.install_text, icon="SORTTIME")
            row.operator(ids.CANCEL, text="Stop", icon="CANCEL")
        elif job.install_text:
            for line in job.install_text.splitlines():
                box.label(text=line)

        layout.prop(self, "weights_folder")
        layout.prop(self, "cache_folder")
        row = layout.row()
        row.label(text=job.cache_text)
        row.operator(ids.CACHE_MEASURE, text="", icon="FILE_REFRESH")
        row.operator(ids.CACHE_CLEAR, text="Clear", icon="TRASH")


CLASSES = (LIM_AP_preferences,)
