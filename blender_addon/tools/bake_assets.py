# SPDX-License-Identifier: GPL-3.0-or-later
"""The Blender half of `python -m lim_core bake`: imports assets and writes each as a pack.

Run by a Blender (`--background --python bake_assets.py -- TASKS`) or by a Python that has bpy (`bake_assets.py -- TASKS`).
TASKS is a JSON file, see `main`. What happened goes to a file, one JSON object a line, because Blender's own stdout cannot
be trusted; a "begin" without an "end" after it is the asset that crashed Blender.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
import traceback
from pathlib import Path

import bpy
import numpy as np

if __name__ == "__main__":  # as a script it is no part of a package yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from blender_addon import headless

    headless.load_package()
    __package__ = f"{headless.PACKAGE}.blender_addon.tools"

from ...lim_core.mesh import packs  # noqa: E402
from ...lim_core.shared.errors import LimError  # noqa: E402
from ..source.compat import curves_of  # noqa: E402
from ..source.png import decode_srgb, encode_srgb  # noqa: E402

GREY = (0.8, 0.8, 0.8)  # Blender's own default colour, linear
SKIN_TOLERANCE = 0.001  # of the box's diagonal
STILL = 0.01  # a clip in which no vertex moves further than this, relative to the box's diagonal, is dropped
SOLID = 0.25  # alpha from which a cut-out surface counts as there: exporters write cut-offs of 0.3 to 0.5
SAME = 0.002  # clips whose vertices never differ by more than this are the same clip


# ---- import ----------------------------------------------------------------------------------------------------------
def open_asset(path: Path, fps: int) -> None:
    """An empty file with the asset in it; its time axis runs at `fps` where the format has no frame rate of its own."""
    if path.suffix.lower() == ".blend":
        bpy.ops.wm.open_mainfile(filepath=str(path), load_ui=False, use_scripts=False)
        return
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.context.scene.render.fps = fps
    if path.suffix.lower() == ".fbx":
        bpy.ops.import_scene.fbx(filepath=str(path))
    else:
        bpy.ops.import_scene.gltf(filepath=str(path))


def mesh_objects(scene: bpy.types.Scene) -> list[bpy.types.Object]:
    """The meshes that would be rendered, sorted by name: no bone shapes, nothing hidden."""
    shapes = {
        bone.custom_shape
        for armature in scene.objects
        if armature.type == "ARMATURE"
        for bone in armature.pose.bones
        if bone.custom_shape
    }
    found = []
    for ob in scene.objects:
        helper = ob in shapes or any(c.name.startswith("glTF_not_exported") for c in ob.users_collection)
        if ob.type == "MESH" and not helper and not ob.hide_render and ob.visible_get():
            found.append(ob)
    return sorted(found, key=lambda ob: ob.name)


# ---- clips -----------------------------------------------------------------------------------------------------------
class Clip:
    """How to play one clip: `apply` leaves nothing else playing. `start` and `end` are scene frames."""

    def __init__(self, name, start, end, tracks=(), actions=()):
        self.name, self.start, self.end, self.tracks, self.actions = name, start, end, tracks, actions

    def apply(self, owners: list) -> None:
        for data in owners:
            data.action = None
            for track in data.nla_tracks:
                track.is_solo = False
                track.mute = track not in self.tracks
        for data, action in self.actions:
            data.action = action
            if getattr(data, "action_slot", True) is None and data.action_suitable_slots:  # 4.4 and later
                data.action_slot = data.action_suitable_slots[0]


def animation_owners() -> list:
    """animation_data of every object and shape key block of the file."""
    blocks = [*bpy.data.objects, *bpy.data.shape_keys]
    return [b.animation_data for b in blocks if b.animation_data is not None]


def find_clips(scene: bpy.types.Scene) -> list[Clip]:
    """Every clip of the file: NLA tracks by name (glTF), else actions by take (FBX), else what is assigned together and,
    apart, every other action that fits an armature (.blend)."""
    owners = animation_owners()
    tracks: dict[str, list] = {}
    for data in owners:
        for track in data.nla_tracks:
            if track.strips:
                tracks.setdefault(track.name, []).append(track)
    clips = []
    for name, members in tracks.items():
        strips = [s for t in members for s in t.strips]
        clips.append(Clip(name, min(s.frame_start for s in strips), max(s.frame_end for s in strips), tracks=members))
    if clips:
        return clips
    takes: dict[str, list] = {}
    for data in owners:
        for action in bpy.data.actions:
            prefix, bar, take = action.name.partition("|")
            if bar and (action == data.action or prefix == data.id_data.name):
                takes.setdefault(take.split("|")[-1], []).append((data, action))
            elif action == data.action:
                takes.setdefault("", []).append((data, action))  # what is assigned plays together, whatever its names
            elif plays(action, data):
                takes.setdefault(action.name, []).append((data, action))
    for name, members in takes.items():
        ranges = [action.frame_range for _, action in members]
        actions = {action.name for _, action in members}
        name = name or (actions.pop() if len(actions) == 1 else "scene")
        clips.append(Clip(name, min(r[0] for r in ranges), max(r[1] for r in ranges), actions=members))
    if not clips:
        # Constraints, drivers, simulations: whatever moves over the scene's frames.
        clips.append(Clip("scene", scene.frame_start, scene.frame_end))
    return clips


def plays(action: bpy.types.Action, data) -> bool:
    """Whether most of the action's bones exist on the armature that `data` animates."""
    pose = getattr(data.id_data, "pose", None)
    if pose is None:
        return False
    bones = {c.data_path.split('"')[1] for c in curves_of(action) if c.data_path.startswith('pose.bones["')}
    return bool(bones) and sum(b in pose.bones for b in bones) * 2 > len(bones)


