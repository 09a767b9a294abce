"""A compiled segment of the flow: so many steps, from where the last segment stopped.

The driver runs segments in a loop, so that progress, interrupts and checkpoints need no host
callback in the compiled program, and memory does not grow with the number of steps.
"""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from gflow._programs import compiled
from gflow.flow.control import ControlState, FlowController, rewound, starting
from gflow.flow.field import Field, State, unit_direction, vector_field
from gflow.record import Row, empty_rows, write_row


class Cursor(NamedTuple):
    """Where the integration stands: all that is needed to go on, bit for bit.

    Attributes:
        clock: tau, summed over all accepted steps.
        state: the point.
        solver_state: diffrax's own.
        control: the controller's state; it holds the next step.
        num_accepted: accepted steps so far.
    """

    clock: Float[Array, ""]
    state: State
    solver_state: Any
    control: ControlState
    num_accepted: Int[Array, ""]


class Block(NamedTuple):
    """What a segment hands back.

    Attributes:
        rows: the recorded points, the first `num_rows` of a buffer; the last of them is where the
            segment stopped, whether or not it falls on the stride.
        num_rows: how many.
        result: diffrax's verdict; `event_occurred` where a target was reached.
        num_steps: steps tried, rejected ones included.
    """

    rows: Row
    num_rows: Int[Array, ""]
    result: diffrax.RESULTS
    num_steps: Int[Array, ""]


@compiled
def begin(
    field: Field,
    solver: diffrax.AbstractSolver,
    controller: FlowController,
    clock: Any,
    state: State,
    step: Any,
    num_accepted: Any,
) -> Cursor:
    """A cursor at a point, about to try a step of length `step`."""
    term = diffrax.ODETerm(vector_field)
    clock, num_accepted = jnp.asarray(clock), jnp.asarray(num_accepted)
    zero = jnp.zeros_like(clock)
    end, control = starting(controller, step).init(
        term, zero, jnp.inf, state, None, field, solver.func, solver.error_order(term)
    )
    solver_state = solver.init(term, zero, end, state, field)
    # diffrax starts some flags as Python bools; as arrays they look like those of a later segment.
    return jax.tree.map(_as_array, Cursor(clock, state, solver_state, control, num_accepted))


@compiled
def advance(
    field: Field,
    solver: diffrax.AbstractSolver,
    controller: FlowController,
    cursor: Cursor,
    stride: Any,
    *,
    capacity: int,
) -> tuple[Cursor, Block]:
    """Integrates until a target is reached, the controller's budget is spent, or a step fails.

    Args:
        stride: every so many accepted steps are recorded, counted over all segments; the point that
            the segment starts from is recorded if it is on the stride.
        capacity: static upper bound of the budget; the length of the buffers.
    """
    solution = _solve(field, solver, controller, cursor, capacity)
    num_made = solution.stats["num_accepted_steps"]
    lengths = jnp.where(jnp.arange(solution.ts.size) < num_made, solution.ts, 0.0)
    clocks = _clocks(cursor.clock, lengths)
    states = jnp.concatenate([cursor.state[None], solution.ys])
    after = Cursor(
        clocks[num_made],
        states[num_made],
        solution.solver_state,
        solution.controller_state,
        cursor.num_accepted + num_made,
    )
    rows, num_rows = _rows(field, clocks, lengths, states, cursor, after, stride, capacity)
    return after, Block(rows, num_rows, solution.result, solution.controller_state.count)


def _clocks(clock: Array, lengths: Float[Array, " steps"]) -> Float[Array, " times"]:
    """The clock before and after each step, summed in their order: the same in any segments."""

    def after(clock: Array, length: Array) -> tuple[Array, Array]:
        return clock + length, clock + length

    return jnp.append(clock, lax.scan(after, clock, lengths)[1])


def _as_array(leaf: Any) -> Any:
    return jnp.asarray(leaf) if eqx.is_array_like(leaf) else leaf


def _solve(
    field: Field,
    solver: diffrax.AbstractSolver,
    controller: FlowController,
    cursor: Cursor,
    capacity: int,
) -> Any:
    """A `diffrax.Solution`; as such, each part would count as one that may be None."""
    return diffrax.diffeqsolve(
        diffrax.ODETerm(vector_field),
        solver,
        t0=cursor.control.start,
        t1=jnp.inf,
        dt0=None,
        y0=cursor.state,
        args=field,
        saveat=diffrax.SaveAt(steps=True, solver_state=True, controller_state=True),
        stepsize_controller=starting(controller, cursor.control.step),
        # Nothing is differentiated through the flow, and a plain loop needs the least memory.
        adjoint=diffrax.ForwardMode(),
        max_steps=capacity,
        throw=False,
        solver_state=cursor.solver_state,
        controller_state=rewound(cursor.control),
    )


def _rows(
    field: Field,
    clocks: Float[Array, " times"],
    lengths: Float[Array, " steps"],
    states: Float[Array, "times state"],
    cursor: Cursor,
    after: Cursor,
    stride: Any,
    capacity: int,
) -> tuple[Row, Array]:
    """The points on the stride, and the last one, measured; the rest of the buffer is 0."""
    num_made = after.num_accepted - cursor.num_accepted
    first = -cursor.num_accepted % stride
    # The last point follows as a row of its own, and must not come twice.
    num_rows = jnp.maximum((num_made - first + stride - 1) // stride, 0) + 1

    def row_at(i: Array) -> Row:
        index = jnp.minimum(first + i * stride, num_made)
        state = states[index]
        tail = jnp.stack([state[-2], field.log1p_time(state)])
        state = jnp.concatenate([unit_direction(state), tail])
        step = jnp.where(index == num_made, after.control.step, lengths[index])
        count = cursor.num_accepted + index
        return Row(clocks[index], step, count, state, field.measures(state))

    buffer = empty_rows(jax.eval_shape(row_at, num_made), capacity + 1)
    rows = lax.fori_loop(0, num_rows, lambda i, rows: write_row(rows, i, row_at(i)), buffer)
    return rows, num_rows
