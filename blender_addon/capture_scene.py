# SPDX-License-Identifier: GPL-3.0-or-later
"""Photograph the keyframes: whatever the scene shows becomes pictures, depths and cameras in a job folder.

The sources are evaluated where they live, in the user's scene (so drivers, physics, handlers and instances behave), through
a view layer of their own that nothing hides anything in. What they look like at each keyframe is baked into plain meshes,
which a temporary scene renders in model space: the same cameras and clipping fit a flea and a galaxy. Everything made on the
way is removed again, also after an error or a cancel.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix

from ..lim_core import cameras, protocol
from ..lim_core.errors import Cancelled, LimError, from_os_error
from . import camera_rig, compat, exr, mesh_swaps, png
from .albedo import GENERATED, AlbedoMaterials
from .keyframes import GONE, moving_blocks

BACKGROUND = 1e9  # Cycles writes 1e10 where a ray meets nothing
STILL = 1e-4  # of the source's size: what moves by less stands still
SMALL_IN_VIEW = 0.01  # of a picture's pixels; below, the networks see too little
PHYSICS = {"CLOTH", "SOFT_BODY", "DYNAMIC_PAINT", "FLUID", "EXPLODE", "PARTICLE_SYSTEM", "PARTICLE_INSTANCE"}
FLESHLESS = {"ARMATURE", "EMPTY", "LATTICE"}  # selected, they stand for what hangs on them
OUTLINES = {"CURVE", "SURFACE", "FONT"}  # Blender lists these twice: themselves, and their surface as an instance
MESHED = {"MESH", "META", *OUTLINES}  # of other types Blender makes no mesh, and prints that as an error

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
    still: bool = False
    """Whether all keyframes look the same: nothing moves."""


@dataclasses.dataclass
class Proxy:
    """One evaluated object or instance, frozen."""

    mesh: bpy.types.Mesh
    matrix: np.ndarray
    """[4, 4] float64, mesh to world"""
    colour: tuple[float, float, float, float]
    name: str = ""
    """Of the object; empty for an instance."""


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
        proxies = _bake_keyframes(undo, scene, spec, pause)
        warnings += _unplayed(scene, spec)
        still = _stands_still(proxies)
        world_to_model, origins = _placement(spec, proxies)
        if spec.template == "mesh":
            _write_template(scene, spec, job, world_to_model)
        stage = undo.enter_context(Stage(proxies, carried(world_to_model, origins), spec.image_size))
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
            stage.show(k, scene.frame_current_final if spec.source == "poses" else frame)
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
    return Captured(rows, places, warnings, still)


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
        temporary = path.with_name(path.name + ".tmp")
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)

    _guarded(path, write)


# ---- who is photographed -------------------------------------------------------------------------------------------


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


def _sources(scene: bpy.types.Scene, spec: CaptureSpec) -> list[list[bpy.types.Object]]:
    """The objects of every keyframe."""
    listed = [bpy.data.objects[name] for name in spec.objects]
    if spec.source == "objects":
        together = list(dict.fromkeys(o for object in listed for o in family(object, scene)))
        return [together] * len(spec.keyframes)
    return [
        list(dict.fromkeys(o for part in (pose, *pose.children_recursive) if part == pose or part not in listed
                           for o in family(part, scene)))
        for pose in listed
    ]  # fmt: skip


# ---- evaluation ----------------------------------------------------------------------------------------------------


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


def _surface_points(proxy: Proxy) -> np.ndarray:
    """[N, 3] float64, world: the vertices that belong to a face (loose ones are never drawn)."""
    corners = np.empty(len(proxy.mesh.loops), np.int32)
    proxy.mesh.loops.foreach_get("vertex_index", corners)
    used = np.zeros(len(proxy.mesh.vertices), bool)
    used[corners] = True
    return coordinates(proxy.mesh)[used].astype(np.float64) @ proxy.matrix[:3, :3].T + proxy.matrix[:3, 3]


def _bake_keyframes(
    undo: contextlib.ExitStack, scene: bpy.types.Scene, spec: CaptureSpec, pause: Progress
) -> list[list[Proxy]]:
    """The proxies of every keyframe; `undo` removes their meshes."""
    made: list[bpy.types.Mesh] = []
    undo.callback(lambda: bpy.data.batch_remove(made))
    sources = _sources(scene, spec)
    everyone = list(dict.fromkeys(o for objects in sources for o in objects))
    rest: dict[str, np.ndarray] = {}
    keyframes: list[list[Proxy]] = []
    poses = spec.source == "poses"
    with evaluation(scene, everyone, show_all=poses) as at:
        for k, (frame, objects) in enumerate(zip(spec.keyframes, sources)):
            pause(0.2 * k / len(sources), f"Keyframe {frame:g}: evaluating")
            graph = at(None if poses else frame)
            proxies = bake(graph, objects, rest)
            made += dict.fromkeys(proxy.mesh for proxy in proxies)
            if poses and spec.align_poses:
                here, first = (
                    bpy.data.objects[spec.objects[i]].evaluated_get(graph).matrix_world.translation for i in (k, 0)
                )
                for proxy in proxies:
                    proxy.matrix[:3, 3] += np.array(first, np.float64) - np.array(here, np.float64)
            keyframes.append(proxies)
    keyframes = without_vanished(keyframes)
    for k, (frame, proxies) in enumerate(zip(spec.keyframes, keyframes)):
        if not proxies:
            raise LimError(
                "empty_mesh",
                f"{_names(_shown(spec, k))} has no surface at frame {frame:g}.",
                "Check the modifiers, the visibility and the scale there, or choose another keyframe.",
            )
    return keyframes


def _unplayed(scene: bpy.types.Scene, spec: CaptureSpec) -> list[tuple[str, str, str]]:
    """A warning for each add-on that moves the sources where it is enabled, and that is not there."""
    blocks = moving_blocks({object for objects in _sources(scene, spec) for object in objects})
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


def _stands_still(keyframes: list[list[Proxy]]) -> bool:
    """Whether all keyframes show the same points at the same places."""
    first = [_surface_points(proxy) for proxy in keyframes[0]]
    everything = np.concatenate(first)
    near = STILL * float(np.ptp(everything, axis=0).max())
    for proxies in keyframes[1:]:
        if len(proxies) != len(first):
            return False
        for before, proxy in zip(first, proxies):
            points = _surface_points(proxy)
            if points.shape != before.shape or np.abs(points - before).max() > near:
                return False
    return True


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


def carried(world_to_model: np.ndarray, origins: np.ndarray) -> list[np.ndarray]:
    """world_to_model [4, 4] at every keyframe, or frame, from that of the first and their origins [K, 3]."""
    shifts = np.tile(np.eye(4), (len(origins), 1, 1))
    shifts[:, :3, 3] = -np.asarray(origins)
    return list(shifts @ world_to_model)


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


class Stage:
    """A temporary scene with the proxies of all keyframes, in model space, and one camera. A context manager.

    Args:
        world_to_model: [4, 4] of every keyframe.
        size: pixels along each side of a picture.
        samples: 1 takes one through each pixel's centre; more of them smooth the edges (for pictures that people see).
    """

    def __init__(self, keyframes: list[list[Proxy]], world_to_model: list[np.ndarray], size: int, samples: int = 1):
        self.materials = AlbedoMaterials()
        self._size, self._samples = size, samples
        self._undo = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:  # whatever fails below takes the rest down with it
            self._build(undo, keyframes, world_to_model)
            self._undo = undo.pop_all()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *error) -> None:
        self._undo.close()

    def _build(
        self, undo: contextlib.ExitStack, keyframes: list[list[Proxy]], world_to_model: list[np.ndarray]
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="lim_"))
        undo.callback(shutil.rmtree, self._folder, ignore_errors=True)
        images = set(bpy.data.images)
        # The first render adds “Render Result” to the file.
        undo.callback(lambda: bpy.data.batch_remove([i for i in bpy.data.images if i not in images]))
        undo.callback(self.materials.close)
        self.scene = bpy.data.scenes.new("LIM capture")
        undo.callback(bpy.data.scenes.remove, self.scene)
        made: list[bpy.types.ID] = []
        undo.callback(lambda: bpy.data.batch_remove(made))
        # The engine that is kept between the views must go before its scene: its dependency graph would outlive the
        # scene, and Blender reads every graph's scene when data is removed.
        undo.callback(setattr, self.scene.render, "use_persistent_data", False)

        camera = bpy.data.cameras.new("LIM camera")
        made.append(camera)
        self._camera = bpy.data.objects.new("LIM camera", camera)
        anchor = bpy.data.objects.new("LIM anchor", None)
        made += [self._camera, anchor]
        camera.sensor_width, camera.sensor_fit = camera_rig.SENSOR, "HORIZONTAL"
        camera.clip_start, camera.clip_end = camera_rig.NEAR, camera_rig.FAR
        self.scene.collection.objects.link(self._camera)
        self.scene.camera = self._camera

        self._materials_of: dict[bpy.types.Mesh, tuple[list, list]] = {}  # the artist's own, and those that show albedo
        self._collections = []
        for proxies, to_model in zip(keyframes, world_to_model, strict=True):
            collection = bpy.data.collections.new("LIM keyframe")
            made.append(collection)
            self._collections.append(collection)
            for proxy in proxies:
                self._paint(proxy.mesh)
                object = bpy.data.objects.new("LIM proxy", proxy.mesh)
                made.append(object)
                object.color = proxy.colour
                # A parent inverse may hold any matrix; an object's own location, rotation and scale cannot shear.
                object.parent = anchor
                object.matrix_parent_inverse = Matrix((to_model @ proxy.matrix).tolist())
                collection.objects.link(object)
        self._set_up(self.scene)

    def _paint(self, mesh: bpy.types.Mesh) -> None:
        """Remember the mesh's materials and put on those that show albedo."""
        if mesh in self._materials_of:
            return
        if not mesh.materials:
            mesh.materials.append(None)
        own = list(mesh.materials)
        painted = mesh.color_attributes.active_color is not None
        albedo = [self.materials.painted() if m is None and painted else self.materials.of(m) for m in own]
        self._materials_of[mesh] = own, albedo
        self._dress(mesh, albedo)

    def _set_up(self, scene: bpy.types.Scene) -> None:
        import addon_utils

        if not hasattr(scene, "cycles"):
            addon_utils.enable("cycles", default_set=False)
        render, cycles = scene.render, scene.cycles
        render.engine = "CYCLES"
        render.resolution_x = render.resolution_y = self._size
        render.resolution_percentage = 100
        render.pixel_aspect_x = render.pixel_aspect_y = 1.0
        render.film_transparent = True
        render.use_compositing = render.use_sequencer = False
        render.use_persistent_data = True  # only the camera moves between the views of a keyframe
        compat.set_multilayer_exr(render.image_settings)
        cycles.device = "CPU"
        cycles.samples = self._samples
        cycles.use_adaptive_sampling = cycles.use_denoising = False
        cycles.max_bounces = 0
        cycles.transparent_max_bounces = 64
        if self._samples == 1:
            cycles.pixel_filter_type, cycles.filter_width = "BOX", 0.01
        shading = scene.display.shading
        shading.light, shading.color_type = "FLAT", "TEXTURE"
        scene.display.render_aa = "OFF"
        layer = scene.view_layers[0]
        layer.use_pass_combined = layer.use_pass_z = True
        layer.pass_alpha_threshold = 0.5  # depth and picture agree on what a mask cuts away

    def show(self, keyframe: int, frame: float) -> None:
        """Put one keyframe on stage; materials are evaluated at the scene frame `frame`."""
        root = self.scene.collection
        for collection in list(root.children):
            root.children.unlink(collection)
        root.children.link(self._collections[keyframe])
        self.scene.frame_current, self.scene.frame_subframe = compat.frame_parts(frame)
        self.scene.update_tag()

    def photograph(
        self, camera_to_world: np.ndarray, intrinsics: np.ndarray, engine: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """RGBA uint8 [H, W, 4] (sRGB albedo, straight alpha; 0 or 255 for one sample) and depth_planar float32 [H, W] (0: nothing)."""
        self._camera.matrix_world = Matrix(camera_rig.blender_matrix(camera_to_world).tolist())
        self._camera.data.lens = camera_rig.lens(intrinsics, self._size)
        channels = self._render("CYCLES")
        depth = compat.render_pass(channels, "Depth")[..., 0]
        there = depth < BACKGROUND
        if engine == "workbench":
            for mesh, (own, _) in self._materials_of.items():
                self._dress(mesh, own)
            channels = self._render("BLENDER_WORKBENCH")
            for mesh, (_, albedo) in self._materials_of.items():
                self._dress(mesh, albedo)
        colour = compat.render_pass(channels, "Combined")
        alpha = colour[..., 3:]
        straight = colour[..., :3] / np.where(alpha > 0, alpha, 1.0)
        shown = there[..., None].astype(np.float32) if self._samples == 1 else np.clip(alpha, 0, 1)
        picture = np.concatenate([np.where(shown > 0, png.encode_srgb(straight), 0.0), shown], -1)
        return np.rint(picture * 255).astype(np.uint8), np.where(there, depth, 0.0).astype(np.float32)

    @staticmethod
    def _dress(mesh: bpy.types.Mesh, materials: list[bpy.types.Material | None]) -> None:
        for slot, material in enumerate(materials):
            mesh.materials[slot] = material

    def _render(self, engine: str) -> dict[str, np.ndarray]:
        scene = self.scene
        if scene.render.engine != engine:  # to set it, even to the same, lets go of what is kept between the views
            scene.render.engine = engine
        path = self._folder / "view.exr"
        path.unlink(missing_ok=True)
        scene.render.filepath = str(path)
        try:
            with bpy.context.temp_override(scene=scene, view_layer=scene.view_layers[0]), compat.quiet_output():
                bpy.ops.render.render(write_still=True)
            return exr.read(path)
        except OSError as error:
            raise from_os_error(error, "writing the capture") from error
        except (ValueError, RuntimeError) as error:  # cut off, or Blender could not write at all
            if shutil.disk_usage(self._folder).free < 16 * 2**20:
                raise LimError("disk_full", f"The disk of “{self._folder}” is full.", "Free some space.") from error
            raise LimError("bad_capture", f"Blender could not render a view: {error}.", "") from error
