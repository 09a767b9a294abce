"""Certificates: known KKT points, an independent recomputation, and never kinder than the truth."""

import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from _oracles import central_difference, mlp_input_gradient, pgd
from _two_layer import descended, flat, margin_gradients, margins, shaped, unit
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from scipy.special import softmax

import gflow
from gflow import datasets, losses, networks, perturbations
from gflow.kkt import multipliers, subgradients
from gflow.kkt.strong_attack import strong_margins
from gflow.limit.verdict import STRICT
from gflow.perturbations import clean, fgm, fgsm

DATA = datasets.gaussian(8, 3, gap=0.5, seed=1)
RADIUS = 0.1
_generator = np.random.default_rng(5)
START = (_generator.normal(size=(6, 3)) / 2, _generator.normal(size=(1, 6)) / 2)
# A separated point on the way to a KKT point: normalised descent in NumPy.
TRAINED = shaped(descended(START, DATA, RADIUS, 0.004, 600, normalized=True)[0][-1], START)

ATTACKS = {"clean": (0.0, 2), "fgm": (0.2, 2), "fgsm": (0.2, math.inf)}
PERTURBATIONS = {"clean": clean(), "fgm": fgm(0.2), "fgsm": fgsm(0.2)}
KKT_NUMBERS = [
    "stationarity",
    "complementarity",
    "dual_infeasibility",
    "flow_stationarity",
    "kkt_epsilon",
    "kkt_delta",
    "cosine",
]


def problem_of(network, perturbation, data=DATA, **options):
    options = {"loss": losses.exponential()} | options
    return gflow.Problem(network, data, perturbation=perturbation, **options)


def linear_params(direction):
    return (np.asarray(direction)[None, :],)


# Linear networks, whose limit is known


@pytest.fixture(scope="module", params=list(ATTACKS))
def linear(request):
    """A linear problem, and the direction of its largest margin."""
    radius, order = ATTACKS[request.param]
    best = gflow.max_margin(DATA, radius=radius, order=order)
    assert best.duality_gap < 1e-12 and np.all(best.direction != 0)
    return problem_of(networks.linear(3), PERTURBATIONS[request.param]), best


def test_the_max_margin_direction_is_certified(linear):
    problem, best = linear
    found = gflow.certify(problem, linear_params(3.0 * best.direction))
    assert found.separated
    assert found.normalized_margin == pytest.approx(best.margin, rel=1e-12)
    assert found.stationarity <= 1e-10
    assert found.complementarity <= 1e-10
    assert found.dual_infeasibility == 0
    # `max_margin` speaks of w = u / margin: its multipliers are those at unit norm over the margin.
    np.testing.assert_allclose(found.multipliers, best.margin * best.multipliers, atol=1e-9)
    assert found.num_support == len(best.support)
    positive = found.multipliers > 1e-8 * found.multipliers.max()
    assert list(np.flatnonzero(positive)) == sorted(best.support)
    assert len(found.kinks) == 0
    assert found.examined == len(DATA)
    assert found.euler_error < 1e-14 and found.scale_invariance_error < 1e-14


def test_on_linear_networks_no_attack_is_stronger_than_the_exact_one(linear):
    problem, best = linear
    found = gflow.certify(problem, linear_params(best.direction))
    assert found.strong_margin == pytest.approx(found.normalized_margin, rel=1e-12)
    clean_margin = float(np.min(DATA.y * (DATA.x @ best.direction)))
    assert found.clean_margin == pytest.approx(clean_margin, rel=1e-14)
    assert found.strong_margin <= found.normalized_margin <= found.clean_margin
    if not np.any(problem.perturbation.radius):
        assert found.strong_margin == found.normalized_margin == found.clean_margin


def test_a_certificate_is_never_kinder_than_the_truth(linear):
    """At a direction v at the angle theta from the best one, with residual r and complementarity C,

        sin^2(theta) <= C + sin(theta) r.

    For <u, z_i - eps s> >= gamma sum_i lambda_i gives `gamma sum lambda <= cos theta - <u, r>`; the
    margin of v is at most `gamma cos theta`; and `1 - C` is the margin of v times `sum lambda`,
    plus <v, r>.
    """
    problem, best = linear
    num_compared = 0
    for seed, size in enumerate(np.geomspace(1e-9, 1.0, 25)):
        offset = np.random.default_rng(seed).normal(size=3)
        direction = best.direction + size * offset / np.linalg.norm(offset)
        direction /= np.linalg.norm(direction)
        found = gflow.certify(problem, linear_params(direction))
        assert found.separated == (found.normalized_margin > 0)
        if not found.separated:
            assert math.isnan(found.stationarity)
            continue
        num_compared += 1
        cosine = direction @ best.direction
        sine = np.linalg.norm(direction - cosine * best.direction)
        assert cosine > 0
        assert sine**2 <= found.complementarity + sine * found.stationarity + 1e-14
        assert found.normalized_margin <= best.margin * cosine * (1 + 1e-12)
    # Only the last direction, at some 45 degrees, separates no longer.
    assert num_compared == 24


