"""Measures of a point: pure functions of (problem, params) or of the parameters alone.

All but `sharpness` are jit-able and cost one or two evaluations of the margins. Those that do not
depend on the norm of the parameters say so.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from gflow._checks import is_integer, is_real, scalar
from gflow._leaves import check_alike, check_params
from gflow._numerics import scaled_margins, tangent, tree_dot, tree_norm, unit
from gflow._points import of_point
from gflow._typing import Params
from gflow.accuracy import accuracy, robust_accuracy
from gflow.problem import Ascent, Problem
from gflow.sharpness import sharpness

# exp(709.8) is the largest double; kappa enters products with margins.
MAX_LOG_KAPPA = 700.0


class PointMeasures(NamedTuple):
    """What a trajectory records at each of its points.

    Attributes:
        log_loss: `log sum_i l(q_i)`; NaN where kappa is no floating-point number.
        log_minus_log_loss: `log(-log_loss)`, which is one whatever kappa; NaN for a loss above 1.
        margin: normalized adversarial margin `min_i q_i(u)`.
        clean_margin: the same without perturbation.
        smoothed_margin: `l^{-1}(Loss) / kappa`.
        stationarity: `|u - c sum_i p_i grad q_i(u)|` for the best c >= 0, in [0, 1].
        strength: `|sum_i p_i grad q_i(u)|`, which vanishes where the loss is stationary.
    """

    log_loss: Float[Array, ""]
    log_minus_log_loss: Float[Array, ""]
    margin: Float[Array, ""]
    clean_margin: Float[Array, ""]
    smoothed_margin: Float[Array, ""]
    stationarity: Float[Array, ""]
    strength: Float[Array, ""]


@of_point
def measure_point(
    problem: Problem, direction: Params, log_kappa: Float[Array, ""] | float
) -> PointMeasures:
    """The measures of the parameters `kappa^(1/L) direction`, `|direction| = 1`.

    Source: normalized and smoothed margin: Lyu & Li 2020, there for clean data; their adversarial
    form: Lyu & Zhu 2022.
    """
    return measure_ascent(problem, direction, log_kappa, problem.ascent(direction, log_kappa))


def measure_ascent(
    problem: Problem,
    direction: Params,
    log_kappa: Float[Array, ""] | float,
    ascent: Ascent,
    clean_margin: Float[Array, ""] | None = None,
) -> PointMeasures:
    """`measure_point` where `problem.ascent(direction, log_kappa)` is at hand.

    An ascent at another kappa gives the stationarity and the strength of the flow at that other. A
    clean margin that is given is not evaluated.
    """
    if clean_margin is None:
        clean_margin = jnp.min(problem.clean_margins(direction))
    log_kappa = jnp.asarray(log_kappa)
    known = log_kappa <= MAX_LOG_KAPPA + 1e-6  # whoever stops there stops there to rounding
    kappa = jnp.exp(jnp.minimum(log_kappa, MAX_LOG_KAPPA))
    log_loss = problem.loss.log_loss(scaled_margins(kappa, ascent.margins))
    smoothed_margin = problem.loss.inverse(log_loss) / kappa
    below_one = log_loss < 0
    far = log_kappa + jnp.log(jnp.where(below_one, smoothed_margin, 1.0))
    near = jnp.log(jnp.where(below_one, -log_loss, 1.0))
    return PointMeasures(
        log_loss=jnp.where(known, log_loss, jnp.nan),
        log_minus_log_loss=jnp.where(below_one, jnp.where(known, near, far), jnp.nan),
        margin=jnp.min(ascent.margins),
        clean_margin=clean_margin,
        smoothed_margin=smoothed_margin,
        stationarity=sine(direction, ascent.vector),
        strength=tree_norm(ascent.vector),
    )


@of_point
def at_params(problem: Problem, params: Params) -> PointMeasures:
    """The measures of `params`: `measure_point` at their own direction and norm."""
    direction, length = unit(params)
    return measure_point(problem, direction, problem.degree * jnp.log(length))


@of_point
def normalized_margin(problem: Problem, params: Params) -> Float[Array, ""]:
    """`min_i q_i(params / |params|)`, the adversarial margin at unit norm."""
    return jnp.min(problem.margins(unit(params)[0]))


@of_point
def smoothed_margin(problem: Problem, params: Params) -> Float[Array, ""]:
    """`l^{-1}(sum_i l(q_i)) / |params|^L`, a lower bound of the normalized margin.

    It never falls along the flow with total gradient once `Loss < l(0)`.

    Source: Lyu & Li 2020 for clean data; Lyu & Zhu 2022 for perturbed data.
    """
    return at_params(problem, params).smoothed_margin


def sine(direction: Params, vector: Params) -> Float[Array, ""]:
    """`|u - c v|` for the best c >= 0: the sine of the angle between u and v, 1 from 90 degrees on.

    Computed from the part of v across u, so that small angles keep their digits. A zero v gives 1.
    """
    check_alike(direction, vector, "`sine(direction, vector)`")
    unit_vector, length = unit(vector)
    across = tree_norm(tangent(direction, unit_vector))
    opposed = (tree_dot(direction, unit_vector) <= 0) | (length == 0)
    return jnp.where(opposed, 1.0, jnp.minimum(across, 1.0))


def direction_distance(left: Params, right: Params) -> Float[Array, ""]:
    """`| left/|left| - right/|right| |_2`, the distance between two directions."""
    check_alike(left, right, "`direction_distance(left, right)`")
    difference = jax.tree.map(lambda a, b: a - b, unit(left)[0], unit(right)[0])
    return tree_norm(difference)


def layer_alignment(params: Params) -> Float[Array, " pairs"]:
    """`|<v_{k+1}, u_k>|` for every pair of adjacent layers: 1 where they are aligned.

    u_k is the leading left singular vector of layer k, v_{k+1} the leading right singular vector of
    the next. Shapes: (number of layers - 1,); empty for a single layer.

    Raises:
        ValueError: `params` is no sequence of matrices that fit each other.

    Source: Ji & Telgarsky 2019, "Gradient descent aligns the layers of deep linear networks".
    """
    layers = _matrices(params, "layer_alignment")
    factors = [jnp.linalg.svd(layer, full_matrices=False) for layer in layers]
    values = [jnp.abs(jnp.dot(after[2][0], before[0][:, 0])) for before, after in pairwise(factors)]
    return jnp.stack(values) if values else jnp.zeros(0)


def stable_ranks(params: Params) -> Float[Array, " layers"]:
    """`|W_k|_F^2 / |W_k|_2^2` of every layer, between 1 and its rank. Shapes: (layers,)."""
    values = [jnp.linalg.svd(w, compute_uv=False) for w in _matrices(params, "stable_ranks")]
    return jnp.stack([jnp.sum((s / s[0]) ** 2) for s in values])


def balancedness(params: Params) -> tuple[Float[Array, "h h"], ...]:
    """`W_{k+1}^T W_{k+1} - W_k W_k^T` for adjacent layers: constant along the flow of a deep linear
    net, whatever the data and the attack.

    Source: Arora, Cohen & Hazan 2018; Du, Hu & Lee 2018.
    """
    layers = _matrices(params, "balancedness")
    return tuple(after.T @ after - before @ before.T for before, after in pairwise(layers))


def ji_telgarsky_excess(params: Params) -> Float[Array, " layers"]:
    """`|W_k|_F^2 - |W_k|_2^2` of every layer: bounded along the flow of a deep linear net."""
    layers = _matrices(params, "ji_telgarsky_excess")
    singular = [jnp.linalg.svd(layer, compute_uv=False) for layer in layers]
    return jnp.stack([jnp.sum(values[1:] ** 2) for values in singular])


def ji_telgarsky_bound(start: Params) -> Float[Array, ""]:
    """The bound D on `ji_telgarsky_excess` along the flow from `start`.

    `D = max_k |W_k|_F^2 - |W_L|_F^2 + sum_k |W_k W_k^T - W_{k+1}^T W_{k+1}|_2`, all at the start.

    Source: Ji & Telgarsky 2019, their constant D for gradient flow (a net with one output).
    """
    layers = _matrices(start, "ji_telgarsky_bound")
    squares = jnp.stack([jnp.sum(layer**2) for layer in layers])
    gaps = [jnp.linalg.norm(gap, 2) for gap in balancedness(start)]
    return jnp.max(squares) - squares[-1] + sum(gaps, start=jnp.zeros(()))


@of_point
def euler_error(problem: Problem, params: Params) -> Float[Array, ""]:
    """`max_i |<grad q_i, u> - L q_i| / (L max_j |q_j|)` at unit norm: 0 for homogeneous margins."""
    direction, _ = unit(params)
    free_margins = problem.free_margins(direction)
    margins, slopes = jax.jvp(free_margins, (direction,), (direction,))
    expected = problem.degree * margins
    largest = jnp.max(jnp.abs(expected))
    return jnp.max(jnp.abs(slopes - expected)) / jnp.where(largest > 0, largest, 1.0)


@of_point
def scale_invariance_error(problem: Problem, params: Params) -> Float[Array, ""]:
    """`max_i |delta_i(c u) - delta_i(u)|_inf / max_i |delta_i|_inf` over c = 1e-3 and 1e3."""
    direction, _ = unit(params)

    def perturbations(factor: Array) -> Array:
        return problem.perturbations(jax.tree.map(lambda leaf: factor * leaf, direction))

    # One after another, so that the program holds the attack once.
    reference, *others = lax.map(perturbations, jnp.array([1.0, 1e-3, 1e3]))
    largest = jnp.max(jnp.abs(reference))
    change = jnp.max(jnp.abs(jnp.stack(others) - reference))
    return change / jnp.where(largest > 0, largest, 1.0)


@of_point
def num_support(problem: Problem, params: Params, *, tolerance: float = 1e-2) -> Int[Array, ""]:
    """How many margins lie within `tolerance`, relative, of the smallest one."""
    tolerance = scalar(tolerance, "tolerance")
    margins = problem.margins(unit(params)[0])
    smallest = jnp.min(margins)
    return jnp.sum(margins <= smallest + tolerance * jnp.abs(smallest))


def balanced_margin(predictor_margin: float, depth: int) -> float:
    """Normalized margin `gamma L^(-L/2)` of a balanced deep linear net.

    gamma is the margin of the normalized product of its layers; at unit norm of all parameters each
    of its L aligned layers has norm `L^(-1/2)`.

    Raises:
        TypeError, ValueError: the margin is no number, or the depth no integer of at least 1.
    """
    if not is_real(predictor_margin):
        raise TypeError(f"`balanced_margin({predictor_margin!r}, ...)`: the margin is one number.")
    if not is_integer(depth) or depth < 1:
        raise ValueError(f"`balanced_margin(..., {depth!r})`: the depth is an integer, at least 1.")
    return predictor_margin * math.pow(depth, -depth / 2)


def _matrices(params: Params, name: str) -> list[Array]:
    check_params(params, f"`{name}(params)`")
    layers = [jnp.asarray(leaf) for leaf in jax.tree.leaves(params)]
    layers = [leaf.reshape(leaf.shape[0], -1) if leaf.ndim > 2 else leaf for leaf in layers]
    if any(layer.ndim != 2 for layer in layers):
        raise ValueError(f"`{name}(params)`: every layer must be a matrix (fan_out, fan_in).")
    if any(before.shape[0] != after.shape[1] for before, after in pairwise(layers)):
        raise ValueError(
            f"`{name}(params)`: the layers' shapes {[layer.shape for layer in layers]} do not "
            "follow each other; adjacent layers are compared only in dense networks."
        )
    return layers


__all__ = [
    "PointMeasures",
    "accuracy",
    "at_params",
    "balanced_margin",
    "balancedness",
    "direction_distance",
    "euler_error",
    "ji_telgarsky_bound",
    "ji_telgarsky_excess",
    "layer_alignment",
    "measure_ascent",
    "measure_point",
    "normalized_margin",
    "num_support",
    "robust_accuracy",
    "scale_invariance_error",
    "sharpness",
    "sine",
    "smoothed_margin",
    "stable_ranks",
]
