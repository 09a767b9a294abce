"""Compiled programs as files, so that a later process need not trace them either.

JAX's persistent cache keeps what the compiler made, but to find it JAX first traces the function
and lowers it, which takes longer than the rest of a first limit. Here a program is found by a name
that is made of the arguments (`gflow._program_names`), and neither is done.

A file is a head line with a checksum, and a compressed pickle. What stands in the folder is run as
a program, as what stands in JAX's cache is: it must be the user's own.
"""

import contextlib
import functools
import hashlib
import os
import pickle
import re
import secrets
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

_FORMAT = b"gflow-program-1"
_SUFFIX = ".program"
# Functions outside a program that it calls. Those of LAPACK are there in any process once JAX has
# loaded the library; of others that is not known.
_CALLED = re.compile(r"custom_call @(\w+)")
_LAPACK = "lapack_"
# The fastest: 99 programs take 11 instead of 52 MB; the largest of them, 7 MB, takes 60 ms of CPU
# time to compress and 30 to expand.
_COMPRESSION = 1
_HIT = "/jax/compilation_cache/cache_hits"


class Kept(NamedTuple):
    """A compiled program that takes a list of arrays and returns one.

    Attributes:
        run: the program.
        result: what the function returns, with the number of an array in the list in its place.
        places: where among the leaves of `result` the arrays stand.
    """

    run: Any
    result: Any
    places: list[int]


# A program in bytes, and whether it calls LAPACK.
Written = tuple[bytes, bool]


class _Folder(NamedTuple):
    path: Path
    max_bytes: int


_KEPT_IN: list[_Folder] = []


def keep_in(path: Path, max_bytes: int) -> None:
    """From now on programs are kept in this folder, while JAX's cache is that around it."""
    _KEPT_IN[:] = [_Folder(path, max_bytes)]


def folder() -> Path | None:
    """Where programs are kept at present; None if they are not."""
    config: Any = jax.config  # the type checker knows only some of its settings
    if not _KEPT_IN or not config.jax_enable_compilation_cache:
        return None
    path = _KEPT_IN[0].path
    return path if str(path.parent) == config.jax_compilation_cache_dir else None


def load(name: str, num_arrays: int) -> Kept | None:
    """The program of this name, which takes so many arrays; None where it is not kept, or the file
    is not whole, which then goes.
    """
    kept_in = folder()
    if kept_in is None:
        return None
    path = kept_in / f"{name}{_SUFFIX}"
    try:
        head, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    try:
        if head != _head(content):
            raise ValueError("the checksum is another")
        kept = _read(content, num_arrays)
    except Exception:  # whatever a damaged file, or one of another version of JAX, may cause
        _remove(path)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # used just now
    return kept


def _read(content: bytes, num_arrays: int) -> Kept:
    from jax.experimental import serialize_executable

    (executable, calls_lapack), result, places = pickle.loads(zlib.decompress(content))
    if calls_lapack:
        _load_lapack()
    arguments = jax.tree.structure((([0] * num_arrays,), {}))
    results = jax.tree.structure([0] * len(places))
    run = serialize_executable.deserialize_and_load(
        executable, arguments, results, execution_devices=jax.devices()[:1]
    )
    return Kept(run, result, places)


@functools.cache
def _load_lapack() -> None:
    """JAX loads LAPACK where a function that calls it is lowered. A program that is run without
    that would call what is not there, and end the process.
    """
    jax.jit(jax.lax.linalg.cholesky).lower(jax.ShapeDtypeStruct((1, 1), "float32"))


def compiled(jitted: Any, arrays: list[Any]) -> tuple[Any, Written | None]:
    """The program for these arrays, and the same in bytes; None where it cannot be written."""
    lowered = jitted.lower(arrays)
    called = _CALLED.findall(lowered.as_text())
    if not all(name.startswith(_LAPACK) for name in called):
        return lowered.compile(), None
    with _WITHOUT_JAX_CACHE.held(), _heard_hits() as hits:
        run = lowered.compile()
    # A program that JAX has read from a file cannot be written again: its functions have no names.
    return run, None if hits else _written(run, bool(called))


def _written(run: Any, calls_lapack: bool) -> Written | None:
    from jax.experimental import serialize_executable

    try:
        executable, _, _ = serialize_executable.serialize(run)
    except Exception:  # whatever this version of JAX cannot write
        return None
    return executable, calls_lapack


def save(name: str, executable: Written, result: Any, places: list[int]) -> None:
    """Keeps a program for later processes, if its result can be written and the disk takes it.

    Args:
        executable: of `compiled`.
        result, places: see `Kept`.
    """
    kept_in = folder()
    if kept_in is None:
        return
    try:
        content = pickle.dumps((executable, result, places))
        content = zlib.compress(content, _COMPRESSION)
    except Exception:  # a class or a function that pickle does not find by its name
        return
    size = len(content) + len(_head(content)) + 1
    with contextlib.suppress(OSError):
        kept_in.mkdir(exist_ok=True)
        _make_room(kept_in, _KEPT_IN[0].max_bytes - size)
        if size <= _KEPT_IN[0].max_bytes:
            _put(kept_in / f"{name}{_SUFFIX}", _head(content) + b"\n" + content)


def _head(content: bytes) -> bytes:
    return b"%s %s" % (_FORMAT, hashlib.sha256(content).hexdigest().encode())


def _put(path: Path, content: bytes) -> None:
    """The file, whole or not at all. It need not outlast a power cut, so nothing waits for a disk:
    a file that is not whole is noticed.
    """
    beside = path.with_name(f".{secrets.token_hex(6)}.part")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    except BaseException:
        _remove(beside)
        raise


def _make_room(kept_in: Path, most: int) -> None:
    """Removes the programs that were not used for longest, until the others take `most` bytes."""
    files = []
    for path in kept_in.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # another process has removed it
            status = path.stat()
            files.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= most:
            return
        _remove(path)
        total -= size


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


class _WithoutJaxCache:
    """Keeps JAX from writing what is compiled into its own cache too, as long as any thread asks
    for it; by the time that a program must take to compile in order to be kept.
    """

    _SETTING = "jax_persistent_cache_min_compile_time_secs"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_held, self._before = 0, 0.0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            if not self._num_held:
                self._before = getattr(jax.config, self._SETTING)
                jax.config.update(self._SETTING, float("inf"))
            self._num_held += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_held -= 1
                if not self._num_held:
                    jax.config.update(self._SETTING, self._before)


_WITHOUT_JAX_CACHE = _WithoutJaxCache()
_HEARD = threading.local()


@contextlib.contextmanager
def _heard_hits() -> Iterator[list[str]]:
    """Within, the list gets an entry for each program that this thread has from JAX's cache."""
    _listen()
    _HEARD.hits = hits = []
    try:
        yield hits
    finally:
        _HEARD.hits = None


@functools.cache
def _listen() -> None:
    def hear(event: str, **_: Any) -> None:
        hits = getattr(_HEARD, "hits", None)
        if hits is not None and event == _HIT:
            hits.append(event)

    jax.monitoring.register_event_listener(hear)
