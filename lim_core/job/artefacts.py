# SPDX-License-Identifier: GPL-3.0-or-later
"""What the stages of a job find and hand on: one type for each stage, frozen, checked, and kept in `state/` (job/state.py).

An artefact belongs to the stage that found it; no other stage changes it. The one that needs another form of it makes its own
and owns that: the fit may cut the template apart, so `Fitted` holds the template that it is about.

Shapes: K keyframes, T entries of `request.frames()`, V vertices and F faces of the template. Positions are in model space, float32, each
frame's from its own origin, unless a field says otherwise.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast, get_type_hints

import numpy as np
from jaxtyping import Float, Float16, Float32, Float64, Int, Int32, Int64, Shaped, UInt8, jaxtyped

from .state import State

A = TypeVar("A", bound="Artefact")


@dataclasses.dataclass(frozen=True, eq=False)
class Artefact:
    """What one stage found. Its fields are arrays, numbers, text or artefacts; an array that may be None is left out of the file.

    Raises:
        TypeError: a field has another type, dtype or shape than it states.
    """

    def __post_init__(self) -> None:
        with jaxtyped("context"):  # one letter is one size in all fields
            for name, kind in _kinds(type(self)).items():
                value = getattr(self, name)
                if not isinstance(value, kind):
                    form = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else repr(value)
                    raise TypeError(f"{type(self).__name__}.{name} is {form}, not {kind}")

    def arrays(self) -> dict[str, np.ndarray]:
        """As an npz holds it; the fields of an artefact in it are named `field.field`."""
        found: dict[str, np.ndarray] = {}
        for name in _kinds(type(self)):
            value = getattr(self, name)
            if isinstance(value, Artefact):
                found |= {f"{name}.{inner}": array for inner, array in value.arrays().items()}
            elif value is not None:
                found[name] = np.asarray(value)
        return found

    @classmethod
    def of(cls: type[A], arrays: dict[str, np.ndarray]) -> A:
        """The artefact that `arrays` were made of.

        Raises:
            TypeError, ValueError: they are of something else.
        """
        fields: dict[str, Any] = {}
        inside: dict[str, dict[str, np.ndarray]] = {}
        kinds = _kinds(cls)
        for name, array in arrays.items():
            field, dot, inner = name.partition(".")
            if dot:
                inside.setdefault(field, {})[inner] = array
            else:
                fields[field] = array.item() if array.ndim == 0 else array
        for field, parts in inside.items():
            if not issubclass(kinds.get(field, object), Artefact):
                raise TypeError(f"{cls.__name__} has no artefact named {field}")
            fields[field] = kinds[field].of(parts)
        return cls(**fields)

    def save(self, state: State, stage: str, key: str, seconds: float) -> None:
        """Keep what a stage found within so many seconds, under the hash of all that it depends on."""
        state.keep(stage, key, self.arrays(), seconds)

    @classmethod
    def load(cls: type[A], state: State, stage: str, key: str) -> A | None:
        """What a stage left under this key; None where there is nothing, or it is damaged or of another form."""
        arrays = state.load(stage, key)
        try:
            return None if arrays is None else cls.of(arrays)
        except (TypeError, ValueError):
            return None


def _kinds(kind: type[Artefact]) -> dict[str, Any]:
    """The types of an artefact's fields by name."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def obtain(state: State, stage: str, kind: type[A], key: str, function: Callable[[], A], whole: bool = True) -> A:
    """What a stage left under this key, or what its function finds now, which is kept.

    Args:
        whole: whether the other files that the stage left are all there.
    """
    found = kind.load(state, stage, key) if whole else None
    if found is None:
        started = time.monotonic()
        found = function()
        found.save(state, stage, key, time.monotonic() - started)
    return found


class Found:
    """What the stages of a job have found so far, by type: `found[Traced].positions`."""

    def __init__(self, state: State):
        self.seconds = state.seconds
        self._artefacts: dict[type[Artefact], Artefact] = {}

    def add(self, artefact: Artefact) -> None:
        self._artefacts[type(artefact)] = artefact

    def __getitem__(self, kind: type[A]) -> A:
        return cast(A, self._artefacts[kind])


