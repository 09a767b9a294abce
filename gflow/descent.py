"""The discrete twin of the flow: full-batch descent with any optax optimizer, recorded alike."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int
from scipy.optimize import brentq

from gflow._layout import Layout
from gflow._numerics import is_integer, tree_dot, tree_norm, tree_scale, unit
from gflow._programs import compiled
from gflow._signatures import named
from gflow._typing import Params
from gflow.deadline import Deadline
from gflow.measures import measure_point
from gflow.problem import Problem
from gflow.progress import check_progress, reporter
from gflow.record import (
    FIRST_STEPS,
    Record,
    Row,
    empty_rows,
    row_capacity,
    steps_within_work,
    write_row,
)
from gflow.results import RESULTS
from gflow.trajectory import RunFailed, Trajectory
from gflow.validation import check_start

Objective = Literal["loss", "log_loss"]


class _Point(NamedTuple):
    params: Params
    optimizer_state: Any
    log1p_time: Float[Array, ""]
    num_steps: Int[Array, ""]
    finite: Bool[Array, ""]


@named(optimizer="Any optax transformation, such as `optax.sgd(0.1)`.")
def descend(
    problem: Problem,
    params: Params,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    objective: Objective = "loss",
    save: int | None = 512,
    max_seconds: float | None = None,
    progress: bool | Callable[[dict[str, Any]], None] = False,
    throw: bool = True,
) -> Trajectory:
    """Full-batch descent: `params <- params + update`, `num_steps` times.

    Margins, losses and weights are in logarithms, as in the flow, so that a run can be compared
    with it however small the loss.

    The time of a step is its length along the negative gradient of the loss,
    `dt = <update, -grad Loss> / |grad Loss|^2`: the step size for plain gradient descent, the step
    size over the loss for descent on the log-loss. Steps against the gradient take no time.

    Args:
        problem: what is minimised.
        params: the start.
        optimizer: any optax transformation, such as `optax.sgd(0.1)`. Those that look at the
            objective itself (`optax.lbfgs`, `optax.polyak_sgd`, `optax.contrib.reduce_on_plateau`)
            are given its `value`, its `grad` and `value_fn`, whose gradient is that of the
            problem's mode. Polyak's steps suppose that the least value is 0, as for "loss" it is.
            A new optimizer, even of the same kind, is compiled anew.
        num_steps: number of steps.
        objective: "loss" hands the optimizer `grad Loss` (the loss is a sum over examples);
            "log_loss" hands it `grad Loss / Loss`, which is descent normalised by the loss.
        save: the number of points kept at most, evenly spread over the steps; None keeps all.
        max_seconds: after so many seconds the run ends, with the result `seconds_spent`. Looked at
            between segments of up to 256 steps, fewer for large problems. None for no limit.
        progress: as in `gflow.integrate`.
        throw: raise `RunFailed` on divergence, and where the seconds were spent; False returns the
            trajectory.

    Raises:
        TypeError, ValueError: see `gflow.validation.check_start`; unknown or impossible options; an
            optimizer that needs other arguments still.
        RunFailed: with `throw=True`, a run that left the range of floating-point numbers, or that
            spent its seconds.
    """
    _check_options(optimizer, num_steps, objective, save)
    check_progress(progress, "descend")
    deadline = Deadline.after(max_seconds, "descend")
    num_steps, save = int(num_steps), None if save is None else int(save)
    params = check_start(problem, params)
    layout = Layout.of(params)
    record = Record(save)
    seconds = time.perf_counter()
    with reporter(progress, "descent") as report:
        call = _Call(problem, optimizer, layout, objective)
        result = _run(call, params, num_steps, record, deadline, report)
    columns, vectors = record.columns(problem.degree)
    made = int(columns["num_steps_at"][-1])
    trajectory = Trajectory(
        kind="descent",
        reader=read_between,
        columns=columns,
        vectors=vectors,
        layout=layout,
        problem=problem,
        result=result,
        stats={
            "num_steps": made,
            "num_accepted_steps": made,
            "num_rejected_steps": 0,
            "stopped_by": "num_steps" if bool(result == RESULTS.successful) else None,
            "seconds": time.perf_counter() - seconds,
        },
        settings={
            "num_steps": num_steps,
            "objective": objective,
            "save": save,
            "gradient": problem.gradient_mode,
        },
    )
    if throw and trajectory.result_name in ("diverged", "seconds_spent"):
        raise RunFailed(trajectory)
    return trajectory


class _Call(NamedTuple):
    """What is done at every step, and to what."""

    problem: Problem
    optimizer: optax.GradientTransformation
    layout: Layout
    objective: Objective


def _run(call: _Call, params, num_steps, record, deadline, report) -> RESULTS:
    problem, optimizer, layout, objective = call
    point = _begin(params, optimizer)
    capacity = row_capacity(layout.size)
    most = steps_within_work(layout.size, len(problem.dataset.x), 1.0)
    made, length = 0, min(FIRST_STEPS, most)
    try:
        while made < num_steps:
            budget, stride = np.int64(min(length, num_steps - made)), np.int64(record.stride)
            point, rows, num_rows = jax.block_until_ready(
                _advance(problem, optimizer, layout, point, budget, stride, objective, capacity)
            )
            record.extend(rows, int(num_rows))
            made, length = int(point.num_steps), min(2 * length, most)
            report(record.status(made, problem.degree))
            if not bool(point.finite):
                record.drop_nonfinite()
                return RESULTS.diverged
            if made < num_steps and deadline.passed():
                return RESULTS.seconds_spent
    except KeyboardInterrupt:
        if not made:  # nothing was computed that could be returned
            raise
        return RESULTS.interrupted
    return RESULTS.successful  # pyright: ignore[reportReturnType]


@compiled
def _begin(params: Params, optimizer: optax.GradientTransformation) -> _Point:
    zero = jnp.zeros(())
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
    return _Point(params, state, zero, jnp.zeros((), jnp.int64), jnp.ones((), bool))


@compiled
def _advance(
    problem: Problem,
    optimizer: optax.GradientTransformation,
    layout: Layout,
    point: _Point,
    budget: Any,
    stride: Any,
    objective: Objective,
    capacity: int,
) -> tuple[_Point, Row, Array]:
    """At most `budget` steps; rows of the points on the stride, and of the last one."""
    start = point.num_steps

    def row_of(point: _Point) -> Row:
        direction, length = unit(point.params)
        log_norm = jnp.log(length)
        measures = measure_point(problem, direction, problem.degree * log_norm)
        tail = jnp.stack([log_norm, point.log1p_time])
        state = jnp.concatenate([layout.flatten(direction), tail])
        zero = jnp.zeros(())
        return Row(zero, zero, point.num_steps, state, measures)

    buffer = empty_rows(jax.eval_shape(row_of, point), capacity + 1)

    def go_on(carry: tuple[_Point, Row, Array]) -> Array:
        return (carry[0].num_steps < start + budget) & carry[0].finite

    def body(carry: tuple[_Point, Row, Array]) -> tuple[_Point, Row, Array]:
        point, rows, count = carry
        due = point.num_steps % stride == 0
        rows = lax.cond(due, lambda: write_row(rows, count, row_of(point)), lambda: rows)
        return _step(problem, optimizer, objective, point), rows, count + due.astype(count.dtype)

    carry = (point, buffer, jnp.zeros((), jnp.int64))
    point, rows, count = lax.while_loop(go_on, body, carry)
    return point, write_row(rows, count, row_of(point)), count + 1


def _step(
    problem: Problem,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    point: _Point,
) -> _Point:
    ascent = problem.ascent(point.params)
    log_loss = problem.loss.log_loss(ascent.margins)
    logarithmic = objective == "log_loss"
    log_scale = ascent.log_weight - log_loss if logarithmic else ascent.log_weight
    gradient = tree_scale(-jnp.exp(log_scale), ascent.vector)
    # Of no use to most optimizers, and left out of the program with them.
    extra = {
        "value": log_loss if logarithmic else jnp.exp(log_loss),
        "grad": gradient,
        "value_fn": partial(_value, problem, logarithmic),
    }
    # Adam and others mix floats with integers, which strict dtype promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        update, state = _updated(optimizer, gradient, point, extra)
        params = optax.apply_updates(point.params, update)
    length = tree_norm(ascent.vector)
    along = tree_dot(update, ascent.vector) / jnp.where(length > 0, length**2, 1.0)
    forward = along > 0
    log_time = jnp.log(jnp.where(forward, along, 1.0)) - ascent.log_weight
    log1p_time = jnp.logaddexp(point.log1p_time, jnp.where(forward, log_time, -jnp.inf))
    norm = tree_norm(params)
    kappa = norm**problem.degree
    finite = jnp.isfinite(kappa) & (norm > 0) & jnp.isfinite(ascent.log_weight)
    return _Point(params, state, log1p_time, point.num_steps + 1, finite)


def _value(problem: Problem, logarithmic: bool, params: Params) -> Array:
    """The objective, with the gradient of the problem's mode."""
    margins = problem.free_margins(lax.stop_gradient(params))(params)
    log_loss = problem.loss.log_loss(margins)
    return log_loss if logarithmic else jnp.exp(log_loss)