def test_a_balanced_deep_linear_net_at_the_max_margin_direction():
    radius, depth = 0.2, 3
    best = gflow.max_margin(DATA, radius=radius)
    generator = np.random.default_rng(3)
    hidden = [vector / np.linalg.norm(vector) for vector in generator.normal(size=(2, 4))]
    vectors = [best.direction, *hidden, np.ones(1)]
    pairs = zip(vectors[1:], vectors[:-1], strict=True)
    params = tuple(np.outer(after, before) for after, before in pairs)
    found = gflow.certify(problem_of(networks.deep_linear((3, 4, 4, 1)), fgm(radius)), params)
    assert found.normalized_margin == pytest.approx(best.margin * depth ** (-depth / 2), rel=1e-12)
    assert found.strong_margin == pytest.approx(found.normalized_margin, rel=1e-12)
    assert found.stationarity <= 1e-10
    assert found.complementarity <= 1e-10
    assert found.num_support == len(best.support)
    # Euler's identity in `<u, u> = 1`: the multipliers sum to 1 / (L margin).
    total = 1 / (depth * found.normalized_margin)
    assert found.multipliers.sum() == pytest.approx(total, rel=1e-9)


# Points that are not separated


def test_without_separation_there_is_no_kkt_system(linear):
    problem, best = linear
    found = gflow.certify(problem, linear_params(-best.direction))
    assert found.separated is False
    for name in KKT_NUMBERS:
        assert math.isnan(getattr(found, name)), name
    assert np.all(np.isnan(found.multipliers)) and found.multipliers.shape == (len(DATA),)
    assert found.num_support == 0
    assert found.normalized_margin < 0 and math.isfinite(found.smoothed_margin)
    assert "NOT separated" in str(found)
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    for name in KKT_NUMBERS:
        assert values[name] is None, name
    assert values["multipliers"] == [None] * len(DATA)
    assert values["separated"] is False and values["normalized_margin"] < 0


def test_a_separated_point_in_words_and_as_a_dictionary(linear):
    problem, best = linear
    found = gflow.certify(problem, linear_params(best.direction))
    assert "(separated)" in str(found) and "nan" not in str(found)
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert set(values) == {field.name for field in dataclasses.fields(gflow.Certificate)}
    assert values["multipliers"] == found.multipliers.tolist()


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ((np.zeros((1, 3)),), "zero"),
        ((np.full((1, 3), np.nan),), "NaN"),
        ((np.ones((1, 4)),), "fit"),
    ],
)
def test_what_is_no_point_is_refused(linear, params, words):
    with pytest.raises(ValueError, match=words):
        gflow.certify(linear[0], params)


# An independent recomputation: two layers with ReLU^2 under FGM


@pytest.fixture(scope="module")
def two_layer():
    return problem_of(networks.mlp((3, 6, 1), power=2), fgm(RADIUS))


@pytest.fixture(scope="module")
def trained(two_layer):
    found = gflow.certify(two_layer, TRAINED)
    assert found.separated and found.stationarity > 1e-3  # a point on the way, and no limit
    return found


DIRECTION, DEGREE = unit(TRAINED), 3
GRADIENTS = margin_gradients(DIRECTION, DATA, RADIUS)  # (n, P)
AT_UNIT = margins(DIRECTION, DATA, RADIUS)
SLACK = DEGREE * (AT_UNIT - AT_UNIT.min())


def objective(multipliers):
    """`|u - sum lambda_i grad q_i|^2 + sum (L slack_i lambda_i)^2`."""
    residual = flat(DIRECTION) - multipliers @ GRADIENTS
    return residual @ residual + np.sum((SLACK * multipliers) ** 2)


