# SPDX-License-Identifier: GPL-3.0-or-later
"""What a shader reads of the place where its object stands: carried along on the proxies, which stand somewhere else.

Object Info, world positions, coordinates of another object, attributes of objects and instancers: each is a `Read`. `carry`
makes a copied material ask the proxy for it instead, by a custom property or a mesh attribute of ours; `Reader` finds the
values where the object stands in the user's scene. They are those of the first keyframe in which a thing is seen, so that a
pattern sticks to its surface and a random colour stays the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import bpy
import numpy as np

from . import instance_attributes

LOCAL = "lim_local"
"""Point attribute of the baked meshes: where each point lies in its own object at the first keyframe."""
NORMAL, FACE_NORMAL = "lim_normal", "lim_face_normal"
"""Corner and face attribute: normals in the object's own space at the first keyframe."""
PREFIX = "lim_read_"
ROWS = "xyz"

_PARTICLE = {
    "Index": lambda particle, number, frame: number,
    "Random": lambda particle, number, frame: unit(hash_2d(number, 0)),
    "Age": lambda particle, number, frame: frame - particle.birth_time,
    "Lifetime": lambda particle, number, frame: particle.lifetime,
    "Location": lambda particle, number, frame: particle.location,
    "Size": lambda particle, number, frame: particle.size,
    "Velocity": lambda particle, number, frame: particle.velocity,
    "Angular Velocity": lambda particle, number, frame: particle.angular_velocity,
}
_ATTRIBUTES = ("object", "instancer", "layer")
_SEEN_FROM = {  # these depend on the camera, and a surface seen from all sides has no camera
    "ShaderNodeTexCoord": ("Camera", "Window", "Reflection"),
    "ShaderNodeNewGeometry": ("Incoming",),
    "ShaderNodeCameraData": ("View Vector", "View Z Depth", "View Distance"),
}


@dataclasses.dataclass(frozen=True)
class Read:
    """One thing that a material asks."""

    kind: str
    """“location”, “index”, “random”, “matrix” (object to world, or to `target`), “inverse” (world to object),
    “normals” (object to world, for normals), “object”, “instancer” or “layer” (an attribute `name`), “generated” or “uv” (of
    the instancer), “particle” (`name` is an output of Particle Info)."""
    name: str = ""
    target: bpy.types.Object | None = None

    @property
    def is_matrix(self) -> bool:
        return self.kind in ("matrix", "inverse", "normals")


# ---- materials -----------------------------------------------------------------------------------------------------


def carry(tree: bpy.types.NodeTree, node: bpy.types.Node, property_of: Callable[[Read], str]) -> None:
    """Let what `node` feeds ask the proxy instead.

    Args:
        property_of: gives a read its custom property.
    """
    kind = node.bl_idname
    if kind == "ShaderNodeObjectInfo":
        for output, read in (("Location", "location"), ("Object Index", "index"), ("Random", "random")):
            _ask(tree, node.outputs[output], property_of(Read(read)), "Fac" if read != "location" else "Vector")
    elif kind == "ShaderNodeAttribute" and node.attribute_type in ("OBJECT", "INSTANCER", "VIEW_LAYER"):
        read = {"OBJECT": "object", "INSTANCER": "instancer", "VIEW_LAYER": "layer"}[node.attribute_type]
        node.attribute_name = property_of(Read(read, node.attribute_name))
        node.attribute_type = "OBJECT"
    elif kind == "ShaderNodeUVMap" and node.from_instancer:
        _ask(tree, node.outputs["UV"], property_of(Read("uv")), "Vector")
    elif kind == "ShaderNodeParticleInfo":
        for output in node.outputs:
            if output.is_linked and output.name in _PARTICLE:
                name = "Vector" if output.type == "VECTOR" else "Fac"
                _ask(tree, output, property_of(Read("particle", output.name)), name)
    elif kind == "ShaderNodeTexCoord":
        if node.from_instancer:
            _ask(tree, node.outputs["Generated"], property_of(Read("generated")), "Vector")
            _ask(tree, node.outputs["UV"], property_of(Read("uv")), "Vector")
        local = _attribute_when(tree, node.outputs["Object"], LOCAL)
        if local is not None and node.object is not None:
            local = _moved(tree, local, property_of(Read("matrix", target=node.object)))
        _replace(tree, node.outputs["Object"], local)
        _replace(tree, node.outputs["Normal"], _attribute_when(tree, node.outputs["Normal"], NORMAL))
    elif kind == "ShaderNodeNewGeometry":
        local = _attribute_when(tree, node.outputs["Position"], LOCAL)
        if local is not None:
            _replace(tree, node.outputs["Position"], _moved(tree, local, property_of(Read("matrix"))))
        for output, attribute in (("Normal", NORMAL), ("True Normal", FACE_NORMAL)):
            normal = _attribute_when(tree, node.outputs[output], attribute)
            if normal is not None:
                normal = _moved(tree, normal, property_of(Read("normals")), is_place=False)
                _replace(tree, node.outputs[output], _facing(tree, _unit_length(tree, normal), node))
    elif kind == "ShaderNodeVectorTransform":
        _carry_transform(tree, node, property_of)


