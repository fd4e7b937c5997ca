# SPDX-License-Identifier: GPL-3.0-or-later
"""One interface for all pipelines that make views: the embedded one, and public ones from a local folder.

    model = load(folder, device);  views = model(frames, elevation, on_progress)

A folder is recognised by the class that its model_index.json names. Public pipelines bring their own code (`pipeline.py` in
their folder, which is run) and their own licence; nothing of theirs is fetched or shipped. They know no depth and have other cameras
than the rig: each layout says where its pictures were taken, the three nearest to the rig's places are used with the cameras
that they have, and the clip's inflated silhouette stands in for the depth.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..shared import cameras
from ..shared.errors import LimError
from . import foreground, views
from .splat import prior

Progress = Callable[[float], None]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a public pipeline is called and what comes back.

    Attributes:
        azimuths: of its pictures, degrees counter-clockwise seen from above, as cameras.look_at counts; the clip is at 0.
        elevations: of its pictures in degrees; None: that of the clip.
        used: which three of them stand in for the rig's 90°, 180° and 270°.
        grid: (rows, columns) where all come in one picture; None where they come as a list.
        whole_clip: it takes all frames at once and gives, for each view, all frames; otherwise frame by frame.
        argument: what it calls the picture(s).
        size: pixels along each side of the picture that it is given.
    """

    azimuths: tuple[float, ...]
    elevations: tuple[float, ...] | None
    used: tuple[int, int, int]
    grid: tuple[int, int] | None
    whole_clip: bool
    argument: str
    size: int


LAYOUTS = {
    # Zero123++ v1.2 (weights CC-BY-NC 4.0, code Apache 2.0): six views in a grid of three rows
    "Zero123PlusPipeline": Layout(
        (30, 90, 150, 210, 270, 330), (20, -10, 20, -10, 20, -10), (1, 3, 4), (3, 2), False, "image", 320
    ),
    # MV-Adapter image-to-multi-view (Apache 2.0; its base model has its own licence): six views at the clip's height
    "MVAdapterI2MVSDXLPipeline": Layout((0, 45, 90, 180, 270, 315), None, (2, 3, 4), None, False, "control_image", 768),
    # SV4D (Stability AI Community Licence): eight orbit views of the whole clip
    "StableVideo4DPipeline": Layout((45, 90, 135, 180, 225, 270, 315, 360), None, (1, 3, 5), None, True, "frames", 576),
}  # fmt: skip
EMBEDDED = "MultiviewPipeline"


def class_name(folder: Path) -> str:
    """Which pipeline a folder holds. Raises LimError weights_missing, weights_broken."""
    try:
        name = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
        name = name[-1] if isinstance(name, list) else name
    except FileNotFoundError:
        raise LimError(
            "weights_missing", f"There is no multi-view pipeline in “{folder}”: it has no model_index.json.",
            "Choose the pipeline's folder, or leave it empty to use the bundled one.",
        ) from None  # fmt: skip
    except (ValueError, KeyError, TypeError, IndexError, OSError):
        raise LimError("weights_broken", f"“{folder}” is not a pipeline's folder.", "Get it again.") from None
    if name != EMBEDDED and name not in LAYOUTS:
        raise LimError(
            "weights_broken", f"Pipelines of the kind {name} cannot be used.", f"Use {', '.join((EMBEDDED, *LAYOUTS))}."
        )
    return name


def load(folder: Path, device: torch.device | str = "cpu") -> Embedded | Public:
    """The model in a local folder. Raises LimError weights_missing, weights_broken, backend_broken."""
    name = class_name(folder)
    try:
        import diffusers
    except ImportError:
        raise LimError(
            "backend_broken", "The backend has no diffusers, which makes the views.", "Install the backend again."
        ) from None
    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    try:
        if name == EMBEDDED:
            from .multiview import MultiviewPipeline

            return Embedded(_loaded(MultiviewPipeline, folder).to(device))
        kind = _own_code(folder, name) if (folder / "pipeline.py").is_file() else getattr(diffusers, name)
        return Public(_loaded(kind, folder).to(device), LAYOUTS[name])
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LimError(
            "weights_broken", f"The pipeline in “{folder}” cannot be loaded: {first}", "Get it again."
        ) from None


def _own_code(folder: Path, name: str):
    """The pipeline's class from the code beside its weights, under a module name of its own; nothing is cached elsewhere."""
    module_name = f"views_model_{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, folder / "pipeline.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return getattr(module, name)


