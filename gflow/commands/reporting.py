"""The HTML report, from what a job saved: at its end, and anew with `gflow report`."""

import contextlib
from pathlib import Path
from typing import Any

from gflow.commands.folder import CONFIG_NAME, write
from gflow.commands.left import check_results
from gflow.commands.reading import UserError

_SAFE = "The results and trajectories are as they were."


def rebuild_report(folder: Path) -> Path:
    """Writes `report.html` from what a job left in `folder`.

    Raises:
        UserError: something in the folder is missing, or cannot be read.
    """
    check_results(folder)
    import jax

    jax.config.update("jax_enable_x64", True)
    from gflow.report.sweep_record import read_record

    try:
        swept = read_record(folder)
        if swept is not None:
            return write(_SAFE, draw_sweep, swept, folder)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(str(error)) from error
    return write(_SAFE, draw_report, _results(folder), folder)


def draw_matrix(folder: Path, path: Path) -> Path:
    """Writes the matrix of trained under x attacked by, from what a job left in `folder`.

    Raises:
        UserError: something in the folder cannot be read, or there is no matrix in it.
        WriteFailed: the file cannot be written.
    """
    check_results(folder)
    from gflow.report.picture import save_picture

    settings = _results(folder).settings
    try:
        return write(_SAFE, save_picture, _evaluations(folder), settings, path)
    except ValueError as error:
        raise UserError(f"`{folder}`: {error}") from error


def _results(folder: Path) -> Any:
    from gflow.report.record import read_results

    try:
        return read_results(folder)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(str(error)) from error


def _evaluations(folder: Path) -> list[Any]:
    """Of the networks whose runs all ended, those that can be read."""
    from gflow.report.evaluation import load_evaluation

    found = []
    for path in sorted((folder / "evaluations").glob("*.npz")):
        with contextlib.suppress(ValueError, OSError):
            found.append(load_evaluation(path))
    return found


def draw_sweep(record: Any, folder: Path) -> Path:
    """Writes `report.html` from a sweep's record and the configuration in `folder`.

    Raises:
        OSError: the page cannot be written.
    """
    from gflow.report.sweep_page import write_sweep_page

    configuration = (folder / CONFIG_NAME).read_text(encoding="utf-8")
    return write_sweep_page(record, folder, configuration=configuration)


def draw_report(results: Any, folder: Path) -> Path:
    """Writes `report.html` from `results` and the files in `folder`.

    Raises:
        UserError: a trajectory or the configuration cannot be read.
        OSError: the page cannot be written.
    """
    from gflow.loading import load
    from gflow.report.end import load_end
    from gflow.report.page import write_page

    runs = {(run.network, run.perturbation): run for run in results.runs}
    try:
        trajectories = {
            place: load(folder / run.trajectory) for place, run in runs.items() if run.trajectory
        }
        configuration = (folder / CONFIG_NAME).read_text(encoding="utf-8")
    except (ValueError, TypeError, OSError) as error:
        raise UserError(str(error)) from error
    # Without these there are fewer figures.
    ends = {}
    for place, run in runs.items():
        if run.end and run.outcome != "interrupted":
            with contextlib.suppress(ValueError, OSError):
                ends[place] = load_end(folder / run.end)
    return write_page(
        results,
        trajectories,
        folder,
        configuration=configuration,
        ends=ends,
        evaluations=_evaluations(folder),
    )
