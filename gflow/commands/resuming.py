"""`gflow run --resume`: the job whose folder it is, as it was asked for."""

from pathlib import Path

from gflow.commands.folder import CONFIG_NAME
from gflow.commands.left import check_results, resume_of
from gflow.commands.reading import UserError, read_configuration
from gflow.configuration import Configuration


def read_job(folder: Path, *, others: bool) -> tuple[Configuration, bool]:
    """The configuration of the job in `folder`, and whether it runs in its small form.

    Args:
        others: whether options were given that belong to a new job.

    Raises:
        UserError: they were, or the folder holds no job.
    """
    if others:
        raise UserError(
            "`gflow run --resume FOLDER` goes on with a job as it was asked for: leave out CONFIG, "
            "--set, --seed, --output, --overwrite and --quick."
        )
    if not (folder / CONFIG_NAME).is_file():
        raise UserError(
            f"`{folder}` holds no job to go on with: there is no `config.toml` in it. Begin one "
            f"with `gflow run --output {folder}`."
        )
    command = resume_of(folder)
    if command and command.startswith("gflow sweep"):
        raise UserError(f"`{folder}` holds a sweep, no job: `{command}` goes on with it.")
    check_results(folder)
    from gflow.report.record import read_results

    try:
        small = read_results(folder).small
    except ValueError as error:
        raise UserError(str(error)) from error
    return read_configuration(folder / CONFIG_NAME), small
