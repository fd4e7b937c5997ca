# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn materials into ones that show their base colour alone, whatever the light.

Render passes were measured against this and lose: Diffuse Color is black on metal and on emitters, Denoising Albedo adds
the Fresnel reflection, and both are black for materials made with “Shader to RGB”. So each material is copied and every
surface shader in the copy (also inside groups) becomes an Emission of its base colour. Mix and Add Shader stay as they
are and now mix colours, exactly and without noise; Transparent stays too, so masks cut. The originals are not touched.

A copy shows its material as it is when it is made: what keys and drivers change stays at that value, and what a shader reads
of the place where its object stands is asked of the proxy instead (`surroundings`). `Traits` tells what cannot be shown.
"""

from __future__ import annotations

import dataclasses
import os
import re

import bpy

from . import compat, surroundings

GENERATED = "lim_generated"
"""Point attribute of the baked meshes: their Generated coordinates at rest, so that procedural patterns stick."""
PLAIN_GREY = (0.8, 0.8, 0.8, 1.0)  # what Blender shows where there is no material

_USES_GENERATED = {  # these read Generated where their Vector is not linked
    f"ShaderNodeTex{kind}" for kind in ("Noise", "Voronoi", "Wave", "Magic", "Musgrave", "Checker", "Brick", "Gradient")
}
_KEPT_SHADERS = {"ShaderNodeMixShader", "ShaderNodeAddShader", "ShaderNodeBsdfTransparent", "ShaderNodeHoldout"}


@dataclasses.dataclass(frozen=True)
class Traits:
    """What the look of a material asks for, and what of it a still, flat copy cannot show."""

    reads: dict[str, surroundings.Read] = dataclasses.field(default_factory=dict)
    """Custom property of the proxies -> what it holds."""
    attributes: frozenset[str] = frozenset()
    """Mesh attributes that it reads, UV maps among them."""
    films: frozenset[str] = frozenset()
    """Images that show another picture at another frame."""
    animated: tuple[tuple[bpy.types.ID, str], ...] = ()
    """(material or node group, path in its tree) of what keys or drivers set."""
    view_dependent: frozenset[str] = frozenset()
    masked: bool = False
    """Whether transparency cuts it out."""
    displaced: bool = False


CULLED = "LIM culled"
_COLOURING = {"Base Color", "Color", "Alpha", "Emission Color", "Emission Strength", "Strength", "Fac", "Factor"}
_NODE = re.compile(r'nodes\["((?:[^"\\]|\\.)*)"\](?:\.inputs\[(\d+)\])?')


def _hold_still(block: bpy.types.ID, tree: bpy.types.NodeTree, made: bpy.types.NodeTree, graph) -> list:
    """Give the copy the values that keys and drivers set now, without keys and drivers.

    Returns:
        (block, path, copy) of each.
    """
    if tree.animation_data is None:
        return []
    shown = block.evaluated_get(graph) if graph is not None else block
    shown = shown.node_tree if isinstance(shown, bpy.types.Material) else shown
    paths = {curve.data_path for curve in (*compat.fcurves(tree), *tree.animation_data.drivers) if not curve.mute}
    for track in tree.animation_data.nla_tracks:
        for strip in track.strips:
            curves = compat.curves_of(strip.action, getattr(strip, "action_slot", None)) if strip.action else []
            paths |= {curve.data_path for curve in curves}
    made.animation_data_clear()
    held = []
    for path in sorted(paths):
        owner, _, name = path.rpartition(".")
        try:
            setattr(made.path_resolve(owner) if owner else made, name, shown.path_resolve(path))
        except (ValueError, TypeError, AttributeError):  # a key of what is not there any more
            continue
        held.append((block, path, made))
    return held


def _is_seen(block: bpy.types.ID, path: str, made: bpy.types.NodeTree, shown: set[tuple[str, str]]) -> bool:
    """Whether the base colour depends on a value of a tree.

    Args:
        shown: (tree, node) of all that reaches the output of the copy.
    """
    tree = block.node_tree if isinstance(block, bpy.types.Material) else block
    found = _NODE.match(path)
    node = tree.nodes.get(found[1].replace('\\"', '"')) if found else None
    if node is None:
        return False
    shaders = [socket for socket in node.outputs if socket.type == "SHADER"]
    if not shaders or node.bl_idname in _KEPT_SHADERS or node.bl_idname in _PASSED_THROUGH:
        return (made.name, node.name) in shown
    number = int(found[2]) if found[2] else len(node.inputs)
    named = number < len(node.inputs) and node.inputs[number].name in _COLOURING
    return named and any(socket.is_linked for socket in shaders)


def _reached(output: bpy.types.Node) -> set[bpy.types.Node]:
    """All nodes that feed the surface of an output node, in groups too (a group counts whole)."""
    found: set[bpy.types.Node] = set()
    waiting = [link.from_node for link in output.inputs["Surface"].links]
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        waiting += [link.from_node for socket in node.inputs for link in socket.links]
        if node.bl_idname == "ShaderNodeGroup" and node.node_tree is not None:
            waiting += [inner for inner in node.node_tree.nodes if inner.bl_idname == "NodeGroupOutput"]
    return found


def _uses_uv(node: bpy.types.Node) -> bool:
    """Whether the node takes the active UV map without naming it."""
    if node.bl_idname == "ShaderNodeTexCoord":
        return node.outputs["UV"].is_linked
    return node.bl_idname == "ShaderNodeTexImage" and not node.inputs["Vector"].is_linked


class AlbedoMaterials:
    """The copies of one capture. `close()` removes all that was made."""

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        """Name of each image whose file was not found -> its path."""
        self._traits: dict[bpy.types.Material | None, Traits] = {}
        self._reads: dict[surroundings.Read, str] = {}
        self._materials: dict[bpy.types.Material | None, bpy.types.Material] = {}
        self._groups: dict[bpy.types.NodeTree, bpy.types.NodeTree] = {}
        self._made: list[bpy.types.ID] = []

    def of(self, material: bpy.types.Material | None, graph: bpy.types.Depsgraph | None = None) -> bpy.types.Material:
        """The material that shows the base colour of `material`; None is an unpainted (or vertex-painted) surface.

        Args:
            graph: has the material as it is at this frame; else what keys and drivers set is as the scene shows it now.
        """
        if material not in self._materials:
            self._materials[material] = (
                self._plain(material) if self._is_plain(material) else self._copy(material, graph)
            )
        return self._materials[material]

    def traits(self, material: bpy.types.Material | None, graph: bpy.types.Depsgraph | None = None) -> Traits:
        """What the copy of `material` asks for, and what it cannot show."""
        self.of(material, graph)
        return self._traits.get(material, Traits())

    def painted(self) -> bpy.types.Material:
        """For meshes without a material that carry vertex colours: sculptors see those in the viewport."""
        key = "painted"
        if key not in self._materials:
            material, emission = self._emission_material("LIM painted")
            colours = material.node_tree.nodes.new("ShaderNodeVertexColor")  # no name: the active one
            material.node_tree.links.new(colours.outputs["Color"], emission.inputs["Color"])
            self._materials[key] = material
        return self._materials[key]

    def close(self) -> None:
        bpy.data.batch_remove(self._made)
        self._made.clear()
        self._materials.clear()
        self._traits.clear()
        self._groups.clear()

    # ---- one material ------------------------------------------------------------------------------------------

    @staticmethod
    def _is_plain(material: bpy.types.Material | None) -> bool:
        return material is None or not compat.has_nodes(material)

    def _plain(self, material: bpy.types.Material | None) -> bpy.types.Material:
        made, emission = self._emission_material("LIM plain")
        emission.inputs["Color"].default_value = PLAIN_GREY if material is None else material.diffuse_color
        return made

    def _emission_material(self, name: str) -> tuple[bpy.types.Material, bpy.types.Node]:
        made = compat.new_material(name)
        self._made.append(made)
        made.cycles.emission_sampling = "NONE"
        output = made.node_tree.nodes.new("ShaderNodeOutputMaterial")
        emission = made.node_tree.nodes.new("ShaderNodeEmission")
        made.node_tree.links.new(emission.outputs["Emission"], output.inputs["Surface"])
        return made, emission

    def _copy(self, material: bpy.types.Material, graph: bpy.types.Depsgraph | None) -> bpy.types.Material:
        made = material.copy()
        self._made.append(made)
        made.cycles.emission_sampling = "NONE"  # millions of little lamps would be built for nothing
        tree = made.node_tree
        animated = _hold_still(material, material.node_tree, tree, graph)
        output = tree.get_output_node("CYCLES") or tree.get_output_node("EEVEE")
        displaced = output is not None and output.inputs["Displacement"].is_linked
        displaced = displaced and material.displacement_method != "BUMP"
        animated += self._rewire(tree, graph)
        if output is not None:
            for other in [n for n in tree.nodes if n.bl_idname == "ShaderNodeOutputMaterial" and n != output]:
                tree.nodes.remove(other)
            output.target = "ALL"
            if material.use_backface_culling and output.inputs["Surface"].is_linked:
                _cull_backfaces(tree, output.inputs["Surface"])
            for socket in (output.inputs["Volume"], output.inputs["Displacement"]):
                for link in list(socket.links):
                    tree.links.remove(link)
            self._traits[material] = self._traits_of(output, animated, displaced)
        return made

    def _group(self, group: bpy.types.NodeTree, graph: bpy.types.Depsgraph | None) -> tuple[bpy.types.NodeTree, list]:
        """The rewired copy of a node group, and what was animated in it."""
        if group not in self._groups:
            made = group.copy()
            self._made.append(made)
            self._groups[group] = made, []
            animated = _hold_still(group, group, made, graph)
            self._groups[group] = made, animated + self._rewire(made, graph)
        return self._groups[group]

    def _traits_of(self, output: bpy.types.Node, animated: list, displaced: bool) -> Traits:
        reached = _reached(output)
        asked = {node.attribute_name for node in reached if node.bl_idname == "ShaderNodeAttribute"}
        asked |= {node.layer_name for node in reached if node.bl_idname == "ShaderNodeVertexColor"}
        asked |= {node.uv_map for node in reached if node.bl_idname == "ShaderNodeUVMap"}
        if any(_uses_uv(node) for node in reached):
            asked.add("")
        reads = {name: read for read, name in self._reads.items() if asked & {name, name + surroundings.ROWS[0]}}
        films = {
            node.image.name
            for node in reached
            if node.bl_idname == "ShaderNodeTexImage"
            and node.image is not None
            and node.image.source in ("SEQUENCE", "MOVIE")
            and node.image_user.use_auto_refresh
            and node.image_user.frame_duration > 1
        }
        shown = {(node.id_data.name, node.name) for node in reached}
        return Traits(
            reads=reads,
            attributes=frozenset(asked),
            films=frozenset(films),
            animated=tuple((block, path) for block, path, made in animated if _is_seen(block, path, made, shown)),
            view_dependent=frozenset(surroundings.view_dependent(reached)),
            masked=any(node.bl_idname == "ShaderNodeBsdfTransparent" and node.label != CULLED for node in reached),
            displaced=displaced,
        )

    def _property_of(self, read: surroundings.Read) -> str:
        return self._reads.setdefault(read, f"{surroundings.PREFIX}{len(self._reads)}")

    # ---- one node tree -----------------------------------------------------------------------------------------

    def _rewire(self, tree: bpy.types.NodeTree, graph: bpy.types.Depsgraph | None) -> list:
        """Make the tree show base colours; returns what was animated in its groups."""
        animated = []
        for node in list(tree.nodes):
            surroundings.carry(tree, node, self._property_of)
            if node.bl_idname == "ShaderNodeGroup" and node.node_tree is not None:
                node.node_tree, inside = self._group(node.node_tree, graph)
                animated += inside
            elif node.bl_idname == "ShaderNodeTexImage":
                self._drop_missing(tree, node)
            elif node.bl_idname == "ShaderNodeTexCoord":
                _use_attribute(tree, node.outputs["Generated"])
            elif node.bl_idname in _USES_GENERATED and "Vector" in node.inputs and not node.inputs["Vector"].is_linked:
                source = tree.nodes.new("ShaderNodeAttribute")
                source.attribute_name = GENERATED
                tree.links.new(source.outputs["Vector"], node.inputs["Vector"])
        for node in [n for n in tree.nodes if n.bl_idname == "ShaderNodeShaderToRGB"]:
            _show_lit(tree, node)
        for node in list(tree.nodes):
            shader = next((s for s in node.outputs if s.type == "SHADER"), None)
            if shader is None or node.bl_idname in _KEPT_SHADERS or node.bl_idname in _PASSED_THROUGH:
                continue
            _replace_shader(tree, node, shader)
        return animated

    def _drop_missing(self, tree: bpy.types.NodeTree, node: bpy.types.Node) -> None:
        """Unlink an image whose file is gone, so that what it fed falls back to its own flat colour (else magenta)."""
        image = node.image
        if image is not None:
            path = bpy.path.abspath(image.filepath, library=image.library)
            if image.source != "FILE" or image.packed_file or image.is_dirty or os.path.isfile(path):
                return
            self.missing[image.name] = path
        for output in node.outputs:
            for link in list(output.links):
                tree.links.remove(link)


def _cull_backfaces(tree: bpy.types.NodeTree, surface: bpy.types.NodeSocket) -> None:
    """Cycles has no culling, but outlines made of an inside-out hull need it, and every viewport and engine does it."""
    mask = tree.nodes.new("ShaderNodeMixShader")
    tree.links.new(tree.nodes.new("ShaderNodeNewGeometry").outputs["Backfacing"], mask.inputs[0])
    tree.links.new(surface.links[0].from_socket, mask.inputs[1])
    nothing = tree.nodes.new("ShaderNodeBsdfTransparent")
    nothing.label = CULLED
    tree.links.new(nothing.outputs[0], mask.inputs[2])
    tree.links.new(mask.outputs[0], surface)


_PASSED_THROUGH = {"ShaderNodeGroup", "NodeGroupInput", "NodeReroute", "NodeUndefined"}


def _use_attribute(tree: bpy.types.NodeTree, output: bpy.types.NodeSocket) -> None:
    targets = [link.to_socket for link in output.links]
    if targets:
        source = tree.nodes.new("ShaderNodeAttribute")
        source.attribute_name = GENERATED
        for target in targets:
            tree.links.new(source.outputs["Vector"], target)


def _feed(tree: bpy.types.NodeTree, source: bpy.types.NodeSocket, target: bpy.types.NodeSocket) -> None:
    """Give `target` what `source` (an input of another node) gets: its link, or its value."""
    if source.is_linked:
        tree.links.new(source.links[0].from_socket, target)
    elif target.type == "RGBA" and source.type == "RGBA":
        target.default_value = source.default_value
    elif target.type == "VALUE" and source.type == "VALUE":
        target.default_value = source.default_value


def _colour_input(node: bpy.types.Node) -> bpy.types.NodeSocket | None:
    return next((node.inputs[name] for name in ("Base Color", "Color") if name in node.inputs), None)


def _show_lit(tree: bpy.types.NodeTree, node: bpy.types.Node) -> None:
    """Cycles has no “Shader to RGB”: pass on the shader's base colour, as if fully lit; white if it is not plain."""
    targets = [link.to_socket for link in node.outputs["Color"].links]
    source = node.inputs[0].links[0].from_node if node.inputs[0].is_linked else None
    colour = _colour_input(source) if source else None
    through = tree.nodes.new("ShaderNodeMixRGB")
    through.inputs[0].default_value = 0.0
    through.inputs[1].default_value = (1, 1, 1, 1)
    if colour is not None:
        _feed(tree, colour, through.inputs[1])
    for target in targets:
        tree.links.new(through.outputs[0], target)


