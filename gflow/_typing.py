"""Array types, and the glossary of the axes that they name.

    n   examples
    d   inputs of one example, flattened
    k   classes
    c   margins of one example: absent for binary labels, k - 1 for classes
    s   saved points of a trajectory

A trailing `...` in a shape stands for "nothing, or c".
"""

from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

Params = Any
"""Parameters: a pytree whose leaves are floating-point arrays."""

Scalar = Float[Array, ""] | Float[np.ndarray, ""] | np.float64 | float
"""One real number, traced or not."""

Inputs = Float[Array, "n d"] | Float[np.ndarray, "n d"]
"""All examples."""

Labels = Float[Array, " n"] | Float[np.ndarray, " n"] | Int[Array, " n"] | Int[np.ndarray, " n"]
"""Labels: -1.0 and +1.0, or classes 0 .. k - 1."""
