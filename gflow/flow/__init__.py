"""The continuous flow of adversarial training."""

from gflow.flow.driver import integrate
from gflow.flow.limit import Limit, LimitFailed, find_limit
from gflow.flow.rosenbrock import Rosenbrock
from gflow.flow.until import Until

__all__ = ["Limit", "LimitFailed", "Rosenbrock", "Until", "find_limit", "integrate"]
