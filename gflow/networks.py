"""Homogeneous networks as pure functions of their parameters.

A network has `apply(params, x)`, one example in, one output (or k) out; `init(key, scale=...)`; and
`degree`, the L with `f(x; c params) = c^L f(x; params)` for c > 0. Parameters are plain pytrees of
arrays: for dense networks a tuple of weights, each (fan_out, fan_in), without biases.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._numerics import norm, smoothed_relu, smoothing_leaf
from gflow._typing import Params


class AbstractNetwork(eqx.Module):
    """A function `f(x; params)` that is positively homogeneous in its parameters.

    Attributes:
        degree: the homogeneity degree L.
        num_inputs: d, or None where the network does not fix it.
        num_outputs: 1 (the output is a scalar) or k (a vector of k), or None where unknown.
    """

    degree: eqx.AbstractVar[float]
    num_inputs: eqx.AbstractVar[int | None]
    num_outputs: eqx.AbstractVar[int | None]

    @abc.abstractmethod
    def apply(self, params: Params, x: Float[Array, " d"]) -> Float[Array, ""] | Float[Array, " k"]:
        """`f(x; params)`. Shapes: x (d,) -> () or (k,)."""

    @abc.abstractmethod
    def _initial(self, key: Array, scale: Array) -> Params:
        """Initial parameters, as traced code."""

    def init(self, key: Array | int, *, scale: float = 1.0) -> Params:
        """Random initial parameters.

        Weights are normal with standard deviation `scale / sqrt(fan_in)`.

        Args:
            key: a `jax.random.key`, or an integer seed.
            scale: factor on the standard deviation, > 0.
        """
        if not np.all(np.asarray(scale) > 0):
            raise ValueError(f"`init(scale={scale!r})` must be positive: zero is a stationary point.")
        return _compiled_init(self, key, np.asarray(scale, np.float64))

    def check_fits(self, num_inputs: int, num_outputs: int) -> None:
        """Raises ValueError unless the network takes (num_inputs,) and gives `num_outputs`."""
        if self.num_inputs not in (None, num_inputs):
            raise ValueError(
                f"The network takes {self.num_inputs} inputs but the data have {num_inputs}. "
                "The first width must equal `dataset.x.shape[1]`."
            )
        if self.num_outputs not in (None, num_outputs):
            labels = "-1 and +1" if num_outputs == 1 else f"classes 0 .. {num_outputs - 1}"
            raise ValueError(
                f"The network has {self.num_outputs} output(s) but labels are {labels}, which need "
                f"{num_outputs}. Change the last width, or the labels (two classes are -1 and +1)."
            )


@eqx.filter_jit
def _compiled_init(network: AbstractNetwork, key: Array | int, scale: Array) -> Params:
    return network._initial(_as_key(key), jnp.asarray(scale))


def _as_key(key: Any) -> Array:
    is_key = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    # Old-style keys are raw (2,) arrays of uint32.
    is_raw_key = isinstance(key, jax.Array) and key.ndim == 1
    return key if is_key or is_raw_key else jax.random.key(key)


def _normal(key: Array, shape: tuple[int, ...], fan_in: int, scale: Array) -> Array:
    return scale * jax.random.normal(key, shape, scale.dtype) / np.sqrt(fan_in)


def _output(values: Array) -> Array:
    """A single output is a scalar."""
    return values[0] if values.shape == (1,) else values


class MLP(AbstractNetwork):
    """A multi-layer perceptron; see `gflow.networks.mlp`."""

    widths: tuple[int, ...] = eqx.field(static=True)
    power: float = eqx.field(static=True)
    bias: bool = eqx.field(static=True)
    smoothing: Any

    @property
    def degree(self) -> float:
        # Each layer of weights adds 1, each activation multiplies by its power.
        degree = 1
        for _ in self.widths[2:]:
            degree = degree * self.power + 1
        return degree

    @property
    def num_inputs(self) -> int:
        return self.widths[0]

    @property
    def num_outputs(self) -> int:
        return self.widths[-1]

    def _initial(self, key: Array, scale: Array) -> Params:
        fan_ins = (self.widths[0] + self.bias, *self.widths[1:-1])
        keys = jax.random.split(key, len(fan_ins))
        shapes = zip(self.widths[1:], fan_ins, strict=True)
        return tuple(
            _normal(k, shape, shape[1], scale) for k, shape in zip(keys, shapes, strict=True)
        )

    def apply(self, params: Params, x: Array) -> Array:
        hidden = jnp.append(x, jnp.ones((), x.dtype)) if self.bias else x
        for weight in params[:-1]:
            hidden = self._layer(weight, hidden)
        return _output(params[-1] @ hidden)

    def _layer(self, weight: Array, hidden: Array) -> Array:
        value = weight @ hidden
        if self.smoothing is None:
            return rectified(value, None, self.power)
        row_norms = jax.vmap(norm)(weight)
        return rectified(value, self.smoothing * row_norms * norm(hidden), self.power)


def rectified(value: Array, width: Array | None, power: float) -> Array:
    """`max(value, 0)^power`, its kink rounded to `width` where one is given."""
    base = jax.nn.relu(value) if width is None else smoothed_relu(value, width)
    if power == 1:
        return base
    if float(power).is_integer():
        return base ** int(power)
    positive = base > 0
    return jnp.where(positive, jnp.where(positive, base, 1.0) ** power, 0.0)


class DeepLinear(AbstractNetwork):
    """A product of matrices; see `gflow.networks.linear` and `deep_linear`."""

    widths: tuple[int, ...] = eqx.field(static=True)

    @property
    def degree(self) -> float:
        return len(self.widths) - 1

    @property
    def num_inputs(self) -> int:
        return self.widths[0]

    @property
    def num_outputs(self) -> int:
        return self.widths[-1]

    def _initial(self, key: Array, scale: Array) -> Params:
        keys = jax.random.split(key, len(self.widths) - 1)
        pairs = zip(self.widths[1:], self.widths[:-1], strict=True)
        return tuple(_normal(k, pair, pair[1], scale) for k, pair in zip(keys, pairs, strict=True))

    def apply(self, params: Params, x: Array) -> Array:
        hidden = x
        for weight in params:
            hidden = weight @ hidden
        return _output(hidden)

    def predictor(self, params: Params) -> Array:
        """The product of the layers, `W_L ... W_1`: (d,), or (k, d) for k outputs."""
        product = params[0]
        for weight in params[1:]:
            product = weight @ product
        return product[0] if product.shape[0] == 1 else product


class Diagonal(AbstractNetwork):
    """A diagonal linear network; see `gflow.networks.diagonal`."""

    num_inputs: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    num_outputs: int = eqx.field(static=True, default=1)

    @property
    def degree(self) -> float:
        return self.depth

    def _initial(self, key: Array, scale: Array) -> Params:
        weight = jnp.broadcast_to(scale, (self.num_inputs,))
        return (weight, weight)

    def apply(self, params: Params, x: Array) -> Array:
        return self.predictor(params) @ x

    def predictor(self, params: Params) -> Array:
        """`u^L - v^L`, the linear predictor. Shapes: (d,)."""
        positive, negative = params
        return positive**self.depth - negative**self.depth


class Custom(AbstractNetwork):
    """A user's own function; see `gflow.networks.custom`."""

    function: Callable = eqx.field(static=True)
    degree: float = eqx.field(static=True)
    initializer: Callable | None = eqx.field(static=True)
    num_inputs: int | None = eqx.field(static=True, default=None)
    num_outputs: int | None = eqx.field(static=True, default=None)

    def _initial(self, key: Array, scale: Array) -> Params:
        if self.initializer is None:
            raise TypeError(
                "`custom(apply, degree=...)` was given no `init`: pass your own parameters, or "
                "`custom(apply, degree=..., init=function_of_key)`."
            )
        return jax.tree.map(lambda leaf: scale * leaf, self.initializer(key))

    def apply(self, params: Params, x: Array) -> Array:
        return self.function(params, x)


