"""A problem: network, data set, loss and perturbation, and what they say of parameters.

The only place where one example becomes all of them (`vmap`). Every function is pure; the public
methods are compiled on first use.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int

from gflow._description import storable
from gflow._numerics import check_x64, scaled_margins, tree_scale
from gflow._parts import check_parts, warn_of_radius
from gflow._programs import PROGRAMS, compiled
from gflow._signatures import named
from gflow._typing import Inputs, Params, Scalar
from gflow.datasets import Dataset
from gflow.losses import AbstractLoss
from gflow.networks import AbstractNetwork
from gflow.perturbations import AbstractPerturbation, Clean, clean

GradientMode = Literal["frozen", "total"]


class Ascent(NamedTuple):
    """The negative gradient of the loss, split so that nothing overflows.

    `-grad Loss(params) = exp(log_weight) * vector` where `log_weight = log sum_i -l'(q_i)` and
    `vector = sum_i p_i grad q_i` with `p_i = -l'(q_i) / sum_j -l'(q_j)`; for classes the sums run
    over all n (k - 1) margins, with `-dLoss/dm_ij` in place of `-l'(q_i)`.
    """

    margins: Float[Array, "n ..."]
    weights: Float[Array, "n ..."]
    log_weight: Float[Array, ""]
    vector: Params


@storable("Problem")
class Problem(eqx.Module):
    """Adversarial training of a network on a data set: what is minimised.

    `Loss(params) = sum_i l(q_i)`, `q_i = y_i f(x_i + delta_i(params); params)`; a *sum* over
    examples, not a mean.

    Args:
        network: from `gflow.networks`.
        dataset: a `gflow.Dataset`.
        loss: from `gflow.losses`.
        perturbation: from `gflow.perturbations`; `clean()` by default.
        gradient: "frozen" differentiates with delta held fixed, as adversarial training does
            (Danskin's theorem at an exact adversary); "total" differentiates through delta, which
            is what makes the smoothed margin monotone (Lyu & Zhu 2022). They agree for linear
            networks and for exact adversaries.

    Raises:
        TypeError: an argument is not what it should be.
        ValueError: the network's inputs or outputs do not fit the data set; from every method, JAX
            does not compute in float64.

    Warns:
        UserWarning: the radius and the inputs look as if they were given in different units (see
            `gflow._parts`).
    """

    network: AbstractNetwork
    dataset: Dataset
    loss: AbstractLoss
    perturbation: AbstractPerturbation
    starts: Inputs | None
    gradient_mode: GradientMode = eqx.field(static=True)

    @named(loss="It comes from `gflow.losses`: `loss=gflow.losses.logistic()`.")
    def __init__(
        self,
        network: AbstractNetwork,
        dataset: Dataset,
        *,
        loss: AbstractLoss,
        perturbation: AbstractPerturbation | None = None,
        gradient: GradientMode = "frozen",
    ):
        perturbation = clean() if perturbation is None else perturbation
        check_parts(network=network, dataset=dataset, loss=loss, perturbation=perturbation)
        if gradient not in ("frozen", "total"):
            raise ValueError(f"`Problem(gradient={gradient!r})`: choose 'frozen' or 'total'.")
        network.check_fits(dataset.x.shape[1], dataset.num_outputs)
        perturbation.check_fits(np.asarray(dataset.x))
        warn_of_radius(perturbation, np.asarray(dataset.x))
        self.network = network
        self.dataset = dataset
        self.loss = loss
        self.perturbation = perturbation
        self.starts = perturbation.starts(*dataset.x.shape)
        self.gradient_mode = gradient
        PROGRAMS.serve(self)

    @property
    def degree(self) -> float:
        """Homogeneity degree L of the network, and so of the margins, in the parameters."""
        return self.network.degree

    @compiled
    def perturbations(self, params: Params) -> Float[Array, "n d"]:
        """`delta_i(params)` for every example, in input units. Shapes: (n, d)."""
        x, y = self._examples()
        starts = None if self.starts is None else jnp.asarray(self.starts)
        axes = (None, 0, 0, None if starts is None else 0)
        return jax.vmap(self._perturb, axes)(params, x, y, starts)

    @compiled
    def margins(self, params: Params) -> Float[Array, "n ..."]:
        """Adversarial margins `q_i = y_i f(x_i + delta_i; params)`.

        Shapes: (n,); for classes (n, k - 1), the margins against every other class.
        """
        return self.margins_at(params, self.perturbations(params))

    @compiled
    def clean_margins(self, params: Params) -> Float[Array, "n ..."]:
        """Margins `y_i f(x_i; params)` without perturbation, in the shape of `margins`."""
        x, _ = self._examples()
        return self.margins_at(params, jnp.zeros_like(x))

    @compiled
    def margins_at(self, params: Params, delta: Float[Array, "n d"]) -> Float[Array, "n ..."]:
        """Margins at given perturbations `delta`, held fixed. Shapes: delta (n, d)."""
        x, y = self._examples()
        return jax.vmap(self._margin, (None, 0, 0))(params, x + delta, y)

    @compiled
    def log_loss(self, params: Params) -> Float[Array, ""]:
        """`log sum_i l(q_i)`, the logarithm of the adversarial loss."""
        return self.loss.log_loss(self.margins(params))

    @compiled
    def gradient(self, params: Params) -> Params:
        """`grad Loss(params)`, in the problem's gradient mode, with the structure of `params`.

        It underflows to 0 where every margin exceeds about 700, and with the exponential loss it
        overflows at margins below about -700; `ascent` does neither.
        """
        ascent = self.ascent(params)
        return tree_scale(-jnp.exp(ascent.log_weight), ascent.vector)

    def ascent(
        self,
        params: Params,
        log_kappa: Scalar = 0.0,
        assumed: Float[Array, "n ..."] | None = None,
    ) -> Ascent:
        """Margins and the weighted mean of their gradients at `params`.

        The weights are those of parameters `kappa^(1/L) params`: margins are L-homogeneous, so that
        `kappa q_i(params)` enters the loss. This reads a flow at any norm from a unit direction.
        Margins and their gradients remain those of `params` itself; with margins `assumed` in their
        place, the weights are those of these.
        """
        # An array, since a Python number would be compiled into the program.
        return self._ascent(params, jnp.asarray(log_kappa, float), assumed)

    @compiled
    def _ascent(self, params: Params, log_kappa: Array, assumed: Array | None) -> Ascent:
        margins, pull_back = self.linearize(params)
        log_weights = self.log_weights(margins if assumed is None else assumed, log_kappa)
        # Not exp(log_weights - log_weight): at weights of e^-1e20 that sum has lost its log 2.
        weights = jax.nn.softmax(log_weights, axis=None)
        return Ascent(margins, weights, logsumexp(log_weights), pull_back(weights)[0])

    def log_weights(
        self, margins: Float[Array, "n ..."], log_kappa: Scalar
    ) -> Float[Array, "n ..."]:
        """`log(-dLoss/dm)` where the margins are kappa times the given ones, in their shape."""
        return self.loss.log_weights(scaled_margins(jnp.exp(log_kappa), margins))

    def linearize(self, params: Params):
        """Margins, and the function that maps weights w to `(sum_i w_i grad q_i,)`.

        The gradients are those of the gradient mode: at fixed delta for "frozen", through delta for
        "total". In frozen mode delta enters as a value computed outside, so that a derivative of
        the gradients themselves still sees how delta depends on `params`.
        """
        return jax.vjp(self.free_margins(params), params)

    def free_margins(self, params: Params) -> Callable[[Params], Array]:
        """The margins as the function that the gradient mode differentiates at `params`."""
        if self.gradient_mode == "total":
            return self.margins
        delta = self.perturbations(params)
        return lambda free: self.margins_at(free, delta)

    @property
    def gradients_are_slopes(self) -> bool:
        """Whether the mode's gradients are, whatever the parameters, those through delta."""
        return self.gradient_mode == "total" or isinstance(self.perturbation, Clean)

    @compiled
    def margin_gradients(
        self, params: Params, examples: Int[Array, " m"], *, gradient: GradientMode | None = None
    ) -> Params:
        """`grad q_i(params)` for each of the named examples, in the problem's gradient mode or in
        the one given.

        Shapes: leaves (m, *leaf.shape); for classes (m, k - 1, *leaf.shape).
        """
        total = (gradient or self.gradient_mode) == "total"
        x, y = self._examples()
        starts = None if self.starts is None else jnp.asarray(self.starts)[examples]
        axes = (None, 0, 0, None if starts is None else 0)
        one = partial(self._margin_gradient, total)
        return jax.vmap(one, axes)(params, x[examples], y[examples], starts)

    def _margin_gradient(
        self, total: bool, params: Params, x: Array, y: Array, start: Array | None
    ) -> Params:
        delta = self._perturb(params, x, y, start)

        def margin(free: Params) -> Array:
            return self._margin(free, x + (self._perturb(free, x, y, start) if total else delta), y)

        return jax.jacrev(margin)(params)

    def _examples(self) -> tuple[Array, Array]:
        # Every method comes by here, and is compiled anew where x64 is switched on or off.
        check_x64()
        return jnp.asarray(self.dataset.x), jnp.asarray(self.dataset.y)

    def margin_of(self, output: Array, y: Array) -> Array:
        """The margin of one example: `y f`, or for classes `f_y - f_j`. Shapes: () or (k - 1,)."""
        return y * output if self.dataset.binary else _against_others(output, y)

    def attacked(self, margin: Array) -> Array:
        """The margin that the attack lowers: for classes, that against the runner-up."""
        # Indexing rather than the minimum, whose gradient at a tie is a mean over the rivals.
        return margin if self.dataset.binary else margin[jnp.argmin(margin)]

    def _margin(self, params: Params, x: Array, y: Array) -> Array:
        return self.margin_of(self.network.apply(params, x), y)

    def _perturb(self, params: Params, x: Array, y: Array, start: Array | None) -> Array:
        def attacked_margin(point: Array) -> Array:
            return self.attacked(self._margin(params, point, y))

        return self.perturbation(attacked_margin, x, start)


def _against_others(output: Float[Array, " k"], y: Int[Array, ""]) -> Float[Array, " c"]:
    """`f_y - f_j` for the k - 1 other classes j = y+1, .., y+k-1 (mod k)."""
    num_classes = output.shape[0]
    others = (y + jnp.arange(1, num_classes, dtype=y.dtype)) % num_classes
    return output[y] - output[others]
