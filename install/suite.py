# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the tests: each layer in the environment that it is about, one pytest after the other."""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import backend
import blender
import environment
import locations
import type_check
from environment import say
from lim_core.shared import protocol

# The bpy module of 4.2 can crash while the interpreter ends, which would turn a pass into a failure.
_RUNNER = (
    "import os, sys, pytest; code = pytest.main(sys.argv[1:]); sys.stdout.flush(); sys.stderr.flush(); os._exit(code)"
)
STYLE = ("rules", "form", "types")
"""What the layer `style` stands for: ruff's rules, ruff's form, and the type gate (type_check.py)."""
LAYERS = (*STYLE, "plain", "core", "blender")
NUMERIC = (
    "arap", "between", "contacts", "evidence", "fit", "networks", "observation", "one_job", "point_motion", "reduction", "registration",
    "remesh", "render", "steady", "surface", "texture", "trace",
)  # fmt: skip
"""Files of tests/core whose outcome hangs on how a processor rounds."""
QUICK = ("arap", "between", "evidence", "networks", "registration", "remesh", "surface", "trace")
"""Those of them that CI runs twice."""
KERNELS: tuple[dict[str, str], ...] = (
    {},
    {"OPENBLAS_CORETYPE": "Haswell"},
    {"OPENBLAS_CORETYPE": "SkylakeX"},
    {"OPENBLAS_CORETYPE": "Zen"},
    {"OPENBLAS_CORETYPE": "Sandybridge"},
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"ATEN_CPU_CAPABILITY": "avx512"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"OMP_NUM_THREADS": "1", "LIM_THREADS": "1"},
    {"OMP_NUM_THREADS": "2", "LIM_THREADS": "2"},
)
"""Ways of one processor to compute the same, as variables of the environment; the first is the one that others are held against."""
THIN = 2.0  # a margin below this is shown


def run(arguments: argparse.Namespace) -> int:
    """Exit code: 0 if every run passed, 1 if one did not, 2 for an unknown layer or version."""
    layers = [part for name in arguments.layer.split(",") if name for part in (STYLE if name == "style" else (name,))]
    versions = [name for name in arguments.blender.split(",") if name]
    for name, known in [(name, LAYERS) for name in layers] + [(name, blender.WHEELS) for name in versions]:
        if name not in known:
            say(f"“{name}” is none of {', '.join(known)}.")
            return protocol.EXIT_USAGE
    python = backend.ensure(wheels=arguments.wheels, extras=("test", "training"), quiet=True)
    if arguments.processors:
        pair = arguments.processors == "pair"
        return processors(python, QUICK if pair else NUMERIC, KERNELS[:2] if pair else KERNELS, arguments.pytest)
    variables = {"LIM_BACKEND_PYTHON": str(python), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONFAULTHANDLER": "1"}
    runs = []
    outcomes = []
    for layer in LAYERS:
        if layer not in layers:
            continue
        if layer in STYLE:
            outcomes.append(_style(layer, python))
            continue
        if layer != "blender":
            runs.append((layer, python, environment.clean_variables(**variables)))
            continue
        for version in versions:
            module = blender.ensure(version, wheels=arguments.wheels)
            runs.append((f"blender {version}", module.executable, {**module.variables(), **variables}))
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


def _style(part: str, python: Path) -> tuple[str, str, float, bool]:
    """One of STYLE, over everything: its row of the outcomes."""
    say(f"\n==== {part}")
    started = time.monotonic()
    if part == "types":
        failed = not type_check.run(python)
    else:
        options = ["check"] if part == "rules" else ["format", "--check"]
        failed = bool(subprocess.call([str(python), "-m", "ruff", *options, "--no-cache", "."], cwd=locations.ROOT))
    return part, "FAILED" if failed else "passed", time.monotonic() - started, failed


def _pytest(python: Path, folder: Path, extra: list[str], variables: dict[str, str]) -> int:
    command = [str(python), "-c", _RUNNER, "-p", "no:cacheprovider", str(folder), *extra]
    return subprocess.call(command, cwd=locations.ROOT, env=variables)


# ---- one processor's several ways to compute --------------------------------------------------------------------------


def processors(python: Path, files: tuple[str, ...], kernels: tuple[dict[str, str], ...], extra: list[str]) -> int:
    """The numeric tests under several kernels of this machine; exit code 0 if all pass under each of them."""
    found: list[dict] = []
    names = [" ".join(f"{key}={value}" for key, value in kernel.items()) or "nothing set" for kernel in kernels]
    every = {key: "" for kernel in kernels for key in kernel}
    paths = [str(locations.ROOT / "tests" / "core" / f"test_{name}.py") for name in files]
    with tempfile.TemporaryDirectory() as folder:
        for name, kernel in zip(names, kernels):
            say(f"\n==== {name}")
            record = Path(folder) / "margins.json"
            variables = environment.clean_variables(
                PYTHONDONTWRITEBYTECODE="1", PYTHONFAULTHANDLER="1", PYTHONPATH=str(locations.ROOT / "tests")
            )
            variables = {key: value for key, value in variables.items() if key not in every} | kernel
            options = ["-q", "-p", "margins", "-o", "enable_assertion_pass_hook=true", "--margins", str(record)]
            command = [str(python), "-c", _RUNNER, "-p", "no:cacheprovider", *options, *paths, *extra]
            record.unlink(missing_ok=True)
            subprocess.call(command, cwd=locations.ROOT, env=variables)
            found.append(json.loads(record.read_text(encoding="utf-8")) if record.exists() else {})
    lines, sound = differences(names, found)
    say("\n" + "\n".join(lines))
    return 0 if sound else 1


def differences(names: list[str], found: list[dict]) -> tuple[list[str], bool]:
    """What to say of the outcomes and margins of the same tests under several kernels, and whether all passed everywhere.

    Args:
        names: of the kernels, the first being what the others are held against.
        found: for each kernel what tests/margins.py wrote; empty where it did not come to an end.
    """
    lines, sound = [], True
    for name, tests in zip(names, found):
        failed = sorted(test for test, result in tests.items() if result["outcome"] == "failed")
        sound = sound and bool(tests) and not failed
        lines.append(
            f"{name}: {len(tests)} tests" + (f", {len(failed)} FAILED" if failed else "")
            if tests
            else f"{name}: ENDED EARLY"
        )
        lines += [f"    {test}" for test in failed]
    for test in sorted(set().union(*found)):
        outcomes = {tests[test]["outcome"] for tests in found if test in tests}
        if len(outcomes) > 1:
            lines.append(f"{test}: {', '.join(sorted(outcomes))}")
        for line in sorted({line for tests in found for line in tests.get(test, {}).get("margins", {})}, key=int):
            margins = [tests.get(test, {}).get("margins", {}).get(line) for tests in found]
            known = [margin for margin in margins if margin is not None]
            if max(known) > 1.05 * min(known) and min(known) < THIN:
                worst = names[margins.index(min(known))]
                lines.append(f"{test}, line {line}: margin {min(known):.2f} to {max(known):.2f}, least with {worst}")
    return lines, sound
