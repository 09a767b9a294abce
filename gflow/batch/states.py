"""States of a search from where flows ended that were followed side by side."""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gflow._layout import Layout
from gflow._programs import compiled_for_few_calls
from gflow.batch.lanes import ACTIVE, ARRIVED, FAR, SPENT, Lane
from gflow.batch.stacked import Runs, row_of, spread_over, taken_rows
from gflow.flow.ended import settings_of, stats_of
from gflow.flow.field import Field
from gflow.flow.outcome import unseparated_result
from gflow.flow.place import Path
from gflow.flow.reading import read_between
from gflow.flow.starting import Tolerances
from gflow.flow.until import Until
from gflow.limit.basin import Handover
from gflow.limit.search import Search
from gflow.limit.state import Cap, Flow, State
from gflow.measures import PointMeasures, measure_point
from gflow.problem import Problem
from gflow.record import Row, columns_of, picked
from gflow.results import RESULTS
from gflow.stiff.rosenbrock import Rosenbrock
from gflow.trajectory import Trajectory

DECIDED = (ACTIVE, ARRIVED, FAR, SPENT)
"""Ways in which a run stands from which a search goes on or ends, `SPENT` on the second leg only;
from the others it is begun anew by itself."""

# Points of a trajectory: its start and its end.
_POINTS = 2


def states(
    runs: Runs,
    searches: list[Search],
    paths: np.ndarray,
    lanes: Lane,
    why: str | None,
) -> list[State | None]:
    """The states of the searches after their first approach; None where that is to be made again.

    Args:
        searches: of the runs, in their order.
        paths: the starts.
        why: "interrupted" or "seconds_spent", how runs end that are still under way.
    """
    measured: list[Any] = []
    for meant, padded in runs.pieces(np.arange(len(paths))):
        there, those = (runs.placed(taken_rows(table, padded)) for table in (paths, lanes))
        values = _measured(runs.problems(padded), there, those, runs.layout, mesh=runs.mesh)
        values = jax.tree.map(np.asarray, values)
        measured += [row_of(values, i) for i in range(len(meant))]
    return [
        _state(search, paths[row], row_of(lanes, row), measured[row], why)
        for row, search in enumerate(searches)
    ]


@compiled_for_few_calls
def _measured(
    problems: Problem, paths: Any, lanes: Lane, layout: Layout, *, mesh: Mesh | None
) -> Any:
    """The measures of the start, of the end of the true flow, and of the end."""

    def one(problem: Problem, start: Any, lane: Lane) -> Any:
        capped = jnp.isfinite(lane.log_cap)
        of_true_flow = jnp.where(capped, lane.at_cap, lane.path)

        def measures(path: Any) -> PointMeasures:
            direction = layout.unflatten(path[:-1] / jnp.linalg.norm(path[:-1]))
            log_kappa = jnp.minimum(problem.degree * path[-1], lane.log_cap)
            return measure_point(problem, direction, log_kappa)

        return jax.lax.map(measures, jnp.stack([start, of_true_flow, lane.path]))

    paths, lanes = jax.tree.map(jnp.asarray, (paths, lanes))
    return spread_over(mesh, jax.vmap(one), 3)(problems, paths, lanes)


