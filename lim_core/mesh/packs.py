# SPDX-License-Identifier: GPL-3.0-or-later
"""Packs: one animated, textured asset in one small `.npz`. The keys are listed in docs/architecture.md. numpy only.

A pack knows where every vertex is at every stored frame, either through linear blend skinning or as quantised vertices,
so that correspondences over time are exact. Asset units, right-handed, +Z up.
"""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..shared import files
from ..shared.cameras import normalisation
from ..shared.errors import LimError

SKIN_KEYS = ("rest", "bone_index", "bone_weight", "bones")
QUANTISED_KEYS = ("positions", "position_low", "position_step")
COMMON_KEYS = (
    "faces", "uv", "face_material", "texture_shape", "texture_start", "texels", "clip_names", "clip_start", "fps",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Pack:
    """Shapes: F triangles, V vertices, M textures, N texels, C clips, T stored frames of all clips, B bones."""

    name: str
    """For messages: the file it came from, or what made it."""
    faces: np.ndarray
    """int32 [F, 3]"""
    uv: np.ndarray
    """float16 or float32 [F, 3, 2], per corner; repeats outside [0, 1]"""
    face_material: np.ndarray
    """integer [F], index into the textures"""
    texture_shape: np.ndarray
    """int32 [M, 2]: height, width"""
    texture_start: np.ndarray
    """int64 [M], first texel of each texture"""
    texels: np.ndarray
    """uint8 [N, 3], sRGB-encoded, rows from the top (row 0 is v = 1)"""
    clip_names: tuple[str, ...]
    clip_start: np.ndarray
    """int32 [C + 1]: frames of clip c are clip_start[c]:clip_start[c + 1]"""
    fps: float
    """stored frames per second"""
    stored_positions: np.ndarray | None = None
    """uint16 [T, V, 3] with low and step, or float32 [T, V, 3] as they are (in memory only)"""
    position_low: np.ndarray | None = None
    """float32 [C, 3]"""
    position_step: np.ndarray | None = None
    """float32 [C, 3]"""
    rest: np.ndarray | None = None
    """float32 [V, 3]"""
    bone_index: np.ndarray | None = None
    """integer [V, 4]"""
    bone_weight: np.ndarray | None = None
    """uint8 [V, 4], sums to 255"""
    bones: np.ndarray | None = None
    """float16 or float32 [T, B, 3, 4], rest to asset space"""

    @property
    def clips(self) -> int:
        return len(self.clip_names)

    @property
    def vertices(self) -> int:
        if self.rest is not None:
            return self.rest.shape[0]
        assert self.stored_positions is not None  # `validate`: vertices lie in one of the two
        return self.stored_positions.shape[1]

    def frames(self, clip: int) -> int:
        """Number of stored frames of a clip; frames are counted from 0 within the clip."""
        return int(self.clip_start[clip + 1] - self.clip_start[clip])

    def positions(self, clip: int, frame: float) -> np.ndarray:
        """Vertices float32 [V, 3] in asset units at `frame` of `clip`, linear between stored frames.

        Args:
            frame: in stored frames from the clip's start (time in seconds × `fps`), clamped to the clip.
        """
        last = self.frames(clip) - 1
        frame = min(max(float(frame), 0.0), float(last))
        before = min(int(frame), max(last - 1, 0))
        part = frame - before
        if part <= 0.0:
            return self._stored(clip, before)
        if part >= 1.0:
            return self._stored(clip, before + 1)
        a = self._stored(clip, before)
        a += np.float32(part) * (self._stored(clip, before + 1) - a)
        return a

    def _stored(self, clip: int, index: int) -> np.ndarray:
        t = int(self.clip_start[clip]) + index
        if self.rest is not None:
            assert self.bone_index is not None and self.bone_weight is not None and self.bones is not None
            return skin(self.rest, self.bone_index, self.bone_weight, self.bones[t])
        assert self.stored_positions is not None
        stored = self.stored_positions[t]
        if self.position_step is None:
            return stored.astype(np.float32)
        assert self.position_low is not None
        return stored.astype(np.float32) * self.position_step[clip] + self.position_low[clip]

    def world_to_model(self, clip: int, frames: Iterable[float], margin: float = 0.03) -> np.ndarray:
        """float64 [4, 4] that puts the object at ALL the given frames inside the unit sphere, as a job does it."""
        return unit_sphere([self.positions(clip, f) for f in frames], margin)

    def model_positions(self, clip: int, frames: Sequence[float], margin: float = 0.03) -> np.ndarray:
        """Vertices float32 [len(frames), V, 3] in model space; the frames share one similarity."""
        stack = np.stack([self.positions(clip, f) for f in frames])
        return transform(unit_sphere(stack, margin), stack)

    def texture(self, material: int) -> np.ndarray:
        """uint8 [height, width, 3], row 0 is v = 1. A view of the texels."""
        height, width = (int(n) for n in self.texture_shape[material])
        start = int(self.texture_start[material])
        return self.texels[start : start + height * width].reshape(height, width, 3)


def skin(rest: np.ndarray, bone_index: np.ndarray, bone_weight: np.ndarray, bones: np.ndarray) -> np.ndarray:
    """Linear blend skinning: float32 [V, 3] of rest [V, 3], index [V, 4], weight uint8 [V, 4], bones [B, 3, 4]."""
    matrices = bones.reshape(len(bones), 12).astype(np.float32)
    weight = bone_weight.astype(np.float32) * np.float32(1 / 255)
    blended = matrices[bone_index[:, 0]] * weight[:, :1]
    for k in range(1, bone_index.shape[1]):
        used = np.flatnonzero(bone_weight[:, k])  # most vertices hang on one or two bones
        if len(used):
            blended[used] += matrices[bone_index[used, k]] * weight[used, k, None]
    blended = blended.reshape(-1, 3, 4)
    return np.einsum("vij,vj->vi", blended[:, :, :3], rest) + blended[:, :, 3]


def unit_sphere(frames: Sequence[np.ndarray] | np.ndarray, margin: float = 0.03) -> np.ndarray:
    """world_to_model float64 [4, 4] for positions [V, 3] at several frames: box centre, largest distance."""
    low = np.min([p.min(0) for p in frames], 0).astype(np.float64)
    high = np.max([p.max(0) for p in frames], 0).astype(np.float64)
    centre = ((low + high) / 2).astype(np.float32)
    radius = np.sqrt(max(float(np.square(p - centre).sum(-1).max()) for p in frames))
    return normalisation(centre, radius, margin)


def transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points float32 [..., 3] under an affine matrix [4, 4]."""
    return (points @ matrix[:3, :3].T.astype(np.float32) + matrix[:3, 3].astype(np.float32)).astype(np.float32)


def quantise(
    positions: np.ndarray, clip_start: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint16 [T, V, 3], low float32 [C, 3], step float32 [C, 3] of float positions [T, V, 3], clip by clip."""
    stored = np.empty(positions.shape, np.uint16)
    clips = len(clip_start) - 1
    low, step = np.empty((clips, 3), np.float32), np.empty((clips, 3), np.float32)
    for c in range(clips):
        part = positions[clip_start[c] : clip_start[c + 1]]
        low[c] = part.min((0, 1))
        step[c] = np.maximum((part.max((0, 1)) - low[c]) / 65535, np.finfo(np.float32).tiny)
        stored[clip_start[c] : clip_start[c + 1]] = np.clip(np.rint((part - low[c]) / step[c]), 0, 65535)
    return stored, low, step


def list_packs(folder: str | Path) -> list[Path]:
    """The packs of a folder, sorted by name.

    Raises:
        LimError: `missing_file` where the folder is absent or holds none.
    """
    found = sorted(p for p in Path(folder).glob("*.npz") if not p.name.startswith("."))
    if not found:
        raise LimError("missing_file", f"There are no packs in '{folder}'.", "Make them with: python -m lim_core bake")
    return found


def load(path: str | Path) -> Pack:
    """Read and check a pack.

    Raises:
        LimError: `missing_file`, or `bad_pack` naming the file and what is wrong with it.
    """
    path = Path(path)
    if not path.is_file():
        raise LimError("missing_file", f"The pack '{path}' does not exist.", "Check the folder of packs.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise LimError("bad_pack", f"The pack '{path}' cannot be read: {error}.", _REBAKE) from error
    missing = [key for key in COMMON_KEYS if key not in arrays]
    skinned = "rest" in arrays
    missing += [key for key in (SKIN_KEYS if skinned else QUANTISED_KEYS) if key not in arrays]
    if missing:
        raise LimError("bad_pack", f"The pack '{path}' lacks {', '.join(missing)}.", _REBAKE)
    pack = Pack(
        name=path.name,
        **{key: arrays[key] for key in COMMON_KEYS if key not in ("clip_names", "fps")},
        clip_names=tuple(str(n) for n in np.atleast_1d(arrays["clip_names"])),
        fps=float(arrays["fps"]),
        **(
            {key: arrays[key] for key in SKIN_KEYS}
            if skinned
            else {
                "stored_positions": arrays["positions"],
                "position_low": arrays["position_low"],
                "position_step": arrays["position_step"],
            }
        ),
    )
    validate(pack, str(path))
    return pack


def save(pack: Pack, path: str | Path) -> int:
    """Check and write a pack, whole or not at all; float positions are quantised. Returns its size in bytes.

    Raises:
        LimError: `bad_pack` where the pack is not sound.
    """
    validate(pack, str(path))
    arrays = {key: getattr(pack, key) for key in COMMON_KEYS if key not in ("clip_names", "fps")}
    arrays |= {"clip_names": np.array(pack.clip_names, dtype=np.str_), "fps": np.float64(pack.fps)}
    if pack.rest is not None:
        arrays |= {key: getattr(pack, key) for key in SKIN_KEYS}
    else:
        assert pack.stored_positions is not None  # it is valid
        stored = (pack.stored_positions, pack.position_low, pack.position_step)
        if pack.position_step is None:
            stored = quantise(pack.stored_positions, pack.clip_start)
        arrays |= dict(zip(QUANTISED_KEYS, stored, strict=True))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.writing(path) as file:
        np.savez_compressed(file, **arrays)
    return path.stat().st_size


_REBAKE = "Bake the asset again."


def validate(pack: Pack, where: str | None = None) -> None:
    """Check that a pack can be rendered at every frame.

    Args:
        where: what the message names; the pack's name where absent.
    Raises:
        LimError: `bad_pack`, one sentence that says what is wrong.
    """

    def flaw(what: str) -> LimError:
        return LimError("bad_pack", f"The pack '{where or pack.name}' {what}.", _REBAKE)

    def need(ok: bool, what: str) -> None:
        if not ok:
            raise flaw(what)

    def integer(array: np.ndarray) -> bool:
        return np.issubdtype(array.dtype, np.integer)

    faces = pack.faces
    need(faces.ndim == 2 and faces.shape[1] == 3 and integer(faces), "has no triangles of shape [F, 3]")
    need(len(faces) > 0, "is empty: it has no faces")
    need(pack.uv.shape == (len(faces), 3, 2), "has UVs that do not match its faces")
    need(bool(np.isfinite(pack.uv).all()), "has UVs that are not finite")
    materials = len(pack.texture_shape)
    need(pack.texture_shape.shape == (materials, 2) and materials > 0, "has no textures")
    need(integer(pack.texture_shape) and integer(pack.texture_start), "has texture sizes that are not whole numbers")
    need(pack.texture_start.shape == (materials,), "has texture starts that do not match its textures")
    need(pack.texels.ndim == 2 and pack.texels.shape[1] == 3 and pack.texels.dtype == np.uint8, "has broken texels")
    ends = pack.texture_start.astype(np.int64) + pack.texture_shape.astype(np.int64).prod(1)
    sound = pack.texture_shape.min() > 0 and pack.texture_start.min() >= 0 and ends.max() <= len(pack.texels)
    need(bool(sound), "has a texture outside its texels")
    need(pack.face_material.shape == (len(faces),) and integer(pack.face_material), "has no material per face")
    need(0 <= pack.face_material.min() and pack.face_material.max() < materials, "uses a material that does not exist")
    need(np.isfinite(pack.fps) and pack.fps > 0, "has no frame rate")
    need(pack.clips > 0, "has no clips")
    starts = np.asarray(pack.clip_start)
    need(starts.shape == (pack.clips + 1,) and integer(starts), "has clips that do not match their names")
    need(starts[0] == 0 and bool((np.diff(starts) > 0).all()), "has an empty clip")
    if pack.rest is not None:
        index, weight, bones = pack.bone_index, pack.bone_weight, pack.bones
        if pack.stored_positions is not None or index is None or weight is None or bones is None:
            raise flaw("has incomplete skinning")
        count = len(pack.rest)
        need(pack.rest.shape == (count, 3) and bool(np.isfinite(pack.rest).all()), "has broken rest vertices")
        need(index.shape == weight.shape == (count, 4), "has skin weights of a wrong shape")
        need(weight.dtype == np.uint8, "has skin weights that are not 8 bit")
        need(bool((weight.sum(1, dtype=np.int64) == 255).all()), "has skin weights that do not sum to one")
        need(bones.ndim == 4 and bones.shape[2:] == (3, 4), "has bones of a wrong shape")
        need(bool(np.isfinite(bones).all()), "has bones that are not finite")
        need(integer(index) and index.min() >= 0, "has skin weights of a wrong type")
        need(int(index.max()) < bones.shape[1], "uses a bone that does not exist")
        stored = len(bones)
    else:
        array = pack.stored_positions
        if array is None or array.ndim != 3 or array.shape[2] != 3:
            raise flaw("has no vertices")
        stored, count = array.shape[:2]
        if pack.position_step is None:
            need(np.issubdtype(array.dtype, np.floating) and bool(np.isfinite(array).all()), "has broken vertices")
        else:
            need(array.dtype == np.uint16, "has quantised vertices that are not 16 bit")
            for scale in (pack.position_low, pack.position_step):
                if scale is None or scale.shape != (pack.clips, 3):
                    raise flaw("has quantisation of a wrong shape")
                need(bool(np.isfinite(scale).all()), "has quantisation that is not finite")
    need(int(starts[-1]) == stored, "has clips that do not add up to its frames")
    need(0 <= faces.min() and faces.max() < count, "has a face with a vertex that does not exist")
    for clip in range(pack.clips):
        corners = pack.positions(clip, 0)[faces]
        area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum()
        need(np.isfinite(area) and area > 0, f"has no area in the clip '{pack.clip_names[clip]}'")
