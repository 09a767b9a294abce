"""The implicit part of the stabilised solver, in the directions in which a field is stiffest."""

import diffrax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow import losses, networks, perturbations
from gflow.stiff.chebyshev import chebyshev
from gflow.stiff.subspace import implicit_part, random_subspace, renewed

SIZE, STIFF = 10, 3
BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(SIZE, SIZE)))[0]
RATES = np.concatenate([[5000.0, 900.0, 400.0], np.linspace(5.0, 0.1, SIZE - STIFF)])
MATRIX = jnp.asarray(-BASIS @ np.diag(RATES) @ BASIS.T)
# The slow directions couple to the stiff ones through a nonlinear part of norm 1.
START = jnp.asarray(BASIS @ np.concatenate([np.zeros(STIFF), np.ones(SIZE - STIFF)]))


def linear(t, y, args=None):
    return MATRIX @ y


def nonlinear(t, y, args=None):
    return MATRIX @ y + jnp.sin(y) + jnp.cos(t)


def solved(solver, tolerance):
    """The end, and the steps that it took."""
    control = diffrax.PIDController(rtol=tolerance, atol=tolerance)
    term = diffrax.ODETerm(nonlinear)
    solution = diffrax.diffeqsolve(
        term, solver, 0.0, 3.0, 1e-3, START, stepsize_controller=control, max_steps=10_000
    )
    return np.asarray(solution.ys[-1]), int(solution.stats["num_steps"])


def tracked(num_turns, count=STIFF):
    """A subspace after so many renewals at one point."""
    subspace = random_subspace(count, START)
    for _ in range(num_turns):
        subspace = renewed(subspace, lambda y: linear(0.0, y), START, linear(0.0, START))
    return subspace


def test_the_subspace_becomes_that_of_the_stiffest_directions():
    subspace = tracked(24)
    # Every three steps it turns, by a factor 5/400 in the angle: below rounding of differences.
    inside = np.linalg.svd(np.asarray(subspace.directions) @ BASIS[:, :STIFF])[1]
    np.testing.assert_allclose(inside, 1.0, atol=1e-9)
    # Differences over 1e-7 of numbers of size 1e4.
    images = np.asarray(subspace.directions @ MATRIX.T)
    np.testing.assert_allclose(subspace.images, images, atol=1e-3)


def test_before_anything_is_known_nothing_is_implicit():
    part = implicit_part(random_subspace(STIFF, START), 0.7)
    solution, _ = part.solve(START, jnp.zeros(STIFF))
    np.testing.assert_array_equal(solution, START)


