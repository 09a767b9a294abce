"""The KKT system of a network that is linear in its inputs, formed within a subspace.

Of a product of matrices, `I - H` couples the weights of two layers only through what the other
layers make of the examples that push, and through the d numbers that an attack follows. Its rank is
a few times the widths of the layers, however many weights they have, and systems with H and all its
eigenvalues other than 1 are found within a subspace (`gflow.kkt.subspace`).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._layout import Layout
from gflow._programs import compiled_for_hessians
from gflow.kkt.batches import by_batches
from gflow.kkt.settings import SIZES, Sizes
from gflow.kkt.subspace import EXACT, invariant, of_length_one
from gflow.kkt.system import (
    KKTSystem,
    kkt_system,
    margins_and_rows,
    only_pushing,
    stationarity_and_margins,
    without_dead,
)
from gflow.problem import Problem


def is_within(problem: Problem, size: int, sizes: Sizes = SIZES) -> bool:
    """Whether systems of so many weights are formed within a subspace only."""
    return size > sizes.formed and problem.network.linear_in_inputs


def is_factored(problem: Problem, size: int, sizes: Sizes = SIZES) -> bool:
    """Whether systems of so many weights are solved by rank-revealing factors, and all their
    eigenvalues computed.
    """
    return size <= sizes.factored or is_within(problem, size, sizes)


def judged_at_most(problem: Problem, size: int, sizes: Sizes = SIZES) -> int:
    """Up to how many weights limits of such networks are sought; `size` is that of this one."""
    return sizes.judged_within if is_within(problem, size, sizes) else sizes.judged


def system_at(
    problem: Problem,
    layout: Layout,
    theta: np.ndarray,
    multipliers: np.ndarray,
    *,
    active: np.ndarray | None = None,
    sizes: Sizes = SIZES,
) -> KKTSystem:
    """The KKT system at a point: whole, or within a subspace where `is_within`.

    Args:
        active: margins that have a row in the bordered matrix; those with a multiplier by default.
            Shape (m,).
    """
    if not is_within(problem, theta.size, sizes):
        return kkt_system(problem, layout, theta, multipliers, sizes=sizes)
    rows = multipliers != 0 if active is None else active
    return system_within(problem, layout, theta, multipliers, rows)


def system_within(
    problem: Problem,
    layout: Layout,
    theta: np.ndarray,
    multipliers: np.ndarray,
    active: np.ndarray,
    force: np.ndarray | None = None,
) -> KKTSystem:
    """The same within a subspace of s dimensions. Memory: 8 (3 P s + s^2 + 2 m P) bytes.

    Args:
        force: the part of theta in the right-hand side that the system is solved for; the
            stationarity by default. Shape (P,).
    """
    theta = without_dead(theta)
    margins, slopes, gradients = map(np.asarray, margins_and_rows(problem, layout, theta))
    stationarity = theta - multipliers @ gradients
    fewer, kept = only_pushing(problem, multipliers != 0)
    given = fewer, layout, theta, multipliers[kept]

    def images(vectors: np.ndarray) -> np.ndarray:
        return vectors - by_batches(_products, given, vectors.T, theta.size).T

    # Of lengths 1, since the force is short near the end.
    right = stationarity if force is None else force
    start = of_length_one(np.column_stack([gradients[active].T, right]))
    basis, mapped = invariant(images, start, EXACT, whole=True)
    hessian = np.eye(basis.shape[1]) - basis.T @ mapped
    return KKTSystem(stationarity, margins, hessian, slopes, gradients, basis=basis)


@compiled_for_hessians
def _products(
    problem: Problem, layout: Layout, theta: Array, multipliers: Array, vectors: Array
) -> Float[Array, "b P"]:
    """The derivatives of the stationarity along vectors of theta, a row each."""

    def stationarity(moved: Array) -> Array:
        return stationarity_and_margins(problem, layout, moved, multipliers)[0]

    return jax.vmap(jax.linearize(stationarity, jnp.asarray(theta))[1])(jnp.asarray(vectors))
