# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the tests: each layer in the environment that it is about, one pytest after the other."""

from __future__ import annotations

import argparse
import subprocess
import time
from pathlib import Path

import backend
import blender
import environment
import locations
from environment import say
from lim_core.shared import protocol

# The bpy module of 4.2 can crash while the interpreter ends, which would turn a pass into a failure.
_RUNNER = (
    "import os, sys, pytest; code = pytest.main(sys.argv[1:]); sys.stdout.flush(); sys.stderr.flush(); os._exit(code)"
)
LAYERS = ("plain", "core", "blender")


def run(arguments: argparse.Namespace) -> int:
    """Exit code: 0 if every run passed, 1 if one did not, 2 for an unknown layer or version."""
    layers = [name for name in arguments.layer.split(",") if name]
    versions = [name for name in arguments.blender.split(",") if name]
    for name, known in [(name, LAYERS) for name in layers] + [(name, blender.WHEELS) for name in versions]:
        if name not in known:
            say(f"“{name}” is none of {', '.join(known)}.")
            return protocol.EXIT_USAGE
    python = backend.ensure(wheels=arguments.wheels, extras=("test", "training"), quiet=True)
    variables = {"LIM_BACKEND_PYTHON": str(python), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONFAULTHANDLER": "1"}
    runs = []
    for layer in LAYERS:
        if layer not in layers:
            continue
        if layer != "blender":
            runs.append((layer, python, environment.clean_variables(**variables)))
            continue
        for version in versions:
            module = blender.ensure(version, wheels=arguments.wheels)
            runs.append((f"blender {version}", module.executable, {**module.variables(), **variables}))
    outcomes = []
    for name, executable, changed in runs:
        folder = locations.ROOT / "tests" / name.split()[0]
        if not any(folder.rglob("test_*.py")):
            outcomes.append((name, "has no tests", 0.0, False))
            continue
        say(f"\n==== {name}")
        started = time.monotonic()
        code = _pytest(executable, folder, arguments.pytest, changed)
        outcomes.append(
            (
                name,
                "passed" if code == 0 else f"FAILED (pytest's exit code {code})",
                time.monotonic() - started,
                code != 0,
            )
        )
    say("")
    for name, outcome, seconds, _ in outcomes:
        say(f"{name:12} {outcome:34} {seconds:6.0f} s")
    return 1 if any(failed for *_, failed in outcomes) or not outcomes else 0


def _pytest(python: Path, folder: Path, extra: list[str], variables: dict[str, str]) -> int:
    command = [str(python), "-c", _RUNNER, "-p", "no:cacheprovider", str(folder), *extra]
    return subprocess.call(command, cwd=locations.ROOT, env=variables)
