"""Traits of a solver: its name in files, how its steps are controlled, what they cost.

Step-size control and the choice of a solver depend on nothing else, so that they need no change for
a new solver. A solver of `gflow.stiff` overrides `FlatSolver.traits`; any other solver of diffrax
has the traits of an ordinary method of its kind.
"""

from typing import Any, ClassVar, NamedTuple

import diffrax
import numpy as np
from jaxtyping import Array

from gflow.stiff.systems import DENSE_AT_MOST

# Evaluations of the field in a step: of an explicit method such as Tsit5; of an implicit one beside
# its Jacobian; of a derivative in the Jacobian (1.2 to 1.9 on 357 digits, 520 parameters).
_EXPLICIT, _STAGES, _DERIVATIVE = 6.0, 12.0, 1.5
# Of a whole matrix-free step, its preconditioner and iterations together: 100 to 270 on 357 digits,
# 4160 parameters (benchmarks/large.py).
_MATRIX_FREE = 250.0


class Gains(NamedTuple):
    """The gains of a PI controller, which multiplies a step by

    `safety error^(-this/order) last_error^(last/order)`

    with errors in units of the tolerance and the order of the error estimate.

    Attributes:
        this, last: exponents of this step's error and of the last accepted one's.
        safety: the factor in front.
        shrink, grow: bounds of the whole factor.
        reach, recover: no later step is longer than `reach` times a rejected one, a bound which
            the n-th accepted step after it raises by the factor `recover^n`.
    """

    this: Any
    last: Any
    safety: Any = 0.9
    shrink: Any = 0.2
    grow: Any = 10.0
    reach: Any = np.inf
    recover: Any = 1.0


# Explicit methods take about the fewest steps at equal error with these exponents, of (1, 0),
# (0.7, 0.1), (0.6, 0.2), (0.7, 0.3) and (0.7, 0.4).
ORDINARY = Gains(this=0.6, last=0.2)


class Traits(NamedTuple):
    """The properties of a solver on which step-size control and the choice of a solver depend.

    Attributes:
        name: in the settings of a run and in files; `gflow.stiff.SOLVERS` has it as a key.
        cost: evaluations of the field that a step is worth, roughly.
        gains: of the step-size controller.
        first_step: the first step is this times a cautious guess. For a method with few and costly
            steps it is larger: if it is rejected, that costs less than half a dozen steps during
            which a short one would have grown.
        implicit: whether stability does not bound its steps.
        linearised: whether a step holds only where the linearised field does, so that its error has
            to be bounded in what the field depends on steeply as well (the logits of a flow).
    """

    name: str
    cost: float
    gains: Gains = ORDINARY
    first_step: float = 0.01
    implicit: bool = False
    linearised: bool = False


def traits_of(solver: diffrax.AbstractSolver, size: int = 1) -> Traits:
    """The traits of any solver of diffrax, for a state of `size` numbers."""
    if isinstance(solver, FlatSolver):
        return type(solver).traits(solver, size)  # a look-up of the solver's own method is slow
    return ordinary_traits(solver, size)


def ordinary_traits(solver: diffrax.AbstractSolver, size: int) -> Traits:
    """The traits of a solver that does not define any."""
    implicit = isinstance(solver, diffrax.AbstractImplicitSolver)
    cost = implicit_cost(size) if implicit else _EXPLICIT
    return Traits(type(solver).__name__, cost, implicit=implicit)


def implicit_cost(size: int) -> float:
    """Evaluations of the field that a step with a linear system of `size` unknowns is worth."""
    if size <= DENSE_AT_MOST:
        return _STAGES + _DERIVATIVE * size
    return _MATRIX_FREE


class FlatSolver(diffrax.AbstractAdaptiveSolver):
    """A solver with an error estimate, for a state that is one flat vector.

    It remembers nothing from one step to the next unless `init` is overridden.
    """

    term_structure: ClassVar = diffrax.ODETerm

    def traits(self, size: int) -> Traits:
        """What step-size control has to know, for a state of `size` numbers."""
        return ordinary_traits(self, size)

    def init(self, terms: Any, t0: Any, t1: Any, y0: Array, args: Any) -> Any:
        return None

    def func(self, terms: Any, t0: Any, y0: Array, args: Any) -> Any:
        return terms.vf(t0, y0, args)
