# SPDX-License-Identifier: GPL-3.0-or-later
"""What was captured: `capture/` of a job folder (docs/architecture.md), read and checked before anything computes, or written."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import nn

from ..networks.image_colour import ImageColour
from ..networks.images import Views
from ..shared import cameras, protocol
from ..shared.errors import LimError
from ..shared.request import Request
from . import result


@dataclasses.dataclass
class Capture:
    """Shapes: K keyframes, V views (the rig first), H = W = request.image_size. Model space throughout.

    Attributes:
        rgba: uint8 [K, V, H, W, 4], sRGB albedo, straight alpha.
        depth_planar: float32 [K, V, H, W], 0 where nothing is, or None when the source has no depth.
        camera_to_world: float32 [V, 4, 4]; intrinsics: float32 [V, 3, 3].
        rig_views: how many of the views the networks see.
    """

    rgba: np.ndarray
    depth_planar: np.ndarray | None
    camera_to_world: np.ndarray
    intrinsics: np.ndarray
    rig_views: int

    @property
    def keyframes(self) -> int:
        return len(self.rgba)

    def image_colour(self, decoder: nn.Module, keyframe: int, device: torch.device | str = "cpu") -> nn.Module:
        """A decoder that reads the rig's pictures of one keyframe where they show a place; itself without captured depth."""
        if self.depth_planar is None:
            return decoder
        rig = slice(0, self.rig_views)
        rgba = torch.from_numpy(self.rgba[keyframe, rig].copy()).to(device).float() / 255
        others = (self.depth_planar[keyframe, rig], self.camera_to_world[rig], self.intrinsics[rig])
        return ImageColour(decoder, rgba, *(torch.from_numpy(np.array(x, np.float32)).to(device) for x in others))

    def network_views(self, keyframe: int, size: int, device: torch.device | str = "cpu") -> Views:
        """The rig's pictures of one keyframe averaged down to `size`, as a batch of one scene."""
        rig = slice(0, self.rig_views)
        rgba = torch.from_numpy(self.rgba[keyframe, rig].copy()).float() / 255
        premultiplied = torch.cat([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], -1).permute(0, 3, 1, 2)
        small = F.adaptive_avg_pool2d(premultiplied, size).permute(0, 2, 3, 1)
        alpha = small[..., 3]
        content = small[..., :3] + 1 - alpha[..., None]
        position = torch.zeros_like(content)
        known = torch.zeros_like(alpha)
        if self.depth_planar is not None:
            step = self.rgba.shape[2] / size
            centre = np.minimum(((np.arange(size) + 0.5) * step).astype(int), self.rgba.shape[2] - 1)
            depth = self.depth_planar[keyframe, rig]
            points = cameras.unproject(depth, self.camera_to_world[rig], self.intrinsics[rig])
            position = torch.from_numpy(points[:, centre][:, :, centre].copy())
            known = torch.from_numpy((depth[:, centre][:, :, centre] > 0).astype(np.float32))
            position = position * known[..., None]
        intrinsics = cameras.scale_intrinsics(self.intrinsics[rig], size / self.rgba.shape[2])
        camera = torch.from_numpy(self.camera_to_world[rig].copy())
        views = Views(content, alpha, position, known, camera, torch.from_numpy(intrinsics))
        return Views(*(getattr(views, f.name)[None] for f in dataclasses.fields(views))).to(device)

    def write(self, job: str | Path) -> None:
        """The files that `read` reads, as Blender leaves them. The keyframes of an earlier capture go first, with its depth."""
        job = Path(job)
        for old in (job / protocol.CAPTURE_FOLDER).glob("k[0-9]*_*"):
            old.unlink()
        for k in range(self.keyframes):
            for v in range(self.rgba.shape[1]):
                result.save_image(job / protocol.image_file(k, v), np.ascontiguousarray(self.rgba[k, v]))
            if self.depth_planar is not None:
                result.save_arrays(job / protocol.depth_file(k), depth_planar=self.depth_planar[k])
        result.save_arrays(
            job / protocol.CAMERAS_FILE, camera_to_world=self.camera_to_world, intrinsics=self.intrinsics
        )


