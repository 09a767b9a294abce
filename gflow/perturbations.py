"""Adversarial perturbations: clean, FGM, FGSM and PGD.

Each is computed from the gradient of the *margin*, never of the loss, and moves along the direction
of steepest descent in its norm, `-radius * steepest_p(grad_x margin)`. So each is scale invariant,
`delta(c params) = delta(params)` for c > 0, and stays right where the loss underflows
(Lyu & Zhu 2022, Definition of scale-invariant perturbations).

All lengths are in the units of the inputs. For classes the margin attacked is that against the
runner-up, `f_y - max_{j != y} f_j`.
"""

import abc
import math
import numbers
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float
from optax import projections

from gflow._balls import onto_unit_ball, uniform_in_unit_ball
from gflow._numerics import is_integer, norm, scalar, smoothed_sign, smoothing_leaf, steepest

Margin = Callable[[Array], Array]
"""The margin of one example as a function of its input: (d,) -> ()."""

SwitchedMargin = Callable[[Array, Array], tuple[Array, Any]]
"""(input, angles of the network's ReLUs) -> the margin, and what decides the angles; see
`gflow.networks.AbstractNetwork.switched`."""


class AbstractPerturbation(eqx.Module):
    """A perturbation of one example's input.

    Attributes:
        order: p of the l_p ball that holds the perturbation.
        radius: the radius of that ball, in input units.
    """

    order: eqx.AbstractVar[float]
    radius: eqx.AbstractVar[Any]

    @abc.abstractmethod
    def __call__(
        self, margin: Margin, x: Float[Array, " d"], start: Float[Array, " d"] | None
    ) -> Float[Array, " d"]:
        """The perturbation of the example `x`.

        Args:
            margin: the example's margin as a function of its input.
            x: (d,) the input.
            start: (d,) where an iteration starts, in units of the radius; None is zero.
        """

    @property
    def num_gradients(self) -> int:
        """How many gradients of the margin one perturbation takes."""
        return 0

    @property
    def has_signs(self) -> bool:
        """Whether it follows signs of gradients, without smoothing: each has a kink at 0."""
        return False

    def switched(
        self,
        margin: SwitchedMargin,
        x: Float[Array, " d"],
        start: Float[Array, " d"] | None,
        angles: Float[Array, "g s"],
        signs: Float[Array, "g e"],
    ) -> tuple[Float[Array, " d"], Any, tuple[Float[Array, "g e"], Float[Array, "g e"]]]:
        """The perturbation with every switch held at its angle phi.

        The gradient g is that of a network whose ReLUs are held at `angles`; where signs are
        followed, `sin phi` of `signs` stands for the sign of each coordinate of g.

        Shapes: g gradients, s ReLUs in the network, e = d where signs are followed and 0 elsewhere.

        Returns:
            the perturbation; what decides the ReLUs, as from `margin` with g gradients as the first
            axis; and g and rms(g), which decide the signs.
        """
        del start
        nothing = jax.vmap(lambda row: margin(x, row)[1])(angles)
        return jnp.zeros_like(x), nothing, (signs, signs)

    def smoothed(self, smoothing: Any) -> "AbstractPerturbation":
        """The perturbation with its signs rounded to the relative width `smoothing`, if any."""
        del smoothing
        return self

    def starts(self, num_examples: int, num_inputs: int) -> np.ndarray | None:
        """Starts of the iteration in the unit l_p ball, or None for zero. Shapes: (n, d)."""
        return None

    def check_fits(self, inputs: np.ndarray) -> None:
        """Raises ValueError if these examples cannot be perturbed. Shapes: inputs (n, d)."""


class Clean(AbstractPerturbation):
    """No perturbation; see `gflow.perturbations.clean`."""

    order: float = eqx.field(static=True, default=2.0)
    radius: float = eqx.field(static=True, default=0.0)

    def __call__(self, margin: Margin, x: Array, start: Array | None) -> Array:
        return jnp.zeros_like(x)


