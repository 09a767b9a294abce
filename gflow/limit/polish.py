"""Newton's method on the KKT system, from where the flow has come close.

The temperature is first led to 0 (`gflow.limit.cooling`), which shows which margins are active. If
that fails at the first temperature, the active margins are those of large weight in the flow. The
active set is corrected along the way: a margin with a negative multiplier leaves it, a violated
margin joins it, and if its margins cannot all be equal, as when there are more of them than
dimensions, the largest one leaves. Steps are of minimum norm: with merged or aligned neurons there
is a continuum of KKT points, and the nearest one is sought.
"""

import dataclasses
import itertools
from typing import NamedTuple

import numpy as np

from gflow._layout import Layout
from gflow._minimum_norm import by_factors, minimum_norm, reciprocal_condition
from gflow.kkt.point import KKTPoint, active_residual
from gflow.kkt.system import KKTSystem, with_hessian_of
from gflow.kkt.variables import at_unit_margin, margins_at
from gflow.kkt.within import is_factored, system_at
from gflow.limit.cooling import cool, cooled_again
from gflow.limit.drift import Drift
from gflow.limit.settings import REFINE, NewtonSettings, RefineSettings
from gflow.problem import Problem
from gflow.watch import looked


def polish_capped(
    problem: Problem,
    layout: Layout,
    direction: np.ndarray,
    weights: np.ndarray,
    log_kappa: float,
    tolerance: float | None = None,
    *,
    settings: RefineSettings = REFINE,
) -> KKTPoint:
    """The KKT point to which the flow capped at kappa_c leads from where it nearly rests.

    Args:
        direction: u, a unit vector whose margins are positive. Shape (P,).
        weights: the flow's weights p there, flattened. Shape (m,).
        log_kappa: log kappa_c.
        tolerance: of the residual; `settings.newton.rounded` by default.

    Returns:
        what was found, not converged where it is no KKT point. `num_iterations` counts the systems
        of cooling too.
    """
    # A margin of 0 may have been positive by rounding in the program that measured it before. If it
    # is not positive here there is no KKT system.
    if not margins_at(problem, layout, direction).min() > 0:
        return _without_system(direction, weights)
    newton, large = settings.newton, not is_factored(problem, layout.size, settings.sizes)
    most = newton.most_iterations_large if large else newton.most_iterations
    cooled = cool(problem, layout, direction, weights, log_kappa, settings=settings)
    if np.isfinite(cooled.temperature):
        start, support = (cooled.direction, cooled.multipliers), newton.support
        if large and not cooled.temperature < newton.coldest_needed:
            most = 0  # the point is only evaluated: so few steps would not succeed from there
    else:
        start, support = (direction, weights), newton.flow_support
    given = {"support": support, "tolerance": tolerance, "most_iterations": most}
    found = polish(problem, layout, *start, **given, settings=settings)
    if found.converged and not large and _may_be_in_family(found, newton):
        found = _nearest(problem, layout, direction, found, tolerance, settings)
    systems = cooled.num_iterations + found.num_iterations
    return dataclasses.replace(found, num_iterations=systems)


def _may_be_in_family(point: KKTPoint, newton: NewtonSettings) -> bool:
    """Whether other KKT points of the same active set may lie next to this one: not where the
    matrix of Newton's method is far from singular.
    """
    return reciprocal_condition(point.jacobian) < newton.isolated


def _nearest(
    problem: Problem,
    layout: Layout,
    direction: np.ndarray,
    found: KKTPoint,
    tolerance: float | None,
    settings: RefineSettings,
) -> KKTPoint:
    """`found`, or the KKT point of the same active set that is closer to where the flow stopped;
    with the systems of both.

    Cooling drifts along a family of KKT points, such as those of a deep linear network. Newton's
    steps of minimum norm from the flow's own end, with the multipliers found, stay close to it.
    """
    again = polish(
        problem,
        layout,
        direction,
        found.multipliers,
        support=settings.newton.support,
        tolerance=tolerance,
        most_iterations=settings.newton.most_iterations_nearest,
        patient=False,
        settings=settings,
    )

    def distance(point: KKTPoint) -> float:
        return float(np.linalg.norm(point.direction - direction))

    nearest = again if again.converged and distance(again) < distance(found) else found
    systems = found.num_iterations + again.num_iterations
    return dataclasses.replace(nearest, num_iterations=systems)