def _updated(
    optimizer: optax.GradientTransformation, gradient: Params, point: _Point, extra: dict[str, Any]
) -> tuple[Params, Any]:
    """The update and the optimizer's state after it."""
    update = optax.with_extra_args_support(optimizer).update
    try:
        return update(gradient, point.optimizer_state, point.params, **extra)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        given = ", ".join(f"`{name}`" for name in extra)
        raise TypeError(
            f"`descend(optimizer=...)`: the optimizer asks for more than the gradient, its state, "
            f"the parameters, and {given}, which it is given ({error})."
        ) from error


def read_between(trajectory: Trajectory, index: int, name: str, target: float) -> Params:
    """The point on the straight line between two saved points where the quantity has the value."""
    before = trajectory.params_at_index(index)
    after = trajectory.params_at_index(index + 1)

    def between(share: float) -> Params:
        return jax.tree.map(lambda a, b: (1 - share) * np.asarray(a) + share * b, before, after)

    if name == "time":
        # (t - t_0) / (t_1 - t_0) from the logarithms: 1 + t_1 may exceed the largest double.
        start, end = trajectory.log1p_time[index : index + 2]
        with np.errstate(over="ignore"):
            return between(np.expm1(np.log1p(target) - start) / np.expm1(end - start))
    problem = trajectory.require_problem()

    def excess(share: float) -> float:
        if name == "log_loss":
            return float(problem.log_loss(between(share))) - target
        length = tree_norm(jax.tree.map(jnp.asarray, between(share)))
        return problem.degree * float(jnp.log(length)) - target

    # The ends bracket the value; at the very end it may be met to rounding only.
    if excess(0.0) * excess(1.0) >= 0:
        return between(1.0)
    return between(float(brentq(excess, 0.0, 1.0)))  # pyright: ignore[reportArgumentType]


def _check_options(optimizer: Any, num_steps: Any, objective: Any, save: Any) -> None:
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"`descend(optimizer={optimizer!r})` is no optax transformation, such as "
            "`optax.sgd(0.1)`."
        )
    if not is_integer(num_steps) or num_steps < 1:
        raise ValueError(f"`descend(num_steps={num_steps!r})` must be an integer of at least 1.")
    if objective not in ("loss", "log_loss"):
        raise ValueError(f"`descend(objective={objective!r})`: choose 'loss' or 'log_loss'.")
    if save is not None and (not is_integer(save) or save < 2):
        raise ValueError(f"`descend(save={save!r})` must be None or an integer of at least 2.")
