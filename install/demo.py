# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job from nothing: set up, run Blender without a window, put the pictures together, say where everything is."""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import time
from pathlib import Path

import backend
import blender
import environment
import locations
from environment import say
from lim_core.shared import files, protocol
from lim_core.shared.errors import LimError, from_os_error

RESULTS = {
    "result.blend": "the scene with the result: open it and press play",
    "result.glb": "the mesh with its morph targets, for an engine",
    "contact_sheet.png": "captured, interpolated and traced, side by side",
    "preview.gif": "the traced mesh, looping",
    "report.json": "what was done and how long it took",
}
"""What the demo writes, and the words for it."""

EXAMPLES = {
    "sculpts": ["--poses", "Blob pose 1,Blob pose 2,Blob pose 3", "--keyframes", "1,9,17"],
    "metaball": ["--objects", "Caterpillar", "--keyframes", "1,5,9,13,17"],
    "cut": ["--objects", "Melon", "--keyframes", "1,9,17"],
    "frames": ["--objects", "Slug 1,Slug 2,Slug 3,Slug 4", "--keyframes", "1,5,9,13"],
}
"""The scenes of install/scenes/poses_scene.py, and what of them is captured when."""


def run(arguments: argparse.Namespace) -> int:
    """Exit code of the job (lim_core/shared/protocol.py)."""
    began = time.monotonic()
    seconds: dict[str, float] = {}
    out = Path(arguments.out).resolve()
    source = Path(arguments.input).resolve() if arguments.input else None
    if source and arguments.example:
        raise LimError("bad_request", "--input and --example each name a scene.", "Give one of them.")
    if source and not source.exists():
        raise LimError("missing_file", f"There is no file “{arguments.input}”.", "Check the path.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, "making the folder for the results") from error

    def step(name: str, since: float) -> None:
        seconds[name] = round(time.monotonic() - since, 1)

    say("[1/4] The backend")
    start = time.monotonic()
    python = backend.ensure(arguments.device, wheels=arguments.wheels, torch_index=arguments.torch_index)
    step("backend", start)

    say("[2/4] Blender")
    start = time.monotonic()
    module = blender.ensure(arguments.blender, wheels=arguments.wheels)
    say(f"{module}")
    step("Blender", start)

    say(f"[3/4] {source.name if source else 'Our own scene'}: from the animation to one mesh")
    start = time.monotonic()
    for name in RESULTS:
        (out / name).unlink(missing_ok=True)  # what lies there afterwards is of this run
    if source is None:
        source = demo_scene(module, out, arguments.example)
        step("scene", start)
        start = time.monotonic()
    code = subprocess.call(
        module.command(locations.ROOT / "blender_addon" / "headless.py", job_options(arguments, source, python, out)),
        env=module.variables(),
    )
    step("job", start)
    if code:
        raise _failure(out / "report.json", code)

    say("[4/4] The contact sheet and the preview")
    start = time.monotonic()
    code = subprocess.call(
        [
            python,
            "-m",
            "lim_core",
            "sheet",
            out / "job",
            "--out",
            out / "contact_sheet.png",
            "--gif",
            out / "preview.gif",
        ],
        env=environment.clean_variables(PYTHONPATH=str(locations.ROOT), PYTHONSAFEPATH="1"),
    )
    step("pictures", start)
    if code:
        return code

    report_path = out / "report.json"
    report = json.loads(report_path.read_text(encoding="utf-8"))
    seconds["total"] = round(time.monotonic() - began, 1)
    report["steps"] = seconds
    files.write_text(report_path, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    _tell(out, report, seconds)
    return protocol.EXIT_RESULT


def demo_scene(module: blender.Blender, out: Path, example: str = "") -> Path:
    """Our own scene, built by a script; kept, because a file that did not change need not be captured again.

    Args:
        example: a key of `EXAMPLES`; "" is the dinosaur.
    """
    folder = locations.ROOT / "install" / "scenes"
    scripts = [folder / "demo_scene.py", *([folder / "poses_scene.py"] if example else [])]
    series = ".".join(module.version.split(".")[:2])  # an older Blender cannot open a newer one's file
    digest = hashlib.sha256(b"".join(script.read_bytes() for script in scripts)).hexdigest()[:8]
    path = out / "job" / f"{example or 'scene'}-{series}-{digest}.blend"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        run = subprocess.run(
            module.command(scripts[-1], [str(path), *([example] if example else [])]),
            env=module.variables(),
            capture_output=True,
            text=True,
            errors="replace",
        )
        if not path.is_file():
            end = "\n".join((run.stdout + run.stderr).strip().splitlines()[-8:])
            raise LimError("internal", f"The demo's scene could not be built:\n{end}")
    return path


def job_options(arguments: argparse.Namespace, source: Path, python: Path, out: Path) -> list[str]:
    """The options for headless.py. The job folder is kept: a second run does only what changed."""
    device = "cuda" if arguments.device == "rocm" else arguments.device  # what torch calls it
    options = ["--input", str(source)]
    options += ["--weights", str(Path(arguments.weights).resolve())] if arguments.weights else []
    if arguments.example:
        options += EXAMPLES[arguments.example]
    if arguments.keyframes:
        options += ["--keyframes", arguments.keyframes]  # the last one counts
    options += ["--inbetweens", str(arguments.inbetweens), "--quality", arguments.quality, "--device", device]
    options += ["--backend", str(python), "--job", str(out / "job"), "--previews"]
    options += ["--out", str(out / "result.blend"), "--glb", str(out / "result.glb")]
    return [*options, "--json", str(out / "report.json")]


def _failure(report: Path, code: int) -> LimError:
    """Why the job failed: from its report if it wrote one. Its own message is already on the screen."""
    try:
        said = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        said = {}
    if said.get("code") in protocol.ERROR_CODES:
        return LimError(said["code"], "The job failed; the reason stands above and in report.json.")
    return LimError("internal", f"Blender ended with code {code} before the job was done.", "Its last lines are above.")


def _tell(out: Path, report: dict, seconds: dict[str, float]) -> None:
    say("")
    for name, words in RESULTS.items():
        if (out / name).is_file():
            say(f"  {out / name}  {words}")
    say("")
    stages = {name: value for name, value in report.get("seconds", {}).items() if name != "total"}
    for name, value in seconds.items():
        say(f"  {name:10} {value:7.1f} s")
        if name == "job":
            for stage, spent in stages.items():
                say(f"    {stage:12} {spent:5.1f} s")
