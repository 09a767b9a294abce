"""`find_limit` at kinks: closed forms, the convex reference, and how a search ends there.

The laws of its limits are rows of `test_kkt_points`.
"""

import dataclasses
import functools
import json
import math

import _kink_oracles as oracles
import numpy as np
import pytest
from scipy.optimize import nnls

import gflow
from gflow import losses, networks, perturbations
from gflow._layout import Layout
from gflow.kkt.curvature import kinked_curvature
from gflow.kkt.point import KKTPoint
from gflow.limit.complementarity import Anchor, ComplementaritySystem
from gflow.limit.following import start_at
from gflow.limit.kinked_newton import KinkedNewton
from gflow.limit.settings import REFINE
from gflow.limit.sliding import slide
from gflow.networks import Convolution, Dense, MaxPool
from gflow.reference import largest_feasible_radius

ANGLE = 1.0


def wedge():
    """Two unit vectors at an angle of 1 radian, of opposite labels."""
    half = ANGLE / 2
    x = [[math.cos(half), math.sin(half)], [math.cos(half), -math.sin(half)]]
    return gflow.Dataset(x, [1, -1])


def random_labels(seed):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(10, 4))
    return gflow.Dataset(x, np.where(generator.random(10) < 0.5, -1, 1))


def relu_problem(data, width, radius=0.0):
    attack = perturbations.fgsm(radius) if radius > 0 else perturbations.clean()
    network = networks.mlp((data.x.shape[1], width, 1))
    return gflow.Problem(network, data, loss=losses.exponential(), perturbation=attack)


def wedge_start():
    return np.array([[0.5, 0.6], [0.5, -0.5]]), np.array([[0.7, -0.8]])


@functools.cache
def wedge_limit():
    return gflow.find_limit(relu_problem(wedge(), 2), wedge_start())


def test_wedge_ends_on_the_kink_known_in_closed_form():
    # Each neuron serves one example and is orthogonal to the other, which lies on its kink: any
    # help of the other neuron there would cost more. So u_j = |v_j| w_j is, of length 1/sin,
    # orthogonal to one and 1 on the other, and u_1 ~ x_1 - s x_2 asks for the slope s = cos.
    limit, half = wedge_limit(), ANGLE / 2
    weight, head = (np.asarray(leaf) for leaf in limit.direction)
    assert limit.margin == pytest.approx(math.sin(ANGLE) / 4, rel=1e-12)
    assert limit.verdict == "strict maximum"
    first = np.array([math.sin(half), math.cos(half)])
    np.testing.assert_allclose(weight, 0.5 * np.array([first, first * [1, -1]]), atol=1e-12)
    np.testing.assert_allclose(head, [[0.5, -0.5]], atol=1e-12)
    np.testing.assert_array_equal(limit.kinks.at_kink, [[False, True], [True, False]])
    slopes = (1 + limit.kinks.coefficients) / 2
    np.testing.assert_allclose(slopes, [[1, math.cos(1)], [math.cos(1), 1]], atol=1e-12)


@pytest.mark.parametrize("case", ["kinks of the network", "signs of the attack"])
def test_a_search_goes_on_from_the_end_of_a_trajectory(case):
    """Of the exact problem, whose flow is not the one that the search follows. It may have ended
    because it slides along a kink, after which a search is what the message advises.
    """
    if case == "signs of the attack":
        problem, reference = sparse_problem(1, 0.99)
        start, margin = problem.network.init(0, scale=0.5), reference.margin
    else:
        problem, start, margin = relu_problem(wedge(), 2), wedge_start(), math.sin(ANGLE) / 4
    until = gflow.Until(log_loss=float(problem.log_loss(start)) - 1.0)
    flow = gflow.integrate(problem, start, until=until, max_steps=300, throw=False)
    assert len(flow) > 10
    limit = gflow.find_limit(problem, flow)
    assert limit.margin == pytest.approx(margin, rel=1e-10)
    assert limit.verdict == "strict maximum"
    again = gflow.find_limit(problem, flow.params)
    assert limit.margin == pytest.approx(again.margin, rel=1e-10)


def test_record_of_a_limit_at_kinks_is_json():
    limit = wedge_limit()
    record = json.loads(json.dumps(limit.to_dict(), allow_nan=False))
    assert record["at_kink"] == [0, 1] and record["smoothing"] == 0
    assert record["stages"][-1]["kind"] in ("kinks", "sliding")
    assert record["eigenvalues"] == pytest.approx(limit.curvature.values)


