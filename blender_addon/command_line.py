# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line of the Blender side: `headless.py` and `blender --command lim` run this same code.

Exit codes are those of `lim_core/shared/protocol.py`. The report (`--json`) is written however the job ends:
`{"status": "done" | "error" | "cancelled", "code", "message", "hint", "exit_code", "blend", "glb", "exports", "object", "clip",
"job", "keyframes", "frames", "vertices", "seconds": {stage: s}, "warnings": [{"code", "message", "hint"}]}`; for a video
also `"camera"`.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import bpy

from ..lim_core import __version__
from ..lim_core.shared import protocol, request, video_options
from ..lim_core.shared.errors import Cancelled, LimError, as_lim_error, from_os_error
from ..lim_core.shared.request import Request
from . import folders, ids
from .job import asking, job_folders, jobs
from .job.asking import scene_named
from .job.background import capture_only
from .result import vertex_colours
from .result.export import EXPORTS, export
from .source import clip_camera, import_video, keyframes, rendered

VIDEO_OPTIONS = {option: values for option, values in video_options.OPTIONS.items() if values[0] != "weights"}
"""The backend's own options for a clip, by the same names."""


class _Usage(Exception):
    """A wrong command line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise _Usage(message)


def parser(program: str = "blender -b scene.blend --python blender_addon/headless.py --") -> argparse.ArgumentParser:
    """The options, for every way to run without a window."""
    top = _Parser(prog=program, description="One textured mesh with shape keys from anything that moves.")
    top.add_argument("--version", action="version", version=f"LIM for Blender {__version__}")

    source = top.add_argument_group("source")
    source.add_argument(
        "--input",
        default="",
        metavar="FILE",
        help="open or import this first: .blend, .glb, …, or a folder of numbered meshes",
    )
    source.add_argument(
        "--clip",
        default="",
        help="clip to play, or several: A,B; default: an import's first that moves, and all that move something else",
    )
    source.add_argument("--scene", default="", help="scene of the file; default: the active one")
    what = source.add_mutually_exclusive_group()
    what.add_argument("--objects", metavar="A,B", help="objects to capture; default: all that a render would show")
    what.add_argument("--collection", metavar="C", help="capture the objects of this collection")
    what.add_argument("--poses", metavar="P1,P2,P3", help="one object per keyframe; their meshes need not correspond")
    source.add_argument(
        "--keyframes", metavar="1,9,17", help="frames, “1-17/4”, “markers” or “keys”; default: up to five of the keys"
    )
    source.add_argument("--frame-range", metavar="FIRST:LAST", help="refuse keyframes outside; default: the scene's")
    source.add_argument("--no-align", action="store_true", help="leave poses where they stand in the scene")

    clip = top.add_argument_group("a video instead of a scene")
    clip.add_argument(
        "--video", default="", metavar="FILE", help="a film, a folder of pictures, or one picture of a sequence"
    )
    clip.add_argument("--foreground", choices=request.FOREGROUNDS, help="what tells the object from its background")
    for option, (field, kind, words) in VIDEO_OPTIONS.items():
        clip.add_argument(option, dest=field, type=kind, help=words)
    clip.add_argument("--start", dest="video_start", type=float, help="scene frame at which the clip begins (1)")
    clip.add_argument(
        "--match-clip", action="store_true", help="give the scene the clip's resolution, frame rate, range and camera"
    )

    how = top.add_argument_group("result")
    how.add_argument(
        "--inbetweens",
        type=int,
        default=Request.inbetweens,
        metavar="N",
        help="frames made between two keyframes (%(default)s)",
    )
    how.add_argument("--template", metavar="OBJECT", help="carry this mesh instead of “reconstructed”")
    how.add_argument("--quality", choices=tuple(request.QUALITIES), default=request.QUALITY)
    how.add_argument("--no-fit", action="store_true", help="do not pull the keyframes onto the captured depth")
    how.add_argument(
        "--smoothness",
        type=float,
        default=Request.smoothness,
        metavar="0..1",
        help="how firmly neighbours stay together",
    )
    how.add_argument(
        "--max-keys",
        type=int,
        default=Request.max_keys,
        metavar="N",
        help="at most N shape keys; default: one per frame",
    )
    how.add_argument("--name", default=Request.name, help="name of the resulting object")

    with_what = top.add_argument_group("computing")
    with_what.add_argument("--device", choices=request.DEVICES, default=Request.device)
    with_what.add_argument("--engine", choices=("cycles", "workbench"), default="cycles", help="what captures colour")
    with_what.add_argument("--backend", default="", metavar="PYTHON", help="Python of the backend's environment")
    with_what.add_argument("--weights", default="", metavar="DIR", help="folder of the checkpoints")
    with_what.add_argument("--job", default="", metavar="DIR", help="job folder; used again, it resumes the job")

    out = top.add_argument_group("output")
    out.add_argument("--out", default="", metavar="FILE.blend", help="save the scene with the result")
    out.add_argument("--glb", default="", metavar="FILE.glb", help="export the result")
    out.add_argument(
        "--export", action="append", default=[], metavar="FILE", help=f"export by suffix: {' '.join(EXPORTS)}"
    )
    out.add_argument("--vertex-colours", action="store_true", help="bake the texture into the colour attribute “Color”")
    out.add_argument(
        "--previews", action="store_true", help="render the result from the job's cameras, into the job folder"
    )
    out.add_argument("--json", default="", metavar="FILE.json", help="write a report, however the job ends")
    out.add_argument("--quiet", action="store_true", help="print errors only")
    top.add_argument("--capture-only", default="", help=argparse.SUPPRESS)
    return top


def main(argv: list[str], program: str | None = None) -> int:
    """Run one job by its command line; returns the exit code, and never raises for what goes wrong."""
    began = time.monotonic()
    options = argparse.Namespace(json=_json_of(argv), quiet=False)
    report: dict = {"status": "error", "code": "", "message": "", "hint": "", "exit_code": protocol.EXIT_CRASH}
    try:
        options = (parser(program) if program else parser()).parse_args(_joined(argv))
        if options.capture_only:
            return capture_only(options.capture_only, options.input)
        if program and not (options.input or options.video):
            raise _Usage("name the file with --input")  # the scene that Blender starts with is nobody's
        _check_video_options(options)
        report.update(_generate(options))
        report.update(status="done", exit_code=protocol.EXIT_RESULT)
    except SystemExit as ended:  # --help, --version
        return int(ended.code or 0)
    except _Usage as error:
        report.update(code="usage", message=f"{str(error).capitalize()}.", hint="--help lists the options.")
        report["exit_code"] = protocol.EXIT_USAGE
    except (Cancelled, KeyboardInterrupt) as error:
        report.update(status="cancelled", message="The job was cancelled.", exit_code=protocol.EXIT_CANCELLED)
        report.update(getattr(error, "report", {}))
    except Exception as error:
        found = as_lim_error(error)
        report.update(code=found.code, message=found.message, hint=found.hint)
        report.update(exit_code=protocol.ERROR_CODES[found.code][0], **getattr(error, "report", {}))
    report.setdefault("seconds", {})["total"] = round(time.monotonic() - began, 3)
    _tell(report, options)
    return report["exit_code"]


def _generate(options: argparse.Namespace) -> dict:
    """Run the job and save what was asked for; the report's fields."""
    outputs = _check_outputs(options)
    settings, scene = settings_for(options)
    job = jobs.Job(scene, settings, on_event=_Printer(options.quiet))
    before = _cancel_on_signal(job)
    report: dict = {"keyframes": list(settings.keyframes), "warnings": job.warnings, "seconds": job.seconds}
    report["clip"] = settings.clip
    try:
        outcome = job.run()
        report.update(
            object=outcome.object_name,
            frames=outcome.request.frames(),
            vertices=outcome.result.get("vertices"),
            metrics=outcome.result.get("metrics", {}),
            keyframes=list(outcome.request.keyframes),
        )
        report["job"] = str(outcome.job_folder)
        _finish_result(scene, bpy.data.objects[outcome.object_name], options, report)
        began = time.monotonic()
        report.update(_save(outcome.object_name, outputs))
        job.seconds["export"] = round(time.monotonic() - began, 3)
        if options.previews:
            from .result.render_preview import render_previews

            if not options.quiet:
                print("[lim] Rendering the result", flush=True)
            began = time.monotonic()
            render_previews(scene, bpy.data.objects[outcome.object_name], outcome.job_folder)
            job.seconds["previews"] = round(time.monotonic() - began, 3)
        return report
    except (Exception, KeyboardInterrupt) as error:
        # What is known about a failed or cancelled job belongs in its report too.
        error.report = {**report, "job": str(job.folder or "")}
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finish_result(scene: bpy.types.Scene, result: bpy.types.Object, options: argparse.Namespace, report: dict) -> None:
    """What is asked for beyond the mesh, and what the report says of it."""
    if options.vertex_colours:
        vertex_colours.bake(result)
    camera = clip_camera.camera_of(result)
    if camera is None:
        return
    report["camera"] = camera.name
    if options.match_clip:
        clip_camera.match_scene(scene, camera)
    other = clip_camera.differences(scene, camera)
    if other and not options.quiet:
        print(f"[lim] The scene has another {', '.join(other)} than the clip; --match-clip sets that.", flush=True)


