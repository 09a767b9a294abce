"""Descriptions of the layers of a convolutional network, and what each does to an image."""

import dataclasses
import itertools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from gflow._checks import one_of
from gflow._description import storable
from gflow._numerics import window_norms
from gflow._signatures import named
from gflow.networks._base import is_integer
from gflow.networks._convolve import convolve

Shape = tuple[int, ...]
"""Of what a layer takes or gives: (channels, height, width), or (width,) after a dense layer."""


@storable("Convolution")
@named()
@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution without bias, followed by the activation.

    Attributes:
        channels: number of filters.
        size: their height and width: one integer for both, or a pair.
        stride: step between windows, likewise.
        padding: "SAME" surrounds the image with zeros so that a stride of 1 keeps its size; "VALID"
            keeps to windows within the image.
    """

    channels: Any
    size: Any
    _: dataclasses.KW_ONLY
    stride: Any = 1
    padding: Any = "SAME"

    def __post_init__(self):
        _set(self, "channels", _whole(self, "channels"))
        _set(self, "size", _pair(self, "size"))
        _set(self, "stride", _pair(self, "stride"))
        if not one_of(self.padding, ("SAME", "VALID")):
            raise ValueError(f"`Convolution(padding={self.padding!r})`: choose 'SAME' or 'VALID'.")

    def weight_shape(self, shape: Shape) -> Shape:
        return (self.channels, shape[0], *self.size)

    def output_shape(self, shape: Shape) -> Shape:
        return (self.channels, *_windows(self, shape, self.padding))

    def linear(self, weight: Array, image: Array) -> Array:
        """The values before the activation. Shapes: (channels, height, width)."""
        return convolve(weight, image, self.stride, self.padding)

    def input_norms(self, image: Array) -> Array:
        """The norm of what each pixel of the output sees. Shapes: (1, height, width)."""
        return window_norms(image, self.size, self.stride, self.padding)


@dataclasses.dataclass(frozen=True)
class _Pool:
    """What the two kinds of pooling share: windows within the image, by default side by side."""

    size: Any
    _: dataclasses.KW_ONLY
    stride: Any = None

    def __post_init__(self):
        _set(self, "size", _pair(self, "size"))
        _set(self, "stride", self.size if self.stride is None else _pair(self, "stride"))

    def output_shape(self, shape: Shape) -> Shape:
        return (shape[0], *_windows(self, shape, "VALID"))

    def _reduce(self, image: Array, start: float, operation: Any) -> Array:
        # A NumPy constant: JAX must see its value to know how to differentiate the reduction.
        first = np.asarray(start, image.dtype)
        window, stride = (1, *self.size), (1, *self.stride)
        return lax.reduce_window(image, first, operation, window, stride, "VALID")


@storable("AveragePool")
@named()
@dataclasses.dataclass(frozen=True)
class AveragePool(_Pool):
    """The mean over each window of a channel.

    Attributes:
        size: height and width of a window: one integer for both, or a pair.
        stride: step between windows, likewise; the size by default, so that none overlap.
    """

    def pool(self, image: Array) -> Array:
        return self._reduce(image, 0.0, lax.add) / (self.size[0] * self.size[1])


@storable("MaxPool")
@named()
@dataclasses.dataclass(frozen=True)
class MaxPool(_Pool):
    """The maximum over each window of a channel; among equals the derivative is the first one's.

    It has kinks of its own, where two pixels of a window are equal, which the network's `smoothing`
    leaves alone.

    Attributes:
        size: height and width of a window: one integer for both, or a pair.
        stride: step between windows, likewise; the size by default, so that none overlap.
    """

    def pool(self, image: Array) -> Array:
        return self._reduce(image, -np.inf, lax.max)

    def num_switches(self, shape: Shape) -> int:
        """Switches that select the largest pixels, in an image of this shape."""
        return math.prod(self.output_shape(shape)) * (math.prod(self.size) - 1)

    def windows(self, image: Array) -> Array:
        """The pixels of each window. Shapes: (channels, rows, columns, pixels of a window)."""
        ends = [
            step * (count - 1) + 1
            for step, count in zip(self.stride, self.output_shape(image.shape)[1:], strict=True)
        ]

        # Strided slices: their derivatives compile in far less time than those of indexing.
        def pixel(row: int, column: int) -> Array:
            limits = image.shape[0], row + ends[0], column + ends[1]
            return lax.slice(image, (0, row, column), limits, (1, *self.stride))

        places = itertools.product(range(self.size[0]), range(self.size[1]))
        return jnp.stack([pixel(*place) for place in places], axis=-1)


@storable("Dense")
@named()
@dataclasses.dataclass(frozen=True)
class Dense:
    """A matrix without bias, followed by the activation unless it is the last layer.

    Attributes:
        width: number of outputs.
    """

    width: Any

    def __post_init__(self):
        _set(self, "width", _whole(self, "width"))

    def weight_shape(self, shape: Shape) -> Shape:
        return (self.width, math.prod(shape))

    def output_shape(self, shape: Shape) -> Shape:
        return (self.width,)


Layer = Convolution | AveragePool | MaxPool | Dense


def _set(layer: Any, name: str, value: Any) -> None:
    object.__setattr__(layer, name, value)  # the one way into a frozen dataclass while it is made


def _whole(layer: Any, name: str) -> int:
    value = getattr(layer, name)
    if not is_integer(value):
        raise TypeError(f"`{type(layer).__name__}({name}={value!r})` must be an integer.")
    if value < 1:
        raise ValueError(f"`{type(layer).__name__}({name}={value!r})` must be at least 1.")
    return int(value)


def _pair(layer: Any, name: str) -> tuple[int, int]:
    value = getattr(layer, name)
    pair = (value, value) if is_integer(value) else value
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(map(is_integer, pair))):
        raise TypeError(
            f"`{type(layer).__name__}({name}={value!r})` must be an integer or a pair of them, for "
            "height and width."
        )
    if min(pair) < 1:
        raise ValueError(f"`{type(layer).__name__}({name}={value!r})` must be at least 1.")
    return int(pair[0]), int(pair[1])


def _windows(layer: Any, shape: Shape, padding: str) -> tuple[int, int]:
    """How many windows there are along height and width."""
    image = shape[1:]
    if padding == "SAME":
        return tuple(-(-length // step) for length, step in zip(image, layer.stride, strict=True))
    if any(size > length for size, length in zip(layer.size, image, strict=True)):
        raise ValueError(
            f"has windows of {layer.size[0]} x {layer.size[1]}, larger than the image of "
            f"{image[0]} x {image[1]} that reaches it."
        )
    return tuple(
        (length - size) // step + 1
        for length, size, step in zip(image, layer.size, layer.stride, strict=True)
    )
