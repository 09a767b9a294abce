"""What kind of point a KKT point is, in words.

With the margins' own gradients (clean data, total gradient, linear networks) the flow climbs the
margin, and a KKT point that nothing leaves is a maximum of it. With frozen perturbations of a
nonlinear network the flow is no gradient flow. It rests where

    theta = sum_i lambda_i grad q_i(theta),    grad q_i with delta_i held fixed,

while at a maximum of the adversarial margin the same holds with dq_i/dtheta through delta_i. The
two conditions differ, and the margin can be raised near the rest point, which is stable but no
maximum. Whether a point satisfies both is measured at the point, whatever the kind of network.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from gflow._layout import Layout
from gflow.kkt.curvature import Curvature, curvature
from gflow.kkt.open_curvature import open_curvature, with_coefficients
from gflow.kkt.point import KKTPoint
from gflow.kkt.within import system_at
from gflow.limit.dead import growth_elsewhere, with_dead_at_rest
from gflow.limit.search_settings import DEFAULT, VerdictSettings
from gflow.limit.settings import REFINE, RefineSettings
from gflow.problem import Problem

STRICT = ("strict maximum", "stable rest point")
"""Verdicts of isolated points that nothing leaves: of the margin's maxima, and of others."""

WITHIN_FAMILY = ("maximum within a family", "stable within a family")
"""The verdicts in place of `STRICT` for a point in a continuum of points of equal margin."""

DEPENDS = "depends on coefficients at kinks"
"""The verdict where coefficients that the KKT conditions leave open decide between a maximum and a
saddle; `Curvature.undecided` names their kinks."""

VERDICTS = (*STRICT, *WITHIN_FAMILY, "degenerate", DEPENDS, "saddle", "unknown")
"""Every verdict that a limit can have."""

OTHER_GRADIENT = "training holds perturbations fixed: its gradient is not the margin's"
OTHER_CURVATURE = "training holds perturbations fixed: its curvature is not the margin's"
DEAD_GROWS = "a dead neuron would grow if it pointed elsewhere, at a rate of {:.2g}"
"""Why a point that nothing leaves is no maximum of the margin; see `no_maximum`."""


class Verdict(NamedTuple):
    """What kind of point a KKT point is.

    Attributes:
        words: one of `VERDICTS`.
        no_maximum: why a point that nothing leaves is no maximum of the margin; "" of others.
    """

    words: str
    no_maximum: str = ""


def verdict(
    curvature: Curvature, in_family: Callable[[], bool], no_maximum: Callable[[], str]
) -> Verdict:
    """The verdict on a KKT point.

    Args:
        curvature: the eigenvalues of the flow there.
        in_family: whether KKT points of the same margin lie along its neutral directions; asked
            only where there are some.
        no_maximum: why a point that nothing leaves is no maximum of the margin, `no_maximum`; asked
            only of such a point.

    Returns:
        `DEPENDS` where coefficients at kinks decide; "saddle" where the flow leaves along some
        direction; "degenerate" where neutral directions are no family; else one of `STRICT` or
        `WITHIN_FAMILY`.
    """
    if curvature.undecided:
        return Verdict(DEPENDS)
    if curvature.unstable.any():
        return Verdict("saddle")
    words = STRICT
    if curvature.neutral.any():
        if not in_family():
            return Verdict("degenerate")
        words = WITHIN_FAMILY
    reason = no_maximum()
    return Verdict(words[1], reason) if reason else Verdict(words[0])


def in_family(
    point: Any,
    curvature: Curvature,
    beside: Callable[[Any, np.ndarray], Any],
    settings: VerdictSettings = DEFAULT.verdict,
) -> bool:
    """Whether KKT points of the same margin lie along the neutral directions of a KKT point.

    This is tested along one direction among them, drawn at random: from a point a little way along
    it Newton's method must find a KKT point that has the same norm at unit margin and is not the
    point itself.

    Args:
        point: the KKT point.
        beside: the KKT point near a direction beside it; `Refiner.beside`.
    """
    length = np.linalg.norm(point.theta)
    for step, direction in beside_along(point, curvature, settings):
        other = beside(point, direction)
        same = abs(np.linalg.norm(other.theta) / length - 1) < settings.family_margin
        gone = np.linalg.norm(other.direction - point.direction)
        if other.converged and same and gone > settings.family_moved * abs(step):
            return True
    return False


def beside_along(
    point: Any, curvature: Curvature, settings: VerdictSettings = DEFAULT.verdict
) -> Iterator[tuple[float, np.ndarray]]:
    """Where members of a family are looked for: lengths of steps along one neutral direction, and
    the directions at their ends, of norm 1.
    """
    neutral = curvature.vectors[:, curvature.neutral]
    side = neutral @ np.random.default_rng(0).normal(size=neutral.shape[1])
    side /= np.linalg.norm(side)
    for step in settings.family_steps:
        shifted = point.direction + step * side
        yield step, shifted / np.linalg.norm(shifted)


def no_maximum(
    problem: Problem,
    layout: Layout,
    point: KKTPoint,
    settings: VerdictSettings = DEFAULT.verdict,
    refine: RefineSettings = REFINE,
) -> str:
    """Why a rest point that nothing leaves is no maximum of the adversarial margin, with every
    switch at a kink held at its coefficient; "" if it is one.

    It is one if three things hold. First, `sum_i lambda_i dq_i/dtheta`, with the margins' own
    derivatives, equals `sum_i lambda_i grad q_i`, with the gradients of training, to rounding: the
    point is a KKT point of the margin too. Second, no direction is unstable if the Hessian is taken
    of the margins themselves. Third, no neuron that has died out would grow in another direction.
    """
    if not problem.gradients_are_slopes:
        if not _pulls_agree(point, settings):
            return OTHER_GRADIENT
        problem = Problem(
            problem.network,
            problem.dataset,
            loss=problem.loss,
            perturbation=problem.perturbation,
            gradient="total",
            rivals=problem.rivals,
        )
        found = _total_curvature(problem, layout, point, refine)
        if found.unstable.any() or found.undecided:
            return OTHER_CURVATURE
    given = point.theta, point.multipliers
    growth = growth_elsewhere(problem, layout, *given, dead=refine.dead, sizes=refine.sizes)
    return DEAD_GROWS.format(growth) if growth > 0 else ""


def _pulls_agree(point: KKTPoint, settings: VerdictSettings) -> bool:
    """Whether `sum_i lambda_i dq_i/dtheta = sum_i lambda_i grad q_i`, to rounding."""
    at, active = point.linearized, point.active
    slopes, gradients = at.slopes[active], at.gradients[active]
    multipliers = point.multipliers[active]
    gap = np.linalg.norm(multipliers @ (slopes - gradients))
    return bool(gap <= settings.agree * (multipliers @ np.linalg.norm(gradients, axis=1)))


def _total_curvature(
    total: Problem, layout: Layout, point: KKTPoint, refine: RefineSettings
) -> Curvature:
    """The curvature of the margins themselves. One more program is compiled."""
    theta, multipliers = point.theta, point.multipliers
    if point.has_switches:
        held = with_coefficients(total, layout, point, point.variables, point.at_kink)
        return open_curvature(total, layout, held, settings=refine.curvature)
    at = system_at(total, layout, theta, multipliers, active=point.active, sizes=refine.sizes)
    found = curvature(at, point.active, sizes=refine.sizes, settings=refine.curvature)
    return with_dead_at_rest(total, layout, theta, multipliers, found, dead=refine.dead)
