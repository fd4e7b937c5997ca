# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows about files: what is imported, what is exported, and what is said of both."""

from __future__ import annotations

import bpy
import numpy as np

from .bench import Bench, glb_times, keyed, matte, new_scene, row


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
