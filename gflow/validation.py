"""The door: what is checked before anything is integrated."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gflow._checks import check_unmasked, check_untraced, check_x64, whole_or_real
from gflow._leaves import is_array_of_numbers
from gflow._numerics import tree_norm, tree_scale
from gflow._programs import compiled_for_few_calls, is_tracing
from gflow._typing import Params
from gflow.loss_checks import check_loss
from gflow.losses import Exponential, Logistic
from gflow.networks import MLP, Convolutional, DeepLinear, Diagonal
from gflow.perturbations import Clean, FastGradient, ProjectedGradient
from gflow.problem import Problem
from gflow.purity import check_pure

# Homogeneous of their degree by construction, and held to it by gflow's own tests.
_HOMOGENEOUS = MLP, DeepLinear, Diagonal, Convolutional
# Two evaluations of the same function at c params and at params may differ by rounding only.
_DEGREE_TOLERANCE = 1e-6
# The logarithm of a product that is far from an overflow, whatever the number of its terms.
_MODERATE = 500.0
# Scale invariant by construction, and held to it by gflow's own tests.
_SCALE_INVARIANT = Clean, FastGradient, ProjectedGradient
# With an exponential tail, and held to it by gflow's own tests.
_EXPONENTIAL_TAILS = Exponential, Logistic
# Powers of 2 of kappa at which a network and an attack are compared with themselves: near and far.
_EXPONENTS = np.array([-10.0, -1.0, 1.0, 10.0, 50.0])


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
            homogeneous of its degree; a perturbation of the user's own is not scale invariant; one
            of them is not pure; a loss of the user's own has no exponential tail.
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
    if not known:
        check_pure(problem, params)
        _check_degree(problem, params)
        _check_gradient(problem, params)
    if type(problem.loss) not in _EXPONENTIAL_TAILS:
        check_loss(problem.loss)
    if type(problem.perturbation) not in _SCALE_INVARIANT:
        check_pure(problem, params)
        _check_scale_invariance(problem, params)
    return params


def _is_known(problem: Problem, params: Params) -> bool:
    """Whether these are parameters of a network of gflow's own, as its `init` makes them, and so
    small with the inputs that nothing in it can overflow.
    """
    network = problem.network
    if type(network) not in _HOMOGENEOUS or not isinstance(params, tuple):
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


def _check_degree(problem: Problem, params: Params) -> None:
    """Refuses a network that is not homogeneous: near norm 1, at that of the start, and far away,
    where an output that is clipped, or a small constant, shows.
    """
    near = np.array([1.0, 0.5, 2.0])
    own = isinstance(problem.network, _HOMOGENEOUS)
    factors = near if own else np.append(near, _far_factors(problem, params))
    error, where = map(float, _degree_error(problem, _nearby_direction(params), factors))
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
    """Largest `|f(x; c u) - c^L f(x; u)|` relative to the largest output, and its c; NaN, and its
    c, where an output is NaN or infinite. The first factor is 1.
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
    # The first NaN, if there is one.
    worst = jnp.argmax(jnp.where(jnp.isnan(errors), jnp.inf, errors))
    return errors[worst], factors[worst]


def _check_gradient(problem: Problem, params: Params) -> None:
    """Refuses a network whose gradient is not that of its output, by Euler's identity."""
    error = float(_euler_error(problem, _nearby_direction(params)))
    if not error <= _DEGREE_TOLERANCE:
        raise ValueError(
            f"The gradient of the network violates Euler's identity, <params, grad f> = "
            f"{problem.degree:g} f, by {error:.1e} of the outputs: it is not the gradient of "
            "`network.apply(params, x)`. Usually a `jax.lax.stop_gradient`, a rounding or a "
            "derivative of one's own hides a part of it, or it is NaN where it should be 0."
        )


@compiled_for_few_calls
def _euler_error(problem: Problem, direction: Params) -> Any:
    """`|<u, grad s> - L s|` for the sum `s = sum_i c_i f(x_i; u)` with generic coefficients,
    relative to the sum of the sizes.
    """
    inputs = jnp.asarray(problem.dataset.x)[:64]

    def combined(params: Params) -> tuple[Array, Array]:
        outputs = jax.vmap(problem.network.apply, (None, 0))(params, inputs).ravel()
        terms = jnp.cos(1 + jnp.arange(outputs.size, dtype=outputs.dtype)) * outputs
        return jnp.sum(terms), jnp.sum(jnp.abs(terms))

    (value, size), gradient = jax.value_and_grad(combined, has_aux=True)(direction)
    along = sum(
        jnp.sum(one * other)
        for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )
    return jnp.abs(along - problem.degree * value) / jnp.where(size == 0, 1.0, size)


def _check_scale_invariance(problem: Problem, params: Params) -> None:
    """Refuses a perturbation that depends on the norm of the parameters.

    It is compared with itself at the norm of the start and at several others, from a direction
    nearby, so that rounding at a kink decides nothing.
    """
    direction = _nearby_direction(params)
    shape, inputs = _shape_of_perturbations(problem, direction), problem.dataset.x.shape
    given = shape[2 if problem.rivals == "each" else 1 :]
    if given != inputs[1:]:
        raise ValueError(
            f"`perturbation(margin, x, start)` gives the shape {given}, expected that of `x`, "
            f"{inputs[1:]}."
        )
    factors = _far_factors(problem, params)
    error = float(_invariance_error(problem, direction, factors))
    if not error <= _DEGREE_TOLERANCE:
        raise ValueError(
            "The perturbation is not scale invariant: delta(c params) differs from delta(params) "
            f"by {error:.1e} of the largest, for some c from {factors.min():.1e} to "
            f"{factors.max():.1e}. The margin theory and the flow on the sphere need an "
            "attack that depends on the direction of the parameters alone. Usually it steps along "
            "the raw gradient, or along that of a loss: step along `g / |g|` or `sign(g)` of the "
            "margin's gradient g, and take care of g = 0 by `jnp.where`, not by a constant added "
            "to the norm."
        )


def _shape_of_perturbations(problem: Problem, direction: Params) -> tuple[int, ...]:
    return np.shape(eqx.filter_eval_shape(problem.perturbations, direction))


@compiled_for_few_calls
def _invariance_error(problem: Problem, direction: Params, factors: Any) -> Any:
    """Largest `|delta(c u) - delta(u)|_inf` over the factors c, relative; NaN where delta is."""

    def perturbations(factor: Any) -> Any:
        return problem.perturbations(tree_scale(factor, direction))

    # One after another, so that the attack is compiled once.
    found = jax.lax.map(perturbations, jnp.append(1.0, factors))
    largest = jnp.max(jnp.abs(found))
    return jnp.max(jnp.abs(found - found[0])) / jnp.where(largest == 0, 1.0, largest)


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
