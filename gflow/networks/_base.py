"""What every network is, and what networks made of layers share."""

import abc
import math
import numbers
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._checks import is_integer, scalar, whole_or_real
from gflow._description import shown
from gflow._programs import compiled
from gflow._rounded import rounded_square, smoothed_relu
from gflow._selection import select_largest
from gflow._signatures import named
from gflow._typing import Params


class Decided(NamedTuple):
    """What decides how switches stand, for each of them.

    Attributes:
        values: the number whose sign it is: a ReLU's argument, a coordinate of a gradient, the
            difference of two values of which the larger one is selected.
        scales: what that number is small or large against, >= 0, in the same units.
    """

    values: Float[Array, "..."]
    scales: Float[Array, "..."]


class AbstractNetwork(eqx.Module):
    """A function `f(x; params)` that is positively homogeneous in its parameters.

    Attributes:
        degree: the homogeneity degree L.
        num_inputs: d, or None where the network does not fix it.
        num_outputs: 1 (the output is a scalar) or k (a vector of k), or None where unknown.
    """

    if TYPE_CHECKING:
        # A type checker would take an AbstractVar for an argument of every constructor.
        @property
        def degree(self) -> float: ...
        @property
        def num_inputs(self) -> int | None: ...
        @property
        def num_outputs(self) -> int | None: ...
    else:
        degree: eqx.AbstractVar[float]
        num_inputs: eqx.AbstractVar[int | None]
        num_outputs: eqx.AbstractVar[int | None]

    def __repr__(self) -> str:
        return shown(self)

    @abc.abstractmethod
    def apply(self, params: Params, x: Float[Array, " d"]) -> Float[Array, ""] | Float[Array, " k"]:
        """`f(x; params)`. Shapes: x (d,) -> () or (k,)."""

    @property
    def parameter_shapes(self) -> list[tuple[int, ...]] | None:
        """The shapes of the parameters' leaves, or None where the network does not fix them."""
        return None

    @property
    def linear_in_inputs(self) -> bool:
        """Whether f is linear in x. Then it is evaluated once for all examples, an attack on every
        example is the same up to its label
        (`gflow.perturbations.AbstractPerturbation.follows_gradient`), and KKT systems are formed
        within a subspace (`gflow.kkt.within`).
        """
        return False

    @property
    def num_switches(self) -> int:
        """ReLUs without smoothing, each of which switches at a kink, and the selections of max
        pooling; 0 for a smooth network.
        """
        return 0

    def switched(
        self, params: Params, x: Float[Array, " d"], angles: Float[Array, " s"], smoothing: Any
    ) -> "tuple[Array, Decided]":
        """The output with every switch held at its own angle, and what decides the angles.

        A ReLU becomes `((1 + sin phi) a + mu w cos phi) / 2`, `w = |w_j| |h|` the largest that its
        argument `a = <w_j, h>` can be. At the angle `phi = arctan(a / (mu w))` this is the ReLU
        smoothed by mu, and its derivative by phi vanishes; at mu = 0, `sin phi` in [-1, 1] is the
        Clarke coefficient of a ReLU at its kink. Max pooling selects the largest pixel of a window
        by switches of the same kind (`gflow._selection`).

        Args:
            angles: phi of each switch, layer by layer. Shape (s,), s = `num_switches`.
            smoothing: mu >= 0.

        Returns:
            the output, and v and w of each switch; of a ReLU a and w.
        """
        del smoothing
        return self.apply(params, x), Decided(angles, angles)

    def smoothed(self, smoothing: Any) -> "AbstractNetwork":
        """The network with its kinks rounded to the relative width `smoothing`, where it has any.

        Functions of a user keep their kinks.
        """
        del smoothing
        return self

    def with_slope_switches(self) -> "AbstractNetwork":
        """The network as seen by what follows its gradient: where its first derivative has kinks
        though it has none itself, as ReLU^2, with switches for these; else the network itself.

        A switch at the angle phi makes of `max(a, 0)^2` a function whose derivative is
        `(1 + sin phi) a + mu w cos phi`, twice a ReLU held there.
        """
        return self

    @abc.abstractmethod
    def _initial(self, key: Array, scale: Array) -> Params:
        """Initial parameters, as traced code."""

    @named("network.init")
    def init(self, key: Any, *, scale: Any = 1.0) -> Params:
        """Random initial parameters.

        Weights are normal with standard deviation `scale / sqrt(fan_in)`. Nothing is compiled again
        for another key, seed or scale.

        Args:
            key: a `jax.random.key`, or an integer seed, which stands for `jax.random.key(seed)`.
            scale: factor on the standard deviation, > 0.
        """
        return _compiled_init(self, _checked_key(key), _checked_scale(scale))

    def check_fits(self, num_inputs: int, num_outputs: int) -> None:
        """Raises ValueError unless the network takes (num_inputs,) and gives `num_outputs`."""
        if self.num_inputs not in (None, num_inputs):
            raise ValueError(
                f"The network takes {self.num_inputs} inputs but the data have {num_inputs}. "
                "The first width must equal `dataset.x.shape[1]`."
            )
        if self.num_outputs not in (None, num_outputs):
            labels = "-1 and +1" if num_outputs == 1 else f"classes 0 .. {num_outputs - 1}"
            raise ValueError(
                f"The network has {self.num_outputs} output(s) but labels are {labels}, which need "
                f"{num_outputs}. Change the last width, or the labels: two classes are -1 and +1 "
                "for `Dataset(x, y)` and take one output."
            )


