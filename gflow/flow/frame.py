"""The frame of a linearly implicit step: the parameters over a norm that grows at a constant rate.

In polar coordinates `(u, log rho)` the rate of log rho is `L sum_i p_i q_i`. At a radius equal to
the margin the q_i are of the order of 1/rho, and on the slow motion they cancel but for a part of
the order of 1/rho^2. The weights p of a stage are off by its error, which then counts rho times in
log rho, and steps shrink as the norm grows. In the parameters themselves the same error moves what
the flow damps at once, and the rest moves by itself. So a step is made in

    w = params exp(-s),   dw/dtau = |w| sum_i p_i grad q_i(w/|w|) - g w,   ds/dtau = g,

with `g = L sum_i p_i q_i` at the start of the step, held fixed. It starts at `w = u`, `s = log rho`
and ends at `u = w/|w|`, `log rho = s + log |w|`. Where the direction rests, w rests too, however
fast the norm grows, so that steps may be as long there as in polar coordinates.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from gflow.flow.field import Field
from gflow.problem import Ascent
from gflow.stiff.operators import Operator
from gflow.stiff.rosenbrock import RosenbrockInterpolation

Framed = Float[Array, " path"]
"""`(w, s)`, P + 1 numbers."""


def polar(path: Framed) -> Float[Array, " path"]:
    """`(u, log rho)` of a point of the frame."""
    length = jnp.sqrt(path[:-1] @ path[:-1])
    return jnp.append(path[:-1] / length, path[-1] + jnp.log(length))


def growth_of(field: Field, ascent: Ascent) -> Float[Array, ""]:
    """g, that of log rho in polar coordinates."""
    return field.problem.degree * jnp.vdot(ascent.weights, ascent.margins)


def framed_slope(field: Field, path: Framed, ascent: Ascent, growth: Array) -> Framed:
    """`d (w, s) / d tau`, with the ascent at the direction of w."""
    w, vector = path[:-1], field.layout.flatten(ascent.vector)
    return jnp.append(jnp.sqrt(w @ w) * vector - growth * w, growth)


def framed_error(error: Framed, path: Framed) -> Float[Array, " path"]:
    """An error of `(w, s)` there as one of `(u, log rho)`."""
    length = jnp.sqrt(path[:-1] @ path[:-1])
    unit, across = path[:-1] / length, error[:-1] / length
    along = unit @ across
    return jnp.append(across - along * unit, error[-1] + along)


def growths(start: Framed, end: Framed, k: Float[Array, "r path"]) -> Float[Array, " 2"]:
    """By how much log rho would change over a step at its rates at both ends, along its dense
    output with the rows k.
    """
    change = end - start
    turns = jnp.stack([change + k[0], change - jnp.sum(k, axis=0)])
    w = jnp.stack([start, end])[:, :-1]
    return jnp.sum(w * turns[:, :-1], axis=1) / jnp.sum(w * w, axis=1) + turns[:, -1]


def in_frame(solve: Operator, unit: Float[Array, " P"], shift: Array) -> Operator:
    """`r -> (shift - J)^-1 r` in the frame, from that in polar coordinates; at `w = u`."""

    def solved(r: Framed) -> Framed:
        along = unit @ r[:-1]
        x = solve(jnp.append(r[:-1] - along * unit, r[-1] + along))
        last = r[-1] / shift
        return jnp.append(x[:-1] + (x[-1] - last - unit @ x[:-1]) * unit, last)

    return solved


class FramedInterpolation(RosenbrockInterpolation):
    """The dense output of a step in the frame, as a state `(u, log rho, log(T + t))`."""

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True) -> Array:
        if t1 is not None:
            return self.evaluate(t1) - self.evaluate(t0)
        state = super().evaluate(t0, left=left)
        return jnp.append(polar(state[:-1]), state[-1])
