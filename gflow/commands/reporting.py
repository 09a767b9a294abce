"""`gflow report`: the HTML anew, from what a job saved."""

from pathlib import Path

from gflow.commands.folder import write
from gflow.commands.reading import UserError


def rebuild_report(folder: Path) -> Path:
    """Writes `report.html` from `results.json` and the trajectories in `folder`.

    Raises:
        UserError: something in the folder cannot be read.
    """
    import jax

    jax.config.update("jax_enable_x64", True)
    from gflow.loading import load
    from gflow.report.page import write_page
    from gflow.report.record import read_results

    try:
        results = read_results(folder)
        trajectories = {
            (run.network, run.perturbation): load(folder / run.trajectory)
            for run in results.runs
            if run.trajectory is not None
        }
        configuration = (folder / "config.toml").read_text(encoding="utf-8")
    except (ValueError, TypeError, OSError) as error:
        raise UserError(str(error)) from error
    safe = "The results and trajectories are as they were."
    return write(safe, write_page, results, trajectories, folder, configuration=configuration)
