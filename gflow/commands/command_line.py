"""The commands of the command line: `gflow run`, `sweep`, `config`, `report` and `study`.

Only declarations, and no import of JAX: help, and refusing a wrong field, take no time.
"""

import os
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from gflow import __version__
from gflow.commands.reading import UserError

_MOST_JOBS = 4
_DEFAULT_FOLDER = "gflow-run"
_SWEEP_FOLDER = "gflow-sweep"


class _Folder(click.Path):
    """The path of a folder; an empty one, such as that of a variable that is not set, is none."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, file_okay=False)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if value == "":
            self.fail("the path is empty; `.` is the folder of the shell.", param, ctx)
        return super().convert(value, param, ctx)


class _RunCommand(click.Command):
    """A command whose help goes on with the fields of the configuration."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from gflow.commands.explaining import fields_text

        super().format_help(ctx, formatter)
        colour = sys.stdout.isatty()
        formatter.write("\n" + fields_text(width=formatter.width, colour=colour))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="gflow")
def cli() -> None:
    """The gradient flow of adversarial training, integrated and certified.

    Start with `gflow run`.
    """


# What `gflow run` and `gflow sweep` share.
_CONFIG = click.argument("config", required=False, type=click.Path(path_type=Path))
_OVERWRITE = click.option(
    "--overwrite", is_flag=True, help="Write into a folder that holds results already."
)
_NO_REPORT = click.option("--no-report", is_flag=True, help="Write no report.html.")
_NO_CACHE = click.option(
    "--no-cache", is_flag=True, help="Keep no compiled programs; the same as GFLOW_NO_CACHE=1."
)