def test_residuals_against_numpy(trained):
    residual = flat(DIRECTION) - trained.multipliers @ GRADIENTS
    assert trained.normalized_margin == pytest.approx(AT_UNIT.min(), rel=1e-12)
    assert trained.clean_margin == pytest.approx(margins(DIRECTION, DATA).min(), rel=1e-12)
    assert trained.stationarity == pytest.approx(np.linalg.norm(residual), rel=1e-9)
    assert trained.complementarity == pytest.approx(SLACK @ trained.multipliers, rel=1e-9)
    system = np.concatenate([GRADIENTS.T, np.diag(SLACK)])
    right = np.concatenate([flat(DIRECTION), np.zeros(len(DATA))])
    best, length = nnls(system, right)
    np.testing.assert_allclose(trained.multipliers, best, atol=1e-8 * best.max())
    assert objective(trained.multipliers) == pytest.approx(length**2, rel=1e-9)


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), log_size=st.floats(-6, 1))
def test_no_other_multipliers_are_better(trained, seed, log_size):
    offset = np.random.default_rng(seed).normal(size=len(DATA))
    size = 10**log_size * trained.multipliers.max()
    other = np.maximum(trained.multipliers + size * offset, 0)
    assert objective(other) >= objective(trained.multipliers) * (1 - 1e-10)


def test_epsilon_and_delta_are_those_of_lyu_and_li(trained):
    """Lyu & Li 2020, Lemma C.8, literally: at parameters theta with loss sum exp(-q_i)."""
    q = margins(TRAINED, DATA, RADIUS)
    theta, smallest = flat(TRAINED), margins(TRAINED, DATA, RADIUS).min()
    rho = np.linalg.norm(theta)
    h = np.exp(-q) @ margin_gradients(TRAINED, DATA, RADIUS)
    beta = theta @ h / (rho * np.linalg.norm(h))
    multipliers = smallest ** (1 - 2 / DEGREE) * rho * np.exp(-q) / np.linalg.norm(h)
    epsilon = rho * smallest ** (-1 / DEGREE) * math.sqrt(2 * (1 - beta))
    delta = np.max(multipliers * (q / smallest - 1))
    assert trained.cosine == pytest.approx(beta, rel=1e-12)
    assert trained.kkt_epsilon == pytest.approx(epsilon, rel=1e-10)
    assert trained.kkt_delta == pytest.approx(delta, rel=1e-10)
    assert trained.flow_stationarity == pytest.approx(math.sqrt(1 - beta**2), rel=1e-10)
    # They are an (epsilon, delta)-KKT point by definition: at theta / smallest^(1/L) ...
    feasible = shaped(theta / smallest ** (1 / DEGREE), TRAINED)
    assert margins(feasible, DATA, RADIUS).min() == pytest.approx(1.0, rel=1e-12)
    residual = flat(feasible) - multipliers @ margin_gradients(feasible, DATA, RADIUS)
    assert np.linalg.norm(residual) == pytest.approx(epsilon, rel=1e-10)


def test_only_what_depends_on_the_norm_changes_with_it(two_layer, trained):
    weights = softmax(-1e300 * AT_UNIT)
    huge = gflow.certify(two_layer, tuple(1e120 * leaf for leaf in TRAINED))
    for name in ("normalized_margin", "clean_margin", "strong_margin", "stationarity"):
        assert getattr(huge, name) == pytest.approx(getattr(trained, name), rel=1e-9), name
    np.testing.assert_allclose(huge.multipliers, trained.multipliers, atol=1e-9)
    # kappa leaves the range of floating-point numbers: the smallest margin is all that counts.
    assert huge.smoothed_margin == pytest.approx(huge.normalized_margin, rel=1e-12)
    ascent = weights @ GRADIENTS
    cosine = flat(DIRECTION) @ ascent / np.linalg.norm(ascent)
    assert huge.cosine == pytest.approx(cosine, rel=1e-12)


def test_fewer_gradients_give_an_upper_bound(two_layer, trained, monkeypatch):
    monkeypatch.setattr(subgradients, "MOST_MARGINS", 3)
    found = gflow.certify(two_layer, TRAINED)
    assert found.examined == 3
    assert set(np.flatnonzero(found.multipliers)) <= set(np.argsort(AT_UNIT)[:3])
    residual = flat(DIRECTION) - found.multipliers @ GRADIENTS
    assert found.stationarity == pytest.approx(np.linalg.norm(residual), rel=1e-9)
    assert objective(found.multipliers) >= objective(trained.multipliers) * (1 - 1e-10)


