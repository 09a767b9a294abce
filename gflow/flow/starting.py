"""What a run begins with: its step-size control and its first step."""

import diffrax
import equinox as eqx
import numpy as np

from gflow._typing import Params
from gflow.flow.control import FlowController, make_controller
from gflow.flow.field import Field, initial_state
from gflow.flow.rosenbrock import Rosenbrock
from gflow.flow.segment import Cursor, begin
from gflow.flow.until import Until


def control_of(
    solver: diffrax.AbstractSolver, tolerances: tuple[float, float], budget: int, until: Until
) -> FlowController:
    """Step-size control: in the logits too where the solver is linearly implicit."""
    tolerance, atol_logit = map(np.float64, tolerances)
    logit = atol_logit if isinstance(solver, Rosenbrock) else None
    return make_controller(tolerance, np.int64(budget), until, logit)


def start_cursor(
    field: Field, solver: diffrax.AbstractSolver, controller: FlowController, params: Params
) -> Cursor:
    """A cursor at `params` at time 0, about to try a cautious first step."""
    # On the sphere the direction moves at most at speed |grad q|, which is of the size of |x|.
    speed = max(1.0, float(np.max(np.linalg.norm(field.problem.dataset.x, axis=1))))
    step = 0.01 * float(controller.atol) ** 0.2 / speed
    return _begin_at_params(field, solver, controller, params, np.float64(step))


@eqx.filter_jit
def _begin_at_params(field, solver, controller, params, step) -> Cursor:
    state = initial_state(field.layout, params)
    return begin(field, solver, controller, np.float64(0), state, step, np.int64(0))


def solver_name(solver: diffrax.AbstractSolver) -> str:
    """What the settings of a run call its solver."""
    return solver.method if isinstance(solver, Rosenbrock) else type(solver).__name__
