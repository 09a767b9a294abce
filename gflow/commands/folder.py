"""The folder of a job: claimed by one run at a time, and what is told where writing fails."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gflow._files import Locked, locked, write_text
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
        UserError: the folder cannot be written to, another run holds it; or it holds results, or a
            sweep that was ended before, and `overwrite` is False.
    """
    made = _missing(folder)
    try:
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            with _writing(folder):
                held.enter_context(locked(folder))
            if not overwrite:
                _check_free(folder)
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


def _check_free(folder: Path) -> None:
    """Refuses a folder in which something was found, or is being found, already."""
    if (folder / RESULTS).exists():
        raise UserError(f"`{folder}` holds results already: choose another, or add --overwrite.")
    if (folder / CONFIG_NAME).is_file() and (folder / RUNS).is_dir():
        raise UserError(
            f"`{folder}` holds a sweep that was ended before: `gflow sweep --resume {folder}` goes "
            "on with it. Choose another folder, or add --overwrite, which deletes what it found."
        )


def prepare(
    folder: Path, text: str, own: Mapping[str, str], *, overwrite: bool, resumed: bool, safe: str
) -> None:
    """Makes the folder that of one job or sweep: with the file of what it asks for, and without the
    runs of another, which must not pass for its own; or with its own, where it is gone on with.

    Args:
        text: of the configuration.
        own: folders in it, and which of their files are deleted.
        safe: see `write`.

    Raises:
        UserError: a file would be replaced or deleted that no `overwrite` gave away.
        WriteFailed: the folder cannot be written to.
    """
    found = [path for name, files in own.items() for path in sorted((folder / name).glob(files))]
    if not (overwrite or resumed):
        _check_spared(folder / CONFIG_NAME, text, found)
    for name in own:
        write(safe, (folder / name).mkdir, exist_ok=True)
    if resumed:
        return
    for path in found:
        write(safe, path.unlink)
    write(safe, write_text, folder / CONFIG_NAME, text)


def _check_spared(config: Path, text: str, found: Sequence[Path]) -> None:
    """Refuses to replace a configuration that says anything else, and to delete files: in a folder
    without results they are somebody else's.
    """
    instead = "Choose another folder with --output, or add --overwrite."
    if found:
        raise UserError(f"`{found[0]}` would be deleted; nothing was begun. {instead}")
    try:
        known = not config.exists() or config.read_text("utf-8") == text
    except (OSError, UnicodeDecodeError):
        known = False
    if not known:
        raise UserError(f"`{config}` would be replaced; nothing was begun. {instead}")


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
