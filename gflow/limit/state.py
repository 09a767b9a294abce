"""The state of a search, and the steps that lead from one state to the next.

A step is a function of a state that returns another: states are frozen. Once a state has a
`result`, the search has ended.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from gflow.kkt.curvature import Curvature
from gflow.kkt.point import KKTPoint
from gflow.limit.basin import NO_HANDOVER, Handover
from gflow.limit.itinerary import Visit
from gflow.limit.journal import KEEPS_NOTHING, Journal
from gflow.limit.result import Stage
from gflow.results import RESULTS
from gflow.trajectory import Trajectory
from gflow.watch import SecondsSpent


class Start(NamedTuple):
    """Where a search starts: a direction and its log kappa; kappa itself may overflow.

    Attributes:
        vector: u, of norm 1. Shape (P,).
        log_kappa: `L log |params|`.
        trajectory: the run that led here, or None.
        goes_on: whether the true flow goes on with that trajectory.
        stages: what was done before.
    """

    vector: np.ndarray
    log_kappa: float
    trajectory: Trajectory | None = None
    goes_on: bool = False
    stages: tuple[Stage, ...] = ()


@dataclass(frozen=True)
class Cap:
    """Where the temperature is capped, and where the next cap will be.

    Attributes:
        wanted_logits: the smallest margin `kappa min_i q_i(u)` that the true flow is to reach
            before its temperature is capped.
        wanted_log_kappa: a log kappa that it is to reach too; minus infinity for none.
        least_log_kappa: log kappa of the start: no cap is at a smaller kappa.
        reached: whether the flow stands at its cap. Otherwise the true flow comes first.
        log_kappa: log kappa_c of the last cap; infinite before the first.
        logits: `kappa_c min_i q_i(u)` where the last cap was reached; NaN before the first.
        first_logits: those of the first cap.
    """

    wanted_logits: float
    wanted_log_kappa: float
    least_log_kappa: float
    reached: bool = False
    log_kappa: float = math.inf
    logits: float = math.nan
    first_logits: float = math.nan

    @property
    def known(self) -> bool:
        """Whether there has been a cap."""
        return math.isfinite(self.log_kappa)

    def reached_at(self, log_kappa: float, margin: float) -> "Cap":
        """The cap at this log kappa, where the normalized margin has this value."""
        logits = math.exp(log_kappa) * margin
        first = self.first_logits if self.known else logits
        return replace(self, reached=True, log_kappa=log_kappa, logits=logits, first_logits=first)

    def colder(self, factor: float) -> "Cap":
        """The cap at so many times the logits, which the true flow has to reach first."""
        return replace(
            self,
            wanted_logits=factor * self.logits,
            wanted_log_kappa=-math.inf,
            reached=False,
        )


@dataclass(frozen=True, eq=False)
class Flow:
    """Where the flow stopped last.

    Attributes:
        vector: its direction there, of norm 1. After a saddle was left, the direction beside it
            where the flow is to be taken up; after a drift or a slide along kinks, one shortly
            before the end. Shape (P,).
        log_kappa: of the flow. It may be far beyond the cap, and it also counts the growth while a
            saddle is left, which is not integrated.
        trajectory: the first run of the flow, or None.
        goes_on: whether the next run goes on with that trajectory.
    """

    vector: np.ndarray
    log_kappa: float
    trajectory: Trajectory | None
    goes_on: bool


@dataclass(frozen=True, eq=False)
class Found:
    """A KKT point.

    Attributes:
        point: with its multipliers, at unit margin.
        curvature: the eigenvalues of the flow there; None before it is judged.
        verdict, no_maximum: see `Limit`.
    """

    point: KKTPoint
    curvature: Curvature | None = None
    verdict: str = "unknown"
    no_maximum: str = ""

    @property
    def unstable(self) -> tuple[np.ndarray, np.ndarray]:
        """The directions in which the flow leaves, and its rates > 0. Shapes (P, r), (r,)."""
        assert self.curvature is not None
        unstable = self.curvature.unstable
        return self.curvature.vectors[:, unstable], -self.curvature.values[unstable]


@dataclass(frozen=True, eq=False)
class State:
    """A state of the search. Directions are flat vectors of norm 1, of shape (P,).

    Attributes:
        direction: where the last stage ended.
        flow: where the flow stopped last.
        cap: of the temperature of the flow.
        handover_at: the stationarity at which the flow gives way to Newton's method.
        stages, visits: see `Limit.stages` and `Limit.itinerary`.
        handover: the last handover.
        heading: see `Limit.heading`.
        found: the KKT point at `direction`, or None if there is none.
        left: the saddle that was left last, or None.
        kinks: the last point at kinks, whether or not it is a KKT point.
        failures: how often in a row no KKT point was found.
        by_rounding: whether rounding decided in which direction a saddle was left.
        by_error: whether errors of the flow may have decided that.
        by_floor: whether the flow was followed with a floor (`gflow.limit.floor`) for a while.
        result: how the search ended, or None while it has not.
        final: whether no other refiner may go on from this end either: the caller's budget is
            spent, the flow is not finite, or there is nothing to refine.
    """

    direction: np.ndarray
    flow: Flow
    cap: Cap
    handover_at: float
    stages: tuple[Stage, ...] = ()
    visits: tuple[Visit, ...] = ()
    handover: Handover = NO_HANDOVER
    heading: bool = False
    found: Found | None = None
    left: Found | None = None
    kinks: KKTPoint | None = None
    failures: int = 0
    by_rounding: bool = False
    by_error: bool = False
    by_floor: bool = False
    result: RESULTS | None = None
    final: bool = False

    @property
    def verdict(self) -> str:
        """The verdict on the KKT point that was found, "unknown" without one."""
        return "unknown" if self.found is None else self.found.verdict

    def ended(self, result: Any, *, final: bool = False) -> "State":
        """The end of the search."""
        return replace(self, result=result, final=final)

    def noting(self, stage: Stage) -> "State":
        """The same state, with one more stage."""
        return replace(self, stages=(*self.stages, stage))

    def moved(self, kind: str, direction: np.ndarray, **values: Any) -> "State":
        """The state after a stage that led to another direction.

        Args:
            kind: of the stage.
            values: its other attributes but `moved` and `log_kappa`; see `Stage`.
        """
        moved = float(np.linalg.norm(direction - self.direction))
        stage = Stage(kind=kind, moved=moved, log_kappa=self.flow.log_kappa, **values)
        return replace(self, direction=direction).noting(stage)


Step = Callable[[State], State]


def taken(step: Step, state: State, journal: Journal = KEEPS_NOTHING) -> State:
    """The state after a step. A state that has ended stays as it is. If the step is interrupted
    from the keyboard, or the seconds of the call are spent between its linear systems, the search
    ends with the state before it.

    Args:
        journal: of the search.

    Raises:
        KeyboardInterrupt: there is nothing yet that could be returned.
    """
    if state.result is not None:
        return state
    try:
        return journal.step(lambda: step(state))
    except KeyboardInterrupt:
        if state.flow.trajectory is None:
            raise
        return state.ended(RESULTS.interrupted, final=True)
    except SecondsSpent:
        return state.ended(RESULTS.seconds_spent, final=True)


def begun(start: Start, logits: float, log_kappa: float, handover_at: float) -> State:
    """The first state of a search.

    Args:
        logits, log_kappa: what the true flow is to reach before its temperature is capped.
        handover_at: the stationarity at which the flow gives way to Newton's method.
    """
    return State(
        direction=start.vector,
        flow=Flow(start.vector, start.log_kappa, start.trajectory, start.goes_on),
        cap=Cap(logits, log_kappa, least_log_kappa=start.log_kappa),
        handover_at=handover_at,
        stages=start.stages,
    )
