"""What the axes of every figure share: the abscissae, and decades that never overflow."""

import math
from typing import Any, Literal, NamedTuple

import numpy as np

Against = Literal["time", "loss", "log_loss", "kappa", "steps"]

LOG10 = math.log(10.0)
# Below this many decades powers of ten alone would leave an axis with one mark or none.
_FEW_DECADES = 2.0
# From a loss of e^-0.1 on its logarithm is one of a small loss, which grows like log t.
_FIRST = -1.0
_PART_OF_DECADE = 0.7
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Abscissa(NamedTuple):
    """What a curve is drawn against.

    Attributes:
        values: one number a saved point; logarithms to base 10 where `decades`.
        label: the axis' name.
        decades: whether the axis counts decades.
        falling: whether the quantity falls along the run, so that the axis is turned round.
    """

    values: np.ndarray
    label: str
    decades: bool
    falling: bool = False


def abscissa(trajectory: Any, against: Against) -> Abscissa:
    """The values of `trajectory` that a curve is drawn against.

    Raises:
        ValueError: `against` is none of "time", "loss", "log_loss", "kappa" and "steps".
    """
    match against:
        case "time":
            return Abscissa(decades(trajectory.log1p_time), "time 1 + t", True)
        case "loss":
            return Abscissa(decades(trajectory.log_loss), "loss (sum)", True, True)
        case "log_loss":
            values = decades(trajectory.log_minus_log_loss)
            return Abscissa(np.where(values >= _FIRST, values, np.nan), "−log loss", True)
        case "kappa":
            return Abscissa(decades(trajectory.log_kappa), "κ = ‖θ‖ᴸ", True)
        case "steps":
            return Abscissa(np.asarray(trajectory.num_steps_at), "accepted steps", False)
    raise ValueError(
        f"`against={against!r}`: choose 'time', 'loss', 'log_loss', 'kappa' or 'steps'."
    )


def decades(logarithm: Any) -> np.ndarray:
    """Natural logarithms as decades, which are drawn in place of numbers that would overflow."""
    return np.asarray(logarithm) / LOG10


def log10(values: Any) -> np.ndarray:
    """Decades of positive numbers; zero, which has none, leaves a gap in the curve."""
    values = np.asarray(values, float)
    return np.log10(values, out=np.full_like(values, np.nan), where=values > 0)


def label_decades(axis: Any) -> None:
    """Writes `10⁻³` at -3 on an axis whose values are logarithms to base 10.

    Where the view spans few decades, the axis is marked at 1, 2 and 5 times the powers of ten, and
    within one decade at 1, 2, .., 9 times.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    class Decades(MaxNLocator):
        def tick_values(self, vmin: float, vmax: float) -> np.ndarray:
            if abs(vmax - vmin) >= _FEW_DECADES:
                return np.asarray(super().tick_values(vmin, vmax))
            powers = np.arange(math.floor(min(vmin, vmax)), math.ceil(max(vmin, vmax)) + 1)
            marks = np.arange(1, 10) if abs(vmax - vmin) < _PART_OF_DECADE else [1, 2, 5]
            return np.add.outer(powers, np.log10(marks)).ravel()

    axis.set_major_locator(Decades(nbins=6, integer=True))
    axis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))


def power_of_ten(exponent: float) -> str:
    """`10⁻³` for -3, 1 for 0, 10 for 1; between integers the number, or nothing if it is long."""
    nearest = round(exponent)
    if abs(exponent - nearest) > 1e-9:
        return f"{10**exponent:.3g}" if abs(exponent) < 4 else ""
    return str(10**nearest) if nearest in (0, 1) else f"10{str(nearest).translate(_SUPERSCRIPTS)}"


def new_axes() -> Any:
    """Axes on a figure of their own, known to pyplot, so that notebooks show it."""
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def finish(axes: Any, x: Abscissa, label: str, *, decades_up: bool = False) -> Any:
    """Names both axes and writes decades where they count decades."""
    axes.set_xlabel(x.label)
    axes.set_ylabel(label)
    if x.decades:
        label_decades(axes.xaxis)
    if decades_up:
        label_decades(axes.yaxis)
    if x.falling and not axes.xaxis_inverted():
        axes.invert_xaxis()
    return axes
