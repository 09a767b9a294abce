"""The public verbs: check the arguments, choose the method, certify the answer."""

import math
from collections.abc import Iterator
from typing import Any, SupportsFloat

import numpy as np

from gflow._checks import check_unmasked, check_untraced, whole_or_real
from gflow._interrupts import interruptible
from gflow._numerics import dual_order
from gflow._signatures import named
from gflow.reference._classes import largest_radius_of_classes, max_margin_of_classes
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

_SMALLEST_INPUT = 1e-120

# An attack moves no input by more than the radius: less than this part of the largest is rounding.
_NOTHING = float(np.finfo(np.float64).eps) / 4

_CONTINUATION_STEPS = 10

# So close to the largest feasible radius, relative, its two bounds are sought to rounding: the
# solution that much below it has bounds of its own, off by the square of this.
_CLOSE = 1e-7


@named()
@interruptible
def max_margin(dataset: Any, *, radius: SupportsFloat = 0.0, order: SupportsFloat = 2) -> MaxMargin:
    """The direction of largest margin under an l_p attack, `p = order`, of the given radius.

        argmax over |w|_2 = 1 of   min_i y_i <w, x_i> - radius |w|_q,      1/p + 1/q = 1.

    It is the limit direction of linear networks, and of the product of the layers of deep linear
    ones, under adversarial training with that attack. The direction is correct to about 1e-12;
    `duality_gap` in the answer proves the margin. For order 2 it is the support-vector direction of
    the clean data at every radius; for other orders it depends on the radius.

    An infeasible radius is an outcome, not an error: `feasible` is False, the numbers are NaN and
    `message` names the largest feasible radius. A margin below 1e-12 of the data's largest entry
    counts as none. Close to the largest feasible radius `feasible` still says on which side of it
    `radius` lies: a direction with a positive margin proves the one side, a bound that no direction
    exceeds the other. Between the two, which rounding leaves some 1e-14 apart, relative,
    `feasible` is False and `message` says that the sides cannot be told apart.

    Order 2 and inf: SciPy's nonnegative least squares, as least-distance programming. Order 1 and
    any other: Clarabel. Then the active set, or Newton's method on it, gives the last digits.

    For classes 0 .. k-1 the weights are a matrix W with a row for each class, the norm is that of
    Frobenius, and the attack is made against every rival separately:

        min_i min_{j != y_i}  <W_{y_i} - W_j, x_i> - radius |W_{y_i} - W_j|_q.

    Args:
        dataset: a `gflow.Dataset`, or what has `x` (n, d) and `y` (n,) in {-1, +1} or 0 .. k-1.
        radius: of the attack, >= 0, in the units of the inputs.
        order: p >= 1 of its l_p ball.

    Raises:
        TypeError: `dataset` has no `x` and `y`; `radius` or `order` is not a number.
        ValueError: `radius` is negative, NaN or infinite; `order` is below 1 or NaN; labels other
            than -1 and +1 or the classes 0 .. k-1; NaN, infinity or masked entries in `x`.

    Source: Lyu & Zhu 2022, "Implicit bias of adversarial training for deep neural networks".
    """
    x, y, num_classes = _examples(dataset)
    radius, order = _checked_radius(radius), _checked_order(order)
    if num_classes > 1:
        return max_margin_of_classes(x, y, num_classes, radius, order)
    return _solved(y[:, None] * x, radius, order)


@named()
def largest_feasible_radius(dataset: Any, *, order: SupportsFloat = 2) -> float:
    """The radius from which on an l_p attack leaves no direction with a positive margin.

        max over |w|_q <= 1 of   min_i y_i <w, x_i>,      1/p + 1/q = 1, p = order,

    which is also the l_p distance from 0 to the convex hull of the `y_i x_i`. It is 0 if the data
    are not linearly separable by a hyperplane through the origin, and NaN where the solvers cannot
    tell. Relative error about 1e-9.

    Raises: as `max_margin`.
    """
    (x, y, num_classes), order = _examples(dataset), _checked_order(order)
    if num_classes > 1:
        return largest_radius_of_classes(x, y, num_classes, order)
    signed = y[:, None] * x
    clean = least_norm(signed)
    if clean is None:
        return 0.0 if inseparable(signed) else math.nan
    return norm_margin(signed, order, *clean).radius


def _solved(signed: Array, radius: float, order: float) -> MaxMargin:
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


def _examples(dataset: Any) -> tuple[Array, Array, int]:
    """Inputs, labels and the number of classes (1 for the labels -1 and +1), checked."""
    if not (hasattr(dataset, "x") and hasattr(dataset, "y")):
        raise TypeError(
            f"expected a data set with `x` and `y`, got {type(dataset).__name__}. "
            "`gflow.Dataset(x, y)` makes one from arrays."
        )
    for name in ("x", "y"):
        check_untraced(getattr(dataset, name), f"`max_margin(dataset)`, `{name}`")
        check_unmasked(getattr(dataset, name), f"`max_margin(dataset)`, `{name}`")
    x, y = np.asarray(dataset.x, dtype=np.float64), np.asarray(dataset.y, dtype=np.float64)
    if x.ndim != 2 or 0 in x.shape or y.shape != x.shape[:1]:
        raise ValueError(
            f"`x` has shape {x.shape} and `y` {y.shape}; expected (n, d) and (n,), n, d >= 1."
        )
    num_classes = _num_classes(y)
    if not np.isfinite(x).all():
        raise ValueError("`x` holds NaN or infinity. Remove or impute those examples.")
    largest = np.abs(x).max()
    if largest and not _SMALLEST_INPUT < largest < 1 / _SMALLEST_INPUT:
        raise ValueError(
            f"the largest entry of `x` is {largest:.1e} in size: squares of such numbers leave the "
            "range of float64. Rescale `x` (and `radius`); the direction does not change."
        )
    return x, y.astype(int), num_classes


def _num_classes(y: Array) -> int:
    """1 for labels -1 and +1, k for labels 0 .. k-1."""
    if np.isin(y, (-1.0, 1.0)).all():
        return 1
    classes = np.unique(y)
    if len(classes) < 2 or not np.array_equal(classes, np.arange(len(classes))):
        raise ValueError(
            "`y` must hold the labels -1 and +1, or the classes 0 .. k-1 with an example of each."
        )
    return len(classes)


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
    check_untraced(value, f"`max_margin({name}=...)`")
    check_unmasked(value, f"`max_margin({name}=...)`")
    if isinstance(value, (str, bytes, bool)):
        raise TypeError(f"`{name}={value!r}` is not a number.")
    try:
        return whole_or_real(value)
    except (TypeError, ValueError):
        raise TypeError(f"`{name}={value!r}` is not a number.") from None
