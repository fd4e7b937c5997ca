# SPDX-License-Identifier: GPL-3.0-or-later
"""Objects whose data-block changes from frame to frame by an add-on: which block they show when, read from the file alone.

Keymesh and Stop-motion-OBJ swap an object's mesh in a function of their own at every change of the frame. All they need
for it lies in the file, so the swap is done here, the same in every Blender, whether the add-on is there or not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable

import bpy

from . import compat

KEYMESH_PATH = 'keymesh["Keymesh Data"]'
OLD_KEYMESH_PATH = '["km_datablock"]'
SEQUENCE_PATH = "mesh_sequence_settings.curKeyframeMeshIdx"
PATHS = (KEYMESH_PATH, OLD_KEYMESH_PATH, SEQUENCE_PATH)
"""What the add-ons key: the number of a block, which says nothing of motion by itself."""
BLANK, EXTEND, REPEAT, BOUNCE, KEYED = range(5)  # Stop-motion-OBJ's frameMode
ADDONS = {"keymesh": "Keymesh", "mesh_sequence_settings": "Stop-motion-OBJ", "km_id": "Keymesh"}
"""Property of an object → the add-on that reads it."""


@dataclasses.dataclass
class Swap:
    """One object that shows another data-block from time to time."""

    object: bpy.types.Object
    block_at: Callable[[float], bpy.types.ID | None]
    """Frame → what is shown; None keeps what was shown before."""
    frames: tuple[float, ...]
    """Where another block begins to be shown, in order; of what repeats, the first time round."""
    keyed: bool
    """Whether an artist has put each block where it is, so that none may be left out."""

    def show(self, frame: float) -> None:
        """Give the object the block of this frame."""
        block = self.block_at(frame)
        if block is not None and self.object.data != block:
            self.object.data = block


def of(object: bpy.types.Object) -> Swap | None:
    """How the object's block changes; None if no add-on changes it, or if the file lacks what is needed."""
    return _keymesh(object) or _old_keymesh(object) or _mesh_sequence(object)


def among(blocks: Iterable[bpy.types.ID]) -> list[Swap]:
    """The swaps of those blocks that are objects."""
    found = (of(block) for block in blocks if block.bl_rna.identifier == "Object")
    return [swap for swap in found if swap]


def unread(blocks: Iterable[bpy.types.ID]) -> list[tuple[str, str]]:
    """(object, add-on) for each object that an add-on animates which is not there, unless the file tells how."""
    found = []
    for block in blocks:
        if block.bl_rna.identifier != "Object" or of(block) or any(_off(scene) for scene in block.users_scene):
            continue
        sequence = _group(block, "mesh_sequence_settings")
        needed = {
            "keymesh": _curve(block, KEYMESH_PATH) is not None,
            "km_id": _curve(block, OLD_KEYMESH_PATH) is not None,
            "mesh_sequence_settings": sequence is not None and bool(sequence.get("initialized")),
        }
        there = bpy.types.Object.bl_rna.properties
        found += [(block.name, ADDONS[name]) for name, wanted in needed.items() if wanted and name not in there]
    return found


@contextlib.contextmanager
def playing(blocks: Iterable[bpy.types.ID]):
    """Yields a function that gives every swapping object among `blocks` its block of a frame. Puts all back at the end."""
    swaps = among(blocks)
    before = [
        (swap.object, swap.object.data, [(s.link, s.material) for s in swap.object.material_slots]) for swap in swaps
    ]
    try:
        yield lambda frame: [swap.show(frame) for swap in swaps]
    finally:
        for object, data, slots in before:
            if object.data == data:
                continue
            object.data = data
            for slot, (link, material) in zip(object.material_slots, slots):  # a block with fewer slots drops the rest
                if link == "OBJECT":
                    slot.link, slot.material = link, material


# ---- Keymesh -------------------------------------------------------------------------------------------------------
def _keymesh(object: bpy.types.Object) -> Swap | None:
    """Keymesh 2: the object's group holds the blocks, each block its number, and the number is keyed."""
    group = _group(object, "keymesh")
    if group is None or not group.get("active"):
        return None
    if any(_off(scene) for scene in object.users_scene):
        return None
    blocks = {}
    for entry in group.get("blocks") or ():
        block = entry.get("block")
        number = (_group(block, "keymesh") or {}).get("Data") if block is not None else None
        if number is not None:
            blocks[int(number)] = block
    return _by_number(object, KEYMESH_PATH, blocks)


