"""Norms and log-domain sums that stay finite, with their derivatives.

Nothing else in gflow divides by a norm. Each function first scales its argument by its largest
entry, so that neither 1e-200 nor 1e+200 over- or underflows in a square. Norms and unit vectors
have value and derivative 0 at 0; a NaN stays NaN.
"""

import functools
import math
import numbers
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from gflow._typing import Params


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
            f"{name}: masked entries ({hidden}), and what lies beneath a mask is no data. Leave "
            "those examples out, or fill them in with `.filled(...)`."
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


@jax.jit
def _scaled(vector: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`vector / s` and `s = max |vector|`, s held constant; for a zero vector 0 and s = 1.

    Whatever is homogeneous may treat s as constant: then its derivatives come out right as well.
    """
    largest = lax.stop_gradient(jnp.max(jnp.abs(vector), initial=0.0))
    # Subnormal numbers count as zero: XLA flushes them on some devices, and 1/s would overflow.
    zero = largest <= jnp.finfo(vector.dtype).tiny
    scale = jnp.where(zero, jnp.ones_like(largest), largest)
    return jnp.where(zero, 0.0, vector / scale), scale


@jax.jit
def _safe_sqrt(square: jax.Array) -> jax.Array:
    """Square root with value and derivative 0 at 0."""
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


@jax.custom_jvp
@jax.jit
def norm(vector: jax.Array) -> jax.Array:
    """Euclidean norm of an array of any shape; its derivative at 0 is 0.

    This and `normalized` have rules of their own for their derivatives, in a few operations: those
    of the operations one by one make second derivatives, as of attacks, several times as costly.
    """
    scaled, scale = _scaled(vector)
    return scale * _safe_sqrt(jnp.sum(scaled * scaled))


@norm.defjvp
@jax.jit
def _norm_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[Any, Any]:
    """`d|v| = <v / |v|, dv>`."""
    (vector,), (change,) = primals, tangents
    return norm(vector), jnp.sum(normalized(vector) * change)


@jax.custom_jvp
@jax.jit
def normalized(vector: jax.Array) -> jax.Array:
    """`v / |v|_2`, with value and derivative 0 at 0."""
    scaled, _ = _scaled(vector)
    return ratio(scaled, jnp.sum(scaled * scaled))


@normalized.defjvp
@jax.jit
def _normalized_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[Any, Any]:
    """`d(v / |v|) = (I - u u^T) dv / |v|`, u = v / |v|."""
    (vector,), (change,) = primals, tangents
    unit_vector, length = normalized(vector), norm(vector)
    zero = length <= jnp.finfo(vector.dtype).tiny
    inverse = jnp.where(zero, 0.0, 1.0 / jnp.where(zero, 1.0, length))
    across = change - unit_vector * jnp.sum(unit_vector * change)
    return unit_vector, inverse * across


def row_norms(rows: ArrayLike) -> jax.Array:
    """Euclidean norm of each entry of the first axis; derivative 0 at 0.

    NumPy's arrays are taken to JAX first: in a compiled function JAX 0.10 refuses them as the
    arguments of a function with a derivative of its own that is mapped.
    """
    return jax.vmap(norm)(jnp.asarray(rows))


def window_norms(
    image: jax.Array, size: tuple[int, int], stride: tuple[int, int], padding: str
) -> jax.Array:
    """Euclidean norm of each window of an image, over all channels; derivative 0 at 0.

    Shapes: image (channels, height, width) -> (1, rows of windows, columns of windows).
    """
    scaled, scale = _scaled(image)
    squares = jnp.sum(scaled * scaled, axis=0, keepdims=True)
    zero = np.zeros((), image.dtype)
    sums = lax.reduce_window(squares, zero, lax.add, (1, *size), (1, *stride), padding)
    return scale * _safe_sqrt(sums)


def tree_norm(params: Params) -> jax.Array:
    """`|params|_2`, the Euclidean norm over all leaves together."""
    norms = [norm(leaf) for leaf in jax.tree.leaves(params)]
    return norms[0] if len(norms) == 1 else norm(jnp.stack(norms))


def tree_dot(left: Params, right: Params) -> jax.Array:
    """`<left, right>` over all leaves."""
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), left, right)
    return functools.reduce(operator.add, jax.tree.leaves(products))


def tree_scale(factor: Any, params: Params) -> Params:
    """`factor * params`, leaf by leaf."""
    return jax.tree.map(lambda leaf: factor * leaf, params)


def unit(params: Params) -> tuple[Params, jax.Array]:
    """`params / |params|_2` and `|params|_2`; zero stays zero."""
    length = tree_norm(params)
    safe = jnp.where(length == 0, 1.0, length)
    return jax.tree.map(lambda leaf: leaf / safe, params), length


def tangent(direction: Params, vector: Params) -> Params:
    """`(I - u u^T) v` for the unit vector `u = direction`."""
    radial = tree_dot(direction, vector)
    return jax.tree.map(lambda v, u: v - radial * u, vector, direction)


@jax.jit
def scaled_margins(kappa: jax.Array, margins: jax.Array) -> jax.Array:
    """`kappa * margins`, whose sums of exponentials stay right however large kappa is.

    Compilers fuse a product with the subtraction of the maximum that follows in `logsumexp` and
    `softmax`. Of the largest entry the fused difference leaves the rounding error of its product in
    place of 0; that error exceeds 700 once kappa does 1e19, and its exponential is 0 or infinite.
    A maximum in between, with a bound that nothing falls below, keeps the two apart.
    """
    lowest = np.finfo(margins.dtype).min
    return jnp.maximum(kappa * margins, jnp.where(jnp.isinf(kappa), -np.inf, lowest))


def dual_order(order: float) -> float:
    """The q with 1/p + 1/q = 1."""
    if order == 1:
        return math.inf
    return 1.0 if math.isinf(order) else order / (order - 1)


def lp_norm(vector: jax.Array, order: float) -> jax.Array:
    """`|vector|_p` for p in [1, inf]."""
    scaled, scale = _scaled(vector)
    magnitude = jnp.abs(scaled)
    if math.isinf(order):
        return scale * jnp.max(magnitude, initial=0.0)
    if order == 1:
        return scale * jnp.sum(magnitude)
    if order == 2:
        return scale * _safe_sqrt(jnp.sum(scaled * scaled))
    total = jnp.sum(_safe_power(magnitude, order))
    return scale * _safe_power(total, 1 / order)


def _safe_power(base: jax.Array, exponent: float) -> jax.Array:
    """`base^exponent` for base >= 0, with value and derivative 0 at 0."""
    zero = base == 0
    return jnp.where(zero, 0.0, jnp.where(zero, 1.0, base) ** exponent)


def steepest(gradient: jax.Array, order: float) -> jax.Array:
    """`argmax_{|v|_p <= 1} <gradient, v>`: the unit l_p vector of steepest ascent.

    With q dual to p, `v_j = sign(g_j) |g_j|^(q-1) / |g|_q^(q-1)`: `g / |g|_2` for p = 2, `sign(g)`
    for p = inf; for p = 1 the first coordinate of largest magnitude. Zero gradient gives zero.
    It is invariant under `g -> c g`, c > 0. Its derivative is finite everywhere; for p > 2 the
    true one is infinite where a coordinate passes through 0, and is taken as 0 there.
    """
    if math.isinf(order):
        return jnp.sign(gradient)
    if order == 2:
        return normalized(gradient)
    scaled, _ = _scaled(gradient)
    if order == 1:
        largest = jnp.argmax(jnp.abs(gradient))  # ravelled; unscaled, since rounding makes ties
        peak = jnp.zeros(scaled.size, scaled.dtype).at[largest].set(1.0)
        return peak.reshape(scaled.shape) * jnp.sign(scaled)
    magnitude = jnp.abs(scaled)
    total = jnp.sum(_safe_power(magnitude, dual_order(order)))
    denominator = jnp.where(total == 0, 1.0, total) ** (1 / order)
    return jnp.sign(scaled) * _safe_power(magnitude, 1 / (order - 1)) / denominator


def smoothed_sign(gradient: jax.Array, smoothing: Any) -> jax.Array:
    """`g / sqrt(g^2 + (mu rms(g))^2)`: sign(g) with kinks of relative width mu = `smoothing`.

    Like sign(g) it does not change under `g -> c g`, c > 0. Zero gradient gives zero.
    """
    scaled, _ = _scaled(gradient)
    square = scaled * scaled
    return ratio(scaled, square + smoothing**2 * jnp.mean(square))


@jax.jit
def ratio(value: jax.Array, square: jax.Array) -> jax.Array:
    """`value / sqrt(square)`, with value and derivative 0 where the square is 0."""
    zero = square == 0
    return jnp.where(zero, 0.0, value / jnp.sqrt(jnp.where(zero, 1.0, square)))


@jax.custom_jvp
@jax.jit
def smoothed_relu(value: jax.Array, width: jax.Array) -> jax.Array:
    """`(a + sqrt(a^2 + w^2)) / 2`, elementwise: max(a, 0) with its kink rounded to width w.

    Written without the cancellation for a < 0, where it equals `w^2 / (2 (sqrt(a^2 + w^2) - a))`.
    Its derivative is a rule of its own, in half the operations that one by one they would take.
    """
    return _rounded(value, width, _hypotenuse(value, width))


def rounded_square(value: jax.Array, width: jax.Array) -> jax.Array:
    """`max(a, 0)^2`, elementwise, with the kink of its derivative rounded to width w >= 0.

    It is `a r + w^2/2 arsinh(a / w)`, r = `smoothed_relu(a, w)`, whose derivative by a is `2 r`.
    """
    zero = width == 0
    turned = jnp.arcsinh(value / jnp.where(zero, 1.0, width))
    return value * smoothed_relu(value, width) + 0.5 * width * width * turned


@jax.jit
def _rounded(value: jax.Array, width: jax.Array, root: jax.Array) -> jax.Array:
    """The same with `sqrt(a^2 + w^2)` at hand."""
    total = jnp.abs(value) + root
    small = width * (width / jnp.where(total == 0, 1.0, total))
    return 0.5 * jnp.where(value < 0, small, total)


@smoothed_relu.defjvp
@jax.jit
def _smoothed_relu_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """`dr = (r da + w dw / 2) / sqrt(a^2 + w^2)`, and `da / 2` where that root is 0."""
    (value_dot, width_dot), (by_value, by_width) = tangents, _slopes(*primals)
    return smoothed_relu(*primals), by_value * value_dot + by_width * width_dot


@jax.custom_jvp
@jax.jit
def _slopes(value: jax.Array, width: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The derivatives of `smoothed_relu` by a and by w."""
    root = _hypotenuse(value, width)
    zero = root == 0
    inverse = 1.0 / jnp.where(zero, 1.0, root)
    by_value = jnp.where(zero, 0.5, _rounded(value, width, root) * inverse)
    return by_value, 0.5 * width * inverse


@_slopes.defjvp
@jax.jit
def _slopes_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """`(c, -s) (c da - s dw) / (2 h)` with `h = sqrt(a^2 + w^2)`, `s = a / h` and `c = w / h`."""
    (value, width), (value_dot, width_dot) = primals, tangents
    root = hypotenuse(value, width)
    inverse = 1.0 / jnp.where(root == 0, 1.0, root)
    sine, cosine = value * inverse, width * inverse
    turn = (0.5 * cosine * inverse) * value_dot - (0.5 * sine * inverse) * width_dot
    return _slopes(value, width), (cosine * turn, -sine * turn)


@jax.custom_jvp
@jax.jit
def hypotenuse(value: jax.Array, width: jax.Array) -> jax.Array:
    """`sqrt(a^2 + w^2)`, w >= 0, without overflow or underflow of a square; its slope at 0 is 0."""
    return _hypotenuse(value, width)


@jax.jit
def _hypotenuse(value: jax.Array, width: jax.Array) -> jax.Array:
    """The same where nobody differentiates it."""
    magnitude = jnp.abs(value)
    larger, smaller = jnp.maximum(magnitude, width), jnp.minimum(magnitude, width)
    zero = larger <= jnp.finfo(value.dtype).tiny
    ratio = smaller / jnp.where(zero, 1.0, larger)
    return jnp.where(zero, 0.0, larger * jnp.sqrt(1.0 + ratio * ratio))


@hypotenuse.defjvp
@jax.jit
def _hypotenuse_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (value, width), (value_dot, width_dot) = primals, tangents
    root = hypotenuse(value, width)
    safe = jnp.where(root == 0, 1.0, root)
    return root, value / safe * value_dot + width / safe * width_dot
