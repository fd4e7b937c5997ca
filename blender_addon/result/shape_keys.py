# SPDX-License-Identifier: GPL-3.0-or-later
"""Write a finished job into the scene: one mesh, a shape key for each frame (or for some), one action that plays them.

The result's files are read and checked before the scene is touched, everything is built in new data, and the object is
linked last: an error leaves nothing behind. Positions are written where the source stands (`world_to_model` undone).
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix

from ...lim_core.shared import protocol, request
from ...lim_core.shared.errors import LimError, from_os_error
from ..source import clip_camera, compat, evaluated

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
    mesh, matrix = evaluated.evaluated_template(scene, template.name, frame)
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
