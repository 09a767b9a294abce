"""The last digits of the largest margin of several classes, from what a cone program found.

Both methods end in plain hard-margin problems (`_least_norm`):

- 1 < q < inf: sequential quadratic programming. The norm's second derivative has its argument in
  its null space, so that every step is a hard-margin problem in the metric `I + second derivative`;
- q = 1 and q = inf: on a face of the norms (which entries of `W_a - W_b` are 0, or the largest)
  they are linear, and one hard-margin problem in the subspace of that face is exact.
"""

import math

import numpy as np
from scipy.linalg import null_space, solve_triangular
from scipy.optimize import lsq_linear

from gflow._numerics import dual_order
from gflow.reference._least_norm import least_norm
from gflow.reference._norms import Array, lp_norm, signed_power
from gflow.reference._rivals import Candidate, Rivals, slopes_at

# Entries of `W_a - W_b` this close to a kink of its norm, relative to the largest, are at it.
# Clarabel leaves some 1e-6 of the multipliers' size where an entry is 0, and more close to the
# largest radius: each of these is tried.
AT_KINK = (1e-8, 1e-6, 1e-4)

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
        factor = _metric_root(rivals, order, differences, pulls)
        step = least_norm(solve_triangular(factor, rows.T, trans=1).T)
        if step is None:
            return None
        vector, multipliers = solve_triangular(factor, step[0]), step[1]
        moved = np.linalg.norm(vector - weights.ravel()) / np.linalg.norm(vector)
        weights = vector.reshape(weights.shape)
        if moved < _SETTLED or (moved < 1e-10 and moved >= last):
            break
        last = moved
    return Candidate(weights, slopes_at(rivals.differences(weights), order), multipliers)


def _metric_root(rivals: Rivals, order: float, differences: Array, pulls: Array) -> Array:
    """R, upper triangular, of `R^T R = I + second derivative of sum_ab pulls_ab |W_a - W_b|_q`.

    From a QR factorisation of roots of the terms. Close to the largest radius the pulls are some
    1/margin, and the identity would be lost in a sum with them. Shape (k d, k d).
    """
    num_classes, dim = rivals.shape
    blocks = [np.eye(num_classes * dim)]
    for (a, b), difference, pull in zip(rivals.pairs, differences, pulls, strict=True):
        if pull > 0:
            block = np.zeros((dim, num_classes, dim))
            root = math.sqrt(pull) * _root_of_norm_curvature(difference, dual_order(order))
            block[:, a], block[:, b] = root, -root
            blocks.append(block.reshape(dim, -1))
    # Householder's method keeps small rows beside large ones if these come first.
    return np.asarray(np.linalg.qr(np.concatenate(blocks[::-1]), mode="r"))


def _root_of_norm_curvature(vector: Array, order: float) -> Array:
    """B with `B^T B` the second derivative of `|v|_q`, 1 < q < inf.

    That is `(q - 1) (diag |u|^(q-2) - s s^T) / |v|_q` with `u = v / |v|_q` and
    `s = sign(u) |u|^(q-1)`, and `B` a multiple of `(I - r r^T) diag |u|^(q/2-1)`, where
    `r = sign(u) |u|^(q/2)` has length 1. Where q < 2 and an entry is 0 it is infinite there; a
    small entry in its place keeps the entry where it is.
    """
    length = lp_norm(vector, order)
    unit = vector / length
    root = signed_power(unit, order / 2)
    sizes = np.maximum(np.abs(unit), 1e-12) ** (order / 2 - 1)
    projected = np.diag(sizes) - np.outer(root, root * sizes)
    return math.sqrt((order - 1) / length) * projected


def on_faces(
    rivals: Rivals, radius: float, order: float, start: Candidate, near: float
) -> Candidate | None:
    """The solution on the face of the norms on which Clarabel's lies, for q = 1 and q = inf.

    Args:
        near: one of `AT_KINK`.
    """
    differences = rivals.differences(start.weights)
    largest = np.abs(differences).max(axis=1, keepdims=True)
    at_kink = np.abs(differences) <= near * largest.max()
    if order == 1:
        at_kink = np.abs(differences) >= (1 - near) * largest
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
