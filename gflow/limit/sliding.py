"""The flow at kinks, with exact kinks and no temperature, by implicit Euler steps.

At kappa = infinity the flow of the direction is, on another clock and at unit margin,

    d theta/ds = -theta + sum_i lambda_i grad q_i(theta, phi),   q_i >= 1,  lambda_i >= 0,

with multipliers and angles such that the flow stays on the active margins and on the kinks that it
slides along. A step of the implicit Euler method solves for the point, the multipliers and the
angles at its end together (Moreau's catching-up algorithm). So it need not be known beforehand
which margins are active and along which kinks the flow slides, and steps do not chatter. They grow
as the flow slows down, and the last ones are steps of Newton's method for the KKT point. The method
fails where not even a short step can be solved for: then the point returned has not converged.

Source: Moreau 1977, "Evolution problem associated with a moving convex set in a Hilbert space", J.
Differential Equations 26; Acary & Brogliato 2008, "Numerical Methods for Nonsmooth Dynamical
Systems", for implicit discretisation of sliding motion.
"""

import math

import numpy as np

from gflow._layout import Layout
from gflow.kkt.point import KKTPoint
from gflow.kkt.variables import Variables
from gflow.limit.complementarity import Anchor
from gflow.limit.following import concluded, unfinished
from gflow.limit.kinked_newton import KinkedNewton
from gflow.limit.settings import REFINE, RefineSettings
from gflow.problem import Problem


def slide(
    problem: Problem,
    layout: Layout,
    start: Variables,
    smoothing: float,
    rate: float = 0.0,
    *,
    tolerance: float | None = None,
    settings: RefineSettings = REFINE,
) -> tuple[KKTPoint, np.ndarray]:
    """The KKT point at kinks in which the flow from `start` ends, and a point shortly before it.

    Args:
        problem: with its kinks.
        start: a point near unit margin, with multipliers and angles near its own.
        smoothing: mu of its angles; 0 where they are exact.
        rate: beside a saddle, the rate at which the flow leaves it; else 0. Steps much longer than
            its inverse would lead back, and are made only once the saddle has been left.
        tolerance: of the residual of the exact point.

    Returns:
        what was found, not converged where the flow did not come to rest; and the direction
        when it was last farther than 1e-3 from there. Shape (P,).
    """
    strength = float(start.multipliers.max())
    newton = KinkedNewton(problem, layout, strength, tolerance, settings)
    sliding = _Slide(newton, start, smoothing, settings)
    conclude = concluded if sliding.run(rate) else unfinished
    point = conclude(newton, sliding.now, settings.smoothing.steps.last)
    return point, last_far_from(point.direction, sliding.points, settings.sliding.near)


def last_far_from(end: np.ndarray, points: list[np.ndarray], near: float) -> np.ndarray:
    """The last of these points whose direction is farther than `near` from the end; the first point
    if none is.

    Shapes: (P,) each.
    """
    directions = [theta / np.linalg.norm(theta) for theta in points]
    far = [unit for unit in directions if np.linalg.norm(unit - end) > near]
    return far[-1] if far else directions[0]


class _Slide:
    """The state of one slide.

    Attributes:
        now: where it is.
        points: theta at the end of every step, the start first.
    """

    def __init__(
        self, newton: KinkedNewton, start: Variables, smoothing: float, settings: RefineSettings
    ):
        self.newton, self.now = newton, start
        self.settings, self.last_smoothing = settings.sliding, settings.smoothing.steps.last
        self.highest = max(self.settings.tops)
        self.first_top, self.last_top = max(smoothing, self.highest), self.highest
        self.time, self.points = 0.0, [start.theta]

    def run(self, rate: float) -> bool:
        """Steps until the point rests; whether it does."""
        settings = self.settings
        length = self.bounded(settings.first, rate)
        for _ in range(settings.most_steps):
            found = self.step(Anchor(self.now.theta, length))
            if found is None:
                length *= settings.shrink
                spent = self.newton.num_iterations > settings.most_iterations
                if length < settings.shortest or spent:
                    return False
                continue
            moved = _distance(self.now.theta, found.theta)
            self.now, self.time = found, self.time + length
            self.points.append(found.theta)
            if moved < settings.rest * length:
                return True
            growth = next((factor for most, factor in settings.growth if moved < most), 1.0)
            length = self.bounded(growth * length, rate)
        return False

    def bounded(self, length: float, rate: float) -> float:
        """The length of a step within its bounds, which are smaller until a saddle is left."""
        if self.time * rate > self.settings.left:
            return min(length, self.settings.longest)
        return min(length, self.settings.leaving / max(rate, 1e-300))

    def step(self, anchor: Anchor) -> Variables | None:
        """The end of a step, or None if it was not found.

        A step is solved at a larger smoothing first, from which the smoothing is led to its last
        value. In the first step that is the smoothing of the start; later those of `tops` are
        tried, the one nearest to the last that succeeded first.
        """
        tops = sorted(self.settings.tops, key=lambda top: abs(math.log(top / self.last_top)))
        for top in tops if len(self.points) > 1 else [self.first_top]:
            found = self.newton.solve(self.now, top, anchor=anchor)
            if found is None:
                continue
            found, smoothing = self.newton.lowered(found, top, self.settings.first_factor, anchor)
            if smoothing <= self.last_smoothing:
                # A smaller smoothing will do for the next step, which moves the point less.
                self.last_top = float(np.clip(0.1 * top, min(self.settings.tops), self.highest))
                return found
        return None


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.linalg.norm(second - first) / np.linalg.norm(second))
