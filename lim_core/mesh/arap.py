# SPDX-License-Identifier: GPL-3.0-or-later
"""As-rigid-as-possible deformation (Sorkine and Alexa 2007) with soft positional constraints, and interpolation with it.

`E(x) = stiffness · Σ_ij w_ij ‖(x_i − x_j) − R_ij (r_i − r_j)‖² + Σ_i weight_i ‖x_i − target_i‖²`, where r is the rest
shape and R_ij the mean of the rotations at both ends. Rotations and positions are minimised in turn; the matrix of the
positions is factorised once for each set of weights.
"""

from __future__ import annotations

import numpy as np
from scipy import linalg, sparse
from scipy.sparse import csgraph
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree

from ..shared.errors import LimError
from .surface import edges_of, face_normals

LINK_WEIGHT = 1.0  # of an ordinary edge; weaker, and a part takes hundreds of iterations to turn with its surroundings
FOLDED = (
    0.15  # cosine below which a face counts as turned over: a margin, so that the steps after this one keep it right
)
HOLD = 10.0  # weight of where a vertex is, as in `Arap.solve`, while faces near it are unfolded...
LET_GO = 0.2  # ...of which it keeps so much in every round in which one is still turned over
LINKS = 12  # between a loose part and what is nearest to it


class Arap:
    """Elastic behaviour of one mesh.

    Vertices at exactly the same place move as one (meshes are often split along UV seams), and loose parts are tied to
    what is nearest to them by weak springs, so that an eye follows its head without being pulled itself.

    Attributes:
        rest: [V, 3] float64, the shape whose edge lengths are kept.
        weld: [V], the welded vertex of each vertex; first: [W], the first vertex of each welded one; size: W.
        edges: [E, 2] between welded vertices, links included; weights: [E], mean 1.
        faces: [F', 3] of welded vertices; those that welding collapses are left out.
    """

    def __init__(self, vertices: np.ndarray, faces: np.ndarray):
        """vertices [V, 3] in model units, faces [F, 3].

        Raises:
            LimError bad_template: no faces, an index out of range, or coordinates that are not finite.
        """
        vertices, faces = np.asarray(vertices, np.float64), np.asarray(faces, np.int64)
        if not len(vertices) or not len(faces) or faces.min() < 0 or faces.max() >= len(vertices):
            raise LimError("bad_template", "The template mesh has no valid faces.", "Use a mesh with faces.")
        if not np.isfinite(vertices).all():
            raise LimError("bad_template", "The template mesh has vertices that are not at a finite place.")
        self.diagonal = max(float(np.linalg.norm(np.ptp(vertices, axis=0))), 1e-12)
        keys = np.round(vertices / (1e-6 * self.diagonal)).astype(np.int64)
        _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        self.weld = inverse.ravel()  # [V] → welded index
        self.first = first
        self._shares = np.bincount(self.weld).astype(np.float64)
        self._gather = sparse.csr_matrix(
            (np.ones(len(vertices)), (self.weld, np.arange(len(vertices)))), (len(first), len(vertices))
        )
        points = vertices[first]
        faces = self.weld[faces]
        faces = faces[(faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])]
        self.faces = faces
        edges, weights = _cotangents(points, faces)
        self.edges, self.weights = link(points, edges, weights, self.diagonal)
        count, self.size = len(self.edges), len(points)
        ones = np.ones(count)
        ends = (np.tile(np.arange(count), 2), np.r_[self.edges[:, 0], self.edges[:, 1]])
        self._difference = sparse.csr_matrix((np.r_[ones, -ones], ends), (count, self.size))  # x_i − x_j
        self._spread = sparse.csr_matrix((np.r_[self.weights, self.weights], ends[::-1]), (self.size, count))
        self._divergence = (self._difference.T @ sparse.diags(self.weights)).tocsr()
        self._laplacian = (self._divergence @ self._difference).tocsc()
        self._around = (abs(self._difference).T @ abs(self._difference)).tocsr()  # a vertex and its neighbours
        self._factor: tuple[bytes, object] | None = None
        self.set_rest(vertices)

    def set_rest(self, vertices: np.ndarray) -> None:
        """Make [V, 3] the shape whose edges are kept; the weights stay those of the first shape."""
        self.rest = np.asarray(vertices, np.float64)
        self.rest_edges = self._difference @ self.rest[self.first]

    # ---- rotations --------------------------------------------------------------------------------------------------
    def rotations(self, positions: np.ndarray) -> np.ndarray:
        """Best rotation [V, 3, 3] from the rest shape of every vertex's neighbourhood at positions [V, 3]."""
        return self._rotations(self._difference @ self._welded(positions))[self.weld]

    def _rotations(self, edges: np.ndarray) -> np.ndarray:
        outer = edges[:, :, None] * self.rest_edges[:, None, :]
        return polar((self._spread @ outer.reshape(-1, 9)).reshape(-1, 3, 3))

    def _welded(self, values: np.ndarray) -> np.ndarray:
        return (self._gather @ np.asarray(values, np.float64)) / self._shares[:, None]

    def energy(self, positions: np.ndarray) -> np.ndarray:
        """Energy of every edge [E], in squared model units, without the stiffness."""
        edges = self._difference @ self._welded(positions)
        rotated = self._rotate_edges(self._rotations(edges), self.rest_edges)
        return self.weights * ((edges - rotated) ** 2).sum(1)

    def turned(self, positions: np.ndarray) -> np.ndarray:
        """Cosine [F'] between every face's normal at positions [V, 3] and where its surroundings have turned it from the
        rest shape (the rotations of its corners). Below 0 it is turned over; 0 at most where it has collapsed."""
        position = self._welded(positions)
        return self._turned(position, self._rotations(self._difference @ position))

    def folded(self, positions: np.ndarray, *, rings: int = 0) -> np.ndarray:
        """Which vertices [V] belong to a face that is turned over, or lie that many edges around one."""
        return self._folded(self._welded(positions), rings)[self.weld]

    def _folded(self, position: np.ndarray, rings: int) -> np.ndarray:
        turned = self._turned(position, self._rotations(self._difference @ position))
        near = np.zeros(self.size, bool)
        near[self.faces[turned < FOLDED].ravel()] = True
        return self._grown(near, rings)

    def _grown(self, chosen: np.ndarray, rings: int) -> np.ndarray:
        """Welded vertices [W] and those that many edges around them."""
        for _ in range(rings if chosen.any() else 0):
            chosen = self._around @ chosen > 0
        return chosen

    def _turned(self, position: np.ndarray, rotations: np.ndarray) -> np.ndarray:
        before, after = face_normals(self.rest[self.first], self.faces), face_normals(position, self.faces)
        size, area = np.linalg.norm(before, axis=1), np.linalg.norm(after, axis=1)
        turn = rotations[self.faces].mean(1)
        cosine = np.einsum("fij,fj,fi->f", turn, before, after) / np.maximum(size * area, 1e-300)
        cosine = np.where(area < 0.02 * size, np.minimum(cosine, 0.0), cosine)
        return np.where(size > 1e-12, cosine, 1.0)

    def stretch(self, positions: np.ndarray) -> float:
        """Mean share of their length by which the edges at positions [V, 3] are not the rest shape's, turned; at most 1
        each."""
        edges = self._difference @ self._welded(positions)
        return _mean_stretch(edges - self._rotate_edges(self._rotations(edges), self.rest_edges), self.rest_edges)

    def _rotate_edges(self, rotations: np.ndarray, edges: np.ndarray) -> np.ndarray:
        mean = 0.5 * (rotations[self.edges[:, 0]] + rotations[self.edges[:, 1]])
        return np.einsum("eij,ej->ei", mean, edges)

    # ---- deformation ------------------------------------------------------------------------------------------------
    def solve(
        self,
        targets: np.ndarray,
        weights: np.ndarray,
        initial: np.ndarray | None = None,
        *,
        iterations: int = 8,
        stiffness: float = 1.0,
        tolerance: float = 0.0,
    ) -> np.ndarray:
        """Deform the rest shape towards the targets.

        Args:
            targets: [V, 3], model units; read only where the weight is above 0.
            weights: [V] ≥ 0; 1 is as strong as one edge at stiffness 1.
            initial: [V, 3] where to start: it decides the rotations of the first step. Default: the rest shape.
            iterations: of rotations and positions in turn.
            tolerance: stop when no vertex moves by more than this share of the diagonal.
        Returns:
            positions [V, 3] float64.
        """
        weights = np.asarray(weights, np.float64)
        position = self._welded(self.rest if initial is None else initial)
        pull = self._gather @ (weights[:, None] * np.where(weights[:, None] > 0, targets, 0.0))
        total = self._gather @ weights
        # So weak a tie to the start that it only fixes what nothing else does.
        tie = 1e-9 * stiffness
        solver = self._factorise(total / stiffness + 1e-9)
        fixed = (pull + tie * position) / stiffness
        for _ in range(iterations):
            rotations = self._rotations(self._difference @ position)
            moved = solver.solve(fixed + self._divergence @ self._rotate_edges(rotations, self.rest_edges))
            change = np.abs(moved - position).max()
            position = moved
            if change < tolerance * self.diagonal:
                break
        return position[self.weld]

    def untangle(self, positions: np.ndarray, *, rounds: int = 12) -> np.ndarray:
        """Positions [V, 3] without the faces that are turned over: around each, the mesh is made stiff, round after round
        stiffer and in a wider ring, until it unfolds; all else stays exactly where it is.

        A patch that is held by nothing takes the rest shape, in which no face is turned over. What does not unfold after
        so many rounds is left.
        """
        given = self._welded(positions)
        position, hold, free = given, np.full(self.size, HOLD), np.zeros(self.size, bool)
        for attempt in range(rounds):
            near = self._folded(position, 1 + attempt // 3)
            if not near.any():
                break
            hold[near] *= LET_GO
            free |= self._grown(near, 2)
            position = self._solve_locally(np.flatnonzero(free), hold, given, position)
        return np.asarray(positions, np.float64) + (position - given)[self.weld]

    def _solve_locally(self, free, hold, goal, position, iterations: int = 6) -> np.ndarray:
        """As `solve`, at stiffness 1, of the welded vertices `free` alone; the others are fixed."""
        near = np.unique(self._around[free].indices)  # whose rotations count
        edges = np.flatnonzero(np.isin(self.edges, near).any(1))
        difference = self._difference[edges]
        spread, divergence = self._spread[near][:, edges], self._divergence[free][:, edges]
        rest, ends = self.rest_edges[edges], self.edges[edges]
        inside = np.isin(ends, near).all(1)  # the others end where nothing moves
        place = np.zeros(self.size, np.int64)
        place[near] = np.arange(len(near))
        rows = self._laplacian.tocsr()[free]
        solver = factorise((rows[:, free] + sparse.diags(hold[free])).tocsc())
        fixed = np.ones(self.size)
        fixed[free] = 0
        known = hold[free, None] * goal[free] - rows @ (fixed[:, None] * position)
        position = position.copy()
        for _ in range(iterations):
            now = difference @ position
            outer = now[:, :, None] * rest[:, None, :]
            turn = polar((spread @ outer.reshape(-1, 9)).reshape(-1, 3, 3))
            wanted = np.zeros_like(rest)
            one, two = place[ends[inside]].T
            wanted[inside] = np.einsum("eij,ej->ei", 0.5 * (turn[one] + turn[two]), rest[inside])
            position[free] = solver.solve(known + divergence @ wanted)
        return position

    def _factorise(self, diagonal: np.ndarray):
        key = diagonal.tobytes()
        if self._factor is None or self._factor[0] != key:
            matrix = (self._laplacian + sparse.diags(diagonal)).tocsc()
            self._factor = (key, factorise(matrix))
        return self._factor[1]

    def smooth(self, field: np.ndarray, trust: np.ndarray, strength: float = 4.0) -> np.ndarray:
        """The smooth field [V, 3] nearest to `field` where `trust` [V] is high and to zero where it is low.

        Args:
            strength: of the smoothing: evens out what is narrower than about √strength edges.
        """
        trust = np.clip(np.asarray(trust, np.float64), 0.0, 1.0)
        right = self._gather @ (trust[:, None] * field)
        solver = self._factorise(self._shares / strength)
        return solver.solve(right / strength)[self.weld]

    # ---- interpolation ----------------------------------------------------------------------------------------------
    def interpolate(self, start: np.ndarray, end: np.ndarray, alphas: np.ndarray) -> np.ndarray:
        """Shapes between two, as rigid as possible: parts that turn keep their size on the way.

        Every neighbourhood's rotation from start to end is split off and turned at an even rate (its logarithm times α),
        the remaining stretch is blended linearly, and the edges are joined by one Poisson solve per α (after Alexa et
        al. 2000, per vertex instead of per face). The centroid moves along a straight line.

        Args:
            start, end: [V, 3]; alphas: [A] in [0, 1].
        Returns:
            [A, V, 3] float64; α = 0 and α = 1 give start and end exactly.
        """
        start, end = np.asarray(start, np.float64), np.asarray(end, np.float64)
        first, last = self._welded(start), self._welded(end)
        before, after = self._difference @ first, self._difference @ last
        outer = after[:, :, None] * before[:, None, :]
        rotations = polar((self._spread @ outer.reshape(-1, 9)).reshape(-1, 3, 3))
        whole = polar(np.einsum("vi,vj->ij", last - last.mean(0), first - first.mean(0))[None])[0]
        vectors = self._unwind(rotation_vectors(rotations @ whole.T), rotations @ whole.T)
        whole_vector = rotation_vectors(whole[None])[0]
        ends = self.edges.T
        unrotated = [np.einsum("eji,ej->ei", rotations[end_], after) for end_ in ends]
        solver = self._poisson()
        result = np.empty((len(alphas), *start.shape))
        for a, alpha in enumerate(np.asarray(alphas, np.float64)):
            if alpha <= 0 or alpha >= 1:
                result[a] = start if alpha <= 0 else end
                continue
            turned = rotation_matrices(alpha * vectors) @ rotation_matrices(alpha * whole_vector[None])
            edges = 0.0
            for end_, still in zip(ends, unrotated, strict=True):
                edges = edges + 0.5 * np.einsum("eij,ej->ei", turned[end_], (1 - alpha) * before + alpha * still)
            shape = solver.solve(self._divergence @ edges)
            shape += (1 - alpha) * first.mean(0) + alpha * last.mean(0) - shape.mean(0)
            # Welded vertices that the input held apart keep their offsets.
            apart = (1 - alpha) * (start - first[self.weld]) + alpha * (end - last[self.weld])
            result[a] = shape[self.weld] + apart
        return result

    def _poisson(self):
        if not hasattr(self, "_poisson_factor"):
            self._poisson_factor = factorise((self._laplacian + 1e-9 * sparse.identity(self.size)).tocsc())
        return self._poisson_factor

    def _unwind(self, vectors: np.ndarray, rotations: np.ndarray) -> np.ndarray:
        """Choose for every vertex the logarithm (θ or θ − 2π about the axis) nearest to its neighbour's.

        Neighbours are asked along the tree over which the rotation changes least: a part that makes half a turn is entered
        once, and turns one way.
        """
        angle = np.linalg.norm(vectors, axis=1)
        if angle.max() < 2.5:  # nobody is near the half turn, where the choice matters
            return vectors
        one, two = (rotations[self.edges[:, i]] for i in (0, 1))
        change = 3.0 + 1e-6 - np.einsum("eij,eij->e", one, two)
        graph = sparse.csr_matrix((np.maximum(change, 1e-9), tuple(self.edges.T)), (self.size, self.size))
        tree = csgraph.minimum_spanning_tree(graph)
        sequence, parent = csgraph.breadth_first_order(tree, int(np.argmin(angle)), directed=False)
        axis = vectors / np.maximum(angle, 1e-9)[:, None]
        vectors = vectors.copy()
        # Who turns by less than a quarter is not asked: through a crumpled bridge half of a body came to make a full turn.
        for vertex in sequence[1:][angle[sequence[1:]] > np.pi / 2]:
            reference = vectors[parent[vertex]]
            turns = np.round((axis[vertex] @ reference - angle[vertex]) / (2 * np.pi))
            vectors[vertex] = axis[vertex] * (angle[vertex] + 2 * np.pi * np.clip(turns, -1, 1))
        return vectors


class Coarse:
    """The same mesh moved by a few hundred nodes (embedded deformation, Sumner et al. 2007, with ARAP between the nodes).

    Ten times faster than all vertices, and stiff over long ranges: for finding large motion. A vertex follows the nodes
    next to it along the surface: `x_v = Σ_n skin_vn (R_n (rest_v − rest_n) + x_n)`.

    Attributes:
        nodes: [N] indices of the vertices that the nodes sit on; skin: sparse [V, N], rows sum to 1.
    """

    def __init__(self, arap: Arap, count: int = 500):
        self.arap = arap
        points = arap.rest[arap.first]
        length = np.linalg.norm(points[arap.edges[:, 0]] - points[arap.edges[:, 1]], axis=1) + 1e-9 * arap.diagonal
        graph = sparse.csr_matrix((length, (arap.edges[:, 0], arap.edges[:, 1])), (arap.size, arap.size))
        graph = graph + graph.T
        seeds = np.random.default_rng(0).permutation(arap.size)[: min(count, arap.size)]
        for _ in range(4):  # Lloyd: every seed moves to the middle of what is nearer to it than to the others
            owner = _owners(graph, seeds)
            size = np.maximum(np.bincount(owner, minlength=len(seeds)), 1)
            centre = np.stack([np.bincount(owner, points[:, i], len(seeds)) for i in range(3)], 1) / size[:, None]
            off = np.linalg.norm(points - centre[owner], axis=1)
            order = np.lexsort((off, owner))
            seeds = order[np.r_[True, owner[order][1:] != owner[order][:-1]]]
        owner = _owners(graph, seeds)
        number = len(seeds)
        pairs = np.sort(owner[arap.edges], axis=1)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        keys, counts = np.unique(pairs[:, 0] * number + pairs[:, 1], return_counts=True)
        edges = np.stack([keys // number, keys % number], 1)
        weights = np.sqrt(counts.astype(np.float64))
        self.edges, self.weights = edges, weights / weights.mean() if len(weights) else weights
        # Skin: the owner and its neighbours, by distance.
        adjacency = sparse.csr_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), (number, number))
        adjacency = (adjacency + adjacency.T + sparse.identity(number)).tocsr()
        reach = sparse.csr_matrix((np.ones(arap.size), (np.arange(arap.size), owner)), (arap.size, number)) @ adjacency
        reach = reach.tocoo()
        distance = np.linalg.norm(points[reach.row] - points[seeds[reach.col]], axis=1)
        width = np.maximum((np.bincount(reach.row, distance) / np.bincount(reach.row)), 1e-9)[reach.row]
        value = np.exp(-((distance / (0.7 * width)) ** 2))
        skin = sparse.csr_matrix((value, (reach.row, reach.col)), (arap.size, number))
        skin = sparse.diags(1.0 / np.asarray(skin.sum(1)).ravel()) @ skin
        self._spread_out = sparse.csr_matrix(
            (np.ones(len(arap.weld)), (np.arange(len(arap.weld)), arap.weld)), (len(arap.weld), arap.size)
        )
        self.skin = (self._spread_out @ skin).tocsr()
        self.nodes = arap.first[seeds]
        ones = np.ones(len(edges))
        ends = (np.tile(np.arange(len(edges)), 2), np.r_[edges[:, 0], edges[:, 1]])
        self._difference = sparse.csr_matrix((np.r_[ones, -ones], ends), (len(edges), number))
        self._spread = sparse.csr_matrix((np.r_[self.weights, self.weights], ends[::-1]), (number, len(edges)))
        self._divergence = (self._difference.T @ sparse.diags(self.weights)).tocsr()
        self._laplacian = (self._divergence @ self._difference).toarray()
        self.set_rest(arap.rest)

    def set_rest(self, vertices: np.ndarray) -> None:
        """Make [V, 3] the shape that the nodes carry."""
        self.rest = np.asarray(vertices, np.float64)
        self._rest_edges = self._difference @ self.rest[self.nodes]

    def rotations(self, nodes: np.ndarray) -> np.ndarray:
        """Rotation [N, 3, 3] of every node at node positions [N, 3]."""
        edges = self._difference @ nodes
        outer = edges[:, :, None] * self._rest_edges[:, None, :]
        return polar((self._spread @ outer.reshape(-1, 9)).reshape(-1, 3, 3))

    def _turned(self, rotations: np.ndarray) -> np.ndarray:
        """Σ_n skin_vn R_n (rest_v − rest_n), [V, 3]."""
        own = np.einsum("nij,nj->ni", rotations, self.rest[self.nodes])
        mixed = self.skin @ np.concatenate([rotations.reshape(-1, 9), own], 1)
        return np.einsum("vij,vj->vi", mixed[:, :9].reshape(-1, 3, 3), self.rest) - mixed[:, 9:]

    def positions(self, nodes: np.ndarray) -> np.ndarray:
        """Vertices [V, 3] that node positions [N, 3] give."""
        return self.skin @ nodes + self._turned(self.rotations(nodes))

    def stretch(self, nodes: np.ndarray) -> float:
        """As `Arap.stretch`, of node positions [N, 3]."""
        rotations = self.rotations(nodes)
        mean = 0.5 * (rotations[self.edges[:, 0]] + rotations[self.edges[:, 1]])
        off = self._difference @ nodes - np.einsum("eij,ej->ei", mean, self._rest_edges)
        return _mean_stretch(off, self._rest_edges)

    def solve(
        self,
        targets: np.ndarray,
        weights: np.ndarray,
        nodes: np.ndarray,
        *,
        iterations: int = 5,
        stiffness: float = 1.0,
    ) -> np.ndarray:
        """Node positions [N, 3] for vertex targets [V, 3] with weights [V], starting from `nodes` [N, 3].

        The stiffness is per node: the weights are scaled by nodes per vertex, so that values mean what they mean for
        `Arap.solve`.
        """
        number = len(nodes)
        pull = weights * (number / len(weights))
        weighted = sparse.diags(pull) @ self.skin
        matrix = stiffness * self._laplacian + (self.skin.T @ weighted).toarray() + 1e-6 * stiffness * np.eye(number)
        factor = linalg.cho_factor(matrix, check_finite=False)
        for _ in range(iterations):
            rotations = self.rotations(nodes)
            mean = 0.5 * (rotations[self.edges[:, 0]] + rotations[self.edges[:, 1]])
            right = stiffness * (self._divergence @ np.einsum("eij,ej->ei", mean, self._rest_edges))
            right += weighted.T @ (np.where(weights[:, None] > 0, targets, 0.0) - self._turned(rotations))
            nodes = linalg.cho_solve(factor, right + 1e-6 * stiffness * nodes, check_finite=False)
        return nodes


def _mean_stretch(off: np.ndarray, rest_edges: np.ndarray) -> float:
    length = np.linalg.norm(rest_edges, axis=1)
    return float(np.minimum(np.linalg.norm(off, axis=1) / np.maximum(length, 1e-12), 1.0).mean())


def _owners(graph: sparse.csr_matrix, seeds: np.ndarray) -> np.ndarray:
    """Which seed (its place in the list) each vertex [V] is nearest to along the graph."""
    _, _, source = csgraph.dijkstra(graph, directed=False, indices=seeds, min_only=True, return_predecessors=True)
    place = np.full(graph.shape[0], 0)
    place[seeds] = np.arange(len(seeds))
    return place[np.maximum(source, 0)]


# ---- building blocks -------------------------------------------------------------------------------------------------
def factorise(matrix: sparse.csc_matrix):
    """LU of a symmetric positive definite matrix; `.solve(right [N, k])`."""
    return splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})


