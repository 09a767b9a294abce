"""Multipliers and coefficients at kinks that come closest to the KKT conditions at a direction u.

Minimised over `lambda >= 0` and patterns `sin phi` in [-1, 1] is

    |u - sum_i lambda_i grad q_i(u, phi)|^2 + sum_i (L lambda_i (q_i(u, phi) - gamma))^2.

Let s_ik be the coefficients of the best pattern so far. With `nu_ik = lambda_i (sin phi_ik - s_ik)`
in place of phi the first term is a quadratic form wherever a gradient is affine in each
coefficient, as for the ReLUs of one hidden layer. Then this is a convex problem, with the
constraints `-(1 + s_ik) lambda_i <= nu_ik <= (1 - s_ik) lambda_i`. Elsewhere gradients are
linearised about the pattern. What is found is then evaluated without linearisation, so that the
value returned is always that of an admissible pattern. Interior-point methods stop a little off the
solution; plain least squares for the unknowns that are not at a bound gives the last digits.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.linalg import lstsq
from scipy.optimize import lsq_linear, nnls

from gflow._interior import clarabel_with
from gflow.kkt.subgradients import Pattern, Subgradients

# Convex problems solved at most, and corrections of each; |u| = 1, so that values are relative.
_MOST_ROUNDS, _MOST_CORRECTIONS = 8, 4
# Parts of the way to the solution of a convex problem that are tried in turn until one gives a
# smaller objective.
_SHARES = (1.0, 0.5, 0.2, 0.05)
# Interior-point methods do not reach the bounds. Coefficients and weights closer to a bound than
# each of these distances are put on it, in turn, and the best result is kept.
_BOUNDS = (1e-5, 1e-7, 1e-10)
# Below the first, the square root of the objective is rounding. Rounds go on as long as they lower
# it by more than the second, relative.
_NOTHING, _GAIN = 1e-13, 1e-9
# Margins count as close to the smallest if they exceed it by less than this part of it.
_CLOSE = 1e-6
# Singular values below this part of the largest count as 0.
_RANK = 1e-12
# Of the interior-point method: its tolerance for gaps and feasibility, and its most iterations.
_TOLERANCE, _MAX_ITERATIONS = 1e-12, 200


@dataclass(frozen=True, eq=False)
class Solution:
    """Weights of the columns under a pattern, and the residual that they leave.

    Attributes:
        pattern: how the switches stand.
        columns: gradients under that pattern. Shape (columns, P).
        slack: `L (q - gamma)` of each column's margin under that pattern. Shape (columns,).
        weights: >= 0. Shape (columns,).
        residual: `u - sum weights columns`. Shape (P,).
    """

    pattern: Pattern
    columns: np.ndarray
    slack: np.ndarray
    weights: np.ndarray
    residual: np.ndarray

    @property
    def stationarity(self) -> float:
        """Length of the residual."""
        return float(np.linalg.norm(self.residual))

    @property
    def objective(self) -> float:
        """The square root of what is minimised."""
        return math.hypot(self.stationarity, np.linalg.norm(self.slack * self.weights))


def best_multipliers(
    subgradients: Subgradients, degree: float, hint: np.ndarray | None = None
) -> Solution:
    """The best multipliers and the best pattern found.

    Args:
        degree: L.
        hint: coefficients to begin with, beside 0 for all. Shape (n, s).
    """
    least_squares = _LeastSquares(subgradients, degree)
    best: Solution | None = None
    for start in [None] if hint is None else [hint, None]:
        found = least_squares.evaluated(subgradients.pattern(start))
        if found.pattern.free.any():
            found = least_squares.improved(found)
        if best is None or found.objective < best.objective:
            best = found
        if best.objective < _NOTHING:
            break
    assert best is not None
    return best


class _LeastSquares:
    """The least-squares problem at a direction."""

    def __init__(self, subgradients: Subgradients, degree: float):
        self.sub, self.degree = subgradients, degree
        self.example = subgradients.owner // subgradients.per_example

    def evaluated(self, pattern: Pattern, weights: np.ndarray | None = None) -> Solution:
        """The true values under a pattern, by default with its best weights."""
        margins, columns = pattern.margins.ravel(), self.sub.at(pattern)
        slack = self.degree * (margins[self.sub.owner] - margins.min())
        if weights is not None:
            return self.solution(pattern, columns, slack, weights)
        # At a KKT point the margins close to the smallest are enough, and they have far fewer
        # columns than all.
        close = slack < _CLOSE * self.degree * margins.min()
        for among in (close, np.ones_like(close)):
            weights = np.zeros(len(columns))
            equations = _equations(columns[among], slack[among], self.sub.direction)
            weights[among] = _nonnegative_least_squares(*equations)
            found = self.solution(pattern, columns, slack, weights)
            if found.objective < _NOTHING:
                break
        return found

    def solution(
        self, pattern: Pattern, columns: np.ndarray, slack: np.ndarray, weights: np.ndarray
    ) -> Solution:
        """These weights with the residual that they leave."""
        residual = self.sub.direction - columns.T @ weights
        return Solution(pattern, columns, slack, weights, residual)

    def improved(self, best: Solution) -> Solution:
        """The solution of convex problems about the best pattern so far, until none is better."""
        for _ in range(_MOST_ROUNDS):
            before = best.objective
            if before < _NOTHING:
                break
            turns, places = self.turns(best)
            if not len(places):
                break
            weights, moves = self.bounded(best, turns, places)
            coefficients = self.moved(best, weights, moves, places)
            best = self.towards(best, weights, coefficients)
            if best.objective > before * (1 - _GAIN):
                break
        return best

    def towards(self, now: Solution, weights: np.ndarray, coefficients: np.ndarray) -> Solution:
        """The best solution on the way to these weights and coefficients, corrected by least
        squares.
        """
        best, start = now, now.pattern.coefficients
        for share in _SHARES:
            for bound in _BOUNDS:
                there = _snapped(start + share * (coefficients - start), bound)
                mixed = now.weights + share * (weights - now.weights)
                mixed = np.where(mixed > bound * mixed.max(initial=0.0), mixed, 0.0)
                found = self.corrected(self.evaluated(self.sub.pattern(there), mixed))
                best = found if found.objective < best.objective else best
                if best.objective < _NOTHING:
                    return best
            if best is not now:
                break
        return best

    def corrected(self, now: Solution) -> Solution:
        """Least squares on the weights and coefficients that are not at a bound."""
        for _ in range(_MOST_CORRECTIONS):
            turns, places = self.turns(now)
            pushes = np.flatnonzero(now.weights > 0)
            totals = self.totals(now.weights)[places[:, 0]]
            inner = np.abs(now.pattern.coefficients[tuple(places.T)]) < 1
            inner &= totals > 0
            columns = np.concatenate([now.columns[pushes], turns[inner]])
            slack = np.zeros((len(pushes), len(columns)))
            slack[:, : len(pushes)] = np.diag(now.slack[pushes])
            right = np.concatenate([now.residual, -now.slack[pushes] * now.weights[pushes]])
            solution: Any = lstsq(np.concatenate([columns.T, slack]), right, cond=_RANK)
            step = solution[0]
            weights = now.weights.copy()
            weights[pushes] = np.maximum(weights[pushes] + step[: len(pushes)], 0.0)
            coefficients = self.moved(now, weights, step[len(pushes) :], places[inner])
            found = self.evaluated(self.sub.pattern(coefficients), weights)
            if not found.objective < now.objective:
                break
            now = found
            if now.objective < _NOTHING:
                break
        return now

    def turns(self, now: Solution) -> tuple[np.ndarray, np.ndarray]:
        """Derivatives of the pull of an example by its free coefficients, for a sum of its
        multipliers of 1; and the places of these coefficients.
        """
        multipliers = self.multipliers(now.weights).reshape(-1, self.sub.per_example)
        totals = multipliers.sum(axis=1, keepdims=True)
        equal = np.full_like(multipliers, 1 / self.sub.per_example)
        shares = np.divide(multipliers, totals, out=equal, where=totals > 0)
        return self.sub.turns(now.pattern, shares)

    def multipliers(self, weights: np.ndarray) -> np.ndarray:
        """The multiplier of every margin, the sum over its columns. Shape (m,)."""
        return np.bincount(self.sub.owner, weights, self.sub.num_margins)

    def totals(self, weights: np.ndarray) -> np.ndarray:
        """The sum of an example's multipliers. Shape (n,)."""
        return self.multipliers(weights).reshape(-1, self.sub.per_example).sum(axis=1)

    def moved(
        self, now: Solution, weights: np.ndarray, moves: np.ndarray, places: np.ndarray
    ) -> np.ndarray:
        """The coefficients for which nu has the values `moves`, with these weights."""
        coefficients = now.pattern.coefficients.copy()
        totals = self.totals(weights)[places[:, 0]]
        steps = np.divide(moves, totals, out=np.zeros_like(moves), where=totals > 0)
        coefficients[tuple(places.T)] += steps
        return np.clip(coefficients, -1.0, 1.0)

    def bounded(
        self, now: Solution, turns: np.ndarray, places: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The convex problem about a pattern: weights and nu."""
        # `owned` sums the weights of the columns of an example, its multipliers; `below` and
        # `above` are the bounds of nu by these, `sign` is `weights >= 0`.
        count = len(now.weights)
        matrix, right = _equations(now.columns, now.slack, self.sub.direction, turns)
        owned = sparse.csc_matrix(self.example[None] == places[:, :1], dtype=float)
        present = now.pattern.coefficients[tuple(places.T)]
        move = sparse.identity(len(places))
        nothing = sparse.csc_matrix((count, len(places)))
        below = sparse.hstack([-sparse.diags(1 + present) @ owned, -move])
        above = sparse.hstack([-sparse.diags(1 - present) @ owned, move])
        sign = sparse.hstack([-sparse.identity(count), nothing])
        solution = _cone_program(matrix, right, sparse.vstack([sign, below, above]))
        return np.maximum(solution[:count], 0.0), solution[count:]


def _snapped(coefficients: np.ndarray, bound: float) -> np.ndarray:
    """Coefficients with those near a bound put there."""
    return np.where(1 - np.abs(coefficients) < bound, np.sign(coefficients), coefficients)


def _equations(
    columns: np.ndarray, slack: np.ndarray, direction: np.ndarray, turns: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Stationarity and complementarity as one matrix and right-hand side of least squares."""
    turns = np.zeros((0, len(direction))) if turns is None else turns
    # No weights change the part of u that is orthogonal to all columns: solve within their span.
    basis, triangle = np.linalg.qr(np.concatenate([columns, turns]).T)
    rows = np.concatenate([np.diag(slack), np.zeros((len(slack), len(turns)))], axis=1)
    right = np.concatenate([basis.T @ direction, np.zeros(len(slack))])
    return np.concatenate([triangle, rows]), right


def _nonnegative_least_squares(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`argmin |matrix x - right|^2` subject to `x >= 0`."""
    try:
        return nnls(matrix, right, maxiter=30 * matrix.shape[1])[0]
    except (RuntimeError, ValueError, np.linalg.LinAlgError):
        # The active-set method may cycle where columns are nearly equal. An interior-point method
        # does not, but gives fewer digits.
        return np.maximum(lsq_linear(matrix, right, bounds=(0, np.inf)).x, 0.0)


def _cone_program(matrix: np.ndarray, right: np.ndarray, rows: Any) -> np.ndarray:
    """`argmin |right - matrix x|^2` subject to `rows x <= 0`, by interior points."""
    clarabel, settings = clarabel_with(_TOLERANCE, _MAX_ITERATIONS)
    height, width = matrix.shape
    # The residual is a separate unknown, since the normal equations, with the square of the matrix,
    # would lose half of the digits.
    equations = sparse.hstack([sparse.csc_matrix(matrix), sparse.identity(height)])
    nothing = sparse.csc_matrix((rows.shape[0], height))
    solver = clarabel.DefaultSolver(
        sparse.diags(np.concatenate([np.zeros(width), np.ones(height)]), format="csc"),
        np.zeros(width + height),
        sparse.csc_matrix(sparse.vstack([equations, sparse.hstack([rows, nothing])])),
        np.concatenate([right, np.zeros(rows.shape[0])]),
        [clarabel.ZeroConeT(height), clarabel.NonnegativeConeT(rows.shape[0])],
        settings,
    )
    return np.asarray(solver.solve().x)[:width]
