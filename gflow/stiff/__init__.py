"""Stiff and stabilised solvers for diffrax, which know nothing of margins."""

from gflow.stiff.chebyshev import RungeKuttaChebyshev
from gflow.stiff.rosenbrock import Rosenbrock
from gflow.stiff.systems import Krylov

__all__ = ["Krylov", "Rosenbrock", "RungeKuttaChebyshev"]
