# SPDX-License-Identifier: GPL-3.0-or-later
"""Objects as the scene shows them at a frame: evaluated, and frozen into plain meshes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import bpy
import numpy as np

from ...lim_core.shared.errors import LimError
from . import compat, mesh_swaps
from .albedo import GENERATED
from .keyframes import GONE, moving_blocks

PHYSICS = {"CLOTH", "SOFT_BODY", "DYNAMIC_PAINT", "FLUID", "EXPLODE", "PARTICLE_SYSTEM", "PARTICLE_INSTANCE"}


FLESHLESS = {"ARMATURE", "EMPTY", "LATTICE"}  # selected, they stand for what hangs on them


OUTLINES = {"CURVE", "SURFACE", "FONT"}  # Blender lists these twice: themselves, and their surface as an instance
MESHED = {"MESH", "META", *OUTLINES}  # of other types Blender makes no mesh, and prints that as an error


@dataclasses.dataclass
class Proxy:
    """One evaluated object or instance, frozen."""

    mesh: bpy.types.Mesh
    matrix: np.ndarray
    """[4, 4] float64, mesh to world"""
    colour: tuple[float, float, float, float]
    name: str = ""
    """Of the object; empty for an instance."""


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


@contextlib.contextmanager
def evaluation(
    scene: bpy.types.Scene, objects: list[bpy.types.Object], *, show_all: bool = False
) -> Iterator[Callable[[float | None], bpy.types.Depsgraph]]:
    """Evaluate `objects` as the viewport would, what an add-on swaps included (see `mesh_swaps`), even if they are hidden, excluded, or of no collection of the scene.

    Yields a function from a scene frame (None: the current one) to the dependency graph at that frame. Objects whose
    visibility is animated keep it, unless `show_all`. The scene's frame and the objects' flags are put back at the end.
    """
    frame = compat.frame_parts(scene.frame_current_final)
    with contextlib.ExitStack() as undo:
        for object in objects:
            if object.mode == "EDIT":
                object.update_from_editmode()
            _unhide(undo, object, show_all)
        collection = bpy.data.collections.new("LIM capture")
        undo.callback(bpy.data.collections.remove, collection)
        for object in objects:
            collection.objects.link(object)
        layer = scene.view_layers.new("LIM capture")
        undo.callback(scene.view_layers.remove, layer)
        scene.collection.children.link(collection)
        for other in layer.layer_collection.children:
            other.exclude = other.collection != collection
        swapped = undo.enter_context(mesh_swaps.playing(moving_blocks(objects)))
        undo.callback(scene.frame_set, frame[0], subframe=frame[1])
        last: list[int] = []

        def at(moment: float | None) -> bpy.types.Depsgraph:
            whole, part = compat.frame_parts(scene.frame_current_final if moment is None else moment)
            if moment is not None and _has_physics(scene, objects):
                # A simulation that is not baked only knows a frame after all the frames before it.
                for step in range(last[-1] + 1 if last else scene.frame_start, whole):
                    scene.frame_set(step)
            scene.frame_set(whole, subframe=part)
            if moment is not None:
                swapped(moment)
            last.append(whole)
            layer.update()
            return layer.depsgraph

        yield at


def _unhide(undo: contextlib.ExitStack, object: bpy.types.Object, always: bool) -> None:
    if object.library is not None:
        return  # linked flags cannot be changed
    for flag in ("hide_viewport", "hide_render"):
        curves = [c for c in compat.fcurves(object) if c.data_path == flag and not c.mute]
        if curves and not always:
            continue
        for curve in curves:
            curve.mute = True
            undo.callback(setattr, curve, "mute", False)
        undo.callback(setattr, object, flag, getattr(object, flag))
        setattr(object, flag, False)


def _has_physics(scene: bpy.types.Scene, objects: list[bpy.types.Object]) -> bool:
    if scene.rigidbody_world is not None and scene.rigidbody_world.enabled:
        return True
    return any(_is_simulated(modifier) for object in objects for modifier in object.modifiers)


def _is_simulated(modifier: bpy.types.Modifier) -> bool:
    if modifier.type == "NODES" and modifier.node_group is not None:
        return any(node.bl_idname == "GeometryNodeSimulationOutput" for node in modifier.node_group.nodes)
    return modifier.type in PHYSICS


def bake(
    depsgraph: bpy.types.Depsgraph, objects: list[bpy.types.Object], rest: dict[str, np.ndarray] | None = None
) -> list[Proxy]:
    """Freeze all that `objects` show (themselves and their instances) into meshes of their own, in main data.

    Args:
        rest: remembers each object's Generated coordinates from the first call, so that they stick to the surface.
    The caller removes the meshes. If this raises, nothing is left behind.
    """
    rest = {} if rest is None else rest
    wanted = set(objects)
    made: dict[tuple[str, int], bpy.types.Mesh | None] = {}
    proxies: list[Proxy] = []
    try:
        for instance in depsgraph.object_instances:
            owner = instance.parent if instance.is_instance else instance.object
            if owner.original not in wanted or owner.hide_render or not (instance.is_instance or instance.show_self):
                continue
            shown = instance.object
            if not instance.is_instance and shown.type in OUTLINES:
                continue
            key = (shown.name_full, shown.data.as_pointer() if shown.data else 0)
            if key not in made:
                made[key] = _frozen_mesh(shown, depsgraph, rest)
            if made[key] is not None:
                matrix = np.array(instance.matrix_world, np.float64)
                if _has_area(matrix):
                    name = "" if instance.is_instance else shown.name_full
                    proxies.append(Proxy(made[key], matrix, tuple(shown.color), name))
    except BaseException:
        bpy.data.batch_remove([mesh for mesh in made.values() if mesh])
        raise
    return proxies


def _has_area(matrix: np.ndarray) -> bool:
    """Whether an object of this matrix [4, 4] can have a surface; scaled to nothing it has none, wherever it stands."""
    return np.linalg.svd(matrix[:3, :3], compute_uv=False)[1] > 0


def without_vanished(keyframes: list[list[Proxy]]) -> list[list[Proxy]]:
    """The proxies [K][N] of every keyframe, but for objects scaled down to a thousandth of what they are at another one:
    stop motion hides the poses that are not shown like that."""
    sizes: dict[str, float] = {}
    for proxy in (proxy for proxies in keyframes for proxy in proxies if proxy.name):
        sizes[proxy.name] = max(sizes.get(proxy.name, 0.0), _scale(proxy))
    return [[p for p in proxies if not p.name or _scale(p) > GONE * sizes[p.name]] for proxies in keyframes]


def _scale(proxy: Proxy) -> float:
    return float(np.linalg.norm(proxy.matrix[:3, :3], 2))


def _frozen_mesh(
    shown: bpy.types.Object, depsgraph: bpy.types.Depsgraph, rest: dict[str, np.ndarray]
) -> bpy.types.Mesh | None:
    """A copy of the evaluated surface; None where there is none (lamps, volumes, wires)."""
    if shown.type not in MESHED:
        return None
    try:
        mesh = bpy.data.meshes.new_from_object(shown, preserve_all_data_layers=False, depsgraph=depsgraph)
    except RuntimeError:  # “object does not have geometry data”
        return None
    if not mesh.polygons:
        bpy.data.meshes.remove(mesh)
        return None
    mesh.name = "LIM proxy"
    known = rest.get(shown.name_full)
    if known is None or len(known) != len(mesh.vertices):
        known = _generated_coordinates(shown, mesh)
        rest.setdefault(shown.name_full, known)
    if GENERATED not in mesh.attributes:
        mesh.attributes.new(GENERATED, "FLOAT_VECTOR", "POINT").data.foreach_set("vector", known.ravel())
    return mesh


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


def coordinates(mesh: bpy.types.Mesh) -> np.ndarray:
    """Vertices [V, 3] float32, in the mesh's own space."""
    points = np.empty(len(mesh.vertices) * 3, np.float32)
    mesh.vertices.foreach_get("co", points)
    return points.reshape(-1, 3)


def evaluated_template(scene: bpy.types.Scene, name: str, frame: float) -> tuple[bpy.types.Mesh, np.ndarray]:
    """A new mesh (all its layers kept) of the evaluated object, and its matrix to the world [4, 4] float64.

    Raises:
        LimError: bad_template.
    """
    object = bpy.data.objects[name]
    with evaluation(scene, [object], show_all=True) as at:
        graph = at(frame)
        evaluated = object.evaluated_get(graph)
        mesh = bpy.data.meshes.new_from_object(evaluated, preserve_all_data_layers=True, depsgraph=graph)
        matrix = np.array(evaluated.matrix_world, np.float64)
    if not mesh.polygons:
        bpy.data.meshes.remove(mesh)
        raise LimError("bad_template", f"“{name}” has no faces at frame {frame:g}.", "Choose another template.")
    return mesh, matrix


def triangles(mesh: bpy.types.Mesh) -> np.ndarray:
    """[F, 3] int32 of the mesh's own vertices."""
    mesh.calc_loop_triangles()
    faces = np.empty(len(mesh.loop_triangles) * 3, np.int32)
    mesh.loop_triangles.foreach_get("vertices", faces)
    return faces.reshape(-1, 3)
