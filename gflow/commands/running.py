"""`gflow run`: every case in turn, into a folder of results that outlives Ctrl-C."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from gflow import configuration as tables
from gflow._files import write_text
from gflow.commands.explaining import example_toml
from gflow.commands.folder import WriteFailed, claimed, write
from gflow.commands.quick import NUM_EXAMPLES, quick
from gflow.commands.reading import UserError
from gflow.configuration import Configuration

ALL_REACHED = 0
NOT_ALL_REACHED = 1
INTERRUPTED = 130


@dataclass
class Job:
    """A job in progress: what was asked for, and what there is so far."""

    configuration: Configuration
    folder: Path
    console: Console
    cases: list[Any]
    started: float
    workers: int = 1
    interrupted: threading.Event = field(default_factory=threading.Event)
    records: dict[tuple[str, str], Any] = field(default_factory=dict)
    trajectories: dict[tuple[str, str], Any] = field(default_factory=dict)


def run_job(
    configuration: Configuration,
    folder: Path,
    console: Console,
    *,
    small: bool = False,
    cache: Path | None = None,
    keep_programs: bool = True,
    report: bool = True,
    workers: int = 1,
    overwrite: bool = True,
) -> int:
    """Runs every case, prints the table, writes the folder; the exit code of the command.

    0: every run reached what was asked for; 1: some did not; 130: interrupted.

    Raises:
        UserError: data, networks and perturbations do not fit, or the folder is another run's;
            nothing was integrated.
        WriteFailed: the folder cannot be written to any more.
    """
    with claimed(folder, overwrite=overwrite):
        programs = _Programs(cache, keep_programs)
        return _run(configuration, folder, console, small, programs, report, workers)


def _run(
    configuration: Configuration,
    folder: Path,
    console: Console,
    small: bool,
    programs: "_Programs",
    report: bool,
    workers: int,
) -> int:
    started = time.perf_counter()
    configuration = quick(configuration) if small else configuration
    # Before JAX is imported, which takes its time.
    console.print(_announcement(configuration, folder), highlight=False, markup=False)
    with console.status("Loading JAX, data and networks"):
        _set_up_jax(programs)
        from gflow.commands.building import build_cases

        cases = build_cases(configuration, num_examples=NUM_EXAMPLES if small else None)
    job = Job(configuration, folder, console, cases, started, workers)
    _prepare_folder(job)
    _integrate_all(job)
    return _conclude(job, report)


def _announcement(configuration: Configuration, folder: Path) -> str:
    networks, attacks = len(configuration.network), len(configuration.perturbation)
    return (
        f"gflow: {describe_source(configuration.data)}; {networks} network(s) x {attacks} "
        f"perturbation(s) = {networks * attacks} run(s), into {folder}"
    )


def describe_source(table: tables.Data) -> str:
    """The data set in a few words."""
    match table:
        case tables.Digits():
            return f"handwritten digits {table.positive} against {table.negative}"
        case tables.Mnist():
            return f"MNIST digits {table.positive} against {table.negative}"
        case tables.Npz() | tables.Csv():
            return table.path.name
    return table.kind.replace("_", " ") + " data"


def _prepare_folder(job: Job) -> None:
    """The folder as that of this job, without runs: earlier results must not pass for its own."""
    safe = "Nothing was integrated."
    write(safe, (job.folder / "trajectories").mkdir, exist_ok=True)
    write(safe, write_text, job.folder / "config.toml", example_toml(job.configuration))
    _write_results(job, _results(job), safe)


def _write_results(job: Job, results: Any, safe: str) -> Path:
    from gflow.report.record import write_results

    return write(safe, write_results, results, job.folder)


def _safe(job: Job) -> str:
    """What a reader still has, where nothing more can be written."""
    kept = f"{len(job.records)} of {len(job.cases)} runs are safe in `{job.folder}`"
    return (
        f"What was written before is whole: {kept}. Make room, and then draw their report with "
        f"`gflow report {job.folder}`, or repeat the job with --overwrite."
    )


class _Programs(NamedTuple):
    """Whether compiled programs are kept on disk, and where: None for the user's cache folder."""

    folder: Path | None
    kept: bool


def _set_up_jax(programs: _Programs) -> None:
    import jax

    from gflow.compilation_cache import use_compilation_cache

    jax.config.update("jax_enable_x64", True)
    if programs.kept:
        if programs.folder is not None:  # which is asked for more plainly than any other
            jax.config.update("jax_compilation_cache_dir", None)
        try:
            use_compilation_cache(programs.folder)
        except OSError as error:
            if programs.folder is not None:
                raise UserError(f"`--cache {programs.folder}`: {error}.") from error


