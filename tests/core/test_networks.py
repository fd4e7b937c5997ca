# SPDX-License-Identifier: GPL-3.0-or-later
"""The four networks: their wiring, what they must not accept, and their checkpoints."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from jaxtyping import TypeCheckError

from conftest import TINY, ball_views
from lim_core.networks import checkpoint, config
from lim_core.networks.lim import ENDS, LIM, Anchors
from lim_core.networks.lrm import LRM, Features
from lim_core.shared.errors import LimError


def test_features_are_the_outputs_of_the_last_blocks():
    torch.manual_seed(0)
    model = LRM(TINY)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, output: seen.append(output))
    triplane, features = model(ball_views(TINY))
    assert triplane.shape == (1, 3, TINY.channels, 16, 16)
    assert torch.equal(features.entering, seen[0])
    assert [torch.equal(a, b) for a, b in zip(features.blocks, seen[1:])] == [True, True]


@pytest.mark.parametrize("canonical", [False, True])
def test_lim_depends_on_source_target_and_alpha(canonical):
    torch.manual_seed(0)
    lrm, lim = LRM(TINY, canonical), LIM(TINY, canonical)
    lim.initialise_from(lrm, LRM(TINY) if canonical else None)

    def answer(source_shift, target_shift, alpha):
        _, features = lrm(ball_views(TINY, canonical=canonical, shift=source_shift))
        source = ball_views(TINY, shift=source_shift) if canonical else None
        condition = lim.condition(ball_views(TINY, shift=target_shift), source)
        return lim(features, condition, torch.tensor([alpha]))[0]

    base = answer(0.0, 0.2, 0.3)
    assert torch.equal(base, answer(0.0, 0.2, 0.3))
    for other in (answer(0.1, 0.2, 0.3), answer(0.0, 0.1, 0.3), answer(0.0, 0.2, 0.6)):
        assert (other - base).abs().max() > 1e-4


def test_several_alphas_at_once_equal_one_at_a_time():
    torch.manual_seed(0)
    lrm, lim = LRM(TINY).eval(), LIM(TINY).eval()
    _, features = lrm(ball_views(TINY))
    condition = lim.condition(ball_views(TINY, shift=0.2))
    together, _ = lim(features, condition, torch.tensor([0.25, 0.75]))
    for i, alpha in enumerate((0.25, 0.75)):
        alone, _ = lim(features, condition, torch.tensor([alpha]))
        torch.testing.assert_close(together[i], alone[0], atol=1e-5, rtol=1e-4)


def test_lim_reads_its_own_features():
    torch.manual_seed(0)
    lrm, lim = LRM(TINY), LIM(TINY)
    _, features = lrm(ball_views(TINY))
    condition = lim.condition(ball_views(TINY, shift=0.2))
    _, carried = lim(features, condition, torch.tensor([0.4]))
    again, _ = lim(carried, condition, torch.tensor([0.5]))
    assert len(carried.blocks) == TINY.lim_blocks and torch.isfinite(again).all()
    again.sum().backward()
    assert lim.join_alpha.weight.grad.abs().sum() > 0


def test_initialised_from_lrm_as_in_appendix_b():
    lrm, lim = LRM(TINY), LIM(TINY)
    lim.initialise_from(lrm)
    for block, source in zip(lim.blocks, lrm.blocks[1:]):
        for mine, theirs in (
            (block.feature_attention, source.self_attention),
            (block.image_attention, source.image_attention),
        ):
            assert torch.equal(mine.query.weight, theirs.query.weight) and mine.query.weight is not theirs.query.weight


@pytest.mark.parametrize("alpha", [-0.01, 1.01])
def test_alpha_outside_the_interval(alpha):
    lrm, lim = LRM(TINY), LIM(TINY)
    _, features = lrm(ball_views(TINY))
    with pytest.raises(LimError, match="interval from 0 to 1"):
        lim(features, lim.condition(ball_views(TINY)), torch.tensor([alpha]))


def test_features_of_another_network_are_refused():
    lim = LIM(TINY)
    stream = torch.zeros(1, 48, 64)
    with pytest.raises(LimError, match="another reconstructor"):
        lim(Features(stream, [stream, stream]), lim.condition(ball_views(TINY)), torch.tensor([0.5]))


def test_keyframes_of_different_rigs_are_refused():
    lim = LIM(TINY, canonical=True)
    views = ball_views(TINY)
    fewer = type(views)(*(getattr(views, n)[:, :3] for n in views.__dataclass_fields__))
    with pytest.raises(LimError, match="different numbers of views"):
        lim.condition(views, fewer)


def test_the_twin_without_content_says_that_nothing_moves():
    """Canonical coordinates are relative to the points that carry them, on the way in and on the way out."""
    torch.manual_seed(0)
    model = LRM(TINY, canonical=True)
    still, moved = (ball_views(TINY, canonical=True, shift=shift) for shift in (0.0, 0.2))
    assert not still.with_displacement().content.any()
    displacement = moved.with_displacement().content
    torch.testing.assert_close(displacement, torch.tensor([-0.2, 0, 0]) * moved.alpha[..., None])
    points = torch.rand(1, 50, 3) * 2 - 1
    planes, _ = model(moved)
    assert (model.decoder(planes, points)[1] - points).abs().max() > 1e-3
    model.decoder.forget_content()
    assert torch.equal(model.decoder(planes, points)[1], points)


def test_untrained_the_twin_sees_the_target_as_if_it_had_always_been_there():
    """Its evidence at α = 1 is what LRM̄ makes of the target's shape with nothing moved; the target's colours are not in it."""
    torch.manual_seed(0)
    lrm, lim = LRM(TINY, canonical=True), LIM(TINY, canonical=True)
    lim.initialise_from(lrm, LRM(TINY))
    source, target = ball_views(TINY), ball_views(TINY, shift=0.2)
    _, features = lrm(source.with_content(source.position))
    _, ends = lrm(target.with_content(target.position))
    _, carried = lim(features, lim.condition(target, source), torch.tensor([1.0]))
    torch.testing.assert_close(carried.planes, ends.planes)
    painted = target.with_content(1 - target.content)
    assert torch.equal(lim.condition(painted, source)[1], lim.condition(target, source)[1])


def test_any_number_of_views():
    model = LRM(TINY)
    views = ball_views(TINY)
    two = type(views)(*(getattr(views, n)[:, :2] for n in views.__dataclass_fields__))
    assert torch.isfinite(model(two)[0]).all()


def test_the_paper_form_has_no_evidence():
    plain = dataclasses.replace(TINY, evidence=False)
    model, lim = LRM(plain), LIM(plain)
    lim.initialise_from(model)
    one, two = (model(ball_views(plain, shift=s))[0] for s in (0.0, 0.3))
    torch.testing.assert_close(one, two)  # position maps are not looked at


def test_an_untrained_triplane_is_nearly_empty():
    torch.manual_seed(0)
    model = LRM(config.nano())
    triplane, _ = model(ball_views(config.nano()))
    density, _ = model.decoder(triplane, torch.rand(1, 4000, 3) * 2 - 1)
    assert density.mean() < 1.0


def test_a_wrong_shape_is_noticed():
    """The canary: without it, nobody would see that the shapes in the signatures are no longer checked."""
    from lim_core.networks.triplane import sample_planes

    with pytest.raises(TypeCheckError):
        sample_planes(torch.zeros(1, 2, 4, 8, 8), torch.zeros(1, 5, 3))


# ---- checkpoints
def test_saved_and_loaded_are_equal(tiny_weights):
    for network in config.NETWORKS:
        for part in ("", "head", "encoder", *(["decoder"] if network.startswith("lrm") else [])):
            model = checkpoint.load(tiny_weights / network, network)
            if part:
                with torch.no_grad():
                    for parameter in getattr(model, part).parameters():
                        parameter.mul_(1.5)
            difference = checkpoint.replay_golden(tiny_weights / network, network, model)
            assert (difference > 1e-2) if part else (difference < 1e-4), part


def test_shards_stay_below_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 40_000)
    model = LRM(TINY)
    checkpoint.save(tmp_path, "lrm", model.eval(), {})
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    loaded = checkpoint.load(tmp_path, "lrm")
    torch.testing.assert_close(loaded.tokens, model.tokens, atol=1e-3, rtol=1e-3)


def test_broken_checkpoints_are_named(tmp_path, tiny_weights):
    def copy(name):
        folder = tmp_path / name
        folder.mkdir()
        for file in (tiny_weights / "lrm").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder

    def refusal(folder, network="lrm"):
        with pytest.raises(LimError) as caught:
            checkpoint.load(folder, network)
        return caught.value

    assert refusal(tmp_path / "nowhere").code == "weights_missing"
    truncated = copy("truncated")
    file = truncated / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert refusal(truncated).code == "weights_broken" and "model.safetensors" in refusal(truncated).message
    assert "lrm" in refusal(copy("other"), "lim").message
    unknown = copy("unknown")
    data = json.loads((unknown / "config.json").read_text()) | {"colour": 3}
    (unknown / "config.json").write_text(json.dumps(data))
    assert "colour" in refusal(unknown).message
    larger = copy("larger")
    data = json.loads((larger / "config.json").read_text()) | {"width": 64}
    (larger / "config.json").write_text(json.dumps(data))
    assert refusal(larger).code == "weights_broken"


def test_a_preset_with_some_sizes_changed():
    base = config.nano()
    other = config.changed(base, ["blocks=4", "evidence=false"])
    assert (other.blocks, other.evidence, other.width) == (4, False, base.width)
    for wrong in ("depth=3", "blocks=two", "evidence=1", "image_size=100", "width=100", "lim_blocks=6", "heads=0"):
        with pytest.raises(LimError, match=wrong.split("=")[0]):
            config.changed(base, [wrong])


def test_a_reconstructor_hands_out_the_features_of_fewer_blocks():
    lrm, views = LRM(TINY).eval(), ball_views(TINY)
    with torch.no_grad():
        (planes, two), (same, one) = lrm(views), lrm.with_lim_blocks(1)(views)
    assert torch.equal(planes, same) and (lrm.config.lim_blocks, len(two.blocks), len(one.blocks)) == (2, 2, 1)
    assert torch.equal(one.entering, two.blocks[0]) and torch.equal(one.blocks[0], two.blocks[1])


def test_four_small_networks_leave_room_in_what_may_be_shipped():
    with torch.device("meta"):
        networks = [checkpoint.build(name, config.small()) for name in config.NETWORKS]
    assert (
        sum(p.numel() for network in networks for p in network.parameters()) * 2 < 87e6
    )  # fp16; 100 MB with goldens and multiview


def test_anchors_hold_the_ends_and_what_does_not_move():
    torch.manual_seed(0)
    lrm, lim = LRM(TINY).eval(), LIM(TINY).eval()
    with torch.no_grad():
        (start, features), (end, _) = lrm(ball_views(TINY)), lrm(ball_views(TINY, shift=0.3))
        condition = lim.condition(ball_views(TINY, shift=0.3))
        alphas = torch.tensor([0.0, 0.5, 1.0])
        free = lim(features, condition, alphas)[0]
        ends = torch.tensor(ENDS)
        held = Anchors(lim(features, condition, ends)[0], start, end).hold(free, alphas)
        torch.testing.assert_close(held[[0, 2]], torch.cat([start, end]), atol=1e-5, rtol=1e-4)
        far = start.clone()
        far[..., :8] += 50 * torch.randn_like(far[..., :8])  # half of the planes changes beyond recognition
        local = Anchors(lim(features, condition, ends)[0], start, far)
        change, wanted = (local.hold(free, alphas) - free)[1], local.missing.mean(0)
        torch.testing.assert_close(change[..., 11:], wanted[..., 11:], atol=1e-5, rtol=1e-4)
        assert (change[..., :8].abs() < 0.1 * wanted[..., :8].abs() + 1e-5).all()
        same = lim.condition(ball_views(TINY))
        still = lim(features, same, alphas)[0]
        rest = Anchors(lim(features, same, ends)[0], start, start).hold(still, alphas)[1]
    torch.testing.assert_close(rest - start[0], still[1] - (still[0] + still[2]) / 2, atol=1e-4, rtol=1e-3)
