"""Hard cases of the convex references: each needs a part that ordinary data never reach."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from _margin_oracles import kkt_violations, signed

from gflow import datasets
from gflow.reference import largest_feasible_radius, max_margin
from gflow.reference._polyhedral import Face, solve_on_faces

# Rows y_i x_i with many ties: more active examples than unknowns, weights pinned at zero.
TIES = [
    # A multiplier that least squares returns is zero up to rounding and of the wrong sign.
    (
        [(0, -1, 1, 1, 0), (0, 1, 1, 1, -1), (0, 1, 1, -1, 0), (0, 0, 1, -1, 1), (-1, 0, 1, 0, 0)],
        1,
        0.1,
    ),
    # The first choice among the multipliers leaves a subgradient outside its face.
    (
        [
            (-1, 1, 1, -1, 1),
            (1, -1, 1, 0, 0),
            (-1, -1, 0, 1, 1),
            (-1, 1, 1, 0, 0),
            (0, 0, 0, -1, 1),
            (-1, -1, 1, 0, 1),
            (-1, 1, 0, 1, 1),
        ],
        1,
        0.1,
    ),
    # Two examples pin a weight at zero, where the dual norm's curvature is infinite.
    ([(2, -2, -3), (-2, 1, 1), (2, 1, 1), (-1, 2, -1), (-3, 0, -2), (-2, -1, -2)], 116.5, 0.11),
    # They seem to pin it, but its solution is 1e-10 and not 0: one of them is inactive.
    (
        [
            (1, 0, 0, 0, 1),
            (0, -1, 0, 1, 1),
            (-1, 0, 1, 1, 1),
            (0, 0, 1, -1, 0),
            (-1, -1, 1, 0, -1),
            (1, 1, 1, -1, 0),
            (0, -1, 1, 1, -1),
            (-1, 0, 1, -1, 0),
        ],
        300,
        0.086,
    ),
    ([(0, 0, 1, 0), (1, 1, 1, -1), (1, 0, 0, 1), (0, 1, 1, 0)], 1.1, 0.3),
]


@pytest.mark.parametrize(("rows", "order", "radius"), TIES)
def test_ties_and_degenerate_examples(rows, order, radius):
    dataset = SimpleNamespace(x=np.array(rows, dtype=float), y=np.ones(len(rows)))
    answer = max_margin(dataset, radius=radius, order=order)
    assert answer.feasible
    assert max(kkt_violations(dataset, answer).values()) <= 1e-13
    assert answer.duality_gap <= 1e-13


@pytest.mark.parametrize("order", [1, 1.5, 2, 3, math.inf])
@pytest.mark.parametrize("gap", [1e-5, 1e-7, 1e-9, 1e-11])
def test_tiny_margins_are_told_from_none(order, gap):
    dataset = SimpleNamespace(x=np.array([[1, gap], [-1, gap], [0.5, 3 * gap]]), y=np.ones(3))
    answer = max_margin(dataset, order=order)
    assert np.abs(answer.direction - [0, 1]).max() < 1e-15
    assert answer.margin == pytest.approx(gap, rel=1e-13)
    # The point between the first two is (0, gap): its size in any norm is the largest radius.
    assert answer.largest_feasible_radius == pytest.approx(gap, rel=1e-4)


@pytest.mark.parametrize(
    ("seed", "shape", "gap", "order", "fraction"),
    [
        (10, (40, 5), 0.5, 1e5, 1e-7),
        (11, (74, 20), 0.5, 1.01, 0.3),
        (11, (74, 20), 0.0, 1.01, 0.999),
        (5, (30, 60), 0.0, 1.01, 0.3),
        (481278, (20, 100), 0.5, 1.0228962945004423, 0.7),
    ],
)
def test_another_start_helps_where_the_first_one_fails(seed, shape, gap, order, fraction):
    dataset = datasets.gaussian(*shape, gap=gap, seed=seed)
    radius = fraction * largest_feasible_radius(dataset, order=order)
    answer = max_margin(dataset, radius=radius, order=order)
    assert answer.duality_gap < 1e-11


@pytest.mark.parametrize("order", [1, math.inf])
def test_faces_are_mended_from_a_poor_first_guess(order):
    for seed in range(5):
        dataset = datasets.gaussian(40, 8, seed=seed)
        radius = 0.5 * largest_feasible_radius(dataset, order=order)
        answer = max_margin(dataset, radius=radius, order=order)
        clean = max_margin(dataset).direction
        named = np.abs(clean) >= (np.abs(clean).max() if order == 1 else 0)
        signs = np.where(named, np.sign(clean), 0.0)
        point = solve_on_faces(signed(dataset), radius, Face(signs, order))
        assert (
            np.abs(point.weights / np.linalg.norm(point.weights) - answer.direction).max() < 1e-14
        )
