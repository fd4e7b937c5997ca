# SPDX-License-Identifier: GPL-3.0-or-later
"""Photograph the keyframes: whatever the scene shows becomes pictures, depths and cameras in a job folder.

The sources are evaluated where they live, in the user's scene (so drivers, physics, handlers and instances behave), through
a view layer of their own. The render decides: what it shows of them at each keyframe, as it evaluates it, is baked into plain
meshes with the looks of the first (`rendered`, `looks`), which a temporary scene renders in model space: the same cameras and clipping fit a flea and a galaxy. Everything made on the
way is removed again, also after an error or a cancel.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Callable
from pathlib import Path

import bpy
import numpy as np

from ...lim_core.shared import cameras, files, protocol
from ...lim_core.shared.errors import Cancelled, LimError, from_os_error
from . import compat, mesh_swaps, png, rendered
from .evaluated import Proxy, bake, coordinates, evaluated_template, evaluation, triangles, without_vanished
from .keyframes import moving_blocks
from .looks import Looks
from .stage import Stage, carried

SMALL_IN_VIEW = 0.01  # of a picture's pixels; below, the networks see too little
STILL = 1e-4  # of the source's size; what moves by less than that nobody sees move

Progress = Callable[[float, str], None]


@dataclasses.dataclass(frozen=True)
class CaptureSpec:
    """What to photograph. Objects are named, so that a spec survives the trip to a background Blender."""

    source: str
    """“objects”: they move through the keyframes; “poses”: the k-th object is shown at the k-th keyframe."""
    objects: tuple[str, ...]
    keyframes: tuple[float, ...]
    """Scene frames, may be fractional."""
    image_size: int = 512
    views: int = 12
    rig_views: int = 4
    engine: str = "cycles"
    """“cycles” or “workbench”; the latter draws what the viewport's texture mode shows. Depth is always Cycles'."""
    template: str = "reconstructed"
    template_object: str | None = None
    """For template “mesh”: the artist's mesh; None takes the first of `objects` that is one."""
    align_poses: bool = True
    """Poses that stand side by side are brought to the place of the first, origin onto origin."""


@dataclasses.dataclass(frozen=True)
class Captured:
    world_to_model: tuple[tuple[float, ...], ...]
    """4×4 similarity, row-major, of the first keyframe."""
    origins: tuple[tuple[float, ...], ...]
    """Of every keyframe, as in `request.Request`: where the cameras have followed the object to."""
    warnings: list[tuple[str, str, str]]
    """(code of protocol.WARNING_CODES, message, hint)"""
    moves: bool
    """Whether anything is elsewhere at another keyframe."""


