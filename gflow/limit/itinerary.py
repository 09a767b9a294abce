"""The KKT points that the flow visits on its way, and when.

At a KKT point of margin gamma, log kappa is proportional to the clock tau of the flow,
`d log kappa / d tau = L^2 gamma`, and an offset along an eigenvector of the Lagrangian's Hessian
with eigenvalue -a grows like `exp(L gamma a tau)`, that is, by the factor e^(a/L) per unit of
log kappa. So an offset of size d grows to size D while log kappa grows by `L log(D/d) / a`. From
close to a saddle this may take thousands of units. A training run, whose log kappa stays below 100,
then remains near the saddle.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gflow._description import plain
from gflow._typing import Params


@dataclass(frozen=True, eq=False)
class Visit:
    """A KKT point on the way of the flow.

    Attributes:
        direction: u, a pytree like the parameters, of norm 1.
        margin: its normalized margin.
        verdict: what kind of point it is, as `Limit.verdict`.
        arrival: log kappa of the flow when it had come close and gave way to Newton's method.
        departure: log kappa at which the offset from the point has grown to 1/20 of the norm, at
            kinks to 1/200; infinite for a point that is not left.
        growth: of the offset, its exponent per unit of log kappa; 0 for a point that is not left.
        certain: whether the flow certainly visits this point, whatever the errors of its
            integration: it came close enough, and left every saddle before by an offset well above
            its tolerance.
    """

    direction: Params = field(repr=False)
    margin: float
    verdict: str
    arrival: float
    departure: float
    growth: float
    certain: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the direction; None for a departure that never comes."""
        return plain({name: value for name, value in vars(self).items() if name != "direction"})


def noted(visits: tuple[Visit, ...], visit: Visit) -> tuple[Visit, ...]:
    """All visits with one more, which is certain only if those before it are.

    If the last visited point was not left, the new visit replaces it: it was found with rounded
    kinks, and the new one is the same point with exact ones.
    """
    before = tuple(each for each in visits if np.isfinite(each.departure))
    certain = visit.certain and all(each.certain for each in before)
    return (*before, replace(visit, certain=certain))


def growth_per_log_kappa(rate: float, degree: float) -> float:
    """The exponent a/L, per unit of log kappa, for an eigenvalue -a of H."""
    return rate / degree


def departure(
    arrival: float, offset: np.ndarray, rates: np.ndarray, length: float, degree: float
) -> float:
    """The log kappa at which the first of the growing offsets reaches a length.

    Args:
        arrival: log kappa at which the offsets are those given.
        offset: their sizes, along the unstable directions. Shape (r,).
        rates: a > 0 of each. Shape (r,).
        length: the size to be reached.
        degree: L.
    """
    size = np.maximum(np.abs(offset), 1e-300)
    return arrival + degree * max(float(np.min(np.log(length / size) / rates)), 0.0)


def told(visits: tuple[Visit, ...]) -> list[str]:
    """The saddles on the way as text, a few words each."""
    return [
        f"at margin {visit.margin:.6g} from log kappa {visit.arrival:.4g} to {visit.departure:.4g}"
        for visit in visits
        if np.isfinite(visit.departure)
    ]
