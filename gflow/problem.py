"""A problem: network, data set, loss and perturbation, and its margins at given parameters.

The functions of one example (`gflow._one_example`) are mapped over all examples here and nowhere
else. Every function is pure; the public methods are compiled on first use.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int

from gflow._checks import check_x64, one_of
from gflow._description import shown, storable
from gflow._leaves import check_params, is_array_of_numbers
from gflow._memory_maps import PROGRAMS
from gflow._methods import light
from gflow._numerics import scaled_margins, tree_scale
from gflow._one_example import Attack, OneExample
from gflow._parts import check_parts, chosen_rivals, warn_of_radius
from gflow._programs import compiled
from gflow._selection import select_smallest
from gflow._signatures import named
from gflow._typing import Inputs, Params, Scalar
from gflow.datasets import Dataset
from gflow.losses import AbstractLoss
from gflow.networks import AbstractNetwork
from gflow.perturbations import AbstractPerturbation, Clean, clean
from gflow.rivals import Rivals

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
        rivals: for three classes or more, which margin an attack lowers. "worst": of the attacks
            made against each rival class separately, the one that leaves the smallest margin;
            "runner_up": at every gradient the smallest margin there, one attack for all rivals;
            "each": a perturbation against every rival, whose margin is taken at its own (smooth; an
            upper bound of the cross-entropy). See `gflow.rivals`. Where there is no choice, as with
            two classes or without a perturbation, the three are one, and `problem.rivals` is
            "runner_up".

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
    # What problems in files written before there was a choice were attacked by.
    rivals: Rivals = eqx.field(static=True, default="runner_up")
    # The relative width to which the choice among rivals is rounded, where it is.
    rival_smoothing: Any = None
    # The size of an input gradient, at |params| = 1, below which the attack on an example fades.
    attack_floor: Any = None
    # The network whose gradients the attack follows, where it is a twin of `network`.
    attacked_network: AbstractNetwork | None = None

    @named(loss="It comes from `gflow.losses`: `loss=gflow.losses.logistic()`.")
    def __init__(
        self,
        network: AbstractNetwork,
        dataset: Dataset,
        *,
        loss: AbstractLoss,
        perturbation: AbstractPerturbation | None = None,
        gradient: GradientMode = "frozen",
        rivals: Rivals = "worst",
    ):
        perturbation = clean() if perturbation is None else perturbation
        check_parts(network=network, dataset=dataset, loss=loss, perturbation=perturbation)
        if not one_of(gradient, ("frozen", "total")):
            raise ValueError(f"`Problem(gradient={gradient!r})`: choose 'frozen' or 'total'.")
        rivals = chosen_rivals(rivals, dataset, perturbation)
        network.check_fits(dataset.x.shape[1], dataset.num_outputs)
        perturbation.check_fits(np.asarray(dataset.x))
        warn_of_radius(perturbation, np.asarray(dataset.x))
        self.network = network
        self.dataset = dataset
        self.loss = loss
        self.perturbation = perturbation
        self.starts = perturbation.starts(*dataset.x.shape)
        self.gradient_mode = gradient
        self.rivals = rivals
        self.rival_smoothing = None
        self.attack_floor = None
        self.attacked_network = None
        PROGRAMS.serve(self)

    def __repr__(self) -> str:
        return shown(self)

    @property
    def degree(self) -> float:
        """Homogeneity degree L of the network, and so of the margins, in the parameters."""
        return self.network.degree

    def with_rivals(self, rivals: Rivals) -> "Problem":
        """The same problem, in which the attack lowers another margin.

        Raises:
            ValueError: `rivals` is unknown.
        """
        changed = copy.copy(self)
        object.__setattr__(
            changed, "rivals", chosen_rivals(rivals, self.dataset, self.perturbation)
        )
        return changed

    @property
    def one_attack(self) -> bool:
        """Whether the perturbations of all examples are one, times their labels: `y_i delta`.

        So it is where f is linear in x and the attack follows the gradient of the margin, `y_i v`.
        Then `q_i = y_i f(x_i) + f(delta)`, whose derivatives cost little more than those of clean
        margins.
        """
        alike = self.network.linear_in_inputs and self.perturbation.follows_gradient
        return alike and self.dataset.binary and self.starts is None

    @property
    def separate(self) -> bool:
        """Whether an attack is made against each rival class separately."""
        return self._one.separate

    @compiled
    def perturbations(self, params: Params) -> Float[Array, "n ..."]:
        """`delta_i(params)` for every example, in input units.

        Shapes: (n, d); with `rivals="each"` (n, k - 1, d), in the order of `clean_margins`.
        """
        attack = self._attacks(params)
        if self.one_attack:
            return self._examples()[1][:, None] * attack.delta
        if attack.choice is None or self.rival_smoothing is None:
            return attack.delta
        examples = self._examples()
        own = jax.vmap(self._one.own_margins, (None, 0, 0, 0))(params, *examples, attack.delta)
        found = select_smallest(own, self.rival_smoothing)
        return jnp.einsum("nr,nrd->nd", found.coefficients, attack.delta)

    @compiled
    def margins(self, params: Params) -> Float[Array, "n ..."]:
        """Adversarial margins `q_i = y_i f(x_i + delta_i; params)`.

        Shapes: (n,); for classes (n, k - 1), the margins against every other class, where the
        attack is against the worst rival with that against this one first.
        """
        return self._attacked_margins(params, self._attacks(params))

    @compiled
    def clean_margins(self, params: Params) -> Float[Array, "n ..."]:
        """Margins `y_i f(x_i; params)` without perturbation, in the shape of `margins`.

        For classes those against y+1, .., y+k-1 (mod k), in this order.
        """
        x, _ = self._examples()
        return self.margins_at(params, jnp.zeros_like(x))

    @compiled
    def margins_at(self, params: Params, delta: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """Margins at given perturbations `delta`, held fixed, in the order of `clean_margins`.

        Shapes: delta (n, d); or for classes (n, k - 1, d), one for the margin against each rival.
        """
        x, y = self._examples()
        self._check_point(params)
        self._check_delta(delta)
        if delta.ndim == 3:
            return jax.vmap(self._one.own_margins, (None, 0, 0, 0))(params, x, y, delta)
        return jax.vmap(self._one.margin, (None, 0, 0))(params, x + delta, y)

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

    @light
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
        if not isinstance(log_kappa, Array):
            log_kappa = np.asarray(log_kappa, float)  # pyright: ignore[reportAssignmentType]
        return self._ascent(params, log_kappa, assumed)  # pyright: ignore[reportArgumentType]

    @compiled
    def _ascent(self, params: Params, log_kappa: Array, assumed: Array | None) -> Ascent:
        seen = _as_they_are if assumed is None else lambda _: assumed
        return self.ascent_and_pull(params, log_kappa, seen)[0]

    def ascent_and_pull(
        self, params: Params, log_kappa: Array, seen: Callable[[Array], Array]
    ) -> tuple[Ascent, Callable]:
        """`ascent` with the weights of `seen(margins)`, and with the function that maps weights w
        to `(sum_i w_i grad q_i,)` there.
        """
        margins, pull_back = self.linearize(params)
        log_weights = self.log_weights(seen(margins), log_kappa)
        # Not exp(log_weights - log_weight): at weights of e^-1e20 that sum has lost its log 2.
        weights = jax.nn.softmax(log_weights, axis=None)
        log_weight = logsumexp(log_weights)
        return Ascent(margins, weights, log_weight, pull_back(weights)[0]), pull_back

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
        attack = self._attacks(params)
        return lambda free: self._attacked_margins(free, attack)

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
        if self.one_attack:
            x, y = self._examples()
            return self._gradients_under_one(total, params, x[examples], y[examples])
        return self._mapped(partial(self._one.margin_gradient, total), params, examples)

    def margins_and_rows(self, params: Params) -> tuple[Array, Params, Params]:
        """The margins, `dq_i/dparams` through the perturbations, and `grad q_i` in the problem's
        gradient mode, for use within compiled programs: a perturbation is evaluated once for all.

        Shapes: that of `margins`; leaves (n, k - 1, *leaf.shape), with k - 1 = 1 for two labels.
        """
        margins, slopes, gradients = self._mapped(self._one.margin_and_rows, params)
        return margins, slopes, slopes if self.gradients_are_slopes else gradients

    def _gradients_under_one(self, total: bool, params: Params, x: Array, y: Array) -> Params:
        """`margin_gradients` of examples where the attack is one."""
        fixed = self._attacks(params)

        def of_attack(free: Params) -> Array:
            return self.network.apply(free, (self._attacks(free) if total else fixed).delta)

        clean = jax.vmap(jax.grad(self._one.margin), (None, 0, 0))(params, x, y)
        return jax.tree.map(lambda rows, part: rows + part, clean, jax.grad(of_attack)(params))

    def _mapped(
        self, function: Callable[..., Any], params: Params, chosen: Array | None = None
    ) -> Any:
        """`function(params, x, y, start)` of every example, or of those chosen."""
        examples: Any = *self._examples(), self.starts
        if chosen is not None:
            examples = jax.tree.map(lambda values: jnp.asarray(values)[chosen], examples)
        axes = (None, 0, 0, None if self.starts is None else 0)
        return jax.vmap(function, axes)(params, *examples)

    def _examples(self) -> tuple[Array, Array]:
        # Every method comes by here, and is compiled anew where x64 is switched on or off.
        check_x64()
        return jnp.asarray(self.dataset.x), jnp.asarray(self.dataset.y)

    def _check_point(self, params: Params) -> None:
        """Refuses what is no parameters of the network, while a method is compiled for it."""
        check_params(params, "a method of `Problem`", self.network.parameter_shapes)

    def _check_delta(self, delta: Any) -> None:
        n, d = self.dataset.x.shape
        shapes = [(n, d)] if self.dataset.binary else [(n, d), (n, self.dataset.num_outputs - 1, d)]
        found = np.shape(delta) if is_array_of_numbers(delta) else type(delta).__name__
        if found not in shapes:
            raise ValueError(
                f"`problem.margins_at(params, delta)`: `delta` is {found}, expected an array of "
                f"the shape {' or '.join(map(str, shapes))}."
            )

    @property
    def _one(self) -> OneExample:
        return OneExample(
            self.dataset.num_outputs,
            self.network,
            self.perturbation,
            self.rivals,
            self.rival_smoothing,
            self.attack_floor,
            self.attacked_network,
        )

    def margin_of(self, output: Array, y: Array) -> Array:
        """The margin of one example: `y f`, or for classes `f_y - f_j`. Shapes: () or (k - 1,)."""
        return self._one.margin_of(output, y)

    def attacked(self, margin: Array) -> Array:
        """The margin that the attack lowers: for classes, that against the runner-up."""
        return self._one.lowered(margin)

    @property
    def followed(self) -> AbstractNetwork:
        """The network whose gradients the attack follows."""
        return self._one.followed

    def _attacks(self, params: Params) -> Attack:
        self._check_point(params)
        if self.one_attack:
            x, y = self._examples()
            return self._one.attack(params, jnp.zeros_like(x[0]), jnp.ones_like(y[0]), None)
        return self._mapped(self._one.attack, params)

    def _attacked_margins(self, params: Params, attack: Attack) -> Array:
        x, y = self._examples()
        if self.one_attack:
            # f(x) = <v, x>: the network is evaluated once, and not for every example.
            predictor = jax.grad(self.network.apply, argnums=1)(params, jnp.zeros_like(x[0]))
            return y * (x @ predictor) + attack.delta @ predictor
        return jax.vmap(self._one.attacked_margin, (None, 0, 0, 0))(params, x, y, attack)


def by_example(problem: Problem) -> list[Any]:
    """The arrays of a problem with a row for each example, as `equinox.tree_at` asks for them."""
    found: list[Any] = [problem.dataset.x, problem.dataset.y]
    return found if problem.starts is None else [*found, problem.starts]


def _as_they_are(margins: Array) -> Array:
    return margins
