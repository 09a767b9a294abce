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
# Directions are read so many at a time, and only those that are there: a step searches some 10 to
# 25 of the 128 that it has room for, and at 10 000 unknowns reading all took most of its time.
_BLOCK = 16


class Memory(NamedTuple):
    """Directions searched so far in a step, and their images, which are orthonormal.

    Attributes:
        directions: (k, P + b) rows `(x, B x)`, the first `count` of them; the others are 0, and k
            is a multiple of the number that are read at a time.
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
        room = -(-self.most // self._block) * self._block
        images, zero = jnp.zeros((room, like.size), like.dtype), jnp.zeros((), like.dtype)
        directions = jnp.zeros((room, like.size + beside), like.dtype)
        return Memory(directions, images, jnp.zeros((), int), zero, zero)

    def solve(self, right: Vector, memory: Memory) -> tuple[Vector, Memory]:
        """The solution `(x, B x)`, and the memory with the directions that were added for it."""
        # The images are orthonormal: a residual is minimised by subtracting its components along
        # them, and the solution is the same combination of the directions.
        right = self.precondition(right)
        scale = jnp.maximum(memory.scale, _length(right))
        nothing = jnp.zeros_like(memory.directions[0])
        residual, missing = self._without(right, nothing, memory)
        solution = -missing

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

    @property
    def _block(self) -> int:
        return min(_BLOCK, self.most)

    def _without(self, image: Vector, direction: Vector, memory: Memory) -> tuple[Vector, Vector]:
        """An image without its components along the images in the memory, and its direction without
        the same combination of their directions.
        """

        def next_block(i: Array, left: tuple[Vector, Vector]) -> tuple[Vector, Vector]:
            images, directions = (
                lax.dynamic_slice_in_dim(rows, i * self._block, self._block)
                for rows in (memory.images, memory.directions)
            )
            known = images @ left[0]
            return left[0] - known @ images, left[1] - known @ directions

        blocks = -(-memory.count // self._block)
        return lax.fori_loop(0, blocks, next_block, (image, direction))

    def _orthogonal(self, direction: Vector, memory: Memory) -> tuple[Vector, Vector]:
        """A direction and its image, of norm 1 and orthogonal to all before."""
        image, beside = self.apply(direction)
        direction, image = jnp.concatenate([direction, beside]), self.precondition(image)
        before = _length(image)
        image, direction = self._without(image, direction, memory)
        # Repeated if so little is left that rounding matters in it.
        image, direction = lax.cond(
            _length(image) < _MUCH * before,
            lambda: self._without(image, direction, memory),
            lambda: (image, direction),
        )
        length = _length(image)
        length = jnp.where(length > 0, length, 1.0)
        return direction / length, image / length


def _length(vector: Vector) -> Array:
    return jnp.sqrt(vector @ vector)
