"""Figures of trajectories, and the HTML report of a job.

Needs the extra `plot`. Every `plot_*` function draws one quantity of one trajectory on `axes` (on a
new figure without one) and returns the axes, for notebooks and papers alike.
"""

from gflow.report.columns import FLOW_COLUMNS, LIMIT_COLUMNS
from gflow.report.explorer import explorer
from gflow.report.figures import (
    plot_direction_convergence,
    plot_layer_alignment,
    plot_loss,
    plot_margin,
    plot_margins,
    plot_scale,
    plot_smoothed_margin,
    plot_stationarity,
    plot_time,
)
from gflow.report.overview import margins_figure, overview_figure
from gflow.report.page import write_page
from gflow.report.plane import plot_plane
from gflow.report.record import (
    Record,
    Results,
    read_results,
    record,
    write_results,
)
from gflow.report.style import use_style

__all__ = [
    "FLOW_COLUMNS",
    "LIMIT_COLUMNS",
    "Record",
    "Results",
    "explorer",
    "margins_figure",
    "overview_figure",
    "plot_direction_convergence",
    "plot_layer_alignment",
    "plot_loss",
    "plot_margin",
    "plot_margins",
    "plot_plane",
    "plot_scale",
    "plot_smoothed_margin",
    "plot_stationarity",
    "plot_time",
    "read_results",
    "record",
    "use_style",
    "write_page",
    "write_results",
]
