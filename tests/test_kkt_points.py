"""Laws that the limits of every network, attack and gradient obey: a new member is one more row.

First those of any KKT point, by margins and gradients in NumPy (`_kkt_oracles`, `_kink_oracles`):
stationarity, complementarity, signs, the margin of a reference, the certificate, and what does not
change it. Then those of its verdict: a maximum is one of the adversarial margin, a stable rest
point is returned to. All that is asked of a row uses the same few limits, since compiling takes
most of the time.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import _kink_oracles
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from _kkt_oracles import Attack, Product, TwoLayer, margins_and_gradients
from scipy.integrate import solve_ivp
from scipy.optimize import nnls

import gflow
from gflow import losses, networks, perturbations
from gflow._layout import Layout
from gflow.kkt.curvature import curvature, kinked_curvature
from gflow.kkt.switches import smoothed
from gflow.kkt.system import kkt_system
from gflow.limit import verdict
from gflow.limit.kinked_newton import KinkedNewton

STEPS = 10.0 ** -np.arange(1, 7)


class Row(NamedTuple):
    """A network, an attack and a gradient, and what is known of their limits.

    Attributes:
        network: of inputs of 4 dimensions.
        attack: by its radius.
        radius: of the attack.
        numpy: the network and the attack of `_kkt_oracles`; None for `_kink_oracles`.
        maximum: whether the limits are maxima of the margin; otherwise stable rest points.
        powers: degrees of the outputs in the inputs and in the parameters.
        gradient: of the problem.
        seeds: of the data and of the initial weights.
        start: options of the initial weights.
        size: number of examples.
        loss: of the problem.
        separable: whether the data are; if not, labels are random.
    """

    network: Any
    attack: Callable[[float], Any]
    radius: float
    numpy: tuple[Any, Any] | None
    maximum: bool
    powers: tuple[int, int]
    gradient: str = "frozen"
    seeds: tuple[int, ...] = (0, 1, 2)
    start: dict[str, float] = {"scale": 0.5}  # noqa: RUF012
    size: int = 12
    loss: Any = losses.logistic()
    separable: bool = False

    def dataset(self, seed: int) -> gflow.Dataset:
        if self.separable:
            return gflow.datasets.gaussian(self.size, 4, gap=0.7, seed=seed)
        generator = np.random.default_rng(seed)
        x = generator.normal(size=(self.size, 4))
        return gflow.Dataset(x, np.where(generator.random(self.size) < 0.5, -1, 1))

    def problem(self, data: gflow.Dataset, unit: float = 1.0) -> gflow.Problem:
        return gflow.Problem(
            self.network,
            data,
            loss=self.loss,
            perturbation=self.attack(unit * self.radius),
            gradient=self.gradient,
        )


def smooth_fgsm(radius):
    return perturbations.fgsm(radius, smoothing=0.1)


def no_attack(radius):
    return perturbations.clean()


SQUARED = networks.mlp((4, 10, 1), power=2)
SMOOTHED = networks.mlp((4, 10, 1), smoothing=0.05)
FGM, CLEAN = Attack(0.1), Attack(0.0)
ROWS = {
    "frozen FGM": Row(SQUARED, perturbations.fgm, 0.1, (TwoLayer(2), FGM), False, (2, 3)),
    # From seeds 1 and 2 the flow comes to no rest within 5000 steps.
    "frozen FGSM": Row(
        SMOOTHED,
        smooth_fgsm,
        0.05,
        (TwoLayer(1, 0.05), Attack(0.05, math.inf, 0.1)),
        False,
        (1, 2),
        seeds=(3, 4, 5),
    ),
    # From seed 1 the limit is at a kink of a slope, as that of `test_slope_kinks`.
    "total FGM": Row(
        SQUARED, perturbations.fgm, 0.1, (TwoLayer(2), FGM), True, (2, 3), "total", seeds=(0, 2, 5)
    ),
    "clean": Row(SQUARED, no_attack, 0.0, (TwoLayer(2), CLEAN), True, (2, 3)),
    "linear": Row(
        networks.linear(4), perturbations.fgm, 0.1, (Product(), FGM), True, (1, 1), separable=True
    ),
    "deep linear": Row(
        networks.deep_linear((4, 3, 1)),
        perturbations.fgm,
        0.1,
        (Product(), FGM),
        True,
        (1, 2),
        separable=True,
    ),
    "deep linear, clean": Row(
        networks.deep_linear((4, 3, 3, 1)),
        no_attack,
        0.0,
        (Product(), CLEAN),
        True,
        (1, 3),
        seeds=(0, 1),
        separable=True,
    ),
    "linear FGSM": Row(
        networks.linear(4),
        perturbations.fgsm,
        0.3,
        (Product(), Attack(0.3, math.inf)),
        True,
        (1, 1),
        separable=True,
    ),
    # At seeds 1 to 3 a dead neuron would grow in another direction: these limits are no maxima.
    "plain ReLU": Row(
        networks.mlp((4, 6, 1)),
        no_attack,
        0.0,
        None,
        True,
        (1, 2),
        seeds=(0, 5),
        start={},
        size=10,
        loss=losses.exponential(),
    ),
}
LONG = ("frozen FGSM", "total FGM", "deep linear", "deep linear, clean", "linear FGSM")
ORDERS = {perturbations.fgm: 2.0, no_attack: 2.0, perturbations.fgsm: math.inf}


def marked(attribute=None, value=True):
    """The names of all rows, or of those where an attribute has a value; long ones are slow."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] * (name in LONG))
        for name, row in ROWS.items()
        if attribute is None or getattr(row, attribute) == value
    ]


