# SPDX-License-Identifier: GPL-3.0-or-later
"""Objects as a render of the scene shows them at a frame: evaluated, and frozen into plain meshes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TypeVar

import bpy
import numpy as np

from ...lim_core.shared.errors import LimError
from . import compat, instance_attributes, mesh_arrays, mesh_swaps, rendered, simulated
from .keyframes import GONE, moving_blocks
from .looks import Looks, slot_materials
from .mesh_arrays import coordinates, triangles

__all__ = ["Evaluation", "Proxy", "bake", "coordinates", "evaluated_template", "evaluation", "triangles"]

OUTLINES = {"CURVE", "SURFACE", "FONT"}  # Blender lists these twice: themselves, and their surface as an instance
STRANDS = {"CURVES", "POINTCLOUD"}

Answer = TypeVar("Answer")


@dataclasses.dataclass
class Proxy:
    """One evaluated object or instance, frozen."""

    mesh: bpy.types.Mesh
    matrix: np.ndarray
    """[4, 4] float64, mesh to world"""
    colour: tuple[float, float, float, float]
    properties: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    """Custom properties that its materials read (`surroundings`)."""
    name: str = ""
    """Of the object; empty for an instance."""


class Evaluation:
    """Objects of a scene, evaluated at one frame after the other; made by `evaluation`."""

    def __init__(
        self,
        scene: bpy.types.Scene,
        layer: bpy.types.ViewLayer,
        start: int | None,
        render: Callable | None,
        swapped: Callable[[float], None],
    ):
        self._scene, self._layer, self._start, self._render, self._swapped = scene, layer, start, render, swapped
        self._last: int | None = None

    def __call__(self, moment: float | None) -> bpy.types.Depsgraph:
        """The viewport's dependency graph at a scene frame (None: the current one)."""
        self._go(moment)
        return self._layer.depsgraph

    def rendered(self, moment: float | None, look: Callable[[bpy.types.Depsgraph], Answer]) -> Answer:
        """What `look` says of the graph that a render gets at a scene frame (None: the current one)."""
        self._go(moment)
        return self._render(look)

    def _go(self, moment: float | None) -> None:
        scene = self._scene
        whole, part = compat.frame_parts(scene.frame_current_final if moment is None else moment)
        if moment is not None and self._start is not None:
            # A simulation that is not baked only knows a frame after all the frames before it.
            for step in range(self._start if self._last is None else self._last + 1, whole):
                scene.frame_set(step)
        scene.frame_set(whole, subframe=part)
        if moment is not None:
            self._swapped(moment)
        self._last = whole
        self._layer.update()


