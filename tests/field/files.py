# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows about files: what is imported, what is exported, and what is said of both."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import bpy
import numpy as np

from .bench import ROOT, Bench, fcurves, glb_times, keyed, matte, new_scene, row, warned


def build_shot() -> None:
    """A head that turns and walks in centimetres, below a mirrored root, at 23.976 fps from frame 1001 to 1033."""
    scene = new_scene(1001, 1033, fps=24, fps_base=1.001)
    scene.unit_settings.scale_length = 0.01
    bpy.ops.mesh.primitive_monkey_add(size=120, location=(5200, -830, 170))
    hero = bpy.context.object
    hero.name = "Hero"
    hero.data.materials.append(matte("Hero", (0.7, 0.5, 0.2)))
    root = bpy.data.objects.new("Root", None)
    scene.collection.objects.link(root)
    root.scale = (-1, 1, 1)
    hero.parent = root
    keyed(hero, "location", {1001: 5200.0, 1017: 5290.0, 1033: 5400.0}, index=0)
    keyed(hero, "rotation_euler", {1001: 0.0, 1017: 0.9, 1033: 1.6}, index=2)


@row("a film's frame rate and numbers", ".glb from 0 to 1.335 s")
def vfx_shot(bench: Bench) -> tuple[str, bool]:
    build_shot()
    facts = bench.run_scene()
    assert facts["status"] == "done", facts
    first, last, _ = glb_times(facts["glb"])
    return f".glb from {first:.3f} to {last:.3f} s", bool(np.allclose((first, last), (0, 32 * 1.001 / 24), atol=2e-3))


def build_two_movers(path: Path) -> None:
    """A .glb with a clip for each object: a cube in fast circles and one that sinks."""
    new_scene(1, 25)
    for name, x, colour in (("Left", -1.0, (0.8, 0.1, 0.1)), ("Right", 1.0, (0.1, 0.1, 0.8))):
        bpy.ops.mesh.primitive_cube_add(size=1, location=(x, 0, 0))
        mover = bpy.context.object
        mover.name = name
        mover.data.materials.append(matte(name, colour))
    left, right = (bpy.data.objects[name] for name in ("Left", "Right"))
    keyed(left, "location", {1: 0.0, 13: 1.2, 25: 0.0}, index=2)
    keyed(right, "location", {1: 0.0, 13: -1.2, 25: 0.0}, index=2)
    bpy.ops.preferences.addon_enable(module="io_scene_gltf2")
    bpy.ops.export_scene.gltf(filepath=str(path), export_format="GLB")


def build_scale_swap(path: Path, poses: int = 4, hold: int = 4, fps: int = 24, sampled: bool = False) -> None:
    """Stop motion as engines play it: a mesh for each pose, away from the origin, all but one scaled to nothing."""
    new_scene(1, 1 + hold * (poses - 1), fps=fps)
    for pose in range(poses):
        bpy.ops.mesh.primitive_ico_sphere_add(subdivisions=2 + pose % 2, radius=0.6, location=(3, 0, 0))
        swapped = bpy.context.object
        swapped.name = f"Pose {pose}"
        share = pose / (poses - 1)
        for vertex in swapped.data.vertices:
            vertex.co = (vertex.co.x * (1 + 0.5 * share), vertex.co.y, vertex.co.z * (1 - 0.4 * share))
        swapped.data.materials.append(matte(f"clay {pose}", (0.8, 0.45, 0.25)))
        keyed(swapped, "scale", {1 + hold * k: (1.0, 1.0, 1.0) if k == pose else (0.0, 0.0, 0.0) for k in range(poses)})
        for curve in fcurves(swapped):
            for key in curve.keyframe_points:
                key.interpolation = "CONSTANT"
    bpy.ops.preferences.addon_enable(module="io_scene_gltf2")
    bpy.ops.export_scene.gltf(filepath=str(path), export_format="GLB", export_force_sampling=sampled)


def build_sheets(folder: Path, suffix: str, numbers=range(1, 9), stem: str = "sheet_") -> list[Path]:
    """Numbered meshes of a sheet that bends upwards, of another topology in each file."""
    new_scene()
    files = []
    for place, number in enumerate(numbers):
        bpy.ops.mesh.primitive_grid_add(x_subdivisions=8 + 2 * (place % 3), y_subdivisions=6, size=2)
        sheet = bpy.context.object
        for vertex in sheet.data.vertices:
            vertex.co.z = 0.1 * place * vertex.co.x**2
        sheet.data.materials.append(matte("sheet", (0.2, 0.6, 0.7)))
        files.append(folder / f"{stem}{number:04d}{suffix}")
        write_mesh(files[-1])
        bpy.data.objects.remove(sheet)
    return files


def write_mesh(path: Path) -> None:
    """Export what is selected by its suffix."""
    if path.suffix == ".glb":
        bpy.ops.preferences.addon_enable(module="io_scene_gltf2")
        bpy.ops.export_scene.gltf(filepath=str(path), export_format="GLB", use_selection=True)
    elif path.suffix == ".obj":
        bpy.ops.wm.obj_export(filepath=str(path), export_selected_objects=True)
    elif path.suffix == ".ply":
        bpy.ops.wm.ply_export(filepath=str(path), export_selected_objects=True)
    else:
        bpy.ops.wm.stl_export(filepath=str(path), export_selected_objects=True)


