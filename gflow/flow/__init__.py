"""The continuous flow of adversarial training."""

from gflow.flow.driver import integrate
from gflow.flow.finding import find_limit
from gflow.flow.limit import Limit, LimitFailed
from gflow.flow.rosenbrock import Rosenbrock
from gflow.flow.sensitivity import data_sensitivity, radius_sensitivity
from gflow.flow.stabilized import RungeKuttaChebyshev
from gflow.flow.systems import Krylov
from gflow.flow.until import Until

__all__ = [
    "Krylov",
    "Limit",
    "LimitFailed",
    "Rosenbrock",
    "RungeKuttaChebyshev",
    "Until",
    "data_sensitivity",
    "find_limit",
    "integrate",
    "radius_sensitivity",
]
