# SPDX-License-Identifier: GPL-3.0-or-later
"""Which frames are the keyframes: typed, every N, from markers, or from the keys of whatever moves the source."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ...lim_core.shared.errors import LimError
from . import compat, mesh_swaps

MOST_BY_DEFAULT = 5
"""Keyframes taken when nobody says which: every one costs a reconstruction."""

GONE = 1e-3
"""An object scaled below this part of its largest size is not seen."""
WHOLE = 0.9
"""From this part of its largest size on, an object that comes up from nothing has come up at once."""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_RANGE = re.compile(rf"^({_NUMBER})(?:-|\.\.|:)({_NUMBER})(?:/({_NUMBER}))?$")


def parse(text: str) -> tuple[float, ...]:
    """Frames typed as "1, 9, 17", as "1-17/4" (from 1 to 17, every 4th), or both mixed; order and repeats are kept.

    Raises LimError bad_request, naming the part that is no frame.
    """
    frames: list[float] = []
    tight = re.sub(r"(?<=\d)\s+-\s+(?=\d)", "-", re.sub(r"\s*(/|:|\.\.)\s*", r"\1", text))
    for part in re.split(r"[,;\s]+", tight.strip()):
        if not part:
            continue
        if re.fullmatch(_NUMBER, part):
            frames.append(float(part))
            continue
        found = _RANGE.match(part)
        if not found:
            raise LimError("bad_request", f"“{part}” is not a frame.", "Type frames such as 1, 9, 17 or 1-17/4.")
        first, last, step = float(found[1]), float(found[2]), float(found[3] or 1)
        if step <= 0 or last < first:
            raise LimError(
                "keyframe_order",
                f"“{part}” does not go forward in time.",
                "Type a range such as 1-17/4, from low to high.",
            )
        if (last - first) / step > 10_000:
            raise LimError("bad_request", f"“{part}” is more than 10000 keyframes.", "Take a larger step.")
        frames += every(first, last, step)
    return tuple(frames)


def every(start: float, end: float, step: float) -> tuple[float, ...]:
    """start, start + step, … up to and perhaps including end."""
    count = int((end - start) / step + 1e-6)
    return tuple(start + index * step for index in range(count + 1))


def thin(frames: Sequence[float], most: int = MOST_BY_DEFAULT) -> tuple[float, ...]:
    """At most `most` of the frames, the first and last among them, as evenly spread in time as they allow."""
    ordered = sorted(set(frames))
    if len(ordered) <= most:
        return tuple(ordered)
    first, last = ordered[0], ordered[-1]
    wanted = [first + (last - first) * index / (most - 1) for index in range(most)]
    return tuple(sorted({min(ordered, key=lambda frame: abs(frame - time)) for time in wanted}))


def default(objects: Sequence, start: float, end: float) -> tuple[float, ...]:
    """What is `offered`; three frames over the range where there are not two keys in it."""
    frames = offered(objects, start, end)
    return frames if len(frames) >= 2 else tuple(dict.fromkeys((start, float((start + end) // 2), end)))


def offered(objects: Sequence, start: float, end: float, most: int = MOST_BY_DEFAULT) -> tuple[float, ...]:
    """The keys of what moves the objects, thinned to `most`; where another mesh is shown at each key, all of these."""
    poses = within(of_swaps(objects), start, end)
    if len(poses) < 2:
        return thin(within(of_actions(objects), start, end), most)
    moves = thin(within(of_actions(objects, swaps=False), start, end), max(2, most - len(poses)))
    return tuple(sorted({*poses, *moves}))


def within(frames: Iterable[float], start: float, end: float) -> tuple[float, ...]:
    return tuple(frame for frame in frames if start <= frame <= end)


def check_range(frames: Sequence[float], start: float, end: float) -> None:
    """Raise LimError keyframe_range for the first keyframe outside the range."""
    for frame in frames:
        if not start <= frame <= end:
            raise LimError(
                "keyframe_range",
                f"Keyframe {frame:g} lies outside the frame range {start:g} to {end:g}.",
                "Change the keyframe or the range.",
            )


def of_markers(scene) -> tuple[float, ...]:
    """Frames of the scene's timeline markers, in order."""
    return tuple(sorted({float(marker.frame) for marker in scene.timeline_markers}))


def of_actions(objects: Iterable, swaps: bool = True) -> tuple[float, ...]:
    """Frames of every key that moves the objects: their own, their shape keys', their parents', and those of the
    objects that their modifiers and constraints point at (armatures, hooks, lattices …); NLA strips included.

    Args:
        swaps: with the frames at which an object shows another mesh, or appears or vanishes by its scale.
    """
    frames: set[float] = set()
    blocks = moving_blocks(objects)
    if swaps:
        frames.update(frame for swap in mesh_swaps.among(blocks) for frame in swap.frames)
    for block in blocks:
        animation = getattr(block, "animation_data", None)
        if animation is None:
            continue
        if animation.action:
            without = mesh_swaps.PATHS if swaps or not _vanishes(block) else (*mesh_swaps.PATHS, "scale")
            frames |= _frames(animation.action, getattr(animation, "action_slot", None), without)
        for track in animation.nla_tracks:
            if track.mute:
                continue
            for strip in track.strips:
                if strip.mute or not strip.action:
                    continue
                scale = strip.scale or 1.0
                keys = _frames(strip.action, getattr(strip, "action_slot", None))
                mapped = (strip.frame_start + (key - strip.action_frame_start) * scale for key in keys)
                frames |= {round(frame, 3) for frame in mapped if strip.frame_start <= frame <= strip.frame_end}
    return tuple(sorted(frames))


