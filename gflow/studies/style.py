"""The stylesheet of every study's figure, and the parts that several of them draw."""

import io
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from gflow._files import replacing

# Beside the settings of every figure, `gflow.report.style.LAYOUT`, which come with JAX and are
# imported where a figure is drawn. Nothing here sets the colour of the ink: it is the page's.
_SETTINGS = {
    "figure.figsize": (7.2, 3.2),
    "figure.constrained_layout.use": True,
    "lines.markersize": 4.5,
}
GREY = {"color": "#7f7f7f", "linewidth": 1.0, "linestyle": "--"}
"""For the line of a prediction."""

_stacked: ContextVar[bool] = ContextVar("stacked", default=False)


def stacked(draw: Callable[[], Any]) -> Any:
    """What `draw()` returns, with its panels one below the other, as for a narrow page."""
    token = _stacked.set(True)
    try:
        return draw()
    finally:
        _stacked.reset(token)


def styled(draw: Callable[[], Any]) -> Any:
    """What `draw()` returns, drawn in the stylesheet."""
    from matplotlib import rc_context

    from gflow.report.style import LAYOUT, cycle

    settings: Any = LAYOUT | _SETTINGS | {"axes.prop_cycle": cycle()}
    with rc_context(settings):
        return draw()


def panels(columns: int, rows: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure, unknown to pyplot, and its axes: a flat list, row by row."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    if _stacked.get():
        columns, rows = 1, rows * columns
    width, height = rcParams["figure.figsize"]
    width = min(width, 4.2) if columns == 1 else width * max(columns, 2) / 2.1
    figure = Figure(figsize=(width, height * rows))
    grid = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(grid.flat)


def save(draw: Callable[[], Any], path: Any) -> None:
    """Writes the figure to `path`, in the format that its suffix names, at once or not at all."""
    from matplotlib import rc_context

    from gflow.report.style import LAYOUT

    buffer = io.BytesIO()
    kind = str(path).rpartition(".")[2]
    metadata = {"Date": None} if kind == "svg" else {}
    settings: Any = {"svg.hashsalt": "gflow", "savefig.dpi": LAYOUT["savefig.dpi"]}
    with rc_context(settings):
        styled(draw).savefig(buffer, format=kind, metadata=metadata)
    with replacing(path) as handle:
        handle.write(buffer.getvalue())


def note(axes: Any, x: float, y: float, text: str) -> None:
    """A remark within the axes, its right edge at (x, y) in parts of them."""
    place = {"xycoords": "axes fraction", "ha": "right", "va": "bottom" if y < 0.5 else "top"}
    axes.annotate(text, (x, y), fontsize="small", **place)


def loglog(axes: Any, x: str, y: str) -> None:
    """Logarithmic axes with their names."""
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
