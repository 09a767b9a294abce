"""`gflow run`: every run to its limit, into a folder of results that outlives Ctrl-C and a kill."""

import contextlib
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from gflow import configuration as tables
from gflow._files import write_text
from gflow.commands import working
from gflow.commands.crew import Crew, Programs, set_up_jax
from gflow.commands.explaining import example_toml
from gflow.commands.folder import CONFIG_NAME, WriteFailed, claimed, write
from gflow.commands.quick import NUM_EXAMPLES, quick
from gflow.commands.reading import UserError
from gflow.configuration import Configuration

ALL_REACHED = 0
NOT_ALL_REACHED = 1
INTERRUPTED = 130

# Folders of a job, made anew for each.
_FOLDERS = dict.fromkeys(("trajectories", "ends", "evaluations"), "*.npz")
_DESCENTS = {"descents": "*.npz"}

# With so many seeds compiling fast is cheaper than running fast (`gflow._compiling.for_one_limit`).
_FEW_SEEDS = 3


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


def run_job(configuration: Configuration, folder: Path, console: Console, options: Options) -> int:
    """Runs every case, prints the tables, writes the folder; the exit code of the command.

    0: every run reached what was asked for; 1: some did not; 130: interrupted.

    Raises:
        UserError: data, networks and perturbations do not fit, or the folder is another run's;
            nothing was integrated. Or a worker was ended from outside.
        WriteFailed: the folder cannot be written to any more.
    """
    with claimed(folder, overwrite=options.overwrite or options.resumed):
        started = time.perf_counter()
        configuration = quick(configuration) if options.small else configuration
        # Before JAX is imported, which takes its time.
        console.print(_announcement(configuration, folder), highlight=False, markup=False)
        listener = _Listener()
        size = min(options.workers, configuration.num_runs)
        with Crew(size, options.programs, listener.hear) as crew:
            if not console.is_terminal:  # where no status is shown
                console.print("Loading JAX, data and networks")
            with console.status("Loading JAX, data and networks"):
                set_up_jax(options.programs)
                from gflow.commands.building import build

                work = build(configuration, num_examples=NUM_EXAMPLES if options.small else None)
            job = Job(configuration, folder, console, options, *work, started)
            _tell_of_large_networks(job)
            _prepare_folder(job)
            _run_all(job, crew, listener)
            return _conclude(job)


def _announcement(configuration: Configuration, folder: Path) -> str:
    networks, attacks = len(configuration.network), len(configuration.attacks)
    seeds = len(configuration.seeds)
    times = f" x {seeds} seeds" if seeds > 1 else ""
    return (
        f"gflow: {describe_source(configuration.data)}; {networks} network(s) x {attacks} "
        f"perturbation(s){times} = {configuration.num_runs} run(s), into {folder}"
    )


