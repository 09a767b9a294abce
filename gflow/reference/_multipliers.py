"""Multipliers and subgradient of a solution whose direction is already known.

At degenerate solutions (more active examples than dimensions, symmetric data, weights that are
exactly zero) many multipliers explain the direction as far as the smooth coordinates go, and only
some of them leave a subgradient inside the dual ball. Finding one is a linear feasibility problem,
solved by nonnegative least squares:

    sum_i lambda_i z_ij = w_j + radius (sum_i lambda_i) s_j   for every coordinate j,   lambda >= 0,

over the active examples, where s_j is either given by w or known up to an interval.
"""

import math

import numpy as np

from gflow._numerics import dual_order
from gflow.reference._nonnegative import nonnegative_least_squares
from gflow.reference._norms import Array, lp_norm, signed_power
from gflow.reference._solution import Point

_ACTIVE = 1e-12
_ACCEPTED = 1e-12
# A weight below this fraction of the largest says nothing about its slope but a bound.
_NEGLIGIBLE = 1e-14


def explained(signed: Array, radius: float, order: float, weights: Array) -> Point | None:
    """`weights` with multipliers and a subgradient that satisfy the KKT conditions, if any do.

    Shapes: signed (n, d), rows `z_i = y_i x_i`; weights (d,).
    """
    margins = signed @ weights - radius * lp_norm(weights, dual_order(order))
    if not margins.min() > 0:
        return None
    weights, margins = weights / margins.min(), margins / margins.min()
    reach = np.linalg.norm(signed, axis=1).max() * np.linalg.norm(weights)
    active = np.flatnonzero(margins <= 1 + _ACTIVE + 64 * np.finfo(np.float64).eps * reach)
    build = _shares_of_maximum if order == 1 else _bounded_slopes
    system, target = build(signed[active], radius, order, weights)
    solution = nonnegative_least_squares(system, target)
    if solution is None or solution[1] > _ACCEPTED * np.linalg.norm(weights):
        return None
    multipliers = np.zeros(len(signed))
    multipliers[active] = solution[0][: len(active)]
    slope = (multipliers @ signed - weights) / (radius * multipliers.sum())
    return Point(weights, slope, multipliers)


def _bounded_slopes(
    active: Array, radius: float, order: float, weights: Array
) -> tuple[Array, Array]:
    """Order > 1: s_j follows from w_j, or lies in [-bound, bound] where w_j is negligible.

    The second kind gives two inequalities, `radius bound Lambda -+ sum_i lambda_i z_ij >= 0`, each
    with a nonnegative slack as further unknown.
    """
    dual = dual_order(order)
    loose = np.abs(weights) <= _NEGLIGIBLE * np.abs(weights).max()
    slope = (
        np.sign(weights)
        if math.isinf(order)
        else signed_power(weights / lp_norm(weights, dual), dual - 1)
    )
    bound = radius * _NEGLIGIBLE ** (dual - 1)
    fixed = (active - radius * slope)[:, ~loose].T
    upper, lower = bound - active[:, loose].T, bound + active[:, loose].T
    slacks = np.eye(2 * len(upper))
    system = np.vstack(
        [
            np.hstack([fixed, np.zeros((len(fixed), len(slacks)))]),
            np.hstack([np.vstack([upper, lower]), -slacks]),
        ]
    )
    return system, np.concatenate([weights[~loose], np.zeros(len(slacks))])


def _shares_of_maximum(
    active: Array, radius: float, order: float, weights: Array
) -> tuple[Array, Array]:
    """Order 1: s_j is 0 but for maximal w_j, where `sign(w_j) s_j` are shares of 1.

    The unknown shares come multiplied by `radius Lambda`, so that everything is linear.
    """
    largest = np.abs(weights).max()
    maximal = np.abs(weights) >= largest * (1 - _NEGLIGIBLE)
    signs = np.where(maximal, np.sign(weights), 1.0)
    shares = -np.eye(len(weights))[:, maximal]
    total = np.concatenate([np.full(len(active), -radius), np.ones(shares.shape[1])])
    system = np.vstack([np.hstack([(active * signs).T, shares]), total])
    return system, np.concatenate([signs * weights, [0.0]])
