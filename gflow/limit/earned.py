"""When a limit is successful: the end of a search is judged by its certificate.

That no stage failed is not enough: the numbers of the certificate, which are computed anew at the
end, have to show that the point is a KKT point.
"""

import numpy as np

from gflow.kkt.certificate import Certificate
from gflow.kkt.strong_attack import ball_of
from gflow.limit.verdict import STRICT, WITHIN_FAMILY
from gflow.problem import Problem
from gflow.reference import largest_feasible_radius
from gflow.results import RESULTS, name_of

_GOOD = ("successful", "decided_by_rounding")


def earned(
    result: RESULTS, certificate: Certificate, residual: float, tolerance: float, verdict: str
) -> RESULTS:
    """The outcome of a search, successful only for a certified rest point.

    That is: all margins are positive, the residual of the KKT system is within the tolerance, the
    verdict names a point that nothing leaves, and every number of the certificate is finite. Where
    a search ends well without all of these, it is `not_certified`; another outcome stays as it is.

    Args:
        residual: of the KKT point at unit margin, relative.
    """
    if name_of(result) not in _GOOD:
        return result
    numbers = (
        certificate.stationarity,
        certificate.complementarity,
        certificate.dual_infeasibility,
        certificate.held_margin,
        *np.ravel(certificate.multipliers),
    )
    holds = (
        certificate.normalized_margin > 0
        and residual <= tolerance
        and certificate.stationarity <= tolerance
        and verdict in (*STRICT, *WITHIN_FAMILY)
        and np.all(np.isfinite(numbers))
    )
    return result if holds else RESULTS.not_certified  # pyright: ignore[reportReturnType]


def unrefuted(result: RESULTS, problem: Problem) -> RESULTS:
    """The outcome of a search that did not separate the perturbed examples: `not_separated` in
    place of `radius_above_margin` where the radius is known to be smaller.
    """
    if name_of(result) == "radius_above_margin" and separable(problem):
        return RESULTS.not_separated  # pyright: ignore[reportReturnType]
    return result


def separable(problem: Problem) -> bool:
    """Whether some direction is known to separate the perturbed examples: of a network that is
    linear in its inputs, under an attack in an l_p ball, by the convex reference.
    """
    ball = ball_of(problem.perturbation)
    if not problem.network.linear_in_inputs or ball.box is not None:
        return False
    largest = largest_feasible_radius(problem.dataset, order=ball.order)
    return bool(np.max(ball.radius) < largest)