@pytest.fixture(scope="module", params=marked())
def found(request):
    """A row, and its limits that are rest points, at least two, by the seeds of their starts."""
    row, limits = ROWS[request.param], {}
    for seed in row.seeds:
        problem, start = row.problem(row.dataset(seed)), row.network.init(seed, **row.start)
        limit = gflow.find_limit(problem, start, throw=False)
        if limit.successful:
            limits[seed] = limit
    assert len(limits) >= 2
    return row, limits


@pytest.fixture
def limits(found):
    """The limits of one row, and whether they are to be maxima."""
    row, by_seed = found
    return list(by_seed.values()), row.maximum


# Any KKT point


def point_of(limit):
    """The KKT point at unit margin, smooth or at kinks."""
    return limit.polished if limit.kinks is None else limit.kinks


def by_numpy(row, limit, params):
    """Margins and gradients at parameters on the ray of the limit, with its switches held."""
    data, kinks = limit.problem.dataset, limit.kinks
    params = tuple(np.asarray(leaf) for leaf in params)
    if row.numpy is None:
        return _kink_oracles.rows(params, data, row.radius, kinks.coefficients)[:2]
    # Coefficients of a smooth network are those of its slopes, which its points are not at.
    signed = kinks is not None and row.attack is perturbations.fgsm
    signs = kinks.coefficients if signed else None
    total = row.gradient == "total"
    return margins_and_gradients(*row.numpy, params, data, total=total, signs=signs)


def at_unit_margin(limit):
    """The point's parameters, a pytree."""
    unflatten = jax.flatten_util.ravel_pytree(limit.direction)[1]
    return unflatten(jnp.asarray(point_of(limit).theta))


def test_the_multipliers_hold_the_point_by_gradients_in_numpy(found):
    row, limits = found
    for limit in limits.values():
        point = point_of(limit)
        _, gradients = by_numpy(row, limit, at_unit_margin(limit))
        residual = point.theta - point.multipliers @ gradients
        assert np.linalg.norm(residual) <= 1e-10 * np.linalg.norm(point.theta)
        assert limit.smoothing == 0 and point.converged


def test_margins_and_multipliers_are_complementary(found):
    row, limits = found
    for limit in limits.values():
        point = point_of(limit)
        margins, _ = by_numpy(row, limit, at_unit_margin(limit))
        assert 0 < point.active.sum() <= len(margins)
        assert point.multipliers.min() >= 0
        np.testing.assert_array_equal(point.multipliers > 0, point.active)
        np.testing.assert_allclose(margins[point.active], 1, rtol=0, atol=1e-10)
        assert margins.min() >= 1 - 1e-10


def test_multipliers_of_an_independent_solver_hold_it_too(found):
    row, limits = found
    for limit in limits.values():
        margins, gradients = by_numpy(row, limit, limit.direction)
        assert margins.min() == pytest.approx(limit.held_margin, rel=1e-10)
        smallest = margins <= margins.min() * (1 + 1e-9)
        np.testing.assert_array_equal(point_of(limit).active, smallest)
        _, residual = nnls(gradients[smallest].T, flat(limit)[0])
        assert residual < 1e-10


