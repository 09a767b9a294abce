"""The flow of a search: the true one to the cap of its temperature, then the capped one."""

import math
import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from gflow._typing import Params
from gflow.flow.driver import integrate_into
from gflow.flow.outcome import unseparated_result
from gflow.flow.until import Until
from gflow.limit.basin import Handover
from gflow.limit.circling import circling
from gflow.limit.floor import settled, with_floor
from gflow.limit.result import Stage
from gflow.limit.search import Search
from gflow.limit.state import Flow, State, taken
from gflow.measures import MAX_LOG_KAPPA
from gflow.results import RESULTS
from gflow.trajectory import Trajectory

HALTING = ("interrupted", "not_finite", "kappa_overflow", "seconds_spent")
"""Results of a run of the flow after which a search has nothing left to do."""

# Results of a run of the capped flow from whose end Newton's method may find a KKT point.
_NEARLY = ("successful", "step_underflow", "chattering")

# Results of a run that was stopped at a kink. Newton's method finds nothing there where the kinks
# have no names yet (`Search.may_name_slope_kinks`).
_STUCK = ("step_underflow", "chattering")

# Results of a run that may have been held up where the attack on an example vanishes; and those by
# which the flow with a floor then shows that the examples are not separated (`gflow.limit.floor`).
_HELD = ("step_budget_spent", "step_underflow", "chattering")
_UNSEPARATED = ("not_separated", "radius_above_margin")

# A log kappa that overflows: from there `integrate` ends at once, with that result.
_BEYOND = MAX_LOG_KAPPA + 1.0


def approach(search: Search, state: State) -> State:
    """The state where the flow nearly rests; or the end of the search, where it does not come to
    rest.
    """
    state = taken(partial(_to_cap, search), state, search.journal)
    return taken(partial(_to_handover, search), state, search.journal)


def params_at(search: Search, log_kappa: float, direction: np.ndarray) -> Params:
    """Parameters of this direction with this kappa, or one just beyond what a flow may have."""
    length = math.exp(min(log_kappa, _BEYOND) / search.problem.degree)
    return search.layout.unflatten(length * direction)


def weights_at(search: Search, state: State) -> np.ndarray:
    """The weights p of the capped flow where it stopped, flattened. Shape (m,)."""
    unit = search.layout.unflatten(state.flow.vector)
    return np.asarray(search.problem.ascent(unit, state.cap.log_kappa).weights).ravel()


def num_steps_of(search: Search, state: State) -> int:
    """The most steps of a run of the flow: fewer with rounded kinks, and fewer from a saddle."""
    settings, most = search.settings, search.max_steps
    if search.has_kinks:
        most = min(most, settings.kinks.most_steps)
    data = search.problem.dataset
    num_margins = len(data.x) * max(data.num_outputs - 1, 1)
    if state.left is not None and num_margins > settings.saddles.few_margins:
        most = min(most, settings.saddles.most_steps)
    return most


def circles(search: Search, state: State, run: Trajectory) -> State:
    """The end of the search, with a stage that records the turns, if the run circles; otherwise the
    state as it is. With rounded kinks the turns are recorded and the search goes on: the flow along
    the exact ones may not circle.
    """
    if run.successful:
        return state
    points = np.asarray(run.vectors), run.log_norm, run.margin
    found = circling(*points, settings=search.settings.circling)
    if found is None:
        return state
    stage = Stage(
        kind="circling",
        num_steps=round(found.num_turns),
        moved=found.radius,
        stationarity=found.speed,
        margin=found.margin,
        seconds=0.0,
        log_kappa=state.flow.log_kappa,
        log_growth=found.log_growth,
    )
    state = state.noting(stage)
    return state if search.has_kinks else state.ended(RESULTS.circling, final=True)