@contextlib.contextmanager
def evaluation(
    scene: bpy.types.Scene, objects: list[bpy.types.Object], *, show_all: bool = False, render: bool = False
) -> Iterator[Evaluation]:
    """Evaluate `objects`, what an add-on swaps included (`mesh_swaps`), even if they are hidden, excluded, or of no collection
    of the scene.

    Objects whose visibility is animated keep it, unless `show_all`. The scene's frame and the objects' flags are put back at
    the end.

    Args:
        render: allow `Evaluation.rendered`; simulations are then stepped with the modifiers that a render has.
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
        if render:
            undo.enter_context(simulated.as_rendered(simulated.owners(objects)))
            instance_attributes.add_probes(undo, collection, objects)
        yield Evaluation(
            scene,
            layer,
            simulated.earliest(scene, objects),
            undo.enter_context(rendered.rendering(scene, layer)) if render else None,
            swapped,
        )


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


def bake(
    depsgraph: bpy.types.Depsgraph,
    objects: list[bpy.types.Object],
    looks: Looks | None = None,
    unseen: dict[str, str] | None = None,
) -> list[Proxy]:
    """Freeze all that `objects` show (themselves and their instances) into meshes of their own, in main data.

    Args:
        looks: gives them their looks, and remembers those from the first call; without it they have their materials only.
        unseen: what the camera does not see is left out, and told here: name -> why. None: nothing is left out.
    The caller removes the meshes. If this raises, nothing is left behind.
    """
    wanted = set(objects)
    made: dict[tuple, bpy.types.Mesh | None] = {}
    proxies: list[Proxy] = []

    def add(shown, instance, key: tuple, mesh: Callable[[], bpy.types.Mesh | None]) -> None:
        matrix = np.array(instance.matrix_world, np.float64)
        if not _has_area(matrix):
            return
        if key not in made:
            made[key] = mesh()
            if made[key] is not None and looks is not None:
                looks.dress(made[key], shown, depsgraph, *key[2:])
        if made[key] is not None:
            colour, properties = tuple(shown.color), {}
            if looks is not None:
                colour, properties = looks.answers(instance, made[key], depsgraph)
            name = "" if instance.is_instance else shown.name_full
            proxies.append(Proxy(made[key], matrix, colour, dict(properties), name))

    if looks is not None:
        looks.begin()
    try:
        for instance in depsgraph.object_instances:
            owner = instance.parent if instance.is_instance else instance.object
            if owner.original not in wanted or owner.hide_render:
                continue
            shown = instance.object
            if looks is not None:
                looks.meet(instance)
            reason = rendered.instance_unseen(instance) if unseen is not None else ""
            if reason:
                unseen[shown.name] = reason
                continue
            name, data = shown.name_full, shown.data.as_pointer() if shown.data else 0
            if not instance.is_instance:
                for system in rendered_hair(shown):
                    freeze = functools.partial(_frozen_hair, shown, system)
                    add(shown, instance, (name, data, system.name), freeze)
                if not instance.show_self or shown.type in OUTLINES:
                    continue
            add(shown, instance, (name, data), functools.partial(_frozen_mesh, shown, depsgraph))
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


def rendered_hair(shown: bpy.types.Object) -> list[bpy.types.ParticleSystem]:
    """The hair systems of an evaluated object that a render draws."""
    modifiers = [m for m in shown.modifiers if m.type == "PARTICLE_SYSTEM" and m.show_render]
    return [m.particle_system for m in modifiers if m.particle_system.settings.type == "HAIR"]


def _frozen_hair(shown: bpy.types.Object, system: bpy.types.ParticleSystem) -> bpy.types.Mesh | None:
    """Tubes along the strands, in the object's space, with the material of the strands."""
    mesh = mesh_arrays.of_hair(shown, system)
    if mesh is not None:
        slot = system.settings.material - 1
        materials = slot_materials(shown, shown.data)
        _put_on(mesh, [materials[min(slot, len(materials) - 1)]])
    return mesh


def _frozen_mesh(shown: bpy.types.Object, depsgraph: bpy.types.Depsgraph) -> bpy.types.Mesh | None:
    """A copy of the evaluated surface with the materials that its object shows; None where there is none (lamps, volumes,
    wires)."""
    if shown.type not in rendered.CAPTURED_TYPES:
        return None  # Blender would print an error for each
    if shown.type in STRANDS:
        mesh = mesh_arrays.of_strands(shown.data)
    else:
        try:
            mesh = bpy.data.meshes.new_from_object(shown, preserve_all_data_layers=False, depsgraph=depsgraph)
        except RuntimeError:  # “object does not have geometry data”
            return None
    if mesh is None:
        return None
    if not mesh.polygons:
        bpy.data.meshes.remove(mesh)
        return None
    mesh.name = "LIM proxy"
    source = mesh if shown.type not in STRANDS else shown.data
    _put_on(mesh, slot_materials(shown, source))
    return mesh


def _put_on(mesh: bpy.types.Mesh, materials: list[bpy.types.Material | None]) -> None:
    """Slot by slot: to clear the list would set the faces' slots to the first."""
    while len(mesh.materials) < len(materials):
        mesh.materials.append(None)
    for slot, material in enumerate(materials):
        mesh.materials[slot] = material


def evaluated_template(scene: bpy.types.Scene, name: str, frame: float) -> tuple[bpy.types.Mesh, np.ndarray]:
    """A new mesh (all its layers kept) of the evaluated object, and its matrix to the world [4, 4] float64.

    It has the modifiers that a render has, as finely as the viewport shows them, and the materials that the object shows.

    Raises:
        LimError: bad_template.
    """
    object = bpy.data.objects[name]
    with simulated.as_rendered([object], levels=False), evaluation(scene, [object], show_all=True) as at:
        graph = at(frame)
        evaluated = object.evaluated_get(graph)
        mesh = bpy.data.meshes.new_from_object(evaluated, preserve_all_data_layers=True, depsgraph=graph)
        matrix = np.array(evaluated.matrix_world, np.float64)
        _put_on(mesh, slot_materials(evaluated, mesh))
    if not mesh.polygons:
        bpy.data.meshes.remove(mesh)
        raise LimError("bad_template", f"“{name}” has no faces at frame {frame:g}.", "Choose another template.")
    return mesh, matrix
