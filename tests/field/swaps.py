# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows about add-ons that swap an object's mesh, and scenes as those add-ons leave them in a file.

The scenes are made by registering properties of the same names and taking them away again: what stays in the file is what
the add-on would have stored, and nothing is there that would swap.
"""

from __future__ import annotations

import contextlib

import bpy
import numpy as np

from .bench import Bench, fcurves, keyed, matte, new_scene, row, warned


class FieldKeymeshBlock(bpy.types.PropertyGroup):
    block: bpy.props.PointerProperty(type=bpy.types.ID)
    name: bpy.props.StringProperty()


class FieldKeymesh(bpy.types.PropertyGroup):
    active: bpy.props.BoolProperty()
    animated: bpy.props.BoolProperty()
    blocks: bpy.props.CollectionProperty(type=FieldKeymeshBlock)


class FieldBag(bpy.types.PropertyGroup):
    enable_handler: bpy.props.BoolProperty(default=True)


class FieldSequenceName(bpy.types.PropertyGroup):
    key: bpy.props.StringProperty()
    basename: bpy.props.StringProperty()


class FieldSequence(bpy.types.PropertyGroup):
    initialized: bpy.props.BoolProperty()
    cacheMode: bpy.props.EnumProperty(items=(("cached", "", "", 0), ("streaming", "", "", 1)))
    meshNameArray: bpy.props.CollectionProperty(type=FieldSequenceName)
    numMeshes: bpy.props.IntProperty()
    startFrame: bpy.props.IntProperty(default=1)
    speed: bpy.props.FloatProperty(default=1.0)
    frameMode: bpy.props.EnumProperty(items=[(str(i), "", "", i) for i in range(5)], default="1")
    curKeyframeMeshIdx: bpy.props.IntProperty(default=1)
    dirPath: bpy.props.StringProperty()


@contextlib.contextmanager
def addons_properties():
    """The properties of the add-ons, as long as the scene is being made."""
    classes = (FieldKeymeshBlock, FieldKeymesh, FieldBag, FieldSequenceName, FieldSequence)
    for cls in classes:
        bpy.utils.register_class(cls)
    bpy.types.Object.keymesh = bpy.props.PointerProperty(type=FieldKeymesh)
    bpy.types.Mesh.keymesh = bpy.props.PointerProperty(type=FieldBag)
    bpy.types.Scene.keymesh = bpy.props.PointerProperty(type=FieldBag)
    bpy.types.Object.mesh_sequence_settings = bpy.props.PointerProperty(type=FieldSequence)
    try:
        yield
    finally:
        del bpy.types.Object.keymesh, bpy.types.Mesh.keymesh, bpy.types.Scene.keymesh
        del bpy.types.Object.mesh_sequence_settings
        for cls in reversed(classes):
            bpy.utils.unregister_class(cls)


def blob(name: str, height: float, subdivisions: int = 2) -> bpy.types.Mesh:
    """An ellipsoid of this half height, in meshes of other topology for other subdivisions."""
    bpy.ops.mesh.primitive_ico_sphere_add(subdivisions=subdivisions, radius=1)
    made = bpy.context.object
    mesh = made.data
    mesh.name = name
    for vertex in mesh.vertices:
        vertex.co.z *= height
    bpy.data.objects.remove(made)
    mesh.materials.append(bpy.data.materials.get("clay") or matte("clay", (0.8, 0.45, 0.25)))
    mesh.use_fake_user = True
    return mesh


def build_keymesh(heights: dict[int, float], old: bool = False) -> bpy.types.Object:
    """A Keymesh object that shows a blob of another height from each of these frames on, as a file without the add-on
    holds it; the order of the list, the numbers and the names of the blocks tell nothing of the frames."""
    scene = new_scene(min(heights), max(heights))
    kinds = sorted(set(heights.values()))
    meshes = [blob(f"Blob_frame_{99 - k}", height, 2 + k % 3) for k, height in enumerate(kinds)]
    object = bpy.data.objects.new("Blob", meshes[0])
    scene.collection.objects.link(object)
    numbers = [7 + 3 * k for k in range(len(kinds))]
    if old:
        object["km_id"], object["km_datablock"] = 5, numbers[0]
        for mesh, number in zip(meshes, numbers):
            mesh["km_id"], mesh["km_datablock"] = 5, number
        for frame, height in heights.items():
            object["km_datablock"] = numbers[kinds.index(height)]
            object.keyframe_insert('["km_datablock"]', frame=frame)
    else:
        with addons_properties():
            group = object.keymesh
            group.active = group.animated = True
            group["ID"] = 5
            for mesh, number in reversed(list(zip(meshes, numbers))):
                mesh.keymesh["ID"], mesh.keymesh["Data"] = 5, number
                entry = group.blocks.add()
                entry.block, entry.name = mesh, mesh.name
            for frame, height in heights.items():
                group["Keymesh Data"] = numbers[kinds.index(height)]
                object.keyframe_insert('keymesh["Keymesh Data"]', frame=frame)
    for curve in fcurves(object):
        for key in curve.keyframe_points:
            key.interpolation = "CONSTANT"
    return object


def build_mesh_sequence(mode: int, heights=(1.0, 1.4, 0.6, 1.2), streaming: bool = False, keys: dict | None = None):
    """A Stop-motion-OBJ object: one mesh per frame from frame 3 on, half as fast, in one of the add-on's five modes."""
    scene = new_scene(1, 20)
    empty = bpy.data.meshes.new("emptyMesh")
    empty.use_fake_user = True
    if not streaming:
        for k, height in enumerate(heights):
            blob(f"scan {k}", height, 2 + k % 2)
    object = bpy.data.objects.new("Scan", empty)
    scene.collection.objects.link(object)
    with addons_properties():
        group = object.mesh_sequence_settings
        group.initialized, group.startFrame, group.speed, group.frameMode = True, 3, 0.5, str(mode)
        group.cacheMode = "streaming" if streaming else "cached"
        names = ["emptyMesh", *(f"scan {k}" for k in range(len(heights)))]
        for name in names:
            group.meshNameArray.add().key = name
        group.numMeshes = len(names)
        if keys:
            keyed(group, "curKeyframeMeshIdx", keys)
    return object