class RestState:
    """Transforms as imported. A clip that leaves a bone alone must not inherit the previous clip's pose."""

    def __init__(self):
        self.objects = [(ob, ob.matrix_basis.copy()) for ob in bpy.data.objects]
        self.bones = [
            (bone, bone.matrix_basis.copy()) for ob in bpy.data.objects if ob.pose is not None for bone in ob.pose.bones
        ]
        self.keys = [(key, key.value) for block in bpy.data.shape_keys for key in block.key_blocks]

    def restore(self) -> None:
        for thing, matrix in (*self.objects, *self.bones):
            thing.matrix_basis = matrix
        for key, value in self.keys:
            key.value = value


# ---- materials -------------------------------------------------------------------------------------------------------
class Colour:
    """A base colour as a product: factor × image × vertex colour. `factor` is linear."""

    def __init__(self, factor=(1.0, 1.0, 1.0), image=None, uv_map="", mapping=None, attribute=None):
        self.factor, self.image, self.uv_map, self.mapping = np.array(factor[:3], float), image, uv_map, mapping
        self.attribute = attribute
        self.cutout = False  # the image's alpha cuts holes into the surface

    def times(self, other: Colour) -> Colour:
        image = self if self.image is not None else other
        attribute = self.attribute if self.attribute is not None else other.attribute
        return Colour(self.factor * other.factor, image.image, image.uv_map, image.mapping, attribute)


def first_link(socket):
    """The socket that feeds this one, through reroutes; None where nothing does."""
    while socket.is_linked:
        source = socket.links[0].from_socket
        if source.node.type != "REROUTE":
            return source
        socket = source.node.inputs[0]
    return None


def socket_colour(socket) -> Colour:
    source = first_link(socket)
    if source is None:
        value = socket.default_value
        return Colour(value if hasattr(value, "__len__") else (value,) * 3)
    node = source.node
    if node.type == "TEX_IMAGE" and source.name == "Color":
        vector = first_link(node.inputs["Vector"])
        uv_map, mapping = "", None
        if vector is not None and vector.node.type == "MAPPING":
            mapping, vector = vector.node, first_link(vector.node.inputs["Vector"])
        if vector is not None and vector.node.type == "UVMAP":
            uv_map = vector.node.uv_map
        return Colour(image=node.image, uv_map=uv_map, mapping=mapping) if node.image else Colour(GREY)
    if node.type in ("VERTEX_COLOR", "ATTRIBUTE"):
        return Colour(attribute=node.layer_name if node.type == "VERTEX_COLOR" else node.attribute_name)
    if node.type == "RGB":
        return Colour(source.default_value)
    if node.type in ("MIX", "MIX_RGB"):
        inputs = [s for s in node.inputs if s.enabled and s.type == "RGBA"]
        factor = next((s for s in node.inputs if s.enabled and s.type == "VALUE"), None)
        amount = 0.5 if factor is None or factor.is_linked else factor.default_value
        if len(inputs) == 2:
            if node.blend_type == "MULTIPLY":
                return socket_colour(inputs[0]).times(socket_colour(inputs[1])) if amount else socket_colour(inputs[0])
            return socket_colour(inputs[1 if amount > 0.5 else 0])
    # Anything else (gamma, curves, groups): what its first coloured input says.
    for candidate in node.inputs:
        if candidate.type == "RGBA" and (candidate.is_linked or candidate.name == "Color"):
            return socket_colour(candidate)
    return Colour(GREY)


