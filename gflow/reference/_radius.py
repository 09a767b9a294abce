"""The largest radius of attack under which some linear classifier still separates the data."""

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog

from gflow._numerics import dual_order
from gflow.reference._cones import norm_margin_by_cones
from gflow.reference._norms import Array, lp_norm, subgradient

# A linear program whose two bounds on the radius differ by more than this is solved again.
_GAP = 1e-9


class NormMargin(NamedTuple):
    """The largest feasible radius, between two bounds, and a direction that attains the lower one.

    Attributes:
        radius: the lower bound, which `weights` attains.
        weights: `min_i y_i <w, x_i> = 1`. Shape (d,).
        slope: a subgradient of the dual norm there. Shape (d,).
        bound: the upper bound, `|sum_i a_i y_i x_i|_p` for weights `a_i >= 0` of sum 1: no radius
            of an attack that some direction withstands exceeds it. Infinite where none is known.
    """

    radius: float
    weights: Array
    slope: Array
    bound: float


def norm_margin(signed: Array, order: float, separator: Array, multipliers: Array) -> NormMargin:
    """`max min_i <w, y_i x_i>` over `|w|_q <= 1`, 1/p + 1/q = 1.

    In the equivalent form `min |w|_q` subject to `<w, y_i x_i> >= 1`, which keeps its relative
    accuracy however small the margin. The radius given is the one that `weights` attains, hence
    a lower bound up to rounding; for orders 1, 2 and inf the two bounds are some 1e-14 apart,
    relative, and for others some 1e-10.

    Args: `separator` and `multipliers` are the l_2 solution, `least_norm(signed)`.
    Shapes: signed (n, d), rows `y_i x_i`.
    """
    candidates = [(separator, subgradient(separator, dual_order(order)), multipliers)]
    if order != 2:
        # In units of the l_2 margin all numbers are of moderate size.
        unit = 1 / np.linalg.norm(separator)
        candidates += _shortest(signed / unit, order)
    return best_of([attained(signed, order, *found) for found in candidates])


def best_of(found: list[NormMargin]) -> NormMargin:
    """The highest lower bound, and the lowest upper one."""
    best = max(found, key=lambda margin: margin.radius)
    return best._replace(bound=min(margin.bound for margin in found))


def attained(
    signed: Array, order: float, weights: Array, slope: Array, multipliers: Array
) -> NormMargin:
    """The bounds that these weights and these multipliers prove, to rounding of their result."""
    exact = signed.astype(np.longdouble)
    total = multipliers.sum()
    bound = math.inf
    if total > 0:
        shares = multipliers.astype(np.longdouble) / total
        # The sum of the shares is 1 to the rounding of float64 only.
        bound = float(lp_norm(shares @ exact, order) / shares.sum())
    margin = (exact @ weights).min()
    if not margin > 0:
        return NormMargin(0.0, np.zeros_like(weights), np.zeros_like(weights), bound)
    scaled = weights / margin
    radius = float(1 / lp_norm(scaled, dual_order(order)))
    return NormMargin(radius, scaled.astype(np.float64), slope, bound)


def _shortest(signed: Array, order: float) -> list[tuple[Array, Array, Array]]:
    """Candidates for `argmin |w|_q` subject to `signed w >= 1`: weights, subgradient, multipliers.

    Where `multipliers` solve the dual problem, `sum_i multipliers_i signed_i` is the subgradient.
    """
    candidates = []
    if order == 1 or math.isinf(order):
        weights, multipliers = _by_linear_program(signed, order)
        candidates.append((weights, multipliers @ signed, multipliers))
        if _relative_gap(signed, order, weights, multipliers) <= _GAP:
            return candidates
    weights, multipliers = norm_margin_by_cones(signed, order)
    # An interior-point method that gave up may hold NaN, and multipliers below 0 by rounding.
    multipliers = np.maximum(np.nan_to_num(multipliers), 0.0)
    return [*candidates, (np.nan_to_num(weights), multipliers @ signed, multipliers)]


def _by_linear_program(signed: Array, order: float) -> tuple[Array, Array]:
    """Weights and multipliers from HiGHS; zeros if it gives up."""
    num_rows, dim = signed.shape
    bound = -np.ones(num_rows)
    if order == 1:
        # (w, t) with -t <= w_j <= t, minimise t.
        identity, column = np.eye(dim), np.ones((dim, 1))
        margins = np.hstack([-signed, np.zeros((num_rows, 1))])
        box = np.vstack([np.hstack([identity, -column]), np.hstack([-identity, -column])])
        system, bound = np.vstack([margins, box]), np.concatenate([bound, np.zeros(2 * dim)])
        cost, limits = np.concatenate([np.zeros(dim), [1.0]]), (None, None)
    else:
        # w = a - b with a, b >= 0, minimise sum a + b.
        system = np.hstack([-signed, signed])
        cost, limits = np.ones(2 * dim), (0, None)
    program = linprog(cost, A_ub=system, b_ub=bound, bounds=limits)
    if program.x is None:
        return np.zeros(dim), np.zeros(num_rows)
    weights = program.x[:dim] if order == 1 else program.x[:dim] - program.x[dim:]
    return weights, np.maximum(-program.ineqlin.marginals[:num_rows], 0.0)


def _relative_gap(signed: Array, order: float, weights: Array, multipliers: Array) -> float:
    """How far the attained radius is below the dual bound."""
    found = attained(signed, order, weights, weights, multipliers)
    return found.bound / found.radius - 1 if found.radius > 0 else math.inf
