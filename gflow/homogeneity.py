"""Networks and attacks of a user's own: homogeneous, and scale invariant, at every norm.

Each is compared with itself at norm 1, from a direction beside that of the start.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gflow._numerics import nearby_direction, tree_norm, tree_scale
from gflow._parts import is_of_gflow
from gflow._programs import compiled_for_few_calls
from gflow._typing import Params
from gflow.problem import Problem

# Two evaluations of the same function at c params and at params may differ by rounding only.
_DEGREE_TOLERANCE = 1e-6
# Powers of 2 of kappa at which a network and an attack are compared with themselves: near and far.
_EXPONENTS = np.array([-10.0, -1.0, 1.0, 10.0, 50.0])


def check_degree(problem: Problem, params: Params) -> None:
    """Refuses a network that is not homogeneous: near norm 1, at that of the start, and far away,
    where an output that is clipped, or a small constant, shows.
    """
    near = np.array([1.0, 0.5, 2.0])
    known = is_of_gflow(problem.network)
    factors = near if known else np.append(near, _far_factors(problem, params))
    error, where = map(float, _degree_error(problem, nearby_direction(params), factors))
    if np.isnan(error):
        raise ValueError(
            "The network gives NaN or infinity at parameters of norm "
            f"{'1/2 to 2' if where in near else f'{where:.1e}'}. Look for a division by zero or an "
            "overflow in `network.apply(params, x)`."
        )
    if error > _DEGREE_TOLERANCE:
        raise ValueError(
            f"The network is not homogeneous of degree {problem.degree:g}: f(x; c params) differs "
            f"from c^{problem.degree:g} f(x; params) by {error:.1e} at c = {where:g}, |params| = 1,"
            " relative to the largest output. Usually the claimed degree is wrong, or a bias "
            "beyond the first layer, a residual connection, a normalisation or a bound on the "
            "output breaks homogeneity."
        )


def _far_factors(problem: Problem, params: Params) -> np.ndarray:
    """Norms at which a network and its attack are compared with themselves at norm 1: far and near,
    and about that of the start. Powers of 2, by which margins of whole degree are scaled without
    rounding.
    """
    start = np.clip(np.log2(float(tree_norm(params))) * problem.degree, -100, 100)
    exponents = np.append(_EXPONENTS, start)
    powers = np.round(exponents / problem.degree)
    return 2.0 ** np.where(powers == 0, np.sign(exponents), powers)


@compiled_for_few_calls
def _degree_error(problem: Problem, direction: Params, factors: Any) -> Any:
    """Largest `|f(x; c u) - c^L f(x; u)|` relative to the largest output, for the first c at which
    it is no rounding, and that c; NaN where an output is NaN or infinite. The first factor is 1.
    """
    apply = jax.vmap(problem.network.apply, (None, 0))
    inputs = jnp.asarray(problem.dataset.x)[:64]

    factors = jnp.asarray(factors)
    # One after another, so that the program holds the network once.
    found = jax.lax.map(lambda factor: apply(tree_scale(factor, direction), inputs), factors)
    powers = jnp.expand_dims(factors**problem.degree, range(1, found.ndim))
    expected = powers * found[0]
    axes = tuple(range(1, found.ndim))
    difference, largest = (jnp.max(jnp.abs(part), axes) for part in (found - expected, expected))
    errors = difference / jnp.where(largest == 0, 1.0, largest)
    first = jnp.argmax(~(errors <= _DEGREE_TOLERANCE))
    return errors[first], factors[first]


def check_linearity(problem: Problem, params: Params) -> None:
    """Refuses a network that declares `linear_in_inputs` and is not linear in x: its margins would
    be those of another network, since it is evaluated once for all examples.
    """
    if not problem.network.linear_in_inputs:
        return
    error = float(_linearity_error(problem, nearby_direction(params)))
    if not error <= _DEGREE_TOLERANCE:
        raise ValueError(
            "The network says `linear_in_inputs`, but f(x + 2 z; params) differs from "
            f"f(x; params) + 2 f(z; params) by {error:.1e}, relative to the largest term. Usually "
            "an activation, or a constant that is added, makes it nonlinear: let "
            "`linear_in_inputs` be False."
        )


@compiled_for_few_calls
def _linearity_error(problem: Problem, direction: Params) -> Any:
    """The largest `|f(x + 2 z; u) - f(x; u) - 2 f(z; u)|` relative to the largest term, with
    another example as z; with a single example, that example.
    """
    apply = jax.vmap(problem.network.apply, (None, 0))
    x = jnp.asarray(problem.dataset.x)[:64]
    z = jnp.roll(x, 1, axis=0)
    whole, first, second = (apply(direction, at) for at in (x + 2 * z, x, z))
    largest = jnp.max(jnp.abs(jnp.stack([whole, first, 2 * second])))
    error = jnp.max(jnp.abs(whole - first - 2 * second))
    return error / jnp.where(largest == 0, 1.0, largest)


def check_scale_invariance(problem: Problem, params: Params) -> None:
    """Refuses a perturbation that depends on the norm of the parameters.

    It is compared with itself at the norm of the start and at several others, from a direction
    nearby, so that rounding at a kink decides nothing.
    """
    direction = nearby_direction(params)
    factors = _far_factors(problem, params)
    error, length = map(float, _invariance_error(problem, direction, factors))
    if np.isnan(error):
        raise ValueError(
            "The perturbation is NaN or infinite at an example. Usually a gradient of 0 is divided "
            "by its norm: take care of it by `jnp.where`, inside and outside of the root."
        )
    if error > _DEGREE_TOLERANCE:
        raise ValueError(
            "The perturbation is not scale invariant: delta(c params) differs from delta(params) "
            f"by {error:.1e} of the largest, for some c from {factors.min():.1e} to "
            f"{factors.max():.1e}. The margin theory and the flow on the sphere need an "
            "attack that depends on the direction of the parameters alone. Usually it steps along "
            "the raw gradient, or along that of a loss: step along `g / |g|` or `sign(g)` of the "
            "margin's gradient g, and take care of g = 0 by `jnp.where`, not by a constant added "
            "to the norm."
        )
    radius = float(np.max(problem.perturbation.radius))
    if length > radius * (1 + _DEGREE_TOLERANCE):
        raise ValueError(
            f"The perturbation is {length:.3g} long in the norm of its `order`, "
            f"{problem.perturbation.order:g}, beyond its `radius` of {radius:g}. Both are those of "
            "a ball that holds it, in which certificates look for stronger attacks: give it the "
            "radius that it has."
        )


def check_perturbation(problem: Problem, params: Params) -> None:
    """Refuses a perturbation that fails, or is of another shape or type than the inputs."""
    x = jax.ShapeDtypeStruct(problem.dataset.x.shape[1:], jnp.float64)

    def perturbed(params: Params, x: Array) -> Any:
        def margin(point: Array) -> Array:
            return jnp.sum(problem.network.apply(params, point))

        return problem.perturbation(margin, x, None if problem.starts is None else x)

    try:
        found = eqx.filter_eval_shape(perturbed, params, x)
    except Exception as error:
        raise ValueError(f"`perturbation(margin, x, start)` fails: {error}") from error
    shape = getattr(found, "shape", None)
    if shape != x.shape:
        raise ValueError(
            f"`perturbation(margin, x, start)` gives the shape {shape}, expected that of `x`, "
            f"{x.shape}."
        )
    if found.dtype != jnp.float64:
        raise ValueError(
            f"`perturbation(margin, x, start)` gives {found.dtype} numbers, expected float64, as "
            "`x` has: take the conversion to another type out of it."
        )


@compiled_for_few_calls
def _invariance_error(problem: Problem, direction: Params, factors: Any) -> Any:
    """Largest `|delta(c u) - delta(u)|_inf` over the factors c, relative, NaN where delta is; and
    the largest norm of a delta.
    """
    order = problem.perturbation.order

    def perturbations(factor: Any) -> Any:
        return problem.perturbations(tree_scale(factor, direction))

    # One after another, so that the attack is compiled once.
    found = jax.lax.map(perturbations, jnp.append(1.0, factors))
    largest = jnp.max(jnp.abs(found))
    error = jnp.max(jnp.abs(found - found[0])) / jnp.where(largest == 0, 1.0, largest)
    lengths = jnp.linalg.norm(found / jnp.where(largest == 0, 1.0, largest), order, axis=-1)
    return error, largest * jnp.max(lengths)