def _tell_of_large_networks(job: Job) -> None:
    """A line for every network whose limit is not sought although the job asks for limits."""
    if not job.configuration.limit.enabled:
        return
    for case in {case.network: case for case in job.cases}.values():
        if working.too_many_weights(case):
            job.console.print(
                f"{case.network}: {working.num_weights(case)} weights are too many for a limit "
                "(see `gflow.find_limit`); its flow is followed alone.",
                highlight=False,
                markup=False,
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
    """The folder as that of this job: without the runs of another, which must not pass for its own,
    or with its own where it is gone on with.
    """
    safe = "Nothing was integrated."
    folders = _FOLDERS | (_DESCENTS if job.configuration.descent.enabled else {})
    for name, pattern in folders.items():
        write(safe, (job.folder / name).mkdir, exist_ok=True)
        if not job.options.resumed:
            for path in (job.folder / name).glob(pattern):
                write(safe, path.unlink)
    write(safe, write_text, job.folder / CONFIG_NAME, example_toml(job.configuration))
    if not job.options.resumed:
        _write_results(job, safe)


def _write_results(job: Job, safe: str) -> Path:
    from gflow.report.record import write_results

    return write(safe, write_results, _results(job), job.folder)


def _safe(job: Job) -> str:
    """What a reader still has, where nothing more can be written."""
    kept = f"{len(job.records)} of {len(job.cases)} runs are safe in `{job.folder}`"
    return (
        f"What was written before is whole: {kept}. Make room, and go on with "
        f"`gflow run --resume {job.folder}`, or draw their report with `gflow report {job.folder}`."
    )


class _Listener:
    """Hands what workers report to the display, once there is one."""

    def __init__(self):
        self.display: Any = None

    def hear(self, number: int, status: dict[str, Any]) -> None:
        if self.display is not None:
            self.display.update(number, status)


def _run_all(job: Job, crew: Crew, listener: _Listener) -> None:
    """All runs, several at once, and then each network's evaluation as soon as its runs ended."""
    from gflow.commands.display import Display

    labels = [
        f"[{i + 1}/{len(job.cases)}] {case.network}, {case.perturbation}"
        for i, case in enumerate(job.cases)
    ]
    labels += [f"{network}: trained under x attacked by" for network in job.networks]
    targets = job.configuration.until.model_dump(exclude_none=True)
    with Display(job.console, labels, targets) as display:
        listener.display = display
        schedule = _Schedule(job, crew, display)
        try:
            schedule.go()
        except KeyboardInterrupt:
            job.interrupted = True
            crew.stop()
            job.console.print("Interrupted: waiting for the runs in progress to stop.")
            schedule.drain()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker was ended from outside, perhaps for want of memory. "
                f"{len(job.records)} of {len(job.cases)} runs are safe in `{job.folder}`; go on "
                f"with `gflow run --resume {job.folder}`, or with fewer --jobs."
            ) from error
        finally:
            listener.display = None


class _Schedule:
    """Which tasks are in progress; runs have the numbers of their cases, evaluations follow."""

    def __init__(self, job: Job, crew: Crew, display: Any):
        self.job, self.crew, self.display = job, crew, display
        self.waiting = list(range(len(job.cases)))
        self.pending: dict[Future, int] = {}

    def go(self) -> None:
        """Does all tasks, as many at once as there are workers."""
        if self.job.options.resumed:
            self._take_finished()
        while self.waiting or self.pending:
            while self.waiting and len(self.pending) < self.crew.size:
                self._submit(self.waiting.pop(0))
            done, _ = wait(self.pending, return_when=FIRST_COMPLETED)
            for task in done:
                self._keep(self.pending.pop(task), task)
            if self.job.interrupted:
                # Within a run of this process Ctrl-C is the run's outcome, and not raised.
                raise KeyboardInterrupt

    def drain(self) -> None:
        """Keeps what the tasks in progress come to once they are told to stop."""
        for task, number in list(self.pending.items()):
            with contextlib.suppress(KeyboardInterrupt):
                self._keep(number, task)
        self.pending.clear()

    def _take_finished(self) -> None:
        """Runs that were finished before."""
        for number in list(self.waiting):
            found = working.finished(self._order(number))
            if found is not None:
                self.waiting.remove(number)
                self.display.finish(number, found, loaded=True)
                self._add(number, found)

    def _order(self, number: int) -> working.Order:
        job = self.job
        return working.Order(
            number, job.cases[number], job.folder, self._share(), job.options.resumed
        )

    def _share(self) -> float | None:
        """The seconds that a run has which begins now: of what is left, those of one of the rest.

        What a run does not need is shared by those after it.
        """
        whole = self.job.configuration.max_seconds
        if whole is None:
            return None
        left = max(whole - (time.perf_counter() - self.job.started), 1e-3)
        runs = sum(number < len(self.job.cases) for number in self.waiting) + 1
        return left * min(self.crew.size, runs) / runs

    def _submit(self, number: int) -> None:
        job = self.job
        self.display.begin(number)
        if number < len(job.cases):
            order = self._order(number)
            task = self.crew.submit(_carry_out, number, job.configuration, order)
        else:
            task = self.crew.submit(_evaluate, number, *_evaluation_of(job, number))
        self.pending[task] = number

    def _keep(self, number: int, task: Future) -> None:
        """Adds a finished task to the job, and to the results on disk."""
        self.display.end(number)
        try:
            found = write(_safe(self.job), task.result)
        except WriteFailed:
            self.crew.stop()
            raise
        if found is None:  # it had not begun
            self.job.interrupted = True
        elif number >= len(self.job.cases):
            self.job.evaluations[found.network] = found
        else:
            self.display.finish(number, found)
            self._add(number, found)

    def _add(self, number: int, found: Any) -> None:
        job, safe = self.job, _safe(self.job)
        job.records[number] = found
        job.interrupted |= found.outcome == "interrupted"
        # After every run, so that a machine that goes down leaves what was computed.
        _write_results(job, safe)
        network = job.cases[number].network
        own = {i for i, case in enumerate(job.cases) if case.network == network}
        if own <= set(job.records) and not job.interrupted:
            self.waiting.insert(0, len(job.cases) + job.networks.index(network))


