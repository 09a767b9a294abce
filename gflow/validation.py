"""The door: what is checked before anything is integrated."""

import numbers
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gflow._numerics import check_x64, tree_scale
from gflow._programs import compiled
from gflow._typing import Params
from gflow.problem import Problem

# Two evaluations of the same network at c params and at params may differ by rounding only.
_DEGREE_TOLERANCE = 1e-6


def check_start(problem: Problem, params: Params) -> Params:
    """Parameters as float64 JAX arrays, once problem and parameters are known to be sound.

    Raises:
        TypeError: `problem` is no `Problem`; a leaf of `params` is not an array of real numbers.
        ValueError: x64 is off; `params` is empty, zero, NaN or infinite, or does not fit the
            network; the output has the wrong shape; the network is not homogeneous of its degree.
    """
    check_x64()
    if not isinstance(problem, Problem):
        raise TypeError(
            f"expected a `gflow.Problem`, got {type(problem).__name__}. It comes first: "
            "`gflow.integrate(problem, params, ...)`."
        )
    params = _as_arrays(params)
    _check_output(problem, params)
    _check_values(params)
    _check_degree(problem, params)
    return params


def _as_arrays(params: Params) -> Params:
    leaves, structure = jax.tree.flatten(params)
    if not leaves:
        raise ValueError("`params` holds no arrays. `network.init(key)` makes them.")
    for leaf in leaves:
        if not _is_real(leaf):
            raise TypeError(
                f"`params` holds {leaf!r}; every leaf must be an array of real numbers. Parts of a "
                "module that are no arrays belong into the function, not into its parameters."
            )
    return structure.unflatten([jnp.asarray(leaf, jnp.float64) for leaf in leaves])


def _is_real(leaf: Any) -> bool:
    if not hasattr(leaf, "dtype"):
        return isinstance(leaf, numbers.Real) and not isinstance(leaf, bool)
    return any(jnp.issubdtype(leaf.dtype, kind) for kind in (jnp.floating, jnp.integer))


def _check_output(problem: Problem, params: Params) -> None:
    x = jax.ShapeDtypeStruct(problem.dataset.x.shape[1:], jnp.float64)
    try:
        output = eqx.filter_eval_shape(problem.network.apply, params, x)
    except Exception as error:
        shapes = jax.tree.map(jnp.shape, params)
        raise ValueError(
            f"`network.apply(params, x)` fails for x of shape {x.shape} and params of shapes "
            f"{shapes}: {error}\nThe parameters usually belong to another network or data set; "
            "`network.init(key)` makes fitting ones."
        ) from error
    expected = () if problem.dataset.binary else (problem.dataset.num_outputs,)
    if getattr(output, "shape", None) != expected:
        raise ValueError(
            f"`network.apply(params, x)` gives shape {getattr(output, 'shape', output)}, but the "
            f"labels need {expected}: a scalar for labels -1 and +1, k outputs for k classes."
        )


def _check_values(params: Params) -> None:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    if not all(np.all(np.isfinite(leaf)) for leaf in leaves):
        raise ValueError(
            "`params` holds NaN or infinity. Usually an earlier run diverged, or the "
            "initialisation overflowed."
        )
    if not any(np.any(leaf) for leaf in leaves):
        raise ValueError(
            "`params` is zero. Zero has no direction and is a stationary point of every "
            "homogeneous network: the flow would stay there. Start from `network.init(key)`."
        )


def _check_degree(problem: Problem, params: Params) -> None:
    error = float(_degree_error(problem, _nearby_direction(params)))
    if np.isnan(error):
        raise ValueError(
            "The network gives NaN or infinity at parameters of norm 1/2 to 2. Look for a division "
            "by zero or an overflow in `network.apply(params, x)`."
        )
    if error > _DEGREE_TOLERANCE:
        raise ValueError(
            f"The network is not homogeneous of degree {problem.degree:g}: f(x; c params) differs "
            f"from c^{problem.degree:g} f(x; params) by {error:.1e}, relative to the largest "
            "output. Usually the claimed degree is wrong, or a bias beyond the first layer, a "
            "residual connection or a normalisation breaks homogeneity."
        )


@compiled
def _degree_error(problem: Problem, direction: Params) -> Any:
    """Largest `|f(x; c u) - c^L f(x; u)|`, c = 1/2 and 2, relative to the largest output."""
    apply = jax.vmap(problem.network.apply, (None, 0))
    inputs = jnp.asarray(problem.dataset.x)[:64]

    def error(factor: float) -> Any:
        expected = factor**problem.degree * apply(direction, inputs)
        difference = jnp.max(jnp.abs(apply(tree_scale(factor, direction), inputs) - expected))
        largest = jnp.max(jnp.abs(expected))
        return difference / jnp.where(largest == 0, 1.0, largest)

    return jnp.maximum(error(0.5), error(2.0))


def _nearby_direction(params: Params) -> Params:
    """A direction near that of `params`, at which biases that are still zero do not hide.

    In NumPy, since a normal draw in JAX takes most of a second to compile.
    """
    leaves, structure = jax.tree.flatten(params)
    flat = np.concatenate([np.ravel(leaf) for leaf in leaves])
    flat = flat / np.max(np.abs(flat))
    noise = np.random.default_rng(0).normal(size=flat.size)
    flat = flat / np.linalg.norm(flat) + 0.1 * noise / np.sqrt(flat.size)
    parts = np.split(flat / np.linalg.norm(flat), np.cumsum([leaf.size for leaf in leaves])[:-1])
    shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return structure.unflatten([jnp.asarray(leaf) for leaf in shaped])
