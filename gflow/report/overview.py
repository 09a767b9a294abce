"""Figures that compare runs: one network under several perturbations."""

from collections.abc import Mapping, Sequence
from typing import Any

from gflow.report import figures
from gflow.report.quantities import has_layers
from gflow.report.style import PALETTE, STYLES, look

__all__ = ["PALETTE", "STYLES", "look", "margins_figure", "overview_figure"]


def overview_figure(trajectories: Mapping[str, Any], *, looks: Sequence[dict] | None = None) -> Any:
    """Loss, margins, stationarity, alignment and convergence of several trajectories.

    Args:
        trajectories: name -> trajectory.
        looks: arguments for `Axes.plot`, one dict a trajectory; the palette's without it.
    """
    panels = [
        figures.plot_loss,
        figures.plot_margin,
        figures.plot_smoothed_margin,
        figures.plot_stationarity,
        figures.plot_layer_alignment,
        figures.plot_direction_convergence,
    ]
    if not all(has_layers(one) for one in trajectories.values()):
        panels[4] = figures.plot_scale
    figure, grid = _grid(2, 3, (11.0, 5.9))
    looks = [look(i) for i in range(len(trajectories))] if looks is None else looks
    for draw, axes in zip(panels, grid.flat, strict=True):
        for (name, trajectory), style in zip(trajectories.items(), looks, strict=True):
            _draw_one(draw, trajectory, axes, name, style)
        _tidy(axes)
    handles = _one_handle_each(grid.flat[0])
    figure.legend(handles.values(), handles.keys(), loc="upper center", ncols=6, frameon=False)
    return figure


def _draw_one(draw: Any, trajectory: Any, axes: Any, name: str, style: dict) -> None:
    draw(trajectory, axes, label=name, **style)
    if draw is figures.plot_layer_alignment and axes.get_ylim()[1] < 1.02:
        axes.set_ylim(top=1.02)


def _one_handle_each(axes: Any) -> dict[str, Any]:
    handles, labels = axes.get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


def margins_figure(trajectories: Mapping[str, Any], *, looks: Sequence[dict] | None = None) -> Any:
    """The clean, adversarial and smoothed margin of each trajectory, a panel for each."""
    figure, grid = _grid(1, len(trajectories), (2.1 * len(trajectories) + 0.7, 2.7), sharey=True)
    looks = [look(i) for i in range(len(trajectories))] if looks is None else looks
    panels = zip(trajectories.items(), grid.flat, looks, strict=True)
    lowest, highest = 0.0, 0.0
    for (name, trajectory), axes, style in panels:
        figures.plot_margins(trajectory, axes, color=style["color"], linewidth=1.6)
        axes.set_title(name, fontsize="medium")
        axes.get_legend().remove()
        lowest, highest = min(lowest, axes.get_ylim()[0]), max(highest, axes.get_ylim()[1])
        _tidy(axes)
    for axes in grid.flat[1:]:
        axes.set_ylabel("")
    grid.flat[0].set_ylim(lowest, highest)
    handles = _one_handle_each(grid.flat[0])
    figure.legend(handles.values(), handles.keys(), loc="upper center", ncols=3, frameon=False)
    return figure


def _grid(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """A figure without pyplot, which would keep it in memory, and its axes as an array."""
    from matplotlib.figure import Figure

    # Margins by hand: a layout engine would draw everything twice.
    figure = Figure(figsize=size)
    width, height = size
    figure.subplots_adjust(
        left=0.75 / width,
        right=1 - 0.12 / width,
        bottom=0.48 / height,
        top=1 - (0.55 if options else 0.4) / height,
        wspace=0.12 if options else 0.32,
        hspace=0.3,
    )
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, linewidth=0.6, alpha=0.35)
