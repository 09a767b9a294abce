"""What a command left in a folder, and what to do where that is not what is needed."""

import contextlib
from pathlib import Path

from gflow._files import LOCK_NAME, Locked, locked
from gflow.commands.folder import CONFIG_NAME, RESULTS, RUNS
from gflow.commands.reading import UserError


def check_results(folder: Path) -> None:
    """Refuses a folder without `results.json`, and says what is there instead.

    Raises:
        UserError: there is none.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "is not there"
        raise UserError(f"`{folder}` {what}: give the folder into which `gflow run` wrote.")
    if not (folder / RESULTS).exists():
        raise UserError(f"`{folder}` holds no results yet, no `{RESULTS}`: {_advice(folder)}")


def resume_of(folder: Path) -> str | None:
    """The command that goes on with what is in a folder, or None if nothing is to be gone on with.

    A sweep has its limits in `runs`; a job has results from its beginning on.
    """
    if not (folder / CONFIG_NAME).is_file():
        return None
    if (folder / RUNS).is_dir():
        return f"gflow sweep --resume {folder}"
    return f"gflow run --resume {folder}" if (folder / RESULTS).exists() else None


def _advice(folder: Path) -> str:
    if _is_held(folder):
        return "a run is writing into it now. Wait for it to end."
    command = resume_of(folder)
    if command:
        return f"what was run there was ended before. `{command}` goes on with it."
    if (folder / CONFIG_NAME).is_file():
        return (
            "what was run there was ended before its first result. Begin it again: "
            f"`gflow {_asked_by(folder / CONFIG_NAME)} {folder / CONFIG_NAME} --output {folder}`."
        )
    if (folder / "sweep.npz").exists():
        return f"it is a sweep made from Python, which `gflow.Sweep.load({str(folder)!r})` reads."
    if (folder / "ledger.json").exists():
        return "it is that of `gflow study`, whose page is `ledger.html`."
    return f"nothing was run there. `gflow run --output {folder}` does."


def _asked_by(config: Path) -> str:
    """The command that wrote a configuration, which its first line names."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return "sweep" if "gflow sweep" in config.read_text("utf-8").split("\n")[0] else "run"
    return "run"


def _is_held(folder: Path) -> bool:
    """Whether another process holds the folder."""
    if not (folder / LOCK_NAME).exists():
        return False
    with contextlib.suppress(OSError):
        try:
            with locked(folder):
                return False
        except Locked:
            return True
    return False
