# SPDX-License-Identifier: GPL-3.0-or-later
"""One job from the scene or a video to the result: capture, backend, writing. The panel, the command line and scripts
all use it.

`run_job` blocks; a window calls `Job.steps` one small step per timer tick. In a window the capture runs in a background
Blender on a saved copy of the file, so the window stays free and the scene cannot change under the capture; elsewhere it
runs in this process. Nothing is written into the scene before the backend's result lies complete in the job folder.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import bpy

from ...lim_core.shared import files, protocol, request
from ...lim_core.shared.errors import Cancelled, LimError, from_os_error
from .. import ids
from . import backend, capturing, job_folders, worker
from .asking import Settings, check, space_needed

PAUSE = 0.05
"""Seconds that a blocking run sleeps between steps."""
CAPTURE_SHARE, WRITE_SHARE = 0.25, 0.02
"""Parts of the progress bar for capturing and writing; the rest is the backend's."""

STAGES = {
    "save": "Saving a copy of the scene",
    "capture": "Capturing the keyframes",
    "backend": "Starting the backend",
    **protocol.VIDEO_STAGES,
    **protocol.STAGES,
    "write": "Writing the result",
}
"""Stages of a whole job, in order, with their words for people."""


active: Job | None = None
"""The job that runs in this Blender, if any; `Job` sets and clears it."""


@dataclasses.dataclass
class Outcome:
    """A finished job."""

    object_name: str
    job_folder: Path
    request: request.Request
    seconds: dict[str, float]
    warnings: list[dict]
    result: dict


def run_job(scene: bpy.types.Scene, settings: Settings, on_event: Callable[[dict], None] | None = None) -> Outcome:
    """Run a job to its end. Raises LimError or Cancelled, with the scene as it was."""
    return Job(scene, settings, on_event).run()


