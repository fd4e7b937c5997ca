# SPDX-License-Identifier: GPL-3.0-or-later
"""The ray marcher against a slow float64 oracle and against analytic shapes."""

from __future__ import annotations

import math

import torch

from conftest import TINY
from lim_core.networks.render import composite, occupancy, render_image, render_rays, sphere_interval
from lim_core.networks.triplane import TriplaneDecoder, density_grid
from lim_core.shared import cameras


class Ball(torch.nn.Module):
    """A decoder that is a solid ball of one colour, whatever the triplane."""

    def __init__(self, radius: float, density: float = 400.0):
        super().__init__()
        self.radius, self.density = radius, density

    def forward(self, triplane, points):
        inside = points.norm(dim=-1) < self.radius
        return inside.float() * self.density, torch.tensor([0.2, 0.5, 0.9]).expand(*points.shape[:-1], 3)


def oracle(decoder, triplane, origins, directions, samples):
    """One ray at a time, one sample at a time, in float64, straight from the definition."""
    rows = []
    for o, d in zip(origins.double(), directions.double()):
        near, far = (float(x) for x in sphere_interval(o, d))
        step = (far - near) / samples
        light, colour, depth = 1.0, torch.zeros(3, dtype=torch.float64), 0.0
        for i in range(samples):
            t = near + step * (i + 0.5)
            density, content = decoder(triplane, (o + t * d).float()[None, None])
            a = 1 - torch.exp(-density[0, 0].double() * step * d.norm())
            colour = colour + light * a * content[0, 0].double()
            depth = depth + light * a * t
            light = light * (1 - a)
        rows.append(torch.cat([colour, torch.stack([depth, 1 - light])]) if step else torch.zeros(5).double())
    return torch.stack(rows)


def random_rays(count: int):
    torch.manual_seed(1)
    origins = torch.nn.functional.normalize(torch.randn(count, 3), dim=-1) * 2.9
    directions = -origins + 0.4 * torch.randn(count, 3)
    return origins, directions


def test_values_and_gradients_equal_the_oracle():
    torch.manual_seed(0)
    decoder = TriplaneDecoder(TINY, False)
    triplane = torch.randn(1, 3, 4, 16, 16).mul(2).requires_grad_()
    origins, directions = random_rays(12)
    fast = torch.cat(
        [x.reshape(12, -1) for x in render_rays(decoder, triplane, origins[None], directions[None], samples=9)], 1
    )
    slow = oracle(decoder, triplane, origins, directions, 9)
    assert fast.abs().max() > 0.1
    torch.testing.assert_close(fast.double(), slow, rtol=1e-4, atol=1e-5)
    weight = torch.randn(12, 5)
    (one,) = torch.autograd.grad((fast * weight).sum(), triplane, retain_graph=True)
    (two,) = torch.autograd.grad((slow * weight).sum(), triplane)
    torch.testing.assert_close(one, two.float(), rtol=1e-3, atol=1e-5)


def test_chunking_changes_nothing():
    decoder = TriplaneDecoder(TINY, False)
    triplane = torch.randn(1, 3, 4, 16, 16, requires_grad=True)
    origins, directions = (x[None] for x in random_rays(40))
    whole = render_rays(decoder, triplane, origins, directions, samples=8)
    parts = render_rays(decoder, triplane, origins, directions, samples=8, chunk=64)
    for a, b in zip(whole, parts):
        torch.testing.assert_close(a, b)
    (one,) = torch.autograd.grad(whole[0].sum(), triplane)
    (two,) = torch.autograd.grad(parts[0].sum(), triplane)
    torch.testing.assert_close(one, two)


