"""The space orthogonal to some vectors, against the definition."""

import numpy as np
import pytest

from gflow._complement import between, complement

_SIZE = 20


def _rows(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, _SIZE))


@pytest.mark.parametrize("count", [0, 1, 7, _SIZE])
@pytest.mark.parametrize("repeated", [False, True])
def test_a_basis_is_orthonormal_and_orthogonal_to_the_rows(count, repeated):
    rows = _rows(count, count)
    rows = np.concatenate([rows, 2 * rows]) if repeated else rows
    space = complement(rows, 1e-10)
    basis = space.lifted(np.eye(space.dimension))
    assert basis.shape == (_SIZE, _SIZE - count)
    np.testing.assert_allclose(basis.T @ basis, np.eye(_SIZE - count), atol=1e-14)
    np.testing.assert_allclose(rows @ basis, 0.0, atol=1e-13)


def test_a_matrix_between_two_spaces():
    left, right = complement(_rows(3, 0), 1e-10), complement(_rows(5, 1), 1e-10)
    matrix = np.random.default_rng(2).normal(size=(_SIZE, _SIZE))
    bases = [space.lifted(np.eye(space.dimension)) for space in (left, right)]
    expected = bases[0].T @ matrix @ bases[1]
    np.testing.assert_allclose(between(left, matrix, right), expected, atol=1e-13)
