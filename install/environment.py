# SPDX-License-Identifier: GPL-3.0-or-later
"""Virtual environments filled from lock files: built in place, resumable, and finished only once their stamp is written.

An interrupted run leaves an environment without a stamp. The next run checks every installed package against its own
record (which files, how big), takes out what is damaged and lets pip add what is missing.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import locations
import problems
from lim_core.shared import files
from lim_core.shared.errors import LimError, from_os_error

# What would make pip or Python look, or install, somewhere else.
_DROPPED = ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONSAFEPATH", "PYTHONUSERBASE")
_DROPPED_PIP = (
    "PIP_USER",
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_ROOT",
    "PIP_REQUIRE_VIRTUALENV",
    "PIP_NO_DEPS",
    "PIP_QUIET",
)


def say(text: str) -> None:
    """One line for people, at once: the add-on reads it from a pipe."""
    print(text, flush=True)


def clean_variables(**extra: str) -> dict[str, str]:
    """This process's environment variables without what would change another Python's behaviour."""
    kept = {name: value for name, value in os.environ.items() if name not in _DROPPED + _DROPPED_PIP}
    return {**kept, "PYTHONNOUSERSITE": "1", "PYTHONUTF8": "1", **extra}


# ---- which Python -----------------------------------------------------------------------------------------------------
def find_python(versions: tuple[str, ...], what: str) -> Path:
    """A Python of one of these versions that can make environments: the running one, else one on PATH.

    Raises LimError backend_broken if there is none, or only one without ensurepip.
    """
    candidates: list[list[str]] = [[sys.executable]] if sys.executable else []
    for version in sorted(versions, key=lambda v: int(v.split(".")[1]), reverse=True):
        names = [f"python{version}", "python3", "python"]
        candidates += [[found] for found in map(shutil.which, names) if found]
        if os.name == "nt" and shutil.which("py"):
            candidates.append(["py", f"-{version}"])
    without_ensurepip = None
    tried = set()
    for command in candidates:
        if tuple(command) in tried:
            continue
        tried.add(tuple(command))
        script = (
            "import sys, importlib.util as u; print('%d.%d' % sys.version_info[:2], sys.executable, "
            "bool(u.find_spec('ensurepip') and u.find_spec('venv')), sep='\\n')"
        )
        try:
            run = subprocess.run(
                [*command, "-I", "-c", script], capture_output=True, text=True, timeout=60, env=clean_variables()
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        lines = run.stdout.splitlines()
        if run.returncode or len(lines) != 3 or lines[0] not in versions:
            continue
        if lines[2] == "True":
            return Path(lines[1])
        without_ensurepip = without_ensurepip or (lines[1], lines[0])
    if without_ensurepip:
        raise problems.ensurepip_error(*without_ensurepip)
    wanted = versions[0] if len(versions) == 1 else f"{versions[0]} to {versions[-1]}"
    example = versions[-2] if len(versions) > 1 else versions[0]
    raise LimError(
        "backend_broken",
        f"{what} needs Python {wanted}, and there is none here: this is Python {platform.python_version()}.",
        f"Install Python {example} beside it (any way that puts python{example} on the PATH) and run this again.",
    )


# ---- what a lock downloads -----------------------------------------------------------------------------------------------
def locked_packages(name: str, python: str) -> list[tuple[str, str, float]]:
    """(package, version, megabytes) of every line of a lock that holds for this platform and `python` ("3.11")."""
    key = {"Windows": "windows-amd64", "Darwin": "macos-arm64"}.get(platform.system(), "linux-x86_64")
    packages, size = [], 0.0
    for line in locations.lock_file(name).read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and ": " in line:
            sizes = dict(part.rsplit(" ", 1) for part in line.split(": ", 1)[1].split(", ") if " " in part)
            size = float(sizes.get(key, 0)) if key in sizes else 0.0
        elif "==" in line and not line.startswith("#"):
            requirement, _, marker = line.rstrip("\\ ").partition(" ; ")
            if _marker_holds(marker, python):
                package, version = requirement.split("==")
                packages.append((package, version, size))
    return packages


def _marker_holds(marker: str, python: str) -> bool:
    """The few kinds of marker that lock.py writes."""
    minor = int(python.split(".")[1])
    for clause in filter(None, marker.split(" and ")):
        variable, operator, value = clause.split(" ")
        value = value.strip('"')
        if variable == "sys_platform":
            holds = sys.platform == value
        else:
            other = int(value.split(".")[1])
            holds = {"<": minor < other, "<=": minor <= other, ">=": minor >= other}[operator]
        if not holds:
            return False
    return True


# ---- one environment --------------------------------------------------------------------------------------------------
class Environment:
    """A virtual environment with a stamp.

    Args:
        folder: where it is or will be.
        what: its name in messages, for instance "the backend".
        versions: the Pythons that its locks cover.
    """

    def __init__(self, folder: Path, what: str, versions: tuple[str, ...]):
        self.folder = folder
        self.what = what
        self.versions = versions
        self.python = locations.python_of(folder)
        self.stamp_path = folder / ("backend.json" if folder.name == "backend" else "blender.json")

    def lacking(self, locks: list[str]) -> list[str]:
        """Those of the locks that are not installed as they stand; [] means nothing is to do."""
        stamp = locations.stamp_of(self.folder)
        if not stamp or not self.python.exists():
            return list(locks)
        return [name for name in locks if stamp.get("locks", {}).get(name) != locations.lock_digest(name)]

    def begin(self, *, fresh: bool = False) -> None:
        """An environment that pip can fill: kept if it is whole, else made anew. Takes the stamp away."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.stamp_path.unlink(missing_ok=True)
            if self.folder.exists() and (fresh or not self._usable()):
                shutil.rmtree(self.folder)
            if not self.folder.exists():
                self._create()
            for distribution in damaged_distributions(self.folder):
                say(f"  damaged by an interrupted run, installed again: {distribution.name.split('-')[0]}")
                shutil.rmtree(distribution)
        except OSError as error:
            raise from_os_error(error, f"setting up {self.what}") from error

    def _usable(self) -> bool:
        """Whether it is an environment of a Python that the locks cover, with a pip that starts."""
        try:
            run = subprocess.run(
                [self.python, "-I", "-c", "import sys, pip; print('%d.%d' % sys.version_info[:2])"],
                capture_output=True,
                text=True,
                timeout=120,
                env=clean_variables(),
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return run.returncode == 0 and run.stdout.strip() in self.versions

    def _create(self) -> None:
        python = find_python(self.versions, self.what[0].upper() + self.what[1:])
        say(f"  making the environment “{self.folder}” with {python}")
        run = subprocess.run(
            [python, "-I", "-m", "venv", self.folder], capture_output=True, text=True, env=clean_variables()
        )
        if run.returncode:
            shutil.rmtree(self.folder, ignore_errors=True)
            text = run.stdout + run.stderr
            if "ensurepip" in text and "No space" not in text:
                raise problems.ensurepip_error(str(python), f"{sys.version_info[0]}.{sys.version_info[1]}")
            raise problems.pip_error(text, self.what, str(self.folder.parent))

    def python_version(self) -> str:
        """Such as "3.11", from the environment's own configuration."""
        for line in (self.folder / "pyvenv.cfg").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition("=")
            if name.strip() in ("version", "version_info"):
                return ".".join(value.strip().split(".")[:2])
        return f"{sys.version_info[0]}.{sys.version_info[1]}"

    def versions_installed(self) -> dict[str, str]:
        """{package: version}, from the folder alone."""
        packages = locations.site_packages_of(self.folder)
        found = {}
        for path in packages.glob("*.dist-info") if packages else ():
            name, _, version = path.name.removesuffix(".dist-info").partition("-")
            found[name.lower().replace("_", "-").replace(".", "-")] = version
        return found

    def announce(self, locks: list[str]) -> None:
        """Say what is about to be downloaded and how big it is; raise LimError disk_full if it cannot fit."""
        installed = self.versions_installed()
        missing = {}
        for name in locks:
            for package, version, size in locked_packages(name, self.python_version()):
                if installed.get(package, "").split("+")[0] != version:
                    missing[package] = size
        total = sum(missing.values())
        if not missing:
            return
        large = sorted(missing.items(), key=lambda item: -item[1])[:4]
        names = ", ".join(f"{package} {size:.0f}" for package, size in large if size >= 1)
        say(f"  {len(missing)} packages, up to {total:.0f} MB to download{f' ({names}, …)' if names else ''}")
        free = shutil.disk_usage(self.folder).free / 1e6
        if free < 3.2 * total:
            raise LimError(
                "disk_full",
                f"{self.what[0].upper()}{self.what[1:]} needs about {3.2 * total / 1e3:.1f} GB, and “{self.folder.parent}” "
                f"has {free / 1e3:.1f} GB left.",
                "Free some space, or set the environment variable LIM_HOME to a folder on another disk.",
            )

    def pip(self, *arguments: str) -> None:
        """Run pip and show what it downloads; its failure becomes a LimError."""
        command = [
            *(str(self.python), "-I", "-m", "pip", "--no-input", "--disable-pip-version-check", "install"),
            *("--no-deps", "--only-binary", ":all:", "--no-warn-script-location", "--progress-bar", "off"),
            *arguments,
        ]
        tail: list[str] = []
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
                env=clean_variables(),
                pass_fds=_held,
            )
        except OSError as error:
            raise from_os_error(error, f"starting pip for {self.what}") from error
        assert process.stdout is not None  # a pipe
        with process:
            try:
                for line in process.stdout:
                    line = line.rstrip()
                    tail = [*tail[-60:], line]
                    if line.strip().startswith(("Downloading ", "Processing ", "Using cached ", "Installing ")):
                        say("  " + _shortened(line.strip()))
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise problems.pip_error("\n".join(tail), self.what, str(self.folder.parent))

    def install(
        self, name: str, *options: str, without: tuple[str, ...] = (), only: dict[str, str] | None = None
    ) -> None:
        """Install a lock, every file checked against its hash.

        Args:
            options: further options for pip.
            without: packages of the lock to leave out.
            only: install these alone; the value is a local version to insist on ("+cpu"), or "".
        """
        path = locations.lock_file(name)
        if not without and only is None:
            self.pip("--require-hashes", "-r", str(path), *options)
            return
        lines = []
        for block in lock_blocks(path.read_text(encoding="utf-8")):
            requirement, space, rest = block.partition(" ")
            package = requirement.split("==")[0]
            if package not in without and (only is None or package in only):
                lines.append(requirement + (only or {}).get(package, "") + space + rest)
        part = self.folder / f"{name}.part.txt"
        try:
            part.write_text("\n".join(lines) + "\n", encoding="utf-8")
            self.pip("--require-hashes", "-r", str(part), *options)
        except OSError as error:
            raise from_os_error(error, f"installing {self.what}") from error
        finally:
            part.unlink(missing_ok=True)

    def remove(self, package: str) -> None:
        """Uninstall one package, if it is there."""
        command = [str(self.python), "-I", "-m", "pip", "uninstall", "--yes", "--disable-pip-version-check", package]
        subprocess.run(command, capture_output=True, env=clean_variables())

    def finish(self, locks: list[str], **facts) -> None:
        """Write the stamp: from now on the environment counts as installed."""
        stamp = {
            "locks": {name: locations.lock_digest(name) for name in locks},
            "python": self.python_version(),
            **facts,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S"),
        }
        try:
            files.write_text(self.stamp_path, json.dumps(stamp, indent=1) + "\n")
        except OSError as error:
            raise from_os_error(error, f"finishing {self.what}") from error


