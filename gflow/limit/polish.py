"""Newton's method on the KKT system, from where the flow has come close.

The temperature is first led to 0 (`gflow.limit.cooling`), which tells the active margins; where
that fails at the first temperature, the flow's weights do. The active set is mended
along the way: a multiplier below zero leaves it, a violated margin joins it, and where its margins
cannot all be equal, as of more margins than there are dimensions, the largest of them leaves. Steps
are of minimum norm, since merged or aligned neurons leave a continuum of KKT points, and the
nearest of them is meant.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from gflow._layout import Layout
from gflow._least_norm import least_norm, nearly_solved
from gflow.kkt.system import System, system
from gflow.limit.cooling import Cooled, cool, cooled_again
from gflow.limit.drift import Drift
from gflow.problem import Problem

# Weights of the flow below this part of the largest belong to no active margin.
_SUPPORT = 1e-3
# Rank-revealing factors take minutes from here on.
_LARGE, _SHIFT = 1500, 1e-8
# After cooling, active margins have all but all of the weight.
_COOLED = 1e-6
# Of large systems, seconds each, a few: what is close after cooling needs no more.
_MOST_ITERATIONS, _FEW_ITERATIONS = 40, 5
# Where cooling stopped earlier than this they have not led on: the flow does.
_SHARP = 1e8
# The most that a step may move the point, relative to its norm: a model is good nearby only.
_LONGEST = 0.3
_SLACK = 1e-10
_SHORTEST = 0.125
# Newton's method goes on to this residual, or to the tolerance if that is less; where rounding ends
# it before, the residual no longer halves.
_AIM, _ROUNDED = 1e-12, 1e-9
# A system of which this part of the right-hand side is left over has no solution.
_INCONSISTENT = 0.1


@dataclass(frozen=True, eq=False)
class Polished:
    """Where Newton's method ended.

    Attributes:
        theta: the point, at the norm where its active margins are 1. Shape (P,).
        multipliers: lambda, zero where not active. Shape (m,).
        active: the active margins. Shape (m,).
        residual: `max(|theta - sum_i lambda_i grad q_i| / |theta|, max_active |q_i - 1|)`.
        converged: residual below the tolerance, no negative multiplier, no violated margin.
        num_iterations: systems solved.
        system: the KKT system there.
    """

    theta: np.ndarray
    multipliers: np.ndarray
    active: np.ndarray
    residual: float
    converged: bool
    num_iterations: int
    system: System

    @property
    def direction(self) -> np.ndarray:
        """`theta / |theta|`. Shape (P,)."""
        return self.theta / np.linalg.norm(self.theta)


def polish(
    problem: Problem,
    layout: Layout,
    direction: np.ndarray,
    weights: np.ndarray,
    *,
    support: float = _SUPPORT,
    tolerance: float = _ROUNDED,
    most_iterations: int = _MOST_ITERATIONS,
) -> Polished:
    """The KKT point near a direction whose margins are positive.

    Args:
        direction: u, a unit vector. Shape (P,).
        weights: the flow's weights p there, flattened: they name the active margins and give the
            first multipliers, `p_i |theta|^2 / L` (Euler's identity). Shape (m,).
        support: margins with less weight than this part of the largest are not active at first.
        tolerance: of the residual; it is aimed at 1e-12, or at the tolerance if that is less.
        most_iterations: systems at most.
    """
    degree = problem.degree
    active = weights > support * weights.max()
    margins = np.asarray(problem.margins(layout.unflatten(direction))).ravel()
    theta = direction / margins.min() ** (1 / degree)
    multipliers = np.where(active, weights, 0.0)
    multipliers *= (theta @ theta) / (degree * multipliers.sum())
    iteration, share, errors = 0, 1.0, []
    while True:
        at = system(problem, layout, theta, multipliers)
        error = _error(at, theta, active)
        errors = [*errors[-1:], error]
        # Where second derivatives jump, as those of ReLU^2, whole steps may go to and fro.
        stalls = len(errors) > 1 and error > 0.5 * errors[0]
        share = max(0.5 * share, _SHORTEST) if stalls else 1.0
        close = error <= min(_AIM, tolerance) or (stalls and error <= min(_ROUNDED, tolerance))
        mended = _mended(at.margins, multipliers, active) if close else active
        if mended is None or iteration == most_iterations or not np.isfinite(error):
            found = Polished(theta, multipliers, active, error, mended is None, iteration, at)
            return _refined(problem, layout, found)
        if mended is active:
            theta, multipliers, mended = _newton_step(at, theta, multipliers, active, share)
        active, multipliers = mended, np.where(mended, multipliers, 0.0)
        iteration += 1


def _refined(problem: Problem, layout: Layout, found: Polished) -> Polished:
    """After one more step, which costs little and gives the last digits, where it does."""
    if not found.converged or layout.size > _LARGE:
        return found
    step = _newton_step(found.system, found.theta, found.multipliers, found.active, 1.0)
    theta, multipliers, active = step
    # Rounding may make the equations look inconsistent.
    if active is not found.active:
        return found
    at = system(problem, layout, theta, multipliers)
    error = _error(at, theta, active)
    if not error < found.residual or _mended(at.margins, multipliers, active) is not None:
        return found
    return Polished(theta, multipliers, active, error, True, found.num_iterations + 1, at)


def polish_capped(
    problem: Problem,
    layout: Layout,
    direction: np.ndarray,
    weights: np.ndarray,
    log_kappa: float,
    tolerance: float = _ROUNDED,
) -> Polished:
    """The KKT point to which the flow capped at kappa_c leads from where it nearly rests.

    Args:
        direction: u, a unit vector whose margins are positive. Shape (P,).
        weights: the flow's weights p there, flattened. Shape (m,).
        log_kappa: log kappa_c.
        tolerance: of the residual.
    """
    # Measured elsewhere the margin may be positive by its rounding: there is no KKT system at 0.
    if not np.min(problem.margins(layout.unflatten(direction))) > 0:
        return _without_system(problem, layout, direction, weights)
    large = layout.size > _LARGE
    most = _FEW_ITERATIONS if large else _MOST_ITERATIONS
    cooled = cool(problem, layout, direction, weights, log_kappa)
    if not cooled.sharpness > 0:
        start, support = (direction, weights), _SUPPORT
    else:
        start, support = (cooled.direction, cooled.multipliers), _COOLED
        if large and not cooled.sharpness > _SHARP:
            most = 0
    options = {"support": support, "tolerance": tolerance, "most_iterations": most}
    found = polish(problem, layout, *start, **options)
    return dataclasses.replace(found, num_iterations=found.num_iterations + cooled.num_iterations)


def _without_system(
    problem: Problem, layout: Layout, direction: np.ndarray, weights: np.ndarray
) -> Polished:
    """A direction without a positive margin, which cannot be scaled to a margin of 1."""
    at = system(problem, layout, direction, np.zeros_like(weights))
    active = np.zeros(len(weights), bool)
    return Polished(direction, np.zeros_like(weights), active, np.inf, False, 0, at)


def polish_drifted(
    problem: Problem, layout: Layout, drift: Drift, tolerance: float = _ROUNDED
) -> Polished:
    """The KKT point at the rest of a drift, whose multipliers tell the active margins."""
    at = drift.direction, drift.multipliers
    return polish(problem, layout, *at, support=_COOLED, tolerance=tolerance)


def polish_again(
    problem: Problem, layout: Layout, direction: np.ndarray, multipliers: np.ndarray
) -> Polished | Cooled:
    """The KKT point near a direction beside one with these multipliers; of large networks without
    its dense matrices.
    """
    again = polish if layout.size <= _LARGE else cooled_again
    return again(problem, layout, direction, multipliers)


def _error(at: System, theta: np.ndarray, active: np.ndarray) -> float:
    stationarity = np.linalg.norm(at.residual) / np.linalg.norm(theta)
    return float(max(stationarity, np.max(np.abs(at.margins[active] - 1), initial=0.0)))


def _newton_step(
    at: System, theta: np.ndarray, multipliers: np.ndarray, active: np.ndarray, most: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step of minimum norm, at `most` that part of it, and less where it is too long; or, where
    the margins cannot all become equal, none, and the active set without the largest of them.
    """
    count, size = np.count_nonzero(active), len(theta)
    matrix = np.zeros((size + count, size + count))
    matrix[:size, :size] = at.hessian
    matrix[:size, size:] = -at.gradients[active].T
    matrix[size:, :size] = at.slopes[active]
    right = -np.concatenate([at.residual, at.margins[active] - 1])
    step = _least(matrix, right, size)
    left_over = np.linalg.norm(matrix @ step - right)
    if count > 1 and left_over > _INCONSISTENT * np.linalg.norm(right):
        fewer = active.copy()
        fewer[np.argmax(np.where(active, at.margins, -np.inf))] = False
        return theta, multipliers, fewer
    length = np.linalg.norm(step[:size])
    share = min(most, _LONGEST * np.linalg.norm(theta) / max(length, 1e-300))
    multipliers = multipliers.copy()
    multipliers[active] += share * step[size:]
    return theta + share * step[:size], multipliers, active


def _least(matrix: np.ndarray, right: np.ndarray, size: int) -> np.ndarray:
    """The solution of minimum norm; of large systems nearly that, by a shift of the Hessian."""
    if len(right) <= _LARGE:
        return least_norm(matrix, right)
    shifted = matrix.copy(order="F")
    shifted[np.arange(size), np.arange(size)] += _SHIFT
    return nearly_solved(shifted, right)


def _mended(margins: np.ndarray, multipliers: np.ndarray, active: np.ndarray) -> np.ndarray | None:
    """The active set without its worst multiplier, or with the worst violation; None if right."""
    mended = active.copy()
    if multipliers[active].min(initial=0.0) < -_SLACK * multipliers.max():
        mended[np.argmin(np.where(active, multipliers, np.inf))] = False
        return mended
    outside = np.where(active, np.inf, margins)
    if outside.min(initial=np.inf) < 1 - _SLACK:
        mended[np.argmin(outside)] = True
        return mended
    return None