@row(
    "a clip per object",
    "both play: at frame 13 the left one reaches z 0.7…1.7, the right one −1.7…−0.7; no word is missing",
)
def two_movers(bench: Bench) -> tuple[str, bool]:
    build_two_movers(bench.folder / "two_movers.glb")
    facts = bench.run("--input", bench.folder / "two_movers.glb")
    result = bench.result(facts)
    points = result.at(13)
    spans = [points[points[:, 0] * side > 0][:, 2] for side in (-1, 1)]
    found = [(float(span.min()), float(span.max())) for span in spans]
    passed = np.allclose(found, [(0.7, 1.7), (-1.7, -0.7)], atol=0.1) and all(
        n in facts["clip"] for n in ("Left", "Right")
    )
    words = ", ".join(f"z {low:.2f}…{high:.2f}" for low, high in found)
    return f"{words}; clip {facts['clip']}", bool(passed)


@row("stop motion by scale", "each pose where it is shown: at frame 13 x 2.1…3.9, z ±0.36; four keyframes")
def scale_swap(bench: Bench) -> tuple[str, bool]:
    build_scale_swap(bench.folder / "scale_swap.glb")
    facts = bench.run("--input", bench.folder / "scale_swap.glb")
    result = bench.result(facts)
    boxes = [np.concatenate(result.box(frame)) for frame in (1, 13)]
    right = [(2.4, -0.6, -0.6, 3.6, 0.6, 0.6), (2.1, -0.6, -0.36, 3.9, 0.6, 0.36)]
    passed = np.allclose(boxes, right, atol=0.08) and facts["keyframes"] == [1, 5, 9, 13]
    return f"at 1 {boxes[0].round(2)}, at 13 {boxes[1].round(2)}; keyframes {facts['keyframes']}", bool(passed)


def _sequence(bench: Bench, suffix: str, whole_folder: bool) -> tuple[str, bool]:
    files = build_sheets(bench.folder, suffix)
    (bench.folder / "meshes").mkdir()
    for file in files:
        for part in bench.folder.glob(f"{file.stem}.*"):
            part.rename(bench.folder / "meshes" / part.name)
    facts = bench.run("--input", bench.folder / "meshes" if whole_folder else bench.folder / "meshes" / files[0].name)
    result = bench.result(facts)
    depth = [float(np.ptp(result.at(frame), axis=0).min()) for frame in (1, 8)]
    passed = abs(depth[1] - 0.7) < 0.07 and depth[0] < 0.1 and len(facts["keyframes"]) == 5
    return f"rises by {depth[0]:.2f} at 1 and {depth[1]:.2f} at 8; keyframes {facts['keyframes']}", passed


@row("a folder of numbered meshes", "rises by 0 at frame 1 and by 0.7 at frame 8; five keyframes")
def mesh_sequence_obj(bench: Bench) -> tuple[str, bool]:
    return _sequence(bench, ".obj", whole_folder=True)


@row("the first of numbered meshes", "rises by 0 at frame 1 and by 0.7 at frame 8; five keyframes")
def mesh_sequence_ply(bench: Bench) -> tuple[str, bool]:
    return _sequence(bench, ".ply", whole_folder=False)


SCREEN = """
import sys, numpy as np
sys.path.insert(0, sys.argv[1])
from lim_core.video import foreground
row, column = np.mgrid[0:240, 0:320]
there = ((column - 160) / 70) ** 2 + ((row - 120) / 50) ** 2 < 1
green = np.stack([0 * column + 20, 180 + 30 * (column - 160) / 160, 0 * column + 40], -1)
rgb = np.where(there[..., None], (188, 118, 58), green)
rgba = np.dstack([rgb, np.full(there.shape, 255)]).astype(np.uint8)
key, share = foreground.border_colour([rgba])
alpha = foreground.keyed(rgba, key)[..., 3]
print((alpha[~there] > 13).mean(), (alpha[there] < 242).mean(), share)
"""


@row("a green screen lit by 180 ± 30", "near 0 % of the screen above alpha 0.05; the object whole")
def phone(bench: Bench) -> tuple[str, bool]:
    run = subprocess.run([bench.backend, "-c", SCREEN, ROOT], capture_output=True, text=True, check=True)
    left, lost, share = map(float, run.stdout.split())
    return f"{left:.1%} of the screen left, {lost:.1%} of the object lost", left < 0.01 and lost < 0.01 and share > 0.95


