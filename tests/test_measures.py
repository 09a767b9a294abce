"""Measures against NumPy, closed forms, and their own laws."""

import math
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _two_layer import flat, margin_gradients, margins, unit
from scipy.special import logsumexp, softmax

from gflow import datasets, losses, measures, networks
from gflow.perturbations import AbstractPerturbation, clean, fgm
from gflow.problem import Problem

DATA = datasets.gaussian(8, 3, gap=0.5, seed=1)
NETWORK = networks.mlp((3, 4, 1), power=2)
DEGREE, RADIUS = 3, 0.1
_generator = np.random.default_rng(7)
PARAMS = (_generator.normal(size=(4, 3)), _generator.normal(size=(1, 4)))
DIRECTION = unit(PARAMS)
JAX_PARAMS, JAX_DIRECTION = (tuple(map(jnp.asarray, p)) for p in (PARAMS, DIRECTION))
MEASURES_OF_LAYERS = (
    "layer_alignment",
    "stable_ranks",
    "balancedness",
    "ji_telgarsky_excess",
    "ji_telgarsky_bound",
)
LOSSES = {"exponential": losses.exponential(), "logistic": losses.logistic()}


def two_layer(loss="exponential", **options):
    return Problem(NETWORK, DATA, loss=LOSSES[loss], perturbation=fgm(RADIUS), **options)


@pytest.fixture(scope="module", params=list(LOSSES))
def measured(request):
    """The name of the loss, and the measures of `DIRECTION` as a function of log kappa."""
    problem = two_layer(request.param)
    compiled = jax.jit(lambda log_kappa: measures.measure_point(problem, JAX_DIRECTION, log_kappa))
    return request.param, compiled


# What is measured of a point


@pytest.mark.parametrize("log_kappa", [-2.0, 1.0, 4.0])
def test_a_point_against_numpy(measured, log_kappa):
    loss, measure = measured
    found = measure(log_kappa)
    kappa, at_unit = math.exp(log_kappa), margins(DIRECTION, DATA, RADIUS)
    q = kappa * at_unit
    log_losses = -q if loss == "exponential" else np.log(np.log1p(np.exp(-q)))
    log_slopes = -q if loss == "exponential" else -np.logaddexp(0, q)
    ascent = softmax(log_slopes) @ margin_gradients(DIRECTION, DATA, RADIUS)
    cosine = flat(DIRECTION) @ ascent / np.linalg.norm(ascent)
    log_loss = logsumexp(log_losses)
    inverse = -log_loss if loss == "exponential" else -math.log(math.expm1(math.exp(log_loss)))
    expected = {
        "log_loss": log_loss,
        "log_minus_log_loss": math.log(-log_loss) if log_loss < 0 else math.nan,
        "margin": at_unit.min(),
        "clean_margin": margins(DIRECTION, DATA).min(),
        "smoothed_margin": inverse / kappa,
        "stationarity": math.sqrt(1 - cosine**2) if cosine > 0 else 1.0,
        "strength": np.linalg.norm(ascent),
    }
    assert set(expected) == set(found._fields)
    for name, value in expected.items():
        assert float(getattr(found, name)) == pytest.approx(value, rel=1e-12, nan_ok=True), name


@pytest.mark.parametrize("log_kappa", [0.0, 3.0, 8.0, 50.0, 300.0, 690.0])
def test_the_smoothed_margin_lies_below_the_normalized_one(measured, log_kappa):
    """`min q - log n <= -log sum exp(-q) <= min q`. The upper bound holds for every loss, since no
    term exceeds the sum; the lower one for the exponential loss."""
    loss, measure = measured
    found = measure(log_kappa)
    margin, smoothed = float(found.margin), float(found.smoothed_margin)
    # The logarithm of a logistic loss of e^690 carries 690 of its own roundings into the loss.
    rounding = np.finfo(float).eps * (10 + log_kappa) * abs(margin)
    assert smoothed <= margin + rounding
    if loss == "exponential":
        assert smoothed >= margin - math.log(len(DATA)) * math.exp(-log_kappa) - rounding


