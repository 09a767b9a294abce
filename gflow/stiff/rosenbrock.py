"""Linearly implicit (Rosenbrock) solvers for diffrax, which has none of its own.

A step costs one Jacobian, one factorisation, and one evaluation of the field and one solution of a
linear system for every stage; there is no nonlinear iteration that could fail to converge.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._checks import one_of
from gflow._description import shown, storable
from gflow._signatures import named
from gflow.stiff.constrained import Coupled, CoupledField, GapSize, Moved, linearized, step
from gflow.stiff.operators import Preconditioner
from gflow.stiff.systems import LinearSolver, shifted_system
from gflow.stiff.tableaus import TABLEAUS, Tableau
from gflow.stiff.traits import FlatSolver, Gains, Traits, implicit_cost

# On the linear problems of benchmarks/far_flow.py these take 5 to 15 % fewer steps than the gains
# of explicit methods. A larger `grow`, or `last=0`, costs more rejected steps than it saves.
_GAINS = Gains(this=0.8, last=0.3, grow=5.0)


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


@storable("Rosenbrock")
class Rosenbrock(FlatSolver):
    """A Rosenbrock method for a state that is one flat vector.

    `(1/(h gamma) - J) U_i = f(t0 + c_i h, y0 + sum_j a_ij U_j) + sum_j (C_ij/h) U_j + h d_i f_t`,
    `y1 = y0 + sum_i m_i U_i`, with the exact Jacobian J by forward differentiation of the field.

    Args:
        method: "Rodas3" (order 3), "ROS34PW2" (3), "Rodas4P" (4) or "Rodas5P" (5); all are
            L-stable and have an embedded error estimate. Sources: `gflow.stiff.tableaus`.
        linear_solver: None for LU factorisation up to `DENSE_AT_MOST` parameters and `Krylov()`
            beyond; or a `Krylov`, or a solver of lineax: `lineax.GMRES` and `lineax.BiCGStab` are
            used matrix-free, with the preconditioner of `Krylov`; any other on the Jacobian.
            Memory for P parameters: dense 16 P^2 bytes, the Jacobian and its factors; matrix-free
            see `Krylov`.

    Raises:
        TypeError: `linear_solver` is none of these.
        ValueError: an unknown method.
    """

    method: str = eqx.field(static=True)
    linear_solver: LinearSolver
    tolerance: Any

    interpolation_cls: ClassVar[Callable] = RosenbrockInterpolation

    @named()
    def __init__(self, method: str = "Rodas5P", *, linear_solver: LinearSolver = None):
        if not one_of(method, TABLEAUS):
            raise ValueError(f"`Rosenbrock({method!r})`: choose one of {', '.join(TABLEAUS)}.")
        if not isinstance(linear_solver, LinearSolver):
            raise TypeError(
                f"`Rosenbrock(linear_solver={linear_solver!r})`: None, a `gflow.Krylov`, or a "
                "solver of lineax."
            )
        self.method = method
        self.linear_solver = linear_solver
        # For a `Krylov` that names none: small against any tolerance of a step that is in use.
        self.tolerance = np.asarray(1e-8)

    def __repr__(self) -> str:
        return shown(self)

    @property
    def tableau(self) -> Tableau:
        """The coefficients of the method."""
        return TABLEAUS[self.method]

    def traits(self, size: int) -> Traits:
        return Traits(
            name=self.method,
            cost=implicit_cost(size),
            gains=_GAINS,
            first_step=1.0,
            implicit=True,
            linearised=True,
        )

    def order(self, terms: Any) -> int:
        return self.tableau.order

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> tuple[Array, Array, dict[str, Array], Any, diffrax.RESULTS]:
        del solver_state, made_jump

        def field(t: Any, y: Array, _: Any) -> tuple[Array, Array]:
            return terms.vf(t, y, args), y[:0]

        moved = self.advance(field, jnp.asarray(t0), t1 - t0, y0)
        dense = {"y0": y0, "y1": moved.end, "k": moved.dense}
        return moved.end, moved.error, dense, None, diffrax.RESULTS.successful

    def advance(
        self,
        field: CoupledField,
        t0: Array,
        h: Any,
        y0: Array,
        precondition: Preconditioner | None = None,
        gap_size: GapSize | None = None,
    ) -> Moved:
        """One step of `y' = f(t, y, q(y))`, see `moved`."""
        return self.moved(linearized(field, t0, y0), h, precondition, gap_size)

    def moved(
        self,
        coupled: Coupled,
        h: Any,
        precondition: Preconditioner | None = None,
        gap_size: GapSize | None = None,
    ) -> Moved:
        """One step of a field whose derivatives are known, see `gflow.stiff.constrained`.

        `precondition` maps a shift to nearly `r -> (shift - J)^-1 r`, for iterative solvers.
        """
        shift = 1 / (h * self.tableau.gamma)
        system = shifted_system(
            self.linear_solver, coupled.tangent, coupled.y, shift, precondition, self.tolerance
        )
        return step(self.tableau, coupled, system, h, gap_size)
