"""The numbers of a sweep: what its `results.json` holds and what its tables show."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gflow._files import write_text
from gflow.report.columns import significant as _significant
from gflow.report.record import FILE_NAME, plain_json, read_content, versions
from gflow.sweeps.table import spread

SCHEMA = 1
KIND = "sweep"


@dataclass(frozen=True)
class SweepRecord:
    """A sweep, as numbers and words.

    Attributes:
        settings: the configuration's file, as plain values; infinity is written "inf".
        names: of the settings of a run.
        rows: of every run the settings, and the columns of `gflow.sweeps.table.COLUMNS`.
        data: the data set in a few words.
        interrupted: whether it was stopped from the keyboard.
        seconds: wall-clock time of this call.
        created: when it ended, UTC, ISO 8601.
    """

    settings: dict[str, Any]
    names: list[str]
    rows: list[dict[str, Any]]
    data: str
    interrupted: bool
    seconds: float
    created: str
    versions: dict[str, str] = field(default_factory=versions)
    schema: int = SCHEMA
    kind: str = KIND

    @property
    def num_arrived(self) -> int:
        """How many runs found their limit."""
        return sum(bool(row["arrived"]) for row in self.rows)


def is_seed(name: str) -> bool:
    """Whether a setting is a seed, over which a spread is taken: `seed`, `data.seed`."""
    return name.rpartition(".")[2] == "seed"


def varying(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """The settings that have more than one value."""
    return [name for name in names if len({str(row[name]) for row in rows}) > 1]


def over_seeds(record: SweepRecord) -> tuple[list[str], list[dict[str, Any]]]:
    """The settings that vary beside the seeds, and for each combination the margin over seeds."""
    names = [name for name in varying(record.rows, record.names) if not is_seed(name)]
    rows = [{**row, **{name: hashable(row[name]) for name in names}} for row in record.rows]
    return names, spread(rows, names, "margin")


def hashable(value: Any) -> Any:
    """A setting as what can be grouped by: lists, such as widths, as text."""
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def significant(value: float | None) -> str:
    """Four significant digits, or a dash."""
    return "-" if value is None or not math.isfinite(value) else _significant(value)


def write_record(record: SweepRecord, folder: Path) -> Path:
    """Writes `results.json` into `folder` and returns its path."""
    rows = [{name: _finite(value) for name, value in row.items()} for row in record.rows]
    content = plain_json({**asdict(record), "rows": rows})
    text = json.dumps(content, indent=2, allow_nan=False)
    return write_text(Path(folder) / FILE_NAME, text + "\n")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def read_record(folder: Path) -> SweepRecord | None:
    """The record of the sweep in `folder`; None where its results are those of another command.

    Raises:
        ValueError: there is no `results.json`, or none that this version can read.
    """
    content = read_content(folder)
    if not isinstance(content, dict) or content.get("kind") != KIND:
        return None
    if content.get("schema") != SCHEMA:
        path = Path(folder) / FILE_NAME
        raise ValueError(f"`{path}` is no record of a sweep of schema {SCHEMA}: another version's?")
    return SweepRecord(**content)