@pytest.mark.parametrize("log_kappa", [45.0, 60.0, 200.0, 690.0])
def test_nothing_is_lost_where_kappa_exceeds_every_digit(measured, log_kappa):
    """A fused multiply-add in `logsumexp(-kappa q)` would leave 0 or infinity from 1e19 on."""
    loss, measure = measured
    found = measure(log_kappa)
    at_unit = margins(DIRECTION, DATA, RADIUS)
    assert at_unit.min() < 0
    largest = (
        -math.exp(log_kappa) * at_unit.min()
    )  # e^-q and log(1 + e^-q) have logarithms q, log q
    expected = largest if loss == "exponential" else math.log(largest)
    assert float(found.log_loss) == pytest.approx(expected, rel=1e-13)
    gradient = margin_gradients(DIRECTION, DATA, RADIUS)
    if loss == "exponential":  # one example has all the weight
        assert float(found.strength) == pytest.approx(
            np.linalg.norm(gradient[np.argmin(at_unit)]), rel=1e-12
        )
    else:  # the misclassified ones have equal weights: -l' is 1
        mean = gradient[at_unit < 0].mean(axis=0)
        assert float(found.strength) == pytest.approx(np.linalg.norm(mean), rel=1e-12)


def test_measures_of_parameters_are_those_of_their_direction_and_norm(measured):
    loss, measure = measured
    problem, length = two_layer(loss), 1.7
    expected = measure(DEGREE * math.log(length))

    @jax.jit
    def found(params):
        functions = (measures.at_params, measures.smoothed_margin, measures.normalized_margin)
        return [function(problem, params) for function in functions]

    point, smoothed, _ = found(tuple(length * leaf for leaf in DIRECTION))
    for name, value in point._asdict().items():
        other = float(getattr(expected, name))
        assert float(value) == pytest.approx(other, rel=1e-12, nan_ok=True), name
    assert float(smoothed) == pytest.approx(float(expected.smoothed_margin), rel=1e-12)
    for scale in (1e-100, 1.0, 1e100):
        normalized = float(found(tuple(scale * leaf for leaf in PARAMS))[2])
        assert normalized == pytest.approx(float(expected.margin), rel=1e-12)


