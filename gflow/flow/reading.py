"""`Trajectory.at` of a flow: integrated again from the saved point before."""

import diffrax
import jax
import numpy as np

from gflow._typing import Params
from gflow.flow.clocked import ClockedRosenbrock
from gflow.flow.control import FlowController
from gflow.flow.field import Field, unit_direction
from gflow.flow.passage import Passage
from gflow.flow.segment import Block, advance, begin
from gflow.flow.stabilized import RungeKuttaChebyshev
from gflow.flow.starting import Tolerances, control_of
from gflow.flow.tableaus import TABLEAUS
from gflow.flow.until import Until
from gflow.record import Row, row_capacity
from gflow.trajectory import Trajectory

# Steps after which a flow through 0 is looked at.
_SHORT = 16


def read_between(trajectory: Trajectory, index: int, name: str, target: float) -> Params:
    """The parameters between two saved points, by integrating again from the first of them."""
    settings, size = trajectory.settings, row_capacity(trajectory.layout.size)
    cap = settings["kappa_cap"]
    log_cap = np.asarray(np.inf if cap is None else np.log(cap))
    field = Field(trajectory.require_problem(), trajectory.layout, log_cap)
    solver = _solver_at(trajectory, index)
    tolerance = settings["tolerance"]
    # Files of earlier versions have one tolerance for all.
    across = settings.get("rtol_direction", tolerance)
    tolerances = Tolerances(tolerance, across, settings["atol_logit"])
    # A flow through 0 passes it here as it did in the run.
    passage = Passage(field) if trajectory.stats.get("through_zero") else None
    budget = _SHORT if passage else size

    def control(solver: diffrax.AbstractSolver) -> FlowController:
        return control_of(solver, tolerances, budget, Until(**{name: target}))

    column = trajectory.columns
    tail = [column["log_norm"][index], np.nan_to_num(column["log1p_time"][index])]
    state = np.concatenate([trajectory.vectors[index], tail])
    place = column["clock"][index], state, column["step"][index], np.int64(0)
    stepper = solver
    cursor = begin(field, stepper, control(stepper), *place)
    while True:
        cursor, block = advance(
            field, stepper, control(stepper), cursor, np.int64(size + 1), capacity=size
        )
        if bool(block.result == diffrax.RESULTS.event_occurred):
            direction = np.asarray(unit_direction(cursor.state))
            return trajectory.layout.unflatten(np.exp(cursor.state[-2]) * direction)
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


def _solver_at(trajectory: Trajectory, index: int) -> diffrax.AbstractSolver:
    """The solver with which a run, maybe loaded from a file, went on from a saved point."""
    stiff_from = trajectory.stats["stiff_from"]
    name = trajectory.settings["solver"]
    if stiff_from is not None and trajectory.num_steps_at[index] < stiff_from:
        name = "Tsit5"
    if name in TABLEAUS:
        return ClockedRosenbrock(name, tolerance=trajectory.settings["tolerance"])
    if name == RungeKuttaChebyshev.__name__:
        return RungeKuttaChebyshev()
    kind = getattr(diffrax, name, diffrax.Tsit5)
    try:
        return kind()
    except TypeError:  # a user's own: any other is as accurate
        return diffrax.Tsit5()
