"""The continuous flow of adversarial training."""

from gflow.flow.driver import integrate
from gflow.flow.until import Until

__all__ = ["Until", "integrate"]