def cut_by_alpha(socket) -> bool:
    """Whether an image's alpha arrives at a socket, through mathematics at most."""
    source = first_link(socket)
    if source is None:
        return False
    if source.node.type == "TEX_IMAGE":
        return source.name == "Alpha"
    return source.node.type == "MATH" and any(cut_by_alpha(s) for s in source.node.inputs)


def shader_colour(socket) -> Colour | None:
    """The albedo of a shader; None where it has none (transparency)."""
    source = first_link(socket)
    if source is None:
        return None
    node = source.node
    if node.type == "BSDF_PRINCIPLED":
        colour = socket_colour(node.inputs["Base Color"])
        glow = node.inputs.get("Emission Color") or node.inputs.get("Emission")
        strength = node.inputs.get("Emission Strength")
        if glow is not None and colour.image is None and colour.factor.max() < 0.01:
            if strength is None or strength.is_linked or strength.default_value > 0:
                return socket_colour(glow)
        colour.cutout = cut_by_alpha(node.inputs["Alpha"])
        return colour
    if node.type == "EMISSION" or node.type.startswith("BSDF_") and node.type != "BSDF_TRANSPARENT":
        return socket_colour(node.inputs["Color"]) if "Color" in node.inputs else Colour(GREY)
    for candidate in node.inputs:
        if candidate.type == "SHADER":
            colour = shader_colour(candidate)
            if colour is not None:
                colour.cutout |= any(cut_by_alpha(s) for s in node.inputs if s.type == "VALUE")
                return colour
    return None


def material_colour(material) -> Colour:
    if material is None:
        return Colour(GREY)
    if material.node_tree is None:
        return Colour(material.diffuse_color)
    for node in material.node_tree.nodes:
        if node.type == "OUTPUT_MATERIAL" and node.is_active_output:
            return shader_colour(node.inputs["Surface"]) or Colour(material.diffuse_color)
    return Colour(material.diffuse_color)


def to_bytes(srgb: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(srgb, 0, 1) * 255).astype(np.uint8)


def shrink(image: np.ndarray, limit: int) -> np.ndarray:
    """Area average of an image [H, W, 3] so that no side is longer than `limit`."""
    for axis in (0, 1):
        size = image.shape[axis]
        target = max(1, round(size * min(1.0, limit / max(image.shape[:2]))))
        if target == size:
            continue
        edges = np.linspace(0, size, target + 1)
        total = np.concatenate([np.zeros_like(np.take(image, [0], axis)), np.cumsum(image, axis)], axis)
        whole = np.minimum(edges.astype(int), size - 1)
        part = (edges - whole).reshape([-1 if a == axis else 1 for a in range(3)])
        integral = np.take(total, whole, axis) + part * np.take(image, whole, axis)
        image = np.diff(integral, axis=axis) * (target / size)
    return image


def image_pixels(image: bpy.types.Image) -> tuple[np.ndarray, np.ndarray] | None:
    """sRGB-encoded float [H, W, 3] and alpha [H, W], row 0 is the top; None where the file is missing."""
    width, height = image.size
    if width == 0 or height == 0:
        return None
    flat = np.empty(width * height * image.channels, np.float32)
    image.pixels.foreach_get(flat)
    pixels = flat.reshape(height, width, image.channels)[::-1].astype(np.float64)
    alpha = pixels[..., 3] if image.channels == 4 else np.ones((height, width))
    pixels = pixels[..., :3] if image.channels >= 3 else np.repeat(pixels[..., :1], 3, -1)
    if image.is_float and image.colorspace_settings.name != "Non-Color":
        pixels = encode_srgb(pixels)
    return pixels, alpha


class Textures:
    """Collects images and flat colours, each once."""

    def __init__(self, limit: int):
        self.limit, self.images, self.index, self.shapes, self.missing = limit, {}, {}, [], []
        self.parts: list[np.ndarray] = []

    def add(self, pixels: np.ndarray) -> int:
        """Index of an image uint8 [H, W, 3]; an image of one colour becomes 1×1."""
        if (pixels == pixels[0, 0]).all():
            pixels = pixels[:1, :1]
        key = (pixels.shape, pixels.tobytes())
        if key not in self.index:
            self.index[key] = len(self.shapes)
            self.shapes.append(pixels.shape[:2])
            self.parts.append(pixels.reshape(-1, 3))
        return self.index[key]

    def flat(self, linear: np.ndarray) -> int:
        return self.add(to_bytes(encode_srgb(linear)).reshape(1, 1, 3))

    def pixels(self, image: bpy.types.Image) -> tuple[np.ndarray, np.ndarray] | None:
        """`image_pixels`, read once."""
        if image.name not in self.images:
            self.images[image.name] = image_pixels(image)
            if self.images[image.name] is None:
                self.missing.append(image.name)
        return self.images[image.name]

    def of(self, colour: Colour, tint: np.ndarray) -> int:
        """Index of factor × tint × image. `tint` is linear."""
        factor = colour.factor * tint
        found = None if colour.image is None else self.pixels(colour.image)
        if found is None:
            return self.flat(factor)
        pixels, alpha = found
        solid = alpha >= SOLID
        if colour.cutout and solid.any() and not solid.all():
            # Under the holes lies any colour at all, and packs know no holes.
            pixels = np.where(solid[..., None], pixels, pixels[solid].mean(0))
        pixels = shrink(pixels, self.limit)
        if np.abs(factor - 1).max() > 1e-3:
            pixels = encode_srgb(decode_srgb(pixels) * factor)
        return self.add(to_bytes(pixels))


