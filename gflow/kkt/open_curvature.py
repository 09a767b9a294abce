"""Second order at kinks whose coefficients stationarity leaves open.

The coefficients are those of `gflow.kkt.open_coefficients`.

With `H(s) = H(0) + sum_k s_k D_k` on the critical cone, and `s(h)` the coefficients that fall to a
direction h, the point is a maximum of the margin where `h^T H(s(h)) h > 0` for all h, and a saddle
where that is negative for one. What a switch k adds is

- `+|h^T D_k h|` where D_k is a positive multiple of V_k: the margin is the minimum over the
  coefficient, as under an attack. As with the multipliers of a constraint, one admissible s with
  `H(s) >= 0` proves a maximum, and the best one is the solution of the semidefinite program
  `max_s lambda_min(H(s))`, `-1 <= s <= 1`;
- `-|h^T D_k h|` where it is a negative multiple: the margin is the maximum over it, and `H(s) >= 0`
  is needed at both ends of its range; likewise where the switch turns to first order, as then h and
  -h are on either side;
- one or the other where it is no multiple: both ends are enough, not needed.

Switches whose D_k are multiples of each other count as one, whose range is their sum. A direction
is tried for a saddle by the coefficients that do fall to it. Where neither is proven the verdict
depends on the coefficients, and says on which. Where H is not symmetric (frozen perturbations of a
nonlinear network) the flow's stability is all that there is: it must hold at all ends.

Source: Bonnans & Shapiro 2000, "Perturbation Analysis of Optimization Problems", section 3.3, for
second-order conditions with a set of multipliers; Clarke 1983.
"""

import dataclasses

import numpy as np

from gflow._layout import Layout
from gflow.kkt.curvature import Curvature, kinked_curvature
from gflow.kkt.kinked_system import kinked_system
from gflow.kkt.open_coefficients import OpenSwitches
from gflow.kkt.point import KKTPoint
from gflow.kkt.second_order import SecondOrder, multiples, some_ends, undecided_at
from gflow.kkt.settings import CURVATURE, CurvatureSettings
from gflow.kkt.variables import Variables
from gflow.problem import Problem

# Up to so many ranges have all their 2^n ends tried where H is not symmetric: each takes the QZ
# method.
_MOST_PENCILS = 5


def open_curvature(
    problem: Problem,
    layout: Layout,
    point: KKTPoint,
    *,
    settings: CurvatureSettings = CURVATURE,
) -> Curvature:
    """The eigenvalues at a KKT point at kinks, with coefficients that stationarity leaves open.

    Returns:
        `kinked_curvature` where there are none. Else at a maximum the eigenvalues with the
        coefficients that prove it; at a saddle a direction of escape before those that remain; and
        where it depends on coefficients, `.undecided` names their switches.
    """
    switches = OpenSwitches(problem, layout, point)
    if not len(switches.places):
        return kinked_curvature(point, settings=settings)
    held = point.at_kink.copy()
    held[tuple(switches.places[switches.vanishing].T)] = False
    base = with_coefficients(problem, layout, point, point.variables, held)
    found = kinked_curvature(base, settings=settings)
    if not found.symmetric:
        return _stable_at_ends(problem, layout, base, switches, settings)
    return SecondOrder(switches, found).judged()


def _stable_at_ends(
    problem: Problem,
    layout: Layout,
    base: KKTPoint,
    switches: OpenSwitches,
    settings: CurvatureSettings,
) -> Curvature:
    """The least stable eigenvalues, where all ends of the coefficients agree."""
    probe = np.random.default_rng(0).normal(size=base.theta.size)
    index = np.flatnonzero(switches.vanishing)
    turned = switches.effects(probe, index).turned
    index = index[np.any(turned, axis=1)]
    groups = multiples(turned[np.any(turned, axis=1)])
    found = []
    for ends in some_ends(len(groups), _MOST_PENCILS):
        angles = base.variables.angles.copy()
        for end, (members, ratios) in zip(ends, groups, strict=True):
            angles[tuple(switches.places[index[members]].T)] = np.pi / 2 * end * np.sign(ratios)
        there = base.variables._replace(angles=angles)
        turned_to = with_coefficients(problem, layout, base, there, base.at_kink)
        found.append(kinked_curvature(turned_to, settings=settings))
    least = min(found, key=lambda curvature: curvature.values.min(initial=np.inf))
    unstable = [bool(curvature.unstable.any()) for curvature in found]
    if len(groups) <= _MOST_PENCILS and len(set(unstable)) == 1:
        return least
    return undecided_at(least, switches.places[index])


def with_coefficients(
    problem: Problem, layout: Layout, point: KKTPoint, variables: Variables, at_kink: np.ndarray
) -> KKTPoint:
    """The KKT point with other angles at kinks where they do not matter to it, and with these kinks
    alone to hold it.

    Args:
        variables: those of the point, but for the angles.
        at_kink: the kinks that hold it. Shape (n, s).
    """
    return dataclasses.replace(
        point,
        coefficients=np.sin(variables.angles),
        at_kink=at_kink,
        system=kinked_system(problem, layout, variables, 0.0, np.flatnonzero(at_kink)),
    )
