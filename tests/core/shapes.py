# SPDX-License-Identifier: GPL-3.0-or-later
"""Analytic things to test with: a tube that bends, a picture that depends on the material point, rendered captures."""

import dataclasses

import numpy as np

from lim_core.job.capture import Capture
from lim_core.mesh.arap import Arap
from lim_core.shared import cameras
from lim_core.tracking.observation import Observation


def tube(length=1.5, radius=0.16, rings=48, around=24):
    """Closed capsule along z, centred: vertices [V, 3], faces [F, 3] outward, `rings` evenly spaced along its outline."""
    straight = length - 2 * radius
    way = np.linspace(0, np.pi * radius + straight, rings + 2)[1:-1]
    cap = np.pi * radius / 2
    turn = np.where(way < cap, way / radius, np.where(way > cap + straight, (way - straight) / radius, np.pi / 2))
    height = -np.cos(turn) * radius + np.clip(way - cap, 0, straight) - straight / 2
    angle = np.arange(around) * 2 * np.pi / around
    ring = np.stack([np.cos(angle), np.sin(angle)], 1)
    sides = (radius * np.sin(turn))[:, None, None] * ring
    points = np.concatenate([sides, np.broadcast_to(height[:, None, None], (rings, around, 1))], 2).reshape(-1, 3)
    vertices = np.concatenate([points, [[0, 0, -length / 2], [0, 0, length / 2]]])
    i, j = np.divmod(np.arange((rings - 1) * around), around)
    a, b = i * around + j, i * around + (j + 1) % around
    first, second = np.arange(around), np.roll(np.arange(around), -1)
    last = (rings - 1) * around
    faces = np.concatenate(
        [
            np.stack([a, b, b + around], 1),
            np.stack([a, b + around, a + around], 1),
            np.stack([np.full(around, len(points)), second, first], 1),
            np.stack([np.full(around, len(points) + 1), last + first, last + second], 1),
        ]
    )
    return vertices, faces


def bent(points, angle, length=1.5):
    """The tube's points [N, 3] with its axis bent onto an arc of `angle` radians in the xz plane, length kept."""
    if abs(angle) < 1e-9:
        return points.copy()
    radius = length / angle
    turn = points[:, 2] / radius
    return np.stack(
        [radius - (radius - points[:, 0]) * np.cos(turn), points[:, 1], (radius - points[:, 0]) * np.sin(turn)], 1
    )


def ring(gap):
    """vertices [V, 3], faces [F, 3] of a rod bent to a ring that lacks `gap` radians; at 0 its ends touch."""
    angle = np.linspace(gap / 2, 2 * np.pi - gap / 2, 60)
    outwards = np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
    turn = np.linspace(0, 2 * np.pi, 17)[:-1]
    profile = 0.12 * np.stack([np.cos(turn), np.sin(turn)], 1)
    rings = (0.6 + profile[None, :, :1]) * outwards[:, None] + profile[None, :, 1:] * np.array([0, 0, 1.0])
    i, j = np.meshgrid(np.arange(59), np.arange(16), indexing="ij")
    a, b, c, d = i * 16 + j, i * 16 + (j + 1) % 16, (i + 1) * 16 + (j + 1) % 16, (i + 1) * 16 + j
    sides = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    caps = [[start, start + k, start + k + 1] for start in (0, 59 * 16) for k in range(1, 15)]
    return rings.reshape(-1, 3), np.concatenate([sides, caps])


def paint(points):
    """Smooth colours [..., 3] uint8 of material points [..., 3]."""
    x, y, z = np.moveaxis(np.asarray(points, np.float64), -1, 0)
    waves = [np.sin(9 * x + 3 * y), np.sin(8 * y - 4 * z), np.cos(7 * z + x)]
    return np.clip(127 + 90 * np.stack(waves, -1), 0, 255).astype(np.uint8)


def depth_of(vertices, faces, camera_to_world, intrinsics, size):
    """depth_planar [V, size, size] float32, 0 where nothing is."""
    return capture_of(vertices, faces, None, camera_to_world, intrinsics, size)[0]


def capture_of(vertices, faces, material, camera_to_world, intrinsics, size):
    """depth_planar [V, size, size] and images [V, size, size, 4] uint8 painted by the material points [V, 3]."""
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene

    scene = EmbreeScene()
    TriangleMesh(scene, np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.int32))
    depths, images = [], []
    for pose, intrinsic in zip(camera_to_world, intrinsics, strict=True):
        origins, directions = cameras.rays(pose, intrinsic, size)
        hit = scene.run(origins.reshape(-1, 3), directions.reshape(-1, 3), query="INTERSECT", output=True)
        found = hit["primID"] >= 0
        depths.append(np.where(found, hit["tfar"], 0).reshape(size, size).astype(np.float32))
        image = np.zeros((size * size, 4), np.uint8)
        if material is not None:
            u, v = hit["u"][found, None], hit["v"][found, None]
            a, b, c = (material[faces[hit["primID"][found]][:, i]] for i in range(3))
            image[found, :3] = paint(a + u * (b - a) + v * (c - a))
        image[found, 3] = 255
        images.append(image.reshape(size, size, 4))
    return np.stack(depths), np.stack(images)


@dataclasses.dataclass
class Bending:
    """A painted tube, captured straight and bent."""

    vertices: np.ndarray
    faces: np.ndarray
    angles: tuple[float, ...]
    capture: Capture

    @property
    def arap(self):
        return Arap(self.vertices, self.faces)

    @property
    def truth(self):
        """[K, V, 3]"""
        return np.stack([bent(self.vertices, angle) for angle in self.angles])

    def observation(self, keyframe):
        seen = self.capture
        return Observation(seen.depth_planar[keyframe], seen.rgba[keyframe], seen.camera_to_world, seen.intrinsics)

    def at(self, keyframes):
        """The capture of some keyframes."""
        seen = self.capture
        return Capture(seen.rgba[keyframes], seen.depth_planar[keyframes], seen.camera_to_world, seen.intrinsics, 4)


def bending(angles=(0.0, 1.9), size=192):
    vertices, faces = tube(rings=40, around=20)
    camera_to_world, intrinsics = cameras.job_cameras(size, 8)
    seen = [capture_of(bent(vertices, a), faces, vertices, camera_to_world, intrinsics, size) for a in angles]
    depth, images = (np.stack([s[i] for s in seen]) for i in (0, 1))
    return Bending(vertices, faces, angles, Capture(images, depth, camera_to_world, intrinsics, 4))
