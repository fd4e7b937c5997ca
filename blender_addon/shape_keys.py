# SPDX-License-Identifier: GPL-3.0-or-later
"""Write a finished job into the scene: one mesh, a shape key for each frame (or for some), one action that plays them.

The result's files are read and checked before the scene is touched, everything is built in new data, and the object is
linked last: an error leaves nothing behind. Positions are written where the source stands (`world_to_model` undone).
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix

from ..lim_core import protocol, request
from ..lim_core.errors import LimError, from_os_error
from . import capture_scene, clip_camera, compat, export_timing, png, vertex_colours

FRAMES = "lim_frames"
"""Custom property of a result: its frames, in the order of its shape keys after the basis."""


def write_result(
    scene: bpy.types.Scene,
    job_folder: str | os.PathLike,
    *,
    source_objects: Sequence[bpy.types.Object] = (),
    template_object: bpy.types.Object | None = None,
    collection_name: str = "LIM",
    on_warning: Callable[[str, str], None] = lambda code, message: None,
) -> bpy.types.Object:
    """Add the job's result to the scene and return its object; for a video, also the camera that filmed it.

    Args:
        source_objects: what was captured; the template “mesh” is looked for among them if it is not given.
        template_object: the artist's mesh, for template “mesh”: the result is a copy of it as it is at the first
            keyframe, with its UVs, materials and vertex groups.
        collection_name: made below the scene's own collection if it does not exist.
        on_warning: receives code and sentence of what could not be shown.
    Raises:
        LimError: missing_file, bad_request, backend_crashed (a file of the result is broken), bad_template.
    """
    job = Path(job_folder)
    asked = request.read(job)
    clip = clip_camera.read_clip(job) if asked.source == "video" else None
    arrays = read_result(job, asked)
    positions, frames = arrays["positions"], arrays["frames"]
    to_world = np.linalg.inv(np.array(asked.world_to_model, np.float64))
    made: list[bpy.types.ID] = []
    try:
        if asked.template == "mesh":
            mesh, matrix = _template_mesh(scene, asked, template_object, source_objects, positions.shape[1])
            made.append(mesh)
        else:
            matrix = np.eye(4)
            matrix[:3, 3] = to_world[:3, 3]
            mesh = _new_mesh(asked.name, arrays, made)
            mesh.materials.append(_new_material(asked.name, job / protocol.TEXTURE_FILE, made))
        mesh.name = asked.name
        object = bpy.data.objects.new(asked.name, mesh)
        made.append(object)
        object.matrix_world = Matrix(matrix.tolist())
        to_local = np.linalg.inv(np.array(object.matrix_basis, np.float64)) @ to_world
        local = (positions.astype(np.float64) @ to_local[:3, :3].T + to_local[:3, 3]).astype(np.float32)
        if asked.reduced():
            local, frames = local[arrays["keys"]], frames[arrays["keys"]]
        _add_keys(object, local, frames, made)
        object[FRAMES] = [float(frame) for frame in frames]
        camera = None
        if clip is not None:
            camera, trouble = clip_camera.add_camera(scene, asked, clip, made)
            object[clip_camera.CAMERA] = camera
            if trouble:
                on_warning("no_background", trouble)
        collection = _collection(scene, collection_name, made)
        collection.objects.link(object)
        if camera is not None:
            collection.objects.link(camera)
            scene.camera = scene.camera or camera
    except BaseException:
        bpy.data.batch_remove(made)
        raise
    return object


# ---- reading -------------------------------------------------------------------------------------------------------


def read_result(job: Path, asked: request.Request) -> dict[str, np.ndarray]:
    """The checked arrays of result.npz: positions [T, V, 3], frames [T], faces [F, 3], loop_uvs [F, 3, 2] (only for
    template “reconstructed”), keys [N] (only for a reduced result); model space.

    Raises:
        LimError: missing_file, backend_crashed.
    """
    try:
        about = json.loads((job / protocol.RESULT_FILE).read_text(encoding="utf-8"))
    except OSError as error:
        raise from_os_error(error, "reading the result") from None
    except ValueError:
        raise _broken(f"{protocol.RESULT_FILE} is not readable as JSON") from None
    if not isinstance(about, dict) or about.get("protocol") != protocol.VERSION:
        raise _broken(f"{protocol.RESULT_FILE} is not of version {protocol.VERSION} of the protocol")
    wanted = {"positions": (3, "f"), "frames": (1, "f"), "faces": (2, "i")}
    if asked.template == "reconstructed":
        wanted["loop_uvs"] = (3, "f")
    if asked.reduced():
        wanted["keys"] = (1, "i")
    arrays = _arrays(job / protocol.RESULT_ARRAYS, wanted)
    positions, frames, faces = arrays["positions"], arrays["frames"], arrays["faces"]
    count = positions.shape[1]
    if positions.shape[2] != 3 or faces.shape[1] != 3 or not count or not len(faces):
        raise _broken("its mesh is empty or of the wrong shape")
    expected = np.array(asked.frames())
    same_count = len(positions) == len(frames) == len(expected)
    if not same_count or not np.abs(frames - expected).max() <= 1e-6:  # also if one is not a number
        raise _broken("its frames are not the ones that were asked for")
    if asked.reduced():
        keys = arrays["keys"]
        ends = len(keys) > 1 and keys[0] == 0 and keys[-1] == len(frames) - 1
        if not ends or len(keys) > asked.max_keys or (np.diff(keys) <= 0).any():
            raise _broken("its shape keys are not frames in their order, from the first to the last")
    if faces.min() < 0 or faces.max() >= count:
        raise _broken("its faces name vertices that do not exist")
    if "loop_uvs" in arrays and arrays["loop_uvs"].shape != (len(faces), 3, 2):
        raise _broken("its UVs do not fit its faces")
    for name in ("positions", "loop_uvs"):
        if name in arrays and not np.isfinite(arrays[name]).all():
            raise _broken(f"its {name} hold values that are not numbers")
    return arrays


def _arrays(path: Path, wanted: dict[str, tuple[int, str]]) -> dict[str, np.ndarray]:
    """Arrays of an npz: name -> (dimensions, kind of number). Never unpickles."""
    if not path.is_file():
        raise LimError("missing_file", f"The result is incomplete: there is no “{path}”.", "Run the job again.")
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise _broken(f"{path.name} holds a single array")
        with archive:
            missing = sorted(set(wanted) - set(archive.files))
            if missing:
                raise _broken(f"{path.name} has no {missing[0]}")
            arrays = {name: archive[name] for name in wanted}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zipfile.LargeZipFile, AttributeError) as error:
        raise _broken(f"{path.name} is cut off or not a file of ours ({error})") from None
    except OSError as error:
        raise from_os_error(error, "reading the result") from None
    for name, (dimensions, kind) in wanted.items():
        if arrays[name].ndim != dimensions or arrays[name].dtype.kind not in {"f": "f", "i": "iu"}[kind]:
            raise _broken(f"{name} in {path.name} has the wrong shape or kind")
    return arrays


def _broken(flaw: str) -> LimError:
    return LimError("backend_crashed", f"The backend's result cannot be used: {flaw}.", "Open the log, and run again.")


# ---- building ------------------------------------------------------------------------------------------------------


def _new_mesh(name: str, arrays: dict[str, np.ndarray], made: list[bpy.types.ID]) -> bpy.types.Mesh:
    faces, positions = arrays["faces"], arrays["positions"]
    mesh = bpy.data.meshes.new(name)
    made.append(mesh)
    mesh.vertices.add(positions.shape[1])
    mesh.loops.add(faces.size)
    mesh.polygons.add(len(faces))
    mesh.vertices.foreach_set("co", np.ascontiguousarray(positions[0], np.float32).ravel())
    mesh.loops.foreach_set("vertex_index", np.ascontiguousarray(faces, np.int32).ravel())
    mesh.polygons.foreach_set("loop_start", np.arange(0, faces.size, 3, dtype=np.int32))
    uvs = mesh.uv_layers.new(name="UVMap")
    uvs.uv.foreach_set("vector", np.ascontiguousarray(arrays["loop_uvs"], np.float32).ravel())
    mesh.update(calc_edges=True)
    mesh.validate(clean_customdata=False)  # a face that names a vertex twice would crash tools later
    mesh.shade_smooth()
    return mesh


def _new_material(name: str, texture: Path, made: list[bpy.types.ID]) -> bpy.types.Material:
    """A matte surface with the texture, packed into the file."""
    if not texture.is_file():
        raise LimError("missing_file", f"The result is incomplete: there is no “{texture}”.", "Run the job again.")
    image = bpy.data.images.load(str(texture), check_existing=False)
    made.append(image)
    if 0 in image.size:
        raise _broken(f"{texture.name} is not a picture")
    image.name = name
    image.pack()
    # Where unpacking would put it, not where the job lay; the USD exporter looks at the one and writes to the other.
    image.filepath_raw = image.packed_files[0].filepath = f"//{name}.png"
    material = compat.new_material(name)
    made.append(material)
    nodes, links = material.node_tree.nodes, material.node_tree.links
    output = nodes.new("ShaderNodeOutputMaterial")
    surface = nodes.new("ShaderNodeBsdfPrincipled")
    picture = nodes.new("ShaderNodeTexImage")
    picture.image = image
    surface.inputs["Roughness"].default_value = 1.0
    surface.inputs["Specular IOR Level"].default_value = 0.0
    surface.location, picture.location = (-300, 0), (-600, 0)
    links.new(picture.outputs["Color"], surface.inputs["Base Color"])
    links.new(surface.outputs["BSDF"], output.inputs["Surface"])
    return material


def _template_mesh(
    scene: bpy.types.Scene,
    asked: request.Request,
    template: bpy.types.Object | None,
    sources: Sequence[bpy.types.Object],
    count: int,
) -> tuple[bpy.types.Mesh, np.ndarray]:
    """A copy of the artist's mesh as it is at the first keyframe, and the matrix [4, 4] for its object."""
    template = template or next((source for source in sources if source.type == "MESH"), None)
    if template is None:
        raise LimError("bad_template", "The template mesh is gone from the scene.", "Undo its removal, and run again.")
    frame = scene.frame_current_final if asked.source == "poses" else asked.keyframes[0]
    mesh, matrix = capture_scene.evaluated_template(scene, template.name, frame)
    if len(mesh.vertices) != count:
        found = len(mesh.vertices)
        bpy.data.meshes.remove(mesh)
        raise LimError(
            "bad_template",
            f"“{template.name}” has {found} vertices at frame {frame:g}, but the job was run with {count}.",
            "Undo the change to the mesh or its modifiers, or run the job again.",
        )
    # Animation of the copy would play on top of the shape keys.
    if mesh.animation_data:
        mesh.animation_data_clear()
    return mesh, matrix


