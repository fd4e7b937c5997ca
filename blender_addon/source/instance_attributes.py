# SPDX-License-Identifier: GPL-3.0-or-later
"""Attributes that geometry nodes store on instances, for every instance that a dependency graph lists."""

from __future__ import annotations

import contextlib

import bpy
import numpy as np

from .mesh_arrays import values

NONE = 2147483647  # fills the unused places of a persistent id


class InstanceAttributes:
    """Finds an instance's place among its owner's instances, and what is stored there."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[int, int]] = {}
        self._tables: dict[str, dict[str, np.ndarray]] = {}

    def begin(self) -> None:
        """A new pass over the instances of a graph."""
        self._places.clear()
        self._tables.clear()

    def place_of(self, instance: bpy.types.DepsgraphObjectInstance) -> tuple[int, int] | None:
        """Where the instance stands in its owner's geometry: its id there, and its number in order. To be asked for every
        instance of a pass; None for what geometry nodes did not make.

        What one instanced collection shows shares both: its objects follow each other.
        """
        if not instance.is_instance or instance.particle_system is not None:
            return None
        if not any(modifier.type == "NODES" for modifier in instance.parent.modifiers):
            return None
        outermost = [number for number in instance.persistent_id if number != NONE][-1]
        owner = instance.parent.name_full
        last, number = self._places.get(owner, (None, -1))
        self._places[owner] = outermost, number + (outermost != last)
        return self._places[owner]

    def value(self, owner: bpy.types.Object, graph: bpy.types.Depsgraph, place: tuple[int, int], name: str):
        """What is stored under `name` at that place, [1…4]; None if nothing is."""
        if owner.name_full not in self._tables:
            self._tables[owner.name_full] = _table(owner, graph)
        table = self._tables[owner.name_full]
        row = place["id" in table]  # without stored ids, an id is the instance's index
        return table[name][row] if name in table and 0 <= row < len(table[name]) else None


def _table(owner: bpy.types.Object, graph: bpy.types.Depsgraph) -> dict[str, np.ndarray]:
    if hasattr(owner, "evaluated_geometry"):
        geometry = owner.evaluated_geometry()  # what it hands out lives as long as it does
        carrier = geometry.instances_pointcloud()
    else:
        probe = bpy.data.objects.get(_probe_name(owner.original))
        carrier = probe.evaluated_get(graph).data if probe else None
    if carrier is None:
        return {}
    found = {attribute.name: values(attribute) for attribute in carrier.attributes if attribute.domain == "POINT"}
    return {name: array for name, array in found.items() if array is not None}


# ---- Blender 4.2 to 4.4, which do not hand out instances -------------------------------------------------------------


def add_probes(undo: contextlib.ExitStack, collection: bpy.types.Collection, objects: list[bpy.types.Object]) -> None:
    """Where Blender cannot tell what is stored on instances: copies of the objects that turn their instances into points,
    which can be read. `undo` removes them."""
    if hasattr(bpy.types.Object, "evaluated_geometry") or not _someone_asks():
        return
    owners = [object for object in objects if any(m.type == "NODES" and m.node_group for m in object.modifiers)]
    if not owners:
        return
    group = _points_of_instances()
    undo.callback(bpy.data.node_groups.remove, group)
    for owner in owners:
        probe = owner.copy()
        undo.callback(bpy.data.objects.remove, probe)
        probe.name = _probe_name(owner)
        probe.modifiers.new("LIM probe", "NODES").node_group = group
        collection.objects.link(probe)


def _probe_name(owner: bpy.types.Object) -> str:
    return f"LIM probe {owner.as_pointer():x}"


def _someone_asks() -> bool:
    trees = [*(m.node_tree for m in bpy.data.materials if m.node_tree), *bpy.data.node_groups]
    return any(
        node.bl_idname == "ShaderNodeAttribute" and node.attribute_type == "INSTANCER"
        for tree in trees
        for node in tree.nodes
    )


def _points_of_instances() -> bpy.types.NodeTree:
    group = bpy.data.node_groups.new("LIM probe", "GeometryNodeTree")
    for way in ("INPUT", "OUTPUT"):
        group.interface.new_socket("Geometry", in_out=way, socket_type="NodeSocketGeometry")
    chain = ["NodeGroupInput", "GeometryNodeInstancesToPoints", "GeometryNodePointsToVertices", "NodeGroupOutput"]
    nodes = [group.nodes.new(kind) for kind in chain]
    for node, following in zip(nodes, nodes[1:]):
        group.links.new(node.outputs[0], following.inputs[0])
    return group
