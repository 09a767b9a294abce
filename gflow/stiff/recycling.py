"""Many linear systems with one matrix, solved one after another in one growing space.

The stages of a Rosenbrock step have nearly the same right-hand sides. So the search directions of
the first system also serve the later ones, often without another product with the matrix.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from gflow.stiff.operators import Operator, Tangent, Vector

# A vector from which its components along others were subtracted is orthogonal to these up to
# rounding if more than this part of its length is left.
_MUCH = 0.1


class Memory(NamedTuple):
    """Directions searched so far in a step, and their images, which are orthonormal.

    Attributes:
        directions: (k, P + b) rows `(x, B x)`, the first `count` of them; the others are 0.
        images: (k, P) rows, likewise.
        scale: the norm of the largest right-hand side so far. Residuals are measured relative to
            it, since later right-hand sides may be 0 up to rounding.
        left: the largest residual of any solution so far, relative to `scale`.
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
        """The solution `(x, B x)`, and the memory with the directions that were added for it."""
        # The images are orthonormal: a residual is minimised by subtracting its components along
        # them, and the solution is the same combination of the directions.
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

    def beside(self, x: Vector) -> Vector:
        """`B x`."""
        return self.apply(x)[1]

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
        # Repeated if so little is left that rounding matters in it.
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
