"""The largest margin of a linear classifier of several classes under an l_p attack.

Every class has weights of its own, and the attack is made against each rival class separately:

    argmax over |W|_F = 1 of   min_ij  <W_y - W_j, x_i> - radius |W_y - W_j|_q,   y = y_i, j != y_i.

In the scale in which that margin is 1 this is `min 1/2 |W|_F^2` subject to margins >= 1. Clarabel
finds about nine digits of it (`_class_cones`), the others come from `_class_digits`.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from gflow.reference._class_cones import by_cones
from gflow.reference._class_digits import AT_KINK, newton, on_faces
from gflow.reference._least_norm import inseparable, least_norm
from gflow.reference._norms import Array, lp_norm
from gflow.reference._rivals import (
    Candidate,
    Rivals,
    lengths_of,
    rivals_of,
    slopes_at,
    smallest_margin,
    withstood,
)
from gflow.reference._solution import MaxMargin, certified_margin, infeasible, unsolved

_SEPARATOR = "linear classifier without bias"

# Where less than this part of the clean margin is left, the solution is sought in other units too.
_SMALL_MARGIN = 1e-2

# The largest feasible radius is bracketed to this, relative, by at most so many programs.
_RADIUS_ACCURACY = 1e-9
_RADIUS_PROGRAMS = 40


def max_margin_of_classes(
    x: Array, y: Array, num_classes: int, radius: float, order: float
) -> MaxMargin:
    """`max_margin` for classes 0 .. k-1; arguments are checked. Shapes: x (n, d), y (n,)."""
    rivals = rivals_of(x, y, num_classes)
    clean = _clean(rivals)
    if clean.solution is None:
        return _shaped(infeasible(x, radius, order, clean.bound, _SEPARATOR), rivals)
    if radius == 0:
        slopes = slopes_at(rivals.differences(clean.solution.weights), order)
        found = [clean.solution._replace(slopes=slopes)]
    else:
        found = _solved(clean.rivals, radius / clean.unit, order)
    answer = _best(rivals, radius, order, found)
    if answer is None:
        largest = clean.unit * _largest_radius(clean.rivals, order, clean.solution.weights)
        outcome = unsolved if radius < largest else infeasible
        return _shaped(outcome(x, radius, order, largest), rivals)
    return answer


def largest_radius_of_classes(x: Array, y: Array, num_classes: int, order: float) -> float:
    """`largest_feasible_radius` for classes; arguments are checked."""
    clean = _clean(rivals_of(x, y, num_classes))
    if clean.solution is None:
        return clean.bound
    return clean.unit * _largest_radius(clean.rivals, order, clean.solution.weights)


class _Clean(NamedTuple):
    """The problem without attack, in units in which its margin is 1.

    In these units every solver's variables are of moderate size.

    Attributes:
        rivals: with inputs in these units.
        unit: the clean margin of weights of Frobenius norm 1.
        solution: weights whose smallest margin is 1 in these units, without slopes; None where no
            weights separate the examples, or none were found.
        bound: then the largest feasible radius: 0, or NaN where it is unknown.
    """

    rivals: Rivals
    unit: float
    solution: Candidate | None
    bound: float


def _clean(rivals: Rivals) -> _Clean:
    rows = rivals.rows(rivals.x)
    found = least_norm(rows)
    if found is None:
        return _Clean(rivals, math.nan, None, 0.0 if inseparable(rows) else math.nan)
    unit = 1 / float(np.linalg.norm(found[0]))
    weights = found[0].reshape(rivals.shape) * unit
    solution = Candidate(weights, np.zeros((len(rivals.pairs), weights.shape[1])), found[1])
    return _Clean(rivals._replace(x=rivals.x / unit), unit, solution, math.nan)


def _shaped(outcome: MaxMargin, rivals: Rivals) -> MaxMargin:
    """An outcome without a solution, in the shapes of classes."""
    num_classes, dim = rivals.shape
    return replace(
        outcome,
        direction=np.full((num_classes, dim), np.nan),
        multipliers=np.full((len(rivals.x) // (num_classes - 1), num_classes - 1), np.nan),
        subgradient=np.full((len(rivals.pairs), dim), np.nan),
        support=np.zeros((0, 2), dtype=np.intp),
    )


def _best(rivals: Rivals, radius: float, order: float, found: list[Candidate]) -> MaxMargin | None:
    """The candidate that its multipliers prove the best; None where none has a positive margin.

    Close to the largest radius the margins of several are equal to rounding, and the multipliers of
    some are not right.
    """
    answers = [
        _certified(rivals, radius, order, one)
        for one in found
        if smallest_margin(rivals, radius, order, one.weights) > 0
    ]
    return min(answers, key=lambda one: (not one.feasible, one.duality_gap), default=None)


def _certified(rivals: Rivals, radius: float, order: float, found: Candidate) -> MaxMargin:
    """`found` in the normalisation of `MaxMargin`: `certified` sees W as one vector."""
    lengths = np.array([lp_norm(slope, order) for slope in found.slopes])
    slopes = found.slopes / np.maximum(1.0, lengths)[:, None]
    attacked = rivals.attacked(radius, slopes)
    exact = rivals._replace(x=rivals.x.astype(np.longdouble))
    margin = smallest_margin(exact, radius, order, found.weights)
    answer = certified_margin(
        rivals.rows(attacked).astype(np.longdouble),
        found.weights.ravel(),
        margin,
        found.multipliers,
        (radius, order, math.nan),
    )
    if answer is None:
        return _shaped(unsolved(rivals.x, radius, order, math.nan), rivals)
    multipliers = answer.multipliers.reshape(-1, rivals.shape[0] - 1)
    return replace(
        answer,
        direction=answer.direction.reshape(rivals.shape),
        multipliers=multipliers,
        subgradient=slopes,
        support=np.argwhere(multipliers > 0),
    )


def _largest_radius(rivals: Rivals, order: float, separator: Array) -> float:
    """The largest radius that some weights withstand, by Dinkelbach's iteration.

    It is the largest `min_ij <W_y - W_j, x_i> / |W_y - W_j|_q`. The weights of largest margin at a
    radius withstand a larger one, which is the next radius. Margins count in units of the lengths
    `|W_y - W_j|_q` of the weights before: without these the iteration converges slowly where they
    differ, and after 40 programs was 1e-5 short for ten classes. Ends where a step gains nothing,
    or where the margin left is rounding.

    Source: Crouzeix & Ferland 1991, "Algorithms for generalized fractional programming",
    Mathematical Programming 52: the Dinkelbach-type-2 algorithm.
    """
    largest, weights = withstood(rivals, order, separator), separator
    for _ in range(_RADIUS_PROGRAMS):
        radius, units = largest * (1 - _RADIUS_ACCURACY / 10), lengths_of(rivals, order, weights)
        found = by_cones(rivals, radius, order, units=units / units.max())
        withstands = 0.0 if found is None else withstood(rivals, order, found.weights)
        if found is None or withstands <= largest * (1 + _RADIUS_ACCURACY / 10):
            return max(largest, withstands)
        largest, weights = withstands, found.weights
    return largest


def _solved(rivals: Rivals, radius: float, order: float) -> list[Candidate]:
    """Candidates at a positive radius, in units in which the clean margin is 1."""
    found = _refined(rivals, radius, order, by_cones(rivals, radius, order))
    # Close to the largest radius the weights are long. In units of the margin they are not.
    if _margin_left(rivals, radius, order, found) < _SMALL_MARGIN:
        longest = by_cones(rivals, radius, order, units=np.ones(len(rivals.x)))
        found += [] if longest is None else [longest]
        unit = _margin_left(rivals, radius, order, found)
        if unit > 0:
            scaled, left = rivals._replace(x=rivals.x / unit), radius / unit
            for start in (by_cones(scaled, left, order), longest):
                found += _refined(scaled, left, order, start)
    return found


def _margin_left(rivals: Rivals, radius: float, order: float, found: list[Candidate]) -> float:
    return max((smallest_margin(rivals, radius, order, one.weights) for one in found), default=0.0)


def _refined(
    rivals: Rivals, radius: float, order: float, start: Candidate | None
) -> list[Candidate]:
    """Clarabel's solution, and what the last digits make of it."""
    if start is None:
        return []
    if 1 < order < math.inf:
        better = [newton(rivals, radius, order, start)]
    else:
        better = [on_faces(rivals, radius, order, start, near) for near in AT_KINK]
    return [start, *(one for one in better if one is not None)]