@dataclass(frozen=True, eq=False)
class Run:
    """A run of the flow.

    Attributes:
        end: the state after it.
        trajectory: of the run.
        log_kappa: of its last parameters.
        halted: whether the search has to end with it: the caller's steps or seconds are spent, or
            the flow cannot go on.
    """

    end: State
    trajectory: Trajectory
    log_kappa: float
    halted: bool

    @property
    def result(self) -> RESULTS:
        """The result of its trajectory."""
        return self.trajectory.result


def _to_cap(search: Search, state: State) -> State:
    """The true flow to its cap, where that has not been reached."""
    cap, settings = state.cap, search.settings.flow
    if cap.reached:
        return state
    # The capped flow may stand far beyond the cap, in log kappa. The true flow was last followed at
    # the cap itself, and is taken up there.
    start = cap.log_kappa if cap.known else state.flow.log_kappa
    until = Until(logits=cap.wanted_logits, accuracy=settings.cap_accuracy)
    run = _true_flow(search, state, until, start)
    if run.trajectory.successful and run.log_kappa < cap.wanted_log_kappa:
        run = run_flow(search, run.end, Until(log_kappa=cap.wanted_log_kappa), run.log_kappa)
    if not run.trajectory.successful:
        # If there was a cap before, the flow stands near a limit, which sliding along kinks may
        # still find: the end is not final.
        return run.end.ended(run.trajectory.result, final=run.halted or not cap.known)
    margin = float(run.trajectory.margin[-1])
    coldest = min(math.log(settings.most_logits) - math.log(margin), MAX_LOG_KAPPA)
    log_kappa = min(max(run.log_kappa, cap.least_log_kappa), coldest)
    return replace(run.end, cap=cap.reached_at(log_kappa, margin))


def _true_flow(search: Search, state: State, until: Until, log_kappa: float) -> Run:
    """The true flow to a target.

    It may be held up where the attack on an example vanishes. So if it has not separated the
    examples within its first `steps_to_floor` steps, and the attack on one vanishes there, the flow
    with a floor is followed (`gflow.limit.floor`). Where that separates the examples, the true flow
    goes on from its end. Where it shows that they are not separated, the search ends. Otherwise the
    true flow goes on from where it stood, with the rest of its steps.
    """
    most, settings = num_steps_of(search, state), search.settings.flow
    if state.cap.known:
        return run_flow(search, state, until, log_kappa)
    first = run_flow(search, state, until, log_kappa, most=settings.steps_to_floor)
    begun, count = first.trajectory, first.end.stages[-1].num_steps
    if begun.result_name not in _HELD or first.halted:
        return first
    floored = None if begun.margin[-1] > 0 else with_floor(search, begun)
    if floored is not None:
        faded = run_flow(
            floored, first.end, until, first.log_kappa, most=settings.steps_with_floor, kind="floor"
        )
        last = faded.trajectory
        if last.successful:
            return replace(faded, end=replace(faded.end, by_floor=True))
        if settled(floored, last):
            result = unseparated_result(search.problem, last.margin[-1], last.clean_margin[-1])
            return replace(faded, trajectory=replace(last, result=result), halted=True)
        if last.result_name in (*_UNSEPARATED, *HALTING):
            return replace(faded, halted=True)
    if begun.result_name != "step_budget_spent" or count >= most:
        return first
    flow = replace(first.end.flow, trajectory=begun, goes_on=True)
    rest = replace(first.end, flow=flow)
    return run_flow(search, rest, until, first.log_kappa, most=most - count)


