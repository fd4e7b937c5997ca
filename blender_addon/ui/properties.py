# SPDX-License-Identifier: GPL-3.0-or-later
"""What the artist sets (`Scene.lim`, saved with the file) and what is going on (`WindowManager.lim_job`, neither
saved nor kept when another file is loaded)."""

import math

import bpy
from bpy.props import (
    BoolProperty,
    CollectionProperty,
    EnumProperty,
    FloatProperty,
    FloatVectorProperty,
    IntProperty,
    PointerProperty,
    StringProperty,
)

from ...lim_core.shared import request
from ...lim_core.shared.request import Request
from ..source import compat, import_video, keyframes

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
FOREGROUND_WORDS = {
    "auto": ("Automatic", "By the clip's alpha if it has one, else by an even background, else by the matting model"),
    "alpha": ("Alpha", "Where the clip is opaque"),
    "mask": ("Mask", "By pictures or a film of their own, light where the object is"),
    "key": ("Colour Key", "By an even background, such as a green screen"),
    "matting": ("Matting Model", "By a network that tells the object from its background, from a file of yours"),
}


def _look_at_clip(settings, context) -> None:
    """The clip has changed: say what it holds, and forget the range of the one before."""
    settings.video_text = import_video.describe(bpy.path.abspath(settings.video) if settings.video else "")
    settings.use_video_range = False


def _quality_items() -> list[tuple[str, str, str]]:
    items = []
    for name, quality in request.QUALITIES.items():
        label, words = QUALITY_WORDS[name]
        captured = f"{quality.views} views of {quality.image_size}² pixels per keyframe"
        made = f"about {quality.template_faces} triangles, a texture of {quality.texture_size}²"
        items.append((name, label, f"{words}: {captured}, {made}"))
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
            ("VIDEO", "Video", "One object in a film or a sequence of pictures; nothing of the scene is captured"),
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
        description="If there are more keys, this many are taken, evenly spread; each costs capture and reconstruction. "
        "Where an add-on or a scale of nothing swaps meshes, each mesh is taken",
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
        default=Request.inbetweens,
        min=request.LIMITS["inbetweens"][0],
        max=request.LIMITS["inbetweens"][1],
        soft_max=32,
    )
    video: StringProperty(
        name="Clip",
        description="A film, a folder of pictures, or one picture of a numbered sequence, in which one object moves",
        subtype="FILE_PATH",
        options=compat.BLEND_RELATIVE,
        update=_look_at_clip,
    )
    video_text: StringProperty(description="What the clip holds")
    use_video_range: BoolProperty(name="Part of the Clip", description="Use some of the clip's frames instead of all")
    video_first: IntProperty(
        name="First",
        description="The first frame of the clip that is used, counted from 1",
        default=Request.video_first,
        min=request.VIDEO_LIMITS["video_first"][0],
    )
    video_last: IntProperty(
        name="Last",
        description="The last frame of the clip that is used; 0 takes it to its end",
        default=48,
        min=request.VIDEO_LIMITS["video_last"][0],
    )
    video_keyframes: EnumProperty(
        name="Keyframes",
        description="Which frames of the clip are rebuilt; those between them are interpolated",
        items=(
            ("AUTO", "Automatic", "As far apart as the motion allows"),
            ("EVERY", "Every N Frames", "Evenly over the clip"),
        ),
    )
    video_step: IntProperty(
        name="Every",
        description="Distance in clip frames from one keyframe to the next",
        default=2,
        min=1,
        max=request.VIDEO_LIMITS["video_step"][1],
    )
    video_fps: FloatProperty(
        name="Frames a Second",
        description="The clip's speed; 0 takes what the file says",
        default=Request.video_fps,
        min=request.VIDEO_LIMITS["video_fps"][0],
        max=request.VIDEO_LIMITS["video_fps"][1],
    )
    video_start: IntProperty(
        name="Starts at Frame",
        description="The scene's frame at which the first used frame of the clip plays",
        default=round(Request.video_start),
    )
    foreground: EnumProperty(
        name="Foreground",
        description="How the object is told from what lies behind it",
        items=[(name, *FOREGROUND_WORDS[name]) for name in request.FOREGROUNDS],
    )
    mask: StringProperty(
        name="Mask",
        description="A film, a folder of pictures, or one picture of a sequence: light where the object is, a picture per "
        "frame of the clip or one for all",
        subtype="FILE_PATH",
        options=compat.BLEND_RELATIVE,
    )
    use_key_colour: BoolProperty(
        name="Own Key Colour", description="Choose the background's colour instead of taking it from the clip's border"
    )
    key_colour: FloatVectorProperty(
        name="Key Colour",
        description="The colour of the background",
        subtype="COLOR_GAMMA",
        default=(0.0, 1.0, 0.0),
        min=0.0,
        max=1.0,
    )
    matting: StringProperty(
        name="Matting Model",
        description="An .onnx file, or a folder with one, of a network that separates an object from its background",
        subtype="FILE_PATH",
        options=compat.BLEND_RELATIVE,
    )
    views_model: StringProperty(
        name="Views Model",
        description="The folder of a pipeline that makes the other views of the object; empty takes the one that comes "
        "with the backend",
        subtype="DIR_PATH",
        options=compat.BLEND_RELATIVE,
    )
    elevation: FloatProperty(
        name="Elevation",
        description="The angle by which the clip's camera looks down on the object; 0 looks level",
        subtype="ANGLE",
        default=math.radians(Request.elevation),
        min=math.radians(request.VIDEO_LIMITS["elevation"][0]),
        max=math.radians(request.VIDEO_LIMITS["elevation"][1]),
    )
    stop_after_views: BoolProperty(
        name="Stop to Look",
        description="Stop when the other views are made and show them, before the long work begins",
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
        default=request.QUALITY,
    )
    fit: BoolProperty(
        name="Fit to Capture",
        description="Pull the keyframes onto the captured surface; off shows what the networks alone make of it",
        default=True,
    )
    smoothness: FloatProperty(
        name="Smoothness",
        description="How firmly neighbouring vertices move together: 0 follows every match exactly, 1 is stiff",
        default=Request.smoothness,
        min=request.LIMITS["smoothness"][0],
        max=request.LIMITS["smoothness"][1],
        subtype="FACTOR",
    )
    max_keys: IntProperty(
        name="Most Shape Keys",
        description="Keep only the frames from which all others are mixed best, so many at most; 0 keeps every frame",
        default=Request.max_keys,
        min=request.LIMITS["max_keys"][0],
        soft_max=64,
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
    name: StringProperty(name="Name", description="The name of the resulting object", default=Request.name)


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
    waiting: BoolProperty(description="Whether the last run stopped so that its views are looked at")
    picture: StringProperty(description="The file of the picture that is shown")
    picture_label: StringProperty()
    picture_icon: IntProperty()
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
