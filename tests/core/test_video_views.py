# SPDX-License-Identifier: GPL-3.0-or-later
"""The views that are made of a clip: geometry, the embedded diffusion, public pipelines, whole jobs, training."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

import clips
from lim_core.data import cache, sequences
from lim_core.job.reporter import Silent
from lim_core.networks.images import pixel_rays
from lim_core.shared import cameras, protocol, request, video_options
from lim_core.shared.errors import LimError
from lim_core.tracking import steady
from lim_core.video import adapters, body, multiview, splat, views
from lim_core.video.multiview import MultiviewPipeline, scheduler
from lim_core.video.network import MultiviewNetwork

ROOT = Path(__file__).resolve().parents[2]
SIZE = 32


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory) -> Path:
    """An untrained pipeline of a tiny size whose last layer is not zero."""
    torch.manual_seed(0)
    network = MultiviewNetwork(SIZE, (16, 24, 32), 2)
    torch.nn.init.normal_(network.out.weight, std=0.02)
    folder = tmp_path_factory.mktemp("views") / "pipeline"
    MultiviewPipeline(network.half(), scheduler()).save_pretrained(folder)
    return folder


def ball(size: int, radius: float = 0.6, centre=(0.0, 0.0, 0.0), elevation: float = 20.0):
    """Views [1, V, 5, S, S] of a ball, and the cameras."""
    camera, lens = (torch.from_numpy(x) for x in views.rig(elevation, size))
    origins, directions = pixel_rays(camera, lens, size)
    offset = origins - torch.tensor(centre)
    a, b = (directions**2).sum(-1), (offset * directions).sum(-1)
    inside = b**2 - a * ((offset**2).sum(-1) - radius**2)
    alpha = (inside > 0).float()
    depth = ((-b - inside.clamp_min(0).sqrt()) / a - cameras.DISTANCE) * alpha
    colour = 1 - alpha[:, None] * torch.tensor([0.2, 0.6, 0.9])[:, None, None]
    return torch.cat([colour, alpha[:, None], depth[:, None]], 1)[None], camera, lens


# ---- geometry ----------------------------------------------------------------------------------------------------------


def test_a_disc_inflates_to_a_ball():
    made, _, _ = ball(64)
    half = splat.inflate(made[0, 0, 3])
    assert float(half.max()) == pytest.approx(0.6, rel=0.12)
    assert half[0, 0] == 0 and float(half[32, 32 + 13]) < float(half[32, 32])


def test_points_are_seen_where_the_cameras_see_them():
    made, camera, lens = ball(64)
    picture = torch.cat([made[None, :, :, :4] * 2 - 1, made[None, :, :, 4:]], 3)
    seen = splat.exchange(picture, camera[None], lens[None])
    cover = seen[0, 0, :, 4] > 0.5
    true = torch.nn.functional.avg_pool2d(made[0, :, 3:4], 2)[:, 0] > 0.5
    assert float((cover & true).sum() / (cover | true).sum()) > 0.85
    both = cover & (torch.nn.functional.avg_pool2d(made[0, :, 3:4], 2)[:, 0] == 1)
    depth = torch.nn.functional.avg_pool2d(made[0, :, 4:], 2)[:, 0]
    assert float((seen[0, 0, :, 3] - depth)[both].abs().mean()) < 0.03


def test_nearer_points_hide_others():
    camera, lens = (torch.from_numpy(x)[None, :1] for x in cameras.job_cameras(8, 4))
    forward = camera[0, 0, :3, 2]
    points = torch.stack([-0.5 * forward, 0.5 * forward])[None]
    seen = splat.splat(points, torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]]]), torch.ones(1, 2), camera, lens, 8)
    hit = seen[0, 0, :, seen[0, 0, 4] > 0.5]
    assert hit.shape[1] == 1 and hit[:3, 0].tolist() == [1, 0, 0] and float(hit[3, 0]) == pytest.approx(-0.5, abs=1e-4)


def test_views_that_agree_are_left_alone():
    made, camera, lens = ball(64)
    agreed = views.agree(made, camera, lens)
    assert float(((agreed[:, :, 3] > 0.5) != (made[:, :, 3] > 0.5)).float().mean()) < 0.01
    solid = (agreed[:, :, 3] > 0.5) & (made[:, :, 3] > 0.5)
    assert float((agreed - made)[:, :, 4][solid].abs().mean()) < 0.02


def test_the_clip_overrules_what_was_made_up():
    made, camera, lens = ball(64)
    wrong = made.clone()
    wrong[0, 1, 3] = 1.0  # a side view full of object
    wrong[0, 2, 3] = 0.0  # a back view without any
    wrong[0, 2, :3] = 1.0
    agreed = views.agree(wrong, camera, lens)
    assert torch.equal(agreed[:, 0], made[:, 0])
    side, true = agreed[0, 1, 3] > 0.5, made[0, 1, 3] > 0.5
    assert side.float().mean() < 0.6 and side[true].float().mean() > 0.97, "only what the clip's silhouette allows"
    assert (agreed[0, 2, 3] > 0.5).sum() > 0.5 * (made[0, 2, 3] > 0.5).sum(), "its silhouette is seen from behind"


def test_enlarged_views_hold_the_clip_itself_and_depth_exactly_where_it_is():
    made, camera, _ = ball(32)
    big, _, _ = ball(128)
    clip_rgba = (torch.cat([big[:, 0, :3], big[:, 0, 3:4]], 1).permute(0, 2, 3, 1) * 255).round().byte().numpy()
    rgba, depth = views.enlarge(made, clip_rgba, camera.numpy())
    assert rgba.shape == (1, 4, 128, 128, 4) and np.array_equal(rgba[:, 0], clip_rgba)
    assert np.array_equal(depth > 0, rgba[..., 3] > 127)
    true = big[0, :, 4].numpy() + cameras.DISTANCE
    solid = (depth[0] > 0) & (big[0, :, 3].numpy() > 0)
    assert np.abs(depth[0] - true)[solid].mean() < 0.03
    assert (solid.sum((1, 2)) / (big[0, :, 3] > 0).sum((1, 2)).numpy() > 0.93).all()


def as_capture(made, size: int = 96):
    """Views [1, V, 5, S, S] as the pictures and depths of a capture."""
    big = torch.nn.functional.interpolate(made[0, :1, :4], size=(size, size), mode="bilinear")
    cut = (big.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    camera, lens = views.rig(20.0, size)
    rgba, depth = views.enlarge(made, cut, camera)
    return rgba[0], depth[0], camera, lens


@pytest.mark.parametrize("flaw", ["none", "a view is empty", "a view is shifted"])
def test_the_body_is_what_most_views_see(flaw):
    made, _, _ = ball(64)
    if flaw == "a view is empty":
        made[0, 2, 3] = 0
    elif flaw == "a view is shifted":
        made[0, 1] = made[0, 1].roll(5, -1)
    rgba, depth, camera, lens = as_capture(made)
    vertices, faces = body.body(rgba, depth, camera, lens)
    radius = np.linalg.norm(vertices, axis=1)
    assert abs(np.median(radius) - 0.6) < 0.03 and (np.abs(radius - 0.6) < 0.12).mean() > 0.9
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), 1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all(), "closed"
    every, lenses = cameras.job_cameras(96, 8, 4)
    pictures, deep = body.capture(rgba, depth, every, lenses)
    assert np.array_equal(pictures[0], rgba[0]) and (deep[0] > 0)[rgba[0, ..., 3] > 127].mean() > 0.95
    for seen, far in zip(pictures[1:], deep[1:]):
        assert np.array_equal(seen[..., 3] > 0, far > 0) and (far > 0).sum() > 0.8 * (deep[0] > 0).sum()
        assert np.abs(seen[far > 0, :3].mean(0) - (204, 102, 26)).max() < 25, "unseen sides take the nearest colour"


# ---- the embedded pipeline ---------------------------------------------------------------------------------------------


def frames_of(count: int) -> torch.Tensor:
    cut = np.stack([clips.frame(3 * i, 64, 64) for i in range(count)])
    return views.shrink(cut, SIZE)


def test_the_pipeline_is_a_diffusers_pipeline_of_safetensors(pipeline_folder):
    index = json.loads((pipeline_folder / "model_index.json").read_text())
    assert index["_class_name"] == "MultiviewPipeline" and index["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert not list(pipeline_folder.rglob("*.bin")) and list(pipeline_folder.rglob("*.safetensors"))


def test_saved_and_loaded_it_answers_alike_and_asks_no_network(pipeline_folder, monkeypatch):
    def refuse(*args, **fields):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    one, two = adapters.load(pipeline_folder), adapters.load(pipeline_folder)
    made = one(frames_of(2), 20.0)
    assert made.shape == (2, 4, 5, SIZE, SIZE) and torch.equal(made, two(frames_of(2), 20.0))
    assert torch.allclose(made[:, 0, :4], frames_of(2), atol=1e-5), "the first view is the clip"
    assert (made[:, :, 4][made[:, :, 3] <= 0.5] == 0).all()


def test_the_second_look_is_told_what_the_first_saw(pipeline_folder):
    pipeline, told = adapters.load(pipeline_folder).pipeline, []
    pipeline.network.register_forward_hook(lambda module, given, made: told.append(given[5]))
    camera, lens = (torch.from_numpy(x) for x in views.rig(20.0, SIZE))
    pipeline(frames_of(2), camera, lens)
    assert len(told) == 2 and (told[0] == 0).all() and (told[1] != 0).any()


def test_what_is_expected_becomes_what_is_there():
    """A pixel that is half the object is the object, in the object's colour, and no colour is invented."""
    made, _, _ = ball(SIZE)
    expected = made.clone()
    unsure = expected[:, 1:, 3] > 0.5
    for channel in range(3):  # seen as half of it on white, a little too dark
        expected[:, 1:, channel] = torch.where(unsure, made[:, 1:, channel] * 0.4 + 0.6 - 0.1, expected[:, 1:, channel])
    expected[:, 1:, 3] = 0.4 * unsure
    decided = multiview.decide(expected)
    assert torch.equal(decided[:, 0], made[:, 0])
    assert torch.equal(decided[:, 1:, 3] > 0.5, unsure)
    alpha = decided[:, 1:, 3:4]
    own = (decided[:, 1:, :3] - 1 + alpha) / alpha.clamp_min(1e-3)
    clip = made[0, 0, :3][:, made[0, 0, 3] > 0.5]
    for channel in range(3):
        shown = own[:, :, channel][unsure]
        assert shown.min() > clip[channel].min() - 0.02 and shown.max() < clip[channel].max() + 0.02
    faint = multiview.decide(torch.cat([made[:, :1], 0.3 * made[:, 1:]], 1))
    assert not (faint[:, 1:, 3] > 0.5).any()