class Job:
    """One job.

    Args:
        on_event: receives the protocol's `stage`, `progress`, `preview` and `warning` events of the whole job; their
            stages are those of `STAGES`, their fraction is of the whole job, their paths are absolute.
        background: capture in another Blender, and wait for a quiet moment to write (for windows).
    """

    def __init__(
        self,
        scene: bpy.types.Scene,
        settings: Settings,
        on_event: Callable[[dict], None] | None = None,
        background: bool = False,
    ):
        self.scene_name = scene.name
        self.settings = settings
        self.background = background
        self.folder: Path | None = None
        self.outcome: Outcome | None = None
        self.seconds: dict[str, float] = {}
        self.warnings: list[dict] = []
        self.stopped_to_look = False
        """Whether the job was cancelled by its own setting `stop_after_views`."""
        self._on_event = on_event or (lambda event: None)
        self._cancelled = False
        self._child: worker.Worker | None = None
        self._lock: files.Lock | None = None
        self._stage: tuple[str, float] | None = None
        self._began = time.monotonic()

    def cancel(self) -> None:
        """Stop at the next opportunity; `steps` then raises Cancelled."""
        self._cancelled = True
        if self._child:
            self._child.cancel()

    def run(self) -> Outcome:
        """Take every step, sleeping in between. Raises LimError or Cancelled."""
        for _ in self.steps():
            time.sleep(PAUSE)
        return self.outcome

    def steps(self) -> Iterator[None]:
        """The job in steps, each short if `background`. Sets `outcome`; raises LimError or Cancelled.

        Closing the iterator early ends the child processes.
        """
        global active
        if active is not None:
            raise LimError("internal", "Another job is running.", "Wait for it to end, or cancel it.")
        active = self
        self._began = time.monotonic()
        try:
            yield from self._steps()
        except (LimError, Cancelled, GeneratorExit):
            raise
        except OSError as error:
            self._note(traceback.format_exc())
            raise from_os_error(error) from error
        except MemoryError:
            raise LimError(
                "out_of_memory", "Blender ran out of memory.", "Choose a lower quality or fewer keyframes."
            ) from None
        except Exception as error:
            self._note(traceback.format_exc())
            raise LimError(
                "internal",
                f"Something went wrong inside the add-on: {type(error).__name__}: {error}",
                "Open the log; it says where.",
            ) from error
        finally:
            active = None
            self._end_stage()
            if self._child:
                self._child.close()
            if self._lock:
                self._lock.release()

    # ---- the three phases ------------------------------------------------------------------------------------------
    def _steps(self) -> Iterator[None]:
        settings = self.settings
        wanted = check(self._scene(), settings)
        backend.check(settings.backend)
        self._open_folder(wanted)
        job_folders.check_space(self.folder, space_needed(wanted))
        for code, message, hint in settings.notes:
            self._emit("warning", code=code, message=message, hint=hint)
        self._check_cancelled()
        yield

        begins = 0.0
        if wanted.source == "video":
            job_folders.drop_scene_capture(self.folder)
        else:
            wanted, begins = yield from self._captured(wanted)
        request.write(wanted, self.folder)
        result = yield from self._compute(begins)
        wanted = request.read(self.folder)  # a video's frames are known only now
        self._check_cancelled()

        yield from self._wait_for_quiet()
        self._begin_stage("write", 1.0 - WRITE_SHARE)
        yield
        self._check_cancelled()
        name = self._write()
        self._end_stage()
        self._emit("progress", stage="write", fraction=1.0, seconds_left=0.0)
        self.outcome = Outcome(name, self.folder, wanted, dict(self.seconds), list(self.warnings), result)

    def _captured(self, wanted: request.Request) -> Iterator[None]:
        """Capture the scene, or take the capture that is there; returns the request with its transform, and how much
        of the progress that took."""
        settings = self.settings
        spec = capturing.capture_spec(settings, wanted)
        key = ""
        fingerprint = capturing.fingerprint_of(self._scene(), settings)
        if fingerprint is not None:
            key = job_folders.capture_key(spec, fingerprint)
        with_template = wanted.template == "mesh"
        captured = job_folders.valid_capture(self.folder, key, len(wanted.keyframes), wanted.views, with_template)
        reused = captured is not None
        if not reused:
            yield from self._capture(spec, key)
            captured = json.loads((self.folder / job_folders.CAPTURE_RECORD).read_text(encoding="utf-8"))
        for code, message, hint in captured["warnings"]:
            self._emit("warning", code=code, message=message, hint=hint)
        self._check_cancelled()

        placed = {name: tuple(tuple(row) for row in captured.get(name, ())) for name in ("world_to_model", "origins")}
        wanted = dataclasses.replace(wanted, **placed)
        return wanted, 0.0 if reused else CAPTURE_SHARE

    def _open_folder(self, wanted: request.Request) -> None:
        settings = self.settings
        if settings.job:
            parent, name = Path(settings.job).resolve().parent, Path(settings.job).name
            folder = parent / name
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self.folder, self._lock = folder, job_folders.lock(folder)
            except BlockingIOError:
                raise LimError(
                    "read_only", f"Another job is running in “{folder}”.", "Wait for it to end, or name another folder."
                ) from None
            except OSError as error:
                raise from_os_error(error, "making the job folder") from error
        else:
            if wanted.source == "video":
                name = job_folders.name_for(wanted.video, wanted.source)
            else:
                blend = settings.unchanged_file or bpy.data.filepath
                identity = (self.scene_name, wanted.source, settings.objects, settings.clip)
                name = job_folders.name_for(blend, *identity)
            self.folder, self._lock = job_folders.open_folder(Path(settings.cache), name)
        try:
            (self.folder / protocol.LOG_FILE).write_bytes(b"")
        except OSError as error:
            raise from_os_error(error, "opening the job's log") from error

    def _capture(self, spec: dict, key: str) -> Iterator[None]:
        job_folders.clear_capture(self.folder)
        if not self.background:
            self._begin_stage("capture", 0.0)
            yield
            capturing.capture_into(
                self._scene(), spec, key, self.folder,
                on_fraction=lambda fraction: self._progress("capture", CAPTURE_SHARE * fraction),
                is_cancelled=lambda: self._cancelled,
            )  # fmt: skip
            return
        self._begin_stage("save", 0.0)
        yield
        copy = self.folder / job_folders.SCENE_COPY
        try:
            self._warn_of_unsaved_images()
            capturing.save_copy(copy)
            job_folders.write_json(
                self.folder / job_folders.SPEC_FILE,
                {"scene": self.scene_name, "job": str(self.folder), "key": key, "spec": spec},
            )
            yield
            self._begin_stage("capture", 0.0)
            self._child = worker.Worker(
                capturing.background_command(copy, self.folder / job_folders.SPEC_FILE),
                self.folder,
                worker.BLENDER,
                modest=True,
            )
            yield from self._follow(0.0, CAPTURE_SHARE)
        finally:
            for leftover in (copy, self.folder / job_folders.SPEC_FILE):
                leftover.unlink(missing_ok=True)

    def _compute(self, start: float) -> Iterator[None]:
        self._begin_stage("backend", start)
        yield
        self._child = worker.start_backend(self.settings.backend, ids.ROOT, self.folder, modest=self.background)
        try:
            final = yield from self._follow(start, 1.0 - WRITE_SHARE - start)
        except LimError as error:
            if error.code in ("bad_capture", "bad_template", "missing_file"):  # the next run captures again
                (self.folder / job_folders.CAPTURE_RECORD).unlink(missing_ok=True)
            raise
        return read_result(self.folder, final["path"])

    def _follow(self, start: float, share: float) -> Iterator[None]:
        """Pass on what the child says until it ends; returns its result event."""
        child = self._child
        while True:
            if self._cancelled:
                child.cancel()
            for event in child.poll():
                name = event["event"]
                if name == "stage":
                    self._begin_stage(event["stage"])
                    if self.settings.stop_after_views and event["stage"] == next(iter(protocol.STAGES)):
                        self.stopped_to_look = True
                        child.cancel()
                elif name == "progress":
                    fraction = min(max(float(event["fraction"]), 0.0), 1.0)
                    self._progress(event["stage"], start + share * fraction, event["seconds_left"])
                elif name == "warning":
                    self._emit(**{**event, "name": name})
                elif name == "preview":
                    self._emit(name, path=str(self.folder / event["path"]), label=event["label"])
            if not child.running:
                break
            yield
        for event in child.poll():  # what arrived between the last poll and the exit
            if event["event"] == "warning":
                self._emit(**{**event, "name": "warning"})
        final = child.result()
        self._child = None
        self._check_cancelled()
        return final

    def _wait_for_quiet(self) -> Iterator[None]:
        """In a window, do not write into the scene during Edit or Sculpt Mode (whose undo would not cover it) or a
        render (which reads the data)."""
        while self.background and (bpy.context.mode != "OBJECT" or bpy.app.is_job_running("RENDER")):
            what = "the render to end" if bpy.context.mode == "OBJECT" else "Object Mode"
            self._emit("stage", stage="write", index=len(STAGES) - 1, count=len(STAGES), label=f"Waiting for {what}")
            self._check_cancelled()
            yield

    def _write(self) -> str:
        from ..result import shape_keys

        scene = self._scene()
        sources = [bpy.data.objects[name] for name in self.settings.objects if name in bpy.data.objects]
        template = bpy.data.objects.get(self.settings.template_object) if self.settings.template == "mesh" else None
        written = shape_keys.write_result(
            scene, self.folder, source_objects=sources, template_object=template, collection_name=ids.COLLECTION,
            on_warning=lambda code, message: self._emit("warning", code=code, message=message, hint=""),
        )  # fmt: skip
        return written.name

    # ---- telling -------------------------------------------------------------------------------------------------
    def _scene(self) -> bpy.types.Scene:
        scene = bpy.data.scenes.get(self.scene_name)
        if scene is None:
            raise LimError("missing_file", f"The scene “{self.scene_name}” is gone.", "Undo its removal and run again.")
        return scene

    def _check_cancelled(self) -> None:
        if self._cancelled:
            raise Cancelled

    def _begin_stage(self, stage: str, fraction: float | None = None) -> None:
        if self._stage and self._stage[0] == stage:
            return
        self._end_stage()
        self._stage = (stage, time.monotonic())
        order = list(STAGES)
        index = order.index(stage) if stage in STAGES else 0
        self._emit("stage", stage=stage, index=index, count=len(STAGES), label=STAGES.get(stage, stage))
        if fraction is not None:
            self._progress(stage, fraction)

    def _end_stage(self) -> None:
        if self._stage:
            stage, began = self._stage
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.monotonic() - began, 3)
            self._stage = None

    def _progress(self, stage: str, fraction: float, seconds_left: float | None = None) -> None:
        if seconds_left is None and fraction > 0.03:  # as the bar has gone on so far
            seconds_left = (time.monotonic() - self._began) * (1.0 - fraction) / fraction
        self._emit("progress", stage=stage, fraction=fraction, seconds_left=seconds_left)

    def _emit(self, name: str, **fields) -> None:
        event = {**fields, "event": name}
        if name == "warning":
            told = {key: event[key] for key in ("code", "message", "hint")}
            if told in self.warnings:
                return
            self.warnings.append(told)
        self._on_event(event)

    def _warn_of_unsaved_images(self) -> None:
        for image in bpy.data.images:
            if image.is_dirty and image.source in ("FILE", "GENERATED") and image.users and not image.packed_file:
                self._emit(
                    "warning",
                    code="missing_texture",
                    message=f"The image “{image.name}” has changes that are not saved; the capture does not see them.",
                    hint="Save or pack the image, then generate again.",
                )

    def _note(self, text: str) -> None:
        """Append to the job's log; the log must not become a failure of its own."""
        if self.folder is None:
            print(text, file=sys.stderr)
            return
        try:
            with open(self.folder / protocol.LOG_FILE, "a", encoding="utf-8", errors="replace") as log:
                log.write(text)
        except OSError:
            print(text, file=sys.stderr)


# ---- before the job ------------------------------------------------------------------------------------------------


# ---- the capture ---------------------------------------------------------------------------------------------------


# ---- the result ----------------------------------------------------------------------------------------------------
def read_result(folder: Path, name: str) -> dict:
    """result.json; raises LimError backend_crashed if the backend announced one that is not there."""
    try:
        result = json.loads((folder / name).read_text(encoding="utf-8"))
        if isinstance(result, dict) and (folder / protocol.RESULT_ARRAYS).is_file():
            return result
        flaw = f"{protocol.RESULT_ARRAYS} is missing"
    except (OSError, ValueError) as error:
        flaw = str(error)
    raise LimError("backend_crashed", f"The backend's result cannot be read: {flaw}.", "Open the log, and run again.")