def test_the_certificate_agrees_with_numpy(found):
    row, limits = found
    for limit in limits.values():
        certificate, (unit, _) = limit.certificate, flat(limit)
        margins, gradients = by_numpy(row, limit, limit.direction)
        assert certificate.separated
        assert certificate.normalized_margin == pytest.approx(limit.margin, rel=1e-12)
        assert certificate.held_margin == pytest.approx(margins.min(), rel=1e-10)
        assert certificate.stationarity < 1e-10 and certificate.complementarity < 1e-10
        multipliers = np.ravel(certificate.multipliers)
        assert multipliers.min() >= 0
        # Its coefficients at kinks may be others than those that the search held.
        if limit.kinks is None:
            assert np.linalg.norm(unit - multipliers @ gradients) < 1e-10
            assert multipliers @ (margins - margins.min()) < 1e-10


@pytest.mark.parametrize("found", marked("separable"), indirect=True, scope="module")
def test_linear_limits_have_the_margin_of_the_convex_reference(found):
    row, limits = found
    for limit in limits.values():
        order = ORDERS[row.attack]
        best = gflow.max_margin(limit.problem.dataset, radius=row.radius, order=order)
        predictor = np.ravel(row.network.predictor(limit.direction))
        error = predictor / np.linalg.norm(predictor) - best.direction
        assert np.linalg.norm(error) < 1e-10
        # Balanced layers.
        expected = gflow.measures.balanced_margin(best.margin, row.powers[1])
        assert limit.held_margin == pytest.approx(expected, rel=1e-10)


def searched_again(row, seed, data, unit=1.0):
    """The limit of other data from the same logits: the outputs are of degrees `powers`."""
    inputs, parameters = row.powers
    factor = unit ** (-inputs / parameters)
    start = jax.tree.map(lambda leaf: factor * leaf, row.network.init(seed, **row.start))
    return gflow.find_limit(row.problem(data, unit), start)


def assert_same(row, limit, other, unit=1.0):
    """The same point, or another one of its family."""
    assert other.verdict == limit.verdict
    assert other.margin == pytest.approx(limit.margin * unit ** row.powers[0], rel=1e-8)
    if limit.verdict in verdict.STRICT:
        np.testing.assert_allclose(flat(other)[0], flat(limit)[0], rtol=0, atol=1e-8)


def test_units_of_the_data_change_the_margin_and_nothing_else(found):
    row, limits = found
    seed, limit = next(iter(limits.items()))
    data, unit = limit.problem.dataset, 1e3
    other = searched_again(row, seed, gflow.Dataset(unit * data.x, data.y), unit)
    assert_same(row, limit, other, unit)


def test_the_order_of_the_examples_changes_nothing(found):
    row, limits = found
    seed, limit = next(iter(limits.items()))
    data = limit.problem.dataset
    order = np.random.default_rng(0).permutation(len(data.x))
    other = searched_again(row, seed, gflow.Dataset(data.x[order], data.y[order]))
    assert_same(row, limit, other)
    if limit.verdict in verdict.STRICT:
        multipliers = point_of(limit).multipliers
        scale = multipliers.max()
        np.testing.assert_allclose(
            point_of(other).multipliers / scale, multipliers[order] / scale, rtol=0, atol=1e-6
        )


def test_copies_of_examples_share_their_multiplier(found):
    row, limits = found
    limit = next(iter(limits.values()))
    data, (unit, _) = limit.problem.dataset, flat(limit)
    count = len(data.x)
    twice = gflow.Dataset(np.concatenate([data.x, data.x]), np.concatenate([data.y, data.y]))
    certificate = gflow.certify(row.problem(twice), limit.direction)
    assert certificate.stationarity < 1e-10 and certificate.complementarity < 1e-10
    assert certificate.normalized_margin == pytest.approx(
        limit.certificate.normalized_margin, rel=1e-12
    )
    if limit.kinks is None:
        both = np.ravel(certificate.multipliers)
        _, gradients = by_numpy(row, limit, limit.direction)
        assert np.linalg.norm(unit - (both[:count] + both[count:]) @ gradients) < 1e-10


# At kinks


only_kinks = pytest.mark.parametrize("found", ["plain ReLU"], indirect=True, scope="module")


@pytest.fixture
def switched(found):
    """The limits of networks whose ReLUs stand on kinks."""
    row, limits = found
    assert all(at_kinks(limit) for limit in limits.values())
    return row, list(limits.values())


