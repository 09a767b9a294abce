"""The largest margin of several classes: proofs of its own, and laws that tie it to two classes."""

import math

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import linprog
from sklearn.datasets import load_digits

from gflow.datasets import Dataset
from gflow.reference import largest_feasible_radius, max_margin

ORDERS = [1, 1.5, 2, 3, math.inf]
DUAL = {1: math.inf, 1.5: 3, 2: 2, 3: 1.5, math.inf: 1}


def clusters(num_classes, dim, seed, per_class=5):
    """Separable classes around centres of their own."""
    rng = np.random.default_rng(seed)
    centres = 2.5 * rng.normal(size=(num_classes, dim))
    x = np.repeat(centres, per_class, axis=0)
    x += 0.5 * rng.normal(size=x.shape)
    return Dataset(x, np.repeat(np.arange(num_classes), per_class))


def rivals(dataset, index):
    label, count = int(dataset.y[index]), dataset.num_classes
    return label, [(label + step) % count for step in range(1, count)]


def margins(dataset, weights, radius, order):
    """`<W_y - W_j, x> - radius |W_y - W_j|_q`, shape (n, k-1), one by one."""
    rows = []
    for index, x in enumerate(np.asarray(dataset.x)):
        label, others = rivals(dataset, index)
        gaps = [weights[label] - weights[other] for other in others]
        rows.append([gap @ x - radius * np.linalg.norm(gap, DUAL[order]) for gap in gaps])
    return np.array(rows)


def bound(dataset, answer, order):
    """`|sum lambda_ij (e_y - e_j) (x - radius s)|_F / sum lambda`, which no margin exceeds."""
    count = dataset.num_classes
    slopes = dict(
        zip(zip(*np.triu_indices(count, 1), strict=True), answer.subgradient, strict=True)
    )
    total = np.zeros_like(answer.direction)
    for index, x in enumerate(np.asarray(dataset.x)):
        label, others = rivals(dataset, index)
        for other, multiplier in zip(others, answer.multipliers[index], strict=True):
            first = label < other
            slope = slopes[(label, other)] if first else -slopes[(other, label)]
            assert np.linalg.norm(slope, order) <= 1 + 1e-9
            pull = multiplier * (x - answer.radius * slope)
            total[label] += pull
            total[other] -= pull
    return np.linalg.norm(total) / answer.multipliers.sum()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("num_classes", "dim"), [(3, 6), (4, 8), (5, 9)])
def test_the_margin_is_attained_and_no_other_is_larger(num_classes, dim, order):
    dataset = clusters(num_classes, dim, seed=num_classes)
    largest = largest_feasible_radius(dataset, order=order)
    assert largest > 0
    for share in (0.0, 0.1, 0.5, 0.9):
        answer = max_margin(dataset, radius=share * largest, order=order)
        assert answer.feasible and answer.margin > 0
        assert np.linalg.norm(answer.direction) == pytest.approx(1, abs=1e-14)
        attained = margins(dataset, answer.direction, answer.radius, order).min()
        assert attained == pytest.approx(answer.margin, rel=1e-12)
        # Rounding of the margin is relative to the clean one, of which 1 - share is left.
        assert bound(dataset, answer, order) <= answer.margin * (1 + 1e-13 / (1 - share))
        assert answer.duality_gap < 1e-12 and answer.stationarity < 1e-12


@pytest.mark.parametrize("order", ORDERS)
def test_two_classes_are_the_binary_problem(order):
    """W_1 = -W_0 = w / sqrt 2: differences are sqrt 2 w, and so are margins."""
    dataset = clusters(2, 4, seed=1)
    binary = Dataset(dataset.x, 2.0 * np.asarray(dataset.y) - 1)
    largest = largest_feasible_radius(binary, order=order)
    assert largest_feasible_radius(dataset, order=order) == pytest.approx(largest, rel=1e-8)
    for share in (0.0, 0.4, 0.8):
        expected = max_margin(binary, radius=share * largest, order=order)
        answer = max_margin(dataset, radius=share * largest, order=order)
        assert answer.margin == pytest.approx(math.sqrt(2) * expected.margin, rel=1e-11)
        pair = np.stack([-expected.direction, expected.direction]) / math.sqrt(2)
        np.testing.assert_allclose(answer.direction, pair, atol=1e-10)


