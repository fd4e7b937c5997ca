# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that differs between Blender 4.2, 4.5 and 5.x, behind one function each. Nowhere else is a version asked."""

from __future__ import annotations

import contextlib
import os
import sys

import bpy
import numpy as np

BLEND_RELATIVE = {"PATH_SUPPORTS_BLEND_RELATIVE"} if bpy.app.version >= (4, 5, 0) else set()
"""Options of a property that holds a path which may begin with “//”; older ones take such a path without being told."""

LINEAR = 1  # FCurve keyframe interpolation, as foreach_set wants it


# ---- actions and F-curves ------------------------------------------------------------------------------------------


def new_action(owner: bpy.types.ID, name: str):
    """Give `owner` a new action; returns the empty collection of its F-curves.

    4.4 made actions layered (a slot per owner), 5.0 removed `action.fcurves`.
    """
    action = bpy.data.actions.new(name)
    data = owner.animation_data or owner.animation_data_create()
    data.action = action
    if not hasattr(action, "slots"):
        return action.fcurves
    slot = action.slots.new(owner.id_type, owner.name)
    data.action_slot = slot
    strip = action.layers.new("Layer").strips.new(type="KEYFRAME")
    return strip.channelbag(slot, ensure=True).fcurves


def fcurves(owner: bpy.types.ID) -> list[bpy.types.FCurve]:
    """The F-curves of the owner's current action; empty if there is none."""
    data = owner.animation_data
    if data is None or data.action is None:
        return []
    slot = getattr(data, "action_slot", None)
    return [] if hasattr(data, "action_slot") and slot is None else curves_of(data.action, slot)


def curves_of(action: bpy.types.Action, slot=None) -> list[bpy.types.FCurve]:
    """The F-curves of an action: of one slot where actions have slots, of all for None."""
    if not hasattr(action, "slots"):
        return list(action.fcurves)
    bags = [bag for layer in action.layers for strip in layer.strips for bag in strip.channelbags]
    return [curve for bag in bags if slot is None or bag.slot_handle == slot.handle for curve in bag.fcurves]


def add_linear_fcurve(curves, data_path: str, frames, values, index: int = 0) -> bpy.types.FCurve:
    """Add a piecewise linear F-curve through (frame, value), constant beyond its ends."""
    curve = curves.new(data_path, index=index)
    curve.keyframe_points.add(len(frames))
    points = np.stack([np.asarray(frames, np.float32), np.asarray(values, np.float32)], 1)
    curve.keyframe_points.foreach_set("co", points.ravel())
    curve.keyframe_points.foreach_set("interpolation", [LINEAR] * len(frames))
    curve.extrapolation = "CONSTANT"
    curve.update()
    return curve


# ---- shape keys ----------------------------------------------------------------------------------------------------


def add_shape_key(object: bpy.types.Object, name: str) -> bpy.types.ShapeKey:
    """A new shape key equal to the basis, at value 0 (5.0 would start it at 1)."""
    key = object.shape_key_add(name=name, from_mix=False)
    key.value = 0.0
    return key


# ---- rendering -----------------------------------------------------------------------------------------------------


def set_multilayer_exr(settings: bpy.types.ImageFormatSettings) -> None:
    """Write every pass, 32 bit, linear Rec.709, uncompressed (5.0 hides the format behind a media type)."""
    if hasattr(settings, "media_type"):
        settings.media_type = "MULTI_LAYER_IMAGE"
    settings.file_format = "OPEN_EXR_MULTILAYER"
    settings.color_mode = "RGBA"
    settings.color_depth = "32"
    settings.exr_codec = "NONE"


def render_pass(channels: dict[str, np.ndarray], name: str) -> np.ndarray:
    """float32 [H, W, C] of one pass of a multilayer file; `name` is “Combined” (RGBA) or “Depth” (one channel).

    Raises:
        KeyError: the pass is not in the file.
    """
    found = {key.rpartition(".")[2]: value for key, value in channels.items() if f".{name}." in f".{key}"}
    wanted = "RGBA" if name == "Combined" else next((c for c in ("Z", "V", "X", "R") if c in found), "Z")
    return np.stack([found[channel] for channel in wanted], -1)


@contextlib.contextmanager
def quiet_output():
    """Keep what Blender itself prints off stdout: up to 4.5 Cycles writes some forty lines a render there."""
    try:
        sys.stdout.flush()
        kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    except (OSError, AttributeError):  # a window on Windows has no stdout
        yield
        return
    try:
        os.dup2(nothing, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


# ---- materials -----------------------------------------------------------------------------------------------------


def has_nodes(material: bpy.types.Material) -> bool:
    """Whether nodes decide how the material looks (5.0: always; the property is deprecated there and warns)."""
    if bpy.app.version >= (5, 0, 0):
        return material.node_tree is not None
    return material.use_nodes and material.node_tree is not None


def new_material(name: str) -> bpy.types.Material:
    """A new material with an empty node tree."""
    material = bpy.data.materials.new(name)
    if bpy.app.version < (5, 0, 0):
        material.use_nodes = True
    material.node_tree.nodes.clear()
    return material


# ---- scenes --------------------------------------------------------------------------------------------------------


def frame_parts(frame: float) -> tuple[int, float]:
    """(frame, subframe) as `Scene.frame_set` wants them; subframe in [0, 1)."""
    whole = int(np.floor(frame))
    return whole, float(frame - whole)
