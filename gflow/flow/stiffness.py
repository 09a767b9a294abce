"""When the flow has become stiff, so that a linearly implicit solver is the cheaper one.

An explicit step is bounded by `h |lambda| < 3.3` (Tsit5), with lambda the largest eigenvalue of the
field's Jacobian. It grows like kappa, and so does the number of explicit steps for the same path. A
Rosenbrock step costs more (`gflow.stiff.traits.implicit_cost`), but the number of these steps while
kappa grows by a factor e does not increase. The switch is made after at least `_FIRST_LOOK` steps,
since fewer would not repay the compilation of another program, and once two things hold:

1. the explicit steps per factor e of kappa cost more than `_STIFF_STEPS` Rosenbrock steps, by a
   factor of `_GAIN`;
2. the steps are about as long as stability allows, `h |lambda| > _LIMIT`. Otherwise they are short
   for another reason, such as kinks, for which an implicit method is no remedy.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from gflow._programs import compiled
from gflow.flow.field import Field, path_slope
from gflow.flow.segment import Cursor
from gflow.flow.solvers import first_solver
from gflow.stiff.traits import implicit_cost, traits_of

_LIMIT = 0.2
# Steps that Rodas5P needs for a factor e of kappa: 3 to 6 in benchmarks/far_flow.py.
_STIFF_STEPS = 5
# How many times cheaper it must be, since a run may be about to end.
_GAIN = 2.0
_POWER_STEPS = 12
_FIRST_LOOK, _STEPS_BETWEEN = 600, 100


class StiffnessWatch(NamedTuple):
    """Where the flow was last looked at; what the steps cost is counted from there.

    Attributes:
        num_steps: steps tried up to then.
        log_kappa: there; None before the first look.
    """

    num_steps: int = 0
    log_kappa: float | None = None


def looked(
    watch: StiffnessWatch, field: Field, cursor: Cursor, num_steps: int
) -> tuple[bool, StiffnessWatch]:
    """Whether to switch now, `num_steps` into an explicit run; and the watch from here on.

    The costs are compared only every `_STEPS_BETWEEN` steps, however short the segments are.
    """
    made = num_steps - watch.num_steps
    if watch.log_kappa is not None and made < _STEPS_BETWEEN:
        return False, watch
    log_kappa = float(field.problem.degree * np.asarray(cursor.state)[-2])
    now = StiffnessWatch(num_steps, log_kappa)
    if watch.log_kappa is None or cursor.num_accepted < _FIRST_LOOK or log_kappa < 0:
        return False, now
    explicit = made * traits_of(first_solver()).cost
    num_implicit = _STIFF_STEPS * max(log_kappa - watch.log_kappa, 0.0)
    if explicit <= _GAIN * num_implicit * implicit_cost(field.layout.size):
        return False, now
    return bool(cursor.control.step * spectral_radius(field, cursor.state) > _LIMIT), now


@compiled
def spectral_radius(field: Field, state: Any) -> Array:
    """`|lambda|_max` of the Jacobian of `(u, log rho)`, from below, by power iteration.

    Products with the Jacobian are approximated by differences of the field, so that the program
    holds the field once.
    """
    size = state.size - 1
    # Small compared with 1/kappa, the length over which the weights p change.
    length = 1e-4 * jnp.exp(-jnp.maximum(field.capped(state), 0.0))
    start = np.random.default_rng(0).normal(size=size)

    def slope(at: Array) -> Array:
        return path_slope(field, at, field.ascent(at))

    def around(vector: Array) -> Array:
        shift = length * jnp.append(vector, 0.0)
        ends = lax.map(slope, state + jnp.stack([shift, -shift]))
        return (ends[0] - ends[1]) / (2 * length)

    def body(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        product = around(carry[0])
        growth = jnp.sqrt(product @ product)
        return product / jnp.where(growth > 0, growth, 1.0), growth

    vector = jnp.asarray(start / np.linalg.norm(start))
    return lax.fori_loop(0, _POWER_STEPS, body, (vector, jnp.zeros(())))[1]
