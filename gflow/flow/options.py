"""The options of `integrate`, checked before anything is computed."""

import typing
from typing import Any

import diffrax
import numpy as np

from gflow._checks import is_integer, is_real
from gflow.flow.solvers import fitted
from gflow.flow.until import Until
from gflow.measures import MAX_LOG_KAPPA
from gflow.stiff import Krylov


def checked_solver(solver: Any, tolerance: float) -> diffrax.AbstractSolver | None:
    """The solver as a run with this tolerance uses it; None where `integrate` is to choose it.

    Raises:
        TypeError: no solver of diffrax, or one that cannot follow the flow.
    """
    if solver is None:
        return None
    if isinstance(solver, type) and issubclass(solver, diffrax.AbstractSolver):
        raise TypeError(f"`solver={solver.__name__}` is a class; pass `{solver.__name__}()`.")
    if isinstance(solver, Krylov):
        raise TypeError(
            "`solver=Krylov(...)` solves the linear systems of a step and is no solver itself: "
            "`solver=gflow.Rosenbrock(linear_solver=gflow.Krylov(...))`."
        )
    if not isinstance(solver, diffrax.AbstractSolver):
        raise TypeError(f"`solver={solver!r}` is no diffrax solver, such as `diffrax.Tsit5()`.")
    if not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        raise TypeError(
            f"`solver={type(solver).__name__}()` gives no error estimate, so its steps cannot be "
            "controlled. Use an adaptive solver, or `gflow.descend` for fixed steps."
        )
    structure = solver.term_structure
    if not issubclass(diffrax.ODETerm, typing.get_origin(structure) or structure):
        raise TypeError(
            f"`solver={type(solver).__name__}()` takes no plain ODE: it needs its terms apart, as "
            "the KenCarp methods need a `diffrax.MultiTerm` of an explicit and an implicit part, "
            "and the flow is one term. Implicit throughout are `gflow.Rosenbrock()`, which suits "
            "the flow best, and `diffrax.Kvaerno5()`."
        )
    return fitted(solver, tolerance)


def checked_cap(kappa_cap: Any, atol_logit: Any, until: Until) -> np.ndarray:
    """`log kappa_c`, infinite without a cap."""
    if not is_real(atol_logit) or not 0 < atol_logit < np.inf:
        raise ValueError(f"`atol_logit={atol_logit!r}` must be a positive number.")
    if kappa_cap is not None:
        if not is_real(kappa_cap) or not 0 < kappa_cap < np.inf:
            raise ValueError(f"`kappa_cap={kappa_cap!r}` must be a positive number, or None.")
        return np.asarray(np.log(kappa_cap))
    log_kappa = float(until.log_kappa)
    if MAX_LOG_KAPPA < log_kappa < np.inf:
        raise ValueError(
            f"`Until(log_kappa={log_kappa:g})`: kappa leaves the range of floating-point numbers; "
            f"at most {MAX_LOG_KAPPA:g} can be asked for, or any number with a `kappa_cap`."
        )
    return np.asarray(np.inf)


def check_options(
    until: Any, tolerance: Any, rtol_direction: Any, save: Any, max_steps: Any
) -> None:
    """Refuses, by the name of the call, what cannot be meant.

    Raises:
        TypeError, ValueError: an option of another kind, or out of its range.
    """
    if not isinstance(until, Until):
        raise TypeError(
            f"`until={until!r}` must be a `gflow.Until(...)`, such as `gflow.Until(log_loss=-10)`."
        )
    _check_tolerance("tolerance", tolerance)
    if rtol_direction is not None:
        _check_tolerance("rtol_direction", rtol_direction)
    if save is not None and (not is_integer(save) or save < 2):
        raise ValueError(f"`integrate(save={save!r})` must be None or an integer of at least 2.")
    if not is_integer(max_steps) or max_steps < 1:
        raise ValueError(f"`integrate(max_steps={max_steps!r})` must be an integer of at least 1.")


def _check_tolerance(name: str, value: Any) -> None:
    if not is_real(value):
        raise TypeError(f"`integrate({name}={value!r})` must be a number, such as 1e-8.")
    if not 1e-14 <= value <= 0.1:
        raise ValueError(f"`integrate({name}={value!r})` must lie between 1e-14 and 0.1.")