@compiled
def _compiled_init(network: AbstractNetwork, key: Any, scale: Any) -> Params:
    is_seed = jnp.issubdtype(key.dtype, jnp.integer) and key.ndim == 0
    return network._initial(jax.random.key(key) if is_seed else key, jnp.asarray(scale))


def _checked_key(key: Any) -> Any:
    """A key of either style, or a seed as an array: a Python integer would be compiled in."""
    if is_integer(key):
        try:
            return np.asarray(key, np.int64)
        except OverflowError:
            raise ValueError(
                f"`init({key})`: a seed must fit into 64 bits, sign included."
            ) from None
    dtype = getattr(key, "dtype", None)
    if dtype is not None:
        is_key = jnp.issubdtype(dtype, jax.dtypes.prng_key) and key.ndim == 0
        is_raw_key = dtype == np.uint32 and key.ndim == 1
        is_seed = jnp.issubdtype(dtype, jnp.integer) and key.ndim == 0
        if is_key or is_raw_key or is_seed:
            return key
    raise TypeError(
        f"`init({key!r})`: expected one `jax.random.key(seed)` or an integer seed. Map over "
        "several keys with `jax.vmap(network.init)`."
    )


def _checked_scale(scale: Any) -> Any:
    number = scalar(scale, "scale")
    if isinstance(number, np.ndarray) and number == 0:
        raise ValueError(f"`init(scale={scale!r})` must be positive: zero is a stationary point.")
    return number


def checked_power(power: Any, call: str) -> float:
    """The power of ReLU^k; an int where it is one, so that 2 and 2.0 are one description."""
    if not isinstance(power, numbers.Real) or isinstance(power, bool):
        raise TypeError(f"`{call}(power={power!r})`: the power of ReLU^k must be a real number.")
    if not 1 <= whole_or_real(power) < math.inf:
        raise ValueError(
            f"`{call}(power={power!r})`: the power of ReLU^k must be finite and at least 1; below "
            "1 the gradient is infinite at 0."
        )
    return _plain(power)


def _plain(number: Any) -> float:
    """A Python number, whole where it can be."""
    return int(number) if float(number).is_integer() else float(number)


def layered_degree(num_layers: int, power: float) -> float:
    """Degree of `num_layers` layers of weights with the activation ReLU^k between them.

    Each layer of weights adds 1 and each activation multiplies by its power: `1 + k + k^2 + ...`.
    """
    degree: float = 1
    for _ in range(num_layers - 1):
        degree = degree * power + 1
    return degree


