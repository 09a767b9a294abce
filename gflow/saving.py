"""A run in a file while it goes on: the same call goes on from there after a stop.

The file is written between the parts of a run that are computed at once, when so many seconds have
passed since it was written last. Only this depends on the clock: what is computed does not. It is
there whole or not at all (`gflow._files.replacing`), every array has a checksum, nothing in it is
run when it is read, and it names the call that it belongs to by checksums of its arguments.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gflow._archive import Damaged, read_archive, write_archive
from gflow._checks import is_real
from gflow._files import Locked, checked_path, locked
from gflow._fingerprint import fingerprint, without_addresses

FORMAT = 1
# Of an argument, in a message.
_LETTERS = 80


class Content(NamedTuple):
    """What a file holds of a run.

    Attributes:
        header: JSON.
        arrays: by name.
        finished: whether the run has come to its end.
    """

    header: dict[str, Any]
    arrays: Mapping[str, Any]
    finished: bool = False


class Saving:
    """Keeps nothing. Those that do are made by `saving_to`.

    Attributes:
        content: what was kept of the run before; None where it has not begun.
    """

    content: Content | None = None

    def offer(self, make: Callable[[], Content], *, now: bool = False) -> None:
        """Keeps what `make` returns, if it is time to.

        Args:
            now: whether it is, whenever something was kept last.

        Raises:
            OSError: it cannot be written; what was kept before still is.
        """

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """For the time in which something is made of `content`.

        Raises:
            ValueError: whatever was raised, since the content is not what was kept.
        """
        yield


class _ToFile(Saving):
    """Keeps the content in a file, with the fingerprints of the call."""

    def __init__(self, path: Path, seconds: float, call: str, arguments: Mapping[str, Any]):
        self._path, self._seconds = path, seconds
        self._call, self._belongs = call, _belonging(arguments)
        self._written = 0
        self.content = self._read()
        self._last = time.monotonic()

    def offer(self, make: Callable[[], Content], *, now: bool = False) -> None:
        if not now and time.monotonic() - self._last < self._seconds:
            return
        content, written = make(), self._written + 1
        header = {
            "checkpoint": FORMAT,
            "call": self._call,
            "belongs": self._belongs,
            "finished": content.finished,
            "written": written,
            "content": content.header,
        }
        write_archive(self._path, header, content.arrays)
        self._written, self._last = written, time.monotonic()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> ValueError:
        return ValueError(
            f"{_told(self._call, self._path)}: the file is there already, and is no checkpoint "
            f"that gflow can read ({error}). Choose another file, or remove this one."
        )

    def _read(self) -> Content | None:
        try:
            header, arrays = read_archive(self._path)
            if header.get("checkpoint") != FORMAT:
                raise Damaged("it is no checkpoint, or one of another version")
            call, belongs = header["call"], header["belongs"]
            content = Content(header["content"], arrays, header["finished"])
            self._written = header["written"]
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._unreadable(error) from error
        if call != self._call:
            raise ValueError(
                f"{_told(self._call, self._path)}: the file belongs to a call of `{call}`. Choose "
                "another file."
            )
        for name in self._belongs:
            (mine, asked), (found, was) = self._belongs[name], belongs.get(name, ("", "nothing"))
            if mine != found:
                differ = f", whose `{name}` was {was}; here it is {asked}"
                if not (was and asked) or was == asked:
                    differ = f", with another `{name}`"
                raise ValueError(
                    f"{_told(self._call, self._path)}: the file belongs to another call{differ}. "
                    "Choose another file, or make the call with which that one was begun."
                )
        return content


def _belonging(arguments: Mapping[str, Any]) -> dict[str, list[str]]:
    """For each argument its fingerprint, and how it is told in a message."""
    return {name: [fingerprint(value), _shown(value)] for name, value in arguments.items()}


def _shown(value: Any) -> str:
    """The value as a message tells it; nothing where that is long."""
    if value is None or isinstance(value, bool | int | float | str):
        return f"`{value!r}`"
    text = without_addresses(repr(value))
    return "" if len(text) > _LETTERS else f"`{text}`"


def _told(call: str, path: Any) -> str:
    return f"`{call}(checkpoint={str(path)!r})`"


@contextlib.contextmanager
def saving_to(
    checkpoint: Any, seconds: Any, call: str, arguments: Callable[[], Mapping[str, Any]]
) -> Iterator[Saving]:
    """How a call keeps its run; the file is held for this process while the block runs.

    Args:
        checkpoint: the file, `.npz`; None to keep nothing.
        seconds: between two times that it is written.
        call: the name of the function.
        arguments: what decides the run, by name.

    Raises:
        TypeError, ValueError, OSError: `checkpoint` names no file that can be written.
        ValueError: `seconds` is none; the file belongs to another call, or is something else.
        RuntimeError: another run holds the file.
    """
    if not is_real(seconds) or not seconds >= 0:
        raise ValueError(
            f"`{call}(checkpoint_seconds={seconds!r})` must be a number of seconds, at least 0."
        )
    if checkpoint is None:
        yield Saving()
        return
    path = checked_path(checkpoint, ".npz", call + "(checkpoint={!r})")
    with _held(path, call):
        yield _ToFile(path, float(seconds), call, arguments())


@contextlib.contextmanager
def _held(path: Path, call: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path.parent, f".gflow-{path.name}.lock"))
        except Locked:
            raise RuntimeError(
                f"{_told(call, path)}: another run is writing into this file: wait for it to end, "
                "or choose another file."
            ) from None
        yield
