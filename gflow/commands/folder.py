"""The folder of a job: claimed by one run at a time, and what is told where writing fails."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gflow._files import Locked, locked
from gflow.commands.reading import UserError

RESULTS, CONFIG_NAME, RUNS = "results.json", "config.toml", "runs"
"""In a folder of results: the numbers, what was asked for, and the limits of a sweep."""


class WriteFailed(UserError):
    """The folder cannot be written to any more; what was written before is whole."""


@contextlib.contextmanager
def claimed(folder: Path, *, overwrite: bool) -> Iterator[None]:
    """Holds `folder`, made if need be, for this run alone.

    A folder that was made for it and is still empty at the end is removed again.

    Raises:
        UserError: the folder cannot be written to, another run holds it, or it holds results and
            `overwrite` is False.
    """
    made = _missing(folder)
    try:
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            with _writing(folder):
                held.enter_context(locked(folder))
            if not overwrite and (folder / RESULTS).exists():
                raise UserError(
                    f"`{folder}` holds results already: choose another, or add --overwrite."
                )
            yield
    except Locked:
        raise UserError(
            f"another run is writing into `{folder}`: wait for it to end, or choose another folder "
            "with --output."
        ) from None
    finally:
        for one in made:
            with contextlib.suppress(OSError):  # it holds something by now
                one.rmdir()


def _missing(folder: Path) -> list[Path]:
    """The folders that `mkdir` would make, the innermost first."""
    return [one for one in (folder, *folder.parents) if not one.exists()]


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"`{folder}` cannot be written to: {error.strerror or error}.") from error


def write(safe: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """`function(...)`, which writes; where the disk is full, say, `safe` tells what is not lost.

    Raises:
        WriteFailed: it could not be written.
    """
    try:
        return function(*arguments, **options)
    except OSError as error:
        place = f"`{error.filename}`" if error.filename else "the folder of results"
        raise WriteFailed(
            f"{place} cannot be written: {error.strerror or error}. {safe}"
        ) from error
