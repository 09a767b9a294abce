"""How a smooth problem is searched: Newton's method on the KKT system, if need be after a drift."""

import math
import time
from dataclasses import dataclass, replace

import numpy as np

from gflow.kkt.curvature import Curvature, curvature
from gflow.kkt.point import KKTPoint
from gflow.kkt.variables import margins_at
from gflow.kkt.within import is_factored, system_at
from gflow.limit.approach import approach, rounding_at, weights_at
from gflow.limit.basin import Handover
from gflow.limit.dead import with_dead_at_rest
from gflow.limit.drift import drift
from gflow.limit.leaving import circling_beside, colder_on_return, pushed_off
from gflow.limit.polish import polish_again, polish_capped, polish_drifted
from gflow.limit.result import margin_at
from gflow.limit.search import Refiner, Search
from gflow.limit.state import Found, State, taken
from gflow.results import RESULTS


@dataclass(frozen=True, eq=False)
class Smooth(Refiner):
    """A refiner for problems that are smooth, or whose kinks are rounded.

    Where kinks are rounded it is not checked whether the flow drifts or circles, and few colder
    caps are tried, since the flow along the exact kinks is followed afterwards.
    """

    search: Search

    def approach(self, state: State) -> State:
        return approach(self.search, state)

    def refine(self, state: State) -> State:
        """Newton's method from where the flow stopped; after repeated failures from where a drift
        comes to rest.
        """
        state = taken(self._newton, state, self.search.journal)
        drifts = state.failures == self.search.settings.flow.caps_before_drift
        if state.found is None and drifts and self._may_drift(state):
            state = taken(self._drift, state, self.search.journal)
        return state

    def retry(self, state: State) -> State:
        """A colder cap, at which active margins are told from others, and a later handover."""
        settings = self.search.settings
        most = (settings.kinks if self.search.has_kinks else settings.flow).most_caps
        state = replace(state, direction=state.flow.vector)
        if state.failures == most:
            return state.ended(RESULTS.not_polished)
        return replace(
            state, failures=state.failures + 1, cap=state.cap.colder(settings.flow.colder)
        )

    def curvature(self, state: State, point: KKTPoint) -> Curvature:
        """The curvature, with every dead neuron in the direction in which it arrived; or, if the
        flow would turn it, in the one to which it turns (`gflow.limit.dead`).
        """
        problem, layout = self.search.problem, self.search.layout
        refine = self.search.settings.refine
        theta, at, multipliers = point.theta, point.linearized, point.multipliers
        if is_factored(problem, theta.size, refine.sizes):
            theta = with_dead_as_they_arrived(self.search, state, theta)
        if theta is not point.theta:
            given = problem, layout, theta, multipliers
            there = system_at(*given, active=point.active, sizes=refine.sizes)
            at = at._replace(hessian=there.hessian, basis=there.basis)
        found = curvature(at, point.active, sizes=refine.sizes, settings=refine.curvature)
        return with_dead_at_rest(problem, layout, theta, multipliers, found, dead=refine.dead)

    def beside(self, point: KKTPoint, direction: np.ndarray) -> KKTPoint:
        search = self.search
        return polish_again(
            search.problem,
            search.layout,
            direction,
            point.multipliers,
            settings=search.settings.refine,
        )

    def leave(self, state: State) -> State:
        """A push off the saddle, unless the flow circles about it."""
        state = circling_beside(self.search, state)
        if state.result is not None:
            return state
        settings = self.search.settings
        state = colder_on_return(self.search, state)
        state = pushed_off(self.search, state, settings.saddles.push)
        assert state.left is not None
        _, rates = state.left.unstable
        at_push = settings.saddles.handover * settings.saddles.push * float(rates.max())
        handover_at = np.clip(at_push, settings.flow.latest_handover, state.handover_at)
        return replace(state, handover_at=float(handover_at))

    def _may_drift(self, state: State) -> bool:
        """Whether the flow may drift on: not where rounding keeps it from coming to rest."""
        search = self.search
        small = search.layout.size <= search.settings.refine.sizes.factored
        rounded = rounding_at(search, state) > search.settings.flow.handover
        return small and not search.has_kinks and not rounded

    def _newton(self, state: State) -> State:
        """The state after Newton's method from where the flow stopped."""
        search, begin = self.search, time.perf_counter()
        polished = polish_capped(
            search.problem,
            search.layout,
            state.flow.vector,
            weights_at(search, state),
            state.cap.log_kappa,
            search.tolerance,
            settings=search.settings.refine,
        )
        return self.arrived_at(polished, state, time.perf_counter() - begin)

    def arrived_at(self, polished: KKTPoint, state: State, seconds: float) -> State:
        """The state where Newton's method ended."""
        search, degree = self.search, self.search.problem.degree
        state = state.moved(
            "newton",
            polished.direction,
            num_steps=polished.num_iterations,
            stationarity=polished.residual,
            margin=margin_at(polished.theta, degree) if polished.converged else math.nan,
            seconds=seconds,
        )
        if not polished.converged or polished.residual > search.tolerance:
            return replace(state, found=None, heading=False)
        return replace(
            state,
            found=Found(polished),
            handover=state.handover._replace(displacement=state.stages[-1].moved),
            heading=_rises(search, state.flow.vector, polished.direction),
        )

    def _drift(self, state: State) -> State:
        """The flow at infinite kappa from where it stopped, then Newton's method where it comes to
        rest. If it does not come to rest, the search ends; if its steps could not be solved, the
        state stays as it was.
        """
        search, degree = self.search, self.search.problem.degree
        begin, state = time.perf_counter(), replace(state, direction=state.flow.vector)
        refine, weights = search.settings.refine, weights_at(search, state)
        found = drift(
            search.problem, search.layout, state.flow.vector, weights, settings=refine.drift
        )
        log_kappa = state.flow.log_kappa + degree * found.log_growth
        state = replace(state, flow=replace(state.flow, log_kappa=log_kappa)).moved(
            "drift",
            found.direction,
            num_steps=found.num_iterations,
            stationarity=found.speed,
            margin=margin_at(found.theta, degree),
            seconds=time.perf_counter() - begin,
            log_growth=found.log_growth,
        )
        if found.stuck:
            return state
        flow = replace(state.flow, vector=found.before)
        state = replace(state, flow=flow, handover=Handover(False, found.speed, math.nan))
        if found.rests:
            begin = time.perf_counter()
            polished = polish_drifted(
                search.problem, search.layout, found, search.tolerance, settings=refine
            )
            if polished.converged:
                state = self.arrived_at(polished, state, time.perf_counter() - begin)
        return state if state.found is not None else state.ended(RESULTS.drifting)


def with_dead_as_they_arrived(search: Search, state: State, theta: np.ndarray) -> np.ndarray:
    """The point with tiny weights for dead neurons, in the direction in which they arrived. With
    weights of 0 it would not be defined on which side their switches stand. Shape (P,).
    """
    largest, below = np.abs(theta).max(), search.settings.refine.dead.weight
    dead = np.abs(theta) < below * largest
    remains = np.abs(state.flow.vector[dead]).max(initial=0.0)
    if not remains > 0:
        return theta
    return np.where(dead, 0.1 * below * largest / remains * state.flow.vector, theta)


def _rises(search: Search, start: np.ndarray, end: np.ndarray) -> bool:
    """Whether the margin rises all the way from one direction to another."""
    settings = search.settings.basin
    shares = np.linspace(0.0, 1.0, settings.heading_points)[:, None]
    line = (1 - shares) * start + shares * end
    line /= np.linalg.norm(line, axis=1, keepdims=True)
    margins = np.array([margins_at(search.problem, search.layout, at).min() for at in line])
    return bool(np.all(np.diff(margins) >= -settings.heading_slack * np.ptp(margins)))
