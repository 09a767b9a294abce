"""Every example against every rival class: the margins that an l_p attack leaves to weights."""

from typing import NamedTuple

import numpy as np

from gflow._numerics import dual_order
from gflow.reference._norms import Array, lp_norm, nearest_subgradient


class Rivals(NamedTuple):
    """One row for every example and rival.

    Attributes:
        x: the example. Shape (m, d).
        own: its class. Shape (m,).
        other: the rival. Shape (m,).
        pair: the pair of classes `{own, other}`, an index of `pairs`. Shape (m,).
        sign: +1 where `own` is the first class of its pair, else -1. Shape (m,).
        pairs: all pairs a < b of classes. Shape (k (k - 1) / 2, 2).
    """

    x: Array
    own: Array
    other: Array
    pair: Array
    sign: Array
    pairs: Array

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weights W: (k, d)."""
        return int(self.pairs.max()) + 1, self.x.shape[1]

    def differences(self, weights: Array) -> Array:
        """`W_a - W_b` of every pair. Shapes: weights (k, d); (pairs, d)."""
        return weights[self.pairs[:, 0]] - weights[self.pairs[:, 1]]

    def rows(self, attacked: Array) -> Array:
        """`(e_own - e_other) x attacked`, flattened: each row's margin is its product with W.

        Shapes: attacked (m, d); (m, k d).
        """
        number = np.arange(len(attacked))
        blocks = np.zeros((len(attacked), *self.shape), attacked.dtype)
        blocks[number, self.own] += attacked
        blocks[number, self.other] -= attacked
        return blocks.reshape(len(attacked), -1)

    def attacked(self, radius: float, slopes: Array) -> Array:
        """`x - radius s`, s a subgradient of the norm at `W_own - W_other`.

        Shapes: slopes (pairs, d); (m, d).
        """
        return self.x - radius * self.sign[:, None] * slopes[self.pair]


class Candidate(NamedTuple):
    """A solution in any scale. Shapes: weights (k, d), slopes (pairs, d), multipliers (m,)."""

    weights: Array
    slopes: Array
    multipliers: Array


def rivals_of(x: Array, y: Array, num_classes: int) -> Rivals:
    """Rows in the order of the margins: for every example the classes y+1, .., y+k-1 (mod k)."""
    own = np.repeat(y, num_classes - 1)
    other = (own + np.tile(np.arange(1, num_classes), len(y))) % num_classes
    pairs = np.stack(np.triu_indices(num_classes, 1), axis=1)
    index = np.zeros((num_classes, num_classes), int)
    index[pairs[:, 0], pairs[:, 1]] = index[pairs[:, 1], pairs[:, 0]] = np.arange(len(pairs))
    rows = np.repeat(x, num_classes - 1, axis=0)
    return Rivals(rows, own, other, index[own, other], np.where(own < other, 1.0, -1.0), pairs)


def withstood(rivals: Rivals, order: float, weights: Array) -> float:
    """The radius at which the smallest margin of these weights is 0. Shapes: weights (k, d)."""
    clean, lengths = _clean_margins_and_lengths(rivals, order, weights)
    return float(np.min(clean / np.where(lengths > 0, lengths, np.inf)))


def smallest_margin(rivals: Rivals, radius: float, order: float, weights: Array) -> float:
    """Of the weights scaled to Frobenius norm 1. Shapes: weights (k, d)."""
    clean, lengths = _clean_margins_and_lengths(rivals, order, weights / np.linalg.norm(weights))
    return float(np.min(clean - radius * lengths))


def lengths_of(rivals: Rivals, order: float, weights: Array) -> Array:
    """`|W_own - W_other|_q` of every row. Shapes: weights (k, d); (m,)."""
    return _clean_margins_and_lengths(rivals, order, weights)[1]


def _clean_margins_and_lengths(rivals: Rivals, order: float, weights: Array) -> tuple[Array, Array]:
    """`<W_own - W_other, x>` and `|W_own - W_other|_q` of every row. Shapes: (m,), (m,)."""
    differences = rivals.differences(weights)
    lengths = np.array([lp_norm(row, dual_order(order)) for row in differences])
    clean = np.sum(rivals.x * differences[rivals.pair], axis=1) * rivals.sign
    return clean, lengths[rivals.pair]


def slopes_at(differences: Array, order: float) -> Array:
    """A subgradient of `|.|_q` at every difference. Shapes: (pairs, d)."""
    zero = np.zeros_like(differences)
    return np.stack(
        [
            nearest_subgradient(row, dual_order(order), none) if row.any() else none
            for row, none in zip(differences, zero, strict=True)
        ]
    )
