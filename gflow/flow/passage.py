"""How the flow of a network of degree 1 is followed through parameters that are all 0.

The coordinates `(u, log rho)` do not exist there: u jumps to -u, and log rho goes to minus
infinity. The parameters themselves pass 0 at a finite time and with a speed that is not small,
since for degree 1

    d params / dt = (sum_i -l'(q_i)) sum_i p_i grad q_i(u)

does not vanish with rho. So a flow that heads for 0 is followed in `z = params / rho_0`, on the
clock `d s = (sum_i -l'(q_i))_0 dt / rho_0`, until |params| exceeds rho_0 again; the index 0 denotes
the point where this begins. Every step starts and ends in the coordinates `(u, log rho)`, so that
record, targets and physical time are as elsewhere.

A flow that passes 0 at some distance can be followed on the sphere, where u only turns fast. For
degrees between 1 and 2 the gradient vanishes at 0: the flow arrives there at a finite time and
rests.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import diffrax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gflow._programs import compiled
from gflow.flow.field import Field, State, unit_direction
from gflow.record import Row
from gflow.stiff.traits import FlatSolver

# A flow heads for 0 where it moves against the direction to within this angle, and all logits are
# so small that the weights p hardly change on the way.
_ANGLE, _LOGIT = 1e-2, 1.0
# The first step, relative to the way to 0.
_FIRST = 1e-2
# A flow that has not passed 0 after so many segments counts as ending there.
_MOST_SEGMENTS = 24
# Lengths below this, in units of rho_0, count as 0: their squares underflow.
_NOTHING = 1e-250


class PlainRungeKutta(FlatSolver):
    """Tsit5 in the parameters themselves, for degree 1.

    The error of a step is `|d params| / rho_0`, in the place of that of the direction.

    Attributes:
        log_length: log rho_0.
        log_weight: `log sum_i -l'(q_i)` at the same point.
    """

    log_length: Any
    log_weight: Any

    interpolation_cls: ClassVar[Callable] = diffrax.LocalLinearInterpolation

    def order(self, terms: Any) -> int:
        return diffrax.Tsit5().order(terms)

    def error_order(self, terms: Any) -> Any:
        return diffrax.Tsit5().error_order(terms)

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> tuple[Array, Array, dict[str, Array], Any, diffrax.RESULTS]:
        del terms, solver_state
        field, tsit5 = args, diffrax.Tsit5()
        plain = diffrax.ODETerm(lambda _, z, field: self._velocity(field, self._state(z, y0[-1])))
        start = jnp.exp(y0[-2] - self.log_length) * unit_direction(y0)
        memory = tsit5.init(plain, t0, t1, start, field)
        end, error, _, _, result = tsit5.step(plain, t0, t1, start, field, memory, made_jump)
        # A step that ends exactly at 0, where there is no direction, is rejected: one of another
        # length ends beside it.
        missed = jnp.sqrt(end @ end) > _NOTHING
        time = jnp.logaddexp(y0[-1], jnp.log(t1 - t0) + self.log_length - self.log_weight)
        y1 = self._state(jnp.where(missed, end, start), time)
        errors = jnp.concatenate([jnp.where(missed, error, jnp.inf), jnp.zeros(2)])
        return y1, errors, {"y0": y0, "y1": y1}, None, result

    def _velocity(self, field: Field, state: State) -> Array:
        """`dz/ds`."""
        ascent = field.ascent(state)
        return jnp.exp(ascent.log_weight - self.log_weight) * field.layout.flatten(ascent.vector)

    def _state(self, z: Array, log_time: Any) -> Array:
        length = jnp.sqrt(z @ z)
        # A stage may fall on 0 exactly: any direction will do there.
        safe = jnp.maximum(length, _NOTHING)
        tail = jnp.stack([self.log_length + jnp.log(safe), log_time])
        return jnp.concatenate([jnp.where(length > 0, z / safe, jnp.ones_like(z)), tail])


class Heading(NamedTuple):
    """Where the flow heads at a point.

    Attributes:
        inwards: `-<u, v> / |v|`, v the ascent direction: 1 straight towards 0.
        across: the part of v across u, relative to |v|.
        logit: the largest |kappa q_i|.
        speed: |v|.
        log_weight: `log sum_i -l'(q_i)`.
    """

    inwards: Array
    across: Array
    logit: Array
    speed: Array
    log_weight: Array


@compiled
def heading(field: Field, state: State) -> Heading:
    """Where the flow heads at this point."""
    ascent, direction = field.ascent(state), unit_direction(state)
    vector = field.layout.flatten(ascent.vector)
    speed = jnp.sqrt(vector @ vector)
    safe, along = jnp.maximum(speed, 1e-300), direction @ vector
    across = vector - along * direction
    logit = jnp.exp(field.log_kappa(state)) * jnp.max(jnp.abs(ascent.margins))
    sizes = -along / safe, jnp.sqrt(across @ across) / safe
    return Heading(*sizes, logit, speed, ascent.log_weight)


class PassageMemory(NamedTuple):
    """The state of a `Passage` between two segments, in plain values.

    Attributes:
        solver: log rho_0 and the logarithm of the weights there; None away from 0.
        step, spans, possible, log_norm, num_segments: see `Passage`; `log_norm` None at first.
    """

    solver: Any = None
    step: float = 0.0
    spans: Any = ()
    possible: bool = True
    log_norm: float | None = None
    num_segments: int = 0


class Passage:
    """Finds out, after every segment, whether the flow passes 0.

    Attributes:
        solver: the solver to use while it does; None elsewhere.
        step: the first step of the solver that is used next.
        spans: for each passage, the counts of accepted steps at its start and at its end.
    """

    def __init__(self, field: Field):
        self.field = field
        self.solver: PlainRungeKutta | None = None
        self.step = np.float64(0)
        self.spans: list[list[int]] = []
        self._possible = field.problem.degree == 1
        self._log_norm = np.inf
        self._num_segments = 0

    def memory(self) -> PassageMemory:
        """Its state, for a checkpoint."""
        solver = self.solver
        known = None if solver is None else [float(solver.log_length), float(solver.log_weight)]
        log_norm = None if np.isposinf(self._log_norm) else float(self._log_norm)
        spans = [list(span) for span in self.spans]
        possible = bool(self._possible)
        return PassageMemory(known, float(self.step), spans, possible, log_norm, self._num_segments)

    @classmethod
    def recalled(cls, field: Field, memory: PassageMemory) -> "Passage":
        """The passage with the state of a checkpoint."""
        passage = cls(field)
        if memory.solver is not None:
            passage.solver = PlainRungeKutta(*(jnp.asarray(value) for value in memory.solver))
        passage.step = np.float64(memory.step)
        passage.spans = [list(span) for span in memory.spans]
        passage._possible = memory.possible and passage._possible
        passage._log_norm = np.inf if memory.log_norm is None else memory.log_norm
        passage._num_segments = memory.num_segments
        return passage

    def changes(self, row: Row, *, stuck: bool) -> bool:
        """Whether another solver has to go on from the end of a segment.

        Args:
            row: the last point.
            stuck: whether the segment ended because steps became too short or a target was met.
        """
        nearer, self._log_norm = row.state[-2] < self._log_norm, row.state[-2]
        if not self._possible or not np.all(np.isfinite(row.state)):
            return False
        return self._left(row, stuck) if self.solver else bool(nearer) and self._entered(row)

    def _entered(self, row: Row) -> bool:
        """Whether a passage begins here, which is then followed by `PlainRungeKutta`."""
        if row.measures.margin >= 0:  # the norm grows
            return False
        towards = heading(self.field, jnp.asarray(row.state))
        if not (towards.inwards > 0 and towards.across < _ANGLE and towards.logit < _LOGIT):
            return False
        self.solver = PlainRungeKutta(jnp.asarray(row.state[-2]), towards.log_weight)
        self.step = np.float64(_FIRST / towards.speed)
        self.spans.append([int(row.num_accepted)] * 2)
        self._num_segments = 0
        return True

    def _left(self, row: Row, stuck: bool) -> bool:
        """Whether the passage ends here, so that the run goes on with its own solver."""
        self._num_segments += 1
        self.spans[-1][1] = int(row.num_accepted)
        beyond = row.state[-2] > float(self.solver.log_length) if self.solver else False
        if not (beyond or stuck or self._num_segments >= _MOST_SEGMENTS):
            return False
        # If the flow is not beyond 0 it ends there: it is followed on the sphere until its norm has
        # decayed.
        self._possible = bool(beyond)
        self.step = np.float64(_FIRST / heading(self.field, jnp.asarray(row.state)).speed)
        self.solver = None
        return True
