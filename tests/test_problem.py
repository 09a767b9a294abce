"""What a problem says of parameters: values, gradients of both modes, extremes, compilation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _oracles import central_difference, mlp_forward, mlp_input_gradient, steepest

import gflow.losses
import gflow.networks
from gflow.datasets import Dataset, soudry
from gflow.perturbations import fgm, fgsm, pgd
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
    "classes": (gflow.networks.mlp((3, 4, 3), power=2), CLASSES, CLASS_WEIGHTS),
}


def build(name="binary", *, loss=LOGISTIC, perturbation=None, gradient="frozen"):
    network, dataset, _ = COVERED[name]
    perturbation = fgm(RADIUS) if perturbation is None else perturbation
    return Problem(network, dataset, loss=loss, perturbation=perturbation, gradient=gradient)


def rivals(outputs, label):
    """`f_y - f_j` over the other classes, in the cyclic order y + 1, y + 2, .."""
    others = [(label + step) % len(outputs) for step in range(1, len(outputs))]
    return np.array([outputs[label] - outputs[j] for j in others]), others


def attacked_gradient(name, index):
    """Gradient in x of the margin that is attacked, by hand."""
    _, dataset, weights = COVERED[name]
    x, label = dataset.x[index], dataset.y[index]
    if dataset.binary:
        return mlp_input_gradient(weights, x, [label], power=2)
    margins, others = rivals(mlp_forward(weights, x, power=2)[0], label)
    row = np.eye(3)[label] - np.eye(3)[others[int(np.argmin(margins))]]
    return mlp_input_gradient(weights, x, row, power=2)


def by_numpy(name):
    """Perturbations and margins under l_2 FGM."""
    _, dataset, weights = COVERED[name]
    delta, margins = [], []
    for index, (x, label) in enumerate(zip(dataset.x, dataset.y, strict=True)):
        delta.append(-RADIUS * steepest(attacked_gradient(name, index), 2))
        outputs, _ = mlp_forward(weights, x + delta[-1], power=2)
        margins.append(label * outputs[0] if dataset.binary else rivals(outputs, label)[0])
    return np.array(delta), np.array(margins)


@pytest.mark.parametrize("name", COVERED)
def test_values(name):
    problem, weights = build(name), COVERED[name][2]
    delta, margins = by_numpy(name)
    np.testing.assert_allclose(problem.perturbations(weights), delta, atol=1e-14)
    np.testing.assert_allclose(problem.margins(weights), margins, rtol=1e-13)
    np.testing.assert_allclose(problem.margins_at(weights, delta), margins, rtol=1e-13)
    clean = np.asarray(problem.clean_margins(weights))
    np.testing.assert_allclose(clean, problem.margins_at(weights, 0 * delta), rtol=1e-14)
    assert clean.shape == margins.shape and np.min(margins) < np.min(clean)
    terms = np.log1p(np.exp(-margins) if margins.ndim == 1 else np.exp(-margins).sum(axis=1))
    np.testing.assert_allclose(problem.log_loss(weights), np.log(terms.sum()), rtol=1e-13)


@pytest.mark.parametrize("name", COVERED)
@pytest.mark.parametrize("loss", [EXPONENTIAL, LOGISTIC], ids=["exponential", "logistic"])
@pytest.mark.parametrize("mode", ["frozen", "total"])
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
    assert relative_difference(*both) > 1e-2


def test_derivative_of_the_frozen_gradient_sees_the_perturbation_move():
    # What an implicit solver needs: delta is frozen in the gradient, not in the field.
    problem = build()
    direction = tuple(_generator.normal(size=weight.shape) for weight in WEIGHTS)
    field = eqx.filter_jit(lambda weights: problem.ascent(weights).vector)
    derivative = eqx.filter_jit(lambda w, v: jax.jvp(field, (w,), (v,))[1])(WEIGHTS, direction)
    stopped = eqx.filter_jit(
        lambda w, v, delta: jax.jvp(
            lambda w: jax.grad(lambda w: jnp.sum(problem.margins_at(w, delta)))(w), (w,), (v,)
        )[1]
    )
    for layer in range(2):
        difference = central_difference(
            lambda step, layer=layer: field(
                tuple(w + step * v for w, v in zip(WEIGHTS, direction, strict=True))
            )[layer],
            *(0.0, 1.0, 1e-4),
        )
        np.testing.assert_allclose(derivative[layer], difference, rtol=1e-7, atol=1e-8)
    # The comparison can fail: with one example's worth of weights, delta held still is not enough.
    alone = Problem(COVERED["binary"][0], BINARY, loss=EXPONENTIAL, perturbation=fgm(RADIUS))
    total = eqx.filter_jit(
        lambda w, v: jax.jvp(
            lambda w: jax.grad(lambda u: jnp.sum(alone.margins_at(u, alone.perturbations(w))))(w),
            (w,),
            (v,),
        )[1]
    )
    still = stopped(WEIGHTS, direction, alone.perturbations(WEIGHTS))
    assert relative_difference(total(WEIGHTS, direction), still) > 1e-2


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
    margins = classes.margins(pair)
    assert margins.shape == (6, 1)
    np.testing.assert_allclose(margins[:, 0], binary.margins((weight,)), rtol=1e-14)
    np.testing.assert_allclose(classes.log_loss(pair), binary.log_loss((weight,)), rtol=1e-14)
    ascent = classes.ascent(pair)
    assert ascent.weights.shape == (6, 1)
    np.testing.assert_allclose(ascent.weights[:, 0], binary.ascent((weight,)).weights, rtol=1e-13)


class Counted:
    """Counts how often a network is traced."""

    def __init__(self):
        self.calls = 0

    def __call__(self, params, x):
        self.calls += 1
        return params[0] @ x


def test_what_is_swept_is_not_compiled_again():
    counted, weights = Counted(), (np.array([0.3, -1.0, 0.5]),)

    def problem(perturbation):
        network = gflow.networks.custom(counted, degree=1)
        return Problem(network, BINARY, loss=LOGISTIC, perturbation=perturbation)

    def traces(perturbation, log_kappa=0.0):
        before = counted.calls
        built = problem(perturbation)
        for method in (built.margins, built.log_loss, built.gradient, built.perturbations):
            method(weights)
        built.ascent(weights, log_kappa)
        return counted.calls - before

    assert problem(fgm(0.1)) == problem(fgm(0.1)) != problem(fgm(0.2))
    assert traces(fgsm(0.1, smoothing=0.1)) > 0
    assert traces(fgsm(0.2, smoothing=0.1), log_kappa=600.0) == 0
    assert traces(fgsm(0.0, smoothing=0.3), log_kappa=1) == 0
    assert traces(fgsm(np.float32(0.2), smoothing=jnp.asarray(0.1)), log_kappa=np.float64(2)) == 0
    assert traces(pgd(0.1, step_size=0.05, box=(-9, 9), random_start=0)) > 0
    assert traces(pgd(0.0, step_size=0.01, box=(-8, 8), random_start=0)) == 0
    # Another program is compiled: the counter can count.
    assert traces(fgm(0.1)) > 0
    assert traces(fgm(0.2)) == 0


def test_many_radii_in_one_program():
    radii = np.array([0.0, 0.1, RADIUS])
    network, dataset, _ = COVERED["binary"]

    @eqx.filter_jit
    def sweep(radii, weights):
        def margins(radius):
            return Problem(network, dataset, loss=LOGISTIC, perturbation=fgm(radius)).margins(
                weights
            )

        return jax.vmap(margins)(radii)

    swept = np.asarray(sweep(radii, WEIGHTS))
    np.testing.assert_allclose(swept[0], build().clean_margins(WEIGHTS), rtol=1e-13)
    np.testing.assert_allclose(swept[2], build().margins(WEIGHTS), rtol=1e-13)


def test_random_starts_belong_to_the_examples():
    problem = build(perturbation=pgd(RADIUS, order=2, random_start=0, num_steps=1))
    assert problem.starts.shape == X.shape and build().starts is None
    same = Dataset(np.repeat(X[:1], 6, axis=0), BINARY.y)  # each its own start, at equal inputs
    problem = Problem(problem.network, same, loss=LOGISTIC, perturbation=problem.perturbation)
    delta = np.asarray(problem.perturbations(WEIGHTS))
    assert len(np.unique(delta[:, 0])) == 6
    np.testing.assert_array_equal(delta, problem.perturbations(WEIGHTS))


NETWORK = COVERED["binary"][0]
REFUSED = [
    (TypeError, "loss", lambda: Problem(NETWORK, BINARY, loss=gflow.losses.logistic)),
    (TypeError, "loss", lambda: Problem(NETWORK, BINARY, loss="logistic")),
    (TypeError, "network", lambda: Problem(gflow.networks.mlp, BINARY, loss=LOGISTIC)),
    (TypeError, "dataset", lambda: Problem(NETWORK, X, loss=LOGISTIC)),
    (TypeError, "perturbation", lambda: Problem(NETWORK, BINARY, loss=LOGISTIC, perturbation=0.1)),
    (ValueError, "inputs", lambda: Problem(gflow.networks.linear(4), BINARY, loss=LOGISTIC)),
    (ValueError, "outputs|labels", lambda: Problem(NETWORK, CLASSES, loss=LOGISTIC)),
    (ValueError, "box", lambda: build(perturbation=pgd(0.1, box=(0.0, 1.0)))),
    ((TypeError, ValueError), "gradient", lambda: build(gradient="frosted")),
]


@pytest.mark.parametrize(("error", "names", "call"), REFUSED)
def test_refusals(error, names, call):
    with pytest.raises(error, match=names):
        call()
