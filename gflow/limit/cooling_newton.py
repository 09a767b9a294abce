"""Newton's method at one temperature, made to converge from far away.

Steps are those of the linearly implicit Euler method for the flow. They grow as the flow comes to
rest, and a very long step is one of Newton's method; where that converges from the start, all are.
Shorter steps are needed where the curvature at the rest point is nearly 0: Newton's method alone
would leave its neighbourhood and not return.

Source: Kelley & Keyes 1998, "Convergence analysis of pseudo-transient continuation", SIAM J. Numer.
Anal. 35.
"""

import numpy as np

from gflow._layout import Layout
from gflow.kkt.system import without_dead
from gflow.limit.cooling_system import TINY, CoolingSystem, Evaluated
from gflow.limit.settings import RefineSettings
from gflow.problem import Problem
from gflow.watch import looked


class CoolingNewton:
    """Newton's method at the temperatures of one path.

    Args:
        largest: lambda_max of `gflow.limit.cooling_system`, the same at all temperatures.

    Attributes:
        num_iterations: systems solved so far, all temperatures together.
        time: length of the next step, on the flow's clock; it is kept from one temperature to the
            next.
    """

    def __init__(self, problem: Problem, layout: Layout, largest: float, settings: RefineSettings):
        self.problem, self.layout, self.largest = problem, layout, largest
        self.all_settings, self.settings = settings, settings.cooling
        self.num_iterations, self.time = 0, settings.cooling.longest_time

    def at(
        self,
        theta: np.ndarray,
        multipliers: np.ndarray,
        temperature: float,
        known: Evaluated | None = None,
    ) -> CoolingSystem:
        """The equations at a point without its dead neurons, and a temperature; with what is known
        there from another one (`CoolingSystem.known`).
        """
        if known is None:
            given = self.problem, self.layout, without_dead(theta), multipliers
            known = Evaluated(*given, self.all_settings.sizes)
        return CoolingSystem(
            known, temperature=temperature, largest=self.largest, settings=self.all_settings
        )

    @property
    def spent(self) -> bool:
        """Whether all systems of the budget have been solved."""
        return self.num_iterations >= self.settings.most_systems

    def rest(self, system: CoolingSystem) -> tuple[CoolingSystem | None, int]:
        """The rest point at the temperature of a system, or None; and the iterations."""
        settings, least, in_vain = self.settings, system.error, 0
        for iteration in range(settings.most_iterations + 1):
            if system.error < self._close_enough(system.temperature):
                return system, iteration
            if self.spent or in_vain > settings.most_in_vain:
                break
            if not np.isfinite(system.error) or self.time < settings.shortest_time:
                break
            after = self.stepped(system, self.time)
            if after is not None and after.error >= system.error < settings.rounded:
                return system, iteration
            allowed = max(settings.rise * system.error, settings.least_risen)
            if after is None or not after.error < allowed:
                self.time = min(settings.shrink * self.time, settings.time_astray)
                continue
            risen = after.error > system.error and self.time > settings.correcting_time
            growth = self._growth(system, after)
            system, growth = self.corrected(after) if risen else (after, growth)
            self.time = min(growth * self.time, settings.longest_time)
            if system.error < least:
                least, in_vain = system.error, 0
            elif risen:
                in_vain += 1
        self.time = max(self.time, settings.correcting_time)
        return None, settings.most_iterations

    def corrected(self, system: CoolingSystem) -> tuple[CoolingSystem, float]:
        """The system after a short step, and the factor by which the next long one is longer.

        Along a family of KKT points only long steps make progress. Since the family is curved, a
        long step along it ends a little off the family, and a short step leads back to it.
        """
        settings = self.settings
        after = self.stepped(system, settings.correcting_time)
        if after is None or not after.error < system.error:
            return system, settings.least_growth
        near = system.error < settings.shrink * settings.least_risen
        return after, settings.corrected_growth if near else 1.0

    def stepped(self, system: CoolingSystem, time: float) -> CoolingSystem | None:
        """The system after a step over some time, or None where the step is too long or was not
        found. Multipliers stay positive: where a step lowers one, it is multiplied by exp of its
        relative change instead.
        """
        looked(float(system.error))
        self.num_iterations += 1
        step = system.solve(time)
        theta, multipliers = system.theta, system.multipliers
        if step is None:
            return None
        moved, change = np.split(step, [len(theta)])
        if not np.linalg.norm(moved) < self.settings.longest_step * np.linalg.norm(theta):
            return None
        change = np.maximum(change / np.maximum(multipliers, TINY), self.settings.least_change)
        factors = np.where(change < 0, np.exp(np.minimum(change, 0.0)), 1 + change)
        multipliers = np.maximum(multipliers * factors, TINY)
        return self.at(theta + moved, multipliers, system.temperature)

    def _growth(self, before: CoolingSystem, after: CoolingSystem) -> float:
        """The factor of the time after a step: the one by which the error fell, within bounds."""
        ratio = before.error / max(after.error, TINY)
        return float(np.clip(ratio, self.settings.least_growth, self.settings.most_growth))

    def _close_enough(self, temperature: float) -> float:
        """The error at which the next temperature is tried: larger at a high temperature, where the
        solution is only the start for the next one.
        """
        settings = self.settings
        tight = settings.tight * max(1.0, settings.cold * temperature) * temperature
        return min(settings.loose, tight) + settings.rounding
