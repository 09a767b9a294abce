"""A progress line, or a caller's own report."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

from gflow._compiling import while_compiling

Report = Callable[[dict[str, Any]], None]


def check_progress(progress: Any, call: str) -> None:
    """Raises TypeError unless `reporter` can make something of it."""
    if not (isinstance(progress, bool) or callable(progress)):
        raise TypeError(f"`{call}(progress={progress!r})`: True, False, or a function of one dict.")


@contextlib.contextmanager
def reporter(progress: bool | Report, description: str) -> Iterator[Report]:
    """A function to call with what a run has reached.

    Args:
        progress: False for silence; True for a line by tqdm, which also says what is being compiled
            where that takes longer than two seconds; or a function to hand the dict to.
        description: what the line is called.
    """
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda status: None
    else:
        from tqdm.auto import tqdm

        with (
            tqdm(desc=description, unit="step") as line,
            while_compiling(_named_in(line, description)),
        ):

            def show(status: dict[str, Any]) -> None:
                told = {k: v for k, v in status.items() if k not in ("steps", "stage")}
                shown = {k: f"{v:.4g}" for k, v in told.items() if not math.isnan(v)}
                line.set_postfix(shown, refresh=False)
                line.update(status["steps"] - line.n)

            yield show


def _named_in(line: Any, description: str) -> Callable[[str | None], None]:
    """Puts the program that is being compiled into the description of a progress line."""

    def show(name: str | None) -> None:
        line.set_description(description if name is None else f"{description}, compiling {name}")

    return show
