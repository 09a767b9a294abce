"""Settings as rows, and rows with numbers as a table: what a sweep is asked for and what it tells.

A row is one run's settings by name. A cell is what a table shows of a setting: a number, a truth
value or a text; of anything else, such as a loss, how it is written.
"""

import csv
import io
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gflow._checks import is_list
from gflow._fingerprint import without_addresses

Row = Mapping[str, Any]

COLUMNS = (
    "outcome",
    "arrived",
    "margin",
    "held_margin",
    "clean_margin",
    "strong_margin",
    "verdict",
    "basin",
    "stationarity",
    "total_stationarity",
    "num_support",
    "saddles_met",
    "steps",
    "seconds",
    "message",
)
"""What the table of a sweep tells of every run, behind its settings."""


def rows_of(settings: Any) -> tuple[dict[str, Any], ...]:
    """The settings of every run: the product of a mapping of lists, or a sequence of mappings.

    Raises:
        TypeError: it is neither, a name is no text, or what a name maps to is no list.
        ValueError: there are no runs, or a name is one of `COLUMNS`.
    """
    if isinstance(settings, Mapping):
        lists = [_listed(name, values) for name, values in settings.items()]
        found = [dict(zip(settings, row, strict=True)) for row in itertools.product(*lists)]
    elif is_list(settings):
        found = [_checked(row) for row in settings]
    else:
        raise TypeError(
            f"`sweep(make, {settings!r})`: give a mapping of lists, such as `{{'radius': [0.1, "
            "0.2], 'seed': range(8)}`, or a sequence of mappings, one for each run."
        )
    names = dict.fromkeys(name for row in found for name in row)
    _check_names(names)
    if not found or not names:
        raise ValueError("`sweep(make, settings)`: the settings ask for no run: a list is empty.")
    return tuple({name: _python(value) for name, value in row.items()} for row in found)


def _listed(name: Any, values: Any) -> list[Any]:
    if not is_list(values):
        raise TypeError(
            f"`sweep(make, {{{name!r}: {values!r}}})`: give a list of values; for a single one a "
            f"list of one, `{{{name!r}: [{values!r}]}}`."
        )
    return list(values)


def _checked(row: Any) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise TypeError(
            f"`sweep(make, [..., {row!r}])`: each row is a mapping from names to values, such as "
            "`{'radius': 0.1, 'seed': 0}`."
        )
    return dict(row)


def _check_names(names: Iterable[Any]) -> None:
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"`sweep(make, settings)`: the name {name!r} is no text.")
        if name in COLUMNS:
            raise ValueError(
                f"`sweep(make, settings)`: `{name}` is a column of the table of results. Give the "
                "setting another name."
            )


def _python(value: Any) -> Any:
    """Numbers of NumPy and JAX as Python's own, so that a row is the same however it was made."""
    if isinstance(value, np.generic):
        return value.item()
    plain = isinstance(value, np.ndarray | jax.Array) and value.ndim == 0
    if plain and np.issubdtype(value.dtype, np.generic):
        return value.item()
    return value


def cell(value: Any) -> bool | int | float | str | None:
    """What a table shows of a setting."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    name = getattr(value, "__name__", None)
    return name if isinstance(name, str) else without_addresses(repr(value))


def written(rows: Sequence[Row]) -> str:
    """Rows of cells as CSV; a cell that is None, or not a number, is empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(names)
    for row in rows:
        table.writerow([_shown(row.get(name)) for name in names])
    return text.getvalue()


def _shown(value: Any) -> Any:
    empty = value is None or (isinstance(value, float) and math.isnan(value))
    # Every digit: a number that is read back is the same.
    return "" if empty else repr(value) if isinstance(value, float) else value


class Spread(list[dict[str, Any]]):
    """Rows with the same columns; printed, a table with six digits."""

    def __str__(self) -> str:
        cells = [
            list(self[0]) if self else [],
            *([_short(v) for v in row.values()] for row in self),
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = (map(str.rjust, line, widths) for line in cells)
        return "\n".join("  ".join(line) for line in lines)


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def spread(rows: Sequence[Row], by: Sequence[str], of: str) -> Spread:
    """For each group of rows of equal `by`, in order of appearance: what `of` is over the group.

    Numbers that are missing or not finite do not count.
    """
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in by), []).append(row.get(of))
    return Spread(
        dict(zip(by, key, strict=True)) | {"runs": len(values)} | _summary(values)
        for key, values in groups.items()
    )


def _summary(values: Sequence[Any]) -> dict[str, float | int]:
    found = [float(value) for value in values if value is not None and math.isfinite(value)]
    nothing = math.nan
    return {
        "arrived": len(found),
        "mean": statistics.fmean(found) if found else nothing,
        "min": min(found, default=nothing),
        "max": max(found, default=nothing),
        "std": statistics.stdev(found) if len(found) > 1 else nothing,
    }
