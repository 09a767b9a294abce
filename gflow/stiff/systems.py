"""The linear systems of a Rosenbrock step: `(shift - J) x = r`, one matrix and several r in turn.

Dense, the Jacobian J is formed by forward differentiation and factorised. Matrix-free, its exact
products with vectors come from linearising the field once a step, and x from iterations.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gflow._numerics import is_integer
from gflow._signatures import named

Vector = Float[Array, " _"]
Operator = Callable[[Vector], Vector]
Tangent = Callable[[Vector], tuple[Vector, Vector]]
"""`x -> (J x, B x)`: B x is what else is wanted of every solution, empty if nothing is."""
Preconditioner = Callable[[int], Callable[[Array], Operator]]
"""Of the most margins it may use, then of the shift: nearly `r -> (shift - J)^-1 r`."""

# The most unknowns for which a Jacobian is formed by choice: see benchmarks/large.py.
DENSE_AT_MOST = 500
# Vectors that a matrix-free step holds: at most so many, and no more than fill this many bytes.
# On the digits of benchmarks/large.py, 128 and 128: with 64 directions 40 % more steps, cut short
# by systems left unsolved; with 256 margins the same steps, at a higher price.
_MOST_DIRECTIONS, _MOST_MARGINS, _BYTES = 128, 128, 2**30
# What is left of a vector orthogonal to others is so to rounding if it is more than this of it.
_MUCH = 0.1
_ITERATIVE = (lx.GMRES, lx.BiCGStab)


class Krylov(eqx.Module):
    """Matrix-free solution of the linear systems of a `Rosenbrock` step.

    Generalised conjugate residuals (minimal residuals like GMRES), left-preconditioned by the
    heaviest margins (`gflow.flow.krylov`), with exact products with the Jacobian. All stages of a
    step share one space: the solutions of the first serve the later ones. A step whose systems are
    not solved within `most_directions` products is rejected, and tried again shorter.

    Without any direction the preconditioner alone stands for the inverse. That costs no product at
    all, keeps the order of a W-method only ("ROS34PW2"), and bounds steps by the part of the
    Jacobian that does not grow with kappa: for networks of a million parameters.

    Memory: `8 P (2 most_directions + 2 most_margins)` bytes for P parameters, and about as much as
    a gradient of the loss needs.

    Args:
        tolerance: of the preconditioned residual, which is nearly the error of the solution,
            relative to the largest right-hand side of the step; None for a hundredth of the
            tolerance of the run, at most 1e-4 (1e-8 outside of `integrate`).
        most_directions: search directions in a step, 0 for none; None for 128, or fewer where P is
            so large that they and the margins would need more than 1 GB.
        most_margins: margins in the preconditioner, the heaviest; None for 128 or fewer, likewise.

    Raises:
        ValueError: a tolerance outside (0, 1), or a count below 1.

    Source: Eisenstat, Elman & Schultz 1983, "Variational iterative methods for nonsymmetric systems
    of linear equations", SIAM J. Numer. Anal. 20.
    """

    tolerance: Any
    most_directions: int | None = eqx.field(static=True)
    most_margins: int | None = eqx.field(static=True)

    @named()
    def __init__(
        self,
        tolerance: float | None = None,
        *,
        most_directions: int | None = None,
        most_margins: int | None = None,
    ):
        if tolerance is not None and not 0 < tolerance < 1:
            raise ValueError(f"`Krylov(tolerance={tolerance!r})` must lie between 0 and 1.")
        counts = ("most_directions", most_directions, 0), ("most_margins", most_margins, 1)
        for name, value, least in counts:
            if value is not None and not (is_integer(value) and value >= least):
                raise ValueError(f"`Krylov({name}={value!r})`: an integer from {least} on.")
        # An array, so that no program is compiled again for another tolerance.
        self.tolerance = None if tolerance is None else np.asarray(tolerance, float)
        self.most_directions, self.most_margins = most_directions, most_margins

    def sized(self, size: int) -> tuple[int, int]:
        """Directions and margins at most for so many unknowns."""
        room = _BYTES // (16 * size)
        directions, margins = self.most_directions, self.most_margins
        if directions is None:
            directions = int(np.clip(room // 4, 8, _MOST_DIRECTIONS))
        if margins is None:
            margins = int(np.clip(room - directions, 8, _MOST_MARGINS))
        return directions, margins


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

    directions, margins = (solver if isinstance(solver, Krylov) else Krylov()).sized(like.size)
    unscaled: Operator = lambda r: r / shift  # noqa: E731
    nearly = unscaled if precondition is None else precondition(margins)(shift)
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
    columns, beside = jax.vmap(apply, out_axes=1)(jnp.eye(like.size, dtype=like.dtype))
    operator = lx.MatrixLinearOperator(columns)
    return Direct(by_lineax(operator, solver, {}), lambda x: beside @ x)


class Direct(NamedTuple):
    """Systems whose inverse is known, or what takes its place.

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
        """What was not solved is not finite."""
        return True


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