def _carry_transform(tree, node, property_of: Callable[[Read], str]) -> None:
    way = (node.convert_from, node.convert_to)
    if "CAMERA" in way or way[0] == way[1] or not node.outputs[0].is_linked:
        return
    source = tree.nodes.new("ShaderNodeCombineXYZ").outputs[0]
    if node.inputs[0].is_linked:
        source = node.inputs[0].links[0].from_socket
    else:
        for socket, value in zip(source.node.inputs, node.inputs[0].default_value):
            socket.default_value = value
    if node.vector_type == "NORMAL":
        read = Read("normals") if way[0] == "OBJECT" else Read("normals", "to object")
    else:
        read = Read("matrix") if way[0] == "OBJECT" else Read("inverse")
    result = _moved(tree, source, property_of(read), is_place=node.vector_type == "POINT")
    _replace(tree, node.outputs[0], _unit_length(tree, result) if node.vector_type == "NORMAL" else result)


def view_dependent(nodes: set[bpy.types.Node]) -> set[str]:
    """Names of the coordinates that depend on a camera and feed one of the nodes."""
    return {
        f"{output.name} of {node.bl_label}"
        for node in nodes
        for output in node.outputs
        if output.name in _SEEN_FROM.get(node.bl_idname, ()) and any(link.to_node in nodes for link in output.links)
    } | {
        node.bl_label
        for node in nodes
        if node.bl_idname == "ShaderNodeVectorTransform" and "CAMERA" in (node.convert_from, node.convert_to)
    }


def _ask(tree, output: bpy.types.NodeSocket, name: str, answer: str) -> None:
    if output.is_linked:
        _replace(tree, output, _attribute(tree, name, "OBJECT").outputs[answer])


def _attribute(tree, name: str, kind: str) -> bpy.types.Node:
    node = tree.nodes.new("ShaderNodeAttribute")
    node.attribute_type, node.attribute_name = kind, name
    return node


def _attribute_when(tree, output: bpy.types.NodeSocket, name: str) -> bpy.types.NodeSocket | None:
    return _attribute(tree, name, "GEOMETRY").outputs["Vector"] if output.is_linked else None


def _replace(tree, output: bpy.types.NodeSocket, by: bpy.types.NodeSocket | None) -> None:
    if by is not None:
        for target in [link.to_socket for link in output.links]:
            tree.links.new(by, target)


def _moved(tree, vector: bpy.types.NodeSocket, name: str, is_place: bool = True) -> bpy.types.NodeSocket:
    """The vector times the matrix whose rows the proxy carries: a dot product for each."""
    result = tree.nodes.new("ShaderNodeCombineXYZ")
    for row, target in zip(ROWS, result.inputs):
        numbers = _attribute(tree, name + row, "OBJECT")
        product = tree.nodes.new("ShaderNodeVectorMath")
        product.operation = "DOT_PRODUCT"
        tree.links.new(vector, product.inputs[0])
        tree.links.new(numbers.outputs["Vector"], product.inputs[1])
        value = product.outputs["Value"]
        if is_place:
            shifted = tree.nodes.new("ShaderNodeMath")
            tree.links.new(value, shifted.inputs[0])
            tree.links.new(numbers.outputs["Alpha"], shifted.inputs[1])
            value = shifted.outputs[0]
        tree.links.new(value, target)
    return result.outputs[0]