def _to_handover(search: Search, state: State) -> State:
    """The capped flow until it is close to stationary."""
    settings = search.settings.flow
    latest = min(settings.latest_handover, state.handover_at)
    wanted = max(state.handover_at * settings.later**state.failures, latest)
    rounding = rounding_at(search, state)
    until = Until(
        stationarity=max(wanted, rounding),
        log_kappa=state.cap.log_kappa + settings.farthest,
        accuracy=settings.handover_accuracy,
    )
    run = run_flow(search, state, until, state.cap.log_kappa, capped=True)
    trajectory = run.trajectory
    # Where rounding decides how nearly the flow rests, it has not been seen to arrive.
    rests = trajectory.successful and trajectory.stats["stopped_by"] == "stationarity"
    arrived = rests and rounding <= wanted
    handover = Handover(arrived, float(trajectory.stationarity[-1]), math.nan)
    state = replace(run.end, handover=handover)
    if trajectory.result_name in HALTING:
        return state.ended(trajectory.result, final=True)
    margins = trajectory.margin[-1], trajectory.clean_margin[-1]
    unseparated = unseparated_result(search.problem, *margins)
    if unseparated is not None:
        return state.ended(unseparated, final=True)
    if trajectory.result_name in _STUCK and search.may_name_slope_kinks:
        return state.ended(trajectory.result)
    state = circles(search, state, trajectory)
    shortened = trajectory.result_name == "step_budget_spent" and not run.halted
    if state.result is not None or shortened or trajectory.result_name in _NEARLY:
        return state
    return state.ended(trajectory.result, final=True)


def rounding_at(search: Search, state: State) -> float:
    """The stationarity that the capped flow has from rounding alone.

    A margin under attack is a clean margin q_c minus what the attack takes, of relative error eps
    (2e-16) of q_c. So the logits are off by `kappa_c eps q_c`, and the weights p, relative, as
    much. The flow is a sum of gradients of the size of q_c that cancel down to q, and is off by
    `kappa_c eps q_c^2 / q`, relative: at a radius within 1e-6 of the largest feasible one by 0.1.

    Both margins are those at the end of the first run, which led to the cap. From there on their
    ratio changes little, so that they are not computed again.
    """
    run = state.flow.trajectory
    margin, clean = (run.margin[-1], run.clean_margin[-1]) if run is not None else (0.0, 0.0)
    if not (margin > 0 and math.isfinite(clean)):
        return 0.0
    rounding = state.cap.logits * np.finfo(float).eps * (clean / margin) ** 2
    return float(min(rounding, search.settings.flow.roughest_handover))


def run_flow(
    search: Search,
    state: State,
    until: Until,
    log_kappa: float,
    *,
    capped: bool = False,
    most: int | None = None,
    kind: str = "flow",
) -> Run:
    """One run of the flow from where it stopped.

    Args:
        log_kappa: of the parameters that it starts from.
        capped: whether its temperature is, at the cap.
        most: steps at most, where those are fewer than `num_steps_of`.
        kind: of its stage.
    """
    made = partial(_flow_run, search, state, until, log_kappa, capped, most, kind)
    return search.journal.step(made)


def _flow_run(
    search: Search,
    state: State,
    until: Until,
    log_kappa: float,
    capped: bool,
    most: int | None,
    kind: str,
) -> Run:
    """`run_flow`, computed and not taken from the journal."""
    begin, flow = time.perf_counter(), state.flow
    start, before = params_at(search, log_kappa, flow.vector), 0
    if flow.goes_on and flow.trajectory is not None:
        start, before = flow.trajectory, int(flow.trajectory.stats["num_steps"])
    run = integrate_into(
        search.journal.flow(),
        search.problem,
        start,
        until=until,
        kappa_cap=math.exp(state.cap.log_kappa) if capped else None,
        max_steps=min(num_steps_of(search, state), most or search.max_steps),
        max_seconds=search.deadline.left(),
        **search.flow_options,
    )
    count, end = int(run.stats["num_steps"]) - before, float(run.log_kappa[-1])
    first = run if flow.goes_on or flow.trajectory is None else flow.trajectory
    vector = np.asarray(run.vectors[-1])
    flow = Flow(vector, flow.log_kappa + end - log_kappa, first, goes_on=False)
    after = replace(state, flow=flow).moved(
        kind,
        vector,
        num_steps=count,
        stationarity=float(run.stationarity[-1]),
        margin=float(run.margin[-1]),
        seconds=time.perf_counter() - begin,
    )
    spent = count >= search.max_steps and run.result_name == "step_budget_spent"
    return Run(after, run, end, halted=spent or run.result_name in HALTING)
