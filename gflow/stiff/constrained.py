"""One Rosenbrock step of `y' = f(t, y, q(y))`, with `w = q(y)` as unknowns of their own.

Where f depends steeply on q, a small error in the y of a stage changes f beyond recognition. If w
is an unknown of its own, the method follows it as it follows y, by polynomials in time, and f is
evaluated at a w that is as accurate as the step. So the step is that for the
differential-algebraic system `y' = f(t, y, w)`, `0 = q(y) - w` of index 1, with w eliminated from
the linear systems. With the gaps `g_i = q(Y_i) - W_i` of the stages,

    (1/(h gamma) - f_y - f_w q_y) U_i = f(t_i, Y_i, W_i) + sum_j (C_ij/h) U_j + h d_i f_t + f_w g_i

are the stages of y, and `q_y U_i + g_i` those of w. At the end y moves, by the same matrix, to
where q(y) is what the step says of w. On deep linear networks, where the set of equal margins is
curved, steps then no longer shrink as kappa grows (benchmarks/far_flow.py: 72 to 102 steps to kappa
1e12 rather than 72 to 192). Without any w, an empty vector, it is the plain method.

Source of the elimination: Hairer & Wanner 1996, "Solving Ordinary Differential Equations II", VI.4.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from gflow.stiff.operators import Operator, Tangent
from gflow.stiff.recycling import Recycling
from gflow.stiff.systems import Direct
from gflow.stiff.tableaus import Tableau

# At the end y moves until the size of its gap is below this, or so many times. The size is in units
# in which 1 is much, as of `Field.logit_size`.
_SMALL, _MOST_MOVES = 1e-2, 4

CoupledField = Callable[[Any, Array, Array | None], tuple[Array, Array]]
"""`(t, y, w) -> (f(t, y, w), q(y))`; without w, `(f(t, y, q(y)), q(y))`."""
GapSize = Callable[[Array, Array, Array], Array]
"""Of y, w and the gap `q(y) - w`: how large that is."""


class Coupled(NamedTuple):
    """A coupled field and its derivatives at the start of a step.

    Attributes:
        field: see `CoupledField`.
        t, y, w: the start, `w = q(y)`.
        slope: f there.
        drift: f_t there.
        tangent: `x -> ((f_y + f_w q_y) x, q_y x)`.
        along: `g -> f_w g`.
    """

    field: CoupledField
    t: Array
    y: Float[Array, " P"]
    w: Float[Array, " b"]
    slope: Float[Array, " P"]
    drift: Float[Array, " P"]
    tangent: Tangent
    along: Operator

    def at_end(self, h: Any, y: Array) -> Array:
        """q there."""
        return self.field(self.t + h, y, None)[1]


def linearized(field: CoupledField, t: Array, y: Array) -> Coupled:
    """The field at a point."""
    (slope, w), tangent = jax.linearize(lambda free: field(t, free, None), y)
    along = jax.linearize(lambda free: field(t, y, free)[0], w)[1]
    drift = jax.jvp(lambda free: field(free, y, w)[0], (t,), (jnp.ones_like(t),))[1]
    return Coupled(field, t, y, w, slope, drift, tangent, along)


class Moved(NamedTuple):
    """A step.

    Attributes:
        end: (y, w) where it ends.
        error: the error estimate of (y, w), infinite where the systems were not solved.
        dense: the rows k of the dense output, of (y, w).
        gap: what is left of `q(y) - w` at the end.
        turn: `q_y f`, by which the field changes w at the start.
    """

    end: Float[Array, " P_and_b"]
    error: Float[Array, " P_and_b"]
    dense: Float[Array, "r P_and_b"]
    gap: Float[Array, " b"]
    turn: Float[Array, " b"]


def step(
    tableau: Tableau,
    coupled: Coupled,
    system: Direct | Recycling,
    h: Any,
    gap_size: GapSize | None = None,
) -> Moved:
    """A step of length h; `system` is that of `coupled.tangent` with the shift `1/(h gamma)`.

    Without `gap_size` y stays where the method puts it.
    """
    size, m, e = coupled.y.size, jnp.asarray(tableau.m), jnp.asarray(tableau.e)
    start = jnp.concatenate([coupled.y, coupled.w])
    stages, gaps, memory = _stages(tableau, coupled, system, h)
    end, error, gap = start + m @ stages, e @ stages, jnp.zeros_like(coupled.w)
    if gap_size is not None:
        # What closes the gaps of the stages is no error, since they are closed at the end.
        closing, memory = system.solve(coupled.along(e @ gaps), memory)
        error = error.at[:size].add(-closing[:size])
        end, gap, memory = _closed(coupled, system, h, gap_size, end, memory)
    if tableau.dense is None:
        dense = _hermite(coupled, h, start, end)
    else:
        dense = jnp.asarray(tableau.dense) @ stages
    error = jnp.where(system.solved(memory), error, jnp.inf)
    return Moved(end, error, dense, gap, system.beside(coupled.slope))


def _stages(
    tableau: Tableau, coupled: Coupled, system: Direct | Recycling, h: Any
) -> tuple[Array, Array, Any]:
    """The stages of (y, w), their gaps, and the memory of the linear systems."""
    a, C, c, d = map(jnp.asarray, (tableau.a, tableau.C, tableau.c, tableau.d))
    size, count = coupled.y.size, len(tableau.m)
    start = jnp.concatenate([coupled.y, coupled.w])

    def stage(i: Array, carry: tuple[Array, Array, Any]) -> tuple[Array, Array, Any]:
        stages, gaps, memory = carry
        at = start + a[i] @ stages
        slope, w = coupled.field(coupled.t + c[i] * h, at[:size], at[size:])
        gap = w - at[size:]
        right = slope + (C[i] / h) @ stages[:, :size] + (h * d[i]) * coupled.drift
        solution, memory = system.solve(right + coupled.along(gap), memory)
        return stages.at[i].set(solution.at[size:].add(gap)), gaps.at[i].set(gap), memory

    stages = jnp.zeros((count, start.size), start.dtype)
    # A loop rather than its stages one by one: the program holds the field once.
    return lax.fori_loop(0, count, stage, (stages, stages[:, size:], system.begin(coupled.y)))


def _closed(
    coupled: Coupled,
    system: Direct | Recycling,
    h: Any,
    gap_size: GapSize,
    end: Array,
    memory: Any,
) -> tuple[Array, Array, Any]:
    """The end with y moved to where q(y) is w, the gap left, and the memory of the systems."""
    y, w = end[: coupled.y.size], end[coupled.y.size :]

    def open_(carry: tuple[Array, Array, Any, Any]) -> Array:
        y, gap, _, count = carry
        return (count == 0) | ((gap_size(y, w, gap) > _SMALL) & (count <= _MOST_MOVES))

    def move(carry: tuple[Array, Array, Any, Any]) -> tuple[Array, Array, Any, Any]:
        y, gap, memory, count = carry
        change, memory = system.solve(coupled.along(gap), memory)
        y = y + change[: y.size]
        return y, coupled.at_end(h, y) - w, memory, count + 1

    # It begins by a move that closes no gap, so that the program holds q once.
    carry = y, jnp.zeros_like(w), memory, jnp.zeros((), int)
    y, gap, memory, _ = lax.while_loop(open_, move, carry)
    return jnp.concatenate([y, w]), gap, memory


def _hermite(coupled: Coupled, h: Any, start: Array, end: Array) -> Array:
    """Rows k of the cubic through the ends of the step, of (y, w), with their slopes there."""
    y = end[: coupled.y.size]
    slope = coupled.field(coupled.t + h, y, None)[0]
    turn = jax.jvp(lambda free: coupled.at_end(h, free), (y,), (slope,))[1]
    first = h * jnp.concatenate([coupled.slope, coupled.tangent(coupled.slope)[1]])
    last, across = h * jnp.concatenate([slope, turn]), end - start
    return jnp.stack([first - across, 2 * across - first - last])
