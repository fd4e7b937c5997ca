# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong while installing, as sentences: pip's output and the loader's messages go in, LimErrors come out."""

from __future__ import annotations

import re
import shutil

from lim_core.shared.errors import LimError

# shared library: (Debian and Ubuntu, Fedora)
LIBRARIES = {
    "libGL.so.1": ("libgl1", "libglvnd-glx"),
    "libEGL.so.1": ("libegl1", "libglvnd-egl"),
    "libOpenGL.so.0": ("libopengl0", "libglvnd-opengl"),
    "libGLU.so.1": ("libglu1-mesa", "mesa-libGLU"),
    "libX11.so.6": ("libx11-6", "libX11"),
    "libXext.so.6": ("libxext6", "libXext"),
    "libXi.so.6": ("libxi6", "libXi"),
    "libXxf86vm.so.1": ("libxxf86vm1", "libXxf86vm"),
    "libXfixes.so.3": ("libxfixes3", "libXfixes"),
    "libXrender.so.1": ("libxrender1", "libXrender"),
    "libXrandr.so.2": ("libxrandr2", "libXrandr"),
    "libXcursor.so.1": ("libxcursor1", "libXcursor"),
    "libXinerama.so.1": ("libxinerama1", "libXinerama"),
    "libxkbcommon.so.0": ("libxkbcommon0", "libxkbcommon"),
    "libwayland-client.so.0": ("libwayland-client0", "libwayland-client"),
    "libdecor-0.so.0": ("libdecor-0-0", "libdecor"),
    "libSM.so.6": ("libsm6", "libSM"),
    "libICE.so.6": ("libice6", "libICE"),
    "libdbus-1.so.3": ("libdbus-1-3", "dbus-libs"),
    "libgomp.so.1": ("libgomp1", "libgomp"),
    "libstdc++.so.6": ("libstdc++6", "libstdc++"),
    "libexpat.so.1": ("libexpat1", "expat"),
    "libz.so.1": ("zlib1g", "zlib"),
    "libasound.so.2": ("libasound2", "alsa-lib"),
    "libpulse.so.0": ("libpulse0", "pulseaudio-libs"),
    "libjack.so.0": ("libjack-jackd2-0", "pipewire-jack-audio-connection-kit-libs"),
}
_LIBRARY = re.compile(r"(lib[\w.+-]+\.so(?:\.\d+)*)")


def missing_libraries(text: str) -> list[str]:
    """Names of the shared libraries that an import error or `ldd` calls missing, each once, in order."""
    names = []
    for line in text.splitlines():
        if "not found" in line or "cannot open shared object" in line:
            match = _LIBRARY.search(line)
            if match and match.group(1) not in names:
                names.append(match.group(1))
    return names


def library_error(names: list[str], what: str) -> LimError:
    """The sentence that names the system packages to install.

    Args:
        what: what could not be started, for instance "Blender (bpy 4.5)".
    """
    known = [name for name in names if name in LIBRARIES]
    hints = []
    if known:
        debian = " ".join(dict.fromkeys(LIBRARIES[name][0] for name in known))
        fedora = " ".join(dict.fromkeys(LIBRARIES[name][1] for name in known))
        hints.append(f"Debian, Ubuntu: sudo apt install {debian} — Fedora: sudo dnf install {fedora}")
    unknown = [name for name in names if name not in LIBRARIES]
    if unknown:
        hints.append(f"Install the system package that holds {', '.join(unknown)}")
    code = "backend_broken" if "backend" in what else "blender_missing"
    plural = "libraries are" if len(names) > 1 else "library is"
    return LimError(
        code, f"{what} cannot start: the system {plural} missing: {', '.join(names)}.", ". ".join(hints) + "."
    )


def ensurepip_error(python: str, version: str) -> LimError:
    """This Python cannot make virtual environments."""
    return LimError(
        "backend_broken",
        f"The Python {version} at “{python}” cannot make environments: its module ensurepip is missing.",
        f"Debian, Ubuntu: sudo apt install python{version}-venv — Fedora: sudo dnf install python3-pip.",
    )


def pip_error(output: str, what: str, home: str) -> LimError:
    """Why pip failed, from the end of its output.

    Args:
        what: what was being installed, for instance "the backend".
        home: the folder that it goes to.
    """
    if re.search(r"No space left|Disk quota exceeded|\[Errno 28\]|\[WinError 112\]", output):
        free = _free(home)
        return LimError(
            "disk_full",
            f"The disk is full: {what} does not fit into “{home}”{free}.",
            "Free some space, or set the environment variable LIM_HOME to a folder on another disk, and run it again: "
            "what was installed so far is kept.",
        )
    if re.search(r"Read-only file system|Permission denied|\[Errno 30\]|\[Errno 13\]|\[WinError 5\]", output):
        return LimError(
            "read_only",
            f"Writing into “{home}” is not allowed.",
            "Set the environment variable LIM_HOME to a folder that you may write.",
        )
    if "DO NOT MATCH THE HASHES" in output:
        return LimError(
            "backend_broken",
            f"A download of {what} is not the file that this version was tested with, so it was not installed.",
            "The download may have been cut short or changed on its way; run it again. If it stays, the index or the "
            "folder of wheels holds another build: see --torch-index and --wheels.",
        )
    missing = re.search(r"No matching distribution found for (\S+)", output)
    if re.search(
        r"NewConnectionError|Max retries|name resolution|timed out|ProxyError|SSLError|Connection \w+", output
    ):
        return LimError(
            "backend_broken",
            f"The packages of {what} could not be downloaded: the network does not answer.",
            "Behind a proxy, set https_proxy; without a network, fetch the wheels elsewhere (pip download) and give "
            "their folder with --wheels. What was downloaded so far is kept.",
        )
    if missing:
        return LimError(
            "backend_broken",
            f"There is no build of {missing.group(1)} for this computer and this Python where pip looked.",
            "LIM runs on Linux and Windows (64 bit x86) and on Macs with Apple chips, with Python 3.10 to 3.13.",
        )
    end = "\n".join(output.strip().splitlines()[-12:])
    return LimError(
        "backend_broken", f"Installing {what} failed. pip said:\n{end}", "Run it again; finished parts are kept."
    )


def _free(folder: str) -> str:
    try:
        return f" ({shutil.disk_usage(folder).free / 1e9:.1f} GB free)"
    except OSError:
        return ""
