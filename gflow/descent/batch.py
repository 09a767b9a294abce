"""The objective of one step: the loss of all examples, or its estimate from a mini-batch."""

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int

from gflow._numerics import tree_scale
from gflow._typing import Params
from gflow.losses import example_margins
from gflow.problem import Problem, by_example

Objective = Literal["loss", "log_loss"]


class Rules(NamedTuple):
    """What the objective is.

    Attributes:
        objective: the loss or its logarithm.
        mean: whether the loss is the mean over examples rather than their sum.
        ragged: whether indices of a batch may be negative, and then stand for nobody.
    """

    objective: Objective
    mean: bool
    ragged: bool

    @property
    def logarithmic(self) -> bool:
        """Whether the objective is the logarithm of the loss."""
        return self.objective == "log_loss"


class Slope(NamedTuple):
    """The objective at a point, and the loss behind it.

    `-grad Loss = exp(log_weight) vector` for the loss as a sum over all n examples, of which a
    batch of B gives the estimate `n / B` times its own sum.

    Attributes:
        gradient: of the objective.
        value: the objective.
        value_fn: the objective as a function of the parameters, with the gradient of the problem's
            mode.
        log_weight, vector: see above.
    """

    gradient: Params
    value: Float[Array, ""]
    value_fn: Any
    log_weight: Float[Array, ""]
    vector: Params


class _Part(NamedTuple):
    """A batch as a problem of its own.

    Attributes:
        problem: its examples.
        log_mask: added to the log-loss of each: -inf for nobody; None where all count.
        log_ratio: log(n / B); None where the batch is all examples.
        log_size: log B.
    """

    problem: Problem
    log_mask: Float[Array, " b"] | None
    log_ratio: Float[Array, ""] | float | None
    log_size: Float[Array, ""] | float

    def log_loss(self, margins: Array) -> Array:
        """`log sum_i l(q_i)` over the batch."""
        if self.log_mask is None:
            return self.problem.loss.log_loss(margins)
        return logsumexp(self.problem.loss.log_value(example_margins(margins)) + self.log_mask)

    def shift(self, rules: Rules) -> Any:
        """The logarithm of the factor from the batch's sum to the objective's loss; None for 1."""
        return -self.log_size if rules.mean else self.log_ratio


def slope_at(
    problem: Problem, rules: Rules, params: Params, indices: Int[Array, " b"] | None
) -> Slope:
    """The objective of the examples `indices`, or of all for None, and its gradient.

    The perturbations are made once, at `params`; `value_fn` makes them anew wherever it is called,
    since its value is the adversarial loss there.
    """
    part = _part(problem, rules, indices)
    log_weight, vector, log_loss = _ascent(part, params)
    shift = part.shift(rules)
    if rules.logarithmic:
        log_scale = log_weight - log_loss
    else:
        log_scale = log_weight if shift is None else log_weight + shift
    log_objective = log_loss if shift is None else log_loss + shift
    return Slope(
        gradient=tree_scale(-jnp.exp(log_scale), vector),
        # Of no use to most optimizers, and left out of the program with them.
        value=log_objective if rules.logarithmic else jnp.exp(log_objective),
        value_fn=partial(objective_of, part, rules),
        log_weight=log_weight if part.log_ratio is None else log_weight + part.log_ratio,
        vector=vector,
    )


def objective_of(part: _Part, rules: Rules, params: Params) -> Array:
    """The objective, with the gradient of the problem's mode."""
    margins = part.problem.free_margins(lax.stop_gradient(params))(params)
    shift = part.shift(rules)
    log_loss = part.log_loss(margins)
    log_objective = log_loss if shift is None else log_loss + shift
    return log_objective if rules.logarithmic else jnp.exp(log_objective)


def _ascent(part: _Part, params: Params) -> tuple[Array, Params, Array]:
    """`log_weight` and `vector` of the batch's own sum, and the logarithm of that sum.

    The weights are relative to the largest one, and not to their sum as in `Problem.ascent`, which
    would be of no use here.
    """
    margins, pull_back = part.problem.linearize(params)
    log_weights = part.problem.loss.log_weights(margins)
    if part.log_mask is not None:
        log_weights += part.log_mask.reshape(-1, *[1] * (margins.ndim - 1))
    largest = jnp.max(log_weights)
    vector = pull_back(jnp.exp(log_weights - largest))[0]
    return largest, vector, part.log_loss(margins)


def _part(problem: Problem, rules: Rules, indices: Array | None) -> _Part:
    num_examples = len(problem.dataset.x)
    if indices is None:
        return _Part(problem, None, None, math.log(num_examples))
    batch = examples_of(problem, jnp.maximum(indices, 0) if rules.ragged else indices)
    if not rules.ragged:
        size = jnp.asarray(float(len(indices)))
        return _Part(batch, None, jnp.log(num_examples / size), jnp.log(size))
    counted = indices >= 0
    size = jnp.sum(counted).astype(float)
    log_mask = jnp.where(counted, 0.0, -jnp.inf)
    return _Part(batch, log_mask, jnp.log(num_examples / size), jnp.log(size))


def examples_of(problem: Problem, indices: Int[Array, " b"]) -> Problem:
    """The problem of these examples alone, in which a class may be missing."""
    chosen = [jnp.asarray(rows)[indices] for rows in by_example(problem)]
    return eqx.tree_at(by_example, problem, chosen)
