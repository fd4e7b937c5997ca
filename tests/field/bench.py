# SPDX-License-Identifier: GPL-3.0-or-later
"""What the rows of the table need: a scene of their own, a whole job as a user starts it, and the result as arrays."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import bpy
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
HEADLESS = ROOT / "blender_addon" / "headless.py"
SHARED = ROOT.parent / "shared"
"""Inputs that are not part of the project; a row that needs one says so where it is absent."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    kind: str
    """What kind of input the scene stands for."""
    expected: str
    measure: Callable[[Bench], tuple[str, bool]]
    """Builds the scene, runs the job; returns what was found, in words, and whether it is right."""


ROWS: dict[str, Row] = {}
"""All rows of the modules that were imported, by name, in order."""


def row(kind: str, expected: str, name: str = ""):
    """Make a function `(bench) -> (found, passed)` a row of the table; it is called what the function is called."""

    def add(measure: Callable[[Bench], tuple[str, bool]]):
        ROWS[name or measure.__name__] = Row(name or measure.__name__, kind, expected, measure)
        return measure

    return add


@dataclasses.dataclass
class Result:
    """A job's mesh, as it lies in the saved file."""

    frames: np.ndarray
    """[T] float64, scene frames"""
    positions: np.ndarray
    """[T, V, 3] float32, world"""
    faces: list[list[int]]
    colours: np.ndarray
    """[V, 3] in [0, 1], sRGB: the texture at one corner of each vertex; NaN where there is no texture"""

    def at(self, frame: float) -> np.ndarray:
        """[V, 3] at the frame nearest to `frame`."""
        return self.positions[int(np.abs(self.frames - frame).argmin())]

    def box(self, frame: float) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and highest corner [3] at the frame nearest to `frame`."""
        return self.at(frame).min(0), self.at(frame).max(0)

    def parts(self) -> list[np.ndarray]:
        """Vertex numbers of each connected part, the largest first."""
        group = list(range(self.positions.shape[1]))

        def find(vertex: int) -> int:
            while group[vertex] != vertex:
                group[vertex] = vertex = group[group[vertex]]
            return vertex

        for face in self.faces:
            for vertex in face[1:]:
                group[find(vertex)] = find(face[0])
        roots = np.array([find(vertex) for vertex in range(len(group))])
        return sorted((np.flatnonzero(roots == root) for root in np.unique(roots)), key=len, reverse=True)


@dataclasses.dataclass
class Bench:
    """Where one row does its work."""

    folder: Path
    """Empty, and the row's own."""
    backend: str
    """The backend's Python."""
    timeout: float = 900.0

    def run(self, *options, out: str = "out.blend", glb: str = "out.glb") -> dict:
        """Run headless.py in a process of its own, at quality “draft” with 3 in-betweens unless the options say else.

        Returns:
            The report (see command_line.py), with "returncode" and what was printed as "printed".
        """
        options = [str(option) for option in options]
        command = ["--quality", "draft", "--inbetweens", "3", "--backend", self.backend, "--job", self.folder / "job"]
        command += ["--out", self.folder / out, "--glb", self.folder / glb, "--json", self.folder / "report.json"]
        (self.folder / "report.json").unlink(missing_ok=True)
        run = subprocess.run(
            [sys.executable, HEADLESS, "--", *map(str, command), *options],
            capture_output=True, text=True, errors="replace", timeout=self.timeout,
        )  # fmt: skip
        report = self.folder / "report.json"
        facts = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {"status": "no report"}
        (self.folder / "printed.txt").write_text(run.stdout + run.stderr, encoding="utf-8")
        return {**facts, "returncode": run.returncode, "printed": run.stdout + run.stderr}

    def run_scene(self, *options) -> dict:
        """Save the scene that is open, and run on it."""
        path = self.folder / "scene.blend"
        bpy.ops.wm.save_as_mainfile(filepath=str(path))
        return self.run("--input", path, *options)

    def result(self, facts: dict) -> Result:
        """The mesh that the job left in its .blend, which is opened. Raises AssertionError for a job that failed."""
        assert facts["status"] == "done", f"{facts.get('code')}: {facts.get('message')} {facts['printed'][-800:]}"
        bpy.ops.wm.open_mainfile(filepath=facts["blend"])
        return result_of(bpy.data.objects[facts["object"]])