def polish_drifted(
    problem: Problem,
    layout: Layout,
    drift: Drift,
    tolerance: float | None = None,
    *,
    settings: RefineSettings = REFINE,
) -> KKTPoint:
    """The KKT point at the rest of a drift, whose multipliers tell the active margins."""
    given = {"support": settings.newton.support, "tolerance": tolerance, "settings": settings}
    return polish(problem, layout, drift.direction, drift.multipliers, **given)


def polish_again(
    problem: Problem,
    layout: Layout,
    direction: np.ndarray,
    multipliers: np.ndarray,
    *,
    settings: RefineSettings = REFINE,
) -> KKTPoint:
    """The KKT point near a direction that lies beside a known KKT point, whose multipliers are
    given, to find out whether there is one; for large networks without dense matrices.
    """
    given = problem, layout, direction, multipliers
    if not is_factored(problem, layout.size, settings.sizes):
        return cooled_again(*given, settings=settings)
    return polish(*given, refined=False, settings=settings)


class Iterate(NamedTuple):
    """An iterate of Newton's method: the point, its multipliers, and the active set."""

    theta: np.ndarray
    multipliers: np.ndarray
    active: np.ndarray

    def error(self, stationarity: np.ndarray, margins: np.ndarray) -> float:
        """The residual, from the values of the equations at the iterate."""
        return active_residual(stationarity, margins, self.theta, self.active)

    def with_active(self, active: np.ndarray) -> "Iterate":
        """The iterate with another active set; multipliers of inactive margins become 0."""
        return Iterate(self.theta, np.where(active, self.multipliers, 0.0), active)

    def stepped(self, step: np.ndarray, longest: float, most: float = 1.0) -> "Iterate":
        """The iterate after a step of theta and the active multipliers.

        Args:
            longest: how far it may lead, relative to |theta|: of a longer step a part is made.
            most: the largest part of the step that is made.
        """
        size = len(self.theta)
        length = np.linalg.norm(step[:size])
        share = min(most, longest * np.linalg.norm(self.theta) / max(length, 1e-300))
        multipliers = self.multipliers.copy()
        multipliers[self.active] += share * step[size:]
        return Iterate(self.theta + share * step[:size], multipliers, self.active)


def polish(
    problem: Problem,
    layout: Layout,
    direction: np.ndarray,
    weights: np.ndarray,
    *,
    support: float | None = None,
    tolerance: float | None = None,
    most_iterations: int | None = None,
    patient: bool = True,
    refined: bool = True,
    settings: RefineSettings = REFINE,
) -> KKTPoint:
    """The KKT point near a direction whose margins are positive.

    Args:
        direction: u, a unit vector. Shape (P,).
        weights: of the margins, as the flow's p or multipliers: they name the active margins and
            give the first multipliers (`at_unit_margin`). Shape (m,).
        support: margins with less weight than this part of the largest are not active at first;
            `settings.newton.flow_support` by default.
        tolerance: of the residual; `settings.newton.rounded` by default. Iterating goes on, below
            it too, to a residual of `settings.newton.aim`, 1e-12, or until the residual no longer
            halves.
        most_iterations: systems at most.
        patient: whether it goes on, by parts of steps, where the residual does not halve.
        refined: whether to make one more step at the end, which may lower the residual further.
    """
    newton = settings.newton
    tolerance = newton.rounded if tolerance is None else tolerance
    most = newton.most_iterations if most_iterations is None else most_iterations
    active = weights > (newton.flow_support if support is None else support) * weights.max()
    start = at_unit_margin(problem, layout, direction, np.where(active, weights, 0.0))
    now = Iterate(start.theta, start.multipliers, active)
    found = _iterated(problem, layout, now, tolerance, most, patient, settings)
    return _refined(problem, layout, found, settings) if refined else found


