"""A stronger attack than the one in training, to see whether that one is weak or masked."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._programs import compiled_for_few_calls
from gflow._typing import Params
from gflow.perturbations import pgd
from gflow.problem import Problem

# Steps of projected gradient descent, and random points that it starts from.
_NUM_STEPS = 40
_NUM_RANDOM = 3


def strong_margins(problem: Problem, params: Params) -> Float[np.ndarray, "n ..."]:
    """The smallest margin of each example among several attacks in the training attack's ball.

    They are no perturbation, the training perturbation, and projected gradient descent, 40 steps
    from 0 and from three fixed random points; for orders other than 1, 2 and inf, to which there is
    no projection, the first two only. An upper bound of the worst case, as every attack is.

    Shapes: that of `problem.margins(params)`; for classes the smallest of an example is meant, as
    the order of the others may depend on the attack.
    """
    weak = np.minimum(problem.margins(params), problem.clean_margins(params))
    perturbation = problem.perturbation
    if perturbation.order not in (1.0, 2.0, math.inf) or not np.any(perturbation.radius):
        return weak
    # From 0 and from each random point the same program runs, on other starts.
    attack = pgd(
        perturbation.radius,
        order=perturbation.order,
        num_steps=_NUM_STEPS,
        random_start=0,
        box=getattr(perturbation, "box", None),
    )
    attacked = eqx.tree_at(
        lambda p: (p.perturbation, p.starts),
        problem,
        (attack, attack.starts(*problem.dataset.x.shape)),
        is_leaf=lambda leaf: leaf is None,
    )
    random: list[Any] = [
        pgd(1.0, order=perturbation.order, random_start=seed).starts(*problem.dataset.x.shape)
        for seed in range(_NUM_RANDOM)
    ]
    starts = np.stack([np.zeros(problem.dataset.x.shape), *random])
    return np.minimum(weak, _smallest(attacked, params, starts))


@compiled_for_few_calls
def _smallest(problem: Problem, params: Params, starts: Any) -> Array:
    def margins(start: Array) -> Array:
        return eqx.tree_at(lambda p: p.starts, problem, start).margins(params)

    return jnp.min(jax.lax.map(margins, starts), axis=0)
