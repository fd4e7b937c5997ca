# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells the object from the background: by alpha, by masks, by a colour key, or by a matting model from a local folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from ..shared.errors import LimError
from ..shared.request import Request
from . import decode

NEAR, FAR = (
    0.06,
    0.16,
)  # distance from the key colour, of 1: background up to here, object from here; half for a grey key
SATURATED = 0.25  # a key of that much chroma is a screen: it is background wherever it is seen
ENCLOSED = 0.02  # a grey key is background inside the object only where it is so exact, and
HOLE = 0.002  # its region so large a part of the picture
UNIFORM = 0.7  # share of the border that must be of the key colour for “auto”
SPECK, OTHER = 0.005, 0.2  # parts smaller than this share of the largest are noise; larger than this another object
OPTIONS = "Give the clip an alpha channel, a mask sequence, a key colour, or a matting model."


@dataclasses.dataclass
class Foreground:
    """How the object is found in every frame of a clip; `kind` is one of request.FOREGROUNDS without “auto”."""

    kind: str
    key: np.ndarray | None = None
    masks: list[np.ndarray] | None = None
    matting: Matting | None = None

    def cut_out(self, frame: decode.Frame) -> np.ndarray:
        """The frame with the object's alpha: uint8 [H, W, 4], straight."""
        rgba = frame.rgba
        if self.kind == "alpha":
            return rgba
        if self.kind == "key":
            return keyed(rgba, self.key)
        if self.kind == "mask":
            mask = self.masks[0] if len(self.masks) == 1 else self.masks[frame.number - 1]
            alpha = np.asarray(Image.fromarray(mask).resize(rgba.shape[1::-1], Image.Resampling.BILINEAR))
        else:
            alpha = self.matting(rgba[..., :3])
        return np.dstack([rgba[..., :3], alpha])


def choose(request: Request, samples: list[decode.Frame], last: int) -> Foreground:
    """What the request asks for, or for “auto” the first that works: alpha, a key along the border, the matting model.

    Args:
        samples: some frames of the clip.
        last: highest frame number that will be asked for.
    Raises:
        LimError: no_foreground, naming the options; missing_file, bad_video, decoder_missing.
    """
    kind = request.foreground
    if kind in ("auto", "alpha"):
        if any((frame.rgba[..., 3] < 128).any() and (frame.rgba[..., 3] > 127).any() for frame in samples):
            return Foreground("alpha")
        if all((frame.rgba[..., 3] < 128).all() for frame in samples):
            raise LimError("no_foreground", "The clip is transparent everywhere.", "Export it with its pictures.")
        if kind == "alpha":
            raise LimError("no_foreground", "The clip has no alpha channel.", OPTIONS)
    if kind == "mask":
        return Foreground("mask", masks=read_masks(request.mask, last))
    if kind in ("auto", "key"):
        if request.key_colour:
            colour = [int(request.key_colour[i : i + 2], 16) for i in (1, 3, 5)]
            return Foreground("key", key=np.array(colour, np.float32) / 255)
        key, share = border_colour([frame.rgba for frame in samples])
        if share >= UNIFORM or kind == "key":
            return Foreground("key", key=key)
    if kind == "matting" or request.matting:
        return Foreground("matting", matting=Matting(request.matting))
    raise LimError("no_foreground", "Nothing tells the object in the clip from its background.", OPTIONS)


# ---- masks -------------------------------------------------------------------------------------------------------------


def read_masks(path: str, last: int) -> list[np.ndarray]:
    """Masks uint8 [H, W], one a clip frame, or a single one for all. Raises LimError."""
    masks = []
    for frame in decode.frames(decode.open_source(path)):
        rgba = frame.rgba
        alpha = rgba[..., 3]
        masks.append(alpha.copy() if (alpha < 128).any() else rgba[..., :3].max(-1))
        if len(masks) >= last:
            break
    if 1 < len(masks) < last:
        raise LimError(
            "no_foreground", f"There are {len(masks)} masks for a clip that is used up to frame {last}.",
            "Give one mask for each frame, or one for all.",
        )  # fmt: skip
    return masks


# ---- colour key --------------------------------------------------------------------------------------------------------


