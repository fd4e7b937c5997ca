# SPDX-License-Identifier: GPL-3.0-or-later
"""How baked meshes look: as their objects do where they stand in the user's scene, at the first keyframe that shows them.

The result has one texture, so the look must be one too. What changes it later (films, keyed colours, scrolling UVs, painted
vertices) stays as it was first, and is said.
"""

from __future__ import annotations

import bpy
import numpy as np

from . import surroundings
from .albedo import GENERATED, AlbedoMaterials, Traits
from .mesh_arrays import FIELDS, coordinates, values

OPEN_EDGES = 0.05  # of the edges of masked faces; above, they are cards and not a body with holes
_OURS = (GENERATED, surroundings.LOCAL, surroundings.NORMAL, surroundings.FACE_NORMAL)

Warning = tuple[str, str, str]


class Looks:
    """The materials of one capture, and what they had for answers at first. A context manager: its end removes the materials."""

    def __init__(self) -> None:
        self.materials = AlbedoMaterials()
        self._reader = surroundings.Reader()
        self._first: dict[tuple, dict[str, np.ndarray]] = {}
        self._values: dict[tuple[bpy.types.ID, str], object] = {}
        self._pass: dict[tuple, list[int]] = {}
        self._notes: dict[tuple[str, str], set[str]] = {}

    def __enter__(self) -> Looks:
        return self

    def __exit__(self, *error) -> None:
        self.materials.close()

    def begin(self) -> None:
        """A new pass over the instances of a graph."""
        self._reader.begin()
        self._pass.clear()

    def note(self, code: str, what: str, name: str) -> None:
        """Remember that something about the object of that name is not as the render shows it."""
        self._notes.setdefault((code, what), set()).add(name)

    # ---- meshes ------------------------------------------------------------------------------------------------

    def dress(self, mesh: bpy.types.Mesh, shown: bpy.types.Object, graph: bpy.types.Depsgraph, part: str = "") -> None:
        """Give a frozen mesh the attributes that its materials read, and remember what cannot be shown of it.

        Args:
            part: which hair system of the object it is.
        """
        if part or shown.type in ("CURVES", "POINTCLOUD"):
            self.note("strands", "", shown.name)
        first = self._first_of(shown, mesh, part)
        asked: set[str] = set()
        for slot, material in enumerate(mesh.materials):
            traits = self.materials.traits(material, graph)
            asked |= traits.attributes
            self._note_traits(traits, shown, mesh, slot)
            self._compare_values(traits, shown, graph)
        for name, kind, domain in (
            (GENERATED, "FLOAT_VECTOR", "POINT"), (surroundings.LOCAL, "FLOAT_VECTOR", "POINT"),
            (surroundings.NORMAL, "FLOAT_VECTOR", "CORNER"), (surroundings.FACE_NORMAL, "FLOAT_VECTOR", "FACE"),
        ):  # fmt: skip
            if name in asked or name == GENERATED:
                if name not in first:
                    first[name] = _own_attribute(name, shown, mesh)
                if name not in mesh.attributes:
                    mesh.attributes.new(name, kind, domain).data.foreach_set("vector", first[name].ravel())
        self._stick(mesh, first, asked, shown.name)

    def _first_of(self, shown: bpy.types.Object, mesh: bpy.types.Mesh, part: str) -> dict[str, np.ndarray]:
        """What is remembered of the mesh from the first pass that showed it; empty if its faces are others now."""
        data = shown.data
        name = (shown.name_full, data.name if data else "", part)
        places = self._pass.setdefault(name, [])
        pointer = data.as_pointer() if data else 0
        if pointer not in places:
            places.append(pointer)
        corners = np.empty(len(mesh.loops), np.int32)
        mesh.loops.foreach_get("vertex_index", corners)
        key = (*name, places.index(pointer))
        known = self._first.get(key)
        same = known is not None and np.array_equal(known["corners"], corners)
        if same and known["sizes"].tolist() == [len(mesh.vertices), len(mesh.polygons)]:
            return known
        fresh = {"corners": corners, "sizes": np.array([len(mesh.vertices), len(mesh.polygons)])}
        if known is None:
            self._first[key] = fresh
        return fresh

    def _stick(self, mesh: bpy.types.Mesh, first: dict[str, np.ndarray], asked: set[str], name: str) -> None:
        """UVs, colours and other attributes stay as they were first."""
        uvs, colours = {layer.name for layer in mesh.uv_layers}, {layer.name for layer in mesh.color_attributes}
        for attribute in mesh.attributes:
            if attribute.is_internal or attribute.is_required or attribute.name in _OURS:
                continue
            if attribute.data_type not in ("FLOAT", "FLOAT2", "FLOAT_VECTOR", "FLOAT_COLOR", "BYTE_COLOR"):
                continue
            now = values(attribute)
            before = first.setdefault("=" + attribute.name, now)
            if before.shape != now.shape or np.array_equal(before, now):
                continue
            attribute.data.foreach_set(FIELDS[attribute.data_type][0], before.ravel())
            seen = attribute.name in asked or ("" in asked and attribute.name in uvs | colours)
            if seen and np.abs(before - now).max() > 1e-3:
                what = "UV map" if attribute.name in uvs else "attribute"
                self.note("changing_look", f"the {what} “{attribute.name}”", name)

    # ---- instances ---------------------------------------------------------------------------------------------

    def meet(self, instance: bpy.types.DepsgraphObjectInstance) -> None:
        """To be told of every instance of a pass, in order."""
        self._reader.meet(instance)

    def answers(
        self, instance: bpy.types.DepsgraphObjectInstance, mesh: bpy.types.Mesh, graph: bpy.types.Depsgraph
    ) -> tuple[tuple[float, ...], dict[str, tuple[float, ...]]]:
        """Colour and custom properties of the proxy of the instance that was met last."""
        reads: dict[str, surroundings.Read] = {}
        for material in mesh.materials:
            reads |= self.materials.traits(material, graph).reads
        colour, changed = self._reader.colour(instance)
        if changed and any(uses_object_colour(material) for material in mesh.materials):
            self.note("changing_look", "the object's colour", instance.object.name)
        properties, others = self._reader.answers(instance, graph, reads)
        for what in others:
            self.note("changing_look", what, instance.object.name)
        return colour, properties

    # ---- what cannot be shown ----------------------------------------------------------------------------------

    def _note_traits(self, traits: Traits, shown: bpy.types.Object, mesh: bpy.types.Mesh, slot: int) -> None:
        for image in traits.films:
            self.note("changing_look", f"the image “{image}”", shown.name)
        for kind in traits.view_dependent:
            self.note("camera_look", kind, shown.name)
        if traits.displaced:
            self.note("displaced", "", shown.name)
        if traits.masked and _is_card(mesh, slot):
            self.note("alpha_cards", "", shown.name)

    def _compare_values(self, traits: Traits, shown: bpy.types.Object, graph: bpy.types.Depsgraph) -> None:
        for block, path in traits.animated:
            now = _value(block, path, graph)
            first = self._values.setdefault((block, path), now)
            if np.shape(first) != np.shape(now) or not np.allclose(first, now, atol=1e-3):
                self.note("changing_look", f"the material or node group “{block.name}”", shown.name)

    def warnings(self) -> list[Warning]:
        """(code, message, hint) of all that was noted, one for each code."""
        found = []
        for name, attribute in self._reader.lost:
            self.note("lost_attribute", f"“{attribute}”", name)
        for code, sentence in _SENTENCES.items():
            what = sorted({what for noted, what in self._notes if noted == code and what})
            names = sorted(set().union(*(some for (noted, _), some in self._notes.items() if noted == code)))
            if names:
                message, hint = sentence
                found.append((code, message.format(names=listed(names), what=_some(what)), hint))
        return found