def test_what_a_network_paints_from_pixel_to_pixel_is_evened_out():
    made, _, _ = ball(SIZE)
    random = torch.Generator().manual_seed(0)
    solid = made[:, :, 3:4] > 0.5
    made[:, :, :3] = torch.where(solid, 0.5, made[:, :, :3])
    made[:, :1, :3] = torch.where(solid[:, :1], torch.rand(made[:, :1, :3].shape, generator=random), made[:, :1, :3])
    grain = 0.1 * torch.randn(made[:, 1:, :3].shape, generator=random)
    made[:, 1:, :3] += grain * solid[:, 1:]
    middle = multiview.decide(made)[:, 1:, :3, SIZE // 2 - 1 : SIZE // 2 + 2, SIZE // 2 - 1 : SIZE // 2 + 2]
    assert (middle - 0.5).square().mean().sqrt() < 0.05, "half of the grain, at most, is left"


def test_frames_and_views_know_of_each_other(pipeline_folder):
    """Attention over frames and over views: what is done to one frame or view is felt in the others."""
    torch.manual_seed(0)
    network = MultiviewNetwork(SIZE, (16, 24, 32), 2)
    for layer in (network.out, *(a.out for a in network.attention), *(b.conv2 for b in network.middle)):
        torch.nn.init.normal_(layer.weight, std=0.2)
    _, camera, lens = ball(SIZE)
    noisy = torch.randn(1, 3, 4, 5, SIZE, SIZE)
    rest = (torch.tensor([0.5]), torch.zeros(1, 4, 6, SIZE, SIZE), torch.zeros(1, 3, 4, SIZE, SIZE))
    rest += (torch.zeros(1, 3, 4, 5, SIZE // 2, SIZE // 2),) * 2
    with torch.no_grad():
        before = network(noisy, *rest)
        changed = noisy.clone()
        changed[0, 0, 1] += 1
        after = network(changed, *rest)
    felt = (after - before).abs().amax((3, 4, 5))[0]
    assert (felt > 1e-6).all() and felt[0, 1] == felt.max()
    with torch.no_grad():
        order = torch.tensor([2, 0, 1])
        assert torch.allclose(network(noisy[:, order], *rest), before[:, order], atol=1e-4), "frames have no order"


def test_a_folder_without_a_pipeline_is_named(tmp_path, pipeline_folder):
    with pytest.raises(LimError) as raised:
        adapters.load(tmp_path)
    assert raised.value.code == "weights_missing" and str(tmp_path) in raised.value.message
    (tmp_path / "model_index.json").write_text('{"_class_name": "TextToImagePipeline"}')
    with pytest.raises(LimError) as raised:
        adapters.load(tmp_path)
    assert raised.value.code == "weights_broken" and "TextToImagePipeline" in raised.value.message
    (tmp_path / "model_index.json").write_text((pipeline_folder / "model_index.json").read_text())
    with pytest.raises(LimError) as raised:
        adapters.load(tmp_path)
    assert raised.value.code == "weights_broken"


# ---- public pipelines --------------------------------------------------------------------------------------------------

CODE = '''
import dataclasses
import numpy as np
import torch
from PIL import Image
from diffusers import DiffusionPipeline


@dataclasses.dataclass
class Output:
    NAME: list


class CLASS(DiffusionPipeline):
    """Paints every view in a colour of its own with a tiny random network's help, on grey."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def view(self, picture, index, size=64):
        small = torch.from_numpy(np.asarray(picture.convert("RGB").resize((16, 16)))).permute(2, 0, 1)[None] / 255
        self.scheduler.set_timesteps(2)
        x = small
        for time in self.scheduler.timesteps:
            x = self.scheduler.step(self.unet(x, time).sample, time, x).prev_sample
        page = np.full((size, size, 3), 128, np.uint8)
        page[16:48, 20:44] = (30 * index, 200 - 20 * index, int(abs(float(x.mean())) * 7) % 60)
        return Image.fromarray(page)

    def __call__(self, ARGUMENT):
        BODY
'''
BODIES = {
    "Zero123PlusPipeline": ("images", "image", """
        tiles = [np.asarray(self.view(image, i)) for i in range(6)]
        rows = [np.concatenate(tiles[r * 2 : r * 2 + 2], 1) for r in range(3)]
        return Output([Image.fromarray(np.concatenate(rows))])"""),
    "MVAdapterI2MVSDXLPipeline": ("images", "control_image", """
        return Output([self.view(control_image, i) for i in range(6)])"""),
    "StableVideo4DPipeline": ("frames", "frames", """
        return Output([[self.view(frame, v) for frame in frames] for v in range(8)])"""),
}  # fmt: skip


@pytest.mark.parametrize("name", list(adapters.LAYOUTS))
def test_public_pipelines_fit_behind_the_interface(tmp_path, name):
    """A tiny random model with that pipeline's class, arguments and form of answer."""
    from diffusers import DDIMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    field, argument, body = BODIES[name]
    code = (
        CODE.replace("NAME", field).replace("CLASS", name).replace("ARGUMENT", argument).replace("BODY", body.strip())
    )
    unet.save_pretrained(tmp_path / "unet")
    DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    (tmp_path / "pipeline.py").write_text(code)
    index = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDIMScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name, **index}))
    model = adapters.load(tmp_path)
    made = model(views.shrink(np.stack([clips.frame(i, 64, 64) for i in range(2)]), model.size), 5.0)
    assert made.shape == (2, 4, 5, model.size, model.size)
    camera, _ = model.cameras(5.0, model.size)
    layout = adapters.LAYOUTS[name]
    for view, index in enumerate(layout.used, 1):
        height = layout.elevations[index] if layout.elevations else 5.0
        assert np.allclose(camera[view], cameras.look_at(layout.azimuths[index], height))
        solid = made[0, view, 3] > 0.5
        assert solid[model.size // 2, model.size // 2] and not solid[2, 2], "its grey ground is taken away"
        red = float(made[0, view, 0][solid].median())
        assert red == pytest.approx(30 * index / 255, abs=0.03), "each picture stands for its own camera"


# ---- whole jobs --------------------------------------------------------------------------------------------------------


def video_job(folder: Path, clip: Path, tiny_weights: Path, pipeline_folder: Path, **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    asked = request.Request(
        keyframes=(), source="video", video=str(clip), video_step=3, image_size=64, rig_views=4, views=4, template_faces=300,
        texture_size=64, weights=str(tiny_weights), views_model=str(pipeline_folder), **changes,
    )  # fmt: skip
    request.write(asked, folder)
    return folder


def run(job: Path, cancel_at: str = "") -> tuple[int, list[dict], str]:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "lim_core", "run", str(job), "--follow-stdin"], cwd=ROOT, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    events = []
    for line in process.stdout:
        events.append(protocol.decode_event(line))
        if cancel_at and events[-1].get("label") == cancel_at:
            process.stdin.write(protocol.encode_command("cancel") + "\n")
            process.stdin.flush()
    errors = process.stderr.read()
    process.stdin.close()
    return process.wait(60), events, errors


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_weights, pipeline_folder):
    folder = tmp_path_factory.mktemp("video jobs")
    clip = clips.film(folder / "ein Ball.mp4", [clips.over(clips.frame(i)) for i in range(7)])
    job = video_job(folder / "job", clip, tiny_weights, pipeline_folder)
    code, events, errors = run(job, cancel_at="generated views")
    assert code == protocol.EXIT_CANCELLED, errors
    assert events[-1] == {"event": "cancelled"} and (job / protocol.VIEWS_PREVIEW).is_file()
    code, resumed, errors = run(job)
    assert code == 0, errors
    return job, events, resumed


