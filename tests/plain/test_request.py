# SPDX-License-Identifier: GPL-3.0-or-later
"""request.json: what is asked for comes back equal, and every flaw is named."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from lim_core.shared import protocol, request  # noqa: E402
from lim_core.shared.errors import LimError  # noqa: E402

GOOD = request.Request(keyframes=(1.0, 9.0, 17.5), inbetweens=3, name="Kätzchen 猫", weights="/ein Ordner/w")


def test_it_comes_back_equal(tmp_path):
    request.write(GOOD, tmp_path)
    assert request.read(tmp_path) == GOOD
    assert [path.name for path in tmp_path.iterdir()] == [protocol.REQUEST_FILE], "no temporary file stays"


def test_frames_and_intervals_agree():
    frames, pairs = GOOD.frames(), GOOD.intervals()
    assert len(frames) == len(pairs) == 2 * 4 + 1
    assert frames == sorted(frames)
    for k, keyframe in enumerate(GOOD.keyframes):
        assert frames[k * (GOOD.inbetweens + 1)] == keyframe
    for frame, (k, alpha) in zip(frames, pairs):
        first, last = GOOD.keyframes[k], GOOD.keyframes[k + 1]
        assert 0 <= alpha <= 1 and frame == pytest.approx(first + alpha * (last - first))
    assert pairs[0] == (0, 0.0) and pairs[-1] == (1, 1.0)


def test_without_inbetweens_the_frames_are_the_keyframes():
    assert dataclasses.replace(GOOD, inbetweens=0).frames() == list(GOOD.keyframes)


def test_only_a_smaller_number_of_keys_reduces():
    assert [dataclasses.replace(GOOD, max_keys=n).reduced() for n in (0, 2, 8, 9, 10)] == [
        False,
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"keyframes": ()}, "one_keyframe", "no keyframes"),
        ({"keyframes": (4.0,)}, "one_keyframe", "only one"),
        ({"keyframes": (1.0, 1.0)}, "keyframe_order", "Keyframe 1 is listed twice"),
        ({"keyframes": (1.0, 9.0, 4.5)}, "keyframe_order", "4.5"),
        ({"keyframes": (1.0, float("nan"))}, "bad_request", "not a number"),
        ({"keyframes": (1.0, float("inf"))}, "bad_request", "not a number"),
        ({"inbetweens": -1}, "bad_request", "inbetweens"),
        ({"smoothness": 1.5}, "bad_request", "smoothness"),
        ({"smoothness": float("nan")}, "bad_request", "smoothness"),
        ({"max_keys": -1}, "bad_request", "max_keys"),
        ({"max_keys": 1}, "bad_request", "One shape key"),
        ({"image_size": 1}, "bad_request", "image_size"),
        ({"views": 2}, "bad_request", "views"),
        ({"device": "abacus"}, "bad_request", "abacus"),
        ({"template": "cube"}, "bad_request", "cube"),
        ({"source": "thoughts"}, "bad_request", "thoughts"),
        ({"world_to_model": ((1.0, 0.0), (0.0, 1.0))}, "bad_request", "4×4"),
        ({"origins": ((0.0, 0.0, 0.0),)}, "bad_request", "1 origins"),
        ({"origins": ((0.0, 0.0),) * 2}, "bad_request", "three finite numbers"),
        ({"protocol": protocol.VERSION + 1}, "backend_outdated", str(protocol.VERSION + 1)),
    ],
)
def test_each_flaw_has_its_code_and_names_its_value(changes, code, words):
    with pytest.raises(LimError) as raised:
        request.check(dataclasses.replace(GOOD, **changes))
    assert raised.value.code == code and words in raised.value.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "JSON"),
        ("{", "JSON"),
        ("[1]", "object"),
        ("{}", "keyframes"),
        ('{"keyframes": [1, 9], "keyfarmes": 3}', "keyfarmes"),
        ('{"keyframes": "1, 9"}', "keyframes"),
        ('{"keyframes": [1, null]}', "keyframes"),
        ('{"keyframes": [1, 9], "inbetweens": 2.5}', "inbetweens"),
        ('{"keyframes": [1, 9], "inbetweens": true}', "inbetweens"),
        ('{"keyframes": [1, 9], "fit": 1}', "fit"),
        ('{"keyframes": [1, 9], "name": 7}', "name"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, words):
    (tmp_path / protocol.REQUEST_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(LimError) as raised:
        request.read(tmp_path)
    assert raised.value.code == "bad_request" and words in raised.value.message


def test_a_folder_without_a_request_is_no_job(tmp_path):
    with pytest.raises(LimError) as raised:
        request.read(tmp_path)
    assert raised.value.code == "missing_file"


def test_a_bad_request_is_never_written(tmp_path):
    with pytest.raises(LimError):
        request.write(dataclasses.replace(GOOD, keyframes=(1.0,)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_field_survives_json():
    data = json.loads(request.to_json(GOOD))
    assert set(data) == {field.name for field in dataclasses.fields(request.Request)}
    assert request.from_json(json.dumps(data)) == GOOD


def test_a_quality_gives_the_sizes_and_leaves_the_rest():
    plain = request.Request(keyframes=(1.0, 2.0))
    draft = request.Request.for_quality("draft", keyframes=(1.0, 2.0))
    assert (draft.image_size, draft.views, draft.texture_size, draft.template_faces) == (256, 8, 512, 4000)
    sizes = {name: getattr(plain, name) for name in ("image_size", "views", "texture_size", "template_faces")}
    assert dataclasses.replace(draft, **sizes) == plain
    assert request.Request.for_quality(request.QUALITY, keyframes=(1.0, 2.0)) == plain, "the defaults are a quality too"
    assert request.Request.for_quality("high", keyframes=(), texture_size=64).texture_size == 64
    for name in request.QUALITIES:
        request.check(request.Request.for_quality(name, keyframes=(1.0, 2.0)))
    with pytest.raises(LimError, match="“superb” is not a quality") as told:
        request.Request.for_quality("superb", keyframes=(1.0, 2.0))
    assert told.value.code == "bad_request" and "draft, standard, high" in told.value.hint


def test_every_limit_is_of_a_field_and_holds():
    clip = request.Request(keyframes=(), source="video", video="a.mp4")
    scene = request.Request(keyframes=(1.0, 2.0))
    for limits, asked in ((request.LIMITS, scene), (request.VIDEO_LIMITS, clip)):
        for field, (low, high) in limits.items():
            assert low <= getattr(asked, field) <= high
            for value in (low - 1, high + 1):
                with pytest.raises(LimError, match=f"{field} is {value}"):
                    request.check(dataclasses.replace(asked, **{field: value}))


def test_the_installer_offers_the_same_qualities():
    """Its Python may lack numpy, which request.py needs: so it lists them itself."""
    text = (ROOT / "install" / "__main__.py").read_text(encoding="utf-8")
    assert f"choices=({', '.join(f'{chr(34)}{name}{chr(34)}' for name in request.QUALITIES)})" in text
    assert f'"--inbetweens", type=int, default={request.Request.inbetweens},' in text
