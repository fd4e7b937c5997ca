# SPDX-License-Identifier: GPL-3.0-or-later
"""The network on points: what holds without training, what it learns from, that it learns, and what is drawn of it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import shapes
from lim_core.data import pairs, procedural
from lim_core.evaluation import matching
from lim_core.job.capture import Capture
from lim_core.mesh import packs, rays, remesh
from lim_core.networks import checkpoint
from lim_core.networks.config import MotionConfig
from lim_core.networks.point_motion import Cloud, Field, Held, Motion, carried, hold, rotate
from lim_core.shared import cameras
from lim_core.shared.errors import LimError
from lim_core.tracking import moved
from lim_core.training import train_motion

TINY = MotionConfig(
    controls=32, neighbours=4, width=32, heads=2, local_width=8, match_width=16, blocks=1, later_blocks=1
)


def random_cloud(batch: int = 2, points: int = 64, controls: int = 32) -> Cloud:
    place = torch.rand(batch, points, 3) * 2 - 1
    normal = F.normalize(torch.randn(batch, points, 3), dim=-1)
    chosen = torch.stack([torch.randperm(points)[:controls] for _ in range(batch)])
    return Cloud(place, normal, torch.rand(batch, points, 3), chosen)


def field_of(start: torch.Tensor, place: torch.Tensor, turn: torch.Tensor | None = None) -> Field:
    """A field that says this and nothing else."""
    still = torch.tensor([1.0, 0, 0, 0]).expand(*start.shape[:2], 4)
    normal = F.normalize(start, dim=-1)
    return Field(start, normal, place, place, still if turn is None else turn, torch.full(start.shape[:2], 0.01),
                 torch.zeros(*start.shape[:2], 1), (torch.zeros(1), torch.zeros(1)))  # fmt: skip


@pytest.fixture(scope="module")
def network() -> Motion:
    torch.manual_seed(0)
    model = Motion(TINY).eval()
    with torch.no_grad():  # as if trained: every head says something
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def test_both_ends_are_exact_and_the_rest_is_between(network):
    source, target = random_cloud(), random_cloud()
    forth, _ = network(source, target)
    for alpha, expected in ((0.0, forth.start), (1.0, forth.place)):
        place, turn = network.at(forth, torch.full((2,), alpha))
        assert torch.allclose(place, expected, atol=1e-6)
        assert torch.allclose(turn.norm(dim=-1), torch.ones(2, 32), atol=1e-5)
    half = network.at(forth, torch.full((2,), 0.5))[0]
    straight = (forth.start + forth.place) / 2
    assert not torch.allclose(half, straight, atol=1e-4), "the arc must be able to leave the straight line"
    for wrong in (-0.1, 1.1):
        with pytest.raises(LimError, match="outside the interval"):
            network.at(forth, torch.full((2,), wrong))


def test_the_two_times_are_treated_alike(network):
    source, target = random_cloud(), random_cloud()
    forth, back = network(source, target)
    back_too, forth_too = network(target, source)
    assert torch.allclose(forth.place, forth_too.place, atol=1e-5)
    assert torch.allclose(back.turn, back_too.turn, atol=1e-5)


def test_the_order_of_points_says_nothing(network):
    source, target = random_cloud(1), random_cloud(1)
    order = torch.randperm(64)
    place_of = torch.argsort(order)
    shuffled = Cloud(*(x[:, order] for x in (source.place, source.normal, source.colour)), place_of[source.controls])
    assert torch.allclose(network(source, target)[0].place, network(shuffled, target)[0].place, atol=1e-5)


def test_what_hangs_on_controls_that_move_rigidly_moves_rigidly():
    axis = F.normalize(torch.tensor([0.3, -1.0, 0.5]), dim=0)
    angle = torch.tensor(1.1)
    quaternion = torch.cat([(angle / 2).cos()[None], (angle / 2).sin() * axis])
    shift = torch.tensor([0.2, 0.1, -0.3])
    start = torch.rand(1, 40, 3)
    turn = quaternion.expand(1, 40, 4)
    field = field_of(start, rotate(turn, start) + shift, turn)
    points = torch.rand(1, 100, 3)
    held = hold(field, points)
    assert torch.allclose(held.weight.sum(-1), torch.ones(1, 100), atol=1e-5)
    moved_points = carried(field.start, field.place, field.turn, held, points)
    assert torch.allclose(moved_points, rotate(quaternion.expand(1, 100, 4), points) + shift, atol=1e-5)
    lengths = rotate(quaternion.expand(1, 100, 4), points).norm(dim=-1)
    assert torch.allclose(lengths, points.norm(dim=-1), atol=1e-5)


def test_the_other_side_of_a_sheet_does_not_hold():
    flat = torch.rand(1, 60, 2)
    height = torch.cat([torch.full((30,), 0.01), torch.full((30,), -0.01)])
    start = torch.cat([flat, height[None, :, None]], -1)
    field = field_of(start, start)
    field.normal = torch.cat([torch.zeros(1, 60, 2), height.sign()[None, :, None]], -1)
    points = torch.cat([torch.rand(1, 20, 2), torch.full((1, 20, 1), 0.01)], -1)
    normals = torch.tensor([0.0, 0, 1]).expand(1, 20, 3)
    held = hold(field, points, normals, count=3)
    above = (held.index < 30).float()
    assert (above * held.weight).sum() / 20 > 0.97
    assert (hold(field, points, count=3).index >= 30).any(), "place alone cannot tell the sides apart"


# ---- pairs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Packs of three generated objects."""
    out = tmp_path_factory.mktemp("packs")
    for seed in (3, 4, 5):
        packs.save(procedural.make_object(seed), out / f"object_{seed}.npz")
    return out


