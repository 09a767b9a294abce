"""The KKT system and its bordered matrix, against finite differences."""

import jax
import numpy as np
import pytest

import gflow
from gflow import losses, networks, perturbations
from gflow._layout import Layout
from gflow.kkt.kinked_system import kinked_residuals, kinked_system
from gflow.kkt.switches import passes
from gflow.kkt.system import kkt_system, margins_and_rows, stationarity_and_margins
from gflow.kkt.variables import Variables, at_unit_margin

COUNT, STEP = 5, 1e-6


def problem_of(network, attack):
    generator = np.random.default_rng(0)
    data = gflow.Dataset(generator.normal(size=(COUNT, 3)), np.resize([-1, 1], COUNT))
    return gflow.Problem(network, data, loss=losses.exponential(), perturbation=attack)


def point_of(problem):
    params = problem.network.init(0)
    layout = Layout.of(params)
    return layout, np.asarray(layout.flatten(params)), 0.1 + np.random.default_rng(1).random(COUNT)


def differences(function, at):
    """Central differences, a column for each unknown."""
    moves = STEP * np.eye(len(at))
    return np.stack([(function(at + m) - function(at - m)) / (2 * STEP) for m in moves], axis=1)


def test_the_bordered_matrix_is_the_jacobian():
    problem = problem_of(networks.mlp((3, 4, 1), smoothing=0.5), perturbations.fgm(0.2))
    layout, theta, multipliers = point_of(problem)
    size, active = len(theta), np.array([True, False, True, True, False])

    def equations(unknown):
        lam = multipliers.copy()
        lam[active] = unknown[size:]
        found = stationarity_and_margins(problem, layout, unknown[:size], lam)
        return np.concatenate([found[0], np.asarray(found[1])[active]])

    at = kkt_system(problem, layout, theta, multipliers)
    expected = differences(equations, np.append(theta, multipliers[active]))
    # Third derivatives times the square of the step, and rounding over the step.
    np.testing.assert_allclose(at.bordered(active), expected, atol=1e-8)
    # Frozen perturbations that depend on theta: it is not symmetric.
    assert np.abs(at.hessian - at.hessian.T).max() > 1e-3
    bordered = at.bordered(active, shift=2.0, rows=[3.0, 4.0, 5.0], corner=[6.0, 7.0, 8.0])
    factors = np.append(np.ones(size), [3.0, 4.0, 5.0])
    added = np.diag([2.0] * size + [6.0, 7.0, 8.0])
    np.testing.assert_allclose(bordered, factors[:, None] * expected + added, atol=1e-7)


def test_at_kinks_it_is_the_jacobian_by_the_angles_too():
    problem = problem_of(networks.mlp((3, 4, 1)), perturbations.fgsm(0.2))
    layout, theta, multipliers = point_of(problem)
    shape = COUNT, passes(problem).size
    angles = np.random.default_rng(2).uniform(-1.2, 1.2, shape)
    # More columns than one call of the program computes.
    index = np.delete(np.arange(angles.size), [2, 30])
    active = np.array([True, False, True, True, True])
    assert len(theta) + COUNT + len(index) > 64
    size, count = len(theta), int(active.sum())

    def equations(unknown):
        lam, phi = multipliers.copy(), angles.ravel().copy()
        lam[active], phi[index] = unknown[size : size + count], unknown[size + count :]
        moved = Variables(unknown[:size], lam, phi.reshape(shape))
        found = kinked_residuals(problem, layout, moved, 0.1)
        values = np.ravel(found.values)[index]
        return np.concatenate([found.stationarity, found.margins[active], values])

    at = kinked_system(problem, layout, Variables(theta, multipliers, angles), 0.1, index)
    unknown = np.concatenate([theta, multipliers[active], angles.ravel()[index]])
    matrix = at.bordered(active)
    np.testing.assert_allclose(matrix, differences(equations, unknown), atol=1e-8)
    assert np.abs(matrix[size:, size:]).max() > 1e-3


@pytest.mark.parametrize("rivals", ["worst", "runner_up", "each"])
def test_rows_are_the_gradients_of_single_margins(rivals):
    generator = np.random.default_rng(0)
    data = gflow.Dataset(generator.normal(size=(COUNT, 3)), np.resize([0, 1, 2], COUNT))
    problem = gflow.Problem(
        networks.mlp((3, 4, 3), smoothing=0.5),
        data,
        loss=losses.exponential(),
        perturbation=perturbations.fgm(0.2),
        rivals=rivals,
    )
    params = problem.network.init(0)
    layout = Layout.of(params)
    found = margins_and_rows(problem, layout, np.asarray(layout.flatten(params)))
    expected = [np.ravel(problem.margins(params))]
    for mode in ("total", "frozen"):
        single = problem.margin_gradients(params, np.arange(COUNT), gradient=mode)
        leaves = [np.asarray(leaf).reshape(2 * COUNT, -1) for leaf in jax.tree.leaves(single)]
        expected.append(np.concatenate(leaves, axis=1))
    for part, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(part, other, atol=1e-13)
    assert np.abs(expected[1] - expected[2]).max() > 1e-3


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_a_direction_is_scaled_to_unit_margin(degree):
    widths = (3, *(4,) * (degree - 1), 1)
    problem = problem_of(networks.deep_linear(widths), perturbations.clean())
    params = problem.network.init(0)
    layout = Layout.of(params)
    # The labels that the network gives, so that all margins are positive.
    outputs = np.ravel(problem.margins(params)) * problem.dataset.y
    data = gflow.Dataset(problem.dataset.x, np.sign(outputs).astype(int))
    problem = gflow.Problem(problem.network, data, loss=losses.exponential())
    unit = np.asarray(layout.flatten(params))
    unit = unit / np.linalg.norm(unit)
    weights = np.random.default_rng(0).random(COUNT)
    found = at_unit_margin(problem, layout, unit, weights)
    margins = np.asarray(problem.margins(layout.unflatten(found.theta)))
    assert margins.min() == pytest.approx(1, rel=1e-12)
    # Euler's identity: the pull has the length that holds theta along itself.
    gradients = problem.margin_gradients(layout.unflatten(found.theta), np.arange(COUNT))
    rows = np.concatenate(
        [np.asarray(leaf).reshape(COUNT, -1) for leaf in jax.tree.leaves(gradients)], axis=1
    )
    assert found.theta @ (found.multipliers @ rows) == pytest.approx(found.theta @ found.theta)
    np.testing.assert_allclose(found.multipliers / found.multipliers[0], weights / weights[0])