@pytest.mark.parametrize(("tolerance", "count"), [(1e-3, 1), (0.01, 2), (0.1, 3), (1.0, 5)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_num_support_counts_margins_near_the_smallest(tolerance, count, sign):
    ratios = np.array([1.0, 1.005, 1.05, 1.5, 1.9])
    # For negative margins the same distances from the smallest, -1.
    values = ratios if sign > 0 else ratios - 2.0
    data = datasets.Dataset(
        np.stack([values, -values], axis=1).reshape(-1, 1), np.tile([1.0, -1.0], 5)
    )
    problem = Problem(networks.linear(1), data, loss=losses.exponential())
    found = measures.num_support(problem, (jnp.array([[3.0]]),), tolerance=tolerance)
    assert int(found) == 2 * count  # every margin comes twice


# Angles


@pytest.mark.parametrize("angle", [1e-12, 1e-9, 1e-4, 0.3, 1.5])
@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_sine_keeps_the_digits_of_small_angles(angle, scale):
    left = flat(DIRECTION)
    across = np.random.default_rng(0).normal(size=left.size)
    across -= (across @ left) * left
    across /= np.linalg.norm(across)
    right = scale * (math.cos(angle) * left + math.sin(angle) * across)
    found = float(measures.sine(jnp.asarray(left), jnp.asarray(right)))
    # Coordinates are rounded to 1e-16 of themselves, and so is the angle's absolute error.
    assert found == pytest.approx(math.sin(angle), rel=1e-14, abs=4e-16)


@pytest.mark.parametrize(
    ("vector", "value"),
    [
        ([-1.0, 0.0], 1.0),
        ([-1.0, 0.1], 1.0),
        ([0.0, 2.0], 1.0),
        ([0.0, 0.0], 1.0),
        ([5.0, 0.0], 0.0),
    ],
)
def test_sine_is_one_from_a_right_angle_on(vector, value):
    assert float(measures.sine(jnp.array([1.0, 0.0]), jnp.array(vector, float))) == value


def test_direction_distance():
    left, right = (jnp.array([3.0]), jnp.array([0.0])), (jnp.array([0.0]), jnp.array([1e-8]))
    assert float(measures.direction_distance(left, right)) == pytest.approx(math.sqrt(2), rel=1e-15)
    opposed = jax.tree.map(lambda leaf: -7.0 * leaf, left)
    assert float(measures.direction_distance(left, opposed)) == pytest.approx(2.0, rel=1e-15)
    assert float(measures.direction_distance(left, left)) == 0.0


# Deep linear networks


def rank_one_layers(widths, seed=0):
    """Layers `s_k b_k b_{k-1}^T` with unit b's, aligned, and the b's."""
    generator = np.random.default_rng(seed)
    vectors = [generator.normal(size=width) for width in widths]
    vectors = [vector / np.linalg.norm(vector) for vector in vectors]
    sizes = generator.uniform(0.5, 3.0, size=len(widths) - 1)
    pairs = zip(sizes, vectors[1:], vectors[:-1], strict=True)
    return tuple(size * np.outer(after, before) for size, after, before in pairs), vectors


@pytest.mark.parametrize("widths", [(3, 4, 1), (3, 4, 5, 2), (2, 2, 2, 2, 1)])
def test_aligned_rank_one_layers_have_alignment_and_stable_rank_one(widths):
    layers, _ = rank_one_layers(widths)
    signs = [-2.0, 0.5, -1.0, 3.0]
    for change in (layers, [s * w for s, w in zip(signs[: len(layers)], layers, strict=True)]):
        alignment = measures.layer_alignment(change)
        assert alignment.shape == (len(layers) - 1,)
        np.testing.assert_allclose(alignment, 1.0, rtol=1e-14)
        np.testing.assert_allclose(measures.stable_ranks(change), 1.0, rtol=1e-14)
        np.testing.assert_allclose(measures.ji_telgarsky_excess(change), 0.0, atol=1e-28)


@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 2])
def test_alignment_is_the_cosine_between_leading_singular_vectors(angle):
    first = np.diag([3.0, 1.0, 0.5])  # leading left singular vector e_1
    second = np.array([[math.cos(angle), math.sin(angle), 0.0]])
    (found,) = measures.layer_alignment((first, second))
    assert float(found) == pytest.approx(math.cos(angle), abs=1e-15)
    # Orthogonal changes of the hidden coordinates and signs of the layers make no difference.
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    (rotated,) = measures.layer_alignment((-rotation @ first, second @ rotation.T))
    assert float(rotated) == pytest.approx(math.cos(angle), abs=1e-14)


def test_a_single_layer_has_no_pairs():
    assert measures.layer_alignment((np.ones((1, 3)),)).shape == (0,)
    assert measures.balancedness((np.ones((1, 3)),)) == ()


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_stable_ranks_of_known_matrices(scale):
    layers = (np.eye(3), np.diag([2.0, 1.0, 0.0]), np.ones((4, 3)))
    found = measures.stable_ranks([scale * layer for layer in layers])
    np.testing.assert_allclose(found, [3.0, 5 / 4, 1.0], rtol=1e-14)