def polar(matrices: np.ndarray) -> np.ndarray:
    """Nearest rotations [N, 3, 3] (determinant +1) of matrices [N, 3, 3], in the least-squares sense.

    Newton's iteration for the polar factor, all matrices at once: 3 times faster than as many small SVDs. The matrix of
    cofactors has the same singular vectors; adding it makes flat neighbourhoods regular and turns reflections round.
    What is still singular (a neighbourhood on a line) goes through the SVD.
    """
    m = np.moveaxis(np.asarray(matrices, np.float64), 0, -1).copy()  # [3, 3, N]
    norm = np.sqrt(np.einsum("ijn,ijn->n", m, m))
    m /= np.maximum(norm, 1e-300)
    m += 1.2 * _cofactors(m)
    for _ in range(12):
        cofactors = _cofactors(m)
        determinant = np.einsum("jn,jn->n", m[0], cofactors[0])
        singular = determinant < 1e-5
        determinant = np.where(singular, 1.0, determinant)
        inverse = cofactors / determinant
        gain = np.sqrt(
            np.sqrt(np.einsum("ijn,ijn->n", inverse, inverse) / np.maximum(np.einsum("ijn,ijn->n", m, m), 1e-300))
        )
        updated = 0.5 * (gain * m + inverse / np.maximum(gain, 1e-300))
        updated[:, :, singular] = m[:, :, singular]
        change = np.abs(updated - m).max() if m.size else 0.0
        m = updated
        if change < 1e-12:
            break
    result = np.moveaxis(m, -1, 0).copy()
    bad = np.flatnonzero(~(np.abs(np.einsum("nij,nij->n", result, result) - 3.0) < 1e-9) | singular)
    if len(bad):
        u, _, vt = np.linalg.svd(np.asarray(matrices, np.float64)[bad])
        sign = np.sign(np.linalg.det(u) * np.linalg.det(vt))
        u[:, :, 2] *= np.where(sign == 0, 1.0, sign)[:, None]
        result[bad] = u @ vt
    return result