@pytest.mark.parametrize("order", [1, 2, math.inf])
def test_names_of_classes_do_not_matter_and_units_scale(order):
    dataset = clusters(4, 7, seed=2)
    answer = max_margin(dataset, radius=0.3, order=order)
    turned = Dataset(dataset.x, (np.asarray(dataset.y) + 1) % 4)
    np.testing.assert_allclose(
        np.roll(answer.direction, 1, axis=0),
        max_margin(turned, radius=0.3, order=order).direction,
        atol=1e-11,
    )
    for unit in (1e-9, 1e9):
        scaled = max_margin(Dataset(unit * dataset.x, dataset.y), radius=unit * 0.3, order=order)
        assert scaled.margin == pytest.approx(unit * answer.margin, rel=1e-11)
        np.testing.assert_allclose(scaled.direction, answer.direction, atol=1e-10)


@pytest.mark.parametrize("order", ORDERS)
def test_the_largest_radius_is_the_edge(order):
    dataset = clusters(3, 6, seed=3)
    largest = largest_feasible_radius(dataset, order=order)
    assert max_margin(dataset, radius=largest * (1 - 1e-6), order=order).margin > 0
    beyond = max_margin(dataset, radius=largest * (1 + 1e-6), order=order)
    assert not beyond.feasible and "largest feasible radius" in beyond.message
    assert beyond.largest_feasible_radius == pytest.approx(largest, rel=1e-7)
    assert beyond.direction.shape == (3, 6) and np.isnan(beyond.direction).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", [1, 4])
def test_next_to_the_largest_radius_the_margin_is_proved(order, seed):
    """Random data with the labels of a random classifier, of which some barely hold.

    The margin under attack is `short` of the clean one, which is all that rounding leaves of 16
    digits: what is proved is better than 1e-6 down to there.
    """
    rng = np.random.default_rng(seed)
    weights, x = rng.normal(size=(3, 5)), rng.normal(size=(48, 5))
    scores = x @ weights.T
    gaps = np.diff(np.sort(scores, axis=1)[:, -2:])[:, 0]
    clearest = np.argsort(-gaps)[:12]
    dataset = Dataset(x[clearest], scores[clearest].argmax(axis=1))
    largest = largest_feasible_radius(dataset, order=order)
    shares = (1e-2, 1e-4, 1e-6, 1e-7)
    for short in shares if order in (1, math.inf) else (*shares, 1e-8):
        answer = max_margin(dataset, radius=largest * (1 - short), order=order)
        attained = margins(dataset, answer.direction, answer.radius, order).min()
        # Of order inf the l_1 norm adds up five entries, a few times 1e-16 each.
        assert attained == pytest.approx(answer.margin, rel=2e-14 / short)
        assert bound(dataset, answer, order) <= answer.margin * (1 + 1e-6)
        assert answer.duality_gap < 1e-6 and answer.message.startswith("Solved")


def test_no_weights_of_ten_classes_withstand_more_by_a_linear_program():
    """Digits, for which margins in units of their own differ most."""
    images, labels = load_digits(return_X_y=True)
    x = images.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16) / 16
    rng = np.random.default_rng(0)
    classes = [np.flatnonzero(labels == label) for label in range(10)]
    chosen = np.concatenate([rng.choice(of, 2, replace=False) for of in classes])
    dataset = Dataset(x[chosen], labels[chosen])
    largest = largest_feasible_radius(dataset, order=math.inf)
    assert margin_by_linear_program(dataset, largest * (1 - 1e-6)) > 1e-8
    assert margin_by_linear_program(dataset, largest * (1 + 1e-6)) < 1e-9