class Memory(NamedTuple):
    """Directions searched so far in a step, and their images, which are orthonormal.

    Attributes:
        directions: (k, P + b) rows `(x, B x)`, the first `count` of them; the others are 0.
        images: (k, P) rows, likewise.
        scale: the largest right-hand side so far. Later ones may cancel to rounding.
        left: the largest residual left by any solution, relative to `scale`.
    """

    directions: Float[Array, "k P_and_b"]
    images: Float[Array, "k P"]
    count: Any
    scale: Float[Array, ""]
    left: Float[Array, ""]


class Recycling(NamedTuple):
    """Generalised conjugate residuals with a memory, for `A x = r` with many r in turn.

    Attributes:
        apply: `x -> (A x, B x)`.
        precondition: nearly `r -> A^-1 r`; residuals are measured after it.
        tolerance: of the residual, relative to the largest right-hand side so far.
        most: directions at most.
    """

    apply: Tangent
    precondition: Operator
    tolerance: Any
    most: int

    def begin(self, like: Vector) -> Memory:
        """No direction yet."""
        beside = jax.eval_shape(self.apply, like)[1].size
        images, zero = jnp.zeros((self.most, like.size), like.dtype), jnp.zeros((), like.dtype)
        directions = jnp.zeros((self.most, like.size + beside), like.dtype)
        return Memory(directions, images, jnp.zeros((), int), zero, zero)

    def solve(self, right: Vector, memory: Memory) -> tuple[Vector, Memory]:
        """The solution `(x, B x)`, and the memory with what had to be searched for it."""
        right = self.precondition(right)
        scale = jnp.maximum(memory.scale, _length(right))
        known = memory.images @ right
        solution, residual = known @ memory.directions, right - known @ memory.images

        def searching(carry: tuple[Vector, Vector, Memory]) -> Array:
            return (_length(carry[1]) > self.tolerance * scale) & (carry[2].count < self.most)

        def search(carry: tuple[Vector, Vector, Memory]) -> tuple[Vector, Vector, Memory]:
            solution, residual, memory = carry
            direction, image = self._orthogonal(residual, memory)
            share = image @ residual
            count = memory.count
            memory = memory._replace(
                directions=memory.directions.at[count].set(direction),
                images=memory.images.at[count].set(image),
                count=count + 1,
            )
            return solution + share * direction, residual - share * image, memory

        carry = lax.while_loop(searching, search, (solution, residual, memory))
        solution, residual, memory = carry
        left = jnp.maximum(memory.left, _length(residual) / jnp.where(scale > 0, scale, 1.0))
        return solution, memory._replace(scale=scale, left=left)

    def solved(self, memory: Memory) -> Array:
        """Whether all systems so far were solved, or nearly."""
        return memory.left <= 10 * self.tolerance

    def _orthogonal(self, direction: Vector, memory: Memory) -> tuple[Vector, Vector]:
        """A direction and its image, of norm 1 and orthogonal to all before."""
        image, beside = self.apply(direction)
        direction, image = jnp.concatenate([direction, beside]), self.precondition(image)
        before = _length(image)
        known = memory.images @ image
        image = image - known @ memory.images
        # A second time where so little is left that rounding is some of it.
        image, more = lax.cond(
            _length(image) < _MUCH * before,
            lambda: (image - (memory.images @ image) @ memory.images, memory.images @ image),
            lambda: (image, jnp.zeros_like(known)),
        )
        direction = direction - (known + more) @ memory.directions
        length = _length(image)
        length = jnp.where(length > 0, length, 1.0)
        return direction / length, image / length


def _length(vector: Vector) -> Array:
    return jnp.sqrt(vector @ vector)