def test_pairs_know_the_truth(folder):
    """What is drawn as seen lies on the surface; where it goes is where that material goes."""
    pack = pairs.load_all(folder)[0]
    last = pack.frames(0) - 1
    positions = pack.model_positions(0, [0, last * 0.1, last * 0.2, last * 0.3])
    options = pairs.PairOptions(points=400, controls=50, noise=0.0)
    row = pairs.sample_pair(pack, positions, np.array([1 / 3, 2 / 3]), options, np.random.default_rng(0))
    for side, own, other in (("source", 0, 3), ("target", 3, 0)):
        for frame, places in ((own, row[side]["place"]), (other, row[side]["other"]), (1, row[side]["way"][0])):
            corners = positions[frame][pack.faces]
            on = distance_to(corners, places[:30])
            assert on.max() < 1e-4, (side, frame)
    middle = (row["source"]["place"] + row["source"]["other"]) / 2
    assert np.abs(row["source"]["way"].mean(0) - middle).mean() < 0.5 * np.abs(
        row["source"]["other"] - row["source"]["place"]).mean()  # fmt: skip
    assert len(np.unique(row["source"]["controls"])) == 50


def distance_to(corners: np.ndarray, points: np.ndarray) -> np.ndarray:
    """From points [N, 3] to triangles [F, 3, 3], by brute force."""
    found = []
    for point in points:
        weights = remesh.closest(np.repeat(point[None], len(corners), 0), corners.astype(np.float64))
        found.append(np.linalg.norm(np.einsum("fk,fkc->fc", weights, corners) - point, axis=1).min())
    return np.array(found)


def test_pairs_repeat_with_their_seed_and_reach_every_kind(folder):
    every = pairs.load_all(folder)
    options = pairs.PairOptions(points=128, controls=32)
    one, two = (pairs.draw(every, 6, options, np.random.default_rng(7)) for _ in range(2))
    assert torch.equal(one.source.cloud.place, two.source.cloud.place) and torch.equal(one.alpha, two.alpha)
    assert one.source.cloud.place.shape == (6, 128, 3) and one.source.way.shape == (6, 2, 128, 3)
    assert one.source.cloud.place.norm(dim=-1).max() < 1.05
    assert torch.allclose(one.target.cloud.normal.norm(dim=-1), torch.ones(6, 128), atol=1e-5)
    paths = torch.cat([pairs.draw(every, 8, options, np.random.default_rng(s)).path for s in range(6)])
    assert 0 < paths.mean() < 1, "some pairs teach the way between, others only the ends"
    assert (one.alpha.diff(dim=1) >= 0).all()