class FastGradient(AbstractPerturbation):
    """One step of length `radius`; see `gflow.perturbations.fgm` and `fgsm`."""

    radius: Any
    order: float = eqx.field(static=True)
    smoothing: Any

    def __call__(self, margin: Margin, x: Array, start: Array | None) -> Array:
        gradient = jax.grad(margin)(x)
        radius = jnp.asarray(self.radius, x.dtype)
        return -radius * _unit_step(gradient, self.order, self.smoothing)

    num_gradients: ClassVar[int] = 1

    @property
    def has_signs(self) -> bool:
        return _follows_signs(self.order, self.smoothing)

    def switched(
        self, margin: SwitchedMargin, x: Array, start: Array | None, angles: Array, signs: Array
    ) -> tuple[Array, Any, tuple[Array, Array]]:
        gradient, decided = jax.grad(margin, has_aux=True)(x, angles[0])
        step, signed = _switched_step(gradient, self.order, self.smoothing, signs[0])
        delta = -jnp.asarray(self.radius, x.dtype) * step
        return delta, *jax.tree.map(lambda leaf: leaf[None], (decided, signed))

    def smoothed(self, smoothing: Any) -> AbstractPerturbation:
        return FastGradient(self.radius, self.order, smoothing) if self.has_signs else self


class ProjectedGradient(AbstractPerturbation):
    """Several steps, each projected onto the ball; see `gflow.perturbations.pgd`."""

    radius: Any
    order: float = eqx.field(static=True)
    step_size: Any
    num_steps: int = eqx.field(static=True)
    random_start: int | None = eqx.field(static=True)
    box: Any
    smoothing: Any

    def __call__(self, margin: Margin, x: Array, start: Array | None) -> Array:
        def unit_step(point: Array, _: None) -> tuple[Array, None]:
            return _unit_step(jax.grad(margin)(point), self.order, self.smoothing), None

        return self._iterate(unit_step, x, start, None)[0]

    def _iterate(
        self, unit_step: Callable, x: Array, start: Array | None, inputs: Any
    ) -> tuple[Array, Any]:
        """`num_steps` steps along `unit_step(point, input) -> (step, output)`: the perturbation,
        and the outputs.

        The iterate lives in the unit ball, in units of the radius: there the projections have
        finite derivatives everywhere, and a radius of 0 is a number like any other.
        """
        radius = jnp.asarray(self.radius, x.dtype)
        unit = jnp.where(radius > 0, radius, 1.0)
        step_size = self._step_size(unit)

        def clip(point: Array) -> Array:
            if self.box is None:
                return point
            low, high = (jnp.asarray(edge, x.dtype) for edge in self.box)
            # It moves each coordinate towards 0, as x lies in the box: the ball is kept.
            return projections.projection_box(point, (low - x) / unit, (high - x) / unit)

        def step(point: Array, given: Any) -> tuple[Array, Any]:
            along, output = unit_step(x + radius * point, given)
            return clip(onto_unit_ball(point - step_size * along, self.order)), output

        first = jnp.zeros_like(x) if start is None else clip(jnp.asarray(start, x.dtype))
        last, outputs = lax.scan(step, first, inputs, length=self.num_steps)
        return radius * last, outputs

    @property
    def num_gradients(self) -> int:
        return self.num_steps

    @property
    def has_signs(self) -> bool:
        return _follows_signs(self.order, self.smoothing)

    def switched(
        self, margin: SwitchedMargin, x: Array, start: Array | None, angles: Array, signs: Array
    ) -> tuple[Array, Any, tuple[Array, Array]]:
        def unit_step(point: Array, given: tuple[Array, Array]) -> tuple[Array, Any]:
            gradient, decided = jax.grad(margin, has_aux=True)(point, given[0])
            step, signed = _switched_step(gradient, self.order, self.smoothing, given[1])
            return step, (decided, signed)

        delta, (decided, signed) = self._iterate(unit_step, x, start, (angles, signs))
        return delta, decided, signed

    def smoothed(self, smoothing: Any) -> AbstractPerturbation:
        if not self.has_signs:
            return self
        return eqx.tree_at(
            lambda p: p.smoothing, self, smoothing, is_leaf=lambda leaf: leaf is None
        )

    def starts(self, num_examples: int, num_inputs: int) -> np.ndarray | None:
        if self.random_start is None:
            return None
        generator = np.random.default_rng(self.random_start)
        return uniform_in_unit_ball(generator, num_examples, num_inputs, self.order)

    def check_fits(self, inputs: np.ndarray) -> None:
        if self.box is None or any(isinstance(edge, Tracer) for edge in self.box):
            return
        low, high = self.box
        if np.min(inputs) < low or np.max(inputs) > high:
            raise ValueError(
                f"`pgd(box=({low:g}, {high:g}))`: the examples reach from {np.min(inputs):g} to "
                f"{np.max(inputs):g}, beyond the box that perturbed examples must keep. Usually "
                "the box is meant for pixels of another scale: change it, or rescale the data."
            )

    def _step_size(self, unit: Array) -> Any:
        """Length of a step, in units of the radius."""
        if self.step_size is None:
            return 2.5 / self.num_steps
        return jnp.asarray(self.step_size, unit.dtype) / unit


