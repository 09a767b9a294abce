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
from gflow.batch.lanes import ACTIVE, ARRIVED, FAR, SPENT, Goals, Lane
from gflow.batch.stacked import Runs, row_of, spread_over, taken_rows
from gflow.flow.outcome import unseparated_result
from gflow.flow.reading import read_between
from gflow.flow.until import Until
from gflow.limit.basin import Handover
from gflow.limit.search import Search
from gflow.limit.state import Cap, Flow, State
from gflow.measures import PointMeasures, measure_point
from gflow.problem import Problem
from gflow.results import RESULTS
from gflow.trajectory import Trajectory

DECIDED = (ACTIVE, ARRIVED, FAR, SPENT)
"""Ways in which a run stands from which a search goes on or ends, `SPENT` on the second leg only;
from the others it is begun anew by itself."""


def states(
    runs: Runs,
    searches: list[Search],
    goals: Goals,
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
        _state(search, goals, paths[row], row_of(lanes, row), measured[row], why)
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
    search: Search, goals: Goals, start: np.ndarray, lane: Lane, measured: Any, why: str | None
) -> State | None:
    status, degree = int(lane.status), search.problem.degree
    capped = bool(np.isfinite(lane.log_cap))
    if status not in DECIDED or (status == SPENT and not capped):
        return None
    first, true, last = (jax.tree.map(lambda leaf, i=i: leaf[i], measured) for i in range(3))
    trajectory = _trajectory(search, goals, start, lane, first, true, why)
    cap = Cap(search.cap_logits, search.cap_log_kappa, least_log_kappa=degree * float(start[-1]))
    if capped:
        cap = cap.reached_at(float(lane.log_cap), float(true.margin))
    vector = _unit(lane.path)
    flow = Flow(vector, degree * float(lane.path[-1]), trajectory, goes_on=False)
    state = State(_unit(start), flow, cap, handover_at=float(goals.handover))
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


def _unit(path: Any) -> np.ndarray:
    vector = np.asarray(path)[:-1]
    return vector / np.linalg.norm(vector)


def _trajectory(
    search: Search,
    goals: Goals,
    start: np.ndarray,
    lane: Lane,
    first: PointMeasures,
    last: PointMeasures,
    why: str | None,
) -> Trajectory:
    """The true flow, its start and its end; physical time is not known."""
    capped = bool(np.isfinite(lane.log_cap))
    path, count = (lane.at_cap, lane.num_to_cap) if capped else (lane.path, lane.num_steps)
    clock = float(lane.cap_clock if capped else lane.clock)
    ends = [(start, first, 0.0, 0), (path, last, clock, int(count))]
    ends = ends[: 1 + (int(count) > 0)]
    degree = search.problem.degree
    columns = {
        "clock": np.array([end[2] for end in ends]),
        "step": np.full(len(ends), float(lane.step)),
        "num_steps_at": np.array([end[3] for end in ends]),
        "log_norm": np.array([float(end[0][-1]) for end in ends]),
        "log_kappa": np.array([degree * float(end[0][-1]) for end in ends]),
        "log1p_time": np.array([0.0, np.nan])[: len(ends)],
        **{
            name: np.array([float(getattr(end[1], name)) for end in ends])
            for name in PointMeasures._fields
        },
    }
    until = Until(logits=search.cap_logits, accuracy=search.settings.flow.cap_accuracy)
    spent = "step_budget_spent" if why is None else why
    return Trajectory(
        kind="flow",
        reader=read_between,
        columns=columns,
        vectors=np.stack([_unit(end[0]) for end in ends]),
        layout=search.layout,
        problem=search.problem,
        result=getattr(RESULTS, "successful" if capped else spent),
        stats={
            "num_steps": int(count),
            "num_accepted_steps": int(count),
            "num_rejected_steps": 0,
            "stopped_by": "logits" if capped else None,
            "stiff_from": None,
            "through_zero": [],
            "num_chattering": None,
            "seconds": 0.0,
        },
        settings={
            "until": until.as_dict(),
            "solver": "ROS34PW2",
            "tolerance": float(goals.tolerance),
            "rtol_direction": float(goals.tolerance),
            "atol_logit": float(goals.logit_tolerance),
            "kappa_cap": None,
            "save": 2,
            "max_steps": search.max_steps,
            "gradient": search.problem.gradient_mode,
            "log_time_scale": 0.0,
        },
    )
