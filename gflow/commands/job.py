"""A job in progress, and its results as they stand on the disk."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from gflow.commands.crew import Programs
from gflow.commands.folder import write
from gflow.commands.telling import describe_source
from gflow.configuration import Configuration


@dataclass(frozen=True)
class Options:
    """How a job is run.

    Attributes:
        small: in the small form.
        programs: whether compiled programs are kept, and where.
        report: whether to write report.html.
        workers: runs at once.
        overwrite: whether the folder may hold results already.
        resumed: whether to go on with the job whose folder it is.
    """

    small: bool = False
    programs: Programs = field(default_factory=Programs)
    report: bool = True
    workers: int = 1
    overwrite: bool = True
    resumed: bool = False


@dataclass
class Job:
    """A job in progress: what was asked for, and what there is so far."""

    configuration: Configuration
    folder: Path
    console: Console
    options: Options
    cases: list[Any]
    held_out: Any
    started: float
    interrupted: bool = False
    records: dict[int, Any] = field(default_factory=dict)
    evaluations: dict[str, Any] = field(default_factory=dict)

    @property
    def networks(self) -> list[str]:
        """The networks' names, in order."""
        return list(dict.fromkeys(case.network for case in self.cases))


def write_results_of(job: Job, safe: str, results: Any = None) -> Path:
    """Writes `results.json`, of these results or of those at present; `safe` says what is not lost
    where that fails.
    """
    from gflow.report.record import write_results

    return write(safe, write_results, results or results_of(job), job.folder)


def what_is_safe(job: Job) -> str:
    """What a reader still has, where nothing more can be written."""
    kept = f"{len(job.records)} of {len(job.cases)} runs are safe in `{job.folder}`"
    return (
        f"What was written before is whole: {kept}. Make room, and go on with "
        f"`gflow run --resume {job.folder}`, or draw their report with `gflow report {job.folder}`."
    )


def results_of(job: Job) -> Any:
    """The `gflow.report.Results` of what is finished."""
    from gflow.report.record import Results, versions

    dataset = job.cases[0].problem.dataset
    return Results(
        settings=job.configuration.model_dump(mode="json"),
        dataset={
            "name": describe_source(job.configuration.data),
            "examples": dataset.x.shape[0],
            "held_out": 0 if job.held_out is None else len(job.held_out),
            "inputs": dataset.x.shape[1],
            "classes": max(dataset.num_classes, 2),
        },
        planned=len(job.cases),
        interrupted=job.interrupted,
        seconds=time.perf_counter() - job.started,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        runs=[job.records[number] for number in sorted(job.records)],
        small=job.options.small,
        versions=versions(),
    )
