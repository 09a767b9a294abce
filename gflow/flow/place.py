"""Where a run stands between two segments, and how that is saved in a file.

A place holds everything that decides how the run goes on, which depends neither on the seconds that
anything took nor on the number of saved points. So a run that is resumed from a place makes, bit
for bit, the steps that it would have made without the stop.
"""

import functools
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gflow.checkpoint import Checkpoint
from gflow.flow.chattering import ChatterMemory
from gflow.flow.field import Field
from gflow.flow.passage import Passage, PassageMemory
from gflow.flow.segment import Cursor, begin
from gflow.flow.solvers import stiff_solver
from gflow.flow.starting import Tolerances, control_of
from gflow.flow.stiffness import StiffnessWatch, looked
from gflow.flow.until import NEVER
from gflow.record import FIRST_STEPS, Record, steps_within_work
from gflow.stiff.traits import traits_of


class Path(NamedTuple):
    """What is followed, and how closely."""

    field: Field
    tolerances: Tolerances

    def scaled(self, log_time_scale: np.ndarray) -> "Path":
        """The path with another time scale."""
        field = Field(self.field.problem, self.field.layout, self.field.log_cap, log_time_scale)
        return self._replace(field=field)


class Place(NamedTuple):
    """Where a run stands between two segments.

    Attributes:
        cursor: of the integration.
        solver: with which it goes on.
        watch: watches for stiffness; None if the user chose the solver, or it has been switched.
        stiff_from: accepted steps at which the solver was switched, if it was.
        num_steps: steps tried so far, rejected ones included.
        num_segments: so far.
        budget: steps of the next segment.
        passage: through 0, see `gflow.flow.passage`.
        chatter: what is known of sliding along kinks, see `gflow.flow.chattering`.
    """

    cursor: Cursor
    solver: diffrax.AbstractSolver
    watch: StiffnessWatch | None
    chatter: ChatterMemory
    stiff_from: int | None = None
    num_steps: int = 0
    num_segments: int = 0
    budget: int = 1
    passage: PassageMemory = PassageMemory()

    @property
    def automatic(self) -> bool:
        """Whether gflow chooses the solver."""
        return self.watch is not None or self.stiff_from is not None


def first_budget(field: Field, solver: diffrax.AbstractSolver) -> int:
    """Steps of a first segment, and of every segment of a flow whose norm may decay to 0."""
    return min(FIRST_STEPS, most_steps(field, solver))


def most_steps(field: Field, solver: diffrax.AbstractSolver) -> int:
    """Steps of a segment at most."""
    size = field.layout.size
    return steps_within_work(size, len(field.problem.dataset.x), traits_of(solver, size).cost)


def landing(cursor: Cursor) -> bool:
    """Whether the last steps were shortened in order to land on a target. A run to a later target
    would not have made them.
    """
    return bool(np.isfinite(cursor.control.bracket.width))


def next_place(path: Path, place: Place, cursor: Cursor, num_steps: int, *, fading: bool) -> Place:
    """The place after a segment that ended at `cursor`, `num_steps` into the run.

    Segments double in length. They stay short where the norm may decay to 0 or the flow is passing
    0 (`fading`), since that has to be noticed in time.
    """
    place = place._replace(cursor=cursor, num_steps=num_steps, num_segments=place.num_segments + 1)
    place = _watched(path, place)
    most = most_steps(path.field, place.solver)
    budget = min(FIRST_STEPS if fading else 2 * place.budget, most)
    return place._replace(budget=budget)


def _watched(path: Path, place: Place) -> Place:
    """The place with a Rosenbrock method as solver, if that has become the cheaper one. The solver
    is switched at most once.
    """
    if place.watch is None or landing(place.cursor) or place.passage.solver is not None:
        return place
    stiff, watch = looked(place.watch, path.field, place.cursor, place.num_steps)
    if not stiff:
        return place._replace(watch=watch)
    solver = stiff_solver(path.tolerances.tolerance)
    before = place.cursor
    cursor = begin(
        path.field,
        solver,
        control_of(solver, path.tolerances, 1, NEVER),
        before.clock,
        before.state,
        before.control.step,
        before.num_accepted,
    )
    stiff_from = int(before.num_accepted)
    return place._replace(cursor=cursor, solver=solver, watch=None, stiff_from=stiff_from)


