# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbered meshes as one object that shows each file at the frame of its number.

The object has a modifier of geometry nodes that picks one of the files' collections; which one, is keyed. So it plays in
the viewport and in a render, and the file needs no add-on for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import bpy

from ...lim_core.shared.errors import LimError
from . import compat

SUFFIXES = (".obj", ".ply", ".stl", ".glb", ".gltf")
MODIFIER = "Mesh Sequence"
HIGHEST_FRAME = 1_000_000  # Blender's frames end a little above


def in_folder(folder: Path) -> list[tuple[int, Path]]:
    """The numbered meshes of a folder: (number, file), in order.

    Raises:
        LimError: missing_file (none, or no two that belong together), bad_request (several sequences).
    """
    groups: dict[tuple, list[tuple[int, Path]]] = {}
    for file in _meshes(folder):
        for key, number in _readings(file)[:1]:
            groups.setdefault(key, []).append((number, file))
    found = [_ordered(members) for members in groups.values() if len(members) > 1]
    if not found:  # the number may stand before other digits: cloth_0001_v2.obj
        every = [_longest(file) for file in _meshes(folder)]
        found = [list(members) for members in {tuple(group) for group in every if len(group) > 1}]
    if not found:
        raise LimError(
            "missing_file",
            f"There is no sequence of meshes in the folder “{folder.name}”.",
            f"Name a folder of numbered {', '.join(SUFFIXES)}, or a file.",
        )
    if len(found) > 1:
        firsts = " and ".join(f"“{group[0][1].name}”" for group in found[:3])
        raise LimError(
            "bad_request",
            f"The folder “{folder.name}” holds {len(found)} sequences of meshes.",
            f"Name the first file of one of them, such as {firsts}.",
        )
    return found[0]


def beginning_with(file: Path) -> list[tuple[int, Path]]:
    """The sequence whose first file this is: (number, file), in order; empty if it is none's."""
    group = _longest(file)
    return group if len(group) > 1 and group[0][1] == file else []


def _meshes(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())


def _readings(file: Path) -> list[tuple[tuple, int]]:
    """What the file's name is without one of its numbers, and that number; the last number first."""
    stem = file.stem
    found = [
        ((stem[: match.start()], stem[match.end() :], file.suffix.lower()), int(match.group()))
        for match in re.finditer(r"\d+", stem)
    ]
    return found[::-1]


def _longest(file: Path) -> list[tuple[int, Path]]:
    """The most files that differ from this one in one number alone, in order."""
    beside = [(other, _readings(other)) for other in _meshes(file.parent)]
    groups = [
        [(number, other) for other, readings in beside for also, number in readings if also == key]
        for key, _ in _readings(file)
    ]
    return _ordered(max(groups, key=len)) if groups else []


