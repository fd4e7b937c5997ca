# SPDX-License-Identifier: GPL-3.0-or-later
"""The vocabulary: what one side emits the other handles, and every error leads somewhere."""

from __future__ import annotations

import ast
import errno
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from lim_core.shared import protocol  # noqa: E402
from lim_core.shared.errors import LimError, from_os_error  # noqa: E402

SOURCES = sorted(path for folder in ("lim_core", "blender_addon", "install") for path in (ROOT / folder).rglob("*.py"))


def calls(path: Path):
    """Every call in a file as (name of what is called, its first argument if that is a text)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            first = node.args[0] if node.args else None
            yield name, node, first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None


def operator_ids() -> set[str]:
    tree = ast.parse((ROOT / "blender_addon" / "ids.py").read_text(encoding="utf-8"))
    names = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and "lim." in str(node.value.value)
    }
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "blender_addon" / "ui").glob("*.py"))
    registered = set(re.findall(r"bl_idname = ids\.(\w+)", source))
    return {names[name] for name in registered if name in names}


def test_every_raised_code_is_known():
    used = set()
    for path in SOURCES:
        for name, node, first in calls(path):
            if name == "LimError" and first is not None:
                assert first in protocol.ERROR_CODES, f"{path.name}:{node.lineno} raises {first}"
                used.add(first)
    assert len(used) > 20


def test_every_code_of_the_vocabulary_can_happen():
    text = "".join(path.read_text(encoding="utf-8") for path in SOURCES if path.name != "protocol.py")
    unused = [code for code in protocol.ERROR_CODES if f'"{code}"' not in text]
    assert not unused, f"nobody raises {unused}"


def test_every_fixing_operator_exists_and_has_words():
    ids = operator_ids()
    assert "lim.generate" in ids
    panels = (ROOT / "blender_addon" / "ui" / "panels.py").read_text(encoding="utf-8")
    constants = (ROOT / "blender_addon" / "ids.py").read_text(encoding="utf-8")
    for code, (_, fix) in protocol.ERROR_CODES.items():
        if fix:
            assert fix in ids, f"{code} names the operator {fix}, which does not exist"
            constant = re.search(rf'^(\w+) = "{re.escape(fix)}"', constants, re.MULTILINE)[1]
            assert f"ids.{constant}: (" in panels, f"the button for {fix} has no words"


def test_exit_codes_are_the_documented_ones():
    assert {exit_code for exit_code, _ in protocol.ERROR_CODES.values()} <= {1, 3, 4, 5}
    named = (protocol.EXIT_RESULT, protocol.EXIT_CRASH, protocol.EXIT_USAGE, protocol.EXIT_INPUT)
    assert (*named, protocol.EXIT_BACKEND, protocol.EXIT_RESOURCES, protocol.EXIT_CANCELLED) == tuple(range(7))


def test_emitted_events_are_handled_events():
    emitted = set()
    for name in ("lim_core/worker.py", "lim_core/job/reporter.py", "blender_addon/job/background.py"):
        path = ROOT / name
        emitted |= {first for name, _, first in calls(path) if name in ("event", "say") and first}
    assert emitted - {"preview"} == set(protocol.EVENTS) - {"preview"}
    handled = set()
    for name in ("worker", "jobs"):
        text = (ROOT / "blender_addon" / "job" / f"{name}.py").read_text(encoding="utf-8")
        handled |= set(re.findall(r'"(\w+)"', text))
    assert set(protocol.EVENTS) <= handled


def test_emitted_warnings_are_known():
    for path in SOURCES:
        for name, node, first in calls(path):
            if name in ("warn", "warning") and first and re.fullmatch(r"[a-z]+(_[a-z]+)+", first):
                assert first in protocol.WARNING_CODES, f"{path.name}:{node.lineno} warns of {first}"


def test_a_line_survives_the_trip():
    line = protocol.encode_event("warning", code="no_depth", message="Häuschen “猫”\nzwei", hint="", more=[1, 2.5])
    assert "\n" not in line and line.isascii()
    assert protocol.decode_event(line.encode()) == {
        "event": "warning", "code": "no_depth", "message": "Häuschen “猫”\nzwei", "hint": "", "more": [1, 2.5],
    }  # fmt: skip
    assert protocol.decode_command(protocol.encode_command("cancel")) == {"command": "cancel"}


@pytest.mark.parametrize(
    "line",
    [b"", b"\xff", "{}", "[]", "null", "1", '{"event": 1}', '{"event": "dance"}', '{"event": "progress"}',
     '{"command": "cancel"}', "{", "[" * 100_000],
)  # fmt: skip
def test_anything_else_is_refused(line):
    with pytest.raises(ValueError):
        protocol.decode_event(line)


def test_a_wrong_event_is_refused_where_it_is_made():
    with pytest.raises(ValueError):
        protocol.encode_event("progress", stage="fit", fraction=0.5)
    with pytest.raises(ValueError):
        protocol.encode_event("progress", stage="fit", fraction=float("nan"), seconds_left=None)
    with pytest.raises(ValueError):
        protocol.encode_event("applause")


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "disk_full"), (errno.EROFS, "read_only"), (errno.EACCES, "read_only"), (errno.EPERM, "read_only"),
     (errno.ENOENT, "missing_file"), (errno.ENOMEM, "out_of_memory"), (errno.EIO, "internal")],
)  # fmt: skip
def test_what_the_system_refuses_becomes_a_sentence(number, code):
    error = from_os_error(OSError(number, "system words", "/somewhere/füße.png"), "writing the capture")
    assert isinstance(error, LimError) and error.code == code and code in protocol.ERROR_CODES
    assert "while writing the capture" in error.message
    assert (
        error.message[0].isupper()
        and error.message.endswith(".")
        and (code == "out_of_memory" or "füße" in error.message)
    )


def test_files_of_a_job_are_relative_and_sorted_by_index():
    assert protocol.image_file(2, 11) == "capture/k002_v11.png" and protocol.depth_file(0) == "capture/k000_depth.npz"
    assert protocol.preview_file("traced", 7, 1) == "previews/traced_f007_v01.png"
    assert json.loads(protocol.encode_event("cancelled")) == {"event": "cancelled"}