def _replace_shader(tree: bpy.types.NodeTree, node: bpy.types.Node, shader: bpy.types.NodeSocket) -> None:
    """Put an Emission of the node's base colour in the place of its shader output."""
    targets = [link.to_socket for link in shader.links]
    if not targets:
        return
    emission = tree.nodes.new("ShaderNodeEmission")
    colour = _colour_input(node)
    if colour is not None:
        _feed(tree, colour, emission.inputs["Color"])
    if node.bl_idname == "ShaderNodeEmission":
        _feed_capped(tree, node.inputs["Strength"], emission.inputs["Strength"])
    result = emission.outputs["Emission"]
    if "Emission Color" in node.inputs and "Emission Strength" in node.inputs:
        result = _with_glow(tree, node, emission)
    if "Alpha" in node.inputs and (node.inputs["Alpha"].is_linked or node.inputs["Alpha"].default_value <= 0.0):
        # A flat alpha between 0 and 1 is glass or a ghost: it counts as a surface. A linked one is a mask.
        mask = tree.nodes.new("ShaderNodeMixShader")
        _feed(tree, node.inputs["Alpha"], mask.inputs[0])
        tree.links.new(tree.nodes.new("ShaderNodeBsdfTransparent").outputs[0], mask.inputs[1])
        tree.links.new(result, mask.inputs[2])
        result = mask.outputs[0]
    for target in targets:
        tree.links.new(result, target)


