"""Two labels: one method after another until the answer is good, and its certificate."""

import math
from collections.abc import Iterator

import numpy as np

from gflow._numerics import dual_order
from gflow.reference._cones import max_margin_by_cones
from gflow.reference._least_norm import inseparable, least_norm, shortest_multipliers
from gflow.reference._norms import Array, lp_norm, nearest_subgradient, subgradient
from gflow.reference._polyhedral import face_of, solve_on_faces, split_variables
from gflow.reference._radius import NormMargin, attained, best_of, norm_margin
from gflow.reference._smooth import solve_smooth
from gflow.reference._solution import MaxMargin, Point, at_edge, certified, infeasible, unsolved

# A solution with this relative duality gap and stationarity, or a hundred times what rounding its
# direction to float64 leaves of them, is good; no other method is tried.
_GOOD_GAP = 1e-12

# An attack moves no input by more than the radius: less than this part of the largest is rounding.
_NOTHING = float(np.finfo(np.float64).eps) / 4

_CONTINUATION_STEPS = 10

# So close to the largest feasible radius, relative, its two bounds are sought to rounding: the
# solution that much below it has bounds of its own, off by the square of this.
_CLOSE = 1e-7


def largest_radius_of_labels(signed: Array, order: float) -> float:
    """`largest_feasible_radius` for two labels, of the examples `y_i x_i`. Shape (n, d)."""
    clean = least_norm(signed)
    if clean is None:
        return 0.0 if inseparable(signed) else math.nan
    return norm_margin(signed, order, *clean).radius


def max_margin_of_labels(signed: Array, radius: float, order: float) -> MaxMargin:
    """`gflow.max_margin` for two labels, of the examples `y_i x_i`. Shape (n, d)."""
    clean = least_norm(signed)
    if clean is None:
        return infeasible(signed, radius, order, 0.0 if inseparable(signed) else math.nan)
    limit = norm_margin(signed, order, *clean)
    if abs(radius - limit.radius) <= _CLOSE * limit.radius:
        limit = _closer(signed, order, clean, limit)
    if radius >= limit.radius:
        beyond = infeasible if radius >= limit.bound else at_edge
        return beyond(signed, radius, order, limit.radius)
    # What withstands the largest feasible radius withstands this one.
    fallback = Point(limit.weights, limit.slope, np.ones(len(signed)))
    best = _judged(signed, radius, order, limit, fallback)
    rounding = 100 * np.finfo(np.float64).eps * np.linalg.norm(signed, axis=1).max()
    for point in _points(signed, radius, order, clean, limit):
        answer = _judged(signed, radius, order, limit, point)
        best = min(best, answer, key=_residual)
        if _residual(best) <= _GOOD_GAP + rounding / best.margin:
            break
    return at_edge(signed, radius, order, limit.radius) if np.isnan(best.margin) else best


def _residual(answer: MaxMargin) -> float:
    """What is left of the optimality conditions, relative; infinite without a solution."""
    left = max(answer.duality_gap, answer.stationarity)
    return math.inf if np.isnan(left) else left


def _judged(
    signed: Array, radius: float, order: float, limit: NormMargin, point: Point
) -> MaxMargin:
    """A candidate, with a subgradient that is one and multipliers that are short, as an answer."""
    if not (np.isfinite(point.weights).all() and point.weights.any()):
        return unsolved(signed, radius, order, limit.radius)
    slope = nearest_subgradient(point.weights, dual_order(order), point.slope)
    point = _with_shortest_multipliers(signed, radius, order, point._replace(slope=slope))
    return certified(signed, radius, order, limit.radius, point)


def _closer(
    signed: Array, order: float, clean: tuple[Array, Array], limit: NormMargin
) -> NormMargin:
    """The largest feasible radius by closer bounds, for orders whose solver leaves some 1e-10.

    The solution at a radius just below it has weights that attain it and multipliers that bound it,
    both up to the square of the distance.
    """
    if order in (1, 2, math.inf):
        return limit
    nearly = limit.radius * (1 - _CLOSE)
    found = [limit]
    for point in _points(signed, nearly, order, clean, limit):
        if np.isfinite(point.weights).all() and np.isfinite(point.multipliers).all():
            multipliers = np.maximum(point.multipliers, 0.0)
            found.append(attained(signed, order, point.weights, point.slope, multipliers))
        if best_of(found).bound <= best_of(found).radius * (1 + _GOOD_GAP):
            break
    return best_of(found)