def sparse_problem(degree, share, seed=0):
    """A linear predictor under an l_inf attack near the largest feasible radius."""
    data = gflow.datasets.gaussian(30, 12, gap=0.5, seed=seed)
    radius = share * largest_feasible_radius(data, order=math.inf)
    network = networks.deep_linear((12, *(4,) * (degree - 1), 1))
    attack = perturbations.fgsm(radius)
    problem = gflow.Problem(network, data, loss=losses.exponential(), perturbation=attack)
    return problem, gflow.max_margin(data, radius=radius, order=math.inf)


def assert_sparse(problem, reference):
    limit = gflow.find_limit(problem, problem.network.init(0, scale=0.5))
    predictor = np.ravel(problem.network.predictor(limit.direction))
    zeros = np.abs(reference.direction) < 1e-9
    assert zeros.any()
    np.testing.assert_array_equal(predictor == 0, zeros)
    error = predictor / np.linalg.norm(predictor) - reference.direction
    assert np.linalg.norm(error) <= 1e-10
    assert limit.smoothing == 0 and limit.kinks.residual < 1e-10
    return limit


@pytest.mark.parametrize(
    ("share", "seed"),
    [pytest.param(0.9, 0, marks=pytest.mark.slow), (0.99, 0), (0.95, 1), (0.97, 7)],
)
def test_sparse_predictors_end_with_exact_zeros(share, seed):
    problem, reference = sparse_problem(1, share, seed)
    limit = assert_sparse(problem, reference)
    assert limit.verdict == "strict maximum"
    assert limit.margin == pytest.approx(reference.margin, rel=1e-10)


@pytest.mark.parametrize("unit", [1e-9, 1e-5, 1e9])
def test_units_of_the_data_do_not_matter_at_kinks(unit):
    # Without units of its own for theta and for multipliers, Newton's system at kinks lacked rank
    # to rounding from data of some 1e-5 on.
    problem, _ = sparse_problem(1, 0.9)
    data = gflow.Dataset(unit * problem.dataset.x, problem.dataset.y)
    reference = gflow.max_margin(data, radius=unit * problem.perturbation.radius, order=math.inf)
    attack = perturbations.fgsm(unit * problem.perturbation.radius)
    scaled = gflow.Problem(problem.network, data, loss=losses.exponential(), perturbation=attack)
    limit = assert_sparse(scaled, reference)
    assert limit.verdict == "strict maximum"
    assert limit.margin == pytest.approx(reference.margin, rel=1e-10)


@pytest.mark.slow
def test_sparse_deep_predictors_end_with_exact_zeros():
    problem, reference = sparse_problem(2, 0.95)
    limit = assert_sparse(problem, reference)
    assert limit.margin == pytest.approx(reference.margin / 2, rel=1e-10)


@pytest.mark.slow
def test_max_pooling_ends_where_pixels_tie_or_are_all_zero():
    layers = [Convolution(3, (2, 1)), MaxPool((2, 1)), Dense(1)]
    network = networks.conv((1, 4, 1), layers)
    pools_at_kink, zeros = 0, 0
    for seed in range(3):
        generator = np.random.default_rng(seed)
        data = gflow.Dataset(generator.normal(size=(8, 4)), np.where(np.arange(8) % 2, 1, -1))
        trained = gflow.Problem(network, data, loss=losses.exponential())
        limit = gflow.find_limit(trained, network.init(seed))
        coefficients = limit.kinks.coefficients
        margins, gradients, pixels = pooled_rows(limit.direction, data, coefficients)
        active = margins <= margins.min() * (1 + 1e-7)
        assert margins.min() == pytest.approx(limit.margin, rel=1e-9)
        unit = np.concatenate([np.ravel(leaf) for leaf in limit.direction])
        assert nnls(gradients[active].T, unit)[1] < 1e-9
        pools_at_kink += np.count_nonzero(limit.kinks.at_kink[:, 12:])
        held = (pixels.max(axis=-1) < 1e-12) & limit.kinks.at_kink[:, :12].any(axis=1)[:, None]
        zeros += np.count_nonzero(held & active[:, None])
        assert np.abs(coefficients).max() <= 1
    assert pools_at_kink and zeros  # or nothing was tested


