"""Jobs whose runs go to their limits: shares of the time, interrupts, kills, and going on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optax
import pytest
from rich.console import Console

from gflow import descend, load
from gflow.__main__ import main
from gflow.commands import working
from gflow.commands.crew import Crew, Programs
from gflow.commands.job import Job, Options
from gflow.commands.reading import UserError
from gflow.commands.resuming import read_job
from gflow.commands.schedule import Schedule
from gflow.configuration import Configuration
from gflow.reference import max_margin
from gflow.report import read_results
from gflow.report.end import load_end

JOB = """
seed = 1
[data]
kind = "gaussian"
n = 6
d = 4
[[network]]
kind = "linear"
[[perturbation]]
kind = "fgm"
radius = 0.1
[until]
log_loss = -2.0
"""


def run(folder, *options):
    (folder / "job.toml").write_text(JOB)
    given = ["run", str(folder / "job.toml"), "-o", str(folder / "out"), "--jobs", "1"]
    return main([*given, *options])


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("limits")
    assert run(folder) == 0
    return folder / "out"


def test_a_run_ends_at_the_max_margin_direction(job):
    (found,) = read_results(job).runs
    problem = load(job / "trajectories" / "01.npz").problem
    reference = max_margin(problem.dataset, radius=0.1, order=2)
    assert found.succeeded and found.words["basin"] == "confirmed"
    assert found.figures["limit_margin"] == pytest.approx(reference.margin, rel=1e-9)
    assert found.figures["limit_stationarity"] < 1e-8
    end = load_end(job / "ends" / "01.npz")
    np.testing.assert_allclose(end.limit, np.ravel(reference.direction), atol=1e-9)
    distance = np.linalg.norm(end.stopped - end.limit)
    assert found.figures["distance"] == pytest.approx(distance, rel=1e-12)
    # The flow that is kept goes on from where it was told to stop to where the search took over.
    flow = load(job / "trajectories" / "01.npz")
    assert flow.log_loss[-1] < -900
    last = np.linalg.norm(flow.vectors[-1] - end.limit)
    assert found.figures["distance_at_cap"] == pytest.approx(last, rel=1e-9)
    assert last < distance


SEVERAL = (
    "max_seconds = 1e5"
    + JOB.replace("seed = 1", "seed = [0, 1]").replace("radius = 0.1", "radius = [0.0, 0.1]")
    + "[descent]\nenabled = true\nstep_size = 0.05\nnum_steps = 50\nbatch_size = 4\nseed = 3\n"
)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A job of two seeds and two radii, with training by steps beside it."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "job.toml").write_text(SEVERAL)
    given = ["run", str(folder / "job.toml"), "-o", str(folder / "out"), "--jobs", "1"]
    assert main(given) == 0
    return folder / "out"


def test_training_by_steps_beside_a_run_is_that_of_descend(several):
    runs = read_results(several).runs
    assert [run.network for run in runs] == ["linear, seed 0"] * 2 + ["linear, seed 1"] * 2
    for number, run in enumerate(runs, start=1):
        kept = load(several / "descents" / f"{number:02d}.npz")
        flow = load(several / "trajectories" / f"{number:02d}.npz")
        again = descend(
            kept.problem,
            flow.params_at_index(0),
            optax.sgd(0.05),
            num_steps=50,
            batch_size=4,
            seed=3,
        )
        np.testing.assert_allclose(kept.vectors, again.vectors, atol=1e-12)
        limit = load_end(several / "ends" / f"{number:02d}.npz").limit
        distance = np.linalg.norm(kept.vectors[-1] - limit)
        assert run.figures["descent_distance"] == pytest.approx(distance, rel=1e-12)
        assert run.figures["descent_margin"] == kept.margin[-1]
        assert distance > 1e-3


def test_a_job_of_several_seeds_tells_their_mean_and_range(several, tmp_path):
    page = (several / "report.html").read_text()
    assert "linear: mean over 2 seeds, and range" in page and "Each seed by itself" in page
    assert "descent:" in page
    assert main(["report", str(several), "--matrix", str(tmp_path / "matrix.png")]) == 0
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG")


def test_a_matrix_is_drawn_only_where_there_is_one(job, tmp_path, capsys):
    empty = tmp_path / "empty"
    shutil.copytree(job, empty, ignore=shutil.ignore_patterns("evaluations"))
    for folder, file in ((empty, "matrix.png"), (job, "matrix.nothing")):
        assert main(["report", str(folder), "--matrix", str(tmp_path / file)]) == 2
    assert "no matrix to draw" in capsys.readouterr().err
    assert not list(tmp_path.glob("matrix*"))


@pytest.mark.slow
def test_a_batch_larger_than_the_data_is_refused(tmp_path, capsys):
    (tmp_path / "job.toml").write_text(SEVERAL.replace("batch_size = 4", "batch_size = 7"))
    assert main(["run", str(tmp_path / "job.toml"), "-o", str(tmp_path / "out")]) == 2
    assert "`batch_size = 7`, but there are 6 examples" in capsys.readouterr().err


def test_the_report_shows_the_limit(job):
    page = (job / "report.html").read_text()
    for words in (
        "Trained under &times; attacked by",
        "Normalized margin at the limit",
        "Normalized margin at equal loss e⁻²",
        "Distance of the direction to its limit",
        found_margin(job),
    ):
        assert words in page


def found_margin(job):
    return f"{read_results(job).runs[0].figures['limit_margin']:#.4g}"


def test_a_finished_job_is_loaded(job, tmp_path, capsys, monkeypatch):
    shutil.copytree(job, tmp_path / "out")
    monkeypatch.setattr(working, "follow", None)  # nothing is followed
    assert main(["run", "--resume", str(tmp_path / "out"), "--jobs", "1", "--no-report"]) == 0
    assert "finished before" in capsys.readouterr().out
    assert read_results(tmp_path / "out").runs == read_results(job).runs


def test_a_run_that_was_killed_at_its_limit_goes_on_from_its_flow(
    job, tmp_path, capsys, monkeypatch
):
    shutil.copytree(job, tmp_path / "out")
    (tmp_path / "out" / "ends" / "01.npz").unlink()
    follow, starts = working.follow, []

    def followed(configuration, case, saved, *others):
        starts.append(saved)
        return follow(configuration, case, saved, *others)

    monkeypatch.setattr(working, "follow", followed)
    assert main(["run", "--resume", str(tmp_path / "out"), "--jobs", "1", "--no-report"]) == 0
    assert len(starts[0]) > 10  # points of the flow that was on the disk
    one, other = (load_end(folder / "ends" / "01.npz") for folder in (job, tmp_path / "out"))
    np.testing.assert_allclose(other.limit, one.limit, atol=1e-9)
    # A damaged file is none.
    (tmp_path / "out" / "trajectories" / "01.npz").write_bytes(b"cut off")
    order = working.Order(0, SimpleNamespace(problem=None), tmp_path / "out", resumed=True)
    assert working._saved_flow(order) is None


@pytest.mark.parametrize("content", [None, b"cut off"], ids=["gone", "damaged"])
def test_a_run_without_its_trajectory_is_not_finished(job, tmp_path, content):
    shutil.copytree(job, tmp_path / "out")
    problem = load(job / "trajectories" / "01.npz").problem
    case = SimpleNamespace(problem=problem, network="linear", perturbation="fgm")
    order = working.Order(0, case, tmp_path / "out", resumed=True)
    assert working.finished(order) is not None
    path = tmp_path / "out" / order.trajectory
    path.unlink() if content is None else path.write_bytes(content)
    assert working.finished(order) is None


def test_an_interrupt_inside_a_limit_is_one(job, tmp_path, capsys, monkeypatch):
    """Ctrl-C while the flow goes to its cap."""
    shutil.copytree(job, tmp_path / "out")
    (tmp_path / "out" / "ends" / "01.npz").unlink()
    (tmp_path / "out" / "trajectories" / "01.npz").unlink()
    seek = working.seek

    def interrupted(options, case, flow, seconds, report):
        def stop(status):
            raise KeyboardInterrupt

        return seek(options, case, flow, seconds, stop)

    monkeypatch.setattr(working, "seek", interrupted)
    arguments = ["run", "--resume", str(tmp_path / "out"), "--jobs", "1", "--no-report"]
    assert main(arguments) == 130
    output = capsys.readouterr().out
    assert "Interrupted" in output and "0 of 1 runs" in output
    (found,) = read_results(tmp_path / "out").runs
    assert not found.succeeded and found.outcome == "interrupted" and not found.words
    assert set(found.figures) == {"log_loss", "log_kappa", "log1p_time", "steps"}
    assert not (tmp_path / "out" / "ends" / "01.npz").exists()
    assert load(tmp_path / "out" / "trajectories" / "01.npz").successful
    monkeypatch.undo()
    assert main(arguments) == 0
    assert read_results(tmp_path / "out").runs[0].succeeded


def test_of_a_network_that_is_too_large_the_flow_is_followed(job, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(working, "too_many_weights", lambda case: True)
    assert run(tmp_path, "--no-report") == 0
    output = capsys.readouterr().out
    assert "weights are too many for a limit" in output
    assert "The limits of 0 of 1 runs were found" in output
    (found,) = read_results(tmp_path / "out").runs
    assert found.succeeded and "verdict" not in found.words
    assert "limit_stationarity" not in found.figures


def test_a_run_whose_time_is_spent_has_no_verdict(job, tmp_path, capsys):
    assert run(tmp_path, "--set", "max_seconds=1e-6", "--no-report") == 1
    output = capsys.readouterr().out
    assert "not arrived" in output and "The limits of 0 of 1 runs were found" in output
    (found,) = read_results(tmp_path / "out").runs
    assert found.outcome == "seconds_spent" and not found.words
    # It is not finished: with more time it is gone on with.
    config = tmp_path / "out" / "config.toml"
    config.write_text(config.read_text().replace("max_seconds = 1e-06", "max_seconds = 1000.0"))
    assert main(["run", "--resume", str(tmp_path / "out"), "--jobs", "1", "--no-report"]) == 0


def shares(waiting, size, elapsed, whole=100.0, cases=10):
    job = Job(
        Configuration(max_seconds=whole),
        Path(),
        Console(),
        Options(),
        [None] * cases,
        None,
        time.perf_counter() - elapsed,
    )
    schedule = Schedule(job, Crew(size, Programs(kept=False), lambda *_: None), None)
    schedule.waiting = list(waiting)
    return schedule._share()


def test_what_is_left_is_shared_by_the_runs_that_are_left():
    # Ten runs, two at once: a fifth of the time for each.
    assert shares(range(1, 10), 2, 0.0) == pytest.approx(20.0, abs=0.1)
    # The first eight were quick: the last two have all that is left at once.
    assert shares([9], 2, 40.0) == pytest.approx(60.0, abs=0.1)
    assert shares([], 2, 90.0) == pytest.approx(10.0, abs=0.1)
    # Evaluations, whose numbers follow, are no runs.
    assert shares([9, 10, 11], 2, 40.0) == pytest.approx(60.0, abs=0.1)
    assert 0 < shares([], 2, 1000.0) < 0.1
    assert shares([1], 2, 10.0, whole=None) is None


def test_only_a_job_is_gone_on_with(tmp_path, capsys):
    assert main(["run", "--resume", str(tmp_path)]) == 2
    assert "holds no job to go on with" in capsys.readouterr().err
    for option in (["--set", "seed=1"], ["--quick"], ["--seed", "0"], ["-o", "x"], ["--overwrite"]):
        assert main(["run", "--resume", str(tmp_path), *option]) == 2
        assert "as it was asked for" in capsys.readouterr().err
    (tmp_path / "config.toml").write_text("seed = 1")
    with pytest.raises(UserError, match=r"results\.json"):
        read_job(tmp_path, others=False)


@pytest.mark.slow
def test_a_killed_job_goes_on_in_two_processes(tmp_path):
    text = JOB + '[limit]\nenabled = false\n[[perturbation]]\nkind = "clean"\n'
    (tmp_path / "job.toml").write_text(text)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "gflow", "run", "--no-report", "--jobs", "2"]
    with subprocess.Popen(
        [*command, str(tmp_path / "job.toml"), "-o", str(out)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as first:
        assert first.stdout is not None
        for line in first.stdout:
            if "log-loss" in line:  # one run is finished
                os.killpg(first.pid, signal.SIGKILL)
                break
    done = subprocess.run(
        [*command, "--resume", str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "finished before" in done.stdout and "2 of 2 runs" in done.stdout
    assert len(json.loads((out / "results.json").read_text())["runs"]) == 2
