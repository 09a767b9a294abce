"""The constants of Newton's method and of continuation, with their units and reasons.

All are pure numbers: lengths are relative to |theta|, multipliers to the largest one, margins are
1 at a KKT point, and the Lagrangian's Hessian is `I - ...`, so that times and rates have the unit
1 too. `REFINE` holds the values in use; an expert passes `dataclasses.replace(REFINE, ...)`.
"""

import dataclasses
from dataclasses import dataclass

from gflow.kkt.settings import CURVATURE, DEAD, SIZES, CurvatureSettings, DeadSettings, Sizes
from gflow.kkt.subspace import EXACT


@dataclass(frozen=True)
class NewtonSettings:
    """Constants of Newton's method on the KKT system of a smooth problem (`gflow.limit.polish`).

    Attributes:
        flow_support: a margin whose weight in the flow is below this part of the largest weight
            counts as inactive.
        support: the same for multipliers after cooling, which brings those of inactive margins
            close to 0.
        most_iterations: the most linear systems that are solved.
        most_iterations_large: the same beyond `Sizes.factored` parameters, where one system takes
            seconds. Newton's method that starts close, after cooling, needs no more.
        most_iterations_nearest: the same for Newton's method from where the flow stopped, with the
            active margins known from cooling. From a stationarity of 1e-3 it takes four to seven.
        family_rank: singular values that are below the square of the residual and below this part
            of the largest belong to directions along a family of KKT points. The bound by the
            residual is needed because far from a KKT point small singular values mean nothing.
        isolated: a KKT point whose matrix has at least this reciprocal condition lies in no family.
            Measured on some 80 points: below 1e-17 in families, above 1e-3 at isolated points.
        coldest_needed: beyond `Sizes.factored` parameters Newton's method is not tried if cooling
            ended at a higher temperature than this, since so few iterations did not succeed then.
        longest_step: how far a step may move the point: the linear model holds only nearby.
        shortest_share: the smallest part of a step that is taken. Steps are shortened where whole
            ones go to and fro, as they may where second derivatives jump (ReLU^2).
        slack: a multiplier counts as non-negative above minus this, and a margin as at least 1
            above 1 minus this.
        aim: iterating ends at this residual, or at the tolerance if that is smaller.
        rounded: below this residual iterating ends as soon as the residual no longer halves.
        inconsistent: a system counts as without a solution if its residual is at least this part
            of its right-hand side.
        shift: added to the Hessian's diagonal in large systems, which are solved without
            rank-revealing factors.
    """

    flow_support: float = 1e-3
    support: float = 1e-6
    most_iterations: int = 40
    most_iterations_large: int = 5
    most_iterations_nearest: int = 8
    family_rank: float = 1e-6
    isolated: float = 1e-8
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
    """Constants of leading a parameter to its last value (`gflow.limit.continuation`).

    Attributes:
        last: the last value of the parameter.
        first_factor: the first value is multiplied by this factor, which is below 1.
        least_factor: the parameter is never multiplied by a smaller factor than this, since the
            solution at so much smaller a value would not be found.
        last_factor: where not even a step by this factor, close to 1, can be solved for, the path
            has ended.
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
    """Constants of leading the temperature 1/s to 0 (`gflow.limit.cooling`).

    Attributes:
        steps: how the temperature falls: slowly at first, since faster the point drifts along
            families of KKT points (up to eight times as far on deep linear networks if it begins by
            0.1).
        most_iterations: the most iterations at one temperature.
        most_in_vain: Newton's method gives up after more corrections than this without an error
            below the least so far: steps then go to and fro, as between two pieces of ReLU^2.
        few_iterations: a temperature that took no more iterations than this was easy to solve for,
            so that the next one may be much lower.
        most_systems: the most linear systems in all.
        longest_step: how far a step may move the point.
        rise: a step may multiply the error by at most this factor,
        least_risen: but an error up to this is always accepted.
        longest_time: length of the first implicit Euler steps, on the flow's clock, and the most
            that any has. A step so long is one of Newton's method with the Hessian shifted by the
            inverse of the length; along a family of KKT points only this shift bounds it.
        time_astray: the length is at most this after a step that failed.
        correcting_time: length of the short steps that lead back to a family of KKT points from
            beside it, since the family is curved.
        shortest_time: Newton's method gives up where the length falls below this.
        shrink: the length is multiplied by this after a step that failed,
        least_growth: by this after one that succeeded but hardly lowered the error,
        corrected_growth: by this after a correction,
        most_growth: and by no more than this at a time.
        loose: the next temperature is tried once the error is below this, or below the bound by
            `tight` if that is smaller.
        tight: that bound is `tight / s` for sharpnesses s of at least `cold`, and
            `tight cold / s^2` below. On the digits of benchmarks/large.py tight = 1e-3 with
            cold = 1e3 took twice as many systems.
        cold: see `tight`.
        rounding: the size of the error that rounding alone leaves.
        rounded: below this error iterating ends as soon as the error no longer falls.
        least_change: in one iteration the logarithm of a multiplier falls by at most the magnitude
            of this.
        violated: how far inactive margins may lie below the active ones in a solution.
        most_products: the most products with the matrix that GMRES makes in one system.
        linear_tolerance: relative tolerance of GMRES.
        unsolved: a system whose relative residual is below this is accepted although GMRES missed
            its tolerance.
        no_row: margins with a smaller `t_i` (see `gflow.limit.cooling_system`) are left out of the
            matrix.
        no_product: the same where GMRES forms products with the matrix,
        no_preconditioner: and in its preconditioner.
    """

    steps: ContinuationSettings = ContinuationSettings(
        last=1e-14, first_factor=0.5, least_factor=1e-7, last_factor=1 / 1.05, exponent=2.0
    )
    most_iterations: int = 60
    most_in_vain: int = 6
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
    """Constants of leading the smoothing mu of kinks to 0 (`gflow.limit.kinked_newton`).

    Attributes:
        steps: how the smoothing falls. At its last value it is read off which switches stand on
            their kinks, and the exact point is solved for with these.
        tolerance: of the residual of an exact point: at most a digit above rounding.
        most_iterations: the most iterations at one smoothing,
        most_in_step: in a step of the implicit Euler method, which starts from farther away,
        most_exact: and at smoothing 0.
        longest_step: how far an iteration may move the point.
        turn: how much of the way to the end of its range an angle may go in one iteration.
        rounding_off: nu of the rounded complementarity equation, in units of `mu s^2`
            (`gflow.limit.complementarity`).
        unknown_widths: a switch with |v| below so many smoothing widths mu w has an angle of its
            own as an unknown.
        turned: so has a switch whose |sin phi| is below 1 by more than this.
        astray_widths: a switch that is so many widths on the wrong side of its kink is set to the
            middle of its range. Near the end of the range Newton's method would find another root
            of its equation, which belongs to the other side.
        support_widths: an example counts as pushing, with a positive multiplier, if that exceeds mu
            times this part of the largest. With a smaller one even its switches, which turn as fast
            as 1/mu, do not matter;
        least_support: and if it exceeds this part of the largest. Inactive margins keep
            multipliers of 1e-6 mu / slack.
        goal: iterating ends where the error is below this times mu,
        goal_exact: at smoothing 0 below this, or below the tolerance if that is smaller;
        rounded: below this it ends as soon as rounding keeps the error from falling.
        slack: how far multipliers, margins and switches may violate their inequalities.
        zero: weights below this part of the largest are 0 but for rounding: next to the largest
            feasible radius up to 1.5e-14 is left of them.
        vanishing: weights below this part of the largest may be of those that go to 0 like sqrt(mu)
            as the smoothing falls;
        vanished: below this part they have gone to 0, up to the error of Newton's method.
        near: a switch of an example that pushes lies at its kink where |v| / w is below this; an
            attack that turns there between the two sides moves the margins.
        no_part: a switch counts as independent of a weight if the derivative by it is less than
            this part of the switch's gradient.
        far: beyond `Sizes.formed_at_kinks` a system has no unknown for the multiplier of a margin
            far above 1, where the derivative by the margin is below about this;
        bent: and none for the angle of a switch so far from its kink that it adds less than about
            this to the Hessian. In widths, it adds 1/(2 mu) over their cube.
        dead: switches with a scale below this part of the largest count as of dead neurons there,
            which the equations lead to 0: the rows of a neuron are as large as its inverse;
        drop: directions of the subspace (`gflow.kkt.subspace`) that move the equations by less than
            this are left out, which makes a step one of nearly Newton's method;
        drop_exact: the same at the last smoothing, in exact systems and for eigenvalues.
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
    far: float = 1e-6
    bent: float = 0.03
    dead: float = 1e-4
    drop: float = 1e-6
    drop_exact: float = EXACT