def test_an_opaque_ball_has_its_analytic_depth_and_outline():
    size, radius = 64, 0.6
    camera, intrinsics = (torch.from_numpy(x[0]) for x in cameras.job_cameras(size, 1))
    colour, depth, mask = render_image(Ball(radius), torch.zeros(1, 3, 1, 2, 2), camera, intrinsics, size, samples=256)
    origins, directions = (torch.from_numpy(x) for x in cameras.rays(camera.numpy(), intrinsics.numpy(), size))
    near, far = sphere_interval(origins, directions, radius)
    inside = (far - near) * directions.norm(dim=-1) > 0.1  # away from the outline, where samples graze
    outside = far <= near
    assert inside.sum() > 300 and mask[inside].min() > 0.97 and mask[outside].max() == 0
    assert (depth - near)[inside].abs().max() < 0.012
    assert (colour[inside] - torch.tensor([0.2, 0.5, 0.9])).abs().max() < 0.03
    assert (colour[outside] == 1).all() and (depth[outside] == 0).all()


def test_absorption_of_a_homogeneous_ball():
    density, content, t = torch.full((1, 400), 0.7), torch.ones(1, 400, 3), torch.linspace(2, 3, 400)[None]
    colour, _, mask = composite(density, content, t, torch.full((1, 1), 1 / 400))
    assert math.isclose(float(mask), 1 - math.exp(-0.7), rel_tol=1e-5)
    assert math.isclose(float(colour[0, 0]), float(mask), rel_tol=1e-5)


def test_skipping_empty_space_changes_nothing_visible():
    size = 48
    camera, intrinsics = (torch.from_numpy(x[0]) for x in cameras.job_cameras(size, 1))
    triplane = torch.zeros(1, 3, 1, 2, 2)
    skipped = render_image(Ball(0.5, 80.0), triplane, camera, intrinsics, size, samples=64)
    origins, directions = (
        torch.from_numpy(x).reshape(1, -1, 3) for x in cameras.rays(camera.numpy(), intrinsics.numpy(), size)
    )
    colour, _, mask = render_rays(Ball(0.5, 80.0), triplane, origins, directions, samples=64)
    torch.testing.assert_close(skipped[2].flatten(), mask[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(skipped[0].reshape(-1, 3), colour[0] + 1 - mask[0, :, None], atol=1e-4, rtol=0)


def test_views_of_one_triplane_share_its_occupancy():
    cameras_, lenses = (torch.from_numpy(x) for x in cameras.job_cameras(24, 2))
    ball, triplane = Ball(0.5, 80.0), torch.zeros(1, 3, 1, 2, 2)
    busy = occupancy(ball, triplane)
    assert 0.5**3 * math.pi / 6 < busy.float().mean() < 0.2
    for camera, intrinsics in zip(cameras_, lenses):
        alone = render_image(ball, triplane, camera, intrinsics, 24, samples=32)
        shared = render_image(ball, triplane, camera, intrinsics, 24, samples=32, busy=busy)
        assert all(torch.equal(a, b) for a, b in zip(alone, shared))


def test_what_is_hidden_is_not_evaluated():
    camera, intrinsics = (torch.from_numpy(x[0]) for x in cameras.job_cameras(32, 1))
    busy = torch.ones(8, 8, 8, dtype=torch.bool)
    evaluated = []
    for density in (400.0, 0.01):
        counted = []

        class Counting(Ball):
            def forward(self, triplane, points, counted=counted):
                counted.append(points.shape[1])
                return super().forward(triplane, points)

        empty = torch.zeros(1, 3, 1, 2, 2)
        render_image(Counting(0.8, density), empty, camera, intrinsics, 32, samples=96, busy=busy)
        evaluated.append(sum(counted))
    assert evaluated[0] < 0.65 * evaluated[1]


def test_an_empty_triplane_shows_the_background():
    camera, intrinsics = (torch.from_numpy(x[0]) for x in cameras.job_cameras(16, 1))
    empty = torch.zeros(1, 3, 1, 2, 2)
    colour, depth, mask = render_image(Ball(0.0), empty, camera, intrinsics, 16, samples=8, background=0.25)
    assert (colour == 0.25).all() and (depth == 0).all() and (mask == 0).all()


def test_sparse_density_equals_the_dense_grid_on_the_object():
    steps = torch.linspace(-1, 1, 64)
    points = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), -1)
    dense = Ball(0.55)(None, points.view(1, -1, 3))[0].view(64, 64, 64)
    torch.testing.assert_close(density_grid(Ball(0.55), torch.zeros(1, 3, 1, 2, 2), 64), dense)
