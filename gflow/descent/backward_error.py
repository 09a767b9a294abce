"""The flow that gradient descent follows to second order in its step size.

Steps `x <- x + h f(x)` lie on the solution of `dx/ds = f(x) + h f_1(x) + ..` at s = h, 2h, ..; with
`f_1 = -f'(x) f(x) / 2` they are O(h^2) from it where they are O(h) from the flow `dx/ds = f(x)`.
"""

import time
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import brentq

from gflow._checks import is_integer, is_real, one_of, scalar
from gflow._interrupts import interruptible
from gflow._layout import Layout
from gflow._numerics import tree_norm, tree_scale
from gflow._programs import compiled
from gflow._signatures import named
from gflow._typing import Params
from gflow.descent.batch import Objective
from gflow.descent.history import finite_part, measured
from gflow.descent.stepping import Saved
from gflow.problem import Problem
from gflow.results import RESULTS
from gflow.trajectory import RunFailed, Trajectory
from gflow.validation import check_start

_MAX_STEPS = 100_000


class _State(NamedTuple):
    params: Params
    log1p_time: Float[Array, ""]


@named()
@interruptible
def backward_error_flow(
    problem: Problem,
    params: Params,
    *,
    step_size: float,
    num_steps: int,
    objective: Objective = "loss",
    save: int = 128,
    tolerance: float = 1e-9,
    throw: bool = True,
) -> Trajectory:
    """The modified flow of `num_steps` steps of plain gradient descent.

    `d params/ds = f - (h/2) f' f` for `f = -grad Loss` in the problem's gradient mode, to s = h *
    num_steps. Where f is a gradient that is the flow of `Loss + (h/4) |grad Loss|^2`; frozen
    perturbations depend on the parameters too, so that f' is not symmetric, and the first form
    holds. On the log-loss, `f = -grad log Loss`, and time passes at the rate
    `r - (h/2) <grad r, f>`, `r = 1 / Loss`, as it does in the steps.

    The distance to gradient descent with steps h at equal times, losses or norms is O(h^2) instead
    of O(h), as long as h times the sharpness is small. It fails at kinks (ReLU, signs), where f has
    no derivative.

    Args:
        problem: what is minimised.
        params: the start.
        step_size: h, of steps on the loss as a sum over examples; for steps on the mean, theirs
            divided by n.
        num_steps: steps that descent makes in the same time.
        objective: as of `gflow.descend`.
        save: points kept, evenly spread over s.
        tolerance: of the integration, relative and absolute.
        throw: raise `RunFailed` where the integration fails.

    Returns:
        A trajectory, of which `.at` reads times, losses and norms to the tolerance.

    Raises:
        TypeError, ValueError: see `gflow.validation.check_start`; an option out of its range.
        RunFailed: with `throw=True`, where it leaves the range of numbers or takes too many steps.

    Source: Barrett & Dherin 2021, "Implicit gradient regularization"; Hairer, Lubich & Wanner 2006,
    "Geometric Numerical Integration", IX.1.
    """
    step_size = float(scalar(step_size, "step_size"))
    _check_options(step_size, num_steps, objective, save, tolerance)
    settings = {
        "step_size": step_size,
        "num_steps": int(num_steps),
        "objective": objective,
        "save": int(save),
        "tolerance": float(tolerance),
    }
    trajectory = _followed(problem, check_start(problem, params), settings)
    if throw and not trajectory.successful:
        raise RunFailed(trajectory)
    return trajectory


def _followed(problem: Problem, params: Params, settings: dict[str, Any]) -> Trajectory:
    """The flow from `params`, to its end or as far as it is finite."""
    layout, begin, step_size = Layout.of(params), time.perf_counter(), settings["step_size"]
    clock = np.linspace(0.0, step_size * settings["num_steps"], settings["save"])
    start, logarithmic = _State(params, jnp.zeros(())), settings["objective"] == "log_loss"
    states, num_accepted, finished = _solved(
        problem, start, jnp.asarray(clock), logarithmic, step_size, settings["tolerance"]
    )
    vectors = np.asarray(jax.vmap(layout.flatten)(states.params))
    reached = np.rint(clock / step_size).astype(np.int64)
    saved = Saved(reached, np.asarray(states.log1p_time), vectors)
    columns, directions = measured(problem, layout, saved)
    columns = {**columns, "clock": clock}
    successful = bool(finished) and bool(np.all(np.isfinite(vectors)))
    if not successful:
        columns, directions = finite_part(columns, directions)
    return Trajectory(
        kind="modified flow",
        reader=read_between,
        columns=columns,
        vectors=directions,
        layout=layout,
        problem=problem,
        result=RESULTS.successful if successful else RESULTS.not_finite,  # pyright: ignore[reportArgumentType]
        stats={"num_steps": int(num_accepted), "seconds": time.perf_counter() - begin},
        settings=settings,
    )


