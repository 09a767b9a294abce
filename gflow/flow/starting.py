"""What a run begins with: its step-size control and its first step."""

from typing import NamedTuple

import diffrax
import jax.numpy as jnp
import numpy as np

from gflow._layout import Layout
from gflow._programs import compiled_for_few_calls
from gflow._typing import Params
from gflow.flow.control import FlowController, make_controller
from gflow.flow.field import Field
from gflow.flow.segment import Cursor, begin
from gflow.flow.until import Until
from gflow.stiff.traits import traits_of


class Tolerances(NamedTuple):
    """Local errors per step that `integrate` allows, under its names for them."""

    tolerance: float
    rtol_direction: float
    atol_logit: float


def control_of(
    solver: diffrax.AbstractSolver, tolerances: Tolerances, budget: int, until: Until
) -> FlowController:
    """Step-size control with the gains of the solver, for at most `budget` steps.

    A step of a linearised field is controlled in the logits too: far out, an error that is small in
    the direction is large in what the loss sees, and there the linearisation no longer holds.
    """
    tolerance, rtol_direction, atol_logit = map(np.float64, tolerances)
    traits = traits_of(solver)
    logit = atol_logit if traits.linearised else None
    return make_controller(tolerance, np.int64(budget), until, logit, rtol_direction, traits.gains)


def start_cursor(
    field: Field, solver: diffrax.AbstractSolver, controller: FlowController, params: Params
) -> Cursor:
    """A cursor at `params` at time 0, about to try a cautious first step.

    Its state has `log(T + t) = log T`, from which the time scale T of the flow can be read.
    """
    state = initial_state(field.layout, params)
    log_kappa = np.minimum(field.problem.degree * state[-2], field.log_cap)
    # `Problem.ascent` has a program of its own, which a search compiles in any case.
    ascent = field.problem.ascent(field.layout.unflatten(state[:-2]), log_kappa)
    length = np.float64(first_length(solver, controller))
    return _begin_at(field, solver, controller, state, ascent, length)


def first_length(solver: diffrax.AbstractSolver, controller: FlowController) -> float:
    """How far the direction may move in a cautious first step, where nothing is known of the flow.

    The step of a method of order 5 with an error of the tolerance, times `Traits.first_step`.
    """
    return traits_of(solver).first_step * float(controller.atol) ** 0.2


def initial_state(layout: Layout, params: Params) -> np.ndarray:
    """The state `(u, log rho, log(T + t))` of `params` at time 0 with T = 1.

    Made in NumPy, since outside of compiled functions JAX compiles each operation; and with the
    largest entry taken out first, whose square may leave the range of numbers.
    """
    vector = layout.flatten_on_host(params)
    largest = np.max(np.abs(vector))
    scaled = vector / largest
    length = np.sqrt(scaled @ scaled)
    return np.concatenate([scaled / length, [np.log(largest) + np.log(length), 0.0]])


@compiled_for_few_calls
def _begin_at(field, solver, controller, state, ascent, length) -> Cursor:
    """A cursor that tries a step of this length over the speed `|sum_i p_i grad q_i|`.

    That is at least the speed of the direction on the sphere, and has the units of the clock.
    """
    state = jnp.asarray(state)
    pull = field.layout.flatten(ascent.vector)
    speed = jnp.sqrt(pull @ pull)
    step = length / jnp.where(speed > 0, speed, 1.0)
    # T is the time of the first step, since nothing happens before; or less, if a target is a time
    # before it.
    scale = field.log_time_rate(state, ascent.log_weight) + jnp.log(step)
    scale = jnp.clip(scale, 0.0, controller.until.log1p_time)
    state = jnp.append(state[:-1], scale)
    return begin(field, solver, controller, np.float64(0), state, step, np.int64(0))
