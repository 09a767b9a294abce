"""The flow of many runs, in segments of one compiled program.

Between two segments the runs that have arrived leave: a segment holds runs that are under way, so
many at once, and a straggler holds up nothing but itself. What a run does depends on its own steps
alone, neither on the others nor on any clock.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from gflow._layout import Layout
from gflow._programs import compiled_for_few_calls, compiled_for_many_steps
from gflow.batch.control import starting, stepped, under_way
from gflow.batch.lanes import ACTIVE, Goals, Lane
from gflow.batch.stacked import Runs, spread_over, taken_rows
from gflow.deadline import Deadline
from gflow.problem import Problem

# Steps of a segment at most.
_STEPS = 64


def followed(
    runs: Runs,
    goals: Goals,
    paths: np.ndarray,
    deadline: Deadline,
    report: Callable[[Lane], None],
    *,
    stopped: bool = False,
) -> tuple[Lane, str | None]:
    """Where all runs end, stacked; and "interrupted" or "seconds_spent" where some could not.

    Args:
        paths: `(u, log rho)` of the starts. Shape (runs, P + 1).
        report: is called with all runs after every round of segments.
        stopped: whether an interrupt came before; then no step is made.
    """
    everyone, lanes = np.arange(len(paths)), None
    for meant, padded in runs.pieces(everyone):
        given = runs.problems(padded), runs.placed(paths[padded]), runs.layout, goals
        found = taken_rows(_starting(*given, mesh=runs.mesh), np.arange(len(meant)))
        lanes = found if lanes is None else jax.tree.map(_joined, lanes, found)
    assert lanes is not None
    if stopped:
        return lanes, "interrupted"
    try:
        for stiff in (False, True):
            while len(rows := _going(runs, lanes, stiff)):
                for meant, padded in runs.pieces(rows):
                    if deadline.passed():
                        return lanes, "seconds_spent"
                    lanes = _segment(runs, goals, lanes, meant, padded, stiff)
                report(lanes)
    except KeyboardInterrupt:
        return lanes, "interrupted"
    return lanes, None


def _segment(
    runs: Runs, goals: Goals, lanes: Lane, meant: np.ndarray, padded: np.ndarray, stiff: bool
) -> Lane:
    """All runs after a segment of some."""
    given = runs.problems(padded), runs.placed(taken_rows(lanes, padded)), runs.layout, goals
    after = _advanced(*given, np.int64(_STEPS), stiff=stiff, mesh=runs.mesh)

    def written(all_: np.ndarray, part: Any) -> np.ndarray:
        all_ = all_.copy()
        all_[meant] = np.asarray(part)[: len(meant)]
        return all_

    return jax.tree.map(written, lanes, after)


def _going(runs: Runs, lanes: Lane, stiff: bool) -> np.ndarray:
    """The runs that go on with steps of one kind."""
    if stiff:
        return np.flatnonzero(lanes.status == ACTIVE)
    going = [
        np.asarray(_under_way(runs.problems(padded), taken_rows(lanes, padded)))[: len(meant)]
        for meant, padded in runs.pieces(np.arange(len(lanes.status)))
    ]
    return np.flatnonzero(np.concatenate(going))


def _joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.concatenate([first, second])


@compiled_for_few_calls
def _starting(
    problems: Problem, paths: Any, layout: Layout, goals: Goals, *, mesh: Mesh | None
) -> Lane:
    def local(problems: Problem, paths: Any, layout: Layout, goals: Goals) -> Lane:
        return jax.vmap(lambda problem, path: starting(problem, layout, goals, path))(
            problems, paths
        )

    return spread_over(mesh, local, 2)(problems, jnp.asarray(paths), layout, goals)


@compiled_for_few_calls
def _under_way(problems: Problem, lanes: Lane) -> Any:
    return jax.vmap(lambda problem, lane: under_way(problem, lane, stiff=False))(problems, lanes)


@compiled_for_many_steps
def _advanced(
    problems: Problem,
    lanes: Lane,
    layout: Layout,
    goals: Goals,
    budget: Any,
    *,
    stiff: bool,
    mesh: Mesh | None,
) -> Lane:
    """Steps of one kind, until half of the runs that go on with them have ended, or so many."""

    def local(problems: Problem, lanes: Lane, layout: Layout, goals: Goals, budget: Any) -> Lane:
        def count(lanes: Lane) -> Any:
            going = jax.vmap(lambda problem, lane: under_way(problem, lane, stiff=stiff))
            return jnp.sum(going(problems, lanes))

        def one(problem: Problem, lane: Lane) -> Lane:
            return stepped(problem, layout, goals, lane, stiff=stiff)

        def tried(carry: Any) -> Any:
            made, _, lanes = carry
            lanes = jax.vmap(one)(problems, lanes)
            return made + 1, count(lanes), lanes

        first = count(lanes)

        def going_on(carry: Any) -> Any:
            made, going, _ = carry
            return (made < budget) & (going > 0) & (2 * going >= first)

        return lax.while_loop(going_on, tried, (jnp.zeros_like(budget), first, lanes))[2]

    lanes = jax.tree.map(jnp.asarray, lanes)
    return spread_over(mesh, local, 2)(problems, lanes, layout, goals, jnp.asarray(budget))
