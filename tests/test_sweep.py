"""Sweeps: the limits of a table of settings, as if one by one, and kept through a kill."""

import csv
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas
import pytest
from _sweeps import DATA, NETWORK, SETTINGS, make

import gflow
from gflow import losses, networks
from gflow._files import locked
from gflow.kkt.point import KKTPoint
from gflow.limit import stored as stored_limits
from gflow.sweeps import running, searching
from gflow.sweeps.table import COLUMNS, rows_of


@pytest.fixture(scope="module")
def found():
    return gflow.sweep(make, SETTINGS, chunk=2)


@pytest.fixture
def folder(tmp_path, found):
    return found.save(tmp_path / "sweep")


def contents(limit):
    """A limit as plain values, without the seconds that it took."""
    arrays = stored_limits.Arrays()

    def without_seconds(value):
        if isinstance(value, dict):
            return {key: without_seconds(v) for key, v in value.items() if "seconds" not in key}
        return [without_seconds(v) for v in value] if isinstance(value, list) else value

    header = without_seconds(stored_limits.put(limit, arrays))
    return header, {name: array.tobytes() for name, array in arrays.table.items()}


def assert_same(one, other):
    assert one.rows == other.rows and len(one) > 0
    for first, second in zip(one, other, strict=True):
        assert (first.outcome, first.message, first.made) == (
            second.outcome,
            second.message,
            second.made,
        )
        assert contents(first.limit) == contents(second.limit)


def test_the_margin_of_a_linear_predictor_falls_by_the_radius(found):
    # min_i y_i <w, x_i> - radius |w| at |w| = 1: one direction for all radii and starts.
    reference = gflow.max_margin(DATA, radius=0.0)
    assert len(found) == 6 and len(found.arrived) == 6
    for run in found:
        expected = reference.margin - run.settings["radius"]
        assert run.limit.margin == pytest.approx(expected, abs=1e-12)
        assert np.allclose(run.limit.direction, reference.direction, atol=1e-8)


def test_a_run_is_what_it_is_alone(found):
    problem, start = make(**found[3].settings)
    alone = gflow.find_limit(problem, start)
    assert found[3].limit.margin == pytest.approx(alone.margin, rel=1e-12)
    assert np.allclose(found[3].limit.direction, alone.direction, atol=1e-10)
    assert (found[3].limit.verdict, found[3].limit.basin) == (alone.verdict, alone.basin)


