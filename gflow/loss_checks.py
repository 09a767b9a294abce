"""What is asked of a loss of a user's own, tried at a few margins."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gflow._programs import compiled_for_few_calls
from gflow.losses import AbstractLoss

# Margins at which the three functions are compared with each other: in logarithms both sides are
# of the size of the margin, and differ by rounding.
_COMPARED = np.array([0.25, 1.0, 4.0, 30.0, 300.0])
# Margins at which all must be finite: what a start may have, and what a flow comes to.
_FINITE = np.array([-1e3, -10.0, 0.0, 1e4, 1e6])
_TOLERANCE = 1e-6
# The tail is that of exp(-c q) with c within this factor of 1, since margins are told in logits.
# Between 300, 1e4 and 1e6 `log(-l')` bends by no more than the logarithm of a power of q, which
# does by 8 for q^1.
_MOST_RATE, _MOST_BEND = 10.0, 40.0


def check_loss(loss: AbstractLoss) -> None:
    """Refuses a loss whose functions do not belong together, or without an exponential tail.

    Raises:
        ValueError: it is such a loss; the message says what is wrong, and where.
    """
    margins = np.concatenate([_FINITE, _COMPARED])
    name = f"`{type(loss).__name__}`"
    _check_shapes(loss, margins, name)
    found = [np.asarray(each) for each in _tried(loss, margins)]
    _check_finite(margins, found[0], found[1], name)
    value, slope, derivative, inverse = (each[len(_FINITE) :] for each in found)
    far = np.array([len(margins) - 1, len(_FINITE) - 2, len(_FINITE) - 1])
    _check_tail(margins[far], found[1][far], name)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = -np.exp(slope - value)
        apart = np.abs(derivative - expected) / (1e-300 + np.abs(expected))
        back = np.abs(inverse - _COMPARED) / np.maximum(_COMPARED, 1.0)
    for error, what in (
        (apart, "`log_slope` is not the logarithm of the derivative of the loss, `log(-l'(q))`"),
        (back, "`inverse(log_value(q))` is not q"),
    ):
        if not np.all(error <= _TOLERANCE):
            worst = int(np.argmax(np.where(np.isnan(error), np.inf, error)))
            raise ValueError(
                f"The loss {name}: {what}, by {error[worst]:.1e} at q = {_COMPARED[worst]:g}."
            )


def _check_shapes(loss: AbstractLoss, margins: np.ndarray, name: str) -> None:
    given = jax.ShapeDtypeStruct(margins.shape, jnp.float64)
    for method in ("log_value", "log_slope", "inverse"):
        found = jax.eval_shape(getattr(loss, method), given)
        shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
        if shape != margins.shape or dtype != jnp.float64:
            raise ValueError(
                f"The loss {name}: `{method}` gives {dtype} numbers of the shape {shape} for "
                f"float64 margins of the shape {margins.shape}; it must be elementwise, and keep "
                "the type."
            )


def _check_finite(margins: np.ndarray, value: np.ndarray, slope: np.ndarray, name: str) -> None:
    for method, found in (("log_value", value), ("log_slope", slope)):
        if not np.all(np.isfinite(found)):
            bad = margins[~np.isfinite(found)][0]
            raise ValueError(
                f"The loss {name}: `{method}` is NaN or infinite at q = {bad:g}. The loss must be "
                "positive and falling everywhere, and its logarithms be formed without the loss "
                "itself, which underflows."
            )


def _check_tail(margins: np.ndarray, slope: np.ndarray, name: str) -> None:
    """Of `log_slope` at three margins far out."""
    near, far = np.diff(slope) / np.diff(margins)
    bend = abs(near - far) * (margins[1] - margins[0])
    if not (1 / _MOST_RATE <= -far <= _MOST_RATE and bend <= _MOST_BEND):
        raise ValueError(
            f"The loss {name} has no exponential tail: `log_slope` falls by {-near:.3g} for each "
            f"unit of the margin at q = 1e3, and by {-far:.3g} at 1e5, where `log(-l'(q)) = -q + "
            "O(1)` is asked for. Of another loss the limit is not the KKT point of the margin "
            "problem; the tail of exp(-c q) is brought to that of exp(-q) by a factor on the "
            "margin, which changes no limit."
        )


@compiled_for_few_calls
def _tried(loss: AbstractLoss, margins: Any) -> Any:
    """`log l`, `log(-l')`, the derivative of the first, and the inverse of the first."""
    margins = jnp.asarray(margins)
    value = loss.log_value(margins)
    derivative = jax.grad(lambda q: jnp.sum(loss.log_value(q)))(margins)
    return value, loss.log_slope(margins), derivative, loss.inverse(value)
