"""`find_limit`: its options, stages and outcomes; the laws of its limits: `test_kkt_points`."""

import diffrax
import numpy as np
import pytest
from scipy.linalg import null_space

import gflow
from gflow import losses, networks
from gflow.kkt.curvature import curvature
from gflow.kkt.system import KKTSystem
from gflow.limit.options import check_options

DATA = gflow.datasets.gaussian(40, 5, gap=0.5, seed=0)


def two_layer(seed, *, network=None, shape=(12, 4)):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=shape)
    y = np.where(generator.random(shape[0]) < 0.5, -1, 1)
    network = networks.mlp((shape[1], 10, 1), smoothing=0.05) if network is None else network
    data = gflow.Dataset(x, y)
    trained = gflow.Problem(network, data, loss=losses.exponential())
    return trained, network.init(seed)


@pytest.fixture(scope="module")
def linear():
    """A linear predictor on clean data, and its limit."""
    trained = gflow.Problem(networks.linear(5), DATA, loss=losses.exponential())
    return trained, gflow.find_limit(trained, trained.network.init(0, scale=0.5))


def test_stages_tell_what_was_done(linear):
    _, limit = linear
    assert limit.successful
    assert limit.heading
    kinds = [stage.kind for stage in limit.stages]
    assert kinds[0] == "flow"
    assert kinds[-1] == "newton"
    assert limit.num_flow_steps == sum(s.num_steps for s in limit.stages if s.kind == "flow") > 0
    assert limit.stages[-1].stationarity < 1e-12
    record = limit.to_dict()
    assert record["verdict"] == limit.verdict
    assert len(record["stages"]) == len(kinds)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_smoothed_networks_end_where_nothing_is_left_to_escape(seed):
    trained, start = two_layer(seed)
    limit = gflow.find_limit(trained, start)
    assert limit.successful
    assert limit.certificate.stationarity < 1e-12
    assert limit.curvature.values.min() > -1e-6
    assert np.min(trained.margins(limit.direction)) == pytest.approx(limit.margin, rel=1e-12)


@pytest.mark.slow
def test_a_saddle_is_left_unless_that_is_switched_off():
    """Copies of a neuron stay copies along the flow, and where they end apart is higher.

    Rounding cannot part them in the time the flow takes: perturbed by 1e-7 they end there too.
    """
    network = networks.mlp((4, 20, 1), smoothing=0.05)
    trained, _ = two_layer(7, network=network, shape=(8, 4))
    inner, outer = networks.mlp((4, 5, 1), smoothing=0.05).init(7)
    start = (np.repeat(inner, 4, axis=0), np.repeat(outer, 4, axis=1))
    first = gflow.find_limit(trained, start, escape=False)
    assert first.result_name == first.verdict == "saddle"
    assert first.curvature.unstable.any()
    assert first.curvature.values.min() < -0.2
    last = gflow.find_limit(trained, start)
    assert last.verdict == "maximum within a family"
    assert "escape" in [stage.kind for stage in last.stages]
    assert last.margin > first.margin + 1e-3


def test_a_flow_that_never_separates_has_no_limit():
    data = gflow.Dataset([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [1, -1, 1])
    trained = gflow.Problem(networks.linear(2), data, loss=losses.exponential())
    start = trained.network.init(0)
    limit = gflow.find_limit(trained, start, throw=False, max_steps=3000)
    assert limit.result_name == "not_separated"
    assert limit.verdict == "unknown"
    assert not limit.certificate.separated
    with pytest.raises(gflow.LimitFailed):
        gflow.find_limit(trained, start, max_steps=3000)


@pytest.mark.parametrize(
    "options",
    [
        {"tolerance": 0.0},
        {"tolerance": 9e-16},
        {"cap_logits": 1.0},
        {"flow_tolerance": 0.5},
        {"kappa_cap": 1.0},
        {"max_seconds": 0.0},
        {"max_rounds": 0},
        {"max_steps": 0},
    ],
)
def test_impossible_options_are_refused(options):
    trained = gflow.Problem(networks.linear(5), DATA, loss=losses.exponential())
    with pytest.raises(ValueError, match=f"find_limit\\({next(iter(options))}"):
        gflow.find_limit(trained, trained.network.init(0), **options)


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("tolerance", "small", ValueError),
        ("kappa_cap", "1e3", ValueError),
        ("cap_logits", "1e3", ValueError),
        ("smoothing", None, ValueError),
        ("solver", diffrax.Tsit5(), TypeError),
        ("solver", "Rodas5P", TypeError),
    ],
)
def test_options_of_another_kind_are_refused_by_name(option, value, error):
    # Called itself, since the tests check annotations before `find_limit` sees its arguments.
    with pytest.raises(error, match=rf"find_limit\({option}="):
        check_options(**{option: value})


def test_a_limit_may_be_the_start_of_another_search(linear):
    trained, first = linear
    again = gflow.find_limit(trained, first)
    np.testing.assert_allclose(again.margin, first.margin, rtol=1e-12)


@pytest.mark.parametrize("oblique", [False, True])
def test_curvature_is_that_of_the_constrained_problem(oblique):
    # On the plane v . n = 0 the flow is dv/dt = -(H v) + force along g: its matrix on the plane is
    # the oblique projection of H, with known eigenvalues.
    generator = np.random.default_rng(1)
    size = 6
    slope = generator.normal(size=(1, size))
    gradient = generator.normal(size=(1, size)) if oblique else slope
    hessian = generator.normal(size=(size, size))
    hessian = hessian + hessian.T
    project = np.eye(size) - gradient.T @ slope / float((slope @ gradient.T).item())
    expected = np.linalg.eigvals(project @ hessian @ null_space(slope) @ null_space(slope).T)
    expected = np.sort(expected.real[np.abs(expected) > 1e-9])
    at = KKTSystem(np.zeros(size), np.ones(1), hessian, slope, gradient)
    found = curvature(at, np.array([True]))
    assert found.symmetric is not oblique
    np.testing.assert_allclose(found.values, expected, rtol=1e-9)
    np.testing.assert_allclose(slope @ found.vectors, 0, atol=1e-12)
