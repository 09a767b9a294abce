"""A quadratic form with coefficients, `start + sum_g s_g part_g`, |s_g| <= 1, `rows s = right`.

Chosen once for all, the coefficients that make its smallest eigenvalue largest are the solution of
a semidefinite program. Chosen for each direction h by itself, those that make it largest along h
are the solution of a linear one, without `rows` the signs of `h^T part_g h`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from gflow._interior import clarabel_with

# Tolerance and most iterations of the interior-point method.
_TOLERANCE, _MAX_ITERATIONS = 1e-9, 100
# The search for a direction in which the form is negative: how many combinations of eigenvectors
# are tried, how many of them are improved, and by how many steps each. It may miss such a
# direction; one that it finds is checked afterwards.
_NUM_TRIED, _NUM_KEPT, _NUM_DESCENTS = 64, 4, 20


@dataclass(frozen=True, eq=False)
class Form:
    """The form.

    Attributes:
        start: with all coefficients 0. Shape (r, r).
        parts: what each coefficient adds. Shape (g, r, r).
        rows, right: equations that the coefficients satisfy. Shapes (q, g), (q,).
    """

    start: np.ndarray
    parts: np.ndarray
    rows: np.ndarray
    right: np.ndarray

    def plus(self, added: Any) -> "Form":
        """The form with a matrix added."""
        return Form(self.start + added, self.parts, self.rows, self.right)

    def at(self, coefficients: np.ndarray) -> np.ndarray:
        """The matrix. Shapes: (g,) -> (r, r)."""
        return self.start + np.tensordot(coefficients, self.parts, 1)

    def along(self, h: np.ndarray) -> np.ndarray:
        """The coefficients that make it largest along h. Shapes: (r,) -> (g,)."""
        gains = np.einsum("i,gij,j->g", h, self.parts, h)
        if not len(self.rows) or not np.any(gains):
            return np.sign(gains)
        gains = gains / np.abs(gains).max()
        found: Any = linprog(-gains, A_eq=self.rows, b_eq=self.right, bounds=(-1, 1))
        return np.sign(gains) if found.x is None else np.asarray(found.x)

    def highest(self) -> np.ndarray:
        """The matrix whose smallest eigenvalue is largest. Shape (r, r)."""
        if not len(self.parts):
            return self.start
        clarabel, settings = clarabel_with(_TOLERANCE, _MAX_ITERATIONS)
        size, count = len(self.start), len(self.parts)
        columns = [*(-_stacked(part) for part in self.parts), _stacked(np.eye(size))]
        box = np.column_stack([np.eye(count), np.zeros(count)])
        equations = np.column_stack([self.rows, np.zeros(len(self.rows))])
        solver = clarabel.DefaultSolver(
            sparse.csc_matrix((count + 1, count + 1)),
            np.append(np.zeros(count), -1.0),
            sparse.csc_matrix(np.vstack([equations, np.column_stack(columns), box, -box])),
            np.concatenate([self.right, _stacked(self.start), np.ones(2 * count)]),
            [
                clarabel.ZeroConeT(len(self.rows)),
                clarabel.PSDTriangleConeT(size),
                clarabel.NonnegativeConeT(2 * count),
            ],
            settings,
        )
        return self.at(np.clip(np.asarray(solver.solve().x)[:count], -1.0, 1.0))


def _stacked(matrix: np.ndarray) -> np.ndarray:
    """The upper triangle column by column, so that products of vectors are those of matrices."""
    row, column = np.triu_indices(len(matrix))
    weight = np.where(row == column, 1.0, np.sqrt(2.0))
    return (matrix[row, column] * weight)[np.lexsort((row, column))]


def escapes(form: Form, highest: np.ndarray, lowering: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Directions along which the form may be negative even with the best coefficients for each: the
    lowest eigenvectors of `highest` and combinations of them, improved by descent.

    Args:
        highest: the form with the coefficients of `highest()`. Shape (r, r).
        lowering: matrices that are added with the sign that lowers the form along a direction.
    """
    values, vectors = np.linalg.eigh(highest)
    lowest = vectors[:, values <= 0.5 * values[0]]
    mixtures = np.random.default_rng(0).normal(size=(_NUM_TRIED, lowest.shape[1])) @ lowest.T
    tried = np.concatenate([vectors[:, :1].T, mixtures])
    tried /= np.linalg.norm(tried, axis=1, keepdims=True)
    ranked = sorted(tried, key=lambda h: _value(h, form, lowering))
    return [_descended(h, form, lowering) for h in ranked[:_NUM_KEPT]]


def _matrix(h: np.ndarray, form: Form, lowering: Sequence[np.ndarray]) -> np.ndarray:
    """The matrix of the form with the coefficients that hold along h."""
    lowered = (np.sign(h @ part @ h) * part for part in lowering)
    return form.at(form.along(h)) - sum(lowered)


def _value(h: np.ndarray, form: Form, lowering: Sequence[np.ndarray]) -> float:
    return float(h @ _matrix(h, form, lowering) @ h)


def _descended(h: np.ndarray, form: Form, lowering: Sequence[np.ndarray]) -> np.ndarray:
    """The direction after steps to the lowest eigenvector of the matrix that holds along the last
    one, as long as that lowers the form.
    """
    for _ in range(_NUM_DESCENTS):
        lower = np.linalg.eigh(_matrix(h, form, lowering))[1][:, 0]
        if not _value(lower, form, lowering) < _value(h, form, lowering):
            break
        h = lower
    return h