def _points(
    signed: Array, radius: float, order: float, clean: tuple[Array, Array], limit: NormMargin
) -> Iterator[Point]:
    """Solutions by one method after another, the best method first, in any scale."""
    weights, multipliers = clean
    without_attack = Point(weights, subgradient(weights, dual_order(order)), multipliers)
    if order == 2 or radius <= _NOTHING * np.abs(signed).max():
        # `|w|_2` is 1 on the sphere: the attack lowers every margin by the same amount. And a
        # radius below the rounding of the data moves the direction less than that rounding does.
        yield without_attack
        return
    # In these units the margin, and with it every solver's variables, are of moderate size.
    unit = limit.radius - radius
    for start in _starts(signed / unit, radius / unit, order, weights * unit, limit):
        point = _solve_from(signed / unit, radius / unit, order, start)
        yield start if point is None else point
    yield without_attack


def _solve_from(signed: Array, radius: float, order: float, start: Point) -> Point | None:
    if order == 1 or math.isinf(order):
        return solve_on_faces(signed, radius, face_of(start.weights, start.slope, order))
    return solve_smooth(signed, radius, order, start)


def _starts(
    signed: Array, radius: float, order: float, clean: Array, limit: NormMargin
) -> Iterator[Point]:
    """Approximate solutions, in the units of `signed`."""
    yield from _approximations(signed, radius, order)
    # Close to the largest feasible radius the direction that attains it is the better start, at a
    # tiny radius the clean direction.
    for weights, slope in (
        (limit.weights, limit.slope),
        (clean, subgradient(clean, dual_order(order))),
    ):
        margin = _margin(signed, radius, order, weights)
        if margin > 0:
            weights = weights / margin
            yield Point(weights, slope, np.full(len(signed), weights @ weights / len(signed)))
    if order not in (1, math.inf):
        yield from _neighbours(signed, radius, order)


def _neighbours(signed: Array, radius: float, order: float) -> Iterator[Point]:
    """Solutions of orders nearby: of 1 or inf, a finite search, then of one close to `order`.

    The latter are found by continuation from order 1 or 2; there every radius that is feasible for
    `order` is feasible as well, since `|s|_p` falls with p.
    """
    extreme = 1.0 if order < 2 else math.inf
    for start in _approximations(signed, radius, extreme):
        point = _solve_from(signed, radius, extreme, start)
        if point is not None:
            yield point
    for first in _approximations(signed, radius, 1.0 if order < 2 else 2.0):
        point = first
        for share in np.linspace(0, 1, _CONTINUATION_STEPS + 1)[:-1]:
            between = 1 + (order - 1) * share if order < 2 else 2 * (order / 2) ** share
            point = point and _solve_from(signed, radius, between, point)
        if point is not None:
            yield point


def _approximations(signed: Array, radius: float, order: float) -> Iterator[Point]:
    """What the solver for `order` says, with the slope that makes the first KKT condition true."""
    for weights, multipliers in _first_solutions(signed, radius, order):
        # An interior-point method that gave up may hold NaN, or no positive multiplier at all.
        if np.isfinite(weights).all() and weights.any() and multipliers.sum() > 0:
            slope = (multipliers @ signed - weights) / (radius * multipliers.sum())
            yield Point(weights, slope, multipliers)


def _first_solutions(signed: Array, radius: float, order: float) -> Iterator[tuple[Array, Array]]:
    """Weights and multipliers."""
    if math.isinf(order):
        split = split_variables(signed, radius)
        if split is not None:
            yield split
    yield max_margin_by_cones(signed, radius, order)


def _with_shortest_multipliers(signed: Array, radius: float, order: float, point: Point) -> Point:
    margin = _margin(signed, radius, order, point.weights)
    if not margin > 0:
        return point
    weights = point.weights / margin
    multipliers = point.multipliers * (weights @ weights / point.multipliers.sum())
    rows = signed - radius * point.slope
    return Point(weights, point.slope, shortest_multipliers(rows, weights, multipliers))


def _margin(signed: Array, radius: float, order: float, weights: Array) -> float:
    return float((signed @ weights).min() - radius * lp_norm(weights, dual_order(order)))