def of_swaps(objects: Iterable) -> tuple[float, ...]:
    """Frames at which an artist shows another mesh: by an add-on for it, or by scaling one to nothing and another up."""
    blocks = moving_blocks(objects)
    frames = {frame for swap in mesh_swaps.among(blocks) if swap.keyed for frame in swap.frames}
    return tuple(sorted(frames.union(*map(_vanishes, blocks))))


def _vanishes(block) -> set[float]:
    """Frames from which an object is there, or gone, by a sudden change of its scale; empty if it never does so."""
    if block.bl_rna.identifier != "Object":
        return set()
    curves = [curve for curve in compat.fcurves(block) if curve.data_path == "scale" and not curve.mute]
    frames = sorted({round(key.co[0], 3) for curve in curves for key in curve.keyframe_points})
    if {curve.array_index for curve in curves} != {0, 1, 2}:
        return set()  # scaled along one axis alone, it is still there
    stepped = all(key.interpolation == "CONSTANT" for curve in curves for key in curve.keyframe_points)
    sizes = [max(abs(curve.evaluate(frame)) for curve in curves) for frame in frames]
    there = [size > GONE * max(sizes) for size in sizes]
    # A file that was sampled has a key at each of its frames, which need not be a frame of the scene.
    step = sorted(later - before for before, later in zip(frames, frames[1:]))[(len(frames) - 1) // 2 :][:1]
    sampled = 1.01 * step[0] if len(frames) > 3 else 0.0
    whole = [size > WHOLE * max(sizes) for size in sizes]
    sudden = []
    for k, (before, later) in enumerate(zip(frames, frames[1:])):
        at_once = later - before <= sampled and (whole[k] or whole[k + 1])
        if there[k] != there[k + 1] and (stepped or later - before <= 1.001 or at_once):
            sudden.append(later)
    return {frames[0], *sudden} if sudden else set()


def moving_blocks(objects: Iterable) -> list:
    """The objects and every data-block whose animation moves or deforms them, each once: also what node groups name at any
    depth, what particles show, and what collections instance."""
    found: dict[int, object] = {}
    waiting = list(objects)
    while waiting:
        block = waiting.pop()
        if block is None or block.as_pointer() in found:
            continue
        kind = block.bl_rna.identifier
        if kind == "Collection":
            waiting += list(block.all_objects)
            continue
        found[block.as_pointer()] = block
        if kind == "GeometryNodeTree":
            waiting += _named_by_nodes(block)
        if kind != "Object":
            continue
        data = block.data
        waiting += [block.parent, data, getattr(data, "shape_keys", None)]
        for owner in (*block.modifiers, *block.constraints):
            waiting += _pointed_at(owner)
        if block.pose:
            for bone in block.pose.bones:
                for constraint in bone.constraints:
                    waiting += _pointed_at(constraint)
        for system in block.particle_systems:
            waiting += [system.settings.instance_object, system.settings.instance_collection]
        if block.instance_type == "COLLECTION":
            waiting.append(block.instance_collection)
        elif block.instance_type in ("VERTS", "FACES"):
            waiting += list(block.children)
    return list(found.values())


_KINDS = ("Object", "Collection", "NodeTree", "GeometryNodeTree")


def _is_block(value) -> bool:
    rna = getattr(value, "bl_rna", None)
    return rna is not None and rna.identifier in _KINDS


def _pointed_at(owner) -> list:
    """Objects, collections and node groups that a modifier's or constraint's settings, or a node group's inputs, name."""
    settings = [
        s.identifier for s in owner.bl_rna.properties if s.type == "POINTER" and s.fixed_type.identifier in _KINDS
    ]
    found = [getattr(owner, setting, None) for setting in settings]
    if getattr(owner, "type", "") == "NODES":
        found += [owner[name] for name in owner.keys()]
    if getattr(owner, "type", "") == "ARMATURE" and hasattr(owner, "targets"):  # a constraint with several
        found += [target.target for target in owner.targets]
    return [value for value in found if _is_block(value)]


def _named_by_nodes(tree) -> list:
    """Node groups, objects and collections that the nodes of a group name."""
    found = [getattr(node, "node_tree", None) for node in tree.nodes]
    found += [getattr(socket, "default_value", None) for node in tree.nodes for socket in node.inputs]
    return [value for value in found if _is_block(value)]


def _frames(action, slot, without: Sequence[str] = ()) -> set[float]:
    frames: set[float] = set()
    for curve in compat.curves_of(action, slot):
        if curve.data_path in without:
            continue
        points = [0.0] * (2 * len(curve.keyframe_points))
        curve.keyframe_points.foreach_get("co", points)
        frames.update(round(frame, 3) for frame in points[::2])
    return frames