def test_a_job_is_cancelled_at_the_preview_and_goes_on_from_there(finished):
    job, events, resumed = finished
    stages = [(e["stage"], e["index"], e["count"]) for e in resumed if e["event"] == "stage"]
    assert [s for s, _, _ in stages] == [*protocol.VIDEO_STAGES, *protocol.STAGES]
    assert [i for _, i, _ in stages] == list(range(9)) and {c for _, _, c in stages} == {9}
    for told in (events, resumed):
        previews = [e["path"] for e in told if e["event"] == "preview"]
        assert previews[:2] == [protocol.CLIP_PREVIEW, protocol.VIEWS_PREVIEW]
    fractions = [e["fraction"] for e in resumed if e["event"] == "progress"]
    assert fractions == sorted(fractions) and fractions[-1] == pytest.approx(1)
    seconds = json.loads((job / protocol.RESULT_FILE).read_text())["seconds"]
    assert "views" not in seconds and "import" not in seconds, "they were kept"


def test_the_result_has_the_clips_frames(finished):
    job, _, _ = finished
    asked = request.read(job)
    assert asked.keyframes == (1, 4, 7) and asked.inbetweens == 2 and asked.frames() == [1, 2, 3, 4, 5, 6, 7]
    with np.load(job / protocol.RESULT_ARRAYS) as arrays:
        positions = arrays["positions"]
    assert len(positions) == 7 and np.isfinite(positions).all()
    with np.load(job / "state" / "fit.npz") as fit, np.load(job / protocol.CAMERAS_FILE) as seen:
        even = steady.steady(fit["keyframes"], asked.keyframes, seen["camera_to_world"][0])
        assert np.abs(even - fit["keyframes"]).max() > 1e-4, "they do not move evenly by themselves"
    np.testing.assert_allclose(positions[::3], even, atol=1e-5)
    assert (job / protocol.TEXTURE_FILE).is_file()


