"""Loss functions of the margin, always in logarithms.

A loss is decreasing in the margin, and the loss of a data set is the **sum** over its examples.
With classes, the margins of an example against every other class are first joined to one,
`q = -log sum_j exp(-m_j)`, for which the logistic loss is the cross-entropy (the multi-class
extension of Lyu & Li 2020).

No function here forms `exp(-q)` on its own: all are right for margins from -1e4 to 1e300.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from gflow._description import storable
from gflow._signatures import named

# From this margin on, log(log(1 + e^-q)) and -q - e^-q / 2 agree to the last bit.
_TAIL = 37.0


class AbstractLoss(eqx.Module):
    """A loss `l(q)` of one margin: decreasing, positive, and scale-free in its tail."""

    @abc.abstractmethod
    def log_value(self, margin: Float[Array, "..."]) -> Float[Array, "..."]:
        """`log l(q)`, elementwise."""

    @abc.abstractmethod
    def log_slope(self, margin: Float[Array, "..."]) -> Float[Array, "..."]:
        """`log(-l'(q))`, elementwise: the logarithm of the example's weight in the gradient."""

    @abc.abstractmethod
    def inverse(self, log_loss: Float[Array, "..."]) -> Float[Array, "..."]:
        """`l^{-1}(exp(log_loss))`: the margin at which one example alone has this loss."""

    def log_loss(self, margins: Float[Array, "n ..."]) -> Float[Array, ""]:
        """`log sum_i l(q_i)` of all examples.

        Shapes: margins (n,) for binary labels, (n, k - 1) for classes.
        """
        return logsumexp(self.log_value(example_margins(margins)))

    def log_weights(self, margins: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """`log(-d Loss / d m)` for every margin, in the shape of `margins`."""
        if margins.ndim == 1:
            return self.log_slope(margins)
        slope = self.log_slope(example_margins(margins))
        return slope[:, None] + jax.nn.log_softmax(-margins, axis=-1)


@named()
def example_margins(margins: Float[Array, "n ..."]) -> Float[Array, " n"]:
    """One margin an example: itself, or `-log sum_j exp(-m_j)` over the other classes."""
    return margins if margins.ndim == 1 else -logsumexp(-margins, axis=-1)


@storable("Exponential")
class Exponential(AbstractLoss):
    """`l(q) = exp(-q)`; see `gflow.losses.exponential`."""

    def log_value(self, margin: Float[Array, "..."]) -> Float[Array, "..."]:
        return -margin

    def log_slope(self, margin: Float[Array, "..."]) -> Float[Array, "..."]:
        return -margin

    def inverse(self, log_loss: Float[Array, "..."]) -> Float[Array, "..."]:
        return -log_loss


@storable("Logistic")
class Logistic(AbstractLoss):
    """`l(q) = log(1 + exp(-q))`; see `gflow.losses.logistic`."""

    def log_value(self, margin: Float[Array, "..."]) -> Float[Array, "..."]:
        # `where` and not `minimum`, whose derivative at a tie is a half.
        tail = margin > _TAIL
        near = jnp.log(jax.nn.softplus(-jnp.where(tail, _TAIL, margin)))
        far = jnp.where(tail, margin, _TAIL)
        return jnp.where(tail, -far - 0.5 * jnp.exp(-far), near)

    def log_slope(self, margin: Float[Array, "..."]) -> Float[Array, "..."]:
        return jax.nn.log_sigmoid(-margin)

    def inverse(self, log_loss: Float[Array, "..."]) -> Float[Array, "..."]:
        # -log(expm1(x)) with x = exp(log_loss), which underflows long before its logarithm does.
        tail = log_loss < -_TAIL
        loss = jnp.exp(jnp.where(tail, -_TAIL, log_loss))
        near = -loss - jnp.log(-jnp.expm1(-loss))
        far = jnp.where(tail, log_loss, -_TAIL)
        return jnp.where(tail, -far - 0.5 * jnp.exp(far), near)


@named()
def exponential() -> Exponential:
    """The exponential loss `l(q) = exp(-q)`, summed over examples."""
    return Exponential()


@named()
def logistic() -> Logistic:
    """The logistic loss `l(q) = log(1 + exp(-q))`, summed over examples.

    With classes it is the cross-entropy of the network's outputs.
    """
    return Logistic()


__all__ = ["AbstractLoss", "Exponential", "Logistic", "example_margins", "exponential", "logistic"]
