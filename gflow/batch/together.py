"""Runs of one structure, side by side from their starts to their limits."""

import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from gflow._typing import Params
from gflow.batch.certificates import certificates
from gflow.batch.flow import followed
from gflow.batch.judging import judged_beside
from gflow.batch.lanes import ACTIVE, ARRIVED, FAR, Goals, Lane
from gflow.batch.points import points
from gflow.batch.stacked import Runs, default_width, stacked
from gflow.batch.states import states
from gflow.limit import Limit
from gflow.limit.ending import certified_params
from gflow.limit.search import Search, run
from gflow.limit.slopes import limit_or_more
from gflow.limit.smooth import Smooth
from gflow.limit.state import Start, State, begun

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
) -> list[Limit]:
    """The limits of runs of one structure."""
    searches = [each.search for each in group]
    first = searches[0]
    width = _width(first, len(group), chunk, mesh)
    runs = Runs(stacked([each.problem for each in searches]), first.layout, width, mesh)
    paths = np.stack([each.path for each in group])

    def show(lanes: Lane) -> None:
        report(_progress(lanes))

    lanes, why = followed(runs, _goals(first), paths, first.deadline, show)
    reached = states(runs, searches, paths, lanes, why)
    if not why:
        reached = _at_points(runs, searches, lanes, reached)
    refiners = judged_beside(runs, searches, reached)
    ended = [_ended(*each) for each in zip(refiners, group, reached, strict=True)]
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


def _limits(runs: Runs, searches: list[Search], ended: list[State]) -> list[Limit]:
    """The limits of the last states, certified together."""
    problems = [search.problem for search in searches]
    params = [certified_params(*each) for each in zip(searches, ended, strict=True)]
    certified = certificates(runs, problems, params)
    every = zip(searches, ended, certified, strict=True)
    return [limit_or_more(search, state, 0.0, certificate) for search, state, certificate in every]


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
