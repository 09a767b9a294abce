"""The convex references: closed forms, known solutions, exact arithmetic, second solvers, words."""

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from _margin_oracles import (
    dual_of,
    exact_direction,
    kkt_violations,
    lp_norm,
    manufactured,
    margins,
    signed,
)
from scipy.optimize import linprog, minimize

from gflow import datasets
from gflow.datasets import Dataset
from gflow.reference import (
    largest_feasible_radius,
    max_margin,
)
from gflow.reference._cones import max_margin_by_cones

ORDERS = [1, 1.05, 1.5, 2, 3, 10, 100, math.inf]
ANGLE = Dataset([[2.0, 1.0], [-2.0, -1.0]], [1.0, -1.0])


def assert_kkt(dataset, answer, tolerance=1e-12):
    for condition, violation in kkt_violations(dataset, answer).items():
        assert violation <= tolerance, condition
    assert answer.stationarity <= tolerance and answer.duality_gap <= tolerance


def unit(vector):
    return np.asarray(vector, dtype=float) / np.linalg.norm(vector)


# Closed forms


@pytest.mark.parametrize("order", ORDERS)
def test_the_example_of_soudry_et_al_has_margin_root_two(order):
    dataset = datasets.soudry()
    assert dataset.x.shape == (16, 2)
    answer = max_margin(dataset, order=order)
    assert np.abs(answer.direction - unit([1, 1])).max() < 1e-15
    assert abs(answer.margin - math.sqrt(2)) < 1e-15
    # w = (1/2, 1/2), |w|^2 = 1/2, and the four support vectors share it equally.
    np.testing.assert_allclose(answer.weights, [0.5, 0.5], rtol=1e-15)
    assert sorted(answer.support) == [0, 1, 8, 9]
    np.testing.assert_allclose(answer.multipliers[answer.support], 1 / 8, rtol=1e-14)
    assert_kkt(dataset, answer, 1e-15)


@pytest.mark.parametrize("order", ORDERS)
def test_symmetric_data_keep_their_direction_under_every_attack(order):
    answer = max_margin(datasets.soudry(), radius=0.4, order=order)
    assert np.abs(answer.direction - unit([1, 1])).max() < 1e-15
    assert answer.margin == pytest.approx(
        math.sqrt(2) - 0.4 * lp_norm(unit([1, 1]), dual_of(order)), rel=1e-14
    )


@pytest.mark.parametrize("radius", [0.0, 1e-9, 0.25, 0.5, 0.9, 0.999])
def test_a_single_pair_under_linf_is_soft_thresholded(radius):
    answer = max_margin(ANGLE, radius=radius, order=math.inf)
    assert np.abs(answer.direction - unit([2 - radius, 1 - radius])).max() < 1e-15
    assert answer.margin == pytest.approx(math.hypot(2 - radius, 1 - radius), rel=1e-14)


@pytest.mark.parametrize("radius", [1.0, 1.2, 1.5, 1.9, 1.999])
def test_linf_attacks_beyond_an_input_leave_an_exact_zero(radius):
    answer = max_margin(ANGLE, radius=radius, order=math.inf)
    if radius == 1.0:  # the borderline: zero up to rounding
        assert np.abs(answer.direction - [1, 0]).max() < 1e-15
    else:
        assert answer.direction.tolist() == [1.0, 0.0]
        # (2 - radius) s_2 is what is left of the second input: radius s_2 = 1.
        assert answer.subgradient[1] == pytest.approx(1 / radius, rel=1e-13)
    assert answer.margin == pytest.approx(2 - radius, rel=1e-13)


@pytest.mark.parametrize(
    ("radius", "expected"), [(0.5, (1.5, 1.0)), (1.0, (1.0, 1.0)), (2.0, (1.0, 1.0))]
)
def test_a_single_pair_under_l1_is_clipped(radius, expected):
    # The l_1 ball takes from the largest input first: (2, 1) - radius s with s on the simplex.
    answer = max_margin(ANGLE, radius=radius, order=1)
    assert np.abs(answer.direction - unit(expected)).max() < 1e-15


