"""The linear systems of a Rosenbrock step: `(shift - J) x = r`, one matrix and several r in turn.

Dense, the Jacobian J is formed by forward differentiation and factorised. Matrix-free, its exact
products with vectors come from linearising the field once a step, and x from iterations.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax import lax
from jaxtyping import Array

from gflow._checks import is_integer, is_real
from gflow._description import shown, storable
from gflow._signatures import named
from gflow.stiff.operators import Operator, Preconditioner, Tangent, Vector
from gflow.stiff.recycling import Recycling

# The most unknowns for which a Jacobian is formed by choice: see benchmarks/large.py.
DENSE_AT_MOST = 500
# Vectors that a matrix-free step holds: at most so many directions, a preconditioner of at most
# this rank, and in all at most so many bytes. On the digits of benchmarks/large.py 64 directions
# took 40 % more steps, which were shortened because systems were not solved; rank 256 took the same
# number of steps at a higher cost.
_MOST_DIRECTIONS, _LARGEST_RANK, _BYTES = 128, 128, 2**30
# The number of columns of a Jacobian that are computed side by side is such that the intermediate
# results for all examples and weights fill about `_TANGENTS` bytes, which fit into a cache; and at
# least `_FEWEST`.
_TANGENTS, _FEWEST = 2**18, 8
# Solvers of lineax that need products with the matrix only.
_ITERATIVE = (lx.GMRES, lx.BiCGStab)


@storable("Krylov", former_fields={"most_margins": "rank"})
class Krylov(eqx.Module):
    """Matrix-free solution of the linear systems of a `Rosenbrock` step.

    Generalised conjugate residuals (minimal residuals like GMRES) with exact products with the
    Jacobian, left-preconditioned by the part of it that makes the field stiff, a matrix of low
    rank. In `gflow.integrate` that is the part of the heaviest margins, one of rank 1 for each. All
    stages of a step share one space: the solutions of the first serve the later ones. A step whose
    systems are not solved within `most_directions` products is rejected, and tried again shorter.

    Without any direction the preconditioner alone stands for the inverse. That costs no product at
    all, keeps the order of a W-method only ("ROS34PW2"), and bounds steps by the part of the
    Jacobian that the preconditioner leaves out: for networks of a million parameters.

    Memory: `8 P (2 most_directions + 2 rank)` bytes for P unknowns, and about as much as a gradient
    of the loss needs.

    Args:
        tolerance: of the preconditioned residual, which is nearly the error of the solution,
            relative to the largest right-hand side of the step; None for a hundredth of the
            tolerance of the run, at most 1e-4 (1e-8 outside of `integrate`).
        most_directions: search directions in a step, 0 for none; None for 128, or fewer where P is
            so large that they and the preconditioner would need more than 1 GB.
        rank: of the preconditioner, at most; None for 128 or less, likewise.
        most_margins: another name for `rank`.

    Raises:
        ValueError: a tolerance outside (0, 1), or a count below 1.
        TypeError: both `rank` and `most_margins` are given.

    Source: Eisenstat, Elman & Schultz 1983, "Variational iterative methods for nonsymmetric systems
    of linear equations", SIAM J. Numer. Anal. 20.
    """

    tolerance: Any
    most_directions: int | None = eqx.field(static=True)
    rank: int | None = eqx.field(static=True)

    @named()
    def __init__(
        self,
        tolerance: float | None = None,
        *,
        most_directions: int | None = None,
        rank: int | None = None,
        most_margins: int | None = None,
    ):
        if tolerance is not None and not (is_real(tolerance) and 0 < tolerance < 1):
            raise ValueError(f"`Krylov(tolerance={tolerance!r})` must lie between 0 and 1.")
        if rank is not None and most_margins is not None:
            raise TypeError(
                f"`Krylov(rank={rank!r}, most_margins={most_margins!r})`: these are two names for "
                "one thing; give `rank`."
            )
        counts = (
            ("most_directions", most_directions, 0),
            ("rank", rank, 1),
            ("most_margins", most_margins, 1),
        )
        for name, value, least in counts:
            if value is not None and not (is_integer(value) and value >= least):
                raise ValueError(f"`Krylov({name}={value!r})`: an integer from {least} on.")
        # As an array: a program serves all tolerances, without being compiled again.
        self.tolerance = None if tolerance is None else np.asarray(tolerance, float)
        self.most_directions = None if most_directions is None else int(most_directions)
        rank = most_margins if rank is None else rank
        self.rank = None if rank is None else int(rank)

    def __repr__(self) -> str:
        return shown(self)

    @property
    def most_margins(self) -> int | None:
        """Another name for `rank`."""
        return self.rank

    def sized(self, size: int) -> tuple[int, int]:
        """The directions and the rank, at most, for so many unknowns."""
        room = _BYTES // (16 * size)
        directions, rank = self.most_directions, self.rank
        if directions is None:
            directions = int(np.clip(room // 4, 8, _MOST_DIRECTIONS))
        if rank is None:
            rank = int(np.clip(room - directions, 8, _LARGEST_RANK))
        return directions, rank


LinearSolver = lx.AbstractLinearSolver | Krylov | None
"""How to solve the systems: None chooses by the number of unknowns."""


def shifted_system(
    solver: LinearSolver,
    tangent: Tangent,
    like: Vector,
    shift: Any,
    precondition: Preconditioner | None,
    tolerance: Any,
) -> "Direct | Recycling":
    """The systems `(shift - J) x = r`, with `tangent(x) = (J x, B x)` and vectors like `like`.

    Their solutions are `(x, B x)`, one vector. `tolerance` is that of a `Krylov` which names none.
    """
    shift = jnp.asarray(shift)
    if solver is None:
        solver = lx.LU() if like.size <= DENSE_AT_MOST else Krylov()

    def apply(x: Vector) -> tuple[Vector, Vector]:
        image, beside = tangent(x)
        return shift * x - image, beside

    directions, rank = (solver if isinstance(solver, Krylov) else Krylov()).sized(like.size)
    unscaled: Operator = lambda r: r / shift  # noqa: E731
    nearly = unscaled if precondition is None else precondition(rank)(shift)
    if isinstance(solver, Krylov):
        if directions == 0:
            return Direct(nearly, lambda x: tangent(x)[1])
        tolerance = tolerance if solver.tolerance is None else solver.tolerance
        return Recycling(apply, nearly, tolerance, directions)
    structure = jax.eval_shape(lambda: like)
    if isinstance(solver, _ITERATIVE):
        options = {"preconditioner": lx.FunctionLinearOperator(nearly, structure)}
        operator = lx.FunctionLinearOperator(lambda x: apply(x)[0], structure)
        return Direct(by_lineax(operator, solver, options), lambda x: tangent(x)[1])
    columns, beside = _columns(apply, like)
    if isinstance(solver, lx.LU):
        return Direct(_by_factors(columns), lambda x: beside @ x)
    operator = lx.MatrixLinearOperator(columns)
    return Direct(by_lineax(operator, solver, {}), lambda x: beside @ x)


def _columns(apply: Tangent, like: Vector) -> tuple[Array, Array]:
    """The matrices of a linear map to two vectors, from its products with unit vectors.

    Several columns are computed side by side, in a loop. The loop holds the linearised operations
    only: if it held the field too, compilers would evaluate that again for every column.
    """
    work = like.size * max(jax.eval_shape(apply, like)[1].size, 1)
    most = int(np.clip(_TANGENTS // (8 * work), _FEWEST, like.size))
    count = -(-like.size // most)
    batch = -(-like.size // count)
    vectors = jnp.eye(batch * count, like.size, dtype=like.dtype).reshape(count, batch, like.size)
    columns, beside = (
        part.reshape(batch * count, part.shape[-1])[: like.size].T
        for part in lax.map(jax.vmap(apply), vectors)
    )
    return columns, beside


class Direct(NamedTuple):
    """Systems that are solved by a function for the inverse, or for an approximation of it.

    Attributes:
        inverse: `r -> x`.
        beside: `x -> B x`.
    """

    inverse: Operator
    beside: Operator

    def begin(self, like: Vector) -> tuple[()]:
        """Nothing to remember."""
        return ()

    def solve(self, right: Vector, memory: tuple[()]) -> tuple[Vector, tuple[()]]:
        """The solution, `(x, B x)`."""
        solution = self.inverse(right)
        return jnp.concatenate([solution, self.beside(solution)]), memory

    def solved(self, memory: tuple[()]) -> bool:
        """Always true: a solution that was not found is not finite, which rejects the step."""
        return True


def _by_factors(matrix: Array) -> Operator:
    """The inverse by LU factors. The order of the rows is computed once; `lineax.LU` computes it
    anew for every right-hand side, in a loop over the rows.
    """
    factors, pivots, _ = lax.linalg.lu(matrix)
    order = _order(pivots)

    def inverse(right: Vector) -> Vector:
        half = lax.linalg.triangular_solve(
            factors, right[order, None], left_side=True, lower=True, unit_diagonal=True
        )
        return lax.linalg.triangular_solve(factors, half, left_side=True, lower=False)[:, 0]

    return inverse


def _order(pivots: Array) -> Array:
    """The order of the rows after these exchanges, as the third result of `lax.linalg.lu`, by fewer
    operations: for small matrices its loop took longer than the factors.
    """
    size = len(pivots)

    def one(at: Array, index: Array) -> Array:
        return lax.dynamic_slice(at, (index,), (1,), allow_negative_indices=False)

    def exchanged(i: Array, order: Array) -> Array:
        j = one(pivots, i)[0]
        here, there = one(order, i), one(order, j)
        order = lax.dynamic_update_slice(order, there, (i,), allow_negative_indices=False)
        return lax.dynamic_update_slice(order, here, (j,), allow_negative_indices=False)

    return lax.fori_loop(np.int32(0), np.int32(size), exchanged, jnp.arange(size, dtype=np.int32))


def by_lineax(
    operator: lx.AbstractLinearOperator, solver: lx.AbstractLinearSolver, options: dict[str, Any]
) -> Operator:
    """The inverse by a solver of lineax, which factorises once if it does at all."""
    state = solver.init(operator, options)

    def inverse(right: Vector) -> Vector:
        solution = lx.linear_solve(
            operator, right, solver, options=options, state=state, throw=False
        )
        return solution.value

    return inverse
