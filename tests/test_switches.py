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
from gflow._selection import select_largest, select_peak
from gflow.kkt.switches import alive, has_kinks, passes, smoothed, switched_margins
from gflow.limit.result import unnamed_kinks
from gflow.networks import Convolution, Dense, MaxPool
from gflow.networks._convolutional import Convolutional
from gflow.perturbations import AbstractPerturbation, clean, fgm, fgsm, pgd

X = np.random.default_rng(5).uniform(0.1, 0.9, size=(4, 3))
BINARY = gflow.Dataset(X, np.array([1.0, -1.0, -1.0, 1.0]))
CLASSES = gflow.Dataset(X, np.array([0, 1, 2, 1]))
FOUR_CLASSES = gflow.Dataset(X, np.array([0, 1, 2, 3]))
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
    "pooled": lambda: networks.conv(
        (1, 3, 1), [Convolution(2, 1), MaxPool((2, 1), stride=1), Dense(1)], power=2
    ),
    "pooled_relu": lambda: networks.conv((1, 3, 1), [Convolution(2, 1), MaxPool((3, 1)), Dense(1)]),
    "classes": lambda: networks.linear(3, num_outputs=4),
    "classes_squared": lambda: networks.mlp((3, 4, 4), power=2),
    "classes_relu": lambda: networks.mlp((3, 4, 4)),
}
PERTURBATIONS = {
    "clean": clean,
    "fgm": lambda: fgm(RADIUS),
    "fgsm": lambda: fgsm(RADIUS),
    "fgm_1": lambda: fgm(RADIUS, order=1),
    "pgd_1": lambda: pgd(RADIUS, order=1, num_steps=2),
    "fgsm_smoothed": lambda: fgsm(RADIUS, smoothing=0.1),
    "pgd": lambda: pgd(RADIUS, num_steps=2, step_size=0.15, random_start=0),
    "pgd_2": lambda: pgd(RADIUS, order=2, num_steps=2, step_size=0.15),
}
# network, perturbation, rivals, and how many switches an example has, counted by hand: with s
# ReLUs, (s + 3 signs) at each gradient, and s after the attack. The convolution has 2 x 3 ReLUs.
# To select among m values takes m - 1 switches: 3 coordinates, k - 1 rivals, 2 or 3 pixels.
ROWS = [
    ("mlp", "clean", "worst", 4),
    ("mlp", "pgd", "worst", 2 * (4 + 3) + 4),
    ("mlp_bias", "fgsm", "worst", (4 + 3) + 4),
    ("mlp_smoothed", "fgsm", "worst", 3),
    ("three_layers", "fgm", "worst", 8 + 8),
    ("three_layers_classes", "fgsm", "runner_up", (8 + 1 + 3) + 8),
    ("conv", "pgd_2", "worst", 2 * 9 + 9),
    ("linear", "fgm_1", "worst", 2),
    ("mlp", "pgd_1", "worst", 2 * (4 + 2) + 4),
    ("pooled", "clean", "worst", 4),
    ("pooled_relu", "fgm", "worst", (6 + 4) + (6 + 4)),
    ("classes", "fgm", "runner_up", 2),
    ("classes", "fgm", "worst", 2),
    ("classes", "fgsm", "worst", 3 * 3 + 2),
    ("classes_squared", "pgd", "runner_up", 2 * (2 + 3)),
    ("classes_relu", "pgd", "worst", 3 * 2 * (4 + 3) + 3 * 4 + 2),
    ("classes_relu", "fgm", "each", 3 * 4 + 3 * 4),
]
# Whose derivatives through the perturbation are compared.
TOTAL = [("mlp", "clean", "worst"), ("mlp", "pgd", "worst"), ("classes", "fgm", "runner_up")]
SMOOTH = [
    ("linear", "clean", "worst"),
    ("mlp_smoothed", "fgm", "worst"),
    ("mlp_squared", "fgsm_smoothed", "worst"),
    ("mlp_squared", "pgd_2", "worst"),
    ("classes_squared", "clean", "worst"),
    ("classes_squared", "fgm", "each"),
]


