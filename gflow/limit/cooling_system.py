"""The KKT system at one temperature, linearised, and the steps that solve it.

With the sharpness s = 1/temperature and t_i = s lambda_i / (1 + s lambda_i) the equations are

    theta - sum_i lambda_i grad q_i = 0,
    t_i (q_i - 1) + (1 - t_i) lambda_i log(lambda_i / lambda_max) = 0:

the second line is `q_i - 1 + log(lambda_i / lambda_max) / s = 0` times t_i. For a margin with a
tiny multiplier t_i is nearly 0, and the line determines the multiplier alone; for the others, and a
large s, t_i is nearly 1, and the line is `q_i = 1`, whatever s. "A margin that pushes" is one whose
t_i is not tiny.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import lu_factor, lu_solve
from scipy.sparse.linalg import LinearOperator, gmres

from gflow._layout import Layout
from gflow._minimum_norm import by_factors
from gflow._programs import compiled_for_some_calls
from gflow.kkt.settings import Sizes
from gflow.kkt.system import (
    KKTSystem,
    kkt_system,
    margins_and_rows,
    only_pushing,
    slopes_and_gradients,
    stationarity_and_margins,
)
from gflow.limit.settings import RefineSettings
from gflow.problem import Problem
from gflow.watch import in_time

# Stands for multipliers that have underflown to 0, so that their logarithm is finite.
TINY = 1e-300


class Evaluated:
    """An iterate, and what the equations there share at any temperature and length of a step.

    Args:
        theta, multipliers: the iterate, without dead neurons. Shapes (P,), (m,).
        sizes: from which on the algorithm changes.

    Attributes:
        rows: `margins_and_rows`, or None where no matrix will be formed.
        stationarity, margins: of the KKT system, the margins flattened.
    """

    def __init__(
        self,
        problem: Problem,
        layout: Layout,
        theta: np.ndarray,
        multipliers: np.ndarray,
        sizes: Sizes,
    ):
        self.problem, self.layout, self.sizes = problem, layout, sizes
        self.theta, self.multipliers = theta, multipliers
        self.rows: tuple[Any, Any, Any] | None = None
        if len(theta) > sizes.formed:
            given = problem, layout, theta, multipliers
            stationarity, margins = stationarity_and_margins(*given)
            self.stationarity, self.margins = np.asarray(stationarity), np.asarray(margins)
            return
        margins, slopes, gradients = map(np.asarray, margins_and_rows(problem, layout, theta))
        self.rows, self.margins = (margins, slopes, gradients), margins
        self.stationarity = theta - multipliers @ gradients

    @cached_property
    def linearized(self) -> KKTSystem:
        """The KKT system with its matrices."""
        given = self.problem, self.layout, self.theta, self.multipliers
        return kkt_system(*given, sizes=self.sizes, rows=self.rows)


class CoolingSystem:
    """The equations at an iterate.

    Args:
        known: the iterate, evaluated.
        temperature: 1/s.
        largest: lambda_max, the same number for all iterates and temperatures.

    Attributes:
        margins: q, flattened.
        right: minus the equations. Shape (P + m,).
        error: the larger of the stationarity relative to the norm of theta and the largest of the
            margins' equations.
    """

    def __init__(
        self, known: Evaluated, *, temperature: float, largest: float, settings: RefineSettings
    ):
        self.known, self.temperature, self.settings = known, temperature, settings
        self.problem, self.layout = known.problem, known.layout
        theta, multipliers = self.theta, self.multipliers = known.theta, known.multipliers
        weight = multipliers / temperature
        self.rows, self.own = weight / (1 + weight), 1 / (1 + weight)
        self.stationarity, self.margins = known.stationarity, known.margins
        logarithm = np.log(np.maximum(multipliers / largest, TINY))
        barrier = self.own * multipliers * logarithm
        margins = self.rows * (self.margins - 1) + barrier
        self.right = -np.concatenate([self.stationarity, margins])
        relative = np.linalg.norm(self.stationarity) / np.linalg.norm(theta)
        self.error = max(relative, np.abs(margins).max())

    @property
    def sizes(self) -> Sizes:
        """Sizes from which on the algorithm changes."""
        return self.settings.sizes

    def solve(self, time: float) -> np.ndarray | None:
        """The linearly implicit Euler step of (theta, multipliers) over some time, Newton's for an
        infinite one; None where it was not found. Shape (P + m,).
        """
        return self.direct(time) if len(self.theta) <= self.sizes.formed else self.iterated(time)

    def direct(self, time: float) -> np.ndarray:
        """The step with the matrix itself. Memory: 8 (P + m)^2 bytes."""
        at = self.known.linearized
        size, pushing = len(self.theta), self.rows > self.settings.cooling.no_row
        # The row of a margin that does not push has an entry for its own multiplier only.
        alone = np.where(pushing, 0.0, self.right[size:] / self.own)
        matrix = at.bordered(
            pushing, shift=1 / time, rows=self.rows[pushing], corner=self.own[pushing]
        )
        across, margins = np.split(self.right, [size])
        right = np.concatenate([across + alone @ at.gradients, margins[pushing]])
        step = by_factors(matrix, right)
        alone[pushing] = step[size:]
        return np.concatenate([step[:size], alone])

    def iterated(self, time: float) -> np.ndarray | None:
        """The step by GMRES, with products that leave out only the margins that do not push.

        Memory: 16 P bytes for each of 200 products and for each margin that pushes.
        """
        settings, size = self.settings.cooling, len(self.theta)
        fewer, kept = only_pushing(self.problem, self.rows > settings.no_product)
        linear = _linearized(fewer, self.layout, self.theta, self.multipliers[kept])
        nearly = self.preconditioner(fewer, kept, time)

        def matrix(vector: np.ndarray) -> np.ndarray:
            in_time()
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
            rtol=settings.linear_tolerance,
            restart=settings.most_products,
            maxiter=1,
        )
        left = np.linalg.norm(nearly(matrix(step) - self.right))
        return step if left <= settings.unsolved * np.linalg.norm(nearly(self.right)) else None

    def preconditioner(
        self, fewer: Problem, kept: np.ndarray, time: float
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Nearly the inverse of the matrix: with the identity in place of the Hessian H, most of
        whose eigenvalues are near 1, and without the margins that hardly push. In directions in
        which H nearly vanishes, as along a family of KKT points, it is poor: GMRES solves for these
        last, or not at all.

        Args:
            fewer, kept: the problem of the margins kept, and which these are.
        """
        slopes, gradients = map(np.asarray, slopes_and_gradients(fewer, self.layout, self.theta))
        among = self.rows[kept] > self.settings.cooling.no_preconditioner
        pushing, size, shifted = kept[among], len(self.theta), 1 + 1 / time
        slopes, gradients = self.rows[pushing, None] * slopes[among], gradients[among]
        # The Schur complement in the multipliers.
        inner = np.diag(self.own[pushing]) + slopes @ gradients.T / shifted
        inner = lu_factor(inner, check_finite=False)

        def nearly(right: np.ndarray) -> np.ndarray:
            across, margins = np.split(np.ravel(right), [size])
            across, found = across / shifted, margins / self.own
            pushed = margins[pushing] - slopes @ across
            found[pushing] = lu_solve(inner, pushed, check_finite=False)
            return np.concatenate([across + found[pushing] @ gradients / shifted, found])

        return nearly


@compiled_for_some_calls
def _linearized(problem: Problem, layout: Layout, theta: Any, multipliers: Any) -> Any:
    """The linearised equations as a function of a vector, which a compiled program can return."""

    def values(theta: Any, multipliers: Any) -> Any:
        return stationarity_and_margins(problem, layout, theta, multipliers)

    return jax.linearize(values, jnp.asarray(theta), jnp.asarray(multipliers))[1]


@compiled_for_some_calls
def _applied(linear: Any, first: Any, second: Any) -> Any:
    return linear(jnp.asarray(first), jnp.asarray(second))
