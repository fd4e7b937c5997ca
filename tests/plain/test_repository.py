# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules that hold for the repository as a whole: who imports what, versions that agree, licences, sizes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sorted(path for folder in ("lim_core", "blender_addon", "install") for path in (ROOT / folder).rglob("*.py"))
BLENDERS = {
    "bpy",
    "bmesh",
    "mathutils",
    "bpy_extras",
    "bl_ui",
    "bl_operators",
    "gpu",
    "aud",
    "addon_utils",
    "imbuf",
    "freestyle",
}
SHARED = ("__init__", "protocol", "errors", "request", "cameras")
"""Modules of lim_core that Blender's Python imports too."""
MODULE_OF = {"pillow": "PIL", "scikit-image": "skimage", "pyyaml": "yaml", "fast-simplification": "fast_simplification"}


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """The first names of all absolute imports of a file; only those that run when it is imported, if `top_level`."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    found = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def locked(*names: str) -> set[str]:
    """Modules of the packages that these locks install."""
    packages = set()
    for name in names:
        text = (ROOT / "install" / f"{name}.lock.txt").read_text(encoding="utf-8")
        packages |= set(re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE))
    return {MODULE_OF.get(package, package.replace("-", "_")) for package in packages}


def tracked() -> list[Path]:
    try:
        run = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    except OSError:
        pytest.skip("needs git")
    if run.returncode:
        pytest.skip("not a checkout")
    paths = [ROOT / name for name in run.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    found = imports(path)
    side = path.relative_to(ROOT).parts[0]
    outside = found - sys.stdlib_module_names
    if side == "lim_core":
        assert not outside & BLENDERS, "the backend knows nothing of Blender"
        parts = path.relative_to(ROOT / "lim_core").parts
        extra = ("training", "test") if parts[0] in ("training", "evaluation", "data", "pretrained.py") else ()
        allowed = locked("backend", *extra) | {"lim_core"}
        assert outside <= allowed, "every package that the backend imports is locked"
        if len(parts) == 1 and path.stem in SHARED:
            assert outside <= {"numpy"}, "Blender's Python imports this too"
    elif side == "blender_addon":
        assert outside <= BLENDERS | {"numpy", "lim_core", "blender_addon"}, "Blender's Python has nothing else"
        taken = re.findall(r"from \.*lim_core import (.+)", path.read_text(encoding="utf-8"))
        modules = {name.strip() for names in taken for name in names.split(",")}
        assert modules <= {*SHARED, "__version__"}, "the rest of lim_core may need torch"
    elif path.name != "lock.py":
        siblings = {sibling.stem for sibling in path.parent.glob("*.py")}
        assert outside <= siblings | {"lim_core"}, "standard library only"
        assert not (imports(path) & {"pip", "numpy", "torch"})


def test_no_module_of_install_hides_one_of_python():
    assert not {path.stem for path in (ROOT / "install").glob("*.py")} & set(sys.stdlib_module_names)


def test_versions_agree():
    def first(pattern: str, name: str) -> str:
        return re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)[1]

    versions = {
        "blender_manifest.toml": first(r'^version\s*=\s*"([^"]+)"', "blender_manifest.toml"),
        "pyproject.toml": first(r'^version\s*=\s*"([^"]+)"', "pyproject.toml"),
        "CHANGELOG.md": first(r"^## \[?([\w.+-]+)", "CHANGELOG.md"),
        "lim_core": first(r'^__version__ = "([^"]+)"', "lim_core/__init__.py"),
    }
    assert len(set(versions.values())) == 1, versions


def test_every_source_file_names_its_licence():
    kinds = (".py", ".toml", ".sh", ".lock.txt")
    for path in tracked():
        if path.name.endswith(kinds) or path == ROOT / ".ci" / "run":
            lines = path.read_text(encoding="utf-8").splitlines()[:2]
            assert any(line == "# SPDX-License-Identifier: GPL-3.0-or-later" for line in lines), path


def test_nothing_tracked_is_too_large():
    sizes = {path: path.stat().st_size for path in tracked()}
    assert max(sizes.values()) <= 16 * 2**20, max(sizes, key=sizes.get)
    assert sum(sizes.values()) <= 130 * 2**20
    assert sum(size for path, size in sizes.items() if path.suffix == ".safetensors") <= 100e6


def test_packages_are_not_fetched_at_run_time():
    """torch.hub and hubs of models are a network at run time: weights come from a folder."""
    for path in (ROOT / "lim_core").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "torch.hub" not in text and "hf_hub_download" not in text and "snapshot_download" not in text, path
