# SPDX-License-Identifier: GPL-3.0-or-later
"""What one would use without LIM: pictures and depth interpolated in the image, view by view.

Optical flow is scikit-image's TV-L1 (Zach et al., 2007), both ways. Both ends are splatted forward along their flow to the
wanted time and blended, as softmax splatting does it (Niklaus and Liu, 2020): where several pixels meet, those win that are
near the camera and whose flow agrees with the flow back. So is the depth, which stays unknown where the ends disagree. A model
for frame interpolation, where one is given, makes the pictures instead; the depth follows the flow all the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from skimage.registration import optical_flow_tvl1

from ..job.capture import Capture
from ..shared import cameras
from ..shared.errors import LimError

MARGIN = 8  # pixels around the object that the flow is computed on
DOUBT = 2.0  # pixels between the flow and the flow back
TOUCH = 0.1  # model units that a pixel must be nearer to win by a factor of e
NEAR, FAR = cameras.DISTANCE - 1, cameras.DISTANCE + 1  # planar depths of the unit sphere in the rig's pictures
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
    """Premultiplied picture [H, W, 4] and planar depth [H, W] of one view, splatted along the flow and blended."""
    flows = optical_flow(*ends)
    grid = np.indices(depths[0].shape, np.float32)
    picture, moved = 0.0, []
    for end, depth, way, back, part in zip(ends, depths, flows, flows[::-1], (alpha, 1 - alpha)):
        doubt = np.hypot(*(way + np.stack([_at(b, grid + way) for b in back])))
        distance = np.where(depth > 0, depth, FAR) - NEAR
        layers = np.dstack([end, depth, depth > 0])
        found = splat(layers, (np.exp(-doubt / DOUBT) + 1e-3) * np.exp(-distance / TOUCH), grid + part * way)
        picture = picture + (1 - part) * found[..., :4]
        # Depth is the mean over those pixels that have one.
        moved.append(np.where(found[..., 5] > 0.5, found[..., 4] / np.maximum(found[..., 5], 1e-6), 0))
    sound = (moved[0] > 0) & (moved[1] > 0) & (np.abs(moved[0] - moved[1]) < AGREE)
    return picture, np.where(sound, (1 - alpha) * moved[0] + alpha * moved[1], 0)


def splat(layers: np.ndarray, weight: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Pixels [H, W, C] put down at `place` [2, H, W] (row, column), bilinearly; where they meet, their mean by `weight`
    [H, W]; where none comes, the pixel that was there."""
    height, width, channels = layers.shape
    total, mass = np.zeros((height * width, channels)), np.zeros(height * width)
    low = np.floor(place).astype(int)
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        row, column = (low[i] + corner[i] for i in (0, 1))
        share = weight * (1 - np.abs(place[0] - row)) * (1 - np.abs(place[1] - column))
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        index, share = (row * width + column)[inside], share[inside]
        mass += np.bincount(index, share, height * width)
        for c in range(channels):
            total[:, c] += np.bincount(index, share * layers[..., c][inside], height * width)
    reached = mass > 1e-12
    total[reached] /= mass[reached, None]
    total[~reached] = layers.reshape(-1, channels)[~reached]
    return total.reshape(layers.shape)


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
