"""Does a run chatter? A flow that slides along kinks makes a solver cross them to and fro, or cling
to one side of them with ever shorter steps, longer ones being thrown back.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gflow._layout import Layout
from gflow.problem import Problem
from gflow.switches import passes, switched_margins

# What turns so many times over so many steps does not settle; what stays so close to its kink,
# relative to its scale, clings to it.
POINTS, _TURNS, _CLOSE = 33, 8, 1e-3


def num_chattering(problem: Problem, layout: Layout, vectors: np.ndarray) -> int:
    """How many examples have a ReLU or a sign that turns to and fro at its kink, or clings to it.

    Args:
        vectors: successive points. Shape (p, P).
    """
    places = np.asarray(_places(problem, layout, jnp.asarray(vectors)))
    turns = np.sum(places[1:] * places[:-1] < 0, axis=0)
    clings = np.all((np.abs(places) < _CLOSE) & (places != 0), axis=0)
    return int(np.any((turns >= _TURNS) | clings, axis=1).sum())


@eqx.filter_jit
def _places(problem: Problem, layout: Layout, vectors: Array) -> Float[Array, "p n s"]:
    """`v / w` of every switch at every point; 0 where w is."""
    shape = len(problem.dataset.x), passes(problem).size

    def at(vector: Array) -> Array:
        params = layout.unflatten(vector)

        def decided(angles: Array) -> Any:
            return switched_margins(problem, params, params, angles, 0.0)[1]

        def turned(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            return 0.5 * jnp.pi * jnp.sign(decided(carry[0]).values), carry[0]

        def changes(carry: tuple[Array, Array]) -> Array:
            return jnp.any(carry[0] != carry[1])

        # From the first pass to the last, each is decided by those before it.
        start = turned((jnp.zeros(shape), jnp.ones(shape)))
        found = decided(lax.while_loop(changes, turned, start)[0])
        return found.values / jnp.where(found.scales > 0, found.scales, 1.0)

    return lax.map(at, vectors)