@only_kinks
def test_coefficients_are_signs_or_belong_to_a_kink(switched):
    row, limits = switched
    for limit in limits:
        kinks, data = limit.kinks, limit.problem.dataset
        params = tuple(np.asarray(leaf) for leaf in at_unit_margin(limit))
        decided = _kink_oracles.rows(params, data, row.radius, kinks.coefficients)[2]
        assert np.abs(kinks.coefficients).max() <= 1
        assert np.abs(decided[kinks.at_kink]).max() <= 1e-12
        off = kinks.active[:, None] & ~kinks.at_kink & (np.abs(decided) > 1e-9)
        np.testing.assert_array_equal(kinks.coefficients[off], np.sign(decided[off]))
        np.testing.assert_array_equal(np.flatnonzero(kinks.at_kink.any(axis=1)), kinks.examples)
        assert kinks.active[kinks.examples].all()


@only_kinks
def test_margin_at_kinks_is_that_of_the_kkt_point(switched):
    for limit in switched[1]:
        certificate = gflow.certify(
            limit.problem, limit.direction, coefficients=limit.kinks.coefficients
        )
        for margin in (limit.margin, limit.held_margin, certificate.held_margin):
            # At unit margin the norm is gamma^(-1/2).
            assert margin == pytest.approx(np.linalg.norm(limit.kinks.theta) ** -2, rel=1e-10)
        assert f"{limit.margin:+.6e}" in str(certificate)


@only_kinks
def test_margin_does_not_rise_along_kinks_and_active_margins(switched):
    for limit in switched[1]:
        assert "maximum" in limit.verdict
        at, (centre, _) = limit.kinks.system, flat(limit)
        # Gradients of the active margins and of the values at kinks: rows of the Jacobian.
        rows = np.concatenate([at.slopes[limit.kinks.active], at.switches.rows])
        generator = np.random.default_rng(0)
        steps = generator.normal(size=(300, centre.size))
        steps -= (steps @ np.linalg.pinv(rows)) @ rows  # to first order
        steps *= 1e-4 / np.linalg.norm(steps, axis=1)[:, None]
        most = max(normalized(limit, centre + step) for step in steps)
        assert limit.margin - 1e-3 < most <= limit.margin + 1e-9


@only_kinks
def test_curvature_at_kinks_is_the_limit_of_the_smoothed_ones(switched):
    smoothing = 1e-5
    for limit in switched[1][:1]:
        kinks, problem, layout = limit.kinks, limit.problem, Layout.of(limit.direction)
        near = KinkedNewton(problem, layout, kinks.multipliers.max()).solve(
            kinks.variables, smoothing
        )
        assert near is not None
        at = kkt_system(smoothed(problem, smoothing), layout, near.theta, near.multipliers)
        # The path goes on until 1e-2 mu is left.
        assert np.linalg.norm(at.stationarity) < smoothing
        assert 0 < np.linalg.norm(near.theta - kinks.theta) < 100 * smoothing
        expected = curvature(at, kinks.active).values
        values = kinked_curvature(kinks).values
        # Those across a kink grow like 1/mu and do not belong to the motion along it.
        expected = expected[np.abs(expected) < 1e2]
        assert len(values) == len(expected)
        tolerance = 30 * smoothing * max(1, np.abs(values).max())
        np.testing.assert_allclose(values, expected, atol=tolerance)


# The verdict


def flat(limit):
    """The direction, flat; and the margins at a flat vector."""
    vector, unflatten = jax.flatten_util.ravel_pytree(limit.direction)
    return np.asarray(vector), lambda at: np.asarray(limit.problem.margins(unflatten(at))).ravel()


def slopes(limit, step=1e-6):
    """`dq_i/dtheta` through the perturbations, by central differences. Shapes: (m, P)."""
    unit, margins = flat(limit)
    rows = [margins(unit + step * e) - margins(unit - step * e) for e in np.eye(unit.size)]
    return np.stack(rows, axis=1) / (2 * step)


def normalized(limit, vector):
    """The normalized margin of a flat vector."""
    return flat(limit)[1](vector / np.linalg.norm(vector)).min()


def at_kinks(limit):
    return limit.kinks is not None and limit.kinks.at_kink.any()


