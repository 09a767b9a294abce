"""The limit of the flow's direction, and how it was found."""

from dataclasses import dataclass, field
from typing import Any

from gflow._description import plain
from gflow._typing import Params
from gflow.certificate import Certificate
from gflow.curvature import Curvature
from gflow.kinks import Kinks
from gflow.polish import Polished
from gflow.problem import Problem
from gflow.results import RESULTS, Outcome
from gflow.trajectory import Trajectory


@dataclass(frozen=True)
class Stage:
    """One stage of the search.

    Attributes:
        kind: "flow", "newton", "escape"; at kinks also "kinks" (smoothing led to 0) and "sliding"
            (the flow along kinks, by implicit Euler steps), and "back" (to the last KKT point);
            "drift", where no KKT point was near (the flow at infinite kappa, by such steps too);
            "circling", where the flow before it circles.
        num_steps: steps of the flow, or systems solved; of circling, turns.
        moved: distance of the direction from where the stage before left it; of circling, the mean
            distance from the centre.
        stationarity: at its end: of the flow `|u - c sum_i p_i grad q_i|`, of Newton's method the
            residual of the KKT system, of a drift and of circling the speed, how far the direction
            moves while |params| grows by a factor e.
        margin: normalized margin at its end; of circling the smallest on the way.
        seconds: wall time.
        log_growth: of a drift and of circling, by how much log |params| grew; log kappa by L times
            that.
    """

    kind: str
    num_steps: int
    moved: float
    stationarity: float
    margin: float
    seconds: float
    log_growth: float = 0.0


@dataclass(frozen=True, eq=False)
class Limit(Outcome):
    """The limit of the flow's direction, and the evidence.

    At kinks, `certify(limit.problem, limit.direction, coefficients=limit.kinks.coefficients)`
    repeats the certificate; without these coefficients it would have to guess how the attack's own
    switches stand.

    Attributes:
        problem: what was minimised.
        direction: u, a pytree like the parameters, of norm 1.
        margin: normalized adversarial margin there; at kinks that of the KKT point, with its
            switches held at their coefficients (`certificate.held_margin`).
        certificate: `certify` at the limit.
        trajectory: the first run of the capped flow, from the start.
        result: a member of `RESULTS`.
        verdict: "strict maximum" of the adversarial margin, at kinks of that with every switch
            held; "maximum within a family", a continuum of points of equal margin, as merged or
            aligned neurons leave; with frozen perturbations, where the flow does not climb the
            margin, "stable rest point" and "stable within a family" instead: there the margin can
            be raised nearby (`certificate.total_stationarity` is not 0), but the flow returns;
            "degenerate"; "saddle", a rest point that the flow leaves; or "unknown", where no KKT
            point was reached. A neuron that has died out lies on a kink of the network: there it
            is judged along the direction in which it arrived.
        curvature: the eigenvalues behind the verdict, or None.
        stages: what was done.
        heading: whether the margin rises all the way from where the last flow stopped to the
            polished point, so that this is the point the flow was heading to.
        polished: the KKT point at unit margin, with its multipliers; None at kinks.
        kinks: where the problem has kinks, the KKT point there, with the coefficients of its ReLUs
            and signs and the examples that sit at a kink. Not `kinks.converged` where none was
            reached: then it names the kinks of the point at which the search stopped.
        smoothing: the relative width to which kinks are still rounded; 0 where they are exact, and
            where there are none.
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
    polished: Polished | None = field(repr=False, default=None)
    kinks: Kinks | None = field(repr=False, default=None)
    smoothing: float = 0.0

    def __repr__(self) -> str:
        return (
            f"Limit({self.verdict}, margin={self.margin:.6g}, "
            f"stationarity={self.certificate.stationarity:.2g}, "
            f"{self.num_flow_steps} steps of the flow, result={self.result_name})"
        )

    @property
    def successful(self) -> bool:
        """Whether a maximum or a stable rest point was reached, within a family or not, whatever
        decided which.
        """
        return self.result_name in ("successful", "decided_by_rounding")

    @property
    def num_flow_steps(self) -> int:
        """Steps of the flow, all stages together."""
        return sum(stage.num_steps for stage in self.stages if stage.kind == "flow")

    def to_dict(self) -> dict[str, Any]:
        """Plain values: everything but the direction and the trajectory."""
        values = None if self.curvature is None else self.curvature.values
        return plain(
            {
                "margin": self.margin,
                "result": self.result_name,
                "message": self.message,
                "verdict": self.verdict,
                "eigenvalues": values,
                "symmetric": None if self.curvature is None else self.curvature.symmetric,
                "heading": self.heading,
                "smoothing": self.smoothing,
                "at_kink": None if self.kinks is None else self.kinks.examples,
                "stages": [vars(stage) for stage in self.stages],
                "certificate": self.certificate.to_dict(),
            }
        )


class LimitFailed(RuntimeError):
    """No limit was found; `limit` holds all that was."""

    def __init__(self, limit: Limit):
        super().__init__(f"{limit.message} (The error's `limit` holds what was found.)")
        self.limit = limit