# ---- training -------------------------------------------------------------------------------------------------------

SIZES = [f"--{name.replace('_', '-')}={getattr(TINY, name)}" for name in TINY.__dataclass_fields__]


def run(folder, out, *more: str) -> None:
    arguments = ["motion", "--packs", str(folder), "--out", str(out), "--device", "cpu", "--batch", "2", *SIZES]
    assert train_motion.main([*arguments, "--lr", "3e-3", "--warmup", "5", *more]) == 0


def test_it_learns_and_goes_on_where_it_stopped(folder, tmp_path):
    run(folder, tmp_path / "whole", "--steps", "30")
    rows = train_motion.state.logs.read(tmp_path / "whole" / "watch.csv")
    before = checkpoint.build("motion", TINY)
    watched = train_motion.watched_pairs(pairs.load_all(folder)[-1:], pairs.PairOptions(points=128, controls=32))
    first = train_motion.watch(Motion(TINY), before.state_dict(), watched)
    assert float(rows[-1]["place"]) < 0.85 * first["place"]

    run(folder, tmp_path / "parts", "--steps", "30", "--call-minutes", "0.01")
    run(folder, tmp_path / "parts", "--steps", "30")
    one, two = (checkpoint.load(tmp_path / name / "checkpoint", "motion").state_dict() for name in ("whole", "parts"))
    assert all(torch.allclose(one[name], two[name], atol=2e-3) for name in one)
    loaded = checkpoint.load(tmp_path / "whole" / "checkpoint", "motion")
    assert checkpoint.replay_golden(tmp_path / "whole" / "checkpoint", "motion", loaded) < 1e-4
    with pytest.raises(LimError, match="other sizes"):
        train_motion.begin_from(Motion(MotionConfig()), str(tmp_path / "whole" / "checkpoint"))
    summary = matching.evaluate(str(folder), str(tmp_path / "out"), weights=str(tmp_path / "whole" / "checkpoint"))
    assert 0 < summary["mean"]["nearest"] and np.isfinite(summary["mean"]["half_motion"])


def test_the_way_back_undoes_the_way_there():
    """`there_and_back` with exact fields is where it began."""
    start = torch.rand(1, 50, 3)
    shift = torch.tensor([0.3, 0.0, 0.1])
    forth, back = field_of(start, start + shift), field_of(start + shift, start)
    assert torch.allclose(train_motion.there_and_back(forth, back), start, atol=1e-5)


# ---- drawn again ----------------------------------------------------------------------------------------------------

SIZE = 64
SHIFT = np.array([0.3, 0.1, 0.0], np.float32)