def test_words(limits):
    kept, maximum = limits
    for limit in kept:
        assert limit.verdict in (verdict.STRICT[1 - maximum], verdict.WITHIN_FAMILY[1 - maximum])
        assert repr(limit).startswith(f"Limit({limit.verdict}, ")
        assert bool(limit.no_maximum) is not maximum
        assert limit.to_dict()["no_maximum"] == limit.no_maximum


def test_total_residual_is_that_of_finite_differences(limits):
    kept, maximum = limits
    for limit in kept:
        if at_kinks(limit):
            continue
        unit, _ = flat(limit)
        certificate = limit.certificate
        pull = np.ravel(certificate.multipliers) @ slopes(limit)
        expected = np.linalg.norm(unit - pull)
        # The differences' own error, as of third derivatives, grows with the steepness of signs.
        assert certificate.total_stationarity == pytest.approx(expected, abs=1e-7, rel=2e-6)
        assert (certificate.total_stationarity < 1e-10) == maximum
        shown = "of the total gradient" in str(certificate)
        assert shown == (certificate.total_stationarity != certificate.stationarity)
        assert shown or maximum


def test_only_at_a_maximum_the_margin_cannot_be_raised(limits):
    kept, maximum = limits
    for limit in kept:
        unit, _ = flat(limit)
        here = normalized(limit, unit)
        generator = np.random.default_rng(0)
        steps = generator.normal(size=(200, unit.size))
        steps *= np.repeat([1e-3, 1e-4], 100)[:, None] / np.linalg.norm(steps, axis=1)[:, None]
        if maximum:
            best = max(normalized(limit, unit + step) for step in steps)
            assert best <= here * (1 + 1e-12)
        if at_kinks(limit):
            continue
        # The margin rises along what non-negative least squares leave of u: no margin falls, and
        # the norm does.
        active = limit.polished.active
        own = slopes(limit)[active]
        _, residual = nnls(own.T, unit)
        assert (residual < 1e-8) == maximum
        if not maximum:
            left = unit - own.T @ nnls(own.T, unit)[0]
            assert max(normalized(limit, unit - step * left) for step in STEPS) > here


@pytest.mark.parametrize("found", marked("maximum", False), indirect=True, scope="module")
def test_a_stable_rest_point_is_returned_to(limits):
    log_cap = 12.0
    for limit in limits[0]:
        unit, _ = flat(limit)
        log_kappa = log_cap - math.log(limit.margin)
        problem, unflatten = limit.problem, jax.flatten_util.ravel_pytree(limit.direction)[1]

        @jax.jit
        def field(vector, problem=problem, unflatten=unflatten, log_kappa=log_kappa):
            """The direction's flow against log |params|, with the weights of a fixed kappa."""
            here = vector / jnp.linalg.norm(vector)
            ascent = problem.ascent(unflatten(here), log_kappa)
            pull = jax.flatten_util.ravel_pytree(ascent.vector)[0]
            growth = problem.degree * jnp.sum(ascent.weights * ascent.margins)
            return (pull - here * (here @ pull)) / growth

        jacobian = jax.jit(jax.jacfwd(field))
        generator, size = np.random.default_rng(1), 1e-3
        push = generator.normal(size=unit.size)
        moving = limit.curvature.values[~limit.curvature.neutral]
        run = solve_ivp(
            lambda _, u, field=field: np.asarray(field(u)),
            (0, math.log(1e3) / moving.min()),
            unit + size * push / np.linalg.norm(push),
            method="Radau",
            jac=lambda _, u, jacobian=jacobian: np.asarray(jacobian(u)),
            rtol=1e-8,  # the error left counts kappa times in the speed below
            atol=1e-11,
        )
        end = run.y[:, -1] / np.linalg.norm(run.y[:, -1])
        # A family is returned to elsewhere; a fixed temperature shifts the rest point by exp(-12).
        if limit.verdict == "stable rest point":
            assert np.linalg.norm(end - unit) < 0.1 * size
        assert normalized(limit, end) == pytest.approx(limit.margin, rel=1e-3)
        assert np.linalg.norm(np.asarray(field(end))) < 1e-2 * size


def test_outcomes_have_verdicts_of_their_own(limits):
    for limit in limits[0]:
        assert limit.verdict in verdict.VERDICTS
        assert limit.to_dict()["symmetric"] == limit.curvature.symmetric
        if limit.verdict not in verdict.STRICT:
            with pytest.raises(ValueError, match=limit.verdict):
                gflow.data_sensitivity(limit, np.zeros_like(limit.problem.dataset.x))
