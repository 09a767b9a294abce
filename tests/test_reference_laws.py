"""Laws of the convex references: invariances, optimality conditions on wild data, feasibility."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from _margin_oracles import (
    dual_of,
    kkt_violations,
    lp_norm,
    margins,
    rounding,
    signed,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gflow import datasets
from gflow.reference import largest_feasible_radius, max_margin

ORDERS = [1, 1.2, 1.5, 2, 3, 8, 100, math.inf]


def solve(x, y, radius, order):
    return max_margin(SimpleNamespace(x=x, y=y), radius=radius, order=order)


@pytest.fixture(scope="module", params=ORDERS)
def problem(request):
    """Data, order and a radius at half the largest feasible one, and the solution."""
    dataset, order = datasets.gaussian(30, 6, seed=2), request.param
    radius = 0.5 * largest_feasible_radius(dataset, order=order)
    return dataset, radius, order, max_margin(dataset, radius=radius, order=order)


def test_scaling_data_and_radius_scales_the_margin(problem):
    dataset, radius, order, answer = problem
    for factor in (1e-20, 0.3, 1e30):
        scaled = solve(factor * dataset.x, dataset.y, factor * radius, order)
        assert np.abs(scaled.direction - answer.direction).max() < 1e-13
        assert scaled.margin == pytest.approx(factor * answer.margin, rel=1e-13)
        np.testing.assert_allclose(
            scaled.multipliers * factor**2,
            answer.multipliers,
            rtol=0,
            atol=1e-12 * answer.multipliers.max(),
        )


def test_signed_permutations_of_the_inputs_move_the_direction_along(problem):
    dataset, radius, order, answer = problem
    generator = np.random.default_rng(0)
    places, signs = generator.permutation(6), generator.choice([-1.0, 1.0], 6)
    moved = solve(signs * dataset.x[:, places], dataset.y, radius, order)
    assert np.abs(moved.direction - signs * answer.direction[places]).max() < 1e-13


def test_the_order_of_the_examples_does_not_matter(problem):
    dataset, radius, order, answer = problem
    places = np.random.default_rng(1).permutation(30)
    moved = solve(dataset.x[places], dataset.y[places], radius, order)
    assert np.abs(moved.direction - answer.direction).max() < 1e-13
    scale = answer.multipliers.max()
    assert np.abs(moved.multipliers - answer.multipliers[places]).max() < 1e-11 * scale


def test_mirror_images_change_nothing(problem):
    dataset, radius, order, answer = problem
    mirrored = solve(-dataset.x, -dataset.y, radius, order)
    np.testing.assert_array_equal(mirrored.direction, answer.direction)


def test_duplicates_share_their_multiplier_equally(problem):
    dataset, radius, order, answer = problem
    x, y = np.concatenate([dataset.x] * 3), np.concatenate([dataset.y] * 3)
    tripled = solve(x, y, radius, order)
    assert np.abs(tripled.direction - answer.direction).max() < 1e-13
    shares = tripled.multipliers.reshape(3, -1)
    scale = answer.multipliers.max()
    assert np.abs(shares - answer.multipliers / 3).max() < 1e-11 * scale


def test_examples_far_away_change_nothing(problem):
    dataset, radius, order, answer = problem
    far = dataset.x[:5] + 100 * dataset.y[:5, None] * answer.direction
    more = solve(
        np.concatenate([dataset.x, far]), np.append(dataset.y, dataset.y[:5]), radius, order
    )
    assert np.abs(more.direction - answer.direction).max() < 1e-13
    assert not more.multipliers[30:].any()


@pytest.mark.parametrize("radius", [0.0, 0.1])
def test_rotations_move_the_l2_direction_along(radius):
    dataset = datasets.gaussian(30, 6, seed=2)
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6)))[0]
    answer = max_margin(dataset, radius=radius)
    rotated = solve(dataset.x @ rotation, dataset.y, radius, 2)
    assert np.abs(rotated.direction - answer.direction @ rotation).max() < 1e-13


def test_the_margin_is_a_convex_falling_function_of_the_radius():
    # A maximum of functions that fall linearly with the radius.
    dataset = datasets.gaussian(30, 6, seed=4)
    for order in (1, 1.5, 3, math.inf):
        largest = largest_feasible_radius(dataset, order=order)
        radii = np.linspace(0, 0.99 * largest, 12)
        values = [max_margin(dataset, radius=radius, order=order).margin for radius in radii]
        steps = np.diff(values)
        assert (steps < 0).all() and (np.diff(steps) > -1e-14).all()


@pytest.mark.parametrize(("low", "order", "high"), [(1, 1.0001, 1.001), (1e3, 1e5, math.inf)])
def test_orders_near_one_and_infinity_join_up(low, order, high):
    dataset = datasets.gaussian(30, 6, seed=4)
    radius = 0.3 * largest_feasible_radius(dataset, order=high)
    nearer, middle, further = (
        max_margin(dataset, radius=radius, order=p) for p in (low, order, high)
    )
    assert middle.duality_gap < 1e-13
    assert nearer.margin >= middle.margin >= further.margin or np.allclose(
        [nearer.margin, further.margin], middle.margin, rtol=1e-14
    )


SHARES = [0.0, 5e-324, 1e-300, 1e-30, *10.0 ** np.arange(-18.0, -3.0)]


@pytest.mark.parametrize("order", ORDERS)
def test_the_subgradient_is_one_at_every_radius(order):
    """`|s|_p <= 1` and `<s, w> = |w|_q`, down to radii whose effect is lost in rounding."""
    for n, d, seed in [(20, 5, 0), (6, 9, 1), (40, 8, 3)]:
        dataset = datasets.gaussian(n, d, seed=seed)
        largest = largest_feasible_radius(dataset, order=order)
        clean = max_margin(dataset).direction
        for share in SHARES:
            answer = max_margin(dataset, radius=share * largest, order=order)
            assert answer.feasible and answer.duality_gap < 1e-12 and answer.stationarity < 1e-11
            assert lp_norm(answer.subgradient, order) <= 1 + 1e-12
            length = lp_norm(answer.direction, dual_of(order))
            assert answer.subgradient @ answer.direction == pytest.approx(length, rel=1e-11)
            # How far the direction moves is bounded by the radius, but for rounding.
            assert np.linalg.norm(answer.direction - clean) < 100 * share + 1e-12


@pytest.mark.parametrize("order", ORDERS)
def test_on_each_side_of_the_largest_feasible_radius_it_says_which(order):
    """Below a direction with a positive margin, above none, and in between no claim."""
    for seed in range(4):
        dataset = datasets.gaussian(*((20, 5), (6, 9))[seed % 2], gap=0.3, seed=seed)
        largest = largest_feasible_radius(dataset, order=order)
        for gap in (1e-5, 1e-7, 1e-9, 1e-11, 1e-13, 1e-15, 0.0):
            below = max_margin(dataset, radius=largest * (1 - gap), order=order)
            assert below.feasible or gap < 1e-14
            assert below.feasible or below.message.startswith(("At the edge", "Infeasible"))
            assert below.feasible == (below.margin > 0)
            if below.feasible:
                # Its own words: NumPy's margin of its direction, to the rounding of a sum.
                attained = margins(dataset, below.direction, below.radius, order).min()
                assert attained > -1e-14 * np.abs(dataset.x).max()
        for gap in (1e-9, 1e-7, 1e-5):
            above = max_margin(dataset, radius=largest * (1 + gap), order=order)
            assert not above.feasible and above.message.startswith("Infeasible")
            assert f"lower by {gap:.1e} of it" in above.message or gap < 1e-8


def test_a_radius_equal_to_the_margin_is_at_the_edge():
    # By Pythagoras the margin is 1, and 0.6^2 + 0.8^2 is 1 in floating point too.
    dataset = SimpleNamespace(x=np.array([[0.6, 0.8], [-0.6, -0.8]]), y=np.array([1.0, -1.0]))
    assert not max_margin(dataset, radius=1.0).feasible
    assert max_margin(dataset, radius=1 - 1e-15).margin == pytest.approx(1e-15, rel=0.3)
    assert max_margin(dataset, radius=1 + 1e-12).message.startswith("Infeasible")


# Wild data


@st.composite
def wild_problems(draw):
    """Small data with duplicates, ties, tiny gaps or zero inputs, n above or below d."""
    n, d = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    normal = generator.integers(-2, 3, d).astype(float)
    normal[draw(st.integers(0, d - 1))] = 1.0
    normal /= np.linalg.norm(normal)
    kind = draw(st.sampled_from(["integers", "gaussian", "duplicates", "tiny gap", "zero input"]))
    if kind == "integers":
        x = generator.integers(-3, 4, (n, d)).astype(float)
    else:
        x = generator.normal(size=(n, d))
    y = np.where(x @ normal >= 0, 1.0, -1.0)
    if kind == "duplicates":
        chosen = generator.integers(0, n, 2 * n)
        x, y = x[chosen], y[chosen]
    elif kind == "tiny gap":
        gap = 10.0 ** -draw(st.integers(1, 6))
        x = x - np.outer(x @ normal, normal) + gap * np.outer(y, normal)
    elif kind == "zero input":
        x[:, draw(st.integers(0, d - 1))] = 0.0
    order = draw(st.sampled_from([*ORDERS, 1.02, 30, 300]))
    fraction = draw(st.sampled_from([0.0, 1e-3, 0.2, 0.5, 0.9, 0.99]))
    return SimpleNamespace(x=x, y=y), order, fraction


@settings(max_examples=150)
@given(wild_problems())
def test_every_optimality_condition_holds_on_wild_data(wild):
    dataset, order, fraction = wild
    largest = largest_feasible_radius(dataset, order=order)
    assume(largest > 0)
    answer = max_margin(dataset, radius=fraction * largest, order=order)
    assert answer.feasible and answer.message.startswith("Solved")
    tolerance = 1e-11 + rounding(dataset, answer.margin)
    for condition, violation in kkt_violations(dataset, answer).items():
        assert violation <= tolerance, condition
    assert 0 <= answer.duality_gap <= tolerance
    assert abs(lp_norm(answer.direction, 2) - 1) < 4e-16
    attained = margins(dataset, answer.direction, answer.radius, order).min()
    assert abs(attained / answer.margin - 1) <= tolerance


@settings(max_examples=60)
@given(wild_problems(), st.integers(0, 2**32 - 1))
def test_no_other_direction_has_a_larger_margin(wild, seed):
    dataset, order, fraction = wild
    largest = largest_feasible_radius(dataset, order=order)
    assume(largest > 0)
    answer = max_margin(dataset, radius=fraction * largest, order=order)
    noise = np.random.default_rng(seed).normal(size=(300, len(answer.direction)))
    # Far away and nearby, down to steps at which the loss of margin drowns in rounding.
    directions = answer.direction + np.logspace(2, -7, 300)[:, None] * noise
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    norms = np.linalg.norm(directions, dual_of(order), axis=1)
    others = (directions @ signed(dataset).T).min(axis=1) - answer.radius * norms
    assert others.max() <= answer.margin * (1 + 1e-12 + rounding(dataset, answer.margin))


@settings(max_examples=100)
@given(wild_problems())
def test_feasibility_ends_at_the_largest_feasible_radius(wild):
    dataset, order, _ = wild
    largest = largest_feasible_radius(dataset, order=order)
    if largest == 0:
        assert not max_margin(dataset, order=order).feasible
        return
    below = max_margin(dataset, radius=0.999 * largest, order=order)
    above = max_margin(dataset, radius=1.001 * largest, order=order)
    assert below.feasible and below.margin > 0
    assert not above.feasible and f"{largest:.6g}" in above.message
    # No radius exceeds the l_p norm of any convex combination of the signed examples; those of
    # the solution nearby come close to it.
    weights = below.multipliers / below.multipliers.sum()
    assert 0.999 * largest < lp_norm(weights @ signed(dataset), order) * (1 + 1e-8)