def pooled_rows(params, data, coefficients):
    """Margins, their gradients with slopes and shares `(1 + c)/2`, and the rectified pixels, of
    `sum V_cw max over window w of relu(K_c0 x_p + K_c1 x_(p+1))`, in NumPy."""
    kernels, head = np.asarray(params[0])[:, 0, :, 0], np.asarray(params[1])[0]
    margins, rows, all_pixels = [], [], []
    for x, y, c in zip(np.asarray(data.x), data.y, coefficients, strict=True):
        patches = np.stack([x, np.append(x[1:], 0.0)], axis=1)
        value, slopes = kernels @ patches.T, (1 + c[:12].reshape(3, 4)) / 2
        first = (1 + c[12:]) / 2
        shares = np.stack([first, 1 - first], axis=1).reshape(3, 4)
        pixels = np.maximum(value, 0).reshape(6, 2)
        weight = np.repeat(head, 2).reshape(3, 4) * shares * slopes
        rows.append(y * np.concatenate([(weight @ patches).ravel(), pixels.max(axis=1)]))
        margins.append(y * head @ pixels.max(axis=1))
        all_pixels.append(pixels)
    return np.array(margins), np.array(rows), np.array(all_pixels)


@pytest.mark.parametrize("smoothing", [0.0, 5e-4, 2.0, -0.02, math.nan])
def test_smoothing_out_of_range_is_refused(smoothing):
    trained = relu_problem(wedge(), 2)
    with pytest.raises(ValueError, match="find_limit\\(smoothing="):
        gflow.find_limit(trained, trained.network.init(0), smoothing=smoothing)


@pytest.fixture
def all_unstable(monkeypatch):
    """Every KKT point at kinks passes for a saddle."""

    def unstable(problem, layout, kinks, **_):
        found = kinked_curvature(kinks)
        return dataclasses.replace(found, values=found.values - found.values.max() - 1)

    monkeypatch.setattr("gflow.limit.kinked.open_curvature", unstable)


