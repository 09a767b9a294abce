"""Neurons that have died out turn to where they rest, and only then tell whether they stay dead.

A neuron of unit weights (w, a), |a| = |w|, beside a KKT point with multipliers lambda grows at the
rate `D - 1`, `D = sum_i lambda_i y_i a relu(w . x_i)` for unit a and w, and turns uphill in D.
"""

import numpy as np
import pytest
from scipy.optimize import linprog

import gflow
from gflow import losses, networks, perturbations
from gflow._layout import Layout
from gflow.kkt.curvature import curvature
from gflow.kkt.system import kkt_system
from gflow.limit.dead import turned, with_dead_at_rest

DIM = 4
DEAD = 1e-20


def test_a_linear_field_turns_to_its_smallest_eigenvector():
    generator = np.random.default_rng(2)
    matrix = generator.normal(size=(5, 5))
    matrix = matrix + matrix.T
    values, vectors = np.linalg.eigh(matrix)
    unit = turned(lambda y: matrix @ y, generator.normal(size=5))
    assert abs(unit @ vectors[:, 0]) > 1 - 1e-9
    assert unit @ matrix @ unit == pytest.approx(values[0], abs=1e-9)


@pytest.fixture(scope="module")
def limits():
    """Separable data, and limits of networks with two hidden neurons and with six."""
    generator = np.random.default_rng(0)
    direction = generator.normal(size=DIM)
    x = generator.normal(size=(14, DIM))
    x = x[np.abs(x @ direction) > 0.4]
    data = gflow.Dataset(x, np.sign(x @ direction).astype(int))
    found = {}
    for width in (2, 6):
        problem = problem_of(width, data)
        found[width] = gflow.find_limit(problem, started(problem, direction), throw=False)
        assert found[width].polished is not None
    return data, found


def problem_of(width, data):
    return gflow.Problem(
        networks.mlp((DIM, width, 1), smoothing=0.05), data, loss=losses.exponential()
    )


def started(problem, direction):
    """Neurons near the direction that separates the data, and near its opposite, by turns."""
    weight, head = map(np.asarray, problem.network.init(1))
    signs = (-1.0) ** np.arange(len(weight))
    return signs[:, None] * (direction + 0.3 * weight), signs * (np.abs(head) + 0.1)


def beside(limit, weight, sign):
    """The KKT point with one more neuron, all but dead, that points along `weight`."""
    layout = Layout.of(limit.direction)
    old, head = map(np.asarray, layout.unflatten(limit.polished.theta))
    weight = np.vstack([old, DEAD * weight])
    return weight, np.append(head, [[DEAD * sign]], axis=1)


def growth(limit, unit):
    """`D - 1` of a neuron with weights u = (w, a), from the margins of that neuron alone."""
    alone = problem_of(1, limit.problem.dataset)
    weight, head = unit[:DIM][None], unit[DIM:][None]
    share = np.asarray(alone.margins((weight, head))) @ limit.polished.multipliers
    return 2 * share - 1


@pytest.mark.slow
@pytest.mark.parametrize("width", [2, 6])
def test_it_turns_to_where_it_grows_fastest_nearby(limits, width):
    data, found = limits
    limit = found[width]
    wide = problem_of(width + 1, data)
    generator = np.random.default_rng(4)
    tried = 0
    for _ in range(30):
        weight = generator.normal(size=DIM)
        params = beside(limit, weight / np.linalg.norm(weight), generator.choice([-1, 1]))
        layout = Layout.of(params)
        theta, multipliers = np.asarray(layout.flatten(params)), limit.polished.multipliers
        at = kkt_system(wide, layout, theta, multipliers)
        before = curvature(at, limit.polished.active)
        own = np.flatnonzero(np.abs(theta) < 1e-10)
        in_own = np.sum(before.vectors[own] ** 2, axis=0) > 0.99
        after = with_dead_at_rest(wide, layout, theta, multipliers, before)
        if not (before.unstable & in_own).any():
            assert after is before
            continue
        tried += 1
        (index,) = np.flatnonzero(np.sum(after.vectors[own] ** 2, axis=0) > 0.99)
        unit = after.vectors[own, index]
        assert after.values[index] == pytest.approx(-growth(limit, unit), abs=1e-8)
        # At rest no turn makes it grow faster.
        turns = unit + 1e-3 * generator.normal(size=(200, DIM + 1))
        turns /= np.linalg.norm(turns, axis=1)[:, None]
        assert max(growth(limit, turn) for turn in turns) <= growth(limit, unit) + 1e-8
        # The others are as before.
        np.testing.assert_allclose(
            np.delete(after.values, index), before.values[~in_own], atol=1e-12
        )
    assert tried > 3


