"""What a sweep tells of itself while it runs."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from gflow._compiling import while_compiling
from gflow.progress import Report


@dataclass(frozen=True)
class Count:
    """How far a sweep has come.

    Attributes:
        done: runs that ended, one way or another.
        arrived: of these, those whose limit was found.
        kept: of these, those that an earlier call had finished.
        steps: of the flow, in the chunk in progress.
    """

    done: int = 0
    arrived: int = 0
    kept: int = 0
    steps: int = 0

    def plus(self, arrived: int, done: int, *, kept: bool = False) -> "Count":
        """With so many more runs."""
        more = Count(self.done + done, self.arrived + arrived, self.kept)
        return replace(more, kept=self.kept + done) if kept else more


Tell = Callable[[Count], None]


@contextmanager
def telling(progress: bool | Report, runs: int) -> Iterator[Tell]:
    """A function to call with the count so far.

    Args:
        progress: False for silence; True for a line by tqdm, which also says what is being compiled
            where that takes longer than two seconds; or a function of a dict.
        runs: of the whole sweep.
    """
    begun = time.perf_counter()

    def status(count: Count) -> dict[str, Any]:
        seconds = time.perf_counter() - begun
        return {
            "done": count.done,
            "runs": runs,
            "arrived": count.arrived,
            "failed": count.done - count.arrived,
            "rate": (count.done - count.kept) / seconds,
            "steps": count.steps,
            "seconds": seconds,
        }

    if callable(progress):
        yield lambda count: progress(status(count))
    elif not progress:
        yield lambda count: None
    else:
        with _line(runs) as show:
            yield lambda count: show(status(count))


@contextmanager
def _line(runs: int) -> Iterator[Report]:
    from tqdm.auto import tqdm

    shape = "{desc}: {n_fmt}/{total_fmt} runs |{bar}| {elapsed}{postfix}"
    with tqdm(desc="sweep", total=runs, bar_format=shape) as line:

        def compiling(name: str | None) -> None:
            told = "sweep" if name is None else f"sweep, compiling {name}"
            line.set_description_str(told)

        def show(status: dict[str, Any]) -> None:
            told = f"{status['arrived']} arrived, {status['failed']} failed"
            steps = f", {status['steps']} steps" if status["steps"] else ""
            line.set_postfix_str(f"{told}, {status['rate']:.3g} runs/s{steps}", refresh=False)
            line.update(status["done"] - line.n)

        with while_compiling(compiling):
            yield show
