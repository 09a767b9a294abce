"""The workers of a job: processes of their own, or none, where everything runs in this one.

A worker does not hear of Ctrl-C itself. It is told by an event, which every report of progress
looks at; what is being compiled is compiled to its end first. Where the process of the job is
killed, its workers end at once: whoever goes on with the job is alone in its folder.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from gflow.commands.reading import UserError, warning_sentence

# How a worker reports, and whether it is to stop; set when it starts.
_worker: dict[str, Any] = {}


class Programs(NamedTuple):
    """Whether compiled programs are kept on disk, and where: None for the user's cache folder."""

    folder: Path | None = None
    kept: bool = True


class Crew:
    """Where the tasks of a job are done.

    Args:
        size: how many at once; 1 for this process alone.
        programs: whether compiled programs are kept, and where.
        listen: is called with the number of a task and what it reports.
    """

    def __init__(self, size: int, programs: Programs, listen: Callable[[int, dict], None]):
        self.size, self._programs, self._listen = size, programs, listen
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Crew":
        if self.size > 1:
            context = multiprocessing.get_context("spawn")
            self._messages, self._stop = context.Queue(), context.Event()
            given = self._messages, self._stop, self._programs
            self._pool = ProcessPoolExecutor(self.size, context, _begin, given)
            self._listener = threading.Thread(target=self._forward, daemon=True)
            self._listener.start()
            for _ in range(self.size):  # they load JAX while the data are read here
                self._pool.submit(_load)
        else:
            self._stop = threading.Event()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            if kind is not None:
                self._stop.set()
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._messages.put(None)
            self._listener.join()

    def stop(self) -> None:
        """Tells every task to end where it is."""
        self._stop.set()

    def submit(self, function: Callable[..., Any], number: int, *arguments: Any) -> Future:
        """`function(*arguments, report)`, in a worker or, at once, in this process."""
        if self._pool is not None:
            return self._pool.submit(_do, function, number, *arguments)
        done: Future = Future()
        done.set_running_or_notify_cancel()
        try:
            with _naming(lambda status: self._listen(number, status)):
                done.set_result(function(*arguments, self._reporter(number)))
        except Exception as error:
            done.set_exception(error)
        return done

    def _reporter(self, number: int) -> Callable[[dict], None]:
        def report(status: dict[str, Any]) -> None:
            if self._stop.is_set():
                raise KeyboardInterrupt
            self._listen(number, status)

        return report

    def _forward(self) -> None:
        while (message := self._messages.get()) is not None:
            self._listen(*message)


def _begin(messages: Any, stop: Any, programs: Programs) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.formatwarning = warning_sentence
    threading.Thread(target=_end_with_the_job, daemon=True).start()
    _worker.update(messages=messages, stop=stop)
    with contextlib.suppress(UserError):  # which the process of the job tells
        set_up_jax(programs)


def _end_with_the_job() -> None:
    """Ends this worker when the process that began it has ended: nobody waits for its result."""
    job = multiprocessing.parent_process()
    if job is not None:
        multiprocessing.connection.wait([job.sentinel])
        os._exit(1)


def set_up_jax(programs: Programs) -> None:
    """Double precision, and the folder of compiled programs.

    Raises:
        UserError: the folder that was asked for cannot be used.
    """
    import jax

    from gflow.compilation_cache import use_compilation_cache

    jax.config.update("jax_enable_x64", True)
    if programs.kept:
        if programs.folder is not None:  # which is asked for more plainly than any other
            jax.config.update("jax_compilation_cache_dir", None)
        try:
            use_compilation_cache(programs.folder)
        except OSError as error:
            if programs.folder is not None:
                raise UserError(f"`--cache {programs.folder}`: {error}.") from error


def _load() -> None:
    from gflow import flow, limit, report

    del flow, limit, report


def _do(function: Callable[..., Any], number: int, *arguments: Any) -> Any:
    def report(status: dict[str, Any]) -> None:
        if _worker["stop"].is_set():
            # As if Ctrl-C had been pressed here: `integrate` and `find_limit` keep what they have.
            raise KeyboardInterrupt
        _worker["messages"].put((number, status))

    if _worker["stop"].is_set():
        return None
    with _naming(lambda status: _worker["messages"].put((number, status))):
        return function(*arguments, report)


@contextlib.contextmanager
def _naming(tell: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Within, what has been compiling for long is told by its name."""
    from gflow._compiling import while_compiling

    def compiling(name: str | None) -> None:
        if name is not None:
            tell({"stage": "compiling", "name": name})

    with while_compiling(compiling):
        yield
