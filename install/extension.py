# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds the extension's zip with Blender's own tool, validates it with the same, and checks what went in."""

from __future__ import annotations

import re
import subprocess
import zipfile
from pathlib import Path

import blender
import environment
import locations
from environment import say
from lim_core.shared.errors import LimError, from_os_error

NEEDED = (
    "__init__.py",
    "blender_manifest.toml",
    "LICENSE",
    "blender_addon/__init__.py",
    "lim_core/__init__.py",
    "lim_core/shared/protocol.py",
    "install/__main__.py",
    "install/backend.lock.txt",
)
UNWANTED = re.compile(r"(^|/)(__pycache__|tests|docs|\.[^/]+|build|demo_output)(/|$)|\.(pyc|tmp|zip|blend|whl)$")
LARGEST = 200e6
"""Bytes that the zip may have."""


def manifest_version() -> str:
    """The version in blender_manifest.toml (Python 3.10 has no reader for TOML)."""
    text = (locations.ROOT / "blender_manifest.toml").read_text(encoding="utf-8")
    found = re.search(r'^version\s*=\s*"([^"]+)"', text, re.MULTILINE)
    assert found is not None  # tests/plain holds the versions against each other
    return found[1]


def run(out: str) -> int:
    """Write `lim-VERSION.zip` into `out`; exit code 0, or LimError if it is not valid."""
    folder = Path(out).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, "making the folder for the zip") from error
    command = tool()
    path = folder / f"lim-{manifest_version()}.zip"
    path.unlink(missing_ok=True)
    _call([*command, "build", "--source-dir", str(locations.ROOT), "--output-filepath", str(path)], "be built")
    _call([*command, "validate", str(path)], "be validated")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    wrong = faults(names)
    if wrong or path.stat().st_size > LARGEST:
        path.unlink()
        raise LimError("internal", f"The zip is not fit to ship: {'; '.join(wrong) or 'it is too large'}.")
    say(f"{path}  {path.stat().st_size / 1e6:.1f} MB, {len(names)} files, valid")
    say(
        "Install it by dragging it into Blender's window, or: blender --command extension install-file -r user_default -e FILE"
    )
    return 0


def tool() -> list[str]:
    """The command of Blender's extension tool: the program's own, or the script in a bpy wheel."""
    found = blender.ensure()
    if not found.module:
        return [str(found.executable), "--command", "extension"]
    packages = locations.site_packages_of(found.executable.parents[1])
    assert packages is not None  # the bpy wheel lies there
    scripts = sorted(packages.glob("bpy/*/scripts/addons_core/bl_pkg/cli/blender_ext.py"))
    if not scripts:
        raise LimError("blender_missing", "This Blender has no tool for extensions.", "Install Blender 4.2 or newer.")
    return [str(found.executable), str(scripts[0])]


def faults(names: list[str]) -> list[str]:
    """What is wrong with the list of files of a zip, as sentences; [] if nothing is."""
    missing = [f"it lacks {name}" for name in NEEDED if name not in names]
    return missing + [f"it holds {name}" for name in names if UNWANTED.search(name)]


def _call(command: list[str], what: str) -> None:
    run = subprocess.run(command, capture_output=True, text=True, env=environment.clean_variables())
    if run.returncode:
        end = "\n".join((run.stdout + run.stderr).strip().splitlines()[-8:])
        raise LimError("internal", f"The extension could not {what}:\n{end}")
