"""The convex problems of this package as cone programs for Clarabel.

Clarabel (Goulart & Chen 2024, "Clarabel: An interior-point solver for conic programs with quadratic
objectives") is an interior-point method: about nine digits, which is enough to see which
constraints are active. The other digits come from `_least_norm`.
"""

import math
from typing import Any

import numpy as np
from scipy import sparse

from gflow._interior import clarabel_with
from gflow._numerics import dual_order
from gflow.reference._norms import Array

_TOLERANCE = 1e-10
_MAX_ITERATIONS = 400


def least_norm_by_cones(rows: Array) -> Array:
    """Multipliers of `min 1/2 |v|^2, rows v >= 1`, zero where a constraint looks inactive."""
    num_rows, dim = rows.shape
    vector, multipliers = _solve(
        np.ones(dim), np.zeros(dim), -sparse.csc_matrix(rows), -np.ones(num_rows), num_rows, []
    )
    return np.where(multipliers > np.abs(rows @ vector - 1), multipliers, 0.0)


def max_margin_by_cones(signed: Array, radius: float, order: float) -> tuple[Array, Array]:
    """`argmin 1/2 |w|_2^2` subject to `signed w - radius |w|_q >= 1`, and its multipliers.

    `order` is p, q its dual. NaN or rubbish where the problem is infeasible: the caller checks.

    Shapes: signed (n, d); w (d,), multipliers (n,).
    """
    return _norm_program(signed, radius, order, quadratic=True)


def norm_margin_by_cones(signed: Array, order: float) -> tuple[Array, Array]:
    """`argmin |w|_q` subject to `signed w >= 1`, and its multipliers."""
    return _norm_program(signed, 0.0, order, quadratic=False)


def _norm_program(
    signed: Array, radius: float, order: float, *, quadratic: bool
) -> tuple[Array, Array]:
    """Variables (w, t, ...) with `|w|_q <= t`; the objective is `1/2 |w|_2^2` or `t`."""
    num_rows, dim = signed.shape
    norm_rows, num_linear, cones = norm_epigraph(dim, order)
    num_variables = norm_rows.shape[1]
    margin_rows = np.zeros((num_rows, num_variables))
    margin_rows[:, :dim] = -signed
    margin_rows[:, dim] = radius
    curvature, slope = np.zeros(num_variables), np.zeros(num_variables)
    if quadratic:
        curvature[:dim] = 1.0
    else:
        slope[dim] = 1.0
    bound = np.zeros(num_rows + norm_rows.shape[0])
    bound[:num_rows] = -1.0
    system = sparse.vstack([sparse.csc_matrix(margin_rows), norm_rows], format="csc")
    solution, duals = _solve(curvature, slope, system, bound, num_rows + num_linear, cones)
    return solution[:dim], duals[:num_rows]


def norm_epigraph(dim: int, order: float) -> tuple[Any, int, list[float]]:
    """`|w|_q <= t` as rows `A (w, t, r)` with `-A (w, t, r)` in a product of cones.

    Returns A, the number of its rows that are plain inequalities (they come first) and the
    exponents of the three-dimensional power cones that follow.
    For 1 < q < inf: `|w_j| <= r_j^(1/q) t^(1-1/q)` and `sum_j r_j <= t`.
    """
    identity, ones = sparse.identity(dim), np.ones((dim, 1))
    if order == 1:
        return sparse.bmat([[identity, -ones], [-identity, -ones]]), 2 * dim, []
    if math.isinf(order):
        blank = sparse.csc_matrix((dim, 1))
        bounds = sparse.bmat([[identity, blank, -identity], [-identity, blank, -identity]])
        return _with_sum(bounds, dim), 2 * dim + 1, []
    row = np.arange(dim)
    column = np.concatenate([dim + 1 + row, np.full(dim, dim), row])
    place = np.concatenate([3 * row, 3 * row + 1, 3 * row + 2])
    powers = sparse.csc_matrix((-np.ones(3 * dim), (place, column)), shape=(3 * dim, 2 * dim + 1))
    return _with_sum(powers, dim), 1, [1 / dual_order(order)] * dim


def _with_sum(rows: Any, dim: int) -> Any:
    """The row `sum_j r_j - t <= 0` above `rows`."""
    total = np.concatenate([np.zeros(dim), [-1.0], np.ones(dim)])
    return sparse.vstack([sparse.csc_matrix(total), rows])


def _solve(
    curvature: Array, slope: Array, system: Any, bound: Array, num_linear: int, powers: list[float]
) -> tuple[Array, Array]:
    """`min 1/2 sum curvature x^2 + slope x`, `bound - system x` in the cones; x and the duals."""
    clarabel, settings = clarabel_with(_TOLERANCE, _MAX_ITERATIONS)
    cones = [clarabel.NonnegativeConeT(num_linear), *map(clarabel.PowerConeT, powers)]
    solver = clarabel.DefaultSolver(
        sparse.diags(curvature, format="csc"),
        slope,
        sparse.csc_matrix(system),
        bound,
        cones,
        settings,
    )
    solution = solver.solve()
    return np.asarray(solution.x), np.asarray(solution.z)
