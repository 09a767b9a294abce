"""Optimizers of the theory's experiments that optax does not have, as optax transformations."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from gflow._checks import one_of, scalar
from gflow._signatures import named

# Lyu & Li 2020, their loss-based scheduling: the factors after a success and after a failure.
GROWTH = 2.0 ** (1 / 5)
SHRINKAGE = 2.0 ** (-1 / 10)


class LossBasedState(NamedTuple):
    """What `loss_based` carries along.

    Attributes:
        step_size: alpha.
        num_failures: steps that were rolled back.
    """

    step_size: Float[Array, ""]
    num_failures: Int[Array, ""]


@dataclass(frozen=True)
class _LossBased:
    """The update of `loss_based`; equal ones share their compiled programs."""

    objective: Literal["loss", "log_loss"]

    def __call__(
        self,
        updates: Any,
        state: LossBasedState,
        params: Any,
        *,
        value: Any,
        value_fn: Any,
        **_: Any,
    ) -> tuple[Any, LossBasedState]:
        scale = -state.step_size / (value if self.objective == "loss" else 1.0)
        update = jax.tree.map(lambda leaf: scale * leaf, updates)
        tried = value_fn(optax.apply_updates(params, update))
        success = tried <= value  # false for a NaN
        # Rolled back, the weights stay as they are to the last bit.
        update = jax.tree.map(lambda leaf: jnp.where(success, leaf, jnp.zeros_like(leaf)), update)
        factor = jnp.where(success, GROWTH, SHRINKAGE)
        failures = state.num_failures + (~success).astype(state.num_failures.dtype)
        return update, LossBasedState(state.step_size * factor, failures)


@dataclass(frozen=True)
class _Start:
    step_size: float

    def __call__(self, params: Any) -> LossBasedState:
        return LossBasedState(jnp.asarray(self.step_size, float), jnp.zeros((), jnp.int64))


@named()
def loss_based(
    step_size: float = 0.1, *, objective: Literal["loss", "log_loss"] = "log_loss"
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with the loss-based step sizes of Lyu & Li: `alpha / Loss`.

    `params <- params - (alpha / Loss) grad Loss`. Where that does not raise the loss, the step is a
    success, and alpha is multiplied by `2^(1/5)`; otherwise the weights are rolled back, so that
    the step changes nothing, and alpha is multiplied by `2^(-1/10)`. The loss of the trial point is
    a second evaluation a step; of mini-batches it is that of the same batch. With the objective
    "log_loss" nothing underflows, however small the loss.

    Args:
        step_size: the first alpha, > 0. `Loss` being the sum over examples or their mean makes no
            difference to the step.
        objective: what `gflow.descend` is given as its own `objective`.

    Raises:
        TypeError, ValueError: `step_size` is not positive; another objective.

    Source: Lyu & Li 2020, "Gradient descent maximizes the margin of homogeneous neural networks",
    the loss-based learning rate scheduling of their experiments.
    """
    size = float(scalar(step_size, "step_size"))
    if size == 0:
        raise ValueError(f"`loss_based(step_size={step_size!r})` must be positive.")
    if not one_of(objective, ("loss", "log_loss")):
        raise ValueError(f"`loss_based(objective={objective!r})`: choose 'loss' or 'log_loss'.")
    start, update = _Start(size), _LossBased(objective)
    return optax.GradientTransformationExtraArgs(start, update)  # pyright: ignore[reportArgumentType]


__all__ = ["GROWTH", "SHRINKAGE", "LossBasedState", "loss_based"]