def describe(solver: diffrax.AbstractSolver) -> str:
    """A solver and its options as text; equal solvers give equal texts."""
    leaves, structure = jax.tree.flatten(solver)
    if not all(isinstance(leaf, np.generic) for leaf in leaves):
        return eqx.tree_pformat(solver, short_arrays=False)
    return _described(structure, *((type(leaf), leaf) for leaf in leaves))


@functools.lru_cache(maxsize=64)
def _described(structure: Any, *leaves: tuple[type, Any]) -> str:
    """The same from the parts of a solver whose options are numbers; it takes half a millisecond.
    Equal numbers of several types are told apart.
    """
    solver = jax.tree.unflatten(structure, [leaf for _, leaf in leaves])
    return eqx.tree_pformat(solver, short_arrays=False)


def written(path: Path, place: Place, record: Record) -> Checkpoint | None:
    """The place as a checkpoint for a file; None if the solver's state is not all plain arrays."""
    try:
        parts = place.cursor, place.chatter.state
        arrays = [leaf for leaf in jax.tree.leaves(parts) if eqx.is_array(leaf)]
        leaves = tuple(np.asarray(leaf) for leaf in arrays)
    except TypeError:  # keys of random numbers
        return None
    log_cap = float(path.field.log_cap)
    facts = {
        "num_steps": place.num_steps,
        "num_accepted": int(place.cursor.num_accepted),
        "budget": place.budget,
        "stride": record.stride,
        "automatic": place.automatic,
        "stiff_from": place.stiff_from,
        "watch": None if place.watch is None else list(place.watch),
        "passage": list(place.passage),
        "sliding": list(place.chatter[1:]),
        "solver": describe(place.solver),
        "log_cap": None if np.isinf(log_cap) else log_cap,
    }
    log_losses = record.log_losses()[: place.num_segments + 1 if place.num_segments else 0]
    return Checkpoint(leaves, log_losses, facts, place.solver)


def read(path: Path, solver: diffrax.AbstractSolver, checkpoint: Checkpoint) -> Place | None:
    """The inverse of `written`; None where the arrays are not those of this solver, as with another
    version of it.
    """
    facts = checkpoint.facts
    passage = PassageMemory(*facts["passage"])
    near_zero = Passage.recalled(path.field, passage).solver
    blank = _blank_cursor(path, solver if near_zero is None else near_zero)
    state = jax.ShapeDtypeStruct(blank.state.shape, np.float64)
    filled = _filled((blank, state), checkpoint.leaves)
    if filled is None:
        return None
    cursor, state = filled
    return Place(
        cursor,
        solver,
        None if facts["watch"] is None else StiffnessWatch(*facts["watch"]),
        ChatterMemory(np.asarray(state), *facts["sliding"]),
        facts["stiff_from"],
        facts["num_steps"],
        max(len(checkpoint.log_losses) - 1, 0),
        facts["budget"],
        passage,
    )


def _blank_cursor(path: Path, solver: diffrax.AbstractSolver) -> Cursor:
    """A cursor of this solver with abstract arrays."""
    state = jax.ShapeDtypeStruct((path.field.layout.size + 2,), np.float64)
    control = control_of(solver, path.tolerances, 1, NEVER)
    zero, one, none = np.float64(0), np.float64(1), np.int64(0)
    return eqx.filter_eval_shape(begin, path.field, solver, control, zero, state, one, none)


def _filled(blank: Any, leaves: tuple[np.ndarray, ...]) -> Any:
    """The pytree with these leaves in place of its abstract ones; None where they do not fit."""
    parts, structure = jax.tree.flatten(blank)
    abstract = [isinstance(part, jax.ShapeDtypeStruct) for part in parts]
    shapes = [(part.shape, part.dtype) for part in parts if isinstance(part, jax.ShapeDtypeStruct)]
    if shapes != [(leaf.shape, leaf.dtype) for leaf in leaves]:
        return None
    rest = iter(leaves)
    filled: list[Any] = [
        jnp.asarray(next(rest)) if is_array else part
        for part, is_array in zip(parts, abstract, strict=True)
    ]
    return jax.tree.unflatten(structure, filled)
