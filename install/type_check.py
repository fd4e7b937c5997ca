# SPDX-License-Identifier: GPL-3.0-or-later
"""The type gate: mypy over all that needs no Blender, each folder held to the number of errors that it is known to have."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import environment
import locations
from environment import say

KNOWN = Path("tests", "type_errors.json")
"""{folder: errors it still has}, from the root; a folder that is not named has none. A number may only go down."""
PACKAGE = "lim_for_blender"
BLENDERS = {
    "bpy", "bmesh", "mathutils", "bpy_extras", "bl_ui", "bl_operators", "gpu", "aud", "addon_utils", "imbuf", "freestyle",
}  # fmt: skip
"""Modules that Blender alone has, and that come without types. A file that imports one is not checked."""
RUNS = (("lim_core", "blender_addon"), ("install",))
"""Folders that are checked together: the modules of install have other names than those of the package."""


def run(python: Path, root: Path = locations.ROOT, cache: Path | None = None) -> bool:
    """Check `root` with the mypy of `python`; say every error that is too many and whether the numbers hold.

    Args:
        root: a folder that has the folders of RUNS, or some of them, and may have KNOWN.
        cache: where mypy keeps what it knows of unchanged files; by default `.mypy_cache` in `root`.
    """
    known = json.loads((root / KNOWN).read_text(encoding="utf-8")) if (root / KNOWN).exists() else {}
    errors: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, PACKAGE)  # relative imports lead to the root, whose own name is not known to be a module's
        for path in sources(root):
            copy = tree / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
        for sides in RUNS:
            checked = [path for side in sides for path in sorted((tree / side).rglob("*.py")) if needs_no_blender(path)]
            if not checked:
                continue
            try:
                errors += _mypy(python, tree, checked, cache or root / ".mypy_cache")
            except ChildProcessError as error:
                say(str(error))
                return False
    lines, sound = verdict(errors, known)
    say("\n".join(lines))
    return sound


def sources(root: Path) -> list[Path]:
    """Every Python file of the package in `root`."""
    return [*root.glob("*.py"), *(path for sides in RUNS for side in sides for path in (root / side).rglob("*.py"))]


def needs_no_blender(path: Path) -> bool:
    """Whether no line of the file, inside functions or outside, imports a module of Blender's."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except SyntaxError:
        return True  # mypy says what is wrong with it
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        if any(name.split(".")[0] in BLENDERS for name in names):
            return False
    return True


def _mypy(python: Path, tree: Path, checked: list[Path], cache: Path) -> list[tuple[str, str]]:
    """[(file from the root, what to say)] of every error in the files. Raises ChildProcessError where mypy does not get to the end."""
    install = tree / "install"
    bases = [tree.parent] if install not in checked[0].parents else [install, tree]
    command = [str(python), "-m", "mypy", "--config-file", str(locations.ROOT / "pyproject.toml"), "--output", "json"]
    command += ["--cache-dir", str(cache), *(str(path.relative_to(tree.parent)) for path in checked)]
    variables = environment.clean_variables(MYPYPATH=os.pathsep.join(map(str, bases)), PYTHONDONTWRITEBYTECODE="1")
    result = subprocess.run(command, cwd=tree.parent, env=variables, capture_output=True, encoding="utf-8")
    if result.returncode not in (0, 1):
        raise ChildProcessError(f"mypy did not come to an end:\n{result.stdout}{result.stderr}".rstrip())
    found = []
    for line in filter(None, result.stdout.splitlines()):
        entry = json.loads(line)
        if entry["severity"] == "error":
            path = Path(entry["file"]).relative_to(PACKAGE).as_posix()
            found.append((path, f"{path}:{entry['line']}: {entry['message']}  [{entry['code']}]"))
    return found


def folder_of(path: str) -> str:
    """The folder that a file is counted in: `lim_core/mesh` for `lim_core/mesh/rays.py`, `install` for `install/demo.py`."""
    return "/".join(path.split("/")[:-1][:2])


def verdict(errors: list[tuple[str, str]], known: dict[str, int]) -> tuple[list[str], bool]:
    """What to say of the errors [(file, text)], and whether every folder has as many as is known of it."""
    counts = Counter(folder_of(path) for path, _ in errors)
    lines, sound = [], True
    for folder in sorted({*counts, *known}):
        count, limit = counts[folder], known.get(folder, 0)
        if count > limit:
            lines += [text for path, text in errors if folder_of(path) == folder]
            lines.append(f"{folder}: {count} type errors, {limit} are known")
        elif count < limit:
            lines.append(f"{folder}: {count} type errors, {limit} are known; write {count} into {KNOWN.as_posix()}")
        sound = sound and count == limit
    if sound:
        lines.append(f"no type error beyond the {sum(known.values())} that are known")
    return lines, sound
