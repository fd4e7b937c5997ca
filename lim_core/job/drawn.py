# SPDX-License-Identifier: GPL-3.0-or-later
"""A job's result drawn without Blender: previews/traced_fNNN_vVV.png, as Blender writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ..mesh import rays
from ..mesh.packs import Pack
from ..shared import cameras, protocol
from ..shared.request import Request
from . import capture, result

SIZE = 256


def textured(positions: np.ndarray, faces: np.ndarray, loop_uvs: np.ndarray, texture: np.ndarray) -> Pack:
    """A result as an asset, to be rendered like one.

    Args:
        positions: [T, V, 3]; faces: [F, 3]; loop_uvs: [F, 3, 2]; texture: uint8 [H, W, 3].
    """
    return Pack(
        name="result", faces=faces, uv=loop_uvs, face_material=np.zeros(len(faces), np.uint8),
        texture_shape=np.array([texture.shape[:2]]), texture_start=np.array([0]), texels=texture.reshape(-1, 3),
        clip_names=("result",), clip_start=np.array([0, len(positions)]), fps=1.0, stored_positions=positions,
    )  # fmt: skip


def shown(
    pack: Pack, positions: np.ndarray, camera_to_world: np.ndarray, intrinsics: np.ndarray, size: int
) -> capture.Capture:
    """What N cameras would capture of a result's vertices [V, 3] at one time, as the one keyframe of a capture.

    Args:
        pack: of `textured`.
        camera_to_world: [N, 4, 4]; intrinsics: [N, 3, 3], of pictures of `size` pixels.
    """
    seen = rays.render(pack, positions, camera_to_world, intrinsics, size, supersampling=2)
    return capture.Capture(seen.rgba[None], seen.depth_planar[None], camera_to_world, intrinsics, len(camera_to_world))


def read(job: Path) -> tuple[dict[str, np.ndarray], Pack] | None:
    """The arrays of result.npz and the textured mesh; None where there is none, or it has no texture of its own."""
    try:
        arrays = capture.load_npz(job / protocol.RESULT_ARRAYS)
        texture = np.asarray(Image.open(job / protocol.TEXTURE_FILE).convert("RGB"))
        return arrays, textured(arrays["positions"], arrays["faces"], arrays["loop_uvs"], texture)
    except (*capture.UNREADABLE, KeyError):
        return None


def draw(job: Path, asked: Request, views: int) -> None:
    """The pictures of all frames from the job's first cameras, where there is none that is newer than the result."""
    made = (job / protocol.RESULT_ARRAYS).stat().st_mtime_ns if (job / protocol.RESULT_ARRAYS).is_file() else None
    wanted = {
        (index, view): job / protocol.preview_file("traced", index, view)
        for index in range(len(asked.frames()))
        for view in range(views)
    }
    missing = [at for at, path in wanted.items() if not path.is_file() or (made and path.stat().st_mtime_ns < made)]
    found = read(job) if missing else None
    if found is None or len(found[0]["positions"]) != len(asked.frames()):
        return
    placed = capture.load_npz(job / protocol.CAMERAS_FILE)
    lens = cameras.scale_intrinsics(placed["intrinsics"], SIZE / asked.image_size)
    arrays, pack = found
    carried = np.array(asked.carried())
    for index, view in missing:
        positions = arrays["positions"][index] - carried[index]
        camera = placed["camera_to_world"][view : view + 1]
        seen = rays.render(pack, positions, camera, lens[view : view + 1], SIZE, supersampling=2)
        result.save_image(wanted[index, view], np.ascontiguousarray(seen.rgba[0]))