def test_balancedness_and_the_bound_of_ji_and_telgarsky_by_hand():
    start = (np.diag([2.0, 1.0]), np.array([[1.0, 3.0]]))
    (gap,) = measures.balancedness(start)
    np.testing.assert_allclose(gap, [[-3.0, 3.0], [3.0, 8.0]], rtol=1e-15)
    np.testing.assert_allclose(measures.ji_telgarsky_excess(start), [1.0, 0.0], atol=1e-15)
    # Squares 5 and 10; the gap's eigenvalues are (5 +- sqrt(157)) / 2.
    expected = 10 - 10 + (5 + math.sqrt(157)) / 2
    assert float(measures.ji_telgarsky_bound(start)) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("widths", [(3, 1), (3, 4, 1), (3, 2, 4, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_the_bound_against_its_formula_and_above_the_excess(widths, seed):
    generator = np.random.default_rng(seed)
    shapes = zip(widths[1:], widths[:-1], strict=True)
    layers = [generator.normal(size=shape) for shape in shapes]
    squares = [np.sum(layer**2) for layer in layers]
    gaps = [
        np.abs(np.linalg.eigvalsh(before @ before.T - after.T @ after)).max()
        for before, after in pairwise(layers)
    ]
    bound = float(measures.ji_telgarsky_bound(layers))
    assert bound == pytest.approx(max(squares) - squares[-1] + sum(gaps), rel=1e-12)
    excess = [s - np.linalg.norm(w, 2) ** 2 for s, w in zip(squares, layers, strict=True)]
    np.testing.assert_allclose(measures.ji_telgarsky_excess(layers), excess, atol=1e-13)
    assert np.all(measures.ji_telgarsky_excess(layers) <= bound * (1 + 1e-14) + 1e-14)


@pytest.mark.parametrize("widths", [(3, 1), (3, 4, 1), (3, 4, 2, 1)])
def test_margin_of_a_balanced_net(widths):
    _, vectors = rank_one_layers(widths)
    vectors[-1] = np.ones(1)
    pairs = zip(vectors[1:], vectors[:-1], strict=True)
    layers = [np.outer(after, before) for after, before in pairs]
    depth = len(layers)
    predictor = np.linalg.multi_dot(layers[::-1])[0] if depth > 1 else layers[0][0]
    margin = float(np.min(DATA.y * (DATA.x @ predictor)))
    at_unit = np.min(DATA.y * (DATA.x @ predictor)) / math.sqrt(depth) ** depth
    assert measures.balanced_margin(margin, depth) == pytest.approx(at_unit, rel=1e-14)


@pytest.mark.parametrize(
    "measure",
    [
        "layer_alignment",
        "stable_ranks",
        "balancedness",
        "ji_telgarsky_excess",
        "ji_telgarsky_bound",
    ],
)
@pytest.mark.parametrize(
    ("params", "words"),
    [
        ((np.ones(3), np.ones((1, 3))), "every layer must be a matrix"),
        ((np.ones((4, 3)), np.ones((1, 3))), "do not follow each other"),
    ],
)
def test_measures_of_layers_refuse_what_is_no_chain_of_matrices(measure, params, words):
    with pytest.raises(ValueError, match=f"`{measure}.*{words}"):
        getattr(measures, measure)(params)


# Homogeneity


@pytest.mark.parametrize("mode", ["frozen", "total"])
def test_eulers_identity_holds_for_homogeneous_margins(mode):
    # A few sums of products of unit size each; through delta some more.
    assert float(measures.euler_error(two_layer(gradient=mode), JAX_PARAMS)) < 1e-13


@pytest.mark.parametrize("mode", ["frozen", "total"])
def test_eulers_identity_fails_for_others(mode):
    network = networks.custom(lambda p, x: jnp.dot(p[1], jnp.tanh(4 * p[0] @ x)), degree=2)
    problem = Problem(
        network, DATA, loss=losses.exponential(), perturbation=fgm(RADIUS), gradient=mode
    )
    assert float(measures.euler_error(problem, (JAX_PARAMS[0], JAX_PARAMS[1][0]))) > 0.05


class RawGradient(AbstractPerturbation):
    """A step along the gradient itself, which grows with the parameters."""

    order: float = 2.0
    radius: float = 1.0

    def __call__(self, margin, x, start):
        return -0.1 * jax.grad(margin)(x)


@pytest.mark.parametrize(
    ("perturbation", "low", "high"),
    [(clean(), 0.0, 0.0), (fgm(RADIUS), 0.0, 1e-12), (RawGradient(), 1e8, 1e10)],
)
def test_scale_invariance(perturbation, low, high):
    # The raw gradient is of degree 3: the factor 1e3 makes it 1e9 times as long.
    problem = Problem(NETWORK, DATA, loss=losses.exponential(), perturbation=perturbation)
    assert low <= float(measures.scale_invariance_error(problem, JAX_PARAMS)) <= high