def capture(
    scene: bpy.types.Scene,
    spec: CaptureSpec,
    job_folder: str | os.PathLike,
    on_progress: Progress | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> Captured:
    """Write `capture/` of the job folder: keyframes × views, as docs/architecture.md lays it out. Blocks until done.

    Args:
        on_progress: called with the fraction of the capture (0..1) and a text for people.
        is_cancelled: asked between renders.
    Raises:
        LimError: nothing_selected, one_keyframe, keyframe_order, empty_mesh, outside_cameras,
            bad_capture, bad_template, bad_request, read_only, disk_full.
        Cancelled: `is_cancelled` said so. The scene is as before either way.
    """
    report = on_progress or (lambda fraction, text: None)
    _check(spec)

    def pause(fraction: float, text: str) -> None:
        if is_cancelled is not None and is_cancelled():
            raise Cancelled
        report(fraction, text)

    job = Path(job_folder)
    warnings: list[tuple[str, str, str]] = []
    with contextlib.ExitStack() as undo:
        _make_folder(job)
        looks = undo.enter_context(Looks())
        proxies, left_out = _bake_keyframes(undo, scene, spec, pause, looks)
        warnings += [*_of_source(left_out, looks), *_unplayed(scene, spec)]
        moves = _anything_moves(proxies)
        world_to_model, origins = _placement(spec, proxies)
        if spec.template == "mesh":
            _write_template(scene, spec, job, world_to_model)
        to_model = carried(world_to_model, origins)
        stage = undo.enter_context(Stage(proxies, to_model, spec.image_size, materials=looks.materials))
        for image, path in sorted(stage.materials.missing.items()):
            warnings.append(
                (
                    "missing_texture",
                    f"The file of the image “{image}” was not found ({path}); its surfaces are drawn in flat colour.",
                    "Find it with File > External Data > Find Missing Files.",
                )
            )
        to_world, intrinsics = cameras.job_cameras(spec.image_size, spec.views, spec.rig_views)
        _save(job / protocol.CAMERAS_FILE, camera_to_world=to_world, intrinsics=intrinsics)
        size, views = spec.image_size, spec.views
        for k, frame in enumerate(spec.keyframes):
            depths = np.zeros((views, size, size), np.float32)
            stage.show(k, scene.frame_current_final if spec.source == "poses" else spec.keyframes[0])
            for v in range(views):
                done = (k * views + v) / (len(spec.keyframes) * views)
                pause(0.2 + 0.8 * done, f"Keyframe {frame:g}: view {v + 1} of {views}")
                colour, depths[v] = stage.photograph(to_world[v], intrinsics[v], spec.engine)
                _guarded(job / protocol.image_file(k, v), lambda path, colour=colour: png.write(path, colour))
            coverage = float((depths > 0).mean())
            if coverage == 0:
                raise LimError(
                    "outside_cameras",
                    f"Nothing of {_names(_shown(spec, k))} can be seen at frame {frame:g}.",
                    "Look for a material that is fully transparent, or for a surface without an area.",
                )
            if coverage < SMALL_IN_VIEW:
                warnings.append(
                    (
                        "small_in_view",
                        f"At frame {frame:g} the object fills only {coverage:.1%} of the pictures.",
                        "Capture what is far from it by itself.",
                    )
                )
            _save(job / protocol.depth_file(k), depth_planar=depths)
        pause(1.0, "Captured")
    rows, places = (tuple(tuple(float(x) for x in row) for row in array) for array in (world_to_model, origins))
    return Captured(rows, places, warnings, moves)


# ---- checks --------------------------------------------------------------------------------------------------------


def _check(spec: CaptureSpec) -> None:
    if not spec.objects:
        raise LimError("nothing_selected", "Nothing is selected.", "Select the objects to capture.")
    for name in (*spec.objects, *([spec.template_object] if spec.template_object else [])):
        if name not in bpy.data.objects:
            raise LimError(
                "nothing_selected", f"There is no object “{name}” in this file.", "Select the objects again."
            )
    keys = spec.keyframes
    if len(keys) < 2:
        raise LimError("one_keyframe", "There are fewer than two keyframes: nothing can be in-betweened.", "Add one.")
    for earlier, later in zip(keys, keys[1:]):
        if later <= earlier:
            raise LimError(
                "keyframe_order",
                f"Keyframe {later:g} follows keyframe {earlier:g}.",
                "List the keyframes in increasing order, each once.",
            )
    if spec.source == "poses":
        if len(spec.objects) != len(keys):
            raise LimError(
                "bad_request",
                f"There are {len(spec.objects)} poses for {len(keys)} keyframes.",
                "Give every pose one keyframe.",
            )
    elif spec.source != "objects":
        raise LimError("bad_request", f"“{spec.source}” cannot be captured from a scene.", "Use objects or poses.")


def _shown(spec: CaptureSpec, keyframe: int) -> tuple[str, ...]:
    return (spec.objects[keyframe],) if spec.source == "poses" else spec.objects


def _names(names) -> str:
    names = list(names)
    return ", ".join(f"“{name}”" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# ---- files ---------------------------------------------------------------------------------------------------------


def _guarded(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file; what the disk says against it becomes a sentence."""
    try:
        write(path)
    except OSError as error:
        raise from_os_error(error, "writing the capture") from error


def _make_folder(job: Path) -> None:
    _guarded(job / protocol.CAPTURE_FOLDER, lambda path: path.mkdir(parents=True, exist_ok=True))


def _save(path: Path, **arrays: np.ndarray) -> None:
    def write(path: Path) -> None:
        with files.writing(path) as file:
            np.savez(file, **arrays)

    _guarded(path, write)


# ---- who is photographed -------------------------------------------------------------------------------------------


def _sources(scene: bpy.types.Scene, spec: CaptureSpec) -> list[rendered.Shown]:
    """What a render shows of the source at every keyframe."""
    listed = [bpy.data.objects[name] for name in spec.objects]
    if spec.source == "objects":
        return [rendered.shown(scene, listed)] * len(spec.keyframes)
    return [
        rendered.shown(scene, [o for o in (pose, *pose.children_recursive) if o == pose or o not in listed])
        for pose in listed
    ]


# ---- evaluation ----------------------------------------------------------------------------------------------------


def _surface_points(proxy: Proxy) -> np.ndarray:
    """[N, 3] float64, world: the vertices that belong to a face (loose ones are never drawn)."""
    corners = np.empty(len(proxy.mesh.loops), np.int32)
    proxy.mesh.loops.foreach_get("vertex_index", corners)
    used = np.zeros(len(proxy.mesh.vertices), bool)
    used[corners] = True
    return coordinates(proxy.mesh)[used].astype(np.float64) @ proxy.matrix[:3, :3].T + proxy.matrix[:3, 3]


def _bake_keyframes(
    undo: contextlib.ExitStack, scene: bpy.types.Scene, spec: CaptureSpec, pause: Progress, looks: Looks | None = None
) -> tuple[list[list[Proxy]], dict[str, str]]:
    """The proxies of every keyframe, and what of the source is left out: name -> why. `undo` removes their meshes."""
    made: list[bpy.types.Mesh] = []
    undo.callback(lambda: bpy.data.batch_remove(made))
    sources = _sources(scene, spec)
    everyone = list(dict.fromkeys(o for source in sources for o in source.objects))
    left_out = {name: reason for source in sources for name, reason in source.left_out.items()}
    keyframes: list[list[Proxy]] = []
    poses = spec.source == "poses"

    def look(graph: bpy.types.Depsgraph, source: rendered.Shown, pose: str) -> tuple[list[Proxy], np.ndarray]:
        names = (pose, spec.objects[0])
        here, first = (bpy.data.objects[name].evaluated_get(graph).matrix_world.translation for name in names)
        proxies = bake(graph, source.objects, looks, None if source.insisted else left_out)
        return proxies, np.array(first, np.float64) - np.array(here, np.float64)

    with evaluation(scene, everyone, show_all=poses, render=True) as at:
        for k, (frame, source) in enumerate(zip(spec.keyframes, sources)):
            pause(0.2 * k / len(sources), f"Keyframe {frame:g}: evaluating")
            pose = spec.objects[k if poses else 0]
            proxies, shift = at.rendered(None if poses else frame, functools.partial(look, source=source, pose=pose))
            made += dict.fromkeys(proxy.mesh for proxy in proxies)
            if poses and spec.align_poses:
                for proxy in proxies:
                    proxy.matrix[:3, 3] += shift
            keyframes.append(proxies)
    keyframes = without_vanished(keyframes)
    for k, (frame, proxies) in enumerate(zip(spec.keyframes, keyframes)):
        if not proxies:
            raise LimError(
                "empty_mesh",
                f"{_names(_shown(spec, k))} has no surface at frame {frame:g}.",
                "Check the modifiers, the visibility and the scale there, or choose another keyframe.",
            )
    return keyframes, left_out


def _of_source(left_out: dict[str, str], looks: Looks) -> list[tuple[str, str, str]]:
    """Warnings of what the capture does not have of the source."""
    return [*rendered.notes(left_out), *looks.warnings()]


def _anything_moves(keyframes: list[list[Proxy]]) -> bool:
    """Whether any point of the source is elsewhere at another keyframe, by more than a hair of its size."""
    first = [_surface_points(proxy) for proxy in keyframes[0]]
    size = np.ptp(np.concatenate(first), axis=0).max()
    for proxies in keyframes[1:]:
        if len(proxies) != len(first):
            return True
        for before, proxy in zip(first, proxies):
            now = _surface_points(proxy)
            if before.shape != now.shape or np.abs(before - now).max() > STILL * size:
                return True
    return False


def _unplayed(scene: bpy.types.Scene, spec: CaptureSpec) -> list[tuple[str, str, str]]:
    """A warning for each add-on that moves the sources where it is enabled, and that is not there."""
    blocks = moving_blocks({object for source in _sources(scene, spec) for object in source.objects})
    warnings = [
        (
            "addon_missing",
            f"“{name}” is animated by the add-on {addon}, which is not there, and the file does not hold all it needs.",
            f"Enable {addon}, or turn what it shows into objects, one for each pose.",
        )
        for name, addon in mesh_swaps.unread(blocks)
    ]
    for block in blocks:
        roots = {re.match(r"\w*", curve.data_path)[0] for curve in compat.fcurves(block)} - {""}
        for root in sorted(roots - set(block.bl_rna.properties.keys()) - set(mesh_swaps.ADDONS)):
            warnings.append(
                (
                    "addon_missing",
                    f"“{block.name}” is keyed on “{root}”, which this Blender does not know.",
                    "If an add-on moves it, enable that add-on.",
                )
            )
    return warnings


def _placement(spec: CaptureSpec, keyframes: list[list[Proxy]]) -> tuple[np.ndarray, np.ndarray]:
    """`cameras.placement` of what is shown at the keyframes.

    Raises:
        LimError: bad_capture, empty_mesh.
    """
    boxes = []
    for frame, proxies in zip(spec.keyframes, keyframes):
        points = [_surface_points(proxy) for proxy in proxies]
        if not all(np.isfinite(p).all() for p in points):
            raise LimError(
                "bad_capture",
                f"{_names(spec.objects)} has points without a place (infinite or not a number) at frame {frame:g}.",
                "Look for a modifier or a driver that divides by zero there.",
            )
        boxes.append((np.min([p.min(0) for p in points], 0), np.max([p.max(0) for p in points], 0)))
    low, high = np.array(boxes).swapaxes(0, 1)
    if (high <= low).all():
        raise LimError("empty_mesh", f"{_names(spec.objects)} has no extent: it is a single point.", "Check its scale.")

    def reach(keyframe: int, centre: np.ndarray) -> float:
        return max(float(np.linalg.norm(_surface_points(p) - centre, axis=1).max()) for p in keyframes[keyframe])

    return cameras.placement(low, high, reach)


# ---- the artist's own mesh -----------------------------------------------------------------------------------------


def template_name(spec: CaptureSpec) -> str:
    """The object that template “mesh” means.

    Raises:
        LimError: bad_template.
    """
    name = spec.template_object or next(
        (n for n in spec.objects if bpy.data.objects[n].type == "MESH"), spec.objects[0]
    )
    if bpy.data.objects[name].type != "MESH":
        raise LimError(
            "bad_template", f"“{name}” is not a mesh, so it cannot be the template.", "Choose a mesh object."
        )
    return name


def _write_template(scene: bpy.types.Scene, spec: CaptureSpec, job: Path, world_to_model: np.ndarray) -> None:
    frame = scene.frame_current_final if spec.source == "poses" else spec.keyframes[0]
    mesh, matrix = evaluated_template(scene, template_name(spec), frame)
    try:
        place = world_to_model @ matrix
        vertices = coordinates(mesh).astype(np.float64) @ place[:3, :3].T + place[:3, 3]
        _save(job / protocol.TEMPLATE_FILE, vertices=vertices.astype(np.float32), faces=triangles(mesh))
    finally:
        bpy.data.meshes.remove(mesh)


# ---- rendering -----------------------------------------------------------------------------------------------------
