"""The last digits of the largest margin of several classes, from what a cone program found.

Both methods end in plain hard-margin problems (`_least_norm`):

- 1 < q < inf: sequential quadratic programming. The norm's second derivative has its argument in
  its null space, so that every step is a hard-margin problem in the metric `I + second derivative`;
- q = 1 and q = inf: on a face of the norms (which entries of `W_a - W_b` are 0, or the largest)
  they are linear, and one hard-margin problem in the subspace of that face is exact.
"""

import math

import numpy as np
from scipy.linalg import cholesky, null_space, solve_triangular
from scipy.optimize import lsq_linear

from gflow._numerics import dual_order
from gflow.reference._least_norm import least_norm
from gflow.reference._norms import Array, lp_norm, signed_power
from gflow.reference._rivals import Candidate, Rivals, slopes_at

# Entries of `W_a - W_b` this close to a kink of its norm, relative to the largest, are at it.
# Clarabel leaves some 1e-6 of the multipliers' size where an entry is 0.
_AT_KINK = 1e-6

_NEWTON_STEPS = 30
_SETTLED = 1e-15


def newton(rivals: Rivals, radius: float, order: float, start: Candidate) -> Candidate | None:
    """Sequential quadratic programming, for norms with second derivatives."""
    weights, multipliers = start.weights, start.multipliers
    last = math.inf
    for _ in range(_NEWTON_STEPS):
        differences = rivals.differences(weights)
        slopes = slopes_at(differences, order)
        rows = rivals.rows(rivals.attacked(radius, slopes))
        pulls = radius * np.bincount(rivals.pair, multipliers, len(rivals.pairs))
        factor = cholesky(_metric(rivals, order, differences, pulls), lower=True)
        step = least_norm(solve_triangular(factor, rows.T, lower=True).T)
        if step is None:
            return None
        vector, multipliers = solve_triangular(factor.T, step[0]), step[1]
        moved = np.linalg.norm(vector - weights.ravel()) / np.linalg.norm(vector)
        weights = vector.reshape(weights.shape)
        if moved < _SETTLED or (moved < 1e-10 and moved >= last):
            break
        last = moved
    return Candidate(weights, slopes_at(rivals.differences(weights), order), multipliers)


def _metric(rivals: Rivals, order: float, differences: Array, pulls: Array) -> Array:
    """Second derivative of `1/2 |W|^2 + sum_ab pulls_ab |W_a - W_b|_q`. Shape (k d, k d)."""
    num_classes, dim = rivals.shape
    metric = np.eye(num_classes * dim).reshape(num_classes, dim, num_classes, dim)
    for (a, b), difference, pull in zip(rivals.pairs, differences, pulls, strict=True):
        if pull > 0:
            curved = pull * _norm_curvature(difference, dual_order(order))
            for one, other, sign in ((a, a, 1), (b, b, 1), (a, b, -1), (b, a, -1)):
                metric[one, :, other] += sign * curved
    return metric.reshape(num_classes * dim, -1)


def _norm_curvature(vector: Array, order: float) -> Array:
    """Second derivative of `|v|_q`, 1 < q < inf: `(q - 1) (diag |u|^(q-2) - s s^T) / |v|_q`.

    With `u = v / |v|_q` and `s = sign(u) |u|^(q-1)`. Where q < 2 and an entry is 0 it is infinite
    there; a small entry in its place keeps the entry where it is.
    """
    length = lp_norm(vector, order)
    unit = vector / length
    slope = signed_power(unit, order - 1)
    sizes = np.maximum(np.abs(unit), 1e-12) ** (order - 2)
    return (order - 1) / length * (np.diag(sizes) - np.outer(slope, slope))


def on_faces(rivals: Rivals, radius: float, order: float, start: Candidate) -> Candidate | None:
    """The solution on the face of the norms on which Clarabel's lies, for q = 1 and q = inf."""
    differences = rivals.differences(start.weights)
    largest = np.abs(differences).max(axis=1, keepdims=True)
    at_kink = np.abs(differences) <= _AT_KINK * largest.max()
    if order == 1:
        at_kink = np.abs(differences) >= (1 - _AT_KINK) * largest
    signs = np.sign(differences)
    basis = _face_basis(rivals, order, at_kink, signs)
    shares = at_kink / np.maximum(at_kink.sum(axis=1, keepdims=True), 1)
    slopes = signs * shares if order == 1 else np.where(at_kink, 0.0, signs)
    rows = rivals.rows(rivals.attacked(radius, slopes))
    found = least_norm(rows @ basis)
    if found is None:
        return None
    weights = (basis @ found[0]).reshape(rivals.shape)
    free = _free_slopes(rivals, radius, order, weights, found[1], at_kink, slopes)
    return Candidate(weights, free, found[1])


def _face_basis(rivals: Rivals, order: float, at_kink: Array, signs: Array) -> Array:
    """Orthonormal columns that span the weights whose norms are linear as at the given kinks.

    For order inf the entries at kinks are 0; for order 1 they are of one size, with their signs.
    """
    num_classes, dim = rivals.shape
    rows = []
    for (a, b), kinks, sign in zip(rivals.pairs, at_kink, signs, strict=True):
        entries = np.flatnonzero(kinks)
        forms = np.zeros((len(entries), dim))
        forms[np.arange(len(entries)), entries] = 1.0
        if order == 1:
            forms[np.arange(len(entries)), entries] = sign[entries]
            forms = forms[1:] - forms[:1]
        block = np.zeros((len(forms), num_classes, dim))
        block[:, a], block[:, b] = forms, -forms
        rows.append(block.reshape(len(forms), num_classes * dim))
    system = np.concatenate(rows)
    return null_space(system) if len(system) else np.eye(num_classes * dim)


def _free_slopes(
    rivals: Rivals,
    radius: float,
    order: float,
    weights: Array,
    multipliers: Array,
    at_kink: Array,
    slopes: Array,
) -> Array:
    """Subgradients at the kinks that make the weights stationary, by bounded least squares."""
    pulls = radius * np.bincount(rivals.pair, multipliers, len(rivals.pairs))
    fixed = slopes if math.isinf(order) else np.zeros_like(slopes)
    left = multipliers @ rivals.rows(rivals.attacked(radius, fixed)) - weights.ravel()
    pair, entry = np.nonzero(at_kink & (pulls > 0)[:, None])
    if not len(pair):
        return slopes
    columns = np.zeros((len(pair), *rivals.shape))
    number = np.arange(len(pair))
    columns[number, rivals.pairs[pair, 0], entry] = pulls[pair]
    columns[number, rivals.pairs[pair, 1], entry] = -pulls[pair]
    system, target, bounds = columns.reshape(len(pair), -1).T, left, (-1.0, 1.0)
    signs = np.ones(len(pair))
    if order == 1:
        # Shares of the entries of largest size: not negative, and 1 in sum for every pair.
        signs = np.sign(rivals.differences(weights))[pair, entry]
        sums = np.equal.outer(np.arange(len(rivals.pairs)), pair) * float(pulls.max())
        system = np.concatenate([system * signs, sums])
        target = np.concatenate([left, np.where(sums.any(axis=1), pulls.max(), 0.0)])
        bounds = (0.0, 1.0 + 1e-12)
    found = lsq_linear(system, target, bounds, tol=1e-15, method="bvls").x
    free = slopes.copy()
    free[pair, entry] = found * signs
    return free
