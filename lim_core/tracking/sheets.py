# SPDX-License-Identifier: GPL-3.0-or-later
"""Sheets without thickness, whose two sides must not pass through each other: cloth, leaves, paper. Ours, not the paper's.

A template has two sides there, held apart by `remesh.APART`. A registration pulls each of them onto the same captured sheet, so that
where they end up, in front or behind, is noise, and the colours of one side show through the other.

Arrays are numpy, model space. Shapes: V vertices, F faces, N vertices of sheets.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from ..mesh.remesh import APART, closest
from ..mesh.surface import face_normals, vertex_normals

THIN = 4 * APART  # model units, below which two sides are those of a sheet
MERGED = 0.01 * APART  # below this the two sides are one place, which moves as one
CANDIDATES = 24  # faces that are looked at for the one across
PASSES = 4


class Sheets:
    """Which vertices of a template are one side of a sheet, and how thick it is there."""

    def __init__(self, vertices: np.ndarray, faces: np.ndarray):
        """vertices [V, 3], faces [F, 3] of the template."""
        vertices, self.faces = np.asarray(vertices, np.float64), np.asarray(faces, np.int64)
        outwards = vertex_normals(vertices, self.faces).astype(np.float64)
        normals = face_normals(vertices, self.faces)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
        corners = vertices[self.faces]
        count = min(CANDIDATES, len(corners))
        near = cKDTree(corners.mean(1)).query(vertices - THIN * outwards, k=count)[1].reshape(len(vertices), count)
        best, across = np.full(len(vertices), np.inf), np.zeros(len(vertices), np.int64)
        weights = np.zeros((len(vertices), 3))
        for face in near.T:
            found = closest(vertices, corners[face])
            off = vertices - np.einsum("vk,vki->vi", found, corners[face])
            facing = np.einsum("vi,vi->v", normals[face], outwards) < -0.5
            own = (self.faces[face] == np.arange(len(vertices))[:, None]).any(1)
            distance = np.where(facing & ~own, np.linalg.norm(off, axis=1), np.inf)
            better = distance < best
            best[better], across[better], weights[better] = distance[better], face[better], found[better]
        self.vertices = np.flatnonzero((best < THIN) & (best > MERGED))
        """[N], numbers of the vertices that lie on a sheet"""
        self.across, self.weights = self.faces[across[self.vertices]], weights[self.vertices]
        thickness = np.einsum("ni,ni->n", self._over(vertices), outwards[self.vertices])
        self.thickness = np.maximum(thickness, 0.5 * APART)
        """[N], model units, across from each of them"""

    def _over(self, positions: np.ndarray) -> np.ndarray:
        """From the other side to each vertex of a sheet [N, 3]."""
        return positions[self.vertices] - np.einsum("nk,nki->ni", self.weights, positions[self.across])

    def restored(self, positions: np.ndarray) -> np.ndarray:
        """A mesh [V, 3] whose sheets are at least as thick as the template's again: both sides move, by no more than they must.

        Where a bent sheet is thicker across a vertex, since the edges on its other side cut the bend, it stays so.
        """
        if not len(self.vertices):
            return positions
        positions = np.array(positions, np.float64)
        for _ in range(PASSES):
            outwards = vertex_normals(positions, self.faces).astype(np.float64)[self.vertices]
            lacks = self.thickness - np.einsum("ni,ni->n", self._over(positions), outwards)
            positions[self.vertices] += (0.5 * np.clip(lacks, 0, THIN))[:, None] * outwards
        return positions