def problem_of(network, perturbation, rivals, gradient="frozen"):
    made = NETWORKS[network]()
    return gflow.Problem(
        made,
        {1: BINARY, 3: CLASSES, 4: FOUR_CLASSES}[made.num_outputs],
        loss=losses.exponential(),
        perturbation=PERTURBATIONS[perturbation](),
        gradient=gradient,
        rivals=rivals,
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
    def of(cls, network, perturbation, rivals):
        problem = problem_of(network, perturbation, rivals)
        generator = np.random.default_rng(1)
        shapes = jax.eval_shape(problem.network.init, 0)
        params = tuple(generator.normal(size=leaf.shape) for leaf in shapes)
        others = () if problem.dataset.binary else (problem.dataset.num_outputs - 1,)
        return cls(problem, params, generator.normal(size=(len(X), *others)))

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


@pytest.fixture(params=ROWS, ids=lambda row: "-".join(row[:3]))
def case(request):
    return Case.of(*request.param[:3])


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
    margins, decided, gradient, _ = case.observe(angles, 0.0)
    # No switch stands on its kink, but those between two pixels that are 0 both.
    np.testing.assert_array_equal(np.abs(angles), np.where(decided.scales > 0, np.pi / 2, 0))
    assert_equal((margins, gradient), reference(case.problem, case.params, case.cotangent))


@pytest.mark.parametrize("smoothing", [0.5, 0.01])
def test_a_relu_does_not_feel_its_own_angle(case, smoothing):
    _, _, _, by_angle = case.observe(case.settled(smoothing), smoothing)
    last = np.asarray(by_angle)[:, case.shape[1] - passes(case.problem).parts[-1] :]
    np.testing.assert_allclose(last, 0, atol=ROUNDING)
    elsewhere = case.observe(np.full(case.shape, 0.3), smoothing)[3]
    assert np.abs(elsewhere).max() > 1e-3


def test_a_value_is_no_larger_than_what_it_is_measured_against(case):
    decided = case.observe(case.settled(0.1), 0.1)[1]
    values, scales = np.abs(decided.values), np.asarray(decided.scales)
    # A ReLU's argument against its largest value; two values, of which one is selected, differ by
    # up to twice their root mean square; a gradient against its root mean square.
    selects = isinstance(case.problem.network, Convolutional) or not case.problem.dataset.binary
    _, steps, choice, _ = np.cumsum([0, *passes(case.problem).parts])[:-1]
    bounds = np.full(case.shape[1], 2.0 if selects else 1.0)
    bounds[steps:choice] = max(2.0, math.sqrt(X.shape[1]))
    assert np.all(values <= bounds * scales * (1 + ROUNDING))


def test_one_program_serves_every_smoothing(case):
    case.settled(0.3)
    reference(smoothed(case.problem, 0.3), case.params, case.cotangent)
    before = len(traced)
    case.settled(0.02)
    reference(smoothed(case.problem, 0.02), case.params, case.cotangent)
    assert len(traced) == before


@pytest.mark.parametrize(("network", "perturbation", "rivals", "size"), ROWS)
def test_switches_are_counted_and_smoothing_leaves_none(network, perturbation, rivals, size):
    problem = problem_of(network, perturbation, rivals)
    assert passes(problem).size == size == sum(passes(problem).parts)
    assert has_kinks(problem)
    assert not has_kinks(smoothed(problem, 0.1))
    assert smoothed(problem, 0.1) == smoothed(problem, np.float64(0.1)) != problem


@pytest.mark.parametrize(("network", "perturbation", "rivals"), SMOOTH)
def test_smooth_problems_are_left_alone(network, perturbation, rivals):
    problem = problem_of(network, perturbation, rivals)
    assert not has_kinks(problem)
    assert smoothed(problem, 0.1) == problem


class Unswitched(AbstractPerturbation):
    """A user's perturbation without `switched`."""

    order: float = eqx.field(static=True, default=2.0)
    radius: float = eqx.field(static=True, default=RADIUS)

    def __call__(self, margin, x, start):
        return -self.radius * x / jnp.linalg.norm(x)


def test_a_perturbation_that_names_no_kinks_is_told_of():
    def told(network, perturbation):
        made = NETWORKS[network]()
        loss = losses.exponential()
        problem = gflow.Problem(made, BINARY, loss=loss, perturbation=perturbation)
        assert not has_kinks(problem) or perturbation == clean()
        return unnamed_kinks(problem)

    assert "`Unswitched`, which has no method `switched`" in told("mlp", Unswitched())
    assert told("mlp_squared", Unswitched()) == told("mlp", clean()) == ""


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_the_largest_is_selected_and_does_not_feel_its_angles(count):
    values = np.random.default_rng(count).normal(size=(5, count))
    found = select_largest(jnp.asarray(values), 1e-9)
    np.testing.assert_allclose(found.largest, values.max(axis=1), atol=1e-8)
    np.testing.assert_allclose(found.coefficients.argmax(axis=1), values.argmax(axis=1))
    rounded = select_largest(jnp.asarray(values), 0.3)
    np.testing.assert_allclose(rounded.coefficients.sum(axis=1), 1, rtol=ROUNDING)
    assert np.all(rounded.coefficients >= 0)

    def total(values, angles):
        return jnp.sum(select_largest(values, 0.3, angles).largest)

    by_angle = jax.grad(total, argnums=1)(jnp.asarray(values), rounded.angles)
    np.testing.assert_allclose(by_angle, 0, atol=ROUNDING)


def test_where_all_are_equal_any_convex_combination_is_selected():
    angles = jnp.arcsin(jnp.asarray([0.2, -0.6]))
    found = select_largest(jnp.ones(3), 0.0, angles)
    assert found.largest == pytest.approx(1.0, rel=ROUNDING)
    # The first two meet, the winner meets the third.
    np.testing.assert_allclose(found.coefficients, [0.6 * 0.2, 0.4 * 0.2, 0.8], rtol=ROUNDING)
    nothing = select_largest(jnp.zeros(3), 0.1)
    assert np.all(np.isfinite(jax.jacfwd(lambda v: select_largest(v, 0.1).angles)(jnp.zeros(3))))
    np.testing.assert_array_equal(nothing.largest, 0)


def test_a_peak_is_no_longer_than_1_and_depends_on_the_direction_alone():
    gradient = jnp.asarray([0.5, -2.0, 1.9])
    for smoothing in (1e-9, 0.1, 1.0):
        step, found = select_peak(gradient, smoothing)
        assert np.abs(step).sum() <= 1 + ROUNDING
        np.testing.assert_allclose(select_peak(1e5 * gradient, smoothing)[0], step, rtol=ROUNDING)
        assert found.values.shape == (2,)
    np.testing.assert_allclose(select_peak(gradient, 1e-9)[0], [0, -1, 0], atol=1e-8)
    np.testing.assert_array_equal(select_peak(jnp.zeros(3), 0.1)[0], 0)


@pytest.mark.parametrize("row", TOTAL, ids="-".join)
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


@pytest.mark.parametrize("rivals", ["runner_up", "worst"])
def test_what_is_alive_does_not_depend_on_the_units_of_the_data(rivals):
    """Of ReLUs, choices of a rival and signs each has units of its own: with inputs c times as
    large and parameters c^(-1/2) times, those of signs are 1/c times as large, those of rivals
    stay.
    """
    network = networks.mlp((2, 3, 3))
    x = np.array([[1.0, 0.2], [-0.3, 1.0], [-1.0, -0.9]])
    params = network.init(0)
    dead = (params[0].at[0].multiply(1e-9), *params[1:])
    found = []
    for c in (1.0, 2.0**-40, 2.0**40):
        problem = gflow.Problem(
            network,
            gflow.Dataset(c * x, np.arange(3)),
            loss=losses.logistic(),
            perturbation=pgd(0.01 * c, num_steps=2),
            rivals=rivals,
        )
        scaled = jax.tree.map(lambda leaf, c=c: leaf / c**0.5, dead)
        angles = jnp.zeros((3, passes(problem).size))
        scales = np.asarray(switched_margins(problem, scaled, scaled, angles, 0.0)[1].scales)
        found.append(alive(problem, scales))
    assert found[0].any() and not found[0].all()
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])
