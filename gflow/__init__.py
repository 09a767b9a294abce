"""gflow: the gradient flow of adversarial training, followed to its limit and certified."""

from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gflow import datasets, losses, measures, networks, optimizers, perturbations, report
    from gflow.batch import find_limits
    from gflow.comparison import Comparison, compare, sharpness_along
    from gflow.compilation_cache import use_compilation_cache
    from gflow.datasets import Dataset
    from gflow.descent import backward_error_flow, descend
    from gflow.flow import Until, integrate
    from gflow.kkt.certificate import Certificate
    from gflow.kkt.certifying import certify
    from gflow.limit import (
        Limit,
        LimitFailed,
        LimitSettings,
        data_sensitivity,
        find_limit,
        radius_sensitivity,
    )
    from gflow.loading import load
    from gflow.problem import Problem
    from gflow.reference import MaxMargin, max_margin
    from gflow.results import RESULTS
    from gflow.stiff import Krylov, Rosenbrock, RungeKuttaChebyshev
    from gflow.sweeps import Sweep, sweep
    from gflow.trajectory import RunFailed, Trajectory

__version__ = "0.1.0"

__all__ = [
    "RESULTS",
    "Certificate",
    "Comparison",
    "Dataset",
    "Krylov",
    "Limit",
    "LimitFailed",
    "LimitSettings",
    "MaxMargin",
    "Problem",
    "Rosenbrock",
    "RunFailed",
    "RungeKuttaChebyshev",
    "Sweep",
    "Trajectory",
    "Until",
    "backward_error_flow",
    "certify",
    "compare",
    "data_sensitivity",
    "datasets",
    "descend",
    "find_limit",
    "find_limits",
    "integrate",
    "load",
    "losses",
    "max_margin",
    "measures",
    "networks",
    "optimizers",
    "perturbations",
    "radius_sensitivity",
    "report",
    "sharpness_along",
    "sweep",
    "use_compilation_cache",
]

# Where the public names live. They are imported on first use, so that the command line can print
# its help, and refuse a wrong field, before JAX is imported.
_HOMES = {
    "RESULTS": "results",
    "Certificate": "kkt.certificate",
    "Dataset": "datasets",
    "Krylov": "stiff",
    "Limit": "limit",
    "LimitFailed": "limit",
    "LimitSettings": "limit",
    "MaxMargin": "reference",
    "Problem": "problem",
    "Rosenbrock": "stiff",
    "RunFailed": "trajectory",
    "RungeKuttaChebyshev": "stiff",
    "Sweep": "sweeps",
    "Trajectory": "trajectory",
    "Until": "flow",
    "certify": "kkt.certifying",
    "data_sensitivity": "limit",
    "descend": "descent",
    "find_limit": "limit",
    "find_limits": "batch",
    "integrate": "flow",
    "load": "loading",
    "max_margin": "reference",
    "radius_sensitivity": "limit",
    "sweep": "sweeps",
    "use_compilation_cache": "compilation_cache",
    "Comparison": "comparison",
    "backward_error_flow": "descent",
    "compare": "comparison",
    "sharpness_along": "comparison",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        meant = get_close_matches(name, __all__, n=1)
        guess = f"; perhaps `gflow.{meant[0]}` is meant" if meant else ""
        raise AttributeError(f"module `gflow` has no attribute `{name}`{guess}")
    if name not in _HOMES:
        return import_module(f"gflow.{name}")
    value = getattr(import_module(f"gflow.{_HOMES[name]}"), name)
    # From now on an attribute like any other.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
