"""The KKT system with every switch at its own angle, and its derivatives, evaluated.

Unknown are the point theta, the multipliers lambda and the angles phi of switches
(`gflow.kkt.switches`).
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gflow._layout import Layout
from gflow._programs import compiled
from gflow.kkt.switches import switched_margins
from gflow.networks import Decided
from gflow.problem import Problem

_BATCH = 256
_FEWEST = 64


class Point(NamedTuple):
    """A point with its multipliers and angles.

    Shapes: theta (P,), multipliers (m,), angles (n, s).
    """

    theta: np.ndarray
    multipliers: np.ndarray
    angles: np.ndarray


class Equations(eqx.Module):
    """The system at a point, without the complementarity of the margins, and its derivatives.

    P parameters, m margins, k switches with an angle of their own (padded with empty ones).

    Attributes:
        residual: `theta - sum_i lambda_i grad q_i`.
        margins: q, flattened.
        values, scales: v and w of every switch. Shape (n, s).
        jacobian: of (residual, margins, v of the k switches) by (theta, lambda, phi of them).
    """

    residual: Float[Array, " P"]
    margins: Float[Array, " m"]
    values: Float[Array, "n s"]
    scales: Float[Array, "n s"]
    jacobian: Float[Array, "r r"] | None


def equations(
    problem: Problem,
    layout: Layout,
    point: Point,
    smoothing: float,
    index: np.ndarray | None = None,
) -> Equations:
    """The equations at a point, on the host; with the flat indices of switches, their Jacobian too.

    Memory: 8 (P + m + k)^2 bytes for the Jacobian.
    """
    index = None if index is None else _padded(index)
    found = _equations(problem, layout, point, np.float64(smoothing), index)
    return jax.tree.map(np.asarray, found)


def _padded(index: np.ndarray) -> np.ndarray:
    """Indices filled up to the next power of 2, so that few programs are compiled."""
    length = max(_FEWEST, 1 << int(np.ceil(np.log2(max(len(index), 1)))))
    return np.concatenate([index, np.full(length - len(index), -1)])


def traced_equations(
    problem: Problem, layout: Layout, point: Any, smoothing: Any
) -> tuple[Float[Array, " P"], Float[Array, " m"], Decided]:
    """`theta - sum_i lambda_i grad q_i`, the margins, and what decides the switches: traced."""
    theta, multipliers, angles = map(jnp.asarray, point)
    params = layout.unflatten(theta)

    def margins(free: Array) -> Any:
        moved = layout.unflatten(free)
        attacker = params if problem.gradient_mode == "frozen" else moved
        return switched_margins(problem, attacker, moved, angles, smoothing)

    values, pull_back, decided = jax.vjp(margins, theta, has_aux=True)
    (pull,) = pull_back(multipliers.reshape(values.shape))
    return theta - pull, values.ravel(), decided


@compiled
def _equations(
    problem: Problem, layout: Layout, point: Any, smoothing: Any, index: Any
) -> Equations:
    theta, multipliers, angles = map(jnp.asarray, point)
    size, count = theta.size, multipliers.size
    residual, margins, decided = traced_equations(problem, layout, point, smoothing)
    if index is None:
        return Equations(residual, margins, *decided, jacobian=None)
    flat = angles.ravel()

    def system(unknown: Array) -> Array:
        theta, multipliers, phi = jnp.split(unknown, [size, size + count])
        turned = flat.at[index].set(phi, mode="drop", wrap_negative_indices=False)
        moved = theta, multipliers, turned.reshape(angles.shape)
        residual, margins, decided = traced_equations(problem, layout, moved, smoothing)
        values = decided.values.ravel().at[index]
        chosen = values.get(mode="fill", fill_value=0.0, wrap_negative_indices=False)
        return jnp.concatenate([residual, margins, chosen])

    phi = flat.at[index].get(mode="fill", fill_value=0.0, wrap_negative_indices=False)
    unknown = jnp.concatenate([theta, multipliers, phi])
    _, product = jax.linearize(system, unknown)
    columns = lax.map(product, jnp.eye(unknown.size), batch_size=min(_BATCH, unknown.size))
    return Equations(residual, margins, *decided, jacobian=columns.T)
