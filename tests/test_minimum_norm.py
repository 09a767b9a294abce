"""Systems that may lack rank, against NumPy's by singular values."""

import numpy as np
import pytest

from gflow._minimum_norm import by_factors, minimum_norm


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
