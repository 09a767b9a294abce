"""One Rosenbrock step of `y' = f(t, y, q(y))`, with `w = q(y)` as unknowns of their own.

Where f depends steeply on q, a small error in the y of a stage changes f completely. If w is a
separate unknown, the method approximates it as it does y, by polynomials in time, and f is
evaluated at a w that is as accurate as the step. So a step is one for the differential-algebraic
system `y' = f(t, y, w)`, `0 = q(y) - w` of index 1, with w eliminated from the linear systems. With
the gaps `g_i = q(Y_i) - W_i` of the stages,

    (1/(h gamma) - f_y - f_w q_y) U_i = f(t_i, Y_i, W_i) + sum_j (C_ij/h) U_j + h d_i f_t + f_w g_i

are the equations of the stages of y, and `q_y U_i + g_i` are the stages of w. At the end y is
moved, with the same matrix, until q(y) agrees with the w of the step. On deep linear networks,
where the set of equal margins is curved, steps then no longer shrink as kappa grows
(benchmarks/far_flow.py: 72 to 102 steps to kappa 1e12 rather than 72 to 192). With an empty vector
w this is the Rosenbrock method itself.

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

# At the end y is moved until the size of its gap is below the first, or as many times as the second
# says. A size of 1 is large, as for `gflow.flow.field.Field.logit_size`.
_SMALL, _MOST_MOVES = 1e-2, 4

CoupledField = Callable[[Any, Array, Array | None], tuple[Array, Array]]
"""`(t, y, w) -> (f(t, y, w), q(y))`; without w, `(f(t, y, q(y)), q(y))`."""
Evaluation = Callable[[Any, Array, Array, Array], tuple[Array, Array, Any]]
"""`(t, y, w, own) -> (f(t, y, w), q(y), more)`; where `own` is true, with q(y) in place of w.
`more` is whatever else is known there, to be kept of the end of a step.
"""
GapSize = Callable[[Array, Array, Array], Array]
"""A function of y, w and the gap `q(y) - w` that gives the size of the gap."""


class Coupled(NamedTuple):
    """A coupled field and its derivatives at the start of a step.

    Attributes:
        evaluate: see `Evaluation`.
        t, y, w: the start, `w = q(y)`.
        slope: f there.
        drift: f_t there.
        tangent: `x -> ((f_y + f_w q_y) x, q_y x)`.
        along: `g -> f_w g`.
        more: at the start; see `Evaluation`.
    """

    evaluate: Evaluation
    t: Array
    y: Float[Array, " P"]
    w: Float[Array, " b"]
    slope: Float[Array, " P"]
    drift: Float[Array, " P"]
    tangent: Tangent
    along: Operator
    more: Any = ()


def linearized(field: CoupledField, t: Array, y: Array) -> Coupled:
    """The field at a point."""
    (slope, w), tangent = jax.linearize(lambda free: field(t, free, None), y)
    along = jax.linearize(lambda free: field(t, y, free)[0], w)[1]
    drift = jax.jvp(lambda free: field(free, y, w)[0], (t,), (jnp.ones_like(t),))[1]

    def evaluate(t: Any, y: Array, w: Array, own: Array) -> tuple[Array, Array, tuple[()]]:
        slope, known = field(t, y, None)
        if w.size:
            slope = jnp.where(own, slope, field(t, y, w)[0])
        return slope, known, ()

    return Coupled(evaluate, t, y, w, slope, drift, tangent, along)


class Moved(NamedTuple):
    """A step.

    Attributes:
        end: (y, w) where it ends.
        error: the error estimate of (y, w), infinite where the systems were not solved.
        dense: the rows k of the dense output, of (y, w).
        gap: what is left of `q(y) - w` at the end.
        turn: `q_y f`, by which the field changes w at the start.
        more: what else was known where y ends; see `Evaluation`.
    """

    end: Float[Array, " P_and_b"]
    error: Float[Array, " P_and_b"]
    dense: Float[Array, "r P_and_b"]
    gap: Float[Array, " b"]
    turn: Float[Array, " b"]
    more: Any


def step(
    tableau: Tableau,
    coupled: Coupled,
    system: Direct | Recycling,
    h: Any,
    gap_size: GapSize | None = None,
) -> Moved:
    """A step of length h; `system` is that of `coupled.tangent` with the shift `1/(h gamma)`.

    Without `gap_size` y is not moved at the end.
    """
    made = _Passes(tableau, coupled, system, h, gap_size).all()
    size, start = coupled.y.size, jnp.concatenate([coupled.y, coupled.w])
    error = jnp.asarray(tableau.e) @ made.stages
    if gap_size is not None:
        # The gaps of the stages are closed at the end, so that the change by which they contribute
        # to the estimate is not an error.
        error = jnp.append(error[:size] - made.change, error[size:])
    if tableau.dense is None:
        dense = _hermite(coupled, h, start, made)
    else:
        dense = jnp.asarray(tableau.dense) @ made.stages
    error = jnp.where(system.solved(made.memory), error, jnp.inf)
    return Moved(made.at, error, dense, made.gap, system.beside(coupled.slope), made.more)


class _Made(NamedTuple):
    """A step so far.

    Attributes:
        count: evaluations.
        closed: whether the gap at the end of the step is small enough.
        at: (y, w) where the field is evaluated next; after the last pass, the end of the step.
        stages, gaps: the stages of (y, w), and the gaps of w.
        gap, slope, more: at the last evaluation; `slope` is f there.
        change: the last solution of the linear system, of y. After the last pass, the contribution
            of the gaps of the stages.
        memory: of the linear systems.
    """

    count: Array
    closed: Array
    at: Float[Array, " P_and_b"]
    stages: Float[Array, "s P_and_b"]
    gaps: Float[Array, "s b"]
    gap: Float[Array, " b"]
    slope: Float[Array, " P"]
    more: Any
    change: Float[Array, " P"]
    memory: Any


class _Passes(NamedTuple):
    """The stages of a step, and then the moves at its end, in one loop, so that a program holds the
    field and the solution of a system once.

    Pass i evaluates the field at stage i. The later passes evaluate it at the end of the step,
    where y is moved until the gap is small. The last pass computes the contribution of the gaps of
    the stages, for the error estimate.
    """

    tableau: Tableau
    coupled: Coupled
    system: Direct | Recycling
    h: Any
    gap_size: GapSize | None

    def all(self) -> _Made:
        """The step after its last pass."""
        begin = self.begin()
        if self.gap_size is not None:
            return lax.while_loop(lambda made: ~made.closed, self.next, begin)
        # The field at the end of the step is evaluated only if it is needed. The number of passes
        # is fixed in this case, so that the loop can be differentiated.
        wanted = self.tableau.dense is None or jax.tree.leaves(begin.more)
        count = len(self.tableau.m) + (1 if wanted else 0)
        return lax.fori_loop(0, count, lambda _, made: self.next(made), begin)

    def begin(self) -> _Made:
        """The state of the step before the first pass."""
        y, w = self.coupled.y, self.coupled.w
        more, at, closed = self.coupled.more, jnp.concatenate([y, w]), jnp.zeros((), bool)
        stages = jnp.zeros((len(self.tableau.m), at.size), at.dtype)
        count, none = jnp.zeros((), int), jnp.zeros_like(y)
        gaps, memory = stages[:, y.size :], self.system.begin(y)
        gap = jnp.zeros_like(w)
        return _Made(count, closed, at, stages, gaps, gap, none, more, none, memory)

    def next(self, made: _Made) -> _Made:
        """The state after one more pass."""
        tableau, coupled, h = self.tableau, self.coupled, self.h
        size, last = coupled.y.size, len(tableau.m)
        a, C, c, d = map(jnp.asarray, (tableau.a, tableau.C, tableau.c, tableau.d))
        i = jnp.minimum(made.count, last - 1)
        staging, y, w = made.count < last, made.at[:size], made.at[size:]
        time = coupled.t + jnp.where(staging, c[i], 1.0) * h
        slope, known, more = coupled.evaluate(time, y, w, ~staging)
        gap = known - w
        closed = ~staging & self._closed(y, w, gap, made.count - last)
        right = slope + (C[i] / h) @ made.stages[:, :size] + (h * d[i]) * coupled.drift
        pushed = jnp.where(closed, jnp.asarray(tableau.e) @ made.gaps, gap)
        right = jnp.where(staging, right, 0.0) + coupled.along(pushed)
        solution, memory = self.system.solve(right, made.memory)
        change = solution[:size]
        stage = jnp.append(change, solution[size:] + gap)
        stages, gaps = (
            jnp.where(staging, lax.dynamic_update_index_in_dim(all_, one, i, 0), all_)
            for all_, one in ((made.stages, stage), (made.gaps, gap))
        )
        ahead = jnp.append(a, jnp.asarray(tableau.m)[None], axis=0)[i + 1]
        start = jnp.concatenate([coupled.y, coupled.w])
        moved = jnp.append(y + jnp.where(closed, 0.0, change), w)
        at = jnp.where(staging, start + ahead @ stages, moved)
        return _Made(made.count + 1, closed, at, stages, gaps, gap, slope, more, change, memory)

    def _closed(self, y: Array, w: Array, gap: Array, moves: Array) -> Any:
        """Whether the gap is small enough, or y has been moved as often as allowed."""
        if self.gap_size is None:
            return jnp.ones((), bool)
        return ~(self.gap_size(y, w, gap) > _SMALL) | (moves >= _MOST_MOVES)


def _hermite(coupled: Coupled, h: Any, start: Array, made: _Made) -> Array:
    """Rows k of the cubic through the ends of the step, of (y, w), with their slopes there."""
    y, w = jnp.split(made.at, [coupled.y.size])

    def known(free: Array) -> Array:
        return coupled.evaluate(coupled.t + h, free, w, jnp.ones((), bool))[1]

    turn = jax.jvp(known, (y,), (made.slope,))[1]
    first = h * jnp.concatenate([coupled.slope, coupled.tangent(coupled.slope)[1]])
    last, across = h * jnp.concatenate([made.slope, turn]), made.at - start
    return jnp.stack([first - across, 2 * across - first - last])