@pytest.mark.parametrize("order", [1, 2, 7, math.inf])
def test_one_example_alone(order):
    dataset = SimpleNamespace(x=np.array([[3.0, 4.0]]), y=np.array([-1.0]))
    answer = max_margin(dataset, order=order)
    assert np.abs(answer.direction - [-0.6, -0.8]).max() < 1e-15
    assert answer.margin == pytest.approx(5, rel=1e-15)
    assert largest_feasible_radius(dataset, order=order) == pytest.approx(
        lp_norm(dataset.x[0], order), rel=1e-9
    )


def test_the_l2_direction_does_not_depend_on_the_radius():
    dataset = datasets.gaussian(40, 5)
    clean = max_margin(dataset)
    attacked = max_margin(dataset, radius=0.9 * clean.margin, order=2)
    np.testing.assert_allclose(attacked.direction, clean.direction, rtol=0, atol=2e-16)
    assert attacked.margin == pytest.approx(0.1 * clean.margin, rel=1e-13)
    assert_kkt(dataset, attacked, 1e-14)


# Solutions chosen first


@pytest.mark.parametrize("order", [1, 1.02, 1.3, 2, 2.5, 4, 20, 300, math.inf])
@pytest.mark.parametrize("seed", range(4))
def test_manufactured_solutions_are_found(order, seed):
    dataset, direction, margin, multipliers = manufactured(order, seed)
    answer = max_margin(dataset, radius=0.3, order=order)
    # Rounding the data moves the direction by a condition number, below 1e3 here, times 1e-16.
    assert np.abs(answer.direction - direction).max() < 1e-12
    assert answer.margin == pytest.approx(margin, rel=1e-12)
    np.testing.assert_allclose(answer.multipliers, multipliers, atol=1e-10 * multipliers.max())
    assert sorted(answer.support) == [0, 1, 2, 3, 4]
    assert_kkt(dataset, answer)


def test_exact_zeros_and_ties_are_exact():
    dataset, *_ = manufactured(math.inf, 0)
    assert max_margin(dataset, radius=0.3, order=math.inf).direction[:3].tolist() == [0, 0, 0]
    dataset, *_ = manufactured(1, 0)
    size = np.abs(max_margin(dataset, radius=0.3, order=1).direction)
    assert (size[:3] == size.max()).all() and (size[3:] < 0.9 * size.max()).all()


@pytest.mark.parametrize("order", [1, 2, math.inf])
@pytest.mark.parametrize("seed", range(8))
def test_directions_are_right_to_rounding_by_exact_arithmetic(order, seed):
    generator = np.random.default_rng(seed)
    x = generator.integers(-9, 10, size=(12, 4)).astype(float)
    y = np.where(x @ [3.0, -2.0, 1.0, 0.5] >= 0, 1.0, -1.0)
    dataset = Dataset(x, y)
    largest = largest_feasible_radius(dataset, order=order)
    for fraction in (0.125, 0.5, 0.9375):
        answer = max_margin(dataset, radius=fraction * largest, order=order)
        expected = exact_direction(dataset, answer)
        assert expected is not None
        # Data of size 20: the rounding of one solution of a well-conditioned system.
        assert np.abs(answer.direction - expected).max() < 1e-15 + 2e-15 / answer.margin


@pytest.mark.parametrize("order", [1, 2, math.inf])
@pytest.mark.parametrize("seed", range(3))
def test_moderately_conditioned_data_keep_twelve_digits(order, seed):
    # Inputs whose sizes span six decades; the condition number is about 1e6.
    sizes = np.array([1e-3, 1.0, 1e2, 1e3, 1e-2, 10.0, 1e-1, 1.0])
    dataset, *_ = manufactured(2, seed, radius=0.0)
    stretched = Dataset(dataset.x * sizes, dataset.y)
    radius = 0.5 * largest_feasible_radius(stretched, order=order)
    answer = max_margin(stretched, radius=radius, order=order)
    expected = exact_direction(stretched, answer)
    assert expected is not None
    assert np.abs(answer.direction - expected).max() < 1e-13


