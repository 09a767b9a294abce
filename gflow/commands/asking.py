"""What a sweep is asked for: by a file, or by the folder of a sweep that is gone on with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gflow.commands.folder import CONFIG_NAME, RUNS
from gflow.commands.left import resume_of
from gflow.commands.lists import Entry, entries
from gflow.commands.reading import UserError, read_document, source_of, told_if_deep


@dataclass(frozen=True)
class Asked:
    """What a file asks for: the file's content, where it comes from, and every run."""

    document: dict[str, Any]
    source: str
    runs: list[Entry]


def read_sweep(path: Path | None, overrides: Sequence[str] = (), *, saved: bool = False) -> Asked:
    """The sweep that a file describes.

    Args:
        saved: whether the file is one of gflow's own, which has no field where none was given.

    Raises:
        UserError: the file cannot be read, or a field or value is wrong.
    """
    with told_if_deep(source := source_of(path)):
        document = read_document(path, overrides, saved=saved)
        runs = entries(document, source)
    _check_limit(runs[0])
    return Asked(document, source, runs)


def read_saved(folder: Path, *, others: bool) -> Asked:
    """The sweep in `folder`, as it was asked for.

    Args:
        others: whether options were given that belong to a new sweep.

    Raises:
        UserError: they were, or the folder holds no sweep.
    """
    if others:
        raise UserError(
            "`gflow sweep --resume FOLDER` goes on with a sweep as it was asked for: leave out "
            "CONFIG, --set, --output, --overwrite and --chunk."
        )
    command = resume_of(folder)
    if command and command.startswith("gflow run"):
        raise UserError(f"`{folder}` holds a job, no sweep: `{command}` goes on with it.")
    if not (folder / CONFIG_NAME).is_file() or not (folder / RUNS).is_dir():
        raise UserError(
            f"`{folder}` holds no sweep to go on with: there is no `{CONFIG_NAME}` or no `{RUNS}` "
            f"in it. Begin one with `gflow sweep CONFIG --output {folder}`."
        )
    return read_sweep(folder / CONFIG_NAME, saved=True)


def _check_limit(run: Entry) -> None:
    """A sweep runs to limits, by one search each, within the seconds of the whole."""
    limit = run.configuration.limit
    refused = {
        "enabled": (not limit.enabled, "a sweep runs to limits; `gflow run` stops before"),
        "reproduce": (limit.reproduce, "a sweep searches once; `gflow run` searches again"),
        "max_seconds": (
            limit.max_seconds is not None,
            "a sweep has seconds for all its runs together, `max_seconds` at the top of the file",
        ),
    }
    for name, (given, words) in refused.items():
        if given:
            raise UserError(f"`limit.{name}`: {words}.")
