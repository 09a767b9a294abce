"""Certificates at kinks with names: exact limits, an independent recomputation, brute force."""

import itertools
import json
import math

import numpy as np
import pytest
from _two_layer import flat, shaped
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import null_space
from scipy.optimize import nnls

import gflow
from gflow import losses, networks, perturbations

NUM_EXAMPLES, NUM_INPUTS, WIDTH, DEGREE = 10, 4, 6, 2


def problem_of(seed):
    """A plain ReLU net on random labels, which ends on kinks."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(NUM_EXAMPLES, NUM_INPUTS))
    y = np.where(generator.random(NUM_EXAMPLES) < 0.5, -1, 1)
    network = networks.mlp((NUM_INPUTS, WIDTH, 1))
    return gflow.Problem(network, gflow.Dataset(x, y), loss=losses.exponential())


# In NumPy, with a slope for every ReLU of every example


def values_of(params, data):
    """What decides the ReLUs. Shape (n, h)."""
    return data.x @ np.asarray(params[0]).T


def margins_of(params, data):
    return data.y * (np.maximum(values_of(params, data), 0) @ np.asarray(params[1])[0])


def gradients_of(params, data, coefficients):
    """`grad q_i`, W first, then a. Shapes: coefficients (n, h) -> (n, P)."""
    head, slopes = np.asarray(params[1])[0], (1 + coefficients) / 2
    of_weight = (slopes * head)[:, :, None] * data.x[:, None, :]
    of_head = slopes * values_of(params, data)
    stacked = np.concatenate([of_weight.reshape(len(data.x), -1), of_head], axis=1)
    return data.y[:, None] * stacked


def residual_of(params, data, coefficients, multipliers):
    return flat(params) - multipliers @ gradients_of(params, data, coefficients)


def objective_of(params, data, coefficients, multipliers):
    """What the certificate makes smallest: stationarity and complementarity in one."""
    margins = margins_of(params, data)
    slack = DEGREE * (margins - margins.min()) * multipliers
    residual = residual_of(params, data, coefficients, multipliers)
    return math.hypot(np.linalg.norm(residual), np.linalg.norm(slack))


def certified_objective(params, data, found):
    return objective_of(params, data, found.coefficients, found.multipliers)


def at_kinks(params, data):
    """Living ReLUs at their kink. Shape (n, h)."""
    weights = np.linalg.norm(np.asarray(params[0]), axis=1)
    scales = weights * np.linalg.norm(data.x, axis=1)[:, None]
    return (np.abs(values_of(params, data)) <= 1e-9 * scales) & (weights > 1e-6 * weights.max())


# At limits


@pytest.fixture(scope="module", params=[0, 2])
def ended(request):
    problem = problem_of(request.param)
    limit = gflow.find_limit(problem, problem.network.init(request.param))
    assert limit.kinks.converged and limit.kinks.at_kink.sum() >= 5
    return problem, limit


def test_a_limit_at_kinks_is_certified_with_and_without_its_coefficients(ended):
    problem, limit = ended
    data, direction = problem.dataset, limit.direction
    alone = gflow.certify(problem, direction)
    for found in (limit.certificate, alone):
        assert found.stationarity <= 1e-10
        assert found.complementarity <= 1e-10
        assert np.abs(found.coefficients).max() <= 1 and found.multipliers.min() >= 0
        # Off the kinks there is no choice.
        kinks = at_kinks(direction, data)
        off = ~kinks & (np.linalg.norm(direction[0], axis=1) > 1e-6)
        values = values_of(direction, data)
        np.testing.assert_array_equal(found.coefficients[off], np.sign(values[off]))
        assert list(found.kinks) == list(np.flatnonzero(kinks.any(axis=1)))
        residual = residual_of(direction, data, found.coefficients, found.multipliers)
        assert np.linalg.norm(residual) == pytest.approx(found.stationarity, abs=1e-13)
        margins = margins_of(direction, data)
        slack = DEGREE * (margins - margins.min())
        assert slack @ found.multipliers == pytest.approx(found.complementarity, abs=1e-13)


def test_the_coefficients_are_written_as_plain_numbers(ended):
    problem, limit = ended
    found = limit.certificate
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["coefficients"] == found.coefficients.tolist()
    beside = limit.to_dict()["certificate"]
    assert beside["coefficients"] == values["coefficients"]
    swapped = gflow.certify(problem, (limit.direction[0], -limit.direction[1]))
    assert not swapped.separated and swapped.coefficients is None


def moved(ended, seed, size, *, along_kinks):
    """A unit vector at this distance; with the same ReLUs at their kinks if asked."""
    problem, limit = ended
    point = flat(limit.direction)
    offset = np.random.default_rng(seed).normal(size=point.size)
    offset *= point != 0  # dead neurons stay dead
    if along_kinks:
        normals = np.zeros((0, point.size))
        for i, j in np.argwhere(at_kinks(limit.direction, problem.dataset)):
            normal = np.zeros((1, point.size))
            normal[0, j * NUM_INPUTS : (j + 1) * NUM_INPUTS] = problem.dataset.x[i]
            normals = np.concatenate([normals, normal])
        basis = null_space(normals)
        offset = (basis @ (basis.T @ offset)) * (point != 0)
    offset -= (offset @ point) * point
    there = point + size * offset / np.linalg.norm(offset)
    return shaped(there / np.linalg.norm(there), limit.direction)


SIZES = np.geomspace(1e-7, 1e-2, 8)
"""So near the limit all examples are separated, as at the limit."""


def test_off_a_kink_none_of_its_other_side_counts(ended):
    """However little: from 1e-9 on a kink is none, and single gradients are what is left."""
    for seed, size in enumerate(SIZES):
        direction = moved(ended, seed, size, along_kinks=False)
        found = gflow.certify(ended[0], direction)
        assert found.separated
        assert certified_objective(direction, ended[0].dataset, found) > 1e-3


def test_along_kinks_the_residual_grows_with_the_distance(ended):
    for seed, size in enumerate(SIZES):
        direction = moved(ended, seed, size, along_kinks=True)
        found = gflow.certify(ended[0], direction)
        assert found.separated
        assert certified_objective(direction, ended[0].dataset, found) > 0.1 * size


# At kinks where nothing is stationary


@pytest.fixture(scope="module")
def beside(ended):
    """A point on the same kinks, well away from the limit."""
    direction = moved(ended, 7, 0.01, along_kinks=True)
    problem = ended[0]
    np.testing.assert_array_equal(
        at_kinks(direction, problem.dataset), at_kinks(ended[1].direction, problem.dataset)
    )
    found = gflow.certify(problem, direction)
    assert found.separated and found.stationarity > 1e-3
    return problem, direction, found


def test_the_residual_is_that_of_the_hull_of_all_one_sided_gradients(beside):
    problem, direction, found = beside
    data, kinks = problem.dataset, at_kinks(direction, problem.dataset)
    margins, signs = margins_of(direction, data), np.sign(values_of(direction, data))
    columns, slack = [], []
    for i in range(len(data)):
        for sides in itertools.product((-1.0, 1.0), repeat=int(kinks[i].sum())):
            pattern = signs.copy()
            pattern[i, kinks[i]] = sides
            columns.append(gradients_of(direction, data, pattern)[i])
            slack.append((i, DEGREE * (margins[i] - margins.min())))
    rows = np.zeros((len(data), len(columns)))
    for column, (i, value) in enumerate(slack):
        rows[i, column] = value
    system = np.concatenate([np.array(columns).T, rows])
    right = np.concatenate([flat(direction), np.zeros(len(data))])
    best, length = nnls(system, right)
    assert certified_objective(direction, data, found) == pytest.approx(length, abs=1e-8)
    residual = flat(direction) - np.array(columns).T @ best
    # Both minimise the same strictly convex function of the residual.
    assert found.stationarity == pytest.approx(np.linalg.norm(residual), abs=1e-8)


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), log_size=st.floats(-6, 0))
def test_no_other_coefficients_and_multipliers_are_better(beside, seed, log_size):
    problem, direction, found = beside
    generator = np.random.default_rng(seed)
    kinks = at_kinks(direction, problem.dataset)
    turned = found.coefficients + 10**log_size * generator.normal(size=kinks.shape)
    coefficients = np.where(kinks, np.clip(turned, -1, 1), found.coefficients)
    size = 10**log_size * found.multipliers.max()
    other = found.multipliers + size * generator.normal(size=len(found.multipliers))
    best = certified_objective(direction, problem.dataset, found)
    value = objective_of(direction, problem.dataset, coefficients, np.maximum(other, 0))
    assert value >= best * (1 - 1e-9)


# Signs


def test_a_sparse_limit_under_exact_fgsm_is_certified():
    """Weights beyond saving are exactly 0, and the signs that the attack follows there unknown."""
    radius = 0.5
    generator = np.random.default_rng(1)
    y = np.where(np.arange(30) % 2 == 0, 1, -1)
    centre = [2.0, 1.5, 1.0, 0.2, 0.1, 0.0]
    x = y[:, None] * centre + 0.3 * generator.normal(size=(30, 6))
    data = gflow.Dataset(x, y)
    best = gflow.max_margin(data, radius=radius, order=math.inf)
    direction = np.where(np.abs(best.direction) < 1e-10, 0.0, best.direction)
    zeros = direction == 0
    assert 0 < zeros.sum() < len(direction)
    problem = gflow.Problem(
        networks.linear(6),
        data,
        loss=losses.exponential(),
        perturbation=perturbations.fgsm(radius),
    )
    found = gflow.certify(problem, (direction[None],))
    assert found.stationarity <= 1e-10 and found.complementarity <= 1e-10
    assert len(found.kinks) == len(data)
    signs = data.y[:, None] * np.sign(direction)
    np.testing.assert_array_equal(found.coefficients[:, ~zeros], signs[:, ~zeros])
    attacked = data.x - radius * found.coefficients
    residual = direction - (found.multipliers * data.y) @ attacked
    assert np.linalg.norm(residual) == pytest.approx(found.stationarity, abs=1e-13)


# What is given


@pytest.mark.parametrize(
    ("coefficients", "words"),
    [(np.zeros((10, 5)), "shape"), (np.zeros(6), "shape"), (np.full((10, 6), np.nan), "NaN")],
)
def test_coefficients_that_do_not_fit_are_refused(own_words, coefficients, words):
    problem = problem_of(0)
    with pytest.raises(ValueError, match=words):
        gflow.certify(problem, problem.network.init(0), coefficients=coefficients)


def test_coefficients_for_a_problem_without_names_are_refused():
    data = gflow.datasets.gaussian(4, 3, seed=0)
    problem = gflow.Problem(networks.linear(3), data, loss=losses.exponential())
    with pytest.raises(ValueError, match="names"):
        gflow.certify(problem, (np.ones((1, 3)),), coefficients=np.zeros((4, 0)))