def test_derivatives_that_underflow_at_a_dead_neuron_are_0():
    generator = np.random.default_rng(0)
    network = networks.mlp((3, 2, 1), smoothing=0.05)
    data = gflow.Dataset(generator.normal(size=(4, 3)), [1, -1, 1, -1])
    attack = perturbations.fgm(0.08)
    trained = gflow.Problem(network, data, loss=losses.exponential(), perturbation=attack)
    alive, dead = generator.normal(size=(2, 3))

    def at(size):
        params = np.stack([alive, size * dead]), np.array([[0.7, size]])
        layout = Layout.of(params)
        return kkt_system(trained, layout, np.asarray(layout.flatten(params)), np.ones(4))

    for lost, near in zip(at(1e-200)[:5], at(0.0)[:5], strict=True):
        np.testing.assert_array_equal(lost, near)
    small = at(1e-50)
    np.testing.assert_allclose(at(1e-200).slopes, small.slopes, atol=1e-12)
    np.testing.assert_allclose(at(1e-200).gradients, small.gradients, atol=1e-12)


PLANE = networks.mlp((2, 10, 1), smoothing=0.05)
ANGLES = np.linspace(0, 2 * np.pi, 100_000, endpoint=False)


def growth_by_angle(x, y, multipliers):
    """`|D|` for a neuron that points at each of the angles, in the formula above: smoothed ReLUs
    are `(v + sqrt(v^2 + mu^2 |w|^2 |x|^2)) / 2`.
    """
    v = x @ np.stack([np.cos(ANGLES), np.sin(ANGLES)])
    rounded = 0.05 * np.linalg.norm(x, axis=1)[:, None]
    return np.abs((multipliers * y) @ (v + np.sqrt(v**2 + rounded**2))) / 2


@pytest.fixture(scope="module")
def planar():
    """Limits on ten points of the plane with random labels, and the largest growth of a neuron
    there.
    """
    found = {}
    for seed in (4, 9, 10):
        generator = np.random.default_rng(seed)
        x, y = generator.normal(size=(10, 2)), np.where(generator.random(10) < 0.5, -1, 1)
        problem = gflow.Problem(PLANE, gflow.Dataset(x, y), loss=losses.exponential())
        limit = gflow.find_limit(problem, PLANE.init(seed))
        growth = growth_by_angle(x, y, np.ravel(limit.certificate.multipliers))
        found[seed] = problem, limit, growth
    return found


def weights_of(limit):
    layers = [np.array(layer) for layer in limit.direction]
    return layers, np.linalg.norm(layers[0], axis=1) + np.linalg.norm(layers[1], axis=0)


def test_a_maximum_has_no_dead_neuron_that_would_grow_elsewhere(planar):
    """In the plane all directions can be looked at, so that it is known whether one grows."""
    words = set()
    for _, limit, growth in planar.values():
        _, sizes = weights_of(limit)
        assert (sizes < 1e-7).any() and growth.max() > 1 - 1e-9
        assert limit.verdict.endswith("within a family")
        assert limit.verdict.startswith("stable") == (growth.max() > 1 + 1e-4)
        if limit.no_maximum:
            # Printed with two digits.
            rate = float(limit.no_maximum.rsplit(" ", 1)[1])
            assert 1e-4 < rate <= 1.05 * (growth.max() - 1)
            assert f"because  {limit.no_maximum}\n" in str(limit)
        words.add(limit.verdict)
    assert len(words) == 2


def test_where_a_dead_neuron_would_grow_the_margin_can_be_raised(planar):
    """By a small neuron in that direction, once the others have moved by the square of its size."""
    problem, limit, growth = planar[4]
    (first, last), sizes = weights_of(limit)
    dead, size = np.argmin(sizes), 1e-2
    angle = ANGLES[np.argmax(growth)]
    first[dead] = np.array([np.cos(angle), np.sin(angle)]) * size / np.sqrt(2)
    margins = []
    for sign in (-1, 1):
        last[0, dead] = sign * size / np.sqrt(2)
        margins.append(raised(problem, (first, last), size**2))
    assert max(margins) > limit.margin * (1 + 1e-7)


def raised(problem, params, reach):
    """The largest of the smallest normalized margins on the way of 40 linear programs."""
    layout, best = Layout.of(params), -np.inf
    theta = np.asarray(layout.flatten(params))
    for _ in range(40):
        unit = theta / np.linalg.norm(theta)
        margins = np.asarray(problem.margins(layout.unflatten(unit)))
        if margins.min() > best:
            best, kept = margins.min(), unit
        else:
            theta, reach = kept, reach / 3
            continue
        rows = problem.margin_gradients(layout.unflatten(unit), np.arange(len(margins)))
        rows = np.concatenate([np.reshape(leaf, (len(margins), -1)) for leaf in rows], axis=1)
        rows = rows - 2 * margins[:, None] * unit  # of q(u)/|u|^2
        constraint = np.hstack([-rows, np.ones((len(rows), 1))])
        bounds = [(-reach, reach)] * unit.size + [(None, None)]
        program = linprog(np.append(np.zeros(unit.size), -1.0), constraint, margins, bounds=bounds)
        theta = unit + program.x[:-1]
    return best
