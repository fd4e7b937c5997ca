# SPDX-License-Identifier: GPL-3.0-or-later
"""What a render of the scene shows, and what it leaves out: the one place that answers for objects, rigs, collections and
instances alike.

Two halves. `shown` looks at what never changes from frame to frame: flags, collections, view layers. `rendering` hands out
the dependency graph that a render engine gets, and so all that Blender itself decides for a render: keyed visibility,
modifiers and levels, particles, what an instanced collection hides.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import bpy

from ...lim_core.shared.errors import LimError
from . import compat

FLESHLESS = {"ARMATURE", "EMPTY", "LATTICE"}  # selected, they stand for what hangs on them
CAPTURED_TYPES = ("MESH", "CURVE", "SURFACE", "FONT", "META", "CURVES", "POINTCLOUD")
HIDDEN, UNSEEN_COLLECTION = "hidden from rendering", "in a collection that is hidden from rendering"
WIDGET = "drawn for a bone"
HOLDOUT, CATCHER, UNSEEN = "a holdout", "a shadow catcher", "not seen by the camera"

LEFT_OUT_HINT = "To capture it too, let the render show it, or capture it by itself."

Answer = TypeVar("Answer")


@dataclasses.dataclass
class Shown:
    """What is captured of the chosen objects."""

    objects: list[bpy.types.Object]
    left_out: dict[str, str]
    """Name of each object that is not captured -> why, in words."""
    insisted: bool
    """Whether the render shows nothing of them at all, so that the choice itself decides."""


# ---- what never changes --------------------------------------------------------------------------------------------


def has_surface(object: bpy.types.Object) -> bool:
    """Whether the object has, or instances, a surface."""
    return object.type in CAPTURED_TYPES or (object.type == "EMPTY" and object.instance_type == "COLLECTION")


def family(object: bpy.types.Object, scene: bpy.types.Scene) -> list[bpy.types.Object]:
    """The object, and what cannot be seen apart from it: what hangs on a skeleton, the rest of a metaball."""
    found = [object]
    if object.type == "META":  # all elements of a family melt into the first one's surface
        stem = object.name.split(".")[0]
        found += [o for o in scene.objects if o.type == "META" and o.name.split(".")[0] == stem and o != object]
    if object.type in FLESHLESS and object.instance_type == "NONE":
        found += object.children_recursive
        bones = [o for o in found if o.type in ("ARMATURE", "LATTICE")]
        found += [
            o
            for o in scene.objects
            if o not in found
            and any(getattr(m, "object", None) in bones for m in o.modifiers if m.type in ("ARMATURE", "LATTICE"))
        ]
    return found


def shown(scene: bpy.types.Scene, chosen: Iterable[bpy.types.Object]) -> Shown:
    """What a render shows, at some frame, of the chosen objects and of what hangs on them.

    Where it shows none of them (the source was hidden after an earlier run, or lies in a collection that is put away), the
    choice decides: then what only its collection hides is captured, and failing that all of it.
    """
    members = list(dict.fromkeys(o for object in chosen for o in family(object, scene)))
    seen = _seen_through_layers(scene)
    own = {object: _own_reason(object) for object in members}
    full = {object: own[object] or seen.get(object, UNSEEN_COLLECTION) for object in members}
    for reasons in (full, own):
        if any(has_surface(object) for object in members if not reasons[object]):
            widgets = _widgets(members)
            left_out = {
                o.name: WIDGET if o in widgets else reasons[o] for o in members if reasons[o] and has_surface(o)
            }
            return Shown([o for o in members if not reasons[o]], left_out, reasons is not full)
    return Shown(members, {}, True)


def everything(scene: bpy.types.Scene, without: str) -> Shown:
    """All that a render of the scene shows, at some frame; nothing of the collection named `without`."""
    ours = bpy.data.collections.get(without)
    own = set(ours.all_objects) if ours else set()
    chosen = sorted((o for o in scene.objects if has_surface(o) and o not in own), key=lambda object: object.name)
    found = shown(scene, chosen)
    return Shown([], found.left_out, False) if found.insisted else found


def notes(left_out: dict[str, str]) -> list[tuple[str, str, str]]:
    """The warning about what is not captured, as (code, message, hint); none where there is nothing to tell."""
    return [("left_out", sentence(left_out), LEFT_OUT_HINT)] if left_out else []


def sentence(left_out: dict[str, str]) -> str:
    """One sentence about what is not captured, at most three names for each reason."""
    names: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        names.setdefault(reason, []).append(f"“{name}”")
    parts = [
        ", ".join(some[:3]) + (f" and {len(some) - 3} more" if len(some) > 3 else "") + f" ({reason})"
        for reason, some in names.items()
    ]
    return f"Left out, as the render does not show it: {'; '.join(parts)}."


def keyed(block: bpy.types.ID, path: str) -> bool:
    """Whether keys, NLA strips or drivers change a property of the data-block."""
    data = block.animation_data
    if data is None:
        return False
    strips = [strip for track in data.nla_tracks if not track.mute for strip in track.strips if strip.action]
    curves = [c for strip in strips for c in compat.curves_of(strip.action, getattr(strip, "action_slot", None))]
    return any(c.data_path == path and not c.mute for c in (*compat.fcurves(block), *curves, *data.drivers))


def may_be(block: bpy.types.ID, path: str, value: bool) -> bool:
    """Whether a flag has the value at some frame, or may have it: drivers and NLA strips are not looked into."""
    curves = [c for c in compat.fcurves(block) if c.data_path == path and not c.mute]
    if not curves:
        return block.path_resolve(path) == value or keyed(block, path)
    points = [point for curve in curves for point in curve.keyframe_points]
    return any((point.co[1] >= 0.5) == value for point in points) or (not points and keyed(block, path))


def _own_reason(object: bpy.types.Object) -> str:
    if not may_be(object, "hide_render", False):
        return HIDDEN
    return _unseen(object)


def _unseen(object: bpy.types.Object) -> str:
    """Why the camera does not see the surface of an object that is rendered."""
    if object.is_holdout:
        return HOLDOUT
    if object.is_shadow_catcher:
        return CATCHER
    return "" if may_be(object, "visible_camera", True) else UNSEEN


def _seen_through_layers(scene: bpy.types.Scene) -> dict[bpy.types.Object, str]:
    """Object -> why none of the view layers that are rendered shows it; "" if one does."""
    found: dict[bpy.types.Object, str] = {}

    def visit(layer: bpy.types.LayerCollection, hidden: bool, reasons: dict) -> None:
        hidden = hidden or layer.collection.hide_render
        if not (layer.exclude or hidden):
            reason = HOLDOUT if layer.holdout else UNSEEN if layer.indirect_only else ""
            for object in layer.collection.objects:
                reasons[object] = reasons.get(object) or reason
        for child in layer.children:
            visit(child, hidden, reasons)

    for view in [view for view in scene.view_layers if view.use] or scene.view_layers[:1]:
        reasons: dict[bpy.types.Object, str] = {}
        visit(view.layer_collection, False, reasons)
        for object, reason in reasons.items():
            found[object] = reason and found.get(object, reason)
    return found


def _widgets(objects: list[bpy.types.Object]) -> set[bpy.types.Object]:
    """What only draws bones of the armatures among the objects, or among all if there are none."""
    armatures = [object for object in objects if object.pose] or [object for object in bpy.data.objects if object.pose]
    return {bone.custom_shape for armature in armatures for bone in armature.pose.bones if bone.custom_shape}


def instance_unseen(instance: bpy.types.DepsgraphObjectInstance) -> str:
    """Why the camera does not see an instance of the graph; "" if it does."""
    return _unseen(instance.object) or (_unseen(instance.parent) if instance.is_instance else "")


# ---- what the render evaluates -------------------------------------------------------------------------------------


class LIM_Evaluation(bpy.types.RenderEngine):
    """A render engine that draws nothing: it hands the render's dependency graph to whoever asked for it."""

    bl_idname = "LIM_EVALUATION"
    bl_label = "LIM Evaluation"
    bl_use_postprocess = False
    look: Callable[[bpy.types.Depsgraph], object] | None = None
    answer: object = None
    error: BaseException | None = None

    def render(self, depsgraph):
        cls = type(self)
        try:
            cls.answer = cls.look(depsgraph)
        except BaseException as error:  # Blender would print it and go on
            cls.error = error


