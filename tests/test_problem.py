"""What a problem says of parameters: values, gradients of both modes, extremes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _oracles import central_difference, mlp_forward, mlp_input_gradient, steepest

import gflow.losses
import gflow.networks
from gflow.datasets import Dataset, soudry
from gflow.perturbations import AbstractPerturbation, fgm, fgsm, pgd
from gflow.problem import Problem

EPS = np.finfo(np.float64).eps
RADIUS = 0.2
_generator = np.random.default_rng(11)
X = _generator.normal(size=(6, 3))
BINARY = Dataset(X, np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]))
CLASSES = Dataset(X, np.array([0, 1, 2, 2, 0, 1]))
WEIGHTS = (_generator.normal(size=(4, 3)), _generator.normal(size=(1, 4)))
CLASS_WEIGHTS = (WEIGHTS[0], _generator.normal(size=(3, 4)))
EXPONENTIAL, LOGISTIC = gflow.losses.exponential(), gflow.losses.logistic()

COVERED = {
    "binary": (gflow.networks.mlp((3, 4, 1), power=2), BINARY, WEIGHTS),
    # Names of class problems are those of the attack.
    "runner_up": (gflow.networks.mlp((3, 4, 3), power=2), CLASSES, CLASS_WEIGHTS),
    "each": (gflow.networks.mlp((3, 4, 3), power=2), CLASSES, CLASS_WEIGHTS),
    "worst": (gflow.networks.mlp((3, 4, 3), power=2), CLASSES, CLASS_WEIGHTS),
}


def build(name="binary", *, loss=LOGISTIC, perturbation=None, gradient="frozen"):
    network, dataset, _ = COVERED[name]
    perturbation = fgm(RADIUS) if perturbation is None else perturbation
    return Problem(
        network,
        dataset,
        loss=loss,
        perturbation=perturbation,
        gradient=gradient,
        rivals="worst" if name == "binary" else name,
    )


def rivals(outputs, label):
    """`f_y - f_j` over the other classes, in the cyclic order y + 1, y + 2, .."""
    others = [(label + step) % len(outputs) for step in range(1, len(outputs))]
    return np.array([outputs[label] - outputs[j] for j in others]), others


def attack(name, index):
    """The perturbation of an example and its margins under l_2 FGM, by hand."""
    _, dataset, weights = COVERED[name]
    x, label = dataset.x[index], dataset.y[index]

    def moved(row):
        return -RADIUS * steepest(mlp_input_gradient(weights, x, row, power=2), 2)

    def margins_at(delta):
        outputs, _ = mlp_forward(weights, x + delta, power=2)
        return label * outputs if dataset.binary else rivals(outputs, label)[0]

    if dataset.binary:
        delta = moved([label])
        return delta, margins_at(delta)[0]
    clean, others = rivals(mlp_forward(weights, x, power=2)[0], label)
    deltas = [moved(np.eye(3)[label] - np.eye(3)[other]) for other in others]
    own = [margins_at(delta)[j] for j, delta in enumerate(deltas)]
    if name == "each":
        return np.array(deltas), np.array(own)
    chosen = int(np.argmin(clean if name == "runner_up" else own))
    # Under the attack against the worst rival its own margin is the first.
    order = [0, 1] if name == "runner_up" else [chosen, 1 - chosen]
    return deltas[chosen], margins_at(deltas[chosen])[order]


def by_numpy(name):
    """Perturbations and margins under l_2 FGM."""
    delta, margins = zip(*(attack(name, index) for index in range(len(X))), strict=True)
    return np.array(delta), np.array(margins)


@pytest.mark.parametrize("name", COVERED)
def test_values(name):
    problem, weights = build(name), COVERED[name][2]
    delta, margins = by_numpy(name)
    np.testing.assert_allclose(problem.perturbations(weights), delta, atol=1e-14)
    np.testing.assert_allclose(problem.margins(weights), margins, rtol=1e-13)
    there = np.asarray(problem.margins_at(weights, delta))
    if name == "worst":
        there, margins_there = np.sort(there), np.sort(margins)
    else:
        margins_there = margins
    np.testing.assert_allclose(there, margins_there, rtol=1e-13)
    clean = np.asarray(problem.clean_margins(weights))
    np.testing.assert_allclose(clean, problem.margins_at(weights, 0 * X), rtol=1e-14)
    assert clean.shape == margins.shape and np.min(margins) < np.min(clean)
    terms = np.log1p(np.exp(-margins) if margins.ndim == 1 else np.exp(-margins).sum(axis=1))
    np.testing.assert_allclose(problem.log_loss(weights), np.log(terms.sum()), rtol=1e-13)


@pytest.mark.parametrize(("loss", "mode"), [(EXPONENTIAL, "frozen"), (LOGISTIC, "total")])
@pytest.mark.parametrize("name", COVERED)
def test_gradient(name, loss, mode):
    weights = COVERED[name][2]
    problem = build(name, loss=loss, gradient=mode)
    gradient = problem.gradient(weights)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(np.shape, weights)
    delta = problem.perturbations(weights)
    value = eqx.filter_jit(
        lambda point: jnp.exp(
            problem.log_loss(point)
            if mode == "total"
            else problem.loss.log_loss(problem.margins_at(point, delta))
        )
    )
    for layer, entry in ((0, (0, 0)), (0, (2, 1)), (0, (3, 2)), (1, (0, 1)), (1, (0, 3))):

        def moved(step, layer=layer, entry=entry):
            changed = [weight.copy() for weight in weights]
            changed[layer][entry] += step
            return value(tuple(changed))

        # Truncation 1e-16 times a fifth derivative; rounding 1e-16 / 1e-4 times the loss.
        difference = central_difference(moved, 0.0, 1.0, 1e-4)
        scale = float(value(weights))
        np.testing.assert_allclose(
            gradient[layer][entry], difference, rtol=1e-8, atol=1e-10 * scale
        )


@pytest.mark.parametrize("name", ["runner_up", "each", "worst"])
def test_gradients_of_single_margins(name):
    weights = COVERED[name][2]
    problem = build(name, gradient="total")
    ascent = problem.ascent(weights)
    every = problem.margin_gradients(weights, np.arange(6))
    for single, together in zip(every, ascent.vector, strict=True):
        weighted = np.tensordot(ascent.weights, single, axes=2)
        np.testing.assert_allclose(weighted, together, atol=1e-14)
    chosen = problem.margin_gradients(weights, np.array([4, 1]))
    np.testing.assert_allclose(chosen[0], np.asarray(every[0])[[4, 1]], atol=1e-14)


def relative_difference(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return max(float(np.max(abs(a - b)) / np.max(abs(a))) for a, b in pairs)


def test_modes_agree_for_linear_networks_and_differ_for_others():
    weights = (WEIGHTS[0][:2], np.array([[0.6, -0.8]]))
    both = [
        Problem(
            gflow.networks.deep_linear((3, 2, 1)),
            BINARY,
            loss=LOGISTIC,
            perturbation=fgm(RADIUS, order=1.3),
            gradient=mode,
        ).gradient(weights)
        for mode in ("frozen", "total")
    ]
    assert relative_difference(*both) < 1e-13
    both = [build(gradient=mode).gradient(WEIGHTS) for mode in ("frozen", "total")]
    assert relative_difference(*both) > 1e-3


class Held(AbstractPerturbation):
    """Perturbations that do not move with the parameters."""

    delta: np.ndarray
    order: float = eqx.field(static=True, default=2.0)
    radius: float = eqx.field(static=True, default=1.0)

    def __call__(self, margin, x, start):
        return start

    def starts(self, num_examples, num_inputs):
        return self.delta


def test_derivative_of_the_frozen_gradient_sees_the_perturbation_move():
    # What an implicit solver needs: delta is frozen in the gradient, not in the field.
    problem = build()
    held = build(perturbation=Held(np.asarray(problem.perturbations(WEIGHTS))))
    direction = tuple(_generator.normal(size=weight.shape) for weight in WEIGHTS)

    @eqx.filter_jit
    def field_and_derivative(problem, weights):
        return jax.jvp(lambda point: problem.ascent(point).vector, (weights,), (direction,))

    def field(step):
        moved = tuple(w + step * v for w, v in zip(WEIGHTS, direction, strict=True))
        return np.concatenate([np.ravel(v) for v in field_and_derivative(problem, moved)[0]])

    value, derivative = field_and_derivative(problem, WEIGHTS)
    difference = central_difference(field, 0.0, 1.0, 1e-4)
    flat = np.concatenate([np.ravel(leaf) for leaf in derivative])
    np.testing.assert_allclose(flat, difference, rtol=1e-7, atol=1e-8)
    # The same gradient with perturbations that stay put has another derivative.
    same, other = field_and_derivative(held, WEIGHTS)
    assert relative_difference(value, same) < 1e-13
    assert relative_difference(derivative, other) > 1e-3


def test_ascent_where_the_gradient_underflows():
    dataset = soudry(0)
    network = gflow.networks.deep_linear((2, 1, 1))
    problem = Problem(network, dataset, loss=LOGISTIC, perturbation=fgm(0.1))
    direction = (np.array([[0.5, 0.5]]), np.array([[np.sqrt(0.5)]]))
    for log_kappa in (0.0, 50.0, 600.0):
        ascent = problem.ascent(direction, log_kappa)
        # Four examples with one margin: equal weights, though log 2 is lost beside e^600.
        np.testing.assert_allclose(ascent.weights, 0.25, rtol=4 * EPS)
        margin = float(ascent.margins[0])
        assert np.ptp(ascent.margins) == 0 and margin > 0.5
        expected = np.log(4) - np.logaddexp(0, np.exp(log_kappa) * margin)
        np.testing.assert_allclose(ascent.log_weight, expected, rtol=4 * EPS)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ascent))
    large = tuple(np.exp(300.0) * weight for weight in direction)
    assert all(not np.any(leaf) for leaf in problem.gradient(large))
    there = problem.ascent(large)
    np.testing.assert_allclose(there.margins, np.exp(600.0) * ascent.margins, rtol=1e-13)
    np.testing.assert_allclose(there.log_weight, ascent.log_weight, rtol=1e-13)


def test_weights_at_any_norm():
    # A product fused with the subtraction of the maximum would leave its rounding error, e^1e200.
    problem = Problem(gflow.networks.linear(3), BINARY, loss=LOGISTIC)
    weights = (np.array([[0.3, -1.0, 0.5]]),)
    margins = np.asarray(problem.clean_margins(weights))
    nearest = margins == margins.min()
    assert margins.min() < 0 < margins.max() and nearest.sum() == 1
    for sign in (1.0, -1.0):
        for log_kappa in (10.0, 40.0, 50.0, 100.0, 400.0, 700.0):
            ascent = problem.ascent(tuple(sign * w for w in weights), log_kappa)
            # All examples on the wrong side have slope -1; those on the right side none.
            wrong = sign * margins < 0
            np.testing.assert_allclose(ascent.weights, wrong / wrong.sum(), atol=1e-12)
            np.testing.assert_allclose(ascent.log_weight, np.log(wrong.sum()), rtol=4 * EPS)
    problem = Problem(gflow.networks.linear(3), BINARY, loss=EXPONENTIAL)
    for log_kappa in (10.0, 40.0, 50.0, 100.0, 400.0, 700.0):
        ascent = problem.ascent(weights, log_kappa)
        np.testing.assert_allclose(ascent.weights, nearest, atol=1e-12)
        expected = -np.exp(log_kappa) * margins.min()
        np.testing.assert_allclose(ascent.log_weight, expected, rtol=1e-13)


def test_attack_at_a_tie_takes_one_rival():
    # Class 0 against rivals whose gradients cancel: their mean would be no attack at all.
    dataset = Dataset(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([0, 1, 2]))
    network = gflow.networks.linear(2, num_outputs=3)
    weights = (np.array([[1.0, 0.0], [1.0, 1.0], [1.0, -1.0]]),)
    problem = Problem(network, dataset, loss=LOGISTIC, perturbation=fgm(RADIUS))
    np.testing.assert_array_equal(problem.clean_margins(weights)[0], [0.0, 0.0])
    np.testing.assert_allclose(problem.perturbations(weights)[0], [0.0, RADIUS], atol=1e-16)
    np.testing.assert_allclose(problem.margins(weights)[0], [-RADIUS, RADIUS], rtol=4 * EPS)


def test_two_classes_are_a_binary_problem():
    weight = np.array([[0.3, -1.0, 0.5]])
    binary = Problem(gflow.networks.linear(3), BINARY, loss=LOGISTIC, perturbation=fgm(RADIUS))
    classes = Problem(
        gflow.networks.linear(3, num_outputs=2),
        Dataset(X, (BINARY.y > 0).astype(int)),
        loss=LOGISTIC,
        perturbation=fgm(RADIUS),
    )
    pair = (np.concatenate([-weight / 2, weight / 2]),)
    ascent, expected = classes.ascent(pair), binary.ascent((weight,))
    assert ascent.margins.shape == ascent.weights.shape == (6, 1)
    np.testing.assert_allclose(ascent.margins[:, 0], expected.margins, rtol=1e-14)
    np.testing.assert_allclose(ascent.weights[:, 0], expected.weights, rtol=1e-13)
    np.testing.assert_allclose(ascent.log_weight, expected.log_weight, rtol=1e-13)


@pytest.mark.parametrize("gradient", ["frozen", "total"])
@pytest.mark.parametrize(
    "attack",
    [fgm(RADIUS), fgsm(RADIUS, smoothing=0.1), pgd(RADIUS, order=2, num_steps=3)],
    ids=type,
)
def test_one_attack_for_all_examples_of_a_linear_network(attack, gradient):
    """What it gives, its gradients and their derivatives are those of an attack on each example."""
    network = gflow.networks.deep_linear((3, 4, 1))
    alike = gflow.networks.custom(network.apply, degree=2, init=network._initial)
    one, each = (
        Problem(net, BINARY, loss=LOGISTIC, perturbation=attack, gradient=gradient)
        for net in (network, alike)
    )
    assert one.one_attack and not each.one_attack

    @eqx.filter_jit
    def told(problem):
        def slope(params):
            return problem.ascent(params, jnp.zeros(())).vector

        ascent = problem.ascent(WEIGHTS, jnp.zeros(()))
        tangent = jax.jvp(slope, (WEIGHTS,), (network.init(1),))
        rows = problem.margin_gradients(WEIGHTS, jnp.arange(6))
        slopes = problem.margin_gradients(WEIGHTS, jnp.array([4, 1]), gradient="total")
        return ascent, tangent, rows, slopes, problem.perturbations(WEIGHTS)

    for ours, expected in zip(*(jax.tree.leaves(told(p)) for p in (one, each)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=100 * EPS)


def test_attacks_that_depend_on_the_example_are_made_on_each():
    network = gflow.networks.linear(3)
    boxed = pgd(RADIUS, box=(-5.0, 5.0))
    for attack in (boxed, pgd(RADIUS, random_start=0)):
        assert not Problem(network, BINARY, loss=LOGISTIC, perturbation=attack).one_attack
