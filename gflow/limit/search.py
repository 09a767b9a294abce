"""The search for the direction in which the flow ends, and for what kind of point it is.

The search is a loop over frozen states (`gflow.limit.state`); `run` below is all of it:

1. *Approach.* The true flow is followed until its smallest margin `kappa min_i q_i(u)` has come to
   `cap_logits`. The kappa that it has there is the cap kappa_c: from then on the flow is followed
   with its weights at a kappa of at most kappa_c, until its direction hardly moves. This point is
   the handover.
2. *Refine.* Newton's method finds the KKT point near there, to rounding. If it fails, the flow is
   followed further with a colder cap, at which active margins are better told from the others; or
   at infinite kappa, in case it drifts (`gflow.limit.drift`).
3. *Judge.* The second-order verdict says whether the point is a maximum of the margin (with frozen
   perturbations a stable rest point) or a saddle.
4. *Leave.* From a saddle the flow is taken up again a little beside it, in the direction into which
   its own offset from the saddle grows. A saddle that is met a second time suggests that the capped
   flow returns to it where the true flow would pass by: the next cap is colder.

Where the examples are never separated by `cap_logits` logits there is no capped flow, and no limit.

The steps themselves are those of a *refiner*. There are two:

- `gflow.limit.smooth.Smooth`, for problems without kinks;
- `gflow.limit.kinked.Kinked`, at kinks. It starts from where a `Smooth` search with rounded kinks
  ended, and `gflow.limit.kinked.search_at_kinks` runs the two in turn.

What belongs where: `search` holds what is fixed during a search, the loop, and the judgement, which
all refiners share; `approach` runs the flow; `leaving` leaves saddles; `ending` makes a `Limit` of
the last state; `search_settings` has the constants. To search in another way is to write another
refiner.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from gflow._layout import Layout
from gflow.deadline import NEVER, Deadline
from gflow.kkt.curvature import Curvature
from gflow.kkt.point import KKTPoint
from gflow.kkt.switches import with_slope_switches
from gflow.kkt.variables import margins_at
from gflow.limit.basin import close
from gflow.limit.itinerary import Visit, noted
from gflow.limit.journal import KEEPS_NOTHING, Journal
from gflow.limit.search_settings import LimitSettings
from gflow.limit.state import Found, State, Step, taken
from gflow.limit.verdict import DEPENDS, in_family, no_maximum, verdict
from gflow.problem import Problem
from gflow.results import RESULTS
from gflow.watch import watched


@dataclass(frozen=True, eq=False)
class Search:
    """What is fixed during a search; most of it by the arguments of `find_limit`.

    Attributes:
        problem: whose KKT points are sought.
        layout: of its parameters.
        has_kinks: whether the problem that was asked about has kinks. `problem` is without any
            while they are rounded.
        flow_options: of `integrate`, for every run.
        max_steps: of each run at most.
        tolerance: of the residual of a KKT point.
        smoothing: mu, to which kinks are rounded at first.
        cap_logits, cap_log_kappa: what the true flow is to reach before its temperature is capped.
        escape: whether to leave saddles.
        max_rounds: KKT points to visit at most.
        deadline: of the whole call.
        settings: all constants.
        journal: what the steps left before the search was stopped, and leave now.
    """

    problem: Problem
    layout: Layout
    has_kinks: bool
    flow_options: dict[str, Any]
    max_steps: int
    tolerance: float
    smoothing: float
    cap_logits: float
    cap_log_kappa: float
    escape: bool
    max_rounds: int
    deadline: Deadline
    settings: LimitSettings
    journal: Journal = KEEPS_NOTHING

    @property
    def may_name_slope_kinks(self) -> bool:
        """Whether its attack has kinks that could be named and are not; see `slopes`."""
        return with_slope_switches(self.problem) is not self.problem

    def margin(self, direction: np.ndarray) -> float:
        """The normalized margin at a direction, that is `min_i q_i(u)`."""
        return float(margins_at(self.problem, self.layout, direction).min())


class Refiner(ABC):
    """The steps of a search, for one kind of problem.

    Attributes:
        search: with the problem whose KKT points this refiner finds.
    """

    search: Search

    @abstractmethod
    def approach(self, state: State) -> State:
        """Follows the flow to where it nearly rests."""

    @abstractmethod
    def refine(self, state: State) -> State:
        """The state with the KKT point near there in `found`, or None."""

    @abstractmethod
    def retry(self, state: State) -> State:
        """The state for the next approach after a failure; or the end of the search."""

    @abstractmethod
    def curvature(self, state: State, point: Any) -> Curvature:
        """The eigenvalues of the flow at a KKT point."""

    @abstractmethod
    def beside(self, point: Any, direction: np.ndarray) -> KKTPoint:
        """The KKT point near a direction that lies beside a known KKT point; not `converged` if
        none is found.
        """

    @abstractmethod
    def leave(self, state: State) -> State:
        """The state with the flow beside the saddle, which becomes `State.left`; or the end."""


def run(refiner: Refiner, state: State, *, approached: bool = False) -> State:
    """The last state of a search: at a KKT point that the flow does not leave, or where the search
    had to end, with the reason as its result.

    Args:
        approached: whether the first approach has been made already. If the state then has a KKT
            point, that is not sought again either.
    """
    search, rounds, journal = refiner.search, 0, refiner.search.journal
    while state.result is None:
        if not approached:
            state = taken(refiner.approach, state, journal)
        if not (approached and state.found is not None):
            state = taken(_under_watch(search, refiner.refine), state, journal)
        approached = False
        if state.found is None:
            state = taken(refiner.retry, state, journal)
            continue
        state = taken(_under_watch(search, partial(judge, refiner)), state, journal)
        rounds += 1
        if state.result is None:  # a saddle
            last = rounds == search.max_rounds or not search.escape
            ended = state.ended(RESULTS.saddle)
            state = ended if last else taken(refiner.leave, state, journal)
    return state


def _under_watch(search: Search, step: Step) -> Step:
    """The step, whose linear systems are shown as progress and end at the deadline."""

    def made(state: State) -> State:
        margin = state.stages[-1].margin if state.stages else math.nan
        deadline = search.deadline if search.journal.went_on else NEVER
        given = deadline, search.flow_options["progress"]
        with watched(*given, log_kappa=state.flow.log_kappa, margin=margin):
            return step(state)

    return made


def judge(refiner: Refiner, state: State) -> State:
    """The state with the verdict on the point that was found, and with the visit noted. Unless the
    point is a saddle, the search ends there.
    """
    assert state.found is not None
    search, point = refiner.search, state.found.point
    curvature, settings = refiner.curvature(state, point), search.settings.verdict
    words, reason = verdict(
        curvature,
        lambda: in_family(point, curvature, refiner.beside, settings),
        lambda: no_maximum(search.problem, search.layout, point, settings, search.settings.refine),
    )
    found, visits = Found(point, curvature, words, reason), _visited(search, state, words)
    state = replace(state, found=found, visits=visits)
    return state if words == "saddle" else state.ended(_settled(state))


def arrived_close(search: Search, state: State) -> bool:
    """Whether the capped flow came so close to the point that was found that it ends in no other
    one (`gflow.limit.basin.close`).

    Always False with kinks, since another smoothing of them may lead to another point.
    """
    return not search.has_kinks and close(state.handover, search.settings.basin)


def _visited(search: Search, state: State, words: str) -> tuple[Visit, ...]:
    """All visits, with that of the KKT point that was found."""
    visit = Visit(
        direction=search.layout.unflatten(state.direction),
        margin=state.stages[-1].margin,
        verdict=words,
        arrival=state.flow.log_kappa,
        departure=np.inf,
        growth=0.0,
        certain=arrived_close(search, state) and not state.by_error,
    )
    return noted(state.visits, visit)


def _settled(state: State) -> Any:
    """The result at a point that nothing leaves."""
    if state.verdict in ("degenerate", DEPENDS):
        return RESULTS.degenerate
    return RESULTS.decided_by_rounding if state.by_rounding else RESULTS.successful