def test_a_changed_setting_makes_the_views_again(finished):
    job, _, _ = finished
    before = {p.name: p.stat().st_mtime_ns for p in (job / "capture").iterdir()}
    data = json.loads((job / protocol.REQUEST_FILE).read_text())
    (job / protocol.REQUEST_FILE).write_text(json.dumps({**data, "elevation": 5.0}))
    code, events, errors = run(job, cancel_at="generated views")
    assert code == protocol.EXIT_CANCELLED, errors
    after = {p.name: p.stat().st_mtime_ns for p in (job / "capture").iterdir()}
    assert set(before) == set(after) and all(after[n] > before[n] for n in before if n.endswith((".png", ".npz")))


def test_the_command_line_makes_the_request(tmp_path):
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("job")
    video_options.add_arguments(parser.add_argument_group("a video"))
    args = parser.parse_args([str(tmp_path / "j"), "--video", "clip.mp4", "--step", "2", "--quality", "draft"])
    video_options.write_request(args)
    asked = request.read(tmp_path / "j")
    assert asked.video == os.path.abspath("clip.mp4") and asked.video_step == 2 and asked.image_size == 256
    assert asked.weights == "" and asked.name == "clip"


def test_the_source_view_dominates_the_texture(finished, monkeypatch):
    from lim_core.job import capture as captures
    from lim_core.job.artefacts import Fitted
    from lim_core.job.state import State
    from lim_core.mesh import texture
    from lim_core.stages import of_mesh

    seen = {}
    monkeypatch.setattr(texture, "bake", lambda *args, trust, **more: seen.update(trust=trust))
    asked = request.read(finished[0])
    monkeypatch.setattr(texture, "unwrap", lambda *args: np.zeros((1, 3, 2)))
    fitted = Fitted.load(State(finished[0]), "fit", str(np.load(finished[0] / "state/fit.npz")["key"]))
    of_mesh.bake_texture(asked, captures.read(finished[0], asked), fitted, None, None, None, Silent())
    assert seen["trust"][0] == 1 and (seen["trust"][1:] < 0.2).all()


