# SPDX-License-Identifier: GPL-3.0-or-later
"""A clip as a whole: which frames become keyframes, the one square that is cut out of all of them, and its camera.

The square is the first view of the rig: it stands at azimuth 0 and looks at the middle of the unit sphere. It is the same for
the whole clip, so that what moves in the picture moves in the model. The camera of the full picture is the same camera with
the square's place in its intrinsics: it puts the mesh back over the clip, pixel by pixel.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from ..shared import cameras
from ..shared.errors import LimError
from ..shared.request import Request
from . import decode

THUMB = 48
FILL = 0.88  # of the square's half that the object's farthest pixel reaches: the depth wants room in the sphere, too
CUT = 0.1  # mean change between two frames, of the whole range, and
CUT_RATIO = 6.0  # against the usual one, from which it is a cut
STEPS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
CHANGE = 0.3  # of the object between two keyframes that is still followed
FEWEST_INTERVALS, MOST_KEYFRAMES = 6, 32


@dataclasses.dataclass
class Plan:
    """Which frames are used.

    Attributes:
        numbers: clip frames used, 1-based, in order; seconds: their times since the clip's first frame.
        keyframes: indices into `numbers`; the last is always one.
        count: frames in the file; fps: of the clip; warnings: (code, message, hint).
    """

    numbers: list[int]
    seconds: np.ndarray
    keyframes: list[int]
    step: int
    count: int
    fps: float
    size: tuple[int, int]
    samples: list[decode.Frame]
    warnings: list[tuple[str, str, str]]

    def scene_frames(self, request: Request) -> list[float]:
        """Scene frame of every keyframe: the first used frame plays at `video_start`, one clip frame a scene frame."""
        seconds = self.seconds[self.keyframes] - self.seconds[0]
        frames = request.video_start + np.round(seconds * self.fps, 3)
        return [float(frame) for frame in frames]


def plan(source: decode.Source, request: Request, on_progress=None) -> Plan:
    """Look through the clip once. Raises LimError: bad_video, one_keyframe, bad_request."""
    first, last = request.video_first, request.video_last or 10**9
    thumbs, numbers, seconds, samples, count, size = [], [], [], [], 0, None
    for frame in decode.frames(source):
        count = frame.number
        here = frame.rgba.shape[1::-1]
        if size is None:
            size = here
        elif here != size:
            raise LimError(
                "bad_video",
                f"Frame {frame.number} of the clip is {here[0]}×{here[1]}, the others are {size[0]}×{size[1]}.",
                "Make all of the same size.",
            )
        if first <= frame.number <= last:
            thumbs.append(thumbnail(frame.rgba))
            numbers.append(frame.number)
            seconds.append(frame.seconds)
            if len(numbers) & (len(numbers) - 1) == 0:  # 1, 2, 4, 8 …
                samples.append(frame)
        if frame.number >= last:
            break
        if on_progress:
            on_progress(1 - 1 / (1 + count / 100))
    if not numbers:
        raise LimError(
            "bad_request", f"The clip ends at frame {count}, before the range begins at {first}.",
            "Choose an earlier first frame.",
        )  # fmt: skip
    if len(numbers) < 2:
        raise LimError("one_keyframe", "The clip has only one frame: nothing moves.", "Choose a longer clip or range.")
    warnings = []
    seconds, thumbs = np.array(seconds), np.stack(thumbs)
    if (np.diff(seconds) <= 0).any():  # broken times: as if at an even rate
        seconds = (np.array(numbers) - numbers[0]) / (source.fps or decode.PICTURE_RATE)
    shots = cuts(thumbs)
    if len(shots) > 1:
        begin, end = max(shots, key=lambda shot: shot[1] - shot[0])
        if end - begin < 2:
            raise LimError("bad_video", "Every frame of the clip shows something else.", "Choose a clip of one shot.")
        warnings.append((
            "video_cut",
            f"The clip has {len(shots)} shots: only the longest is used, frames {numbers[begin]} to {numbers[end - 1]}.",
            "Set the range to choose another.",
        ))  # fmt: skip
        numbers, seconds, thumbs = numbers[begin:end], seconds[begin:end], thumbs[begin:end]
        samples = [frame for frame in samples if numbers[0] <= frame.number <= numbers[-1]] or samples[:1]
    spacing = np.diff(seconds)
    rate = request.video_fps or 1 / float(np.median(spacing))
    if source.fps and not request.video_fps and abs(rate - source.fps) < 0.02 * source.fps:
        rate = source.fps
    if request.video_fps and not source.pictures:
        seconds = seconds * (1 / float(np.median(spacing)) / request.video_fps)
    elif spacing.max() > 1.5 * spacing.min():
        warnings.append((
            "variable_rate",
            f"The clip's frames last between {spacing.min():.3g} and {spacing.max():.3g} s; the mesh follows their times.",
            "",
        ))  # fmt: skip
    step = request.video_step or automatic_step(thumbs)
    most = -(-(len(numbers) - 1) // (MOST_KEYFRAMES - 1))
    if step < most:
        if request.video_step or len(numbers) > 2 * STEPS[0] * MOST_KEYFRAMES:
            warnings.append((
                "long_clip",
                f"{len(numbers)} frames are too many for a keyframe every {step}: there is one every {most}.",
                "Choose a shorter range to follow the motion more closely.",
            ))  # fmt: skip
        step = most
    keyframes = [*range(0, len(numbers) - 1, step), len(numbers) - 1]
    return Plan(numbers, seconds, keyframes, step, count, rate, size, samples, warnings)


def thumbnail(rgba: np.ndarray) -> np.ndarray:
    """float32 [THUMB, THUMB, 3] in [0, 1], transparent parts grey."""
    small = (
        np.asarray(Image.fromarray(rgba).convert("RGBa").resize((THUMB, THUMB), Image.Resampling.BOX), np.float32) / 255
    )
    return small[..., :3] + 0.5 * (1 - small[..., 3:])


def cuts(thumbs: np.ndarray) -> list[tuple[int, int]]:
    """Shots as (begin, end) indices, end excluded."""
    change = np.abs(np.diff(thumbs, axis=0)).mean((1, 2, 3))
    usual = float(np.median(change))
    breaks = 1 + np.flatnonzero((change > CUT) & (change > CUT_RATIO * usual))
    bounds = [0, *(int(b) for b in breaks), len(thumbs)]
    return list(zip(bounds, bounds[1:]))


def automatic_step(thumbs: np.ndarray) -> int:
    """The widest spacing over which no more of the object changes than `CHANGE`; at least 2, as the paper has it."""
    edge = np.concatenate([thumbs[:, 0], thumbs[:, -1], thumbs[:, :, 0], thumbs[:, :, -1]], 1).reshape(-1, 3)
    content = float(np.abs(thumbs - np.median(edge, 0)).mean())
    best = STEPS[0]
    for step in STEPS:
        if step * FEWEST_INTERVALS > len(thumbs) - 1:
            break
        change = float(np.abs(thumbs[step:] - thumbs[:-step]).mean()) / max(content, 1e-6)
        if change <= CHANGE:
            best = step
    return best


# ---- the square and its camera -----------------------------------------------------------------------------------------


def square(alphas: list[np.ndarray]) -> tuple[float, float, float]:
    """(x, y, side) in pixels of the full picture: every frame's object with room around; may stick out of the picture."""
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    places = []
    for alpha in alphas:
        row, column = np.nonzero(alpha > 127)
        places.append(np.stack([column, row], 1) + 0.5)
        low, high = np.minimum(low, places[-1].min(0)), np.maximum(high, places[-1].max(0))
    centre = (low + high) / 2
    radius = max(float(np.linalg.norm(place - centre, axis=1).max()) for place in places)
    side = 2 * max(radius, 1.0) / FILL
    return float(centre[0] - side / 2), float(centre[1] - side / 2), float(side)


def cut(rgba: np.ndarray, box: tuple[float, float, float], size: int) -> np.ndarray:
    """The square, `size` pixels wide: uint8 [size, size, 4], straight alpha; nothing where it sticks out."""
    x, y, side = box
    margin = int(np.ceil(side)) + 2
    image = Image.fromarray(np.pad(rgba, ((margin, margin), (margin, margin), (0, 0)))).convert("RGBa")
    place = (x + margin, y + margin, x + margin + side, y + margin + side)
    how = Image.Resampling.BOX if side > 2 * size else Image.Resampling.BILINEAR
    return np.asarray(image.resize((size, size), how, box=place).convert("RGBA"))


def full_camera(box: tuple[float, float, float], elevation: float) -> tuple[np.ndarray, np.ndarray]:
    """camera_to_world [4, 4] and intrinsics [3, 3] of the full picture, in its pixels."""
    x, y, side = box
    intrinsics = cameras.pinhole(1).astype(np.float64) * np.array([[side], [side], [1.0]])
    intrinsics[:2, 2] += (x, y)
    return cameras.look_at(0.0, elevation), intrinsics