# Second solvers


@pytest.mark.parametrize(("n", "d"), [(40, 5), (74, 20)])
@pytest.mark.parametrize("order", [2, math.inf])
def test_least_squares_agrees_with_an_interior_point_method(n, d, order):
    dataset = datasets.gaussian(n, d, seed=n)
    radius = 0.5 * largest_feasible_radius(dataset, order=order)
    weights, _ = max_margin_by_cones(signed(dataset), radius, order)
    answer = max_margin(dataset, radius=radius, order=order)
    assert np.abs(answer.direction - unit(weights)).max() < 1e-6


@pytest.mark.parametrize(("n", "d"), [(40, 5), (74, 20)])
@pytest.mark.parametrize("order", [1.5, 3])
def test_newton_agrees_with_a_general_solver(n, d, order):
    dataset = datasets.gaussian(n, d, seed=n + 1)
    dual, z = dual_of(order), signed(dataset)
    radius = 0.5 * largest_feasible_radius(dataset, order=order)
    answer = max_margin(dataset, radius=radius, order=order)

    def slope(w):
        return np.sign(w) * np.abs(w / lp_norm(w, dual)) ** (dual - 1)

    program = minimize(
        lambda w: w @ w / 2,
        2 * max_margin(dataset).weights,
        jac=lambda w: w,
        method="SLSQP",
        constraints={
            "type": "ineq",
            "fun": lambda w: z @ w - radius * lp_norm(w, dual) - 1,
            "jac": lambda w: z - radius * slope(w),
        },
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert np.abs(answer.direction - unit(program.x)).max() < 1e-6
    assert_kkt(dataset, answer, 1e-13)


@pytest.mark.parametrize("order", [1, 2, math.inf])
def test_largest_feasible_radii_agree_with_programmes_written_in_the_other_form(order):
    # max t subject to z w >= t and |w|_q <= 1, which the code poses as min |w|_q, z w >= 1.
    dataset = datasets.gaussian(40, 5, seed=7)
    z = signed(dataset)
    n, d = z.shape
    if order == 2:
        expected = max_margin(dataset).margin
    elif order == 1:
        system = np.hstack([-z, np.ones((n, 1))])
        cost, limits = np.eye(d + 1)[-1], [(-1, 1)] * d + [(None, None)]
        expected = -linprog(-cost, A_ub=system, b_ub=np.zeros(n), bounds=limits).fun
    else:
        system = np.vstack([np.hstack([-z, z, np.ones((n, 1))]), [1.0] * (2 * d) + [0.0]])
        bound = np.concatenate([np.zeros(n), [1.0]])
        cost = np.eye(2 * d + 1)[-1]
        expected = -linprog(-cost, A_ub=system, b_ub=bound).fun
    assert largest_feasible_radius(dataset, order=order) == pytest.approx(expected, rel=1e-9)


def test_the_largest_feasible_radius_falls_with_the_order():
    radii = [largest_feasible_radius(datasets.gaussian(40, 5), order=order) for order in ORDERS]
    assert all(a > b for a, b in pairwise(radii))
    # |v|_p and |v|_p' differ by at most d^(1/p - 1/p').
    assert radii[0] <= 5 * radii[-1]


def test_margins_are_those_of_the_direction():
    dataset = datasets.gaussian(40, 5)
    answer = max_margin(dataset, radius=0.05, order=math.inf)
    values = margins(dataset, answer.direction, 0.05, math.inf)
    assert values.min() == pytest.approx(answer.margin, rel=1e-14)
    np.testing.assert_allclose(values[answer.support], answer.margin, rtol=1e-13)
