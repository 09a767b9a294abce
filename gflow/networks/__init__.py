"""Homogeneous networks as pure functions of their parameters.

A network has `apply(params, x)`, one example in, one output (or k) out; `init(key, scale=...)`; and
`degree`, the L with `f(x; c params) = c^L f(x; params)` for c > 0. Parameters are plain pytrees of
arrays: a tuple of weights, each (fan_out, fan_in) in dense layers, without biases.
"""

from gflow.networks._base import AbstractNetwork, Decided
from gflow.networks._convolutional import Convolutional, conv
from gflow.networks._custom import Custom, custom
from gflow.networks._dense import MLP, DeepLinear, Diagonal, deep_linear, diagonal, linear, mlp
from gflow.networks._layers import AveragePool, Convolution, Dense, MaxPool

__all__ = [
    "MLP",
    "AbstractNetwork",
    "AveragePool",
    "Convolution",
    "Convolutional",
    "Custom",
    "Decided",
    "DeepLinear",
    "Dense",
    "Diagonal",
    "MaxPool",
    "conv",
    "custom",
    "deep_linear",
    "diagonal",
    "linear",
    "mlp",
]
