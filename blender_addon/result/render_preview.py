# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of a result from its job's own cameras, for the contact sheet and the loop: `previews/traced_fNNN_vVV.png`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import bpy
import numpy as np

from ...lim_core.shared import cameras, protocol, request
from ...lim_core.shared.errors import Cancelled, LimError, from_os_error
from ..source import evaluated, png
from ..source.looks import Looks
from ..source.stage import Stage, carried

SIZE = 320  # pixels; what the sheet and the loop show at most
SAMPLES = 8
AT_ONCE = 32  # frames that are in memory together


def render_previews(
    scene: bpy.types.Scene,
    object: bpy.types.Object,
    job_folder: str | os.PathLike,
    *,
    indices: Sequence[int] | None = None,
    views: int = 2,
    size: int = SIZE,
    on_progress: Callable[[float, str], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> list[str]:
    """Render `object`, a result of the job, in its albedo; smooth edges, transparent background. Blocks until done.

    Args:
        indices: entries of the request's `frames()`; None renders all.
        views: how many of the job's cameras, from the first.
    Returns:
        Paths of the pictures, relative to the job folder.
    Raises:
        LimError: missing_file, bad_request, empty_mesh, read_only, disk_full.
        Cancelled. The scene is as before in each case.
    """
    job = Path(job_folder)
    asked = request.read(job)
    frames = asked.frames()
    chosen = list(range(len(frames)) if indices is None else indices)
    origins = np.array(asked.carried())
    to_world, intrinsics = cameras.job_cameras(size, asked.views, asked.rig_views)
    views = min(views, asked.views)
    written: list[str] = []
    try:
        (job / protocol.PREVIEW_FOLDER).mkdir(exist_ok=True)
        for start in range(0, len(chosen), AT_ONCE):
            some = chosen[start : start + AT_ONCE]
            with contextlib.ExitStack() as undo:
                looks = undo.enter_context(Looks())
                baked = _bake(undo, scene, object, [frames[index] for index in some], looks)
                to_model = carried(np.array(asked.world_to_model), origins[some])
                stage = undo.enter_context(Stage(baked, to_model, size, SAMPLES))
                for place, index in enumerate(some):
                    stage.show(place, frames[index])
                    for view in range(views):
                        if is_cancelled is not None and is_cancelled():
                            raise Cancelled
                        picture, _ = stage.photograph(to_world[view], intrinsics[view], "cycles")
                        written.append(protocol.preview_file("traced", index, view))
                        png.write(job / written[-1], picture)
                        if on_progress is not None:
                            on_progress(len(written) / (len(chosen) * views), f"Picture of frame {frames[index]:g}")
    except OSError as error:
        raise from_os_error(error, "writing the previews") from error
    return written


def _bake(
    undo: contextlib.ExitStack, scene: bpy.types.Scene, object: bpy.types.Object, frames: list[float], looks: Looks
) -> list[list[evaluated.Proxy]]:
    """The object's proxies at each frame; `undo` removes their meshes."""
    made: list[bpy.types.Mesh] = []
    undo.callback(lambda: bpy.data.batch_remove(made))
    baked = []
    with evaluated.evaluation(scene, [object], show_all=True) as at:
        for frame in frames:
            proxies = evaluated.bake(at(frame), [object], looks)
            if not proxies:
                raise LimError("empty_mesh", f"“{object.name}” has no surface at frame {frame:g}.", "")
            made += dict.fromkeys(proxy.mesh for proxy in proxies)
            baked.append(proxies)
    return baked