@compiled
def _solved(
    problem: Problem, start: _State, clock: Array, logarithmic: bool, step_size: Any, tolerance: Any
) -> tuple[_State, Array, Array]:
    """The states at the times `clock`, infinite where they were not reached; the steps made; and
    whether all were.
    """
    found = diffrax.diffeqsolve(
        diffrax.ODETerm(_field(problem, logarithmic)),
        diffrax.Dopri8(),
        clock[0],
        clock[-1],
        None,
        start,
        args=step_size,
        saveat=diffrax.SaveAt(ts=clock),
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        max_steps=_MAX_STEPS,
        throw=False,
    )
    states: Any = found.ys
    return states, found.stats["num_accepted_steps"], found.result == diffrax.RESULTS.successful


def _field(problem: Problem, logarithmic: bool) -> Any:
    def descent(params: Params) -> tuple[Params, Array]:
        """f, and the logarithm of the rate r at which time passes."""
        ascent = problem.ascent(params)
        if not logarithmic:
            return tree_scale(jnp.exp(ascent.log_weight), ascent.vector), jnp.zeros(())
        log_loss = problem.loss.log_loss(ascent.margins)
        return tree_scale(jnp.exp(ascent.log_weight - log_loss), ascent.vector), -log_loss

    def field(_: Any, state: _State, step_size: Any) -> _State:
        velocity, _ = descent(state.params)
        (velocity, log_rate), (bend, rise) = jax.jvp(descent, (state.params,), (velocity,))
        half = 0.5 * step_size
        corrected = jax.tree.map(lambda f, g: f - half * g, velocity, bend)
        return _State(corrected, jnp.exp(log_rate - state.log1p_time) * (1 - half * rise))

    return field


def read_between(trajectory: Trajectory, index: int, name: str, target: float) -> Params:
    """The point between two saved ones where the quantity has the value, integrated again."""
    problem, settings = trajectory.require_problem(), trajectory.settings
    params = jax.tree.map(jnp.asarray, trajectory.params_at_index(index))
    start = _State(params, jnp.asarray(trajectory.log1p_time[index]))
    begin, end = trajectory.clock[index : index + 2]
    logarithmic = settings["objective"] == "log_loss"

    def state_at(clock: float) -> _State:
        if clock <= begin:
            return start
        given = (logarithmic, settings["step_size"], settings["tolerance"])
        states, _, _ = _solved(problem, start, jnp.asarray([begin, clock]), *given)
        return jax.tree.map(lambda leaf: leaf[-1], states)

    def excess(clock: float) -> float:
        state = state_at(clock)
        if name == "time":
            return float(state.log1p_time) - float(np.log1p(target))
        if name == "log_loss":
            return float(problem.log_loss(state.params)) - target
        return problem.degree * float(jnp.log(tree_norm(state.params))) - target

    # The ends bracket the value; at the very end it may be met to rounding only.
    if excess(begin) * excess(end) >= 0:
        return trajectory.params_at_index(index + 1)
    clock: Any = brentq(excess, begin, end)
    return jax.tree.map(np.asarray, state_at(clock).params)


def _check_options(
    step_size: float, num_steps: Any, objective: Any, save: Any, tolerance: Any
) -> None:
    call = "backward_error_flow"
    if step_size == 0:
        raise ValueError(f"`{call}(step_size={step_size!r})` must be positive.")
    if not is_integer(num_steps) or num_steps < 1:
        raise ValueError(f"`{call}(num_steps={num_steps!r})` must be an integer of at least 1.")
    if not one_of(objective, ("loss", "log_loss")):
        raise ValueError(f"`{call}(objective={objective!r})`: choose 'loss' or 'log_loss'.")
    if not is_integer(save) or save < 2:
        raise ValueError(f"`{call}(save={save!r})` must be an integer of at least 2.")
    if not (is_real(tolerance) and 0 < tolerance < 1):
        raise ValueError(f"`{call}(tolerance={tolerance!r})` must lie between 0 and 1.")
