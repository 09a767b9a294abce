"""Laws that every network, perturbation and loss obeys: a new member is one more row.

Everything about a row comes from one compiled function, called at several parameters.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _oracles import central_difference, lp_norm

import gflow.losses
import gflow.networks
from gflow.datasets import Dataset
from gflow.perturbations import FastGradient, clean, fgm, fgsm, pgd
from gflow.problem import Problem

EPS = np.finfo(np.float64).eps
RADIUS = 0.2
X = np.random.default_rng(5).uniform(0.1, 0.9, size=(4, 3))
BINARY = Dataset(X, np.array([1.0, -1.0, -1.0, 1.0]))
CLASSES = Dataset(X, np.array([0, 1, 2, 1]))


def squared_gate(params, x):
    """A user's network, of degree 3: `a . (b * x)^2`."""
    a, b = params["a"], params["b"]
    return jnp.sum(a * (b * x) ** 2)


NETWORKS = {
    "linear": lambda: gflow.networks.linear(3),
    "deep_linear": lambda: gflow.networks.deep_linear((3, 2, 1)),
    "diagonal": lambda: gflow.networks.diagonal(3, 3),
    "mlp": lambda: gflow.networks.mlp((3, 4, 1), bias=True),
    "mlp_smoothed": lambda: gflow.networks.mlp((3, 4, 1), power=2, smoothing=0.1),
    "mlp_classes": lambda: gflow.networks.mlp((3, 5, 3)),
    "custom": lambda: gflow.networks.custom(squared_gate, degree=3),
}
PERTURBATIONS = {
    "clean": lambda radius: clean(),
    "fgm_1": lambda radius: fgm(radius, order=1),
    "fgm_1.3": lambda radius: fgm(radius, order=1.3),
    "fgm_2": lambda radius: fgm(radius),
    "fgsm": lambda radius: fgsm(radius),
    "fgsm_smoothed": lambda radius: fgsm(radius, smoothing=0.1),
    "pgd_1": lambda radius: pgd(radius, order=1, num_steps=3),
    "pgd_2_random": lambda radius: pgd(radius, order=2, num_steps=3, random_start=0),
    "pgd_inf_box": lambda radius: pgd(radius, num_steps=3, box=(0.0, 1.0)),
}
INDEX = {name: i for table in (NETWORKS, PERTURBATIONS) for i, name in enumerate(table)}
GRADIENT = ("frozen", "total")
LINEAR = ["linear", "deep_linear", "diagonal"]
EXACT_ON_LINEAR = ["clean", "fgm_1", "fgm_1.3", "fgm_2", "fgsm", "pgd_1"]

num_traces = 0


class Row:
    """One network under one perturbation, with both losses.

    The two gradient modes share the table like the colours of a chessboard.
    """

    def __init__(self, network, perturbation):
        self.names = (network, perturbation)
        self.mode = GRADIENT[(INDEX[network] + INDEX[perturbation]) % 2]
        self.network = NETWORKS[network]()
        self.perturbation = PERTURBATIONS[perturbation](RADIUS)
        self.params = self._params(network)
        self.here = self.observe(self.params)

    def problems(self, radius=RADIUS):
        """Rebuilt from scratch at each call."""
        network, perturbation = self.names
        return tuple(
            Problem(
                NETWORKS[network](),
                CLASSES if network == "mlp_classes" else BINARY,
                loss=loss,
                perturbation=PERTURBATIONS[perturbation](radius),
                gradient=self.mode,
            )
            for loss in (gflow.losses.exponential(), gflow.losses.logistic())
        )

    def observe(self, params, radius=RADIUS, log_kappa=0.0):
        """Perturbations, and what each loss makes of the margins, at any parameters."""
        return observe(self.problems(radius), params, np.float64(log_kappa))

    def _params(self, network):
        generator = np.random.default_rng(1)
        if network == "custom":
            return {"a": generator.normal(size=3), "b": generator.normal(size=3)}
        # Noise, since the two halves of a diagonal network start equal.
        initial = self.network.init(0)
        return jax.tree.map(lambda leaf: leaf + 0.3 * generator.normal(size=leaf.shape), initial)


@eqx.filter_jit
def observe(problems, params, log_kappa):
    global num_traces
    num_traces += 1
    delta = problems[0].perturbations(params)
    return delta, [problem.ascent(params, log_kappa) for problem in problems]


@eqx.filter_jit
def margins_at(problem, params, delta):
    return problem.margins_at(params, delta)


@eqx.filter_jit
def log_loss(loss, margins):
    return loss.log_loss(margins)


row = functools.cache(Row)
rows = pytest.mark.parametrize("perturbation", PERTURBATIONS)
networks = pytest.mark.parametrize("network", NETWORKS)


def scaled(factor, params):
    return jax.tree.map(lambda leaf: factor * np.asarray(leaf), params)


def shifted(params, direction, multiple):
    return jax.tree.map(lambda leaf, move: np.asarray(leaf) + multiple * move, params, direction)


def dot(left, right):
    products = jax.tree.map(lambda a, b: float(np.sum(np.asarray(a) * b)), left, right)
    return sum(jax.tree.leaves(products))


