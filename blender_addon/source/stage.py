# SPDX-License-Identifier: GPL-3.0-or-later
"""The temporary scene that frozen meshes are photographed in."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix

from ...lim_core.shared.errors import LimError, from_os_error
from . import camera_rig, compat, exr, png
from .albedo import AlbedoMaterials
from .evaluated import Proxy

BACKGROUND = 1e9  # Cycles writes 1e10 where a ray meets nothing


def carried(world_to_model: np.ndarray, origins: np.ndarray) -> list[np.ndarray]:
    """world_to_model [4, 4] at every keyframe, or frame, from that of the first and their origins [K, 3]."""
    shifts = np.tile(np.eye(4), (len(origins), 1, 1))
    shifts[:, :3, 3] = -np.asarray(origins)
    return list(shifts @ world_to_model)


class Stage:
    """A temporary scene with the proxies of all keyframes, in model space, and one camera. A context manager.

    Args:
        world_to_model: [4, 4] of every keyframe.
        size: pixels along each side of a picture.
        samples: 1 takes one through each pixel's centre; more of them smooth the edges (for pictures that people see).
        materials: those that the proxies' looks were read for; else the stage has its own.
    """

    def __init__(
        self,
        keyframes: list[list[Proxy]],
        world_to_model: list[np.ndarray],
        size: int,
        samples: int = 1,
        materials: AlbedoMaterials | None = None,
    ):
        self.materials = materials or AlbedoMaterials()
        self._has_own_materials = materials is None
        self._size, self._samples = size, samples
        self._undo = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:  # whatever fails below takes the rest down with it
            self._build(undo, keyframes, world_to_model)
            self._undo = undo.pop_all()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *error) -> None:
        self._undo.close()

    def _build(
        self, undo: contextlib.ExitStack, keyframes: list[list[Proxy]], world_to_model: list[np.ndarray]
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="lim_"))
        undo.callback(shutil.rmtree, self._folder, ignore_errors=True)
        images = set(bpy.data.images)
        # The first render adds “Render Result” to the file.
        undo.callback(lambda: bpy.data.batch_remove([i for i in bpy.data.images if i not in images]))
        if self._has_own_materials:
            undo.callback(self.materials.close)
        self.scene = bpy.data.scenes.new("LIM capture")
        undo.callback(bpy.data.scenes.remove, self.scene)
        made: list[bpy.types.ID] = []
        undo.callback(lambda: bpy.data.batch_remove(made))
        # The engine that is kept between the views must go before its scene: its dependency graph would outlive the
        # scene, and Blender reads every graph's scene when data is removed.
        undo.callback(setattr, self.scene.render, "use_persistent_data", False)

        camera = bpy.data.cameras.new("LIM camera")
        made.append(camera)
        self._camera = bpy.data.objects.new("LIM camera", camera)
        anchor = bpy.data.objects.new("LIM anchor", None)
        made += [self._camera, anchor]
        camera.sensor_width, camera.sensor_fit = camera_rig.SENSOR, "HORIZONTAL"
        camera.clip_start, camera.clip_end = camera_rig.NEAR, camera_rig.FAR
        self.scene.collection.objects.link(self._camera)
        self.scene.camera = self._camera

        self._materials_of: dict[bpy.types.Mesh, tuple[list, list]] = {}  # the artist's own, and those that show albedo
        self._collections = []
        for proxies, to_model in zip(keyframes, world_to_model, strict=True):
            collection = bpy.data.collections.new("LIM keyframe")
            made.append(collection)
            self._collections.append(collection)
            for proxy in proxies:
                self._paint(proxy.mesh)
                object = bpy.data.objects.new("LIM proxy", proxy.mesh)
                made.append(object)
                object.color = proxy.colour
                for name, value in proxy.properties.items():
                    object[name] = value
                # A parent inverse may hold any matrix; an object's own location, rotation and scale cannot shear.
                object.parent = anchor
                object.matrix_parent_inverse = Matrix((to_model @ proxy.matrix).tolist())
                collection.objects.link(object)
        self._set_up(self.scene)

    def _paint(self, mesh: bpy.types.Mesh) -> None:
        """Remember the mesh's materials and put on those that show albedo."""
        if mesh in self._materials_of:
            return
        if not mesh.materials:
            mesh.materials.append(None)
        own = list(mesh.materials)
        painted = mesh.color_attributes.active_color is not None
        albedo = [self.materials.painted() if m is None and painted else self.materials.of(m) for m in own]
        self._materials_of[mesh] = own, albedo
        self._dress(mesh, albedo)

    def _set_up(self, scene: bpy.types.Scene) -> None:
        import addon_utils

        if not hasattr(scene, "cycles"):
            addon_utils.enable("cycles", default_set=False)
        render, cycles = scene.render, scene.cycles
        render.engine = "CYCLES"
        render.resolution_x = render.resolution_y = self._size
        render.resolution_percentage = 100
        render.pixel_aspect_x = render.pixel_aspect_y = 1.0
        render.film_transparent = True
        render.use_compositing = render.use_sequencer = False
        render.use_persistent_data = True  # only the camera moves between the views of a keyframe
        compat.set_multilayer_exr(render.image_settings)
        cycles.device = "CPU"
        cycles.samples = self._samples
        cycles.use_adaptive_sampling = cycles.use_denoising = False
        cycles.max_bounces = 0
        cycles.transparent_max_bounces = 64
        if self._samples == 1:
            cycles.pixel_filter_type, cycles.filter_width = "BOX", 0.01
        shading = scene.display.shading
        shading.light, shading.color_type = "FLAT", "TEXTURE"
        scene.display.render_aa = "OFF"
        layer = scene.view_layers[0]
        layer.use_pass_combined = layer.use_pass_z = True
        layer.pass_alpha_threshold = 0.5  # depth and picture agree on what a mask cuts away

    def show(self, keyframe: int, frame: float) -> None:
        """Put one keyframe on stage; materials are evaluated at the scene frame `frame`."""
        root = self.scene.collection
        for collection in list(root.children):
            root.children.unlink(collection)
        root.children.link(self._collections[keyframe])
        self.scene.frame_current, self.scene.frame_subframe = compat.frame_parts(frame)
        self.scene.update_tag()

    def photograph(
        self, camera_to_world: np.ndarray, intrinsics: np.ndarray, engine: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """RGBA uint8 [H, W, 4] (sRGB albedo, straight alpha; 0 or 255 for one sample) and depth_planar float32 [H, W] (0: nothing)."""
        self._camera.matrix_world = Matrix(camera_rig.blender_matrix(camera_to_world).tolist())
        self._camera.data.lens = camera_rig.lens(intrinsics, self._size)
        channels = self._render("CYCLES")
        depth = compat.render_pass(channels, "Depth")[..., 0]
        there = depth < BACKGROUND
        if engine == "workbench":
            for mesh, (own, _) in self._materials_of.items():
                self._dress(mesh, own)
            channels = self._render("BLENDER_WORKBENCH")
            for mesh, (_, albedo) in self._materials_of.items():
                self._dress(mesh, albedo)
        colour = compat.render_pass(channels, "Combined")
        alpha = colour[..., 3:]
        straight = colour[..., :3] / np.where(alpha > 0, alpha, 1.0)
        shown = there[..., None].astype(np.float32) if self._samples == 1 else np.clip(alpha, 0, 1)
        picture = np.concatenate([np.where(shown > 0, png.encode_srgb(straight), 0.0), shown], -1)
        return np.rint(picture * 255).astype(np.uint8), np.where(there, depth, 0.0).astype(np.float32)

    @staticmethod
    def _dress(mesh: bpy.types.Mesh, materials: list[bpy.types.Material | None]) -> None:
        for slot, material in enumerate(materials):
            mesh.materials[slot] = material

    def _render(self, engine: str) -> dict[str, np.ndarray]:
        scene = self.scene
        if scene.render.engine != engine:  # to set it, even to the same, lets go of what is kept between the views
            scene.render.engine = engine
        path = self._folder / "view.exr"
        path.unlink(missing_ok=True)
        scene.render.filepath = str(path)
        try:
            with bpy.context.temp_override(scene=scene, view_layer=scene.view_layers[0]), compat.quiet_output():
                bpy.ops.render.render(write_still=True)
            return exr.read(path)
        except OSError as error:
            raise from_os_error(error, "writing the capture") from error
        except (ValueError, RuntimeError) as error:  # cut off, or Blender could not write at all
            if shutil.disk_usage(self._folder).free < 16 * 2**20:
                raise LimError("disk_full", f"The disk of “{self._folder}” is full.", "Free some space.") from error
            raise LimError("bad_capture", f"Blender could not render a view: {error}.", "") from error
