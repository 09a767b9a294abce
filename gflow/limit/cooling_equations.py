"""The equations of a rest point at one temperature, linearised, and the steps that solve them."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.linalg import lu_factor, lu_solve
from scipy.sparse.linalg import LinearOperator, gmres

from gflow._layout import Layout
from gflow._least_norm import nearly_solved
from gflow._programs import compiled
from gflow.kkt.system import only_pushing, residual, residual_at, slopes_and_gradients, system
from gflow.problem import Problem

TINY = 1e-300
# The most parameters for which the matrix is formed; and beyond, the products at most with it, the
# relative tolerance, and what may be left over of a system all the same.
_DENSE_AT_MOST, _PRODUCTS, _LINEAR, _UNSOLVED = 1000, 200, 1e-3, 0.1
# Rows of margins with less than these weights are left out: of the matrix, of products with it,
# and of their preconditioner.
_NOTHING, _NEGLIGIBLE, _PUSHING = 1e-14, 1e-4, 0.1


class Equations:
    """The linearised equations at an iterate.

    The row of margin i is multiplied by `t_i = s lambda_i / (1 + s lambda_i)`: where it hardly
    pushes it is a row for its multiplier, and for a large s it hardly depends on s.

    Args:
        theta, multipliers: the iterate. Shapes (P,), (m,).
        sharpness: s.
        largest: the multiplier that counts as the largest.

    Attributes:
        error: of the equations: the larger of the residual relative to the norm of theta and the
            largest entry of the rows of margins.
    """

    def __init__(
        self,
        problem: Problem,
        layout: Layout,
        theta: np.ndarray,
        multipliers: np.ndarray,
        *,
        sharpness: float,
        largest: float,
    ):
        self.problem, self.layout = problem, layout
        self.theta, self.multipliers, self.sharpness = theta, multipliers, sharpness
        weight = sharpness * multipliers
        self.rows, self.own = weight / (1 + weight), 1 / (1 + weight)
        found = residual_at(self.problem, self.layout, theta, multipliers)
        stationarity, margins = map(np.asarray, found)
        self.margins = margins
        logarithm = np.log(np.maximum(multipliers, TINY) / largest)
        barrier = self.own * multipliers * logarithm
        self.right = -np.concatenate([stationarity, self.rows * (margins - 1) + barrier])
        self.error = max(
            np.linalg.norm(stationarity) / np.linalg.norm(theta),
            np.abs(self.right[len(theta) :]).max(),
        )

    def solve(self, time: float) -> np.ndarray | None:
        """The step of (theta, multipliers) over some time; None where it was not found."""
        return self.direct(time) if len(self.theta) <= _DENSE_AT_MOST else self.iterated(time)

    def direct(self, time: float) -> np.ndarray:
        """The step with the matrix itself. Memory: 8 (P + m)^2 bytes."""
        at = system(self.problem, self.layout, self.theta, self.multipliers)
        size, pushing = len(self.theta), self.rows > _NOTHING
        # The others' multipliers are known beforehand.
        alone = np.where(pushing, 0.0, self.right[size:] / self.own)
        count = np.count_nonzero(pushing)
        matrix = np.zeros((size + count, size + count), order="F")
        matrix[:size, :size] = at.hessian
        matrix[np.arange(size), np.arange(size)] += 1 / time
        matrix[:size, size:] = -at.gradients[pushing].T
        matrix[size:, :size] = self.rows[pushing, None] * at.slopes[pushing]
        inner = np.arange(size, size + count)
        matrix[inner, inner] = self.own[pushing]
        across, margins = np.split(self.right, [size])
        right = np.concatenate([across + alone @ at.gradients, margins[pushing]])
        step = nearly_solved(matrix, right)
        alone[pushing] = step[size:]
        return np.concatenate([step[:size], alone])

    def iterated(self, time: float) -> np.ndarray | None:
        """The step by GMRES, with products that are exact but for margins that do not push.

        Memory: 16 P bytes for each of 200 products and for each margin that pushes.
        """
        fewer, kept = only_pushing(self.problem, self.rows > _NEGLIGIBLE)
        linear = _linearized(fewer, self.layout, self.theta, self.multipliers[kept])
        nearly, size = self.preconditioner(fewer, kept, time), len(self.theta)

        def matrix(vector: np.ndarray) -> np.ndarray:
            first, second = np.split(np.ravel(vector), [size])
            across, margins = map(np.asarray, _applied(linear, first, second[kept]))
            product = np.concatenate([across + first / time, self.own * second])
            product[size + kept] += self.rows[kept] * margins
            return product

        shape, operator = (len(self.right), len(self.right)), cast(Any, LinearOperator)
        step, _ = gmres(
            operator(shape, matvec=matrix, dtype=float),
            self.right,
            M=operator(shape, matvec=nearly, dtype=float),
            rtol=_LINEAR,
            restart=_PRODUCTS,
            maxiter=1,
        )
        left = np.linalg.norm(nearly(matrix(step) - self.right))
        return step if left <= _UNSOLVED * np.linalg.norm(nearly(self.right)) else None

    def preconditioner(
        self, fewer: Problem, kept: np.ndarray, time: float
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Nearly the inverse: with the identity for the Hessian H, most of whose eigenvalues are
        near 1, and without the margins that hardly push. Directions in which H nearly vanishes, as
        of a family of KKT points, are solved last or not at all.

        Args:
            fewer, kept: the problem of the margins kept, and which these are.
        """
        slopes, gradients = map(np.asarray, slopes_and_gradients(fewer, self.layout, self.theta))
        among = self.rows[kept] > _PUSHING
        pushing, size, shifted = kept[among], len(self.theta), 1 + 1 / time
        slopes, gradients = self.rows[pushing, None] * slopes[among], gradients[among]
        inner = np.diag(self.own[pushing]) + slopes @ gradients.T / shifted
        inner = lu_factor(inner, check_finite=False)

        def nearly(right: np.ndarray) -> np.ndarray:
            across, margins = np.split(np.ravel(right), [size])
            across, found = across / shifted, margins / self.own
            pushed = margins[pushing] - slopes @ across
            found[pushing] = lu_solve(inner, pushed, check_finite=False)
            return np.concatenate([across + found[pushing] @ gradients / shifted, found])

        return nearly


@compiled
def _linearized(problem: Problem, layout: Layout, theta: Any, multipliers: Any) -> Any:
    """The derivative of the equations along a vector, a function that may leave the program."""

    def values(theta: Array, multipliers: Array) -> tuple[Array, Array]:
        return residual(problem, layout, theta, multipliers)

    return jax.linearize(values, jnp.asarray(theta), jnp.asarray(multipliers))[1]


@compiled
def _applied(linear: Any, first: Any, second: Any) -> Any:
    return linear(jnp.asarray(first), jnp.asarray(second))