def _follows_signs(order: float, smoothing: Any) -> bool:
    """Whether a step of this order is along signs that nothing smooths."""
    return math.isinf(order) and smoothing is None


def _unit_step(gradient: Array, order: float, smoothing: Any) -> Array:
    """The step of unit length along the gradient, its signs smoothed where asked."""
    if smoothing is None:
        return steepest(gradient, order)
    return smoothed_sign(gradient, jnp.asarray(smoothing, gradient.dtype))


def _switched_step(
    gradient: Array, order: float, smoothing: Any, signs: Array
) -> tuple[Array, tuple[Array, Array]]:
    """`_unit_step` with signs held at their angles, and what decides them: g and rms(g)."""
    if not signs.size:
        return _unit_step(gradient, order, smoothing), (signs, signs)
    size = norm(gradient) / math.sqrt(gradient.size)
    return jnp.sin(signs), (gradient, jnp.broadcast_to(size, gradient.shape))


def clean() -> Clean:
    """No perturbation: plain training, `delta = 0`."""
    return Clean()


def fgm(radius: Any, *, order: float | np.number = 2) -> FastGradient:
    """Fast gradient method: `delta = -radius * steepest_p(grad_x margin)`.

    `steepest_p(g)` is the vector of unit l_p norm with the largest product with g; `g / |g|_2` for
    p = 2. So `|delta|_p = radius`, or 0 where the gradient is 0.

    Args:
        radius: length of the perturbation in the l_p norm, input units, >= 0.
        order: p in [1, inf].

    Source: Goodfellow, Shlens & Szegedy 2015; Miyato, Dai & Goodfellow 2017; Lyu & Zhu 2022.
    """
    return FastGradient(scalar(radius, "radius"), _order(order, "fgm"), None)


def fgsm(radius: Any, *, smoothing: Any = 0.0) -> FastGradient:
    """Fast gradient sign method: `delta = -radius * sign(grad_x margin)`.

    Args:
        radius: length of the perturbation in the l_inf norm, input units, >= 0.
        smoothing: mu >= 0. Positive, it replaces sign(g) by `g / sqrt(g^2 + (mu rms(g))^2)`, which
            is smooth, scale invariant, and moves the limit by O(mu).

    Source: Goodfellow, Shlens & Szegedy 2015.
    """
    return FastGradient(scalar(radius, "radius"), math.inf, smoothing_leaf(smoothing))


