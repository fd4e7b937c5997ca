# SPDX-License-Identifier: GPL-3.0-or-later
"""What the capture of one keyframe says, prepared for matching: an even sample of its points, and a coarse graph over them.

Arrays are numpy, model space [-1, 1]³.
"""

from __future__ import annotations

import functools

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from ..mesh.arap import link
from ..mesh.surface import captured_points, edges_of, fuse_depth, simplify, vertex_areas, vertex_normals
from ..shared import cameras
from ..shared.errors import LimError

OPENS = 1.03  # times the first keyframe's openness: what another needs to become the template's
NORMAL_SCALE = 0.08  # model units that opposite normals are apart by, times two


class Observation:
    """The captured evidence of one keyframe, prepared for matching.

    Attributes:
        points, normals, colours: [P, 3], an even sample of what the views saw, normals outwards, colours in [0, 1].
        depth_planar [views, H, W], images [views, H, W, 4] uint8, camera_to_world, intrinsics: as captured.
    """

    def __init__(
        self,
        depth_planar: np.ndarray,
        images: np.ndarray,
        camera_to_world: np.ndarray,
        intrinsics: np.ndarray,
        *,
        count: int = 12000,
    ):
        """count: points kept, about.

        Raises:
            LimError empty_surface: no view shows the object.
        """
        self.depth_planar, self.images = np.asarray(depth_planar, np.float32), images
        self.camera_to_world, self.intrinsics = camera_to_world, intrinsics
        points, normals, colours, views = captured_points(self.depth_planar, camera_to_world, intrinsics, images)
        usable = np.abs(normals).sum(1) > 0
        points, normals, colours, views = points[usable], normals[usable], colours[usable], views[usable]
        if len(points) < 16:
            raise LimError("empty_surface", "The object is not visible from any camera at one of the keyframes.")
        towards = camera_to_world[views, :3, 3] - points
        slant = -np.einsum("pi,pi->p", normals, towards) / np.linalg.norm(towards, axis=1)
        order = np.argsort(slant, kind="stable")  # of each cell, the point seen most head-on is kept
        points, normals, colours = points[order], normals[order], colours[order]
        chosen = _thin(points, normals, count)
        self.points, self.normals, self.colours = (a[chosen].astype(np.float64) for a in (points, normals, colours))

    @functools.cached_property
    def nodes(self) -> Nodes:
        """A coarse graph over the surface, for `correspond`."""
        return Nodes(self)

    def hidden(self, vertices: np.ndarray, tolerance: float) -> np.ndarray:
        """Which vertices [V] lie behind captured surface in every view that has them in the picture, by more than
        `tolerance`: inside the object, or simply unseen."""
        hidden = np.ones(len(vertices), bool)
        for depth, pose, intrinsic in zip(self.depth_planar, self.camera_to_world, self.intrinsics, strict=True):
            here, z, inside = cameras.look_up(depth, vertices, pose, intrinsic)
            hidden &= ~inside | ((here > 0) & (z > here + tolerance))
        return hidden


def _thin(points: np.ndarray, normals: np.ndarray, count: int) -> np.ndarray:
    """Indices of about `count` points, the first of every cell of a grid; the two sides of a sheet count apart."""
    side = (normals[:, 0] > 0) + 2 * (normals[:, 1] > 0) + 4 * (normals[:, 2] > 0)
    low, extent = points.min(0), float(np.ptp(points, axis=0).max())
    cell = extent / np.sqrt(count)
    for _ in range(4):
        key = np.floor((points - low) / cell).astype(np.int64)
        span = key.max(0) + 1
        key = ((key[:, 0] * span[1] + key[:, 1]) * span[2] + key[:, 2]) * 8 + side
        _, first = np.unique(key, return_index=True)
        if 0.8 * count <= len(first) <= 1.25 * count or (len(first) < count and len(points) < 2 * count):
            break
        cell *= np.clip(np.sqrt(len(first) / count), 0.3, 3.0)
    return np.sort(first)


