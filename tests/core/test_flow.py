# SPDX-License-Identifier: GPL-3.0-or-later
"""Interpolation in the image: where a picture's texture and depth go."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lim_core.evaluation import flow
from lim_core.job.capture import Capture
from lim_core.shared import cameras
from lim_core.shared.errors import LimError

SIZE = 64


def disc(shift: float, depth: float):
    """A textured disc, `shift` pixels to the right, at a planar depth: rgba uint8 and depth of one view."""
    row, column = np.mgrid[0:SIZE, 0:SIZE].astype(float)
    column -= shift
    cover = ((row - 32) ** 2 + (column - 28) ** 2 < 18**2).astype(float)
    wave = [0.5 + 0.4 * np.sin(row * f + p) * np.cos(column * f + p) for f, p in ((0.45, 0), (0.37, 1), (0.3, 2))]
    rgba = (np.stack([*wave, cover], -1) * 255).round().astype(np.uint8)
    return rgba * (cover[..., None] > 0).astype(np.uint8), (depth * cover).astype(np.float32)


def moved(shifts, depths) -> Capture:
    camera, intrinsics = cameras.job_cameras(SIZE, 4)
    rgba, depth = zip(*(disc(s, d) for s, d in zip(shifts, depths)))
    return Capture(np.stack(rgba)[:, None], np.stack(depth)[:, None], camera[:1], intrinsics[:1], 1)


def test_texture_and_depth_go_half_way():
    seen = moved((0, 3, 6), (2.5, 2.54, 2.58))
    middle = flow.between(seen, 0, 2, 0.5)
    assert middle.keyframes == 1 and middle.rgba.shape == (1, 1, SIZE, SIZE, 4)
    inside = seen.depth_planar[1, 0] > 0
    inner = inside & np.roll(inside, 4, 1) & np.roll(inside, -4, 1)

    def error(rgba):
        return np.abs(rgba[..., :3].astype(float) - seen.rgba[1, 0][..., :3])[inner].mean()

    assert error(middle.rgba[0, 0]) < 6 < error((seen.rgba[0, 0].astype(float) + seen.rgba[2, 0]) / 2) / 2
    known = middle.depth_planar[0, 0] > 0
    assert (known & inside).sum() > 0.9 * inside.sum() and (known & ~inside).sum() < 0.05 * inside.sum()
    np.testing.assert_allclose(middle.depth_planar[0, 0][known & inner], 2.54, atol=0.005)


@pytest.mark.parametrize("alpha, keyframe", [(0.0, 0), (1.0, 1)])
def test_the_ends_are_the_keyframes(alpha, keyframe):
    seen = moved((0, 3), (2.5, 2.55))
    end = flow.between(seen, 0, 1, alpha)
    assert np.abs(end.rgba[0].astype(int) - seen.rgba[keyframe]).max() <= 1
    known = end.depth_planar[0] > 0
    assert known.sum() > 0.8 * (seen.depth_planar[keyframe] > 0).sum()
    np.testing.assert_allclose(end.depth_planar[0][known], seen.depth_planar[keyframe][known], atol=1e-4)


def test_depths_of_two_surfaces_are_not_mixed():
    seen = moved((0, 0), (2.3, 2.9))
    middle = flow.between(seen, 0, 1, 0.5)
    assert (middle.depth_planar == 0).all() and (middle.rgba[..., 3] == seen.rgba[:1, ..., 3]).all()


def test_an_empty_view_stays_empty():
    seen = moved((0, 3), (2.5, 2.5))
    seen.rgba[:], seen.depth_planar[:] = 0, 0
    middle = flow.between(seen, 0, 1, 0.5)
    assert (middle.rgba == 0).all() and (middle.depth_planar == 0).all()


class Blend(torch.nn.Module):
    def forward(self, first: torch.Tensor, last: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return torch.lerp(first, last, time.view(-1, 1, 1, 1))


class Half(torch.nn.Module):
    def forward(self, first: torch.Tensor, last: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return first[..., ::2, ::2]


def test_a_given_frame_interpolator_makes_the_pictures(tmp_path):
    torch.jit.save(torch.jit.script(Blend()), tmp_path / "blend.pt")
    model = flow.load(tmp_path / "blend.pt", torch.device("cpu"))
    seen = moved((0, 3), (2.5, 2.55))
    found = flow.between(seen, 0, 1, 0.25, model)
    ends = seen.rgba[:, 0].astype(float) / 255
    premultiplied = np.concatenate([ends[..., :3] * ends[..., 3:], ends[..., 3:]], -1)
    blend = 0.75 * premultiplied[0] + 0.25 * premultiplied[1]
    np.testing.assert_allclose(found.rgba[0, 0, ..., 3] / 255, blend[..., 3], atol=0.005)
    solid = blend[..., 3] > 0.2
    np.testing.assert_allclose(
        found.rgba[0, 0, ..., :3][solid] / 255, (blend[..., :3] / blend[..., 3:].clip(0.01))[solid], atol=0.02
    )
    assert (found.depth_planar > 0).any()  # along the flow, as without a model


def test_flaws_of_a_frame_interpolator_are_named(tmp_path):
    with pytest.raises(LimError, match="no frame interpolator"):
        flow.load(tmp_path / "none.pt", torch.device("cpu"))
    (tmp_path / "text.pt").write_text("no model")
    with pytest.raises(LimError, match="text.pt. is not a TorchScript model"):
        flow.load(tmp_path / "text.pt", torch.device("cpu"))
    torch.jit.save(torch.jit.script(Half()), tmp_path / "half.pt")
    model = flow.load(tmp_path / "half.pt", torch.device("cpu"))
    with pytest.raises(LimError, match="same size"):
        flow.between(moved((0, 3), (2.5, 2.55)), 0, 1, 0.5, model)
