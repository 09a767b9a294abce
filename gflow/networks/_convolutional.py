"""Convolutional networks without biases, which are homogeneous."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from gflow._checks import smoothing_leaf
from gflow._description import storable
from gflow._numerics import row_norms
from gflow._selection import select_largest
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
from gflow.networks._dense import dense_layer, switched_layer
from gflow.networks._layers import AveragePool, Convolution, Dense, Layer, MaxPool, Shape


@storable("Convolutional")
class Convolutional(AbstractNetwork):
    """A convolutional network; see `gflow.networks.conv`."""

    input_shape: tuple[int, int, int] = eqx.field(static=True)
    layers: tuple[Layer, ...] = eqx.field(static=True)
    power: float = eqx.field(static=True)
    smoothing: Any
    # The relative width to which the kinks of max pooling are rounded, where they are.
    pool_smoothing: Any = None
    # As of `gflow.networks._dense.MLP`.
    by_slope: bool = eqx.field(static=True, default=False)

    @property
    def degree(self) -> float:
        return layered_degree(len(weight_shapes(self.input_shape, self.layers)), self.power)

    @property
    def num_inputs(self) -> int:
        return math.prod(self.input_shape)

    @property
    def num_outputs(self) -> int:
        head = self.layers[-1]
        assert isinstance(head, Dense)
        return head.width

    @property
    def parameter_shapes(self) -> list[Shape]:
        return weight_shapes(self.input_shape, self.layers)

    def _initial(self, key: Array, scale: Array) -> Params:
        return normal_weights(key, self.parameter_shapes, scale)

    def apply(self, params: Params, x: Array) -> Array:
        return self._through((self._convolved, self._dense, self._pooled), params, x)

    def _through(self, act: tuple[Callable, Callable, Callable], params: Params, x: Array) -> Array:
        """The output with `act`: `convolved(layer, weight, image)`, `dense(weight, hidden)`,
        `pooled(layer, image)`, this one for max pooling.
        """
        convolved, dense, pooled = act
        hidden = x.reshape(self.input_shape)
        weights = iter(params[:-1])
        for layer in self.layers[:-1]:
            if isinstance(layer, AveragePool):
                hidden = layer.pool(hidden)
            elif isinstance(layer, MaxPool):
                hidden = pooled(layer, hidden)
            elif isinstance(layer, Convolution):
                hidden = convolved(layer, next(weights), hidden)
            else:
                hidden = dense(next(weights), hidden.ravel())
        return output_of(params[-1] @ hidden.ravel())

    def _convolved(self, layer: Convolution, weight: Array, image: Array) -> Array:
        value = layer.linear(weight, image)
        if self.smoothing is None:
            return rectified(value, None, self.power)
        width = jnp.asarray(self.smoothing, value.dtype) * _scale(layer, weight, image)
        return rectified(value, width, self.power, by_slope=self.by_slope)

    def _dense(self, weight: Array, hidden: Array) -> Array:
        return dense_layer(weight, hidden, self.smoothing, self.power, by_slope=self.by_slope)

    def _pooled(self, layer: MaxPool, image: Array) -> Array:
        if self.pool_smoothing is None:
            return layer.pool(image)
        return select_largest(layer.windows(image), self.pool_smoothing).largest

    @property
    def num_switches(self) -> int:
        shape, count = self.input_shape, 0
        for layer in self.layers[:-1]:
            if isinstance(layer, MaxPool) and self.pool_smoothing is None:
                count += layer.num_switches(shape)
            shape = layer.output_shape(shape)
            if isinstance(layer, (Convolution, Dense)) and self._switches_relus:
                count += math.prod(shape)
        return count

    @property
    def _switches_relus(self) -> bool:
        return self.smoothing is None and switches_at(self.power, self.by_slope)

    def switched(
        self, params: Params, x: Array, angles: Array, smoothing: Any
    ) -> tuple[Array, Decided]:
        if not self.num_switches:
            return super().switched(params, x, angles, smoothing)
        switches = Switches(angles, smoothing)

        def convolved(layer: Convolution, weight: Array, image: Array) -> Array:
            if not self._switches_relus:
                return self._convolved(layer, weight, image)
            scale = _scale(layer, weight, image)
            return switches.activate(layer.linear(weight, image), scale, self.power)

        def dense(weight: Array, hidden: Array) -> Array:
            if not self._switches_relus:
                return self._dense(weight, hidden)
            return switched_layer(weight, hidden, switches, self.power)

        def pooled(layer: MaxPool, image: Array) -> Array:
            if self.pool_smoothing is not None:
                return self._pooled(layer, image)
            return switches.largest(layer.windows(image))

        output = self._through((convolved, dense, pooled), params, x)
        return output, switches.decided()

    def smoothed(self, smoothing: Any) -> AbstractNetwork:
        if not self.num_switches:
            return self
        pools = any(isinstance(layer, MaxPool) for layer in self.layers)
        return dataclasses.replace(
            self,
            smoothing=smoothing if self._switches_relus else self.smoothing,
            pool_smoothing=smoothing
            if pools and self.pool_smoothing is None
            else self.pool_smoothing,
        )

    def with_slope_switches(self) -> AbstractNetwork:
        if self.power != 2 or self.smoothing is not None:
            return self
        return dataclasses.replace(self, by_slope=True)


def _scale(layer: Convolution, weight: Array, image: Array) -> Array:
    """`|w| |patch|`, the largest that a product can be. Shapes: (filters, height, width)."""
    return row_norms(weight)[:, None, None] * layer.input_norms(image)


@named(
    activation="It is ReLU^k with k = `power`, its kink rounded by `smoothing`; any "
    "other homogeneous function is for `networks.custom`."
)
def conv(
    input_shape: tuple[int, int, int],
    layers: Sequence[Layer],
    *,
    power: float = 1,
    smoothing: Any = 0.0,
) -> Convolutional:
    """Convolutional network with the activation ReLU^k, k = `power` >= 1, and no biases.

    The activation follows every convolution and every dense layer but the last. Each layer of
    weights adds 1 to the degree and each activation multiplies it by k, as in `mlp`; pooling leaves
    it alone. Data stay flat, d = channels * height * width, and are reshaped to `input_shape`.

    Parameters: a tuple with one array for each convolution, (channels, channels before, height,
    width), and each dense layer, (fan_out, fan_in).

        conv((1, 8, 8), [Convolution(8, 3), MaxPool(2), Dense(1)])

    Args:
        input_shape: (channels, height, width) of one example.
        layers: `Convolution`, `AveragePool`, `MaxPool` and then `Dense` layers; the last is a
            `Dense` of width 1, or k for k classes.
        power: the power k of the ReLU, a real number >= 1.
        smoothing: mu >= 0. Positive, `max(a, 0)` becomes `(a + sqrt(a^2 + (mu |w| |x|)^2)) / 2`,
            where a is the product of the filter w with the patch x. Max pooling keeps its kinks.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: layers that do not fit together; the message names the layer.
    """
    input_shape = _checked_input_shape(input_shape)
    if not isinstance(layers, Sequence) or isinstance(layers, str):
        raise TypeError(f"`conv(layers={layers!r})`: expected a list of layers such as `Dense(1)`.")
    layers = tuple(layers)
    weight_shapes(input_shape, layers)
    return Convolutional(
        input_shape, layers, checked_power(power, "conv"), smoothing_leaf(smoothing)
    )


def weight_shapes(input_shape: Shape, layers: Sequence[Layer]) -> list[Shape]:
    """Shapes of the weights, once the layers are known to fit together."""
    shape, shapes = input_shape, []
    for index, layer in enumerate(layers):
        call = f"`conv(...)`: layer {index}, `{layer!r}`,"
        if not isinstance(layer, Layer):
            raise TypeError(f"{call} is no Convolution, AveragePool, MaxPool or Dense.")
        if len(shape) == 1 and not isinstance(layer, Dense):
            raise ValueError(f"{call} follows a Dense layer, which leaves no image.")
        if isinstance(layer, (Convolution, Dense)):
            shapes.append(layer.weight_shape(shape))
        try:
            shape = layer.output_shape(shape)
        except ValueError as error:
            raise ValueError(f"{call} {error}") from None
    if not layers or not isinstance(layers[-1], Dense):
        last = f"layer {len(layers) - 1}, `{layers[-1]!r}`, is" if layers else "there is"
        raise ValueError(
            f"`conv(...)`: {last} no Dense layer at the end. Close with `Dense(1)`, or `Dense(k)` "
            "for k classes."
        )
    return shapes


def _checked_input_shape(shape: Any) -> tuple[int, int, int]:
    if not isinstance(shape, (tuple, list)) or not all(map(is_integer, shape)):
        raise TypeError(
            f"`conv(input_shape={shape!r})`: expected three integers (channels, height, width)."
        )
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(
            f"`conv(input_shape={shape!r})`: expected (channels, height, width), each at least 1."
        )
    channels, height, width = map(int, shape)
    return channels, height, width
