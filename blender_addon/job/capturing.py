# SPDX-License-Identifier: GPL-3.0-or-later
"""The capture of a job: what decides it, and the Blender in the background that makes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import bpy

from ...lim_core import __version__
from ...lim_core.shared import request
from ...lim_core.shared.errors import LimError, from_os_error
from .. import ids
from ..source import keyframes, rendered
from . import job_folders
from .asking import Settings

SIMULATED = ("FLUID", "CLOTH", "SOFT_BODY", "DYNAMIC_PAINT", "PARTICLE_SYSTEM", "OCEAN", "NODES", "MESH_CACHE")
"""Modifiers whose cache, or a node tree that reads one, may change without a trace in the file."""


def capture_spec(settings: Settings, wanted: request.Request) -> dict:
    """The fields of `capture_scene.CaptureSpec`, as JSON can hold them."""
    return {
        "source": wanted.source,
        "objects": list(settings.objects),
        "keyframes": list(wanted.keyframes),
        "image_size": wanted.image_size,
        "views": wanted.views,
        "rig_views": wanted.rig_views,
        "engine": settings.engine,
        "template": wanted.template,
        "template_object": settings.template_object if wanted.template == "mesh" else None,
        "align_poses": settings.align_poses,
    }


def capture_into(
    scene: bpy.types.Scene,
    spec: dict,
    key: str,
    folder: Path,
    on_fraction: Callable[[float], None],
    is_cancelled: Callable[[], bool],
) -> None:
    """Capture into the job folder and write its record last. Raises LimError or Cancelled; leaves no half capture."""
    from ..source import capture_scene

    values = {name: tuple(value) if isinstance(value, list) else value for name, value in spec.items()}
    try:
        captured = capture_scene.capture(
            scene,
            capture_scene.CaptureSpec(**values),
            folder,
            on_progress=lambda fraction, *_: on_fraction(fraction),
            is_cancelled=is_cancelled,
        )
        still = [] if captured.moves else [list(_nothing_moves(spec))]
        job_folders.write_json(
            folder / job_folders.CAPTURE_RECORD,
            {
                "key": key,
                "world_to_model": captured.world_to_model,
                "origins": captured.origins,
                "warnings": [list(warning) for warning in captured.warnings] + still,
            },
        )
    except OSError as error:
        raise from_os_error(error, "writing the capture") from error


def _nothing_moves(spec: dict) -> tuple[str, str, str]:
    """The warning that a capture stands still."""
    names = ", ".join(f"“{name}”" for name in spec["objects"][:3]) + (" …" if len(spec["objects"]) > 3 else "")
    frames = ", ".join(f"{frame:g}" for frame in spec["keyframes"])
    return (
        "nothing_moves",
        f"Nothing of {names} moves between the keyframes {frames}.",
        "Choose keyframes between which it moves, and check that its animation plays. Of a mesh sequence, name the folder "
        "or its first file.",
    )


def fingerprint_of(scene: bpy.types.Scene, settings: Settings) -> list | None:
    """What decides the capture beside the settings; None where that cannot be known without looking at everything."""
    if not settings.unchanged_file:
        return None
    named = [scene.objects[name] for name in (*settings.objects, settings.template_object) if name in scene.objects]
    parts = [part for object in named for part in (object, *object.children_recursive)]
    family = [member for part in parts for member in rendered.family(part, scene)]
    for block in keyframes.moving_blocks(family):
        simulated = any(modifier.type in SIMULATED for modifier in getattr(block, "modifiers", ()))
        if simulated or getattr(block, "rigid_body", None):
            return None
    files = set(bpy.utils.blend_paths(absolute=True))
    sequences = [image for image in bpy.data.images if image.source in ("SEQUENCE", "TILED")]
    sequences += [part for part in (*bpy.data.volumes, *bpy.data.cache_files) if part.is_sequence]
    for sequence in sequences:
        files.update(job_folders.sequence(bpy.path.abspath(sequence.filepath, library=sequence.library)))
    stamps = [job_folders.stamp(path) for path in (settings.unchanged_file, *sorted(files))]
    posed_at = scene.frame_current_final if settings.source == "poses" else None  # playing does not change the file
    return [__version__, bpy.app.version_string, scene.name, settings.clip, posed_at, *stamps]


def save_copy(path: Path) -> None:
    """Save the file as it is now, with unsaved changes, without becoming that file."""
    paths = bpy.context.preferences.filepaths
    thumbnail = paths.file_preview_type
    try:
        paths.file_preview_type = "NONE"  # drawing it takes most of a second with a slow graphics driver
        bpy.ops.wm.save_as_mainfile(filepath=str(path), copy=True, compress=False, check_existing=False)
    except RuntimeError as error:
        raise LimError(
            "unsaved_file",
            f"A copy of the scene could not be saved into the job folder: {str(error).strip()}",
            "Save the file, check the free space and the cache folder, and try again.",
        ) from error
    finally:
        paths.file_preview_type = thumbnail


def background_command(copy: Path, spec_file: Path) -> list[str]:
    """The command that captures from the saved copy in another Blender."""
    if not bpy.app.binary_path:
        raise LimError("blender_missing", "This Blender does not know where its program lies.", "Run the job headless.")
    headless = ids.ROOT / "blender_addon" / "headless.py"
    command = [bpy.app.binary_path, "--background", "--factory-startup"]
    # Scripted drivers run there if they run here.
    command.append("--disable-autoexec" if bpy.app.autoexec_fail else "--enable-autoexec")
    movers = addons_that_move_things()
    if movers:
        command += ["--python-expr", _enabling(movers)]
    return [*command, str(copy), "--python", str(headless), "--", "--capture-only", str(spec_file)]


def _enabling(names: list[str]) -> str:
    """What the other Blender runs before it opens the file: `--addons` would not put an add-on into the preferences, which
    some need while they register, and knows no repository but Blender's own."""
    repositories = {repository.module: repository for repository in bpy.context.preferences.extensions.repos}
    lines = ["import addon_utils, bpy", "repos = bpy.context.preferences.extensions.repos"]
    for module in sorted({name.split(".")[1] for name in names if name.startswith("bl_ext.")} & set(repositories)):
        made = f"name={repositories[module].name!r}, module={module!r}, custom_directory={repositories[module].directory!r}"
        lines += [f"if not any(repo.module == {module!r} for repo in repos):", f"    repos.new({made})"]
    lines += [f"for name in {names!r}:", "    addon_utils.enable(name, default_set=True, persistent=True)"]
    return "\n".join(lines)


def addons_that_move_things() -> list[str]:
    """Enabled add-ons that change the scene from frame to frame through handlers or driver functions: the background
    Blender needs them too. Not Keymesh: what it does, `mesh_swaps` reads from the file."""
    handlers = bpy.app.handlers
    functions = [
        *handlers.frame_change_pre, *handlers.frame_change_post,
        *handlers.depsgraph_update_pre, *handlers.depsgraph_update_post, *bpy.app.driver_namespace.values(),
    ]  # fmt: skip
    modules = {getattr(function, "__module__", None) or "" for function in functions}
    enabled = [addon.module for addon in bpy.context.preferences.addons if addon.module != ids.BASE_PACKAGE]
    enabled = [name for name in enabled if not name.rpartition(".")[2].startswith("keymesh")]
    return sorted(name for name in enabled if any(m == name or m.startswith(name + ".") for m in modules))
