"""What a comparison of runs with the flow found: a tidy table, in words and as a figure."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from gflow._description import plain
from gflow._files import checked_path, replacing

EQUAL = {"time": "log1p_time", "loss": "log_loss", "norm": "log_kappa"}
"""What is made equal, and the column of a trajectory that holds it."""

FLOW, CORRECTED = "flow", "backward-error flow"

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vP*"


@dataclass(frozen=True)
class Comparison:
    """What `gflow.compare` found, as a tidy table: one row a run, reference, quantity and value.

    Attributes:
        rows: dictionaries with the keys

                run                 number of the run, from 0
                label               its label
                step_size           its step size, see `gflow.compare`
                reference           "flow", or "backward-error flow" of the run's own step size
                equal               "time", "loss" or "norm"
                value               log(1 + t), log Loss or log kappa at which both are read
                params_distance     |theta_run - theta_ref| / |theta_ref|
                direction_distance  | theta_run/|theta_run| - theta_ref/|theta_ref| |
                margin              normalized margin of the run, min_i q_i(u)
                reference_margin    that of the reference
    """

    rows: tuple[Mapping[str, Any], ...]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __repr__(self) -> str:
        runs = len({row["run"] for row in self.rows})
        lines = [
            f"Comparison({runs} runs with the flow, {len(self)} rows); at the last common value"
        ]
        last = self.last()
        names = [
            row["label"] if row["reference"] == FLOW else f"{row['label']} (corrected)"
            for row in last
        ]
        # The names stand whole: their column is as wide as the longest, and 24 at least.
        width = max([24, *(len(name) + 1 for name in names)])
        lines.append(
            f"  {'run':{width}}{'step size':>11}{'equal':>7}{'|params|':>11}{'direction':>11}"
            f"{'margin':>11}{'reference':>11}"
        )
        for name, row in zip(names, last, strict=True):
            lines.append(
                f"  {name:{width}}{row['step_size']:11.2e}{row['equal']:>7}"
                f"{row['params_distance']:11.2e}{row['direction_distance']:11.2e}"
                f"{row['margin']:11.3e}{row['reference_margin']:11.3e}"
            )
        return "\n".join(lines)

    def last(self) -> list[Mapping[str, Any]]:
        """The rows at the last common value of each run, reference and quantity."""
        # Later rows of one kind replace earlier ones.
        kinds = {(row["run"], row["reference"], row["equal"]): row for row in self.rows}
        return list(kinds.values())

    def to_pandas(self) -> Any:
        """The table as a `pandas.DataFrame`. Needs the extra `table`.

        Raises:
            ImportError: pandas is missing.
        """
        try:
            pandas: Any = import_module("pandas")
        except ImportError:
            raise ImportError(
                "`comparison.to_pandas()` needs pandas: `pip install 'gflow[table]'`. "
                "`comparison.rows` holds the same as dictionaries."
            ) from None
        return pandas.DataFrame([dict(row) for row in self.rows])

    def to_dict(self) -> dict[str, Any]:
        """The rows as plain Python values, which are JSON."""
        return {"rows": [plain(dict(row)) for row in self.rows]}

    def plot(self, path: str | os.PathLike | None = None) -> Any:
        """The distance of the directions over the step size, at the last common values.

        One panel each for equal time, loss and norm; one line a label, dashed to the backward-error
        flow. Needs the extra `plot`.

        Args:
            path: a PNG file that is written as well.

        Returns:
            The figure of matplotlib.

        Raises:
            ImportError: matplotlib is missing.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError("`comparison.plot()` needs `pip install 'gflow[plot]'`.") from None
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        for axes, equal in zip(panels, EQUAL, strict=True):
            _draw(axes, [row for row in self.last() if row["equal"] == equal], equal)
        panels[0].set_ylabel("distance of directions")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside right center")
        if path is not None:
            with replacing(checked_path(path, ".png", "comparison.plot({!r})")) as handle:
                figure.savefig(handle, format="png", dpi=150)
        return figure


def _draw(axes: Any, rows: list[Mapping[str, Any]], equal: str) -> None:
    for place, label in enumerate(dict.fromkeys(row["label"] for row in rows)):
        style = {"color": _COLOURS[place % 7], "marker": _MARKERS[place % 7], "markersize": 4}
        for reference, line in ((FLOW, "-"), (CORRECTED, "--")):
            chosen = [r for r in rows if (r["label"], r["reference"]) == (label, reference)]
            chosen = sorted(chosen, key=lambda row: row["step_size"])
            if not chosen:
                continue
            sizes = [row["step_size"] for row in chosen]
            distances = [row["direction_distance"] for row in chosen]
            name = label if reference == FLOW else f"{label}, from its backward-error flow"
            axes.plot(sizes, distances, line, linewidth=1.2, label=name, **style)
    axes.set(xscale="log", yscale="log", xlabel="step size", title=f"at equal {equal}")
    axes.grid(color="0.92", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
