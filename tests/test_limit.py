"""`find_limit`: limits that are known, and those of networks checked by independent means."""

import _two_layer
import diffrax
import numpy as np
import pytest
from scipy.linalg import null_space
from scipy.optimize import nnls

import gflow
from gflow import losses, networks, perturbations
from gflow.kkt.curvature import curvature
from gflow.kkt.system import KKTSystem
from gflow.limit.options import check_options

DATA = gflow.datasets.gaussian(40, 5, gap=0.5, seed=0)


def two_layer(seed, attack=None, *, network=None, shape=(12, 4)):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=shape)
    y = np.where(generator.random(shape[0]) < 0.5, -1, 1)
    network = networks.mlp((shape[1], 10, 1), smoothing=0.05) if network is None else network
    data = gflow.Dataset(x, y)
    trained = gflow.Problem(network, data, loss=losses.exponential(), perturbation=attack)
    return trained, network.init(seed)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(("radius", "order"), [(0.0, 2), (0.1, 2)])
def test_linear_networks_end_at_the_maximum_margin(depth, radius, order):
    widths = (5, *(4,) * (depth - 1), 1)
    network = networks.deep_linear(widths)
    attack = perturbations.fgm(radius, order=order)
    trained = gflow.Problem(network, DATA, loss=losses.exponential(), perturbation=attack)
    limit = gflow.find_limit(trained, network.init(0, scale=0.5))
    reference = gflow.max_margin(DATA, radius=radius, order=order)
    product = np.ravel(network.predictor(limit.direction))
    assert np.linalg.norm(product / np.linalg.norm(product) - reference.direction) < 1e-10
    # Balanced layers: gamma L^(-L/2).
    expected = gflow.measures.balanced_margin(reference.margin, depth)
    assert limit.margin == pytest.approx(expected, rel=1e-10)
    assert limit.verdict == ("strict maximum" if depth == 1 else "maximum within a family")
    assert limit.certificate.stationarity < 1e-10


@pytest.fixture(scope="module", params=[0.0, 0.1], ids=["clean", "FGM"])
def squared(request):
    """A ReLU^2 net, whose margins and gradients `_two_layer` knows in plain NumPy."""
    network = networks.mlp((4, 10, 1), power=2)
    trained, start = two_layer(3, perturbations.fgm(request.param), network=network)
    return gflow.find_limit(trained, start), trained.dataset, request.param


def test_limit_is_a_kkt_point_by_independent_gradients(squared):
    limit, data, radius = squared
    margins = _two_layer.margins(limit.direction, data, radius)
    assert margins.min() == pytest.approx(limit.margin, rel=1e-12)
    gradients = _two_layer.margin_gradients(limit.direction, data, radius)
    active = margins < margins.min() * (1 + 1e-9)
    assert 0 < active.sum() < len(active)
    _, residual = nnls(gradients[active].T, _two_layer.flat(limit.direction))
    assert residual < 1e-11
    assert limit.polished.multipliers.min() >= 0
    np.testing.assert_array_equal(limit.polished.active, active)


def test_margin_falls_to_second_order_around_the_limit(squared):
    limit, data, radius = squared
    if radius > 0:
        pytest.skip("with frozen perturbations the limit need not maximise the margin")
    unit = _two_layer.flat(limit.direction)
    generator = np.random.default_rng(0)
    margins = []
    for _ in range(400):
        step = generator.normal(size=unit.size)
        moved = unit + 1e-3 * step / np.linalg.norm(step)
        params = _two_layer.shaped(moved / np.linalg.norm(moved), limit.direction)
        margins.append(_two_layer.margins(params, data).min())
    assert max(margins) < limit.margin


def test_stages_tell_what_was_done(squared):
    limit, *_ = squared
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


def test_a_limit_may_be_the_start_of_another_search():
    trained = gflow.Problem(networks.linear(5), DATA, loss=losses.exponential())
    first = gflow.find_limit(trained, trained.network.init(0, scale=0.5))
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
