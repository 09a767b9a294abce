"""FGM and FGSM: one step, in closed form."""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gflow._checks import scalar, smoothing_leaf
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


@storable("FastGradient")
class FastGradient(AbstractPerturbation):
    """One step of length `radius`; see `gflow.perturbations.fgm` and `fgsm`."""

    radius: Any
    order: float = eqx.field(static=True)
    smoothing: Any

    def __call__(self, margin: Margin, x: Array, start: Array | None) -> Array:
        gradient = jax.grad(margin)(x)
        radius = jnp.asarray(self.radius, x.dtype)
        return -radius * unit_step(gradient, self.order, self.smoothing)

    num_gradients: ClassVar[int] = 1
    follows_gradient: ClassVar[bool] = True

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
        gradient, decided = jax.grad(margin, has_aux=True)(x, angles[0])
        step, turned = switched_step(gradient, self.order, self.smoothing, smoothing, steps[0])
        delta = -jnp.asarray(self.radius, x.dtype) * step
        return delta, *jax.tree.map(lambda leaf: leaf[None], (decided, turned))

    def smoothed(self, smoothing: Any) -> AbstractPerturbation:
        kinks = has_kinks(self.order, self.smoothing)
        return FastGradient(self.radius, self.order, smoothing) if kinks else self


@named()
def fgm(radius: Any, *, order: float | np.number = 2) -> FastGradient:
    """Fast gradient method: `delta = -radius * steepest_p(grad_x margin)`.

    `steepest_p(g)` is the vector of unit l_p norm with the largest product with g; `g / |g|_2` for
    p = 2. So `|delta|_p = radius`, or 0 where the gradient is 0.

    Args:
        radius: length of the perturbation in the l_p norm, input units, >= 0.
        order: p in [1, inf].

    Source: Goodfellow, Shlens & Szegedy 2015; Miyato, Dai & Goodfellow 2017; Lyu & Zhu 2022.
    """
    return FastGradient(scalar(radius, "radius"), checked_order(order, "fgm"), None)


@named(order="FGSM is of order inf; `fgm(radius, order=...)` takes any other.")
def fgsm(radius: Any, *, smoothing: Any = 0.0) -> FastGradient:
    """Fast gradient sign method: `delta = -radius * sign(grad_x margin)`.

    Args:
        radius: length of the perturbation in the l_inf norm, input units, >= 0.
        smoothing: mu >= 0. Positive, it replaces sign(g) by `g / sqrt(g^2 + (mu rms(g))^2)`, which
            is smooth, scale invariant, and moves the limit by O(mu).

    Source: Goodfellow, Shlens & Szegedy 2015.
    """
    return FastGradient(scalar(radius, "radius"), math.inf, smoothing_leaf(smoothing))
