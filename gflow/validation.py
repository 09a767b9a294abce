"""The door: what is checked before anything is integrated."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gflow._checks import check_unmasked, check_untraced, check_x64, whole_or_real
from gflow._leaves import is_array_of_numbers
from gflow._parts import is_of_gflow
from gflow._programs import is_tracing
from gflow._typing import Params
from gflow.gradient_checks import check_gradient
from gflow.homogeneity import (
    check_degree,
    check_linearity,
    check_perturbation,
    check_scale_invariance,
)
from gflow.loss_checks import check_loss
from gflow.problem import Problem
from gflow.purity import check_pure

# The logarithm of a product that is far from an overflow, whatever the number of its terms.
_MODERATE = 500.0


def check_problem(problem: Any) -> None:
    """Raises TypeError where it is no `Problem`."""
    if not isinstance(problem, Problem):
        raise TypeError(
            f"expected a `gflow.Problem`, got {type(problem).__name__}. It comes first: "
            "`gflow.integrate(problem, params, ...)`."
        )


def check_start(problem: Problem, params: Params) -> Params:
    """Parameters as float64 JAX arrays, once problem and parameters are known to be sound.

    Raises:
        TypeError: `problem` is no `Problem`; a leaf of `params` is not an array of real numbers;
            the call stands within `jax.jit`, `jax.vmap` or `jax.grad`.
        ValueError: x64 is off; `params` is empty, zero, NaN, infinite or masked, or does not fit
            the network; the output has the wrong shape or is not real; the network is not
            homogeneous of its degree, or not linear in its inputs as it says; a perturbation of the
            user's own is not scale invariant; one of them is not pure; a loss of the user's own has
            no exponential tail.
    """
    check_x64()
    check_problem(problem)
    check_untraced(params, "`params`")
    check_untraced(problem, "`problem` (its inputs or its radius)")
    params = _as_arrays(params)
    if is_tracing():
        check_untraced(jnp.zeros(()), "this call")  # within `jax.jit` even this is traced
    known = _is_known(problem, params)
    if not known:
        _check_output(problem, params)
        _check_shapes(problem, params)
    check_values(params)
    users_attack = not is_of_gflow(problem.perturbation)
    if users_attack:
        check_perturbation(problem, params)
    if users_attack or not is_of_gflow(problem.network):
        check_pure(problem, params)
    if not known:
        check_degree(problem, params)
        check_linearity(problem, params)
        check_gradient(problem, params)
    if not is_of_gflow(problem.loss):
        check_loss(problem.loss)
    if users_attack:
        check_scale_invariance(problem, params)
    return params


def _is_known(problem: Problem, params: Params) -> bool:
    """Whether these are parameters of a network of gflow's own, as its `init` makes them, and so
    small with the inputs that nothing in it can overflow.
    """
    network = problem.network
    if not is_of_gflow(network) or not isinstance(params, tuple):
        return False
    shapes = [np.shape(leaf) for leaf in params]
    largest = np.max(np.abs(np.asarray(problem.dataset.x)), initial=1.0)
    moderate = network.degree * np.log(largest) < _MODERATE
    return shapes == network.parameter_shapes and bool(moderate)


def _as_arrays(params: Params) -> Params:
    leaves, structure = jax.tree.flatten(params)
    if not leaves:
        raise ValueError("`params` holds no arrays. `network.init(key)` makes them.")
    for leaf in leaves:
        if all(hasattr(leaf, name) for name in ("direction", "basin")):
            raise TypeError(
                "`params` holds a `Limit`, from which only `find_limit` goes on. Along its "
                "direction there are `limit.params(log_kappa=...)`; the flow that led there is "
                "`limit.trajectory`."
            )
        if not is_array_of_numbers(leaf):
            shown = f"an array of {leaf.dtype}" if isinstance(leaf, np.ndarray) else repr(leaf)
            raise TypeError(
                f"`params` holds {shown}; every leaf must be an array of real numbers. Parts of a "
                "module that are no arrays belong into the function, not into its parameters."
            )
        check_unmasked(leaf, "`params`")
    leaves = [leaf if hasattr(leaf, "dtype") else whole_or_real(leaf) for leaf in leaves]
    return structure.unflatten([_as_array(leaf) for leaf in leaves])


def _as_array(leaf: Any) -> jax.Array:
    known = isinstance(leaf, jax.Array) and leaf.dtype == np.float64  # `asarray` takes 20 us
    return leaf if known else jnp.asarray(leaf, jnp.float64)


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
    if not jnp.issubdtype(output.dtype, jnp.floating):
        raise ValueError(
            f"`network.apply(params, x)` gives {output.dtype} numbers, but margins are real ones "
            "that can be differentiated. Of complex outputs take the real part, `.real`, or the "
            "squared size, of twice the degree; of integers or truth values take what they were "
            "rounded from."
        )
    if output.dtype != jnp.float64:
        raise ValueError(
            f"`network.apply(params, x)` gives {output.dtype} numbers although parameters and "
            "inputs are float64. No limit can be found to more than their few digits: take the "
            "conversion to a smaller type out of the function."
        )


def _check_shapes(problem: Problem, params: Params) -> None:
    """Refuses parameters with which the function can be evaluated, but which are another network's.

    A width of the hidden layer other than the network's is no obstacle to `apply`.
    """
    expected = problem.network.parameter_shapes
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(params)]
    if expected is not None and shapes != expected:
        raise ValueError(
            f"`params` has leaves of shapes {shapes}, but the network's are {expected}. The "
            "parameters usually belong to another network; `network.init(key)` makes fitting ones, "
            "and a network of other widths is another one."
        )


def check_values(params: Params) -> None:
    """Refuses parameters that are NaN, infinite or all zero."""
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
