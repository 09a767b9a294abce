"""The constants of the search for a limit, with their units and reasons.

All lengths are those of directions, which have norm 1, and all margins are relative or in logits,
so that no constant carries the units of the data. The same values serve the problems of
`benchmarks/limits.py`, `basins.py`, `ordinary_limits.py` and `large.py`.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

from gflow._numerics import is_integer, is_real
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
    """Of the flow, and of where Newton's method takes over (`gflow.limit.approach`).

    Attributes:
        logit_tolerance: `atol_logit` of `integrate`, in logits.
        cap_accuracy: how closely the logits of the cap are met, relative. The cap need not be
            exact: what it is gets recorded.
        most_logits: the coldest cap. Beyond it products of kappa with margins have lost too many
            digits for the weights p, which depend on their differences.
        farthest: the capped flow ends so many units of log kappa beyond the cap at the latest. An
            offset of 1e-9 from a saddle that is left at a rate of 1e-3 grows to 5e-2 within 4e4
            (L = 2, see `gflow.limit.itinerary`).
        handover: the stationarity at which the flow gives way to Newton's method. It is small
            enough for Newton's displacement to tell whose limit was found: that test
            (`BasinSettings.displacement`) was measured with it.
        latest_handover: the least stationarity that is waited for, after saddles that are left
            slowly and where Newton's method fails. The flow's own errors allow little less.
        handover_accuracy: how closely the stationarity of the handover is met, relative.
        later: where Newton's method fails, the stationarity of the next handover, in parts of this
            one.
        colder: and the logits of the next cap, in multiples of this one's.
        most_caps: so many colder caps are tried from one point.
        caps_before_drift: after so many of them the flow is followed at infinite kappa.
        steps_to_floor: where the true flow has not separated the examples after so many steps, and
            the attack on one vanishes, it is followed with a floor (`gflow.limit.floor`).
        vanishing: an input gradient vanishes that is smaller than this part of the root mean square
            of all.
        floor: s, likewise. Chosen on four networks of 30 examples and 7 inputs.
        floor_tolerance: its tolerance, in parts of the flow's. At 1 it left the layer in which it
            slides again and again, and took three times as many steps (three layers of ReLU^2).
        steps_with_floor: of that flow at most; it took 150 to separate the examples where it does,
            and 600 to 1500 to settle with three layers of ReLU^2.
        settled: it separates nothing where the examples whose attack does not vanish have no more
            than this part of the weights.
    """

    logit_tolerance: float = 0.1
    cap_accuracy: float = 1e-2
    most_logits: float = 1e10
    farthest: float = 1e5
    handover: float = 1e-3
    latest_handover: float = 1e-7
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
    """Of leaving a saddle (`gflow.limit.leaving`).

    Attributes:
        push: how far from the saddle the flow is taken up again: far enough to leave in a few
            units of log kappa, close enough for the linearised flow to tell the way.
        push_at_kinks: likewise at kinks, where it has to be shorter: switches may turn on the way.
        handover: at a distance d along a direction that is left at a rate r the stationarity is
            r d. The next handover is at this part of its value where the flow is taken up again, so
            that the flow is not handed back at the saddle.
        same: two saddles that are no farther apart are one.
        most_colder: from a saddle that was met before, the flow is taken up with a colder cap, up
            to this multiple of the first cap's logits.
        rounding: offsets from the saddle below this part of how far the flow stopped from it are
            rounding: then `decided_by_rounding` is the result.
        told_apart: offsets below this multiple of the flow's tolerance may be errors of the flow:
            what is visited from there on is not `Visit.certain`.
        most_steps: of a run of the flow off a saddle, with more than `few_margins`: the
            temperature led to 0 (`gflow.limit.cooling`) leads on from anywhere near the next point.
        few_margins: with no more margins than this a run has all of its steps.
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
    """Of telling that a flow circles (`gflow.limit.circling`).

    A run circles if what follows holds for each of its last two quarters.

    Attributes:
        path: the path is longer than so many diameters: pi for one turn of a circle.
        cosine: the median cosine between successive displacements is larger. It is below 0 for
            points that rounding or too long steps throw to and fro.
        steady: the mean radius changes by no more than this factor from the one quarter to the
            other: neither a spiral to a rest point nor one away from it.
        stands: the centre moves by less than this part of the radius: no drift.
        fewest: points a quarter. Fewer do not tell.
        logits: beside a rest point that is left in spirals, the flow is followed with this cap,
        push: from this distance,
        most_steps: for so many steps.
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
    """Of what kind of point a KKT point is (`gflow.limit.verdict`).

    Attributes:
        agree: the margins' own gradients pull as those of the gradient mode do where they differ by
            less than this part of their terms, which is rounding.
        family_steps: KKT points of the same margin are looked for at these distances along the
            neutral directions: on both sides, since a family may end where another margin becomes
            active or a kink is met, and closer by for a family that ends nearby.
        family_margin: a member of the family has the same |theta| at unit margin to within this,
            relative.
        family_moved: and lies at least this part of the step away: Newton's method has not come
            back to where it started.
    """

    agree: float = 1e-11
    family_steps: tuple[float, ...] = (1e-3, -1e-3, 1e-5, -1e-5)
    family_margin: float = 1e-9
    family_moved: float = 0.1


@named()
@dataclass(frozen=True)
class BasinSettings(_Group):
    """Of whose limit it is (`gflow.limit.basin`), and of `find_limit(reproduce=True)`.

    Attributes:
        displacement: a flow that arrived, and from which Newton's method moved the direction by
            less than this, ends there and nowhere else. Measured by `benchmarks/basins.py`.
        same_margin: two limits are one where their margins agree to this, relative,
        same_direction: and their directions to this. Members of one family count as one.
        tighter: a search that reproduces has this part of the flow's tolerance,
        least_tolerance: but no less than this,
        later: and this part of the stationarity at the handover;
        colder: the next one this multiple of the cap's logits;
        smoother: and at kinks a third one this part of the smoothing.
        heading_points: the margins between the end of the flow and the KKT point are looked at in
            so many points,
        heading_slack: and rise where none falls below the one before by more than this part of
            their range.
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
    """Of the search at kinks (`gflow.limit.kinked`).

    Attributes:
        most_steps: of a run of the flow with rounded kinks. Where those stop it, more steps are no
            help.
        most_caps: nor are more colder caps than this.
        most_steps_off: of a run of the exact flow of a problem too large for systems at kinks. Off
            kinks some 25 take it from the limit with rounded ones to its own; at one it chatters.
        less: where no KKT point at kinks was reached, the smoothing falls to this part of itself
            and the search begins anew.
        least_smoothing: a smoothing below this does not fall again. The stiffness of the flow grows
            like its inverse, and below 1e-3 the solver stalls where the flow slides along kinks.
    """

    most_steps: int = 1500
    most_caps: int = 1
    most_steps_off: int = 300
    less: float = 0.25
    least_smoothing: float = 6e-3


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
