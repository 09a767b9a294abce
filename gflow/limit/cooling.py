"""From the capped flow to a KKT point: the temperature led to 0 by Newton's method.

Where the flow with capped temperature rests, at the norm where its smallest margin is 1,

    theta = sum_i lambda_i grad q_i(theta),    q_i - 1 + log(lambda_i / max_j lambda_j) / s = 0,

s = kappa_c gamma its *sharpness* and 1/s its *temperature*: the multipliers are its weights. For s
-> infinity either a margin is 1 or its multiplier is 0: this is a KKT point, and its active set
need not be known beforehand. With the multipliers as unknowns of their own the system stays well
conditioned on the way, as interior points with an entropic barrier do, while Newton's method on
active margins alone needs the right ones to begin with, which the weights at a moderate temperature
do not tell.

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
    """The KKT point, but for an error of about 1e-11, to which the capped flow's rest point leads.

    Its `temperature` tells how far the path could be followed.

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
        colder = newton.at(system.theta, system.multipliers, temperature)
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
    """The KKT point to which the last temperature alone leads from beside one; not converged where
    there is none.

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
