"""The public verbs: check the arguments, choose the method, certify the answer."""

import math
from collections.abc import Iterator
from typing import Any, SupportsFloat

import numpy as np

from gflow._numerics import dual_order
from gflow.reference._cones import max_margin_by_cones
from gflow.reference._least_norm import inseparable, least_norm, shortest_multipliers
from gflow.reference._norms import Array, lp_norm, subgradient
from gflow.reference._polyhedral import face_of, solve_on_faces, split_variables
from gflow.reference._radius import NormMargin, norm_margin
from gflow.reference._smooth import solve_smooth
from gflow.reference._solution import MaxMargin, Point, certified, infeasible, unsolved

# A solution proved to this relative duality gap, or to a hundred times the gap that rounding its
# direction to float64 leaves, is good; no other method is tried.
_GOOD_GAP = 1e-12

_SMALLEST_INPUT = 1e-120

_CONTINUATION_STEPS = 10


def max_margin(dataset: Any, *, radius: SupportsFloat = 0.0, order: SupportsFloat = 2) -> MaxMargin:
    """The direction of largest margin under an l_p attack, `p = order`, of the given radius.

        argmax over |w|_2 = 1 of   min_i y_i <w, x_i> - radius |w|_q,      1/p + 1/q = 1.

    It is the limit direction of linear networks, and of the product of the layers of deep linear
    ones, under adversarial training with that attack. The direction is correct to about 1e-12;
    `duality_gap` in the answer proves the margin. For order 2 it is the support-vector direction of
    the clean data at every radius; for other orders it depends on the radius.

    An infeasible radius is an outcome, not an error: `feasible` is False, the numbers are NaN and
    `message` names the largest feasible radius. A margin below 1e-12 of the data's largest entry
    counts as none.

    Order 2 and inf: SciPy's nonnegative least squares, as least-distance programming. Order 1 and
    any other: Clarabel. Then the active set, or Newton's method on it, gives the last digits.

    Args: `dataset` has `x` (n, d) and `y` (n,) in {-1, +1}, as `gflow.Dataset`.

    Raises:
        TypeError: `dataset` has no `x` and `y`; `radius` or `order` is not a number.
        ValueError: `radius` is negative, NaN or infinite; `order` is below 1 or NaN; labels other
            than -1 and +1; NaN or infinity in `x`.

    Source: Lyu & Zhu 2022, "Implicit bias of adversarial training for deep neural networks".
    """
    signed = _signed_examples(dataset)
    return _solved(signed, _checked_radius(radius), _checked_order(order))


def largest_feasible_radius(dataset: Any, *, order: SupportsFloat = 2) -> float:
    """The radius from which on an l_p attack leaves no direction with a positive margin.

        max over |w|_q <= 1 of   min_i y_i <w, x_i>,      1/p + 1/q = 1, p = order,

    which is also the l_p distance from 0 to the convex hull of the `y_i x_i`. It is 0 if the data
    are not linearly separable by a hyperplane through the origin, and NaN where the solvers cannot
    tell. Relative error about 1e-9.

    Raises: as `max_margin`.
    """
    signed, order = _signed_examples(dataset), _checked_order(order)
    clean = least_norm(signed)
    if clean is None:
        return 0.0 if inseparable(signed) else math.nan
    return norm_margin(signed, order, clean[0]).radius


def _solved(signed: Array, radius: float, order: float) -> MaxMargin:
    clean = least_norm(signed)
    if clean is None:
        return infeasible(signed, radius, order, 0.0 if inseparable(signed) else math.nan)
    limit = norm_margin(signed, order, clean[0])
    if radius >= limit.radius:
        return infeasible(signed, radius, order, limit.radius)
    best = unsolved(signed, radius, order, limit.radius)
    rounding = 100 * np.finfo(np.float64).eps * np.linalg.norm(signed, axis=1).max()
    for point in _points(signed, radius, order, clean, limit):
        point = _with_shortest_multipliers(signed, radius, order, point)
        answer = certified(signed, radius, order, limit.radius, point)
        best = min(
            best, answer, key=lambda a: math.inf if np.isnan(a.duality_gap) else a.duality_gap
        )
        if best.duality_gap <= _GOOD_GAP + rounding / best.margin:
            break
    return best


def _points(
    signed: Array, radius: float, order: float, clean: tuple[Array, Array], limit: NormMargin
) -> Iterator[Point]:
    """Solutions by one method after another, the best method first."""
    if radius == 0 or order == 2:
        # `|w|_2` is 1 on the sphere: the attack lowers every margin by the same amount.
        weights, multipliers = clean
        yield Point(weights, subgradient(weights, dual_order(order)), multipliers)
        return
    # In these units the margin, and with it every solver's variables, are of moderate size.
    unit = limit.radius - radius
    signed, radius = signed / unit, radius / unit
    for start in _starts(signed, radius, order, clean[0] * unit, limit):
        point = _solve_from(signed, radius, order, start)
        yield start if point is None else point


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


def _signed_examples(dataset: Any) -> Array:
    """The rows `y_i x_i`, checked."""
    if not (hasattr(dataset, "x") and hasattr(dataset, "y")):
        raise TypeError(
            f"expected a data set with `x` and `y`, got {type(dataset).__name__}. "
            "`gflow.Dataset(x, y)` makes one from arrays."
        )
    x, y = np.asarray(dataset.x, dtype=np.float64), np.asarray(dataset.y, dtype=np.float64)
    if x.ndim != 2 or 0 in x.shape or y.shape != x.shape[:1]:
        raise ValueError(
            f"`x` has shape {x.shape} and `y` {y.shape}; expected (n, d) and (n,), n, d >= 1."
        )
    if not np.isin(y, (-1.0, 1.0)).all():
        raise ValueError(
            "`y` must hold the labels -1 and +1: the maximal margin of one hyperplane is defined "
            "for two classes. Choose two of them and relabel."
        )
    if not np.isfinite(x).all():
        raise ValueError("`x` holds NaN or infinity. Remove or impute those examples.")
    largest = np.abs(x).max()
    if largest and not _SMALLEST_INPUT < largest < 1 / _SMALLEST_INPUT:
        raise ValueError(
            f"the largest entry of `x` is {largest:.1e} in size: squares of such numbers leave the "
            "range of float64. Rescale `x` (and `radius`); the direction does not change."
        )
    return y[:, None] * x


def _checked_radius(radius: Any) -> float:
    value = _number(radius, "radius")
    if not 0 <= value < math.inf:
        raise ValueError(f"`radius={radius!r}` must be finite and not negative.")
    return value


def _checked_order(order: Any) -> float:
    value = _number(order, "order")
    if not value >= 1:
        raise ValueError(
            f"`order={order!r}` must lie in [1, inf]: below 1 there is no norm. It is the order of "
            "the attack's ball; 2 is FGM, `math.inf` is FGSM."
        )
    return value


def _number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"`{name}={value!r}` is not a number.") from None