def build_moving(path: Path) -> None:
    """A head that rises and bends from frame 1 to 13, exported by the file's suffix."""
    scene = new_scene(1, 13)
    bpy.ops.mesh.primitive_monkey_add(size=1)
    head = bpy.context.object
    head.data.materials.append(matte("head", (0.2, 0.5, 0.9)))
    keyed(head, "location", {1: 0.0, 13: 1.0}, index=2)
    if path.suffix == ".glb":
        write_mesh(path)
    elif path.suffix == ".fbx":
        bpy.ops.preferences.addon_enable(module="io_scene_fbx")
        bpy.ops.export_scene.fbx(filepath=str(path))
    elif path.suffix == ".abc":
        bend = head.modifiers.new("Bend", "SIMPLE_DEFORM")
        keyed(bend, "angle", {1: 0.0, 13: 1.0})
        bpy.ops.wm.alembic_export(filepath=str(path), start=1, end=13, as_background_job=False)
    else:
        bpy.ops.wm.usd_export(filepath=str(path), export_animation=True)
    assert scene is not None


def _moving(bench: Bench, suffix: str) -> tuple[str, bool]:
    build_moving(bench.folder / f"moving{suffix}")
    facts = bench.run("--input", bench.folder / f"moving{suffix}")
    result = bench.result(facts)
    rise = float(result.positions[-1, :, 2].mean() - result.positions[0, :, 2].mean())
    return f"rises by {rise:.2f} from frame {result.frames[0]:g} to {result.frames[-1]:g}", abs(rise - 1) < 0.05


@row("USD text", "rises by 1 from frame 1 to 13")
def usda(bench: Bench) -> tuple[str, bool]:
    return _moving(bench, ".usda")


@row("Alembic", "rises by 1 from frame 1 to 13 (bent meanwhile)")
def alembic(bench: Bench) -> tuple[str, bool]:
    found, _ = _moving(bench, ".abc")
    rise = float(found.split()[2])
    return found, abs(rise - 1) < 0.2


def build_negative() -> None:
    """A head that nods from frame −20 to 4 at 25 frames a second, with a key between two frames."""
    new_scene(-20, 4, fps=25)
    bpy.ops.mesh.primitive_monkey_add(size=1)
    head = bpy.context.object
    head.name = "Neg"
    head.data.materials.append(matte("neg", (0.3, 0.7, 0.2)))
    keyed(head, "rotation_euler", {-20: 0.0, -7.5: 0.8, 4: 0.0}, index=0)


@row(
    "frames before zero, a key between two frames",
    ".glb 0…0.96 s; .abc and .usda frames 0…24, at all of which it moves",
)
def negative(bench: Bench) -> tuple[str, bool]:
    build_negative()
    abc, usd = bench.folder / "out.abc", bench.folder / "out.usda"
    facts = bench.run_scene("--keyframes", "-20,-7.5,4", "--frame-range", "-20:4", "--export", abc, "--export", usd)
    truth = bench.result(facts)
    first, last, _ = glb_times(facts["glb"])
    words, passed = [f".glb {first:.2f}…{last:.2f} s"], bool(np.allclose((first, last), (0, 0.96), atol=1e-3))
    for file, importer in ((abc, bpy.ops.wm.alembic_import), (usd, bpy.ops.wm.usd_import)):
        bpy.ops.wm.read_factory_settings(use_empty=True)
        bpy.context.scene.render.fps = 25
        importer(filepath=str(file))
        scene = bpy.context.scene
        back = next(object for object in scene.objects if object.type == "MESH")
        off = []
        for frame in (0, 12, 24):
            scene.frame_set(frame)
            shown = back.evaluated_get(bpy.context.evaluated_depsgraph_get())
            points = np.array([shown.matrix_world @ vertex.co for vertex in shown.data.vertices])
            after = int(np.clip(np.searchsorted(truth.frames, frame - 20), 1, len(truth.frames) - 1))
            share = (frame - 20 - truth.frames[after - 1]) / (truth.frames[after] - truth.frames[after - 1])
            wanted = truth.positions[after - 1] * (1 - share) + truth.positions[after] * share
            off.append(float(np.abs(points - wanted).max()))
        words.append(f"{file.suffix} {scene.frame_start}…{scene.frame_end}, off by {max(off):.4f}")
        passed &= (scene.frame_start, scene.frame_end) == (0, 24) and max(off) < 0.01
    return "; ".join(words), passed


@row("a compression that Blender does not read", "exit 3, and the command that undoes it")
def meshopt(bench: Bench) -> tuple[str, bool]:
    extension = "EXT_meshopt_compression"
    about = {"asset": {"version": "2.0"}, "extensionsRequired": [extension], "extensionsUsed": [extension]}
    text = json.dumps(about).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIIII", b"glTF", 2, 20 + len(text), len(text), 0x4E4F534A)
    (bench.folder / "packed.glb").write_bytes(head + text)
    facts = bench.run("--input", bench.folder / "packed.glb")
    return facts["hint"], facts["returncode"] == 3 and "gltf-transform copy" in facts["hint"]


@row("a file in which nothing moves", "a warning that says so; no raw errors of Blender's in the log")
def still_obj(bench: Bench) -> tuple[str, bool]:
    build_sheets(bench.folder, ".obj", numbers=[1], stem="still")
    facts = bench.run("--input", bench.folder / "still0001.obj", "--inbetweens", "0")
    said, raw = warned(facts, "Nothing of", "moves between"), "geometry data" in facts["printed"]
    return f"{facts['status']}, {'said' if said else 'not said'}", said and not raw
