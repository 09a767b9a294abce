"""The functions of vectors that linear systems are made of."""

from collections.abc import Callable

from jaxtyping import Array, Float

Vector = Float[Array, " _"]
Operator = Callable[[Vector], Vector]
Tangent = Callable[[Vector], tuple[Vector, Vector]]
"""`x -> (J x, B x)`: B x is what else is wanted of every solution, empty if nothing is."""
Preconditioner = Callable[[int], Callable[[Array], Operator]]
"""Of the largest rank it may have, then of the shift: nearly `r -> (shift - J)^-1 r`."""
