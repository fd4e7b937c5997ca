# SPDX-License-Identifier: GPL-3.0-or-later
"""The backend's environment: which build of torch, what is downloaded, and whether it starts afterwards."""

from __future__ import annotations

import json
import os
import platform
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

DEVICES = ("auto", "cpu", "cuda", "rocm", "mps")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")

_CHECK = """
import json, sys
import numpy, scipy.spatial, skimage.measure, safetensors.torch, xatlas, fast_simplification, PIL, jaxtyping
import torch
mps = getattr(torch.backends, "mps", None)
print(json.dumps({
    "torch": torch.__version__, "cuda": torch.cuda.is_available(), "rocm": bool(torch.version.hip),
    "mps": bool(mps and mps.is_available()), "name": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "",
}))
"""


def detect_device() -> str:
    """The kind of device that this computer seems to have: "cuda", "rocm", "mps" or "cpu"."""
    if sys.platform == "darwin":
        return "mps" if platform.machine() == "arm64" else "cpu"
    for program, arguments, device in (("nvidia-smi", ["-L"], "cuda"), ("rocminfo", [], "rocm")):
        if shutil.which(program):
            try:
                run = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=30)
            except (OSError, subprocess.TimeoutExpired):
                continue
            if run.returncode == 0 and ("GPU" in run.stdout or "gfx" in run.stdout):
                return device
    return "cpu"


def ensure(
    device: str = "auto",
    *,
    wheels: str = "",
    torch_index: str = "",
    extras: tuple[str, ...] = (),
    repair: bool = False,
    quiet: bool = False,
) -> Path:
    """Install what is missing of the backend and return its Python; a few milliseconds if nothing is.

    Args:
        device: one of DEVICES; "auto" keeps an installed one.
        wheels: a folder of wheels to install from instead of the index; "" asks the index.
        torch_index: the address of the index that torch alone comes from; its builds are not in the lock, so the
            version is held but the hash is not.
        extras: further locks, "test" or "training".
        repair: check every installed file again.
        quiet: say nothing if nothing is to do.
    """
    target = Environment(locations.backend_folder(), "the backend", PYTHONS)
    locks = ["backend", *extras]
    if not repair and not target.lacking(locks) and _as_asked(target.folder, device, torch_index):
        if not quiet:
            stamp = locations.stamp_of(target.folder)
            say(f"The backend is installed: “{target.folder}” (torch {stamp.get('torch')}, {stamp.get('device')}).")
        return target.python
    if wheels and not Path(wheels).is_dir():
        raise LimError("missing_file", f"There is no folder “{wheels}”.", "Give the folder that holds the wheels.")
    started = time.monotonic()
    with environment.exclusive():
        if repair or target.lacking(locks) or not _as_asked(target.folder, device, torch_index):
            _install(target, device, wheels, torch_index, locks)
    say(f"The backend is ready after {time.monotonic() - started:.0f} s: “{target.folder}”.")
    return target.python


def _as_asked(folder: Path, device: str, torch_index: str) -> bool:
    """Whether what is installed was asked for with the same device and the same index, or needs neither."""
    stamp = locations.stamp_of(folder)
    fits = device == "auto" or device in (stamp.get("device"), stamp.get("asked_device"))
    return fits and (not torch_index or stamp.get("torch_index") == torch_index)


