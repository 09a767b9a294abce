"""The KKT system with every switch held at its own angle, and its derivatives.

Unknown are the point theta, the multipliers lambda and the angles phi of some switches
(`gflow.kkt.switches`); the equations are those of `gflow.kkt.system` and `v = 0` of these switches.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gflow._layout import Layout
from gflow._programs import compiled_for_some_calls
from gflow.kkt.switches import alive, switched_margins
from gflow.kkt.system import KKTSystem, SwitchBlocks
from gflow.kkt.variables import Variables
from gflow.networks import Decided
from gflow.problem import Problem

# Columns of the Jacobian that are computed side by side.
_BATCH = 256
# The least number of switches for which a program is compiled; others are filled up.
_FEWEST = 64


class Residuals(NamedTuple):
    """The equations of the KKT system at a point, without derivatives.

    Attributes:
        stationarity: `theta - sum_i lambda_i grad q_i`.
        margins: q, flattened.
        values, scales: v and w of every switch. Shape (n, s), s = 0 without kinks.
    """

    stationarity: Float[np.ndarray, " P"]
    margins: Float[np.ndarray, " m"]
    values: Float[np.ndarray, "n s"]
    scales: Float[np.ndarray, "n s"]

    @property
    def alive(self) -> np.ndarray:
        """The switches of living neurons. Shape (n, s)."""
        return alive(self.scales)


def kinked_residuals(
    problem: Problem, layout: Layout, variables: Variables, smoothing: float
) -> Residuals:
    """The equations at a point with its angles, at a smoothing mu >= 0."""
    found = _residuals(problem, layout, variables, np.float64(smoothing))
    return Residuals(*map(np.asarray, found))


def kinked_system(
    problem: Problem,
    layout: Layout,
    variables: Variables,
    smoothing: float,
    index: np.ndarray,
) -> KKTSystem:
    """The equations at a point with its angles, and their derivatives.

    Memory: 8 (P + m + k)^2 bytes.

    Args:
        smoothing: mu >= 0.
        index: flat indices of the k switches whose angles are unknown. Shape (k,).
    """
    length = max(_FEWEST, 1 << int(np.ceil(np.log2(max(len(index), 1)))))
    padded = np.concatenate([index, np.full(length - len(index), -1)])
    found = _linearized(problem, layout, variables, np.float64(smoothing), padded)
    residuals, jacobian = Residuals(*map(np.asarray, found[0])), np.asarray(found[1])
    size, count = len(residuals.stationarity), len(residuals.margins)
    across, used = size + count, size + count + len(index)
    return KKTSystem(
        stationarity=residuals.stationarity,
        margins=residuals.margins,
        hessian=jacobian[:size, :size],
        slopes=jacobian[size:across, :size],
        gradients=-jacobian[:size, size:across].T,
        switches=SwitchBlocks(
            values=residuals.values,
            scales=residuals.scales,
            rows=jacobian[across:used, :size],
            columns=jacobian[:used, across:used],
        ),
    )


def traced_residuals(
    problem: Problem, layout: Layout, variables: Any, smoothing: Any
) -> tuple[Float[Array, " P"], Float[Array, " m"], Decided]:
    """`theta - sum_i lambda_i grad q_i`, the margins, and what decides the switches; for use
    within compiled programs.
    """
    theta, multipliers, angles = map(jnp.asarray, variables)
    params = layout.unflatten(theta)

    def margins(free: Array) -> Any:
        moved = layout.unflatten(free)
        attacker = params if problem.gradient_mode == "frozen" else moved
        return switched_margins(problem, attacker, moved, angles, smoothing)

    values, pull_back, decided = jax.vjp(margins, theta, has_aux=True)
    (pull,) = pull_back(multipliers.reshape(values.shape))
    return theta - pull, values.ravel(), decided


@compiled_for_some_calls
def _residuals(problem: Problem, layout: Layout, variables: Any, smoothing: Any) -> Any:
    stationarity, margins, decided = traced_residuals(problem, layout, variables, smoothing)
    return stationarity, margins, *decided


@compiled_for_some_calls
def _linearized(
    problem: Problem, layout: Layout, variables: Any, smoothing: Any, index: Any
) -> Any:
    """The equations, and the Jacobian of (stationarity, margins, v of the switches of `index`) by
    (theta, lambda, phi of them). An index of -1 stands for no switch: a row and a column of 0.
    """
    theta, multipliers, angles = map(jnp.asarray, variables)
    size, count, flat = theta.size, multipliers.size, angles.ravel()
    stationarity, margins, decided = traced_residuals(problem, layout, variables, smoothing)
    chosen: Any = {"mode": "fill", "fill_value": 0.0, "wrap_negative_indices": False}

    def equations(unknown: Array) -> Array:
        theta, multipliers, phi = jnp.split(unknown, [size, size + count])
        turned = flat.at[index].set(phi, mode="drop", wrap_negative_indices=False)
        moved = theta, multipliers, turned.reshape(angles.shape)
        stationarity, margins, decided = traced_residuals(problem, layout, moved, smoothing)
        values = decided.values.ravel().at[index].get(**chosen)
        return jnp.concatenate([stationarity, margins, values])

    unknown = jnp.concatenate([theta, multipliers, flat.at[index].get(**chosen)])
    _, product = jax.linearize(equations, unknown)
    columns = lax.map(product, jnp.eye(unknown.size), batch_size=min(_BATCH, unknown.size))
    return (stationarity, margins, *decided), columns.T