def _set_option(example: str) -> Callable[[Any], Any]:
    """The option that changes fields of the file."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help=f"Change one field, such as {example}; may be repeated.",
    )


def _output_option(default: str, *names: str) -> Callable[[Any], Any]:
    return click.option(
        "-o",
        *names,
        type=_Folder(),
        help=f"Folder of the results.  [default: {default}, or the next that is free]",
    )


def _resume_option(what: str) -> Callable[[Any], Any]:
    """The option that goes on with a job or a sweep."""
    return click.option(
        "--resume",
        type=_Folder(),
        metavar="FOLDER",
        help=f"Go on with the {what} whose results are in FOLDER, after a kill or an interrupt.",
    )


@cli.command(cls=_RunCommand)
@_CONFIG
@_set_option("until.log_loss=-5")
@click.option("--seed", type=click.IntRange(min=0), help="The same as --set seed=...")
@_output_option(_DEFAULT_FOLDER, "--output")
@_resume_option("job")
@_OVERWRITE
@click.option("--quick", is_flag=True, help="A small form of the job, to see whether it runs.")
@_NO_REPORT
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=min(os.cpu_count() or 1, _MOST_JOBS),
    show_default=f"number of processors, at most {_MOST_JOBS}",
    help="Runs at once, each in a process of its own.",
)
@click.option(
    "--cache",
    type=_Folder(),
    help="Keep compiled programs in this folder, so that later runs start sooner.  [default: gflow "
    "in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR names one]",
)
@_NO_CACHE
def run(
    config: Path | None,
    overrides: tuple[str, ...],
    seed: int | None,
    output: Path | None,
    resume: Path | None,
    overwrite: bool,
    quick: bool,
    no_report: bool,
    jobs: int,
    cache: Path | None,
    no_cache: bool,
) -> int:
    """Follow every network under every perturbation to its limit, and attack what came of it.

    CONFIG is a TOML file; without it the main job is run: handwritten digits 3 against 8; a deep
    linear network, a ReLU and a ReLU^2 perceptron; clean, l2-FGM, linf-FGSM, l2-PGD and linf-PGD.
    The folder of results gets results.json, the trajectories, the limits and report.html.

    Exit code 0: every run reached what was asked for; 1: some did not; 2: something in CONFIG or
    the options is wrong, or the folder cannot be written to; 130: interrupted, by Ctrl-C or
    SIGTERM, with a report of what was computed.
    """
    from gflow.commands.crew import Programs
    from gflow.commands.job import Options
    from gflow.commands.reading import read_configuration
    from gflow.commands.running import run_job

    if not no_report:
        _check_extra("matplotlib", "jinja2")
    if resume is not None:
        from gflow.commands.resuming import read_job

        others = any((config, overrides, seed is not None, output, overwrite, quick))
        configuration, quick = read_job(resume, others=others)
        folder = resume
    else:
        changes = [*overrides, *([f"seed={seed}"] if seed is not None else [])]
        configuration = read_configuration(config, changes)
        folder = _free_folder(overwrite) if output is None else output
    options = Options(
        quick, Programs(cache, not no_cache), not no_report, jobs, overwrite, resume is not None
    )
    return run_job(configuration, folder, _console(), options)


@cli.command(cls=_RunCommand)
@_CONFIG
@_set_option("seed=[0,1,2]")
@_output_option(_SWEEP_FOLDER, "--output", "--out")
@_resume_option("sweep")
@_OVERWRITE
@_NO_REPORT
@click.option(
    "--chunk",
    type=click.IntRange(min=1),
    help="Runs that are searched, and saved, at once.  [default: 64, or fewer for --distributed]",
)
@click.option(
    "--distributed",
    is_flag=True,
    help="Share the runs among processes that are begun together, by srun or mpirun, and see the "
    "same folder.",
)
@click.option(
    "--cache",
    type=_Folder(),
    help="Keep compiled programs in this folder; see `gflow run --help`.",
)
@_NO_CACHE
def sweep(
    config: Path | None,
    overrides: tuple[str, ...],
    output: Path | None,
    resume: Path | None,
    overwrite: bool,
    no_report: bool,
    chunk: int | None,
    distributed: bool,
    cache: Path | None,
    no_cache: bool,
) -> int:
    """Find the limits of every combination of the lists in CONFIG.

    CONFIG is a file of `gflow run` in which lists may stand for single values: seed, loss, gradient
    and rivals at the top, and every field of [data], [[network]] and [[perturbation]], such as
    `radius = [0.1, 0.2]` or `hidden = [[8], [8, 8]]`. Every network under every perturbation goes
    to its limit from its start, with every combination of these values; [until] and [solver] have
    no say. The folder of results gets sweep.csv, results.json, report.html with the margin against
    every number that was swept, and the limits in runs, which `gflow.Sweep.load` reads.

    Exit code 0: every run arrived; 1: some did not; 2: something in CONFIG or the options is wrong,
    or the folder cannot be written to; 130: interrupted, by Ctrl-C or SIGTERM.
    """
    from gflow.commands.asking import read_saved, read_sweep
    from gflow.commands.crew import Programs
    from gflow.commands.sweeping import Options, run_sweep

    if not no_report:
        _check_extra("matplotlib", "jinja2", without="gflow sweep --no-report")
    if resume is not None:
        others = any((config, overrides, output, overwrite, chunk))
        asked, folder = read_saved(resume, others=others), resume
    else:
        asked = read_sweep(config, overrides)
        if distributed and output is None:
            raise UserError("`gflow sweep --distributed`: name the folder, --output FOLDER.")
        folder = _free_folder(overwrite, _SWEEP_FOLDER) if output is None else output
    programs = Programs(cache, not no_cache)
    options = Options(programs, not no_report, chunk, overwrite, resume is not None, distributed)
    return run_sweep(asked, folder, _console(), options)


@cli.command()
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one field.")
def config(config: Path | None, overrides: tuple[str, ...]) -> int:
    """Print a complete configuration: that of the main job, or of CONFIG.

    Every field is there with its meaning. `gflow config > job.toml` is a file to begin with.
    """
    from gflow.commands.explaining import example_toml
    from gflow.commands.reading import read_configuration

    click.echo(example_toml(read_configuration(config, overrides)), nl=False)
    return 0


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--matrix",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Instead, draw the matrix of trained under x attacked by: FILE.png, .svg or .pdf.",
)
def report(folder: Path, matrix: Path | None) -> int:
    """Write report.html anew from the results and trajectories in FOLDER."""
    from gflow.commands.reporting import draw_matrix, rebuild_report

    _check_extra("matplotlib", "jinja2")
    written = rebuild_report(folder) if matrix is None else draw_matrix(folder, matrix)
    click.echo(f"Written: {written}")
    return 0


@cli.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--list", "listed", is_flag=True, help="Print what each study claims, and end.")
@click.option("--all", "every", is_flag=True, help="Run every study.")
@click.option("--full", is_flag=True, help="The full form in place of the small one.")
@click.option(
    "-o",
    "--output",
    type=_Folder(),
    default=Path("gflow-studies"),
    show_default=True,
    help="Folder of the ledger and the figures.",
)
@click.option("--no-figures", is_flag=True, help="Write no figures and no page.")
def study(
    names: tuple[str, ...], listed: bool, every: bool, full: bool, output: Path, no_figures: bool
) -> int:
    """Try claims of the literature: what is predicted, what is measured, and a verdict.

    The folder gets ledger.json, ledger.html and a figure of each study. The small form of a study
    takes less than a minute.

    Exit code 0: every claim holds, as printed or as the study corrects it; 1: one does not; 2: a
    name or an option is wrong, or the folder cannot be written to.
    """
    from gflow.commands.studying import list_studies, run_studies

    console = _console()
    if listed:
        return list_studies(console)
    if every == bool(names):
        raise UserError("`gflow study`: give names of studies, or --all; --list prints them.")
    if not no_figures:
        _check_extra("matplotlib", "jinja2", what="A study's figure", without="--no-figures")
    if every:
        from gflow.studies import NAMES

        names = NAMES
    return run_studies(names, output, console, small=not full, figures=not no_figures)


def _check_extra(
    *packages: str, what: str = "report.html", without: str = "gflow run --no-report"
) -> None:
    missing = [package for package in packages if util.find_spec(package) is None]
    if missing:
        raise UserError(
            f"{what} needs {' and '.join(missing)}: `pip install 'gflow[plot]'`. "
            f"`{without}` goes without."
        )


def _console() -> Console:
    """The terminal; a pipe has no width, and lines are not to be broken there."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def _free_folder(overwrite: bool, name: str = _DEFAULT_FOLDER) -> Path:
    """The first folder of the usual name that is not there yet."""
    names = (f"{name}-{n}" if n > 1 else name for n in range(1, 10_000))
    return Path(next(name for name in names if overwrite or not Path(name).exists()))
