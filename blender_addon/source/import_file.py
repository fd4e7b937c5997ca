# SPDX-License-Identifier: GPL-3.0-or-later
"""Open or import a file, or a sequence of meshes, and choose among the clips that it brings along."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path

import bpy

from ...lim_core.shared.errors import LimError
from . import compat, keyframes, mesh_sequence

STILL = 1e-4  # a curve that changes by less moves nothing that one could see
CLIPS_NAMED = 8  # in a sentence that lists a file's clips
MESHOPT = ("its meshes are compressed by meshopt", "copy")
FOREIGN = {
    ".glb": ("import_scene", "gltf"),
    ".gltf": ("import_scene", "gltf"),
    ".fbx": ("import_scene", "fbx"),
    ".obj": ("wm", "obj_import"),
    ".ply": ("wm", "ply_import"),
    ".stl": ("wm", "stl_import"),
    ".abc": ("wm", "alembic_import"),
    ".usd": ("wm", "usd_import"),
    ".usda": ("wm", "usd_import"),
    ".usdc": ("wm", "usd_import"),
    ".usdz": ("wm", "usd_import"),
}
"""Suffix of what is imported → the operator of `bpy.ops` that does it."""
UNDECODED = {
    "EXT_meshopt_compression": MESHOPT,
    "KHR_meshopt_compression": MESHOPT,
    "KHR_texture_basisu": ("its textures are in KTX2", "ktxdecompress"),
}
"""glTF extensions that Blender does not read: the words for them, and the command of gltf-transform that undoes them."""


@dataclasses.dataclass
class Opened:
    """What came with a file."""

    objects: list[bpy.types.Object]
    clips: tuple[str, ...] = ()
    """The clips of the file that play, in the file's order."""
    notes: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    """Warnings for the job that follows: code of protocol.WARNING_CODES, message, hint."""
    imported: bool = False
    """Whether the file was imported, and not opened."""