def _feed_capped(tree: bpy.types.NodeTree, source: bpy.types.NodeSocket, target: bpy.types.NodeSocket) -> None:
    """An emitter of strength 20 has the colour of one of strength 1."""
    if not source.is_linked:
        target.default_value = min(1.0, max(0.0, source.default_value))
        return
    cap = tree.nodes.new("ShaderNodeClamp")
    tree.links.new(source.links[0].from_socket, cap.inputs["Value"])
    tree.links.new(cap.outputs[0], target)


def _with_glow(tree: bpy.types.NodeTree, node: bpy.types.Node, base: bpy.types.Node) -> bpy.types.NodeSocket:
    """base · (1 - brightest channel of the glow) + glow: a glowing part shows its glow, a dark one its base colour."""
    colour, strength = node.inputs["Emission Color"], node.inputs["Emission Strength"]
    dark = not colour.is_linked and max(colour.default_value[:3]) <= 0.0
    if dark or (not strength.is_linked and strength.default_value <= 0.0):
        return base.outputs["Emission"]
    glow = tree.nodes.new("ShaderNodeEmission")
    _feed(tree, colour, glow.inputs["Color"])
    _feed_capped(tree, strength, glow.inputs["Strength"])
    split = tree.nodes.new("ShaderNodeSeparateColor")
    _feed(tree, colour, split.inputs[0])
    brightest = split.outputs[0]
    for channel in (split.outputs[1], split.outputs[2], None):
        step = tree.nodes.new("ShaderNodeMath")
        tree.links.new(brightest, step.inputs[0])
        if channel is None:
            step.operation = "MULTIPLY"
            _feed_capped(tree, strength, step.inputs[1])
        else:
            step.operation = "MAXIMUM"
            tree.links.new(channel, step.inputs[1])
        brightest = step.outputs[0]
    rest = tree.nodes.new("ShaderNodeMath")
    rest.operation, rest.use_clamp = "SUBTRACT", True
    rest.inputs[0].default_value = 1.0
    tree.links.new(brightest, rest.inputs[1])
    tree.links.new(rest.outputs[0], base.inputs["Strength"])
    total = tree.nodes.new("ShaderNodeAddShader")
    tree.links.new(base.outputs["Emission"], total.inputs[0])
    tree.links.new(glow.outputs["Emission"], total.inputs[1])
    return total.outputs[0]
