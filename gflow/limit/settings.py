"""The constants of Newton's method and of continuation, with their units and reasons.

All are pure numbers: lengths are relative to |theta|, multipliers to the largest one, margins are
1 at a KKT point, and the Lagrangian's Hessian is `I - ...`, so that times and rates have the unit
1 too. `REFINE` holds the values in use; an expert passes `dataclasses.replace(REFINE, ...)`.
"""

import dataclasses
from dataclasses import dataclass

from gflow.kkt.settings import CURVATURE, DEAD, SIZES, CurvatureSettings, DeadSettings, Sizes


@dataclass(frozen=True)
class NewtonSettings:
    """Of Newton's method on the KKT system of a smooth problem (`gflow.limit.polish`).

    Attributes:
        flow_support: weights of the flow below this part of the largest belong to no active margin.
        support: likewise of multipliers after cooling, whose inactive ones have sunk to next to 0.
        most_iterations: systems solved at most.
        most_iterations_large: likewise beyond `Sizes.factored` parameters, where each takes
            seconds; what is close after cooling needs no more.
        most_iterations_nearest: likewise from where the flow stopped, once cooling has told the
            active margins: from a stationarity of 1e-3 Newton's method takes four to seven.
        family_rank: singular values below the square of the residual, and below this part of the
            largest, belong to a family of KKT points. Far from one nothing tells a family.
        coldest_needed: beyond that size, where cooling ended at a higher temperature than this,
            these few iterations have not led on, and none is made.
        longest_step: how far a step may move the point: a model is good nearby only.
        shortest_share: the least part of a step that is taken where whole ones go to and fro, as
            they may where second derivatives jump (ReLU^2).
        slack: multipliers above minus this, and margins above 1 minus this, are right.
        aim: the residual at which iterating ends, or the tolerance if that is less.
        rounded: the residual below which it may end sooner, where it no longer halves.
        inconsistent: where this part of the right-hand side is left over, a system has no solution.
        shift: of the Hessian of large systems, in place of rank-revealing factors.
    """

    flow_support: float = 1e-3
    support: float = 1e-6
    most_iterations: int = 40
    most_iterations_large: int = 5
    most_iterations_nearest: int = 8
    family_rank: float = 1e-6
    coldest_needed: float = 1e-8
    longest_step: float = 0.3
    shortest_share: float = 0.125
    slack: float = 1e-10
    aim: float = 1e-12
    rounded: float = 1e-9
    inconsistent: float = 0.1
    shift: float = 1e-8


@dataclass(frozen=True)
class ContinuationSettings:
    """Of leading a parameter to its last value (`gflow.limit.continuation`).

    Attributes:
        last: its last value.
        first_factor: by which it falls first.
        least_factor: it never falls by less than this, as then it falls too far.
        last_factor: where it could not fall by this factor the path has ended.
        exponent: the factor is raised to this power after a value that was easy to solve for.
    """

    last: float
    first_factor: float
    least_factor: float
    last_factor: float
    exponent: float

    def starting_by(self, factor: float) -> "ContinuationSettings":
        """The same with another first factor."""
        return dataclasses.replace(self, first_factor=factor)


