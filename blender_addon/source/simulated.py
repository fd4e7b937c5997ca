# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulations that the source depends on, however far down, and the frame from which they must be stepped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import bpy

from . import keyframes
from .rendered import keyed

PHYSICS = {"CLOTH", "SOFT_BODY", "DYNAMIC_PAINT", "FLUID", "EXPLODE", "PARTICLE_SYSTEM", "PARTICLE_INSTANCE"}
LEVELS = {"SUBSURF": ("levels", "render_levels"), "MULTIRES": ("levels", "render_levels"),
          "OCEAN": ("viewport_resolution", "resolution")}  # fmt: skip


def earliest(scene: bpy.types.Scene, objects: Iterable[bpy.types.Object]) -> int | None:
    """The first frame of the earliest simulation that the objects depend on: by themselves, their parents, what their
    modifiers, node groups and constraints point at, and what they instance. None if nothing is simulated, or all of it is
    baked."""
    starts = []
    for block in keyframes.moving_blocks(objects):
        if isinstance(block, bpy.types.Object):
            starts += [start for modifier in block.modifiers for start in _starts(scene, block, modifier)]
    world = scene.rigidbody_world
    if world is not None and world.enabled and not world.point_cache.is_baked:
        starts.append(world.point_cache.frame_start)
    return min(starts, default=None)


def owners(objects: Iterable[bpy.types.Object]) -> list[bpy.types.Object]:
    """The objects themselves, or what they depend on, that are simulated by one of their modifiers."""
    blocks = [block for block in keyframes.moving_blocks(objects) if isinstance(block, bpy.types.Object)]
    return [block for block in blocks if any(is_simulated(modifier) for modifier in block.modifiers)]


def is_simulated(modifier: bpy.types.Modifier) -> bool:
    """Whether a frame of it cannot be known without the frames before."""
    if modifier.type == "NODES":
        return has_simulation(modifier.node_group)
    return modifier.type in PHYSICS


def has_simulation(group: bpy.types.NodeTree | None, seen: set | None = None) -> bool:
    """Whether a node group, or one inside it at any depth, holds a simulation zone."""
    seen = set() if seen is None else seen
    if group is None or group in seen:
        return False
    seen.add(group)
    return any(
        node.bl_idname == "GeometryNodeSimulationOutput"
        or (node.bl_idname == "GeometryNodeGroup" and has_simulation(node.node_tree, seen))
        for node in group.nodes
    )


def _starts(scene: bpy.types.Scene, object: bpy.types.Object, modifier: bpy.types.Modifier) -> list[int]:
    """First frames of what the modifier simulates and nobody has baked."""
    if not is_simulated(modifier) or not (modifier.show_render or modifier.show_viewport):
        return []
    if modifier.type == "NODES":
        custom = [b.simulation_frame_start for b in modifier.bakes if b.use_custom_simulation_frame_range]
        return [min([scene.frame_start, *custom])]
    caches, plain = [], []
    if modifier.type in ("CLOTH", "SOFT_BODY"):
        caches.append(modifier.point_cache)
    elif modifier.type == "PARTICLE_SYSTEM":
        system = modifier.particle_system
        if system.settings.type == "HAIR" and not system.use_hair_dynamics:
            return []
        caches.append(system.cloth.point_cache if system.settings.type == "HAIR" else system.point_cache)
    elif modifier.type == "DYNAMIC_PAINT" and modifier.canvas_settings is not None:
        for surface in modifier.canvas_settings.canvas_surfaces:
            caches.append(surface.point_cache)
            plain.append(surface.frame_start)
    elif modifier.type == "FLUID" and modifier.fluid_type == "DOMAIN":
        plain.append(modifier.domain_settings.cache_frame_start)
    return [cache.frame_start for cache in caches if not cache.is_baked] + plain


@contextlib.contextmanager
def as_rendered(objects: Iterable[bpy.types.Object], levels: bool = True):
    """Let the viewport evaluate the objects' modifiers as a render does: those that it has, and (`levels`) how finely.

    Simulations are only stepped by the viewport's evaluation, and on the mesh that they get there.
    """
    with contextlib.ExitStack() as undo:
        for object in objects:
            for modifier in object.modifiers if object.library is None else ():
                settings = {"show_viewport": modifier.show_render}
                if levels and modifier.type in LEVELS:
                    viewport, render = LEVELS[modifier.type]
                    settings[viewport] = getattr(modifier, render)
                for name, value in settings.items():
                    if getattr(modifier, name) != value and not _is_keyed(object, modifier, name):
                        undo.callback(setattr, modifier, name, getattr(modifier, name))
                        setattr(modifier, name, value)
        yield


def _is_keyed(object: bpy.types.Object, modifier: bpy.types.Modifier, name: str) -> bool:
    return keyed(object, f'modifiers["{bpy.utils.escape_identifier(modifier.name)}"].{name}')
