"""The numbers of a job: what `results.json` holds and what tables show."""

import json
import math
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from gflow._files import write_text
from gflow.report.quantities import final_alignment

SCHEMA = 1
FILE_NAME = "results.json"
_PACKAGES = ("gflow", "jax", "jaxlib", "diffrax", "equinox", "optax", "numpy", "scipy")


@dataclass(frozen=True)
class Record:
    """One run of a job, as numbers.

    Attributes:
        network, perturbation: their names in the configuration.
        result: the sentence that says how the run ended.
        succeeded: whether it reached what it was asked for.
        figures: the numbers of `COLUMNS` and more, at the end of the run. Of a run that did not
            succeed only `log_loss`, `log_kappa`, `log1p_time` and `steps`: how far it came.
        seconds: wall-clock time, compilation included.
        trajectory: file name of the saved trajectory, relative to the results.
    """

    network: str
    perturbation: str
    result: str
    succeeded: bool
    figures: dict[str, float | None]
    seconds: float
    trajectory: str | None = None


@dataclass(frozen=True)
class Results:
    """A job: settings, environment, and a record for each run.

    Attributes:
        settings: the configuration as plain values; infinity is written "inf".
        dataset: what was found in the data: examples, inputs, classes.
        planned: how many runs the job has; there are fewer records where it was interrupted.
        interrupted: whether it was stopped from the keyboard.
        seconds: wall-clock time of the whole job.
        created: when it ended, UTC, ISO 8601.
    """

    settings: dict[str, Any]
    dataset: dict[str, Any]
    planned: int
    interrupted: bool
    seconds: float
    created: str
    runs: list[Record]
    versions: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA


@dataclass(frozen=True)
class Column:
    """A column of the table of results.

    Attributes:
        key: its number's name in `Record.figures`.
        title: its heading; a line break says where a narrow table may break it.
        meaning: the number, in words.
        write: the number as text.
    """

    key: str
    title: str
    meaning: str
    write: Callable[[float], str]


def _significant(value: float) -> str:
    return f"{value:.3g}"


def _scientific(value: float) -> str:
    return f"{value:.1e}"


COLUMNS = (
    Column(
        "margin",
        "margin",
        "normalized margin of the clean examples, min_i y_i f(x_i; u), at u = params/|params|",
        _significant,
    ),
    Column(
        "adversarial_margin",
        "adv.\nmargin",
        "the same for the perturbed examples, min_i y_i f(x_i + delta_i; u): what adversarial "
        "training maximises in the limit",
        _significant,
    ),
    Column(
        "smoothed_margin",
        "smoothed\nmargin",
        "l^{-1}(Loss)/|params|^L, a lower bound of the adversarial margin that meets it as the "
        "loss goes to 0",
        _significant,
    ),
    Column(
        "log_loss",
        "log-loss",
        "natural logarithm of the adversarial loss reached, a sum over the examples",
        lambda value: f"{value:.2f}",
    ),
    Column(
        "stationarity",
        "stationarity",
        "sine of the angle between u and the negative gradient of the loss: 0 at a KKT point of "
        "the max-margin problem",
        _scientific,
    ),
    Column(
        "alignment",
        "alignment",
        "smallest |<v_{k+1}, u_k>| of adjacent layers' leading singular vectors: 1 is aligned, as "
        "theory predicts for deep linear networks",
        _significant,
    ),
    Column("steps", "steps", "steps that the solver tried", lambda value: f"{value:.0f}"),
)

# Of a failed run no number is told that could be taken for a result.
_PROGRESS = ("log_loss", "log_kappa", "log1p_time", "steps")


def record(
    trajectory: Any, *, network: str, perturbation: str, seconds: float, file: str | None = None
) -> Record:
    """The numbers at the end of `trajectory`."""
    succeeded = bool(trajectory.successful)
    figures = _figures(trajectory)
    kept = figures if succeeded else {name: figures[name] for name in _PROGRESS}
    return Record(
        network=network,
        perturbation=perturbation,
        result=trajectory.message,
        succeeded=succeeded,
        figures={name: _finite(value) for name, value in kept.items()},
        seconds=seconds,
        trajectory=file,
    )


def _figures(trajectory: Any) -> dict[str, float | None]:
    return {
        "margin": trajectory.clean_margin[-1],
        "adversarial_margin": trajectory.margin[-1],
        "smoothed_margin": trajectory.smoothed_margin[-1],
        "log_loss": trajectory.log_loss[-1],
        "log_kappa": trajectory.log_kappa[-1],
        "log1p_time": trajectory.log1p_time[-1],
        "stationarity": trajectory.stationarity[-1],
        "alignment": final_alignment(trajectory),
        "steps": trajectory.stats["num_steps"],
    }


def _finite(value: Any) -> float | None:
    """A plain number, or None: JSON has neither NaN nor infinity."""
    if value is None or not np.isfinite(value):
        return None
    return int(value) if isinstance(value, int | np.integer) else float(value)


def write_cell(run: Record, column: Column) -> str:
    """A number of a run as tables show it."""
    value = run.figures.get(column.key)
    return "-" if value is None else column.write(value)


def versions() -> dict[str, str]:
    """What the numbers were computed with."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_results(results: Results, folder: Path) -> Path:
    """Writes `results.json` into `folder` and returns its path."""
    path = Path(folder) / FILE_NAME
    text = json.dumps(_plain(asdict(results)), indent=2, allow_nan=False)
    return write_text(path, text + "\n")


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it: the order `inf` of a norm, and paths, as text."""
    match value:
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case bool() | int() | str() | None:
            return value
        case float():
            return value if math.isfinite(value) else str(value)
    return str(value)


def read_results(folder: Path) -> Results:
    """The results in `folder`.

    Raises:
        ValueError: there is no `results.json`, or it is none that this version can read.
    """
    path = Path(folder) / FILE_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"`{path}` cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ValueError(f"`{path}` is not valid JSON: {error}.") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError(f"`{path}` is no results file of schema {SCHEMA}: another version's?")
    content["runs"] = [Record(**run) for run in content["runs"]]
    return Results(**content)
