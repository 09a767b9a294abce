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
    "mlp_power": lambda: gflow.networks.mlp((3, 4, 1), power=2),
    "mlp_smoothed": lambda: gflow.networks.mlp((3, 3, 3, 1), smoothing=0.1),
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
LINEAR = ["linear", "deep_linear", "diagonal"]
EXACT_ON_LINEAR = ["clean", "fgm_1", "fgm_1.3", "fgm_2", "fgsm", "pgd_1"]

num_traces = 0


class Row:
    """One network under one perturbation: two losses, each gradient mode."""

    def __init__(self, network, perturbation):
        self.names = (network, perturbation)
        self.network = NETWORKS[network]()
        self.perturbation = PERTURBATIONS[perturbation](RADIUS)
        self.params = self._params(network)
        self.here = self.observe(self.params)

    def problems(self, radius=RADIUS):
        """Rebuilt from scratch at each call."""
        network, perturbation = self.names
        build = functools.partial(
            Problem,
            NETWORKS[network](),
            CLASSES if network == "mlp_classes" else BINARY,
            perturbation=PERTURBATIONS[perturbation](radius),
        )
        return (
            build(loss=gflow.losses.exponential(), gradient="frozen"),
            build(loss=gflow.losses.logistic(), gradient="total"),
        )

    def observe(self, params, radius=RADIUS, log_kappa=0.0):
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
    """Everything that the laws speak of, for all problems of a row at once."""
    global num_traces
    num_traces += 1
    frozen, total = problems
    margins, slopes = jax.jvp(total.margins, (params,), (params,))
    return {
        "delta": frozen.perturbations(params),
        "margins": margins,
        "radial_slopes": slopes,
        "clean": frozen.clean_margins(params),
        "log_loss": [problem.log_loss(params) for problem in problems],
        "gradient": [problem.gradient(params) for problem in problems],
        "ascent": [problem.ascent(params, log_kappa) for problem in problems],
    }


@eqx.filter_jit
def margins_at(problem, params, delta):
    return problem.margins_at(params, delta)


row = functools.cache(Row)
rows = pytest.mark.parametrize("perturbation", PERTURBATIONS)
networks = pytest.mark.parametrize("network", NETWORKS)


def scaled(factor, params):
    return jax.tree.map(lambda leaf: factor * np.asarray(leaf), params)


def dot(left, right):
    products = jax.tree.map(lambda a, b: float(np.sum(np.asarray(a) * b)), left, right)
    return sum(jax.tree.leaves(products))


def shifted(params, direction, multiple):
    return jax.tree.map(lambda leaf, move: np.asarray(leaf) + multiple * move, params, direction)


@networks
@rows
def test_compiled_and_mapped_as_plain_and_looped(network, perturbation):
    case = row(network, perturbation)
    problem = case.problems()[0]
    starts = problem.starts
    with jax.disable_jit():
        params = jax.tree.map(jnp.asarray, case.params)
        for index, x in enumerate(X):
            y = jnp.asarray(problem.dataset.y[index])
            start = None if starts is None else jnp.asarray(starts[index])
            delta = problem._perturb(params, jnp.asarray(x), y, start)
            margin = problem._margin(params, x + delta, y)
            np.testing.assert_allclose(case.here["delta"][index], delta, rtol=0, atol=1e-13)
            np.testing.assert_allclose(case.here["margins"][index], margin, rtol=0, atol=1e-13)


