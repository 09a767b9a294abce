"""The largest margin by IPOPT: min |theta|^2 / 2 over q_i(theta) >= 1, with exact derivatives.

The binding is cyipopt, which gflow does not depend on: `VERSION` is None where it is not installed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

try:
    import cyipopt
except ImportError:
    cyipopt = None

VERSION = None if cyipopt is None else ".".join(map(str, cyipopt.IPOPT_VERSION))

# The bounds as they stand, which IPOPT otherwise relaxes by 1e-8.
_EXACT = {"tol": 1e-12, "bound_relax_factor": 0.0, "max_iter": 1000, "print_level": 0, "sb": "yes"}
# From a point alone.
COLD = {"mu_strategy": "adaptive"}
# From a point with multipliers: barrier and pushes off the bounds so small that both are kept.
WARM = {"warm_start_init_point": "yes", "mu_init": 1e-6}
WARM |= {f"warm_start_{name}bound_push": 1e-9 for name in ("", "mult_", "slack_")}

Margins = Callable[[Any], Any]


class Solved(NamedTuple):
    """What IPOPT ends with; `status` 0 is solved, 1 solved to an acceptable level."""

    theta: np.ndarray
    multipliers: np.ndarray
    status: int
    num_iterations: int


class LargestMargin:
    """The program of one problem, compiled once; its methods are IPOPT's callbacks.

    Args:
        margins: q, a function of JAX. Shapes (P,) -> (m,).
        size, num_margins: P and m.
    """

    def __init__(self, margins: Margins, size: int, num_margins: int):
        self.size, self.num_margins = size, num_margins
        self.rows, self.columns = np.tril_indices(size)
        self.num_iterations, self._at = 0, None
        # One program for the values and the rows, which IPOPT asks for at the same points.
        self._values = jax.jit(lambda at: (margins(at), jax.jacrev(margins)(at)))
        by_theta = jax.hessian(lambda at, multipliers: multipliers @ margins(at))

        def lower(at: Any, multipliers: Any, scale: Any) -> Any:
            whole = scale * jnp.eye(size) + by_theta(at, multipliers)
            return whole[self.rows, self.columns]

        self._hessian = jax.jit(lower)

    def margins_and_rows(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """q and its derivative. Shapes (P,) -> (m,), (m, P)."""
        if self._at is None or not np.array_equal(self._at[0], theta):
            margins, rows = self._values(theta)
            self._at = theta.copy(), np.asarray(margins), np.asarray(rows)
        return self._at[1:]

    def objective(self, theta: np.ndarray) -> float:
        return 0.5 * theta @ theta

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        return theta

    def constraints(self, theta: np.ndarray) -> np.ndarray:
        return self.margins_and_rows(theta)[0]

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        return self.margins_and_rows(theta)[1].ravel()

    def hessianstructure(self) -> tuple[np.ndarray, np.ndarray]:
        return self.rows, self.columns

    def hessian(self, theta: np.ndarray, multipliers: np.ndarray, scale: float) -> np.ndarray:
        return np.asarray(self._hessian(theta, multipliers, scale))

    def intermediate(self, _: int, iteration: int, *__: Any) -> bool:
        self.num_iterations = iteration
        return True

    def solve(self, theta: np.ndarray, multipliers: np.ndarray | None = None) -> Solved:
        """From a point, or from a point with multipliers."""
        solver = cyipopt.Problem(
            n=self.size,
            m=self.num_margins,
            problem_obj=self,
            cl=np.ones(self.num_margins),
            cu=np.full(self.num_margins, np.inf),
        )
        for name, value in (_EXACT | (COLD if multipliers is None else WARM)).items():
            solver.add_option(name, value)
        # IPOPT's multipliers are those of f + lambda g: not positive at a lower bound.
        first = [] if multipliers is None else -multipliers
        found, info = solver.solve(theta, lagrange=first)
        return Solved(found, -info["mult_g"], info["status"], self.num_iterations)