def test_least_squares_that_cycle_are_solved_by_another_method(two_layer, trained, monkeypatch):
    def gives_up(*_, **__):
        raise RuntimeError("Maximum number of iterations reached.")

    monkeypatch.setattr(multipliers, "nnls", gives_up)
    found = gflow.certify(two_layer, TRAINED)
    assert objective(found.multipliers) == pytest.approx(objective(trained.multipliers), rel=1e-4)
    assert np.all(found.multipliers >= 0)


def test_the_strong_attack_against_numpy(two_layer, trained):
    direction = tuple(map(jnp.asarray, DIRECTION))
    found = np.asarray(strong_margins(two_layer, direction))
    starts = [None] + [
        perturbations.pgd(1.0, order=2, random_start=seed).starts(*DATA.x.shape)
        for seed in range(3)
    ]
    expected = np.minimum(AT_UNIT, margins(DIRECTION, DATA))
    options = dict(radius=RADIUS, order=2, step_size=RADIUS * 2.5 / 40, num_steps=40)
    for start in starts:
        for i, (x, y) in enumerate(zip(DATA.x, DATA.y, strict=True)):
            delta = pgd(
                lambda point, y=y: mlp_input_gradient(DIRECTION, point, [y], power=2),
                x,
                start=None if start is None else start[i],
                **options,
            )
            hidden = np.maximum(DIRECTION[0] @ (x + delta), 0) ** 2
            expected[i] = min(expected[i], y * (DIRECTION[1][0] @ hidden))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert trained.strong_margin == pytest.approx(found.min(), rel=1e-12)
    assert trained.strong_margin < trained.normalized_margin  # one step is not the worst
    assert trained.strong_margin <= trained.clean_margin


def test_no_attack_counts_as_strong_where_there_is_no_projection():
    problem = problem_of(networks.linear(3), fgm(0.2, order=3))
    weights = (jnp.asarray(linear_params(flat(DIRECTION)[:3])[0]),)
    np.testing.assert_array_equal(strong_margins(problem, weights), problem.margins(weights))


def test_total_gradients_against_differences_of_the_attacked_margins():
    """The residual with the gradient through delta, the multipliers being the certificate's own."""
    problem = problem_of(networks.mlp((3, 6, 1), power=2), fgm(RADIUS), gradient="total")
    found = gflow.certify(problem, TRAINED)
    point = flat(DIRECTION)
    columns = [
        central_difference(
            lambda vector: margins(shaped(vector, DIRECTION), DATA, RADIUS), point, axis, 1e-4
        )
        for axis in np.eye(point.size)
    ]
    residual = point - np.array(columns) @ found.multipliers
    # Fourth-order differences of step 1e-4, whose rounding is about 1e-16 / 1e-4.
    assert found.stationarity == pytest.approx(np.linalg.norm(residual), abs=1e-9)
    assert found.normalized_margin == pytest.approx(AT_UNIT.min(), rel=1e-12)
    assert found.euler_error < 1e-13


# Classes


def test_classes_have_a_multiplier_for_every_rival():
    x = np.array([[2.0, 0.1], [1.8, -0.3], [-1.0, 1.7], [-0.8, 1.9], [-1.1, -1.6], [-0.9, -2.0]])
    y = np.array([0, 0, 1, 1, 2, 2])
    weights = np.array([[1.0, 0.1], [-0.6, 0.8], [-0.5, -0.9]])
    problem = problem_of(
        networks.linear(2, num_outputs=3), fgm(0.1), datasets.Dataset(x, y), loss=losses.logistic()
    )
    found = gflow.certify(problem, (5 * weights,))
    direction = (weights / np.linalg.norm(weights)).ravel()
    columns, values = [], []
    for point, label in zip(x, y, strict=True):
        rivals = [(label + 1) % 3, (label + 2) % 3]
        gaps = [(weights[label] - weights[rival]) for rival in rivals]
        runner_up = gaps[int(np.argmin([gap @ point for gap in gaps]))]
        attacked = point - 0.1 * runner_up / np.linalg.norm(runner_up)
        for rival in rivals:
            gradient = np.zeros((3, 2))
            gradient[label], gradient[rival] = attacked, -attacked
            columns.append(gradient.ravel())
            values.append(gradient.ravel() @ direction)
    assert found.normalized_margin == pytest.approx(min(values), rel=1e-12)
    assert found.multipliers.shape == (6, 2) and found.examined == 12
    slack = np.array(values) - min(values)
    system = np.concatenate([np.array(columns).T, np.diag(slack)])
    expected, _ = nnls(system, np.concatenate([direction, np.zeros(12)]))
    residual = direction - expected @ np.array(columns)
    assert found.stationarity == pytest.approx(np.linalg.norm(residual), rel=1e-8)
    assert found.complementarity == pytest.approx(slack @ expected, rel=1e-6)
    assert found.strong_margin <= found.normalized_margin + 1e-15


