"""The flow at kinks, with exact kinks and no temperature, by implicit Euler steps.

At kappa = infinity the flow of the direction is, on another clock and at unit margin,

    d theta/ds = -theta + sum_i lambda_i grad q_i(theta, phi),   q_i >= 1,  lambda_i >= 0,

with the multipliers and the angles of kinks such that it stays on the active margins and on the
kinks that hold it: it slides. A step of the implicit Euler method solves for the point, the
multipliers and the angles at its end together (Moreau's catching-up algorithm). It needs to know
neither which margins are active nor which kinks hold, and does not chatter. Steps grow as the flow
slows down, and the last ones are Newton's method for the KKT point.

Source: Moreau 1977, "Evolution problem associated with a moving convex set in a Hilbert space", J.
Differential Equations 26; Acary & Brogliato 2008, "Numerical Methods for Nonsmooth Dynamical
Systems", for implicit discretisation of sliding motion.
"""

import math

import numpy as np

from gflow._layout import Layout
from gflow.kkt.kinked_equations import Point
from gflow.kkt.kinked_path import LAST_SMOOTHING, ROUNDED, Path
from gflow.kkt.kinked_step import Anchor
from gflow.kkt.kinks import Kinks
from gflow.limit.following import concluded, unfinished
from gflow.problem import Problem

# Lengths of steps; by how much they grow, where a step moves the point by less than so much,
# relative; and shrink, where one fails.
_FIRST, _LONGEST, _SHORTEST = 1.0, 1e6, 1e-4
_GROWTH = ((0.02, 3.0), (0.05, 1.5))
_SHRINK = 0.25
_REST = 1e-9
_MOST_STEPS, _MOST_ITERATIONS = 300, 1500
# A step is solved at one of these smoothings first and then at the last one; less each time.
_TOPS = (1e-6, 1e-5, 1e-4, 1e-3)
_FACTOR = 0.3
# For so many times 1/rate steps beside a saddle are bounded by this part of it.
_LEFT, _LEAVING = 10.0, 0.3
# How far from its end a slide is still on the way.
_NEAR = 1e-3


def slide(
    problem: Problem,
    layout: Layout,
    start: Point,
    smoothing: float,
    rate: float = 0.0,
    *,
    tolerance: float = ROUNDED,
) -> tuple[Kinks, np.ndarray]:
    """The KKT point at kinks in which the flow from `start` ends, and a point shortly before it.

    Args:
        problem: with its kinks.
        start: a point near unit margin, with multipliers and angles near its own.
        smoothing: mu of its angles; 0 where they are exact.
        rate: beside a saddle, that at which the flow leaves it. Steps much longer than its inverse
            would lead back, and wait until the saddle has been left.
        tolerance: of the residual of the exact point.

    Returns:
        what was found, not converged where the flow did not come to rest; and the direction
        when it was last farther than 1e-3 from there. Shape (P,).
    """
    path = Path(problem, layout, float(start.multipliers.max()), tolerance)
    sliding = _Slide(path, start, smoothing)
    conclude = concluded if sliding.run(rate) else unfinished
    kinks = conclude(sliding.path, sliding.now, LAST_SMOOTHING)
    return kinks, sliding.before(kinks.direction)


class _Slide:
    """The state of one slide."""

    def __init__(self, path: Path, start: Point, smoothing: float):
        self.path, self.now = path, start
        self.first_top, self.last_top = max(smoothing, _TOPS[-1]), _TOPS[-1]
        self.time, self.points = 0.0, [start.theta]

    def run(self, rate: float) -> bool:
        """Steps until the point rests; whether it does."""
        length = self.bounded(_FIRST, rate)
        for _ in range(_MOST_STEPS):
            found = self.step(Anchor(self.now.theta, length))
            if found is None:
                length *= _SHRINK
                if length < _SHORTEST or self.path.num_iterations > _MOST_ITERATIONS:
                    return False
                continue
            moved = _distance(self.now.theta, found.theta)
            self.now, self.time = found, self.time + length
            self.points.append(found.theta)
            if moved < _REST * length:
                return True
            growth = next((factor for most, factor in _GROWTH if moved < most), 1.0)
            length = self.bounded(growth * length, rate)
        return False

    def bounded(self, length: float, rate: float) -> float:
        """The length of a step, short against the time in which the start is left."""
        return min(length, _LONGEST if self.time * rate > _LEFT else _LEAVING / max(rate, 1e-300))

    def step(self, anchor: Anchor) -> Point | None:
        """One step: the first from the smoothing of the start, others from what served last."""
        tops = sorted(_TOPS, key=lambda top: abs(math.log(top / self.last_top)))
        for top in tops if len(self.points) > 1 else [self.first_top]:
            found = self.path.correct(self.now, top, anchor=anchor)
            if found is None:
                continue
            found, smoothing = self.path.lower(found, top, _FACTOR, anchor)
            if smoothing <= LAST_SMOOTHING:
                self.last_top = float(np.clip(0.1 * top, _TOPS[0], _TOPS[-1]))
                return found
        return None

    def before(self, end: np.ndarray) -> np.ndarray:
        """The last direction on the way that is not yet close to `end`."""
        directions = [theta / np.linalg.norm(theta) for theta in self.points]
        far = [u for u in directions if np.linalg.norm(u - end) > _NEAR]
        return far[-1] if far else directions[0]


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.linalg.norm(second - first) / np.linalg.norm(second))
