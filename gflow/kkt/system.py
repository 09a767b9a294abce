"""The KKT system of the adversarial max-margin problem, and its derivatives.

At the norm where the smallest margin is 1, a KKT point theta with multipliers lambda satisfies

    theta = sum_i lambda_i grad q_i(theta),    q_i(theta) = 1 where lambda_i > 0,

with `grad q_i` that of the gradient mode. With frozen perturbations these are not the derivatives
of the margins themselves, and the system's Jacobian is not symmetric: slopes and gradients are kept
apart. At kinks the angles of switches are further unknowns (`gflow.kkt.kinked_system`).
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gflow._layout import Layout
from gflow._programs import compiled_for_hessians, compiled_for_some_calls
from gflow._typing import Params
from gflow.kkt.settings import SIZES, Sizes
from gflow.problem import GradientMode, Problem

# Weights below this part of the largest count as 0: second derivatives are divided by powers of
# them, which must not underflow.
_UNDERFLOWING = 1e-60
# Directions in which derivatives are taken side by side fill so many bytes. With 64 times as much,
# at 4160 parameters, the Hessian takes 1.5 to 1.8 times as long.
_TANGENTS = 2**18


class SwitchBlocks(NamedTuple):
    """What k switches with an angle of their own add to the KKT system.

    Attributes:
        values, scales: v and w of every switch, also of those that are no unknowns. Shape (n, s).
        rows: dv/dtheta of the k switches.
        columns: derivatives of (stationarity, margins, v of the k switches) by the k angles.
    """

    values: Float[np.ndarray, "n s"]
    scales: Float[np.ndarray, "n s"]
    rows: Float[np.ndarray, "k P"]
    columns: Float[np.ndarray, "r k"]


class KKTSystem(NamedTuple):
    """The KKT system at a point and its derivatives, P parameters and m margins, on the host.

    Attributes:
        stationarity: `theta - sum_i lambda_i grad q_i`.
        margins: q, flattened.
        hessian: `I - sum_i lambda_i d(grad q_i)/d theta`, the Lagrangian's Hessian; not symmetric
            where frozen perturbations depend on theta.
        slopes: dq_i/dtheta, through the perturbations.
        gradients: grad q_i, in the gradient mode.
        switches: at kinks, what belongs to the switches there.
        basis: of a subspace in which the system has its solution (`gflow.kkt.subspace`), of
            orthonormal columns; the Hessian is that on it, `basis^T H basis`. None for all weights.
            Shape (P, s).
    """

    stationarity: Float[np.ndarray, " P"]
    margins: Float[np.ndarray, " m"]
    hessian: Float[np.ndarray, "s s"]
    slopes: Float[np.ndarray, "m P"]
    gradients: Float[np.ndarray, "m P"]
    switches: SwitchBlocks | None = None
    basis: Float[np.ndarray, "P s"] | None = None

    def coordinates(self, rows: np.ndarray) -> np.ndarray:
        """Vectors by their coordinates in the basis. Shapes: (..., P) -> (..., s)."""
        return rows if self.basis is None else rows @ self.basis

    def vectors(self, columns: np.ndarray) -> np.ndarray:
        """Vectors with these coordinates in the basis. Shapes: (s, ...) -> (P, ...)."""
        return columns if self.basis is None else self.basis @ columns

    def entries(self, where: np.ndarray) -> np.ndarray:
        """The Hessian's entries between some weights. Shapes: (w,) -> (w, w)."""
        if self.basis is None:
            return self.hessian[np.ix_(where, where)]
        rows = self.basis[where]
        return np.eye(len(where)) - rows @ (np.eye(len(self.hessian)) - self.hessian) @ rows.T

    @property
    def on_basis(self) -> "KKTSystem":
        """The system with the coordinates in the basis as its unknowns."""
        rows = map(self.coordinates, (self.stationarity, self.slopes, self.gradients))
        stationarity, slopes, gradients = rows
        return self._replace(
            stationarity=stationarity, slopes=slopes, gradients=gradients, basis=None
        )

    def bordered(
        self, active: np.ndarray, *, shift: float = 0.0, rows: Any = 1.0, corner: Any = 0.0
    ) -> np.ndarray:
        """The bordered KKT matrix, in Fortran's order; by (theta, active multipliers, k angles):

            [[H + shift I,      -G^T,          dF/dphi],
             [diag(rows) S,     diag(corner),  rows dq/dphi],
             [dv/dtheta,        0,             dv/dphi]]

        with F the stationarity, S and G the active slopes and gradients. The last row and column
        are there at kinks only. theta is in the coordinates of the basis.

        Args:
            active: the margins that have a row. Shape (m,), c of them true.
            shift: of the Hessian.
            rows: factors of the margins' rows, one for all or one for each. Shape () or (c,).
            corner: what stands on the diagonal of the multipliers. Shape () or (c,).
        """
        size, count = len(self.hessian), int(np.count_nonzero(active))
        across, total, factors = size + count, size + count, np.broadcast_to(rows, count)[:, None]
        if self.switches is not None:
            total += len(self.switches.rows)
        matrix = np.zeros((total, total), order="F")
        matrix[:size, :size] = self.hessian
        matrix[:size, size:across] = -self.coordinates(self.gradients[active]).T
        matrix[size:across, :size] = factors * self.coordinates(self.slopes[active])
        if self.switches is not None:
            whole = len(self.stationarity)
            by_stationarity, by_margins, by_values = np.split(
                self.switches.columns, [whole, whole + len(self.margins)]
            )
            matrix[across:, :size] = self.coordinates(self.switches.rows)
            by_stationarity = self.coordinates(by_stationarity.T).T
            columns = by_stationarity, factors * by_margins[active], by_values
            matrix[:, across:] = np.concatenate(columns)
        matrix[np.arange(size), np.arange(size)] += shift
        matrix[np.arange(size, across), np.arange(size, across)] += corner
        return matrix