def margin_by_linear_program(dataset, radius):
    """The largest s with all `<W_y - W_j, x> - radius |W_y - W_j|_1 >= s`, entries within 1."""
    count, dim = dataset.num_classes, dataset.x.shape[1]
    size, width = count * dim, count * (count - 1) // 2 * dim
    first, second = np.triu_indices(count, 1)
    number = {pair: k for k, pair in enumerate(zip(first, second, strict=True))}
    differences = np.kron(np.eye(count)[first] - np.eye(count)[second], np.eye(dim))
    identity, none = np.eye(width), np.zeros((width, 1))
    rows = [np.hstack([side * differences, -identity, none]) for side in (1, -1)]
    for index, x in enumerate(np.asarray(dataset.x)):
        label, others = rivals(dataset, index)
        for other in others:
            row = np.zeros((1, size + width + 1))
            row[0, label * dim : (label + 1) * dim] = -x
            row[0, other * dim : (other + 1) * dim] = x
            begin = size + dim * number[min(label, other), max(label, other)]
            row[0, begin : begin + dim] = radius
            row[0, -1] = 1
            rows.append(row)
    system, cost = sparse.csr_matrix(np.concatenate(rows)), np.zeros(size + width + 1)
    cost[-1] = -1
    bounds = [(-1, 1)] * size + [(0, None)] * width + [(None, None)]
    exactly = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    none = np.zeros(system.shape[0])
    found = linprog(cost, A_ub=system, b_ub=none, bounds=bounds, options=exactly)
    return -found.fun


def test_an_example_of_two_classes_cannot_be_separated():
    x = np.array([[1.0, 2.0], [1.0, 2.0], [-1.0, 0.5]])
    answer = max_margin(Dataset(x, np.array([0, 1, 2])))
    assert not answer.feasible and "linear classifier" in answer.message
    assert largest_feasible_radius(Dataset(x, np.array([0, 1, 2]))) == 0


@pytest.mark.parametrize("order", [1, 2, math.inf])
def test_classes_without_an_example_count_as_rivals(order):
    """Part of a set of four classes. With the examples of one class alone the other rows of W are
    equal by symmetry, W_j = -W_0 / 3, and W_0 - W_j = 4/3 W_0: the binary problem of `x`, with its
    margin times sqrt(4/3). With those of two classes it is theirs, with two more rivals.
    """
    rng = np.random.default_rng(0)
    y = np.arange(12) % 4
    data = Dataset(2 * np.eye(4, 5)[y] + 0.3 * rng.normal(size=(12, 5)), y)
    one, two = data.take(np.flatnonzero(y == 0)), data.take(np.flatnonzero(y <= 1))
    found = max_margin(one, radius=0.2, order=order)
    binary = max_margin(
        Dataset(np.concatenate([one.x, -one.x]), np.repeat([1, -1], 3)), radius=0.2, order=order
    )
    assert found.margin == pytest.approx(math.sqrt(4 / 3) * binary.margin, rel=1e-9)
    radius = largest_feasible_radius(one, order=order)
    assert radius == pytest.approx(binary.largest_feasible_radius, rel=1e-7)
    weights = max_margin(two, radius=0.2, order=order).direction
    assert weights.shape == (4, 5)
    dual = {1: math.inf, 2: 2, math.inf: 1}[order]
    left = [
        (weights[k] - weights[j]) @ x - 0.2 * np.linalg.norm(weights[k] - weights[j], dual)
        for x, k in zip(two.x, two.y, strict=True)
        for j in range(4)
        if j != k
    ]
    assert min(left) == pytest.approx(max_margin(two, radius=0.2, order=order).margin, rel=1e-9)
    pair = Dataset(two.x, two.y)
    assert min(left) < max_margin(pair, radius=0.2, order=order).margin * (1 - 1e-3)