def pgd(
    radius: Any,
    *,
    order: float | np.number = math.inf,
    step_size: Any = None,
    num_steps: int = 10,
    random_start: int | None = None,
    box: tuple[float, float] | None = None,
    smoothing: Any = 0.0,
) -> ProjectedGradient:
    """Projected gradient descent on the margin, in steps of fixed length.

    `delta <- Proj_{|.|_p <= radius}(delta - step_size * steepest_p(grad_x margin(x + delta)))`,
    repeated `num_steps` times. Steps along the raw gradient are not offered: they are not scale
    invariant, so training would not follow the margin theory.

    Args:
        radius: radius of the l_p ball, input units, >= 0.
        order: p, one of 1, 2 and inf.
        step_size: length of a step in the l_p norm, input units; by default
            `2.5 * radius / num_steps`.
        num_steps: number of steps, >= 1.
        random_start: None starts from 0; a seed starts each example from its own point, uniform in
            the ball, the same at every evaluation.
        box: (low, high), the range that `x + delta` must keep, such as (0.0, 1.0) for pixels.
        smoothing: for order inf, mu >= 0. Positive, steps along sign(g) go along
            `g / sqrt(g^2 + (mu rms(g))^2)` instead, as with `fgsm`: without it the flow slides
            along the kinks of the sign, in very many small steps.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of its range; smoothing with an order other than inf.

    Source: Madry, Makelov, Schmidt, Tsipras & Vladu 2018.
    """
    order = _order(order, "pgd")
    if order not in (1.0, 2.0, math.inf):
        raise ValueError(f"`pgd(order={order:g})`: projections exist for order 1, 2 and inf.")
    smoothing = smoothing_leaf(smoothing)
    if smoothing is not None and not math.isinf(order):
        raise ValueError(
            f"`pgd(order={order:g}, smoothing=...)`: only steps of order inf have kinks to smooth."
        )
    if not is_integer(num_steps) or num_steps < 1:
        raise ValueError(f"`pgd(num_steps={num_steps!r})` must be an integer of at least 1.")
    return ProjectedGradient(
        scalar(radius, "radius"),
        order,
        None if step_size is None else _step_size(step_size),
        int(num_steps),
        _seed(random_start),
        _box(box),
        smoothing,
    )


def _order(order: Any, name: str) -> float:
    if not isinstance(order, numbers.Real) or isinstance(order, bool):
        raise TypeError(
            f"`{name}(order={order!r})`: the order of an l_p norm is a number in [1, inf], such as "
            "2 or `math.inf`. It decides which program is compiled, so it cannot be traced."
        )
    number = float(order)
    if not number >= 1:
        raise ValueError(f"`{name}(order={order!r})`: the order of an l_p norm lies in [1, inf].")
    return number


def _step_size(step_size: Any) -> Any:
    number = scalar(step_size, "step_size")
    if isinstance(number, np.ndarray) and number == 0:
        raise ValueError(
            f"`pgd(step_size={step_size!r})` must be positive: steps of length 0 perturb nothing. "
            "For no perturbation use `clean()`."
        )
    return number


def _seed(random_start: int | None) -> int | None:
    if random_start is None:
        return None
    if not is_integer(random_start):
        raise TypeError(f"`pgd(random_start={random_start!r})`: None, or an integer seed.")
    if random_start < 0:
        raise ValueError(f"`pgd(random_start={random_start!r})`: a seed is not negative.")
    return int(random_start)


def _box(box: tuple[float, float] | None) -> tuple[Any, Any] | None:
    if box is None:
        return None
    try:
        low, high = box
    except (TypeError, ValueError):
        raise TypeError(f"`pgd(box={box!r})`: None, or a pair (low, high).") from None
    low, high = (scalar(edge, "box", minimum=-math.inf) for edge in (low, high))
    traced = any(isinstance(edge, Tracer) for edge in (low, high))
    if not traced and low >= high:
        raise ValueError(f"`pgd(box={box!r})`: the lower edge must be below the upper edge.")
    return low, high
