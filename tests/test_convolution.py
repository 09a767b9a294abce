"""Convolution and pooling against loops, with their derivatives, on many geometries."""

import re

import _network_oracles as oracles
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gflow import networks
from gflow.networks import AveragePool, Convolution, Dense, MaxPool

GEOMETRIES = [
    ((5, 6), Convolution(2, 3)),
    ((5, 6), Convolution(2, (3, 2), stride=(2, 3), padding="VALID")),
    ((7, 4), Convolution(2, (2, 3), stride=2)),
    ((2, 2), Convolution(2, 3)),
    ((5, 5), Convolution(2, 1, stride=3, padding="VALID")),
    ((4, 4), Convolution(2, 2, stride=3)),
]
EPS = np.finfo(np.float64).eps


def unit_vectors(shape):
    for index in np.ndindex(shape):
        unit = np.zeros(shape)
        unit[index] = 1.0
        yield unit


@pytest.mark.parametrize(("extent", "layer"), GEOMETRIES, ids=str)
def test_convolution_and_its_derivatives(extent, layer):
    """A convolution is bilinear: its derivatives are its own values at unit vectors."""
    generator = np.random.default_rng(0)
    image, image_tangent = generator.normal(size=(2, 2, *extent))
    weight, weight_tangent = generator.normal(size=(2, *layer.weight_shape((2, *extent))))
    covector = generator.normal(size=layer.output_shape(image.shape))

    @jax.jit
    def observe(primals, tangents):
        def weighed(weight, image):
            return jnp.sum(covector * layer.linear(weight, image))

        gradient = jax.grad(weighed, argnums=(0, 1))
        once, twice = jax.jvp(gradient, primals, tangents)
        reverse = jax.vjp(gradient, *primals)[1](tangents)
        return layer.linear(*primals), once, twice, reverse

    def product(weight, image):
        return oracles.convolution(weight, image, layer.stride, layer.padding)

    def gradient(weight, image):
        in_weight = [np.sum(covector * product(e, image)) for e in unit_vectors(weight.shape)]
        in_image = [np.sum(covector * product(weight, e)) for e in unit_vectors(image.shape)]
        return np.reshape(in_weight, weight.shape), np.reshape(in_image, image.shape)

    value, once, twice, reverse = observe((weight, image), (weight_tangent, image_tangent))
    close = dict(rtol=0, atol=200 * EPS)  # sums of at most 60 terms of size 1 to 3
    np.testing.assert_allclose(value, product(weight, image), **close)
    assert value.shape == layer.output_shape(image.shape)
    expected = gradient(weight, image)
    # The Hessian is symmetric and swaps the arguments: along t it is the gradient at t.
    bent = gradient(weight_tangent, image_tangent)
    for found, wanted in ((once, expected), (twice, bent), (reverse, bent)):
        np.testing.assert_allclose(found[0], wanted[0], **close)
        np.testing.assert_allclose(found[1], wanted[1], **close)


def test_gradients_of_many_examples_need_no_grouped_convolution():
    """XLA runs a convolution in groups, one an example, a hundred times slower on CPU."""
    network = networks.conv((1, 6, 6), [Convolution(2, 3), Convolution(3, 3), Dense(1)])
    params, x = jax.eval_shape(lambda: network.init(0)), np.zeros((5, 36))
    gradients = jax.jit(jax.vmap(jax.grad(lambda p, x: network.apply(p, x)), (None, 0)))
    program = gradients.lower(params, x).as_text()
    groups = re.findall(r"(?:batch|feature)_group_count = (\d+)", program)
    assert groups and set(groups) == {"1"}


@pytest.mark.parametrize(
    ("extent", "size", "stride"), [((4, 6), 2, 2), ((5, 5), 3, 2), ((4, 5), (1, 3), (2, 1))]
)
@pytest.mark.parametrize("kind", [MaxPool, AveragePool])
def test_pooling(kind, extent, size, stride):
    layer = kind(size, stride=stride)
    statistic = np.max if kind is MaxPool else np.mean
    image = np.random.default_rng(0).normal(size=(2, *extent))
    expected = oracles.pool(image, layer.size, layer.stride, statistic)
    np.testing.assert_allclose(layer.pool(jnp.asarray(image)), expected, rtol=4 * EPS)
    assert layer.output_shape(image.shape) == expected.shape


def test_max_pooling_of_equal_pixels_passes_the_first_ones_derivative():
    """Forwards, backwards and twice: pixels of handwriting are often equal."""
    layer = MaxPool(2, stride=1)
    image = np.random.default_rng(0).integers(0, 2, size=(1, 4, 4)).astype(float)
    forward, backward = (jax.jit(mode(layer.pool)) for mode in (jax.jacfwd, jax.jacrev))
    jacobian = np.asarray(forward(image))
    np.testing.assert_array_equal(jacobian, backward(image))
    for (i, j, window), row in zip(
        oracles.windows(image, (2, 2), (1, 1)), jacobian.reshape(9, 4, 4), strict=True
    ):
        first = np.unravel_index(np.argmax(window[0]), (2, 2))
        expected = np.zeros((4, 4))
        expected[i + first[0], j + first[1]] = 1.0
        np.testing.assert_array_equal(row, expected)
    cubed = jax.jit(jax.hessian(lambda z: jnp.sum(layer.pool(z) ** 3)))(image)
    weights = 6 * np.asarray(layer.pool(jnp.asarray(image))).ravel()
    flat = jacobian.reshape(9, 16)
    np.testing.assert_array_equal(np.reshape(cubed, (16, 16)), flat.T @ (weights[:, None] * flat))