_SENTENCES = {
    "changing_look": (
        "The look of {names} changes over time ({what}); the result keeps that of the first keyframe.",
        "For a look that changes, use My Own Mesh as the template, whose materials stay; or capture a job for each look.",
    ),
    "camera_look": (
        "The look of {names} depends on the camera ({what}); it was captured from the capture's own cameras.",
        "Use UV, Generated or Object coordinates, or bake the material to an image first.",
    ),
    "lost_attribute": (
        "The material of {names} asks its instancer for {what}, which was not found; it was captured as black.",
        "Store it on the instances that the source's own geometry nodes make, not further down, or as a custom property.",
    ),
    "displaced": (
        "{names} is displaced by its material; the capture has the surface without it.",
        "Use a Displace modifier instead, or bake the displacement into the mesh.",
    ),
    "alpha_cards": (
        "{names} is made of cards cut out by transparency; the result closes them to one opaque shell.",
        "Capture the rest without them, and let the cards follow the result with a Surface Deform modifier; or use them as My "
        "Own Mesh.",
    ),
    "strands": (
        "The strands or points of {names} were captured as tubes and spheres; thin ones get lost in the result.",
        "Capture the body without its hair, and let the hair follow the result; or turn thick strands into a mesh.",
    ),
}


def listed(names: list[str]) -> str:
    """At most three names, in quotes."""
    return _some([f"“{name}”" for name in names])


