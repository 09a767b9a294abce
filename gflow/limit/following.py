"""The smoothing led to 0 from a KKT point of the smoothed problem, by Newton's method.

A KKT point of the problem smoothed by mu solves the equations of `gflow.limit.complementarity`, and
is the start, with its multipliers and angles. Newton's method on theta alone would meet functions
with slopes of the order of 1/mu; on theta, multipliers and angles together it stays well
conditioned as mu -> 0, as primal-dual interior-point methods do. A switch whose angle has come to
+-pi/2 stands at no kink, and its angle is no longer an unknown. The last iterations, with mu = 0,
are exact.

Source: Clarke 1983 for the subdifferential; Lyu & Zhu 2022 for the KKT system.
"""

import math
from typing import Any

import numpy as np

from gflow._layout import Layout
from gflow.kkt.kinked_system import settled_angles_at
from gflow.kkt.point import KKTPoint, active_residual
from gflow.kkt.switches import alive
from gflow.kkt.variables import Variables
from gflow.limit.kinked_newton import KinkedNewton
from gflow.limit.settings import REFINE, RefineSettings
from gflow.problem import Problem


def follow(
    problem: Problem,
    layout: Layout,
    start: Variables,
    smoothing: float,
    *,
    tolerance: float | None = None,
    settings: RefineSettings = REFINE,
) -> KKTPoint:
    """The KKT point at kinks to which a KKT point of the smoothed problem leads.

    Where smoothing cannot fall any further, the branch of KKT points ends or turns, and the last
    one is returned, with its smoothing.

    Args:
        problem: with its kinks.
        start: a KKT point of `smoothed(problem, smoothing)` at unit margin, with its multipliers
            and angles. The weights of dead neurons are tiny and not 0, since their direction
            decides the slopes.
        smoothing: mu > 0.
        tolerance: of the residual of the exact point; that of `settings.smoothing` by default.
    """
    newton = KinkedNewton(problem, layout, float(start.multipliers.max()), tolerance, settings)
    now, smoothing = newton.lowered(start, smoothing, settings.smoothing.steps.first_factor)
    return concluded(newton, now, smoothing)


def start_at(
    problem: Problem, layout: Layout, theta: np.ndarray, multipliers: np.ndarray, smoothing: float
) -> Variables:
    """A point with the angles of the smoothed problem."""
    angles = settled_angles_at(problem, layout, theta, smoothing)
    return Variables(theta, np.where(multipliers > 0, multipliers, 0.0), angles)


def follow_back(
    problem: Problem,
    layout: Layout,
    point: KKTPoint,
    theta: np.ndarray,
    *,
    tolerance: float | None = None,
    settings: RefineSettings = REFINE,
) -> KKTPoint:
    """The KKT point with the same kinks near `theta`, which lies beside `point.theta`."""
    newton = KinkedNewton(problem, layout, float(point.multipliers.max()), tolerance, settings)
    beside = point.variables._replace(theta=theta)
    exact = newton.exact(beside, point.at_kink)
    if exact is None:
        return judged(newton, beside, math.nan, point.at_kink)
    return judged(newton, exact, 0.0, point.at_kink)


def concluded(newton: KinkedNewton, now: Variables, smoothing: float) -> KKTPoint:
    """The end of a path: the exact KKT point, if the path came to the last smoothing and an exact
    point was found; else the last solution.

    Args:
        now: the solution at `smoothing`.
    """
    settings, at_kink = newton.settings, newton.at_kink(now)
    if smoothing > settings.steps.last:
        return judged(newton, now, smoothing, at_kink)
    exact = newton.exact(now, at_kink)
    if exact is None:
        exact = _exact_with_zeros(newton, now, at_kink, settings.vanishing)
    else:
        exact = _exact_with_zeros(newton, exact, at_kink, settings.vanished) or exact
    if exact is None:
        return judged(newton, now, smoothing, at_kink)
    return judged(newton, exact, 0.0, at_kink)


def unfinished(newton: KinkedNewton, now: Variables, smoothing: float) -> KKTPoint:
    """The end of a path that led to no exact KKT point: its last solution."""
    return judged(newton, now, smoothing, newton.at_kink(now))


def _exact_with_zeros(
    newton: KinkedNewton, now: Variables, at_kink: np.ndarray, below: float
) -> Variables | None:
    """The solution at smoothing 0 with 0 for the small weights on which alone some kinks depend;
    None where there are no such weights.

    Where the value of a switch is of second order in some weights, as `u_j^2 - v_j^2` is, smoothing
    keeps these weights at a size of about `sqrt(mu)`. At mu = 0 they are a double root, to which
    Newton's method converges slowly or not at all. With these weights set to 0 the switch no longer
    matters, and Newton's method for the other unknowns converges.

    Args:
        below: weights below this part of the largest are small.
    """
    no_part = newton.settings.no_part
    rows = np.abs(newton.switch_rows(now, at_kink))
    small = np.abs(now.theta) <= below * np.abs(now.theta).max()
    others = rows[:, ~small].max(axis=1, initial=0.0)
    on_small = others <= no_part * rows.max(axis=1, initial=0.0)
    vanishing = small & np.any(rows[on_small] > 0, axis=0)
    if not vanishing.any():
        return None
    return newton.exact(now._replace(theta=np.where(vanishing, 0.0, now.theta)), at_kink)


def judged(newton: KinkedNewton, now: Variables, smoothing: float, at_kink: np.ndarray) -> KKTPoint:
    """A point with these kinks, and whether it is a KKT point.

    Args:
        smoothing: at which it is a solution; NaN if it is none.
        at_kink: the switches taken to stand on their kinks. Shape (n, s).
    """
    slack, zero = newton.settings.slack, newton.settings.zero
    theta = np.where(np.abs(now.theta) < zero * np.abs(now.theta).max(), 0.0, now.theta)
    active = now.multipliers > slack * now.multipliers.max()
    last = Variables(theta, np.where(active, now.multipliers, 0.0), now.angles)
    exact = smoothing == 0
    within: Any = {"margins": active, "force": theta, "whole": exact}
    at = newton.linearized(last, smoothing, np.flatnonzero(at_kink), **within)
    residual = active_residual(at.stationarity, at.margins, theta, active)
    assert at.switches is not None
    values, scales = at.switches.values, at.switches.scales
    if exact:  # v cos phi = 0: switches with v = 0 stand on the kink, others have turned
        at_kink = at_kink & (np.abs(values) < slack * scales)
        at = newton.linearized(last, smoothing, np.flatnonzero(at_kink), **within)
    pushing = newton.pushing(last.multipliers, smoothing)[:, None]
    wrong = (np.sin(now.angles) * values < -slack * scales) & pushing & ~at_kink
    wrong &= alive(newton.problem, scales)
    beyond = np.abs(now.angles[at_kink]) > np.pi / 2 - 1e-9
    right = not wrong.any() and not beyond.any() and at.margins.min() > 1 - slack
    return KKTPoint(
        theta=theta,
        multipliers=last.multipliers,
        active=active,
        residual=residual,
        converged=bool(exact and right and residual <= newton.tolerance),
        num_iterations=newton.num_iterations,
        system=at,
        smoothing=smoothing,
        coefficients=np.sin(now.angles),
        at_kink=at_kink,
    )
