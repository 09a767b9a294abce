"""KKT points at kinks: of plain ReLUs, and of attacks that follow signs.

`equations` evaluates the KKT system with every switch at its own angle, `system` is Newton's method
for it, `path` leads a smoothing to 0 with that; `follow` does so from a KKT point of a smoothed
problem, `slide` follows the flow along kinks. `open` finds the coefficients at kinks that
stationarity leaves open.
"""

from gflow.kinks.equations import Point, traced_equations
from gflow.kinks.following import follow, follow_back, start_at
from gflow.kinks.found import Kinks, at_other_coefficients
from gflow.kinks.sliding import slide

__all__ = [
    "Kinks",
    "Point",
    "at_other_coefficients",
    "follow",
    "follow_back",
    "slide",
    "start_at",
    "traced_equations",
]