def lock_blocks(text: str) -> list[str]:
    """The requirements of a lock, each with its hashes, without comments."""
    blocks: list[str] = []
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if line.startswith(" "):
            blocks[-1] += "\n" + line
        else:
            blocks.append(line)
    return blocks


def damaged_distributions(environment: Path) -> list[Path]:
    """The `.dist-info` folders whose package does not have all its files in their full size."""
    packages = locations.site_packages_of(environment)
    if packages is None:
        return []
    damaged = []
    for info in sorted(packages.glob("*.dist-info")):
        try:
            with open(info / "RECORD", encoding="utf-8", newline="") as stream:
                rows = list(csv.reader(stream))
            whole = (info / "METADATA").is_file()
            for row in rows:
                if len(row) == 3 and row[2] and os.stat(packages / row[0]).st_size != int(row[2]):
                    whole = False
                    break
        except (OSError, ValueError):
            whole = False
        if not whole:
            damaged.append(info)
    for left in packages.glob("~*"):  # what pip moved aside when it was stopped
        shutil.rmtree(left, ignore_errors=True)
    return damaged


_held: tuple[int, ...] = ()
"""The lock's file while it is held. pip inherits it: if we are killed, pip may go on for a moment, and nobody may start."""


@contextlib.contextmanager
def exclusive():
    """Only one installation at a time; a second one waits, and says so. Freed by the system if we are killed."""
    home = locations.home()
    try:
        home.mkdir(parents=True, exist_ok=True)
        try:
            lock = files.Lock(home / ".lock")
        except BlockingIOError:
            say("  another installation is running; waiting for it")
            lock = files.Lock(home / ".lock", patience=math.inf)
    except OSError as error:
        raise from_os_error(error, "installing") from error
    global _held
    _held = () if os.name == "nt" else (lock.file.fileno(),)
    try:
        yield
    finally:
        _held = ()
        lock.release()


def _shortened(line: str) -> str:
    """A line of pip without the address of the index and without a list of thirty names."""
    words = line.partition(" (from ")[0].split(" ")
    text = " ".join(word.replace("\\", "/").split("/")[-1] for word in words)
    return text if len(text) <= 110 else text[:107] + "…"
