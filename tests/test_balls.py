"""The unit l_p ball: projection against NumPy, derivatives at the edges, uniform points."""

import math

import jax
import numpy as np
import pytest
from _oracles import onto_ball

from gflow._balls import onto_unit_ball, uniform_in_unit_ball


@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
def test_projection(order):
    project = jax.jit(jax.vmap(lambda point: onto_unit_ball(point, order)))
    jacobian = jax.jit(jax.vmap(jax.jacrev(lambda point: onto_unit_ball(point, order))))
    points = np.random.default_rng(0).normal(size=(8, 5)) * np.geomspace(0.1, 10, 8)[:, None]
    points[:3] = [np.zeros(5), [1, 0, 0, 0, 0], [0, 0.6, 0, -0.8, 0]]  # 0, and on a sphere
    found = np.asarray(project(points))
    expected = [onto_ball(point, order, 1.0) for point in points]
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=4e-16 * 10)
    assert np.isfinite(jacobian(points)).all()
    # Away from kinks the derivative is that of central differences; all is piecewise smooth.
    step = 1e-4
    for axis in range(5):
        moved = step * np.eye(5)[axis]
        difference = np.asarray(project(points[3:] + moved) - project(points[3:] - moved))
        found = np.asarray(jacobian(points[3:]))[:, :, axis]
        # Second order: h^2 / 6 times a third derivative of at most 15, outside the unit ball.
        np.testing.assert_allclose(found, difference / (2 * step), atol=3e-8)


@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
def test_uniform_points(order):
    dimension, number = 3, 20_000

    def draw(seed):
        return uniform_in_unit_ball(np.random.default_rng(seed), number, dimension, order)

    points = draw(7)
    assert isinstance(points, np.ndarray) and points.shape == (number, dimension)
    np.testing.assert_array_equal(points, draw(7))
    lengths = np.linalg.norm(points, order, axis=1)
    assert lengths.max() <= 1
    # P(|z| <= r) = r^d, within four standard deviations of a binomial count.
    for radius in (0.3, 0.6, 0.9):
        share = radius**dimension
        deviation = np.sqrt(share * (1 - share) / number)
        assert abs(np.mean(lengths <= radius) - share) < 4 * deviation
    # Symmetric: the mean is 0, and so are the correlations, within 4 / sqrt(number).
    assert abs(points.mean(axis=0)).max() < 4 / np.sqrt(number)
    moments = points.T @ points / number
    assert abs(moments - np.diag(np.diag(moments))).max() < 4 / np.sqrt(number)
    np.testing.assert_allclose(np.diag(moments), moments.trace() / dimension, rtol=0.05)
    assert not np.array_equal(points, draw(8))
    assert len(np.unique(points[:, 0])) == number