def _unit_length(tree, vector: bpy.types.NodeSocket) -> bpy.types.NodeSocket:
    node = tree.nodes.new("ShaderNodeVectorMath")
    node.operation = "NORMALIZE"
    tree.links.new(vector, node.inputs[0])
    return node.outputs["Vector"]


def _facing(tree, normal: bpy.types.NodeSocket, geometry: bpy.types.Node) -> bpy.types.NodeSocket:
    """As Cycles has it: on a back side the normal points to the viewer."""
    sign = tree.nodes.new("ShaderNodeMath")
    sign.operation = "MULTIPLY_ADD"
    tree.links.new(geometry.outputs["Backfacing"], sign.inputs[0])
    sign.inputs[1].default_value, sign.inputs[2].default_value = -2.0, 1.0
    scaled = tree.nodes.new("ShaderNodeVectorMath")
    scaled.operation = "SCALE"
    tree.links.new(normal, scaled.inputs[0])
    tree.links.new(sign.outputs[0], scaled.inputs["Scale"])
    return scaled.outputs["Vector"]


# ---- values --------------------------------------------------------------------------------------------------------


class Reader:
    """Answers reads for the instances of one dependency graph after the other; what was answered once stays."""

    def __init__(self) -> None:
        self._known: dict[tuple, dict[str, tuple[float, ...]]] = {}
        self._colours: dict[tuple, tuple[float, ...]] = {}
        self._instances = instance_attributes.InstanceAttributes()
        self._place: tuple[int, int] | None = None
        self.lost: set[tuple[str, str]] = set()
        """(object, attribute) of what an instance asked its instancer for in vain."""

    def begin(self) -> None:
        """A new pass over the instances of a graph."""
        self._instances.begin()

    def meet(self, instance: bpy.types.DepsgraphObjectInstance) -> None:
        """To be told of every instance of a pass, in order."""
        self._place = self._instances.place_of(instance)

    def colour(self, instance: bpy.types.DepsgraphObjectInstance) -> tuple[tuple[float, ...], bool]:
        """The object's colour when it was first seen, and whether it is another one now."""
        now = tuple(instance.object.color)
        first = self._colours.setdefault(identity(instance), now)
        return first, not np.allclose(now, first, atol=1e-3)

    def answers(
        self, instance: bpy.types.DepsgraphObjectInstance, graph: bpy.types.Depsgraph, reads: dict[str, Read]
    ) -> tuple[dict[str, tuple[float, ...]], set[str]]:
        """Custom properties for the instance's proxy: those of `reads`, as they were when it was first seen; and, in words,
        which of them have other values now."""
        known = self._known.setdefault(identity(instance), {})
        changed = set()
        for name, read in reads.items():
            if read.is_matrix:
                rows = self._matrix(instance, graph, read)
                now = {name + row: tuple(float(number) for number in numbers) for row, numbers in zip(ROWS, rows)}
            else:
                now = {name: _four(self._value(instance, graph, read))}
            for key, value in now.items():
                if not np.allclose(known.setdefault(key, value), value, rtol=1e-3, atol=1e-3):
                    changed.add(
                        f"the attribute “{read.name}”" if read.kind in _ATTRIBUTES else "its place in the scene"
                    )
        return known, changed

    @staticmethod
    def _matrix(instance, graph, read: Read) -> np.ndarray:
        world = np.array(instance.matrix_world, np.float64)
        if read.kind == "matrix":
            if read.target is None:
                return world[:3]
            target = np.array(read.target.evaluated_get(graph).matrix_world, np.float64)
            return (_inverse(target) @ world)[:3]
        if read.kind == "inverse":
            return _inverse(world)[:3]
        normals = np.eye(4)
        normals[:3, :3] = world[:3, :3].T if read.name else _inverse(world)[:3, :3].T
        return normals[:3]

    def _value(self, instance, graph, read: Read):
        shown = instance.object
        if read.kind == "location":
            return tuple(instance.matrix_world.translation)
        if read.kind == "index":
            return shown.pass_index
        if read.kind == "random":
            return unit(instance.random_id & 0xFFFFFFFF if instance.is_instance else hash_2d(hash_name(shown.name), 0))
        if read.kind == "object":
            return _first_of((shown, shown.data), read.name)
        if read.kind == "layer":
            return _first_of((graph.view_layer, graph.scene, graph.scene.world), read.name)
        if read.kind in ("generated", "uv"):
            return tuple(instance.orco if read.kind == "generated" else instance.uv)
        particles = instance.particle_system if instance.is_instance else None
        if read.kind == "particle":
            number = instance.persistent_id[0]
            if particles is None or not 0 <= number < len(particles.particles):
                return 0.0
            frame = graph.scene.frame_current + graph.scene.frame_subframe
            return _PARTICLE[read.name](particles.particles[number], number, frame)
        found = _first_of((particles.settings,), read.name) if particles is not None else None
        if found is None and self._place is not None:
            found = self._instances.value(instance.parent, graph, self._place, read.name)
        if found is None:
            found = _first_of((instance.parent if instance.is_instance else None, shown, shown.data), read.name)
        if found is None and instance.is_instance:
            self.lost.add((shown.name, read.name))
        return found


