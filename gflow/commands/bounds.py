"""Whether a job can be held in memory at all, told from its configuration alone.

What is far too large does not raise in JAX: it ends the process. The bounds are those of what
ordinary machines hold, some gigabytes, and of what compiles at all.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple, assert_never

from gflow import configuration as tables
from gflow.configuration import Configuration

MOST_INPUTS = 10**8
"""Entries of the inputs, n d: 0.8 gigabytes."""

MOST_WEIGHTS = 10**8
"""Weights of a network, of which the flow holds some ten copies."""

MOST_ACTIVATIONS = 10**9
"""Numbers that a network's layers hold for all examples together."""


class Size(NamedTuple):
    """How large the data are: n examples of d inputs for k outputs; 1 where it is not known yet."""

    examples: int = 1
    inputs: int = 1
    outputs: int = 1


class Layer(NamedTuple):
    """The number of weights of a layer, of its units, and the field that decides them."""

    weights: int
    units: int
    field: str


def declared_size(data: tables.Data) -> Size:
    """The size of the data as far as the configuration tells it."""
    match data:
        case tables.Gaussian() | tables.RandomLabels():
            return Size(data.n, data.d)
        case tables.Soudry():
            return Size(4 + data.num_random, 2)
        case tables.Digits():
            return Size(inputs=64)
        case tables.Mnist():
            return Size(inputs=784)
    return Size()


def too_large(configuration: Configuration, size: Size) -> list[str]:
    """A line for everything that is too large, each with the field to change."""
    lines = []
    if size.examples * size.inputs > MOST_INPUTS:
        lines.append(
            f"`data`: {size.examples} examples of {size.inputs} inputs are "
            f"{size.examples * size.inputs:.2g} numbers; at most {MOST_INPUTS:.0e} are read"
        )
    for i, network in enumerate(configuration.network):
        lines += _too_large(f"network[{i}]", network, size)
    return lines


def _too_large(place: str, network: tables.Network, size: Size) -> Iterator[str]:
    if isinstance(network, tables.Conv) and math.prod(network.input_shape or ()) > MOST_INPUTS:
        yield f"`{place}.input_shape`: an image has at most {MOST_INPUTS:.0e} numbers"
        return
    layers = list(_layers(network, size))
    for total, most, words in (
        (sum(layer.weights for layer in layers), MOST_WEIGHTS, "weights"),
        (size.examples * sum(layer.units for layer in layers), MOST_ACTIVATIONS, "activations"),
    ):
        if total > most:
            worst = max(layers, key=lambda layer: getattr(layer, _KEY[words]))
            yield (
                f"`{place}.{worst.field}`: the network would have {total:.2g} {words}; at most "
                f"{most:.0e} can be held"
            )


_KEY = {"weights": "weights", "activations": "units"}


def _layers(network: tables.Network, size: Size) -> Iterator[Layer]:
    match network:
        case tables.Linear():
            yield Layer(size.inputs * size.outputs, size.outputs, "kind")
        case tables.Diagonal():
            yield Layer(2 * size.inputs, 2 * size.inputs, "kind")
        case tables.Conv():
            yield from _convolutions(network, size)
        case tables.DeepLinear() | tables.Mlp():
            yield from _dense(size.inputs, network.hidden, size.outputs)
        case _:
            assert_never(network)


def _dense(inputs: int, hidden: list[int], outputs: int) -> Iterator[Layer]:
    for width in [*hidden, outputs]:
        yield Layer(inputs * width, width, "hidden")
        inputs = width


def _convolutions(network: tables.Conv, size: Size) -> Iterator[Layer]:
    side = int(size.inputs**0.5)
    depth, height, width = network.input_shape or (1, side, side)
    for filters in network.channels:
        weights = depth * network.size**2 * filters
        height, width = _windows(height, network), _windows(width, network)
        # The square of a filter counts once more where its size is to blame.
        field = "size" if network.size**2 > depth * filters else "channels"
        yield Layer(weights, filters * height * width, field)
        if network.pool != "none":
            height, width = height // network.pool_size, width // network.pool_size
        depth = filters
    yield from _dense(depth * height * width, network.hidden, size.outputs)


def _windows(side: int, network: tables.Conv) -> int:
    reach = side if network.padding == "SAME" else side - network.size + 1
    return max(-(-reach // network.stride), 0)
