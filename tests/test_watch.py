"""Between two linear systems a search tells of its progress, hears of interrupts, and looks at the
clock: Newton's method takes most of the time in large networks and at kinks.
"""

import contextlib
import math

import numpy as np
import pytest

import gflow
from gflow import losses, networks, perturbations
from gflow.deadline import Deadline
from gflow.kkt.settings import SIZES
from gflow.watch import SecondsSpent, in_time, looked, watched

SMOOTH, KINKED = networks.mlp((3, 4, 1), smoothing=0.05), networks.mlp((3, 4, 1))
POINTS = np.random.default_rng(0).normal(size=(8, 3))
DATA = gflow.Dataset(POINTS, np.where(POINTS[:, 0] > 0, 1, -1))
PROBLEMS = {
    name: gflow.Problem(
        network, DATA, loss=losses.exponential(), perturbation=perturbations.fgm(0.02)
    )
    for name, network in (("smooth", SMOOTH), ("at kinks", KINKED))
}
KEYS = {"stage", "steps", "log_kappa", "log_loss", "margin", "stationarity"}


def found(name, **options):
    problem = PROBLEMS[name]
    return gflow.find_limit(problem, problem.network.init(0), throw=False, **options)


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_system_is_told(name):
    told = []
    limit = found(name, progress=told.append)
    assert limit.successful
    assert all(set(status) == KEYS for status in told)
    systems = [status for status in told if status["stage"] == "newton"]
    solved = sum(stage.num_steps for stage in limit.stages if stage.kind in ("newton", "kinks"))
    # An iteration that only mends the active set is told of, and solves none.
    assert len(systems) >= solved - len(limit.stages) > 0
    assert all(math.isnan(status["log_loss"]) for status in systems)
    assert min(status["stationarity"] for status in systems) < 1e-6


@contextlib.contextmanager
def stopped_clock(monkeypatch):
    """The clock of deadlines, which stands still until it is advanced."""
    now = [0.0]
    monkeypatch.setattr("gflow.deadline.time.perf_counter", lambda: now[0])
    yield now


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("system", [0, 2])
def test_seconds_that_are_spent_end_the_search_between_systems(name, system, monkeypatch):
    told = []

    def advancing(status):
        told.append(status["stage"])
        if told.count("newton") > system:
            now[0] = 2.0

    with stopped_clock(monkeypatch) as now:
        part = found(name, max_seconds=1.0, progress=advancing)
    assert part.result_name == "seconds_spent" and not part.successful
    assert told.count("newton") == system + 1 and told[-1] == "newton"
    whole = found(name)
    rest = gflow.find_limit(PROBLEMS[name], part)
    assert rest.successful
    np.testing.assert_allclose(rest.margin, whole.margin, rtol=1e-9)


@pytest.mark.parametrize("name", PROBLEMS)
def test_an_interrupt_between_systems_ends_the_search(name):
    def pressing(status):
        if status["stage"] == "newton":
            raise KeyboardInterrupt

    assert found(name, progress=pressing).result_name == "interrupted"


def test_nothing_is_watched_outside_of_a_search():
    told = []
    looked(1.0)
    in_time()
    with watched(Deadline(math.inf), told.append, log_kappa=1.0, margin=2.0):
        looked(0.5)
        with (
            pytest.raises(SecondsSpent),
            watched(Deadline(-math.inf), False, log_kappa=1.0, margin=2.0),
        ):
            looked(0.25)
        looked(0.125)
    assert [(status["steps"], status["stationarity"]) for status in told] == [(0, 0.5), (1, 0.125)]
    assert {(status["log_kappa"], status["margin"]) for status in told} == {(1.0, 2.0)}


def test_a_progress_line_for_the_systems(capsys):
    assert found("smooth", progress=True).successful
    shown = capsys.readouterr().err
    assert "flow" in shown and "newton" in shown and "nan" not in shown


def test_too_large_networks_are_refused_before_anything_is_computed():
    network = networks.mlp((3, SIZES.judged, 1), smoothing=0.05)
    problem = gflow.Problem(network, DATA, loss=losses.exponential())
    start, told = network.init(0), []
    match = "60000 parameters, .* 29 GB each; at most 15000"
    with pytest.raises(ValueError, match="`find_limit.*" + match):
        gflow.find_limit(problem, start, progress=told.append)
    with pytest.raises(ValueError, match="`find_limits.*" + match):
        gflow.find_limits([problem], [start], progress=told.append)
    linear = networks.deep_linear((3, SIZES.judged_within, 1))
    problem = gflow.Problem(linear, DATA, loss=losses.exponential())
    with pytest.raises(ValueError, match=r"320000 parameters, .* at most 80000"):
        gflow.find_limit(problem, linear.init(0), progress=told.append)
    assert not told
