"""The constants of the search for a limit, with their units and reasons.

All lengths are those of directions, which have norm 1, and all margins are relative or in logits,
so that no constant carries the units of the data. The same values serve the problems of
`benchmarks/limits.py`, `basins.py`, `ordinary_limits.py` and `large.py`.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

from gflow._checks import is_integer, is_real
from gflow._signatures import named
from gflow.limit.settings import REFINE, RefineSettings


@dataclass(frozen=True)
class _Group:
    """Settings that belong together: positive numbers, or tuples of numbers other than 0.

    Raises:
        ValueError: from the constructor, where one is something else.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not _is_possible(value, field.default):
                kind = {int: "a positive integer", float: "a positive number"}.get(
                    type(field.default), "a tuple of numbers other than 0"
                )
                raise ValueError(
                    f"`{type(self).__name__}({field.name}={value!r})`: give {kind}, as its default "
                    f"{field.default!r} is."
                )


def _is_possible(value: Any, default: Any) -> bool:
    """Whether it is of the kind of its default."""
    if isinstance(default, tuple):
        several = isinstance(value, tuple) and len(value) > 0
        return several and all(is_real(item) and item != 0 for item in value)
    right = is_integer(value) if isinstance(default, int) else is_real(value)
    return right and 0 < value < math.inf


@named()
@dataclass(frozen=True)
class FlowSettings(_Group):
    """Constants of the flow, and of where Newton's method takes over (`gflow.limit.approach`).

    Attributes:
        logit_tolerance: `atol_logit` of `integrate`, in logits.
        cap_accuracy: how closely the logits of the cap are met, relative. It may be loose, since
            the search goes on with the kappa that was reached.
        most_logits: no cap is at more logits. Beyond, products of kappa with margins have lost too
            many digits for the weights p, which depend on their differences.
        farthest: the capped flow ends so many units of log kappa beyond the cap at the latest. An
            offset of 1e-9 from a saddle that is left at a rate of 1e-3 grows to 5e-2 within 4e4
            (L = 2, see `gflow.limit.itinerary`).
        handover: the stationarity at which the flow gives way to Newton's method. It is small
            enough for Newton's displacement to tell whose limit was found: that test
            (`BasinSettings.displacement`) was measured with it.
        latest_handover: the smallest stationarity of a handover, however often it was lowered
            after saddles that are left slowly and after failures of Newton's method. The errors of
            the flow itself do not allow a much smaller one.
        roughest_handover: the largest stationarity of a handover, where rounding keeps the flow
            from a smaller one;
        handover_accuracy: how closely the stationarity of the handover is met, relative.
        later: after a failure of Newton's method the stationarity of the handover is multiplied by
            this,
        colder: and the logits of the cap by this.
        most_caps: the most colder caps that are tried from one point.
        caps_before_drift: after so many of them the flow is followed at infinite kappa instead
            (`gflow.limit.drift`).
        steps_to_floor: where the true flow has not separated the examples after so many steps, and
            the attack on one of them vanishes, a flow with a floor follows (`gflow.limit.floor`).
        vanishing: an input gradient counts as 0 below this part of the root mean square of the
            input gradients of all examples.
        floor: s, the floor, in the same unit. Chosen on four networks of 30 examples and 7 inputs.
        floor_tolerance: the tolerance of the flow with a floor, in parts of that of the flow. With
            1 it left the layer in which it slides again and again, and took three times as many
            steps (three layers of ReLU^2).
        steps_with_floor: the most steps of the flow with a floor. It took 150 to separate the
            examples where it does, and 600 to 1500 to settle with three layers of ReLU^2.
        settled: the flow with a floor will not separate the examples once those whose attack does
            not vanish have at most this part of the weights p.
    """

    logit_tolerance: float = 0.1
    cap_accuracy: float = 1e-2
    most_logits: float = 1e10
    farthest: float = 1e5
    handover: float = 1e-3
    latest_handover: float = 1e-7
    roughest_handover: float = 0.99
    handover_accuracy: float = 0.1
    later: float = 0.1
    colder: float = 10.0
    most_caps: int = 4
    caps_before_drift: int = 1
    steps_to_floor: int = 1000
    vanishing: float = 1e-2
    floor: float = 1e-2
    floor_tolerance: float = 1e-2
    steps_with_floor: int = 1500
    settled: float = 1e-4