def _check_video_options(options: argparse.Namespace) -> None:
    """A clip and a scene's source exclude each other."""
    if options.video:
        scenes = ("objects", "collection", "poses", "keyframes", "frame_range", "template", "clip")
        wrong = [f"--{name.replace('_', '-')}" for name in scenes if getattr(options, name)]
        if wrong:
            raise _Usage(f"{wrong[0]} does not go with --video")
        return
    given = [option for option, (field, _, _) in VIDEO_OPTIONS.items() if getattr(options, field) is not None]
    given += ["--foreground"] * (options.foreground is not None) + ["--start"] * (options.video_start is not None)
    given += ["--match-clip"] * options.match_clip
    if given:
        raise _Usage(f"{given[0]} needs --video")


def _common(options: argparse.Namespace) -> dict:
    """The settings that every source has."""
    return dict(
        quality=options.quality,
        fit=not options.no_fit,
        smoothness=options.smoothness,
        max_keys=options.max_keys,
        device=options.device,
        name=options.name,
        backend=os.path.abspath(options.backend) if options.backend else folders.backend_python(),
        weights=os.path.abspath(options.weights) if options.weights else folders.weights_folder(),
        cache=folders.cache_folder(),
        job=os.path.abspath(options.job) if options.job else "",
    )


def video_settings_for(options: argparse.Namespace) -> tuple[asking.Settings, bpy.types.Scene]:
    """The settings of a video's job, and the scene that the result goes into: that of the file, else an empty one."""
    from .source import import_file

    if options.input:
        import_file.open_or_import(options.input)
    elif not bpy.data.filepath:
        bpy.ops.wm.read_factory_settings(use_empty=True)
    fields = ("foreground", "video_start", *(field for field, _, _ in VIDEO_OPTIONS.values()))
    given = {field: getattr(options, field) for field in fields if getattr(options, field) is not None}
    clip = {"video": import_video.absolute(options.video), **given}
    return asking.Settings(source="video", video=clip, **_common(options)), scene_named(options.scene)


