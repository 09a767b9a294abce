"""`Trajectory.at` of a flow: integrated again from the saved point before."""

from typing import Any

import diffrax
import jax
import numpy as np

from gflow._typing import Params
from gflow.flow.control import FlowController
from gflow.flow.field import Field, unit_direction
from gflow.flow.passage import Passage
from gflow.flow.segment import Block, advance, begin
from gflow.flow.solvers import first_solver, solver_named
from gflow.flow.starting import Tolerances, control_of
from gflow.flow.until import Until
from gflow.record import Row, row_capacity
from gflow.trajectory import Trajectory, scaled

# Steps after which a flow through 0 is looked at.
_SHORT = 16


def read_between(trajectory: Trajectory, index: int, name: str, target: float) -> Params:
    """The parameters where the quantity `name` is `target`, between two saved points.

    By integrating again from the first of them, with the solver and the tolerances of the run.

    Raises:
        ValueError: the step size underflows on the way, as at a kink.
    """
    settings, size = settings_at(trajectory, index), row_capacity(trajectory.layout.size)
    field = _field(trajectory, settings, name, target)
    # A user's own solver is not known by name: another one is as accurate.
    solver = solver_named(settings["solver"], settings["tolerance"]) or first_solver()
    # A run that passed 0 has to pass it here in the same way.
    passage = Passage(field) if trajectory.stats.get("through_zero") else None
    tolerances, until = _tolerances(settings), Until(**{name: target})

    def control(solver: diffrax.AbstractSolver) -> FlowController:
        return control_of(solver, tolerances, _SHORT if passage else size, until)

    stepper = solver
    cursor = begin(field, stepper, control(stepper), *_place(field, trajectory, index))
    while True:
        cursor, block = advance(
            field, stepper, control(stepper), cursor, np.int64(size + 1), capacity=size
        )
        if bool(block.result == diffrax.RESULTS.event_occurred):
            direction = np.asarray(unit_direction(cursor.state))
            return trajectory.layout.unflatten(scaled(cursor.state[-2], direction))
        stuck = bool(block.result == diffrax.RESULTS.dt_min_reached)
        if passage and passage.changes(_last(block), stuck=stuck):
            stepper = passage.solver or solver
            place = cursor.clock, cursor.state, passage.step, cursor.num_accepted
            cursor = begin(field, stepper, control(stepper), *place)
        elif stuck:
            raise ValueError(
                f"`trajectory.at({name}={target!r})`: the step size underflowed on the way from "
                "the saved point before; the flow has a kink there."
            )


def _field(trajectory: Trajectory, settings: dict[str, Any], name: str, target: float) -> Field:
    """The field of the run."""
    cap, scale = settings["kappa_cap"], settings.get("log_time_scale", 0.0)
    log_cap = np.asarray(np.inf if cap is None else np.log(cap))
    # The time scale must not exceed the time that is asked for, which could not be told from 0.
    scale = np.asarray(min(scale, np.log1p(target)) if name == "time" else scale)
    return Field(trajectory.require_problem(), trajectory.layout, log_cap, scale)


def _tolerances(settings: dict[str, Any]) -> Tolerances:
    """The tolerances of the run. Files of version 0.1.0 may have one tolerance for all."""
    tolerance = settings["tolerance"]
    across = settings.get("rtol_direction", tolerance)
    return Tolerances(tolerance, across, settings["atol_logit"])


def _place(field: Field, trajectory: Trajectory, index: int) -> tuple[Any, Any, Any, Any]:
    """Clock, state, step and count at a saved point, from which to integrate."""
    column = trajectory.columns
    log_time = field.log_time(np.nan_to_num(column["log1p_time"][index]))
    state = np.concatenate([trajectory.vectors[index], [column["log_norm"][index], log_time]])
    return column["clock"][index], state, column["step"][index], np.int64(0)


def _last(block: Block) -> Row:
    """The point at which a segment stopped."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[int(block.num_rows) - 1], block.rows)


def settings_at(trajectory: Trajectory, index: int) -> dict[str, Any]:
    """The options with which a run, maybe loaded from a file, went on from a saved point.

    A run that went on from a trajectory with other options has had several.
    """
    made = trajectory.num_steps_at[index]
    now = {**trajectory.settings, "stiff_from": trajectory.stats["stiff_from"]}
    parts = trajectory.settings.get("earlier", [])
    part = next((part for part in parts if made < part["num_steps_at"]), now)
    stiff_from = part["stiff_from"]
    explicit = stiff_from is not None and made < stiff_from
    return {**part, "solver": "Tsit5"} if explicit else dict(part)