@pytest.fixture(scope="module")
def ends() -> Capture:
    """A tube at two times, shifted; each end of its length in another colour."""
    vertices, faces = shapes.tube(rings=40, around=20)
    vertices = (vertices * 0.6).astype(np.float32)
    camera, lens = cameras.job_cameras(SIZE, 4)
    depth = np.stack([rays.depth(v, faces, camera, lens, SIZE) for v in (vertices, vertices + SHIFT)])
    rgba = np.zeros((*depth.shape, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 200, 255 * (depth > 0)
    rgba[depth == 0] = 0
    return Capture(rgba, depth.astype(np.float32), camera, lens, 4)


class Shifts(torch.nn.Module):
    """Knows that everything moved by SHIFT."""

    def __init__(self):
        super().__init__()
        self.config = MotionConfig(controls=64)
        self.anchor = torch.nn.Parameter(torch.zeros(()))

    def forward(self, source: Cloud, target: Cloud) -> tuple[Field, Field]:
        shift = torch.from_numpy(SHIFT)
        starts = [cloud.of_controls(cloud.place) for cloud in (source, target)]
        return field_of(starts[0], starts[0] + shift), field_of(starts[1], starts[1] - shift)

    def at(self, field: Field, alpha: torch.Tensor):
        return torch.lerp(field.start, field.place, alpha[:, None, None]), field.turn


def test_what_is_moved_is_drawn_where_it_went(ends):
    vertices, faces = shapes.tube(rings=40, around=20)
    vertices = (vertices * 0.6).astype(np.float32)
    between = moved.Between(Shifts(), ends, 0, 1, SIZE)
    for alpha in (0.25, 0.5):
        seen = between.capture_at(alpha)
        true = rays.depth(vertices + alpha * SHIFT, faces, seen.camera_to_world, seen.intrinsics, SIZE)
        here, there = seen.depth_planar[0] > 0, true > 0
        assert (here & there).sum() / (here | there).sum() > 0.9
        both = here & there
        assert np.abs(seen.depth_planar[0] - true)[both].mean() < 0.01
        assert (seen.rgba[0][both][:, 0] > 190).mean() > 0.97


def test_no_sheet_reaches_over_an_edge(ends):
    sheet = moved.sheets(ends, 0, SIZE)
    longest = np.linalg.norm(np.diff(sheet.points[sheet.faces][:, [0, 1, 2, 0]], axis=1), axis=2).max()
    assert len(sheet.faces) > 500 and longest < 0.35
    assert np.allclose(np.linalg.norm(sheet.normals, axis=1)[np.abs(sheet.normals).sum(1) > 0], 1, atol=1e-4)


def test_of_two_surfaces_the_surer_or_nearer_one_is_shown():
    def pixel(red: float, doubt: float, depth: float) -> list[float]:
        return [red, 0.0, 0.0, doubt, depth]

    first = np.array(
        [pixel(1, 0.01, 2.0), pixel(1, 0.01, 2.0), pixel(1, 0.5, 2.0), pixel(0, 0, 0), pixel(1, 0.01, 2.0)]
    )
    last = np.array([pixel(0, 0.01, 2.02), pixel(0, 0.01, 2.5), pixel(0, 0.01, 2.5), pixel(0, 0, 0), pixel(0, 0, 0)])
    rgba, depth = moved.merge(first, last, 0.5)
    assert 120 < rgba[0, 0] < 135 and 2.0 < depth[0] < 2.02, "one surface: the mean"
    assert rgba[1, 0] == 255 and depth[1] == 2.0, "two: the nearer one hides the other"
    assert rgba[2, 0] == 0 and depth[2] == 2.5, "but not when it is much less sure"
    assert rgba[3, 3] == 0 and depth[3] == 0
    assert rgba[4, 3] > 200, "what one end alone shows, and surely, is there"


def test_held_blends_what_it_gathers():
    held = Held(torch.tensor([[[0, 1]]]), torch.tensor([[[0.25, 0.75]]]))
    assert held.blend(torch.tensor([[[1.0], [3.0]]])).item() == pytest.approx(2.5)


def test_matches_carry_any_vertices_both_ways(ends):
    between = moved.Between(Shifts(), ends, 0, 1, SIZE)
    vertices, faces = shapes.tube(rings=40, around=20)
    vertices = vertices * 0.6
    for end, sign in ((0, 1), (1, -1)):
        found = moved.FieldMatches(between.arrays(end, [0, 0.25, 1]), faces)
        own = vertices + end * SHIFT
        positions, confidence = found.moved(own)
        ways = [0, 0.25, 1] if end == 0 else [0, 0.75, 1]
        for position, way in zip(positions, ways):
            assert np.allclose(position, own + sign * way * SHIFT, atol=1e-5)
        assert confidence.shape == (3, len(vertices)) and confidence.min() > 0.5
        assert np.allclose(found.moved(own, end=True)[0][-1], positions[-1])