def mapped(uv: np.ndarray, mapping) -> np.ndarray:
    """UVs [..., 2] through a Mapping node (the importers' texture transforms)."""
    if mapping is None:
        return uv
    location = np.array(mapping.inputs["Location"].default_value)[:2]
    angle = mapping.inputs["Rotation"].default_value[2]
    scale = np.array(mapping.inputs["Scale"].default_value)[:2]
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    if mapping.vector_type == "TEXTURE":
        return (uv - location) @ rotation / scale
    return (uv * scale) @ rotation.T + location


def face_colours(mesh: bpy.types.Mesh, name: str, loops: np.ndarray) -> np.ndarray | None:
    """Mean vertex colour of each triangle, linear [F, 3]; None where there is no such attribute."""
    attribute = mesh.color_attributes.get(name) if name else mesh.color_attributes.active_color
    if attribute is None or attribute.domain not in ("POINT", "CORNER"):
        return None
    values = np.empty(len(attribute.data) * 4, np.float32)
    attribute.data.foreach_get("color", values)
    values = values.reshape(-1, 4)[:, :3]
    if attribute.domain == "POINT":
        corner = np.empty(len(mesh.loops), np.int32)
        mesh.loops.foreach_get("vertex_index", corner)
        values = values[corner]
    return values[loops].mean(1)


