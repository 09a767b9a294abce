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

from gflow._programs import compiled, compiled_for_few_calls
from gflow.flow.clocked import ClockedRosenbrock
from gflow.flow.control import ControlState, FlowController, rewound, starting
from gflow.flow.field import Field, State, unit_direction, vector_field
from gflow.flow.solvers import with_tolerances
from gflow.measures import PointMeasures
from gflow.record import Row


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


@compiled_for_few_calls
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
    # diffrax initialises some flags as Python bools. As arrays they have the types that they have
    # in later segments, so that these run the same program.
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
    made = _integrated(field, solver, controller, cursor, capacity)
    after = Cursor(
        made.clocks[made.num_accepted],
        made.states[made.num_accepted],
        made.solver_state,
        made.control,
        cursor.num_accepted + made.num_accepted,
    )
    rows, num_rows = _rows(field, made, cursor, after, stride, capacity)
    results = diffrax.RESULTS
    spent = made.result == results.successful
    result = results.where(spent, results.max_steps_reached, made.result)
    return after, Block(rows, num_rows, result, made.control.count)


def _as_array(leaf: Any) -> Any:
    return jnp.asarray(leaf) if eqx.is_array_like(leaf) else leaf


class _Made(NamedTuple):
    """The steps of a segment so far.

    Attributes:
        start, end: of the next step, on the clock of diffrax.
        state, solver_state, control: before that step.
        num_accepted: accepted steps so far.
        clocks, states, measures: of the first point and of the end of each accepted step. The
            measures are those of `PointMeasures`, with 0 for the clean margin.
        lengths: of the step from each of these points.
        result: of the last step that was tried.
    """

    start: Array
    end: Array
    state: State
    solver_state: Any
    control: ControlState
    num_accepted: Array
    clocks: Float[Array, " times"]
    lengths: Float[Array, " times"]
    states: Float[Array, "times state"]
    measures: Float[Array, "times measures"]
    result: diffrax.RESULTS


def _integrated(
    field: Field,
    solver: diffrax.AbstractSolver,
    controller: FlowController,
    cursor: Cursor,
    capacity: int,
) -> _Made:
    """Steps until the controller or the solver ends them, `capacity` of them at most.

    The loop of `diffrax.diffeqsolve`, for a flow that is not differentiated and has no end on the
    clock: its program is a tenth smaller, since it neither clips the last step nor hides its state
    from JAX's differentiation. The measures of a point, for the targets and the record, are taken
    from the evaluation of the field that a step makes there anyway.
    """
    solver = with_tolerances(solver, controller)
    order: Any = solver.error_order(diffrax.ODETerm(vector_field))

    def going_on(made: _Made) -> Array:
        return (made.result == diffrax.RESULTS.successful) & (made.control.count < capacity)

    def tried(made: _Made) -> _Made:
        step = _step(field, solver, made)
        error = jax.tree.map(lambda part: jnp.where(jnp.isnan(part), jnp.inf, part), step.error)
        decided = controller.controlled(
            made.end - made.start,
            made.state,
            step.state,
            field,
            error,
            order,
            made.control,
            PointMeasures(*step.after),
        )
        return _written(made, step, *decided)

    return lax.while_loop(going_on, tried, _nothing_made(field, solver, cursor, capacity))


class _Step(NamedTuple):
    """A step before it is accepted or rejected.

    Attributes:
        state, solver_state: at its end.
        error: the solver's estimate.
        result: of the solver.
        known: the measures of the segment so far, those where the step starts included.
        after: the measures at its end.
    """

    state: State
    solver_state: Any
    error: Any
    result: diffrax.RESULTS
    known: Float[Array, "times measures"]
    after: Float[Array, " measures"]


def _step(field: Field, solver: diffrax.AbstractSolver, made: _Made) -> _Step:
    """The next step, measured from evaluations of the field that the solver needs anyway."""
    if isinstance(solver, ClockedRosenbrock):
        length, results = made.end - made.start, diffrax.RESULTS
        state, error, _, ascents = solver.measured_step(field, length, made.state)
        both = jax.tree.map(lambda *ends: jnp.stack(ends), *ascents)
        both = jax.vmap(field.measured)(jnp.stack([made.state, state]), both)
        before, after = jnp.stack(both, axis=1)
        known = _put(made.measures, before, made.num_accepted)
        return _Step(state, made.solver_state, error, results.successful, known, after)
    term = diffrax.ODETerm(vector_field)
    state, error, _, solver_state, result = solver.step(
        term, made.start, made.end, made.state, field, made.solver_state, False
    )
    after = jnp.stack(field.measured(state, field.ascent(state)))
    return _Step(state, solver_state, error, result, made.measures, after)