def _cofactors(m: np.ndarray) -> np.ndarray:
    """Cofactors [3, 3, N] of matrices [3, 3, N]: row i is the cross product of the two other rows."""
    result = np.empty_like(m)
    for i in range(3):
        a, b = m[(i + 1) % 3], m[(i + 2) % 3]
        for j in range(3):
            result[i, j] = a[(j + 1) % 3] * b[(j + 2) % 3] - a[(j + 2) % 3] * b[(j + 1) % 3]
    return result


def rotation_vectors(rotations: np.ndarray) -> np.ndarray:
    """Axis times angle [N, 3], angle in [0, π], of rotations [N, 3, 3]."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_matrix(rotations).as_rotvec()


def rigid_motion(points: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation [3, 3] and shift [3] that take points [N, 3] nearest to where they are `there` [N, 3]."""
    rotation = polar(((there - there.mean(0)).T @ (points - points.mean(0)))[None])[0]
    return rotation, there.mean(0) - rotation @ points.mean(0)


def rotation_matrices(vectors: np.ndarray) -> np.ndarray:
    """Rotations [N, 3, 3] of axis times angle [N, 3]."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_rotvec(vectors).as_matrix()


def _cotangents(points: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges [E, 2] and their weights [E]: cotangents, clamped to [0.2, 5] times the mean: slivers and obtuse corners of
    simplified meshes would give negative or huge ones."""
    edges = edges_of(faces)
    count = len(points)
    keys = edges[:, 0] * count + edges[:, 1] if len(edges) else np.zeros(0, np.int64)
    weights = np.zeros(len(edges))
    for corner in range(3):
        i, j, k = faces[:, (corner + 1) % 3], faces[:, (corner + 2) % 3], faces[:, corner]
        a, b = points[i] - points[k], points[j] - points[k]
        area = np.linalg.norm(np.cross(a, b), axis=1)
        cotangent = np.einsum("fi,fi->f", a, b) / np.maximum(area, 1e-12 + 1e-3 * np.einsum("fi,fi->f", a, a))
        where = np.searchsorted(keys, np.minimum(i, j) * count + np.maximum(i, j))
        np.add.at(weights, where, 0.5 * np.clip(cotangent, -5, 5))
    mean = np.abs(weights).mean() if len(weights) else 1.0
    weights = np.clip(weights / max(mean, 1e-12), 0.2, 5.0)
    return edges, weights / max(weights.mean(), 1e-12)