def linear(d: int, *, num_outputs: int = 1) -> DeepLinear:
    """`f(x; w) = <w, x>`, degree 1. Parameters: a tuple with one (num_outputs, d) array."""
    return DeepLinear(_widths((d, num_outputs), "linear"))


def deep_linear(widths: Sequence[int]) -> DeepLinear:
    """`f(x; W_1, .., W_L) = W_L ... W_1 x`, degree L = len(widths) - 1.

    Args:
        widths: (d, h_1, .., 1), or k in place of the 1 for k classes.
    """
    return DeepLinear(_widths(widths, "deep_linear"))


def mlp(
    widths: Sequence[int], *, power: float = 1, smoothing: Any = 0.0, bias: bool = False
) -> MLP:
    """Multi-layer perceptron with the activation ReLU^k, k = `power` >= 1.

    `f(x) = W_L s(... s(W_1 x))`, `s(a) = max(a, 0)^k`. Degree `1 + k + ... + k^(L-1)`.

    Args:
        widths: (d, h_1, .., 1), or k in place of the 1 for k classes.
        power: the power k of the ReLU, a real number >= 1.
        smoothing: mu >= 0. Positive, `max(w.x, 0)` becomes
            `(w.x + sqrt((w.x)^2 + (mu |w| |x|)^2)) / 2`, which is smooth and keeps homogeneity;
            the network moves by O(mu).
        bias: append a constant input 1 to the first layer only, whose weights are then
            (h_1, d + 1). A bias in a later layer would break homogeneity. The attack leaves the
            constant alone.
    """
    widths = _widths(widths, "mlp")
    if not isinstance(bias, bool):
        raise ValueError(
            f"`mlp(bias={bias!r})`: only True and False. A bias in the first layer keeps "
            "homogeneity; a bias in any later layer breaks it, and the margin theory with it."
        )
    return MLP(widths, _power(power, "mlp"), bias, smoothing_leaf(smoothing))


