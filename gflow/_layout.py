"""Parameters as one flat vector."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._methods import light
from gflow._typing import Params


class Layout(eqx.Module):
    """How the leaves of the parameters follow each other in a flat vector."""

    structure: Any = eqx.field(static=True)
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)

    @classmethod
    def of(cls, params: Params) -> "Layout":
        """The layout of these parameters."""
        leaves, structure = jax.tree.flatten(params)
        return cls(structure, tuple(leaf.shape for leaf in leaves))

    @property
    def size(self) -> int:
        """Number of parameters, P."""
        return sum(math.prod(shape) for shape in self.shapes)

    @light
    def flatten(self, params: Params) -> Float[Array, " P"]:
        """All leaves in one vector."""
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(params)])

    @light
    def flatten_on_host(self, params: Params) -> Float[np.ndarray, " P"]:
        """The same in NumPy: outside of compiled functions JAX compiles each operation."""
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])

    @light
    def unflatten(self, vector: Float[Array, "... P"] | Float[np.ndarray, "... P"]) -> Params:
        """The leaves; leading axes of `vector` lead in every leaf."""
        leaves, start = [], 0
        for shape in self.shapes:
            end = start + math.prod(shape)
            leaves.append(vector[..., start:end].reshape((*vector.shape[:-1], *shape)))
            start = end
        return jax.tree.unflatten(self.structure, leaves)
