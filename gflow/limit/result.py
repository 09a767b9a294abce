"""The limit of the flow's direction, and how it was found."""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from gflow._checks import is_real
from gflow._description import plain
from gflow._typing import Params
from gflow.kkt.certificate import Certificate
from gflow.kkt.curvature import Curvature
from gflow.kkt.point import KKTPoint
from gflow.limit.itinerary import Visit, told
from gflow.problem import Problem
from gflow.results import RESULTS, Outcome
from gflow.trajectory import Trajectory

# `repr` shows a held margin that differs from the margin by more than rounding, relative.
_SHOWN = 1e-9


def margin_at(theta: np.ndarray, degree: float) -> float:
    """The normalized margin `|theta|^-L` of a point whose smallest margin is 1. Shape (P,)."""
    return float(np.linalg.norm(theta)) ** -degree


@dataclass(frozen=True)
class Stage:
    """One stage of the search.

    Attributes:
        kind: one of

            - "flow";
            - "floor": the flow with an attack that fades where its gradient vanishes, where the
              true flow slides (`gflow.limit.floor`);
            - "newton": Newton's method on the KKT system;
            - "escape": a push off a saddle;
            - "drift": the flow at infinite kappa by implicit Euler steps, where no KKT point was
              near;
            - "circling": no stage of its own, but what was measured of the flow before it, which
              circles;
            - at kinks "kinks": leading the smoothing to 0;
            - "sliding": the flow along kinks by implicit Euler steps;
            - "back": a return to the last saddle at kinks, from which no KKT point was reached.
        num_steps: steps of the flow, or systems solved; of circling, turns.
        moved: distance of the direction from where the stage before left it; of circling, the mean
            distance from the centre.
        stationarity: at its end: of the flow `|u - c sum_i p_i grad q_i|`, of Newton's method the
            residual of the KKT system, of a drift and of circling the speed, how far the direction
            moves while |params| grows by a factor e.
        margin: normalized margin at its end; of circling the smallest on the way.
        seconds: wall time.
        log_kappa: of the flow at its end.
        log_growth: of a drift and of circling, by how much log |params| grew; log kappa by L times
            that.
    """

    kind: str
    num_steps: int
    moved: float
    stationarity: float
    margin: float
    seconds: float
    log_kappa: float = math.nan
    log_growth: float = 0.0


