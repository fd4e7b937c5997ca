# SPDX-License-Identifier: GPL-3.0-or-later
"""A result's texture as colours of its vertices, for programs that show no textures."""

from __future__ import annotations

import bpy
import numpy as np

from ...lim_core.shared.errors import LimError
from ..source import png

NAME = "Color"
"""Name of the colour attribute; other programs know it under this one."""


def bake(object: bpy.types.Object) -> bpy.types.Attribute:
    """Sample the texture of the object's material at every corner, and give each vertex the mean of its corners.

    Returns the attribute: 8 bit, on the corners, of which those of a vertex are alike (Alembic's exporter takes no
    other kind); one that is there already is replaced.

    Raises:
        LimError: bad_request (there is no texture, or no UV map).
    """
    mesh = object.data
    image, layer = base_image(mesh), mesh.uv_layers.active
    if image is None or layer is None or not image.size[0] * image.size[1]:
        lacks = "UV map" if image is not None and layer is None else "texture"
        raise LimError("bad_request", f"“{object.name}” has no {lacks} to take the colours from.", "")
    uvs = np.empty(len(mesh.loops) * 2, np.float32)
    layer.uv.foreach_get("vector", uvs)
    corners = np.empty(len(mesh.loops), np.int32)
    mesh.loops.foreach_get("vertex_index", corners)
    colours = sample(linear_pixels(image), uvs.reshape(-1, 2))
    count = len(mesh.vertices)
    sums = np.stack([np.bincount(corners, colours[:, channel], count) for channel in range(3)], 1)
    mean = sums / np.maximum(np.bincount(corners, minlength=count), 1)[:, None]
    existing = mesh.color_attributes.get(NAME)
    if existing is not None:
        mesh.color_attributes.remove(existing)
    attribute = mesh.color_attributes.new(NAME, "BYTE_COLOR", "CORNER")
    opaque = np.concatenate([mean, np.ones((count, 1))], 1)[corners]
    attribute.data.foreach_set("color", opaque.astype(np.float32).ravel())
    mesh.color_attributes.active_color = mesh.color_attributes[NAME]
    mesh.update()
    return mesh.color_attributes[NAME]


def colours_of(mesh: bpy.types.Mesh) -> np.ndarray | None:
    """[V, 3] float32 of what `bake` made, sRGB-encoded; None if it made nothing."""
    attribute = mesh.color_attributes.get(NAME)
    if attribute is None or attribute.domain != "CORNER":
        return None
    flat, corners = np.empty(len(attribute.data) * 4, np.float32), np.empty(len(mesh.loops), np.int32)
    attribute.data.foreach_get("color_srgb", flat)
    mesh.loops.foreach_get("vertex_index", corners)
    colours = np.zeros((len(mesh.vertices), 3), np.float32)
    colours[corners] = flat.reshape(-1, 4)[:, :3]
    return colours


def base_image(mesh: bpy.types.Mesh) -> bpy.types.Image | None:
    """The image of the first material that has one."""
    nodes = [
        n for m in mesh.materials if m and m.node_tree for n in m.node_tree.nodes if n.bl_idname == "ShaderNodeTexImage"
    ]
    return next((node.image for node in nodes if node.image), None)


def linear_pixels(image: bpy.types.Image) -> np.ndarray:
    """[H, W, 3] float32 in linear light; row 0 is at the bottom, as v counts."""
    width, height = image.size
    flat = np.empty(width * height * image.channels, np.float32)
    image.pixels.foreach_get(flat)
    pixels = flat.reshape(height, width, image.channels)
    colour = pixels[..., :3] if image.channels >= 3 else np.repeat(pixels[..., :1], 3, -1)
    return colour if image.is_float else png.decode_srgb(np.clip(colour, 0, 1)).astype(np.float32)


def sample(pixels: np.ndarray, uvs: np.ndarray) -> np.ndarray:
    """Bilinear samples [N, C] of `pixels` [H, W, C] at `uvs` [N, 2]; outside [0, 1] the picture repeats."""
    height, width = pixels.shape[:2]
    place = uvs * (width, height) - 0.5
    low = np.floor(place).astype(int)
    share = (place - low).astype(np.float32)
    total = np.zeros((len(uvs), pixels.shape[2]), np.float32)
    for right in (0, 1):
        for up in (0, 1):
            weight = np.abs(1 - right - share[:, 0]) * np.abs(1 - up - share[:, 1])
            total += weight[:, None] * pixels[(low[:, 1] + up) % height, (low[:, 0] + right) % width]
    return total