def settings_for(options: argparse.Namespace) -> tuple[asking.Settings, bpy.types.Scene]:
    """Open the input, and turn the options into a job's settings for the scene that is then current."""
    from .source import import_file

    if options.video:
        return video_settings_for(options)
    opened = import_file.Opened([])
    unchanged = bpy.data.filepath if _only_we_run() and not bpy.data.is_dirty else ""
    if options.input:
        opened = import_file.open_or_import(options.input, options.clip)
        unchanged = str(Path(options.input).resolve())
    scene = scene_named(options.scene)
    source, objects, notes = _objects(options, scene)
    if options.clip and not opened.clips:
        where = Path(bpy.data.filepath).name or "the scene"
        opened.clips, _ = import_file.choose_clips(objects, options.clip, where)
    start, end = float(scene.frame_start), float(scene.frame_end)
    if options.frame_range:
        start, end = _frame_range(options.frame_range)
    if source == "poses" and not options.keyframes:
        frames: tuple[float, ...] = keyframes.every(start, start + 8.0 * (len(objects) - 1), 8.0)
        end = max(end, frames[-1])
    elif options.keyframes == "markers":
        frames = keyframes.within(keyframes.of_markers(scene), start, end)
    elif options.keyframes == "keys":
        frames = keyframes.within(keyframes.of_actions(objects), start, end)
    elif options.keyframes is not None:
        frames = keyframes.parse(options.keyframes)
    else:
        frames = keyframes.default(objects, start, end)
    if opened.imported and not options.frame_range and source == "objects":
        keys = keyframes.of_actions(objects)  # an import's own times need not be whole frames
        start, end = min((start, *keys)), max((end, *keys))
    template_object = "" if options.template in (None, "reconstructed") else options.template
    settings = asking.Settings(
        objects=tuple(object.name for object in objects),
        keyframes=frames,
        source=source,
        frame_range=(start, end),
        inbetweens=options.inbetweens,
        template="mesh" if template_object else "reconstructed",
        template_object=template_object,
        align_poses=not options.no_align,
        engine=options.engine,
        clip=", ".join(opened.clips),
        notes=(*opened.notes, *notes),
        unchanged_file=unchanged,
        **_common(options),
    )
    return settings, scene


