"""PGD: several steps, each projected onto the ball."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array
from optax import projections

from gflow._balls import onto_unit_ball, uniform_in_unit_ball
from gflow._checks import is_integer, scalar, smoothing_leaf
from gflow._description import storable
from gflow._signatures import named
from gflow.perturbations._base import AbstractPerturbation, Margin, SwitchedMargin
from gflow.perturbations._steps import (
    checked_order,
    has_kinks,
    num_switches,
    switched_step,
    unit_step,
)

# In units of the radius.
_LONGEST_STEP = 1e300


@storable("ProjectedGradient")
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
        def along(point: Array, _: None) -> tuple[Array, None]:
            return unit_step(jax.grad(margin)(point), self.order, self.smoothing), None

        return self._iterate(along, x, start, None)[0]

    def _iterate(
        self, along: Callable, x: Array, start: Array | None, inputs: Any
    ) -> tuple[Array, Any]:
        """`num_steps` steps along `along(point, input) -> (step, output)`: the perturbation,
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

        def perturbation(point: Array) -> Array:
            if self.box is None:
                return radius * point
            low, high = (jnp.asarray(edge, x.dtype) for edge in self.box)
            return _kept_in_box(radius * point, x, low, high)

        def stepped(point: Array, given: Any) -> tuple[Array, Any]:
            step, output = along(x + perturbation(point), given)
            return clip(onto_unit_ball(point - step_size * step, self.order)), output

        first = jnp.zeros_like(x) if start is None else clip(jnp.asarray(start, x.dtype))
        last, outputs = lax.scan(stepped, first, inputs, length=self.num_steps)
        return perturbation(last), outputs

    @property
    def follows_gradient(self) -> bool:
        return self.box is None and self.random_start is None

    @property
    def num_gradients(self) -> int:
        return self.num_steps

    def num_switches(self, num_inputs: int) -> int:
        return num_switches(self.order, self.smoothing, num_inputs)

    def switched(
        self,
        margin: SwitchedMargin,
        x: Array,
        start: Array | None,
        angles: Array,
        steps: Array,
        smoothing: Any,
    ) -> tuple[Array, Any, tuple[Array, Array]]:
        def along(point: Array, given: tuple[Array, Array]) -> tuple[Array, Any]:
            gradient, decided = jax.grad(margin, has_aux=True)(point, given[0])
            step, turned = switched_step(gradient, self.order, self.smoothing, smoothing, given[1])
            return step, (decided, turned)

        delta, (decided, turned) = self._iterate(along, x, start, (angles, steps))
        return delta, decided, turned

    def smoothed(self, smoothing: Any) -> AbstractPerturbation:
        if not has_kinks(self.order, self.smoothing):
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
        # Beside a step this long the point before it is rounding; its square would overflow.
        return jnp.minimum(jnp.asarray(self.step_size, unit.dtype) / unit, _LONGEST_STEP)


def _kept_in_box(delta: Array, x: Array, low: Array, high: Array) -> Array:
    """`delta` with what rounding left beyond the box removed: `low <= x + delta <= high` exactly.

    For x in the box. The difference to an edge is itself rounded, by half a unit in the last place
    of `delta` at most, so that one unit less is enough. The derivatives are those of `delta`, to
    which the correction, a constant for them, is added: both are so close that nothing is rounded.
    """
    held, x, low, high = map(lax.stop_gradient, (delta, x, low, high))
    kept = jnp.clip(held, low - x, high - x)
    reached = x + kept
    beyond = (reached < low) | (reached > high)
    kept = jnp.where(beyond, jnp.nextafter(kept, jnp.zeros_like(kept)), kept)
    return delta + (kept - held)


@named()
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
    order = checked_order(order, "pgd")
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
