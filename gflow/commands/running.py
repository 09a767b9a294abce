"""`gflow run`: every run to its limit, into a folder of results that outlives Ctrl-C and a kill."""

import time
from pathlib import Path

from rich.console import Console

from gflow.commands import working
from gflow.commands.crew import Crew, set_up_jax
from gflow.commands.explaining import example_toml
from gflow.commands.folder import claimed, prepare, write
from gflow.commands.job import Job, Options, results_of, what_is_safe, write_results_of
from gflow.commands.quick import NUM_EXAMPLES, quick
from gflow.commands.schedule import Listener, run_all
from gflow.commands.telling import (
    ALL_REACHED,
    INTERRUPTED,
    NOT_ALL_REACHED,
    describe_source,
    say,
)
from gflow.configuration import Configuration

# Folders of a job, made anew for each.
_FOLDERS = dict.fromkeys(("trajectories", "ends", "evaluations"), "*.npz")
_DESCENTS = {"descents": "*.npz"}


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
        listener = Listener()
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
            run_all(job, crew, listener)
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


def _prepare_folder(job: Job) -> None:
    """The folder as that of this job."""
    options, safe = job.options, "Nothing was integrated."
    prepare(
        job.folder,
        example_toml(job.configuration),
        _FOLDERS | (_DESCENTS if job.configuration.descent.enabled else {}),
        overwrite=options.overwrite,
        resumed=options.resumed,
        safe=safe,
    )
    if not options.resumed:
        write_results_of(job, safe)


def _conclude(job: Job) -> int:
    from gflow.commands.display import print_matrix, print_table
    from gflow.report.answer import answer

    results = results_of(job)
    paths = [write_results_of(job, what_is_safe(job), results)]
    evaluations = [job.evaluations[one] for one in job.networks if one in job.evaluations]
    if job.options.report and job.records:
        from gflow.commands.reporting import draw_report

        with job.console.status("Drawing figures"):
            paths += [write(what_is_safe(job), draw_report, results, job.folder)]
    print_table(job.console, results)
    if evaluations:
        print_matrix(job.console, evaluations, results.settings)
    seconds = time.perf_counter() - job.started
    say(job.console, f"In {seconds:.0f} s. Written: {', '.join(map(str, paths))}")
    if job.interrupted:
        say(
            job.console,
            "Interrupted: the report holds what was computed until then; go on with "
            f"`gflow run --resume {job.folder}`.",
        )
    say(job.console, answer(results, evaluations))
    if job.interrupted:
        return INTERRUPTED
    reached = sum(run.succeeded for run in results.runs)
    return ALL_REACHED if reached == results.planned else NOT_ALL_REACHED
