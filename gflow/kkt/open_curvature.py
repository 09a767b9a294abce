"""Second order at kinks whose coefficients stationarity leaves open.

The coefficients are those of `gflow.kkt.open_coefficients`.

Let `H(s) = H(0) + sum_k s_k D_k` on the critical cone, and let `s(h)` be the coefficients that hold
along a direction h: the signs of the switches at `theta + h`. The point is a maximum of the margin
if `h^T H(s(h)) h > 0` for all h, and a saddle if that is negative for one. A switch k adds the term

- `+|h^T D_k h|` where D_k is a positive multiple of V_k: the margin is the minimum over the
  coefficient, as under an attack. As with the multipliers of a constraint, one admissible s with
  `H(s) >= 0` proves a maximum, and the best one is the solution of the semidefinite program
  `max_s lambda_min(H(s))`, `-1 <= s <= 1`;
- `-|h^T D_k h|` where it is a negative multiple: the margin is the maximum over it, and `H(s) >= 0`
  is needed at both ends of its range; likewise where the switch turns to first order, as then h and
  -h are on either side;
- one or the other where it is no multiple: `H(s) >= 0` at both ends is then sufficient for a
  maximum but not necessary.

Switches whose D_k are multiples of each other are treated as one, whose range is the sum of theirs.
A saddle is proven by a direction h along which the form is negative with the coefficients s(h). If
neither is proven, the verdict is that it depends on the coefficients, and names them. If H is not
symmetric (frozen perturbations of a nonlinear network), there is no such form, and the point counts
as stable if the flow is stable at all ends of the ranges.

Source: Bonnans & Shapiro 2000, "Perturbation Analysis of Optimization Problems", section 3.3, for
second-order conditions with a set of multipliers; Clarke 1983.
"""

import dataclasses
from typing import Any

import numpy as np

from gflow._layout import Layout
from gflow.kkt.curvature import Curvature, kinked_curvature
from gflow.kkt.kinked_system import kinked_system, kinked_system_within
from gflow.kkt.open_coefficients import OpenSwitches
from gflow.kkt.point import KKTPoint
from gflow.kkt.second_order import SecondOrder, multiples, some_ends, undecided_at
from gflow.kkt.settings import CURVATURE, CurvatureSettings
from gflow.kkt.subspace import EXACT
from gflow.kkt.variables import Variables
from gflow.problem import Problem

# Where H is not symmetric all 2^n combinations of ends are tried for up to so many ranges. They are
# few, since each takes an eigenvalue computation by the QZ method.
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
    if base.linearized.basis is not None:
        # What open coefficients do leads out of the subspace of those at the point.
        given = problem, layout, point.variables, 0.0, np.flatnonzero(held)
        formed = dataclasses.replace(base, system=kinked_system(*given))
        found = kinked_curvature(formed, settings=settings)
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
    """The KKT point with other angles of the switches whose coefficients are open, and with only
    the kinks `at_kink` as constraints; its system is formed as that of the point is.

    Args:
        variables: those of the point, but for the angles.
        at_kink: the kinks that hold it. Shape (n, s).
    """
    given = problem, layout, variables, 0.0, np.flatnonzero(at_kink)
    if point.linearized.basis is None:
        system = kinked_system(*given)
    else:
        on: Any = {"margins": point.active, "force": variables.theta, "whole": True}
        system = kinked_system_within(*given, drop=EXACT, **on)
    return dataclasses.replace(
        point, coefficients=np.sin(variables.angles), at_kink=at_kink, system=system
    )
