"""A KKT point at kinks, and the evidence that it is one."""

from dataclasses import dataclass, replace

import numpy as np

from gflow._layout import Layout
from gflow.kkt.kinked_equations import Equations, Point, equations
from gflow.kkt.kinked_path import Path
from gflow.problem import Problem

_SLACK = 1e-9
# Zeros are left at up to 1.5e-14 of the largest weight next to the largest feasible radius.
_ZERO = 1e-13


@dataclass(frozen=True, eq=False)
class Kinks:
    """A KKT point at kinks.

    Attributes:
        theta: the point, at the norm where its active margins are 1. Shape (P,).
        multipliers: lambda, zero where not active. Shape (m,).
        active: the active margins. Shape (m,).
        coefficients: `sin phi` of every switch: -1 or +1 off its kink. Shape (n, s).
        at_kink: the switches of active margins that stand on their kink. Shape (n, s).
        smoothing: the smoothing that was reached; 0 for an exact point.
        residual: `max(|theta - sum_i lambda_i grad q_i| / |theta|, max_active |q_i - 1|)`.
        converged: exact, with no negative multiplier, no violated margin, and no switch on the
            wrong side.
        num_iterations: systems solved.
        equations: the system there.
    """

    theta: np.ndarray
    multipliers: np.ndarray
    active: np.ndarray
    coefficients: np.ndarray
    at_kink: np.ndarray
    smoothing: float
    residual: float
    converged: bool
    num_iterations: int
    equations: Equations

    def __repr__(self) -> str:
        examples = self.examples
        shown = ", ".join(map(str, examples[:12])) + (", ..." if len(examples) > 12 else "")
        return (
            f"Kinks({'exact' if self.converged else 'NOT exact'}: residual {self.residual:.2g}, "
            f"smoothing {self.smoothing:.2g}, after {self.num_iterations} systems\n"
            f"  weights          {len(self.theta)}, |theta| = {np.linalg.norm(self.theta):.6g}\n"
            f"  active margins   {np.count_nonzero(self.active)} of {len(self.active)}\n"
            f"  switches at kink {np.count_nonzero(self.at_kink)} of {self.at_kink.size}, "
            f"of {len(examples)} examples: {shown or 'none'})"
        )

    @property
    def direction(self) -> np.ndarray:
        """`theta / |theta|`. Shape (P,)."""
        return self.theta / np.linalg.norm(self.theta)

    @property
    def point(self) -> Point:
        """The point with its multipliers and angles."""
        angles = np.arcsin(np.clip(self.coefficients, -1.0, 1.0))
        return Point(self.theta, self.multipliers, angles)

    @property
    def jacobian(self) -> np.ndarray:
        """Of `theta - sum_i lambda_i grad q_i`, the active margins and the values at kinks, by
        theta, the active multipliers and the angles at kinks. Shape (r, r).
        """
        size, count = len(self.theta), len(self.multipliers)
        switches = size + count + np.arange(np.count_nonzero(self.at_kink))
        kept = np.concatenate([np.arange(size), size + np.flatnonzero(self.active), switches])
        return np.asarray(self.equations.jacobian)[np.ix_(kept, kept)]

    @property
    def examples(self) -> np.ndarray:
        """The examples that sit at a kink."""
        return np.flatnonzero(self.at_kink.any(axis=1))


def found(path: Path, point: Point, smoothing: float, kinks: np.ndarray) -> Kinks:
    """What was found, at these kinks, judged."""
    theta = _snapped(point.theta)
    support = point.multipliers > _SLACK * point.multipliers.max()
    multipliers = np.where(support, point.multipliers, 0.0)
    last = Point(theta, multipliers, point.angles)
    at = path.at(last, smoothing, np.flatnonzero(kinks))
    residual = max(
        np.linalg.norm(at.residual) / np.linalg.norm(theta),
        np.abs(at.margins[support] - 1).max(initial=0.0),
    )
    if smoothing == 0:  # at the others it is cos phi that is 0: they have turned
        kinks = kinks & (np.abs(at.values) < _SLACK * np.asarray(at.scales))
        at = path.at(last, smoothing, np.flatnonzero(kinks))
    examples = path.support(multipliers, smoothing)[:, None]
    wrong = np.sin(point.angles) * at.values < -_SLACK * np.asarray(at.scales)
    wrong &= examples & ~kinks & path.alive(at)
    beyond = np.abs(point.angles[kinks]) > np.pi / 2 - 1e-9
    right = not wrong.any() and not beyond.any() and at.margins.min() > 1 - _SLACK
    return Kinks(
        theta=theta,
        multipliers=multipliers,
        active=support,
        coefficients=np.sin(point.angles),
        at_kink=kinks,
        smoothing=smoothing,
        residual=float(residual),
        converged=bool(smoothing == 0 and right and residual <= path.tolerance),
        num_iterations=path.num_iterations,
        equations=at,
    )


def at_other_coefficients(
    problem: Problem, layout: Layout, kinks: Kinks, point: Point, at_kink: np.ndarray
) -> Kinks:
    """The KKT point with other angles at kinks where they do not matter to it, and with these kinks
    alone to hold it.
    """
    return replace(
        kinks,
        coefficients=np.sin(point.angles),
        at_kink=at_kink,
        equations=equations(problem, layout, point, 0.0, np.flatnonzero(at_kink)),
    )


def _snapped(theta: np.ndarray) -> np.ndarray:
    """The point with the rounding of its zeros removed."""
    return np.where(np.abs(theta) < _ZERO * np.abs(theta).max(), 0.0, theta)
