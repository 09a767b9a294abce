"""The numbers of a job, and the file `results.json` that holds them."""

import json
import math
import platform
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from gflow._files import write_text
from gflow.report.quantities import final_alignment

SCHEMA = 2
FILE_NAME = "results.json"
_PACKAGES = ("gflow", "jax", "jaxlib", "diffrax", "equinox", "optax", "numpy", "scipy")


@dataclass(frozen=True)
class Record:
    """One run of a job, as numbers and words.

    Attributes:
        network, perturbation: their names in the configuration.
        result: the sentence that says how the run ended.
        succeeded: whether it reached what it was asked for: its limit, where that was sought.
        figures: the numbers of `FLOW_COLUMNS` and `LIMIT_COLUMNS` and more. Of a run that did not
            succeed only `log_loss`, `log_kappa`, `log1p_time` and `steps`: how far it came.
        seconds: wall-clock time, compilation included.
        outcome: the name of the result in `gflow.RESULTS`.
        words: of a run that succeeded, the `verdict` of its limit and its `basin`.
        trajectory, end: file names of the saved trajectory and of its `gflow.report.end.End`,
            relative to the results.
    """

    network: str
    perturbation: str
    result: str
    succeeded: bool
    figures: dict[str, float | None]
    seconds: float
    outcome: str = ""
    words: dict[str, str] = field(default_factory=dict)
    trajectory: str | None = None
    end: str | None = None


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
        small: whether it was run in its small form.
    """

    settings: dict[str, Any]
    dataset: dict[str, Any]
    planned: int
    interrupted: bool
    seconds: float
    created: str
    runs: list[Record]
    small: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA


def descends(results: Results) -> bool:
    """Whether the runs of this job train by steps besides."""
    return bool(results.settings.get("descent", {}).get("enabled"))


def seeks_limits(results: Results) -> bool:
    """Whether the runs of this job go to their limits."""
    return bool(results.settings.get("limit", {}).get("enabled"))


# Of a failed run no number is told that could be taken for a result.
_PROGRESS = ("log_loss", "log_kappa", "log1p_time", "steps")


def record(
    trajectory: Any,
    *,
    network: str,
    perturbation: str,
    seconds: float,
    limit: Any = None,
    descent: Any = None,
    file: str | None = None,
    end: str | None = None,
) -> Record:
    """The numbers at the end of `trajectory`, at its `gflow.Limit` where one was sought, and at the
    end of `descent`, the training by steps beside it.
    """
    outcome = trajectory if limit is None else limit
    if descent is not None and descent.result_name == "interrupted":
        outcome = descent
    succeeded = bool(outcome.successful)
    figures = _figures(trajectory) | ({} if limit is None else _limit_figures(trajectory, limit))
    if descent is not None and descent.successful:
        figures |= _descent_figures(trajectory, limit, descent)
    kept = figures if succeeded else {name: figures[name] for name in _PROGRESS}
    words = {"verdict": limit.verdict, "basin": limit.basin} if limit and succeeded else {}
    return Record(
        network=network,
        perturbation=perturbation,
        result=outcome.message,
        succeeded=succeeded,
        figures={name: _finite(value) for name, value in kept.items()},
        seconds=seconds,
        outcome=outcome.result_name,
        words=words,
        trajectory=file,
        end=end,
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


def _limit_figures(trajectory: Any, limit: Any) -> dict[str, float | None]:
    """`trajectory` is the flow to where it was told to stop; the limit's own goes on from there."""
    vector = np.asarray(trajectory.layout.flatten(limit.direction))
    last = limit.trajectory
    return {
        "limit_margin": limit.margin,
        "held_margin": limit.held_margin,
        "limit_stationarity": limit.certificate.stationarity,
        "total_stationarity": limit.certificate.total_stationarity,
        "strong_margin": limit.certificate.strong_margin,
        "limit_clean_margin": limit.certificate.clean_margin,
        "num_support": limit.certificate.num_support,
        "distance": float(np.linalg.norm(trajectory.vectors[-1] - vector)),
        "distance_at_cap": float(np.linalg.norm(last.vectors[-1] - vector)),
        "log_loss_at_cap": last.log_loss[-1],
        "log1p_time_at_cap": last.log1p_time[-1],
        "handover_stationarity": limit.handover_stationarity,
        "newton_displacement": limit.newton_displacement,
        "saddles_met": limit.saddles_met,
        "steps": trajectory.stats["num_steps"] + limit.num_flow_steps,
    }


def _descent_figures(trajectory: Any, limit: Any, descent: Any) -> dict[str, float | None]:
    goal = trajectory.vectors[-1]
    if limit is not None:
        goal = np.asarray(trajectory.layout.flatten(limit.direction))
    return {
        "descent_log_loss": descent.log_loss[-1],
        "descent_margin": descent.margin[-1],
        "descent_distance": float(np.linalg.norm(descent.vectors[-1] - goal)),
        "descent_steps": descent.stats["num_steps"],
    }


def _finite(value: Any) -> float | None:
    """A plain number, or None: JSON has neither NaN nor infinity."""
    if value is None or not np.isfinite(value):
        return None
    return int(value) if isinstance(value, int | np.integer) else float(value)


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
    text = json.dumps(plain_json(asdict(results)), indent=2, allow_nan=False)
    return write_text(path, text + "\n")


def plain_json(value: Any) -> Any:
    """`value` as JSON can hold it: the order `inf` of a norm, and paths, as text."""
    match value:
        case dict():
            return {str(key): plain_json(item) for key, item in value.items()}
        case list() | tuple():
            return [plain_json(item) for item in value]
        case bool() | int() | str() | None:
            return value
        case float():
            return value if math.isfinite(value) else str(value)
    return str(value)


def read_content(folder: Path) -> Any:
    """What `results.json` in `folder` holds, of whatever command.

    Raises:
        ValueError: there is none, or it is not JSON.
    """
    path = Path(folder) / FILE_NAME
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"`{path}` cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ValueError(f"`{path}` is not valid JSON: {error}.") from error


def read_results(folder: Path) -> Results:
    """The results in `folder`.

    Raises:
        ValueError: there is no `results.json`, or it is none that this version can read.
    """
    content = read_content(folder)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        path = Path(folder) / FILE_NAME
        raise ValueError(f"`{path}` is no results file of schema {SCHEMA}: another version's?")
    content["runs"] = [Record(**run) for run in content["runs"]]
    return Results(**content)
