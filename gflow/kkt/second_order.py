"""The second-order condition with coefficients at kinks that stationarity leaves open.

Here are the proof of a maximum and the search for a direction of escape; what they decide and why
is explained in `gflow.kkt.open_curvature`.
"""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.linalg import block_diag, eigh
from scipy.sparse.csgraph import connected_components

from gflow.kkt.curvature import Curvature
from gflow.kkt.open_coefficients import OpenSwitches, dependent
from gflow.kkt.semidefinite import Form, escapes

# Two vectors, with entries of at most 1, count as multiples of each other if they are to within the
# first; entries below the second, relative to the largest, are rounding.
_MULTIPLE, _ENTRY = 1e-6, 1e-9
# A switch turns to second order only where its gradient is below this part of its Hessian.
_LEVEL = 1e-4
# All 2^n combinations of ends are tried for at most so many ranges; and semidefinite programs are
# solved for at most so many coordinates, since their size grows like the square.
_MOST_RANGES, _MOST_COORDINATES = 10, 120


@dataclass(frozen=True, eq=False)
class Range:
    """Open switches whose D_k are multiples `ratios` of one matrix.

    Attributes:
        members: their indices. Shape (m,).
        ratios: `D_k = ratio_k D`. Shape (m,).
        best: whether the margin is the minimum over their coefficients, so that it is enough if the
            condition holds for the best coefficient.
        matrix: D times the sum of |ratios|, on the critical cone: the coefficient then lies in
            [-1, 1]. Shape (r, r).
        column: likewise `dF/ds`; 0 where it vanishes. Shape (P,).
        present: the coefficient at the point.
    """

    members: np.ndarray
    ratios: np.ndarray
    best: bool
    matrix: np.ndarray
    column: np.ndarray
    present: float


def some_ends(count: int, most: int = _MOST_RANGES) -> list[tuple[float, ...]]:
    """Combinations of the ends of so many ranges: all; or, of more than `most` ranges, all lower
    ends, all upper ends and random combinations.
    """
    if count <= most:
        return list(itertools.product((-1.0, 1.0), repeat=count))
    random = np.random.default_rng(0).choice([-1.0, 1.0], size=(2**most - 2, count))
    return [tuple(ends) for ends in np.vstack([np.ones(count), -np.ones(count), random])]


def undecided_at(curvature: Curvature, places: np.ndarray) -> Curvature:
    """The curvature, with the switches on whose coefficients the verdict depends. Shape (k, 2)."""
    return dataclasses.replace(curvature, undecided=tuple(map(tuple, places.tolist())))