def _integrate_all(job: Job) -> None:
    """Integrates all cases, several at once: while one is compiled another is integrated."""
    from gflow.commands.display import Display

    with Display(job.console) as display, ThreadPoolExecutor(job.workers) as pool:
        runs = [
            pool.submit(_integrate_one, job, index, case, display)
            for index, case in enumerate(job.cases)
        ]
        try:
            for run in as_completed(runs):
                _keep(job, run)
        except (KeyboardInterrupt, WriteFailed) as stop:
            job.interrupted.set()
            for run in runs:
                run.cancel()
            if isinstance(stop, WriteFailed):
                raise
            job.console.print("Interrupted: waiting for the runs in progress to stop.")
    for run in runs:
        _keep(job, run)


def _integrate_one(job: Job, index: int, case: Any, display: Any) -> tuple[Any, Any] | None:
    """A record and its trajectory; None where the job was interrupted before."""
    from gflow.report.record import record

    if job.interrupted.is_set():
        return None
    begun = time.perf_counter()
    label = f"[{index + 1}/{len(job.cases)}] {case.network}, {case.perturbation}"
    with display.run(label) as shown:
        trajectory = _integrate(job.configuration, case, _stoppable(job, shown))
        file = f"trajectories/{index + 1:02d}.npz"
        write(_safe(job), trajectory.save, job.folder / file)
        found = record(
            trajectory,
            network=case.network,
            perturbation=case.perturbation,
            seconds=time.perf_counter() - begun,
            file=file,
        )
        shown.finish(found)
    return found, trajectory


def _stoppable(job: Job, shown: Any) -> Callable[[dict[str, float]], None]:
    """A progress report that stops its run once the job is interrupted."""
    show = shown.progress(job.configuration.until.model_dump(exclude_none=True))

    def report(status: dict[str, float]) -> None:
        if job.interrupted.is_set():
            # Only the main thread hears of Ctrl-C; `integrate` takes this as if it had.
            raise KeyboardInterrupt
        show(status)

    return report


def _integrate(configuration: Configuration, case: Any, report: Callable) -> Any:
    import diffrax

    from gflow.flow import Until, integrate

    options = configuration.solver
    # diffrax writes the same names with a capital.
    solver = getattr(diffrax, options.name.capitalize())()
    return integrate(
        case.problem,
        case.params,
        until=Until(**configuration.until.model_dump()),
        solver=solver,
        tolerance=options.tolerance,
        max_steps=options.max_steps,
        save=options.save,
        progress=report,
        throw=False,
    )


def _keep(job: Job, run: Future) -> None:
    """Adds a finished run to the job, and to the results on disk, once."""
    if run.cancelled() or isinstance(run.exception(), KeyboardInterrupt) or run.result() is None:
        job.interrupted.set()
        return
    found, trajectory = run.result()
    if trajectory.result_name == "interrupted":
        job.interrupted.set()
    place = found.network, found.perturbation
    if place not in job.trajectories:
        safe = _safe(job)
        job.trajectories[place] = trajectory
        job.records[place] = found
        # After every run, so that a machine that goes down leaves what was computed.
        _write_results(job, _results(job), safe)


def _results(job: Job) -> Any:
    from gflow.report.record import Results, versions

    dataset = job.cases[0].problem.dataset
    return Results(
        settings=job.configuration.model_dump(mode="json"),
        dataset={
            "name": describe_source(job.configuration.data),
            "examples": dataset.x.shape[0],
            "inputs": dataset.x.shape[1],
            "classes": max(dataset.num_classes, 2),
        },
        planned=len(job.cases),
        interrupted=job.interrupted.is_set(),
        seconds=time.perf_counter() - job.started,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        runs=_in_order(job),
        versions=versions(),
    )


def _in_order(job: Job) -> list[Any]:
    places = [(case.network, case.perturbation) for case in job.cases]
    return [job.records[place] for place in places if place in job.records]


def _conclude(job: Job, report: bool) -> int:
    from gflow.commands.display import print_table

    results = _results(job)
    paths = [_write_results(job, results, _safe(job))]
    if report and job.records:
        from gflow.report.page import write_page

        with job.console.status("Drawing figures"):
            text = example_toml(job.configuration)
            drawn = (results, job.trajectories, job.folder)
            paths += [write(_safe(job), write_page, *drawn, configuration=text)]
    print_table(job.console, results)
    return _closing(job, results, paths)


def _closing(job: Job, results: Any, paths: list[Path]) -> int:
    reached = sum(run.succeeded for run in results.runs)
    job.console.print(
        f"{reached} of {results.planned} runs reached what was asked for, in "
        f"{time.perf_counter() - job.started:.0f} s. Written: {', '.join(map(str, paths))}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if job.interrupted.is_set():
        job.console.print("Interrupted: the report holds what was computed until then.")
        return INTERRUPTED
    return ALL_REACHED if reached == results.planned else NOT_ALL_REACHED