def link(points, edges, weights, diagonal) -> tuple[np.ndarray, np.ndarray]:
    """Tie loose parts of a graph to their surroundings until all is one.

    Args:
        points [V, 3], edges [E, 2], weights [E]; diagonal: model units.
    Returns:
        edges and weights with the links appended, at LINK_WEIGHT each.
    """
    count = len(points)
    for attempt in range(64):
        graph = sparse.coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), (count, count))
        parts, label = csgraph.connected_components(graph, directed=False)
        if parts == 1:
            break
        size = np.bincount(label)
        added = []
        if attempt == 0 and count > 64:  # cheap first pass, for meshes of many pieces that touch
            distance, near = cKDTree(points).query(points, k=16, distance_upper_bound=0.02 * diagonal)
            foreign = np.isfinite(distance) & (label[np.minimum(near, count - 1)] != label[:, None])
            pick = foreign.argmax(1)
            has = np.flatnonzero(foreign.any(1))
            order = has[np.lexsort((distance[has, pick[has]], label[has]))]
            start = np.r_[True, label[order][1:] != label[order][:-1]]
            rank = np.arange(len(order)) - np.maximum.accumulate(np.where(start, np.arange(len(order)), 0))
            order = order[rank < LINKS]
            added.append(np.stack([order, near[order, pick[order]]], 1))
        if not added or not len(added[0]):
            added = []
            for part in np.argsort(size)[:-1]:
                mine, others = np.flatnonzero(label == part), np.flatnonzero(label != part)
                distance, near = cKDTree(points[others]).query(points[mine])
                order = np.argsort(distance)[:LINKS]
                order = order[distance[order] <= distance[order[0]] + 0.02 * diagonal]
                added.append(np.stack([mine[order], others[near[order]]], 1))
        links = np.unique(np.sort(np.concatenate(added), axis=1), axis=0)
        edges = np.concatenate([edges, links])
        weights = np.r_[weights, np.full(len(links), LINK_WEIGHT)]
    return edges, weights
