"""The slow flow of a smooth problem at infinite kappa, by implicit Euler steps.

Under frozen perturbations the flow is no gradient flow, and it may drift: along a nearly neutral
direction it moves for hundreds of thousands of units of log kappa at a speed of 1e-7, past a point
that is almost a rest point, before it comes to rest elsewhere. During a drift there is no KKT point
nearby, so that Newton's method fails, and the stiff flow would take too many steps.
At kappa = infinity and at unit margin the direction moves, with s = log |params|, as

    d theta/ds = -theta + sum_i lambda_i grad q_i(theta),   q_i >= 1,  lambda_i >= 0,
    lambda_i (q_i - 1) = 0.

A step of the implicit Euler method solves for the point and the multipliers at its end together, so
that margins may become active or cease to be on the way (Moreau 1977; `gflow.limit.sliding` does
the same at kinks). The local error of a step is controlled; it is estimated by half of the
difference between the displacements by the old and by the new velocity. A step longer than the time
in which an unstable offset grows would otherwise lead back to the rest point that the flow leaves,
since the implicit Euler method damps what it does not resolve.

Source: Moreau 1977, "Evolution problem associated with a moving convex set in a Hilbert space", J.
Differential Equations 26; Hairer & Wanner 1996, "Solving Ordinary Differential Equations II".
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gflow._layout import Layout
from gflow.kkt.kinked_system import Residuals
from gflow.kkt.system import KKTSystem, kkt_system, stationarity_and_margins
from gflow.kkt.variables import Variables, at_unit_margin
from gflow.limit.complementarity import Anchor
from gflow.limit.kinked_newton import KinkedNewton
from gflow.limit.settings import REFINE, DriftSettings
from gflow.limit.sliding import last_far_from
from gflow.problem import Problem


@dataclass(frozen=True, eq=False)
class Drift:
    """Where a drift led.

    Attributes:
        theta: its end, at the norm where its active margins are 1. Shape (P,).
        multipliers: lambda there. Shape (m,).
        before: the direction on the way that was last farther than 1e-3 from the end. Shape (P,).
        rests: whether it came to rest there.
        stuck: whether it ended because the shortest step could not be solved.
        speed: `|d theta/d log |params|| / |theta|` at the end: how far the direction moves while
            the norm of the parameters grows by a factor e. It is the relative stationarity.
        log_growth: by how much log |params| grew; log kappa by L times that.
        num_steps: steps of the implicit Euler method.
        num_iterations: systems solved.
    """

    theta: np.ndarray
    multipliers: np.ndarray
    before: np.ndarray
    rests: bool
    stuck: bool
    speed: float
    log_growth: float
    num_steps: int
    num_iterations: int

    @property
    def direction(self) -> np.ndarray:
        """`theta / |theta|`. Shape (P,)."""
        return self.theta / np.linalg.norm(self.theta)


def drift(
    problem: Problem,
    layout: Layout,
    direction: np.ndarray,
    weights: np.ndarray,
    *,
    settings: DriftSettings = REFINE.drift,
) -> Drift:
    """Follows the flow at infinite kappa from a direction to its rest, or as far as it leads.

    Args:
        problem: smooth.
        direction: u, a unit vector whose margins are positive. Shape (P,).
        weights: the flow's weights p there, flattened: the first multipliers are proportional to
            them. Shape (m,).

    Memory: 8 (P + m)^2 bytes, and some.
    """
    start = at_unit_margin(problem, layout, direction, weights)
    newton = _SmoothNewton(problem, layout, float(start.multipliers.max()))
    drifting = _Drifting(newton, start, settings)
    rests = drifting.run()
    return drifting.ended(rests)


class _SmoothNewton(KinkedNewton):
    """Newton's method for the equations of a step of a smooth problem, which has no switches, with
    the programs that Newton's method on the KKT system has compiled already.
    """

    def residuals(self, variables: Variables, smoothing: float) -> Residuals:
        """The KKT system at a point, without derivatives."""
        given = self.problem, self.layout, variables.theta, variables.multipliers
        none = np.zeros_like(variables.angles)
        stationarity, margins = map(np.asarray, stationarity_and_margins(*given))
        return Residuals(stationarity, margins, none, none)

    def linearized(
        self,
        variables: Variables,
        smoothing: float,
        index: np.ndarray,
        **within: Any,
    ) -> KKTSystem:
        """The KKT system at a point."""
        return kkt_system(self.problem, self.layout, variables.theta, variables.multipliers)


class _Drifting:
    """The state of one drift.

    Attributes:
        now: where it is.
        velocity: of the last step, per unit of log |params|; None before the first.
        points: theta at the end of every step, the start first.
    """

    def __init__(self, newton: _SmoothNewton, start: Variables, settings: DriftSettings):
        self.newton, self.now, self.settings = newton, start, settings
        self.velocity: np.ndarray | None = None
        self.log_growth, self.points, self.stuck = 0.0, [start.theta], False

    def run(self) -> bool:
        """Steps until the point rests; whether it does."""
        settings = self.settings
        length = settings.first
        for _ in range(settings.most_steps):
            if self.newton.num_iterations > settings.most_iterations:
                break
            anchor = Anchor(self.now.theta, length)
            found = self.newton.solve(self.now, settings.rounding_off, anchor=anchor)
            size = math.inf if found is None else self.size_of(found, length)
            # Steps of order 1: the error goes like the square of the length.
            allowed = settings.safety / math.sqrt(max(size, 1e-12))
            if found is None or size > 1.0:
                length *= settings.shrink if found is None else max(allowed, settings.shrink)
                if length < settings.shortest:
                    self.stuck = True
                    break
                continue
            self.accept(found, length)
            if self.at_rest(length):
                return True
            length = min(length * min(allowed, settings.grow), settings.longest)
        return False

    def size_of(self, found: Variables, length: float) -> float:
        """The local error or the displacement of a step, in parts of what is allowed."""
        norm = float(np.linalg.norm(found.theta))
        step = found.theta - self.now.theta
        moved = float(np.linalg.norm(step) / norm)
        # Before the first step no velocity is known. That of the capped flow would not do: part of
        # it is of the order of kappa.
        change = 0.0 if self.velocity is None else step - length * self.velocity
        error = 0.5 * float(np.linalg.norm(change)) / norm
        return max(error / self.settings.error, (moved / self.settings.moved) ** 2)

    def accept(self, found: Variables, length: float) -> None:
        """Accepts a step."""
        self.velocity = (found.theta - self.now.theta) / length
        self.now, self.log_growth = found, self.log_growth + length
        self.points.append(found.theta)

    def at_rest(self, length: float) -> bool:
        """Whether the last step, a long one, hardly moved the point."""
        moved, speed = length * self.speed(), self.speed()
        slow = speed < self.settings.rest and moved < self.settings.still
        return slow and length > self.settings.first

    def speed(self) -> float:
        """The relative speed of the last step, see `Drift.speed`."""
        if self.velocity is None:
            return math.inf
        return float(np.linalg.norm(self.velocity) / np.linalg.norm(self.now.theta))

    def ended(self, rests: bool) -> Drift:
        """The result of the drift."""
        end = self.now.theta / np.linalg.norm(self.now.theta)
        return Drift(
            theta=self.now.theta,
            multipliers=np.maximum(self.now.multipliers, 0.0),
            before=last_far_from(end, self.points, self.settings.near),
            rests=rests,
            stuck=self.stuck,
            speed=self.speed(),
            log_growth=self.log_growth,
            num_steps=len(self.points) - 1,
            num_iterations=self.newton.num_iterations,
        )