# Kinks


@pytest.mark.parametrize(
    ("first", "kinks"), [([1.0, 1.0], [0]), ([1.001, 1.0], []), ([1.0, 1.001], [])]
)
def test_an_example_on_a_neurons_kink_is_named(first, kinks):
    """`max(x1 - x2, 0) - max(x1 + x2, 0)`: the first neuron's kink runs through (1, 1)."""
    data = datasets.Dataset([first, [2.0, -1.0], [1.0, -2.0]], [-1.0, 1.0, 1.0])
    problem = problem_of(networks.mlp((2, 2, 1)), clean(), data, loss=losses.logistic())
    params = (np.array([[1.0, -1.0], [1.0, 1.0]]), np.array([[1.0, -1.0]]))
    found = gflow.certify(problem, params)
    assert found.separated
    assert list(found.kinks) == kinks
    assert "at a kink" in str(found)


def test_at_a_kink_the_whole_subdifferential_counts():
    """The linear predictor of (2, 1) and its mirror image under FGSM of radius 1.2 has the limit
    (1, 0): the second coordinate is beyond saving. No gradient there is along (1, 0), but a mean of
    those on both sides is."""
    data = datasets.Dataset([[2.0, 1.0], [-2.0, -1.0]], [1.0, -1.0])
    best = gflow.max_margin(data, radius=1.2, order=math.inf)
    np.testing.assert_allclose(best.direction, [1.0, 0.0], atol=1e-15)
    problem = problem_of(networks.linear(2), fgsm(1.2), data)
    found = gflow.certify(problem, linear_params([1.0, 0.0]))
    assert list(found.kinks) == [0, 1]
    assert found.stationarity <= 1e-6
    assert found.complementarity <= 1e-12
    assert found.normalized_margin == pytest.approx(0.8, rel=1e-14)
    # Both examples have the same gradients: only the sum of their multipliers is determined.
    assert found.multipliers.sum() == pytest.approx(1 / 0.8, rel=1e-12)
    assert found.flow_stationarity > 0.5  # one member of the subdifferential is not enough
    beside = gflow.certify(problem, linear_params([1.0, 1e-3]))
    assert len(beside.kinks) == 0 and beside.stationarity > 0.1


# Around a limit: what a point is reported to be off by is at least what it is off by


@pytest.fixture(scope="module")
def limit(two_layer):
    """A limit that is isolated, as a flat vector of norm 1."""
    found = gflow.find_limit(two_layer, TRAINED)
    assert found.verdict in STRICT
    return flat(found.direction)


def recomputed(vector, multipliers):
    """Margins, `u - sum lambda_i grad q_i` and `L lambda_i (q_i - gamma)` at a unit vector, in
    NumPy."""
    params = shaped(vector, START)
    values = margins(params, DATA, RADIUS)
    residual = vector - multipliers @ margin_gradients(params, DATA, RADIUS)
    return values, residual, DEGREE * (values - values.min()) * multipliers


def joint(vector, multipliers):
    """What the certificate's multipliers make smallest."""
    _, residual, slack = recomputed(vector, multipliers)
    return math.hypot(np.linalg.norm(residual), np.linalg.norm(slack))


def beside(vector, seed, size):
    """A unit vector at about this distance, and how far it is across `vector`."""
    offset = np.random.default_rng(seed).normal(size=vector.size)
    offset -= (offset @ vector) * vector
    moved = vector + size * offset / np.linalg.norm(offset)
    return moved / np.linalg.norm(moved)


@pytest.fixture(scope="module")
def firmness(limit):
    """The least growth of the joint residual per unit of distance, to first order.

    The least singular value of its derivative in u, across u, once the multipliers and the margin
    have done what they can, even with multipliers free to be negative: so a lower bound.
    """
    step, size = 1e-6, limit.size
    best, _ = nnls(*_system(limit))

    def values(vector):
        params = shaped(vector, START)
        pull = best @ margin_gradients(params, DATA, RADIUS)
        return np.concatenate([vector - pull, DEGREE * best * margins(params, DATA, RADIUS)])

    columns = [
        (values(limit + step * e) - values(limit - step * e)) / (2 * step) for e in np.eye(size)
    ]
    across = np.linalg.svd(limit[None])[2][1:].T
    slack = DEGREE * (margins(shaped(limit, START), DATA, RADIUS) - _smallest(limit))
    gradients = margin_gradients(shaped(limit, START), DATA, RADIUS)
    free = np.concatenate([-gradients.T, np.diag(slack)])
    shift = np.concatenate([np.zeros(size), -DEGREE * best])[:, None]
    basis = np.linalg.qr(np.concatenate([free, shift], axis=1))[0]
    moved = np.array(columns).T @ across
    return np.linalg.svd(moved - basis @ (basis.T @ moved), compute_uv=False)[-1]