# ---- what the options name -----------------------------------------------------------------------------------------


def _objects(
    options: argparse.Namespace, scene: bpy.types.Scene
) -> tuple[str, list[bpy.types.Object], list[tuple[str, str, str]]]:
    """The kind of source, its objects, and what there is to tell of them."""
    if options.collection is not None:
        collection = bpy.data.collections.get(options.collection)
        if collection is None:
            raise LimError("nothing_selected", f"There is no collection “{options.collection}”.", "Check the name.")
        objects = [object for object in collection.all_objects if rendered.has_surface(object)]
        if not objects:
            raise LimError(
                "nothing_selected",
                f"The collection “{collection.name}” holds nothing with a surface.",
                "Choose another.",
            )
        return "objects", objects, []
    listed = options.poses if options.poses is not None else options.objects
    if listed is None:
        found = rendered.everything(scene, ids.COLLECTION)
        if not found.objects:
            raise LimError(
                "nothing_selected",
                f"The scene “{scene.name}” holds nothing that a render would show.",
                "Name --objects.",
            )
        return "objects", found.objects, rendered.notes(found.left_out)
    objects = []
    for name in _names(listed, scene):
        if name not in scene.objects:
            raise LimError(
                "nothing_selected", f"There is no object “{name}” in the scene “{scene.name}”.", "Check the name."
            )
        objects.append(scene.objects[name])
    return ("poses" if options.poses is not None else "objects"), objects, []


def _names(listed: str, scene: bpy.types.Scene) -> list[str]:
    if listed in scene.objects:  # a name may hold a comma itself
        return [listed]
    return [part.strip() for part in listed.split(",") if part.strip()]


def _frame_range(text: str) -> tuple[float, float]:
    parts = text.split(":")
    try:
        first, last = (float(part) for part in parts)
    except ValueError:
        raise LimError("bad_request", f"“{text}” is not a frame range.", "Type it as 1:48.") from None
    return first, last


def _only_we_run() -> bool:
    """Whether no other script can have changed the file since it was opened."""
    before = sys.argv[: sys.argv.index("--")] if "--" in sys.argv else sys.argv
    scripts = ("--python", "-P", "--python-expr", "--python-text", "--python-console")
    return sum(argument in scripts for argument in before) <= 1 and bpy.app.background


# ---- output --------------------------------------------------------------------------------------------------------
def _check_outputs(options: argparse.Namespace) -> dict[str, list[Path] | Path | None]:
    """The files to write. Raises before the long work, not after it, if one cannot be written."""
    exports = [Path(path) for path in options.export]
    glb = Path(options.glb) if options.glb else None
    blend = Path(options.out) if options.out else None
    if not (exports or glb or blend):
        raise _Usage("nothing would be written: give --out, --glb or --export")
    if glb and glb.suffix.lower() != ".glb":
        raise _Usage(f"--glb wants a name that ends in .glb, not “{glb.name}”")
    if blend and blend.suffix.lower() != ".blend":
        raise _Usage(f"--out wants a name that ends in .blend, not “{blend.name}”")
    for path in exports:
        if path.suffix.lower() not in EXPORTS:
            raise _Usage(f"“{path.name}” cannot be exported; use {', '.join(EXPORTS)}")
    report = Path(options.json) if options.json else None
    for path in (blend, glb, report, *exports):
        if path:
            check_writable(path)
    return {"blend": blend and blend.resolve(), "glb": glb and glb.resolve(), "exports": [p.resolve() for p in exports]}