# ---- training ----------------------------------------------------------------------------------------------------------


def test_training_learns_and_goes_on_where_it_was(tmp_path, monkeypatch):
    from lim_core.data import procedural
    from lim_core.mesh import packs
    from lim_core.training import logs
    from lim_core.training import multiview as training

    pack = procedural.make_object(3)
    path = tmp_path / "packs" / "thing.npz"
    path.parent.mkdir()
    packs.save(pack, path)
    monkeypatch.setattr(sequences, "SHARD", 4)
    sequences.fill([path], tmp_path / "cache", size=SIZE, sequences=8, seed=0, supersample=1)
    tiny = training.MultiviewConfig(SIZE, (16, 24, 32), 2)
    monkeypatch.setitem(training.PRESETS, "nano", tiny)
    monkeypatch.setattr(training, "LOG_SECONDS", 0.0)
    common = ["multiview", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "run"), "--held-out", "1"]
    common += ["--warmup", "5", "--lr", "3e-3", "--threads", "1", "--device", "cpu"]
    common += ["--single", "0", "--pure-noise", "1"]
    assert training.main([*common, "--batch", "2", "--steps", "24"]) == 0
    losses = [float(row["loss"]) for row in logs.read(tmp_path / "run" / "log.csv")]
    assert len(losses) == 24 and np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6])
    assert training.main([*common, "--batch", "2", "--steps", "26"]) == 0
    assert [int(row["step"]) for row in logs.read(tmp_path / "run" / "log.csv")] == list(range(1, 27))
    model = adapters.load(tmp_path / "run" / "checkpoint")
    assert model.size == SIZE and list((tmp_path / "run" / "samples").glob("*.png"))
    with pytest.raises(LimError):
        training.main([*common, "--batch", "3", "--steps", "30"])
    before = {k: v.clone() for k, v in model.pipeline.network.state_dict().items()}
    start = ["--start", str(tmp_path / "run" / "checkpoint"), "--lr", "1e-9", "--steps", "1", "--batch", "2"]
    assert training.main([*common, *start, "--out", str(tmp_path / "second")]) == 0
    after = adapters.load(tmp_path / "second" / "checkpoint").pipeline.network.state_dict()
    assert all((after[name] - tensor).abs().max() < 1e-3 for name, tensor in before.items())
    monkeypatch.setitem(training.PRESETS, "nano", training.MultiviewConfig(SIZE, (16, 24, 40), 2))
    for folder, part in ((tmp_path / "run" / "checkpoint", "widths"), (tmp_path / "nowhere", "no pipeline")):
        with pytest.raises(LimError, match=part):
            training.main([*common, "--out", str(tmp_path / "third"), "--steps", "1", "--start", str(folder)])


