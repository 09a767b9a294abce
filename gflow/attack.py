"""A stronger attack than the one in training, to see whether that one is weak or masked."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._typing import Params
from gflow.perturbations import pgd
from gflow.problem import Problem

_NUM_STEPS = 40
_NUM_RANDOM = 3


def strong_margins(problem: Problem, params: Params) -> Float[Array, "n ..."]:
    """The smallest margin of each example that projected gradient descent finds.

    40 steps in the training attack's ball, from 0 and from three fixed random points; an upper bound
    of the worst case, as every attack is. For orders other than 1, 2 and inf, and for clean
    training, the margins under the training perturbation itself.

    Shapes: that of `problem.margins(params)`.
    """
    perturbation = problem.perturbation
    if perturbation.order not in (1.0, 2.0, math.inf) or not np.any(perturbation.radius):
        return problem.margins(params)
    # From 0 and from each random point the same program runs, on other starts.
    attack = pgd(
        perturbation.radius,
        order=perturbation.order,
        num_steps=_NUM_STEPS,
        random_start=0,
        box=getattr(perturbation, "box", None),
    )
    attacked = Problem(problem.network, problem.dataset, loss=problem.loss, perturbation=attack)
    random = [
        pgd(1.0, order=perturbation.order, random_start=seed).starts(*problem.dataset.x.shape)
        for seed in range(_NUM_RANDOM)
    ]
    starts = np.stack([np.zeros(problem.dataset.x.shape), *random])
    return _smallest(attacked, params, starts)


@eqx.filter_jit
def _smallest(problem: Problem, params: Params, starts: Float[Array, "r n d"]) -> Array:
    def margins(start: Array) -> Array:
        return eqx.tree_at(lambda p: p.starts, problem, start).margins(params)

    return jnp.min(jax.lax.map(margins, starts), axis=0)