def identity(instance: bpy.types.DepsgraphObjectInstance) -> tuple:
    """What makes an instance the same one in another frame's graph."""
    shown = instance.object
    data = shown.data.name if shown.data else ""
    if not instance.is_instance:
        return (shown.name_full, data)
    return (instance.parent.name_full, shown.name_full, data, *instance.persistent_id)


def _inverse(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.pinv(matrix)  # what is scaled to nothing has no inverse, and nothing to see either


def _first_of(blocks, name: str):
    """The first custom property, or property by its path, that one of the data-blocks has; as Blender looks it up."""
    for block in blocks:
        if block is None:
            continue
        if name in block:
            return block[name]
        try:
            return block.path_resolve(name)
        except (ValueError, TypeError):
            continue
    return None


def _four(value) -> tuple[float, ...]:
    """A value as an attribute of an object is read: a number is a grey, a vector has alpha 1, nothing is black."""
    if value is None:
        return (0.0, 0.0, 0.0, 0.0)
    try:
        numbers = [float(number) for number in value]
    except TypeError:
        try:
            number = float(value)
        except (TypeError, ValueError):
            return (0.0, 0.0, 0.0, 0.0)
        return (number, number, number, 1.0)
    except ValueError:  # a word
        return (0.0, 0.0, 0.0, 0.0)
    return tuple((numbers + [0.0, 0.0, 0.0][: max(0, 3 - len(numbers))] + [1.0])[:4])


# ---- Blender's own hashes ------------------------------------------------------------------------------------------


def hash_name(name: str) -> int:
    """The hash of an object's name that its random number is made of; bytes above 127 count as negative."""
    value = 0
    for byte in name.encode("utf-8"):
        value = (value * 37 + (byte if byte < 128 else byte - 256)) & 0xFFFFFFFF
    return value


def hash_2d(x: int, y: int) -> int:
    """Bob Jenkins' lookup3 of two 32-bit words, as Blender and Cycles use it."""
    mask = 0xFFFFFFFF
    a = b = c = (0xDEADBEEF + (2 << 2) + 13) & mask
    a, b = (a + x) & mask, (b + y) & mask
    for turn, (to, by) in enumerate(("cb", "ac", "ba", "cb", "ac", "ba", "cb")):
        values = {"a": a, "b": b, "c": c}
        shift = (14, 11, 25, 16, 4, 14, 24)[turn]
        turned = ((values[by] << shift) | (values[by] >> (32 - shift))) & mask
        values[to] = ((values[to] ^ values[by]) - turned) & mask
        a, b, c = values["a"], values["b"], values["c"]
    return c


def unit(hashed: int) -> float:
    """A hash as a number from 0 to 1."""
    return hashed / 0xFFFFFFFF
