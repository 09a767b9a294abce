"""Sweeps shared by several processes, real ones, which meet through `jax.distributed`."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest
from test_sweep import assert_same
from test_sweep_command import JOB as SWEEP

import gflow
from gflow.__main__ import main
from gflow.sweeps import processes
from gflow.sweeps.processes import Companions, Group

JOB = SWEEP.replace("[0.1, 0.2, 1.0]", "[0.0, 0.1, 0.2]")

# One of two processes; a slow one waits before each chunk, so that it can be killed between two.
CHILD = """
    import sys, time
    import jax
    index, port, slow = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "slow"
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
    from gflow.__main__ import main
    from gflow.sweeps import processes, searching
    processes._BETWEEN, processes._SILENCE = 0.2, 8.0
    search = searching.find_limits
    def delayed(*arguments, **options):
        time.sleep(1.0)
        return search(*arguments, **options)
    searching.find_limits = delayed if slow else search
    sys.exit(main(sys.argv[4:]))
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def begin(tmp_path):
    """Begins two processes of the same command; they are killed at the end."""
    environment = os.environ | {
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_ENABLE_X64": "1",
        # What jaxlib logs where one process reads a program that the other has written.
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "programs"))
    children = []

    def begun(arguments, slow=None):
        port = str(free_port())
        for index in range(2):
            pace = "slow" if index == slow else "usual"
            command = [sys.executable, "-c", textwrap.dedent(CHILD), str(index), port, pace]
            children.append(
                subprocess.Popen(
                    [*command, *map(str, arguments)],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        return children[-2:]

    yield begun
    for child in children:
        child.kill()
        child.communicate()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same sweep by one process."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "job.toml").write_text(JOB)
    arguments = ["sweep", str(folder / "job.toml"), "--no-report", "--chunk", "1"]
    assert main([*arguments, "--output", str(folder / "out")]) == 0
    return gflow.Sweep.load(folder / "out" / "runs")


def asked(tmp_path):
    (tmp_path / "job.toml").write_text(JOB)
    options = ["--output", tmp_path / "out", "--no-report", "--chunk", "1", "--distributed"]
    return ["sweep", tmp_path / "job.toml", *options]


def killed_after(child, path):
    while not path.exists():
        assert child.poll() is None, child.communicate()[0]
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("index", [pytest.param(index, marks=pytest.mark.slow) for index in (0, 1)])
def test_one_is_killed_and_the_job_ends_in_a_sentence_and_goes_on(tmp_path, begin, alone, index):
    children = begin(asked(tmp_path), slow=index)
    runs = tmp_path / "out" / "runs"
    # Of six chunks, which the two take in turn, the first one of its share.
    killed_after(children[index], runs / f"chunk-{index + 1:06d}.npz")
    told, _ = children[1 - index].communicate(timeout=600)
    assert children[1 - index].returncode == 1
    sentence = (
        f"2 run(s) are not finished. Not begun, or not kept: process {index} of 2 was killed, or "
        f"has not been heard of for 8 s. Go on with `gflow sweep --resume {tmp_path / 'out'}`."
    )
    assert told.strip().splitlines()[-1] == sentence
    assert "Traceback" not in told and "stack trace" not in told
    kept = gflow.Sweep.load(runs)
    finished = [number for number, run in enumerate(kept) if run.arrived]
    assert finished == sorted({index, 1 - index, 3 - index, 5 - index})
    assert_same(kept.arrived, gflow.Sweep(tuple(alone[number] for number in finished)))
    assert main(["sweep", "--resume", str(tmp_path / "out"), "--no-report"]) == 0
    assert_same(gflow.Sweep.load(runs), alone)


@pytest.mark.slow
def test_both_return_the_sweep_of_one_process(tmp_path, begin, alone):
    both = begin(asked(tmp_path))
    told = [child.communicate(timeout=600)[0] for child in both]
    assert [child.returncode for child in both] == [0, 0], told
    assert "6 of 6" in told[0] and not told[1].strip()
    assert (tmp_path / "out" / "sweep.csv").exists()
    assert_same(gflow.Sweep.load(tmp_path / "out" / "runs"), alone)
    # A folder that holds results is refused by the first, and the other does not wait.
    both = begin(asked(tmp_path))
    told = [child.communicate(timeout=600)[0] for child in both]
    assert [child.returncode for child in both] == [2, 2], told
    assert all("holds results already" in text for text in told)


@pytest.fixture
def pair(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_SILENCE", 0.3)
    return [Companions(Group(index, 2, "token"), tmp_path) for index in range(2)]


def test_a_process_tells_the_others_how_it_ended(pair):
    with pytest.raises(ZeroDivisionError), pair[0].present():
        pair[0].agree(lambda: 1 // 0)
    with pair[1].present():
        with pytest.raises(RuntimeError, match="process 0 of 2 ended with ZeroDivisionError"):
            pair[1].agree(lambda: None)
        pair[1].end("", [3])
    lost, written = pair[1].wait()
    assert lost == {0: "ended with ZeroDivisionError: integer division or modulo by zero"}
    assert not written and pair[0].wait() == ({}, {3})


def test_a_process_that_is_not_heard_of_is_not_waited_for(pair, tmp_path):
    with pair[1].present():
        with pytest.raises(RuntimeError, match="must be one that all processes see"):
            pair[1].agree(lambda: None)
        # Of a process of an earlier call there is a file; it is of no account.
        other = Companions(Group(0, 2, "an earlier one"), tmp_path)
        other.end("", [5])
        lost, written = pair[1].wait()
    assert list(lost) == [0] and "killed" in lost[0] and not written


def test_without_a_folder_or_others_nothing_is_shared(tmp_path):
    with pytest.raises(ValueError, match="give a `folder`"):
        gflow.sweep(lambda seed: None, {"seed": [0]}, distributed=True)
    with pytest.raises(RuntimeError, match=r"jax\.distributed\.initialize\(coordinator_address"):
        gflow.sweep(lambda seed: None, {"seed": [0]}, folder=tmp_path, distributed=True)
