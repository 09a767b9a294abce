"""The KKT system with every switch held at its own angle, and its derivatives.

Unknown are the point theta, the multipliers lambda and the angles phi of some switches
(`gflow.kkt.switches`); the equations are those of `gflow.kkt.system` and `v = 0` of these switches.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._layout import Layout
from gflow._programs import compiled_for_some_calls
from gflow.kkt.switches import MOST_PASSES, SETTLED, alive, passes, switched_margins
from gflow.kkt.system import KKTSystem, SwitchBlocks
from gflow.kkt.variables import Variables
from gflow.networks import Decided
from gflow.problem import Problem

# The number of columns of the Jacobian that one call of the program computes: `_SMALL_BATCH` if the
# Jacobian has at most `_SMALL` columns, else `_BATCH`.
_BATCH, _SMALL_BATCH, _SMALL = 256, 64, 512


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
    residuals, jacobian = _jacobian(problem, layout, variables, np.float64(smoothing), index)
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


def settled_angles_at(
    problem: Problem, layout: Layout, theta: np.ndarray, smoothing: float
) -> np.ndarray:
    """`gflow.kkt.switches.settled_angles` by the program of `kinked_residuals`. Shape (n, s)."""
    shape = len(problem.dataset.x), passes(problem).size
    multipliers = np.zeros(shape[0] * max(problem.dataset.num_outputs - 1, 1))
    angles, before, count = np.zeros(shape), np.full(shape, np.inf), 0
    while np.abs(angles - before).max(initial=0.0) > SETTLED and count < MOST_PASSES:
        found = kinked_residuals(problem, layout, Variables(theta, multipliers, angles), smoothing)
        angles, before = np.arctan2(found.values, smoothing * found.scales), angles
        count += 1
    return angles


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


def _jacobian(
    problem: Problem, layout: Layout, variables: Variables, smoothing: Any, index: np.ndarray
) -> tuple[Residuals, np.ndarray]:
    """The equations, and the Jacobian of (stationarity, margins, v of the switches of `index`) by
    (theta, lambda, phi of these switches), by a program that computes a fixed number of columns at
    a time, so that it need not be compiled again for another number of switches.
    """
    across = variables.theta.size + variables.multipliers.size
    columns = np.concatenate([np.arange(across), across + index])
    batch = _SMALL_BATCH if across <= _SMALL else _BATCH
    jacobian, residuals = np.empty((len(columns), len(columns))), ()
    for start in range(0, len(columns), batch):
        chunk = columns[start : start + batch]
        padded = np.concatenate([chunk, np.full(batch - len(chunk), -1)])
        residuals, products = _linearized(problem, layout, variables, smoothing, padded)
        jacobian[:, start : start + batch] = np.asarray(products)[: len(chunk), columns].T
    return Residuals(*map(np.asarray, residuals)), jacobian


@compiled_for_some_calls
def _linearized(
    problem: Problem, layout: Layout, variables: Any, smoothing: Any, columns: Any
) -> Any:
    """The equations, and some columns of the Jacobian of (stationarity, margins, all v) by (theta,
    lambda, all phi), a row each. A column of -1 stands for none.
    """
    variables = tuple(map(jnp.asarray, variables))

    def equations(theta: Array, multipliers: Array, angles: Array) -> Any:
        moved = theta, multipliers, angles
        stationarity, margins, decided = traced_residuals(problem, layout, moved, smoothing)
        found = jnp.concatenate([stationarity, margins, decided.values.ravel()])
        return found, (stationarity, margins, *decided)

    _, product, residuals = jax.linearize(equations, *variables, has_aux=True)
    theta, multipliers, angles = variables

    def column(at: Array) -> Array:
        ends = theta.size, theta.size + multipliers.size
        unit = (jnp.arange(ends[1] + angles.size) == at).astype(theta.dtype)
        first, second, third = jnp.split(unit, ends)
        return product(first, second, third.reshape(angles.shape))

    return residuals, jax.vmap(column)(jnp.asarray(columns))
