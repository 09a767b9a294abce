"""Every kind of network, with what computes the same in plain NumPy and with its degree."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import _network_oracles as oracles
import jax
import jax.numpy as jnp
import numpy as np

from gflow import networks
from gflow.networks import AveragePool, Convolution, Dense, MaxPool

IMAGE = (2, 5, 4)
CONV_LAYERS = [Convolution(3, 3), Dense(1)]
POOLED_LAYERS = [
    Convolution(2, (2, 3), padding="VALID"),
    MaxPool(2, stride=1),
    Convolution(2, 2),
    AveragePool((3, 1), stride=(1, 2)),
    Dense(6),
    Dense(2),
]
STRIDED_LAYERS = [
    AveragePool((1, 2), stride=1),
    Convolution(3, (3, 2), stride=(2, 1)),
    MaxPool(2),
    Dense(1),
]


def squared_gate(params, x):
    """A user's network, of degree 3: `a . (b * x)^2`."""
    return jnp.sum(params["a"] * (params["b"] * x) ** 2)


def gate_parameters(key):
    first, second = jax.random.split(key)
    return {"a": jax.random.normal(first, (4,)), "b": jax.random.normal(second, (4,))}


@dataclasses.dataclass(frozen=True)
class Row:
    """How to make a network, what it computes, and its degree."""

    make: Callable[..., networks.AbstractNetwork]
    oracle: Callable[[Any, np.ndarray], np.ndarray]
    degree: float


def mlp_row(widths, degree, **options):
    make = functools.partial(networks.mlp, widths, **options)
    return Row(make, functools.partial(oracles.mlp, **options), degree)


def conv_row(layers, plain_layers, degree, **options):
    oracle = functools.partial(oracles.conv, input_shape=IMAGE, layers=plain_layers, **options)
    return Row(functools.partial(networks.conv, IMAGE, layers, **options), oracle, degree)


def diagonal_row(depth):
    oracle = functools.partial(oracles.diagonal, depth=depth)
    return Row(functools.partial(networks.diagonal, 4, depth), oracle, depth)


CONV = [("conv", (1, 1), "SAME"), ("dense",)]
POOLED = [
    ("conv", (1, 1), "VALID"),
    ("max", (2, 2), (1, 1)),
    ("conv", (1, 1), "SAME"),
    ("mean", (3, 1), (1, 2)),
    ("dense",),
    ("dense",),
]
STRIDED = [
    ("mean", (1, 2), (1, 1)),
    ("conv", (2, 1), "SAME"),
    ("max", (2, 2), (2, 2)),
    ("dense",),
]
ROWS = {
    "linear": Row(lambda: networks.linear(4), oracles.deep_linear, 1),
    "linear_classes": Row(lambda: networks.linear(4, num_outputs=3), oracles.deep_linear, 1),
    "deep_linear": Row(lambda: networks.deep_linear((4, 3, 2, 1)), oracles.deep_linear, 3),
    "diagonal_1": diagonal_row(1),
    "diagonal_2": diagonal_row(2),
    "diagonal_3": diagonal_row(3),
    "diagonal_4": diagonal_row(4),
    "mlp": mlp_row((4, 5, 4, 1), 3),
    "mlp_no_hidden": mlp_row((4, 1), 1, power=3),
    "mlp_squared": mlp_row((4, 5, 4, 1), 7, power=2),
    "mlp_cubed": mlp_row((4, 5, 1), 4, power=3),
    "mlp_power_1.5": mlp_row((4, 5, 4, 1), 4.75, power=1.5),
    "mlp_smoothed": mlp_row((4, 5, 4, 1), 3, smoothing=0.1),
    "mlp_smoothed_power_1.5": mlp_row((4, 5, 1), 2.5, smoothing=0.2, power=1.5),
    "mlp_bias_classes": mlp_row((4, 5, 3), 2, bias=True),
    "mlp_smoothed_bias_squared": mlp_row((4, 5, 1), 3, bias=True, smoothing=0.1, power=2),
    "conv": conv_row(CONV_LAYERS, CONV, 2),
    "conv_smoothed": conv_row(CONV_LAYERS, CONV, 2, smoothing=0.1),
    "conv_pooled_classes": conv_row(POOLED_LAYERS, POOLED, 4),
    "conv_strided_smoothed_squared": conv_row(STRIDED_LAYERS, STRIDED, 3, power=2, smoothing=0.1),
    "custom": Row(
        lambda: networks.custom(squared_gate, degree=3, init=gate_parameters),
        lambda params, x: np.array([np.sum(params["a"] * (params["b"] * x) ** 2)]),
        3,
    ),
}
