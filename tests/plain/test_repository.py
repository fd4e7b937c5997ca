# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules that hold for the repository as a whole: versions that agree, licences, sizes. Who may import what: test_imports.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tracked() -> list[Path]:
    try:
        run = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    except OSError:
        pytest.skip("needs git")
    if run.returncode:
        pytest.skip("not a checkout")
    paths = [ROOT / name for name in run.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


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
