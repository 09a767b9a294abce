"""Smoothing led to 0 from a KKT point of the smoothed problem, by Newton's method.

At the mu of a smoothed problem its KKT points are solutions of `gflow.kkt.kinked_step`, and their
multipliers and slopes the start. Unlike Newton's method on theta alone, which has to cross a slope
as steep as 1/mu, that on all three unknowns stays well conditioned for mu -> 0, as primal-dual
interior points do. Switches that have come to rest at +-pi/2 are no kinks and leave; with mu = 0
the last iterations are exact.

Source: Clarke 1983 for the subdifferential; Lyu & Zhu 2022 for the KKT system.
"""

import math

import numpy as np

from gflow._layout import Layout
from gflow.kkt.kinked_equations import Point
from gflow.kkt.kinked_path import LAST_SMOOTHING, ROUNDED, Path
from gflow.kkt.kinks import Kinks, found
from gflow.kkt.switches import settled_angles
from gflow.problem import Problem

_FIRST_FACTOR = 0.6
# Weights below this part of the largest may vanish with the smoothing, as sqrt(mu) does; or have,
# but for what Newton's method left; and below what part of its gradient a switch does not depend on
# a weight.
_VANISHING, _VANISHED, _NO_PART = 0.05, 1e-5, 1e-6


def follow(
    problem: Problem,
    layout: Layout,
    start: Point,
    smoothing: float,
    *,
    tolerance: float = ROUNDED,
) -> Kinks:
    """The KKT point at kinks to which a KKT point of the smoothed problem leads.

    Where smoothing cannot fall any further, the branch of KKT points ends or turns, and the last
    one is returned, with its smoothing.

    Args:
        problem: with its kinks.
        start: a KKT point of `smoothed(problem, smoothing)` at unit margin, with its multipliers
            and angles; the weights of dead neurons next to nothing, in the direction that decides
            their slopes.
        smoothing: mu > 0.
        tolerance: of the residual of the exact point.
    """
    path = Path(problem, layout, float(start.multipliers.max()), tolerance)
    now, smoothing = path.lower(start, smoothing, _FIRST_FACTOR)
    return concluded(path, now, smoothing)


def start_at(
    problem: Problem, layout: Layout, theta: np.ndarray, multipliers: np.ndarray, smoothing: float
) -> Point:
    """A point with the angles of the smoothed problem."""
    angles = np.asarray(settled_angles(problem, layout.unflatten(theta), smoothing))
    return Point(theta, np.where(multipliers > 0, multipliers, 0.0), angles)


def concluded(path: Path, point: Point, smoothing: float) -> Kinks:
    """What a path ended with: the exact point, if it came to the last smoothing."""
    kinks = path.kinks(point)
    if smoothing > LAST_SMOOTHING:
        return found(path, point, smoothing, kinks)
    exact = path.exact(point, kinks)
    if exact is None:
        exact = _exact_with_zeros(path, point, kinks, _VANISHING)
    else:
        exact = _exact_with_zeros(path, exact, kinks, _VANISHED) or exact
    if exact is None:
        return found(path, point, smoothing, kinks)
    return found(path, exact, 0.0, kinks)


def _exact_with_zeros(path: Path, point: Point, kinks: np.ndarray, below: float) -> Point | None:
    """The solution at smoothing 0 without the small weights that some kinks depend on alone; None
    where there are none.

    A switch that follows a product of weights, such as `u_j^2 - v_j^2`, rounds them off to
    `sqrt(mu)`: to Newton's method their 0 is a double root, to which it comes slowly or not at all.
    At the 0 itself the switch has no say, and Newton's method for all else converges.
    """
    at = path.at(point, LAST_SMOOTHING, np.flatnonzero(kinks))
    size, count = point.theta.size, point.multipliers.size
    rows = np.abs(np.asarray(at.jacobian)[size + count :, :size][: np.count_nonzero(kinks)])
    small = np.abs(point.theta) <= below * np.abs(point.theta).max()
    others = rows[:, ~small].max(axis=1, initial=0.0)
    on_small = others <= _NO_PART * rows.max(axis=1, initial=0.0)
    vanishing = small & np.any(rows[on_small] > 0, axis=0)
    if not vanishing.any():
        return None
    return path.exact(point._replace(theta=np.where(vanishing, 0.0, point.theta)), kinks)


def unfinished(path: Path, point: Point, smoothing: float) -> Kinks:
    """What a path ended with, where that is no KKT point at kinks."""
    return found(path, point, smoothing, path.kinks(point))


def follow_back(
    problem: Problem,
    layout: Layout,
    kinks: Kinks,
    theta: np.ndarray,
    *,
    tolerance: float = ROUNDED,
) -> Kinks:
    """The KKT point with the same kinks near `theta`, a point beside `kinks.theta`."""
    path = Path(problem, layout, float(kinks.multipliers.max()), tolerance)
    beside = kinks.point._replace(theta=theta)
    exact = path.exact(beside, kinks.at_kink)
    if exact is None:
        return found(path, beside, math.nan, kinks.at_kink)
    return found(path, exact, 0.0, kinks.at_kink)
