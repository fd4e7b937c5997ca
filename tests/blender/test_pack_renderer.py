# SPDX-License-Identifier: GPL-3.0-or-later
"""What training sees of a pack is what Blender shows of its asset, at the same frame and from the same cameras.

`python3 install test --layer blender -- -s -k pack_renderer` prints what was measured; with LIM_ASSETS=FOLDER in the
environment also for every .glb of a folder.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import bpy
import numpy as np
import pytest
from lim_for_blender.blender_addon.source import capture_scene, compat, evaluated
from lim_for_blender.blender_addon.source.stage import Stage, carried
from lim_for_blender.blender_addon.tools import bake_assets
from lim_for_blender.lim_core.data import bake
from lim_for_blender.lim_core.mesh import packs
from lim_for_blender.lim_core.shared import cameras, protocol

ROOT = Path(__file__).resolve().parents[2]
BACKEND = os.environ.get("LIM_BACKEND_PYTHON", "")
ASSETS = sorted(Path(os.environ["LIM_ASSETS"]).glob("*.glb")) if os.environ.get("LIM_ASSETS") else []
SIZE, VIEWS = 256, 4
START = "start position"

RENDER = """
import sys, numpy as np
from lim_core.mesh import packs, rays
pack, wanted, out = packs.load(sys.argv[1]), np.load(sys.argv[2]), sys.argv[3]
seen = [
    rays.render(pack, positions, wanted["camera_to_world"], wanted["intrinsics"], int(wanted["size"]),
                canonical=[positions, wanted["positions"][0]])
    for positions in wanted["positions"]
]
np.savez(out, rgba=[s.rgba for s in seen], depth=[s.depth_planar for s in seen],
         position=[s.canonical[0] for s in seen], canonical=[s.canonical[1] for s in seen])
