"""Trajectories at the edge of the range of numbers are read and shown without NumPy's warnings."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import gflow
from gflow import report
from gflow.report.end import End
from gflow.report.overview import look, margins_figure, overview_figure
from gflow.report.panels import View, panels

RUN = gflow.load(Path(__file__).parent / "data" / "flow_0_1_0.npz")
UP = np.linspace(0.0, 1.0, len(RUN))
MEASURED = (
    "log1p_time",
    "log_loss",
    "log_minus_log_loss",
    "margin",
    "clean_margin",
    "smoothed_margin",
    "stationarity",
    "strength",
)


def all_of(value):
    return dict.fromkeys(MEASURED, np.full(len(RUN), value))


EDGES = {
    # Beyond a cap: no time, a loss below the range, a norm above it.
    "far": {**all_of(-np.inf), "log1p_time": np.full(len(RUN), np.nan), "log_norm": 4000 * UP},
    "huge": {name: 1e300 * UP for name in ("log_norm", "log_kappa", "log1p_time", "log_loss")},
    "NaN": all_of(np.nan),
    "infinite": all_of(np.inf),
    "zero": all_of(0.0),
    "tiny": {**all_of(1e-300), "log_norm": -4000 * UP},
}


@pytest.fixture(params=EDGES)
def run(request):
    return dataclasses.replace(RUN, columns={**RUN.columns, **EDGES[request.param]})


def test_it_is_shown(run):
    assert "Trajectory(flow" in repr(run)
    assert run.message in str(gflow.RunFailed(run))
    assert run.to_dict()["result"] == "successful"


def test_its_figures_are_drawn(run):
    from matplotlib import pyplot

    shown = report.record(run, network="n", perturbation="p", seconds=1.0)
    assert all(value is None or np.isfinite(value) for value in shown.figures.values())
    for draw in (overview_figure, margins_figure):
        pyplot.close(draw({"run": run}, looks=[look(0)]))


def test_its_panels_are_drawn(run):
    from io import BytesIO

    record = report.record(run, network="n", perturbation="p", seconds=1.0)
    # A limit that is the run's own end: differences to it are zero there, and have no logarithm.
    end = End(record, run.vectors[-1], run.vectors[-1])
    view = View("n1", "n", {"p": record}, {"p": run}, {"p": end}, None, {"p": 0})
    found = panels(view)
    assert len(found) == 5
    for panel in found:
        panel.draw().savefig(BytesIO(), format="svg")
        assert panel.table.startswith("run,") and panel.prediction.startswith("Theory: ")


@pytest.mark.parametrize("name", ["time", "log_loss", "log_kappa"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e308, -1e308])
def test_reading_what_is_out_of_reach_is_refused(run, name, value):
    try:
        params = run.at(**{name: value})
    except ValueError as error:
        assert "does not pass this value" in str(error)
    else:  # it lies between the ends of the run, or is one of them
        column = run.log1p_time if name == "time" else run.columns[name]
        with np.errstate(invalid="ignore"):
            place = np.log1p(value) if name == "time" else value
        assert np.nanmin(column) <= place <= np.nanmax(column)
        assert jax.tree.all(jax.tree.map(lambda leaf: leaf.ndim == 2, params))


def test_parameters_beyond_the_range_are_infinite_and_zeros_stay():
    vectors = RUN.vectors.copy()
    vectors[-1, 0] = 0.0
    columns = {**RUN.columns, "log_norm": np.full(len(RUN), 800.0)}
    first = dataclasses.replace(RUN, columns=columns, vectors=vectors).params[0]
    assert first[0, 0] == 0.0
    assert np.all(np.isinf(first.ravel()[1:]))
    np.testing.assert_array_equal(np.sign(first), np.sign(vectors[-1, :18].reshape(6, 3)))