def _smallest(vector):
    return margins(shaped(vector, START), DATA, RADIUS).min()


def _system(vector):
    """The joint least squares of the certificate."""
    params = shaped(vector, START)
    values = margins(params, DATA, RADIUS)
    slack = np.diag(DEGREE * (values - values.min()))
    system = np.concatenate([margin_gradients(params, DATA, RADIUS).T, slack])
    return system, np.concatenate([vector, np.zeros(len(values))])


@pytest.mark.slow
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), log_size=st.floats(-9, -1))
def test_around_a_limit_the_certificate_says_what_numpy_says(two_layer, limit, seed, log_size):
    vector = beside(limit, seed, 10**log_size)
    found = gflow.certify(two_layer, shaped(3.0 * vector, START))
    values, residual, slack = recomputed(vector, found.multipliers)
    # The point is normalised once more: rounding of 1e-16 each, over a few hundred operations.
    assert found.normalized_margin == pytest.approx(values.min(), rel=1e-12)
    assert found.stationarity == pytest.approx(np.linalg.norm(residual), rel=1e-9, abs=1e-13)
    assert found.complementarity == pytest.approx(slack.sum(), rel=1e-9, abs=1e-13)
    assert found.dual_infeasibility == 0 and np.all(found.multipliers >= 0)
    # It is not harder than the truth either: no multipliers do better.
    other = found.multipliers * np.random.default_rng(seed).uniform(0.5, 1.5, size=len(DATA))
    assert joint(vector, found.multipliers) <= joint(vector, other) + 1e-13


@pytest.mark.slow
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), log_size=st.floats(-8, -4))
def test_a_point_beside_a_limit_is_reported_to_be(two_layer, limit, firmness, seed, log_size):
    assert firmness > 1e-3
    vector = beside(limit, seed, 10**log_size)
    distance = np.linalg.norm(vector - limit)
    found = gflow.certify(two_layer, shaped(vector, START))
    slack = recomputed(vector, found.multipliers)[2]
    reported = math.hypot(found.stationarity, np.linalg.norm(slack))
    # Half, for the terms of second order; and the limit's own residual.
    assert reported >= 0.5 * firmness * distance - 1e-12


@pytest.mark.slow
@settings(max_examples=25)
@given(rank=st.integers(0, len(DATA) - 1), log_size=st.floats(-6, -3))
def test_a_violated_margin_shows(two_layer, limit, rank, log_size):
    """Against the gradient of one active margin: it falls below the others, whose multipliers,
    which carry the norm, then have slack."""
    at_limit = gflow.certify(two_layer, shaped(limit, START))
    index = np.flatnonzero(at_limit.multipliers > 0)[rank % at_limit.num_support]
    slope = margin_gradients(shaped(limit, START), DATA, RADIUS)[index]
    size = 10**log_size
    vector = limit - size * slope / np.linalg.norm(slope)
    vector /= np.linalg.norm(vector)
    found = gflow.certify(two_layer, shaped(vector, START))
    assert found.normalized_margin == pytest.approx(_smallest(vector), rel=1e-12)
    assert found.normalized_margin < at_limit.normalized_margin
    assert found.complementarity + found.stationarity > 1e-3 * size


@pytest.mark.parametrize("size", [1.0, 1e-12, 1e-150])
def test_next_to_a_margin_of_nothing_no_number_is_divided_by_it(size):
    """Warnings are errors here; what is infinite there is said to be so."""
    data = gflow.Dataset(size * np.eye(2), [1, -1])
    problem = problem_of(networks.linear(2), clean(), data)
    certificate = gflow.certify(problem, (np.array([[0.6, -0.8]]),))
    assert certificate.separated and certificate.normalized_margin == pytest.approx(0.6 * size)
    assert not math.isnan(certificate.kkt_epsilon) and not math.isnan(certificate.kkt_delta)
