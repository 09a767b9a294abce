"""The functions of vectors that linear systems are made of."""

from collections.abc import Callable

from jaxtyping import Array, Float

Vector = Float[Array, " _"]
Operator = Callable[[Vector], Vector]
Tangent = Callable[[Vector], tuple[Vector, Vector]]
"""`x -> (J x, B x)`: B x is another linear function of x that is wanted of every solution; empty if
there is none."""
Preconditioner = Callable[[int], Callable[[Array], Operator]]
"""A function of the largest rank allowed, which gives a function of the shift, which gives an
approximation of `r -> (shift - J)^-1 r`."""
