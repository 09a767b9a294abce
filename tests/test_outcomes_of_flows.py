"""Which outcome a flow has: success is what its last point shows, by NumPy alone."""

import numpy as np
import pytest

import gflow
from gflow import Until, losses, networks, perturbations
from gflow._layout import Layout
from gflow.flow.field import Field
from gflow.flow.outcome import outcome_at, targets_met
from gflow.flow.until import known_log_loss
from gflow.measures import PointMeasures
from gflow.record import Row

NET = networks.deep_linear((2, 2, 1))
LINE = networks.linear(2)


def dataset(seed, scale):
    """Six examples in the plane; every second set holds one of them with both labels."""
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(6, 2)), generator.choice([-1, 1], size=6)
    y[:2] = 1, -1
    if seed % 2:
        x[1] = x[0]
    return gflow.Dataset(scale * x, y)


def log_loss(problem, weights):
    """Of a linear network with these layers, clean, by NumPy."""
    product = np.eye(2)
    for weight in weights:
        product = np.asarray(weight) @ product
    q = problem.dataset.y * (np.asarray(problem.dataset.x) @ product[0])
    return float(np.log(np.sum(np.logaddexp(0.0, -q))))


def holds(flow, until, problem):
    """Whether one of the targets holds at the end, to 1e-8, recomputed where it can be."""
    norm = np.sqrt(sum(np.sum(np.asarray(weight) ** 2) for weight in flow.params))
    reached = []
    if np.isfinite(until.log_kappa):
        reached.append(flow.log_kappa[-1] >= until.log_kappa - 1e-8 * max(1, until.log_kappa))
        if np.isfinite(norm):
            assert problem.degree * np.log(norm) == pytest.approx(flow.log_kappa[-1], abs=1e-8)
    if np.isfinite(until.log_loss):
        reached.append(log_loss(problem, flow.params) <= until.log_loss + 1e-8)
    if np.isfinite(until.log1p_time):
        reached.append(flow.log1p_time[-1] >= until.log1p_time - 1e-8)
    return any(reached)


@pytest.mark.parametrize(
    "net", [LINE, pytest.param(NET, marks=pytest.mark.slow)], ids=["linear", "deep"]
)
def test_success_holds_at_the_last_point_whatever_was_asked_of_whatever_data(net):
    counts = {True: 0, False: 0}
    targets = Until(log_loss=-2.0), Until(log_loss=0.2), Until(time=3.0), Until(log_kappa=3.0)
    for seed in range(6):
        for scale in (1e-6, 1.0, 1e6):
            problem = gflow.Problem(net, dataset(seed, scale), loss=losses.logistic())
            for until, cap in zip(targets, (None, 1.5, None, 20.0), strict=True):
                flow = gflow.integrate(
                    problem,
                    net.init(seed),
                    until=until,
                    kappa_cap=cap,
                    max_steps=400,
                    tolerance=1e-5,
                    throw=False,
                )
                counts[flow.successful] += 1
                assert (flow.stats["stopped_by"] is not None) == flow.successful
                if flow.successful:
                    assert holds(flow, until, problem), (seed, scale, until, flow)
    assert min(counts.values()) > 10


def measures(**values):
    names = PointMeasures._fields
    return PointMeasures(*(np.float64(values.get(name, 0.5)) for name in names))


def row(log_norm=0.0, log_time=0.0, **values):
    state = np.array([1.0, 0.0, log_norm, log_time])
    return Row(np.float64(0), np.float64(1), np.int64(1), state, measures(**values))


def test_what_is_not_a_number_meets_no_target():
    problem = gflow.Problem(LINE, dataset(0, 1.0), loss=losses.logistic())
    plain = Field(problem, Layout.of(LINE.init(0)))
    capped = Field(problem, Layout.of(LINE.init(0)), np.asarray(3.0))
    nothing = row(log_loss=np.nan, log_minus_log_loss=np.nan, stationarity=np.nan)
    for field in (plain, capped):
        for until in (Until(log_loss=5.0), Until(stationarity=0.9), Until(time=1.0)):
            assert outcome_at(until, field, nothing) is None
        nowhere = row(log_norm=np.nan, log_time=np.nan)
        assert targets_met(Until(time=1.0, log_kappa=-5.0), field, nowhere) == []
    # Another target beside it still counts.
    both = Until(stationarity=0.1, log_kappa=1.0)
    assert targets_met(both, plain, row(log_norm=2.0, stationarity=np.nan)) == ["log_kappa"]
    far = row(log_norm=800.0, log_loss=np.nan, log_minus_log_loss=np.nan)
    assert outcome_at(Until(log_loss=-1.0), plain, far) == gflow.RESULTS.kappa_overflow
    assert outcome_at(Until(log_loss=-1.0), capped, far) is None


