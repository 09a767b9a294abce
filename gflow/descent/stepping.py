"""Steps of descent as one compiled loop, with points laid aside on a stride.

Nothing is measured here: a point costs as much to measure as two steps, and most of those that a
run lays aside are dropped again. See `gflow.descent.history`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from gflow._layout import Layout
from gflow._numerics import tree_dot, tree_scale
from gflow._programs import compiled, compiled_for_many_steps
from gflow._typing import Params
from gflow.descent.batch import Rules, Slope, slope_at
from gflow.problem import Problem

# The logarithm of the largest double.
_MAX_LOG_KAPPA = 709.78


class Point(NamedTuple):
    """Where a run is.

    Attributes:
        log_square: `log |params|^2`, which the next step needs too.
        finite: whether kappa and the last gradient are numbers, and the parameters are not all 0.
    """

    params: Params
    optimizer_state: Any
    log_square: Float[Array, ""]
    log1p_time: Float[Array, ""]
    num_steps: Int[Array, ""]
    finite: Bool[Array, ""]


class Saved(NamedTuple):
    """Points laid aside, along a leading axis.

    Attributes:
        num_steps: steps made up to the point.
        log1p_time: log(1 + t) there.
        vector: the parameters, flattened.
    """

    num_steps: Int[Array, " s"] | Int[np.ndarray, " s"]
    log1p_time: Float[Array, " s"] | Float[np.ndarray, " s"]
    vector: Float[Array, "s P"] | Float[np.ndarray, "s P"]


@compiled
def begin(params: Params, optimizer: optax.GradientTransformation) -> Point:
    """The starting point."""
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
    zero = jnp.zeros(())
    square = jnp.log(tree_dot(params, params))
    return Point(params, state, square, zero, jnp.zeros((), jnp.int64), jnp.ones((), bool))


@compiled_for_many_steps
def advance(
    problem: Problem,
    optimizer: optax.GradientTransformation,
    rules: Rules,
    layout: Layout,
    point: Point,
    budget: Any,
    stride: Any,
    table: Int[Array, "t b"] | None,
    first: Any,
    capacity: int,
) -> tuple[Point, Saved, Array]:
    """At most `budget` steps; the points on the stride, and the last one, with their number.

    Args:
        table: the examples of the batches of the steps from `first` on; None for all examples.
        capacity: points on the stride at most.
    """
    end = point.num_steps + budget

    def step(point: Point) -> Point:
        batch = None if table is None else table[point.num_steps - first]
        return stepped(problem, optimizer, rules, point, batch)

    def to_stride(carry: tuple[Point, Saved, Array]) -> tuple[Point, Saved, Array]:
        point, saved, count = carry
        saved = _laid_aside(saved, count, layout, point)
        # What is not on the stride is written over by the next point.
        count = count + (point.num_steps % stride == 0).astype(count.dtype)
        stop = jnp.minimum(end, (point.num_steps // stride + 1) * stride)
        point = lax.while_loop(lambda p: (p.num_steps < stop) & p.finite, step, point)
        return point, saved, count

    def go_on(carry: tuple[Point, Saved, Array]) -> Array:
        return (carry[0].num_steps < end) & carry[0].finite

    empty = Saved(
        jnp.zeros(capacity + 1, jnp.int64),
        jnp.zeros(capacity + 1),
        jnp.zeros((capacity + 1, layout.size)),
    )
    carry = (point, empty, jnp.zeros((), jnp.int64))
    point, saved, count = lax.while_loop(go_on, to_stride, carry)
    return point, _laid_aside(saved, count, layout, point), count + 1


def _laid_aside(saved: Saved, index: Array, layout: Layout, point: Point) -> Saved:
    row = Saved(point.num_steps, point.log1p_time, layout.flatten(point.params))
    return jax.tree.map(lambda rows, leaf: rows.at[index].set(leaf), saved, row)


def stepped(
    problem: Problem,
    optimizer: optax.GradientTransformation,
    rules: Rules,
    point: Point,
    batch: Int[Array, " b"] | None,
) -> Point:
    """The point after one step on the examples `batch`, or on all of them."""
    slope = slope_at(problem, rules, point.params, batch)
    extra = {"value": slope.value, "grad": slope.gradient, "value_fn": slope.value_fn}
    # Adam and others mix floats with integers, which strict dtype promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        update, state = _updated(optimizer, slope.gradient, point, extra)
        params = optax.apply_updates(point.params, update)
    log_time = _log_time(problem.degree, point, slope, update)
    log_square = jnp.log(tree_dot(params, params))
    finite = (log_square > -jnp.inf) & (0.5 * problem.degree * log_square < _MAX_LOG_KAPPA)
    return Point(
        params,
        state,
        log_square,
        jnp.logaddexp(point.log1p_time, log_time),
        point.num_steps + 1,
        finite & jnp.isfinite(slope.log_weight),
    )


def _log_time(degree: float, point: Point, slope: Slope, update: Params) -> Array:
    """`log dt`, `dt = <update, -grad Loss> / |grad Loss|^2`; -inf for a step against the gradient.

    `slope.vector` grows like `|params|^(L-1)`: divided by that, its square can be formed.
    """
    log_scale = -0.5 * (degree - 1) * point.log_square
    scale = jnp.exp(log_scale)
    vector = tree_scale(scale, slope.vector)
    square = tree_dot(vector, vector)
    along = tree_dot(update, vector) / jnp.where(square > 0, square, 1.0)
    forward = along > 0
    log_time = jnp.log(jnp.where(forward, along, 1.0)) + log_scale - slope.log_weight
    return jnp.where(forward, log_time, -jnp.inf)


def _updated(
    optimizer: optax.GradientTransformation, gradient: Params, point: Point, extra: dict[str, Any]
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