def _add_keys(object: bpy.types.Object, local: np.ndarray, frames: np.ndarray, made: list[bpy.types.ID]) -> None:
    """Shape keys and the action: at each frame its key alone is 1, between two frames the two are mixed linearly."""
    mesh = object.data
    if mesh.shape_keys:
        object.shape_key_clear()
    mesh.vertices.foreach_set("co", local[0].ravel())
    mesh.update()
    compat.add_shape_key(object, "Basis")
    names = [f"Frame {format_frame(frame)}" for frame in frames]
    keys = [compat.add_shape_key(object, name) for name in names]
    for key, points in zip(keys, local):
        key.data.foreach_set("co", np.ascontiguousarray(points).ravel())
    curves = compat.new_action(mesh.shape_keys, object.name)
    made.append(mesh.shape_keys.animation_data.action)
    for i, key in enumerate(keys):
        near = range(max(0, i - 1), min(len(frames), i + 2))
        path = f'key_blocks["{bpy.utils.escape_identifier(key.name)}"].value'
        compat.add_linear_fcurve(curves, path, [frames[j] for j in near], [float(j == i) for j in near])


def format_frame(frame: float) -> str:
    """1 -> “1”, 1.5 -> “1.5”; four decimals at most."""
    return f"{float(frame):.4f}".rstrip("0").rstrip(".")


