"""The slow flow of a smooth problem at infinite kappa, by implicit Euler steps.

Under frozen perturbations the flow is no gradient flow, and it may drift: along a direction that is
nearly neutral it moves for hundreds of thousands of units of log kappa at a speed of 1e-7, past a
place where a rest point all but exists, before it comes to rest elsewhere. A drift has no KKT point
nearby, so that Newton's method fails; and its steps must not cost what those of the stiff flow do.
At kappa = infinity and at unit margin the direction moves, with s = log |params|, as

    d theta/ds = -theta + sum_i lambda_i grad q_i(theta),   q_i >= 1,  lambda_i >= 0,
    lambda_i (q_i - 1) = 0.

A step of the implicit Euler method solves for the point and the multipliers at its end together, so
that margins may become active or cease to be on the way (Moreau 1977; `gflow.limit.sliding` does
the same at kinks). The steps' local error, half of the difference of the displacements by the old
and the new velocity, is controlled: without that a step longer than the time in which the drift
grows would lead backwards, to a rest point that the flow leaves.

Source: Moreau 1977, "Evolution problem associated with a moving convex set in a Hilbert space", J.
Differential Equations 26; Hairer & Wanner 1996, "Solving Ordinary Differential Equations II".
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gflow._layout import Layout
from gflow.kkt.kinked_equations import Equations, Point
from gflow.kkt.kinked_path import Path
from gflow.kkt.kinked_step import Anchor
from gflow.kkt.system import residual_at, system
from gflow.problem import Problem

# Of a step: the first length, and the shortest and the longest.
_FIRST, _SHORTEST, _LONGEST = 1.0, 1e-6, 1e12
# Its local error and its displacement at most, relative to the norm of theta; by how much it grows
# and shrinks.
_ERROR, _MOVED = 2e-3, 5e-2
_GROW, _SHRINK, _SAFETY = 5.0, 0.2, 0.8
# At rest the speed, relative, is below this; and steps of the flow move no further than this.
_REST, _STILL = 1e-9, 1e-6
_MOST_STEPS, _MOST_ITERATIONS = 500, 4000
# The square root of what rounds off complementarity, relative to the multipliers: 1e-9.
_ROUNDED = 1e-6
# How far from its end a drift is still on the way.
_NEAR = 1e-3


@dataclass(frozen=True, eq=False)
class Drift:
    """Where a drift led.

    Attributes:
        theta: its end, at the norm where its active margins are 1. Shape (P,).
        multipliers: lambda there. Shape (m,).
        before: the direction on the way that was last farther than 1e-3 from the end. Shape (P,).
        rests: whether it came to rest there.
        stuck: whether it ended since the shortest step could not be solved.
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


def drift(problem: Problem, layout: Layout, direction: np.ndarray, weights: np.ndarray) -> Drift:
    """Follows the flow at infinite kappa from a direction to its rest, or as far as it leads.

    Args:
        problem: smooth.
        direction: u, a unit vector whose margins are positive. Shape (P,).
        weights: the flow's weights p there, flattened; the first multipliers are
            `p_i |theta|^2 / L` (Euler's identity). Shape (m,).

    Memory: 8 (P + m)^2 bytes, and some.
    """
    margins = np.asarray(problem.margins(layout.unflatten(direction))).ravel()
    theta = direction / margins.min() ** (1 / problem.degree)
    multipliers = weights * (theta @ theta) / (problem.degree * weights.sum())
    drifting = _Drifting(_SmoothPath(problem, layout, float(multipliers.max())), theta, multipliers)
    rests = drifting.run()
    return drifting.ended(rests)


class _SmoothPath(Path):
    """Newton's method for the equations of a step, without switches."""

    def at(self, point: Point, smoothing: float, index: np.ndarray | None = None) -> Equations:
        if index is None:
            found = residual_at(self.problem, self.layout, point.theta, point.multipliers)
            return self.without_switches(*found, None)
        at = system(self.problem, self.layout, point.theta, point.multipliers)
        corner = np.zeros((len(at.margins), len(at.margins)))
        jacobian = np.block([[at.hessian, -at.gradients.T], [at.slopes, corner]])
        return self.without_switches(at.residual, at.margins, jacobian)

    def without_switches(self, residual: Any, margins: Any, jacobian: Any) -> Equations:
        """The equations of a problem that has no kinks, on the host."""
        nothing = np.zeros((len(self.problem.dataset.x), 0))
        parts = residual, margins, nothing, nothing, jacobian
        traced = Equations(*jax.tree.map(jnp.asarray, parts))
        return jax.tree.map(np.asarray, traced)


class _Drifting:
    """The state of one drift."""

    def __init__(self, path: _SmoothPath, theta: np.ndarray, multipliers: np.ndarray):
        none = np.zeros((len(path.problem.dataset.x), 0))
        self.path, self.now = path, Point(theta, multipliers, none)
        self.velocity: np.ndarray | None = None
        self.log_growth, self.points, self.stuck = 0.0, [theta], False

    def run(self) -> bool:
        """Steps until the point rests; whether it does."""
        length = _FIRST
        for _ in range(_MOST_STEPS):
            if self.path.num_iterations > _MOST_ITERATIONS:
                break
            anchor = Anchor(self.now.theta, length)
            found = self.path.correct(self.now, _ROUNDED, anchor=anchor)
            size = math.inf if found is None else self.size_of(found, length)
            if found is None or size > 1.0:
                length *= _SHRINK if found is None else max(_SAFETY / math.sqrt(size), _SHRINK)
                if length < _SHORTEST:
                    self.stuck = True
                    break
                continue
            self.accept(found, length)
            if self.at_rest(length):
                return True
            length = min(length * min(_SAFETY / math.sqrt(max(size, 1e-12)), _GROW), _LONGEST)
        return False

    def size_of(self, found: Point, length: float) -> float:
        """The local error or the displacement of a step, in parts of what is allowed."""
        norm = float(np.linalg.norm(found.theta))
        step = found.theta - self.now.theta
        moved = float(np.linalg.norm(step) / norm)
        # The first velocity is not known: that of the capped flow has a part of the order of kappa.
        change = 0.0 if self.velocity is None else step - length * self.velocity
        error = 0.5 * float(np.linalg.norm(change)) / norm
        return max(error / _ERROR, (moved / _MOVED) ** 2)

    def accept(self, found: Point, length: float) -> None:
        """Takes a step."""
        self.velocity = (found.theta - self.now.theta) / length
        self.now, self.log_growth = found, self.log_growth + length
        self.points.append(found.theta)

    def at_rest(self, length: float) -> bool:
        """Whether the last step, a long one, hardly moved the point."""
        moved = length * self.speed()
        return self.speed() < _REST and moved < _STILL and length > _FIRST

    def speed(self) -> float:
        """Of the last step, relative."""
        if self.velocity is None:
            return math.inf
        return float(np.linalg.norm(self.velocity) / np.linalg.norm(self.now.theta))

    def ended(self, rests: bool) -> Drift:
        """What was found."""
        directions = [theta / np.linalg.norm(theta) for theta in self.points]
        far = [u for u in directions if np.linalg.norm(u - directions[-1]) > _NEAR]
        return Drift(
            theta=self.now.theta,
            multipliers=np.maximum(self.now.multipliers, 0.0),
            before=far[-1] if far else directions[0],
            rests=rests,
            stuck=self.stuck,
            speed=self.speed(),
            log_growth=self.log_growth,
            num_steps=len(self.points) - 1,
            num_iterations=self.path.num_iterations,
        )