def test_solutions_are_those_of_the_whole_matrix():
    subspace, scale = tracked(7), 0.03
    matrix = np.asarray(subspace.images.T @ subspace.directions)
    part = implicit_part(subspace, scale)
    right, along = BASIS[0], BASIS[1, :STIFF]
    found, coordinates = part.solve(jnp.asarray(right), jnp.asarray(along))
    expected = np.linalg.solve(
        np.eye(SIZE) - scale * matrix, right + along @ np.asarray(subspace.images)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(coordinates, subspace.directions @ expected, rtol=1e-9, atol=1e-12)


def by_the_book(num_stages, matrix, y0, h):
    """One step, the split field and every stage written out: Verwer & Sommeijer 2004, (2.4)."""
    by, m = chebyshev(num_stages, 2 / 13), chebyshev(num_stages, 2 / 13).first_rate

    def implicit(y):
        return matrix @ (y - y0)

    def explicit(t, y):
        return np.asarray(nonlinear(t, y)) - implicit(y)

    def solved(right):
        """Y of `Y - m h implicit(Y) = right`."""
        return np.linalg.solve(np.eye(SIZE) - m * h * matrix, right - m * h * matrix @ y0)

    start = explicit(0.0, y0)
    before, last = y0, solved(y0 + m * h * start)
    for j in range(num_stages - 1):
        mu, nu = by.mu[j], by.nu[j]
        right = (1 - mu - nu) * y0 + mu * last + nu * before
        right = right + h * by.rates[j] * explicit(by.nodes[j] * h, last) + h * by.first[j] * start
        right = right + h * (by.first[j] - (1 - mu - nu) * m) * implicit(y0)
        right = right - h * nu * m * implicit(before)
        before, last = last, solved(right)
    return last


@pytest.mark.parametrize("num_stages", [2, 7])
def test_a_step_is_that_of_the_book(num_stages):
    solver, h = gflow.RungeKuttaChebyshev(num_stages, num_implicit=STIFF), 0.1
    term, slope = diffrax.ODETerm(nonlinear), nonlinear(0.0, START)
    subspace = tracked(9)
    after = renewed(subspace, lambda y: nonlinear(0.0, y), START, slope)
    matrix = np.asarray(after.images.T @ after.directions)
    made = solver.step(term, 0.0, h, START, None, (slope, subspace), False)[0]
    expected = by_the_book(num_stages, matrix, np.asarray(START), h)
    # Numbers of size 1, and a matrix of norm 5000 times h.
    np.testing.assert_allclose(made, expected, atol=1e-11)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
def test_steps_are_long_against_the_stiffest_rates(tolerance):
    exact, _ = solved(diffrax.Kvaerno5(), 1e-10)
    end, num_steps = solved(gflow.RungeKuttaChebyshev(6, num_implicit=STIFF), tolerance)
    _, num_explicit = solved(gflow.RungeKuttaChebyshev(6), tolerance)
    # What is not damped adds up over the steps, each off by the tolerance.
    assert np.linalg.norm(end - exact) < num_steps * tolerance
    # Explicit steps are of 0.65 * 36 / 5000 at most: 640 or more.
    assert num_explicit > 640 and num_steps < 0.25 * num_explicit


def test_a_point_at_rest_stays():
    solver = gflow.RungeKuttaChebyshev(5, num_implicit=STIFF)
    term, rest = diffrax.ODETerm(linear), jnp.zeros(SIZE)
    end, error, *_ = solver.step(term, 0.0, 1.0, rest, None, (rest, tracked(9)), False)
    np.testing.assert_array_equal(end, rest)
    np.testing.assert_array_equal(error, rest)


@pytest.fixture(scope="module")
def network_and_problem():
    x = np.random.default_rng(1).normal(size=(40, 6))
    y = np.where(x[:, 0] + 0.1 * x[:, 1] > 0, 1, -1)
    network = networks.mlp((6, 12, 1), smoothing=0.1)
    problem = gflow.Problem(
        network,
        gflow.Dataset(x, y),
        loss=losses.exponential(),
        perturbation=perturbations.fgsm(0.02, smoothing=0.1),
    )
    return network, problem


@pytest.mark.slow
def test_the_flow_takes_longer_steps_and_ends_in_the_same_place(network_and_problem):
    network, problem = network_and_problem
    # Beyond the cap, where a few rates are far above the others and the path is nearly at rest.
    target = gflow.Until(log_kappa=40.0)
    runs = [
        gflow.integrate(
            problem, network.init(0), until=target, solver=solver, tolerance=1e-3, kappa_cap=300.0
        )
        for solver in (
            gflow.RungeKuttaChebyshev(6),
            gflow.RungeKuttaChebyshev(6, num_implicit=6),
            gflow.Rosenbrock(),
        )
    ]
    explicit, implicit, exact = runs
    # The end of the stable interval is met rarely: each time costs a step.
    assert explicit.stats["num_rejected_steps"] < 0.15 * explicit.stats["num_steps"]
    assert implicit.stats["num_steps"] < 0.6 * explicit.stats["num_steps"]
    gap = np.linalg.norm(implicit.vectors[-1] - exact.vectors[-1])
    # Each step is off by 1e-3 at most, and most of that is damped.
    assert gap < 2e-2


def test_more_directions_than_unknowns_are_refused(network_and_problem):
    network, problem = network_and_problem
    solver = gflow.RungeKuttaChebyshev(6, num_implicit=1000)
    with pytest.raises(ValueError, match=r"num_implicit=1000\)`: there are only"):
        gflow.integrate(problem, network.init(0), until=gflow.Until(log_kappa=3.0), solver=solver)
    with pytest.raises(ValueError, match=r"num_implicit=-1\)`: an integer of at least 0"):
        gflow.RungeKuttaChebyshev(6, num_implicit=-1)
