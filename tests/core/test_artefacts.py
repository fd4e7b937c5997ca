# SPDX-License-Identifier: GPL-3.0-or-later
"""What stages hand on: it survives being kept, and what is not it counts as absent."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from lim_core.job import artefacts
from lim_core.job.artefacts import (
    Artefact,
    Fitted,
    Found,
    Generated,
    Imported,
    Interpolated,
    Reconstruction,
    Surfaces,
    Template,
    Textured,
    Traced,
)
from lim_core.job.state import State

RNG = np.random.default_rng(0)


def floats(*shape: int, kind: type = np.float32) -> np.ndarray:
    return RNG.normal(size=shape).astype(kind)


TEMPLATE = Template(floats(5, 3), np.array([[0, 1, 2], [2, 3, 4]], np.int32), home=1)
TRACED = Traced(floats(4, 5, 3), floats(4, 5))
CLIP = Imported(
    rgba=np.arange(2 * 8 * 8 * 4, dtype=np.uint8).reshape(2, 8, 8, 4), box=np.array([-3.5, 2.0, 40.0]),
    resolution=np.array([96, 64]), rotation=90, pixel_aspect=1.25, fps=23.976, first=3, last=9, count=12, step=4, last_step=2,
    times=np.array([0.1, 0.3]), foreground="key", pictures=np.array(["Bild ä.png", "b.png"]), folder="/clips/für mich",
    warnings=np.array([["variable_rate", "The frames do not follow at one rate.", ""]]),
)  # fmt: skip
EXAMPLES = [
    CLIP,
    dataclasses.replace(CLIP, pictures=np.array([], str), folder="", warnings=np.zeros((0, 3), str)),
    Generated(floats(2, 4, 5, 8, 8, kind=np.float16)),
    Reconstruction(floats(2, 3, 4, 8, 8, kind=np.float16)),
    Interpolated(np.array([1.0, 3.0, 5.0])),
    Surfaces(
        floats(7, 3), floats(7, 3), np.array([0, 0, 1]), np.array([0.0, 0.5, 1.0]), np.array([0, 3, 3, 7], np.int64)
    ),
    TEMPLATE,
    TRACED,
    Fitted(
        TEMPLATE, TRACED, floats(4, 5, 3), floats(4, 5), floats(3, 5, 3), floats(3, kind=float), floats(3, kind=float)
    ),
    Textured(floats(2, 3, 2), np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)),
    Textured(),
]
NAMES = [f"{type(example).__name__}-{index}" for index, example in enumerate(EXAMPLES)]


def assert_equal(one: Artefact, two: Artefact) -> None:
    assert type(one) is type(two)
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(two, field.name)
        if isinstance(a, Artefact):
            assert_equal(a, b)
        elif isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, field.name
            np.testing.assert_array_equal(a, b)
        else:
            assert type(a) is type(b) and a == b, field.name


def test_every_artefact_has_an_example():
    assert {type(example) for example in EXAMPLES} == {
        kind for kind in Artefact.__subclasses__() if kind.__module__ == artefacts.__name__
    }


@pytest.mark.parametrize("artefact", EXAMPLES, ids=NAMES)
def test_it_survives_save_and_load(tmp_path, artefact):
    artefact.save(State(tmp_path), "stage", "a key", 1.5)
    state = State(tmp_path)
    found = type(artefact).load(state, "stage", "a key")
    assert_equal(artefact, found)
    assert state.seconds == {"stage": 1.5} and state.computed == []
    assert type(artefact).load(State(tmp_path), "stage", "another key") is None
    assert type(artefact).load(State(tmp_path), "another stage", "a key") is None


@pytest.mark.parametrize("artefact", EXAMPLES, ids=NAMES)
def test_what_is_damaged_or_foreign_counts_as_absent(tmp_path, artefact):
    state, kind = State(tmp_path), type(artefact)
    path = tmp_path / "state" / "stage.npz"
    artefact.save(state, "stage", "key", 1.0)
    assert kind.load(state, "stage", "key") is not None
    whole = path.read_bytes()
    for part in (b"", b"not an archive", whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(part)
        assert kind.load(state, "stage", "key") is None
    for other in EXAMPLES:
        if type(other) is not kind and not (kind is Textured and not other.arrays()):
            other.save(state, "stage", "key", 1.0)
            assert kind.load(state, "stage", "key") is None, type(other)
    arrays = artefact.arrays()
    for name, array in arrays.items():  # a form that an older or a newer version may have had
        without = {other: arrays[other] for other in arrays if other != name}
        changes = [without, {**without, name: array[..., None]}]
        if array.dtype.kind != "U":
            changes.append({**without, name: array.astype(complex)})
        for changed in changes[1:] if kind is Textured else changes:  # which may lack them
            state.keep("stage", "key", changed, 1.0)
            assert kind.load(state, "stage", "key") is None, (name, changed.get(name))
    state.keep("stage", "key", {**arrays, "more": np.zeros(2)}, 1.0)
    assert kind.load(state, "stage", "key") is None
    np.savez(path, key=np.array("key"), **arrays)  # without the seconds, as it once was
    assert kind.load(state, "stage", "key") is None


def test_sizes_of_one_name_agree():
    with pytest.raises(TypeError, match="Traced.confidence is float32 \\[4, 6\\]"):
        Traced(floats(4, 5, 3), floats(4, 6))
    with pytest.raises(TypeError, match="Template.vertices is float64"):
        Template(floats(5, 3, kind=float), TEMPLATE.faces, 0)
    with pytest.raises(TypeError, match=re.escape("Template.home is 1.0")):
        Template(TEMPLATE.vertices, TEMPLATE.faces, 1.0)


def test_nobody_changes_what_a_stage_found():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TEMPLATE.home = 2
    cut = dataclasses.replace(TEMPLATE, home=0)
    assert TEMPLATE.home == 1 and cut.vertices is TEMPLATE.vertices


def test_a_stage_is_computed_once(tmp_path):
    calls = []

    def function() -> Template:
        calls.append(1)
        return TEMPLATE

    def obtained(key: str, whole: bool = True) -> list[str]:
        state = State(tmp_path)
        found = Found(state)
        found.add(artefacts.obtain(state, "surface", Template, key, function, whole))
        assert_equal(found[Template], TEMPLATE)
        assert set(found.seconds) == {"surface"}
        return state.computed

    assert obtained("a") == ["surface"] and obtained("a") == [] and len(calls) == 1
    assert obtained("a", whole=False) == ["surface"], "what it left beside the artefact is gone"
    assert obtained("b") == ["surface"] and len(calls) == 3