@networks
@rows
def test_rebuilt_problems_are_equal_and_not_traced_again(network, perturbation):
    case = row(network, perturbation)
    assert case.problems() == case.problems()
    before = num_traces
    other = case.observe(scaled(1.1, case.params), radius=0.1)
    assert num_traces == before
    assert perturbation == "clean" or not np.array_equal(other["delta"], case.here["delta"])


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
    lengths = np.array([lp_norm(delta, order) for delta in np.asarray(case.here["delta"])])
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
    degree = case.network.degree
    for factor in (1e-3, 3.0, 1e6):
        other = case.observe(scaled(factor, case.params))
        # Rounding of a few layers and steps.
        np.testing.assert_allclose(other["delta"], case.here["delta"], rtol=0, atol=1e-13)
        for name in ("margins", "clean"):
            size = factor**degree * abs(np.asarray(case.here[name])).max()
            expected = factor**degree * np.asarray(case.here[name])
            np.testing.assert_allclose(other[name], expected, rtol=0, atol=1e-13 * size)


@networks
@rows
def test_euler_identity(network, perturbation):
    case = row(network, perturbation)
    degree = case.network.degree
    # Through delta for every margin, and in each mode's gradient for their weighted sum.
    np.testing.assert_allclose(
        case.here["radial_slopes"], degree * case.here["margins"], rtol=1e-12, atol=1e-13
    )
    for ascent in case.here["ascent"]:
        expected = degree * np.sum(ascent.weights * ascent.margins)
        np.testing.assert_allclose(dot(case.params, ascent.vector), expected, atol=1e-13)


@networks
@rows
def test_gradient_is_that_of_finite_differences(network, perturbation):
    case = row(network, perturbation)
    frozen, total = case.problems()
    delta = case.here["delta"]
    generator = np.random.default_rng(2)
    direction = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape), case.params)

    def frozen_loss(multiple):
        plain = eqx.tree_at(lambda p: (p.perturbation, p.starts), frozen, (clean(), None))
        margins = margins_at(plain, shifted(case.params, direction, multiple), delta)
        return np.exp(frozen.loss.log_loss(margins))

    def total_loss(multiple):
        return np.exp(case.observe(shifted(case.params, direction, multiple))["log_loss"][1])

    for loss, gradient in zip((frozen_loss, total_loss), case.here["gradient"], strict=True):
        # Truncation 1e-16 times a fifth derivative, rounding 1e-16 / 1e-4 times the loss.
        difference = central_difference(loss, 0.0, 1.0, 1e-4)
        np.testing.assert_allclose(dot(gradient, direction), difference, rtol=1e-8, atol=1e-9)


@networks
@rows
def test_finite_at_huge_margins_of_either_sign(network, perturbation):
    case = row(network, perturbation)
    size = abs(np.asarray(case.here["margins"])).max()
    params = scaled((1e4 / size) ** (1 / case.network.degree), case.params)
    seen = case.observe(params)
    margins = np.asarray(seen.pop("margins"))
    np.testing.assert_allclose(abs(margins).max(), 1e4, rtol=1e-12)
    assert margins.min() < -1e3 or margins.max() > 1e3
    finite = {name: seen[name] for name in ("delta", "log_loss", "ascent")}
    finite["gradient"] = seen["gradient"][1]  # that of the exponential loss is e^10000
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(finite))
    for ascent in seen["ascent"]:
        np.testing.assert_allclose(np.sum(ascent.weights), 1, rtol=16 * EPS)


@pytest.mark.parametrize("network", LINEAR)
@pytest.mark.parametrize("perturbation", EXACT_ON_LINEAR)
def test_margins_of_linear_networks(network, perturbation):
    case = row(network, perturbation)
    predictor = np.asarray(case.network.predictor(jax.tree.map(jnp.asarray, case.params)))
    order = case.perturbation.order
    dual = np.inf if order == 1 else 1 / (1 - 1 / order)
    radius = 0.0 if perturbation == "clean" else RADIUS
    expected = BINARY.y * (X @ predictor) - radius * lp_norm(predictor, dual)
    np.testing.assert_allclose(case.here["margins"], expected, rtol=0, atol=1e-14)
    # delta does not depend on the size of the weights, and the two gradients agree.
    frozen, total = (ascent.vector for ascent in case.observe(case.params)["ascent"])
    assert jax.tree.structure(frozen) == jax.tree.structure(total)
