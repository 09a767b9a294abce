"""Several processes that share the runs of a sweep, on one machine or on many.

They meet through `jax.distributed`, which knows Slurm, MPI, Kubernetes and TPU pods, and part from
it before the first run: JAX ends every process where one has died, and runs need nothing of each
other. From then on they know of each other through the folder of the sweep alone, where each of
them keeps a file:

    process-0000.json    {"token": ..., "beats": ..., "agreed": ..., "ended": ..., "written": ...}

A thread writes it anew every few seconds. A process whose file does not change for long, and that
has not ended, is taken for dead; nobody waits for it, and its runs are left to a later call. What
all of them agree on, the first one says in its file.
"""

import contextlib
import functools
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHOWN_AFTER = 60.0
"""Seconds after which a network file system shows what another machine has written, at most."""

# Seconds between two beats; without one for so long a process is taken for dead.
_BETWEEN, _SILENCE = 5.0, 100.0
# And between two looks at the others.
_LOOK = 0.2
_MEETING_SECONDS = 300
_KEY = "gflow/sweep/token"
_NO_PROCESSES = (
    "`sweep(distributed=True)`: JAX found no processes to share the runs with ({}). Start them by "
    "`srun` or `mpirun`, or call `jax.distributed.initialize(coordinator_address, num_processes, "
    "process_id)` in each before anything else of JAX."
)


@dataclass(frozen=True)
class Group:
    """Processes that share sweeps: which one this is, of how many, and a name for all of them."""

    index: int
    count: int
    token: str


@functools.cache
def group() -> Group:
    """Which of the processes of `jax.distributed` this is; they part from it.

    Raises:
        RuntimeError: JAX finds no others, or they do not come.
    """
    import jax
    from jax._src.distributed import global_state as state

    if not jax.distributed.is_initialized():
        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            raise RuntimeError(_NO_PROCESSES.format(error)) from error
    client: Any = state.client
    if state.process_id == 0:
        client.key_value_set(_KEY, secrets.token_hex(8))
    token = client.blocking_key_value_get(_KEY, 1000 * _MEETING_SECONDS)
    found = Group(state.process_id, state.num_processes, token)
    jax.distributed.shutdown()
    # From here on JAX is to know of this process alone: its devices then are those of any single
    # process, whose compiled programs it reads and keeps.
    state.process_id, state.num_processes = 0, 1
    return found


@dataclass
class _File:
    """What a process tells of itself."""

    path: Path
    content: dict[str, Any]
    lock: contextlib.AbstractContextManager = field(default_factory=threading.Lock)

    def tell(self, **news: Any) -> None:
        with self.lock:
            self.content |= news
            self.content["beats"] += 1
            # Not brought to the disk, and in its place: what is half written is read again.
            self.path.write_text(json.dumps(self.content))


class Companions:
    """The processes of a group while they share one sweep.

    Args:
        group: who they are.
        folder: which all of them see.
    """

    def __init__(self, group: Group, folder: Path):
        self.group, self._folder = group, folder
        beginning = {"token": group.token, "beats": 0, "ended": None, "agreed": None}
        self._own = _File(self._path(group.index), beginning)
        self._heard: dict[int, tuple[Any, float]] = {}

    @contextlib.contextmanager
    def present(self) -> Iterator["Companions"]:
        """Within, the others hear of this process; afterwards, that it has ended and why."""
        self._folder.mkdir(parents=True, exist_ok=True)
        over = threading.Event()

        def beat() -> None:
            while not over.wait(_BETWEEN):
                with contextlib.suppress(OSError):  # the next one may be written
                    self._own.tell()

        thread = threading.Thread(target=beat, daemon=True)
        self._own.tell()
        thread.start()
        try:
            yield self
        except BaseException as error:
            with contextlib.suppress(OSError):
                self.end(f"ended with {type(error).__name__}: {error}")
            raise
        finally:
            over.set()
            thread.join()

    def end(self, why: str = "", written: Sequence[int] = ()) -> None:
        """Tells the others that this process does no more.

        Args:
            why: how it came to its end, where it has not done its share.
            written: the chunks that it has written.
        """
        if self._own.content["ended"] is None:
            self._own.tell(ended=why, written=list(written))

    def agree(self, decided: Callable[[], Any]) -> Any:
        """What the first process decides, in all of them.

        Raises:
            RuntimeError: it has ended, and says why, or is not heard of: the folder may be another.
        """
        if self.group.index == 0:
            decision = decided()
            self._own.tell(agreed=decision)
            return decision
        while True:
            first = self._read(0)
            if first.get("agreed") is not None:
                return first["agreed"]
            if first.get("ended") is not None:
                raise RuntimeError(f"process 0 of {self.group.count} {first['ended']}")
            if self._is_silent(0, first):
                raise RuntimeError(
                    f"process {self.group.index} of {self.group.count} does not hear of process 0 "
                    f"in `{self._folder}`: the folder must be one that all processes see."
                )
            time.sleep(_LOOK)

    def wait(self) -> tuple[dict[int, str], set[int]]:
        """Waits until every other process has ended, or is taken for dead.

        Returns:
            For those that have not done their share, why; and the chunks that were written.
        """
        lost: dict[int, str] = {}
        written: set[int] = set()
        going = set(range(self.group.count)) - {self.group.index}
        while going:
            for index in sorted(going):
                told = self._read(index)
                if told.get("ended") is not None:
                    written |= set(told["written"])
                    lost |= {index: told["ended"]} if told["ended"] else {}
                elif self._is_silent(index, told):
                    lost[index] = f"was killed, or has not been heard of for {_SILENCE:.0f} s"
                else:
                    continue
                going.discard(index)
            time.sleep(_LOOK if going else 0)
        return lost, written

    def _path(self, index: int) -> Path:
        return self._folder / f"process-{index:04d}.json"

    def _read(self, index: int) -> dict[str, Any]:
        """What a process tells of itself; nothing where it has not yet, in this group."""
        try:
            told = json.loads(self._path(index).read_text())
        except (OSError, ValueError):
            return {}
        return told if told.get("token") == self.group.token else {}

    def _is_silent(self, index: int, told: dict[str, Any]) -> bool:
        """Whether its file has not changed for long, by the clock of this process."""
        now, beats = time.monotonic(), told.get("beats")
        known, since = self._heard.get(index, (None, now))
        if index not in self._heard or known != beats:
            self._heard[index] = beats, now
            return False
        return now - since > _SILENCE