@named()
@dataclass(frozen=True)
class SaddleSettings(_Group):
    """Constants of leaving a saddle (`gflow.limit.leaving`).

    Attributes:
        push: how far from the saddle the flow is taken up again: far enough to leave within a few
            units of log kappa, and close enough for the linearised flow to hold on the way there.
        push_at_kinks: the same at kinks. It is shorter, since switches may turn on the way.
        handover: at a distance d along a direction that is left at the rate r the stationarity is
            r d. Where the flow is taken up again, the next handover is set to this part of that
            value, so that the flow does not meet it at once, still beside the saddle.
        same: two saddles no farther apart than this are the same one.
        most_colder: from a saddle that was met before, the flow is taken up with a colder cap, up
            to this multiple of the first cap's logits.
        rounding: if the offset of the flow along the unstable directions is below this part of its
            whole distance from the saddle, it is rounding, and the result `decided_by_rounding`.
        told_apart: if that offset is below this multiple of the flow's tolerance, it may be an
            error of the flow: the points that are visited from there on are not `Visit.certain`.
        most_steps: the most steps of a run of the flow from a saddle, in problems of more than
            `few_margins` margins. Few are enough: leading the temperature to 0
            (`gflow.limit.cooling`) finds the next point from anywhere near it.
        few_margins: in problems of at most so many margins, runs from a saddle have `max_steps`.
    """

    push: float = 5e-2
    push_at_kinks: float = 5e-3
    handover: float = 0.1
    same: float = 1e-6
    most_colder: float = 1e4
    rounding: float = 1e-15
    told_apart: float = 100.0
    most_steps: int = 200
    few_margins: int = 64


@named()
@dataclass(frozen=True)
class CirclingSettings(_Group):
    """Constants of telling that a flow circles (`gflow.limit.circling`).

    A run circles if what follows holds for each of its last two quarters.

    Attributes:
        path: the path is longer than so many diameters; one turn of a circle is pi of them.
        cosine: the median cosine between successive displacements is larger than this. It is below
            0 for points that go to and fro because of rounding or of too long steps.
        steady: from the one quarter to the other the mean radius changes by no more than this
            factor, so that the path is no spiral to a rest point or away from one.
        stands: the centre moves by less than this part of the radius, so that the path does not
            drift.
        fewest: the fewest points in a quarter from which this is judged.
        logits: beside a rest point that is left in spirals the flow is followed with the cap at
            so many logits,
        push: from this distance to the point,
        most_steps: for at most so many steps.
    """

    path: float = 4.0
    cosine: float = 0.3
    steady: float = 1.5
    stands: float = 0.5
    fewest: int = 16
    logits: float = 1e3
    push: float = 1e-3
    most_steps: int = 1500


@named()
@dataclass(frozen=True)
class VerdictSettings(_Group):
    """Constants of what kind of point a KKT point is (`gflow.limit.verdict`).

    Attributes:
        agree: `sum_i lambda_i dq_i/dtheta` and `sum_i lambda_i grad q_i` count as equal if they
            differ by less than this part of their terms, which is rounding.
        family_steps: KKT points of the same margin are looked for at these signed distances along
            the neutral directions. Both signs occur, since a family may end on one side, where
            another margin becomes active or a kink is met; small distances find a short family.
        family_margin: a KKT point belongs to the family if its |theta| at unit margin is the same
            to within this, relative,
        family_moved: and if it lies at least this part of the distance away. Otherwise Newton's
            method has only returned to the point itself.
    """

    agree: float = 1e-11
    family_steps: tuple[float, ...] = (1e-3, -1e-3, 1e-5, -1e-5)
    family_margin: float = 1e-9
    family_moved: float = 0.1


