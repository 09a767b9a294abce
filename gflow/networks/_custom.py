"""A user's own function as a network."""

import math
import numbers
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from gflow._checks import whole_or_real
from gflow._description import storable
from gflow._signatures import named
from gflow._typing import Params
from gflow.networks._base import AbstractNetwork, is_integer


@storable("Custom")
class Custom(AbstractNetwork):
    """A user's own function; see `gflow.networks.custom`."""

    function: Callable = eqx.field(static=True)
    degree: float = eqx.field(static=True)
    initializer: Callable | None = eqx.field(static=True)
    num_inputs: int | None = eqx.field(static=True, default=None)
    num_outputs: int | None = eqx.field(static=True, default=None)

    def init(self, key: Any, *, scale: Any = 1.0) -> Params:
        """What the function `init` of `custom` makes of the key, times `scale`."""
        if self.initializer is None:
            raise TypeError(
                "`custom(apply, degree=...)` was given no `init`: pass your own parameters, or "
                "`custom(apply, degree=..., init=function_of_key)`."
            )
        return super().init(key, scale=scale)

    def _initial(self, key: Array, scale: Array) -> Params:
        assert self.initializer is not None
        return jax.tree.map(lambda leaf: scale * _numbers(leaf, scale), self.initializer(key))

    def apply(self, params: Params, x: Array) -> Array:
        return self.function(params, x)


def _numbers(leaf: Any, like: Array) -> Array:
    if not hasattr(leaf, "dtype") and not isinstance(leaf, numbers.Real):
        raise TypeError(
            f"`custom(init=...)` returned {leaf!r} among the parameters; every leaf must be an "
            "array."
        )
    return jnp.asarray(leaf, like.dtype)


@named()
def custom(
    apply: Callable,
    *,
    degree: Any,
    init: Callable | None = None,
    num_inputs: int | None = None,
    num_outputs: int | None = None,
) -> Custom:
    """Any function `apply(params, x)` as a network.

    The claimed degree is checked against the function before anything is integrated. Functions
    are compared by identity: define them once, since a network made of a new `lambda` is another
    network and is compiled again.

    Args:
        apply: (params, x) -> output; x is (d,), the output () or (k,); pure and differentiable.
        degree: L with `apply(c params, x) = c^L apply(params, x)` for c > 0.
        init: (key) -> params, as code that JAX can trace, if the network should initialise itself.
        num_inputs: d, checked against the data where given.
        num_outputs: 1 or k, checked against the data where given.

    Raises:
        TypeError: `apply` or `init` is no function that can be hashed, or `degree` no number.
        ValueError: `degree` is not positive and finite; a count is no integer of at least 1.
    """
    for name, function in (("apply", apply), ("init", init)):
        if function is not None or name == "apply":
            _check_function(function, name)
    for name, count in (("num_inputs", num_inputs), ("num_outputs", num_outputs)):
        if count is not None and not (is_integer(count) and count >= 1):
            raise ValueError(
                f"`custom({name}={count!r})` must be an integer of at least 1, or None."
            )
    return Custom(apply, _degree(degree), init, num_inputs, num_outputs)


def _check_function(function: Any, name: str) -> None:
    if not callable(function):
        raise TypeError(f"`custom(...)`: `{name}` is {function!r}, expected a function.")
    try:
        hash(function)
    except TypeError:
        raise TypeError(
            f"`custom(...)`: `{name}` is {function!r}, which cannot be hashed; arrays that it "
            "holds belong into `params`. Wrap what remains in a plain function."
        ) from None


def _degree(degree: Any) -> float:
    if not isinstance(degree, numbers.Real) or isinstance(degree, bool):
        raise TypeError(f"`custom(degree={degree!r})`: the homogeneity degree is a real number.")
    number = whole_or_real(degree)
    if not 0 < number < math.inf:
        raise ValueError(
            f"`custom(degree={degree!r})`: the homogeneity degree must be positive and finite."
        )
    return int(number) if number.is_integer() else number
