"""The matrix of trained under x attacked by as one picture, for a paper or a README."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gflow._files import replacing
from gflow.report.columns import significant
from gflow.report.evaluation import Evaluation, largest, margins_shown
from gflow.report.spread import spreads

# Inches of a cell and around the cells.
_CELL, _LEFT, _BELOW, _ABOVE = (0.86, 0.34), 1.25, 0.35, 0.75
# The darkest shade, as a part of the colour map: black numbers stay readable on it.
_DARKEST = 0.45


class Matrix(NamedTuple):
    """One network's matrix.

    Attributes:
        margins: normalized margins, over seeds their mean. Shape (r, c).
        below: half of the range over seeds, and over how many, where not over all; None for one
            seed. Shape (r, c).
    """

    network: str
    rows: list[str]
    columns: list[str]
    margins: np.ndarray
    below: list[list[str]] | None


def matrices(evaluations: Sequence[Evaluation], settings: Mapping[str, Any]) -> list[Matrix]:
    """What is drawn: the margins at the limits, over seeds their mean and half of their range.

    Args:
        settings: of the job, as in `Results.settings`.
    """
    several = spreads(evaluations, settings)
    if not several:
        return [
            Matrix(one.network, one.rows, one.columns, margins_shown(one), None)
            for one in evaluations
        ]
    return [
        Matrix(one.network, one.rows, one.columns, one.shown().mean, one.below()) for one in several
    ]


def matrix_figure(evaluations: Sequence[Evaluation], settings: Mapping[str, Any]) -> Any:
    """Trained under (rows) x attacked by (columns): a panel for each network, numbers in cells.

    The shade of a cell is its place between the smallest and the largest margin of its column, dark
    for large; the largest is printed bold. So it is read in grey too.

    Raises:
        ValueError: there is no evaluation, or no margin in any.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from gflow.report.style import LAYOUT

    drawn = matrices(evaluations, settings)
    if not drawn:
        raise ValueError("no network of this job has been attacked: there is no matrix to draw.")
    if not any(np.isfinite(one.margins).any() for one in drawn):
        raise ValueError(
            "no run came to its limit or to the loss that was asked for: there is no margin to "
            "draw."
        )
    height = [len(one.rows) * _CELL[1] * (1 if one.below is None else 1.5) for one in drawn]
    width = _LEFT + max(len(one.columns) for one in drawn) * _CELL[0]
    layout: Any = LAYOUT | {"figure.constrained_layout.use": True}
    with rc_context(layout):
        figure = Figure(figsize=(width, sum(height) + len(drawn) * _BELOW + _ABOVE))
        axes = figure.subplots(len(drawn), 1, squeeze=False, height_ratios=height)
        for number, (one, place) in enumerate(zip(drawn, axes.flat, strict=True)):
            _draw(place, one, named=number == 0)
        figure.supylabel("trained under", fontsize=9.5)
    return figure


def _draw(axes: Any, matrix: Matrix, *, named: bool) -> None:
    values, marks = matrix.margins, largest(matrix.margins)
    axes.imshow(_shades(values), cmap="Blues", vmin=0.0, vmax=1 / _DARKEST, aspect="auto")
    for row, column in np.argwhere(np.isfinite(values)):
        text = significant(float(values[row, column]))
        if matrix.below is not None:
            text += f"\n{matrix.below[row][column]}"
        weight = "bold" if marks[row, column] else "normal"
        axes.text(column, row, text, ha="center", va="center", color="black", weight=weight, size=9)
    columns = [name.replace("strong ", "strong\n") for name in matrix.columns]
    axes.set_xticks(range(len(columns)), columns if named else [""] * len(columns))
    axes.set_yticks(range(len(matrix.rows)), matrix.rows)
    axes.tick_params(length=0, labelsize=9, top=named, bottom=False, labeltop=named)
    axes.tick_params(labelbottom=False)
    axes.set_title(matrix.network, loc="left", weight="bold", pad=6)
    if named:
        axes.set_xlabel("attacked by", labelpad=6)
        axes.xaxis.set_label_position("top")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _shades(values: np.ndarray) -> np.ndarray:
    """0 for the smallest of a column and 1 for the largest; 0.5 where all are equal."""
    with np.errstate(invalid="ignore"):
        least, most = (pick(values, axis=0) for pick in (np.fmin.reduce, np.fmax.reduce))
    span = most - least
    return np.where(span > 0, (values - least) / np.where(span > 0, span, 1.0), 0.5)


def save_picture(
    evaluations: Sequence[Evaluation], settings: Mapping[str, Any], path: Path
) -> Path:
    """Writes `matrix_figure` to `path`, whole or not at all: PNG, SVG or PDF, as it ends.

    Raises:
        ValueError: there is nothing to draw, or matplotlib does not know that ending.
        OSError: the file cannot be written.
    """
    import io

    buffer, kind = io.BytesIO(), path.suffix.removeprefix(".") or "png"
    matrix_figure(evaluations, settings).savefig(buffer, format=kind, dpi=150)
    with replacing(path) as handle:
        handle.write(buffer.getvalue())
    return path