def _some(parts: list[str]) -> str:
    return ", ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")


def slot_materials(shown: bpy.types.Object, data: bpy.types.ID) -> list[bpy.types.Material | None]:
    """The materials that a render gives the surface of an evaluated object: those of slots that are linked to the object
    are its own, the others are those of the evaluated `data`."""
    materials = [material and material.original for material in data.materials]
    for number, slot in enumerate(shown.material_slots):
        if slot.link == "OBJECT" and number < max(len(materials), 1):
            own = slot.material and slot.material.original
            materials[number : number + 1] = [own]
    return materials or [None]


def uses_object_colour(material: bpy.types.Material | None) -> bool:
    """Whether the material asks for the colour of its object."""
    trees = [material.node_tree] if material and material.node_tree else []
    for tree in trees:
        for node in tree.nodes:
            if node.bl_idname == "ShaderNodeObjectInfo" and node.outputs["Color"].is_linked:
                return True
            if node.bl_idname == "ShaderNodeGroup" and node.node_tree and node.node_tree not in trees:
                trees.append(node.node_tree)
    return False


def _own_attribute(name: str, shown: bpy.types.Object, mesh: bpy.types.Mesh) -> np.ndarray:
    if name == GENERATED:
        return _generated_coordinates(shown, mesh)
    if name == surroundings.LOCAL:
        return coordinates(mesh)
    normals = mesh.corner_normals if name == surroundings.NORMAL else mesh.polygon_normals
    flat = np.empty(len(normals) * 3, np.float32)
    normals.foreach_get("vector", flat)
    return flat


def _generated_coordinates(shown: bpy.types.Object, mesh: bpy.types.Mesh) -> np.ndarray:
    """[V, 3] float32, 0..1 over the texture space: of the undeformed mesh if its vertices are still these ones."""
    original = shown.original.data if shown.original is not None else None
    if isinstance(original, bpy.types.Mesh) and len(original.vertices) == len(mesh.vertices):
        points = coordinates(original)
        centre, half = np.array(original.texspace_location), np.array(original.texspace_size)
    else:
        points = coordinates(mesh)
        low, high = points.min(0), points.max(0)
        centre, half = (low + high) / 2, (high - low) / 2
    half = np.where(half > 0, half, 1.0)
    return ((points - centre) / half * 0.5 + 0.5).astype(np.float32)


def _is_card(mesh: bpy.types.Mesh, slot: int) -> bool:
    """Whether the faces of a material are open sheets."""
    faces = np.empty(len(mesh.polygons), np.int32)
    mesh.polygons.foreach_get("material_index", faces)
    sizes = np.empty(len(mesh.polygons), np.int32)
    mesh.polygons.foreach_get("loop_total", sizes)
    edges = np.empty(len(mesh.loops), np.int32)
    mesh.loops.foreach_get("edge_index", edges)
    uses = np.bincount(edges[np.repeat(np.clip(faces, 0, len(mesh.materials) - 1) == slot, sizes)])
    return bool((uses > 0).any()) and float((uses == 1).sum() / (uses > 0).sum()) > OPEN_EDGES


def _value(block: bpy.types.ID, path: str, graph: bpy.types.Depsgraph):
    shown = block.evaluated_get(graph)
    value = (shown.node_tree if isinstance(shown, bpy.types.Material) else shown).path_resolve(path)
    return tuple(value) if hasattr(value, "__len__") and not isinstance(value, str) else float(value)
