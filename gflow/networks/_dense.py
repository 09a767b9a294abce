"""Networks of matrices: linear, deep linear, diagonal, and the multi-layer perceptron."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gflow._checks import smoothing_leaf
from gflow._description import storable
from gflow._numerics import norm, row_norms
from gflow._signatures import named
from gflow._typing import Params
from gflow.networks._base import (
    AbstractNetwork,
    Decided,
    Switches,
    checked_power,
    is_integer,
    layered_degree,
    normal_weights,
    output_of,
    rectified,
    switches_at,
)


class AbstractLayered(AbstractNetwork):
    """Layers one after another: `widths` from the inputs to the outputs."""

    widths: eqx.AbstractVar[tuple[int, ...]]

    @property
    def num_inputs(self) -> int:
        return self.widths[0]

    @property
    def num_outputs(self) -> int:
        return self.widths[-1]


@storable("MLP")
class MLP(AbstractLayered):
    """A multi-layer perceptron; see `gflow.networks.mlp`."""

    widths: tuple[int, ...] = eqx.field(static=True)
    power: float = eqx.field(static=True)
    bias: bool = eqx.field(static=True)
    smoothing: Any
    # Whether the kinks of the derivative of ReLU^2 have switches; `smoothing` is then theirs.
    by_slope: bool = eqx.field(static=True, default=False)

    @property
    def degree(self) -> float:
        return layered_degree(len(self.widths) - 1, self.power)

    @property
    def parameter_shapes(self) -> list[tuple[int, ...]]:
        fan_ins = (self.widths[0] + self.bias, *self.widths[1:-1])
        return list(zip(self.widths[1:], fan_ins, strict=True))

    def _initial(self, key: Array, scale: Array) -> Params:
        return normal_weights(key, self.parameter_shapes, scale)

    def apply(self, params: Params, x: Array) -> Array:
        def layer(weight: Array, hidden: Array) -> Array:
            return dense_layer(weight, hidden, self.smoothing, self.power, by_slope=self.by_slope)

        return self._through(layer, params, x)

    def _through(self, layer: Callable, params: Params, x: Array) -> Array:
        """The output with `layer(weight, hidden)` for every layer but the last."""
        hidden = jnp.append(x, jnp.ones((), x.dtype)) if self.bias else x
        for weight in params[:-1]:
            hidden = layer(weight, hidden)
        return output_of(hidden @ params[-1].T)

    @property
    def num_switches(self) -> int:
        switches = self.smoothing is None and switches_at(self.power, self.by_slope)
        return sum(self.widths[1:-1]) if switches else 0

    def switched(
        self, params: Params, x: Array, angles: Array, smoothing: Any
    ) -> tuple[Array, Decided]:
        if not self.num_switches:
            return super().switched(params, x, angles, smoothing)
        switches = Switches(angles, smoothing)

        def layer(weight: Array, hidden: Array) -> Array:
            return switched_layer(weight, hidden, switches, self.power)

        return self._through(layer, params, x), switches.decided()

    def smoothed(self, smoothing: Any) -> AbstractNetwork:
        return dataclasses.replace(self, smoothing=smoothing) if self.num_switches else self

    def with_slope_switches(self) -> AbstractNetwork:
        if self.power != 2 or self.smoothing is not None:
            return self
        return dataclasses.replace(self, by_slope=True)


def dense_layer(
    weight: Array, hidden: Array, smoothing: Any, power: float, *, by_slope: bool = False
) -> Array:
    """`s(W h)`, s = ReLU^k, with a kink of the width `mu |w_j| |h|` in neuron j if smoothed."""
    # In this order a batch of examples becomes one matrix product without a transposition.
    value = hidden @ weight.T
    if smoothing is None:
        return rectified(value, None, power)
    width = jnp.asarray(smoothing, value.dtype) * row_norms(weight) * norm(hidden)
    return rectified(value, width, power, by_slope=by_slope)


def switched_layer(weight: Array, hidden: Array, switches: Switches, power: float) -> Array:
    """`s(W h)`, s = ReLU or ReLU^2, with every ReLU or its slope held at its angle."""
    value, scale = weight @ hidden, row_norms(weight) * norm(hidden)
    return switches.activate(value, scale, power)


@storable("DeepLinear")
class DeepLinear(AbstractLayered):
    """A product of matrices; see `gflow.networks.linear` and `deep_linear`."""

    widths: tuple[int, ...] = eqx.field(static=True)

    @property
    def linear_in_inputs(self) -> bool:
        return True

    @property
    def degree(self) -> float:
        return len(self.widths) - 1

    @property
    def parameter_shapes(self) -> list[tuple[int, ...]]:
        return list(zip(self.widths[1:], self.widths[:-1], strict=True))

    def _initial(self, key: Array, scale: Array) -> Params:
        return normal_weights(key, self.parameter_shapes, scale)

    def apply(self, params: Params, x: Array) -> Array:
        hidden = x
        for weight in params:
            hidden = hidden @ weight.T
        return output_of(hidden)

    def predictor(self, params: Params) -> Array:
        """The product of the layers, `W_L ... W_1`: (d,), or (k, d) for k outputs."""
        product = jnp.asarray(params[-1])
        for weight in params[-2::-1]:
            product = product @ weight
        return product[0] if product.shape[0] == 1 else product


@storable("Diagonal")
class Diagonal(AbstractNetwork):
    """A diagonal linear network; see `gflow.networks.diagonal`."""

    num_inputs: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    num_outputs: int = eqx.field(static=True, default=1)

    @property
    def linear_in_inputs(self) -> bool:
        return True

    @property
    def degree(self) -> float:
        return self.depth

    @property
    def parameter_shapes(self) -> list[tuple[int, ...]]:
        return [(self.num_inputs,), (self.num_inputs,)]

    def _initial(self, key: Array, scale: Array) -> Params:
        weight = jnp.broadcast_to(scale, (self.num_inputs,))
        return (weight, weight)

    def apply(self, params: Params, x: Array) -> Array:
        return self.predictor(params) @ x

    def predictor(self, params: Params) -> Array:
        """`u^L - v^L`, the linear predictor. Shapes: (d,)."""
        positive, negative = map(jnp.asarray, params)
        return positive**self.depth - negative**self.depth


@named()
def linear(d: int, *, num_outputs: int = 1) -> DeepLinear:
    """`f(x; w) = <w, x>`, degree 1. Parameters: a tuple with one (num_outputs, d) array."""
    single = is_integer(num_outputs) and num_outputs == 1
    call = f"linear({d!r})" if single else f"linear({d!r}, num_outputs={num_outputs!r})"
    return DeepLinear(_whole_numbers((d, num_outputs), call))


@named()
def deep_linear(widths: Sequence[int]) -> DeepLinear:
    """`f(x; W_1, .., W_L) = W_L ... W_1 x`, degree L = len(widths) - 1.

    Args:
        widths: (d, h_1, .., 1), or k in place of the 1 for k classes.
    """
    return DeepLinear(_widths(widths, "deep_linear"))


@named(
    activation="It is ReLU^k with k = `power`, its kink rounded by `smoothing`; any "
    "other homogeneous function is for `networks.custom`."
)
def mlp(
    widths: Sequence[int], *, power: float = 1, smoothing: Any = 0.0, bias: bool | np.bool_ = False
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

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: fewer than two widths, or one below 1; `power` below 1; a negative smoothing; a
            `bias` other than True and False.
    """
    widths = _widths(widths, "mlp")
    if not isinstance(bias, (bool, np.bool_)):
        raise ValueError(
            f"`mlp(bias={bias!r})`: only True and False. A bias in the first layer keeps "
            "homogeneity; a bias in any later layer breaks it, and the margin theory with it."
        )
    return MLP(widths, checked_power(power, "mlp"), bool(bias), smoothing_leaf(smoothing))


@named()
def diagonal(d: int, depth: int) -> Diagonal:
    """`f(x; u, v) = <u^L - v^L, x>`, elementwise powers; degree L = `depth`.

    Parameters: the pair (u, v), each (d,). `init` gives `u = v = scale`, for which f = 0: the
    unbiased start of Woodworth et al. 2020.
    """
    return Diagonal(*_whole_numbers((d, depth), f"diagonal(d={d!r}, depth={depth!r})"))


def _widths(widths: Sequence[int], name: str) -> tuple[int, ...]:
    call = f"{name}({widths!r})"
    try:
        given = tuple(widths)
    except TypeError:
        raise TypeError(f"`{call}`: widths are a sequence such as (d, hidden, 1).") from None
    if len(given) < 2:
        raise ValueError(f"`{call}`: at least two widths are needed, of inputs and of outputs.")
    return _whole_numbers(given, call)


def _whole_numbers(given: tuple[Any, ...], call: str) -> tuple[int, ...]:
    if not all(map(is_integer, given)):
        raise TypeError(f"`{call}`: inputs, widths, depth and outputs must be integers.")
    if min(given) < 1:
        raise ValueError(f"`{call}`: inputs, widths, depth and outputs must be at least 1.")
    return tuple(map(int, given))
