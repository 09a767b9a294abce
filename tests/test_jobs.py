"""Jobs of the command line and their folder: one at a time, and a disk that is full."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module

import pytest

from gflow import load
from gflow.__main__ import cli, main
from gflow._files import LOCK_NAME, locked
from gflow.commands import folder, working
from gflow.commands.folder import claimed
from gflow.commands.reading import UserError
from gflow.report import read_results

JOB = """
seed = 1
[data]
kind = "gaussian"
n = 6
d = 2
[[network]]
kind = "linear"
[[perturbation]]
kind = "clean"
[[perturbation]]
kind = "fgm"
radius = 0.1
[until]
log_loss = 1.0
[limit]
enabled = false
"""


@pytest.fixture
def arguments(tmp_path):
    (tmp_path / "job.toml").write_text(JOB)
    return [
        "run",
        str(tmp_path / "job.toml"),
        "-o",
        str(tmp_path / "out"),
        "--jobs",
        "1",
        "--no-report",
    ]


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


WHOLE = {
    "config.toml",
    "results.json",
    "report.html",
    "trajectories/01.npz",
    "trajectories/02.npz",
    "ends/01.npz",
    "ends/02.npz",
    "evaluations/01.npz",
}


@pytest.mark.slow
def test_a_job_leaves_its_files_and_no_others(tmp_path, arguments):
    assert main(arguments[:-1]) == 0
    assert names(tmp_path / "out") == WHOLE


def test_a_second_run_is_refused_in_one_sentence(tmp_path, arguments, capsys):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"):
        assert main(arguments) == 2
        assert main([*arguments, "--overwrite"]) == 2
        assert names(tmp_path / "out") == {LOCK_NAME}
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert f"another run is writing into `{tmp_path / 'out'}`" in line


HOLDER = """
import pathlib, sys
from gflow.commands.folder import claimed
with claimed(pathlib.Path(sys.argv[1]), overwrite=False):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_that_was_killed_keeps_nobody_out(tmp_path):
    folder = tmp_path / "deep" / "out"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another run"), claimed(folder, overwrite=True):
            pytest.fail("claimed twice")
        process.kill()
    with claimed(folder, overwrite=False):
        assert names(folder) == {LOCK_NAME}


CREW = """
import multiprocessing, sys, time
from gflow.commands.crew import Crew, Programs

def main():
    with Crew(2, Programs(kept=False), print) as crew:
        tasks = [crew.submit(time.sleep, n, 3600) for n in range(2)]
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        tasks[0].result()

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="process ids as of POSIX")
def test_workers_end_with_a_job_that_was_killed(tmp_path):
    (tmp_path / "crew.py").write_text(CREW)
    command = [sys.executable, str(tmp_path / "crew.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(word) for word in process.stdout.readline().split()]
        assert len(workers) == 2 and all(map(runs, workers))
        process.kill()
    deadline = time.monotonic() + 60  # a worker that starts first loads what it needs
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, workers))


def runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP"])
def test_a_job_that_is_asked_to_end_is_interrupted(number, monkeypatch, capsys):
    number = getattr(signal, number)

    def job(*args, **options):
        os.kill(os.getpid(), number)
        for _ in range(1000):  # Python runs handlers between two instructions
            pass
        pytest.fail("not interrupted")

    monkeypatch.setattr(cli, "main", job)
    assert main(["run"]) == 130
    assert capsys.readouterr().err == "gflow: interrupted.\n"
    assert signal.getsignal(number) is signal.SIG_DFL
    # As `nohup` leaves it: it is not heard.
    before = signal.signal(number, signal.SIG_IGN)
    try:
        monkeypatch.setattr(cli, "main", lambda *args, **options: os.kill(os.getpid(), number))
        assert main(["run"]) == 0
    finally:
        signal.signal(number, before)


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path, arguments):
    with pytest.raises(UserError), claimed(tmp_path / "a" / "b", overwrite=False):
        raise UserError("the data cannot be read")
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    with claimed(tmp_path / "mine", overwrite=False):
        pass
    assert (tmp_path / "mine").exists()
    assert main([*arguments, "--set", "data={kind='npz', path='absent.npz'}"]) == 2
    assert not (tmp_path / "out").exists()


def test_results_are_overwritten_only_when_asked(tmp_path, arguments, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text("mine")
    assert main(arguments) == 2
    assert "holds results already" in capsys.readouterr().err
    assert (tmp_path / "out" / "results.json").read_text() == "mine"


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sentence(capsys):
    error = capsys.readouterr().err
    assert "Traceback" not in error and error.startswith("gflow: ") and error.count("\n") == 1
    assert "No space left on device" in error
    return error


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_in_a_sentence(tmp_path, arguments, capsys, monkeypatch):
    follow, saved = working.follow, []

    def second_does_not_fit(*given):
        trajectory = follow(*given)
        if saved:
            monkeypatch.setattr(type(trajectory), "save", full)
        saved.append(trajectory)
        return trajectory

    monkeypatch.setattr(working, "follow", second_does_not_fit)
    assert main(arguments) == 2
    error = sentence(capsys)
    assert "1 of 2 runs are safe" in error and "gflow run --resume" in error
    kept = {"config.toml", "results.json", "trajectories/01.npz", "ends/01.npz"}
    assert names(tmp_path / "out") == kept
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results["runs"]) == 1 and results["planned"] == 2
    assert load(tmp_path / "out" / "trajectories" / "01.npz").successful
    # What the sentence advises.
    monkeypatch.undo()
    assert main(["run", "--resume", str(tmp_path / "out"), "--jobs", "1", "--no-report"]) == 0
    runs = read_results(tmp_path / "out").runs
    assert [run.trajectory for run in runs] == ["trajectories/01.npz", "trajectories/02.npz"]
    assert runs[0].seconds == results["runs"][0]["seconds"]  # taken as it was
    assert "finished before" in capsys.readouterr().out


@pytest.mark.parametrize(
    "file", ["results.json", pytest.param("report.html", marks=pytest.mark.slow)]
)
def test_a_disk_that_is_full_at_the_end(tmp_path, arguments, capsys, monkeypatch, file):
    # By name, since `gflow.report` has a function `record` too.
    module = import_module(f"gflow.report.{'record' if file == 'results.json' else 'page'}")
    write = module.write_text

    def does_not_fit(path, text):
        if path.name == file and (file == "report.html" or '"network"' in text.split("runs")[-1]):
            full()
        return write(path, text)

    monkeypatch.setattr(module, "write_text", does_not_fit)
    assert main(arguments[:-1]) == 2
    safe = 0 if file == "results.json" else 2
    assert f"{safe} of 2 runs are safe" in sentence(capsys)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results["runs"]) == safe


def test_a_disk_that_is_full_from_the_start(tmp_path, arguments, capsys, monkeypatch):
    monkeypatch.setattr(folder, "write_text", full)
    assert main(arguments) == 2
    assert "Nothing was integrated" in sentence(capsys)


LIMITED = """
import resource, signal, sys
from gflow.__main__ import cli, main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_limit_of_the_system_is_met_as_a_full_disk(tmp_path, arguments):
    # Enough for config.toml and results.json, too little for a trajectory.
    command = [sys.executable, "-c", LIMITED, "6000", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert re.search(r"trajectories/01\.npz` cannot be written: File too large", done.stderr)
    assert "Traceback" not in done.stderr
    assert names(tmp_path / "out") == {"config.toml", "results.json"}
