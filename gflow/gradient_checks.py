"""Networks of a user's own: their gradient is that of their output, to all digits of float64.

Checked at a direction beside that of the start, where no kink is met by chance.
"""

from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gflow._numerics import nearby_direction
from gflow._programs import compiled_for_few_calls
from gflow._typing import Params
from gflow.problem import Problem

# Of Euler's identity, relative to the outputs: rounding only.
_EULER_TOLERANCE = 1e-6
# Digits of float64 are 1e-16, of float32 6e-8. An entry that is a sum of terms 1e5 times as large
# as itself may have lost five of them.
_DIGITS = 2e-9
# Steps of difference quotients, and by how much these may differ from the gradient, relative. The
# error of a smooth network is of second order in a step, that of one with kinks is smaller than the
# step for each that is crossed. Long steps show weights that are rounded to a few values, of which
# most stay where they are in a short one.
_STEPS = np.array([1e-4, 1e-2])
_STEP_TOLERANCES = np.array([0.05, 0.5])
_NUM_STEPS = 8


class _Findings(NamedTuple):
    """What is found of a sum of outputs; all relative.

    Attributes:
        euler: by how much Euler's identity is violated.
        digits: how far the outputs, the gradient by parameters, and that by inputs are from powers
            of 3 of those at a third of the parameters: the median over their entries.
        quotients: how far difference quotients of each length are from the gradient. Shape (2,).
    """

    euler: Any
    digits: Any
    quotients: Any


def check_gradient(problem: Problem, params: Params) -> None:
    """Refuses a network whose gradient is not that of its output, or that computes in less than
    float64.

    Raises:
        ValueError: which of these it is.
    """
    direction = nearby_direction(params)
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(direction)])
    steps = np.random.default_rng(1).normal(size=(_NUM_STEPS, flat.size))
    steps /= np.linalg.norm(steps, axis=1, keepdims=True)
    found = jax.tree.map(np.asarray, _findings(problem, direction, steps))
    # A NaN of the digits or the quotients is one of the gradient, which the first one refuses.
    if not found.euler <= _EULER_TOLERANCE:
        raise ValueError(
            f"The gradient of the network violates Euler's identity, <params, grad f> = "
            f"{problem.degree:g} f, by {found.euler:.1e} of the outputs: it is not the gradient of "
            "`network.apply(params, x)`. Usually a `jax.lax.stop_gradient`, a rounding or a "
            "derivative of one's own hides a part of it, or it is NaN where it should be 0."
        )
    if (found.digits > _DIGITS).any():
        raise ValueError(
            f"The network computes in fewer digits than float64 has: {_where(found.digits)} at 3 "
            f"times the parameters {_verb(found.digits)} off by {found.digits.max():.1e}, "
            "relative, where rounding leaves 1e-16. No flow can be followed and no limit found "
            "through such noise: take conversions to float32, bfloat16 or float16 out of "
            "`network.apply(params, x)`, and `precision=` out of its products."
        )
    if (found.quotients > _STEP_TOLERANCES).any():
        error = found.quotients[found.quotients > _STEP_TOLERANCES][0]
        raise ValueError(
            f"The gradient of the network is not that of its output: difference quotients differ "
            f"from it by {error:.1e}, relative. Usually a `jax.lax.stop_gradient` or a derivative "
            "of one's own (a straight-through estimator) hides a part of it, or weights are "
            "rounded to a few values (`jnp.round`, quantisation), between which the output jumps. "
            "A gradient flow needs the gradient of what it lowers: take it out of "
            "`network.apply(params, x)`."
        )


def _where(digits: np.ndarray) -> str:
    names = ("its outputs", "its gradient by the parameters", "its gradient by the inputs")
    return names[int(np.argmax(digits > _DIGITS))]


def _verb(digits: np.ndarray) -> str:
    return "are" if digits[0] > _DIGITS else "is"


@compiled_for_few_calls
def _findings(problem: Problem, direction: Params, steps: Any) -> _Findings:
    """For the sum `s = sum_i c_i f(x_i; u)` with generic coefficients. Shapes: steps (s, P)."""
    data = jnp.asarray(problem.dataset.x)[:64]
    vector, unravel = jax.flatten_util.ravel_pytree(direction)

    def terms(vector: Array, inputs: Array) -> Array:
        params = unravel(vector)
        outputs = jax.vmap(problem.network.apply, (None, 0))(params, inputs).ravel()
        return jnp.cos(1 + jnp.arange(outputs.size, dtype=outputs.dtype)) * outputs

    def combined(vector: Array, inputs: Array) -> tuple[Array, Array]:
        each = terms(vector, inputs)
        return jnp.sum(each), each

    def at(factor: Array) -> tuple[Array, Array, Array]:
        gradient = jax.grad(combined, argnums=(0, 1), has_aux=True)
        (by_params, by_inputs), each = gradient(factor * vector, data)
        scale = factor**problem.degree
        return each / scale, by_params / (scale / factor), by_inputs.ravel() / scale

    both = jax.lax.map(at, jnp.array([1.0, 3.0]))
    each, gradient, _ = (part[0] for part in both)
    size, error = jnp.sum(jnp.abs(each)), jnp.sum(gradient * vector) - problem.degree * each.sum()
    euler = jnp.abs(error) / jnp.where(size == 0, 1.0, size)

    def quotient(step: Array) -> Array:
        return (combined(vector + step, data)[0] - combined(vector - step, data)[0]) / 2

    lengths = jnp.asarray(_STEPS)
    moves = (lengths[:, None, None] * steps).reshape(-1, vector.size)
    quotients = jax.lax.map(quotient, moves).reshape(len(_STEPS), -1) / lengths[:, None]
    slopes = jnp.asarray(steps) @ gradient
    length = jnp.linalg.norm(slopes)
    off = jnp.linalg.norm(quotients - slopes, axis=1) / jnp.where(length == 0, 1.0, length)
    return _Findings(euler, jnp.stack([_noise(*part) for part in both]), off)


def _noise(left: Array, right: Array) -> Array:
    """The median over entries that are not 0 of `|left - right| / |left|`; 0 without any."""
    known = left != 0
    error = jnp.abs(left - right) / jnp.where(known, jnp.abs(left), 1.0)
    return jnp.nan_to_num(jnp.nanmedian(jnp.where(known, error, jnp.nan)))
