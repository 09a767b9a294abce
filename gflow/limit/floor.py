"""The flow where the attack on an example vanishes.

An attack steps along the gradient of a margin in the input, and where that gradient is 0 it makes
no step. So `delta_i`, and with it the field, jumps where `grad_x q_i` passes 0, for instance where
the last neuron that is active on an example switches off. The flow then often slides there: the
gradient of this example's loss switches the neuron off, those of the other examples switch it on
again, and a solver of the exact flow makes ever shorter steps while time hardly passes.

With a floor s > 0 the perturbation is

    delta_i |g| / sqrt(|g|^2 + (s |params|^L)^2),   g = grad_x q_i(x_i),

which is smooth, scale invariant, and differs from `delta_i` by a part of at most `(s / |g|)^2 / 2`.
As s falls to 0 its flow becomes Filippov's solution of the exact one, the one that slides. It is an
ordinary stiff flow: it comes to rest with the example at margin 0, or leads on to where the
gradient no longer vanishes. Where it slides it stays in a layer around the jump, which is the
thinner, the smaller the pull of the other examples, and much thinner than s. An error that takes it
out of the layer costs many short steps back: hence this flow's tighter tolerance.

Source: Filippov 1988, "Differential Equations with Discontinuous Righthand Sides", chapter 2.
"""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._layout import Layout
from gflow._numerics import norm
from gflow._programs import compiled_for_few_calls
from gflow.limit.search import Search
from gflow.problem import Problem
from gflow.trajectory import Trajectory

# So many last points of a run are examined, since where it slides the gradient vanishes on one side
# only, and the very last point may lie on the other.
_POINTS = 16


def with_floor(search: Search, run: Trajectory) -> Search | None:
    """The search with a floor in its attack; None where no gradient vanishes at the run's end.

    The floor is in parts of the root mean square of all gradients there.
    """
    settings, problem = search.settings.flow, search.problem
    if not problem.perturbation.num_gradients or not np.any(problem.perturbation.radius):
        return None
    last = np.asarray(run.vectors)[-_POINTS:]
    sizes = np.stack([_gradient_sizes(problem, search.layout, vector) for vector in last])
    scale = float(np.sqrt(np.mean(sizes**2)))
    if not (np.isfinite(scale) and sizes.min() < settings.vanishing * scale):
        return None
    floored = eqx.tree_at(
        lambda p: p.attack_floor,
        problem,
        np.float64(settings.floor * scale),
        is_leaf=lambda leaf: leaf is None,
    )
    options, least = search.flow_options, search.settings.basin.least_tolerance
    tolerance = max(settings.floor_tolerance * options["tolerance"], least)
    return replace(search, problem=floored, flow_options={**options, "tolerance": tolerance})


def settled(search: Search, run: Trajectory) -> bool:
    """Whether a run with a floor has come to rest with only examples left whose attack vanishes.

    That is so where the weights p of all other examples sum to at most `FlowSettings.settled`. Then
    only the margins of the examples whose attack vanishes could still rise, and they do not, since
    their gradients are far below the floor.
    """
    settings, vector = search.settings.flow, np.asarray(run.vectors[-1])
    if run.margin[-1] > 0:
        return False
    sizes = np.asarray(_gradient_sizes(search.problem, search.layout, vector))
    ascent = search.problem.ascent(search.layout.unflatten(vector), float(run.log_kappa[-1]))
    weights = np.asarray(ascent.weights).reshape(len(sizes), -1).sum(axis=1)
    alive = sizes >= settings.vanishing * settings.floor * np.sqrt(np.mean(sizes**2))
    return bool(weights[alive].sum() <= settings.settled)


@compiled_for_few_calls
def _gradient_sizes(problem: Problem, layout: Layout, direction: Any) -> Float[Array, " n"]:
    """`|grad_x q_i|` of the clean margin that the attack lowers."""
    params = layout.unflatten(direction)

    def size(x: Array, y: Array) -> Array:
        def margin(point: Array) -> Array:
            output = problem.network.apply(params, point)
            return problem.attacked(problem.margin_of(output, y))

        return norm(jax.grad(margin)(x))

    return jax.vmap(size)(jnp.asarray(problem.dataset.x), jnp.asarray(problem.dataset.y))