def _loaded(kind, folder: Path):
    pipeline = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False)
    return pipeline.to(torch.float32)


def weights_key(folder: Path) -> str:
    """Identity of a pipeline: its settings by content, its weights by size and time."""
    class_name(folder)
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        small = path.suffix in (".json", ".py")
        content = path.read_bytes() if small else str((path.stat().st_size, path.stat().st_mtime_ns)).encode()
        digest.update(path.relative_to(folder).as_posix().encode() + content)
    return digest.hexdigest()


class Embedded:
    """Our own pipeline: the rig's cameras, with depth."""

    def __init__(self, pipeline):
        self.pipeline = pipeline
        self.size = pipeline.network.config.size

    def cameras(self, elevation: float, size: int) -> tuple[np.ndarray, np.ndarray]:
        """camera_to_world [V, 4, 4] and intrinsics [V, 3, 3] of the views, the clip's first."""
        return views.rig(elevation, size)

    def __call__(
        self, frames: Float[Tensor, "T 4 H W"], elevation: float, on_progress: Progress | None = None
    ) -> Float[Tensor, "T V 5 H W"]:
        """All views of all frames: colour on white and alpha in [0, 1], depth beyond the origin's in model units."""
        from .multiview import decide

        camera, lens = (torch.from_numpy(x) for x in self.cameras(elevation, self.size))
        return decide(self.pipeline(frames, camera, lens, on_progress=on_progress))


class Public:
    """A public pipeline behind the same interface."""

    def __init__(self, pipeline, layout: Layout):
        self.pipeline, self.layout, self.size = pipeline, layout, 128

    def cameras(self, elevation: float, size: int) -> tuple[np.ndarray, np.ndarray]:
        places = [(0.0, elevation)]
        for index in self.layout.used:
            height = self.layout.elevations[index] if self.layout.elevations else elevation
            places.append((self.layout.azimuths[index], height))
        return np.stack([cameras.look_at(*place) for place in places]), np.stack([cameras.pinhole(size)] * 4)

    def __call__(self, frames, elevation: float, on_progress: Progress | None = None):
        pictures = [self._picture(frame) for frame in frames]
        if self.layout.whole_clip:
            made = self._called(pictures)
            taken = [[made[index][t] for index in self.layout.used] for t in range(len(pictures))]
        else:
            taken = []
            for picture in pictures:
                made = self._called(picture)
                taken.append([made[index] for index in self.layout.used])
                if on_progress:
                    on_progress(len(taken) / len(pictures))
        camera, lens = (torch.from_numpy(x) for x in self.cameras(elevation, self.size))
        given = frames[None] * 2 - 1
        hint = prior(given, camera[None], lens[None])[0]
        depth = F.interpolate(hint[:, :, 3].flatten(0, 1)[:, None], scale_factor=2.0).unflatten(0, hint.shape[:2])
        shown = torch.stack([torch.stack([self._cut_out(picture) for picture in row]) for row in taken])
        shown = torch.cat([frames[:, None], shown], 1)
        return torch.cat([shown, depth], 2)

    def _called(self, pictures) -> list:
        answer = self.pipeline(**{self.layout.argument: pictures})
        images = answer.frames if hasattr(answer, "frames") else answer.images
        if self.layout.grid is None:
            return list(images)
        rows, columns = self.layout.grid
        whole = images[0]
        wide, high = whole.width // columns, whole.height // rows
        return [
            whole.crop((c * wide, r * high, (c + 1) * wide, (r + 1) * high))
            for r in range(rows)
            for c in range(columns)
        ]

    def _picture(self, frame: Float[Tensor, "4 H W"]) -> Image.Image:
        """A frame as those pipelines want it: on white, of their size."""
        picture = Image.fromarray((frame[:3].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
        return picture.resize((self.layout.size, self.layout.size), Image.Resampling.BICUBIC)

    def _cut_out(self, picture: Image.Image) -> Float[Tensor, "4 S S"]:
        rgb = np.asarray(picture.convert("RGB"))
        rgba = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
        key, _ = foreground.border_colour([rgba])
        cut = (
            Image.fromarray(foreground.keyed(rgba, key)).convert("RGBa").resize((self.size, self.size)).convert("RGBA")
        )
        return views.shrink(np.asarray(cut)[None].copy(), self.size)[0]
