"""One example of a problem: its margins, the attack on it, and the gradients of both.

`gflow.problem` maps these functions over all examples. Two of them stand in several places of a
program: as compiled functions JAX traces, differentiates and batches each once for all places.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gflow._numerics import norm, tree_norm
from gflow._rounded import hypotenuse
from gflow._selection import select_smallest
from gflow._typing import Params
from gflow.networks import AbstractNetwork
from gflow.perturbations import AbstractPerturbation
from gflow.rivals import Rivals, margins_of_worst, own_margins


class Attack(NamedTuple):
    """The attack on an example, or on each of several.

    Attributes:
        delta: the perturbation, (d,), of all examples that of the label 1 where
            `Problem.one_attack`; where every rival class has its own and the choice among them is
            none or rounded, (k - 1, d).
        choice: of the worst rival: its index, or the angles of the rounded choice; else None.
    """

    delta: Array
    choice: Array | None


class OneExample(NamedTuple):
    """What a problem says of one example (x, y), whichever it is.

    A named tuple, since making an `equinox.Module` takes a hundred times as long.

    Attributes:
        num_outputs: 1 for two labels, or the number of classes k.
        network, perturbation, rivals, rival_smoothing, attack_floor, attacked_network: see
            `gflow.Problem`.
    """

    num_outputs: int
    network: AbstractNetwork
    perturbation: AbstractPerturbation
    rivals: Rivals
    rival_smoothing: Any
    attack_floor: Any
    attacked_network: AbstractNetwork | None

    @property
    def separate(self) -> bool:
        """Whether an attack is made against each rival class separately."""
        return self.rivals != "runner_up"

    @property
    def followed(self) -> AbstractNetwork:
        """The network whose gradients the attack follows."""
        return self.network if self.attacked_network is None else self.attacked_network

    def margin_of(self, output: Array, y: Array) -> Array:
        """The margin at an output: `y f`, or for classes `f_y - f_j`. Shapes: () or (k - 1,)."""
        return y * output if self.num_outputs == 1 else _against_others(output, y)

    def lowered(self, margin: Array) -> Array:
        """The margin that one attack for all rivals lowers: for classes, that against the
        runner-up.
        """
        if self.num_outputs == 1:
            return margin
        if self.rival_smoothing is not None:
            return select_smallest(margin, self.rival_smoothing).largest
        # Indexing rather than the minimum, whose gradient at a tie is a mean over the rivals.
        return margin[jnp.argmin(margin)]

    @eqx.filter_jit
    def margin(self, params: Params, x: Array, y: Array) -> Array:
        """The margin at an input."""
        return self.margin_of(self.network.apply(params, x), y)

    def own_margins(self, params: Params, x: Array, y: Array, delta: Array) -> Array:
        """The margin against each rival at its own perturbation. Shapes: delta (k - 1, d)."""
        return own_margins(self._table(params, x, y, delta))

    @eqx.filter_jit
    def attack(self, params: Params, x: Array, y: Array, start: Array | None) -> Attack:
        """The attack on the example."""
        if not self.separate:

            def attacked(point: Array) -> Array:
                return self.lowered(self._followed_margin(params, point, y))

            return Attack(self._perturbation(attacked, params, x, start), None)

        def against(rival: Array) -> Array:
            return self._perturbation(
                lambda at: rival @ self._followed_margin(params, at, y), params, x, start
            )

        delta = jax.vmap(against)(jnp.eye(self.num_outputs - 1))
        if self.rivals == "each":
            return Attack(delta, None)
        own = self.own_margins(params, x, y, delta)
        if self.rival_smoothing is None:
            worst = jnp.argmin(own)
            return Attack(delta[worst], worst)
        return Attack(delta, select_smallest(own, self.rival_smoothing).angles)

    def attacked_margin(self, params: Params, x: Array, y: Array, attack: Attack) -> Array:
        """The margins under an attack that is held fixed."""
        if not self.separate:
            return self.margin(params, x + attack.delta, y)
        if attack.choice is None:
            return self.own_margins(params, x, y, attack.delta)
        if self.rival_smoothing is None:
            return jnp.roll(self.margin(params, x + attack.delta, y), -attack.choice)
        table = self._table(params, x, y, attack.delta)
        return margins_of_worst(table, self.rival_smoothing, attack.choice)[0]

    def margin_gradient(
        self, total: bool, params: Params, x: Array, y: Array, start: Array | None
    ) -> Params:
        """The gradient of the margins, through the attack or with it held fixed."""
        fixed = self.attack(params, x, y, start)

        def margin(free: Params) -> Array:
            attack = self.attack(free, x, y, start) if total else fixed
            return self.attacked_margin(free, x, y, attack)

        return jax.jacrev(margin)(params)

    def margin_and_rows(
        self, params: Params, x: Array, y: Array, start: Array | None
    ) -> tuple[Array, Params, Params]:
        """The margins, their gradient through the attack, and that with it held fixed."""

        def attack(free: Params) -> tuple[Any, Any]:
            return eqx.partition(self.attack(free, x, y, start), eqx.is_inexact_array)

        def margin(free: Params, moving: Any) -> Array:
            return self.attacked_margin(free, x, y, eqx.combine(moving, fixed))

        moving, pull_attack, fixed = jax.vjp(attack, params, has_aux=True)
        value, pull_margin = jax.vjp(margin, params, moving)
        units = jnp.eye(value.size, dtype=value.dtype).reshape(-1, *value.shape)
        gradients, by_attack = jax.vmap(pull_margin)(units)
        (through,) = jax.vmap(pull_attack)(by_attack)
        return value, jax.tree.map(jnp.add, gradients, through), gradients

    def _followed_margin(self, params: Params, x: Array, y: Array) -> Array:
        return self.margin_of(self.followed.apply(params, x), y)

    def _table(self, params: Params, x: Array, y: Array, delta: Array) -> Array:
        """All margins at each of several perturbations. Shapes: delta (r, d) -> (r, k - 1)."""
        return jax.vmap(self.margin, (None, 0, None))(params, x + delta, y)

    def _perturbation(
        self, margin: Callable[[Array], Array], params: Params, x: Array, start: Array | None
    ) -> Array:
        """The perturbation of an example; with a floor s, `|g| / sqrt(|g|^2 + (s |params|^L)^2)` of
        it, for the gradient g of its margin at x. Without, an attack along g jumps where g is 0.
        """
        delta = self.perturbation(margin, x, start)
        if self.attack_floor is None:
            return delta
        size = norm(jax.grad(margin)(x))
        floor = self.attack_floor * tree_norm(params) ** self.network.degree
        return delta * size / hypotenuse(size, floor)


def _against_others(output: Float[Array, " k"], y: Int[Array, ""]) -> Float[Array, " c"]:
    """`f_y - f_j` for the k - 1 other classes j = y+1, .., y+k-1 (mod k)."""
    num_classes = output.shape[0]
    others = (y + jnp.arange(1, num_classes, dtype=y.dtype)) % num_classes
    return output[y] - output[others]
