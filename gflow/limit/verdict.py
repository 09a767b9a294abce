"""What kind of point a KKT point is, in words.

With the margins' own gradients (clean data, total gradient, linear networks) the flow climbs the
margin, and a KKT point that nothing leaves is a maximum of it. With frozen perturbations of a
nonlinear network the flow is no gradient flow. It rests where

    theta = sum_i lambda_i grad q_i(theta),    grad q_i with delta_i held fixed,

while at a maximum of the adversarial margin the same holds with dq_i/dtheta through delta_i. The
two differ there, and the margin can be raised beside the rest point: it is stable, and no maximum.
Which of both a point is gets decided by what is measured there, not by the kind of network.
"""

from collections.abc import Callable

import numpy as np

from gflow._layout import Layout
from gflow.kkt.curvature import Curvature, curvature
from gflow.kkt.open_curvature import open_curvature, with_coefficients
from gflow.kkt.point import KKTPoint
from gflow.kkt.system import kkt_system
from gflow.limit.dead import with_dead_at_rest
from gflow.problem import Problem

STRICT = ("strict maximum", "stable rest point")
"""Verdicts of isolated points that nothing leaves: of the margin's maxima, and of others."""

WITHIN_FAMILY = ("maximum within a family", "stable within a family")
"""Their twins in a continuum of points of equal margin."""

VERDICTS = (*STRICT, *WITHIN_FAMILY, "degenerate", "saddle", "unknown")
"""Every verdict that a limit can have."""

# The two pulls agree where they differ by less than this part of their terms: rounding.
_ROUNDING = 1e-11


def verdict(
    curvature: Curvature, in_family: Callable[[], bool], maximum: Callable[[], bool]
) -> str:
    """The verdict on a KKT point.

    Args:
        curvature: the eigenvalues of the flow there.
        in_family: whether KKT points of the same margin lie along its neutral directions; asked
            only where there are some.
        maximum: whether a point that nothing leaves is a maximum of the margin, `is_maximum`; asked
            only of such a point.

    Returns:
        "saddle" where the flow leaves along some direction; "degenerate" where neutral directions
        are no family; else one of `STRICT` or `WITHIN_FAMILY`.
    """
    if curvature.unstable.any():
        return "saddle"
    words = STRICT
    if curvature.neutral.any():
        if not in_family():
            return "degenerate"
        words = WITHIN_FAMILY
    return words[0] if maximum() else words[1]


def is_maximum(problem: Problem, layout: Layout, point: KKTPoint) -> bool:
    """Whether a rest point that nothing leaves is a maximum of the adversarial margin, with every
    switch at a kink held at its coefficient.

    It is one if the margins' own gradients pull as those of the gradient mode do, to rounding, with
    the same multipliers, and no direction is unstable with their derivatives either.
    """
    if problem.gradients_are_slopes:
        return True
    if not _pulls_agree(point):
        return False
    total = Problem(
        problem.network,
        problem.dataset,
        loss=problem.loss,
        perturbation=problem.perturbation,
        gradient="total",
    )
    found = _total_curvature(total, layout, point)
    return not (found.unstable.any() or found.undecided)


def _pulls_agree(point: KKTPoint) -> bool:
    """Whether `sum_i lambda_i dq_i/dtheta` and `sum_i lambda_i grad q_i` do."""
    at, active = point.linearized, point.active
    slopes, gradients = at.slopes[active], at.gradients[active]
    multipliers = point.multipliers[active]
    gap = np.linalg.norm(multipliers @ (slopes - gradients))
    return bool(gap <= _ROUNDING * (multipliers @ np.linalg.norm(gradients, axis=1)))


def _total_curvature(total: Problem, layout: Layout, point: KKTPoint) -> Curvature:
    """The curvature of the margins themselves. One more program is compiled."""
    theta, multipliers = point.theta, point.multipliers
    if point.has_switches:
        held = with_coefficients(total, layout, point, point.variables, point.at_kink)
        return open_curvature(total, layout, held)
    found = curvature(kkt_system(total, layout, theta, multipliers), point.active)
    return with_dead_at_rest(total, layout, theta, multipliers, found)
