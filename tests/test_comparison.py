"""Descent beside the flow: orders in the step size, readings, the table, what is refused."""

import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas
import pytest
from _two_layer import flat

import gflow
from gflow import datasets, losses, networks
from gflow.comparison.distances import step_size_of
from gflow.perturbations import fgm

DATA = datasets.gaussian(8, 3, gap=0.5, seed=1)
# Smooth, so that the backward-error flow is of second order everywhere.
NETWORK = networks.mlp((3, 4, 1), smoothing=0.5)
PROBLEM = gflow.Problem(NETWORK, DATA, loss=losses.logistic(), perturbation=fgm(0.2))
START = tuple(np.asarray(leaf) for leaf in NETWORK.init(0))
SIZES, DURATION = (0.02, 0.01), 2.0
NORMALISED = (0.04, 0.02)

unchecked_compare = inspect.unwrap(gflow.compare)


@pytest.fixture(scope="module")
def flow():
    return gflow.integrate(PROBLEM, START, until=gflow.Until(time=DURATION), tolerance=1e-10)


@pytest.fixture(scope="module")
def runs():
    return [
        gflow.descend(PROBLEM, START, optax.sgd(h), num_steps=round(DURATION / h), save=None)
        for h in SIZES
    ]


@pytest.fixture(scope="module")
def found(flow, runs):
    return gflow.compare(flow, *runs, backward_error=True, num_points=2)


def test_the_distance_is_of_first_order_to_the_flow_and_of_second_to_the_corrected_one(found):
    """With frozen perturbations, whose f' is not symmetric. The ratio is 2^order + O(h)."""
    assert len(found) == 2 * 2 * 3 * 2
    for reference, order in (("flow", 1), ("backward-error flow", 2)):
        for equal in ("time", "loss", "norm"):
            coarse, fine = [
                row
                for row in found.last()
                if (row["reference"], row["equal"]) == (reference, equal)
            ]
            assert (coarse["step_size"], fine["step_size"]) == pytest.approx(SIZES, rel=1e-9)
            if equal == "time" and order == 1:
                assert coarse["direction_distance"] > 1e-4
            for name in ("params_distance", "direction_distance"):
                slope = np.log2(coarse[name] / fine[name])
                # At equal loss or norm a share of the first-order distance along the path is gone.
                assert slope == pytest.approx(order, abs=0.15), (reference, equal, name)


def test_what_is_read_is_what_the_trajectories_say(flow, runs, found):
    row = found.rows[0]
    assert row["equal"] == "time" and row["reference"] == "flow" and row["run"] == 0
    time = np.expm1(row["value"])
    left, right = flat(flow.at(time=time)), flat(runs[0].at(time=time))
    distance = np.linalg.norm(right - left) / np.linalg.norm(left)
    assert row["params_distance"] == pytest.approx(distance, rel=1e-9)
    units = [v / np.linalg.norm(v) for v in (left, right)]
    assert row["direction_distance"] == pytest.approx(np.linalg.norm(units[0] - units[1]), rel=1e-9)
    ends = {(r["run"], r["equal"]): r for r in found.last() if r["reference"] == "flow"}
    assert ends[0, "time"]["value"] == pytest.approx(np.log1p(DURATION), rel=1e-12)
    lowest = max(flow.log_loss.min(), runs[0].log_loss.min())
    assert ends[0, "loss"]["value"] == pytest.approx(lowest, rel=1e-12)
    assert ends[0, "loss"]["margin"] == pytest.approx(runs[0].margin[-1], abs=1e-3)


def test_the_table_and_the_figure(found, tmp_path):
    frame_rows = json.loads(json.dumps(found.to_dict(), allow_nan=False))["rows"]
    assert len(frame_rows) == len(found) and frame_rows[0]["label"] == "descent"
    text = repr(found)
    assert "corrected" in text and "Comparison(2 runs" in text
    figure = found.plot(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
    panels = figure.axes
    assert [axes.get_title() for axes in panels] == [
        f"at equal {e}" for e in ("time", "loss", "norm")
    ]
    assert all(len(axes.get_lines()) == 2 for axes in panels)


def test_the_table_of_pandas(found):
    frame = found.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(found.rows[0])
    for name in ("value", "params_distance", "direction_distance", "margin"):
        assert frame[name].dtype == float
        np.testing.assert_array_equal(frame[name], [row[name] for row in found.rows])
    # As a reader would go on: the distances at the end of each comparison.
    ends = frame.groupby(["reference", "run", "equal"]).last()
    assert len(ends) == len(found.last())
    for row in found.last():
        place = ends.loc[(row["reference"], row["run"], row["equal"])]
        assert place["params_distance"] == row["params_distance"]


# Steps normalised by the loss


@pytest.mark.slow
def test_the_corrected_flow_of_steps_on_the_log_loss(runs):
    """Time, too, is then one of second order: the steps' time is a sum of step / loss."""
    distances, times = [], []
    for h in NORMALISED:
        steps = round(1.2 / h)
        run = gflow.descend(
            PROBLEM, START, optax.sgd(h), num_steps=steps, objective="log_loss", save=None
        )
        assert step_size_of(run) == pytest.approx(h, rel=1e-9)
        corrected = gflow.backward_error_flow(
            PROBLEM, START, step_size=h, num_steps=steps, objective="log_loss", save=4
        )
        distances.append(np.linalg.norm(flat(run.params) - flat(corrected.params)))
        times.append(abs(run.log1p_time[-1] - corrected.log1p_time[-1]))
        assert corrected.num_steps_at[-1] == steps and corrected.kind == "modified flow"
    for errors in (distances, times):
        assert 1e-10 < errors[0] < 1e-2
        assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2)


