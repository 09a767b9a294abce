"""Newton's method along a path of temperatures, to the last or as far as it leads."""

import math
from typing import NamedTuple

import numpy as np

from gflow._layout import Layout
from gflow.kkt.system import without_dead
from gflow.limit.cooling_equations import TINY, Equations
from gflow.problem import Problem

SHARPEST = 1e14
_FIRST_FACTOR, _LARGEST_FACTOR, _LEAST_FACTOR = 2.0, 1e3, 1.05
# Iterations at one temperature; so few that the next may be much lower; and in all.
_MOST_ITERATIONS, _FEW, _MOST_SYSTEMS = 60, 4, 200
# How far a step may move the point, relative to its norm; by which factor the error may rise, or
# up to which in any case.
_LONGEST, _RISE, _LEAST_RISEN = 0.1, 3.0, 1e-2
# Time steps: all but infinite at first, as for Newton's method, with a shift of the Hessian that is
# the only hold along a family of KKT points; where that leads astray, from the second one on; and
# those of steps that correct.
_LONGEST_TIME, _ASTRAY, _CORRECTING, _SHORTEST_TIME = 1e9, 3e3, 30.0, 1e-3
# Factors: after a failure; the least after a success, after a correction, and the largest.
_SHRINK, _GROW = 0.2, (1.5, 4.0, 10.0)
# Errors at rest: at most; times the temperature 1/s, from this sharpness on, and times that
# sharpness over s^2 before. On the digits of
# benchmarks/large.py 1e-3 from 1e3 on took twice as many systems.
_LOOSE, _TIGHT, _COLD = 3e-3, 1e-2, 1e5
# What rounding leaves; and where iterating ends once rounding is all that is left.
_ROUNDING, _ROUNDED = 5e-13, 1e-10
# How far a multiplier may fall in an iteration: to exp(-30) of what it was.
_LEAST_CHANGE = -30.0
# How far a margin that was not active may have sunk below the others.
VIOLATED = 1e-9


class Cooled(NamedTuple):
    """Where the temperature ended.

    Attributes:
        theta: the point. Shape (P,).
        multipliers: lambda. Shape (m,).
        sharpness: s; large where the path could be followed.
        num_iterations: systems solved.
    """

    theta: np.ndarray
    multipliers: np.ndarray
    sharpness: float
    num_iterations: int

    @property
    def direction(self) -> np.ndarray:
        """`theta / |theta|`. Shape (P,)."""
        return self.theta / np.linalg.norm(self.theta)

    @property
    def converged(self) -> bool:
        """Whether the last temperature was reached."""
        return self.sharpness >= SHARPEST


class Path:
    """Newton's method along a path of temperatures.

    Args:
        largest: the multiplier that counts as the largest all along.
    """

    def __init__(self, problem: Problem, layout: Layout, largest: float):
        self.problem, self.layout, self.largest = problem, layout, largest
        self.count, self.time = 0, _LONGEST_TIME

    def at(self, theta: np.ndarray, multipliers: np.ndarray, sharpness: float) -> Equations:
        """The equations at a point without its dead neurons, and a sharpness."""
        return Equations(
            self.problem,
            self.layout,
            without_dead(theta),
            multipliers,
            sharpness=sharpness,
            largest=self.largest,
        )

    def follow(self, theta: np.ndarray, multipliers: np.ndarray, sharpness: float) -> Cooled:
        """From one sharpness to the last, or to where the path can be followed no further."""
        now, reached, factor, following = (theta, multipliers), 0.0, _FIRST_FACTOR, sharpness
        while reached < SHARPEST and self.count < _MOST_SYSTEMS:
            found, iterations = self.rest(self.at(*now, following))
            if found is None:
                factor = math.sqrt(factor)
                if not reached or factor < _LEAST_FACTOR:
                    break
            else:
                now, reached = (found.theta, found.multipliers), following
                if iterations <= _FEW:
                    factor = min(factor**1.5, _LARGEST_FACTOR)
            following = min(reached * factor, SHARPEST)
        return Cooled(*now, reached, self.count)

    def rest(self, system: Equations) -> tuple[Equations | None, int]:
        """The rest point at the sharpness of a system, or None; and the iterations.

        They are steps of the linearly implicit Euler method for the flow, longer as it comes to
        rest: Newton's method in the end, and from the start where that serves. Where the rest
        point has hardly any curvature, Newton's method alone would leave for nowhere.

        Source: Kelley & Keyes 1998, "Convergence analysis of pseudo-transient continuation", SIAM
        J. Numer. Anal. 35.
        """
        for iteration in range(_MOST_ITERATIONS + 1):
            if system.error < _close_enough(system.sharpness):
                return system, iteration
            spent = self.count >= _MOST_SYSTEMS
            if spent or not np.isfinite(system.error) or self.time < _SHORTEST_TIME:
                break
            after = self.stepped(system, self.time)
            if after is not None and after.error >= system.error < _ROUNDED:
                return system, iteration
            if after is None or not after.error < max(_RISE * system.error, _LEAST_RISEN):
                self.time = _SHRINK * min(self.time, _ASTRAY / _SHRINK)
                continue
            risen = after.error > system.error and self.time > _CORRECTING
            system, growth = self.corrected(after) if risen else (after, _growth(system, after))
            self.time = min(growth * self.time, _LONGEST_TIME)
        self.time = max(self.time, _CORRECTING)
        return None, _MOST_ITERATIONS

    def corrected(self, system: Equations) -> tuple[Equations, float]:
        """The system after a short step, and by how much the next long one may be longer.

        Along a family of KKT points, or nearly one, long steps are what leads on; the family bends,
        and they end beside it, from where a short step leads back.
        """
        after = self.stepped(system, _CORRECTING)
        if after is None or not after.error < system.error:
            return system, _GROW[0]
        return after, _GROW[1] if system.error < _SHRINK * _LEAST_RISEN else 1.0

    def stepped(self, system: Equations, time: float) -> Equations | None:
        """The system after a step over some time, or None where the step is no good."""
        self.count += 1
        step = system.solve(time)
        theta, multipliers = system.theta, system.multipliers
        size = len(theta)
        if step is None or not np.linalg.norm(step[:size]) < _LONGEST * np.linalg.norm(theta):
            return None
        change = np.maximum(step[size:] / np.maximum(multipliers, TINY), _LEAST_CHANGE)
        factors = np.where(change < 0, np.exp(np.minimum(change, 0.0)), 1 + change)
        multipliers = np.maximum(multipliers * factors, TINY)
        return self.at(theta + step[:size], multipliers, system.sharpness)


def _growth(before: Equations, after: Equations) -> float:
    """The factor of the time step: as the error falls."""
    return float(np.clip(before.error / max(after.error, TINY), _GROW[0], _GROW[2]))


def _close_enough(sharpness: float) -> float:
    """The error at which the next temperature is tried: loose where most margins still push."""
    return min(_LOOSE, _TIGHT * max(1.0, _COLD / sharpness) / sharpness) + _ROUNDING
