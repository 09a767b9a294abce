"""Kinks of the slope of ReLU^2, which an attack along its gradient has with the total gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow import losses, networks
from gflow._rounded import rounded_square
from gflow.kkt.switches import (
    has_kinks,
    passes,
    settled_angles,
    smoothed,
    switched_margins,
    with_slope_switches,
)
from gflow.networks import Convolution, Dense, MaxPool
from gflow.perturbations import clean, fgm, fgsm, pgd

RADIUS, ROUNDING = 0.3, 1e-12
GENERATOR = np.random.default_rng(3)
DATA = gflow.Dataset(GENERATOR.normal(size=(5, 4)), np.array([1.0, -1.0, 1.0, -1.0, 1.0]))

NETWORKS = {
    "two_layers": networks.mlp((4, 3, 1), power=2),
    "three_layers": networks.mlp((4, 3, 3, 1), power=2),
    "conv": networks.conv((1, 4, 1), [Convolution(2, (2, 1), padding="VALID"), Dense(1)], power=2),
    "pooled": networks.conv(
        (1, 4, 1), [Convolution(2, (2, 1), padding="VALID"), MaxPool((2, 1)), Dense(1)], power=2
    ),
}
ATTACKS = {
    "fgm": fgm(RADIUS),
    "fgsm": fgsm(RADIUS, smoothing=0.1),
    "pgd": pgd(RADIUS, order=2, num_steps=2, step_size=0.2),
}
# network, attack, and how many switches an example has: its ReLU^2s at each gradient.
ROWS = [
    ("two_layers", "fgm", 3),
    ("three_layers", "fgsm", 6),
    ("three_layers", "pgd", 2 * 6),
    ("conv", "fgm", 6),
]


def problem_of(network, attack, gradient="total", data=DATA):
    made = NETWORKS[network] if isinstance(network, str) else network
    perturbation = ATTACKS[attack] if isinstance(attack, str) else attack
    return gflow.Problem(
        made, data, loss=losses.exponential(), perturbation=perturbation, gradient=gradient
    )


def test_the_rounded_square_has_twice_the_smoothed_relu_for_its_derivative():
    values = np.linspace(-3.0, 3.0, 13)
    for width in map(jnp.asarray, (0.0, 1e-3, 0.5)):
        slopes = jax.vmap(jax.grad(rounded_square), (0, None))(jnp.asarray(values), width)
        np.testing.assert_allclose(slopes, values + np.hypot(values, width), atol=1e-14)
        # Beyond its width it is off by w^2/2 (1/2 + log(2 |a| / w)) at most.
        most = float(width**2 * (1 + np.log1p(6 / width))) if width else 0.0
        square = rounded_square(jnp.asarray(values), width)
        np.testing.assert_allclose(square, np.maximum(values, 0) ** 2, rtol=1e-14, atol=most)


@pytest.mark.parametrize(("network", "attack", "size"), ROWS)
def test_with_its_angles_a_problem_is_the_rounded_one_and_the_exact_one(network, attack, size):
    problem = with_slope_switches(problem_of(network, attack))
    assert passes(problem).size == size and has_kinks(problem)
    params, mu = problem.network.init(1), np.float64(0.1)
    twin, tangent = smoothed(problem, mu), problem.network.init(2)
    assert not has_kinks(twin)

    def held(params, angles, smoothing):
        return switched_margins(problem, params, params, angles, smoothing)[0]

    @jax.jit
    def along(params, angles, smoothing):
        return jax.jvp(lambda at: held(at, angles, smoothing), (params,), (tangent,))

    # Margins do not feel the angles, and derivatives through the attack not to first order either:
    # with angles held they are those of the rounded problem, in which the angles turn.
    found = along(params, settled_angles(problem, params, mu), mu)
    expected = jax.jvp(twin.margins, (params,), (tangent,))
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING)
    exact = along(params, settled_angles(problem, params, 0.0), np.float64(0.0))
    plain = problem_of(network, attack)
    expected = jax.jvp(plain.margins, (params,), (tangent,))
    np.testing.assert_allclose(exact, expected, rtol=0, atol=ROUNDING)
    assert np.abs(found[1] - exact[1]).max() > 1e-4


def test_max_pooling_has_its_own_switches_beside_them():
    # Of three positions one is dropped: 2 selections at the gradient, 2 after the attack.
    plain = problem_of("pooled", "fgm")
    assert passes(plain).parts == (2, 0, 0, 2)
    assert passes(with_slope_switches(plain)).parts == (6 + 2, 0, 0, 2)
    assert passes(plain).jumps and passes(with_slope_switches(plain)).jumps


@pytest.mark.parametrize(
    ("network", "attack", "gradient"),
    [
        ("two_layers", "fgm", "frozen"),
        ("two_layers", clean(), "total"),
        (networks.mlp((4, 3, 1), power=3), "fgm", "total"),
        (networks.mlp((4, 3, 1), power=2, smoothing=0.1), "fgm", "total"),
        (networks.mlp((4, 3, 1)), "fgm", "total"),
        (networks.deep_linear((4, 3, 1)), "fgm", "total"),
    ],
)
def test_others_have_no_such_kinks(network, attack, gradient):
    problem = problem_of(network, attack, gradient)
    assert with_slope_switches(problem) is problem
    assert not passes(problem).jumps or problem.network.num_switches


def margins_and_gradients(params, data, radius, slopes):
    """Margins of `f(x) = v . relu(W x)^2` under FGM and their gradients through it, in NumPy.

    Args:
        slopes: of `max(a, 0)`, a = W x on clean inputs: c in [0, 1]. Shape (n, h).
    """
    weight, head = params[0], params[1][0]
    margins, gradients = [], []
    for x, y, c in zip(data.x, data.y, slopes, strict=True):
        active = np.maximum(weight @ x, 0)
        gradient = 2 * y * (head * active) @ weight
        length = np.linalg.norm(gradient)
        unit = gradient / length
        point = x - radius * unit
        after = np.maximum(weight @ point, 0)
        pull = 2 * y * (head * after) @ weight
        # q changes with the attack's gradient g by <s, dg>.
        s = -radius * (pull - unit * (unit @ pull)) / length
        by_head = y * (after**2 + 2 * active * (weight @ s))
        moved = after[:, None] * point + (c * (weight @ s))[:, None] * x + active[:, None] * s
        by_weight = 2 * y * head[:, None] * moved
        margins.append(y * head @ after**2)
        gradients.append(np.concatenate([by_weight.ravel(), by_head]))
    return np.array(margins), np.array(gradients)


def test_gradients_at_a_kink_are_those_of_its_two_sides():
    data = gflow.Dataset(DATA.x[2:4], DATA.y[2:4])
    problem = problem_of("two_layers", "fgm", data=data)
    generator = np.random.default_rng(4)
    weight, head, x = generator.normal(size=(3, 4)), generator.normal(size=(1, 3)), data.x[0]
    weight[1] -= (weight[1] @ x) / (x @ x) * x  # to a = 0, where neuron 1 meets the first example
    across = np.zeros_like(weight)
    across[1] = x
    params, tangent = jax.tree.map(jnp.asarray, ((weight, head), (across, np.zeros_like(head))))
    named = with_slope_switches(problem)
    angles = settled_angles(named, params, 0.0)

    @jax.jit
    def along(angles):
        def margins(at):
            return switched_margins(named, at, at, angles, 0.0)[0]

        return jax.jvp(margins, (params,), (tangent,))[1]

    def by_tangent(c):
        return np.asarray(along(jnp.asarray(angles).at[0, 1].set(np.arcsin(2 * c - 1))))[0]

    def one_sided(step):
        moved = weight + step * across, head
        here = margins_and_gradients((weight, head), data, RADIUS, np.zeros((2, 3)))[0][0]
        there = margins_and_gradients(moved, data, RADIUS, np.zeros((2, 3)))[0][0]
        return (there - here) / step

    sides = by_tangent(0.0), by_tangent(1.0)
    assert abs(sides[0] - sides[1]) > 1e-2
    # One-sided differences of a step h are off by O(h), here by 70 h.
    np.testing.assert_allclose(sides, [one_sided(-1e-6), one_sided(1e-6)], atol=2e-4)
    # The members of the subdifferential in between are convex combinations.
    mean = 0.3 * sides[1] + 0.7 * sides[0]
    np.testing.assert_allclose(by_tangent(0.3), mean, rtol=1e-12)


def with_limit_at_a_kink():
    """A problem whose flow from the start ends where one neuron switches at one example."""
    generator = np.random.default_rng(9)
    x = generator.normal(size=(8, 5))
    y = np.where(generator.random(8) < 0.5, 1.0, -1.0)
    weight = np.random.default_rng(1009).normal(size=(6, 5)) / np.sqrt(5)
    head = np.random.default_rng(2009).normal(size=(1, 6)) / np.sqrt(6)
    data = gflow.Dataset(x, y)
    return problem_of(networks.mlp((5, 6, 1), power=2), "fgm", data=data), (weight, head)


def flat(params):
    return np.concatenate([np.ravel(leaf) for leaf in params])


def assert_limit_at_the_kink(problem, limit):
    """The KKT conditions in NumPy; a maximum along random directions."""
    assert limit.successful and limit.verdict == "strict maximum" and limit.smoothing == 0
    (place,) = np.argwhere(limit.kinks.at_kink)
    assert -1 < limit.kinks.coefficients[tuple(place)] < 1
    data, direction = problem.dataset, limit.direction
    before = data.x @ np.asarray(direction[0]).T
    slopes = (1 + limit.kinks.coefficients) / 2
    # A neuron that has died out has no slope that matters.
    off = ~limit.kinks.at_kink & (np.abs(direction[0]).max(axis=1) > 0)
    np.testing.assert_array_equal(slopes[off], (before > 0)[off])
    assert abs(before[tuple(place)]) < 1e-14
    margins, gradients = margins_and_gradients(direction, data, RADIUS, slopes)
    multipliers, unit = limit.certificate.multipliers, flat(direction)
    assert multipliers.min() >= 0
    assert multipliers[place[0]] > 1e-3 * multipliers.max()
    assert np.linalg.norm(unit - multipliers @ gradients) < 1e-12
    assert multipliers @ (margins - margins.min()) < 1e-12
    # Without the coefficient in between, on either side, they do not hold.
    for side in (0.0, 1.0):
        slopes[tuple(place)] = side
        _, gradients = margins_and_gradients(direction, data, RADIUS, slopes)
        assert np.linalg.norm(unit - multipliers @ gradients) > 1e-3
    # The attack does not jump: its margin is that of the KKT point, and it is lower all about.
    assert limit.margin == pytest.approx(margins.min(), rel=1e-12)
    assert limit.held_margin == pytest.approx(limit.margin, rel=1e-12)
    generator = np.random.default_rng(0)
    for _ in range(300):
        beside = unit + 1e-3 * generator.normal(size=unit.size) / np.sqrt(unit.size)
        beside /= np.linalg.norm(beside)
        params = beside[:30].reshape(6, 5), beside[None, 30:]
        assert margins_and_gradients(params, data, RADIUS, slopes)[0].min() < limit.margin


def test_a_limit_at_a_kink_of_a_slope():
    problem, start = with_limit_at_a_kink()
    named = with_slope_switches(problem)
    limit = gflow.find_limit(named, start)
    assert_limit_at_the_kink(problem, limit)
    # The problem that was not told of these kinks finds them, with and without the coefficients.
    for given in (None, limit.kinks.coefficients):
        found = gflow.certify(problem, limit.direction, coefficients=given)
        assert found.stationarity < 1e-12
        np.testing.assert_array_equal(found.kinks, limit.kinks.examples)
        at_kink = limit.kinks.at_kink
        expected = limit.kinks.coefficients[at_kink]
        np.testing.assert_allclose(found.coefficients[at_kink], expected, atol=1e-9)


@pytest.mark.slow
def test_where_the_flow_sticks_the_search_goes_on_with_the_kinks_named():
    problem, start = with_limit_at_a_kink()
    limit = gflow.find_limit(problem, start)
    assert limit.problem == problem
    assert limit.basin == "undecided"
    assert_limit_at_the_kink(problem, limit)
    moved = flat(gflow.radius_sensitivity(limit))
    near = problem_of(problem.network, fgm(RADIUS + 1e-4), data=problem.dataset)
    beside = gflow.find_limit(with_slope_switches(near), limit.direction)
    difference = (flat(beside.direction) - flat(limit.direction)) / 1e-4
    np.testing.assert_allclose(difference, moved, atol=1e-2 * np.abs(moved).max())
