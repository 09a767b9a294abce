"""The continuous flow of adversarial training."""

from gflow.flow.driver import integrate
from gflow.flow.finding import find_limit
from gflow.flow.limit import Limit, LimitFailed
from gflow.flow.rosenbrock import Rosenbrock
from gflow.flow.sensitivity import data_sensitivity, radius_sensitivity
from gflow.flow.until import Until

__all__ = [
    "Limit",
    "LimitFailed",
    "Rosenbrock",
    "Until",
    "data_sensitivity",
    "find_limit",
    "integrate",
    "radius_sensitivity",
]
