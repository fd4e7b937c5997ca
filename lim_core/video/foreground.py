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

NEAR, FAR = 0.03, 0.08  # distance from a grey key, of 1: background up to here, object from here
SATURATED = 0.25  # a key of that much chroma is a screen: it is background wherever it is seen, however it is lit
SCREEN, OBJECT = 0.88, 0.55  # a pixel's share of the screen's chroma: background from here on, object up to here
TURNED, TURN = (
    np.tan(np.radians(6.0)),
    np.tan(np.radians(5.0)),
)  # a screen's hue: as far from the key's, and from its own nearby
LEAVES = 2.5  # how fast a hue beyond that ceases to be the screen's
FLOOR = 0.45  # of the key's chroma and of its saturation: what has less is no screen, however dark it is
NEARBY = 0.015  # of the picture's shorter side: how far around a pixel the screen's colour is looked for
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
    if np.ptp(key) >= SATURATED:
        return key, float(_is_screen(border, key).mean())
    return key, float((np.linalg.norm(border - key, axis=1) < 2 * FAR).mean())


def keyed(rgba: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Alpha by the key colour [3]; edges are freed of the background's colour. uint8 [H, W, 4]."""
    rgb = rgba[..., :3].astype(np.float32) / 255
    if np.ptp(key) < SATURATED:
        alpha, ground = _by_distance(rgb, key), key
    else:
        alpha, ground = _by_hue(rgb, key)
    part = alpha[..., None]
    colour = np.where(part > 0.02, (rgb - (1 - part) * ground) / np.maximum(part, 0.02), rgb).clip(0, 1)
    return (np.dstack([colour, alpha]) * 255 + 0.5).astype(np.uint8)


def _by_distance(rgb: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Alpha [H, W] for a white, grey or black ground, by the distance from its colour.

    The object may hold the colour of such a ground: only what hangs together with the border is ground.
    """
    distance = np.linalg.norm(rgb - key, axis=-1)
    alpha = np.clip((distance - NEAR) / (FAR - NEAR), 0, 1)
    regions, count = ndimage.label(distance < FAR)
    if not count:
        return alpha
    edge = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
    ground = np.isin(np.arange(count + 1), edge[edge > 0])
    area = ndimage.sum_labels(np.ones_like(distance), regions, np.arange(count + 1))
    usual = ndimage.median(distance, regions, np.arange(count + 1))
    ground |= (usual < ENCLOSED) & (area > HOLE * distance.size)
    ground[0] = False
    return np.where(ground[regions], alpha, 1.0)


def _by_hue(rgb: np.ndarray, key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Alpha [H, W] for a screen of a strong colour, and the screen's colour [H, W, 3] as it is lit at each pixel.

    Light changes how bright and how strong a screen's colour is, and hardly its hue. So the screen is found by its hue,
    and each pixel is compared with the screen nearby: its share of that chroma is what the screen contributes.
    """
    screen = _is_screen(rgb, key)
    ground = _around(rgb, screen, key)
    there, own = _chroma(ground), _chroma(rgb)
    strength = np.maximum(np.linalg.norm(there, axis=-1), 1e-6)
    along = (own * there).sum(-1) / strength
    across = np.abs(own[..., 0] * there[..., 1] - own[..., 1] * there[..., 0]) / strength
    share = (along - LEAVES * np.maximum(across - TURN * along, 0)) / strength
    return np.clip((SCREEN - share) / (SCREEN - OBJECT), 0, 1), ground


def _is_screen(rgb: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Which colours [..., 3] are the screen's in some light: of the key's hue, and strong enough."""
    own, there = _chroma(rgb), _chroma(key)
    strength = np.linalg.norm(there)
    along = own @ there / strength
    across = np.abs(own[..., 0] * there[1] - own[..., 1] * there[0]) / strength
    saturation = np.ptp(rgb, axis=-1) / np.maximum(rgb.max(-1), 1e-6)
    strong = (along > FLOOR * strength) & (saturation > FLOOR * np.ptp(key) / key.max())
    return strong & (across < TURNED * along)


def _chroma(rgb: np.ndarray) -> np.ndarray:
    """[..., 2]: Cb and Cr of BT.601, which no grey has."""
    return rgb @ np.array([[-0.168736, 0.5], [-0.331264, -0.418688], [0.5, -0.081312]], np.float32)


def _around(rgb: np.ndarray, screen: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The screen's colour [H, W, 3] at each pixel: its mean nearby, or as near as there is any, or the key."""
    weight = screen.astype(np.float32)
    found = np.broadcast_to(key.astype(np.float32), rgb.shape).copy()
    missing = np.ones(screen.shape, bool)
    reach = max(1, round(NEARBY * min(screen.shape)))
    while missing.any() and reach < 2 * max(screen.shape):
        size = 2 * reach + 1
        total = ndimage.uniform_filter(weight, size)
        here = missing & (total > 0.5 / size**2)
        if here.any():
            for channel in range(3):
                mean = ndimage.uniform_filter(weight * rgb[..., channel], size)
                found[here, channel] = mean[here] / total[here]
            missing &= ~here
        reach *= 3
    return found


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
