# SPDX-License-Identifier: GPL-3.0-or-later
"""Results for other programs: glTF, Alembic, USD, point caches and Wavefront files."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

import bpy
import numpy as np

from ...lim_core.shared import files
from ...lim_core.shared.errors import LimError, from_os_error
from ..source import compat, png
from . import export_timing, vertex_colours
from .shape_keys import FRAMES


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
        with files.writing_path(path, suffix=path.suffix) as temporary:
            with bpy.context.temp_override(**context), compat.quiet_output():
                if window is not None:
                    window.scene, before = scene, window.scene
                try:
                    with export_timing.played(object, shown, at):
                        done = write(temporary)
                finally:
                    if window is not None:
                        window.scene = before
            if "FINISHED" not in done or not temporary.stat().st_size:
                raise LimError(
                    "internal", f"Blender's exporter wrote no “{path.name}”.", "Blender's console says more."
                )
            if faster is None:
                rate = home.render.fps / home.render.fps_base
                export_timing.set_glb_times(temporary, scene.render.fps, times / rate)
    except (RuntimeError, AttributeError) as error:  # the exporter's own report, or a Blender built without it
        raise LimError("internal", f"Blender's exporter failed: {str(error).strip()}", "") from error
    finally:
        bpy.data.scenes.remove(scene)
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
    with files.writing(path) as file:
        file.write(head + positions.astype("<f4").tobytes())
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
