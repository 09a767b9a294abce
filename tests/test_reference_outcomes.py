"""Outcomes of the convex references in words: infeasible, not separable, undecided, refused."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from _margin_oracles import kkt_violations

from gflow import datasets
from gflow.datasets import Dataset
from gflow.reference import (
    MaxMargin,
    _least_norm,
    _nonnegative,
    largest_feasible_radius,
    max_margin,
)

ORDERS = [1, 1.05, 1.5, 2, 3, 10, 100, math.inf]
ANGLE = Dataset([[2.0, 1.0], [-2.0, -1.0]], [1.0, -1.0])


def assert_kkt(dataset, answer, tolerance=1e-12):
    assert max(kkt_violations(dataset, answer).values()) <= tolerance
    assert answer.stationarity <= tolerance and answer.duality_gap <= tolerance


@pytest.mark.parametrize("order", ORDERS)
def test_an_infeasible_radius_is_an_outcome_that_names_the_largest_feasible_one(order):
    dataset = datasets.gaussian(30, 4)
    largest = largest_feasible_radius(dataset, order=order)
    answer = max_margin(dataset, radius=1.001 * largest, order=order)
    assert not answer.feasible and answer.largest_feasible_radius == largest
    assert (
        f"largest feasible radius of this attack on these data is {largest:.6g}" in answer.message
    )
    assert_nothing_looks_finite(answer)
    below = max_margin(dataset, radius=0.999 * largest, order=order)
    assert below.feasible and below.margin > 0
    assert_kkt(dataset, below, 1e-9)


@pytest.mark.parametrize("radius", [2.0, 3.0])
def test_linf_attacks_beyond_every_input_are_infeasible(radius):
    answer = max_margin(ANGLE, radius=radius, order=math.inf)
    assert not answer.feasible
    assert answer.largest_feasible_radius == pytest.approx(2, rel=1e-15)


@pytest.mark.parametrize("order", [1, 2, 3, math.inf])
@pytest.mark.parametrize(
    "dataset",
    [
        Dataset([[1.0, 0.0], [2.0, 0.0]], [1.0, -1.0]),
        Dataset([[1.0, 1.0], [1.0, 1.0]], [1.0, -1.0]),
        Dataset([[0.0, 0.0], [1.0, 1.0]], [1.0, -1.0]),
        SimpleNamespace(x=np.zeros((3, 2)), y=np.ones(3)),
        datasets.random_labels(60, 4),
    ],
    ids=["same side", "contradiction", "origin", "all zero", "random labels"],
)
def test_data_that_no_hyperplane_separates(dataset, order):
    for radius in (0.0, 0.1):
        answer = max_margin(dataset, radius=radius, order=order)
        assert not answer.feasible and answer.largest_feasible_radius == 0
        assert "not linearly separable" in answer.message
        assert_nothing_looks_finite(answer)
    assert largest_feasible_radius(dataset, order=order) == 0


def assert_nothing_looks_finite(answer: MaxMargin):
    for value in (answer.direction, answer.margin, answer.multipliers, answer.subgradient):
        assert np.isnan(value).all()
    assert math.isnan(answer.duality_gap) and math.isnan(answer.stationarity)
    assert answer.support.size == 0


def test_the_message_of_a_solution_gives_its_margin_and_its_proof():
    answer = max_margin(ANGLE, radius=0.5, order=math.inf)
    assert answer.feasible
    assert answer.message.startswith("Solved: margin 1.58114 under attack, relative duality gap ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"radius": -0.1}, "`radius=-0.1` must be finite and not negative"),
        ({"radius": math.nan}, "`radius=nan`"),
        ({"radius": math.inf}, "`radius=inf`"),
        ({"order": 0.5}, r"`order=0.5` must lie in \[1, inf\]"),
        ({"order": math.nan}, "`order=nan`"),
    ],
)
def test_wrong_numbers_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        max_margin(ANGLE, **arguments)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ([[1.0, math.nan]], [1.0], "NaN or infinity"),
        ([[1.0, 2.0]], [0.0], "labels -1 and \\+1"),
        ([[1.0, 2.0]], [1.0, 1.0], r"shape \(1, 2\) and `y` \(2,\)"),
        ([1.0, 2.0], [1.0, 1.0], "expected \\(n, d\\)"),
        (np.zeros((0, 2)), [], "expected \\(n, d\\)"),
        ([[1e-200, 0.0]], [1.0], "leave the range of float64"),
    ],
)
def test_wrong_data_are_refused(x, y, words):
    with pytest.raises(ValueError, match=words):
        max_margin(SimpleNamespace(x=np.array(x), y=np.array(y)))


def test_wrong_structure_is_refused():
    with pytest.raises(TypeError, match="expected a data set"):
        max_margin(np.zeros((3, 2)))
    with pytest.raises(TypeError, match="is not a number"):
        max_margin(ANGLE, radius=np.array([0.1, 0.2]))


def test_radius_may_be_a_zero_dimensional_array():
    answer = max_margin(ANGLE, radius=np.array(0.5), order=np.float64(np.inf))
    assert np.abs(answer.direction - np.array([1.5, 0.5]) / math.sqrt(2.5)).max() < 1e-15


# When SciPy's least squares gives up


@pytest.mark.parametrize("order", [1, 2, 3, math.inf])
def test_an_interior_point_method_stands_in_for_least_squares(order, monkeypatch):
    dataset = datasets.gaussian(40, 5)
    radius = 0.5 * largest_feasible_radius(dataset, order=order)
    expected = max_margin(dataset, radius=radius, order=order)

    def give_up(*_, **__):
        raise RuntimeError("Maximum number of iterations reached.")

    monkeypatch.setattr(_nonnegative, "nnls", give_up)
    answer = max_margin(dataset, radius=radius, order=order)
    assert np.abs(answer.direction - expected.direction).max() < 1e-12
    assert_kkt(dataset, answer)


def test_no_verdict_is_given_without_a_proof(monkeypatch):
    dataset = datasets.random_labels(60, 4)
    monkeypatch.setattr(_least_norm, "nonnegative_least_squares", lambda *_: None)
    answer = max_margin(dataset)
    assert not answer.feasible and math.isnan(answer.largest_feasible_radius)
    assert "Undecided" in answer.message
    assert math.isnan(largest_feasible_radius(dataset))