def diagonal(d: int, depth: int) -> Diagonal:
    """`f(x; u, v) = <u^L - v^L, x>`, elementwise powers; degree L = `depth`.

    Parameters: the pair (u, v), each (d,). `init` gives `u = v = scale`, for which f = 0: the
    unbiased start of Woodworth et al. 2020.
    """
    if not isinstance(depth, int) or depth < 1:
        raise ValueError(f"`diagonal(depth={depth!r})` must be an integer of at least 1.")
    (d,) = _widths((d,), "diagonal", shortest=1)
    return Diagonal(d, depth)


def custom(
    apply: Callable,
    *,
    degree: float,
    init: Callable | None = None,
    num_inputs: int | None = None,
    num_outputs: int | None = None,
) -> Custom:
    """Any function `apply(params, x)` as a network.

    The claimed degree is checked against the function before anything is integrated.

    Args:
        apply: (params, x) -> output; x is (d,), the output () or (k,); pure and differentiable.
        degree: L with `apply(c params, x) = c^L apply(params, x)` for c > 0.
        init: (key) -> params, if the network should initialise itself.
        num_inputs, num_outputs: checked against the data where given.
    """
    if not callable(apply):
        raise TypeError(f"`custom(apply, ...)`: `apply` is {apply!r}, expected a function.")
    if not degree > 0:
        raise ValueError(f"`custom(degree={degree!r})`: the homogeneity degree must be positive.")
    return Custom(apply, degree, init, num_inputs, num_outputs)


def _widths(widths: Sequence[int], name: str, shortest: int = 2) -> tuple[int, ...]:
    try:
        given = tuple(widths)
    except TypeError:
        raise TypeError(
            f"`{name}({widths!r})`: widths are a sequence such as (d, hidden, 1)."
        ) from None
    whole = all(isinstance(w, (int, np.integer)) and not isinstance(w, bool) for w in given)
    if len(given) < shortest or not whole or min(given) < 1:
        raise ValueError(
            f"`{name}({widths!r})`: widths must be positive integers, inputs first, outputs last."
        )
    return tuple(int(w) for w in given)


def _power(power: float, name: str) -> float:
    if not (isinstance(power, (int, float)) and 1 <= power < np.inf):
        raise ValueError(
            f"`{name}(power={power!r})`: the power of ReLU^k must be a real number of at least 1."
        )
    return int(power) if float(power).is_integer() else float(power)