def _heights(bench: Bench, facts: dict, frames) -> list[float]:
    result = bench.result(facts)
    return [float(result.at(frame)[:, 2].max()) for frame in frames]


@row("Keymesh without the add-on", "half heights 1.00, 1.35, 0.65 at 1, 9, 17")
def keymesh(bench: Bench) -> tuple[str, bool]:
    build_keymesh({1: 1.0, 9: 1.35, 17: 0.65})
    facts = bench.run_scene()
    found = _heights(bench, facts, (1, 9, 17))
    passed = np.allclose(found, (1.0, 1.35, 0.65), atol=0.06) and facts["keyframes"] == [1, 9, 17]
    return f"{', '.join(f'{height:.2f}' for height in found)}; keyframes {facts['keyframes']}", bool(passed)


@row("Keymesh with many blocks", "twenty blocks are twenty keyframes", name="keymesh_twenty")
def keymesh_twenty(bench: Bench) -> tuple[str, bool]:
    build_keymesh({1 + 2 * k: 0.6 + 0.04 * ((7 * k) % 20) for k in range(20)})
    facts = bench.run_scene("--inbetweens", "0")
    return f"{len(facts['keyframes'])} keyframes", facts["status"] == "done" and len(facts["keyframes"]) == 20


@row("Stop-motion-OBJ without the add-on", "half heights 1.0, 1.4, 0.6 at 3, 5, 7")
def stop_motion_obj(bench: Bench) -> tuple[str, bool]:
    build_mesh_sequence(1)
    facts = bench.run_scene("--keyframes", "3,5,7")
    found = _heights(bench, facts, (3, 5, 7))
    return ", ".join(f"{height:.2f}" for height in found), bool(np.allclose(found, (1.0, 1.4, 0.6), atol=0.06))


@row("an add-on's animation that is not in the file", "a warning that names the object and the add-on")
def stop_motion_streamed(bench: Bench) -> tuple[str, bool]:
    object = build_mesh_sequence(1, streaming=True)
    object.data = blob("still", 1.0)
    facts = bench.run_scene("--keyframes", "3,5,7")
    said = warned(facts, "Scan", "Stop-motion-OBJ")
    return f"{facts['status']}, {'said' if said else 'not said'}", said