@pytest.mark.slow
def test_the_corrected_field_is_a_gradient_where_f_is_one():
    """`f - (h/2) f' f = -grad(Loss + (h/4) |grad Loss|^2)` on clean data, by finite differences."""
    clean = gflow.Problem(NETWORK, DATA, loss=losses.logistic())
    h, points = 0.1, 1e-6
    flow = gflow.backward_error_flow(clean, START, step_size=h, num_steps=1, save=2)
    short = gflow.descent.backward_error._solved(
        clean,
        gflow.descent.backward_error._State(tuple(map(jnp.asarray, START)), jnp.zeros(())),
        jnp.asarray([0.0, points]),
        False,
        h,
        1e-12,
    )[0].params
    velocity = (flat([leaf[-1] for leaf in short]) - flat(START)) / points

    def modified(vector):
        params = (vector[:12].reshape(4, 3), vector[12:].reshape(1, 4))
        gradient = clean.gradient(params)
        square = sum(jnp.sum(leaf**2) for leaf in gradient)
        return jnp.exp(clean.log_loss(params)) + h / 4 * square

    expected = -np.asarray(jax.grad(modified)(jnp.asarray(flat(START))))
    # The difference quotient is O(points) from the derivative.
    np.testing.assert_allclose(velocity, expected, atol=1e-3 * np.abs(expected).max())
    assert np.linalg.norm(velocity + flat(clean.gradient(START))) > 0.1
    assert flow.successful


@pytest.mark.slow
def test_the_corrected_flow_is_read_and_stored(tmp_path):
    corrected = gflow.backward_error_flow(PROBLEM, START, step_size=0.05, num_steps=20, save=5)
    np.testing.assert_allclose(np.expm1(corrected.log1p_time), np.linspace(0, 1, 5), atol=1e-9)
    fine = gflow.backward_error_flow(PROBLEM, START, step_size=0.05, num_steps=20, save=101)
    point = flat(fine.params_at_index(37))
    np.testing.assert_allclose(flat(corrected.at(time=0.37)), point, rtol=1e-6)
    at_loss = corrected.at(log_loss=float(fine.log_loss[37]))
    np.testing.assert_allclose(flat(at_loss), point, rtol=1e-6)
    loaded = gflow.load(corrected.save(tmp_path / "run"))
    np.testing.assert_array_equal(flat(loaded.at(time=0.37)), flat(corrected.at(time=0.37)))


def test_long_names_are_printed_whole_and_in_line(flow, runs):
    labels = ["mini-batches of 16, learning rate 0.02, momentum 0.9", "full"]
    lines = repr(gflow.compare(flow, *runs, labels=labels, num_points=1)).splitlines()
    assert sum(line.startswith(f"  {labels[0]} ") for line in lines) == 3
    assert sum(line.startswith(f"  {labels[1]} ") for line in lines) == 3
    # The numbers of all rows end below the end of their heading.
    assert len({len(line) for line in lines[1:]}) == 1


# The edge of stability


def test_sharpness_along_a_run(runs):
    along = gflow.sharpness_along(runs[0], num_points=3)
    assert list(along["num_steps_at"]) == [0, 50, 100]
    for place, index in enumerate((0, 50, 100)):
        value = gflow.measures.sharpness(PROBLEM, runs[0].params_at_index(index))
        assert along["sharpness"][place] == pytest.approx(value, rel=1e-9)


# What is refused


def test_what_cannot_be_compared(flow, runs):
    other = gflow.Problem(networks.linear(3), DATA, loss=losses.logistic())
    linear = gflow.descend(other, (np.ones((1, 3)),), optax.sgd(0.1), num_steps=2)
    momentum = gflow.descend(PROBLEM, START, optax.sgd(0.01, momentum=0.5), num_steps=9)
    for arguments, options, error, words in (
        ((), {}, ValueError, "at least one run"),
        ((3,), {}, TypeError, "no trajectory"),
        ((runs[0],), {"labels": ["a", "b"]}, ValueError, "2 for 1 runs"),
        ((runs[0],), {"num_points": 0}, ValueError, "num_points=0"),
        ((linear,), {}, ValueError, "other shapes"),
        ((momentum,), {"backward_error": True}, ValueError, "not constant"),
    ):
        with pytest.raises(error, match=words):
            unchecked_compare(flow, *arguments, **options)
    for name, value in (("step_size", 0.0), ("num_steps", 0), ("save", 1), ("tolerance", 2.0)):
        options = {"step_size": 0.1, "num_steps": 3} | {name: value}
        with pytest.raises(ValueError, match=name):
            inspect.unwrap(gflow.backward_error_flow)(PROBLEM, START, **options)