@named()
@dataclass(frozen=True)
class BasinSettings(_Group):
    """Constants of whose limit it is (`gflow.limit.basin`), and of `find_limit(reproduce=True)`.

    Attributes:
        displacement: a flow that reached its handover, and from which Newton's method moved the
            direction by less than this, ends in that point. Measured by `benchmarks/basins.py`.
        same_margin: two limits are the same if their margins agree to this, relative,
        same_direction: and their directions to this.
        tighter: the first search that reproduces a limit has this part of the flow's tolerance,
        least_tolerance: but no smaller tolerance than this,
        later: and this part of the stationarity at the handover.
        colder: the second one has this multiple of the cap's logits.
        smoother: at kinks a third one has this part of the smoothing.
        heading_points: for `Limit.heading` the margin is evaluated at so many points between the
            end of the flow and the KKT point;
        heading_slack: it counts as rising if it nowhere falls, from one of them to the next, by
            more than this part of its range.
    """

    displacement: float = 0.015
    same_margin: float = 1e-7
    same_direction: float = 1e-2
    tighter: float = 1e-2
    least_tolerance: float = 1e-12
    later: float = 1e-2
    colder: float = 10.0
    smoother: float = 0.5
    heading_points: int = 9
    heading_slack: float = 1e-3


@named()
@dataclass(frozen=True)
class KinkSettings(_Group):
    """Constants of the search at kinks (`gflow.limit.kinked`).

    Attributes:
        most_steps: the most steps of a run of the flow with rounded kinks. A run that needs more is
            held up at kinks, which further steps do not overcome.
        most_caps: the most colder caps of a search with rounded kinks, for the same reason.
        most_steps_off: the most steps of a run of the exact flow, in problems too large for the
            systems at kinks. About 25 steps lead from the limit with rounded kinks to a limit off
            kinks; towards a limit at a kink the run chatters.
        less: where no KKT point at kinks was reached, the search begins anew with the smoothing
            multiplied by this.
        least_smoothing: a smoothing below this is the last one. The stiffness of the flow grows
            like its inverse, and below 1e-3 the solver stalls where the flow slides along kinks.
    """

    most_steps: int = 1500
    most_caps: int = 1
    most_steps_off: int = 300
    less: float = 0.25
    least_smoothing: float = 2e-3


@named()
@dataclass(frozen=True)
class LimitSettings:
    """The constants of `find_limit(settings=...)`: for experts, and for tests.

    The defaults serve the problems of all benchmarks. `gflow.limit` has the classes of the groups:

        gflow.LimitSettings(kinks=gflow.limit.KinkSettings(most_steps=5000))

    Attributes:
        flow: of the flow, and of where Newton's method takes over.
        saddles: of leaving saddles.
        circling: of telling that a flow circles.
        verdict: of what kind of point a KKT point is.
        basin: of whose limit it is.
        kinks: of the search at kinks.
        refine: of Newton's method on the KKT system and of continuation (`gflow.limit.settings`).

    Raises:
        TypeError: a group is of another class.
        ValueError: from the constructor of a group, where a value is no positive number.
    """

    flow: FlowSettings = FlowSettings()
    saddles: SaddleSettings = SaddleSettings()
    circling: CirclingSettings = CirclingSettings()
    verdict: VerdictSettings = VerdictSettings()
    basin: BasinSettings = BasinSettings()
    kinks: KinkSettings = KinkSettings()
    refine: RefineSettings = REFINE

    def __post_init__(self) -> None:
        for field in fields(self):
            value, wanted = getattr(self, field.name), type(field.default).__name__
            if not isinstance(value, type(field.default)):
                raise TypeError(
                    f"`LimitSettings({field.name}={value!r})`: give a `gflow.limit.{wanted}`."
                )


DEFAULT = LimitSettings()
