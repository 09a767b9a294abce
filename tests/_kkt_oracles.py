"""Attacked margins and their gradients by the parameters, in plain NumPy.

For products of layers and for two-layer networks `a . s(W x)^k`, with delta by hand. Gradients are
by complex steps: every formula here is analytic between kinks, so that the imaginary part of
`q(theta + i h e)` is `h dq/dtheta` to rounding.
"""

import math
from dataclasses import dataclass

import numpy as np

_STEP = 1e-30


@dataclass(frozen=True)
class Attack:
    """`order=2`: `-radius g / |g|_2`; infinite: `-radius g / sqrt(g^2 + (smoothing rms g)^2)`, or,
    where `signs` are given, `-radius signs`. g is the margin's gradient by x.
    """

    radius: float = 0.0
    order: float = 2.0
    smoothing: float = 0.0

    def __call__(self, gradient, signs=None):
        if signs is not None:
            return -self.radius * signs
        if math.isinf(self.order):
            mean = np.mean(gradient**2)
            return -self.radius * gradient / np.sqrt(gradient**2 + self.smoothing**2 * mean)
        return -self.radius * gradient / np.sqrt(np.sum(gradient**2))


@dataclass(frozen=True)
class Product:
    """`f(x) = W_L ... W_1 x`."""

    def output(self, params, x):
        for weight in params:
            x = weight @ x
        return x[0]

    def input_gradient(self, params, x):
        product = params[-1]
        for weight in params[-2::-1]:
            product = product @ weight
        return product[0]


@dataclass(frozen=True)
class TwoLayer:
    """`f(x) = a . s(W x)^k`, `s(z) = (z + sqrt(z^2 + (mu |w| |x|)^2)) / 2`."""

    power: int = 1
    smoothing: float = 0.0

    def _hidden(self, weight, x):
        """s(z) and `ds/dx`. Shapes: (h,), (h, d)."""
        value = weight @ x
        if self.smoothing == 0:
            alive = value.real > 0
            return np.where(alive, value, 0), alive[:, None] * weight
        widths = self.smoothing**2 * np.sum(weight**2, axis=1)
        root = np.sqrt(value**2 + widths * np.sum(x**2))
        by_root = (value / root)[:, None] * weight + (widths / root)[:, None] * x
        return (value + root) / 2, (weight + by_root) / 2

    def output(self, params, x):
        return params[1][0] @ self._hidden(params[0], x)[0] ** self.power

    def input_gradient(self, params, x):
        hidden, by_x = self._hidden(params[0], x)
        return (params[1][0] * self.power * hidden ** (self.power - 1)) @ by_x


def margins_and_gradients(network, attack, params, data, *, total=False, signs=None):
    """`q_i` and `grad q_i` by the parameters, with delta held fixed or through it.

    Args:
        params: tuple of arrays.
        signs: of the steps of the attack, where they are held. Shape (n, d).

    Returns:
        Shapes: (n,), (n, P).
    """
    margins, gradients = [], []
    for i, (x, y) in enumerate(zip(data.x, data.y, strict=True)):
        held = None if signs is None else signs[i]

        def delta(at, x=x, y=y, held=held):
            return attack(y * network.input_gradient(at, x), held)

        def margin(at, fixed, x=x, y=y, delta=delta):
            return y * network.output(at, x + (delta(at) if fixed is None else fixed))

        fixed = None if total else delta(params)
        margins.append(margin(params, fixed))
        gradients.append([margin(at, fixed).imag / _STEP for at in _steps(params)])
    return np.array(margins), np.array(gradients)


def _steps(params):
    """The parameters with an imaginary step in each entry, one after the other."""
    for index, leaf in enumerate(params):
        for place in np.ndindex(leaf.shape):
            moved = [np.asarray(other, complex) for other in params]
            moved[index] = moved[index].copy()
            moved[index][place] += 1j * _STEP
            yield tuple(moved)
