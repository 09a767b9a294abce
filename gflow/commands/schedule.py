"""The tasks of a job: its runs, several at once, and each network's evaluation after its runs."""

import contextlib
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from gflow.commands import working
from gflow.commands.crew import Crew
from gflow.commands.folder import WriteFailed, write
from gflow.commands.job import Job, what_is_safe, write_results_of
from gflow.commands.reading import UserError
from gflow.configuration import Configuration

# With so many seeds compiling fast is cheaper than running fast (`gflow._compiling.for_one_limit`).
_FEW_SEEDS = 3


class Listener:
    """Hands what workers report to the display, once there is one."""

    def __init__(self):
        self.display: Any = None

    def hear(self, number: int, status: dict[str, Any]) -> None:
        if self.display is not None:
            self.display.update(number, status)


def run_all(job: Job, crew: Crew, listener: Listener) -> None:
    """All runs, several at once, and then each network's evaluation as soon as its runs ended."""
    from gflow.commands.display import Display

    labels = [
        f"[{i + 1}/{len(job.cases)}] {case.network}, {case.perturbation}"
        for i, case in enumerate(job.cases)
    ]
    labels += [f"{network}: trained under x attacked by" for network in job.networks]
    targets = job.configuration.until.model_dump(exclude_none=True)
    with Display(job.console, labels, targets) as display:
        listener.display = display
        schedule = Schedule(job, crew, display)
        try:
            schedule.go()
        except KeyboardInterrupt:
            job.interrupted = True
            crew.stop()
            job.console.print("Interrupted: waiting for the runs in progress to stop.")
            schedule.drain()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker was ended from outside, perhaps for want of memory. "
                f"{len(job.records)} of {len(job.cases)} runs are safe in `{job.folder}`; go on "
                f"with `gflow run --resume {job.folder}`, or with fewer --jobs."
            ) from error
        finally:
            listener.display = None


class Schedule:
    """Which tasks are in progress; runs have the numbers of their cases, evaluations follow."""

    def __init__(self, job: Job, crew: Crew, display: Any):
        self.job, self.crew, self.display = job, crew, display
        self.waiting = list(range(len(job.cases)))
        self.pending: dict[Future, int] = {}

    def go(self) -> None:
        """Does all tasks, as many at once as there are workers."""
        if self.job.options.resumed:
            self._take_finished()
        while self.waiting or self.pending:
            while self.waiting and len(self.pending) < self.crew.size:
                self._submit(self.waiting.pop(0))
            done, _ = wait(self.pending, return_when=FIRST_COMPLETED)
            for task in done:
                self._keep(self.pending.pop(task), task)
            if self.job.interrupted:
                # Within a run of this process Ctrl-C is the run's outcome, and not raised.
                raise KeyboardInterrupt

    def drain(self) -> None:
        """Keeps what the tasks in progress come to once they are told to stop."""
        for task, number in list(self.pending.items()):
            with contextlib.suppress(KeyboardInterrupt):
                self._keep(number, task)
        self.pending.clear()

    def _take_finished(self) -> None:
        """Runs that were finished before."""
        for number in list(self.waiting):
            found = working.finished(self._order(number))
            if found is not None:
                self.waiting.remove(number)
                self.display.finish(number, found, loaded=True)
                self._add(number, found)

    def _order(self, number: int) -> working.Order:
        job = self.job
        return working.Order(
            number, job.cases[number], job.folder, self._share(), job.options.resumed
        )

    def _share(self) -> float | None:
        """The seconds that a run has which begins now: of what is left, those of one of the rest.

        What a run does not need is shared by those after it.
        """
        whole = self.job.configuration.max_seconds
        if whole is None:
            return None
        left = max(whole - (time.perf_counter() - self.job.started), 1e-3)
        runs = sum(number < len(self.job.cases) for number in self.waiting) + 1
        return left * min(self.crew.size, runs) / runs

    def _submit(self, number: int) -> None:
        job = self.job
        self.display.begin(number)
        if number < len(job.cases):
            order = self._order(number)
            task = self.crew.submit(_carry_out, number, job.configuration, order)
        else:
            task = self.crew.submit(_evaluate, number, *_evaluation_of(job, number))
        self.pending[task] = number

    def _keep(self, number: int, task: Future) -> None:
        """Adds a finished task to the job, and to the results on disk."""
        self.display.end(number)
        try:
            found = write(what_is_safe(self.job), task.result)
        except WriteFailed:
            self.crew.stop()
            raise
        if found is None:  # it had not begun
            self.job.interrupted = True
        elif number >= len(self.job.cases):
            self.job.evaluations[found.network] = found
        else:
            self.display.finish(number, found)
            self._add(number, found)

    def _add(self, number: int, found: Any) -> None:
        job, safe = self.job, what_is_safe(self.job)
        job.records[number] = found
        job.interrupted |= found.outcome == "interrupted"
        # After every run, so that a machine that goes down leaves what was computed.
        write_results_of(job, safe)
        network = job.cases[number].network
        own = {i for i, case in enumerate(job.cases) if case.network == network}
        if own <= set(job.records) and not job.interrupted:
            self.waiting.insert(0, len(job.cases) + job.networks.index(network))


def _carry_out(configuration: Configuration, order: working.Order, report: Any) -> Any:
    with _programs_for(configuration):
        return working.carry_out(configuration, order, report)


def _programs_for(configuration: Configuration) -> contextlib.AbstractContextManager[None]:
    """How programs are compiled: each serves all seeds of its network and attack."""
    from gflow._compiling import for_one_limit

    return for_one_limit() if len(configuration.seeds) <= _FEW_SEEDS else contextlib.nullcontext()


def _evaluation_of(job: Job, number: int) -> tuple[Any, ...]:
    network = job.networks[number - len(job.cases)]
    chosen = [i for i, case in enumerate(job.cases) if case.network == network]
    runs = [(job.cases[i], job.records[i]) for i in chosen if i in job.records]
    path = job.folder / "evaluations" / f"{number - len(job.cases) + 1:02d}.npz"
    return network, runs, job.configuration, job.held_out, job.folder, path


def _evaluate(
    network: str,
    runs: list[tuple[Any, Any]],
    configuration: Configuration,
    held_out: Any,
    folder: Path,
    path: Path,
    report: Any,
) -> Any:
    """Every direction of a network under every attack, saved to `path`."""
    del report
    from gflow.commands.building import build_columns
    from gflow.loading import load
    from gflow.report.end import load_end
    from gflow.report.evaluation import evaluate

    ended = [(case, run) for case, run in runs if run.end and (folder / run.end).exists()]
    with _programs_for(configuration):
        found = evaluate(
            network,
            {case.perturbation: case.problem for case, _ in ended},
            {case.perturbation: load_end(folder / run.end) for case, run in ended},
            {case.perturbation: load(folder / run.trajectory) for case, run in ended},
            build_columns(configuration),
            held_out,
        )
    found.save(path)
    return found