@dataclass(frozen=True, eq=False)
class Limit(Outcome):
    """The limit of the flow's direction, and the evidence.

    At kinks, `certify(limit.problem, limit.direction, coefficients=limit.kinks.coefficients)`
    repeats the certificate. The coefficients are needed: at its kinks the attack depends on them,
    and `certify` cannot find them from the direction alone.

    Attributes:
        problem: what was minimised.
        direction: u, a pytree like the parameters, of norm 1.
        margin: normalized adversarial margin that the attack leaves there. At kinks, where the
            attack jumps, the largest that it leaves at the direction or next to it, the upper limit
            of `min_i q_i(u')` for `u' -> u`; see `gflow.kkt.margin_next_to.margin_next_to`.
        held_margin: that of the KKT point, with its switches held at their coefficients, to which
            the multipliers belong; `margin` itself where the attack does not jump. It may be above
            `margin`: the flow slides along the kinks, and no single point there has it.
        sides_sampled: whether `margin` is the largest on a sample of the sides of kinks only, since
            an example has more than 10 switches on their kinks that make the attack jump.
        certificate: `certify` at the limit.
        trajectory: the true flow from the start to where its temperature is capped, or as far as
            it came. Of runs that `find_limits` followed side by side these two points only, without
            physical time: `log1p_time` is NaN at the end.
        result: a member of `RESULTS`.
        verdict: "strict maximum" of the adversarial margin, at kinks of that with every switch
            held; "maximum within a family", a continuum of points of equal margin, as merged or
            aligned neurons leave; with frozen perturbations, where the flow does not climb the
            margin, "stable rest point" and "stable within a family" instead: there the margin can
            be raised nearby (`certificate.total_stationarity` is not 0), but the flow returns.
            These two also where a neuron has died out that would grow if it pointed elsewhere, and
            the margin with it: 48 random directions are tried. Further words are
            "degenerate"; "depends on coefficients at kinks", which the KKT conditions leave open
            and `curvature.undecided` names; "saddle", a rest point that the flow leaves; or
            "unknown", where no KKT point was reached. Whether the flow leaves is judged with the
            neurons that have died out in the direction in which they arrived.
        no_maximum: why a "stable" point is no maximum of the margin, in words; "" of others.
        curvature: the eigenvalues behind the verdict, or None.
        stages: what was done.
        heading: whether the margin rises all the way from where the last flow stopped to the
            polished point, so that this is the point the flow was heading to.
        polished: the KKT point at unit margin, with its multipliers; None at kinks.
        kinks: where the problem has kinks, the KKT point there, with the coefficients of its ReLUs
            and signs and the examples that sit at a kink. Not `kinks.converged` where none was
            reached: then it names the kinks of the point at which the search stopped. Of a
            ReLU^2 network under attack, with the total gradient, only where the search stuck at
            kinks of the attack's gradient, and then with coefficients of these.
        smoothing: the relative width to which kinks are still rounded; 0 where they are exact, and
            where there are none.
        basin: whether this is the limit of the flow from this start: "confirmed", the capped flow
            came within `settings.basin.displacement` of it, past no saddle; "undecided", it met a
            saddle, or was handed to Newton's method from afar; "reproduced", with
            `reproduce=True`, searches with a tighter tolerance and with a colder cap ended in the
            same point. `successful` judges the point itself.
        cap_logits: the smallest margin `kappa_c min_i q_i(u)` at which the temperature was capped;
            NaN where the flow never came so far.
        log_kappa_cap: log kappa_c.
        handover_stationarity: stationarity of the capped flow where it gave way to Newton's method.
        newton_displacement: how far that moved the direction.
        itinerary: the KKT points that the flow visits, in order, the last one `direction` itself:
            with log kappa at arrival and departure. One that is held from log kappa 50 to 6000 is
            what any training run sees.
        differing: with `reproduce=True`, the limits of the other searches that differ.
    """

    problem: Problem = field(repr=False)
    direction: Params
    margin: float
    certificate: Certificate
    trajectory: Trajectory
    result: RESULTS
    verdict: str
    curvature: Curvature | None
    stages: tuple[Stage, ...]
    heading: bool
    polished: KKTPoint | None = field(repr=False, default=None)
    kinks: KKTPoint | None = field(repr=False, default=None)
    smoothing: float = 0.0
    held_margin: float = math.nan
    basin: str = "undecided"
    cap_logits: float = math.nan
    log_kappa_cap: float = math.nan
    handover_stationarity: float = math.nan
    newton_displacement: float = math.nan
    itinerary: tuple[Visit, ...] = field(repr=False, default=())
    differing: tuple["Limit", ...] = field(repr=False, default=())
    sides_sampled: bool = False
    no_maximum: str = ""

    def __repr__(self) -> str:
        same = not abs(self.held_margin - self.margin) > _SHOWN * abs(self.margin)
        held = "" if same else f"held_margin={self.held_margin:.6g}, "
        saddles = told(self.itinerary)
        saddles = f"held by saddles {'; '.join(saddles)}, " if saddles else ""
        return (
            f"Limit({self.verdict}, margin={self.margin:.6g}, {held}"
            f"stationarity={self.certificate.stationarity:.2g}, "
            f"basin {self.basin}, {self.num_flow_steps} steps of the flow, "
            f"{self.cap_logits:.3g} logits at the cap, {saddles}result={self.result_name})"
        )

    def __str__(self) -> str:
        lines = [
            f"Limit ({self.result_name}): {self.verdict}",
            f"  no maximum, because  {self.no_maximum}" if self.no_maximum else "",
            f"  normalized margin    {self.margin:+.6e}" + "   sides sampled" * self.sides_sampled,
            f"  with its kinks held  {self.held_margin:+.6e}" if self.kinks is not None else "",
            f"  stationarity         {self.certificate.stationarity:.3e}   of the total gradient "
            f"{self.certificate.total_stationarity:.3e}",
            f"  basin                {self.basin}",
            f"  handover             stationarity {self.handover_stationarity:.1e}, Newton's "
            f"method moved {self.newton_displacement:.1e}, saddles met {self.saddles_met}",
            f"  flow                 {self.num_flow_steps} steps, temperature capped at "
            f"{self.cap_logits:.3g} logits, log kappa {self.log_kappa_cap:.4g}",
        ]
        lines += [f"  held by a saddle     {saddle}" for saddle in told(self.itinerary)]
        return "\n".join(line for line in lines if line)

    def params(self, *, log_kappa: float) -> Params:
        """Parameters along the limit's direction: `kappa^(1/L) u`.

        Args:
            log_kappa: `L log |params|`.

        Raises:
            ValueError: their norm leaves the range of floating-point numbers.
        """
        with np.errstate(over="ignore", under="ignore"):  # refused below
            length = np.exp(log_kappa / self.problem.degree) if is_real(log_kappa) else np.nan
        if not 0 < length < np.inf:
            raise ValueError(
                f"`limit.params(log_kappa={log_kappa!r})`: give a number for which the norm "
                "exp(log_kappa / degree) is a positive floating-point number."
            )
        return jax.tree.map(lambda leaf: length * np.asarray(leaf), self.direction)

    @property
    def saddles_met(self) -> int:
        """How many saddles the flow met and left."""
        return sum(math.isfinite(visit.departure) for visit in self.itinerary)

    @property
    def successful(self) -> bool:
        """Whether a maximum or a stable rest point was reached, within a family or not; also where
        rounding decided which of several.
        """
        return self.result_name in ("successful", "decided_by_rounding")

    @property
    def num_flow_steps(self) -> int:
        """Steps of the flow, all stages together."""
        return sum(stage.num_steps for stage in self.stages if stage.kind in ("flow", "floor"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values: everything but the direction and the trajectory."""
        values = None if self.curvature is None else self.curvature.values
        return plain(
            {
                "margin": self.margin,
                "held_margin": self.held_margin,
                "sides_sampled": self.sides_sampled,
                "result": self.result_name,
                "message": self.message,
                "verdict": self.verdict,
                "no_maximum": self.no_maximum,
                "eigenvalues": values,
                "symmetric": None if self.curvature is None else self.curvature.symmetric,
                "heading": self.heading,
                "basin": self.basin,
                "cap_logits": self.cap_logits,
                "handover_stationarity": self.handover_stationarity,
                "newton_displacement": self.newton_displacement,
                "itinerary": [visit.to_dict() for visit in self.itinerary],
                "smoothing": self.smoothing,
                "at_kink": None if self.kinks is None else self.kinks.examples,
                "stages": [vars(stage) for stage in self.stages],
                "certificate": self.certificate.to_dict(),
            }
        )


class LimitFailed(RuntimeError):
    """No limit was found; `limit` holds all that was."""

    def __init__(self, limit: Limit):
        hint = unnamed_kinks(limit.problem)
        super().__init__(f"{limit.message}{hint} (The error's `limit` holds what was found.)")
        self.limit = limit


def unnamed_kinks(problem: Problem) -> str:
    """The message for a network with kinks under a perturbation that does not name them."""
    if problem.perturbation.has_named_kinks or not problem.network.num_switches:
        return ""
    return (
        " The network has kinks, and limits at kinks are not searched under "
        f"`{type(problem.perturbation).__name__}`, which has no method `switched`: write one, see "
        "`gflow.perturbations.AbstractPerturbation`, or smooth the network "
        "(`mlp(..., smoothing=...)`)."
    )