def border_colour(pictures: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """The colour [3] along the pictures' borders, in [0, 1], and the share of the border that has it."""
    border = []
    for rgba in pictures:
        rgb = rgba[..., :3].astype(np.float32) / 255
        wide = max(1, min(rgb.shape[:2]) // 50)
        border += [rgb[:wide].reshape(-1, 3), rgb[-wide:].reshape(-1, 3), rgb[:, :wide].reshape(-1, 3)]
        border.append(rgb[:, -wide:].reshape(-1, 3))
    border = np.concatenate(border)
    key = np.median(border, 0)
    return key, float((np.linalg.norm(border - key, axis=1) < FAR).mean())


def keyed(rgba: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Alpha by the distance from the key colour; edges are freed of the key's colour. uint8 [H, W, 4]."""
    rgb = rgba[..., :3].astype(np.float32) / 255
    grey = np.ptp(key) < SATURATED
    near, far = (NEAR / 2, FAR / 2) if grey else (NEAR, FAR)
    distance = np.linalg.norm(rgb - key, axis=-1)
    alpha = np.clip((distance - near) / (far - near), 0, 1)
    if grey:
        # The object may hold the colour of a white or grey ground: only what hangs together with the border is ground.
        regions, count = ndimage.label(distance < far)
        if count:
            edge = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
            ground = np.isin(np.arange(count + 1), edge[edge > 0])
            area = ndimage.sum_labels(np.ones_like(distance), regions, np.arange(count + 1))
            usual = ndimage.median(distance, regions, np.arange(count + 1))
            ground |= (usual < ENCLOSED) & (area > HOLE * distance.size)
            ground[0] = False
            alpha = np.where(ground[regions], alpha, 1.0)
    part = alpha[..., None]
    colour = np.where(part > 0.02, (rgb - (1 - part) * key) / np.maximum(part, 0.02), rgb).clip(0, 1)
    return (np.dstack([colour, alpha]) * 255 + 0.5).astype(np.uint8)


# ---- matting -----------------------------------------------------------------------------------------------------------


class Matting:
    """A salient-object or matting network in ONNX form (U²-Net, IS-Net, BiRefNet, …): one picture in, one mask out.

    Beside the model a `preprocessor_config.json` may give `image_mean`, `image_std` and `size`; else those of ImageNet and
    the model's own input size.

    Raises:
        LimError: no_foreground (no model named), missing_file, decoder_missing (onnxruntime), weights_broken.
    """

    def __init__(self, path: str):
        if not path:
            raise LimError("no_foreground", "No matting model is named.", "Choose its folder, or another foreground.")
        folder = Path(path)
        found = [folder] if folder.suffix == ".onnx" else sorted(folder.glob("**/*.onnx"))
        if not found or not found[0].is_file():
            raise LimError(
                "missing_file", f"There is no matting model (.onnx) in “{path}”.", "Choose the file or its folder."
            )
        try:
            import onnxruntime
        except ImportError:
            raise LimError(
                "decoder_missing", "The backend cannot run matting models.", "Install the backend again."
            ) from None
        settings = {}
        beside = found[0].parent / "preprocessor_config.json"
        try:
            if beside.is_file():
                settings = json.loads(beside.read_text(encoding="utf-8"))
            self.session = onnxruntime.InferenceSession(str(found[0]), providers=["CPUExecutionProvider"])
            self.input = self.session.get_inputs()[0]
            shape = self.input.shape
            size = settings.get("size", shape[2] if isinstance(shape[2], int) else 1024)
            self.size = int(size.get("height", 1024)) if isinstance(size, dict) else int(size)
        except Exception as error:  # onnxruntime has its own exceptions, all derived from this
            raise LimError("weights_broken", f"The matting model {found[0].name} cannot be loaded: {error}.") from None
        self.mean = np.array(settings.get("image_mean", (0.485, 0.456, 0.406)), np.float32)
        self.spread = np.array(settings.get("image_std", (0.229, 0.224, 0.225)), np.float32)

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] → alpha uint8 [H, W]."""
        small = Image.fromarray(np.ascontiguousarray(rgb)).resize((self.size, self.size), Image.Resampling.BILINEAR)
        pixels = (np.asarray(small, np.float32) / 255 - self.mean) / self.spread
        mask = np.asarray(self.session.run(None, {self.input.name: pixels.transpose(2, 0, 1)[None]})[0], np.float32)
        mask = mask.reshape(-1, *mask.shape[-2:])[0]
        if mask.min() < 0 or mask.max() > 1:  # some give logits
            mask = 1 / (1 + np.exp(-mask.clip(-30, 30)))
        full = Image.fromarray(mask).resize(rgb.shape[1::-1], Image.Resampling.BILINEAR)
        return (np.asarray(full).clip(0, 1) * 255 + 0.5).astype(np.uint8)


# ---- one object --------------------------------------------------------------------------------------------------------


def largest(alpha: np.ndarray) -> tuple[np.ndarray, bool]:
    """Alpha uint8 without specks and without other objects than the largest; whether there were such."""
    regions, count = ndimage.label(alpha > 127, np.ones((3, 3)))
    if count < 1:
        return np.zeros_like(alpha), False
    area = ndimage.sum_labels(np.ones(alpha.shape), regions, np.arange(1, count + 1))
    biggest = area.max()
    other = (area > OTHER * biggest) & (np.arange(count) != area.argmax())
    dropped = np.concatenate([[False], other | (area < SPECK * biggest)])
    # What is nearer to a dropped part than to a kept one goes with it, soft edges included.
    place = ndimage.distance_transform_edt(regions == 0, return_distances=False, return_indices=True)
    return np.where(dropped[regions[tuple(place)]], 0, alpha).astype(np.uint8), bool(other.any())


def touches_edge(alpha: np.ndarray) -> bool:
    """Whether the object is cut by the picture's edge: more than a touch of it lies there."""
    solid = alpha > 127
    longest = max(edge.sum() for edge in (solid[0], solid[-1], solid[:, 0], solid[:, -1]))
    return bool(longest > 0.05 * np.sqrt(max(solid.sum(), 1)))