def _carry_out(configuration: Configuration, order: working.Order, report: Any) -> Any:
    with _programs_for(configuration):
        return working.carry_out(configuration, order, report)


def _programs_for(configuration: Configuration) -> contextlib.AbstractContextManager[None]:
    """How programs are compiled: each serves all seeds of its network and attack."""
    from gflow._compiling import for_one_limit

    return for_one_limit() if len(configuration.seeds) <= _FEW_SEEDS else contextlib.nullcontext()


def _evaluation_of(job: Job, number: int) -> tuple[Any, ...]:
    network = job.networks[number - len(job.cases)]
    chosen = [i for i, case in enumerate(job.cases) if case.network == network]
    runs = [(job.cases[i], job.records[i]) for i in chosen if i in job.records]
    path = job.folder / "evaluations" / f"{number - len(job.cases) + 1:02d}.npz"
    return network, runs, job.configuration, job.held_out, job.folder, path


def _evaluate(
    network: str,
    runs: list[tuple[Any, Any]],
    configuration: Configuration,
    held_out: Any,
    folder: Path,
    path: Path,
    report: Any,
) -> Any:
    """Every direction of a network under every attack, saved to `path`."""
    del report
    from gflow.commands.building import build_columns
    from gflow.loading import load
    from gflow.report.end import load_end
    from gflow.report.evaluation import evaluate

    ended = [(case, run) for case, run in runs if run.end and (folder / run.end).exists()]
    with _programs_for(configuration):
        found = evaluate(
            network,
            {case.perturbation: case.problem for case, _ in ended},
            {case.perturbation: load_end(folder / run.end) for case, run in ended},
            {case.perturbation: load(folder / run.trajectory) for case, run in ended},
            build_columns(configuration),
            held_out,
        )
    found.save(path)
    return found


def _results(job: Job) -> Any:
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


def _conclude(job: Job) -> int:
    from gflow.commands.display import print_matrix, print_table
    from gflow.report.answer import answer

    results = _results(job)
    paths = [_write_results(job, _safe(job))]
    evaluations = [job.evaluations[one] for one in job.networks if one in job.evaluations]
    if job.options.report and job.records:
        from gflow.commands.reporting import draw_report

        with job.console.status("Drawing figures"):
            paths += [write(_safe(job), draw_report, results, job.folder)]
    print_table(job.console, results)
    if evaluations:
        print_matrix(job.console, evaluations, results.settings)
    seconds = time.perf_counter() - job.started
    _say(job, f"In {seconds:.0f} s. Written: {', '.join(map(str, paths))}")
    if job.interrupted:
        _say(
            job,
            "Interrupted: the report holds what was computed until then; go on with "
            f"`gflow run --resume {job.folder}`.",
        )
    _say(job, answer(results, evaluations))
    if job.interrupted:
        return INTERRUPTED
    reached = sum(run.succeeded for run in results.runs)
    return ALL_REACHED if reached == results.planned else NOT_ALL_REACHED


def _say(job: Job, text: str) -> None:
    job.console.print(text, highlight=False, markup=False, soft_wrap=True)
