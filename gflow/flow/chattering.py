"""Does a run chatter? A flow that slides along kinks makes a solver cross them to and fro, or cling
to one side of them with ever shorter steps, longer ones being thrown back.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gflow._layout import Layout
from gflow._programs import compiled
from gflow.problem import Problem
from gflow.switches import settled_angles, switched_margins

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


@compiled
def _places(problem: Problem, layout: Layout, vectors: Array) -> Float[Array, "p n s"]:
    """`v / w` of every switch at every point; 0 where w is."""

    def at(vector: Array) -> Array:
        params = layout.unflatten(vector)
        angles = settled_angles(problem, params, 0.0)
        found = switched_margins(problem, params, params, angles, 0.0)[1]
        return found.values / jnp.where(found.scales > 0, found.scales, 1.0)

    return lax.map(at, vectors)