def mostly_holes(alpha: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """bool [F]: triangles with UVs [F, 3, 2] of which an image's alpha [H, W] leaves less than half."""
    grid = [(i, j, 7 - i - j) for i in range(1, 6) for j in range(1, 7 - i)]
    points = np.einsum("pk,fkc->fpc", np.array(grid) / 7, uv)
    height, width = alpha.shape
    column = np.floor(points[..., 0] * width).astype(int) % width
    row = np.floor((1 - points[..., 1]) * height).astype(int) % height
    return (alpha[row, column] >= SOLID).mean(1) < 0.5


def is_outline(material, colour: Colour, corners: np.ndarray, mirrored: bool) -> bool:
    """Whether triangles [F, 3, 3] are a cartoon outline: a black hull turned inside out, meant to be seen from behind only.

    Packs are seen from both sides, so it would hide what it surrounds.
    """
    if material is None or not material.use_backface_culling or colour.image is not None or colour.factor.max() > 0.02:
        return False
    areas = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    if np.linalg.norm(areas.sum(0)) > 0.05 * np.linalg.norm(areas, axis=1).sum():
        return False  # an open sheet, a robot's black screen say, has no inside
    corners = corners - corners.mean((0, 1))
    volume = np.einsum("fi,fi->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2]))
    return bool(volume < 0) != mirrored


def object_surface(ob: bpy.types.Object, mesh: bpy.types.Mesh, textures: Textures):
    """Triangles [F, 3], UVs [F, 3, 2] and textures [F] of an evaluated mesh; without outlines and cut-out parts."""
    mesh.calc_loop_triangles()
    count = len(mesh.loop_triangles)
    faces, loops = np.empty(count * 3, np.int32), np.empty(count * 3, np.int32)
    slots = np.empty(count, np.int32)
    mesh.loop_triangles.foreach_get("vertices", faces)
    mesh.loop_triangles.foreach_get("loops", loops)
    mesh.loop_triangles.foreach_get("material_index", slots)
    faces, loops = faces.reshape(-1, 3), loops.reshape(-1, 3)
    uv = np.zeros((count, 3, 2))
    texture = np.zeros(count, np.int64)
    shown = np.ones(count, bool)
    co = np.empty(len(mesh.vertices) * 3, np.float32)
    mesh.vertices.foreach_get("co", co)
    co = co.reshape(-1, 3)
    mirrored = ob.matrix_world.determinant() < 0
    materials = [s.material for s in ob.material_slots] or [None]
    for slot in np.unique(slots):
        rows = np.flatnonzero(slots == slot)
        material = materials[min(slot, len(materials) - 1)]
        colour = material_colour(material)
        if is_outline(material, colour, co[faces[rows]], mirrored):
            shown[rows] = False
            continue
        if colour.image is not None:
            layer = mesh.uv_layers.get(colour.uv_map) or mesh.uv_layers.active
            if layer is None:
                colour.image = None
            else:
                corner = np.empty(len(mesh.loops) * 2, np.float32)
                layer.data.foreach_get("uv", corner)
                uv[rows] = mapped(corner.reshape(-1, 2)[loops[rows]].astype(float), colour.mapping)
                if colour.cutout and textures.pixels(colour.image) is not None:
                    shown[rows] = ~mostly_holes(textures.pixels(colour.image)[1], uv[rows])
        tints = np.ones((len(rows), 3))
        if colour.attribute is not None:
            found = face_colours(mesh, colour.attribute, loops[rows])
            if found is not None:
                tints = found
        # Few distinct colours per image, many where a face is flat: a texture per colour costs 3 bytes there.
        levels = 255 if colour.image is None else 4
        distinct, which = np.unique(np.rint(np.sqrt(np.clip(tints, 0, 1)) * levels), axis=0, return_inverse=True)
        if colour.image is None and len(distinct) > 512:
            distinct, which = np.unique(np.rint(np.sqrt(np.clip(tints, 0, 1)) * 24), axis=0, return_inverse=True)
            levels = 24
        if colour.image is not None and len(distinct) > 4:
            distinct, which = np.full((1, 3), levels), np.zeros(len(rows), int)
        indices = np.array([textures.of(colour, np.square(d / levels)) for d in distinct])
        texture[rows] = indices[which.ravel()]
    faces, uv, texture = faces[shown], uv[shown], texture[shown]
    if len(faces):
        uv[np.array([s == (1, 1) for s in textures.shapes])[texture]] = 0
    uv -= np.floor(uv.min(1, keepdims=True))  # near zero, where 16-bit floats are fine
    return faces, uv, texture


# ---- motion ----------------------------------------------------------------------------------------------------------
class Skinned:
    """An object as linear blend skinning: its bones and weights, or itself as one bone; None where it is neither."""

    def __init__(self, ob: bpy.types.Object):
        self.ob, self.armature, self.ok = ob, None, True
        modifiers = [m for m in ob.modifiers if m.show_viewport]
        keys = ob.data.shape_keys
        moving_keys = keys is not None and (
            keys.animation_data is not None or any(k.value for k in keys.key_blocks[1:])
        )
        if moving_keys or any(m.type != "ARMATURE" for m in modifiers) or len(modifiers) > 1:
            self.ok = False
            return
        count = len(ob.data.vertices)
        self.bones: list[str] = []
        self.unpose = np.zeros((0, 4, 4))  # per bone, the armature's space to the bone's at rest
        self.index, self.weight = np.zeros((count, 4), np.int64), np.zeros((count, 4))
        self.weight[:, 0] = 1  # bone 0 is the object itself
        if not modifiers or modifiers[0].object is None:
            return
        modifier = modifiers[0]
        if modifier.use_deform_preserve_volume or modifier.use_bone_envelopes or modifier.vertex_group:
            self.ok = False
            return
        self.armature = modifier.object
        rests = self.armature.data.bones
        deforming = {b.name for b in rests if b.use_deform}
        slot = {}
        for group in ob.vertex_groups:
            if group.name in deforming:
                slot[group.index] = len(self.bones) + 1
                self.bones.append(group.name)
        if self.bones:
            self.unpose = np.array([rests[name].matrix_local.inverted_safe() for name in self.bones], float)
        for v in ob.data.vertices:
            pairs = sorted(
                ((g.weight, slot[g.group]) for g in v.groups if g.group in slot and g.weight > 0), reverse=True
            )
            total = sum(w for w, _ in pairs[:4])
            if total > 0:
                self.weight[v.index] = 0
                for k, (w, b) in enumerate(pairs[:4]):
                    self.weight[v.index, k], self.index[v.index, k] = w / total, b

    def rest(self) -> np.ndarray:
        co = np.empty(len(self.ob.data.vertices) * 3, np.float32)
        self.ob.data.vertices.foreach_get("co", co)
        return co.reshape(-1, 3).astype(float)

    def matrices(self, depsgraph, poses: dict) -> np.ndarray:
        """float64 [1 + bones, 4, 4], the object's space to the world, at the depsgraph's time.

        Args:
            poses: filled with each armature's pose at this time: objects share armatures, and reading one is slow.
        """
        world = np.array(self.ob.evaluated_get(depsgraph).matrix_world, float)
        if not self.bones:
            return world[None]
        if self.armature.name not in poses:
            armature = self.armature.evaluated_get(depsgraph)
            pose = {bone.name: np.array(bone.matrix, float) for bone in armature.pose.bones}
            inverse = np.array(armature.matrix_world.inverted_safe(), float)
            poses[self.armature.name] = np.array(armature.matrix_world, float), inverse, pose
        base, inverse, pose = poses[self.armature.name]
        posed = np.stack([pose[name] for name in self.bones])
        return np.concatenate([world[None], base @ posed @ self.unpose @ (inverse @ world)])


def evaluated_vertices(objects: list, depsgraph) -> list[np.ndarray]:
    """World-space vertices float32 [V, 3] of each object."""
    result = []
    for ob in objects:
        evaluated = ob.evaluated_get(depsgraph)
        mesh = evaluated.to_mesh()
        try:
            co = np.empty(len(mesh.vertices) * 3, np.float32)
            mesh.vertices.foreach_get("co", co)
        finally:
            evaluated.to_mesh_clear()
        world = np.array(evaluated.matrix_world)
        result.append((co.reshape(-1, 3) @ world[:3, :3].T + world[:3, 3]).astype(np.float32))
    return result


def eight_bits(weight: np.ndarray) -> np.ndarray:
    """Weights [V, 4] that sum to one as uint8 that sum to 255: the largest takes up the rounding."""
    rounded = np.rint(weight * 255).astype(np.int64)
    rows = np.arange(len(rounded))
    rounded[rows, rounded.argmax(1)] += 255 - rounded.sum(1)
    return rounded.astype(np.uint8)


class Motion:
    """Samples clips and keeps both forms: every vertex at every frame, and bone matrices where the object is skinned."""

    def __init__(self, scene, objects: list):
        self.scene, self.objects = scene, objects
        self.skins = [Skinned(ob) for ob in objects]
        self.skinnable = all(s.ok for s in self.skins)
        self.vertices: list[np.ndarray] = []  # per clip [T, V, 3]
        self.bones: list[np.ndarray] = []  # per clip [T, B, 4, 4]

    def sample(self, clip: Clip, rate: float, most: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Vertices float32 [T, V, 3] and matrices [T, B, 4, 4] of a clip at `rate` frames a second.

        Raises:
            LimError: the number of vertices changes within the clip.
        """
        scene = self.scene
        step = scene.render.fps / scene.render.fps_base / rate
        count = min(most, max(1, int((clip.end - clip.start) / step + 1e-6) + 1))
        vertices, bones = [], []
        for i in range(count):
            time_ = clip.start + i * step
            scene.frame_set(math.floor(time_), subframe=time_ - math.floor(time_))
            depsgraph = bpy.context.evaluated_depsgraph_get()
            parts = evaluated_vertices(self.objects, depsgraph)
            vertices.append(np.concatenate(parts))
            if len(vertices[-1]) != len(vertices[0]):
                raise LimError("bad_capture", f"The clip '{clip.name}' changes its number of vertices.")
            if self.skinnable and all(len(p) == len(s.index) for p, s in zip(parts, self.skins, strict=True)):
                poses: dict = {}
                bones.append(np.concatenate([s.matrices(depsgraph, poses) for s in self.skins]))
        return np.stack(vertices), np.stack(bones) if len(bones) == count else None


def fit_skin(skins: list[Skinned], bones: np.ndarray, vertices: np.ndarray, box: float) -> dict | None:
    """The skinning arrays of a pack, or None where they miss the vertices by more than SKIN_TOLERANCE of the box.

    Args:
        bones: float64 [T, B, 4, 4], each object's bones one after the other.
        vertices: the truth, float32 [T, V, 3].
        box: the box's diagonal.
    """
    starts = np.cumsum([0] + [1 + len(s.bones) for s in skins])
    rest = np.concatenate([s.rest() for s in skins])
    index = np.concatenate([s.index + b for s, b in zip(skins, starts[:-1], strict=True)])
    weight = eight_bits(np.concatenate([s.weight for s in skins]))
    index[weight == 0] = np.repeat(index[:, :1], 4, 1)[weight == 0]
    # Each bone works in the world space of one of its object's frames, so that bones shared by objects become equal. Not
    # simply the first: things are often hidden by a scale of zero.
    owner = np.repeat(np.arange(len(skins)), np.diff(starts))
    first = []
    for start in starts[:-1]:
        scales = np.abs(np.linalg.det(bones[:, start, :3, :3]))
        best = 0 if scales[0] > 1e-3 * scales.max() else int(scales.argmax())
        first.append(bones[best, start] if scales[best] > 1e-15 else np.eye(4))
    bones = np.stack([bones[:, b] @ np.linalg.inv(first[o]) for b, o in enumerate(owner)], 1)
    sizes = [len(s.index) for s in skins]
    world = np.repeat(np.stack(first), sizes, axis=0)
    rest = (np.einsum("vij,vj->vi", world[:, :3, :3], rest) + world[:, :3, 3]).astype(np.float32)
    used, index = np.unique(index, return_inverse=True)
    bones = bones[:, used, :3]
    _, keep, same = np.unique(
        np.rint(bones.transpose(1, 0, 2, 3).reshape(len(used), -1) / box * 1e6),
        axis=0,
        return_index=True,
        return_inverse=True,
    )
    bones, index = bones[:, keep], same.ravel()[index].reshape(-1, 4)
    index = index.astype(np.uint8 if len(keep) <= 256 else np.uint16)
    for dtype in (np.float16, np.float32):
        if dtype == np.float16 and np.abs(bones).max() > 60000:
            continue
        stored = bones.astype(dtype)
        worst = max(
            float(np.abs(packs.skin(rest, index, weight, b) - v).max()) for b, v in zip(stored, vertices, strict=True)
        )
        if worst <= SKIN_TOLERANCE * box:
            return {"rest": rest, "bone_index": index, "bone_weight": weight, "bones": stored}
    return None


def weld(arrays: list[np.ndarray], faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merge vertices that agree in all `arrays` [V, ...] and drop those no face uses.

    Returns: the rows to keep [V'], the faces in terms of them [F', 3], the faces to keep [F'] (no triangle that has lost a
    corner).
    """
    rows = np.ascontiguousarray(np.concatenate([a.reshape(len(a), -1).view(np.uint8) for a in arrays], 1))
    _, first, which = np.unique(rows.view(f"V{rows.shape[1]}").ravel(), return_index=True, return_inverse=True)
    order = np.argsort(first)  # the mesh's own order keeps neighbours together, which compresses better
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    faces = place[which.ravel()][faces]
    a, b, c = faces.T
    good = np.flatnonzero((a != b) & (b != c) & (c != a))
    used, faces = np.unique(faces[good], return_inverse=True)
    return first[order][used], faces.reshape(-1, 3), good


# ---- one asset -------------------------------------------------------------------------------------------------------
def bake(source: Path, target: Path, options: dict) -> dict:
    """Bake one asset. Returns the row of the report.

    Raises:
        LimError: there is nothing in it that moves, or it cannot be kept as a pack.
    """
    open_asset(source, options["import_fps"])
    scene = bpy.context.scene
    objects = mesh_objects(scene)
    if not objects:
        raise LimError("empty_mesh", f"'{source.name}' has no mesh to render.")
    clips, rest, notes = find_clips(scene), RestState(), []
    motion = Motion(scene, objects)
    textures = Textures(options["texture"])
    names, vertices, bones, surface = [], [], [], None
    still = same = 0
    for clip in clips:
        clip.apply(animation_owners())
        rest.restore()
        try:
            moved, matrices = motion.sample(clip, options["fps"], options["frames"])
        except LimError as error:
            notes.append(error.message)
            continue
        if not np.isfinite(moved).all():
            notes.append(f"The clip '{clip.name}' has vertices that are not finite.")
            continue
        if surface is None:
            surface = join_surfaces(objects, textures)
            used = np.unique(surface[0])
        if len(moved[0]) != surface[3] or (vertices and len(moved[0]) != len(vertices[0][0])):
            notes.append(f"The clip '{clip.name}' has another number of vertices.")
            continue
        box = float(np.linalg.norm(np.ptp(moved[0][used], axis=0)))
        if not box > 0:
            notes.append(f"The clip '{clip.name}' begins without any extent.")
            continue
        travelled = np.linalg.norm(moved[:, used] - moved[:1, used], axis=-1).max() / box
        if travelled < STILL:
            still += 1
            continue
        if any(len(o) == len(moved) and np.abs(o - moved).max() < SAME * box for o in vertices):
            same += 1
            continue
        names.append(clip.name)
        vertices.append(moved)
        bones.append(matrices)
    if still or same:
        notes.append(f"{still} clips stand still, {same} are repeated.")
    if not names:
        raise LimError("nothing_selected", f"Nothing moves in '{source.name}'. {' '.join(notes)}".strip())
    if textures.missing:
        notes.append(f"Images not found: {', '.join(sorted(set(textures.missing)))}.")
    pack = assemble(source.stem, options["fps"], names, vertices, bones, motion.skins, surface, textures)
    size = packs.save(pack, target)
    return {
        "message": " ".join([pack_form(pack), *notes]),
        "clips": pack.clips,
        "frames": int(pack.clip_start[-1]),
        "vertices": pack.vertices,
        "bytes": size,
    }


def join_surfaces(objects: list, textures: Textures) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Faces, UVs and textures of all objects, and the number of their vertices, as they are now."""
    depsgraph = bpy.context.evaluated_depsgraph_get()
    faces, uv, material, count = [], [], [], 0
    for ob in objects:
        evaluated = ob.evaluated_get(depsgraph)
        mesh = evaluated.to_mesh(preserve_all_data_layers=True, depsgraph=depsgraph)
        try:
            f, u, m = object_surface(ob, mesh, textures)
            faces.append(f + count)
            uv.append(u)
            material.append(m)
            count += len(mesh.vertices)
        finally:
            evaluated.to_mesh_clear()
    faces = np.concatenate(faces)
    if not len(faces):
        raise LimError("empty_mesh", "There are no faces in it.")
    return faces, np.concatenate(uv), np.concatenate(material), count


def pack_form(pack: packs.Pack) -> str:
    return f"skin {pack.bones.shape[1]} bones {pack.bones.dtype}" if pack.rest is not None else "vertices"


def assemble(name, fps, names, vertices, bones, skins, surface, textures) -> packs.Pack:
    """The smaller of the two forms."""
    faces, uv, material, _ = surface
    starts = np.cumsum([0] + [len(v) for v in vertices]).astype(np.int32)
    truth = np.concatenate(vertices)
    del vertices
    box = float(np.linalg.norm(np.ptp(truth[0][np.unique(faces)], axis=0)))
    skin = None
    if all(b is not None for b in bones):
        skin = fit_skin(skins, np.concatenate(bones), truth, box)
    shared = {
        "name": name,
        "texture_shape": np.array(textures.shapes, np.int32),
        "texture_start": np.cumsum([0] + [len(p) for p in textures.parts[:-1]]).astype(np.int64),
        "texels": np.concatenate(textures.parts),
        "clip_names": tuple(names),
        "clip_start": starts,
        "fps": float(fps),
    }
    forms = []
    if skin is not None:
        place = np.rint(skin["rest"] * (1e5 / box)).astype(np.int32)
        keep, welded, good = weld([place, skin["bone_index"], skin["bone_weight"]], faces)
        forms.append(({k: v if k == "bones" else v[keep] for k, v in skin.items()}, welded, good))
    if skin is None or skin["bones"].nbytes > truth.size * 2:
        stored, low, step = packs.quantise(truth, starts)
        keep, welded, good = weld([stored.transpose(1, 0, 2).copy()], faces)
        forms.append(({"stored_positions": stored[:, keep], "position_low": low, "position_step": step}, welded, good))
    motion, faces, good = min(forms, key=lambda form: sum(v.nbytes for v in form[0].values()))
    return packs.Pack(
        **shared,
        **motion,
        faces=faces.astype(np.int32),
        uv=uv[good].astype(np.float16),
        face_material=material[good].astype(np.uint8 if len(textures.shapes) <= 256 else np.uint16),
    )


# ---- the process -----------------------------------------------------------------------------------------------------
def main(arguments: list[str]) -> None:
    """Bake the tasks of a JSON file: {"assets": [[source, target], ...], "events": path, "options": {...}}."""
    tasks = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))

    def tell(**event) -> None:
        with open(tasks["events"], "a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    for source, target in tasks["assets"]:
        tell(event="begin", file=source)
        started = time.monotonic()
        row = {"file": source, "status": "failed", "clips": 0, "frames": 0, "vertices": 0, "bytes": 0}
        try:
            with contextlib.redirect_stdout(sys.stderr):
                row |= {"status": "ok", **bake(Path(source), Path(target), tasks["options"])}
        except LimError as error:
            row |= {"status": "skipped", "message": str(error)}
        except Exception as error:  # a broken asset must not stop the others; its trace is on stderr
            traceback.print_exc()
            row["message"] = f"{type(error).__name__}: {error}".splitlines()[0]
        tell(event="end", **row, seconds=round(time.monotonic() - started, 2))


if __name__ == "__main__":
    main(sys.argv[sys.argv.index("--") + 1 :])