Vector = Float[Array, " _"] | Float[np.ndarray, " _"]


@compiled_for_some_calls
def stationarity_and_margins(
    problem: Problem, layout: Layout, theta: Vector, multipliers: Vector
) -> tuple[Float[Array, " P"], Float[Array, " m"]]:
    """`theta - sum_i lambda_i grad q_i(theta)` and the margins, flattened.

    Shapes: theta (P,), multipliers (m,).
    """
    theta, multipliers = jnp.asarray(theta), jnp.asarray(multipliers)
    margins, pull_back = problem.linearize(layout.unflatten(theta))
    (pull,) = pull_back(multipliers.reshape(margins.shape))
    return theta - layout.flatten(pull), margins.ravel()


def without_dead(theta: np.ndarray) -> np.ndarray:
    """The point with 0 for weights next to nothing, as of a neuron that has died out: the squares
    by which its second derivatives are divided would underflow. Shapes (P,).
    """
    return np.where(np.abs(theta) < _UNDERFLOWING * np.abs(theta).max(), 0.0, theta)


def kkt_system(
    problem: Problem,
    layout: Layout,
    theta: np.ndarray,
    multipliers: np.ndarray,
    *,
    sizes: Sizes = SIZES,
    rows: tuple[Any, Any, Any] | None = None,
) -> KKTSystem:
    """The system and its derivatives at a point, with 0 for weights of dead neurons.

    Memory: 8 (P^2 + 2 m P) bytes, and some tangents.

    Args:
        theta, multipliers: the point. Shapes (P,), (m,).
        sizes: beyond `sizes.formed` parameters, examples whose multipliers are 0 are left out of
            the second derivatives.
        rows: `margins_and_rows` there, where they are at hand.
    """
    theta = without_dead(theta)
    if theta.size <= sizes.formed:
        found = _lagrangian(problem, multipliers, layout, theta)
    else:
        fewer, kept = only_pushing(problem, multipliers != 0)
        found = _lagrangian(fewer, multipliers[kept], layout, theta)
    found = *found, *(margins_and_rows(problem, layout, theta) if rows is None else rows)
    stationarity, hessian, margins, slopes, gradients = map(np.asarray, found)
    return KKTSystem(stationarity, margins, hessian, slopes, gradients)


