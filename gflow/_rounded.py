"""The smoothed ReLU and its square, whose kinks are rounded, with their derivatives.

They are computed without cancellation, however small the width of the rounding is beside the value,
and neither 1e-200 nor 1e+200 over- or underflows in a square.
"""

import jax
import jax.numpy as jnp


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
