"""The hard-margin problem `min 1/2 |v|^2  subject to  rows v >= 1`, to full float64 accuracy.

Every solver of this package ends here: a norm penalty, once its face or its curvature is known,
only changes the rows. Two steps:

1. least-distance programming. With `E = [rows^T; 1 ... 1]` the nonnegative least-squares problem
   `min |E u - e_last|` has `u` proportional to the multipliers (Lawson & Hanson, "Solving Least
   Squares Problems", 1974, chapter 23). Its passive set has linearly independent rows, duplicates
   and degenerate points or not.
2. the equality system `v = A^T lambda, A v = 1` on that set, by a QR factorisation and iterative
   refinement with extended-precision residuals (Bjorck 1967, "Iterative refinement of linear least
   squares solutions"): errors at rounding level while the condition number stays below 1e15.
"""

from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, qr, solve_triangular

from gflow.reference._cones import least_norm_by_cones
from gflow.reference._nonnegative import nonnegative_least_squares
from gflow.reference._norms import Array

# A margin below this fraction of the largest entry of `rows` cannot be told from no margin:
# rounding the data alone moves the margin by 1e-16 of that entry, and solving loses some digits.
SMALLEST_RELATIVE_MARGIN = 1e-12

_EPSILON = float(np.finfo(np.float64).eps)
_MAX_RESCALINGS = 4
_REFINEMENT_STEPS = 3


def least_norm(rows: Array) -> tuple[Array, Array] | None:
    """`argmin 1/2 |v|^2` subject to `rows v >= 1`, and multipliers `>= 0` with `v = rows^T lambda`.

    None where none is found: as a rule (see `inseparable`) because no direction has a margin above
    `SMALLEST_RELATIVE_MARGIN`. The multipliers are basic: the rows that carry one are linearly
    independent.

    Shapes: rows (n, d); v (d,), multipliers (n,).
    """
    largest = np.abs(rows).max(initial=0.0)
    if largest == 0:
        return None
    unit = largest
    for _ in range(_MAX_RESCALINGS):
        weights = _hull_weights(rows / unit)
        solution = _solve_on(rows / unit, np.flatnonzero(weights > 0))
        if solution is not None:
            vector, multipliers = solution
            return vector / unit, multipliers / unit**2
        # The margin is the distance from 0 to the convex hull of the rows. Least squares sees it
        # down to about 1e-8 of the unit: take its estimate as the new unit and look again.
        if not weights.any():
            break
        distance = np.linalg.norm(weights @ rows) / weights.sum()
        if distance <= SMALLEST_RELATIVE_MARGIN * largest:
            return None
        unit = distance
    solution = _solve_on(rows / largest, np.flatnonzero(least_norm_by_cones(rows / largest)))
    return None if solution is None else (solution[0] / largest, solution[1] / largest**2)


def inseparable(rows: Array) -> bool:
    """Whether nonnegative least squares finds 0 in the convex hull of the rows, up to rounding."""
    largest = np.abs(rows).max(initial=0.0)
    if largest == 0:
        return True
    weights = _hull_weights(rows / largest)
    distance = np.linalg.norm(weights @ rows)
    return bool(weights.any() and distance <= SMALLEST_RELATIVE_MARGIN * largest * weights.sum())


def _hull_weights(rows: Array) -> Array:
    """Nonnegative weights, up to a factor, of the point of the rows' convex hull nearest to 0."""
    system = np.vstack([rows.T, np.ones(len(rows))])
    target = np.zeros(len(system))
    target[-1] = 1.0
    solution = nonnegative_least_squares(system, target)
    return np.zeros(len(rows)) if solution is None else solution[0]


def _solve_on(rows: Array, support: Array) -> tuple[Array, Array] | None:
    """The least-norm solution if rows in `support`, and no others, carry multipliers, else None."""
    support = _independent(rows, support)
    while support.size:
        solution = _solve_equalities(rows[support])
        if solution is None:
            return None
        vector, weights = solution
        if weights.min() >= 0:
            break
        # At a degenerate vertex least squares may name a row whose multiplier is zero up to
        # rounding. Without it the equalities decide again.
        support = np.delete(support, np.argmin(weights))
    else:
        return None
    reach = np.linalg.norm(rows, axis=1).max() * np.linalg.norm(vector)
    tolerance = 1e-10 + 64 * _EPSILON * reach
    if not (tolerance < 0.5 and (rows @ vector).min() >= 1 - tolerance):
        return None
    multipliers = np.zeros(len(rows))
    multipliers[support] = weights
    return vector, multipliers


