# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's examples and the script that builds them know each other."""

import argparse
import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "install"), str(ROOT)]

import demo  # noqa: E402
from lim_core.shared.errors import LimError  # noqa: E402


def test_the_demo_and_the_script_have_the_same_examples():
    tree = ast.parse((ROOT / "install" / "scenes" / "poses_scene.py").read_text(encoding="utf-8"))
    built = next(n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "EXAMPLES")
    assert [key.value for key in built.keys] == list(demo.EXAMPLES)


def options(tmp_path, **changes) -> argparse.Namespace:
    values = {
        "input": "",
        "example": "",
        "keyframes": "",
        "inbetweens": 1,
        "quality": "draft",
        "weights": "",
        "device": "cpu",
    }
    return argparse.Namespace(**{**values, "out": str(tmp_path), **changes})


def test_an_example_says_what_is_captured(tmp_path):
    asked = options(tmp_path, example="sculpts", keyframes="1,5,9")
    given = demo.job_options(asked, tmp_path / "x.blend", Path(sys.executable), tmp_path)
    assert given[given.index("--poses") + 1] == "Blob pose 1,Blob pose 2,Blob pose 3"
    frames = [given[i + 1] for i, word in enumerate(given) if word == "--keyframes"]
    assert frames[-1] == "1,5,9"  # what the user says comes last, and the last one counts
    assert "--poses" not in demo.job_options(options(tmp_path), tmp_path / "x.blend", Path(sys.executable), tmp_path)


def test_a_file_and_an_example_are_one_too_many(tmp_path):
    (tmp_path / "x.glb").write_bytes(b"")
    with pytest.raises(LimError, match="each name a scene"):
        demo.run(options(tmp_path, input=str(tmp_path / "x.glb"), example="cut"))


def test_a_folder_of_meshes_is_an_input(tmp_path, monkeypatch):
    class Begun(Exception):
        pass

    def begin(*arguments, **settings):
        raise Begun

    monkeypatch.setattr(demo.backend, "ensure", begin)
    (tmp_path / "meshes").mkdir()
    with pytest.raises(Begun):
        demo.run(options(tmp_path, input=str(tmp_path / "meshes"), wheels="", torch_index=""))
