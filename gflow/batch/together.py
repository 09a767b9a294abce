"""Runs of one structure, side by side from their starts to their limits."""

import math
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from gflow._typing import Params
from gflow.batch.certificates import certificates
from gflow.batch.flow import followed
from gflow.batch.judging import judged_beside
from gflow.batch.lanes import ACTIVE, ARRIVED, FAR, Goals, Lane
from gflow.batch.points import points
from gflow.batch.stacked import Runs, default_width, stacked, taken_rows
from gflow.batch.states import states
from gflow.limit import Limit
from gflow.limit.ending import certified_params
from gflow.limit.search import Search, judge, run
from gflow.limit.slopes import limit_or_more
from gflow.limit.smooth import Smooth
from gflow.limit.state import Start, State, begun, taken
from gflow.results import RESULTS

# What the matrices of runs side by side may take.
_BYTES = 2**30


class RunBeside(NamedTuple):
    """One run: its search, where it starts, and what others must share to be beside it."""

    search: Search
    start: Start
    params: Params
    structure: Hashable

    @property
    def path(self) -> np.ndarray:
        """`(u, log rho)` of the start."""
        return np.append(self.start.vector, self.start.log_kappa / self.search.problem.degree)


def together(
    group: list[RunBeside],
    chunk: int | None,
    mesh: Mesh | None,
    report: Callable[[dict[str, Any]], None],
    *,
    stopped: bool = False,
) -> list[Limit | None]:
    """The limits of runs of one structure; None where an interrupt left nothing of a run.

    Args:
        stopped: whether an interrupt came before they began, as which all of them end then.
    """
    searches = [each.search for each in group]
    first = searches[0]
    width = _width(first, len(group), chunk, mesh)
    runs = Runs(stacked([each.problem for each in searches]), first.layout, width, mesh)
    paths = np.stack([each.path for each in group])

    def show(lanes: Lane) -> None:
        report(_progress(lanes))

    lanes, why = followed(runs, _goals(first), paths, first.deadline, show, stopped=stopped)
    reached = states(runs, searches, paths, lanes, why)
    if why != "seconds_spent":
        reached = _at_points(runs, searches, lanes, reached)
    refiners = judged_beside(runs, searches, reached)
    ended: list[State | None] = []
    for each in zip(refiners, group, reached, strict=True):
        ended.append(_ended(*each) if why != "interrupted" else _left(each[0], each[2]))
        if ended[-1] is not None and ended[-1].result == RESULTS.interrupted:
            why = "interrupted"
    return _limits(runs, searches, ended)


def _progress(lanes: Lane) -> dict[str, Any]:
    """What is reported while flows are followed."""
    arrived, going = lanes.status == ARRIVED, lanes.status == ACTIVE
    steps = int(np.sum(lanes.num_steps + lanes.num_to_cap))
    return {"steps": steps, "arrived": int(arrived.sum()), "under way": int(going.sum())}


def _at_points(
    runs: Runs, searches: list[Search], lanes: Lane, reached: list[State | None]
) -> list[State | None]:
    """The states with the KKT points near the ends of their flows, where one was found."""
    ready = np.flatnonzero(np.isin(lanes.status, (ARRIVED, FAR)))
    ready = np.array([row for row in ready if reached[row] is not None], int)
    first, reached = searches[0], list(reached)
    for row, point in points(runs, lanes, ready, first.tolerance, first.settings.refine).items():
        state = reached[row]
        assert state is not None
        reached[row] = Smooth(searches[row]).arrived_at(point, state, 0.0)
    return reached


def _ended(refiner: Smooth, each: RunBeside, state: State | None) -> State:
    """The end of a search, from the state after its first approach or, without one, its start."""
    if state is not None:
        return run(refiner, state, approached=True)
    search = each.search
    handover = search.settings.flow.handover
    return run(refiner, begun(each.start, search.cap_logits, search.cap_log_kappa, handover))


def _left(refiner: Smooth, state: State | None) -> State | None:
    """The end of a search after an interrupt: nothing more is followed, and no system solved. A KKT
    point that has been found is judged.
    """
    if state is None or state.result is not None:
        return state
    if state.found is not None:
        state = taken(partial(judge, refiner), state)
    return state if state.result is not None else state.ended(RESULTS.interrupted, final=True)


def _limits(runs: Runs, searches: list[Search], ended: list[State | None]) -> list[Limit | None]:
    """The limits of the last states, certified together."""
    rows = [row for row, state in enumerate(ended) if state is not None]
    if len(rows) < len(ended):
        problem = taken_rows(runs.problem, np.array(rows, int))
        runs, searches = runs._replace(problem=problem), [searches[row] for row in rows]
    last = [state for state in ended if state is not None]
    params = [certified_params(*each) for each in zip(searches, last, strict=True)]
    certified = certificates(runs, [each.problem for each in searches], params) if rows else []
    every = zip(rows, searches, last, certified, strict=True)
    found = {row: limit_or_more(search, state, 0.0, at) for row, search, state, at in every}
    return [found.get(row) for row in range(len(ended))]


def _goals(search: Search) -> Goals:
    """What all runs are to reach."""
    flow = search.settings.flow
    return Goals(
        log_logits=np.log(search.cap_logits),
        cap_accuracy=np.float64(flow.cap_accuracy),
        most_logits=np.float64(flow.most_logits),
        handover=np.float64(flow.handover),
        handover_accuracy=np.float64(flow.handover_accuracy),
        farthest=np.float64(flow.farthest),
        tolerance=np.float64(search.flow_options["tolerance"]),
        logit_tolerance=np.float64(flow.logit_tolerance),
        most_steps=np.int64(search.max_steps),
    )


def _width(search: Search, count: int, chunk: int | None, mesh: Mesh | None) -> int:
    """Runs in one call of a program."""
    size, data = search.layout.size, search.problem.dataset
    margins = len(data.x) * max(data.num_outputs - 1, 1)
    bytes_of_run = 8 * (size**2 + 12 * margins * size + data.x.size)
    width = max(1, min(default_width(), _BYTES // bytes_of_run)) if chunk is None else int(chunk)
    if mesh is None:
        return width
    devices = mesh.shape[mesh.axis_names[0]]
    return devices * math.ceil(min(width * devices, count) / devices)