def _independent(rows: Array, support: Array) -> Array:
    """A subset of `support` whose rows are linearly independent (all of it, as a rule)."""
    if not support.size:
        return support
    factors: Any = qr(rows[support].T, mode="r", pivoting=True, check_finite=False)
    triangle, pivots = factors
    diagonal = np.abs(np.diag(triangle))
    rank = np.count_nonzero(diagonal > 4 * len(diagonal) * _EPSILON * diagonal[0])
    return np.sort(support[pivots[:rank]])


def _solve_equalities(active: Array) -> tuple[Array, Array] | None:
    """`v = A^T lambda`, `A v = 1` for independent rows A; None if they turn out dependent."""
    if not active.size:
        return None
    exact = active.astype(np.longdouble)
    orthogonal, triangle = np.linalg.qr(active.T)
    vector = np.zeros(active.shape[1], np.longdouble)
    multipliers = np.zeros(len(active), np.longdouble)
    try:
        for _ in range(_REFINEMENT_STEPS):
            stationarity = (exact.T @ multipliers - vector).astype(np.float64)
            violation = (1 - exact @ vector).astype(np.float64)
            step = solve_triangular(triangle, violation, trans=1) - orthogonal.T @ stationarity
            vector = vector + stationarity + orthogonal @ step
            multipliers = multipliers + solve_triangular(triangle, step)
    except (LinAlgError, ValueError):
        return None
    return vector.astype(np.float64), multipliers.astype(np.float64)


def shortest_multipliers(rows: Array, vector: Array, multipliers: Array) -> Array:
    """Among all multipliers of a solution of `least_norm`, those of least Euclidean norm.

    Where active rows are linearly dependent (duplicates, symmetric data) the multipliers are not
    unique; these are, and they do not depend on the order of the examples. They solve
    `min |lambda|^2, lambda >= 0, rows_A^T lambda = v` over the active rows A: with `lambda_0` the
    part of any solution orthogonal to the null space N of `rows_A^T`, `lambda = lambda_0 + N t`
    and `t` is another least-distance problem, `min |t|^2, N t >= -lambda_0`.
    """
    reach = np.linalg.norm(rows, axis=1).max() * np.linalg.norm(vector)
    active = np.flatnonzero(rows @ vector <= 1 + 1e-13 + 16 * _EPSILON * reach)
    if len(active) <= np.count_nonzero(multipliers):
        return multipliers
    left, sizes, _ = np.linalg.svd(rows[active])
    rank = np.count_nonzero(sizes > 1e-12 * sizes[0])
    null = left[:, rank:]
    weights = multipliers[active] - null @ (null.T @ multipliers[active])
    if weights.min(initial=0.0) < 0:
        weights = weights + null @ _least_distance(null, -weights)
    shortest = np.zeros_like(multipliers)
    shortest[active] = np.maximum(weights, 0.0)
    drift = np.linalg.norm(rows.T @ (shortest - multipliers))
    # A row that is only nearly active can spoil the identity; the basic multipliers never do.
    return shortest if drift <= 1e-13 * np.linalg.norm(vector) else multipliers


def _least_distance(matrix: Array, bound: Array) -> Array:
    """`argmin |t|^2` subject to `matrix t >= bound`, known to be feasible."""
    scale = np.abs(bound).max()
    system = np.vstack([matrix.T, bound / scale])
    target = np.zeros(len(system))
    target[-1] = 1.0
    solution = nonnegative_least_squares(system, target)
    if solution is None:
        return np.zeros(matrix.shape[1])
    residual = system @ solution[0] - target
    return -scale * residual[:-1] / residual[-1] if residual[-1] else np.zeros(matrix.shape[1])