@contextlib.contextmanager
def rendering(
    scene: bpy.types.Scene, layer: bpy.types.ViewLayer
) -> Iterator[Callable[[Callable[[bpy.types.Depsgraph], Answer]], Answer]]:
    """Yields a function that calls another with the graph of a render of `layer` at the scene's current frame, and returns
    its answer. The graph lives as long as that call. The scene's settings are put back at the end.

    Raises:
        LimError: bad_capture, if Blender refuses to render; whatever the called function raises.
    """
    engine = LIM_Evaluation
    with contextlib.ExitStack() as undo:
        images = set(bpy.data.images)
        undo.callback(lambda: bpy.data.batch_remove([i for i in bpy.data.images if i not in images]))
        bpy.utils.register_class(engine)
        undo.callback(bpy.utils.unregister_class, engine)
        camera = bpy.data.cameras.new("LIM camera")
        undo.callback(bpy.data.cameras.remove, camera)
        for owner, settings in (
            (scene.render, {
                "engine": engine.bl_idname, "resolution_percentage": 1, "use_compositing": False,
                "use_sequencer": False, "use_multiview": False, "use_freestyle": False, "use_persistent_data": False,
            }),
            *((other, {"use": other == layer}) for other in scene.view_layers),
        ):  # fmt: skip
            for name, value in settings.items():
                before = getattr(owner, name)
                if before != "":  # of an engine that is not installed here Blender does not tell the name
                    undo.callback(setattr, owner, name, before)
                else:
                    undo.callback(setattr, owner, name, "CYCLES")
                setattr(owner, name, value)
        if scene.camera is None:
            stand_in = bpy.data.objects.new("LIM camera", camera)
            undo.callback(bpy.data.objects.remove, stand_in)
            undo.callback(setattr, scene, "camera", None)
            scene.camera = stand_in

        def render(look: Callable[[bpy.types.Depsgraph], Answer]) -> Answer:
            engine.look, engine.answer, engine.error = staticmethod(look), render, None
            try:
                with bpy.context.temp_override(scene=scene, view_layer=layer), compat.quiet_output():
                    bpy.ops.render.render(layer=layer.name, scene=scene.name)
                if engine.error is not None:
                    raise engine.error
                if engine.answer is render:
                    raise RuntimeError("nothing was evaluated")
                return engine.answer
            except RuntimeError as error:
                raise LimError("bad_capture", f"Blender could not evaluate the scene for a render: {error}.") from error
            finally:
                engine.look = engine.answer = engine.error = None

        yield render