@networks
@rows
def test_compiled_and_mapped_as_plain_and_alone(network, perturbation):
    case = row(network, perturbation)
    problem = case.problems()[0]
    delta, (ascent, _) = case.here
    index = 1
    x, y = jnp.asarray(X[index]), jnp.asarray(problem.dataset.y[index])
    start = None if problem.starts is None else jnp.asarray(problem.starts[index])
    with jax.disable_jit():
        params = jax.tree.map(jnp.asarray, case.params)
        alone = problem._perturb(params, x, y, start)
        margin = problem._margin(params, x + alone, y)
    np.testing.assert_allclose(delta[index], alone, rtol=0, atol=1e-13)
    np.testing.assert_allclose(ascent.margins[index], margin, rtol=0, atol=1e-13)


@networks
@rows
def test_rebuilt_problems_are_equal_and_not_traced_again(network, perturbation):
    case = row(network, perturbation)
    assert case.problems() == case.problems()
    before = num_traces
    other, _ = case.observe(scaled(1.1, case.params), radius=0.1, log_kappa=1.0)
    assert num_traces == before
    assert perturbation == "clean" or not np.array_equal(other, case.here[0])


@networks
@rows
def test_everything_is_double(network, perturbation):
    leaves = jax.tree.leaves(row(network, perturbation).here)
    assert all(leaf.dtype == np.float64 and not leaf.weak_type for leaf in leaves)


@networks
@rows
def test_length_of_the_perturbation(network, perturbation):
    case = row(network, perturbation)
    order = case.perturbation.order
    lengths = np.array([lp_norm(delta, order) for delta in np.asarray(case.here[0])])
    if perturbation == "clean":
        assert not lengths.any()
    elif isinstance(case.perturbation, FastGradient) and case.perturbation.smoothing is None:
        np.testing.assert_allclose(lengths[lengths > 0], RADIUS, rtol=16 * EPS)
        assert (lengths > 0).any()
    else:
        assert (lengths <= RADIUS * (1 + 16 * EPS)).all() and lengths.any()


@networks
@rows
def test_homogeneity(network, perturbation):
    case = row(network, perturbation)
    delta, (ascent, _) = case.here
    for factor in (1e-3, 3.0, 1e6):
        other_delta, (other, _) = case.observe(scaled(factor, case.params))
        kappa = factor**case.network.degree
        # Rounding of a few layers and steps.
        np.testing.assert_allclose(other_delta, delta, rtol=0, atol=1e-13)
        np.testing.assert_allclose(other.margins / kappa, ascent.margins, rtol=0, atol=1e-13)


@networks
@rows
def test_weights_of_other_sizes(network, perturbation):
    case = row(network, perturbation)
    degree, log_kappa = case.network.degree, 2.0
    _, here = case.observe(case.params, log_kappa=log_kappa)
    _, there = case.observe(scaled(np.exp(log_kappa / degree), case.params))
    for ascent, other in zip(here, there, strict=True):
        np.testing.assert_allclose(ascent.weights, other.weights, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(ascent.log_weight, other.log_weight, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(np.sum(ascent.weights), 1, rtol=16 * EPS)


@networks
@rows
def test_euler_identity(network, perturbation):
    case = row(network, perturbation)
    for log_kappa in (-1.0, 0.0, 3.0):  # weights of several kinds
        for ascent in case.observe(case.params, log_kappa=log_kappa)[1]:
            expected = case.network.degree * np.sum(ascent.weights * ascent.margins)
            np.testing.assert_allclose(dot(case.params, ascent.vector), expected, atol=1e-13)


@networks
@rows
def test_gradient_is_that_of_finite_differences(network, perturbation):
    case = row(network, perturbation)
    delta, ascents = case.here
    generator = np.random.default_rng(2)
    direction = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape), case.params)
    plain = Problem(
        case.network,
        case.problems()[0].dataset,
        loss=gflow.losses.logistic(),
    )

    def margins(multiple):
        moved = shifted(case.params, direction, multiple)
        if case.mode == "frozen":
            return margins_at(plain, moved, delta)
        return case.observe(moved)[1][0].margins

    for problem, ascent in zip(case.problems(), ascents, strict=True):
        # Truncation 1e-16 times a fifth derivative, rounding 1e-16 / 1e-4 times the loss.
        difference = central_difference(
            lambda multiple, loss=problem.loss: np.exp(log_loss(loss, margins(multiple))),
            *(0.0, 1.0, 1e-4),
        )
        slope = -np.exp(ascent.log_weight) * dot(ascent.vector, direction)
        np.testing.assert_allclose(slope, difference, rtol=1e-8, atol=1e-9)


@networks
@rows
def test_finite_at_huge_margins_of_either_sign(network, perturbation):
    case = row(network, perturbation)
    size = abs(np.asarray(case.here[1][0].margins)).max()
    params = scaled((1e4 / size) ** (1 / case.network.degree), case.params)
    delta, ascents = case.observe(params)
    margins = np.asarray(ascents[0].margins)
    np.testing.assert_allclose(abs(margins).max(), 1e4, rtol=1e-12)
    losses = [log_loss(problem.loss, margins) for problem in case.problems()]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((delta, ascents, losses)))


@pytest.mark.parametrize("network", LINEAR)
@pytest.mark.parametrize("perturbation", EXACT_ON_LINEAR)
def test_margins_of_linear_networks(network, perturbation):
    case = row(network, perturbation)
    predictor = np.asarray(case.network.predictor(jax.tree.map(jnp.asarray, case.params)))
    order = case.perturbation.order
    dual = np.inf if order == 1 else 1 / (1 - 1 / order)
    radius = 0.0 if perturbation == "clean" else RADIUS
    expected = BINARY.y * (X @ predictor) - radius * lp_norm(predictor, dual)
    np.testing.assert_allclose(case.here[1][0].margins, expected, rtol=0, atol=1e-14)
