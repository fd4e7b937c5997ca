# SPDX-License-Identifier: GPL-3.0-or-later
"""When an exported result plays what: every file begins at zero and lasts as long as the animation.

Blender's exporters write what the scene shows at whole frames, at the scene's own frame numbers; one of them starts a
second's fraction late at 23.976 frames a second and cuts off what lies before frame 0. So the result is played from frame
0 on while it is exported, with its frames where they can be met.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import bpy
import numpy as np

from ..source import compat

MOST_SAMPLES = 512
"""A point cache repeats all vertices in each sample."""
FINEST = 16
"""Samples a frame, at most."""


def moments(object: bpy.types.Object, frames: Sequence[float]) -> np.ndarray:
    """Scene frames [K] between which everything moves in straight lines: the result's own, and those of what an artist
    has keyed since; whole frames too where curves bend."""
    first, last = frames[0], frames[-1]
    found, bent = set(frames), False
    for owner in _owners(object):
        for curve in compat.fcurves(owner):
            if curve.mute:
                continue
            bent |= any(key.interpolation != "LINEAR" for key in curve.keyframe_points)
            found.update(float(key.co[0]) for key in curve.keyframe_points if first < key.co[0] < last)
    if bent:
        found.update(float(frame) for frame in range(int(np.floor(first)) + 1, int(np.ceil(last))))
    ordered = sorted(found)
    # Keys are kept in 32 bits: those of the result's own frames come back a little off.
    apart = [frame for frame, after in zip(ordered, ordered[1:]) if after - frame > 1e-3]
    return np.array([*apart, last])


def samples_a_frame(times: np.ndarray) -> int:
    """How finely frames must be cut so that each of the times [K], in frames from zero, is met; 1 where that takes too
    many samples."""
    for count in range(1, FINEST + 1):
        if times[-1] * count > MOST_SAMPLES:
            break
        if np.abs(times * count - np.rint(times * count)).max() < 1e-3 * count:
            return count
    return 1


@contextlib.contextmanager
def played(object: bpy.types.Object, shown: np.ndarray, at: np.ndarray) -> Iterator[None]:
    """Show at the frames `at` [K] what the object and its shape keys show at the frames `shown` [K], on straight lines in
    between. The animation is as before at the end."""
    with contextlib.ExitStack() as undo:
        for owner in _owners(object):
            data = owner.animation_data
            curves = [curve for curve in compat.fcurves(owner) if not curve.mute]
            values = [(c.data_path, c.array_index, [c.evaluate(frame) for frame in shown]) for c in curves]
            action, slot = data.action, getattr(data, "action_slot", None)
            new = compat.new_action(owner, "LIM export")
            undo.callback(bpy.data.actions.remove, data.action)
            if slot is not None:
                undo.callback(setattr, data, "action_slot", slot)
            undo.callback(setattr, data, "action", action)
            for path, index, heights in values:
                compat.add_linear_fcurve(new, path, at, heights, index)
        yield


def set_glb_times(path: Path, rate: float, seconds: np.ndarray) -> None:
    """Move each key of a .glb's animations from k / `rate` to seconds[k].

    Its exporter multiplies by the scene's frame rate base where it should divide, and knows whole frames only.
    """
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<I", data, 12)
    about = json.loads(data[20 : 20 + length])
    start = 20 + length + 8  # of the binary chunk's content
    samplers = [sampler for animation in about.get("animations", ()) for sampler in animation["samplers"]]
    for index in {sampler["input"] for sampler in samplers}:
        accessor = about["accessors"][index]
        view = about["bufferViews"][accessor["bufferView"]]
        place = start + view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
        keys = np.frombuffer(data, "<f4", accessor["count"], place)
        times = seconds[np.clip(np.rint(keys * rate).astype(int), 0, len(seconds) - 1)].astype("<f4")
        data[place : place + times.nbytes] = times.tobytes()
        accessor["min"], accessor["max"] = [float(times.min())], [float(times.max())]
    text = json.dumps(about, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    rest = data[20 + length :]
    head = struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A)
    path.write_bytes(head + text + rest)


def _owners(object: bpy.types.Object) -> list[bpy.types.ID]:
    """What of the result is animated: its shape keys, and the object itself where an artist has moved it."""
    owners = (object.data.shape_keys, object)
    return [owner for owner in owners if owner is not None and compat.fcurves(owner)]