def normal_weights(key: Array, shapes: list[tuple[int, ...]], scale: Array) -> tuple[Array, ...]:
    """Normal weights of the given shapes (fan_out, ...), of deviation `scale / sqrt(fan_in)`."""
    sizes = [math.prod(shape) for shape in shapes]
    # One draw for all layers: each costs about 0.7 s of compilation.
    normal = jax.random.normal(key, (sum(sizes),), scale.dtype)
    parts = jnp.split(normal, np.cumsum(sizes)[:-1])
    return tuple(
        scale * part.reshape(shape) / np.sqrt(math.prod(shape[1:]))
        for part, shape in zip(parts, shapes, strict=True)
    )


def switches_at(power: float, by_slope: bool) -> bool:
    """Whether ReLU^power has a switch: the ReLU itself, and ReLU^2 where its slope does."""
    return power == 1 or (power == 2 and by_slope)


def rectified(value: Array, width: Array | None, power: float, *, by_slope: bool = False) -> Array:
    """`max(value, 0)^power`, its kink rounded to `width` where one is given.

    Args:
        by_slope: whether it is the kink of the derivative that is rounded, that of ReLU^2.
    """
    if by_slope and width is not None:
        return rounded_square(value, width)
    base = jax.nn.relu(value) if width is None else smoothed_relu(value, width)
    if power == 1:
        return base
    if isinstance(power, int):
        return base**power
    # The second derivative of base^1.5 is infinite at 0; where the base is 0 all are taken as 0.
    zero = base == 0
    return jnp.where(zero, 0.0, jnp.where(zero, 1.0, base) ** power)


class Switches:
    """The switches of one pass through a network, layer by layer, each held at its angle."""

    def __init__(self, angles: Array, smoothing: Any):
        self._angles, self._smoothing, self._used = angles, smoothing, 0
        self._values: list[Array] = []
        self._scales: list[Array] = []

    def activate(self, value: Array, scale: Array, power: float) -> Array:
        """ReLU^power of a value a, power 1 or 2, with the ReLU held at the angle phi, h = mu w:

            ((1 + sin phi) a + h cos phi) / 2,
            ((1 + sin phi) a^2 + 2 h a cos phi + h^2 (artanh(sin phi) - sin phi)) / 2,

        the second with twice the first for its derivative by a. At `phi = arctan(a / h)` they are
        `smoothed_relu(a, h)` and `rounded_square(a, h)`, and their derivatives by phi vanish, of
        the second those of its derivatives too.
        """
        angles = self._next(value.shape)
        self._record(value, jnp.broadcast_to(scale, value.shape))
        width = jnp.asarray(self._smoothing, value.dtype) * scale
        sine, cosine = jnp.sin(angles), jnp.cos(angles)
        if power == 1:
            return 0.5 * ((1 + sine) * value + width * cosine)
        turned = jnp.arcsinh(jnp.tan(angles))  # artanh(sin phi), but finite where sin phi is 1
        square = (1 + sine) * value * value + 2 * width * value * cosine
        return 0.5 * (square + width * width * (turned - sine))

    def largest(self, values: Array) -> Array:
        """The largest along the last axis; see `gflow._selection`. Shapes: (..., m) -> (...)."""
        angles = self._next((*values.shape[:-1], values.shape[-1] - 1))
        found = select_largest(values, self._smoothing, angles)
        self._record(found.values, found.scales)
        return found.largest

    def _next(self, shape: tuple[int, ...]) -> Array:
        end = self._used + math.prod(shape)
        angles = self._angles[self._used : end].reshape(shape)
        self._used = end
        return angles

    def _record(self, values: Array, scales: Array) -> None:
        self._values.append(jnp.ravel(values))
        self._scales.append(jnp.ravel(scales))

    def decided(self) -> Decided:
        """What decided them, all layers in one."""
        return Decided(jnp.concatenate(self._values), jnp.concatenate(self._scales))


def output_of(values: Array) -> Array:
    """A single output is a scalar."""
    return values[0] if values.shape == (1,) else values