class Nodes:
    """Some 250 places spread over a captured surface, with what bending does not change about them.

    Attributes:
        points [N, 3]; colours [N, 6] (means over a small and a large disc); area [N, 2] (of these discs);
        geodesic [N, N]: lengths along the surface.
    """

    def __init__(self, capture: Observation, count: int = 260):
        vertices, faces, graph = _coarse_surface(capture.depth_planar, capture.camera_to_world, capture.intrinsics)
        chosen, distances = _farthest(vertices, graph, count)
        self.vertices, self.vertex_node = vertices, distances.argmin(0)
        self.points = vertices[chosen].astype(np.float64)
        self.geodesic = 0.5 * (distances[:, chosen] + distances[:, chosen].T)
        normals = vertex_normals(vertices, faces)
        tree = cKDTree(np.concatenate([capture.points, NORMAL_SCALE * capture.normals], 1))
        _, near = tree.query(np.concatenate([vertices, NORMAL_SCALE * normals], 1), k=4)
        colour = capture.colours[near].mean(1)
        mass = vertex_areas(vertices, faces)
        self.scale = float(np.sqrt(mass.sum()))  # of the surface, hardly changed by a pose
        self.mass = np.bincount(self.vertex_node, mass, len(chosen)) / mass.sum()
        colours, areas = [], []
        for radius in (0.05, 0.15):
            weight = np.exp(-((distances / (radius * self.scale)) ** 2)) * mass
            areas.append(weight.sum(1) / (radius * self.scale) ** 2)
            colours.append((weight @ colour) / weight.sum(1, keepdims=True))
        self.colours, self.area = np.concatenate(colours, 1), np.stack(areas, 1)

    @functools.cached_property
    def sideways(self) -> np.ndarray:
        """Unit normal [3] of the upright plane that the surface is most symmetric about: from its left to its right."""
        centred = self.points - self.mass @ self.points
        best = (np.inf, np.array([1.0, 0.0, 0.0]))
        for angle in np.arange(0, np.pi, np.pi / 36):
            normal = np.array([np.cos(angle), np.sin(angle), 0.0])
            mirrored = centred - 2 * np.outer(centred @ normal, normal)
            best = min(best, (cKDTree(centred).query(mirrored)[0].mean(), normal), key=lambda pair: pair[0])
        return best[1]


def most_open(depth_planar: np.ndarray, camera_to_world: np.ndarray, intrinsics: np.ndarray) -> int:
    """The keyframe in which the fewest parts touch: the one whose places lie farthest apart along the surface.

    Parts that touch are fused, and stay webbed together for ever: hands that rest on a body, feet that stand side by side.
    Bending does not change distances along a surface; every contact shortens some. (The largest area, which contacts hide too,
    was tried before: limbs in front of a body hide as much of it.) The first keyframe is left only for one with OPENS
    times its mean distance.

    Args:
        depth_planar: [K, V, H, W]; camera_to_world: [V, 4, 4]; intrinsics: [V, 3, 3].
    """
    apart = []
    for depth in depth_planar:
        try:
            vertices, faces, graph = _coarse_surface(depth, camera_to_world, intrinsics, faces=3000)
        except LimError:  # nothing to be seen: the fit will name it
            apart.append(0.0)
            continue
        chosen, distances = _farthest(vertices, graph, 80)
        mass = vertex_areas(vertices, faces)
        share = np.bincount(distances.argmin(0), mass, len(chosen))
        apart.append(float(share @ distances @ mass / mass.sum() ** 2))
    best = int(np.argmax(apart))
    return best if apart[best] > OPENS * apart[0] else 0


def _coarse_surface(
    depth_planar: np.ndarray, camera_to_world: np.ndarray, intrinsics: np.ndarray, faces: int = 5000
) -> tuple[np.ndarray, np.ndarray, sparse.csr_matrix]:
    """A coarse mesh of depths [views, H, W], and the graph of the lengths of its edges; parts that are apart are linked."""
    step = 2 if depth_planar.shape[-1] >= 384 else 1
    vertices, triangles = simplify(
        *fuse_depth(
            depth_planar[:, ::step, ::step],
            camera_to_world,
            cameras.scale_intrinsics(intrinsics, 1 / step),
            resolution=72,
        ),
        faces,
    )
    edges = edges_of(triangles)
    edges, _ = link(vertices, edges, np.ones(len(edges)), np.linalg.norm(np.ptp(vertices, axis=0)))
    length = np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1) + 1e-6
    graph = sparse.csr_matrix((length, (edges[:, 0], edges[:, 1])), (len(vertices), len(vertices)))
    return vertices, triangles, graph + graph.T


def _farthest(vertices: np.ndarray, graph: sparse.csr_matrix, count: int) -> tuple[list[int], np.ndarray]:
    """Up to `count` vertices spread evenly over a surface, and everyone's distance from them along it [count, V]."""
    chosen, rows = [int(np.argmax(np.linalg.norm(vertices - vertices.mean(0), axis=1)))], []
    nearest = np.full(len(vertices), np.inf)
    while True:
        rows.append(csgraph.dijkstra(graph, indices=chosen[-1]))
        nearest = np.minimum(nearest, rows[-1])
        if len(chosen) == min(count, len(vertices)):
            return chosen, np.stack(rows)
        chosen.append(int(np.argmax(nearest)))