@dataclass(frozen=True)
class CoolingSettings:
    """Of leading the temperature 1/s to 0 (`gflow.limit.cooling`).

    Attributes:
        steps: of the temperature.
        most_iterations: at one temperature.
        few_iterations: after so few the next temperature may be much lower.
        most_systems: solved in all.
        longest_step: how far a step may move the point.
        rise: by which factor a step may raise the error,
        least_risen: or up to which it may in any case.
        longest_time: of the first steps. So long they are Newton's method, with a shift of the
            Hessian by its inverse, the only hold along a family of KKT points.
        time_astray: of steps after one that led astray.
        correcting_time: of steps that lead back to a family of KKT points which bends.
        shortest_time: below it no step has helped.
        shrink: the factor of the time after a failure.
        least_growth: and after a success, where the error has hardly fallen;
        corrected_growth: after a correction;
        most_growth: and at most.
        loose: the error at which the next temperature is tried, at most;
        tight: times the temperature 1/s from the sharpness `cold` on, and before times cold/s^2. On
            the digits of benchmarks/large.py 1e-3 from 1e3 on took twice as many systems.
        cold: see `tight`.
        rounding: what rounding leaves of the error.
        rounded: below this, iterating ends where the error no longer falls.
        least_change: a multiplier falls to no less than exp of this part of itself in an iteration.
        violated: how far margins that are not active may have sunk below the others.
        most_products: of GMRES, in one system.
        linear_tolerance: of GMRES, relative.
        unsolved: what may be left over of a system all the same.
        no_row: margins whose rows weigh less are left out of the matrix: `t_i` in
            `gflow.limit.cooling_system`.
        no_product: likewise of products with the matrix;
        no_preconditioner: and of the preconditioner.
    """

    steps: ContinuationSettings = ContinuationSettings(
        last=1e-14, first_factor=0.5, least_factor=1e-3, last_factor=1 / 1.05, exponent=1.5
    )
    most_iterations: int = 60
    few_iterations: int = 4
    most_systems: int = 200
    longest_step: float = 0.1
    rise: float = 3.0
    least_risen: float = 1e-2
    longest_time: float = 1e9
    time_astray: float = 3e3
    correcting_time: float = 30.0
    shortest_time: float = 1e-3
    shrink: float = 0.2
    least_growth: float = 1.5
    corrected_growth: float = 4.0
    most_growth: float = 10.0
    loose: float = 3e-3
    tight: float = 1e-2
    cold: float = 1e5
    rounding: float = 5e-13
    rounded: float = 1e-10
    least_change: float = -30.0
    violated: float = 1e-9
    most_products: int = 200
    linear_tolerance: float = 1e-3
    unsolved: float = 0.1
    no_row: float = 1e-14
    no_product: float = 1e-4
    no_preconditioner: float = 0.1


@dataclass(frozen=True)
class SmoothingSettings:
    """Of leading the smoothing mu of kinks to 0 (`gflow.limit.kinked_newton`).

    Attributes:
        steps: of the smoothing. At its last value the kinks are told, and the exact point solved
            for.
        tolerance: of the residual of an exact point: below is rounding, or a digit away from it.
        most_iterations: at one smoothing.
        most_in_step: likewise in a step of the implicit Euler method, which starts from farther.
        most_exact: likewise at smoothing 0.
        longest_step: how far an iteration may move the point.
        turn: how much of the way to the end of its range an angle may go in one iteration.
        rounding_off: of complementarity, `nu` over `mu s^2` (`gflow.limit.complementarity`).
        unknown_widths: a switch with |v| below so many smoothing widths mu w has an angle of its
            own as an unknown.
        turned: and so does one whose |sin phi| is below 1 by more than this.
        astray_widths: a switch so many widths on the wrong side of its kink starts anew from the
            middle: near the end of its range the equation has a root that belongs to the other
            side.
        support_widths: an example pushes whose multiplier exceeds mu times this part of the
            largest. Below, even switches that turn as fast as 1/mu do not matter.
        least_support: and this part of it in any case. Inactive margins keep 1e-6 mu / slack.
        goal: the error at which iterating ends, over mu;
        goal_exact: and at smoothing 0, or the tolerance if that is less;
        rounded: where rounding may end it before.
        slack: multipliers, margins and switches are right to within this.
        zero: weights below this part of the largest are rounding of 0: next to the largest feasible
            radius up to 1.5e-14 is left of them.
        vanishing: weights below this part of the largest may vanish with the smoothing, as sqrt(mu)
            does;
        vanished: or have, but for what Newton's method left.
        near: the kink of a switch is met where |v| / w is below this. An attack that turns on and
            off there would move the margins.
        no_part: a switch does not depend on a weight by which it has less than this part of its
            gradient.
    """

    steps: ContinuationSettings = ContinuationSettings(
        last=1e-6, first_factor=0.6, least_factor=1e-2, last_factor=0.97, exponent=2.0
    )
    tolerance: float = 1e-9
    most_iterations: int = 8
    most_in_step: int = 14
    most_exact: int = 12
    longest_step: float = 0.2
    turn: float = 0.9
    rounding_off: float = 1e-6
    unknown_widths: float = 30.0
    turned: float = 1e-3
    astray_widths: float = 3.0
    support_widths: float = 0.05
    least_support: float = 1e-9
    goal: float = 1e-2
    goal_exact: float = 1e-13
    rounded: float = 1e-10
    slack: float = 1e-9
    zero: float = 1e-13
    vanishing: float = 0.05
    vanished: float = 1e-5
    near: float = 1e-6
    no_part: float = 1e-6


