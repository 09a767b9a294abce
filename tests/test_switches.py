"""Margins with every ReLU and sign at its own angle, against the smoothed problem and the kinked.

Of one row everything comes from two compiled functions: one of the switched margins, one of the
smoothed problem, each called at several smoothings.
"""

import dataclasses
import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow import losses, networks
from gflow.kkt.switches import has_kinks, passes, smoothed, switched_margins
from gflow.networks import Convolution, Dense
from gflow.perturbations import clean, fgm, fgsm, pgd

X = np.random.default_rng(5).uniform(0.1, 0.9, size=(4, 3))
BINARY = gflow.Dataset(X, np.array([1.0, -1.0, -1.0, 1.0]))
CLASSES = gflow.Dataset(X, np.array([0, 1, 2, 1]))
RADIUS = 0.2
# A few hundred operations on numbers of order one.
ROUNDING = 1e-12

NETWORKS = {
    "linear": lambda: networks.linear(3),
    "mlp": lambda: networks.mlp((3, 4, 1)),
    "mlp_smoothed": lambda: networks.mlp((3, 4, 1), smoothing=0.1),
    "mlp_squared": lambda: networks.mlp((3, 4, 1), power=2),
    "mlp_bias": lambda: networks.mlp((3, 4, 1), bias=True),
    "three_layers": lambda: networks.mlp((3, 4, 4, 1)),
    "three_layers_classes": lambda: networks.mlp((3, 4, 4, 3)),
    "conv": lambda: networks.conv((1, 3, 1), [Convolution(2, (2, 1)), Dense(3), Dense(1)]),
}
PERTURBATIONS = {
    "clean": clean,
    "fgm": lambda: fgm(RADIUS),
    "fgsm": lambda: fgsm(RADIUS),
    "fgsm_smoothed": lambda: fgsm(RADIUS, smoothing=0.1),
    "pgd": lambda: pgd(RADIUS, num_steps=2, step_size=0.15, random_start=0),
    "pgd_2": lambda: pgd(RADIUS, order=2, num_steps=2, step_size=0.15),
}
# network, perturbation, and how many switches an example has, counted by hand: with s ReLUs,
# (s + 3 signs) at each gradient, and s after the attack. The convolution has 2 x 3 ReLUs.
ROWS = [
    ("mlp", "clean", 4),
    ("mlp", "pgd", 2 * (4 + 3) + 4),
    ("mlp_bias", "fgsm", (4 + 3) + 4),
    ("mlp_smoothed", "fgsm", 3),
    ("three_layers", "fgm", 8 + 8),
    ("three_layers_classes", "fgsm", (8 + 3) + 8),
    ("conv", "pgd_2", 2 * 9 + 9),
]
SMOOTH = [
    ("linear", "clean"),
    ("mlp_smoothed", "fgm"),
    ("mlp_squared", "fgsm_smoothed"),
    ("mlp_squared", "pgd_2"),
]


def problem_of(network, perturbation, gradient="frozen"):
    made = NETWORKS[network]()
    return gflow.Problem(
        made,
        CLASSES if made.num_outputs > 1 else BINARY,
        loss=losses.exponential(),
        perturbation=PERTURBATIONS[perturbation](),
        gradient=gradient,
    )


traced = []


@eqx.filter_jit
def observe(problem, params, angles, cotangent, smoothing):
    """Margins with switches at their angles, what decides these, and the margins' gradients,
    weighted by `cotangent`, by the free parameters and by the angles."""
    traced.append("switched")

    def margins(free, angles):
        return switched_margins(problem, params, free, angles, smoothing)

    values, pull_back, decided = jax.vjp(margins, params, angles, has_aux=True)
    return values, decided, *pull_back(cotangent)


@eqx.filter_jit
def reference(problem, params, cotangent):
    """The problem's own margins and their weighted gradients, in its gradient mode."""
    traced.append("smoothed")
    margins, pull_back = problem.linearize(params)
    return margins, pull_back(cotangent)[0]


@dataclasses.dataclass(frozen=True)
class Case:
    problem: gflow.Problem
    params: tuple
    cotangent: np.ndarray

    @classmethod
    @functools.cache
    def of(cls, network, perturbation):
        problem = problem_of(network, perturbation)
        generator = np.random.default_rng(1)
        shapes = jax.eval_shape(problem.network.init, 0)
        params = tuple(generator.normal(size=leaf.shape) for leaf in shapes)
        rivals = (problem.dataset.num_outputs - 1,) if problem.dataset is CLASSES else ()
        return cls(problem, params, generator.normal(size=(len(X), *rivals)))

    @property
    def shape(self):
        return len(X), passes(self.problem).size

    def observe(self, angles, smoothing):
        return observe(
            self.problem, self.params, angles, self.cotangent, np.asarray(smoothing, float)
        )

    def settled(self, smoothing):
        """Every switch at the angle of its value. Each depends on those before it alone, so that
        the angles stand still, to the last bit, once all have been passed."""
        angles = np.zeros(self.shape)
        for _ in range(2 + angles.shape[1]):
            decided = self.observe(angles, smoothing)[1]
            turned = np.arctan2(decided.values, smoothing * np.asarray(decided.scales))
            if np.array_equal(turned, angles):
                return angles
            angles = turned
        raise AssertionError("The angles do not settle.")


