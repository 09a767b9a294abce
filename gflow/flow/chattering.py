"""Does a run chatter? Where the flow slides along kinks, a solver crosses them to and fro, or stays
on one side with ever shorter steps, because it rejects those that cross.

The run is examined every `_STEPS` steps. It chatters if all three of these hold each time, for at
least `_PATIENCE` steps:

1. the point hardly moves: u and log |params| change by less, a step, than a hundredth of what the
   tolerance lets a smooth flow move;
2. the steps are shorter than a hundredth of the step that the smooth piece of the field around the
   present point would allow, by its own derivatives and its stiffness;
3. the slope of the flow jumps between consecutive points, or within the step that this smooth piece
   would allow (`gflow.flow.jumps`).

A smooth flow never satisfies the third condition; a flow that crosses a kink now and then does not
satisfy the first.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gflow._layout import Layout
from gflow._programs import compiled
from gflow.flow.field import Field, State, vector_field
from gflow.flow.jumps import Jumps, examples_at, jumps, smooth_step
from gflow.kkt.switches import settled_angles, switched_margins
from gflow.problem import Problem

# A switch chatters if it changes sign `_TURNS` times over `POINTS` points, or if it stays within
# `_CLOSE` of its kink, relative to its scale.
POINTS, _TURNS, _CLOSE = 33, 8, 1e-3
# Steps between two examinations, and for how many steps in a row these must have found the run
# sliding.
_STEPS, _PATIENCE = 256, 2048
# The hundredth of the conditions 1 and 2.
_FEW = 1e-2
# The steps of the solvers grow like the tolerance to the power of one over this.
_ORDER = 5
# At least so many of the steps between `POINTS` points have to cross a jump.
_CROSSINGS = 2


class ChatterMemory(NamedTuple):
    """The state of a `ChatterWatch` between two segments.

    Attributes:
        state, clock: at the last examination.
        steps: steps since then.
        sliding_steps: for how many steps the examinations have found the run sliding.
    """

    state: np.ndarray
    clock: float = 0.0
    steps: int = 0
    sliding_steps: int = 0


class ChatterWatch:
    """Finds out, between segments, whether the run chatters.

    Args:
        field: the flow's.
        tolerance: of the run.
        start: where it starts.
    """

    def __init__(self, field: Field, tolerance: float, start: State):
        self.field = field
        self._accuracy = np.float64(tolerance ** (1 / _ORDER))
        self._state, self._clock = np.asarray(start), 0.0
        self._steps = self._sliding_steps = 0

    def memory(self) -> ChatterMemory:
        """Its state, for a checkpoint."""
        return ChatterMemory(self._state, self._clock, self._steps, self._sliding_steps)

    @classmethod
    def recalled(cls, field: Field, tolerance: float, memory: ChatterMemory) -> "ChatterWatch":
        """The watch with the state of a checkpoint."""
        watch = cls(field, tolerance, memory.state)
        watch._clock, watch._steps, watch._sliding_steps = memory[1:]
        return watch

    def chatters(
        self, cursor: Any, num_steps: int, explicit: bool, points: Callable[[], np.ndarray]
    ) -> bool:
        """Whether the run has been sliding for `_PATIENCE` steps, so that it has to be stopped.

        Args:
            cursor: where the run stands.
            num_steps: steps tried since the last call.
            explicit: whether the solver is an explicit one, whose steps stiffness bounds.
            points: gives the next `POINTS` states, one step apart.
        """
        self._steps += num_steps
        if self._steps < _STEPS:
            return False
        slides = self._hardly_moves(cursor, explicit) and self._jumps(points, explicit)
        self._sliding_steps = self._sliding_steps + self._steps if slides else 0
        self._state, self._clock = np.asarray(cursor.state), float(cursor.clock)
        self._steps = 0
        return self._sliding_steps >= _PATIENCE

    @property
    def found_sliding(self) -> bool:
        """Whether the three conditions held at the last examination."""
        return self._sliding_steps > 0

    def _hardly_moves(self, cursor: Any, explicit: bool) -> bool:
        """Conditions 1 and 2, on average over the steps since the last examination."""
        moved = np.abs(np.asarray(cursor.state) - self._state)[:-1].max() / self._steps
        if not moved < _FEW * self._accuracy:
            return False
        step = (float(cursor.clock) - self._clock) / self._steps
        return bool(step < _FEW * smooth_step(self.field, cursor.state, self._accuracy, explicit))

    def _jumps(self, points: Callable[[], np.ndarray], explicit: bool) -> bool:
        """Condition 3."""
        return bool(found_jumps(self.field, points(), self._accuracy, explicit).found.any())


def found_jumps(field: Field, states: np.ndarray, accuracy: Any, explicit: bool) -> Jumps:
    """The jumps of the slope along which a run slides: those between consecutive states, if there
    are several; else those ahead of the last state, within the step that the smooth piece of the
    field there would allow.
    """
    last = jnp.asarray(states[-1])
    # Always `POINTS` states, so that one program serves however many steps were rejected.
    states = np.concatenate([states, np.repeat(states[-1:], POINTS, axis=0)])[:POINTS]
    reach = smooth_step(field, last, accuracy, explicit)
    shares = np.append(np.geomspace(1e-6, 1.0, POINTS - 2), 1.0)[:, None]
    crossed = jumps(field, jnp.asarray(states[:-1]), jnp.asarray(states[1:]))
    if int(crossed.found.sum()) >= _CROSSINGS:
        return crossed
    ahead = last + reach * shares * vector_field(jnp.zeros(()), last, field)
    return jumps(field, jnp.broadcast_to(last, ahead.shape), ahead.at[:, -1].set(last[-1]))


def num_at_jumps(field: Field, states: np.ndarray, tolerance: float, explicit: bool) -> int:
    """How many examples have a margin whose gradient jumps where a run slides; see `found_jumps`.

    Where kinks have names, `num_chattering` counts more precisely.
    """
    accuracy = np.float64(tolerance ** (1 / _ORDER))
    return int(examples_at(field, found_jumps(field, states, accuracy, explicit)).sum())


def num_chattering(problem: Problem, layout: Layout, vectors: np.ndarray) -> int:
    """How many examples have a ReLU or a sign that changes sides to and fro, or stays at its kink.

    Args:
        vectors: successive points. Shape (p, P).
    """
    places = np.asarray(_places(problem, layout, jnp.asarray(vectors)))
    turns = np.sum(places[1:] * places[:-1] < 0, axis=0)
    clings = np.all((np.abs(places) < _CLOSE) & (places != 0), axis=0)
    return int(np.any((turns >= _TURNS) | clings, axis=1).sum())


@compiled
def _places(problem: Problem, layout: Layout, vectors: Array) -> Float[Array, "p n s"]:
    """`v / w` of every switch at every point; 0 where w is."""

    def at(vector: Array) -> Array:
        params = layout.unflatten(vector)
        angles = settled_angles(problem, params, 0.0)
        found = switched_margins(problem, params, params, angles, 0.0)[1]
        return found.values / jnp.where(found.scales > 0, found.scales, 1.0)

    return lax.map(at, vectors)