@dataclass(frozen=True)
class SlidingSettings:
    """Of the flow along kinks, by implicit Euler steps (`gflow.limit.sliding`).

    Attributes:
        first, longest, shortest: lengths of steps, on the clock log |theta|.
        growth: (moved, factor): a step that moves the point by less is followed by one that is so
            much longer.
        shrink: the factor of the length after a step that failed.
        rest: the speed at rest.
        most_steps, most_iterations: steps, and systems solved.
        tops: a step is solved at one of these smoothings first, and then at the last one.
        first_factor: by which the smoothing falls first.
        left, leaving: for `left / rate` steps beside a saddle that is left at a rate are bounded by
            `leaving / rate`: longer ones would lead back to it.
        near: how far from its end a slide is still on the way.
    """

    first: float = 1.0
    longest: float = 1e6
    shortest: float = 1e-4
    growth: tuple[tuple[float, float], ...] = ((0.02, 3.0), (0.05, 1.5))
    shrink: float = 0.25
    rest: float = 1e-9
    most_steps: int = 300
    most_iterations: int = 1500
    tops: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3)
    first_factor: float = 0.3
    left: float = 10.0
    leaving: float = 0.3
    near: float = 1e-3


@dataclass(frozen=True)
class DriftSettings:
    """Of the slow flow at infinite kappa, by implicit Euler steps (`gflow.limit.drift`).

    Attributes:
        first, longest, shortest: lengths of steps, on the clock log |theta|.
        error: the local error of a step at most;
        moved: and how far it may move the point.
        grow, shrink, safety: how the length follows the error: by these factors at most, and to
            this part of what the error allows.
        rest: the speed at rest;
        still: and how far a step there moves the point at most.
        most_steps, most_iterations: steps, and systems solved.
        rounding_off: what rounds off complementarity, in place of the smoothing mu of
            `gflow.limit.complementarity`: products of multipliers and margins are off by 1e-12
            times the square of the multipliers' size.
        near: how far from its end a drift is still on the way.
    """

    first: float = 1.0
    longest: float = 1e12
    shortest: float = 1e-6
    error: float = 2e-3
    moved: float = 5e-2
    grow: float = 5.0
    shrink: float = 0.2
    safety: float = 0.8
    rest: float = 1e-9
    still: float = 1e-6
    most_steps: int = 500
    most_iterations: int = 4000
    rounding_off: float = 1e-6
    near: float = 1e-3


@dataclass(frozen=True)
class RefineSettings:
    """All constants of what leads from the flow to a KKT point and judges it."""

    newton: NewtonSettings = NewtonSettings()
    cooling: CoolingSettings = CoolingSettings()
    smoothing: SmoothingSettings = SmoothingSettings()
    sliding: SlidingSettings = SlidingSettings()
    drift: DriftSettings = DriftSettings()
    curvature: CurvatureSettings = CURVATURE
    sizes: Sizes = SIZES
    dead: DeadSettings = DEAD


REFINE = RefineSettings()