def with_hessian_of(
    at: KKTSystem, problem: Problem, layout: Layout, theta: np.ndarray, multipliers: np.ndarray
) -> KKTSystem:
    """The system at a point, but with the Hessian of a system at a point next to it."""
    theta = without_dead(theta)
    margins, slopes, gradients = map(np.asarray, margins_and_rows(problem, layout, theta))
    stationarity = theta - multipliers @ gradients
    return at._replace(
        stationarity=stationarity, margins=margins, slopes=slopes, gradients=gradients
    )


def only_pushing(problem: Problem, pushing: np.ndarray) -> tuple[Problem, np.ndarray]:
    """The problem without the examples of which no margin pushes; and which margins are left.

    Some of the other examples stay as well, so that their number is a power of 2 and few programs
    are compiled.

    Args:
        pushing: which margins push. Shape (m,), m the number of examples times k - 1.
    """
    pushing = pushing.reshape(len(problem.dataset.x), -1)
    order = np.argsort(~pushing.any(axis=1), kind="stable")
    num_pushing = int(pushing.any(axis=1).sum())
    kept = np.sort(order[: 2 ** math.ceil(math.log2(max(num_pushing, 1)))])
    starts = problem.starts if problem.starts is None else np.asarray(problem.starts)[kept]
    fewer = eqx.tree_at(
        lambda p: (p.dataset.x, p.dataset.y, p.starts),
        problem,
        (problem.dataset.x[kept], problem.dataset.y[kept], starts),
        is_leaf=lambda leaf: leaf is None,
    )
    return fewer, np.arange(pushing.size).reshape(pushing.shape)[kept].ravel()


@compiled_for_hessians
def _lagrangian(
    problem: Problem, multipliers: Any, layout: Layout, theta: Any
) -> tuple[Array, Array]:
    """`theta - sum_i lambda_i grad q_i` and its derivative."""

    def stationarity(point: Array) -> Array:
        return stationarity_and_margins(problem, layout, point, multipliers)[0]

    value, product = jax.linearize(stationarity, theta)
    batch = int(np.clip(_TANGENTS // (8 * theta.size), 1, theta.size))
    return value, lax.map(product, jnp.eye(theta.size), batch_size=batch).T


@compiled_for_some_calls
def margins_and_rows(
    problem: Problem, layout: Layout, theta: Any
) -> tuple[Float[Array, " m"], Float[Array, "m P"], Float[Array, "m P"]]:
    """The margins, flattened, and `slopes_and_gradients`."""
    margins, *trees = problem.margins_and_rows(layout.unflatten(jnp.asarray(theta)))
    slopes, gradients = (
        jnp.concatenate([leaf.reshape(margins.size, -1) for leaf in jax.tree.leaves(tree)], axis=1)
        for tree in trees
    )
    return margins.ravel(), slopes, gradients


@compiled_for_some_calls
def slopes_and_gradients(
    problem: Problem, layout: Layout, theta: Vector
) -> tuple[Float[Array, "m P"], Float[Array, "m P"]]:
    """`dq_i/dtheta` through the perturbations, and `grad q_i` in the gradient mode."""
    return margins_and_rows(problem, layout, theta)[1:]


def gradient_rows(
    problem: Problem, params: Params, examples: Array, mode: GradientMode | None = None
) -> Float[Array, "m P"]:
    """`grad q_i` of the margins of the named examples, flattened, a row each."""
    tree = problem.margin_gradients(params, examples, gradient=mode)
    of_class = 1 if problem.dataset.binary else problem.dataset.num_classes - 1
    leaves = [leaf.reshape(len(examples) * of_class, -1) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate(leaves, axis=1)