def _off(scene: bpy.types.Scene) -> bool:
    """Whether Keymesh's swapping is switched off in the scene; not stored means on."""
    group = _group(scene, "keymesh")
    return group is not None and not group.get("enable_handler", True)


def _old_keymesh(object: bpy.types.Object) -> Swap | None:
    """Keymesh 0.1: plain properties on the object and on its meshes."""
    identity = object.get("km_id")
    if identity is None:
        return None
    blocks = {
        int(mesh["km_datablock"]): mesh
        for mesh in bpy.data.meshes
        if mesh.get("km_id") == identity and mesh.get("km_datablock") is not None
    }
    return _by_number(object, OLD_KEYMESH_PATH, blocks)


def _by_number(object: bpy.types.Object, path: str, blocks: dict[int, bpy.types.ID]) -> Swap | None:
    curve = _curve(object, path)
    if curve is None or not blocks:
        return None

    def block_at(frame: float):
        return blocks.get(_rounded(curve.evaluate(frame)))

    return Swap(object, block_at, _changes(curve, block_at), keyed=True)


# ---- Stop-motion-OBJ -----------------------------------------------------------------------------------------------
def _mesh_sequence(object: bpy.types.Object) -> Swap | None:
    """Stop-motion-OBJ: the object's group names the meshes; entry 0 is empty, and a formula or a key gives the entry."""
    group = _group(object, "mesh_sequence_settings")
    if group is None or not group.get("initialized"):
        return None
    meshes = [bpy.data.meshes.get(entry.get("key", "")) for entry in group.get("meshNameArray") or ()]
    count = len(meshes) - 1
    if count < 1 or any(mesh is None for mesh in meshes[1:]):
        return None  # streamed from the disk: the meshes are not in the file
    mode = int(group.get("frameMode", EXTEND))
    first, speed = float(group.get("startFrame", 1)), float(group.get("speed", 1.0))
    if mode == KEYED:
        curve = _curve(object, SEQUENCE_PATH)
        if curve is None:
            return None

        def keyed_at(frame: float):
            return meshes[min(max(_rounded(curve.evaluate(frame)), 1), count)]

        return Swap(object, keyed_at, _changes(curve, keyed_at), keyed=True)

    def block_at(frame: float):
        place = int((math.floor(frame) - first) * speed)
        if mode == BLANK and not 0 <= place < count:
            return meshes[0]
        if mode == REPEAT:
            place %= count
        elif mode == BOUNCE:
            cycle, place = divmod(place, count)
            place = count - 1 - place if cycle % 2 else place
        return meshes[min(max(place, 0), count - 1) + 1]

    steps = tuple(first + math.ceil(place / speed - 1e-6) for place in range(count)) if speed > 0 else ()
    return Swap(object, block_at, tuple(dict.fromkeys(steps)), keyed=False)


# ---- reading -------------------------------------------------------------------------------------------------------
def _group(block: bpy.types.ID, name: str):
    """What an add-on has stored in its group on a data-block, whether or not the add-on is there; None without it.

    Up to 4.5 that lies among the custom properties, from 5.0 beside them; files of the one hold both in the other.
    """
    system = block.bl_system_properties_get() if hasattr(block, "bl_system_properties_get") else None
    for properties in (system, block):
        group = properties.get(name) if properties is not None else None
        if hasattr(group, "get"):
            return group
    return None


def _curve(object: bpy.types.Object, path: str) -> bpy.types.FCurve | None:
    """The curve of the object's action on this path; None also if it is muted or has no keys."""
    found = (curve for curve in compat.fcurves(object) if curve.data_path == path)
    return next((curve for curve in found if not curve.mute and len(curve.keyframe_points)), None)


def _rounded(value: float) -> int:
    return math.floor(value + 0.5)


def _changes(curve: bpy.types.FCurve, block_at: Callable[[float], bpy.types.ID | None]) -> tuple[float, ...]:
    """Frames of the curve's keys, and between keys that are not stepped each whole frame, at which the block changes."""
    keys = sorted((key.co[0], key.interpolation) for key in curve.keyframe_points)
    frames = [keys[0][0]]
    for (frame, interpolation), (later, _) in zip(keys, keys[1:]):
        if interpolation != "CONSTANT":
            frames += range(math.floor(frame) + 1, math.ceil(later))
        frames.append(later)
    found: list[float] = []
    last = None
    for frame in frames:
        block = block_at(frame)
        if block is not None and block != last:
            found.append(round(frame, 3))
            last = block
    return tuple(found)