def _state(
    search: Search, start: np.ndarray, lane: Lane, measured: Any, why: str | None
) -> State | None:
    status, degree = int(lane.status), search.problem.degree
    capped = _is_capped(lane)
    if status not in DECIDED or (status == SPENT and not capped):
        return None
    true, last = (jax.tree.map(lambda leaf, i=i: leaf[i], measured) for i in (1, 2))
    trajectory = _trajectory(search, start, lane, measured, why)
    cap = Cap(search.cap_logits, search.cap_log_kappa, least_log_kappa=degree * float(start[-1]))
    if capped:
        cap = cap.reached_at(float(lane.log_cap), float(true.margin))
    vector = _unit(lane.path)
    flow = Flow(vector, degree * float(lane.path[-1]), trajectory, goes_on=False)
    state = State(_unit(start), flow, cap, handover_at=search.settings.flow.handover)
    ends = [(lane.at_cap, true, lane.num_to_cap)] if capped else []
    ends.append((lane.path, last, lane.num_steps))
    for path, measures, count in ends:
        flow_there = Flow(_unit(path), degree * float(path[-1]), trajectory, goes_on=False)
        there = State(state.direction, flow_there, cap, state.handover_at, state.stages)
        state = there.moved(
            "flow",
            _unit(path),
            num_steps=int(count),
            stationarity=float(measures.stationarity),
            margin=float(measures.margin),
            seconds=0.0,
        )
    handover = Handover(status == ARRIVED, float(last.stationarity), math.nan)
    return _ended(search, _with_handover(state, handover, capped), status, last, capped, why)


def _with_handover(state: State, handover: Handover, capped: bool) -> State:
    return replace(state, handover=handover) if capped else state


def _ended(
    search: Search, state: State, status: int, last: PointMeasures, capped: bool, why: str | None
) -> State:
    """The end of the search, where the flow did not lead to where Newton's method begins."""
    if status == ACTIVE:
        assert why is not None
        return state.ended(getattr(RESULTS, why), final=True)
    if capped:
        unseparated = unseparated_result(search.problem, last.margin, last.clean_margin)
        if unseparated is not None:
            return state.ended(unseparated, final=True)
    return state.ended(RESULTS.step_budget_spent, final=True) if status == SPENT else state


def _is_capped(lane: Lane) -> bool:
    """Whether the true flow came to its cap, from where the capped flow went on."""
    return bool(np.isfinite(lane.log_cap))


def _unit(path: Any) -> np.ndarray:
    vector = np.asarray(path)[:-1]
    return vector / np.linalg.norm(vector)


def _trajectory(
    search: Search, start: np.ndarray, lane: Lane, measured: PointMeasures, why: str | None
) -> Trajectory:
    """The true flow, its start and its end; physical time is not known."""
    columns, vectors = columns_of(_ends(start, lane, measured), search.problem.degree)
    capped, num_steps = _is_capped(lane), int(columns["num_steps_at"][-1])
    flow, options = search.settings.flow, search.flow_options
    tolerances = Tolerances(options["tolerance"], options["tolerance"], options["atol_logit"])
    path, solver = Path(Field(search.problem, search.layout), tolerances), Rosenbrock("ROS34PW2")
    until = Until(logits=search.cap_logits, accuracy=flow.cap_accuracy)
    stopped = "step_budget_spent" if why is None else why
    return Trajectory(
        kind="flow",
        reader=read_between,
        columns=columns,
        vectors=vectors,
        layout=search.layout,
        problem=search.problem,
        result=getattr(RESULTS, "successful" if capped else stopped),
        stats=stats_of(num_steps, num_steps, 0.0) | {"stopped_by": "logits" if capped else None},
        settings=settings_of(path, until, solver, _POINTS, search.max_steps),
    )


def _ends(start: np.ndarray, lane: Lane, measured: PointMeasures) -> Row:
    """The start of the true flow and its end, stacked; the start alone where no step was made."""
    path, clock, num_steps = lane.path, lane.clock, int(lane.num_steps)
    if _is_capped(lane):
        path, clock, num_steps = lane.at_cap, lane.cap_clock, int(lane.num_to_cap)
    points = np.stack([start, np.asarray(path)])
    units, times = np.stack([_unit(point) for point in points]), np.array([0.0, np.nan])
    state = np.concatenate([units, points[:, -1:], times[:, None]], axis=1)
    clocks, steps = np.array([0.0, float(clock)]), np.full(_POINTS, float(lane.step))
    parts: list[Any] = [clocks, steps, np.array([0, num_steps]), state]
    rows = Row(*parts, measures=jax.tree.map(lambda leaf: leaf[:_POINTS], measured))
    return picked(rows, slice(_POINTS if num_steps else 1))
