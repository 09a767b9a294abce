"""Shares of correct examples by counting, and the sharpness against the whole Hessian."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _two_layer import flat, margins

import gflow
from gflow import datasets, losses, measures, networks
from gflow.perturbations import fgm, pgd

_generator = np.random.default_rng(2)
DATA = datasets.gaussian(9, 3, gap=0.3, seed=1)
TEST = datasets.random_labels(30, 3, seed=2)
NETWORK = networks.mlp((3, 8, 1), power=2)
PARAMS = (_generator.normal(size=(8, 3)), _generator.normal(size=(1, 8)))
JAX_PARAMS = tuple(map(jnp.asarray, PARAMS))


def problem(radius=0.2, gradient="frozen", loss=None):
    loss = losses.logistic() if loss is None else loss
    return gflow.Problem(NETWORK, DATA, loss=loss, perturbation=fgm(radius), gradient=gradient)


@pytest.mark.parametrize("data", [DATA, TEST], ids=["own", "held out"])
def test_accuracy_counts_positive_margins(data):
    found = float(measures.accuracy(problem(), JAX_PARAMS, dataset=data))
    assert found == pytest.approx(np.mean(margins(PARAMS, data) > 0), rel=1e-15)
    own = float(measures.robust_accuracy(problem(), JAX_PARAMS, dataset=data))
    assert own == pytest.approx(np.mean(margins(PARAMS, data, 0.2) > 0), rel=1e-15)
    stronger = float(measures.robust_accuracy(problem(), JAX_PARAMS, fgm(1.0), dataset=data))
    expected = np.mean(margins(PARAMS, data, 1.0) > 0)
    assert stronger == pytest.approx(expected, rel=1e-15) and stronger <= own <= found
    assert 0 < found < 1 or data is DATA


def test_accuracy_of_classes_and_of_an_attack_that_starts_at_random():
    data = datasets.Dataset(_generator.normal(size=(12, 3)), np.arange(12) % 3)
    weight = _generator.normal(size=(3, 3))
    classes = gflow.Problem(networks.linear(3, num_outputs=3), data, loss=losses.logistic())
    params = (jnp.asarray(weight),)
    correct = np.argmax(data.x @ weight.T, axis=1) == data.y
    assert float(measures.accuracy(classes, params)) == pytest.approx(correct.mean(), rel=1e-15)
    attack = pgd(0.5, num_steps=5, random_start=1)
    attacked = float(measures.robust_accuracy(classes, params, attack))
    rebuilt = gflow.Problem(classes.network, data, loss=classes.loss, perturbation=attack)
    assert attacked == float(measures.robust_accuracy(rebuilt, params)) <= correct.mean()


def test_accuracy_along_a_trajectory():
    at = problem()
    start = NETWORK.init(0)
    run = gflow.integrate(at, start, until=gflow.Until(time=0.5), save=4)
    shares = run.measure(lambda p, u: measures.accuracy(p, u, dataset=TEST))
    assert shares.shape == (len(run),) and np.all((shares >= 0) & (shares <= 1))


def test_other_data_must_fit():
    with pytest.raises(ValueError, match="both have labels"):
        classes = datasets.Dataset(TEST.x, np.arange(30) % 2)
        measures.accuracy(problem(), JAX_PARAMS, dataset=classes)
    with pytest.raises(ValueError):
        measures.accuracy(problem(), JAX_PARAMS, dataset=datasets.gaussian(5, 4))


# Sharpness


def whole_hessian(at, params, objective):
    """By automatic differentiation of the loss of flat parameters."""
    delta = at.perturbations(params)

    def value(vector):
        free = (vector[:24].reshape(8, 3), vector[24:].reshape(1, 8))
        q = at.margins(free) if at.gradient_mode == "total" else at.margins_at(free, delta)
        log_loss = at.loss.log_loss(q)
        return log_loss if objective == "log_loss" else jnp.exp(log_loss)

    return np.asarray(jax.hessian(value)(jnp.asarray(flat(params))))


@pytest.mark.parametrize(("gradient", "objective"), [("frozen", "loss"), ("total", "log_loss")])
def test_sharpness_is_the_largest_eigenvalue(gradient, objective):
    at = problem(gradient=gradient)
    expected = np.linalg.eigvalsh(whole_hessian(at, JAX_PARAMS, objective))[-1]
    found = measures.sharpness(at, PARAMS, objective=objective, tolerance=1e-10)
    assert expected > 0.1 and found == pytest.approx(expected, rel=1e-8)
    mean = measures.sharpness(at, PARAMS, objective=objective, mean=True)
    assert mean == pytest.approx(expected / (9 if objective == "loss" else 1), rel=1e-5)


def test_sharpness_of_a_linear_predictor_by_hand():
    """`hess sum exp(-q_i) = sum exp(-q_i) x_i x_i^T`; three weights, so that it is formed."""
    linear = gflow.Problem(networks.linear(3), DATA, loss=losses.exponential())
    weight = np.array([[0.5, -1.0, 2.0]])
    weights = np.exp(-DATA.y * (DATA.x @ weight[0]))
    expected = np.linalg.eigvalsh((DATA.x.T * weights) @ DATA.x)[-1]
    assert measures.sharpness(linear, (weight,)) == pytest.approx(expected, rel=1e-12)


def test_sharpness_where_the_loss_has_underflowed_or_nothing_moves(own_words):
    """Far out `hess log Loss` stays; of the loss itself nothing is left; a dead net has none."""
    at = problem(loss=losses.exponential())
    run = gflow.integrate(at, NETWORK.init(0), until=gflow.Until(log_loss=-3.0), save=2)
    far = jax.tree.map(lambda leaf: 10.0 * leaf, run.params)
    assert float(at.log_loss(far)) < -800
    assert measures.sharpness(at, far) == 0.0
    assert measures.sharpness(at, far, objective="log_loss") > 1.0
    with pytest.raises(ValueError, match="choose 'loss' or 'log_loss'"):
        measures.sharpness(at, far, objective="x")
    dead = (-np.abs(PARAMS[0]), np.zeros((1, 8)))
    positive = datasets.Dataset(np.abs(DATA.x), DATA.y)
    blind = gflow.Problem(NETWORK, positive, loss=losses.exponential())
    assert measures.sharpness(blind, dead) == 0.0


def test_gradient_descent_is_stable_below_the_edge_only():
    """Off a minimum along the sharpest direction, a step comes closer if `h < 2 / sharpness`."""
    x = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [-0.1, 3.0]])
    data = datasets.Dataset(x, [1.0, 1.0, 1.0, -1.0])
    linear = gflow.Problem(networks.linear(2), data, loss=losses.logistic())
    # By symmetry the first weight rests at 0 but for the last example; Newton finds the minimum.
    point = np.zeros(2)
    for _ in range(20):
        slope = np.asarray(linear.gradient((point[None],))[0][0])
        point = point - np.linalg.solve(hessian_of_linear(linear, point), slope)
    values, vectors = np.linalg.eigh(hessian_of_linear(linear, point))
    sharp = measures.sharpness(linear, (point[None],))
    assert sharp == pytest.approx(values[-1], rel=1e-12)
    tilted = point + 1e-3 * vectors[:, -1]
    for factor, closer in ((0.9, True), (1.1, False)):
        step_size = factor * 2 / sharp
        run = gflow.descend(linear, (tilted[None],), optax.sgd(step_size), num_steps=1)
        moved = np.linalg.norm(np.asarray(run.params[0][0]) - point)
        assert (moved < 1e-3) == closer


def hessian_of_linear(linear, point):
    """`sum_i l''(q_i) x_i x_i^T` of the logistic loss."""
    share = 1 / (1 + np.exp(linear.dataset.y * (linear.dataset.x @ point)))
    return (linear.dataset.x.T * (share * (1 - share))) @ linear.dataset.x
