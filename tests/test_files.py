"""Files are replaced whole or not at all; a folder belongs to one process at a time."""

import errno
import os
import stat
import subprocess
import sys

import pytest

from gflow import _files
from gflow._files import Locked, checked_path, locked, replacing, write_text

resource = pytest.importorskip("resource", reason="limits of a process, as POSIX has them")


def everything_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


class Broken(Exception):
    pass


def test_a_file_is_written_whole(tmp_path):
    assert write_text(tmp_path / "a", "γ\n") == tmp_path / "a"
    assert everything_in(tmp_path) == {"a": "γ\n".encode()}
    write_text(tmp_path / "a", "other")
    assert everything_in(tmp_path) == {"a": b"other"}


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt, OSError(errno.ENOSPC, "full")])
@pytest.mark.parametrize("before", [{}, {"a": b"old"}])
def test_what_fails_half_way_leaves_what_was_there(tmp_path, before, error):
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    kind = error if isinstance(error, type) else type(error)
    with pytest.raises(kind), replacing(tmp_path / "a") as handle:
        handle.write(b"new" * 100_000)
        raise error
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_step_names_the_file_and_leaves_no_other(tmp_path, monkeypatch, step):
    (tmp_path / "a").write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(_files.os, step, full)
    with pytest.raises(OSError) as failure:
        write_text(tmp_path / "a", "new")
    assert failure.value.filename == str(tmp_path / "a")
    assert failure.value.errno == errno.ENOSPC
    assert everything_in(tmp_path) == {"a": b"old"}


# A limit on the size of files is a full disk that any user can make.
FULL_DISK = """
import resource, signal, sys
from gflow._files import write_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))
for size in (5000, 7000, 70_000_000):
    try:
        write_text(sys.argv[1], "x" * size)
        print("written")
    except OSError as error:
        print(error.errno, error.filename == sys.argv[1])
"""


def test_a_full_disk_leaves_the_earlier_file(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "a")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[:3] == ["written", *[f"{errno.EFBIG} True"] * 2]
    assert everything_in(tmp_path) == {"a": b"x" * 5000}


def test_permissions_are_those_of_any_file_or_of_the_earlier_one(tmp_path):
    mask = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "new")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    (tmp_path / "a").chmod(0o604)
    write_text(tmp_path / "a", "newer")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o604


@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_stays_one(tmp_path, there):
    (tmp_path / "far").mkdir()
    if there:
        (tmp_path / "far" / "a").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "far" / "a")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert everything_in(tmp_path / "far") == {"a": b"new"}


def test_a_device_is_written_to_and_stays():
    write_text(os.devnull, "x" * 10_000)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("", ValueError, "names no file"),
        (" ", ValueError, "names no file"),
        (".", ValueError, "names no file"),
        ("..", ValueError, "names no file"),
        ("runs/", ValueError, "names no file"),
        ("a\0b", ValueError, "null"),
        (None, TypeError, "path of a file"),
        (3, TypeError, "path of a file"),
        (b"run", TypeError, "path of a file"),
        ("absent/run", FileNotFoundError, "no folder `absent`.*mkdir"),
        ("file/run", NotADirectoryError, "`file` is a file"),
        ("folder", IsADirectoryError, "`folder.npz` is a folder"),
    ],
)
def test_a_path_that_names_no_file_is_told(tmp_path, monkeypatch, path, error, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(error, match=words) as refusal:
        checked_path(path, ".npz", "trajectory.save({!r})")
    assert f"`trajectory.save({path!r})`" in str(refusal.value)


def test_a_suffix_is_appended_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["run", "run.npz", "eps=0.1", ".npz", "~"]
    written = [checked_path(name, ".npz", "save({!r})").name for name in names]
    assert written == ["run.npz", "run.npz", "eps=0.1.npz", ".npz", "~.npz"]


# The lock


HOLDER = """
import sys, pathlib
from gflow._files import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    with locked(tmp_path):
        with pytest.raises(Locked), locked(tmp_path):
            pytest.fail("held twice")
        assert os.listdir(tmp_path) == [_files.LOCK_NAME]
    assert os.listdir(tmp_path) == []
    with locked(tmp_path):
        pass


def test_a_living_process_keeps_others_out_and_a_dead_one_nobody(tmp_path):
    with holder(tmp_path) as process:
        with pytest.raises(Locked), locked(tmp_path):
            pytest.fail("held by two processes")
        process.kill()
    # Killed, it left its file behind.
    assert os.listdir(tmp_path) == [_files.LOCK_NAME]
    with locked(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_the_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(Broken), locked(tmp_path):
        raise Broken
    with locked(tmp_path):
        pass


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    removed = []

    def lock(descriptor):
        if not removed:
            removed.append(descriptor)
            (tmp_path / _files.LOCK_NAME).unlink()

    monkeypatch.setattr(_files, "_lock", lock)
    with locked(tmp_path):
        assert (tmp_path / _files.LOCK_NAME).exists()
    assert removed


def test_a_file_system_without_locks_is_written_to(tmp_path, monkeypatch):
    def unsupported(_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(_files, "_system_lock", unsupported)
    with locked(tmp_path):
        pass