def check_writable(path: Path) -> None:
    """Make the folder and try it. Raises LimError read_only, disk_full or missing_file."""
    folder = path.resolve().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if path.exists():
            with open(path, "r+b"):
                pass
    except OSError as error:
        error.filename = str(path)
        raise from_os_error(error) from error


def _save(object_name: str, outputs: dict) -> dict:
    written = bpy.data.objects[object_name]
    report: dict = {"blend": "", "glb": "", "exports": []}
    for path in [path for path in (outputs["glb"], *outputs["exports"]) if path]:
        report["exports"] += [str(file) for file in export(written, path)]
    report["glb"] = str(outputs["glb"] or "")
    if outputs["blend"]:
        try:
            bpy.ops.wm.save_as_mainfile(filepath=str(outputs["blend"]), check_existing=False)
        except RuntimeError as error:
            job_folders.check_space(outputs["blend"].parent, 64 << 20)
            raise LimError(
                "read_only", f"“{outputs['blend']}” could not be saved: {str(error).strip()}", "Choose another place."
            ) from error
        report["blend"] = str(outputs["blend"])
    return report


class _Printer:
    """Prints a job's events for people, one line per stage and per ten percent."""

    def __init__(self, quiet: bool):
        self.quiet = quiet
        self.tenth = -1
        self.label = ""

    def __call__(self, event: dict) -> None:
        if event["event"] == "warning":
            print(f"Warning: {event['message']} {event['hint']}".rstrip(), file=sys.stderr, flush=True)
        elif self.quiet:
            return
        elif event["event"] == "stage" and event["label"] != self.label:
            self.label = event["label"]
            print(f"[lim] {self.label}", flush=True)
        elif event["event"] == "progress" and int(event["fraction"] * 10) > self.tenth:
            self.tenth = int(event["fraction"] * 10)
            print(f"[lim] {self.tenth * 10:3d} %{in_words(event['seconds_left'])}", flush=True)


def in_words(seconds_left: float | None) -> str:
    """ ", about 3 min left", or nothing if it is not known."""
    if seconds_left is None:
        return ""
    if seconds_left < 90:
        return f", about {max(seconds_left, 1):.0f} s left"
    return f", about {seconds_left / 60:.0f} min left"


def _tell(report: dict, options: argparse.Namespace) -> None:
    if report["status"] == "error":
        print(f"Error ({report['code']}): {report['message']} {report['hint']}".rstrip(), file=sys.stderr, flush=True)
    elif report["status"] == "cancelled":
        print("Cancelled; the finished parts are kept.", file=sys.stderr, flush=True)
    elif not options.quiet:
        for path in dict.fromkeys(path for path in (*report["exports"], report["blend"]) if path):
            print(f"[lim] wrote {path}", flush=True)
    if options.json:
        try:
            path = Path(options.json).resolve()
            path.parent.mkdir(parents=True, exist_ok=True)
            job_folders.write_json(path, report)
        except OSError as error:
            print(f"Error: the report could not be written: {from_os_error(error)}", file=sys.stderr, flush=True)


def _joined(argv: list[str]) -> list[str]:
    """`--keyframes -5,1` as `--keyframes=-5,1`: argparse would take the frames for an option."""
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1] in ("--keyframes", "--frame-range") and re.match(r"-[\d.]", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _json_of(argv: list[str]) -> str:
    """The report's file, even if the rest of the command line is wrong."""
    for index, argument in enumerate(argv):
        if argument == "--json" and index + 1 < len(argv):
            return argv[index + 1]
        if argument.startswith("--json="):
            return argument.partition("=")[2]
    return ""


def _cancel_on_signal(job: jobs.Job) -> dict:
    """Let Ctrl+C and a farm's SIGTERM cancel the job; returns the handlers to put back."""
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            # None is a handler that Blender itself installed, which Python cannot put back.
            before[number] = signal.signal(number, lambda *_: job.cancel()) or signal.SIG_DFL
        except ValueError:
            pass  # not in the main thread: whoever runs us there cancels by other means
    return before