@pytest.fixture(params=ROWS, ids=lambda row: "-".join(row[:2]))
def case(request):
    return Case.of(*request.param[:2])


def assert_equal(found, expected):
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=ROUNDING * np.abs(right).max())


@pytest.mark.parametrize("smoothing", [0.5, 0.01])
def test_at_the_angles_of_their_values_margins_are_the_smoothed_ones(case, smoothing):
    margins, _, gradient, _ = case.observe(case.settled(smoothing), smoothing)
    twin = smoothed(case.problem, smoothing)
    assert_equal((margins, gradient), reference(twin, case.params, case.cotangent))


def test_at_right_angles_margins_are_those_with_kinks(case):
    angles = case.settled(0.0)
    np.testing.assert_array_equal(np.abs(angles), np.pi / 2)  # no switch stands on its kink
    margins, _, gradient, _ = case.observe(angles, 0.0)
    assert_equal((margins, gradient), reference(case.problem, case.params, case.cotangent))


@pytest.mark.parametrize("smoothing", [0.5, 0.01])
def test_a_relu_does_not_feel_its_own_angle(case, smoothing):
    _, _, _, by_angle = case.observe(case.settled(smoothing), smoothing)
    last = np.asarray(by_angle)[:, case.shape[1] - case.problem.network.num_switches :]
    np.testing.assert_allclose(last, 0, atol=ROUNDING)
    elsewhere = case.observe(np.full(case.shape, 0.3), smoothing)[3]
    assert np.abs(elsewhere).max() > 1e-3


def test_a_value_is_no_larger_than_what_it_is_measured_against(case):
    decided = case.observe(case.settled(0.1), 0.1)[1]
    shares = np.abs(decided.values) / np.asarray(decided.scales)
    under, signs, after = np.split(shares, np.cumsum(sizes(case.problem))[:2], axis=1)
    assert max(under.max(initial=0), after.max(initial=0)) <= 1 + ROUNDING
    # A gradient against its root mean square.
    assert signs.max(initial=0) <= math.sqrt(X.shape[1]) * (1 + ROUNDING)


def test_one_program_serves_every_smoothing(case):
    case.settled(0.3)
    reference(smoothed(case.problem, 0.3), case.params, case.cotangent)
    before = len(traced)
    case.settled(0.02)
    reference(smoothed(case.problem, 0.02), case.params, case.cotangent)
    assert len(traced) == before


def sizes(problem):
    count, relus, signs = passes(problem)
    return count * relus, count * signs, relus


@pytest.mark.parametrize(("network", "perturbation", "size"), ROWS)
def test_switches_are_counted_and_smoothing_leaves_none(network, perturbation, size):
    problem = problem_of(network, perturbation)
    assert passes(problem).size == size == sum(sizes(problem))
    assert has_kinks(problem)
    assert not has_kinks(smoothed(problem, 0.1))
    assert smoothed(problem, 0.1) == smoothed(problem, np.float64(0.1)) != problem


@pytest.mark.parametrize(("network", "perturbation"), SMOOTH)
def test_smooth_problems_are_left_alone(network, perturbation):
    problem = problem_of(network, perturbation)
    assert not has_kinks(problem)
    assert smoothed(problem, 0.1) == problem


@pytest.mark.parametrize("row", [("mlp", "clean"), ("mlp", "pgd")], ids="-".join)
def test_with_its_angles_the_total_derivative_is_the_smoothed_one(row):
    # Through delta the slopes of the attacked network turn too: fixed angles are not enough.
    case, smoothing = Case.of(*row), np.float64(0.3)
    total = problem_of(*row, gradient="total")
    count = 2 + case.shape[1]

    @jax.jit
    def along(params, tangent):
        def margins(point):
            start = jnp.zeros(case.shape)
            angles = jax.lax.fori_loop(0, count, lambda _, phi: turned(point, phi), start)
            return switched_margins(total, point, point, angles, smoothing)[0]

        def turned(point, angles):
            decided = switched_margins(total, point, point, angles, smoothing)[1]
            return jnp.arctan2(decided.values, smoothing * decided.scales)

        return (
            jax.jvp(margins, (params,), (tangent,)),
            jax.jvp(smoothed(total, smoothing).margins, (params,), (tangent,)),
        )

    generator = np.random.default_rng(2)
    tangent = tuple(generator.normal(size=leaf.shape) for leaf in case.params)
    assert_equal(*along(case.params, tangent))
