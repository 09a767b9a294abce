"""Where the attack on an example vanishes the flow jumps, and often slides: how searches end.

The oracle is gradient descent of small steps on the exact adversarial loss, in NumPy. It goes to
and fro across the jump, and so follows Filippov's solution on average.
"""

import math

import equinox as eqx
import numpy as np
import pytest

import gflow
from gflow import losses, networks, perturbations

RADIUS = 0.1


def trained(x, y, width):
    network = networks.mlp((2, width, 1), power=2)
    attack = perturbations.fgm(RADIUS)
    data = gflow.Dataset(x, y)
    return gflow.Problem(network, data, loss=losses.logistic(), perturbation=attack)


def descended(x, y, start, *, step, num_steps):
    """Smallest margin and loss after descent, which ends early where all margins exceed 3."""
    inner, outer = np.array(start[0]), np.array(start[1])[0]
    for _ in range(num_steps):
        gradients = (2 * np.maximum(x @ inner.T, 0) * outer) @ inner
        sizes = np.linalg.norm(gradients, axis=1, keepdims=True)
        at = x - RADIUS * y[:, None] * gradients / np.where(sizes > 0, sizes, 1)
        hidden = np.maximum(at @ inner.T, 0)
        margins = y * (hidden**2 @ outer)
        if margins.min() > 3:
            break
        pull = y / (1 + np.exp(margins))
        slope = (2 * pull[:, None] * hidden * outer).T @ at
        inner, outer = inner + step * slope, outer + step * (pull @ hidden**2)
    return margins.min(), np.log1p(np.exp(-margins)).sum()


@pytest.mark.slow
def test_an_example_at_which_the_last_neuron_switches_off_is_not_separated():
    """One neuron of the wrong sign for the first example, which the second one switches on.

    The flow slides along `w . x_0 = 0`. What is left is the loss log 2 of a margin of 0.
    """
    x, y = np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([1.0, -1.0])
    problem = trained(x, y, 1)
    start = (np.array([[0.9, 0.3]]), np.array([[-0.8]]))
    limit = gflow.find_limit(problem, start, throw=False)
    assert limit.result_name == "not_separated"
    assert [stage.kind for stage in limit.stages] == ["flow", "floor"]
    assert limit.num_flow_steps < 2000
    margin, loss = descended(x, y, start, step=1e-2, num_steps=20_000)
    # Across the jump at most one step of descent.
    assert -1e-2 < margin <= 0 and loss == pytest.approx(math.log(2), rel=2e-2)
    # At the limit the neuron is orthogonal to the first example.
    neuron = np.asarray(limit.direction[0])[0]
    assert abs(neuron @ x[0]) < 1e-3 * np.linalg.norm(neuron) and neuron @ x[1] > 0


def test_a_floor_changes_no_attack_but_where_its_gradient_vanishes():
    """Scale invariance, the formula, and the attack itself as the floor falls to 0."""
    x = np.random.default_rng(0).normal(size=(6, 2))
    problem = trained(x, np.array([1.0, -1, 1, -1, 1, -1]), 3)
    params = problem.network.init(0)
    exact = np.asarray(problem.perturbations(params))
    inner, outer = np.asarray(params[0]), np.asarray(params[1])[0]
    gradients = (2 * np.maximum(x @ inner.T, 0) * outer) @ inner
    size = np.linalg.norm(gradients, axis=1, keepdims=True)
    norm = math.sqrt(np.sum(inner**2) + np.sum(outer**2))
    assert size.max() > 0
    for floor in (1.0, 1e-2, 1e-8):
        floored = eqx.tree_at(
            lambda p: p.attack_floor, problem, np.float64(floor), is_leaf=lambda leaf: leaf is None
        )
        found = np.asarray(floored.perturbations(params))
        np.testing.assert_allclose(
            found, exact * size / np.hypot(size, floor * norm**3), rtol=1e-12
        )
        scaled = tuple(7.0 * np.asarray(leaf) for leaf in params)
        np.testing.assert_allclose(floored.perturbations(scaled), found, rtol=1e-12)
    np.testing.assert_allclose(found, exact, rtol=1e-12)
