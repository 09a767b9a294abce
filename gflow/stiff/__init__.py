"""Stiff and stabilised solvers for diffrax, which know nothing of margins."""

from collections.abc import Callable
from functools import partial

from gflow.stiff.chebyshev import RungeKuttaChebyshev
from gflow.stiff.rosenbrock import Rosenbrock
from gflow.stiff.systems import Krylov
from gflow.stiff.tableaus import TABLEAUS
from gflow.stiff.traits import FlatSolver

__all__ = ["SOLVERS", "Krylov", "Rosenbrock", "RungeKuttaChebyshev"]

SOLVERS: dict[str, Callable[[], FlatSolver]] = {
    **{method: partial(Rosenbrock, method) for method in TABLEAUS},
    "RungeKuttaChebyshev": RungeKuttaChebyshev,
}
"""The solvers by the names that the settings of a run and files have for them (`Traits.name`), each
with its usual options."""
