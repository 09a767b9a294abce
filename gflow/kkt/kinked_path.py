"""Newton's method at one smoothing, and how far a smoothing can be lowered by it.

Only switches of active margins near their kinks have an angle of their own as an unknown; all
others stand where their values put them.
"""

import math

import numpy as np

from gflow._layout import Layout
from gflow.kkt.kinked_equations import Equations, Point, equations
from gflow.kkt.kinked_step import FREE, Anchor, System
from gflow.problem import Problem

LAST_SMOOTHING = 1e-6
ROUNDED = 1e-9
"""Residuals below are rounding, or a digit away from it: what is asked for by default."""
# Switches with |v| below this many smoothing widths have an angle of their own.
_UNKNOWN, _TURNED = 30.0, 1e-3
# Beyond so many widths on the wrong side of its kink a switch starts anew from the middle: near the
# end of its range the equation has a root that belongs to the other side.
_ASTRAY = 3.0
# Where the weights are this small, relative, no slope matters and none is defined: dead neurons.
_DEAD = 1e-6
# An example pushes whose multiplier exceeds this many smoothing widths, relative: below, even
# switches that turn as fast as 1/mu do not matter. Inactive margins keep 1e-6 mu / slack.
_SUPPORT, _LEAST_SUPPORT = 0.05, 1e-9
_LAST_FACTOR, _LEAST_FACTOR = 0.97, 1e-2
_MOST_ITERATIONS, _MOST_EXACT, _MOST_IN_STEP = 8, 12, 14
# Of the relative error at smoothing 0: where iterating ends, and where rounding may end it before.
_EXACT, _ROUNDED = 1e-13, 1e-10


class Path:
    """Newton's method along a path of smoothings.

    Attributes:
        tolerance: of the residual of an exact point.
        num_iterations: systems solved so far.
    """

    def __init__(
        self, problem: Problem, layout: Layout, strength: float, tolerance: float = ROUNDED
    ):
        self.problem, self.layout, self.strength = problem, layout, strength
        self.tolerance = tolerance
        self.per_example = max(problem.dataset.num_outputs - 1, 1)
        self.num_iterations = 0

    def at(self, point: Point, smoothing: float, index: np.ndarray | None = None) -> Equations:
        """The equations; with the indices of switches, their Jacobian too."""
        return equations(self.problem, self.layout, point, smoothing, index)

    def support(self, multipliers: np.ndarray, smoothing: float) -> np.ndarray:
        """Which examples push. Shape (n,)."""
        share = max(_SUPPORT * smoothing, _LEAST_SUPPORT)
        pushes = multipliers > share * multipliers.max()
        return pushes.reshape(-1, self.per_example).any(axis=1)

    def alive(self, at: Equations) -> np.ndarray:
        """Switches whose scale is not next to nothing. Shape (n, s)."""
        scales = np.asarray(at.scales)
        return scales > _DEAD * scales.max(initial=0.0)

    def kinks(self, point: Point) -> np.ndarray:
        """Switches that stand between their two sides."""
        at = self.at(point, LAST_SMOOTHING)
        turned = np.abs(np.sin(point.angles)) < 1 - 1e-7
        pushes = self.support(point.multipliers, LAST_SMOOTHING)
        return turned & self.alive(at) & pushes[:, None]

    def lower(
        self, point: Point, smoothing: float, factor: float, anchor: Anchor = FREE
    ) -> tuple[Point, float]:
        """The smoothing led to its last value, or to where it cannot be any further: the point
        there, and the smoothing.

        It falls by a factor that adapts: further while Newton's method takes few iterations, less
        far where it fails.
        """
        while smoothing > LAST_SMOOTHING:
            lower = max(factor * smoothing, LAST_SMOOTHING)
            before = self.num_iterations
            found = self.correct(point, lower, anchor=anchor)
            if found is None:
                factor = factor**0.5
                if factor > _LAST_FACTOR:
                    break
                continue
            point, smoothing = found, lower
            few = self.num_iterations - before <= _MOST_ITERATIONS // 2
            factor = max(factor**2 if few else factor, _LEAST_FACTOR)
        return point, smoothing

    def exact(self, point: Point, kinks: np.ndarray) -> Point | None:
        """The solution at smoothing 0 with these kinks, or None."""
        return self.correct(point, 0.0, kinks)

    def correct(
        self,
        point: Point,
        smoothing: float,
        kinks: np.ndarray | None = None,
        anchor: Anchor = FREE,
    ) -> Point | None:
        """Newton's method at one smoothing: its solution or None."""
        goal = 1e-2 * smoothing + 1e-10 if kinks is None else min(_EXACT, self.tolerance)
        most = _MOST_ITERATIONS if math.isinf(anchor.length) else _MOST_IN_STEP
        most = most if kinks is None else _MOST_EXACT
        last = math.inf
        for iteration in range(most + 1):
            point, index, at = self.placed(point, smoothing, kinks)
            system = System(at, point, smoothing, index, self.strength, anchor)
            # Next to the largest feasible radius theta is long, and rounding is all that is left.
            stalled = kinks is not None and 0.5 * last <= system.error <= _ROUNDED
            if system.error <= goal or stalled:
                return point
            if iteration == most or not np.isfinite(system.error):
                break
            last = system.error
            self.num_iterations += 1
            jacobian = self.at(point, smoothing, index).jacobian
            assert jacobian is not None
            moved = system.step(np.asarray(jacobian))
            if moved is None:
                break
            point = moved
        return None

    def placed(
        self, point: Point, smoothing: float, kinks: np.ndarray | None
    ) -> tuple[Point, np.ndarray, Equations]:
        """The point with its switches in place, the unknown ones of them, and the equations."""
        at = self.at(point, smoothing)
        unknown = self.unknown(point, at, smoothing) if kinks is None else kinks
        angles = self.turned(point, at, smoothing, unknown)
        if kinks is None:
            width = _ASTRAY * smoothing * np.asarray(at.scales)
            astray = unknown & (np.sin(point.angles) * at.values < -width)
            angles = np.where(astray, 0.0, angles)
        if not np.array_equal(angles, point.angles):
            point = point._replace(angles=angles)
            at = self.at(point, smoothing)
        return point, np.flatnonzero(unknown), at

    def unknown(self, point: Point, at: Equations, smoothing: float) -> np.ndarray:
        """The switches whose angles are unknown: those of active margins, near their kink."""
        near = np.abs(at.values) < _UNKNOWN * smoothing * np.asarray(at.scales)
        near |= np.abs(np.sin(point.angles)) < 1 - _TURNED
        return near & self.alive(at) & self.support(point.multipliers, smoothing)[:, None]

    def turned(
        self, point: Point, at: Equations, smoothing: float, unknown: np.ndarray
    ) -> np.ndarray:
        """The angles, all but the unknown ones where their values put them."""
        free = self.alive(at) & ~unknown
        settled = np.arctan2(at.values, smoothing * np.asarray(at.scales))
        return np.where(free, settled, point.angles)
