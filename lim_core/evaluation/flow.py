# SPDX-License-Identifier: GPL-3.0-or-later
"""What one would use without LIM: pictures and depth interpolated in the image, view by view.

Optical flow is scikit-image's TV-L1 (Zach et al., 2007), both ways. The flow from α to each end is put together from the two
as in Super SloMo (Jiang et al., 2018): F_α0 = −(1−α)α F_01 + α² F_10 and F_α1 = (1−α)² F_01 − α(1−α) F_10. Both ends are
warped by it and blended; so are their depths, which stay unknown where the ends disagree. A model for frame interpolation,
where one is given, makes the pictures instead; the depth follows the flow all the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from skimage.registration import optical_flow_tvl1

from ..capture import Capture
from ..errors import LimError

MARGIN = 8  # pixels around the object that the flow is computed on
AGREE = 0.1  # model units between the two ends' depths, above which they are of two surfaces


class FrameInterpolator:
    """A TorchScript model of two pictures [1, 3, H, W] in [0, 1] and a time [1, 1], such as FILM's; make it with `load`."""

    def __init__(self, model: torch.jit.ScriptModule, device: torch.device):
        self.model, self.device = model, device

    @torch.no_grad()
    def __call__(self, first: np.ndarray, last: np.ndarray, alpha: float) -> np.ndarray:
        """The picture between two, float [H, W, 3]."""
        one, two = (
            torch.from_numpy(x.astype(np.float32)).permute(2, 0, 1)[None].to(self.device) for x in (first, last)
        )
        try:
            answer = self.model(one, two, one.new_full((1, 1), alpha))
        except RuntimeError as error:
            raise LimError("weights_broken", f"The frame interpolator failed: {_last_line(error)}") from None
        if not isinstance(answer, torch.Tensor) or answer.shape != one.shape:
            raise LimError("weights_broken", "The frame interpolator does not answer with a picture of the same size.")
        return answer[0].permute(1, 2, 0).float().clamp(0, 1).cpu().numpy()


def load(path: str | Path, device: torch.device) -> FrameInterpolator:
    """Raises LimError `weights_missing` or `weights_broken`, naming the file."""
    if not Path(path).is_file():
        raise LimError("weights_missing", f"There is no frame interpolator “{path}”.")
    try:
        return FrameInterpolator(torch.jit.load(str(path), map_location=device).eval(), device)
    except RuntimeError as error:
        message = f"“{path}” is not a TorchScript model: {_last_line(error)}"
        raise LimError("weights_broken", message, "Export it with torch.jit.save.") from None


def between(
    capture: Capture, first: int, last: int, alpha: float, interpolator: FrameInterpolator | None = None
) -> Capture:
    """The rig's pictures and depth at `alpha` between two keyframes, as a capture of that one time."""
    rgba, depth = [], []
    for view in range(capture.rig_views):
        ends = [_premultiplied(capture.rgba[k, view]) for k in (first, last)]
        depths = [capture.depth_planar[k, view] for k in (first, last)]
        picture, known = _between(ends, depths, alpha)
        if interpolator is not None:
            colour, cover = (interpolator(*(show(end) for end in ends), alpha) for show in (_on_white, _cover))
            cover = cover.mean(-1, keepdims=True)
            picture = np.concatenate([(colour - 1 + cover).clip(0, cover), cover], -1)
        rgba.append(_straight(picture))
        depth.append(np.where(picture[..., 3] > 0.5, known, 0))
    rig = slice(0, capture.rig_views)
    return Capture(
        np.stack(rgba)[None], np.stack(depth).astype(np.float32)[None], capture.camera_to_world[rig],
        capture.intrinsics[rig], capture.rig_views,
    )  # fmt: skip


def _between(ends: list[np.ndarray], depths: list[np.ndarray], alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Premultiplied picture [H, W, 4] and planar depth [H, W] of one view, warped along the flow and blended."""
    there, back = optical_flow(*ends)
    to_first = -(1 - alpha) * alpha * there + alpha**2 * back
    to_last = (1 - alpha) ** 2 * there - alpha * (1 - alpha) * back
    grid = np.indices(depths[0].shape, np.float32)
    picture, blend, sound = 0.0, 0.0, True
    warped = []
    for end, depth, way, share in zip(ends, depths, (to_first, to_last), (1 - alpha, alpha)):
        place = grid + way
        picture = picture + share * np.stack([_at(end[..., c], place) for c in range(4)], -1)
        # Depth is averaged over the pixels that have one.
        known = _at((depth > 0).astype(np.float32), place)
        warped.append(_at(depth, place) / np.maximum(known, 1e-6))
        blend, sound = blend + share * warped[-1], sound & (known > 0.5)
    sound &= np.abs(warped[0] - warped[1]) < AGREE
    return picture, np.where(sound, blend, 0)


def optical_flow(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flow [2, H, W] in pixels (rows, columns) from each premultiplied picture [H, W, 4] to the other."""
    shape = first.shape[:2]
    flows = np.zeros((2, 2, *shape), np.float32)
    found = np.argwhere((first[..., 3] > 0) | (last[..., 3] > 0))
    if len(found):
        low, high = np.maximum(found.min(0) - MARGIN, 0), found.max(0) + 1 + MARGIN
        part = slice(low[0], high[0]), slice(low[1], high[1])
        one, two = (_on_white(x[part]).mean(-1) for x in (first, last))
        flows[0][(slice(None), *part)] = optical_flow_tvl1(one, two)
        flows[1][(slice(None), *part)] = optical_flow_tvl1(two, one)
    return flows[0], flows[1]


def _at(image: np.ndarray, place: np.ndarray) -> np.ndarray:
    return map_coordinates(image, place, order=1, mode="nearest")


def _premultiplied(rgba: np.ndarray) -> np.ndarray:
    picture = rgba.astype(np.float32) / 255
    picture[..., :3] *= picture[..., 3:]
    return picture


def _straight(picture: np.ndarray) -> np.ndarray:
    """Straight-alpha uint8 of a premultiplied picture."""
    colour = picture[..., :3] / np.maximum(picture[..., 3:], 1e-6)
    return (np.concatenate([colour, picture[..., 3:]], -1).clip(0, 1) * 255).round().astype(np.uint8)


def _on_white(picture: np.ndarray) -> np.ndarray:
    return picture[..., :3] + 1 - picture[..., 3:]


def _cover(picture: np.ndarray) -> np.ndarray:
    return np.repeat(picture[..., 3:], 3, -1)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[-1]
