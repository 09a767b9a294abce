"""Second order at kinks whose coefficients stationarity leaves open (`gflow.kinks.open`).

With `H(s) = H(0) + sum_k s_k D_k` on the critical cone, and `s(h)` the coefficients that fall to a
direction h, the point is a maximum of the margin where `h^T H(s(h)) h > 0` for all h, and a saddle
where that is negative for one. What a switch k adds is

- `+|h^T D_k h|` where D_k is a positive multiple of V_k: the margin is the minimum over the
  coefficient, as under an attack. As with the multipliers of a constraint, one admissible s with
  `H(s) >= 0` proves a maximum, and the best one is the solution of the semidefinite program
  `max_s lambda_min(H(s))`, `-1 <= s <= 1`;
- `-|h^T D_k h|` where it is a negative multiple: the margin is the maximum over it, and `H(s) >= 0`
  is needed at both ends of its range; likewise where the switch turns to first order, as then h and
  -h are on either side;
- one or the other where it is no multiple: both ends are enough, not needed.

Switches whose D_k are multiples of each other count as one, whose range is their sum. A direction
is tried for a saddle by the coefficients that do fall to it. Where neither is proven the verdict
depends on the coefficients, and says on which. Where H is not symmetric (frozen perturbations of a
nonlinear network) the flow's stability is all that there is: it must hold at all ends.

Source: Bonnans & Shapiro 2000, "Perturbation Analysis of Optimization Problems", section 3.3, for
second-order conditions with a set of multipliers; Clarke 1983.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.linalg import block_diag, eigh
from scipy.sparse.csgraph import connected_components

from gflow._layout import Layout
from gflow._semidefinite import best_of, escapes
from gflow.curvature import Curvature, kinked_curvature
from gflow.kinks import Kinks, at_other_coefficients
from gflow.kinks.open import OpenSwitches
from gflow.problem import Problem

# Two vectors are multiples of each other, and entries are not zero, to within this part.
_MULTIPLE, _ENTRY = 1e-6, 1e-9
# So many ranges have all their ends tried; of a semidefinite program, the most coordinates.
_MOST_RANGES, _MOST_COORDINATES = 10, 120


@dataclass(frozen=True, eq=False)
class Range:
    """Open switches whose D_k are multiples `ratios` of one matrix.

    Attributes:
        members: their indices. Shape (m,).
        ratios: `D_k = ratio_k D`. Shape (m,).
        best: whether the margin is the minimum over their coefficients, so that the best counts.
        matrix: D times the sum of |ratios|, on the critical cone: the coefficient then lies in
            [-1, 1]. Shape (r, r).
    """

    members: np.ndarray
    ratios: np.ndarray
    best: bool
    matrix: np.ndarray


def open_curvature(problem: Problem, layout: Layout, kinks: Kinks) -> Curvature:
    """The eigenvalues at a KKT point at kinks, with coefficients that stationarity leaves open.

    Returns:
        `kinked_curvature` where there are none. Else at a maximum the eigenvalues with the
        coefficients that prove it; at a saddle a direction of escape before those that remain; and
        where it depends on coefficients, `.undecided` names their switches.
    """
    switches = OpenSwitches(problem, layout, kinks)
    if not len(switches.places):
        return kinked_curvature(kinks)
    held = kinks.at_kink.copy()
    held[tuple(switches.places.T)] = False
    base = at_other_coefficients(problem, layout, kinks, switches.point, held)
    found = kinked_curvature(base)
    if not found.symmetric:
        return _stable_at_ends(problem, layout, base, switches)
    return SecondOrder(switches, found).judged()


def _stable_at_ends(
    problem: Problem, layout: Layout, base: Kinks, switches: OpenSwitches
) -> Curvature:
    """The least stable eigenvalues, where all ends of the coefficients agree."""
    probe = np.random.default_rng(0).normal(size=base.theta.size)
    groups = _multiples(switches.effects(probe).turned)
    found = []
    for ends in _ends(len(groups)):
        angles = base.point.angles.copy()
        for end, (members, ratios) in zip(ends, groups, strict=True):
            angles[tuple(switches.places[members].T)] = np.pi / 2 * end * np.sign(ratios)
        there = base.point._replace(angles=angles)
        found.append(
            kinked_curvature(at_other_coefficients(problem, layout, base, there, base.at_kink))
        )
    least = min(found, key=lambda curvature: curvature.values.min(initial=np.inf))
    unstable = [bool(curvature.unstable.any()) for curvature in found]
    if len(groups) <= _MOST_RANGES and len(set(unstable)) == 1:
        return least
    return _undecided(least, switches.places)


def _ends(count: int) -> list[tuple[float, ...]]:
    """The ends of so many ranges: all, or of too many both ends of all and random ones."""
    if count <= _MOST_RANGES:
        return list(itertools.product((-1.0, 1.0), repeat=count))
    random = np.random.default_rng(0).choice([-1.0, 1.0], size=(62, count))
    return [tuple(ends) for ends in np.vstack([np.ones(count), -np.ones(count), random])]


def _undecided(curvature: Curvature, places: np.ndarray) -> Curvature:
    return Curvature(
        curvature.values,
        curvature.vectors,
        curvature.symmetric,
        curvature.tolerance,
        tuple(map(tuple, places.tolist())),
    )


def _multiples(rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
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
    """The second-order condition in the coordinates of the eigenvectors at coefficients 0."""

    def __init__(self, switches: OpenSwitches, at_zero: Curvature):
        self.switches, self.at_zero = switches, at_zero
        self.values, self.basis = at_zero.values, at_zero.vectors
        self.ranges = self.found_ranges()

    def found_ranges(self) -> list[Range]:
        """The open switches, those that are multiples of each other together."""
        probes = np.random.default_rng(1).normal(size=(2, len(self.basis)))
        effects = [self.switches.effects(probe) for probe in probes]
        turned = np.concatenate([effect.turned for effect in effects], axis=1)
        bent = np.concatenate([effect.bent for effect in effects], axis=1)
        level = np.linalg.norm(effects[0].rows, axis=1) <= _MULTIPLE * np.linalg.norm(bent, axis=1)
        factor = np.sum(turned * bent, axis=1) / np.maximum(np.sum(bent**2, axis=1), 1e-300)
        apart = np.linalg.norm(turned - factor[:, None] * bent, axis=1)
        attacks = level & (factor > 0) & (apart <= _MULTIPLE * np.linalg.norm(turned, axis=1))
        ranges = []
        for best in (True, False):
            index = np.flatnonzero(attacks == best)
            for members, ratios in _multiples(turned[index]) if len(index) else []:
                total = np.abs(ratios).sum() * self.projected(int(index[members[0]]), turned)
                ranges.append(Range(index[members], ratios, best, total))
        return ranges

    def projected(self, number: int, turned: np.ndarray) -> np.ndarray:
        """D_k on the critical cone, from its columns where it has any."""
        size = len(self.basis)
        largest = np.abs(turned[number].reshape(2, size)).max(axis=0)
        support = np.flatnonzero(largest > _ENTRY * largest.max())
        units = np.eye(size)[support]
        columns = self.switches.effects(units, np.full(len(support), number)).turned
        matrix = self.basis[support].T @ columns @ self.basis
        return 0.5 * (matrix + matrix.T)

    def judged(self) -> Curvature:
        """A saddle proven, a maximum proven, or neither."""
        blocks = self.blocks()
        worst = [self.worst_in(block) for block in blocks]
        open_blocks = [number for number, (_, proven) in enumerate(worst) if not proven]
        for number in open_blocks:
            saddle = self.saddle(blocks[number], worst[number][0])
            if saddle is not None:
                return saddle
        order = np.concatenate(blocks)
        values, vectors = eigh(block_diag(*[matrix for matrix, _ in worst]))
        found = self.curvature(values, self.basis[:, order] @ vectors)
        if not open_blocks or (self.values[self.plain] < -found.tolerance).any():
            return found
        members = [each.members for number in open_blocks for each in self.within(blocks[number])]
        places = self.switches.places[np.concatenate(members)]
        return _undecided(found, places[np.lexsort(places.T[::-1])])

    @property
    def plain(self) -> np.ndarray:
        """Coordinates that no open coefficient touches. Shape (r,)."""
        return ~np.any([np.any(each.matrix, axis=1) for each in self.ranges], axis=0)

    def curvature(self, values: np.ndarray, vectors: np.ndarray) -> Curvature:
        return Curvature(values, vectors, True, self.at_zero.tolerance)

    def blocks(self) -> list[np.ndarray]:
        """Coordinates that the ranges couple."""
        size = len(self.values)
        together = sparse.csr_matrix((size, size))
        for each in self.ranges:
            entries = np.abs(each.matrix)
            together = together + sparse.csr_matrix(entries > _ENTRY * entries.max(initial=0.0))
        count, label = connected_components(together, directed=False)
        return [np.flatnonzero(label == number) for number in range(count)]

    def within(self, block: np.ndarray) -> list[Range]:
        """The ranges that act on a block."""
        return [each for each in self.ranges if np.any(each.matrix[np.ix_(block, block)])]

    def parts(self, block: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The matrices of a block's ranges whose best coefficient counts, and of the others."""
        within, inner = self.within(block), np.ix_(block, block)
        best = [each.matrix[inner] for each in within if each.best]
        return best, [each.matrix[inner] for each in within if not each.best]

    def worst_in(self, block: np.ndarray) -> tuple[np.ndarray, bool]:
        """The matrix of a block at the best coefficients, the lowest over all ends of those whose
        ends are all needed; and whether that settles it.
        """
        start, (best, rest) = np.diag(self.values[block]), self.parts(block)
        small = len(block) <= _MOST_COORDINATES or not best
        found = []
        for ends in _ends(len(rest)):
            there = start + sum(end * part for end, part in zip(ends, rest, strict=True))
            found.append(best_of(there, best) if small else there)
        lowest = [float(np.linalg.eigvalsh(matrix)[0]) for matrix in found]
        least = int(np.argmin(lowest))
        positive = lowest[least] >= -self.at_zero.tolerance
        decided = small and len(rest) <= _MOST_RANGES and positive
        return found[least], decided or not (best or rest)

    def saddle(self, block: np.ndarray, worst: np.ndarray) -> Curvature | None:
        """A direction that raises the margin with the coefficients that fall to it, or None."""
        start = np.diag(self.values[block])
        for h in escapes(start, worst, *self.parts(block)):
            vector = self.basis[:, block] @ h
            effects = self.switches.effects(vector)
            signs = fallen(effects, vector)
            value = float(h @ start @ h + signs @ (effects.turned @ vector))
            if value < -self.at_zero.tolerance:
                return self.with_escape(value, vector, signs)
        return None

    def with_escape(self, value: float, vector: np.ndarray, signs: np.ndarray) -> Curvature:
        """The direction of escape, before the eigenvalues that need no coefficient or are not
        negative.
        """
        matrix = np.diag(self.values)
        for each in self.ranges:
            total = np.abs(each.ratios).sum()
            matrix = matrix + (signs[each.members] @ each.ratios / total) * each.matrix
        values, vectors = eigh(matrix)
        plain = np.linalg.norm(vectors[~self.plain], axis=0) <= _MULTIPLE
        kept = plain | (values >= -self.at_zero.tolerance)
        values = np.concatenate([[value], values[kept]])
        vectors = np.column_stack([vector, self.basis @ vectors[:, kept]])
        order = np.argsort(values)
        return self.curvature(values[order], vectors[:, order])


def fallen(effects: Any, vector: np.ndarray) -> np.ndarray:
    """The signs of the switches next to the point, along a direction of norm 1. Shape (k,)."""
    first, second = effects.rows @ vector, effects.bent @ vector
    flat = np.abs(first) <= _MULTIPLE * np.linalg.norm(effects.bent, axis=1)
    return np.sign(np.where(flat, second, first))
