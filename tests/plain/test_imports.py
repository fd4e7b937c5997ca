# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may import what. Every import counts: absolute or relative, at the top of a file or inside a function."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "install")]
from type_check import BLENDERS  # noqa: E402

SIDES = ("lim_core", "blender_addon", "install")
PYTHON = sorted(path for side in SIDES for path in (ROOT / side).rglob("*.py"))
MODULE_OF = {"pillow": "PIL", "scikit-image": "skimage", "pyyaml": "yaml", "fast-simplification": "fast_simplification"}

FLOORS = (
    ("shared",),
    ("networks", "mesh"),
    ("job",),
    ("tracking", "data"),
    ("stages", "video"),
    ("worker", "doctor", "training"),
    ("evaluation",),
    ("__main__",),
)
"""The rooms of lim_core, each above what it uses. A room imports from itself and from lower floors."""
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
SHARED = ("lim_core", "lim_core.__version__", "lim_core.shared")
"""All of lim_core that the other sides see."""
TOOLS = {"lim_core.mesh.packs"}
"""What blender_addon/tools, which is no part of the add-on, may take too: the format of packs, which needs numpy alone."""


def locked(*names: str) -> set[str]:
    """Modules of the packages that these locks install."""
    packages = set()
    for name in names:
        text = (ROOT / "install" / f"{name}.lock.txt").read_text(encoding="utf-8")
        packages |= set(re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE))
    return {MODULE_OF.get(package, package.replace("-", "_")) for package in packages}


def imported(path: Path, root: Path = ROOT) -> set[str]:
    """Full names of all that a file imports; what it takes from this repository begins with the side: `lim_core.mesh.rays`."""
    package = path.relative_to(root).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                found.add(".".join([*base, alias.name] if _is_module(root, [*base, alias.name]) or not base else base))
    return {name.removeprefix("lim_for_blender.") for name in found}


def _is_module(root: Path, parts: list[str]) -> bool:
    place = root.joinpath(*parts)
    return place.is_dir() or place.with_suffix(".py").is_file()


def forbidden(path: Path, root: Path = ROOT) -> list[str]:
    """What a file imports and may not, each with the reason."""
    side, *inner = path.relative_to(root).with_suffix("").parts
    bad = []
    for name in sorted(imported(path, root)):
        first, *further = name.split(".")
        if first not in SIDES:
            if first not in sys.stdlib_module_names and first not in _packages(side, inner, path):
                bad.append(f"{name}: not a package that this side has")
        elif side == first == "lim_core":
            room, here = (further or ["shared"])[0], inner[0]
            if room == "__version__" or room == here:
                continue
            if FLOOR.get(room, len(FLOORS)) >= FLOOR.get(here, -1):
                bad.append(f"{name}: {here} does not stand above {room}")
        elif side == "lim_core":
            bad.append(f"{name}: the backend knows nothing of the other sides")
        elif inner[0] == "tools" and name in TOOLS:
            continue
        elif first == "lim_core" and not any(name == s or name.startswith("lim_core.shared.") for s in SHARED):
            bad.append(f"{name}: only lim_core.shared is shared; the rest may need torch")
        elif side == "blender_addon" and first == "install" and name != "install.locations":
            bad.append(f"{name}: the add-on takes only install.locations")
        elif side == "install" and first == "blender_addon" and inner[0] != "scenes":
            bad.append(f"{name}: the installer runs the add-on in a process of its own")
    return bad


def _packages(side: str, inner: list[str], path: Path) -> set[str]:
    """Installed packages that code at this place may import."""
    if side == "lim_core":
        if inner[0] == "shared":
            return {"numpy"}
        extra = (
            ("training", "test") if inner[0] in ("training", "evaluation", "data") or inner[-1] == "pretrained" else ()
        )
        return locked("backend", *extra)
    if side == "blender_addon" or inner[0] == "scenes":
        return BLENDERS | {"numpy"}
    siblings = {sibling.stem for sibling in path.parent.glob("*.py")}
    return siblings | ({"pip"} if path.name == "lock.py" else set())


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_import_is_allowed(path):
    assert not forbidden(path)


@pytest.mark.parametrize(
    ("place", "line", "why"),
    [
        ("blender_addon/ids.py", "from ..lim_core.stages.pipeline import run", "may need torch"),
        ("blender_addon/job/jobs.py", "def f():\n    from ...lim_core import stages", "may need torch"),
        ("blender_addon/job/jobs.py", "import torch", "not a package"),
        ("blender_addon/job/jobs.py", "from ...install import backend", "only install.locations"),
        ("lim_core/mesh/rays.py", "from ..tracking import fit", "mesh does not stand above tracking"),
        ("lim_core/networks/lim.py", "from ..mesh.rays import Eyes", "networks does not stand above mesh"),
        ("lim_core/job/state.py", "def f():\n    from .. import worker", "job does not stand above worker"),
        ("lim_core/shared/errors.py", "import torch", "not a package"),
        ("lim_core/mesh/rays.py", "import bpy", "not a package"),
        ("lim_core/mesh/rays.py", "from ...blender_addon import ids", "knows nothing of the other sides"),
        ("lim_core/mesh/rays.py", "import lim_for_blender.blender_addon.ids", "knows nothing of the other sides"),
        ("install/demo.py", "from blender_addon import ids", "process of its own"),
        ("install/demo.py", "from lim_core.networks import checkpoint", "may need torch"),
        ("install/demo.py", "import numpy", "not a package"),
    ],
)
def test_a_planted_import_is_caught(tmp_path, place, line, why):
    for path in PYTHON:  # the names must be those of the real tree
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.touch()
    planted = tmp_path / place
    planted.write_text(line + "\n", encoding="utf-8")
    assert any(why in reason for reason in forbidden(planted, tmp_path)), forbidden(planted, tmp_path)


def test_the_wall_lets_through_what_is_shared(tmp_path):
    planted = tmp_path / "blender_addon" / "ids.py"
    for folder in ("blender_addon", "lim_core/shared", "install"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("lim_core/__init__.py", "lim_core/shared/request.py", "install/locations.py"):
        (tmp_path / name).touch()
    planted.write_text("from ..lim_core import __version__\nfrom ..lim_core.shared import request\nimport bpy, json\n")
    assert not forbidden(planted, tmp_path)


def test_no_circle():
    """No module imports itself through others, not even inside a function."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in PYTHON}
    arrows = {name: {other for other in imported(path) if other in names} for name, path in names.items()}
    done: set[str] = set()

    def follow(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in sorted(arrows[name]):
                follow(other, (*trail, name))
            done.add(name)

    for name in names:
        follow(name, ())


def test_every_command_of_the_backend_has_its_module():
    tree = ast.parse((ROOT / "lim_core" / "__main__.py").read_text(encoding="utf-8"))
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
    }
    modules = [module for module, _ in tables["COMMANDS"].values()] + list(tables["LOOPS"].values())
    assert len(modules) > 8
    for module in modules:
        path = (ROOT / "lim_core").joinpath(*module.split(".")).with_suffix(".py")
        assert path.is_file() and "def main(" in path.read_text(encoding="utf-8"), module
