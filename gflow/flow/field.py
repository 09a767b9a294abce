"""The flow on the sphere, in logarithms.

With `p_i = softmax_i(log -l'(q_i))` and the clock `d tau = (sum_i -l'(q_i)) rho^(L-2) dt`, the
gradient flow `d params/dt = -grad Loss(params)` becomes, for `params = rho u` and `|u| = 1`,

    d u          / d tau = (I - u u^T) sum_i p_i grad q_i(u)
    d log rho    / d tau = L sum_i p_i q_i(u)
    d log(1 + t) / d tau = exp(-log(sum_i -l'(q_i)) - (L - 2) log rho - log(1 + t)).

It is the same path on another clock, and nothing in it under- or overflows.

The state is one flat vector `(u, log rho, log(1 + t))`: a solver's arithmetic then compiles to one
kernel an operation rather than one for each leaf of the parameters.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._layout import Layout
from gflow._typing import Params, Scalar
from gflow.measures import PointMeasures, measure_point
from gflow.problem import Problem

State = Float[Array, " state"] | Float[np.ndarray, " state"]
"""`(u, log rho, log(1 + t))`, P + 2 numbers."""


class Field(eqx.Module):
    """The right-hand side for one problem, and what is measured of a state."""

    problem: Problem
    layout: Layout

    def measures(self, state: State) -> PointMeasures:
        """What is recorded of a point."""
        direction = self.layout.unflatten(unit_direction(state))
        return measure_point(self.problem, direction, self.log_kappa(state))

    def log_kappa(self, state: State) -> Float[Array, ""]:
        """`log kappa = L log rho`."""
        return self.problem.degree * state[-2]


def initial_state(layout: Layout, params: Params) -> State:
    """The state of `params` at time 0."""
    vector = layout.flatten(params)
    largest = jnp.max(jnp.abs(vector))
    scaled = vector / largest
    length = jnp.sqrt(jnp.sum(scaled * scaled))
    tail = jnp.stack([jnp.log(largest) + jnp.log(length), jnp.zeros_like(length)])
    return jnp.concatenate([scaled / length, tail])


def unit_direction(state: State) -> Float[Array, " P"]:
    """The direction with the rounding in its norm removed. A state has |u| near 1: no scaling."""
    direction = jnp.asarray(state[:-2])
    return direction / jnp.sqrt(direction @ direction)


def vector_field(clock: Scalar, state: State, field: Field) -> State:
    """`d state / d tau`. It does not depend on `clock`."""
    direction = unit_direction(state)
    log_norm, log1p_time = state[-2], state[-1]
    degree = field.problem.degree
    ascent = field.problem.ascent(field.layout.unflatten(direction), degree * log_norm)
    vector = field.layout.flatten(ascent.vector)
    radial = direction @ vector
    mean_margin = jnp.vdot(ascent.weights, ascent.margins)
    log_rate = -ascent.log_weight - (degree - 2) * log_norm - log1p_time
    tail = jnp.stack([degree * mean_margin, jnp.exp(log_rate)])
    return jnp.concatenate([vector - radial * direction, tail])


def error_norm(error: State) -> Float[Array, ""]:
    """`max(|du|_2, |d log rho|, |d log(1+t)|)`: so the tolerance is a relative error of the
    parameters, and of 1 + t.
    """
    across = jnp.sqrt(error[:-2] @ error[:-2])
    return jnp.maximum(across, jnp.max(jnp.abs(error[-2:])))