def test_saddles_at_kinks_are_left_or_stopped_at(all_unstable):
    trained, start = relu_problem(wedge(), 2), wedge_start()
    stopped = gflow.find_limit(trained, start, escape=False)
    assert stopped.result_name == stopped.verdict == "saddle" and stopped.kinks.converged
    assert "escape" not in [stage.kind for stage in stopped.stages]
    left = gflow.find_limit(trained, start, max_rounds=2, throw=False)
    assert left.result_name == "saddle"
    assert [stage.kind for stage in left.stages[-2:]] == ["escape", "sliding"]
    # There is nowhere else to go, and going round once more would tell nothing.
    circled = gflow.find_limit(trained, start, throw=False)
    assert circled.result_name == "saddle" and circled.saddles_met == 2
    for limit in (left, circled):
        for found, expected in zip(limit.direction, stopped.direction, strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_search_that_is_lost_after_a_saddle_returns_to_it(all_unstable, monkeypatch):
    def lost(*arguments, **options):
        found, before = slide(*arguments, **options)
        return dataclasses.replace(found, converged=False, smoothing=1e-6), before

    monkeypatch.setattr("gflow.limit.kinked.slide", lost)
    # Two smoothings, so that the saddle is not met a third time.
    settings = gflow.LimitSettings(kinks=gflow.limit.KinkSettings(least_smoothing=6e-3))
    limit = gflow.find_limit(
        relu_problem(wedge(), 2), wedge_start(), throw=False, settings=settings
    )
    assert limit.result_name == limit.verdict == "saddle" and limit.stages[-1].kind == "back"
    assert limit.kinks.converged and limit.smoothing == 0
    assert limit.certificate.stationarity < 1e-10


def test_search_that_fails_at_kinks_says_so_and_names_them():
    none = dataclasses.replace(REFINE.smoothing, most_iterations=0, most_in_step=0)
    settings = gflow.LimitSettings(refine=dataclasses.replace(REFINE, smoothing=none))
    trained, start = relu_problem(wedge(), 2), wedge_start()
    limit = gflow.find_limit(trained, start, settings=settings, throw=False)
    assert limit.result_name == "not_at_kink" and limit.verdict == "unknown"
    assert not limit.kinks.converged and limit.smoothing > 0
    assert json.loads(json.dumps(limit.to_dict()))["at_kink"] == [0, 1]
    with pytest.raises(gflow.LimitFailed, match="smoothing"):
        gflow.find_limit(trained, start, settings=settings)


@pytest.mark.slow
def test_networks_too_large_for_dense_systems_end_with_their_smoothing():
    sizes = dataclasses.replace(REFINE.sizes, at_kinks=1)
    settings = gflow.LimitSettings(refine=dataclasses.replace(REFINE, sizes=sizes))
    problem = relu_problem(wedge(), 2)
    limit = gflow.find_limit(problem, wedge_start(), settings=settings, throw=False)
    assert limit.result_name == "not_at_kink" and limit.smoothing == 0.02
    assert limit.kinks is None
    assert 0 < abs(limit.margin - math.sin(ANGLE) / 4) < 0.02


def sliding_start(data):
    """Parameters at unit margin, with equal multipliers of the right size."""
    trained, start = relu_problem(data, 2), wedge_start()
    layout = Layout.of(start)
    theta = layout.flatten(start)
    theta = np.asarray(theta) / np.sqrt(np.min(trained.margins(start)))
    multipliers = np.full(len(data.x), theta @ theta / (2 * len(data.x)))
    return trained, layout, start_at(trained, layout, theta, multipliers, 0.02)


def test_sliding_ends_where_the_flow_does():
    trained, layout, start = sliding_start(wedge())
    found, before = slide(trained, layout, start, 0.02)
    assert found.converged and found.smoothing == 0
    expected = np.asarray(layout.flatten(wedge_limit().direction))
    np.testing.assert_allclose(found.direction, expected, atol=1e-12)
    assert np.linalg.norm(before - expected) > 1e-3


@pytest.mark.parametrize("length", [1e-2, 0.2])
def test_a_sliding_step_is_one_of_implicit_euler(length):
    data = wedge()
    trained, layout, start = sliding_start(data)
    newton = KinkedNewton(trained, layout, start.multipliers.max())
    anchor = Anchor(start.theta, length)
    top = newton.solve(start, 0.02, anchor=anchor)
    assert top is not None
    end, smoothing = newton.lowered(top, 0.02, 0.3, anchor)
    assert smoothing <= 1e-6
    coefficients = np.sin(end.angles)
    params = tuple(np.asarray(leaf) for leaf in layout.unflatten(end.theta))
    margins, gradients, decided = oracles.rows(params, data, 0.0, coefficients)
    force = end.multipliers @ gradients - end.theta
    size = np.linalg.norm(end.theta)
    assert np.linalg.norm(end.theta - start.theta) > 1e-4 * size
    # Newton's method stops at 1e-2 mu, and complementarity is rounded off by 1e-3 sqrt(mu).
    np.testing.assert_allclose(end.theta - start.theta, length * force, atol=1e-7 * size)
    assert margins.min() > 1 - 1e-5 and end.multipliers.min() > -1e-5
    np.testing.assert_allclose(end.multipliers * (margins - 1), 0, atol=1e-5)
    np.testing.assert_allclose(decided * np.cos(end.angles), 0, atol=1e-5)


def newton_step(size):
    """Newton's step beside a kink of the last of three neurons, whose weights are `size` times
    those of the others; and the start.
    """
    data = random_labels(0)
    problem = relu_problem(data, 3)
    first, last = (np.array(leaf) for leaf in problem.network.init(1))
    first[2] -= 0.999 * (first[2] @ data.x[0]) * data.x[0] / (data.x[0] @ data.x[0])
    first[2], last[0, 2] = size * first[2], size * last[0, 2]
    layout = Layout.of((first, last))
    theta, smoothing = np.array(layout.flatten((first, last))), 0.1
    start = start_at(problem, layout, theta, np.linspace(0.05, 0.15, len(data)), smoothing)
    newton = KinkedNewton(problem, layout, 1.0)
    at, index = newton.residuals(start, smoothing), np.array([2])  # of the first example
    equations = ComplementaritySystem(
        at, start, smoothing, index, 1.0, Anchor(theta, 1e-3), newton.settings
    )
    end = equations.step(newton.linearized(start, smoothing, index))
    assert end is not None
    return start, end


def test_a_dead_neuron_turns_at_any_size_as_at_any_other():
    # Its motion is linear in its weights, which do not act on the others: with all of them divided
    # by 1e15 the step of the others, of multipliers and angles is the same, and its own is divided
    # by 1e15. The larger of the two sizes acts on the others by its square, 1e-16.
    (start, small), (tiny_start, tiny) = newton_step(1e-8), newton_step(1e-23)
    own = np.abs(start.theta) < 1e-6
    assert own.sum() == 5
    assert np.linalg.norm((small.theta - start.theta)[own]) > 1e-3 * np.linalg.norm(
        start.theta[own]
    )
    np.testing.assert_allclose(tiny.theta[own], 1e-15 * small.theta[own], rtol=1e-9)
    np.testing.assert_allclose(tiny.theta[~own], small.theta[~own], rtol=1e-10)
    np.testing.assert_allclose(tiny.multipliers, small.multipliers, rtol=1e-10)
    np.testing.assert_allclose(tiny.angles, small.angles, atol=1e-10)
    assert abs(tiny.angles[0, 2] - tiny_start.angles[0, 2]) > 1e-3


def test_a_switch_all_of_whose_weights_are_0_stands_at_its_kink():
    # v = w = 0 at every angle: its equation holds, and its step moves nothing else.
    data = random_labels(0)
    problem = relu_problem(data, 3)
    first, last = (np.array(leaf) for leaf in problem.network.init(1))
    first[2], last[0, 2] = 0.0, 0.0
    layout = Layout.of((first, last))
    theta = np.array(layout.flatten((first, last)))
    start = start_at(problem, layout, theta, np.full(len(data), 0.1), 0.1)
    newton, index = KinkedNewton(problem, layout, 1.0), np.array([2])
    equations = ComplementaritySystem(
        newton.residuals(start, 0.0), start, 0.0, index, 1.0, Anchor(theta, 1e-3), newton.settings
    )
    assert np.isfinite(equations.error)
    end = equations.step(newton.linearized(start, 0.0, index))
    assert end is not None and np.all(np.abs(end.theta[theta == 0]) < 1e-15)


def test_radius_moves_a_limit_at_kinks_as_the_convex_reference_says():
    # Between the radii at which a zero comes or goes the direction is smooth in the radius.
    problem, reference = sparse_problem(1, 0.5, seed=2)
    limit = gflow.find_limit(problem, problem.network.init(0, scale=0.5))
    moves = np.ravel(gflow.radius_sensitivity(limit)[0])
    radius, step = float(problem.perturbation.radius), 1e-6
    ends = [
        gflow.max_margin(problem.dataset, radius=radius + sign * step, order=math.inf).direction
        for sign in (1, -1)
    ]
    expected = (ends[0] - ends[1]) / (2 * step)
    zeros = np.abs(reference.direction) < 1e-12
    assert zeros.any() and np.linalg.norm(expected) > 0.1
    np.testing.assert_allclose(moves[zeros], 0, atol=1e-12)
    np.testing.assert_allclose(moves, expected, atol=1e-5 * np.linalg.norm(expected))


def test_data_move_a_limit_at_kinks_as_the_closed_form_says():
    half = ANGLE / 2
    change = np.array([[-math.sin(half), math.cos(half)], [-math.sin(half), -math.cos(half)]])
    weight, head = gflow.data_sensitivity(wedge_limit(), change)
    turned = 0.5 * np.array([math.cos(half), -math.sin(half)])
    np.testing.assert_allclose(weight, [turned, turned * [1, -1]], atol=1e-10)
    np.testing.assert_allclose(head, 0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack", [perturbations.fgm(0.05), perturbations.fgsm(0.03)], ids=["FGM", "FGSM"]
)
def test_attacked_networks_end_at_kinks(attack):
    # There the attack's own gradient has kinks too, and with signs the margins jump across them.
    # Rounding decides which of several ends a search comes to; most are maxima, all are exact.
    network, num_maxima = networks.mlp((4, 6, 1)), 0
    for seed in range(6):
        trained = gflow.Problem(
            network, random_labels(seed), loss=losses.exponential(), perturbation=attack
        )
        limit = gflow.find_limit(trained, network.init(seed), throw=False)
        assert limit.smoothing == 0 and len(limit.kinks.examples)
        assert limit.certificate.stationarity < 1e-10
        # The attack jumps at kinks, and rounding decides what the margin is without coefficients.
        at_kinks = np.linalg.norm(limit.kinks.theta) ** -2
        assert limit.held_margin == pytest.approx(at_kinks, rel=1e-9)
        assert limit.kinks.multipliers.min() >= 0
        assert limit.successful or limit.result_name == limit.verdict == "saddle"
        num_maxima += limit.successful
    assert num_maxima >= 3


def test_many_kinks_are_shown_in_few_lines(own_words):
    generator = np.random.default_rng(0)
    shape = (200, 64)
    kinks = KKTPoint(
        theta=generator.normal(size=5000),
        multipliers=np.ones(200),
        active=np.ones(200, bool),
        coefficients=np.zeros(shape),
        at_kink=np.ones(shape, bool),
        smoothing=0.0,
        residual=3e-16,
        converged=True,
        num_iterations=7,
        system=None,  # not shown
    )
    lines = repr(kinks).splitlines()
    assert str(kinks) == repr(kinks) and len(lines) <= 10 and max(map(len, lines)) < 120
    for words in ("exact", "5000", "200 of 200", "12800 of 12800", "200 examples"):
        assert words in repr(kinks)
    assert "NOT exact" in repr(dataclasses.replace(kinks, converged=False))
