"""Kinks, named: margins with every ReLU and every sign held at its own angle.

Where the network has plain ReLUs, or the attack follows signs, the margins have kinks, and the flow
may end on them. At a kink the slope of a ReLU is no function of the parameters but a coefficient
between 0 and 1 of its own (Clarke); a sign lies between -1 and 1 there. Here each is written as an
angle phi in [-pi/2, pi/2]: the sign is `sin phi`, the slope of a ReLU `(1 + sin phi)/2`. With the
number v whose sign it is, and the scale w that v is measured against,

    v cos phi = mu w sin phi

makes it the sign smoothed by mu > 0, exactly as `smoothed` does; for mu -> 0 it says that phi is
+-pi/2 with the sign of v, or v is 0 and phi free. So one set of equations reaches from smooth
problems to kinks.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gflow._programs import compiled
from gflow._typing import Params
from gflow.kkt.settings import DEAD
from gflow.networks import Decided
from gflow.problem import Problem

# Angles that turn by less have settled; no chain of switches that decide each other is so long.
_SETTLED, _MOST_PASSES = 1e-12, 1000


class Passes(NamedTuple):
    """How many switches an example has.

    Attributes:
        num_gradients: gradients that the attack takes.
        num_relus: ReLUs of the network, at each of them and at the perturbed input.
        num_signs: signs that the attack follows, at each gradient.
    """

    num_gradients: int
    num_relus: int
    num_signs: int

    @property
    def size(self) -> int:
        """Switches of an example, in the order: ReLUs under attack, signs, ReLUs after it."""
        return self.num_gradients * (self.num_relus + self.num_signs) + self.num_relus


def passes(problem: Problem) -> Passes:
    """The switches of one example; none where the problem is smooth, or its kinks unnamed."""
    perturbation, num_inputs = problem.perturbation, problem.dataset.x.shape[1]
    num_signs = num_inputs if perturbation.has_signs else 0
    num_relus = problem.network.num_switches
    return Passes(perturbation.num_gradients, num_relus, num_signs)


def has_kinks(problem: Problem) -> bool:
    """Whether the problem has kinks that can be named.

    Not named are those of max pooling, of a user's own function, of the l_1 attack, which changes
    over from one coordinate to another, and of a change of the runner-up among classes.
    """
    return passes(problem).size > 0


def smoothed(problem: Problem, smoothing: Any) -> Problem:
    """The problem with every named kink rounded to the relative width `smoothing` > 0."""
    width = np.asarray(smoothing, np.float64)
    twins = problem.network.smoothed(width), problem.perturbation.smoothed(width)
    return eqx.tree_at(lambda p: (p.network, p.perturbation), problem, twins)


@compiled
def settled_angles(problem: Problem, params: Params, smoothing: Any) -> Float[Array, "n s"]:
    """The angles at which every switch stands where its own value puts it.

    An attack's switches decide what comes after them, so from the first pass to the last, until
    nothing turns any more. At `smoothing` 0, a switch whose value is 0 stands at 0. Shape (n, s).
    """
    shape = len(problem.dataset.x), passes(problem).size
    smoothing = jnp.asarray(smoothing, float)

    def turned(carry: tuple[Array, Array, Any]) -> tuple[Array, Array, Any]:
        angles, _, count = carry
        decided = switched_margins(problem, params, params, angles, smoothing)[1]
        return jnp.arctan2(decided.values, smoothing * decided.scales), angles, count + 1

    def turning(carry: tuple[Array, Array, Any]) -> Array:
        angles, before, count = carry
        return (jnp.max(jnp.abs(angles - before)) > _SETTLED) & (count < _MOST_PASSES)

    start = turned((jnp.zeros(shape), jnp.zeros(shape), 0))
    return lax.while_loop(turning, turned, start)[0]


def switched_margins(
    problem: Problem, params: Params, free: Params, angles: Float[Array, "n s"], smoothing: Any
) -> tuple[Float[Array, "n ..."], Decided]:
    """Margins with every switch at its angle, and what decides the switches.

    Args:
        params: of the attack.
        free: of the network that is attacked; with frozen perturbations, what is differentiated.
        angles: phi. Shape (n, s), s = `passes(problem).size`.
        smoothing: mu >= 0.

    Returns:
        the margins, and v and w of each switch. Shapes: (n,) or (n, k - 1), (n, s).
    """
    x, y = jnp.asarray(problem.dataset.x), jnp.asarray(problem.dataset.y)
    starts = None if problem.starts is None else jnp.asarray(problem.starts)

    def one(x: Array, y: Array, start: Array | None, angles: Array) -> tuple[Array, Decided]:
        return _one(problem, params, free, (x, y, start), angles, smoothing)

    return jax.vmap(one, (0, 0, None if starts is None else 0, 0))(x, y, starts, angles)


def _one(
    problem: Problem, params: Params, free: Params, example: Any, angles: Array, smoothing: Any
) -> tuple[Array, Decided]:
    """`switched_margins` of one example."""
    x, y, start = example
    count, relus, signs = passes(problem)
    under, signed, after = jnp.split(angles, np.cumsum([count * relus, count * signs]))

    def attacked(point: Array, angles: Array) -> tuple[Array, Decided]:
        output, decided = problem.network.switched(params, point, angles, smoothing)
        return problem.attacked(problem.margin_of(output, y)), decided

    under, signed = under.reshape(count, relus), signed.reshape(count, signs)
    if count:
        delta, first, second = problem.perturbation.switched(attacked, x, start, under, signed)
        before = jax.tree.leaves((first, second))
    else:
        delta, before = jnp.zeros_like(x), [under, under, signed, signed]
    output, last = problem.network.switched(free, x + delta, after, smoothing)
    values = jnp.concatenate([jnp.ravel(leaf) for leaf in (before[0], before[2], last.values)])
    scales = jnp.concatenate([jnp.ravel(leaf) for leaf in (before[1], before[3], last.scales)])
    return problem.margin_of(output, y), Decided(values, scales)


def alive(scales: np.ndarray) -> np.ndarray:
    """Switches whose scale w is not next to nothing, as that of a dead neuron is. Shapes (n, s)."""
    return scales > DEAD.scale * scales.max(initial=0.0)


def alone_with(problem: Problem, index: Any) -> Problem:
    """The problem of one example alone, whose index may be traced."""

    def fields(problem: Problem) -> list[Any]:
        found = [problem.dataset.x, problem.dataset.y]
        return found if problem.starts is None else [*found, problem.starts]

    own = [jnp.asarray(field)[index][None] for field in fields(problem)]
    return eqx.tree_at(fields, problem, own)