def multiples(rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows that are multiples of each other: their indices, and ratios to the first of them."""
    lead = np.argmax(np.abs(rows), axis=1)
    factors = rows[np.arange(len(rows)), lead]
    alike: dict[bytes, list[int]] = {}
    for number, row in enumerate(rows / factors[:, None]):
        key = (np.round(row / _MULTIPLE).astype(np.int64)).tobytes()
        alike.setdefault(key, []).append(number)
    return [
        (np.array(members), factors[members] / factors[members[0]]) for members in alike.values()
    ]


class SecondOrder:
    """The second-order condition, in the coordinates of the eigenvectors that belong to the
    coefficients of the point.

    Attributes:
        best: ranges for which the condition need hold at the best coefficient only.
        rest: ranges for which it must hold at all ends.
        free: the projector onto combinations of the coefficients of `best` that stationarity leaves
            open. Shape (b, b), b the number of `best`.
        blocks: sets of coordinates that the ranges couple; each block is judged by itself.
        labels: of the ranges, those of `best` first: equal for two that act on one block.
        block_labels: of the blocks, likewise: a range acts on the block with its label.
    """

    def __init__(self, switches: OpenSwitches, at_point: Curvature):
        self.switches, self.at_point = switches, at_point
        self.values, self.basis = at_point.values, at_point.vectors
        found = self.found_ranges()
        self.best = [each for each in found if each.best]
        self.rest = [each for each in found if not each.best]
        columns = np.zeros((len(self.basis), 0))
        if self.best:
            columns = np.column_stack([each.column for each in self.best])
        self.free = dependent(columns)
        self.blocks, self.block_labels, self.labels = self.found_blocks()

    def found_ranges(self) -> list[Range]:
        """The open switches, those that are multiples of each other together."""
        # Two matrices D_k count as multiples of each other if their images of two random vectors
        # are.
        probes = np.random.default_rng(1).normal(size=(2, len(self.basis)))
        first, second = (self.switches.effects(probe) for probe in probes)
        columns = np.where(self.switches.vanishing[:, None], 0.0, first.columns)
        rows = np.where(self.switches.vanishing[:, None], 0.0, first.rows)
        turned = np.concatenate([first.turned, second.turned, columns], axis=1)
        bent = np.concatenate([first.bent, second.bent, rows], axis=1)
        # The best coefficient is enough if D_k and the column of the switch are the same positive
        # multiple of V_k and of its row, and the switch turns to second order only.
        level = np.linalg.norm(first.rows, axis=1) <= _LEVEL * np.linalg.norm(first.bent, axis=1)
        factor = np.sum(turned * bent, axis=1) / np.maximum(np.sum(bent**2, axis=1), 1e-300)
        apart = np.linalg.norm(turned - factor[:, None] * bent, axis=1)
        attacks = (factor > 0) & (apart <= _MULTIPLE * np.linalg.norm(turned, axis=1))
        attacks &= level | ~self.switches.vanishing
        ranges = []
        for best, which in ((True, attacks), (False, ~attacks & self.switches.vanishing)):
            index = np.flatnonzero(which & np.any(turned, axis=1))
            for members, ratios in multiples(turned[index]) if len(index) else []:
                ranges.append(self.as_range(best, index[members], ratios, turned))
        return ranges

    def as_range(
        self, best: bool, members: np.ndarray, ratios: np.ndarray, turned: np.ndarray
    ) -> Range:
        """Switches whose D_k are multiples of that of the first, as one range."""
        size, total = len(self.basis), np.abs(ratios).sum()
        lead = turned[members[0]]
        largest = np.abs(lead[: 2 * size]).reshape(2, size).max(axis=0)
        support = np.flatnonzero(largest > _ENTRY * max(largest.max(), _ENTRY))
        columns = self.switches.effects(
            np.eye(size)[support], np.full(len(support), members[0])
        ).turned
        matrix = total * self.basis[support].T @ columns @ self.basis
        matrix = np.where(np.abs(matrix) > _ENTRY * total * largest.max(), matrix, 0.0)
        present = float(ratios @ self.switches.coefficients[members]) / total
        column = total * lead[2 * size :]
        return Range(members, ratios, best, 0.5 * (matrix + matrix.T), column, present)

    def found_blocks(self) -> tuple[list[np.ndarray], list[int], np.ndarray]:
        """Sets of coordinates that are coupled, either by the matrices of the ranges or because
        stationarity binds coefficients to each other; a label for each; and for each range the
        label of the set on which it acts.
        """
        size, count = len(self.values), len(self.best) + len(self.rest)
        graph = np.zeros((size + count, size + count), bool)
        for number, each in enumerate([*self.best, *self.rest]):
            graph[size + number, :size] = np.any(each.matrix, axis=1)
        end = size + len(self.best)
        graph[size:end, size:end] = self.free != 0
        number, label = connected_components(sparse.csr_matrix(graph), directed=False)
        blocks = [np.flatnonzero(label[:size] == each) for each in range(number)]
        blocks = [block for block in blocks if len(block)]
        return blocks, [int(label[block[0]]) for block in blocks], label[size:]

    def form(self, number: int) -> tuple[Form, list[Range]]:
        """The form of a block in the coefficients of `best`, and the ranges of `rest` in it, which
        the form has at their coefficients at the point.
        """
        block = self.blocks[number]
        inner = np.ix_(block, block)
        inside = self.labels == self.block_labels[number]
        index = np.flatnonzero(inside[: len(self.best)])
        best = [self.best[each] for each in index]
        rest = [
            each for each, here in zip(self.rest, inside[len(self.best) :], strict=True) if here
        ]
        present = np.array([each.present for each in best])
        # The shape is given, for a block that no range touches.
        parts = np.array([each.matrix[inner] for each in best])
        parts = parts.reshape(len(best), len(block), len(block))
        # Stationarity fixes the combinations of coefficients that are not free: these rows.
        held = np.eye(len(best)) - self.free[np.ix_(index, index)]
        _, values, right = np.linalg.svd(held) if len(best) else (0, np.zeros(0), np.zeros((0, 0)))
        rows = right[values > 0.5]
        start = np.diag(self.values[block]) - np.tensordot(present, parts, 1)
        return Form(start, parts, rows, rows @ present), rest

    def judged(self) -> Curvature:
        """A saddle proven, a maximum proven, or neither."""
        worst = [self.worst_in(number) for number in range(len(self.blocks))]
        open_blocks = [number for number, (_, proven) in enumerate(worst) if not proven]
        for number in open_blocks:
            saddle = self.saddle(number, worst[number][0])
            if saddle is not None:
                return saddle
        order = np.concatenate(self.blocks)
        values, vectors = eigh(block_diag(*[matrix for matrix, _ in worst]))
        found = self.curvature(values, self.basis[:, order] @ vectors)
        if not open_blocks or (self.values[self.plain] < -found.tolerance).any():
            return found
        inside = np.isin(self.labels, [self.block_labels[number] for number in open_blocks])
        ranges = [*self.best, *self.rest]
        members = [each.members for each, here in zip(ranges, inside, strict=True) if here]
        places = self.switches.places[np.concatenate(members)]
        return undecided_at(found, places[np.lexsort(places.T[::-1])])

    @property
    def plain(self) -> np.ndarray:
        """Coordinates that no open coefficient touches. Shape (r,)."""
        touched = [np.any(each.matrix, axis=1) for each in [*self.best, *self.rest]]
        return ~np.any(touched, axis=0) if touched else np.ones(len(self.values), bool)

    def curvature(self, values: np.ndarray, vectors: np.ndarray) -> Curvature:
        """These eigenvalues, of a symmetric matrix, as those of `at_point`."""
        return Curvature(values, vectors, True, self.at_point.tolerance)

    def worst_in(self, number: int) -> tuple[np.ndarray, bool]:
        """The matrix of a block at the best coefficients of `best` and the worst ends of `rest`;
        and whether it proves that the block is no obstacle to a maximum.
        """
        (form, rest), inner = self.form(number), np.ix_(self.blocks[number], self.blocks[number])
        small = len(form.start) <= _MOST_COORDINATES or not len(form.parts)
        found = []
        for ends in some_ends(len(rest)):
            moved = zip(ends, rest, strict=True)
            there = form.plus(sum((end - each.present) * each.matrix[inner] for end, each in moved))
            found.append(there.highest() if small else there.start)
        lowest = [float(np.linalg.eigvalsh(matrix)[0]) for matrix in found]
        least = int(np.argmin(lowest))
        decided = small and len(rest) <= _MOST_RANGES and lowest[least] >= -self.at_point.tolerance
        return found[least], decided or not (len(form.parts) or rest)

    def saddle(self, number: int, worst: np.ndarray) -> Curvature | None:
        """The curvature with a direction along which the margin rises with the coefficients s(h)
        that hold there; None if none is found.
        """
        (form, rest), block = self.form(number), self.blocks[number]
        inner = np.ix_(block, block)
        lowering = [each.matrix[inner] for each in rest]
        middle = form.plus(-sum(each.present * each.matrix[inner] for each in rest))
        found = escapes(middle, worst, lowering)
        # A switch that turns to first order has opposite signs along h and -h: both are tried.
        for h in [*found, *(-h for h in found)]:
            vector = self.basis[:, block] @ h
            effects = self.switches.effects(vector)
            moved, bends = fallen(effects, vector), effects.turned @ vector
            value = float(h @ form.at(form.along(h)) @ h)
            for each in rest:
                shift = moved[each.members] - self.switches.coefficients[each.members]
                value += float(shift @ bends[each.members])
            if value < -self.at_point.tolerance:
                return self.with_escape(value, vector)
        return None

    def with_escape(self, value: float, vector: np.ndarray) -> Curvature:
        """The direction of escape among the eigenvalues that no open coefficient touches."""
        values = np.append(value, self.values[self.plain])
        vectors = np.column_stack([vector, self.basis[:, self.plain]])
        order = np.argsort(values)
        return self.curvature(values[order], vectors[:, order])


def fallen(effects: Any, vector: np.ndarray) -> np.ndarray:
    """The signs of the switches next to the point, along a direction of norm 1. Shape (k,)."""
    first, second = effects.rows @ vector, effects.bent @ vector
    flat = np.abs(first) <= _LEVEL * np.linalg.norm(effects.bent, axis=1)
    return np.sign(np.where(flat, second, first))