def test_settings_are_a_product_with_the_last_name_fastest_or_a_table():
    product = rows_of({"radius": np.array([0.5, 1.0]), "seed": range(2)})
    assert [tuple(row.values()) for row in product] == [(0.5, 0), (0.5, 1), (1.0, 0), (1.0, 1)]
    assert all(type(row["radius"]) is float for row in product)
    table = [{"radius": 0.5, "seed": 0}, {"radius": 1.0}]
    assert list(rows_of(table)) == table


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"radius": 0.1}, TypeError, r"'radius': \[0.1\]"),
        ({"loss": "logistic"}, TypeError, "give a list"),
        ("radius", TypeError, "a mapping of lists"),
        ([3], TypeError, "each row is a mapping"),
        ({3: [1]}, TypeError, "no text"),
        ({"radius": []}, ValueError, "no run"),
        ([], ValueError, "no run"),
        ({}, ValueError, "no run"),
        ({"margin": [1.0]}, ValueError, "column of the table"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, error, words):
    with pytest.raises(error, match=words):
        rows_of(settings)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"tolerence": 1e-8}, TypeError, "perhaps `tolerance`"),
        ({"tolerance": 2.0}, ValueError, "must lie between"),
        ({"throw": True}, TypeError, "there is no `throw`"),
        ({"chunk": 0}, ValueError, "at least 1"),
        ({"max_seconds": -1.0}, ValueError, "positive"),
        ({"limit_settings": 3}, TypeError, "must be a `gflow.LimitSettings`"),
        ({"folder": " "}, TypeError, "the path of a folder"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_before_anything_is_made(options, error, words):
    def never(**row):
        raise AssertionError

    with pytest.raises(error, match=words):
        gflow.sweep(never, SETTINGS, **options)


def test_options_that_are_called_otherwise_here_reach_the_search():
    given = {"batch": 4, "limit_settings": "of experts", "tolerance": 1e-9}
    search = {"chunk": 4, "settings": "of experts", "tolerance": 1e-9}
    assert running._of_search(given) == search


def test_a_bad_run_spoils_no_other(found):
    def sometimes(case):
        if case == "raises":
            raise ZeroDivisionError("by hand")
        if case == "no pair":
            return None
        problem, start = make(1.5 if case == "far too large" else 0.1, 1)
        return problem, start * math.nan if case == "nan" else start

    cases = ["raises", "good", "nan", "far too large", "no pair", "good again"]
    swept = gflow.sweep(sometimes, {"case": cases})
    assert [run.outcome for run in swept] == [
        "refused",
        "successful",
        "refused",
        "radius_above_margin",
        "refused",
        "successful",
    ]
    assert swept[0].message == "ZeroDivisionError: by hand"
    assert "expected a pair" in swept[4].message
    assert swept[1].limit.margin == swept[5].limit.margin == found[3].limit.margin
    # A run that failed tells no number that could be taken for a result.
    told = swept.table()
    assert all(told[index]["margin"] is None for index in (0, 2, 3, 4))
    assert "2 of 6" in repr(swept) and "3 refused" in repr(swept)


def test_an_exception_of_the_search_is_that_of_its_run(monkeypatch, found, tmp_path):
    search = searching.find_limits

    def brittle(problems, starts, **options):
        if any(float(problem.perturbation.radius) == 0.1 for problem in problems):
            raise FloatingPointError("as if in a batch")
        return search(problems, starts, **options)

    monkeypatch.setattr(searching, "find_limits", brittle)
    swept = gflow.sweep(make, SETTINGS)
    assert [run.arrived for run in swept] == [True, True, False, False, True, True]
    assert swept[2].message == "FloatingPointError: as if in a batch"
    assert "in brittle" in swept[2].traceback and not swept[0].traceback
    read = gflow.Sweep.load(swept.save(tmp_path))
    assert [run.traceback for run in read] == [run.traceback for run in swept]
    assert swept[4].limit.margin == found[4].limit.margin


def test_the_table_has_a_row_for_each_run(found, tmp_path):
    frame = found.to_pandas()
    assert list(frame.columns) == ["radius", "seed", *COLUMNS] and len(frame) == len(found)
    assert frame["margin"].tolist() == [run.limit.margin for run in found]
    assert set(frame["outcome"]) == {"successful"}
    read = pandas.read_csv(found.to_csv(tmp_path / "runs"))
    pandas.testing.assert_frame_equal(read, frame, check_dtype=False)
    with (tmp_path / "runs.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [float(row["margin"]) for row in rows] == frame["margin"].tolist()


def test_the_spread_is_taken_over_all_that_is_not_named(found):
    frame = found.to_pandas()
    for of in ("margin", "steps"):
        groups = frame.groupby("radius")[of].agg(["mean", "min", "max", "std"])
        for row in found.spread("radius", of=of):
            expected = groups.loc[row["radius"]]
            assert [row[key] for key in expected.index] == pytest.approx(list(expected), abs=1e-15)
            assert row["runs"] == row["arrived"] == 2
    lines = [line.split() for line in str(found.spread("radius", of=of)).splitlines()]
    assert lines[0] == ["radius", "runs", "arrived", "mean", "min", "max", "std"]
    assert [float(line[0]) for line in lines[1:]] == [
        row["radius"] for row in found.spread("radius")
    ]
    one_each = found.spread(["radius", "seed"])
    assert len(one_each) == 6 and all(math.isnan(row["std"]) for row in one_each)
    with pytest.raises(ValueError, match="perhaps `radius`"):
        found.spread("radios")
    with pytest.raises(ValueError, match="there is no such number"):
        found.spread("radius", of="verdict")


def test_runs_are_found_by_index_slice_and_setting(found):
    assert found[-1] is found.runs[5] and len(found[1:3]) == 2 and [*found][2] is found[2]
    assert found.where(radius=0.1).rows == (found[2].settings, found[3].settings)
    assert found.limits[0] is found[0].limit and len(repr(found).splitlines()) <= 10
    with pytest.raises(ValueError, match="no setting `raduis`"):
        found.where(raduis=1)


def test_a_sweep_is_read_back_value_for_value(found, folder):
    read = gflow.Sweep.load(folder)
    assert_same(found, read)
    assert read.options == found.options == {} and read.chunk == 2
    limit = read[2].limit
    assert isinstance(limit.polished, KKTPoint) and limit.trajectory.problem is not None
    moved = gflow.radius_sensitivity(limit)  # by the matrices of the KKT point
    assert np.array_equal(moved, gflow.radius_sensitivity(found[2].limit))
    gone_on = gflow.integrate(limit.problem, limit.trajectory, until=gflow.Until(log_kappa=20.0))
    assert gone_on.log_kappa[-1] == pytest.approx(20.0)


def counted(calls):
    def making(**row):
        calls.append(row)
        return make(**row)

    return making


def test_what_is_finished_is_not_done_again(found, folder):
    calls = []
    (folder / "chunk-000002.npz").unlink()
    again = gflow.sweep(counted(calls), SETTINGS, folder=folder)
    assert_same(found, again)
    # Of the chunks that are there, the first run only is made, to see that it still is the same.
    assert [tuple(row.values()) for row in calls] == [(0.0, 0), (0.1, 0), (0.1, 1), (0.2, 0)]
    assert len(gflow.Sweep.load(folder).arrived) == 6


def test_a_damaged_chunk_is_refused_or_done_again(found, folder):
    path = folder / "chunk-000003.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"chunk-000003\.npz"):
        gflow.Sweep.load(folder)
    assert_same(found, gflow.sweep(make, SETTINGS, folder=folder))
    assert_same(found, gflow.Sweep.load(folder))


@pytest.mark.parametrize(
    ("settings", "options", "words"),
    [
        ({"radius": [0.0, 0.1, 0.3], "seed": [0, 1]}, {}, r"its run 4 has .*0\.2.*0\.3"),
        ({"radius": [0.0, 0.1, 0.2], "seed": [0]}, {}, "it has 6 runs, and you ask for 3"),
        (SETTINGS, {"tolerance": 1e-9}, r"`tolerance=as usual`, and you ask for `tolerance=1e-09`"),
        (SETTINGS, {"chunk": 3}, "chunks of 2 runs, and you ask for 3"),
    ],
)
def test_a_folder_of_another_sweep_is_refused(folder, settings, options, words):
    with pytest.raises(ValueError, match=f"another sweep: .*{words}"):
        gflow.sweep(make, settings, folder=folder, **options)


def test_another_make_is_refused(folder):
    with pytest.raises(ValueError, match="pure function of its row"):
        gflow.sweep(lambda radius, seed: make(radius, seed + 1), SETTINGS, folder=folder)


def test_two_sweeps_cannot_share_a_folder(folder, tmp_path):
    with locked(folder), pytest.raises(RuntimeError, match="another sweep is writing"):
        gflow.sweep(make, SETTINGS, folder=folder)
    assert not (folder / ".gflow.lock").exists()
    with pytest.raises(FileNotFoundError, match="holds no sweep"):
        gflow.Sweep.load(tmp_path)


def test_seconds_are_for_the_whole_and_the_rest_is_gone_on_with(found, tmp_path):
    calls = []
    spent = gflow.sweep(counted(calls), SETTINGS, folder=tmp_path, chunk=2, max_seconds=1e-9)
    assert not calls and {run.outcome for run in spent} == {"not_begun"}
    assert "6 not_begun" in repr(spent)
    assert_same(found, gflow.sweep(make, SETTINGS, folder=tmp_path))


def test_an_interrupt_returns_what_was_found(found, tmp_path):
    def interrupted(radius, seed):
        if radius == 0.1:
            raise KeyboardInterrupt
        return make(radius, seed)

    swept = gflow.sweep(interrupted, SETTINGS, folder=tmp_path, chunk=2)
    outcomes = [run.outcome for run in swept]
    assert outcomes == ["successful"] * 2 + ["interrupted"] * 2 + ["not_begun"] * 2
    assert len(gflow.Sweep.load(tmp_path).arrived) == 2
    assert_same(found, gflow.sweep(make, SETTINGS, folder=tmp_path))


def test_progress_counts_what_arrived_and_what_failed(folder):
    told = []
    (folder / "chunk-000003.npz").unlink()
    gflow.sweep(make, SETTINGS, folder=folder, progress=told.append)
    assert told[-1]["done"] == told[-1]["runs"] == told[-1]["arrived"] == 6
    assert told[-1]["failed"] == 0 and told[-1]["rate"] > 0
    assert [status["done"] for status in told] == sorted(status["done"] for status in told)


def test_a_problem_that_no_file_can_hold_is_made_again(found, tmp_path, monkeypatch):
    network = networks.custom(lambda w, x: NETWORK.apply(w, x), degree=1)
    problem = gflow.Problem(network, DATA, loss=losses.exponential())
    # The search of another network is not what is tried here.
    limit = replace(found[0].limit, problem=problem)
    monkeypatch.setattr(
        searching, "find_limits", lambda problems, *_, **__: [limit] * len(problems)
    )

    def own(seed):
        return problem, NETWORK.init(seed)

    one = gflow.sweep(own, {"seed": [0, 1]}, folder=tmp_path)
    again = gflow.sweep(own, {"seed": [0, 1]}, folder=tmp_path)
    assert_same(one, again)
    assert len(again.arrived) == 2 and again[0].limit.problem is problem
    with pytest.raises(ValueError, match="cannot be held by files"):
        gflow.Sweep.load(tmp_path)


def test_settings_of_any_kind_are_kept(tmp_path):
    settings = [
        {"loss": losses.exponential(), "widths": [3, 4], "key": np.arange(2), "function": make},
        {"loss": losses.logistic(), "widths": (3,), "key": None, "function": max},
    ]

    def refused(**row):
        raise ValueError("this is about settings")

    swept = gflow.sweep(refused, settings, folder=tmp_path)
    read = gflow.Sweep.load(tmp_path)
    assert [row["loss"] for row in read.rows] == [losses.exponential(), losses.logistic()]
    assert [row["widths"] for row in read.rows] == [[3, 4], (3,)]
    assert np.array_equal(read[0].settings["key"], np.arange(2))
    assert [row["function"] for row in read.rows] == ["make", "max"]
    assert read.table() == swept.table()
    assert len(gflow.sweep(refused, settings, folder=tmp_path)) == 2


CHILD = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
sys.path.insert(0, {tests!r})
import gflow
from _sweeps import SETTINGS, make
gflow.sweep(make, SETTINGS, folder={folder!r}, chunk=2)
"""


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_bit_for_bit(found, tmp_path):
    folder = tmp_path / "sweep"
    code = CHILD.format(tests=os.path.dirname(__file__), folder=str(folder))
    # Its programs are compiled once, by the first of these processes.
    settings = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    for number in (1, 2):
        before = sorted(folder.glob("chunk-*.npz"))
        with subprocess.Popen([sys.executable, "-c", code], env=os.environ | settings) as child:
            while not (folder / f"chunk-{number:06d}.npz").exists():
                assert child.poll() is None
                time.sleep(0.002)
            child.send_signal(signal.SIGKILL)
        kept = gflow.Sweep.load(folder)
        assert set(before) <= set(folder.glob("chunk-*.npz"))
        assert_same(found[: 2 * number], kept[: 2 * number])
    calls = []
    assert_same(found, gflow.sweep(counted(calls), SETTINGS, folder=folder))
    assert len(calls) <= 6  # what was kept is not searched again
