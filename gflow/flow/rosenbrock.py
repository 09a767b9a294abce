"""Linearly implicit (Rosenbrock) solvers for diffrax, which has none of its own.

A step costs one Jacobian, one factorisation, and one evaluation of the field and one solution of a
linear system for every stage; there is no nonlinear iteration to converge or to fail.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gflow.flow.systems import LinearSolver, Preconditioner, shifted_system
from gflow.flow.tableaus import TABLEAUS, Tableau


class RosenbrockInterpolation(diffrax.AbstractLocalInterpolation):
    """The dense output of a step: that of the method, or cubic Hermite interpolation.

    Attributes:
        k: (r, P) the combinations `k_l` of `Tableau.dense`.
    """

    t0: Any
    t1: Any
    y0: Float[Array, " P"]
    y1: Float[Array, " P"]
    k: Float[Array, "r P"]

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True) -> Array:
        del left
        if t1 is not None:
            return self.evaluate(t1) - self.evaluate(t0)
        return interpolate((t0 - self.t0) / (self.t1 - self.t0), self.y0, self.y1, self.k)


def interpolate(theta: Any, y0: Array, y1: Array, k: Array) -> Array:
    """`(1 - theta) y0 + theta (y1 + (1 - theta) (k_1 + theta (k_2 + ...)))`."""
    inner = jnp.zeros_like(y0)
    for row in k[::-1]:
        inner = row + theta * inner
    return (1 - theta) * y0 + theta * (y1 + (1 - theta) * inner)


class Rosenbrock(diffrax.AbstractAdaptiveSolver):
    """A Rosenbrock method for a state that is one flat vector.

    `(1/(h gamma) - J) U_i = f(t0 + c_i h, y0 + sum_j a_ij U_j) + sum_j (C_ij/h) U_j + h d_i f_t`,
    `y1 = y0 + sum_i m_i U_i`, with the exact Jacobian J by forward differentiation of the field.

    Args:
        method: "Rodas3" (order 3), "ROS34PW2" (3), "Rodas4P" (4) or "Rodas5P" (5); all are
            L-stable and have an embedded error estimate. Sources: `gflow.flow.tableaus`.
        linear_solver: None for LU factorisation up to `DENSE_AT_MOST` parameters and `Krylov()`
            beyond; or a `Krylov`, or a solver of lineax: `lineax.GMRES` and `lineax.BiCGStab` are
            used matrix-free, with the preconditioner of `Krylov`; any other on the Jacobian.
            Memory for P parameters: dense 16 P^2 bytes, the Jacobian and its factors; matrix-free
            see `Krylov`.

    Raises:
        ValueError: an unknown method.
    """

    method: str = eqx.field(static=True)
    linear_solver: LinearSolver
    tolerance: Any

    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar[Callable] = RosenbrockInterpolation

    def __init__(self, method: str = "Rodas5P", *, linear_solver: LinearSolver = None):
        if method not in TABLEAUS:
            raise ValueError(f"`Rosenbrock({method!r})`: choose one of {', '.join(TABLEAUS)}.")
        self.method = method
        self.linear_solver = linear_solver
        # Of iterations that name none: small against any tolerance of a step that is in use.
        self.tolerance = np.asarray(1e-8)

    @property
    def tableau(self) -> Tableau:
        """The coefficients of the method."""
        return TABLEAUS[self.method]()

    def order(self, terms: Any) -> int:
        return self.tableau.order

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> None:
        return None

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        return terms.vf(t0, y0, args)

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> tuple[Array, Array, dict[str, Array], Any, diffrax.RESULTS]:
        del solver_state, made_jump

        def field(t: Any, y: Array) -> Array:
            return terms.vf(t, y, args)

        y1, error, k = self.advance(field, jnp.asarray(t0), t1 - t0, y0)
        return y1, error, {"y0": y0, "y1": y1, "k": k}, None, diffrax.RESULTS.successful

    def advance(
        self,
        field: Callable[[Any, Array], Array],
        t0: Array,
        h: Any,
        y0: Array,
        precondition: Preconditioner | None = None,
    ) -> tuple[Array, Array, Array]:
        """One step: where it ends, the error estimate, and the rows k of the dense output.

        `precondition` maps a shift to nearly `r -> (shift - J)^-1 r`, for iterative solvers.
        """
        tableau = self.tableau
        a, C, c, d = map(jnp.asarray, (tableau.a, tableau.C, tableau.c, tableau.d))
        _, product = jax.linearize(lambda y: field(t0, y), y0)
        system = shifted_system(
            self.linear_solver,
            product,
            y0,
            1 / (h * tableau.gamma),
            precondition,
            self.tolerance,
        )
        _, slope = jax.jvp(lambda t: field(t, y0), (t0,), (jnp.ones_like(t0),))

        def stage(i: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
            stages, memory = carry
            value = field(t0 + c[i] * h, y0 + a[i] @ stages)
            right = value + (C[i] / h) @ stages + (h * d[i]) * slope
            solution, memory = system.solve(right, memory)
            return stages.at[i].set(solution), memory

        count = len(tableau.m)
        # A loop rather than its stages one by one: the program holds the field once.
        start = (jnp.zeros((count, y0.size), y0.dtype), system.begin(y0))
        stages, memory = lax.fori_loop(0, count, stage, start)
        y1 = y0 + tableau.m @ stages
        if tableau.dense is None:
            k = _hermite(y0, y1, h * field(t0, y0), h * field(t0 + h, y1))
        else:
            k = tableau.dense @ stages
        return y1, jnp.where(system.solved(memory), tableau.e @ stages, jnp.inf), k


def _hermite(y0: Array, y1: Array, start: Array, end: Array) -> Array:
    """Rows k of the cubic with these end points and increments `h f` there."""
    across = y1 - y0
    return jnp.stack([start - across, 2 * across - start - end])
