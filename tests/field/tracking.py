# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows about what the mesh does between the keyframes: parts that do not turn, sheets that keep their sides apart."""

from __future__ import annotations

import math

import bpy
import numpy as np

from .bench import SHARED, Bench, Result, keyed, matte, new_scene, row
from .scenes import cube

PALETTE = (
    (0.8, 0.1, 0.1),
    (0.1, 0.6, 0.1),
    (0.1, 0.2, 0.8),
    (0.8, 0.7, 0.1),
    (0.6, 0.1, 0.7),
    (0.1, 0.7, 0.7),
)


def turned(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Degrees by which points [N, 3] have turned from one time to another, and how far the furthest is off that rigid motion."""
    a, b = before - before.mean(0), after - after.mean(0)
    u, _, vt = np.linalg.svd(b.T @ a)
    rotation = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    angle = math.degrees(math.acos(min(1.0, max(-1.0, (np.trace(rotation) - 1) / 2))))
    return angle, float(np.linalg.norm(a @ rotation.T - b, axis=1).max())


def stiffness(result: Result, least: int = 20) -> tuple[int, float, float]:
    """How many parts there are, and the most that any turns (degrees) and bends (world units) at any frame."""
    parts = [part for part in result.parts() if len(part) >= least]
    first = result.positions[0].astype(np.float64)
    found = [turned(first[part], shape[part].astype(np.float64)) for part in parts for shape in result.positions]
    return len(parts), max(angle for angle, _ in found), max(off for _, off in found)


@row("rigid, near-symmetric parts that do not turn", "six cars on the ground, no turn over 5°, none bends by 0.02")
def traffic(bench: Bench) -> tuple[str, bool]:
    new_scene()
    for i, colour in enumerate(PALETTE):
        car = cube(f"Car{i}", (0.6, 0.35, 0.3), material=matte(f"c{i}", colour))
        for frame in (1, 5, 9, 13, 17):
            car.location = (0.9 * i + 0.4 * frame / 24, math.sin(6 * frame / 24 + i), 0)
            car.keyframe_insert("location", frame=frame)
    result = bench.result(bench.run_scene())
    parts, angle, bend = stiffness(result)
    low = result.positions[:, :, 2].min(1)
    ground = float(np.abs(low + 0.15).max())
    text = f"{parts} parts, turn {angle:.1f}°, bend {bend:.3f}, off the ground {ground:.3f}"
    return text, parts == 6 and angle < 5 and bend < 0.02 and ground < 0.03


@row("a rigid part that does turn", "the red box turns by 90°, the blue one not; neither bends")
def turning(bench: Bench) -> tuple[str, bool]:
    new_scene()
    for x, colour, angle in ((-0.7, PALETTE[0], math.pi / 2), (0.7, PALETTE[2], 0.0)):
        box = cube(f"Box{x}", (0.8, 0.4, 0.3), material=matte(f"box{x}", colour))
        box.location.x = x
        keyed(box, "rotation_euler", {1: 0.0, 17: angle}, 2)
        keyed(box, "location", {1: 0.0, 17: 0.5}, 1)
    result = bench.result(bench.run_scene())
    parts = [part for part in result.parts() if len(part) >= 20]
    first, last = result.positions[0].astype(np.float64), result.positions[-1].astype(np.float64)
    by_x = sorted(parts, key=lambda part: first[part, 0].mean())
    found = [turned(first[part], last[part]) for part in by_x]
    text = ", ".join(f"{angle:.1f}° (bend {off:.3f})" for angle, off in found)
    right = len(found) == 2 and abs(found[0][0] - 90) < 4 and found[1][0] < 4 and max(off for _, off in found) < 0.02
    return text, right


@row("cubes keep their shape", "two cubes of two_movers.glb, neither turns nor bends at any frame")
def two_movers_shape(bench: Bench) -> tuple[str, bool]:
    source = SHARED / "field" / "two_movers.glb"
    if not source.is_file():
        return "the file is not here", False
    parts, angle, bend = stiffness(bench.result(bench.run("--input", source)))
    return f"{parts} parts, turn {angle:.1f}°, bend {bend:.3f}", parts == 2 and angle < 5 and bend < 0.03


@row("a sheet with another colour on its back", "its thickness is kept, and no face of one side has the other's colour")
def flag_two(bench: Bench) -> tuple[str, bool]:
    new_scene()
    bpy.ops.mesh.primitive_grid_add(x_subdivisions=30, y_subdivisions=16, size=2)
    banner = bpy.context.object
    banner.rotation_euler.x, banner.scale.y = math.pi / 2, 0.6
    material = matte("two", (1, 1, 1))
    tree = material.node_tree
    geometry, mix = tree.nodes.new("ShaderNodeNewGeometry"), tree.nodes.new("ShaderNodeMix")
    mix.data_type = "RGBA"
    front, back = (socket for socket in mix.inputs if socket.type == "RGBA")
    front.default_value, back.default_value = (0.8, 0.05, 0.05, 1), (0.05, 0.05, 0.8, 1)
    tree.links.new(geometry.outputs["Backfacing"], mix.inputs[0])
    output = next(socket for socket in mix.outputs if socket.type == "RGBA")
    for link in list(tree.links):
        if link.to_socket.name == "Color":
            tree.links.remove(link)
    shader = next(node for node in tree.nodes if node.type in {"EMISSION", "BSDF_PRINCIPLED", "BSDF_DIFFUSE"})
    tree.links.new(output, shader.inputs[0])
    banner.data.materials.append(material)
    wave = banner.modifiers.new("Wave", "WAVE")
    wave.use_y, wave.height, wave.width, wave.narrowness, wave.speed, wave.time_offset = False, 0.25, 0.6, 2, 0.08, -60
    result = bench.result(bench.run_scene())
    triangles = np.array([face[:3] for face in result.faces])
    thickness, wrong = [], []
    for shape in result.positions.astype(np.float64):
        corners = shape[triangles]
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        area = np.linalg.norm(normal, axis=1)
        side = np.sign(normal[:, 1])  # the banner hangs: its sides look along y
        middle = corners.mean(1)
        flat = (np.abs(normal[:, 1]) > 0.3 * area) & (np.abs(middle[:, 2]) < 0.5) & (np.abs(middle[:, 0]) < 0.9)
        one, two = middle[flat & (side > 0)], middle[flat & (side < 0)]
        near = np.argmin(((one[:, None, [0, 2]] - two[None][:, :, [0, 2]]) ** 2).sum(2), 1)
        thickness.append(float(np.median(one[:, 1] - two[near, 1])))
        colour = np.nanmean(result.colours[triangles], axis=1)
        red = colour[:, 0] > colour[:, 2]
        votes = [area[flat & (side == s) & red].sum() / area[flat & (side == s)].sum() for s in (1, -1)]
        wrong.append(max(min(vote, 1 - vote) for vote in votes))
    text = f"thickness {thickness[0]:.4f} … {min(thickness):.4f}, wrong colour on {100 * max(wrong):.1f} % of a side"
    return text, min(thickness) > 0.5 * thickness[0] > 0 and max(wrong) < 0.02
