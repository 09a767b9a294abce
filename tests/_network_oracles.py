"""Networks in plain NumPy, one output at a time; nothing of gflow or JAX."""

import itertools
import math

import numpy as np


def smoothed_relu(value, width):
    """`(a + sqrt(a^2 + w^2)) / 2`, without cancellation for a < 0."""
    root = math.hypot(value, width)
    if value >= 0:
        return (value + root) / 2
    return width * width / (2 * (root - value))


def length(numbers):
    return math.hypot(*np.ravel(numbers))


def dot(left, right):
    return math.fsum(np.ravel(left) * np.ravel(right))


def product(weight, vector):
    return np.array([dot(row, vector) for row in weight])


def dense(weight, hidden, power, smoothing):
    """A layer with its activation. Shapes: (fan_out, fan_in), (fan_in,) -> (fan_out,)."""
    widths = [smoothing * length(row) * length(hidden) for row in weight]
    pairs = zip(product(weight, hidden), widths, strict=True)
    return np.array([smoothed_relu(value, width) ** power for value, width in pairs])


def mlp(weights, x, *, power=1, smoothing=0.0, bias=False):
    """Outputs of a multi-layer perceptron. Shapes: (k,)."""
    hidden = np.append(x, 1.0) if bias else x
    for weight in weights[:-1]:
        hidden = dense(weight, hidden, power, smoothing)
    return product(weights[-1], hidden)


def deep_linear(weights, x):
    for weight in weights:
        x = product(weight, x)
    return x


def diagonal(pair, x, *, depth):
    u, v = pair
    return np.array([dot(u**depth - v**depth, x)])


def pad_same(image, size, stride):
    """Zeros around the image, so that ceil(length / stride) windows fit; an odd one at the end."""
    pads = [(0, 0)]
    for extent, window, step in zip(image.shape[1:], size, stride, strict=True):
        total = max((math.ceil(extent / step) - 1) * step + window - extent, 0)
        pads.append((total // 2, total - total // 2))
    return np.pad(image, pads)


def windows(image, size, stride):
    """Every window within the image with its place in the output: (row, column, window)."""
    rows, columns = (
        (extent - window) // step + 1
        for extent, window, step in zip(image.shape[1:], size, stride, strict=True)
    )
    for i, j in itertools.product(range(rows), range(columns)):
        top, left = i * stride[0], j * stride[1]
        yield i, j, image[:, top : top + size[0], left : left + size[1]]


def assemble(found):
    """From {(channel, row, column): value} to an array."""
    shape = tuple(1 + max(place[axis] for place in found) for axis in range(3))
    image = np.empty(shape)
    for place, value in found.items():
        image[place] = value
    return image


def convolution(weight, image, stride=(1, 1), padding="SAME", value_of=dot):
    """`value_of(filter, window)` for each filter and window: by default their product."""
    size = weight.shape[2:]
    if padding == "SAME":
        image = pad_same(image, size, stride)
    return assemble(
        {
            (o, i, j): value_of(kernel, window)
            for i, j, window in windows(image, size, stride)
            for o, kernel in enumerate(weight)
        }
    )


def pool(image, size, stride, statistic):
    return assemble(
        {
            (c, i, j): statistic(channel)
            for i, j, window in windows(image, size, stride)
            for c, channel in enumerate(window)
        }
    )


def conv(weights, x, *, input_shape, layers, power=1, smoothing=0.0):
    """Outputs of a convolutional network. Shapes: (k,).

    Args:
        weights: of the convolutions and dense layers, in order.
        x: (d,).
        input_shape: (channels, height, width).
        layers: ("conv", stride, padding), ("mean" or "max", size, stride), ("dense",), in order.
        power: of the activation.
        smoothing: relative width of its kink.
    """

    def neuron(kernel, window):
        width = smoothing * length(kernel) * length(window)
        return smoothed_relu(dot(kernel, window), width) ** power

    hidden, weights = x.reshape(input_shape), iter(weights)
    for kind, *numbers in layers[:-1]:
        if kind == "conv":
            hidden = convolution(next(weights), hidden, *numbers, neuron)
        elif kind == "dense":
            hidden = dense(next(weights), hidden.ravel(), power, smoothing)
        else:
            hidden = pool(hidden, *numbers, {"mean": np.mean, "max": np.max}[kind])
    return product(next(weights), hidden.ravel())