def read(job: str | Path, request: Request) -> Capture:
    """The capture of a job.

    Raises:
        LimError: `bad_capture` or `missing_file`, naming the file; `outside_cameras`, naming the frame.
    """
    job = Path(job)
    arrays = read_arrays(job / protocol.CAMERAS_FILE, ("camera_to_world", "intrinsics"))
    views, size, count = request.views, request.image_size, len(request.keyframes)
    need(arrays["camera_to_world"].shape == (views, 4, 4), protocol.CAMERAS_FILE, f"does not hold {views} cameras")
    need(arrays["intrinsics"].shape == (views, 3, 3), protocol.CAMERAS_FILE, f"does not hold {views} intrinsics")
    rgba = np.zeros((count, views, size, size, 4), np.uint8)
    depth = np.zeros((count, views, size, size), np.float32) if request.has_depth else None
    for k in range(count):
        for v in range(views):
            name = protocol.image_file(k, v)
            try:
                with Image.open(job / name) as image:
                    pixels = np.asarray(image.convert("RGBA"))
            except FileNotFoundError:
                raise LimError(
                    "missing_file", f"The capture is incomplete: {name} is missing.", "Capture again."
                ) from None
            except (UnidentifiedImageError, OSError, SyntaxError):  # Pillow calls a broken PNG chunk a syntax error
                raise LimError("bad_capture", f"The picture {name} is damaged.", "Capture again.") from None
            need(pixels.shape == (size, size, 4), name, f"is {pixels.shape[1]}×{pixels.shape[0]}, not {size}×{size}")
            rgba[k, v] = pixels
        if depth is not None:
            name = protocol.depth_file(k)
            found = read_arrays(job / name, ("depth_planar",))["depth_planar"]
            need(found.shape == (views, size, size), name, f"does not hold {views} depth pictures of {size}×{size}")
            depth[k] = found
        if not rgba[k, : request.rig_views, ..., 3].any():
            raise LimError(
                "outside_cameras",
                f"Nothing is visible at frame {request.keyframes[k]:g}: the object is hidden, empty or outside every camera.",
                "Check the object at that frame, or leave the frame out.",
            )
    return Capture(rgba, depth, arrays["camera_to_world"], arrays["intrinsics"], request.rig_views)


def read_template(job: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """The artist's own mesh: vertices float32 [V, 3], faces int32 [F, 3].

    Raises:
        LimError: `bad_template`.
    """
    arrays = read_arrays(Path(job) / protocol.TEMPLATE_FILE, ("vertices", "faces"), code="bad_template")
    vertices, faces = arrays["vertices"].astype(np.float32), arrays["faces"].astype(np.int32)
    sound = (
        vertices.ndim == 2 and vertices.shape[1:] == (3,) and faces.ndim == 2 and faces.shape[1:] == (3,) and len(faces)
    )
    if not sound or faces.min() < 0 or faces.max() >= len(vertices):
        raise LimError("bad_template", "The template mesh has no faces, or its faces name vertices that do not exist.")
    return vertices, faces


def read_arrays(path: Path, names: tuple[str, ...], code: str = "bad_capture") -> dict[str, np.ndarray]:
    """Arrays of an npz, all finite.

    Raises:
        LimError: `missing_file`, or `code` for a file that is truncated, foreign or holds NaN.
    """
    if not path.is_file():
        raise LimError("missing_file", f"The file {path.name} is missing from the job folder.", "Capture again.")
    try:
        arrays = load_npz(path, names)
    except UNREADABLE:
        raise LimError(
            code, f"The file {path.name} is damaged or was not written by this add-on.", "Capture again."
        ) from None
    for name, array in arrays.items():
        if not np.issubdtype(array.dtype, np.number) or not np.isfinite(array).all():
            raise LimError(code, f"{path.name} holds values that are not numbers in “{name}”.", "Capture again.")
    return arrays


UNREADABLE = (ValueError, KeyError, OSError, EOFError, TypeError, zipfile.BadZipFile, zlib.error)
"""What numpy raises for an archive that is absent, cut off, foreign or damaged."""


def load_npz(path: Path, names: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
    """The named arrays of an archive, or all; never unpickles. Raises one of `UNREADABLE`."""
    data = np.load(path, allow_pickle=False)
    if isinstance(data, np.ndarray):
        raise ValueError("a single array, not an archive")
    with data:
        return {name: data[name] for name in names or data.files}


def need(sound: bool, name: str, flaw: str) -> None:
    if not sound:
        raise LimError("bad_capture", f"The file {Path(name).name} {flaw}.", "Capture again.")


def fingerprint(job: str | Path) -> str:
    """Hash of every file of the capture: a changed picture makes every stage after it run again."""
    digest = hashlib.sha256()
    for path in sorted((Path(job) / protocol.CAPTURE_FOLDER).rglob("*")):
        if path.is_file() and path.suffix in (".png", ".npz"):
            digest.update(path.name.encode() + b"\0")
            digest.update(path.read_bytes())
    return digest.hexdigest()
