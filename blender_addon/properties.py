# SPDX-License-Identifier: GPL-3.0-or-later
"""What the artist sets (`Scene.lim`, saved with the file) and what is going on (`WindowManager.lim_job`, neither
saved nor kept when another file is loaded)."""

import bpy
from bpy.props import (
    BoolProperty,
    CollectionProperty,
    EnumProperty,
    FloatProperty,
    IntProperty,
    PointerProperty,
    StringProperty,
)

from ..lim_core import request
from . import keyframes

QUALITY_WORDS = {
    "draft": ("Draft", "Quick look"),
    "standard": ("Standard", "For most work"),
    "high": ("High", "Slowest and sharpest"),
}
DEVICE_WORDS = {
    "auto": ("Automatic", "The fastest device that the backend finds"),
    "cpu": ("CPU", "Works everywhere"),
    "cuda": ("CUDA or ROCm", "A graphics card by NVIDIA, or by AMD with a ROCm build of the backend"),
    "mps": ("Metal", "A Mac with an Apple chip"),
}


def _quality_items() -> list[tuple[str, str, str]]:
    items = []
    for name, (size, extra, texture, faces) in request.QUALITIES.items():
        label, words = QUALITY_WORDS[name]
        detail = f"{4 + extra} views of {size}² pixels per keyframe, about {faces} triangles, a texture of {texture}²"
        items.append((name, label, f"{words}: {detail}"))
    return items


class LIM_PG_pose(bpy.types.PropertyGroup):
    """One entry of the list of poses."""

    object: PointerProperty(
        type=bpy.types.Object,
        name="Pose",
        description="An object that shows the pose at one keyframe; its mesh need not correspond to the others",
    )


class LIM_PG_settings(bpy.types.PropertyGroup):
    """`Scene.lim`."""

    source: EnumProperty(
        name="Source",
        description="What is captured",
        items=(
            ("SELECTED", "Selected Objects", "Everything that is selected, captured together, as it moves"),
            ("COLLECTION", "Collection", "Everything in one collection, captured together, as it moves"),
            ("POSES", "Pose Objects", "A list of objects, one per keyframe, whose meshes need not correspond"),
        ),
    )
    collection: PointerProperty(
        type=bpy.types.Collection, name="Collection", description="The objects of this collection are captured"
    )
    poses: CollectionProperty(type=LIM_PG_pose)
    pose_index: IntProperty(name="Pose", description="The pose that the buttons beside the list work on")
    pose_spacing: IntProperty(
        name="Frames Between Poses",
        description="How many frames lie between one pose and the next; the first is at the start of the range",
        default=8,
        min=1,
    )
    align_poses: BoolProperty(
        name="Align Poses",
        description="Bring poses that stand side by side to the place of the first, origin onto origin",
        default=True,
    )
    use_frame_range: BoolProperty(
        name="Own Frame Range",
        description="Look for keyframes in this range instead of the scene's playback range",
    )
    frame_start: IntProperty(name="Start", description="The first frame of the range", default=1)
    frame_end: IntProperty(name="End", description="The last frame of the range", default=48)
    keyframe_mode: EnumProperty(
        name="Keyframes",
        description="Which frames are captured; what lies between them is made by the networks",
        items=(
            ("KEYS", "Animation Keys", "The keys of the source, its shape keys, its rig and its parents"),
            ("MARKERS", "Markers", "The markers of the timeline"),
            ("EVERY", "Every N Frames", "Evenly over the frame range"),
            ("TYPED", "Typed", "The frames that you type"),
        ),
    )
    keyframe_limit: IntProperty(
        name="At Most",
        description="If there are more keys, this many are taken, evenly spread; each costs capture and reconstruction",
        default=keyframes.MOST_BY_DEFAULT,
        min=2,
        max=1000,
        soft_max=32,
    )
    keyframe_step: IntProperty(
        name="Every", description="Distance in frames from one keyframe to the next", default=8, min=1
    )
    keyframe_text: StringProperty(
        name="Frames",
        description="Frames such as “1, 9, 17”, or “1-17/4” for every 4th from 1 to 17",
        default="1, 9, 17",
    )
    inbetweens: IntProperty(
        name="In-betweens",
        description="Frames made between each keyframe and the next",
        default=7,
        min=0,
        max=1000,
        soft_max=32,
    )
    template: EnumProperty(
        name="Template",
        description="The mesh that is carried through the motion",
        items=(
            ("reconstructed", "Reconstructed", "A new mesh with its own UV map and texture, made from the capture"),
            ("mesh", "My Own Mesh", "A mesh of yours as it is at the first keyframe; its UVs and materials stay"),
        ),
    )
    template_object: PointerProperty(
        type=bpy.types.Object,
        name="Template Mesh",
        description="This mesh is copied and carried through the motion; it should match the source at the first keyframe",
        poll=lambda self, object: object.type == "MESH",
    )
    quality: EnumProperty(
        name="Quality",
        description="How finely the source is captured and rebuilt, against the time that it takes",
        items=_quality_items(),
        default="standard",
    )
    fit: BoolProperty(
        name="Fit to Capture",
        description="Pull the keyframes onto the captured surface; off shows what the networks alone make of it",
        default=True,
    )
    smoothness: FloatProperty(
        name="Smoothness",
        description="How firmly neighbouring vertices move together: 0 follows every match exactly, 1 is stiff",
        default=0.5,
        min=0.0,
        max=1.0,
        subtype="FACTOR",
    )
    device: EnumProperty(
        name="Device",
        description="What the backend computes on",
        items=[(name, *DEVICE_WORDS[name]) for name in request.DEVICES],
    )
    engine: EnumProperty(
        name="Capture With",
        description="How the colours of the source are photographed",
        items=(
            ("cycles", "Cycles", "The base colour of every material, whatever its nodes"),
            ("workbench", "Workbench", "The colours of the viewport's texture mode; quicker, but it sees no nodes"),
        ),
    )
    name: StringProperty(name="Name", description="The name of the resulting object", default="LIM")


class LIM_PG_job(bpy.types.PropertyGroup):
    """`WindowManager.lim_job`: what the panel and the preferences draw. Written by the operators only."""

    running: BoolProperty()
    cancelling: BoolProperty()
    stage: StringProperty()
    fraction: FloatProperty(subtype="FACTOR", min=0.0, max=1.0)
    progress_text: StringProperty()
    job_folder: StringProperty()
    error_code: StringProperty()
    error_text: StringProperty(description="Message and hint, one line of the panel per line")
    error_fix: StringProperty(description="The operator that mends it, or nothing")
    warning_text: StringProperty()
    note: StringProperty(description="How the last run ended, if it was cancelled")
    result: StringProperty(description="The name of the last result's object")
    summary: StringProperty()
    backend_state: StringProperty()
    installing: BoolProperty()
    install_text: StringProperty()
    cache_text: StringProperty()


CLASSES = (LIM_PG_pose, LIM_PG_settings, LIM_PG_job)


def attach() -> None:
    bpy.types.Scene.lim = PointerProperty(type=LIM_PG_settings)
    bpy.types.WindowManager.lim_job = PointerProperty(type=LIM_PG_job)


def detach() -> None:
    del bpy.types.WindowManager.lim_job
    del bpy.types.Scene.lim
