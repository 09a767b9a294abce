"""Attack orders 1 < p < inf, p != 2, whose dual norm is differentiable: Newton's method.

The solution lies on the curve of pairs (o, s), `|o|_q = 1`, `s = gradient of |.|_q at o`, that is
`o_j = sign(s_j) |s_j|^(p-1)` and `s_j = sign(o_j) |o_j|^(q-1)`. At a point of it, with
`nu = |w|_q` and `Lambda = sum lambda`, sequential quadratic programming replaces the norm by its
tangent `<s, w>` (exact there: the norm is homogeneous) and adds its curvature to the objective:

    min 1/2 w^T M w   subject to   <w, z_i - radius s> >= 1,
    M = I + radius Lambda Hessian = D - kappa s s^T,
    kappa = radius Lambda (q - 1) / nu,   D = 1 + kappa |s|^(2-p).

In the variable `M^(1/2) w` that is the hard-margin problem of `_least_norm`, which also finds the
active examples anew in every step.

For p > 2 the curvature is infinite where w_j = 0, and for large p many w_j are as good as zero
while s_j is not. So a step is taken back to the curve in w_j where the curve is flat and in s_j
where it is steep; `1/D` decides, and D itself is never formed.
"""

from typing import NamedTuple

import numpy as np

from gflow._numerics import dual_order
from gflow.reference._least_norm import least_norm
from gflow.reference._norms import Array, lp_norm, signed_power
from gflow.reference._solution import Point

_EPSILON = float(np.finfo(np.float64).eps)
_MAX_STEPS = 100
# Newton's method gains digits in every step, or in every few where the solution is degenerate; so
# many steps without a gain mean that what is left is rounding.
_PATIENCE = 5
# Two examples that differ only where the curve is steeper than this could not be told apart.
_SMALLEST_FLATNESS = 1e-20


class _State(NamedTuple):
    """An iterate and the curve point next to it.

    Shapes: all (d,), but the multipliers (n,). `slope` satisfies the first KKT condition with
    weights and multipliers exactly, `curve_slope` is a subgradient; at a solution they agree.
    """

    weights: Array
    slope: Array
    multipliers: Array
    position: Array
    curve_slope: Array


# A diverging iterate shows as NaN, which ends the iteration; no warning is needed.
@np.errstate(all="ignore")
def solve_smooth(signed: Array, radius: float, order: float, start: Point) -> Point | None:
    """The KKT point that Newton's method reaches from `start`; None if it breaks down.

    Shapes: signed (n, d), rows `z_i = y_i x_i`.
    """
    best, smallest, idle = None, np.inf, 0
    state = _state(start, radius, order)
    for _ in range(_MAX_STEPS):
        solution = _quadratic_programme(signed, radius, order, state)
        if solution is None:
            break
        weights, multipliers = solution
        slope = (multipliers @ signed - weights) / (radius * multipliers.sum())
        previous, state = state, _state(Point(weights, slope, multipliers), radius, order)
        residual = _residual(previous, state, radius)
        idle += 1
        if residual < smallest:
            best, smallest, idle = state, residual, 0
        if smallest <= 8 * _EPSILON or idle > _PATIENCE:
            break
    return None if best is None else Point(best.weights, best.curve_slope, best.multipliers)


def _state(point: Point, radius: float, order: float) -> _State:
    """`point` with the curve point led by w_j where the curve is flat, by s_j where it is steep."""
    dual = dual_order(order)
    unit = point.weights / lp_norm(point.weights, dual)
    # No slope on the curve exceeds 1; the clipping keeps large powers from overflowing.
    slope = np.clip(point.slope, -1.0, 1.0)
    flatness = _flatness(slope, _kappa(point.weights, point.multipliers, radius, order), order)
    steep = flatness < 0.5
    position = np.where(steep, signed_power(slope, order - 1), unit)
    length = lp_norm(position, dual)
    position = position / length
    slope = np.where(steep, slope / length ** (dual - 1), signed_power(position, dual - 1))
    return _State(*point, position, slope)


def _residual(previous: _State, state: _State, radius: float) -> float:
    """Change of direction, distance from the curve and violation of the first KKT condition."""
    size = np.linalg.norm(state.weights)
    change = state.weights / size - previous.weights / np.linalg.norm(previous.weights)
    unit = state.weights * (np.linalg.norm(state.position) / size)
    force = radius * state.multipliers.sum() / size
    return max(
        np.abs(change).max(),
        np.abs(unit - state.position).max(),
        force * np.abs(state.slope - state.curve_slope).max(),
    )


def _kappa(weights: Array, multipliers: Array, radius: float, order: float) -> float:
    dual = dual_order(order)
    return radius * multipliers.sum() * (dual - 1) / lp_norm(weights, dual)


def _flatness(slope: Array, kappa: float, order: float) -> Array:
    """`1/D = 1 / (1 + kappa |s|^(2-p))`, in (0, 1], also where s is zero."""
    if order < 2:
        return 1 / (1 + kappa * np.abs(slope) ** (2 - order))
    curve = np.abs(slope) ** (order - 2)
    return np.maximum(curve / (curve + kappa), _SMALLEST_FLATNESS)


def _quadratic_programme(
    signed: Array, radius: float, order: float, state: _State
) -> tuple[Array, Array] | None:
    """Weights and multipliers of the quadratic programme at the curve point of `state`.

    With `r = D^(-1/2) s`, `M^(-1/2) = D^(-1/2) (I - kappa r r^T)^(-1/2)` up to a rotation, and the
    inverse root of a rank-one change of I is another one, which multiplies r by
    `(1 - kappa |r|^2)^(-1/2)`, where `1 - kappa |r|^2 = sum_j |s_j|^p / D_j` without cancellation.
    """
    slope = state.curve_slope
    kappa = _kappa(state.weights, state.multipliers, radius, order)
    flatness = _flatness(slope, kappa, order)
    root = np.sqrt(flatness)
    along = root * slope
    along = along / np.linalg.norm(along)
    stretch = 1 / np.sqrt(np.sum(np.abs(slope) ** order * flatness)) - 1
    rows = (signed - radius * slope) * root
    rows = rows + stretch * np.outer(rows @ along, along)
    solution = least_norm(rows) if np.isfinite(rows).all() else None
    if solution is None:
        return None
    vector, multipliers = solution
    return root * (vector + stretch * along * (along @ vector)), multipliers
