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
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from optax import projections

from gflow._numerics import scalar, smoothed_sign, smoothing_leaf, steepest

Margin = Callable[[Array], Array]
"""The margin of one example as a function of its input: (d,) -> ()."""


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

    def starts(self, num_examples: int, num_inputs: int) -> np.ndarray | None:
        """Starts of the iteration in the unit l_p ball, or None for zero. Shapes: (n, d)."""
        return None


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
        if self.smoothing is None:
            return -self.radius * steepest(gradient, self.order)
        return -self.radius * smoothed_sign(gradient, self.smoothing)


class ProjectedGradient(AbstractPerturbation):
    """Several steps, each projected onto the ball; see `gflow.perturbations.pgd`."""

    radius: Any
    order: float = eqx.field(static=True)
    step_size: Any
    num_steps: int = eqx.field(static=True)
    random_start: int | None = eqx.field(static=True)
    box: Any

    def __call__(self, margin: Margin, x: Array, start: Array | None) -> Array:
        step_size = self.step_size
        if step_size is None:
            step_size = 2.5 * self.radius / self.num_steps

        def step(delta: Array, _: None) -> tuple[Array, None]:
            gradient = jax.grad(margin)(x + delta)
            return self._project(x, delta - step_size * steepest(gradient, self.order)), None

        first = jnp.zeros_like(x) if start is None else self._project(x, self.radius * start)
        return lax.scan(step, first, None, length=self.num_steps)[0]

    def starts(self, num_examples: int, num_inputs: int) -> np.ndarray | None:
        if self.random_start is None:
            return None
        generator = np.random.default_rng(self.random_start)
        return _uniform_in_ball(generator, num_examples, num_inputs, self.order)

    def _project(self, x: Array, delta: Array) -> Array:
        project = {
            1.0: projections.projection_l1_ball,
            2.0: projections.projection_l2_ball,
            math.inf: projections.projection_linf_ball,
        }[self.order]
        delta = project(delta, self.radius)
        if self.box is None:
            return delta
        # Clipping moves each coordinate towards 0 while x lies in the box, so it keeps the ball.
        return projections.projection_box(x + delta, self.box[0], self.box[1]) - x


def clean() -> Clean:
    """No perturbation: plain training, `delta = 0`."""
    return Clean()


def fgm(radius: Any, *, order: float = 2) -> FastGradient:
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
    order: float = math.inf,
    step_size: Any = None,
    num_steps: int = 10,
    random_start: int | None = None,
    box: tuple[float, float] | None = None,
) -> ProjectedGradient:
    """Projected gradient descent on the margin, in steps of fixed length.

    `delta <- Proj_{|.|_p <= radius}(delta - step_size * steepest_p(grad_x margin(x + delta)))`,
    repeated `num_steps` times. Steps along the raw gradient are not offered: they are not scale
    invariant, so training would not follow the margin theory.

    Args:
        radius: radius of the l_p ball, input units, >= 0.
        order: p, one of 1, 2 and inf.
        step_size: length of a step in the l_p norm, input units; `2.5 * radius / num_steps` if None.
        num_steps: number of steps, >= 1.
        random_start: None starts from 0; a seed starts each example from its own point, uniform in
            the ball, the same at every evaluation.
        box: (low, high), the range that `x + delta` must keep, such as (0.0, 1.0) for pixels.

    Source: Madry, Makelov, Schmidt, Tsipras & Vladu 2018.
    """
    order = _order(order, "pgd")
    if order not in (1.0, 2.0, math.inf):
        raise ValueError(f"`pgd(order={order:g})`: projections exist for order 1, 2 and inf.")
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"`pgd(num_steps={num_steps!r})` must be an integer of at least 1.")
    return ProjectedGradient(
        scalar(radius, "radius"),
        order,
        None if step_size is None else scalar(step_size, "step_size"),
        num_steps,
        _seed(random_start),
        _box(box),
    )


def _order(order: float, name: str) -> float:
    number = float(order)
    if not number >= 1:
        raise ValueError(f"`{name}(order={order!r})`: the order of an l_p norm lies in [1, inf].")
    return number


def _seed(random_start: int | None) -> int | None:
    if random_start is None:
        return None
    if isinstance(random_start, bool) or not isinstance(random_start, (int, np.integer)):
        raise TypeError(f"`pgd(random_start={random_start!r})`: None, or an integer seed.")
    if random_start < 0:
        raise ValueError(f"`pgd(random_start={random_start!r})`: a seed is not negative.")
    return int(random_start)


def _uniform_in_ball(
    generator: np.random.Generator, num_points: int, dimension: int, order: float
) -> np.ndarray:
    """Points uniform in the unit l_p ball, p in {1, 2, inf}. Shapes: (num_points, dimension).

    p = 2: the first d coordinates of a uniform point on the sphere in d + 2 dimensions; p = 1: of a
    uniform point on the l_1 sphere in d + 1 dimensions (Barthe, Guedon, Mendelson & Naor 2005).
    """
    if math.isinf(order):
        return generator.uniform(-1.0, 1.0, (num_points, dimension))
    if order == 2:
        normal = generator.normal(size=(num_points, dimension + 2))
        return normal[:, :-2] / np.linalg.norm(normal, axis=1, keepdims=True)
    laplace = generator.laplace(size=(num_points, dimension + 1))
    return laplace[:, :-1] / np.abs(laplace).sum(axis=1, keepdims=True)


def _box(box: tuple[float, float] | None) -> tuple[Any, Any] | None:
    if box is None:
        return None
    low, high = (scalar(edge, "box", minimum=-math.inf) for edge in box)
    if np.any(low >= high):
        raise ValueError(f"`pgd(box={box!r})`: the lower edge must be below the upper edge.")
    return low, high