def open_or_import(path: str, clip: str = "") -> Opened:
    """Open a .blend, or import another file, or a sequence of files, into an empty scene.

    Args:
        path: a file, or a folder of meshes that are numbered; the first file of such a sequence stands for it too.
        clip: name of the clip to play, or names with commas; empty plays the first that moves, and with it each that
            moves something else. A .blend plays what it was saved with: see `choose_clips`.
    Raises:
        LimError: missing_file (there is no such file or clip, or it cannot be read), bad_request (a foreign format).
    """
    file = Path(path).resolve()
    if not file.exists():
        raise LimError("missing_file", f"There is no file “{path}”.", "Check the path.")
    if file.suffix.lower() == ".blend" and file.is_file():
        _call(file, _importers()[".blend"])
        return Opened(list(bpy.context.scene.objects))
    files = sequence_of(file)  # a folder without one is an error before the scene is emptied
    bpy.ops.wm.read_factory_settings(use_empty=True)
    opened = _sequence(files) if files else _single(file, clip)
    scene = bpy.context.scene
    frames = keyframes.of_actions(opened.objects)
    if len(frames) >= 2:
        scene.frame_start, scene.frame_end = int(frames[0] // 1), int(-(-frames[-1] // 1))
    scene.frame_set(scene.frame_start)
    return opened


def import_into_scene(path: str) -> Opened:
    """Import a file, or a sequence, beside what is in the scene; the scene's frames and frame range stay.

    Raises:
        LimError: as `open_or_import`.
    """
    file = Path(path).resolve()
    if not file.exists():
        raise LimError("missing_file", f"There is no file “{path}”.", "Choose it again.")
    if file.suffix.lower() == ".blend":
        raise LimError("bad_request", f"“{file.name}” is a Blender file.", "Open it, or append its objects.")
    files = sequence_of(file)
    return _sequence(files) if files else _single(file, "")


def sequence_of(file: Path) -> list[tuple[int, Path]]:
    """The numbered meshes that a folder holds or that a file is the first of; empty for a file of its own.

    Raises:
        LimError: missing_file (a folder without a sequence), bad_request (a foreign format).
    """
    if file.is_dir():
        return mesh_sequence.in_folder(file)
    if file.suffix.lower() not in _importers():
        raise LimError(
            "bad_request",
            f"“{file.name}” is of a kind that cannot be imported here.",
            f"Use one of {', '.join(sorted(_importers()))}, or a folder of numbered "
            f"{', '.join(mesh_sequence.SUFFIXES)}.",
        )
    if file.suffix.lower() in mesh_sequence.SUFFIXES and not _gltf(file).get("animations"):
        return mesh_sequence.beginning_with(file)
    return []


def _sequence(files: list[tuple[int, Path]]) -> Opened:
    def load(file: Path) -> None:
        with compat.quiet_output():
            _call(file, _importers()[file.suffix.lower()])

    return Opened([mesh_sequence.build(bpy.context.scene, files, load)], imported=True)


def _single(file: Path, clip: str) -> Opened:
    before = set(bpy.data.objects)
    with compat.quiet_output():
        _call(file, _importers()[file.suffix.lower()])
    here = [object for object in bpy.context.scene.objects if object not in before]
    if not here:
        raise LimError("missing_file", f"“{file.name}” holds no objects.", "Check the file in Blender.")
    opened = Opened(here, imported=True)
    opened.clips, left_out = choose_clips(here, clip, file.name)
    if left_out and not clip:
        opened.notes.append(
            (
                "clips_left_out",
                f"Of “{file.name}” {_list(opened.clips)} {'plays' if len(opened.clips) == 1 else 'play'}; "
                f"{_list(left_out)} {'does' if len(left_out) == 1 else 'do'} not.",
                "Choose others with --clip, or in the NLA editor.",
            )
        )
    used = _gltf(file).get("extensionsUsed", ())
    textures = _gltf(file).get("textures", ()) if "KHR_texture_basisu" in used else ()
    if any("source" not in texture for texture in textures):
        opened.notes.append(
            (
                "missing_texture",
                f"The textures of “{file.name}” are in KTX2, which Blender does not read: they are missing.",
                _decode(file, ("KHR_texture_basisu",)),
            )
        )
    return opened


def choose_clips(objects: list[bpy.types.Object], clip: str, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Play clips: their actions become the active ones and no NLA track is heard. Returns what plays, and what does not.

    The glTF importer keeps each clip as one muted NLA track per animated data-block, all with the clip's name. Blender
    exports a clip for each object unless one rig moves all, so clips that move nothing in common belong together.

    Args:
        clip: name of the clip, or names with commas; empty takes the first that moves, and each that moves other blocks.
    Raises:
        LimError: missing_file (there is no such clip), bad_request (two of the clips named move the same).
    """
    blocks = [block for block in keyframes.moving_blocks(objects) if getattr(block, "animation_data", None)]
    clips: dict[str, list] = {}
    for block in blocks:
        for track in block.animation_data.nla_tracks:
            if len(track.strips) == 1 and track.strips[0].action:
                clips.setdefault(track.name, []).append((block, track.strips[0]))
    active = {block.animation_data.action.name for block in blocks if block.animation_data.action}
    if not clips:
        if clip and clip not in active:
            raise LimError("missing_file", f"“{where}” has no clip “{clip}”.", _has(active))
        return ((clip,) if clip else tuple(sorted(active))), ()
    # Tracks lie in reverse order of the file; the importer makes the file's first clip the active one.
    order = sorted(reversed(list(clips)), key=lambda name: not any(s.action.name in active for _, s in clips[name]))
    if clip:
        chosen = [clip] if clip in clips else [name.strip() for name in clip.split(",")]
        for name in chosen:
            if name not in clips:
                raise LimError("missing_file", f"“{where}” has no clip “{name}”.", _has(clips))
    else:
        chosen = [name for name in order if any(moves(strip) for _, strip in clips[name])] or order[:1]
    played: dict[str, list] = {}
    taken: dict[int, str] = {}
    for name in chosen:
        targets = [block.as_pointer() for block, _ in clips[name]]
        rival = next((taken[target] for target in targets if target in taken), None)
        if rival is None:
            played[name] = clips[name]
            taken.update(dict.fromkeys(targets, name))
        elif clip:
            raise LimError("bad_request", f"The clips “{rival}” and “{name}” move the same.", "Choose one of them.")
    heard = {block.as_pointer(): strip for members in played.values() for block, strip in members}
    for block in blocks:
        animation = block.animation_data
        for track in animation.nla_tracks:
            track.mute = True
        strip = heard.get(block.as_pointer())
        animation.action = strip.action if strip else None
        if strip and getattr(strip, "action_slot", None):
            animation.action_slot = strip.action_slot
    return tuple(played), tuple(name for name in order if name not in played)


def moves(strip: bpy.types.NlaStrip) -> bool:
    """Whether anything changes over the strip's action."""
    for curve in compat.curves_of(strip.action, getattr(strip, "action_slot", None)):
        points = [0.0] * (2 * len(curve.keyframe_points))
        curve.keyframe_points.foreach_get("co", points)
        values = points[1::2]
        if values and max(values) - min(values) > STILL:
            return True
    return False


def _importers() -> dict:
    """Suffix → operator, for what this build of Blender has."""
    return {
        suffix: getattr(getattr(bpy.ops, module), name)
        for suffix, (module, name) in {".blend": ("wm", "open_mainfile"), **FOREIGN}.items()
        if name in dir(getattr(bpy.ops, module))
    }


def _call(file: Path, importer) -> None:
    try:
        importer(filepath=str(file))
    except RuntimeError as error:
        needed = _gltf(file).get("extensionsRequired", ())
        if any(name in UNDECODED for name in needed):
            why = " and ".join(dict.fromkeys(UNDECODED[name][0] for name in needed if name in UNDECODED))
            raise LimError(
                "missing_file",
                f"“{file.name}” cannot be read: {why}, which Blender does not read.",
                _decode(file, needed),
            ) from error
        said = " ".join(str(error).replace("Error:", "").split())
        raise LimError("missing_file", f"“{file.name}” cannot be read: {said}", "Check the file in Blender.") from error


def _decode(file: Path, extensions) -> str:
    """The hint that says how to get a file that Blender reads."""
    commands = dict.fromkeys(UNDECODED[name][1] for name in extensions if name in UNDECODED)
    steps = [f"gltf-transform {command} {file.name} decoded.glb" for command in commands]
    return f"Decode it first, for instance with “{'”, then “'.join(steps)}”, or export it without this compression."


def _gltf(file: Path) -> dict:
    """What a .gltf or .glb says of itself; empty for other files, and for what cannot be read."""
    try:
        if file.suffix.lower() == ".gltf":
            about = json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix.lower() == ".glb":
            with open(file, "rb") as stream:
                head = stream.read(20)
                about = json.loads(stream.read(struct.unpack_from("<I", head, 12)[0]))
        else:
            return {}
    except (OSError, ValueError, struct.error):
        return {}
    return about if isinstance(about, dict) else {}


def _list(names) -> str:
    names = [f"“{name}”" for name in names]
    more = len(names) - CLIPS_NAMED
    if more > 0:
        return f"{', '.join(names[:CLIPS_NAMED])} and {more} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _has(names) -> str:
    return f"It has {_list(sorted(names))}." if names else "It has none."
