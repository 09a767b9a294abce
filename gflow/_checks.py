"""What a given value is: a number, a list, a key, masked, traced; and numbers that may be swept."""

import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def check_x64() -> None:
    """Raises ValueError unless JAX computes in float64."""
    if not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(
            "gflow needs float64: the direction converges like 1/log t and float32 stops far short "
            'of it. Call `jax.config.update("jax_enable_x64", True)` before any array is made, or '
            "set the environment variable JAX_ENABLE_X64=1."
        )


class Default(float):
    """The value of an option that was not given. A run that goes on takes its trajectory's."""


def is_key(value: Any) -> bool:
    """Whether it is an array of keys of random numbers."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def on_host(value: Any) -> np.ndarray:
    """An array as NumPy's; of keys of random numbers their data."""
    return np.asarray(jax.random.key_data(value) if is_key(value) else value)


def is_integer(value: Any) -> bool:
    """Whether it is an integer, Python's or NumPy's; truth values are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def one_of(value: Any, choices: Iterable[str]) -> bool:
    """Whether it is one of the words; an array, whose comparison is no truth value, is none."""
    return isinstance(value, str) and value in choices


def is_list(values: Any) -> bool:
    """Whether it holds several things in an order.

    Words and mappings do not, nor does an array without axes.
    """
    if isinstance(values, str | bytes | Mapping):
        return False
    try:
        iter(values)
    except TypeError:
        return False
    return True


def whole_or_real(value: Any) -> float:
    """A number as a float; infinite where it is an integer beyond the range of floats.

    Raises:
        TypeError, ValueError: it is no number.
    """
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def is_real(value: Any) -> bool:
    """Whether it is one real number: Python's, or an array without axes; truth values, tracers and
    masked numbers are none.
    """
    if isinstance(value, Tracer) or num_masked(value):
        return False
    if isinstance(value, str | bytes) or is_list(value):
        return False
    return np.ndim(value) == 0 and np.asarray(value).dtype.kind in "fiu"


def num_masked(values: Any) -> int:
    """How many entries NumPy's masked arrays hide, in lists of them too.

    `np.asarray` would drop the mask and take what lies beneath it for data.
    """
    if isinstance(values, np.ma.MaskedArray):
        return int(np.ma.count_masked(values))
    return sum(map(num_masked, values)) if isinstance(values, (list, tuple)) else 0


def check_unmasked(values: Any, name: str) -> None:
    """Raises ValueError where a mask hides entries of what the user calls `name`."""
    hidden = num_masked(values)
    if hidden:
        raise ValueError(
            f"{name}: masked entries ({hidden}), and what lies beneath a mask is no number. Fill "
            "them in with `.filled(...)`, or, of a data set, leave those examples out."
        )


def check_untraced(values: Any, name: str) -> None:
    """Raises TypeError where JAX is tracing what the user calls `name`."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values)):
        raise TypeError(
            f"{name}: this is traced by `jax.jit`, `jax.vmap` or `jax.grad`, and a run of gflow "
            "takes its steps in Python, outside of them: call it with numbers, in a loop over "
            "several (nothing is compiled again), and for derivatives of a limit use "
            "`gflow.radius_sensitivity` and `gflow.data_sensitivity`."
        )


def scalar(value: Any, name: str, *, minimum: float = 0.0) -> Any:
    """A number that may be swept, as a zero-dimensional float64 NumPy array.

    NumPy rather than JAX, so that a description built before `jax_enable_x64` is set keeps all its
    digits. Tracers (under `jax.vmap` or `jax.grad`) pass through with their value unchecked.

    Raises:
        TypeError: `value` is not one real number.
        ValueError: `value` is NaN, infinite or below `minimum`.
    """
    if np.ndim(value):
        raise TypeError(
            f"`{name}={value!r}` must be one number, not a sequence. Map over several with "
            f"`jax.vmap` or in a loop; nothing is compiled again for another `{name}`."
        )
    if isinstance(value, Tracer):
        return value
    check_unmasked(value, f"`{name}`")
    if np.asarray(value).dtype.kind not in "fiu":
        raise TypeError(f"`{name}={value!r}` is not a real number.")
    number = np.asarray(value, dtype=np.float64)
    if not np.isfinite(number):
        raise ValueError(f"`{name}={value!r}` must be finite.")
    if number < minimum:
        raise ValueError(f"`{name}={value!r}` must be at least {minimum:g}.")
    return number


def smoothing_leaf(smoothing: Any) -> Any:
    """None for zero smoothing, which is another program; otherwise a number that may be swept."""
    number = scalar(smoothing, "smoothing")
    # A tracer's value is unknown: it takes the smoothed program, which is right at 0 too.
    return None if isinstance(number, np.ndarray) and number == 0 else number