def _ordered(members: list[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """In the order of their numbers; counted from 1 where the numbers cannot be frames."""
    members = sorted(members)
    numbers = [number for number, _ in members]
    if len(set(numbers)) < len(numbers) or numbers[-1] > HIGHEST_FRAME:
        return [(count, file) for count, (_, file) in enumerate(members, 1)]
    return members


def build(scene: bpy.types.Scene, files: list[tuple[int, Path]], load: Callable[[Path], None]) -> bpy.types.Object:
    """Import the files and return the object, linked into the scene, that shows each from the frame of its number on.

    Args:
        files: (frame, file), in order.
        load: imports one file into the scene that is open.
    Raises:
        LimError: missing_file (a file holds no objects, or what `load` raises). Nothing is left in the scene then.
    """
    name = re.sub(r"[\s._-]*\d*$", "", files[0][1].stem) or files[0][1].parent.name or MODIFIER
    made: list[bpy.types.ID] = []
    try:
        meshes = bpy.data.collections.new(f"{name} meshes")
        made.append(meshes)
        looks: dict[tuple, bpy.types.Material] = {}
        for place, (_, file) in enumerate(files):
            frame = bpy.data.collections.new(f"{name} {place:06d}")  # collections are picked in the order of names
            made.append(frame)
            meshes.children.link(frame)
            before, collections = set(bpy.data.objects), set(bpy.data.collections)
            load(file)
            came = [object for object in bpy.data.objects if object not in before]
            made += came
            if not any(object.type == "MESH" for object in came):
                raise LimError("missing_file", f"“{file.name}” holds no mesh.", "Remove it from the sequence.")
            for object in came:
                for collection in list(object.users_collection):
                    collection.objects.unlink(object)
                frame.objects.link(object)
                _share_looks(object, looks)
            for collection in [c for c in bpy.data.collections if c not in collections]:
                bpy.data.collections.remove(collection)  # the importer's own, empty now
        shown = bpy.data.objects.new(name, bpy.data.meshes.new(name))
        made += [shown.data, shown]
        tree, socket = _picking(meshes)
        made.append(tree)
        modifier = shown.modifiers.new(MODIFIER, "NODES")
        modifier.node_group = tree
        curves = compat.new_action(shown, name)
        made.append(shown.animation_data.action)
        curve = compat.add_linear_fcurve(
            curves, f'modifiers["{MODIFIER}"]["{socket}"]', [frame for frame, _ in files], range(len(files))
        )
        for key in curve.keyframe_points:
            key.interpolation = "CONSTANT"
        scene.collection.objects.link(shown)
    except BaseException:
        bpy.data.batch_remove([block for block in made if block is not None])
        raise
    return shown


def _share_looks(object: bpy.types.Object, looks: dict[tuple, bpy.types.Material]) -> None:
    """Every file brings its own copy of the same materials: keep the first of each."""
    for slot in object.material_slots:
        material = slot.material
        if material is None or material.node_tree is None:
            continue
        nodes = material.node_tree.nodes
        images = tuple(node.image.filepath for node in nodes if getattr(node, "image", None) is not None)
        values = tuple(
            tuple(socket.default_value) if hasattr(socket.default_value, "__len__") else socket.default_value
            for node in nodes
            if node.bl_idname == "ShaderNodeBsdfPrincipled"
            for socket in node.inputs
            if hasattr(socket, "default_value")
        )
        packed = any(node.image.packed_file for node in nodes if getattr(node, "image", None) is not None)
        look = (re.sub(r"\.\d{3,}$", "", material.name), images, values)
        if packed:
            continue  # the path does not tell what is in them
        kept = looks.setdefault(look, material)
        if kept != material:
            slot.material = kept
            if not material.users:
                bpy.data.materials.remove(material)


def _picking(meshes: bpy.types.Collection) -> tuple[bpy.types.NodeTree, str]:
    """Nodes that give the n-th child of the collection as one mesh, and the identifier of the input n."""
    tree = bpy.data.node_groups.new(MODIFIER, "GeometryNodeTree")
    tree.interface.new_socket("Geometry", in_out="INPUT", socket_type="NodeSocketGeometry")
    number = tree.interface.new_socket("Mesh", in_out="INPUT", socket_type="NodeSocketInt")
    tree.interface.new_socket("Geometry", in_out="OUTPUT", socket_type="NodeSocketGeometry")
    kinds = {
        "given": "NodeGroupInput", "children": "GeometryNodeCollectionInfo", "point": "GeometryNodePoints",
        "pick": "GeometryNodeInstanceOnPoints", "real": "GeometryNodeRealizeInstances", "result": "NodeGroupOutput",
    }  # fmt: skip
    nodes = {name: tree.nodes.new(kind) for name, kind in kinds.items()}
    for place, node in enumerate(nodes.values()):
        node.location = (200 * place, 0)
    nodes["children"].inputs["Collection"].default_value = meshes
    nodes["children"].inputs["Separate Children"].default_value = True
    nodes["pick"].inputs["Pick Instance"].default_value = True
    link = tree.links.new
    link(nodes["point"].outputs[0], nodes["pick"].inputs["Points"])
    link(nodes["children"].outputs[0], nodes["pick"].inputs["Instance"])
    link(nodes["given"].outputs["Mesh"], nodes["pick"].inputs["Instance Index"])
    link(nodes["pick"].outputs[0], nodes["real"].inputs[0])
    link(nodes["real"].outputs[0], nodes["result"].inputs[0])
    return tree, number.identifier
