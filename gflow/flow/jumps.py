"""Where the slope of the flow jumps, found by bisection on the field itself.

The segment between two points is halved, and the half over which the slope changes more is kept,
until its ends differ by rounding only. The change of a smooth field has then become 0; if the slope
still changes, it jumps there. This also finds the kinks of user-defined networks, which have no
switches.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from gflow._programs import compiled
from gflow.flow.field import Field, State, path_slope, vector_field

# Bisection ends where the points are this close or after so many halvings. A change by more than
# this part of the slope is then a jump.
_CLOSE, _MOST_HALVINGS, _JUMP = 1e-13, 60, 1e-3
_POWER_STEPS = 8
# A gradient that changes by this part of the largest one belongs to an example at the jump.
_CHANGED = 1e-6


class Jumps(NamedTuple):
    """What lies between pairs of points.

    Attributes:
        found: whether the slope jumps there.
        before, after: the points on either side.
    """

    found: Bool[Array, " m"]
    before: Float[Array, "m state"]
    after: Float[Array, "m state"]


def _size(vector: Array) -> Array:
    return jnp.sqrt(vector @ vector)


@compiled
def jumps(field: Field, starts: Float[Array, "m state"], ends: Float[Array, "m state"]) -> Jumps:
    """The largest jump between each start and end, if there is one."""

    def slope(state: Array) -> Array:
        return path_slope(field, state, field.ascent(state))

    def halved(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        a, slope_a, b, slope_b, count = carry
        middle = 0.5 * (a + b)
        between = slope(middle)
        first = _size(between - slope_a) >= _size(slope_b - between)
        a, slope_a = jnp.where(first, a, middle), jnp.where(first, slope_a, between)
        b, slope_b = jnp.where(first, middle, b), jnp.where(first, between, slope_b)
        return a, slope_a, b, slope_b, count + 1

    def wide(carry: tuple[Array, ...]) -> Array:
        a, _, b, _, count = carry
        return (jnp.max(jnp.abs(b - a)) > _CLOSE) & (count < _MOST_HALVINGS)

    def between(pair: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        a, b = pair
        begun = a, slope(a), b, slope(b), jnp.zeros((), int)
        a, slope_a, b, slope_b, _ = lax.while_loop(wide, halved, begun)
        largest = jnp.maximum(_size(slope_a), _size(slope_b))
        return _size(slope_b - slope_a) > _JUMP * largest, a, b

    return Jumps(*lax.map(between, (starts, ends)))


@compiled
def smooth_step(field: Field, state: State, accuracy: Any, explicit: bool) -> Array:
    """An estimate of the step that the smooth piece of the field around a point would allow.

    It is `accuracy` divided by the relative rate at which the slope turns or by that of physical
    time, whichever is larger; for an explicit solver at most 1 over the largest eigenvalue of the
    Jacobian, by power iteration. Derivatives are taken within the piece, so that jumps do not
    enter.
    """
    state = jnp.asarray(state)

    def along(path: Array) -> Array:
        at = jnp.append(path, state[-1])
        return path_slope(field, at, field.ascent(at))

    slope, tangent = jax.linearize(along, state[:-1])

    turning = _size(tangent(slope)) / jnp.maximum(_size(slope), 1e-300)
    clock = jnp.abs(vector_field(jnp.zeros(()), state, field)[-1])
    step = accuracy / jnp.maximum(jnp.maximum(turning, clock), 1e-300)
    if not explicit:
        return step
    start = jnp.asarray(np.random.default_rng(0).normal(size=state.size - 1))

    def power(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        product = tangent(carry[0])
        growth = _size(product)
        return product / jnp.maximum(growth, 1e-300), growth

    radius = lax.fori_loop(0, _POWER_STEPS, power, (start / _size(start), jnp.zeros(())))[1]
    return jnp.minimum(step, 1.0 / jnp.maximum(radius, 1e-300))


@compiled
def examples_at(field: Field, found: Jumps) -> Bool[Array, " n"]:
    """The examples with a margin whose gradient jumps at one of the jumps that were found."""
    layout, problem = field.layout, field.problem
    probes = jnp.asarray(np.random.default_rng(1).normal(size=(2, layout.size)))

    def slopes(state: Array) -> Array:
        params = layout.unflatten(state[:-2])
        margins = problem.free_margins(params)

        def along(probe: Array) -> Array:
            return jax.jvp(margins, (params,), (layout.unflatten(probe),))[1]

        return lax.map(along, probes)

    def changed(pair: tuple[Array, Array]) -> Array:
        before, after = slopes(pair[0]), slopes(pair[1])
        moved = jnp.abs(after - before) > _CHANGED * jnp.max(jnp.abs(before))
        return jnp.any(moved, axis=(0, *range(2, moved.ndim)))

    each = lax.map(changed, (found.before, found.after))
    return jnp.any(each & found.found[:, None], axis=0)