def warned(facts: dict, *words: str) -> bool:
    """Whether one warning of the report holds all these words, in its message or hint."""
    said = [f"{warning['message']} {warning['hint']}" for warning in facts.get("warnings", ())]
    return any(all(word in text for word in words) for text in said)


def result_of(object: bpy.types.Object) -> Result:
    """A result of LIM as arrays."""
    mesh = object.data
    frames = np.array(object["lim_frames"], np.float64)
    keys = mesh.shape_keys.key_blocks[1 : 1 + len(frames)]
    positions = np.empty((len(keys), len(mesh.vertices), 3), np.float32)
    for place, key in zip(positions, keys):
        flat = np.empty(place.size, np.float32)
        key.data.foreach_get("co", flat)
        place[:] = flat.reshape(-1, 3)
    matrix = np.array(object.matrix_world, np.float32)
    colours = np.full((len(mesh.vertices), 3), np.nan)
    images = [
        node.image
        for material in mesh.materials
        if material and material.node_tree
        for node in material.node_tree.nodes
        if node.bl_idname == "ShaderNodeTexImage" and node.image
    ]
    if images and mesh.uv_layers:
        width, height = images[0].size
        texels = np.array(images[0].pixels[:], np.float32).reshape(height, width, -1)
        uv = np.empty(len(mesh.loops) * 2, np.float32)
        mesh.uv_layers[0].uv.foreach_get("vector", uv)
        corner = np.empty(len(mesh.loops), np.int32)
        mesh.loops.foreach_get("vertex_index", corner)
        x, y = (np.clip(uv.reshape(-1, 2), 0, 0.9999) * (width, height)).astype(int).T
        colours[corner] = texels[y, x, :3]
    faces = [list(polygon.vertices) for polygon in mesh.polygons]
    return Result(frames, positions @ matrix[:3, :3].T + matrix[:3, 3], faces, colours)


def glb_times(path: str | Path) -> tuple[float, float, int]:
    """First and last second of a .glb's animation, and the most keys that a channel has."""
    data = Path(path).read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    about = json.loads(data[20 : 20 + length])
    inputs = [about["accessors"][s["input"]] for a in about.get("animations", ()) for s in a["samplers"]]
    assert inputs, "the file holds no animation"
    return min(a["min"][0] for a in inputs), max(a["max"][0] for a in inputs), max(a["count"] for a in inputs)


# ---- scenes --------------------------------------------------------------------------------------------------------


def new_scene(first: int = 1, last: int = 17, fps: int = 24, fps_base: float = 1.0) -> bpy.types.Scene:
    """An empty scene of factory settings."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    scene.frame_start, scene.frame_end = first, last
    scene.render.fps, scene.render.fps_base = fps, fps_base
    return scene


def matte(name: str, colour: tuple[float, float, float]) -> bpy.types.Material:
    """A Principled surface of one linear colour."""
    material = bpy.data.materials.new(name)
    if bpy.app.version < (5, 0, 0):
        material.use_nodes = True
    material.node_tree.nodes["Principled BSDF"].inputs["Base Color"].default_value = (*colour, 1.0)
    return material


def keyed(owner, path: str, keys: dict[float, object], index: int = -1) -> None:
    """Key a property: frame → its value there."""
    for frame, value in keys.items():
        if index < 0:
            setattr(owner, path, value)
        else:
            getattr(owner, path)[index] = value
        owner.keyframe_insert(path, index=index, frame=frame)


def fcurves(owner: bpy.types.ID) -> list[bpy.types.FCurve]:
    """All F-curves of the owner's action (4.4 made actions layered, 5.0 removed `action.fcurves`)."""
    action = owner.animation_data.action
    if not hasattr(action, "layers"):
        return list(action.fcurves)
    bags = [bag for layer in action.layers for strip in layer.strips for bag in strip.channelbags]
    return [curve for bag in bags for curve in bag.fcurves]


def package():
    """The add-on as the package `lim_for_blender`; a second call gives the same."""
    spec = importlib.util.spec_from_file_location("lim_headless", HEADLESS)
    headless = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(headless)
    return headless.load_package(ROOT)
