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
from gflow.kkt.batches import BATCH, by_batches, padded_chunks
from gflow.kkt.subspace import invariant, of_length_one
from gflow.kkt.switches import MOST_PASSES, SETTLED, passes, switched_margins
from gflow.kkt.system import KKTSystem, SwitchBlocks
from gflow.kkt.variables import Variables
from gflow.networks import Decided
from gflow.problem import Problem

# The number of columns of the Jacobian that one call of the program computes if it has more than
# `_SMALL`; else `gflow.kkt.batches.BATCH`.
_BATCH, _SMALL = 256, 512


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


def kinked_system_within(
    problem: Problem,
    layout: Layout,
    variables: Variables,
    smoothing: float,
    index: np.ndarray,
    *,
    drop: float,
    margins: np.ndarray,
    force: np.ndarray,
    whole: bool = False,
) -> KKTSystem:
    """`kinked_system` in the coordinates of a subspace outside of which its matrix is a multiple of
    the identity, without ever being formed (`gflow.kkt.subspace`).

    Memory: 8 (2 P s + s^2 + (2 m + 2 k) P) bytes, s the dimension of the subspace.

    Args:
        drop: see `invariant`; columns of the system count by their own lengths.
        margins: those that have a row; slopes and gradients of the others are left 0. Shape (m,).
        force: the part of theta in the right-hand side that the system is solved for. Shape (P,).
        whole: whether the subspace is to hold the range of I - H, for the eigenvalues.
    """
    given = problem, layout, variables, np.float64(smoothing)
    size, count, own = len(variables.theta), len(margins), np.flatnonzero(margins)
    used = np.append(own, count + index)
    residuals, found = _columns(
        *given, size + used, np.concatenate([np.arange(size + count), size + count + index])
    )
    columns, rows = found.T, by_batches(_rows, given, used, size)
    slopes, gradients = np.zeros((2, count, size))
    slopes[own], gradients[own] = rows[: len(own)], -found[: len(own), :size]

    def images(vectors: np.ndarray) -> np.ndarray:
        return vectors - by_batches(_products, given, vectors.T, size).T

    # By their own lengths: columns of small neurons are short, and so is the force near the end.
    start = of_length_one(np.column_stack([columns[:size], force]))
    basis, mapped = invariant(images, start, drop, whole=whole)
    return KKTSystem(
        stationarity=residuals.stationarity,
        margins=residuals.margins,
        hessian=np.eye(basis.shape[1]) - basis.T @ mapped,
        slopes=slopes,
        gradients=gradients,
        switches=SwitchBlocks(
            values=residuals.values,
            scales=residuals.scales,
            rows=rows[len(own) :],
            columns=columns[:, len(own) :],
        ),
        basis=basis,
    )


def switch_rows(
    problem: Problem, layout: Layout, variables: Variables, smoothing: float, index: np.ndarray
) -> np.ndarray:
    """dv/dtheta of the switches of flat indices. Shape (k, P)."""
    given = problem, layout, variables, np.float64(smoothing)
    places = len(variables.multipliers) + index
    return by_batches(_rows, given, places, len(variables.theta))


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
    (theta, lambda, phi of these switches).
    """
    across = variables.theta.size + variables.multipliers.size
    columns = np.concatenate([np.arange(across), across + index])
    residuals, found = _columns(problem, layout, variables, smoothing, columns, columns)
    return residuals, found.T


def _columns(
    problem: Problem,
    layout: Layout,
    variables: Variables,
    smoothing: Any,
    columns: np.ndarray,
    kept: np.ndarray,
) -> tuple[Residuals, np.ndarray]:
    """The equations, and columns of the Jacobian of (stationarity, margins, all v) by (theta,
    lambda, all phi), a row each; of these the entries `kept`.

    They are computed by a program for a fixed number of columns at a time, so that it need not be
    compiled again for another number of switches.
    """
    across = variables.theta.size + variables.multipliers.size
    batch = BATCH if across <= _SMALL else _BATCH
    found, residuals = np.empty((len(columns), len(kept))), ()
    for chunk, padded in padded_chunks(columns, batch, -1):
        residuals, products = _linearized(problem, layout, variables, smoothing, padded)
        found[chunk] = np.asarray(products)[: chunk.stop - chunk.start, kept]
    return Residuals(*map(np.asarray, residuals)), found


@compiled_for_some_calls
def _linearized(
    problem: Problem, layout: Layout, variables: Any, smoothing: Any, columns: Any
) -> Any:
    """`_columns` with all entries. A column of -1 stands for none."""
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


@compiled_for_some_calls
def _products(
    problem: Problem, layout: Layout, variables: Any, smoothing: Any, vectors: Any
) -> Float[Array, "b P"]:
    """The derivatives of the stationarity along vectors of theta, a row each."""
    theta, multipliers, angles = map(jnp.asarray, variables)

    def stationarity(moved: Array) -> Array:
        return traced_residuals(problem, layout, (moved, multipliers, angles), smoothing)[0]

    return jax.vmap(jax.linearize(stationarity, theta)[1])(jnp.asarray(vectors))


@compiled_for_some_calls
def _rows(
    problem: Problem, layout: Layout, variables: Any, smoothing: Any, rows: Any
) -> Float[Array, "b P"]:
    """Derivatives by theta of some entries of (margins, all v), a row each; -1 stands for none."""
    theta, _, angles = map(jnp.asarray, variables)

    def decided(moved: Array) -> Array:
        params = layout.unflatten(moved)
        margins, found = switched_margins(problem, params, params, angles, smoothing)
        return jnp.concatenate([margins.ravel(), found.values.ravel()])

    values, pull_back = jax.vjp(decided, theta)

    def row(at: Array) -> Array:
        (found,) = pull_back((jnp.arange(values.size) == at).astype(theta.dtype))
        return found

    return jax.vmap(row)(jnp.asarray(rows))