"""

pytestmark = pytest.mark.skipif(not Path(BACKEND).is_file(), reason="LIM_BACKEND_PYTHON names no backend")


def build_asset(path: Path) -> None:
    """A striped tube that two bones bend, with a plain ball hung on the upper one: occlusions, a texture, a seam."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    scene.render.fps, scene.frame_start, scene.frame_end = 30, 0, 30
    bpy.ops.mesh.primitive_cylinder_add(vertices=24, radius=0.3, depth=2, location=(0, 0, 1), end_fill_type="TRIFAN")
    tube = bpy.context.object
    bpy.ops.object.transform_apply(location=True)
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.mesh.select_all(action="SELECT")
    bpy.ops.mesh.subdivide(number_cuts=7)
    bpy.ops.object.mode_set(mode="OBJECT")
    bpy.ops.mesh.primitive_ico_sphere_add(subdivisions=3, radius=0.35, location=(0.7, 0.2, 1.6))
    ball = bpy.context.object
    image = bpy.data.images.new("stripes", 128, 128)
    pixels = np.ones((128, 128, 4), np.float32)
    pixels[..., 0] = (np.arange(128) // 16 % 2)[:, None]
    pixels[..., 1] = np.linspace(0.1, 0.9, 128)
    image.pixels.foreach_set(pixels.ravel())
    image.pack()
    for ob, name in ((tube, "striped"), (ball, "plain")):
        made = compat.new_material(name)
        nodes, links = made.node_tree.nodes, made.node_tree.links
        output, shader = nodes.new("ShaderNodeOutputMaterial"), nodes.new("ShaderNodeBsdfPrincipled")
        links.new(shader.outputs["BSDF"], output.inputs["Surface"])
        shader.inputs["Base Color"].default_value = (0.1, 0.3, 0.6, 1)
        if ob is tube:
            picture = nodes.new("ShaderNodeTexImage")
            picture.image = image
            links.new(picture.outputs["Color"], shader.inputs["Base Color"])
        ob.data.materials.append(made)
    data = bpy.data.armatures.new("bones")
    rig = bpy.data.objects.new("rig", data)
    scene.collection.objects.link(rig)
    bpy.context.view_layer.objects.active = rig
    bpy.ops.object.mode_set(mode="EDIT")
    lower, upper = data.edit_bones.new("lower"), data.edit_bones.new("upper")
    lower.head, lower.tail, upper.head, upper.tail = (0, 0, 0), (0, 0, 1), (0, 0, 1), (0, 0, 2)
    upper.parent = lower
    bpy.ops.object.mode_set(mode="OBJECT")
    for ob in (tube, ball):
        groups = {name: ob.vertex_groups.new(name=name) for name in ("lower", "upper")}
        for vertex in ob.data.vertices:
            share = min(max(vertex.co.z - 0.5, 0), 1) if ob is tube else 1.0
            groups["upper"].add([vertex.index], share, "REPLACE")
            groups["lower"].add([vertex.index], 1 - share, "REPLACE")
        ob.modifiers.new("rig", "ARMATURE").object = rig
    bone = rig.pose.bones["upper"]
    bone.rotation_mode = "XYZ"
    for frame, angle in ((0, -0.4), (30, 1.1)):
        bone.rotation_euler = (angle, 0, angle / 2)
        bone.keyframe_insert("rotation_euler", frame=frame)
    bpy.ops.object.select_all(action="SELECT")
    if path.suffix == ".blend":
        bpy.ops.wm.save_as_mainfile(filepath=str(path), check_existing=False)
    else:
        bpy.ops.export_scene.gltf(filepath=str(path), export_format="GLB")


def show_start_positions(objects: list, graph, world_to_model: np.ndarray) -> bool:
    """Paint every vertex with where it is now, in model space, halved and moved into [0, 1]. False where modifiers
    change the number of vertices."""
    material = compat.new_material(START)
    nodes, links = material.node_tree.nodes, material.node_tree.links
    output, glow, attribute = (nodes.new(f"ShaderNode{n}") for n in ("OutputMaterial", "Emission", "Attribute"))
    attribute.attribute_name = START
    links.new(attribute.outputs["Vector"], glow.inputs["Color"])
    links.new(glow.outputs["Emission"], output.inputs["Surface"])
    for ob in objects:
        shown = ob.evaluated_get(graph)
        place = world_to_model @ np.array(shown.matrix_world, np.float64)
        points = evaluated.coordinates(shown.data).astype(np.float64) @ place[:3, :3].T + place[:3, 3]
        if len(points) != len(ob.data.vertices):
            return False
        made = ob.data.attributes.new(START, "FLOAT_VECTOR", "POINT")
        made.data.foreach_set("vector", (points / 2 + 0.5).astype(np.float32).ravel())
        ob.data.materials.clear()
        ob.data.materials.append(material)
        for slot in ob.material_slots:
            slot.link = "DATA"
    return True


def blender_canonical(scene, spec, to_model, camera_to_world, intrinsics) -> np.ndarray | None:
    """float32 [keyframes, views, H, W, 3] where Blender sees each surface point of a keyframe start, model space."""
    objects = [bpy.data.objects[name] for name in spec.objects]
    with evaluated.evaluation(scene, objects) as at:
        if not show_start_positions(objects, at(spec.keyframes[0]), to_model[0]):
            return None
    pictures = []
    with contextlib.ExitStack() as undo:
        proxies = capture_scene._bake_keyframes(undo, scene, spec, lambda fraction, text: None)[0]
        stage = undo.enter_context(Stage(proxies, to_model, SIZE))
        for k, frame in enumerate(spec.keyframes):
            stage.show(k, frame)
            for matrix, camera in zip(camera_to_world, intrinsics, strict=True):
                stage.photograph(matrix, camera, "cycles")
                channels = stage._render("CYCLES")
                pictures.append(compat.render_pass(channels, "Combined")[..., :3] * 2 - 1)
    return np.reshape(pictures, (len(spec.keyframes), len(camera_to_world), SIZE, SIZE, 3))


def interior(depth: np.ndarray) -> np.ndarray:
    """bool [..., H, W]: pixels whose eight neighbours see the same surface, none of it nearer to an edge than that."""
    reach = [np.roll(depth, (i, j), (-2, -1)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return (np.min(reach, 0) > 0) & (np.ptp(reach, axis=0) < 0.03)


def measure(asset: Path, folder: Path) -> dict[str, float]:
    """Bake an asset, render the first and a later frame in both worlds, compare. Errors are lengths in model space, at
    interior pixels: their mean, and what 99.9 % of them stay below."""
    (folder / "assets").mkdir()
    (folder / "assets" / asset.name).write_bytes(asset.read_bytes())
    bake.bake(folder / "assets", folder, bake.BakeOptions(), blender=sys.executable, show=lambda line: None)
    pack = packs.load(folder / f"{asset.stem}.npz")
    bake_assets.open_asset(asset, 30)
    scene, rest = bpy.context.scene, bake_assets.RestState()
    clip = next(c for c in bake_assets.find_clips(scene) if c.name == pack.clip_names[0])
    clip.apply(bake_assets.animation_owners())
    rest.restore()
    stored = (0, pack.frames(0) // 2)
    step = scene.render.fps / scene.render.fps_base / pack.fps
    names = tuple(ob.name for ob in bake_assets.mesh_objects(scene))
    spec = capture_scene.CaptureSpec(
        "objects", names, tuple(clip.start + i * step for i in stored), image_size=SIZE, views=VIEWS
    )
    captured = capture_scene.capture(scene, spec, folder)
    to_model = carried(np.array(captured.world_to_model), np.array(captured.origins))
    with np.load(folder / protocol.CAMERAS_FILE) as rig:
        wanted = {name: rig[name] for name in ("camera_to_world", "intrinsics")}
    positions = np.stack([packs.transform(matrix, pack.positions(0, i)) for matrix, i in zip(to_model, stored)])
    np.savez(folder / "wanted.npz", positions=positions, size=SIZE, **wanted)
    subprocess.run(
        [BACKEND, "-c", RENDER, folder / f"{asset.stem}.npz", folder / "wanted.npz", folder / "seen.npz"],
        check=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    seen = np.load(folder / "seen.npz")
    depth = np.stack([np.load(folder / protocol.depth_file(k))["depth_planar"] for k in range(2)])
    colour = np.stack([[picture(folder, k, v) for v in range(VIEWS)] for k in range(2)])
    both = (depth > 0) & (seen["depth"] > 0)
    inside = interior(depth) & interior(seen["depth"])
    origin, direction = cameras.rays(wanted["camera_to_world"], wanted["intrinsics"], SIZE)
    error = np.linalg.norm(origin + depth[..., None] * direction - seen["position"], axis=-1)[inside]
    found = {
        "iou": both.sum() / ((depth > 0) | (seen["depth"] > 0)).sum(),
        "interior": inside.sum() / both.sum(),
        "position": float(error.mean()), "position_999": float(np.quantile(error, 0.999)),
        "colour": float(np.median(np.abs(colour[inside].astype(int) - seen["rgba"][inside]).max(-1))),
    }  # fmt: skip
    canonical = blender_canonical(scene, spec, to_model, **wanted)
    if canonical is not None:
        error = np.linalg.norm(canonical - seen["canonical"], axis=-1)[inside]
        found |= {"canonical": float(error.mean()), "canonical_999": float(np.quantile(error, 0.999))}
    print(f"\n{asset.name}: " + ", ".join(f"{name} {value:.6f}" for name, value in found.items()))
    return found


def picture(folder: Path, keyframe: int, view: int) -> np.ndarray:
    """uint8 [H, W, 4] of the capture, row 0 at the top."""
    image = bpy.data.images.load(str(folder / protocol.image_file(keyframe, view)))
    image.colorspace_settings.name = "Non-Color"
    image.alpha_mode = "CHANNEL_PACKED"
    pixels = np.array(image.pixels[:]).reshape(SIZE, SIZE, 4)[::-1]
    bpy.data.images.remove(image)
    return np.rint(pixels * 255).astype(np.uint8)


@pytest.mark.parametrize("kind", ["blend", "glb"])
def test_a_pack_is_drawn_as_blender_draws_its_asset(scene, tmp_path, kind):
    build_asset(tmp_path / f"tube.{kind}")
    found = measure(tmp_path / f"tube.{kind}", tmp_path)
    assert found["interior"] > 0.7
    assert found["iou"] >= 0.99
    assert found["position_999"] <= 1e-3 and found["canonical_999"] <= 1e-3
    assert found["colour"] <= 2


@pytest.mark.skipif(not ASSETS, reason="LIM_ASSETS names no folder of .glb files")
def test_real_assets_are_drawn_as_blender_draws_them(scene, tmp_path):
    rows = {}
    for asset in ASSETS:
        (tmp_path / asset.stem).mkdir()
        rows[asset.stem] = measure(asset, tmp_path / asset.stem)
    for name in ("iou", "position", "canonical"):
        middle = np.median([row[name] for row in rows.values() if name in row])
        print(f"{name}: median {middle:.6f} of {len(rows)}")
    assert np.median([row["iou"] for row in rows.values()]) >= 0.99
    assert np.median([row["position"] for row in rows.values()]) <= 1e-3
    assert np.median([row["canonical"] for row in rows.values() if "canonical" in row]) <= 1e-3
