"""Independent, slow and obvious counterparts in NumPy and `decimal`, without gflow or JAX."""

import decimal
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Enough digits that 1 + e^-q keeps 16 of e^-q's own for every q below `FAR`.
_DIGITS = decimal.Context(prec=300, Emax=10**9, Emin=-(10**9))
FAR = 300.0


def mlp_forward(weights, x, power=1):
    """`W_L relu(... relu(W_1 x)^k)^k` and all pre-activations, with explicit loops."""
    hidden, values = [float(v) for v in x], []
    for weight in weights:
        value = [sum(float(w) * h for w, h in zip(row, hidden, strict=True)) for row in weight]
        values.append(value)
        hidden = [max(v, 0.0) ** power for v in value]
    return np.array(values[-1]), values


def mlp_input_gradient(weights, x, row, power=1):
    """Gradient in x of the combination `row` of the outputs: back-propagation by hand."""
    _, values = mlp_forward(weights, x, power)
    back = np.asarray(row, float) @ weights[-1]
    for weight, value in zip(weights[-2::-1], values[-2::-1], strict=True):
        slopes = [power * v ** (power - 1) if v > 0 else 0.0 for v in value]
        back = (back * np.array(slopes)) @ weight
    return back


def lp_norm(vector, order):
    """`|v|_p`, as the definition says."""
    magnitudes = [abs(float(v)) for v in vector]
    if math.isinf(order):
        return max(magnitudes)
    return sum(m**order for m in magnitudes) ** (1 / order)


def steepest(gradient, order):
    """The unit l_p vector with the largest product with `gradient`."""
    magnitudes = np.abs(gradient)
    if not magnitudes.any():
        return np.zeros_like(gradient)
    if math.isinf(order):
        return np.sign(gradient)
    if order == 1:
        answer = np.zeros_like(gradient)
        first = int(np.flatnonzero(magnitudes == magnitudes.max())[0])
        answer[first] = np.sign(gradient[first])
        return answer
    dual = order / (order - 1)
    shape = (magnitudes / magnitudes.max()) ** (dual - 1)
    return np.sign(gradient) * shape / lp_norm(shape, order)


def onto_l1_ball(point, radius):
    """Soft thresholding, its threshold by bisection."""
    magnitudes = np.abs(point)
    if magnitudes.sum() <= radius:
        return np.array(point, float)
    low, high = 0.0, magnitudes.max()
    while low < (middle := 0.5 * (low + high)) < high:
        above = np.maximum(magnitudes - middle, 0).sum() > radius
        low, high = (middle, high) if above else (low, middle)
    return np.sign(point) * np.maximum(magnitudes - high, 0)


def onto_ball(point, order, radius):
    """The nearest point of the l_p ball, p in {1, 2, inf}."""
    if order == 1:
        return onto_l1_ball(point, radius)
    if math.isinf(order):
        return np.clip(point, -radius, radius)
    length = lp_norm(point, 2)
    return point if length <= radius else point * (radius / length)


def pgd(gradient, x, *, radius, order, step_size, num_steps, start=None, box=None):
    """Projected descent on the margin whose gradient is `gradient(x)`."""

    def project(delta):
        delta = onto_ball(delta, order, radius)
        return delta if box is None else np.clip(x + delta, *box) - x

    delta = np.zeros_like(x) if start is None else project(radius * start)
    for _ in range(num_steps):
        delta = project(delta - step_size * steepest(gradient(x + delta), order))
    return delta


def logistic_log_value(margin):
    """`log log(1 + e^-q)` in 300 digits; beyond `FAR` it is -q to the last bit of a double."""
    if margin > FAR:
        return -margin
    with decimal.localcontext(_DIGITS):
        return float((1 + (-decimal.Decimal(margin)).exp()).ln().ln())


def logistic_log_slope(margin):
    """`log(1 / (1 + e^q))`."""
    if margin > FAR:
        return -margin
    with decimal.localcontext(_DIGITS):
        return float(-(1 + decimal.Decimal(margin).exp()).ln())


def logistic_inverse(log_loss):
    """`-log(e^x - 1)` at `x = e^log_loss`."""
    if log_loss < -FAR:
        return -log_loss
    with decimal.localcontext(_DIGITS):
        return float(-(decimal.Decimal(log_loss).exp().exp() - 1).ln())


class LossInDigits(NamedTuple):
    """A loss in 300 digits: `log l(q)`, `log(-l'(q))`, and the margin of a `log l`; of floats."""

    log_value: Callable[[float], float]
    log_slope: Callable[[float], float]
    inverse: Callable[[float], float]


# By the names of the functions of `gflow.losses`.
LOSSES = {
    "exponential": LossInDigits(lambda q: -q, lambda q: -q, lambda log_loss: -log_loss),
    "logistic": LossInDigits(logistic_log_value, logistic_log_slope, logistic_inverse),
}


def logsumexp(values):
    """`log sum exp` in 300 digits."""
    with decimal.localcontext(_DIGITS):
        return float(sum(decimal.Decimal(float(v)).exp() for v in values).ln())


def central_difference(function, point, direction, step):
    """Directional derivative, fourth order: `(8 (f1 - f-1) - (f2 - f-2)) / 12 h`."""

    def at(multiple):
        return np.asarray(function(point + multiple * step * direction), float)

    return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)