def _iterated(
    problem: Problem,
    layout: Layout,
    now: Iterate,
    tolerance: float,
    most: int,
    patient: bool,
    settings: RefineSettings,
) -> KKTPoint:
    """Newton steps and corrections of the active set in turn, until the active set is right."""
    newton, share, before = settings.newton, 1.0, np.inf
    for iteration in itertools.count():
        given = problem, layout, now.theta, now.multipliers
        at = system_at(*given, active=now.active, sizes=settings.sizes)
        error = now.error(at.stationarity, at.margins)
        # Where second derivatives jump, as those of ReLU^2, whole steps may go to and fro: the step
        # is halved where the error did not.
        stalls = error > 0.5 * before
        share = max(0.5 * share, newton.shortest_share) if stalls else 1.0
        close = error <= min(newton.aim, tolerance)
        close |= stalls and error <= min(newton.rounded, tolerance)
        mended = _mended(at.margins, now, newton) if close else None
        arrived = close and mended is None
        given_up = iteration == most or (stalls and not close and not patient)
        if arrived or given_up or not np.isfinite(error):
            return KKTPoint(*now, error, arrived, iteration, at)
        looked(error)
        before = error
        if mended is None:
            now, _ = _stepped(at, now, share, settings)
        else:
            now = now.with_active(mended)
    raise AssertionError  # the loop always returns


def _refined(
    problem: Problem, layout: Layout, found: KKTPoint, settings: RefineSettings
) -> KKTPoint:
    """The point after one more step, if that lowers the residual further; with the Hessian of
    before, since it has hardly moved.
    """
    if not (found.converged and is_factored(problem, layout.size, settings.sizes)):
        return found
    before = Iterate(found.theta, found.multipliers, found.active)
    now, dropped = _stepped(found.linearized, before, 1.0, settings)
    if dropped:  # rounding may make the equations look inconsistent
        return found
    at = with_hessian_of(found.linearized, problem, layout, now.theta, now.multipliers)
    error = now.error(at.stationarity, at.margins)
    right = _mended(at.margins, now, settings.newton) is None
    if not (error < found.residual and right):
        return found
    return KKTPoint(*now, error, True, found.num_iterations + 1, at)


def _without_system(direction: np.ndarray, weights: np.ndarray) -> KKTPoint:
    """A direction without a positive margin, which cannot be scaled to a margin of 1."""
    none = np.zeros_like(weights)
    return KKTPoint(direction, none, np.zeros(len(weights), bool), np.inf, False, 0, None)


def _stepped(
    at: KKTSystem, now: Iterate, most: float, settings: RefineSettings
) -> tuple[Iterate, bool]:
    """The iterate after the part `most` of a step of minimum norm, or after less of it where the
    step is too long. If the active margins cannot all become equal, no step is made, and the
    largest of them is dropped from the active set.

    Returns:
        the iterate, and whether a margin was dropped.
    """
    newton, active = settings.newton, now.active
    right = -np.concatenate([at.coordinates(at.stationarity), at.margins[active] - 1])
    matrix = at.bordered(active)
    if len(right) <= settings.sizes.factored:
        # Along a family of KKT points the matrix is singular up to the order of the residual r. A
        # direction of a singular value below r^2, in which the step would have a length of about
        # 1/r, is taken for one along a family.
        error = now.error(at.stationarity, at.margins)
        rank = min(error**2, newton.family_rank)
        step = minimum_norm(matrix, right, rank=rank)
    else:  # nearly that, by a shift of the Hessian
        step = by_factors(at.bordered(active, shift=newton.shift), right)
    left_over = np.linalg.norm(matrix @ step - right)
    inconsistent = left_over > newton.inconsistent * np.linalg.norm(right)
    if np.count_nonzero(active) > 1 and inconsistent:
        fewer = active.copy()
        fewer[np.argmax(np.where(active, at.margins, -np.inf))] = False
        return now.with_active(fewer), True
    size = len(at.hessian)
    step = np.concatenate([at.vectors(step[:size]), step[size:]])
    return now.stepped(step, newton.longest_step, most), False


def _mended(margins: np.ndarray, now: Iterate, newton: NewtonSettings) -> np.ndarray | None:
    """The active set without its worst multiplier, or with the worst violation; None if right."""
    mended = now.active.copy()
    if now.multipliers[now.active].min(initial=0.0) < -newton.slack * now.multipliers.max():
        mended[np.argmin(np.where(now.active, now.multipliers, np.inf))] = False
        return mended
    outside = np.where(now.active, np.inf, margins)
    if outside.min(initial=np.inf) < 1 - newton.slack:
        mended[np.argmin(outside)] = True
        return mended
    return None
