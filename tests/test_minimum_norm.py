"""Systems that may lack rank, against NumPy's by singular values."""

import numpy as np
import pytest

from gflow import _minimum_norm
from gflow._minimum_norm import by_factors, minimum_norm, reciprocal_condition


@pytest.mark.parametrize("size", [30, 240])
@pytest.mark.parametrize("rank_missing", [0, 3])
def test_the_solution_of_minimum_norm(size, rank_missing):
    generator = np.random.default_rng(size + rank_missing)
    left, values, right = np.linalg.svd(generator.normal(size=(size, size)))
    values = np.geomspace(1.0, 1e-4, size)
    values[size - rank_missing :] = 0.0
    matrix = (left * values) @ right
    wanted = generator.normal(size=size)
    expected = np.linalg.lstsq(matrix, wanted, rcond=1e-8)[0]
    # A condition of 1e4 times rounding.
    np.testing.assert_allclose(
        minimum_norm(matrix, wanted), expected, atol=1e-10 * np.linalg.norm(expected)
    )


def _with_values(values, seed):
    left, _, right = np.linalg.svd(np.random.default_rng(seed).normal(size=(len(values),) * 2))
    return (left * values) @ right


@pytest.mark.parametrize("dimension", [1, 9, 20])
@pytest.mark.parametrize("rest", [0.0, 1e-14])
def test_beside_a_kernel_no_rank_revealing_factors_are_needed(dimension, rest, monkeypatch):
    monkeypatch.setattr(_minimum_norm, "lstsq", None)
    values = np.geomspace(1.0, 0.05, 260)
    values[-dimension:] = rest
    matrix = _with_values(values, dimension)
    # With a part that no x attains.
    wanted = np.random.default_rng(0).normal(size=260)
    expected = np.linalg.lstsq(matrix, wanted, rcond=1e-10)[0]
    # A condition of 20 times rounding, and the rest of the kernel over the other singular values.
    np.testing.assert_allclose(
        minimum_norm(matrix, wanted), expected, atol=1e-12 * np.linalg.norm(expected)
    )


@pytest.mark.parametrize(("small", "kept"), [(1e-9, True), (1e-12, False)])
def test_rank_revealing_factors_decide_on_what_is_not_rounding(small, kept):
    values = np.geomspace(1.0, 0.05, 260)
    values[-8:] = 1e-5
    values[-1] = small
    matrix = _with_values(values, 1)
    wanted = matrix @ np.random.default_rng(0).normal(size=260)
    expected = np.linalg.lstsq(matrix, wanted, rcond=1e-10 if kept else 1e-7)[0]
    # A condition of 1e9, or of 1e5 and the ratio of both small values, times rounding.
    np.testing.assert_allclose(minimum_norm(matrix, wanted), expected, atol=1e-5)


@pytest.mark.parametrize("small", [1e-2, 1e-6, 1e-10])
def test_the_reciprocal_condition(small):
    matrix = _with_values(np.geomspace(1.0, small, 30), 0)
    exact = 1 / np.linalg.cond(matrix, 1)
    # An estimate of the norm of an inverse is never above it, and mostly within a factor of 3.
    assert 0.99 * exact < reciprocal_condition(matrix) < 3 * exact


def test_the_reciprocal_condition_of_a_singular_matrix():
    matrix = _with_values(np.append(np.geomspace(1.0, 0.1, 29), 0.0), 0)
    assert reciprocal_condition(matrix) < 1e-15
    assert reciprocal_condition(np.zeros((3, 3))) == 0


def test_more_equations_than_unknowns():
    generator = np.random.default_rng(0)
    for rows, columns in ((3, 1), (300, 250)):
        matrix, wanted = generator.normal(size=(rows, columns)), generator.normal(size=rows)
        expected = np.linalg.lstsq(matrix, wanted)[0]
        np.testing.assert_allclose(minimum_norm(matrix, wanted), expected, atol=1e-13)


def test_a_nearly_singular_system_is_solved_without_a_warning():
    matrix = np.array([[1.0, 1.0], [1.0, 1.0 + 4e-16]])
    solution = by_factors(matrix.copy(), np.array([2.0, 2.0]))
    np.testing.assert_allclose(matrix @ solution, 2.0, rtol=1e-14)
    assert np.isnan(by_factors(np.ones((2, 2)), np.array([1.0, 0.0]))).all()
