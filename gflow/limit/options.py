"""The arguments of `find_limit`; wrong ones are refused by name."""

import math
import warnings
from typing import Any

import diffrax

from gflow._checks import is_integer, is_real
from gflow.kkt.within import is_within, judged_at_most
from gflow.limit.search_settings import DEFAULT, LimitSettings
from gflow.problem import Problem
from gflow.stiff.rosenbrock import Rosenbrock
from gflow.stiff.traits import traits_of


def check_options(
    *,
    tolerance: Any = 1e-8,
    cap_logits: Any = 1e3,
    flow_tolerance: Any = 1e-5,
    smoothing: Any = 0.02,
    max_rounds: Any = 1,
    max_steps: Any = 1,
    solver: Any = None,
    kappa_cap: Any = None,
    settings: Any = DEFAULT,
) -> None:
    """Raises where an option is wrong, with its name; see `find_limit`."""
    if not (solver is None or _is_linearised(solver)):
        raise TypeError(
            f"`find_limit(solver={solver!r})`: the capped flow is stiff, and only a "
            "`gflow.Rosenbrock` follows it to where it rests."
        )
    if not isinstance(settings, LimitSettings):
        raise TypeError(
            f"`find_limit(settings={settings!r})` must be a `gflow.LimitSettings`; it holds "
            "constants for experts, and most calls need none."
        )
    _check_range("tolerance", tolerance, 1e-15, 0.1, "below 1e-15 rounding decides alone")
    _check_range("cap_logits", cap_logits, 10, 1e10, "margins of fewer logits tell nothing yet")
    _check_range("flow_tolerance", flow_tolerance, 1e-12, 0.1, "as `integrate(tolerance=...)`")
    _check_range("smoothing", smoothing, 1e-3, 1, "it is a relative width")
    if kappa_cap is not None:
        _check_range("kappa_cap", kappa_cap, 10, 1e12, "it is a number for kappa; see `cap_logits`")
    for name, value in (("max_rounds", max_rounds), ("max_steps", max_steps)):
        if not is_integer(value) or value < 1:
            raise ValueError(f"`find_limit({name}={value!r})` must be an integer of at least 1.")


def check_size(problem: Problem, size: int, settings: LimitSettings, call: str) -> None:
    """Refuses networks whose limits need more memory than ordinary machines have.

    Args:
        size: the number of parameters.

    Raises:
        ValueError: there are too many.
    """
    sizes = settings.refine.sizes
    most = judged_at_most(problem, size, sizes)
    if size > most:
        name, takes = "judged", f"matrices of {size} x {size} numbers, {8e-9 * size**2:.0f} GB each"
        if is_within(problem, size, sizes):
            name, takes = "judged_within", "some ten matrices of so many rows and 1000 columns"
        raise ValueError(
            f"`{call}`: the network has {size} parameters, and finding and judging a limit takes "
            f"{takes}; at most {most} parameters are tried. `gflow.integrate(..., kappa_cap=...)` "
            "follows the flow of a network of any size; its `stationarity` says how far from a "
            f"limit it is. On a machine with the memory, raise `settings.refine.sizes.{name}`."
        )


def _is_linearised(solver: Any) -> bool:
    return isinstance(solver, diffrax.AbstractSolver) and traits_of(solver).linearised


def flow_options(
    tolerance: float,
    settings: LimitSettings,
    *,
    solver: Rosenbrock | None = None,
    progress: Any = False,
) -> dict[str, Any]:
    """Arguments of `integrate` that all runs of the flow share."""
    return {
        "solver": Rosenbrock() if solver is None else solver,
        "tolerance": tolerance,
        "atol_logit": settings.flow.logit_tolerance,
        "progress": progress,
    }


def log_kappa_of(kappa_cap: float | None) -> float:
    """The log kappa before which the temperature is not capped; minus infinity without any.

    Warns that `kappa_cap` is deprecated; to be called from `find_limit` itself.
    """
    if kappa_cap is None:
        return -math.inf
    warnings.warn(
        "`find_limit(kappa_cap=...)` is deprecated: kappa carries the units of the data, the "
        "radius and the depth. `cap_logits`, the smallest margin kappa min_i q_i(u), has no units.",
        DeprecationWarning,
        # From here to `find_limit`, its decorator, and its caller.
        stacklevel=4,
    )
    return math.log(kappa_cap)


def _check_range(name: str, value: Any, low: float, high: float, why: str) -> None:
    if not is_real(value) or not low <= value <= high:
        raise ValueError(
            f"`find_limit({name}={value!r})` must lie between {low:g} and {high:g}: {why}."
        )