def _written(
    made: _Made,
    step: _Step,
    keep: Array,
    start: Array,
    end: Array,
    control: ControlState,
    verdict: diffrax.RESULTS,
) -> _Made:
    """The segment with this step if it is kept; and with the next step to try.

    Args:
        keep, start, end, control, verdict: what the controller decided.
    """
    now, results = made.num_accepted, diffrax.RESULTS
    next_ = now + jnp.where(keep, 1, 0)
    # A rejected step does not advance the buffers: it writes again what already stands there.
    state, solver_state, after = jax.tree.map(
        lambda after, before: jnp.where(keep, after, before),
        (step.state, jax.tree.map(_as_array, step.solver_state), step.after),
        (made.state, made.solver_state, step.known[now]),
    )
    solved = results.where(keep, step.result, results.successful)
    clock = made.clocks[now]
    return _Made(
        start,
        end,
        state,
        solver_state,
        control,
        next_,
        _put(made.clocks, jnp.where(keep, clock + start, clock), next_),
        _put(made.lengths, made.end - made.start, now),
        _put(made.states, state, next_),
        _put(step.known, after, next_),
        results.where(solved == results.successful, verdict, solved),
    )


def _nothing_made(
    field: Field, solver: diffrax.AbstractSolver, cursor: Cursor, capacity: int
) -> _Made:
    """Buffers with the place where the segment starts."""
    control = rewound(cursor.control)
    times = _put(jnp.zeros(capacity + 1), cursor.clock, 0)
    states = _put(jnp.zeros((capacity + 1, cursor.state.size)), cursor.state, 0)
    measures = jnp.zeros((capacity + 1, len(PointMeasures._fields)))
    if not isinstance(solver, ClockedRosenbrock):  # which measures the start of every step
        first = field.measured(cursor.state, field.ascent(cursor.state))
        measures = _put(measures, jnp.stack(first), 0)
    end = control.start + control.step
    none, lengths = jnp.zeros((), jnp.int64), jnp.zeros(capacity + 1)
    result = jax.tree.map(jnp.asarray, diffrax.RESULTS.successful)
    parts = cursor.state, cursor.solver_state, control
    return _Made(control.start, end, *parts, none, times, lengths, states, measures, result)


def _put(all_: Array, one: Any, index: Any) -> Array:
    """The rows with one of them replaced. A scatter, as of `.at[].set`, takes more operations."""
    return lax.dynamic_update_index_in_dim(all_, one, index, 0)


def _rows(
    field: Field, made: _Made, cursor: Cursor, after: Cursor, stride: Any, capacity: int
) -> tuple[Row, Array]:
    """The points on the stride, and the last one, measured; the rest of the buffer repeats that."""
    num_made = made.num_accepted
    first = -cursor.num_accepted % stride
    # Points on the stride before the last one, and the last one, which is added in any case.
    num_rows = jnp.maximum((num_made - first + stride - 1) // stride, 0) + 1
    index = jnp.minimum(first + jnp.arange(capacity + 1) * stride, num_made)
    columns = jnp.concatenate([made.clocks[None], made.lengths[None], made.measures.T])
    states, (clocks, lengths, *measures) = made.states[index], columns[:, index]
    measures = PointMeasures(*measures)
    units = jax.vmap(unit_direction)(states)
    times = jax.vmap(field.log1p_time)(states)
    steps = jnp.where(index == num_made, after.control.step, lengths)
    counts = cursor.num_accepted + index

    def clean(i: Array, margins: Array) -> Array:
        return _put(margins, jnp.min(field.clean_margins(states[i])), i)

    margins = lax.fori_loop(0, num_rows, clean, measures.clean_margin)
    measures = measures._replace(clean_margin=margins)
    states = jnp.concatenate([units, states[:, -2:-1], times[:, None]], axis=1)
    return Row(clocks, steps, counts, states, measures), num_rows