@dataclass(frozen=True)
class SlidingSettings:
    """Constants of the flow along kinks, by implicit Euler steps (`gflow.limit.sliding`).

    Attributes:
        first, longest, shortest: lengths of steps, on the clock log |theta|.
        growth: pairs (moved, factor): after a step that moved the point by less than `moved` the
            length is multiplied by `factor`.
        shrink: the factor of the length after a step that failed.
        rest: the point counts as at rest below this speed.
        most_steps, most_iterations: the most steps, and the most systems solved. Slides that come
            to rest mostly take 30 to 400; one that takes more is better begun anew, from the flow
            with less smoothing.
        tops: a step is first solved at one of these smoothings, from which the smoothing is led to
            its last value.
        first_factor: the first factor by which the smoothing falls.
        left, leaving: beside a saddle that the flow leaves at a rate, steps are no longer than
            `leaving / rate` until the time `left / rate`: longer ones would lead back to it.
        near: `gflow.limit.sliding.slide` also returns the last point that is farther than this from
            the end.
    """

    first: float = 1.0
    longest: float = 1e6
    shortest: float = 1e-4
    growth: tuple[tuple[float, float], ...] = ((0.02, 3.0), (0.05, 1.5))
    shrink: float = 0.25
    rest: float = 1e-9
    most_steps: int = 300
    most_iterations: int = 600
    tops: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3)
    first_factor: float = 0.3
    left: float = 10.0
    leaving: float = 0.3
    near: float = 1e-3


@dataclass(frozen=True)
class DriftSettings:
    """Constants of the slow flow at infinite kappa, by implicit Euler steps (`gflow.limit.drift`).

    Attributes:
        first, longest, shortest: lengths of steps, on the clock log |theta|.
        error: the largest local error of an accepted step,
        moved: and the largest distance by which it moves the point.
        grow, shrink, safety: the length is set to `safety` times what the error allows, and changes
            by a factor between `shrink` and `grow`.
        rest: the point counts as at rest below this speed,
        still: if a long step moves it by less than this, too.
        most_steps, most_iterations: the most steps, and the most systems solved.
        rounding_off: takes the place of the smoothing mu where the complementarity equation is
            rounded (`gflow.limit.complementarity`): products of multipliers and slacks are off by
            1e-12 times the square of the multipliers' size.
        near: `Drift.before` is the last point that is farther than this from the end.
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