def test_a_target_is_met_to_rounding_or_loosely_where_steps_lead_no_closer():
    problem = gflow.Problem(LINE, dataset(0, 1.0), loss=losses.logistic())
    field = Field(problem, Layout.of(LINE.init(0)))
    until = Until(log_loss=-1.0, log_kappa=2.0)
    near = row(log_norm=2.0 - 1e-9, log_loss=-1.0 + 1e-9)
    assert targets_met(until, field, near) == []
    assert targets_met(until, field, near, landed=True) == ["log_kappa", "log_loss"]
    # What is met to rounding goes before what only comes near.
    on_one = row(log_norm=2.0 - 1e-9, log_loss=-1.0)
    assert targets_met(until, field, on_one, landed=True) == ["log_loss"]
    assert targets_met(until, field, row(log_norm=2.0 - 1e-7), landed=True) == []
    past = row(log_norm=2.5, log_loss=-3.0)
    assert targets_met(until, field, past) == ["log_kappa", "log_loss"]


def test_a_log_loss_beyond_floating_point_numbers_is_below_or_above_any():
    nan = np.nan
    assert known_log_loss(measures(log_loss=-3.0, log_minus_log_loss=1.1)) == -3.0
    assert known_log_loss(measures(log_loss=nan, log_minus_log_loss=5.0)) == -np.exp(5.0)
    assert known_log_loss(measures(log_loss=nan, log_minus_log_loss=4000.0)) == -np.inf
    assert known_log_loss(measures(log_loss=nan, log_minus_log_loss=nan)) == np.inf


@pytest.mark.parametrize("scale", [1e-2, 1e-5])
def test_a_capped_flow_that_cannot_separate_says_so(scale):
    x = scale * np.array([[1.0, 1.0], [1.0, 1.2], [1.1, 1.0], [1.0, 1.0]])
    problem = gflow.Problem(NET, gflow.Dataset(x, [1, 1, 1, -1]), loss=losses.logistic())
    options = {"kappa_cap": 10.0, "throw": False}
    flow = gflow.integrate(problem, NET.init(0), until=Until(log_loss=-10.0), **options)
    assert flow.result_name == "not_separated"
    assert flow.stats["num_steps"] < 5000


def test_starts_beyond_floating_point_numbers():
    problem = gflow.Problem(NET, dataset(0, 1.0), loss=losses.logistic())
    start = tuple(1e160 * weight for weight in NET.init(0))
    for until in (Until(time=5.0), Until(log_loss=-1.0), Until(stationarity=0.5)):
        flow = gflow.integrate(problem, start, until=until, throw=False)
        assert flow.result_name == "kappa_overflow"
        assert flow.stats["stopped_by"] is None
    flow = gflow.integrate(problem, start, until=Until(log_kappa=600.0))
    assert flow.stats["stopped_by"] == "log_kappa"


@pytest.mark.slow
def test_every_target_is_landed_on_after_a_long_rest():
    # Margins of 1e-4 at the start: the clock runs to 1e8 before the loss falls.
    data = gflow.datasets.random_labels(10, 4, seed=1)
    net = networks.mlp((4, 8, 8, 1), power=2)
    problem = gflow.Problem(net, data, loss=losses.exponential())
    clock = 0.0
    for target in (2.0, 0.0, -2.0, -4.0, -4.9, -5.5, -7.0):
        flow = gflow.integrate(problem, net.init(1), until=Until(log_loss=target), max_steps=8000)
        assert float(problem.log_loss(flow.params)) == pytest.approx(target, abs=1e-11)
        assert np.all(np.diff(flow.clock) > 0)
        clock = flow.clock[-1]
    assert clock > 1e7


@pytest.mark.slow
@pytest.mark.parametrize("loss", [losses.logistic(), losses.exponential()], ids=str)
def test_a_radius_equal_to_the_margin(loss):
    # The flow drifts towards the limit for ever, at a loss that tends to a positive number.
    data = gflow.datasets.gaussian(30, 5, gap=0.5, seed=0)
    found = gflow.max_margin(data)
    net = networks.linear(5)
    attack = perturbations.fgm(float(found.margin))
    problem = gflow.Problem(net, data, loss=loss, perturbation=attack)
    flow = gflow.integrate(
        problem, net.init(0), until=Until(time=1e15), solver=gflow.Rosenbrock(), save=None
    )
    # At tolerance 1e-8, of an error that the steps' nonlinearity multiplies by kappa.
    assert flow.stats["num_steps"] < 2000
    late = flow.log1p_time > np.log(1e12)
    slope = np.polyfit(flow.log1p_time[late], flow.log_norm[late], 1)[0]
    assert slope == pytest.approx(1 / 3, abs=2e-3)
    gaps = np.sum((flow.vectors - np.ravel(found.direction)) ** 2, axis=1) / 2
    slope = np.polyfit(flow.log1p_time[late], np.log(gaps[late]), 1)[0]
    assert slope == pytest.approx(-2 / 3, abs=4e-3)
    losses_ = np.exp(flow.log_loss[late])
    assert np.all(np.diff(losses_) <= 1e-9)
    # What is left falls like 1 / |w|.
    assert losses_[0] - losses_[-1] < 1e-2 * losses_[-1]
    assert losses_[-1] > 1.0
