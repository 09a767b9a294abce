"""What stands where parameters belong: told in a sentence, with what to give instead.

These checks look at kinds and shapes alone, so that they hold within `jax.jit` and `jax.vmap` too,
where they cost nothing once a function is compiled.
"""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gflow._typing import Params


def is_array_of_numbers(leaf: Any) -> bool:
    """Whether it is an array of real numbers, traced or not, or a number; truth values are none."""
    if not hasattr(leaf, "dtype"):
        return isinstance(leaf, numbers.Real) and not isinstance(leaf, bool)
    return any(jnp.issubdtype(leaf.dtype, kind) for kind in (jnp.floating, jnp.integer))


def check_params(params: Params, call: str, shapes: list[tuple[int, ...]] | None = None) -> None:
    """Refuses what is no pytree of arrays.

    Args:
        call: what the user calls it, in backticks.
        shapes: of the leaves, where the network fixes them.

    Raises:
        TypeError: `params` holds no arrays, or something else too.
        ValueError: its leaves have other shapes.
    """
    leaves = jax.tree.leaves(params)
    if not leaves:
        raise TypeError(f"{call}: `params` holds no arrays. `network.init(key)` makes them.")
    for leaf in leaves:
        if not is_array_of_numbers(leaf):
            raise TypeError(f"{call}: {_instead_of(leaf)}")
    found = [np.shape(leaf) for leaf in leaves]
    if shapes is not None and found != shapes:
        raise ValueError(
            f"{call}: `params` has leaves of shapes {found}, but the network's are {shapes}. The "
            "parameters usually belong to another network; `network.init(key)` makes fitting ones."
        )


def check_alike(left: Params, right: Params, call: str) -> None:
    """Refuses two that are not parameters of one network.

    Raises:
        TypeError: one of them is no pytree of arrays.
        ValueError: they have other shapes, or another structure.
    """
    check_params(left, call)
    check_params(right, call)
    shapes = [[np.shape(leaf) for leaf in jax.tree.leaves(one)] for one in (left, right)]
    if shapes[0] != shapes[1] or jax.tree.structure(left) != jax.tree.structure(right):
        raise ValueError(
            f"{call}: both must be parameters of one network, and have leaves of shapes "
            f"{shapes[0]} and {shapes[1]}, in the structures {jax.tree.structure(left)} and "
            f"{jax.tree.structure(right)}."
        )


def _instead_of(leaf: Any) -> str:
    """What to give in place of what is no array."""

    def has(*names: str) -> bool:
        return all(hasattr(leaf, name) for name in names)

    if has("direction", "basin"):
        return (
            "`params` holds a `Limit`. Give its direction, `limit.direction`, or parameters along "
            "it, `limit.params(log_kappa=...)`."
        )
    if has("vectors", "params_at_index"):
        return (
            "`params` holds a `Trajectory`. Give one of its points: `trajectory.params`, the last "
            "one, or `trajectory.at(time=...)`."
        )
    return (
        f"`params` holds a {type(leaf).__name__}, expected a pytree of arrays, as "
        "`network.init(key)` makes."
    )
