# SPDX-License-Identifier: GPL-3.0-or-later
"""What the pictures prove about space: a ball of radius 0.6, coloured by its position, seen by the rig."""

from __future__ import annotations

import dataclasses

import torch

from conftest import TINY, ball_views
from lim_core.networks.evidence import Advance, Pillars, fuse
from lim_core.networks.lrm import LRM

SIZE = 32
FINE = dataclasses.replace(TINY, image_size=64)


def radius(voxels):
    return ((voxels.cell + 0.5) * (2 / SIZE) - 1).norm(dim=1)


def test_the_seen_surface_lies_where_it_is_and_has_its_colour():
    voxels = fuse(ball_views(FINE), SIZE)
    seen = voxels.features[:, 0] > 0
    assert seen.sum() > 500
    assert (radius(voxels)[seen] - 0.6).abs().max() < 2 / SIZE  # half a voxel's diagonal, and a little
    centre = (voxels.cell[seen] + 0.5) * (2 / SIZE) - 1
    exact = centre + voxels.features[seen, 4:7] * (2 / SIZE)  # the mean of the points in the voxel
    torch.testing.assert_close(exact.norm(dim=1), torch.full((len(exact),), 0.6), atol=0.01, rtol=0)
    torch.testing.assert_close(voxels.features[seen, 1:4], exact * 0.5 + 0.5, atol=0.01, rtol=0)


def test_the_hull_keeps_the_ball_and_little_else():
    views = ball_views(FINE)
    voxels = fuse(views, SIZE)
    possible = voxels.features[:, 7] > 0
    assert (
        radius(voxels)[possible].max() < 0.6 + 0.35
    )  # the side that no view sees may bulge, as far as the masks allow
    distance = voxels.features[:, 8]
    watched = possible & (voxels.features[:, 9] > 0)
    assert (distance[watched & (radius(voxels) < 0.53)] < 0).all()
    assert (distance[watched & (radius(voxels) > 0.64)] > 0).all()
    hidden = fuse(views.without_depth(torch.ones(1)), SIZE)
    inside = {tuple(c) for c in hidden.cell[hidden.features[:, 7] > 0].tolist()}
    steps = torch.arange(SIZE)
    grid = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), -1).view(-1, 3)
    ball = grid[((grid + 0.5) * (2 / SIZE) - 1).norm(dim=1) < 0.55]
    assert all(tuple(c) in inside for c in ball.tolist())
    assert len(inside) < 2 * len(ball)


def test_without_depth_nothing_is_seen_but_the_hull_stays():
    hidden = fuse(ball_views(FINE).without_depth(torch.ones(1)), SIZE)
    assert (hidden.features[:, 0] == 0).all() and (hidden.features[:, 8] == -1).all()
    assert torch.isfinite(LRM(TINY)(ball_views(TINY).without_depth(torch.ones(1)))[0]).all()


def test_scenes_of_a_batch_do_not_mix():
    one, two = ball_views(FINE), ball_views(FINE, shift=0.3)
    both = type(one)(*(torch.cat([getattr(one, n), getattr(two, n)]) for n in one.__dataclass_fields__))
    together = fuse(both, SIZE)
    for i, alone in enumerate((fuse(one, SIZE), fuse(two, SIZE))):
        mine = together.scene == i
        assert torch.equal(together.cell[mine], alone.cell)
        torch.testing.assert_close(together.features[mine], alone.features)


def test_pillars_stand_over_their_cells():
    config = dataclasses.replace(TINY, plane_tokens=8)
    voxels = fuse(ball_views(FINE, shift=0.3), SIZE)
    planes = Pillars(config)(voxels)
    assert planes.shape == (1, 3, config.evidence_channels, SIZE, SIZE)
    for plane, (a, b) in enumerate(((0, 1), (0, 2), (1, 2))):
        hit = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        hit[voxels.cell[:, b], voxels.cell[:, a]] = True  # rows run along the second axis
        assert torch.equal(planes[0, plane].abs().sum(0) > 0, hit)


def test_an_empty_picture_gives_an_empty_triplane():
    views = ball_views(TINY)
    empty = dataclasses.replace(
        views, alpha=views.alpha * 0, depth_known=views.depth_known * 0, content=torch.ones_like(views.content)
    )
    assert len(fuse(empty, SIZE).scene) == 0
    assert torch.isfinite(LRM(TINY)(empty)[0]).all()


def test_untrained_the_evidence_of_both_ends_is_blended():
    torch.manual_seed(0)
    size = TINY.plane_size
    cells = torch.randn(2, 3, TINY.channels, size, size)
    source, target = torch.randn(2, 2, 3, TINY.evidence_channels, size, size)
    planes = Advance(TINY)(cells, source, target, torch.tensor([0.0, 0.25]))
    torch.testing.assert_close(planes[0], source[0])
    torch.testing.assert_close(planes[1], 0.75 * source[1] + 0.25 * target[1])
