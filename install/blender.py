# SPDX-License-Identifier: GPL-3.0-or-later
"""Which Blender runs our scripts: the `blender` on PATH, or a bpy wheel in an environment of its own."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import environment
import locations
import problems
from environment import Environment, say
from lim_core.shared.errors import LimError

OLDEST = (4, 2)
WHEELS = ("4.2", "4.5", "5.0")
"""Series that have a lock file; each of their bpy wheels is for one Python."""
DEFAULT_WHEEL = "4.5"
WHEEL_PYTHON = ("3.11",)


@dataclasses.dataclass(frozen=True)
class Blender:
    """A Blender that can run a script without a window."""

    executable: Path
    """The program, or the Python of an environment that holds bpy."""
    version: str
    """Such as "4.5.15"."""
    module: bool
    """Whether it is bpy in a Python."""

    def command(self, script: Path, arguments: list[str]) -> list[str]:
        """The command line that runs `script` with `arguments` after the `--`."""
        if self.module:
            return [str(self.executable), str(script), "--", *arguments]
        options = ["--background", "--factory-startup", "--python-exit-code", "1", "--python", str(script)]
        return [str(self.executable), *options, "--", *arguments]

    def variables(self) -> dict[str, str]:
        """Environment variables for it: its settings folder is ours, so the user's is neither read nor written."""
        series = ".".join(self.version.split(".")[:2])
        folder = locations.blender_user_folder(series)
        folder.mkdir(parents=True, exist_ok=True)
        return environment.clean_variables(BLENDER_USER_RESOURCES=str(folder))

    def __str__(self) -> str:
        return f"Blender {self.version} ({'module in ' if self.module else ''}“{self.executable}”)"


def installed_program() -> Blender | None:
    """The `blender` on PATH (or where its installer puts it) if it is new enough."""
    names = [shutil.which("blender")]
    if sys.platform == "darwin":
        names.append("/Applications/Blender.app/Contents/MacOS/Blender")
    elif os.name == "nt":
        folder = Path(os.environ.get("PROGRAMFILES", r"C:\Program Files")) / "Blender Foundation"
        names += [str(path) for path in sorted(folder.glob("Blender */blender.exe"), reverse=True)]
    for name in names:
        if not name or not Path(name).exists():
            continue
        try:
            run = subprocess.run([name, "--version"], capture_output=True, text=True, timeout=120)
        except (OSError, subprocess.TimeoutExpired):
            continue
        match = re.search(r"^Blender (\d+)\.(\d+)(?:\.(\d+))?", run.stdout, re.MULTILINE)
        if not match:
            missing = problems.missing_libraries(run.stderr)
            if missing:
                say(f"  “{name}” cannot start ({', '.join(missing)} missing); taking the bpy wheel instead")
            continue
        if (int(match[1]), int(match[2])) >= OLDEST:
            return Blender(Path(name), ".".join(filter(None, match.groups())), module=False)
        say(f"  “{name}” is Blender {match[1]}.{match[2]}, older than 4.2; taking the bpy wheel instead")
    return None


def ensure(version: str = "", *, wheels: str = "") -> Blender:
    """A Blender that works, installing a bpy wheel if need be.

    Args:
        version: a series of WHEELS: that wheel, whatever is on PATH; "" prefers the program on PATH.
        wheels: a folder of wheels to install from instead of the index.
    """
    if not version:
        program = installed_program()
        if program:
            return program
        version = DEFAULT_WHEEL
    if version not in WHEELS:
        raise LimError("blender_missing", f"There is no lock for Blender {version}.", f"Use {', '.join(WHEELS)}.")
    lock = f"blender-{version}"
    target = Environment(locations.blender_folder(version), f"Blender {version} (bpy)", WHEEL_PYTHON)
    if target.lacking([lock]):
        started = time.monotonic()
        with environment.exclusive():
            if target.lacking([lock]):
                say(f"Installing Blender {version} as a Python module into “{target.folder}”")
                target.begin()
                target.announce([lock])
                source = ["--no-index", "--find-links", os.path.abspath(wheels)] if wheels else []
                target.install(lock, *source)
                target.finish([lock], bpy=check(target))
        say(f"Blender {version} is ready after {time.monotonic() - started:.0f} s.")
    return Blender(target.python, locations.stamp_of(target.folder)["bpy"], module=True)


def check(target: Environment) -> str:
    """Import bpy once; its version. Raises LimError blender_missing that names the missing system packages."""
    script = "import bpy; print('bpy', '.'.join(map(str, bpy.app.version)))"
    run = subprocess.run(
        [target.python, "-I", "-c", script], capture_output=True, text=True, env=environment.clean_variables()
    )
    match = re.search(r"^bpy ([\d.]+)", run.stdout, re.MULTILINE)
    if run.returncode == 0 and match:
        return match[1]
    missing = problems.missing_libraries(run.stderr)
    if missing:
        # The loader names one library at a time; ldd names all of them, so that one command of the user is enough.
        packages = locations.site_packages_of(target.folder)
        for binary in packages.glob("bpy/__init__*.so") if packages and shutil.which("ldd") else ():
            listed = subprocess.run(["ldd", str(binary)], capture_output=True, text=True)
            missing = list(dict.fromkeys([*missing, *problems.missing_libraries(listed.stdout)]))
        raise problems.library_error(missing, target.what)
    end = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
    raise LimError(
        "blender_missing", f"{target.what} is installed but does not start: {end}", "Install Blender 4.2 or newer."
    )
