"""What a perturbation is, and none at all."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._description import shown, storable
from gflow._signatures import named

Margin = Callable[[Array], Array]
"""The margin of one example as a function of its input: (d,) -> ()."""

SwitchedMargin = Callable[[Array, Array], tuple[Array, Any]]
"""(input, angles of switches) -> the margin, and what decides the angles; see
`gflow.networks.AbstractNetwork.switched`."""


class AbstractPerturbation(eqx.Module):
    """A perturbation of one example's input.

    Attributes:
        order: p of the l_p ball that holds the perturbation.
        radius: the radius of that ball, in input units.
    """

    order: eqx.AbstractVar[float]
    radius: eqx.AbstractVar[Any]

    def __repr__(self) -> str:
        return shown(self)

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
    def follows_gradient(self) -> bool:
        """Whether it depends on the example through gradients of its margin alone, and turns round
        with them: `delta(-g) = -delta(g)`. Where the network is linear in its inputs, one attack
        then serves all examples, up to their labels.
        """
        return False

    @property
    def num_gradients(self) -> int:
        """How many gradients of the margin one perturbation takes."""
        return 0

    def num_switches(self, num_inputs: int) -> int:
        """Switches of a step along one gradient, for inputs (num_inputs,).

        Signs of coordinates that nothing smooths, each with a kink at 0; or, for steps of order 1,
        those that select the coordinate of largest magnitude.
        """
        del num_inputs
        return 0

    @property
    def has_named_kinks(self) -> bool:
        """Whether `switched` is this perturbation; it is not where a user's class lacks it."""
        return type(self).switched is not AbstractPerturbation.switched

    def switched(
        self,
        margin: SwitchedMargin,
        x: Float[Array, " d"],
        start: Float[Array, " d"] | None,
        angles: Float[Array, "g s"],
        steps: Float[Array, "g e"],
        smoothing: Any,
    ) -> tuple[Float[Array, " d"], Any, tuple[Float[Array, "g e"], Float[Array, "g e"]]]:
        """The perturbation with every switch held at its angle phi.

        The gradient g is that of a margin whose switches are held at `angles`; of the switches of a
        step at the angles `steps`, where it follows signs, `sin phi` stands for the sign of each
        coordinate of g, and where it selects the largest coordinate, see `gflow._selection`.

        Shapes: g gradients, s switches of the margin, e = `num_switches(d)`.

        Returns:
            `(delta, decided, (values, scales))`: the perturbation (d,); what decides the margin's
            switches, as `margin` gives it, with a row for each gradient, (g, s); and the values v
            and scales w that decide the switches of the steps, with a row for each gradient too,
            (g, e).
        """
        del start, smoothing
        nothing = jax.vmap(lambda row: margin(x, row)[1])(angles)
        return jnp.zeros_like(x), nothing, (steps, steps)

    def smoothed(self, smoothing: Any) -> "AbstractPerturbation":
        """The perturbation with the kinks of its steps rounded to the relative width `smoothing`,
        if any.
        """
        del smoothing
        return self

    def starts(self, num_examples: int, num_inputs: int) -> np.ndarray | None:
        """Starts of the iteration in the unit l_p ball, or None for zero. Shapes: (n, d)."""
        return None

    def check_fits(self, inputs: np.ndarray) -> None:
        """Raises ValueError if these examples cannot be perturbed. Shapes: inputs (n, d)."""


@storable("Clean")
class Clean(AbstractPerturbation):
    """No perturbation; see `gflow.perturbations.clean`."""

    order: float = eqx.field(static=True, default=2.0)
    radius: float = eqx.field(static=True, default=0.0)

    def __call__(self, margin: Margin, x: Array, start: Array | None) -> Array:
        return jnp.zeros_like(x)

    @property
    def follows_gradient(self) -> bool:
        return True  # the perturbation 0 turns round with any gradient

    @property
    def has_named_kinks(self) -> bool:
        return True


@named()
def clean() -> Clean:
    """No perturbation: plain training, `delta = 0`."""
    return Clean()
