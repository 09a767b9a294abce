"""From the capped flow to a KKT point: the temperature led to 0 by Newton's method.

Where the flow with capped temperature rests, at the norm where its smallest margin is 1,

    theta = sum_i lambda_i grad q_i(theta),    q_i - 1 + log(lambda_i / max_j lambda_j) / s = 0,

with s = kappa_c gamma its *sharpness*, 1/s its *temperature*, and multipliers proportional to the
weights p. As s -> infinity either a margin is 1 or its multiplier is 0: the limit is a KKT point,
and its active set need not be known beforehand. Since the multipliers are unknowns of their own,
the system stays well conditioned on the way, as in interior-point methods with an entropic barrier.
Newton's method on the active margins alone would need to know them, and the weights at a moderate
temperature do not tell which they are.

`cooling_system` linearises the equations at an iterate, `cooling_newton` solves them at one
temperature, `continuation` leads that to its last value.
"""

import math

import numpy as np

from gflow._layout import Layout
from gflow.kkt.point import KKTPoint, active_residual
from gflow.kkt.variables import at_unit_margin
from gflow.limit.continuation import continued
from gflow.limit.cooling_newton import CoolingNewton
from gflow.limit.cooling_system import TINY, CoolingSystem
from gflow.limit.settings import REFINE, RefineSettings
from gflow.problem import Problem


def cool(
    problem: Problem,
    layout: Layout,
    direction: np.ndarray,
    weights: np.ndarray,
    log_kappa: float,
    *,
    settings: RefineSettings = REFINE,
) -> KKTPoint:
    """The KKT point to which the rest point of the capped flow leads, to an error of about 1e-11.

    Its `temperature` is the one down to which the path of rest points could be followed.

    Args:
        direction: u, where the capped flow is nearly at rest; its margins are positive. Shape (P,).
        weights: the flow's weights p there, flattened. Shape (m,).
        log_kappa: log kappa_c.
    """
    start = at_unit_margin(problem, layout, direction, weights)
    newton = CoolingNewton(problem, layout, float(start.multipliers.max()), settings)
    # gamma = |theta|^(-L) at unit margin.
    log_gamma = -problem.degree * math.log(np.linalg.norm(start.theta))
    first = newton.at(start.theta, start.multipliers, math.exp(-log_kappa - log_gamma))
    found, _ = newton.rest(first)
    if found is None:
        return _cooled(newton, first, math.inf)

    def solve(system: CoolingSystem, temperature: float) -> tuple[CoolingSystem | None, bool]:
        if newton.spent:
            return None, False
        given = system.theta, system.multipliers, temperature
        colder = newton.at(*given, known=system.known)
        found, iterations = newton.rest(colder)
        return found, iterations <= settings.cooling.few_iterations

    steps = settings.cooling.steps
    return _cooled(newton, *continued(solve, found, first.temperature, steps))


def cooled_again(
    problem: Problem,
    layout: Layout,
    direction: np.ndarray,
    multipliers: np.ndarray,
    *,
    settings: RefineSettings = REFINE,
) -> KKTPoint:
    """The KKT point near a direction that lies beside a known one, by solving at the last
    temperature alone; not converged where there is none.

    Args:
        direction: a unit vector close to the KKT point; its margins are positive. Shape (P,).
        multipliers: of the KKT point. Shape (m,).
    """
    start = at_unit_margin(problem, layout, direction, multipliers)
    newton = CoolingNewton(problem, layout, float(start.multipliers.max()), settings)
    last = settings.cooling.steps.last
    first = newton.at(start.theta, np.maximum(start.multipliers, TINY), last)
    found, _ = newton.rest(first)
    if found is None or found.margins.min() < 1 - settings.cooling.violated:
        return _cooled(newton, first, math.inf)
    return _cooled(newton, found, last)


def _cooled(newton: CoolingNewton, system: CoolingSystem, temperature: float) -> KKTPoint:
    """What cooling ended with, at the temperature that was reached."""
    multipliers = system.multipliers
    active = multipliers > newton.all_settings.newton.support * multipliers.max()
    return KKTPoint(
        theta=system.theta,
        multipliers=multipliers,
        active=active,
        residual=active_residual(system.stationarity, system.margins, system.theta, active),
        converged=temperature <= newton.settings.steps.last,
        num_iterations=newton.num_iterations,
        system=None,
        temperature=temperature,
    )
