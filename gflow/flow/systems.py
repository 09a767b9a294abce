"""The linear systems of a Rosenbrock step, `(shift - J) x = r`, one matrix and many r in turn."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, Float

Vector = Float[Array, " _"]
Operator = Callable[[Vector], Vector]
Preconditioner = Callable[[int], Callable[[Array], Operator]]
"""Of at most so many margins: a function that maps the shift to nearly `r -> (shift - J)^-1 r`."""

DENSE_AT_MOST = 1000


class Krylov(eqx.Module):
    """Solution by iteration.

    Args:
        tolerance: of the residual.
        most_directions: search directions in a step.
        most_margins: margins in the preconditioner.
    """

    tolerance: Any = 1e-4
    most_directions: int = eqx.field(static=True, default=64)
    most_margins: int = eqx.field(static=True, default=256)


def shifted_system(
    solver: lx.AbstractLinearSolver | Krylov | None,
    product: Operator,
    like: Vector,
    shift: Any,
    precondition: Preconditioner | None,
) -> "Recycling | Factorized":
    if solver is None:
        solver = lx.LU() if like.size <= DENSE_AT_MOST else Krylov()
    shift = jnp.asarray(shift)

    def apply(x: Vector) -> Vector:
        return shift * x - product(x)

    if isinstance(solver, Krylov):
        nearly = (lambda r: r / shift) if precondition is None else precondition(solver.most_margins)(shift)
        return Recycling(apply, nearly, solver.tolerance, solver.most_directions)
    identity = jnp.eye(like.size, dtype=like.dtype)
    operator = lx.MatrixLinearOperator(shift * identity - jax.vmap(product, out_axes=1)(identity))
    return Factorized(operator, solver, solver.init(operator, {}))


class Factorized(NamedTuple):
    operator: lx.AbstractLinearOperator
    solver: lx.AbstractLinearSolver
    state: Any

    def begin(self, like: Vector) -> tuple[()]:
        return ()

    def solve(self, right: Vector, memory: tuple[()]) -> tuple[Vector, tuple[()]]:
        solution = lx.linear_solve(self.operator, right, self.solver, state=self.state, throw=False)
        return solution.value, memory

    def solved(self, memory: tuple[()]) -> bool:
        return True


class Memory(NamedTuple):
    """Directions searched so far in a step, and their images, which are orthonormal.

    The stages of a step solve systems with one matrix: what was searched for one serves the next.

    Attributes:
        directions, images: (k, P) rows, the first `count` of them.
        left: the largest residual left by any solution, relative to its right-hand side.
    """

    directions: Float[Array, "k P"]
    images: Float[Array, "k P"]
    count: Any
    left: Float[Array, ""]


class Recycling(NamedTuple):
    """Generalised conjugate residuals that remember, for `A x = b` with many b in turn.

    Attributes:
        apply: `x -> A x`.
        precondition: nearly `r -> A^-1 r`; the residual is measured after it, as an error of x.
        tolerance: of the residual, relative to the right-hand side.
        most: directions at most.
    """

    apply: Callable[[Vector], Vector]
    precondition: Callable[[Vector], Vector]
    tolerance: Any
    most: int

    def begin(self, like: Vector) -> Memory:
        """No direction yet."""
        empty = jnp.zeros((self.most, like.size), like.dtype)
        return Memory(empty, empty, jnp.zeros((), int), jnp.zeros((), like.dtype))

    def solve(self, right: Vector, memory: Memory) -> tuple[Vector, Memory]:
        """The solution, and the memory with what had to be searched for it."""
        right = self.precondition(right)
        goal = self.tolerance * _length(right)
        known = memory.images @ right
        solution, residual = known @ memory.directions, right - known @ memory.images

        def searching(carry: tuple[Vector, Vector, Memory]) -> Array:
            return (_length(carry[1]) > goal) & (carry[2].count < self.most)

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
        left = _length(residual) / jnp.maximum(_length(right), jnp.finfo(right.dtype).tiny)
        return solution, memory._replace(left=jnp.maximum(memory.left, left))

    def solved(self, memory: Memory) -> Array:
        """Whether all systems of the step were solved, or nearly."""
        return memory.left <= 10 * self.tolerance

    def _orthogonal(self, direction: Vector, memory: Memory) -> tuple[Vector, Vector]:
        """A direction and its image, of norm 1 and orthogonal to all the others."""
        image = self.precondition(self.apply(direction))
        for _ in range(2):  # the second time for what rounding left
            known = memory.images @ image
            image = image - known @ memory.images
            direction = direction - known @ memory.directions
        length = jnp.maximum(_length(image), jnp.finfo(image.dtype).tiny)
        return direction / length, image / length


def _length(vector: Vector) -> Array:
    return jnp.sqrt(vector @ vector)