def _collection(scene: bpy.types.Scene, name: str, made: list[bpy.types.ID]) -> bpy.types.Collection:
    found = next((c for c in scene.collection.children_recursive if c.name == name), None)
    if found is None:
        found = bpy.data.collections.new(name)
        made.append(found)
        scene.collection.children.link(found)
    return found


# ---- export --------------------------------------------------------------------------------------------------------


def export(object: bpy.types.Object, path: str | os.PathLike) -> list[Path]:
    """Write a result for other programs; the suffix decides, see `EXPORTS`. Returns the files written.

    .pc2 and .obj come with files beside them, whose names begin with the stem and “_lim”: the artist's own hero.obj lies
    safely beside hero.pc2. Both are Y-up, as importers of .obj expect.

    Raises:
        LimError: nothing_selected (not a result), bad_request (unknown suffix), read_only, disk_full, internal.
    """
    path = Path(path)
    if object is None or FRAMES not in object or not getattr(object.data, "shape_keys", None):
        raise LimError(
            "nothing_selected", "The object is not a result of LIM.", "Select an object in the collection LIM."
        )
    if path.suffix.lower() not in EXPORTS:
        raise LimError(
            "bad_request", f"“{path.name}” has no suffix that can be exported.", f"Use one of {', '.join(EXPORTS)}."
        )
    *_, write = EXPORTS[path.suffix.lower()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return write(object, path)
    except OSError as error:
        raise from_os_error(error, "exporting") from error


def _export_scene(write, timing, object: bpy.types.Object, path: Path) -> list[Path]:
    """Run one of Blender's exporters on a temporary scene that holds only the result, and plays it from frame 0 on.

    Args:
        timing: (times of the moments [K] in frames from zero) → (frames [K] at which they are shown, how much faster
            than its own scene the temporary one plays; None for a rate that the file's own times replace).
    """
    home = next((s for s in bpy.data.scenes if object.name in s.objects), bpy.context.scene)
    shown = export_timing.moments(object, object[FRAMES])
    times = shown - shown[0]
    at, faster = timing(times)
    temporary = path.with_name(f"lim_part_{path.name}")
    scene = bpy.data.scenes.new("LIM export")
    try:
        if faster is not None:
            scene.render.fps, scene.render.fps_base = home.render.fps * faster, home.render.fps_base
        scene.unit_settings.scale_length = home.unit_settings.scale_length
        scene.frame_start, scene.frame_end = 0, int(np.ceil(at[-1] - 1e-3))
        scene.collection.objects.link(object)
        layer = scene.view_layers[0]
        layer.update()
        object.select_set(True, view_layer=layer)
        layer.objects.active = object
        window = bpy.context.window
        context = {"scene": scene, "view_layer": layer, "active_object": object, "selected_objects": [object]}
        with bpy.context.temp_override(**context), compat.quiet_output():
            if window is not None:
                window.scene, before = scene, window.scene
            try:
                with export_timing.played(object, shown, at):
                    done = write(temporary)
            finally:
                if window is not None:
                    window.scene = before
        if "FINISHED" not in done or not temporary.is_file():
            raise LimError("internal", f"Blender's exporter wrote no “{path.name}”.", "Blender's console says more.")
        if faster is None:
            rate = home.render.fps / home.render.fps_base
            export_timing.set_glb_times(temporary, scene.render.fps, times / rate)
        os.replace(temporary, path)
    except (RuntimeError, AttributeError) as error:  # the exporter's own report, or a Blender built without it
        raise LimError("internal", f"Blender's exporter failed: {str(error).strip()}", "") from error
    finally:
        bpy.data.scenes.remove(scene)
        temporary.unlink(missing_ok=True)
    return [path]


def _glb(path: Path) -> set[str]:
    import addon_utils

    if not addon_utils.check("io_scene_gltf2")[1]:
        addon_utils.enable("io_scene_gltf2", default_set=False)
    return bpy.ops.export_scene.gltf(
        filepath=str(path),
        export_format="GLB",
        use_active_scene=True,
        export_animations=True,
        export_morph=True,
        export_morph_animation=True,
        export_morph_normal=False,
        export_all_vertex_colors=False,  # glTF multiplies them with the texture, which holds the same colours
        export_frame_range=True,
        export_animation_mode="ACTIVE_ACTIONS",
    )


def _one_by_one(times: np.ndarray) -> tuple[np.ndarray, None]:
    """A moment a frame, for a file that gets the true times afterwards."""
    return np.arange(len(times), dtype=float), None


def _finely(times: np.ndarray) -> tuple[np.ndarray, int]:
    """Frames cut so that each moment is met; the file's times are seconds."""
    faster = export_timing.samples_a_frame(times)
    return times * faster, faster


def _whole(times: np.ndarray) -> tuple[np.ndarray, int]:
    """Whole frames: Blender reads the times of this format as frames, whatever the rate."""
    return times, 1


def _alembic(path: Path) -> set[str]:
    scene = bpy.context.scene
    return bpy.ops.wm.alembic_export(
        filepath=str(path),
        start=scene.frame_start,
        end=scene.frame_end,
        selected=True,
        flatten=True,
        vcolors=True,
        as_background_job=False,
    )


def _usd(path: Path) -> set[str]:
    """With its image in the folder “textures” beside it (or inside it, for .usdz)."""
    image = vertex_colours.base_image(bpy.context.object.data)
    return bpy.ops.wm.usd_export(
        filepath=str(path),
        selected_objects_only=True,
        export_animation=True,
        export_shapekeys=False,
        overwrite_textures=image is not None and image.packed_file is not None,  # ours, perhaps of an earlier result
    )


def _positions(object: bpy.types.Object) -> np.ndarray:
    """[T, V, 3] float32 of the shape keys, in the object's space."""
    keys = object.data.shape_keys.key_blocks[1 : 1 + len(object[FRAMES])]
    positions = np.empty((len(keys), len(object.data.vertices), 3), np.float32)
    for row, key in zip(positions, keys):
        flat = np.empty(row.size, np.float32)
        key.data.foreach_get("co", flat)
        row[:] = flat.reshape(-1, 3)
    return positions


def _whole_frames(object: bpy.types.Object) -> np.ndarray:
    """[T, V, 3] float32, one entry for each whole frame that has passed since the first one, in the object's space."""
    positions, frames = _positions(object), np.array(object[FRAMES])
    wanted = frames[0] + np.arange(np.ceil(frames[-1] - frames[0] - 1e-3) + 1)
    after = np.clip(np.searchsorted(frames, wanted), 1, len(frames) - 1)
    share = np.clip((wanted - frames[after - 1]) / (frames[after] - frames[after - 1]), 0, 1).astype(np.float32)
    return positions[after - 1] + share[:, None, None] * (positions[after] - positions[after - 1])


def _y_up(points: np.ndarray) -> np.ndarray:
    return points[..., [0, 2, 1]] * np.array([1, 1, -1], points.dtype)


def _export_pc2(object: bpy.types.Object, path: Path) -> list[Path]:
    """Point cache 2 for a Mesh Cache modifier, in the object's space, and the mesh that it moves."""
    import struct

    positions = _y_up(_whole_frames(object))
    head = struct.pack("<12siiffi", b"POINTCACHE2\0", 1, positions.shape[1], 0.0, 1.0, len(positions))
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(head + positions.astype("<f4").tobytes())
    os.replace(temporary, path)
    beside = path.with_name(f"{path.stem}_lim.obj")
    _write_obj(object.data, beside, positions[0], beside.stem)
    return [path, beside, *_write_material(object.data, beside)]


def _export_obj_sequence(object: bpy.types.Object, path: Path) -> list[Path]:
    """name_lim_0001.obj, … in world space, numbered in order, one per whole frame, sharing name_lim.mtl and its image."""
    matrix = np.array(object.matrix_world, np.float64)
    shared = path.with_name(f"{path.stem}_lim.obj")
    written: list[Path] = []
    for number, points in enumerate(_whole_frames(object)):
        world = points @ matrix[:3, :3].T + matrix[:3, 3]
        written.append(path.with_name(f"{shared.stem}_{number + 1:04d}.obj"))
        _write_obj(object.data, written[-1], _y_up(world), shared.stem)
    return [*written, *_write_material(object.data, shared)]


def _write_obj(mesh: bpy.types.Mesh, path: Path, points: np.ndarray, stem: str) -> None:
    corners = np.empty(len(mesh.loops), np.int32)
    mesh.loops.foreach_get("vertex_index", corners)
    lines = [f"mtllib {stem}.mtl", f"o {stem}"]
    colours = vertex_colours.colours_of(mesh)
    if colours is not None:  # most readers of .obj know six numbers a vertex
        points = np.concatenate([points, colours], 1)
    lines += ["v " + " ".join(f"{number:.7g}" for number in point) for point in points.tolist()]
    layer = mesh.uv_layers.active
    if layer:
        uvs = np.empty(len(mesh.loops) * 2, np.float32)
        layer.uv.foreach_get("vector", uvs)
        lines += [f"vt {u:.6g} {v:.6g}" for u, v in uvs.reshape(-1, 2).tolist()]
    lines += ["usemtl lim", "s 1"]
    for polygon in mesh.polygons:
        lines.append(
            "f " + " ".join(f"{corners[i] + 1}/{i + 1}" if layer else f"{corners[i] + 1}" for i in polygon.loop_indices)
        )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_material(mesh: bpy.types.Mesh, beside: Path) -> list[Path]:
    """The image, if there is one, and the .mtl that names it, with the stem of `beside`."""
    written: list[Path] = []
    text = "newmtl lim\nKd 1 1 1\nKs 0 0 0\n"
    image = vertex_colours.base_image(mesh)
    if image is not None:
        written.append(_write_image(image, beside))
        text += f"map_Kd {written[0].name}\n"
    written.append(beside.with_suffix(".mtl"))
    written[-1].write_text(text, encoding="utf-8")
    return written


def _write_image(image: bpy.types.Image, beside: Path) -> Path:
    """The image with the stem of `beside`: the file's own bytes under its own suffix, else what Blender shows, as PNG."""
    source = Path(bpy.path.abspath(image.filepath, library=image.library)) if image.filepath else None
    if image.packed_file and not image.is_dirty:
        data = image.packed_file.data
        kinds = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg"}
        known = next((suffix for magic, suffix in kinds.items() if data.startswith(magic)), None)
        picture = beside.with_suffix(known or (source and source.suffix) or ".png")
        picture.write_bytes(data)
        return picture
    if source and source.is_file() and not image.is_dirty:
        picture = beside.with_suffix(source.suffix)
        if not (picture.exists() and os.path.samefile(source, picture)):
            shutil.copyfile(source, picture)
        return picture
    (width, height), channels = image.size, image.channels
    if not width * height:
        raise LimError(
            "missing_file", f"The image “{image.name}” has no file.", "Find it with File > External Data, or remove it."
        )
    flat = np.empty(width * height * channels, np.float32)
    image.pixels.foreach_get(flat)
    pixels = flat.reshape(height, width, channels)[::-1]
    colour = pixels[..., :3] if channels >= 3 else np.repeat(pixels[..., :1], 3, -1)
    if image.is_float:
        colour = png.encode_srgb(colour)
    picture = beside.with_suffix(".png")
    png.write(picture, np.rint(np.clip(colour, 0, 1) * 255).astype(np.uint8))
    return picture


EXPORTS = {
    ".glb": (
        "glTF Binary (.glb)",
        "For the web and game engines: morph targets and their animation",
        functools.partial(_export_scene, _glb, _one_by_one),
    ),
    ".abc": (
        "Alembic (.abc)",
        "A point cache that most programs read",
        functools.partial(_export_scene, _alembic, _finely),
    ),
    ".usd": ("USD (.usd)", "A point cache for USD pipelines", functools.partial(_export_scene, _usd, _whole)),
    ".usda": ("", "", functools.partial(_export_scene, _usd, _whole)),
    ".usdc": ("", "", functools.partial(_export_scene, _usd, _whole)),
    ".usdz": ("", "", functools.partial(_export_scene, _usd, _whole)),
    ".pc2": ("Point Cache (.pc2)", "Positions alone, for a Mesh Cache modifier", _export_pc2),
    ".obj": ("Wavefront (.obj)", "One file per frame", _export_obj_sequence),
}
"""Suffix → its words in the panel (none: the file name alone asks for it), and (object, path) → the files written."""
