"""The few directions in which a field is stiffest, followed along a solution by subspace iteration.

Where only a few eigenvalues of the Jacobian are large, as those of the flow that grow with kappa,
a stabilised solver can be implicit in their directions alone. Each iteration replaces the
directions by their images under the Jacobian, made orthonormal. An image is computed as a
difference of the field, with one evaluation, and every step computes only a few of them: where the
problem is stiff the solution moves slowly, so that directions from some steps ago are still good.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Differences of the field are taken over this part of the norm of the state, or of 1.
_DIFFERENCE = 1e-7
# The number of images that are computed in a step.
NUM_RENEWED = 2


class Subspace(NamedTuple):
    """k orthonormal directions V and their images under a Jacobian J, of some steps ago.

    Attributes:
        directions: V. Shape (k, P).
        images: J V. Shape (k, P).
        next_directions: those that take their place. Shape (k, P).
        next_images: their images, of which the first `count` are known. Shape (k, P).
        count: how many of `next_images` are known.
    """

    directions: Float[Array, "k P"]
    images: Float[Array, "k P"]
    next_directions: Float[Array, "k P"]
    next_images: Float[Array, "k P"]
    count: Any


def random_subspace(count: int, like: Float[Array, " P"]) -> Subspace:
    """The first subspace: random directions, with images of 0, so that J counts as 0."""
    draws = jax.random.normal(jax.random.key(0), (count, like.size), like.dtype)
    directions, nothing = _orthonormal(draws), jnp.zeros_like(draws)
    return Subspace(directions, nothing, directions, nothing, jnp.zeros((), int))


def renewed(
    subspace: Subspace, field: Callable[[Array], Array], point: Array, slope: Array
) -> Subspace:
    """The subspace with `NUM_RENEWED` more images, computed at a point where the field is `slope`.

    Once all images of the next directions are known, both take the place of the present ones, and
    the images, made orthonormal, are the next directions.
    """
    if not len(subspace.directions):
        return subspace
    for _ in range(NUM_RENEWED):
        subspace = lax.cond(
            subspace.count < len(subspace.directions), lambda s: s, _turned, subspace
        )
        length = _DIFFERENCE * jnp.maximum(jnp.sqrt(point @ point), 1.0)
        moved = field(point + length * subspace.next_directions[subspace.count])
        images = subspace.next_images.at[subspace.count].set((moved - slope) / length)
        subspace = subspace._replace(next_images=images, count=subspace.count + 1)
    return subspace


def _turned(subspace: Subspace) -> Subspace:
    """The next directions have become the present ones."""
    directions, images = subspace.next_directions, subspace.next_images
    return Subspace(
        directions, images, _orthonormal(images), images, jnp.zeros_like(subspace.count)
    )


def _orthonormal(rows: Array) -> Array:
    return jnp.linalg.qr(rows.T)[0].T


class ImplicitPart(NamedTuple):
    """`B = (J V)^T V`, in coordinates along V: `B d = c^T (J V)` with `c = V d`.

    Attributes:
        directions: V. Shape (k, P).
        images: J V. Shape (k, P).
        within: `V B V^T`. Shape (k, k).
        inverse: `(I - scale V B V^T)^-1`. Shape (k, k).
        scale: the factor of B.
    """

    directions: Float[Array, "k P"]
    images: Float[Array, "k P"]
    within: Float[Array, "k k"]
    inverse: Float[Array, "k k"]
    scale: Any

    def solve(self, right: Array, along: Array) -> tuple[Array, Array]:
        """d of `(I - scale B) d = right + along^T (J V)`, and its coordinates V d.

        Shapes: right (P,), along (k,).
        """
        coordinates = self.inverse @ (self.directions @ right + self.within @ along)
        return right + (along + self.scale * coordinates) @ self.images, coordinates


def implicit_part(subspace: Subspace, scale: Any) -> ImplicitPart:
    """The implicit part of a step whose implicit terms are `scale B`."""
    within = subspace.directions @ subspace.images.T
    inverse = jnp.linalg.inv(jnp.eye(len(within)) - scale * within)
    return ImplicitPart(subspace.directions, subspace.images, within, inverse, scale)
