"""Whether functions of a user's own are pure: the same each time that they are traced.

A compiled program keeps the random numbers, and the state of a closure, with which it was traced,
and every program has been traced by itself: each would see another network.
"""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gflow._fingerprint import without_addresses
from gflow._typing import Params
from gflow.problem import Problem

# What has been traced twice. It keeps functions of the user alive, no more than so many.
_KNOWN: set[Hashable] = set()
_MOST_KNOWN = 256


def check_pure(problem: Problem, params: Params) -> None:
    """Refuses a network or a perturbation that gives another function when it is traced again.

    Those that were traced before are known, as their programs are.

    Raises:
        ValueError: it does.
    """
    key = _key(problem, params)
    if key in _KNOWN:
        return
    x = jax.ShapeDtypeStruct(problem.dataset.x.shape[1:], jnp.float64)
    start = None if problem.starts is None else x

    def perturbed(params: Params, x: Array, start: Array | None) -> Array:
        def margin(point: Array) -> Array:
            return jnp.sum(problem.network.apply(params, point))

        return problem.perturbation(margin, x, start)

    _check("network.apply(params, x)", problem.network.apply, params, x)
    _check("perturbation(margin, x, start)", perturbed, params, x, start)
    if len(_KNOWN) >= _MOST_KNOWN:
        _KNOWN.clear()
    _KNOWN.add(key)


def _key(problem: Problem, params: Params) -> Hashable:
    """All that a trace depends on: structures, which hold functions by identity, and shapes."""
    parts = problem.network, problem.perturbation, params, problem.starts
    leaves, structure = jax.tree.flatten(parts)
    return structure, tuple(np.shape(leaf) for leaf in leaves), problem.dataset.x.shape[1:]


def _check(name: str, function: Callable[..., Any], *arguments: Any) -> None:
    if _traced(function, *arguments) != _traced(function, *arguments):
        raise ValueError(
            f"`{name}` is another function each time that it is traced: it draws random numbers, "
            "or changes what it holds. JAX keeps those of the first time, in each program others. "
            "Draw them once, outside, and let the function hold them."
        )


def _traced(function: Callable[..., Any], *arguments: Any) -> tuple[str, list[bytes]]:
    """The program that JAX makes of it, as text, and the constants in it."""
    # A function of its own each time, of which JAX knows no program yet.
    closed = jax.make_jaxpr(lambda *given: function(*given))(*arguments)
    constants = [np.asarray(each).tobytes() for each in closed.consts]
    return without_addresses(str(closed.jaxpr)), constants
