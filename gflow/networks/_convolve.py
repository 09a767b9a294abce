"""Convolution of one image, with a derivative that stays fast example by example."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

Pair = tuple[int, int]
"""Of height and width."""


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def convolve(weight: Array, image: Array, stride: Pair, padding: str) -> Array:
    """The product of each filter with each window of the image.

    Shapes: weight (filters, channels, a, b), image (channels, height, width) -> (filters, rows of
    windows, columns of windows).
    """
    return lax.conv_general_dilated(image[None], weight, stride, padding)[0]


@convolve.defjvp
def _convolve_jvp(stride: Pair, padding: str, primals: Any, tangents: Any) -> tuple[Array, Array]:
    """The rule of a product, in which the weight's tangent meets the windows as a matrix.

    The transpose of that matrix product gives the gradient in the weight. XLA's own, for one
    gradient an example, is a convolution in n groups, which takes a hundred times as long on CPU:
    3.0 s against 0.03 s for 357 images of 8 x 8 in two layers of 8 filters. The gradient of their
    sum costs the same either way.
    """
    (weight, image), (weight_tangent, image_tangent) = primals, tangents
    value = convolve(weight, image, stride, padding)
    patches = _patches(image, weight.shape[2:], stride, padding)
    through_weight = weight_tangent.reshape(len(weight), -1) @ patches
    through_image = convolve(weight, image_tangent, stride, padding)
    return value, through_weight.reshape(value.shape) + through_image


def _patches(image: Array, size: Pair, stride: Pair, padding: str) -> Array:
    """The windows of the image as columns. Shapes: (channels * a * b, number of windows)."""
    pads = lax.padtype_to_pads(image.shape[1:], size, stride, padding)
    rows, columns = (
        [slice(i, i + length + low + high - window + 1, step) for i in range(window)]
        for length, window, step, (low, high) in zip(
            image.shape[1:], size, stride, pads, strict=True
        )
    )
    padded = jnp.pad(image, ((0, 0), *pads))
    by_row = jnp.stack([padded[:, row] for row in rows], axis=1)
    by_pixel = jnp.stack([by_row[..., column] for column in columns], axis=2)
    return by_pixel.reshape(image.shape[0] * size[0] * size[1], -1)