# ---- of a video ------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True, eq=False)
class Imported(Artefact):
    """A clip's keyframes, cut out and cropped, and what there is to know of the clip. S = request.image_size.

    Attributes:
        rgba: the cut-outs, straight alpha.
        box: x, y and side of the square that is cut out, in pixels of the full picture.
        resolution: width and height of the full picture; rotation: degrees clockwise by which the file asks to be turned;
            pixel_aspect: width of a pixel over its height, in the file.
        fps: of the clip; first, last: clip frames used, 1-based; count: frames in the file.
        step: clip frames from keyframe to keyframe; last_step: to the last one.
        times: seconds at which the keyframes are shown.
        foreground: what told the object from the background (`foreground.choose`).
        pictures, folder: names of the files where the clip is a folder of pictures, and the folder.
        warnings: code, message and hint of each.
    """

    rgba: UInt8[np.ndarray, "K S S 4"]
    box: Float64[np.ndarray, "3"]
    resolution: Int[np.ndarray, "2"]
    rotation: int
    pixel_aspect: float
    fps: float
    first: int
    last: int
    count: int
    step: int
    last_step: int
    times: Float64[np.ndarray, "K"]
    foreground: str
    pictures: Shaped[np.ndarray, "P"]
    folder: str
    warnings: Shaped[np.ndarray, "W 3"]


@dataclasses.dataclass(frozen=True, eq=False)
class Generated(Artefact):
    """The views that a model made of a clip. Their pictures and depth are the job's capture.

    Attributes:
        views: as they were made, V views of S pixels; channels are colour, alpha and depth, as `adapters.load` has them.
    """

    views: Float16[np.ndarray, "K V 5 S S"]


# ---- of the networks -------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True, eq=False)
class Reconstruction(Artefact):
    """T_k of every keyframe.

    Attributes:
        triplanes: planes xy, xz, yz with C channels and R×R cells over [-1, 1]².
    """

    triplanes: Float16[np.ndarray, "K 3 C R R"]


@dataclasses.dataclass(frozen=True, eq=False)
class Interpolated(Artefact):
    """That T̂ was drawn at every frame: the pictures are in `previews/`, the triplanes are not kept.

    Attributes:
        frames: Blender's, those of `request.frames()`.
    """

    frames: Float64[np.ndarray, "T"]


@dataclasses.dataclass(frozen=True, eq=False)
class Surfaces(Artefact):
    """Surfaces labelled with canonical coordinates, at E entries: every α of every interval, both ends included.

    Attributes:
        points: S samples of all surfaces, one after the other.
        canonical: where each sample's material point is at the end that its interval is traced from, in model space.
        interval: of each entry; alpha: its place in it, 0 at the end that the interval is traced from.
        start: where each entry's samples begin in `points`, and the end of the last. An entry may be empty.
    """

    points: Float32[np.ndarray, "S 3"]
    canonical: Float32[np.ndarray, "S 3"]
    interval: Int[np.ndarray, "E"]
    alpha: Float[np.ndarray, "E"]
    start: Int64[np.ndarray, "E+1"]


# ---- of the mesh -----------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True, eq=False)
class Template(Artefact):
    """The mesh that is moved through time.

    Attributes:
        vertices: at keyframe `home`.
        faces: triangles, indices into `vertices`.
        home: index of the keyframe that the mesh was made from, and from which it is carried outwards.
    """

    vertices: Float32[np.ndarray, "V 3"]
    faces: Int32[np.ndarray, "F 3"]
    home: int


@dataclasses.dataclass(frozen=True, eq=False)
class Traced(Artefact):
    """The feed-forward result: where the networks carry the template.

    Attributes:
        positions: at every frame, from its own origin (`request.placed` puts them together).
        confidence: [0, 1], how surely each vertex was matched.
    """

    positions: Float32[np.ndarray, "T V 3"]
    confidence: Float32[np.ndarray, "T V"]


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted(Artefact):
    """The template on the captured depth.

    Attributes:
        template: the mesh that all of this is about: the one that was built, or the same cut apart where parts only touched.
        traced: its feed-forward result.
        positions: at every frame, from the first keyframe's origin; confidence: [0, 1], as in `Traced`.
        keyframes: as they were fitted, before a clip's are made steady, each from its own origin.
        residuals: mean distance to the captured points at each keyframe, model units; misfit: with what the colours miss.
            Both are empty where nothing was fitted.
    """

    template: Template
    traced: Traced
    positions: Float32[np.ndarray, "T V 3"]
    confidence: Float32[np.ndarray, "T V"]
    keyframes: Float32[np.ndarray, "K V 3"]
    residuals: Float64[np.ndarray, "R"]
    misfit: Float64[np.ndarray, "R"]


@dataclasses.dataclass(frozen=True, eq=False)
class Textured(Artefact):
    """The paint of the fit's template. Nothing for the artist's own mesh, which keeps its own.

    Attributes:
        loop_uvs: of every corner of every face, [0, 1], row 0 of the image is v = 1.
        image: sRGB albedo, S×S pixels.
    """

    loop_uvs: Float32[np.ndarray, "F 3 2"] | None = None
    image: UInt8[np.ndarray, "S S 3"] | None = None
