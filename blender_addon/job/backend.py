# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the backend is installed, whether it is fit to run, and the commands that install and remove it. Plain Python."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
import threading
from pathlib import Path

from ...install import locations
from ...lim_core.shared.errors import LimError, from_os_error
from .. import ids
from .worker import clean_environment

INSTALL_HINT = "Install it in the add-on's preferences, or with “python3 install backend”."


def home(chosen: str = "") -> Path:
    """LIM_HOME: the folder chosen in the preferences, else the platform's."""
    return Path(os.path.abspath(os.path.expanduser(chosen))) if chosen else locations.home()


def python(chosen_home: str = "") -> Path:
    """The backend's Python; it need not exist."""
    return locations.python_of(home(chosen_home) / "backend")


def state(chosen_home: str = "") -> str:
    """ "ready", "outdated", "unfinished" (an installation was interrupted) or "missing". Reads two small files."""
    folder = home(chosen_home) / "backend"
    if not locations.python_of(folder).exists():
        return "missing"
    stamp = locations.stamp_of(folder)
    if not stamp:
        return "unfinished"
    return "ready" if stamp.get("locks", {}).get("backend") == locations.lock_digest("backend") else "outdated"


def check(python_path: str) -> None:
    """Raise LimError if the backend cannot be started, before any work is done for it."""
    if not python_path:
        raise LimError("backend_missing", "The backend that does the computing is not installed.", INSTALL_HINT)
    if not Path(python_path).is_file():
        raise LimError("backend_missing", f"The backend is not installed: there is no “{python_path}”.", INSTALL_HINT)
    folder = Path(python_path).parents[1]
    if folder.name != "backend" or Path(python_path) != locations.python_of(folder):
        return  # an environment of the user's own; the backend's first words tell whether it fits
    found = state(str(folder.parent))
    if found == "unfinished":
        raise LimError(
            "backend_broken",
            "The installation of the backend did not finish.",
            "Install it again; what was downloaded is kept.",
        )
    if found == "outdated":
        raise LimError(
            "backend_outdated",
            "The installed backend belongs to another version of the add-on.",
            "Install it again; what has not changed is kept.",
        )


def install_command(*, device: str = "auto", wheels: str = "", repair: bool = False) -> list[str]:
    """The command that installs the backend; run it with `environment`."""
    command = [sys.executable, "-I", "-u", "-X", "utf8", str(ids.ROOT / "install"), "backend", "--device", device]
    command += ["--wheels", wheels] if wheels else []
    return [*command, "--repair"] if repair else command


def uninstall_command() -> list[str]:
    """The command that removes all that the installer made; run it with `environment`."""
    return [sys.executable, "-I", "-u", "-X", "utf8", str(ids.ROOT / "install"), "uninstall"]


def environment(chosen_home: str = "") -> dict[str, str]:
    """Environment variables for these commands."""
    return {**clean_environment(), "LIM_HOME": str(home(chosen_home))}


class Command:
    """A running installer whose lines can be looked at without waiting.

    Args:
        command: program and arguments.
        environment: its environment variables.
    """

    def __init__(self, command: list[str], environment: dict[str, str]):
        self.stopped = False
        self._lines: collections.deque[str] = collections.deque(maxlen=12)
        options: dict = {}
        if sys.platform == "win32":
            options["creationflags"] = subprocess.CREATE_NO_WINDOW
        else:
            options["start_new_session"] = True  # pip's own children are stopped with it
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                **options,
            )
        except OSError as error:
            raise from_os_error(error, "starting the installer") from error
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    @property
    def last_line(self) -> str:
        """What it said last, for a status line."""
        return next((line for line in reversed(list(self._lines)) if line), "")

    @property
    def tail(self) -> str:
        """Its last paragraph: the sentence and the hint of an error."""
        self._reader.join(1.0)
        return "\n".join(self._lines).strip().rpartition("\n\n")[2]

    def stop(self) -> None:
        """End it with what it started; an installation goes on from there the next time."""
        self.stopped = True
        try:
            if os.name == "nt":
                self._process.terminate()
            else:
                os.killpg(self._process.pid, 15)
        except OSError:
            pass  # it has ended by itself

    def _read(self) -> None:
        assert self._process.stdout is not None  # a pipe
        for line in self._process.stdout:
            self._lines.append(line.decode("utf-8", "replace").rpartition("\r")[2].strip()[:200])
        self._process.stdout.close()
