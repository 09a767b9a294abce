"""A stronger attack than the one in training, which shows whether that one is weak, or only seems
strong because gradients vanish (gradient masking).
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._programs import compiled_for_few_calls
from gflow._typing import Params
from gflow.accuracy import under
from gflow.perturbations import AbstractPerturbation, pgd
from gflow.problem import Problem

PROJECTED_ORDERS = (1.0, 2.0, math.inf)
"""The orders of the balls for which a projection is implemented."""

# Steps of projected gradient descent, and random points that it starts from.
_NUM_STEPS = 40
_NUM_RANDOM = 3


class Ball(NamedTuple):
    """What an attack may do: its l_p ball and, where it has one, its box (low, high)."""

    order: float
    radius: Any
    box: tuple[Any, Any] | None = None

    @property
    def name(self) -> str:
        """Such as `strong l2 0.3`."""
        return f"strong l{self.order:g} {self.radius:g}"


def ball_of(attack: AbstractPerturbation) -> Ball:
    """The ball that an attack keeps to."""
    return Ball(attack.order, attack.radius, getattr(attack, "box", None))


def strong_margins(
    problem: Problem, params: Params, weak: Any = None
) -> Float[np.ndarray, "n ..."]:
    """The smallest margin of each example among several attacks in the training attack's ball.

    They are no perturbation, the training perturbation, and projected gradient descent, 40 steps
    from 0 and from three fixed random points; for orders other than 1, 2 and inf, to which there is
    no projection, the first two only. An upper bound of the worst case, as every attack is.

    Args:
        weak: the smaller of the margins without perturbation and with the training perturbation,
            where they are at hand.

    Shapes: that of `problem.margins(params)`; for classes the smallest of an example is meant, as
    the order of the others may depend on the attack.
    """
    if weak is None:
        weak = np.minimum(problem.margins(params), problem.clean_margins(params))
    weak = np.asarray(weak)
    ball = ball_of(problem.perturbation)
    if ball.order not in PROJECTED_ORDERS or not np.any(ball.radius):
        return weak
    attacked, starts = strongly_attacked(problem, ball)
    return np.minimum(weak, _smallest(attacked, params, starts))


def strongly_attacked(problem: Problem, ball: Ball) -> tuple[Problem, Float[np.ndarray, "s n d"]]:
    """The problem under projected gradient descent in a ball, and the points to start it from: 0
    and three random ones. The same program runs from each; see `smallest_margins`.

    Args:
        ball: its order is one of `PROJECTED_ORDERS`.
    """
    options: Any = {"order": ball.order, "num_steps": _NUM_STEPS, "box": ball.box}
    attacks = [pgd(ball.radius, random_start=seed, **options) for seed in range(_NUM_RANDOM)]
    shape = problem.dataset.x.shape
    random: list[Any] = [attack.starts(*shape) for attack in attacks]
    return under(problem, attacks[0]), np.stack([np.zeros(shape), *random])


def smallest_margins(problem: Problem, params: Params, starts: Any) -> Array:
    """The smallest margins from any of these starts of the attack. Shapes: starts (s, n, d)."""

    def margins(start: Array) -> Array:
        return eqx.tree_at(lambda p: p.starts, problem, start).margins(params)

    return jnp.min(jax.lax.map(margins, starts), axis=0)


_smallest = compiled_for_few_calls(smallest_margins)
