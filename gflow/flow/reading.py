"""`Trajectory.at` of a flow: integrated again from the saved point before."""

from typing import Any

import diffrax
import jax
import numpy as np

from gflow._typing import Params
from gflow.flow.clocked import ClockedRosenbrock
from gflow.flow.control import FlowController
from gflow.flow.field import Field, unit_direction
from gflow.flow.passage import Passage
from gflow.flow.segment import Block, advance, begin
from gflow.flow.starting import Tolerances, control_of
from gflow.flow.until import Until
from gflow.record import Row, row_capacity
from gflow.stiff.chebyshev import RungeKuttaChebyshev
from gflow.stiff.tableaus import TABLEAUS
from gflow.trajectory import Trajectory, scaled

# Steps after which a flow through 0 is looked at.
_SHORT = 16


def read_between(trajectory: Trajectory, index: int, name: str, target: float) -> Params:
    """The parameters between two saved points, by integrating again from the first of them."""
    settings, size = settings_at(trajectory, index), row_capacity(trajectory.layout.size)
    cap = settings["kappa_cap"]
    log_cap = np.asarray(np.inf if cap is None else np.log(cap))
    scale = settings.get("log_time_scale", 0.0)
    # Before a time that is asked for, a coarser scale would know nothing.
    scale = np.asarray(min(scale, np.log1p(target)) if name == "time" else scale)
    field = Field(trajectory.require_problem(), trajectory.layout, log_cap, scale)
    tolerance = settings["tolerance"]
    # Of a user's own solver: any other is as accurate.
    solver = solver_named(settings["solver"], tolerance) or diffrax.Tsit5()
    # Files of earlier versions have one tolerance for all.
    across = settings.get("rtol_direction", tolerance)
    tolerances = Tolerances(tolerance, across, settings["atol_logit"])
    # A flow through 0 passes it here as it did in the run.
    passage = Passage(field) if trajectory.stats.get("through_zero") else None
    budget = _SHORT if passage else size

    def control(solver: diffrax.AbstractSolver) -> FlowController:
        return control_of(solver, tolerances, budget, Until(**{name: target}))

    column = trajectory.columns
    log_time = field.log_time(np.nan_to_num(column["log1p_time"][index]))
    state = np.concatenate([trajectory.vectors[index], [column["log_norm"][index], log_time]])
    place = column["clock"][index], state, column["step"][index], np.int64(0)
    stepper = solver
    cursor = begin(field, stepper, control(stepper), *place)
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


def solver_named(name: str, tolerance: float) -> diffrax.AbstractSolver | None:
    """The solver with this name in the settings of a run, with its usual options; None for one that
    is not known or has to be told more.
    """
    if name in TABLEAUS:
        return ClockedRosenbrock(name, tolerance=tolerance)
    if name == RungeKuttaChebyshev.__name__:
        return RungeKuttaChebyshev()
    kind = getattr(diffrax, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffrax.AbstractSolver)):
        return None
    try:
        return kind()
    except TypeError:
        return None
