# SPDX-License-Identifier: GPL-3.0-or-later
"""Which code a finished stage belongs to."""

import shutil

import pytest

from lim_core.job import state


@pytest.fixture
def package(tmp_path):
    """A copy of the backend's code."""
    copy = tmp_path / "lim_core"
    shutil.copytree(state.PACKAGE, copy, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    return copy


@pytest.mark.parametrize("module", ["stages.pipeline", "video.importing"])
def test_the_code_that_a_stage_runs_decides(package, module):
    before = state.code_key(module, package)
    assert before == state.code_key(module), "a copy is the same code"
    for unrelated in ("doctor.py", "training/train.py", "evaluation/tracing.py", "worker.py"):
        with (package / unrelated).open("a") as file:
            file.write("# changed\n")
    assert state.code_key(module, package) == before, "what has no part in it costs nobody a finished stage"
    for used in ("mesh/rays.py", "shared/cameras.py", "networks/__init__.py"):
        with (package / used).open("a") as file:
            file.write("# changed\n")
        changed = state.code_key(module, package)
        assert changed != before, used
        before = changed


def test_what_a_module_imports_is_found_at_any_depth(tmp_path):
    package = tmp_path / "package"
    (package / "low").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "low" / "__init__.py").write_text("")
    (package / "top.py").write_text("from .low.first import thing\nimport json\n")
    (package / "low" / "first.py").write_text("def thing():\n    from .. import aside\n    from .second import x\n")
    (package / "low" / "second.py").write_text("x = 1\n")
    (package / "aside.py").write_text("from . import top\n")
    (package / "other.py").write_text("")
    assert state.closure("top", package) == {"top", "low", "low.first", "low.second", "aside", ""}
