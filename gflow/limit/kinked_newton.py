"""Newton's method at one smoothing of the kinks, and the smoothing led to 0 by it.

Only the switches of active margins that are near their kinks have an angle as an unknown. The angle
of any other switch follows from its value v and its scale w.
"""

import math
from typing import Any

import numpy as np

from gflow._layout import Layout
from gflow.kkt.kinked_system import (
    Residuals,
    kinked_residuals,
    kinked_system,
    kinked_system_within,
    switch_rows,
)
from gflow.kkt.switches import DEAD_SCALE, alive
from gflow.kkt.system import KKTSystem
from gflow.kkt.variables import Variables
from gflow.limit.complementarity import FREE, Anchor, ComplementaritySystem, far_from_active
from gflow.limit.continuation import continued
from gflow.limit.settings import REFINE, RefineSettings
from gflow.problem import Problem
from gflow.watch import looked


class KinkedNewton:
    """Newton's method for a problem at kinks.

    Args:
        strength: the unit of multipliers, about the largest of them.
        tolerance: of the residual of an exact point; that of `settings.smoothing` by default.

    Attributes:
        large: whether matrices are formed within a subspace only.
        num_iterations: systems solved so far, all calls together.
    """

    def __init__(
        self,
        problem: Problem,
        layout: Layout,
        strength: float,
        tolerance: float | None = None,
        settings: RefineSettings = REFINE,
    ):
        self.problem, self.layout = problem, layout
        self.strength, self.settings = strength, settings.smoothing
        self.large = layout.size > settings.sizes.formed_at_kinks
        self.tolerance = self.settings.tolerance if tolerance is None else tolerance
        self.per_example = max(problem.dataset.num_outputs - 1, 1)
        self.num_iterations = 0

    def residuals(self, variables: Variables, smoothing: float) -> Residuals:
        """The KKT system at a point, without derivatives."""
        return kinked_residuals(self.problem, self.layout, variables, smoothing)

    def linearized(
        self, variables: Variables, smoothing: float, index: np.ndarray, **within: Any
    ) -> KKTSystem:
        """The KKT system at a point with the switches of some flat indices as unknowns.

        Args:
            within: of many parameters, `margins`, `force` and `whole` of `kinked_system_within`.
        """
        given, settings = (self.problem, self.layout, variables, smoothing, index), self.settings
        if not self.large:
            return kinked_system(*given)
        drop = settings.drop if smoothing > settings.steps.last else settings.drop_exact
        return kinked_system_within(*given, drop=drop, **within)

    def switch_rows(self, variables: Variables, at_kink: np.ndarray) -> np.ndarray:
        """dv/dtheta of the switches at kinks. Shape (k, P)."""
        last, index = self.settings.steps.last, np.flatnonzero(at_kink)
        if self.large:
            return switch_rows(self.problem, self.layout, variables, last, index)
        at = self.linearized(variables, last, index)
        assert at.switches is not None
        return at.switches.rows

    def alive(self, at: Residuals) -> np.ndarray:
        """The switches of living neurons. Shape (n, s)."""
        dead = self.settings.dead if self.large else DEAD_SCALE
        return alive(self.problem, at.scales, dead)

    def pushing(self, multipliers: np.ndarray, smoothing: float) -> np.ndarray:
        """Which examples push: those with a multiplier that is not negligible. Shape (n,)."""
        share = max(self.settings.support_widths * smoothing, self.settings.least_support)
        pushes = multipliers > share * multipliers.max()
        return pushes.reshape(-1, self.per_example).any(axis=1)

    def at_kink(self, variables: Variables) -> np.ndarray:
        """Switches that stand between their two sides, of examples that push. Shape (n, s)."""
        last = self.settings.steps.last
        turned = np.abs(np.sin(variables.angles)) < 1 - 1e-7
        pushes = self.pushing(variables.multipliers, last)
        return turned & self.alive(self.residuals(variables, last)) & pushes[:, None]

    def lowered(
        self, variables: Variables, smoothing: float, factor: float, anchor: Anchor = FREE
    ) -> tuple[Variables, float]:
        """The solution at the last value of the smoothing, or at the smallest one for which there
        is a solution; and that smoothing.

        Args:
            variables: a solution at `smoothing`.
            factor: by which it falls first.
        """

        def solve(now: Variables, lower: float) -> tuple[Variables | None, bool]:
            before = self.num_iterations
            found = self.solve(now, lower, anchor=anchor)
            few = self.num_iterations - before <= self.settings.most_iterations // 2
            return found, few

        return continued(solve, variables, smoothing, self.settings.steps.starting_by(factor))

    def exact(self, variables: Variables, at_kink: np.ndarray) -> Variables | None:
        """The solution at smoothing 0 with these kinks, or None."""
        return self.solve(variables, 0.0, at_kink)

    def solve(
        self,
        variables: Variables,
        smoothing: float,
        at_kink: np.ndarray | None = None,
        anchor: Anchor = FREE,
    ) -> Variables | None:
        """Newton's method at one smoothing: its solution, or None.

        Args:
            at_kink: at smoothing 0, the switches that stand on their kinks. Shape (n, s).
            anchor: of a step of the flow.
        """
        goal, most = self._goal(smoothing, at_kink, anchor)
        last = math.inf
        for iteration in range(most + 1):
            variables, index, residuals = self._placed(variables, smoothing, at_kink)
            equations = ComplementaritySystem(
                residuals, variables, smoothing, index, self.strength, anchor, self.settings
            )
            error = equations.error
            # For a radius close to the largest feasible one theta is so long that rounding alone
            # may leave an error above the goal.
            stalled = at_kink is not None and 0.5 * last <= error <= self.settings.rounded
            if error <= goal or stalled:
                return variables
            if iteration == most or not np.isfinite(error):
                break
            looked(error)
            last, self.num_iterations = error, self.num_iterations + 1
            within = {"margins": equations.near, "force": equations.right[: self.layout.size]}
            moved = equations.step(self.linearized(variables, smoothing, index, **within))
            if moved is None:
                break
            variables = moved
        return None

    def _goal(
        self, smoothing: float, at_kink: np.ndarray | None, anchor: Anchor
    ) -> tuple[float, int]:
        """The error to be reached, and the iterations at most."""
        settings = self.settings
        if at_kink is not None:
            return min(settings.goal_exact, self.tolerance), settings.most_exact
        free = math.isinf(anchor.length)
        most = settings.most_iterations if free else settings.most_in_step
        return settings.goal * smoothing + 1e-10, most

    def _placed(
        self, variables: Variables, smoothing: float, at_kink: np.ndarray | None
    ) -> tuple[Variables, np.ndarray, Residuals]:
        """The point with the angles that are no unknowns put where their values say; the flat
        indices of the others; and the residuals of the equations.
        """
        at = self.residuals(variables, smoothing)
        unknown = self._unknown(variables, at, smoothing) if at_kink is None else at_kink
        settled = np.arctan2(at.values, smoothing * at.scales)
        angles = np.where(self.alive(at) & ~unknown, settled, variables.angles)
        if at_kink is None:
            width = self.settings.astray_widths * smoothing * at.scales
            astray = unknown & (np.sin(variables.angles) * at.values < -width)
            angles = np.where(astray, 0.0, angles)
        multipliers = self._settled(variables.multipliers, at.margins, smoothing)
        placed = Variables(variables.theta, multipliers, angles)
        if not all(map(np.array_equal, placed, variables)):
            variables = placed
            at = self.residuals(variables, smoothing)
        return variables, np.flatnonzero(unknown), at

    def _settled(
        self, multipliers: np.ndarray, margins: np.ndarray, smoothing: float
    ) -> np.ndarray:
        """The multipliers; of many parameters, those of margins far from active put where the
        margins say.
        """
        if not self.large:
            return multipliers
        far = far_from_active(multipliers, margins, smoothing, self.strength, self.settings)
        slack = self.strength * np.where(far, margins - 1, 1.0)
        nu = self.settings.rounding_off * smoothing * self.strength**2
        return np.where(far, nu / slack, multipliers)

    def _unknown(self, variables: Variables, at: Residuals, smoothing: float) -> np.ndarray:
        """The switches whose angles are unknown: those of active margins, near their kink."""
        widths, turned = self.settings.unknown_widths, self.settings.turned
        if self.large:
            widths = min(widths, (2 * self.settings.bent * smoothing) ** (-1 / 3))
            turned = max(turned, 0.5 / widths**2)
        near = np.abs(at.values) < widths * smoothing * at.scales
        near |= np.abs(np.sin(variables.angles)) < 1 - turned
        return near & self.alive(at) & self.pushing(variables.multipliers, smoothing)[:, None]
