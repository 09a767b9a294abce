"""Lines and places of a drawing in SVG, in its own units."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gflow.report.plane import Window

SIDE = 480.0
"""The side of the plane in the drawing."""


@dataclass(frozen=True)
class View:
    """How a window of the plane is drawn: a square of `SIDE`, the second input upwards."""

    window: Window

    def points(self, points: Any) -> list[list[float]]:
        """Places of points of the plane, to a tenth of a unit. Shapes: (n, 2)."""
        window = self.window
        scaled = (np.reshape(points, (-1, 2)) - [window.left, window.bottom]) * (
            SIDE / window.width
        )
        return np.round([0, SIDE] + scaled * [1, -1], 1).tolist()

    def level_path(self, height: np.ndarray, level: float) -> str:
        """The border of where the height exceeds `level`, as data of an SVG path.

        Where it leaves the window it is closed outside of it, so that the path can be filled.

        Shapes: height (g, g), on the grid of the window.
        """
        from contourpy import LineType, contour_generator

        x, y = (_beyond(values) for values in self.window.axes)
        lowest = min(float(height.min()), level) - float(np.ptp(height)) - 1.0
        closed = np.pad(height, 1, constant_values=lowest)
        found = contour_generator(x, y, closed, line_type=LineType.Separate).lines(level)
        return "".join(self._line(np.asarray(line)) for line in found)

    def _line(self, polygon: np.ndarray) -> str:
        from matplotlib.path import Path

        placed = Path(self.points(polygon))
        # Without the points that lie on the line between their neighbours.
        segments: Any = placed.cleaned(simplify=True)
        drawn = (segments.codes == Path.MOVETO) | (segments.codes == Path.LINETO)
        corners = segments.vertices[drawn]
        return "M" + "L".join(f"{x:g},{y:g}" for x, y in np.round(corners, 1)) + "Z"


def _beyond(values: np.ndarray) -> np.ndarray:
    """One more coordinate on either side, close by."""
    step = 1e-3 * (values[1] - values[0])
    return np.concatenate([[values[0] - step], values, [values[-1] + step]])


def polyline(x: np.ndarray, y: np.ndarray) -> str:
    """The `points` of an SVG polyline, without those that are not finite."""
    pairs = zip(x, y, strict=True)
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in pairs if np.isfinite(a) and np.isfinite(b))


def marks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Round numbers between two, with their texts."""
    from matplotlib.ticker import MaxNLocator

    values = [v for v in MaxNLocator(most).tick_values(low, high) if low <= v <= high]
    return [(float(v), f"{v:.10g}".replace("-", "−")) for v in values]