def test_batches_are_clips_or_as_many_single_frames(tmp_path, monkeypatch):
    from lim_core.data import procedural
    from lim_core.mesh import packs
    from lim_core.training import multiview as training

    path = tmp_path / "thing.npz"
    packs.save(procedural.make_object(3), path)
    monkeypatch.setattr(sequences, "SHARD", 2)
    sequences.fill([path], tmp_path / "cache", size=SIZE, sequences=2, seed=0, supersample=1)
    kept, rng = cache.Cache(tmp_path / "cache"), np.random.default_rng(0)
    clips = training.draw(kept, 2, 3, SIZE, 0.0, rng)
    singles = training.draw(kept, 2, 3, SIZE, 1.0, rng)
    assert clips["pictures"].shape == (2, 3, 4, 6, SIZE, SIZE) and singles["pictures"].shape == (6, 1, 4, 6, SIZE, SIZE)
    for batch in (clips, singles):  # the first view stands at azimuth 0
        assert batch["camera"][:, 0, 0, 3].abs().max() < 1e-5 and (batch["camera"][:, 0, 1, 3] < 0).all()
    views = kept.sequence(0)
    half = training.pictures(views, 1, [0, 2], SIZE // 2)
    whole = training.pictures(views, 1, [0, 2], SIZE)
    means = whole[:, :4].reshape(2, 4, SIZE // 2, 2, SIZE // 2, 2).mean((3, 5))
    np.testing.assert_allclose(half[:, :4], means, atol=1e-6)
