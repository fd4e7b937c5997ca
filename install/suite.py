# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the tests: each layer in the environment that it is about, two layers side by side where there are two cores."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
    "remesh", "render", "rigid", "sheets", "steady", "surface", "texture", "trace",
)  # fmt: skip
"""Files of tests/core whose outcome hangs on how a processor rounds."""
QUICK = ("arap", "between", "evidence", "networks", "registration", "remesh", "rigid", "sheets", "surface", "trace")
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
SLOWEST = 20  # so many tests of each layer are named with their seconds


@dataclasses.dataclass(frozen=True)
class Run:
    """One pytest: its name on the screen, its command line and its environment."""

    name: str
    command: list[str]
    variables: dict[str, str]


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
        files, kernels = (QUICK, KERNELS[:2]) if pair else (NUMERIC, KERNELS)
        return processors(python, files, kernels, arguments.pytest, arguments.at_once if pair else 1)
    variables = {"LIM_BACKEND_PYTHON": str(python), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONFAULTHANDLER": "1"}
    runs = []
    outcomes = []
    for layer in LAYERS:
        if layer not in layers:
            continue
        if layer in STYLE:
            outcomes.append(_style(layer, python))
            continue
        options = [f"--durations={SLOWEST}", str(locations.ROOT / "tests" / layer), *arguments.pytest]
        if layer != "blender":
            runs.append(Run(layer, pytest_command(python, *options), environment.clean_variables(**variables)))
            continue
        for version in versions:
            module = blender.ensure(version, wheels=arguments.wheels)
            command = pytest_command(module.executable, *options)
            runs.append(Run(f"blender {version}", command, {**module.variables(), **variables}))
    for name, code, seconds in together(runs, arguments.at_once):
        outcome = "passed" if code == 0 else f"FAILED (pytest's exit code {code})"
        outcomes.append((name, outcome, seconds, code != 0))
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


def pytest_command(python: Path, *options: str) -> list[str]:
    """A command line that runs pytest and ends with its exit code."""
    colour = ["--color=yes"] if sys.stdout.isatty() else []  # its output goes through a file
    return [str(python), "-c", _RUNNER, "-p", "no:cacheprovider", *colour, *options]


# ---- side by side ------------------------------------------------------------------------------------------------------


def together(runs: list[Run], at_once: int) -> Iterator[tuple[str, int, float]]:
    """Name, exit code and seconds of every run, in their order, of which up to `at_once` are under way side by side.

    What a run prints stands whole below its name: that of the first that has not ended as it comes, that of the others when
    their turn is. Runs that share a machine share its cores, too: threads that wait for each other cost more than they gain.
    A single run at a time has the terminal for itself.
    """
    at_once = min(at_once, len(runs))
    if at_once < 2:
        for run in runs:
            say(f"\n==== {run.name}")
            started = time.monotonic()
            code = subprocess.call(run.command, cwd=locations.ROOT, env=run.variables)
            yield run.name, code, time.monotonic() - started
        return
    threads = str(max(1, (os.cpu_count() or 1) // at_once))
    shared = {"OMP_NUM_THREADS": threads, "LIM_THREADS": threads}
    processes: list[subprocess.Popen] = []

    def execute(run: Run, output: Path) -> tuple[int, float]:
        started = time.monotonic()
        with output.open("wb") as file:
            process = subprocess.Popen(
                run.command, cwd=locations.ROOT, env=shared | run.variables, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        processes.append(process)
        return process.wait(), time.monotonic() - started

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(at_once) as pool:
        outputs = [Path(folder) / str(number) for number in range(len(runs))]
        for output in outputs:
            output.touch()
        pending = [pool.submit(execute, run, output) for run, output in zip(runs, outputs)]
        try:
            for run, output, future in zip(runs, outputs, pending):
                say(f"\n==== {run.name}")
                _show(output, future)
                yield run.name, *future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                if process.poll() is None:
                    process.terminate()


def _show(output: Path, future: Future) -> None:
    """What a run has printed and prints until it ends."""
    with output.open("rb") as file:
        ended = False
        while not ended:
            ended = future.done()  # before the last look
            sys.stdout.buffer.write(file.read())
            sys.stdout.flush()
            if not ended:
                time.sleep(0.2)


# ---- one processor's several ways to compute --------------------------------------------------------------------------


def processors(
    python: Path, files: tuple[str, ...], kernels: tuple[dict[str, str], ...], extra: list[str], at_once: int = 1
) -> int:
    """The numeric tests under several kernels of this machine; exit code 0 if all pass under each of them."""
    names = [" ".join(f"{key}={value}" for key, value in kernel.items()) or "nothing set" for kernel in kernels]
    every = {key: "" for kernel in kernels for key in kernel}
    paths = [str(locations.ROOT / "tests" / "core" / f"test_{name}.py") for name in files]
    with tempfile.TemporaryDirectory() as folder:
        records = [Path(folder) / f"margins_{number}.json" for number in range(len(kernels))]
        runs = []
        for name, kernel, record in zip(names, kernels, records):
            variables = environment.clean_variables(
                PYTHONDONTWRITEBYTECODE="1", PYTHONFAULTHANDLER="1", PYTHONPATH=str(locations.ROOT / "tests")
            )
            variables = {key: value for key, value in variables.items() if key not in every} | kernel
            options = ["-q", "-p", "margins", "-o", "enable_assertion_pass_hook=true", "--margins", str(record)]
            runs.append(Run(name, pytest_command(python, *options, *paths, *extra), variables))
        for _ in together(runs, at_once):
            pass
        found = [json.loads(record.read_text(encoding="utf-8")) if record.exists() else {} for record in records]
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
