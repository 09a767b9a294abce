"""Files that are there whole or not at all, and folders that one process at a time writes into.

A file is written beside its place under another name, brought to the disk, and then renamed: a full
disk, a power cut or an interrupt leaves what was there before.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

LOCK_NAME = ".gflow.lock"

# What a lock says that another process holds; other errors come of file systems without locks.
_TAKEN = {errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK}


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file to be written, which takes the place of `path` once the block is left.

    Where the block, or bringing its content to the disk, fails, `path` stays as it was, and nothing
    is left beside it. A symbolic link stays one, and the file that it names is replaced. The
    permissions are those of the file that is replaced, or of any new file.

    Raises:
        OSError: the file cannot be written; `filename` is `path`.
    """
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():  # a device or a pipe cannot be renamed to
            with target.open("wb") as handle:
                yield handle
            return
        with _beside(target) as handle:
            yield handle
        _sync_folder(target.parent)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[BinaryIO]:
    """A file of another name in the same folder, renamed to `target` at the end."""
    temporary = target.with_name(f".gflow-{secrets.token_hex(6)}.part")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)  # less what the process's umask takes away
    try:
        with os.fdopen(descriptor, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        with contextlib.suppress(OSError):  # there is no earlier file, or it is another user's
            os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    """Brings the new name to the disk, where the system can open folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Writes `text` in UTF-8 as the whole content of `path`; see `replacing`."""
    with replacing(path) as handle:
        handle.write(text.encode("utf-8"))
    return Path(path)


def checked_path(path: Any, suffix: str, call: str) -> Path:
    """`path` with `suffix` appended unless it ends in that, once it can name a file to be written.

    Args:
        call: the call for messages, with `{!r}` where the path stands.

    Raises:
        TypeError: it is no path.
        ValueError: it names no file.
        FileNotFoundError, NotADirectoryError, IsADirectoryError: there is no folder to hold the
            file, or a folder in its place.
    """
    call = f"`{call.format(path)}`"
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise TypeError(f"{call}: give the path of a file, such as 'run{suffix}'.")
    text = os.fspath(path)
    separators = tuple(filter(None, (os.sep, os.altsep)))
    if (
        not text.strip()
        or text.endswith(separators)
        or Path(text).name in ("", "..")
        or text == "."
    ):
        raise ValueError(f"{call}: this names no file. Give one, such as 'run{suffix}'.")
    if "\0" in text:
        raise ValueError(f"{call}: a path holds no null characters.")
    # Not `with_suffix`, to which ".1" is the suffix of "eps=0.1".
    target = Path(text) if text.endswith(suffix) else Path(f"{text}{suffix}")
    folder = target.parent
    if not folder.exists():
        raise FileNotFoundError(
            errno.ENOENT,
            f"{call}: there is no folder `{folder}`. Make it first: "
            f"`pathlib.Path({str(folder)!r}).mkdir(parents=True)`.",
        )
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{call}: `{folder}` is a file, not a folder.")
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"{call}: `{target}` is a folder.")
    return target


class Locked(Exception):
    """Another process is writing into the folder."""


@contextlib.contextmanager
def locked(folder: Path, name: str = LOCK_NAME) -> Iterator[None]:
    """Holds `folder`, or what `name` stands for in it, for this process while the block runs.

    The lock is one of the operating system, on the file `name` in the folder: it ends with the
    process however that ends, so that a file that is left behind keeps nobody out. File systems
    without locks are written to unlocked.

    Raises:
        Locked: it is held already.
        OSError: nothing can be written into the folder.
    """
    path = folder / name
    descriptor = _locked_file(path)
    try:
        yield
    finally:
        # Removed while it is still held: nobody else can have locked this very file.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _locked_file(path: Path) -> int:
    """A descriptor of the file at `path`, locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
            # Whoever held it before may have removed the file that was opened here.
            if _names(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _names(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> None:
    try:
        _system_lock(descriptor)
    except OSError as error:
        if error.errno in _TAKEN:
            raise Locked from error


def _system_lock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:
        msvcrt: Any = __import__("msvcrt")  # Windows
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