def _install(target: Environment, device: str, wheels: str, torch_index: str, locks: list[str]) -> None:
    before = locations.stamp_of(target.folder)
    kept = before.get("locks", {})
    if device == "auto":
        device = before.get("device") or detect_device()
        if device == "rocm" and not torch_index and not wheels:
            say("  an AMD device is here; without --torch-index (torch's ROCm builds) the backend computes on the CPU")
            device = "cpu"
    if device == "rocm" and not torch_index and not wheels and before.get("device") != "rocm":
        raise LimError(
            "no_device",
            "torch's builds for AMD devices do not lie in the usual index.",
            "Give --torch-index with the address that pytorch.org shows for “ROCm”, or --wheels with a folder of them.",
        )
    if device == "mps" and detect_device() != "mps":
        raise LimError(
            "no_device", "“mps” is the device of Macs with Apple chips, and this is none.", "Use --device cpu."
        )
    say(f"Installing the backend for “{device}” into “{target.folder}”")
    locks = list(dict.fromkeys([*locks, *(name for name in kept if locations.lock_file(name).is_file())]))
    target.begin(fresh=bool(before) and bool(torch_index))
    source = ["--no-index", "--find-links", os.path.abspath(wheels)] if wheels else []
    unlocked = _torch_source(torch_index, wheels)
    if unlocked is None and device == "cpu" and sys.platform == "linux":
        _install_cpu_torch(target, source)
    elif device != "cpu" and target.versions_installed().get("torch", "").endswith("+cpu"):
        target.remove("torch")
    target.announce([name for name in locks if name != "cuda"])
    if unlocked is not None:
        version = next(
            v for name, v, _ in environment.locked_packages("backend", target.python_version()) if name == "torch"
        )
        say(
            f"  torch {version} from {torch_index or wheels}: its build is not in the lock, so only its version is held"
        )
        target.pip(f"torch=={version}", *unlocked)
        target.install("backend", *source, without=("torch",))
    else:
        target.install("backend", *source, only={"torch": ""})
        target.install("backend", *source, without=("torch",))
    # The usual index's build for Linux is the one for CUDA, and it does not start without NVIDIA's libraries.
    torch_version = target.versions_installed().get("torch", "")
    if sys.platform == "linux" and unlocked is None and "+" not in torch_version:
        if device == "cpu":
            say("  your index holds torch's CUDA build, which needs NVIDIA's libraries even on the CPU.")
            say("  For the small CPU build give --torch-index with the address that pytorch.org shows for “CPU”.")
        target.announce(["cuda"])
        target.install("cuda", *source)
        locks = list(dict.fromkeys([*locks, "cuda"]))
    for name in locks:
        if name not in ("backend", "cuda"):
            target.install(name, *source)
    facts = check(target.python)
    found = "rocm" if facts["rocm"] and facts["cuda"] else "cuda" if facts["cuda"] else "mps" if facts["mps"] else "cpu"
    if device not in ("cpu", found):
        text = (
            f"torch {facts['torch']} is installed but does not find the device “{device}”: it will compute on the CPU."
        )
        if device in ("cuda", "rocm") and "+cpu" in facts["torch"] or sys.platform == "win32":
            text += " It is a CPU build: give --torch-index with the address that pytorch.org shows for your device."
        say("  " + text)
    works = device if device in (found, "cpu") else "cpu"
    index = torch_index or before.get("torch_index", "")
    target.finish(locks, device=works, asked_device=device, torch=facts["torch"], torch_index=index)


def _install_cpu_torch(target: Environment, source: list[str]) -> None:
    """Install a CPU build that the lock lists, if pip's index or wheel folders have one for this Python.

    pip would choose the index's CUDA build before it, because it knows that one's hash without opening the file.
    """
    try:
        target.install("backend", *source, only={"torch": "+cpu"})
    except LimError as error:
        if "There is no build" not in error.message:
            raise


def _torch_source(torch_index: str, wheels: str) -> list[str] | None:
    """pip's options for a torch that the lock does not list, or None if the lock's own is to be taken."""
    if torch_index:
        return ["--index-url", torch_index]
    if wheels and any("+" in path.name for path in Path(wheels).glob("torch-*.whl")):
        import hashlib

        known = locations.lock_file("backend").read_text(encoding="utf-8")
        for path in Path(wheels).glob("torch-*+*.whl"):
            digest = hashlib.sha256()
            with open(path, "rb") as stream:
                while block := stream.read(1 << 22):
                    digest.update(block)
            if digest.hexdigest() not in known:
                return ["--no-index", "--find-links", os.path.abspath(wheels)]
    return None


def check(python: Path) -> dict:
    """Import everything once; {"torch", "cuda", "rocm", "mps", "name"}. Raises LimError backend_broken."""
    run = subprocess.run(
        [python, "-I", "-W", "ignore", "-c", _CHECK], capture_output=True, text=True, env=environment.clean_variables()
    )
    if run.returncode:
        missing = problems.missing_libraries(run.stderr)
        if missing:
            raise problems.library_error(missing, "The backend")
        end = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise LimError("backend_broken", f"The backend is installed but does not start: {end}", "Run it with --repair.")
    return json.loads(run.stdout.strip().splitlines()[-1])


def run_core(arguments: list[str]) -> int:
    """`python -m lim_core ARGUMENTS` in the backend, in the current folder; installs the backend first if need be."""
    python = ensure(quiet=True)
    variables = environment.clean_variables(PYTHONPATH=str(locations.ROOT), PYTHONSAFEPATH="1")
    installed = [path for path in sorted(locations.home().glob("blender-*.*")) if locations.stamp_of(path)]
    if installed:  # for `bake`, which starts Blender
        variables.setdefault("LIM_BLENDER_PYTHON", str(locations.python_of(installed[-1])))
    command = [str(python), "-m", "lim_core", *arguments]
    if os.name == "nt":
        return subprocess.call(command, env=variables)
    sys.stdout.flush()
    os.execve(command[0], command, variables)
