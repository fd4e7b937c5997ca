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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import bpy

from ..lim_core import __version__, protocol, request
from ..lim_core.errors import Cancelled, LimError, from_os_error
from . import backend, ids, job_folders, keyframes, worker

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

CAPTURED_TYPES = ("MESH", "CURVE", "SURFACE", "FONT", "META", "CURVES", "POINTCLOUD")
SIMULATED = ("FLUID", "CLOTH", "SOFT_BODY", "DYNAMIC_PAINT", "PARTICLE_SYSTEM", "OCEAN", "NODES", "MESH_CACHE")
"""Modifiers whose cache, or a node tree that reads one, may change without a trace in the file."""
CLIP_KEYFRAMES = 16
"""Keyframes that a clip is taken to have while it has not been read."""

active: Job | None = None
"""The job that runs in this Blender, if any; `Job` sets and clears it."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a job is told. Objects are named, not referenced: undo may replace them while the job runs."""

    objects: tuple[str, ...] = ()
    keyframes: tuple[float, ...] = ()
    source: str = "objects"
    """"objects": all of them, animated. "poses": object k is the pose at keyframe k. "video": see `video`."""
    frame_range: tuple[float, float] | None = None
    """Keyframes outside it are refused; None allows any."""
    inbetweens: int = 7
    template: str = "reconstructed"
    template_object: str = ""
    align_poses: bool = True
    quality: str = "standard"
    fit: bool = True
    smoothness: float = 0.5
    max_keys: int = 0
    device: str = "auto"
    engine: str = "cycles"
    name: str = "LIM"
    backend: str = ""
    """The backend's Python."""
    weights: str = ""
    cache: str = ""
    """Folder in which the job folder is made."""
    job: str = ""
    """The job folder itself, instead of one in the cache."""
    clip: str = ""
    """Which clips of the file play; the scene holds them, and the file alone does not say it."""
    notes: tuple[tuple[str, str, str], ...] = ()
    """Warnings that are known before the job begins: code, message, hint."""
    video: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """For the source "video": the clip's fields of `request.Request`, from `video` on. The backend reads the clip, and
    the clip decides the keyframes and in-betweens; nothing of the scene is captured."""
    stop_after_views: bool = False
    """End a video's job as cancelled once the other views are made, so that they can be looked at."""
    unchanged_file: str = ""
    """A file that alone decides what is captured: while it and the files it uses stay as they are, an earlier capture
    is used again. Empty: always capture."""


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
        self._lock: job_folders.Lock | None = None
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
        spec = capture_spec(settings, wanted)
        key = ""
        fingerprint = fingerprint_of(self._scene(), settings)
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
                self.folder, self._lock = folder, job_folders.Lock(folder)
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
            capture_into(
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
            save_copy(copy)
            job_folders.write_json(
                self.folder / job_folders.SPEC_FILE,
                {"scene": self.scene_name, "job": str(self.folder), "key": key, "spec": spec},
            )
            yield
            self._begin_stage("capture", 0.0)
            self._child = worker.Worker(
                background_command(copy, self.folder / job_folders.SPEC_FILE),
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
        from . import shape_keys

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
            self.warnings.append({key: event[key] for key in ("code", "message", "hint")})
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
def check(scene: bpy.types.Scene, settings: Settings) -> request.Request:
    """The request that the settings ask for, without its transform. Raises LimError for whatever cannot work."""
    if settings.source != "video":
        _check_objects(scene, settings)
    size, extra_views, texture_size, faces = request.QUALITIES.get(settings.quality, (0, 0, 0, 0))
    if not size:
        raise LimError("bad_request", f"“{settings.quality}” is not a quality.", f"Use {', '.join(request.QUALITIES)}.")
    wanted = request.Request(
        keyframes=tuple(float(frame) for frame in settings.keyframes),
        inbetweens=settings.inbetweens,
        source=settings.source,
        name=settings.name,
        fps=scene.render.fps / scene.render.fps_base,
        image_size=size,
        rig_views=4,
        views=4 + extra_views,
        template=settings.template,
        template_faces=faces,
        texture_size=texture_size,
        fit=settings.fit,
        smoothness=settings.smoothness,
        max_keys=settings.max_keys,
        device=settings.device,
        weights=settings.weights,
        **settings.video,
    )
    if settings.source == "video":
        at = scene.cursor.location  # where Blender adds whatever is new
        wanted = dataclasses.replace(
            wanted,
            world_to_model=((1.0, 0.0, 0.0, -at.x), (0.0, 1.0, 0.0, -at.y), (0.0, 0.0, 1.0, -at.z), (0, 0, 0, 1)),
        )
    request.check(wanted)
    if settings.source == "video":
        _check_files(wanted)
    if settings.frame_range:
        keyframes.check_range(wanted.keyframes, *settings.frame_range)
    if settings.template == "mesh":
        _check_template(scene, settings.template_object)
    if settings.weights and not Path(settings.weights).is_dir():
        raise LimError(
            "weights_missing", f"There is no weights folder “{settings.weights}”.", "Correct it, or leave it empty."
        )
    return wanted


def _check_objects(scene: bpy.types.Scene, settings: Settings) -> None:
    from . import capture_scene

    if not settings.objects:
        raise LimError("nothing_selected", "Nothing is selected.", "Select the objects to capture.")
    for name in settings.objects:
        if name not in scene.objects:
            raise LimError(
                "nothing_selected", f"There is no object “{name}” in the scene “{scene.name}”.", "Check the name."
            )
        if not (has_surface(scene.objects[name]) or scene.objects[name].type in capture_scene.FLESHLESS):
            kind = scene.objects[name].type.replace("_", " ").lower()
            raise LimError(
                "nothing_selected",
                f"“{name}” is of type {kind}, which has no surface to capture.",
                "Choose meshes, curves, text, metaballs, collection instances, or the rig that moves them.",
            )
    if settings.source == "poses" and len(settings.objects) != len(settings.keyframes):
        raise LimError(
            "one_keyframe" if len(settings.keyframes) < 2 else "bad_request",
            f"There are {len(settings.objects)} poses for {len(settings.keyframes)} keyframes.",
            "Give each pose one keyframe.",
        )
    if settings.source == "poses" and len(set(settings.objects)) < len(settings.objects):
        twice = next(name for name in settings.objects if settings.objects.count(name) > 1)
        raise LimError("bad_request", f"“{twice}” is listed twice as a pose.", "Remove it, or use a copy of it.")


def _check_files(wanted: request.Request) -> None:
    """The files that a video's request names are there; what is in them, the backend finds out."""
    named = {
        "video": ("missing_file", wanted.video),
        "mask": ("missing_file", wanted.mask if wanted.foreground == "mask" else ""),
        "matting model": ("weights_missing", wanted.matting if wanted.foreground in ("auto", "matting") else ""),
        "folder for the other views": ("weights_missing", wanted.views_model),
    }
    for what, (code, path) in named.items():
        if path and not Path(path).exists():
            raise LimError(code, f"There is no {what} “{path}”.", "Choose it again.")


def _check_template(scene: bpy.types.Scene, name: str) -> None:
    mesh = scene.objects.get(name)
    if mesh is None:
        raise LimError(
            "bad_template",
            f"There is no template “{name}” in the scene." if name else "No template mesh is chosen.",
            "Choose the mesh that should be carried through the motion.",
        )
    if mesh.type != "MESH":
        raise LimError("bad_template", f"The template “{name}” is not a mesh.", "Convert it to a mesh first.")
    if mesh.mode != "EDIT" and not mesh.data.polygons:
        raise LimError("bad_template", f"The template “{name}” has no faces.", "Choose a mesh with faces.")


def has_surface(object: bpy.types.Object) -> bool:
    """Whether the object has, or instances, a surface."""
    return object.type in CAPTURED_TYPES or (object.type == "EMPTY" and object.instance_type == "COLLECTION")


def renderable(scene: bpy.types.Scene) -> list[bpy.types.Object]:
    """Everything with a surface that a render of the scene would show, without our own results."""
    shown: dict[str, bpy.types.Object] = {}

    def visit(layer: bpy.types.LayerCollection, hidden: bool) -> None:
        collection = layer.collection
        hidden = hidden or collection.hide_render
        if not (layer.exclude or hidden or collection.name == ids.COLLECTION):
            for object in collection.objects:
                if not object.hide_render and has_surface(object):
                    shown[object.name] = object
        for child in layer.children:
            visit(child, hidden)

    visit(scene.view_layers[0].layer_collection, False)
    return [shown[name] for name in sorted(shown)]


def space_needed(wanted: request.Request) -> int:
    """Bytes that the capture and the result take, generously."""
    keyframes = len(wanted.keyframes) or CLIP_KEYFRAMES
    capture = keyframes * wanted.views * wanted.image_size**2 * 8
    result = (len(wanted.frames()) or 2 * CLIP_KEYFRAMES) * wanted.template_faces * 12
    return capture + 2 * result + 4 * wanted.texture_size**2 + (64 << 20)


# ---- the capture ---------------------------------------------------------------------------------------------------
def capture_spec(settings: Settings, wanted: request.Request) -> dict:
    """The fields of `capture_scene.CaptureSpec`, as JSON can hold them."""
    return {
        "source": wanted.source,
        "objects": list(settings.objects),
        "keyframes": list(wanted.keyframes),
        "image_size": wanted.image_size,
        "views": wanted.views,
        "rig_views": wanted.rig_views,
        "engine": settings.engine,
        "template": wanted.template,
        "template_object": settings.template_object if wanted.template == "mesh" else None,
        "align_poses": settings.align_poses,
    }


def capture_into(
    scene: bpy.types.Scene,
    spec: dict,
    key: str,
    folder: Path,
    on_fraction: Callable[[float], None],
    is_cancelled: Callable[[], bool],
) -> None:
    """Capture into the job folder and write its record last. Raises LimError or Cancelled; leaves no half capture."""
    from . import capture_scene

    values = {name: tuple(value) if isinstance(value, list) else value for name, value in spec.items()}
    try:
        captured = capture_scene.capture(
            scene,
            capture_scene.CaptureSpec(**values),
            folder,
            on_progress=lambda fraction, *_: on_fraction(fraction),
            is_cancelled=is_cancelled,
        )
        if captured.still:
            named = [f"“{name}”" for name in spec["objects"][:3]] + ["…"] * (len(spec["objects"]) > 3)
            captured.warnings.append(
                (
                    "nothing_moves",
                    f"Nothing of {', '.join(named)} moves between frame {spec['keyframes'][0]:g} and "
                    f"{spec['keyframes'][-1]:g}: the result stands still.",
                    "Check the keyframes and the frame range. Of a mesh sequence, name the folder or its first file.",
                )
            )
        job_folders.write_json(
            folder / job_folders.CAPTURE_RECORD,
            {
                "key": key,
                "world_to_model": captured.world_to_model,
                "origins": captured.origins,
                "warnings": [list(warning) for warning in captured.warnings],
            },
        )
    except OSError as error:
        raise from_os_error(error, "writing the capture") from error


def fingerprint_of(scene: bpy.types.Scene, settings: Settings) -> list | None:
    """What decides the capture beside the settings; None where that cannot be known without looking at everything."""
    from . import capture_scene

    if not settings.unchanged_file:
        return None
    named = [scene.objects[name] for name in (*settings.objects, settings.template_object) if name in scene.objects]
    parts = [part for object in named for part in (object, *object.children_recursive)]
    family = [member for part in parts for member in capture_scene.family(part, scene)]
    for block in keyframes.moving_blocks(family):
        simulated = any(modifier.type in SIMULATED for modifier in getattr(block, "modifiers", ()))
        if simulated or getattr(block, "rigid_body", None):
            return None
    files = set(bpy.utils.blend_paths(absolute=True))
    sequences = [image for image in bpy.data.images if image.source in ("SEQUENCE", "TILED")]
    sequences += [part for part in (*bpy.data.volumes, *bpy.data.cache_files) if part.is_sequence]
    for sequence in sequences:
        files.update(job_folders.sequence(bpy.path.abspath(sequence.filepath, library=sequence.library)))
    stamps = [job_folders.stamp(path) for path in (settings.unchanged_file, *sorted(files))]
    posed_at = scene.frame_current_final if settings.source == "poses" else None  # playing does not change the file
    return [__version__, bpy.app.version_string, scene.name, settings.clip, posed_at, *stamps]


def save_copy(path: Path) -> None:
    """Save the file as it is now, with unsaved changes, without becoming that file."""
    paths = bpy.context.preferences.filepaths
    thumbnail = paths.file_preview_type
    try:
        paths.file_preview_type = "NONE"  # drawing it takes most of a second with a slow graphics driver
        bpy.ops.wm.save_as_mainfile(filepath=str(path), copy=True, compress=False, check_existing=False)
    except RuntimeError as error:
        raise LimError(
            "unsaved_file",
            f"A copy of the scene could not be saved into the job folder: {str(error).strip()}",
            "Save the file, check the free space and the cache folder, and try again.",
        ) from error
    finally:
        paths.file_preview_type = thumbnail


def background_command(copy: Path, spec_file: Path) -> list[str]:
    """The command that captures from the saved copy in another Blender."""
    if not bpy.app.binary_path:
        raise LimError("blender_missing", "This Blender does not know where its program lies.", "Run the job headless.")
    headless = ids.ROOT / "blender_addon" / "headless.py"
    command = [bpy.app.binary_path, "--background", "--factory-startup"]
    # Scripted drivers run there if they run here.
    command.append("--disable-autoexec" if bpy.app.autoexec_fail else "--enable-autoexec")
    movers = addons_that_move_things()
    if movers:
        command += ["--python-expr", _enabling(movers)]
    return [*command, str(copy), "--python", str(headless), "--", "--capture-only", str(spec_file)]


def _enabling(names: list[str]) -> str:
    """What the other Blender runs before it opens the file: `--addons` would not put an add-on into the preferences, which
    some need while they register, and knows no repository but Blender's own."""
    repositories = {repository.module: repository for repository in bpy.context.preferences.extensions.repos}
    lines = ["import addon_utils, bpy", "repos = bpy.context.preferences.extensions.repos"]
    for module in sorted({name.split(".")[1] for name in names if name.startswith("bl_ext.")} & set(repositories)):
        made = f"name={repositories[module].name!r}, module={module!r}, custom_directory={repositories[module].directory!r}"
        lines += [f"if not any(repo.module == {module!r} for repo in repos):", f"    repos.new({made})"]
    lines += [f"for name in {names!r}:", "    addon_utils.enable(name, default_set=True, persistent=True)"]
    return "\n".join(lines)


def addons_that_move_things() -> list[str]:
    """Enabled add-ons that change the scene from frame to frame through handlers or driver functions: the background
    Blender needs them too. Not Keymesh: what it does, `mesh_swaps` reads from the file."""
    handlers = bpy.app.handlers
    functions = [
        *handlers.frame_change_pre, *handlers.frame_change_post,
        *handlers.depsgraph_update_pre, *handlers.depsgraph_update_post, *bpy.app.driver_namespace.values(),
    ]  # fmt: skip
    modules = {getattr(function, "__module__", None) or "" for function in functions}
    enabled = [addon.module for addon in bpy.context.preferences.addons if addon.module != ids.BASE_PACKAGE]
    enabled = [name for name in enabled if not name.rpartition(".")[2].startswith("keymesh")]
    return sorted(name for name in enabled if any(m == name or m.startswith(name + ".") for m in modules))


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
