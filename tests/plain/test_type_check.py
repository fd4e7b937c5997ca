# SPDX-License-Identifier: GPL-3.0-or-later
"""The type gate: an error that is planted is caught, on either side of the wall; the numbers of known errors only go down."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "install")]
import type_check  # noqa: E402

SOUND = {
    "lim_core/mesh/sizes.py": "def area(width: float, height: float) -> float:\n    return width * height\n",
    "blender_addon/panel.py": "from ..lim_core.mesh import sizes\n\nAREA: float = sizes.area(2, 3)\n",
    "blender_addon/drawn.py": "import bpy\n\nWRONG: int = 'Blender comes without types, so this file is left out'\n",
    "install/program.py": "import names\nfrom lim_core.mesh import sizes\n\nAREA: float = sizes.area(len(names.NAME), 1)\n",
    "install/names.py": "NAME = 'lim'\n",
}
PLANTED = {
    "blender_addon/panel.py": "from ..lim_core.mesh import sizes\n\nAREA: str = sizes.area(2, 3)\n",
    "install/program.py": "import names\n\nNAME: int = names.NAME\n",
    "lim_core/mesh/sizes.py": "def area(width: float, height: float) -> float:\n    return str(width * height)\n",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """mypy's, so that only the first run reads Python's own types."""
    return tmp_path_factory.mktemp("mypy")


def gate(root: Path, cache: Path, files: dict[str, str], known: dict[str, int]) -> bool:
    """Whether these files pass, with these errors known."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    (root / type_check.KNOWN).parent.mkdir(exist_ok=True)
    (root / type_check.KNOWN).write_text(json.dumps(known), encoding="utf-8")
    return type_check.run(Path(sys.executable), root, cache)


def test_a_planted_error_is_caught(tmp_path, cache, capsys):
    assert gate(tmp_path, cache, SOUND, {}), capsys.readouterr().out
    for name, text in PLANTED.items():
        assert not gate(tmp_path, cache, {**SOUND, name: text}, {}), name
        said = capsys.readouterr().out
        folder = type_check.folder_of(name)
        assert f"{name}:{text.rstrip().count(chr(10)) + 1}: Incompatible" in said and f"{folder}: 1 type errors" in said
    assert gate(tmp_path, cache, SOUND | PLANTED, {"blender_addon": 1, "install": 1, "lim_core/mesh": 1})


def test_what_mypy_cannot_read_does_not_pass(tmp_path, cache, capsys):
    assert not gate(tmp_path, cache, {"lim_core/mesh/sizes.py": "def area(:\n"}, {})
    assert "sizes.py" in capsys.readouterr().out


def test_the_numbers_only_go_down():
    errors = [("lim_core/stages/a.py", "one"), ("lim_core/stages/b.py", "two"), ("install/c.py", "three")]
    lines, sound = type_check.verdict(errors, {"lim_core/stages": 2, "install": 1})
    assert sound and "the 3 that are known" in lines[-1]
    lines, sound = type_check.verdict(errors, {"lim_core/stages": 1, "install": 1})
    assert not sound and lines == ["one", "two", "lim_core/stages: 2 type errors, 1 are known"]
    lines, sound = type_check.verdict(errors, {"lim_core/stages": 3, "install": 1})
    assert not sound and "write 2 into tests/type_errors.json" in lines[0]
    lines, sound = type_check.verdict(errors[:2], {"lim_core/stages": 2, "install": 1})
    assert not sound and "write 0" in lines[0]


def test_the_rooms_of_a_job_have_no_error():
    known = json.loads((ROOT / type_check.KNOWN).read_text(encoding="utf-8"))
    assert all((ROOT / folder).is_dir() and count > 0 for folder, count in known.items())
    clean = {f"lim_core/{room}" for room in ("shared", "networks", "mesh", "tracking", "data", "job", "stages")}
    assert not clean & set(known)
