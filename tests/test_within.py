"""KKT systems of networks linear in their inputs, within a subspace: as by whole matrices."""

import dataclasses

import jax
import numpy as np
import pytest

import gflow
from gflow import losses, networks, perturbations
from gflow._layout import Layout
from gflow.kkt.curvature import curvature
from gflow.kkt.system import kkt_system
from gflow.kkt.within import is_factored, is_within, system_at
from gflow.limit.settings import REFINE
from gflow.reference import max_margin

SIZES = dataclasses.replace(REFINE.sizes, formed=10)
WITHIN = gflow.LimitSettings(refine=dataclasses.replace(REFINE, sizes=SIZES))
ATTACKS = {
    "clean": perturbations.clean(),
    "fgm": perturbations.fgm(0.1),
    "fgsm": perturbations.fgsm(0.03, smoothing=0.1),
    "pgd": perturbations.pgd(0.1, order=2.0, step_size=0.05, num_steps=3, box=(-4.0, 4.0)),
}


def problem_of(widths, attack, gradient="frozen", n=12):
    data = gflow.datasets.gaussian(n, widths[0], gap=1.0, seed=0)
    return gflow.Problem(
        networks.deep_linear(widths),
        data,
        loss=losses.exponential(),
        perturbation=ATTACKS[attack],
        gradient=gradient,
    )


def point_of(problem):
    """Where nothing is solved, with four margins that push."""
    layout = Layout.of(params := problem.network.init(0))
    multipliers = np.zeros(np.asarray(problem.margins(params)).size)
    multipliers[:4] = 0.5 + np.random.default_rng(1).random(4)
    return layout, np.asarray(layout.flatten(params)), multipliers


CASES = [
    ((5, 8, 1), "clean", "frozen"),
    ((5, 8, 1), "fgm", "frozen"),
    ((5, 8, 1), "fgm", "total"),
    ((6, 6, 5, 1), "fgsm", "frozen"),
    ((5, 8, 1), "pgd", "frozen"),
]


@pytest.mark.parametrize(("widths", "attack", "gradient"), CASES)
def test_eigenvalues_and_steps_are_those_of_the_whole_matrix(widths, attack, gradient):
    problem = problem_of(widths, attack, gradient)
    layout, theta, multipliers = point_of(problem)
    active = np.arange(multipliers.size) < 5  # the last without a multiplier
    whole = kkt_system(problem, layout, theta, multipliers)
    within = system_at(problem, layout, theta, multipliers, active=active, sizes=SIZES)
    assert within.basis is not None and within.basis.shape[1] < layout.size
    missing = np.ones(layout.size - within.basis.shape[1])
    found = np.append(np.linalg.eigvals(within.hessian), missing)
    expected = np.linalg.eigvals(whole.hessian)
    # Those of a matrix that is not symmetric move by more than rounding.
    np.testing.assert_allclose(np.sort(found.real), np.sort(expected.real), atol=1e-6)
    both = np.arange(0, layout.size, 3)
    np.testing.assert_allclose(within.entries(both), whole.entries(both), atol=1e-8)
    steps = []
    for at in (whole, within):
        right = np.append(at.coordinates(at.stationarity), at.margins[active] - 1)
        step = np.linalg.solve(at.bordered(active, shift=0.3), right)
        steps.append(np.append(at.vectors(step[: len(at.hessian)]), step[len(at.hessian) :]))
    np.testing.assert_allclose(*steps, atol=1e-7 * np.abs(steps[0]).max())


@pytest.mark.parametrize("attack", ["clean", "fgm"])
def test_the_curvature_is_that_of_the_whole_matrix(attack):
    problem = problem_of((5, 8, 1), attack)
    layout, theta, multipliers = point_of(problem)
    active = multipliers > 0
    found = [
        curvature(system_at(problem, layout, theta, multipliers, sizes=sizes), active, sizes=sizes)
        for sizes in (SIZES, REFINE.sizes)
    ]
    within, whole = (each.values[np.abs(each.values - 1) > 1e-6] for each in found)
    assert 0 < len(within) < layout.size
    np.testing.assert_allclose(within, whole, atol=1e-6)
    assert found[0].vectors.shape[0] == layout.size


def test_only_networks_linear_in_their_inputs_have_such_systems():
    linear = problem_of((5, 8, 1), "clean")
    other = gflow.Problem(networks.mlp((5, 8, 1), smoothing=0.1), linear.dataset, loss=linear.loss)
    assert is_within(linear, 20_000) and not is_within(linear, 1000)
    assert is_factored(linear, 20_000) and is_factored(linear, 1000)
    assert not is_within(other, 20_000) and not is_factored(other, 20_000)


@pytest.mark.parametrize(
    ("attack", "gradient"), [("clean", "frozen"), ("fgm", "frozen"), ("fgm", "total")]
)
def test_the_limit_is_the_same(attack, gradient):
    """Members of a family may differ in their layers; their margin and predictor may not."""
    problem = problem_of((5, 8, 1), attack, gradient)
    start = problem.network.init(0)
    whole = gflow.find_limit(problem, start)
    within = gflow.find_limit(problem, start, settings=WITHIN)
    assert whole.polished.linearized.basis is None
    assert within.polished.linearized.basis.shape[1] < 48
    assert (within.verdict, within.basin) == (whole.verdict, whole.basin)
    assert within.margin == pytest.approx(whole.margin, rel=1e-12)
    predictors = [problem.network.predictor(limit.direction) for limit in (whole, within)]
    np.testing.assert_allclose(*predictors, atol=1e-9)
    assert within.certificate.stationarity < 1e-14


def test_classes_have_such_systems_too():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(9, 6)), np.arange(9) % 3
    problem = gflow.Problem(
        networks.deep_linear((6, 7, 3)), gflow.Dataset(x, y), loss=losses.logistic()
    )
    start = problem.network.init(1)
    whole = gflow.find_limit(problem, start)
    within = gflow.find_limit(problem, start, settings=WITHIN)
    assert within.polished.linearized.basis.shape[1] < 63
    assert within.verdict == whole.verdict
    assert within.margin == pytest.approx(whole.margin, rel=1e-12)


def test_the_radius_moves_the_margin_alike():
    problem = problem_of((5, 8, 1), "fgm")
    linear = gflow.Problem(
        networks.linear(5), problem.dataset, loss=problem.loss, perturbation=problem.perturbation
    )
    sizes = dataclasses.replace(REFINE.sizes, formed=2)
    settings = gflow.LimitSettings(refine=dataclasses.replace(REFINE, sizes=sizes))
    start = linear.network.init(0)
    whole = gflow.find_limit(linear, start)
    within = gflow.find_limit(linear, start, settings=settings)
    assert whole.polished.linearized.basis is None
    assert within.polished.linearized.basis is not None
    found = [gflow.radius_sensitivity(limit) for limit in (whole, within)]
    for first, second in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(first, second, atol=1e-9)


@pytest.mark.slow
def test_5000_weights_have_the_predictor_of_the_largest_margin():
    """The product of the layers tends to the max-margin direction (Lyu & Zhu 2022)."""
    problem = problem_of((70, 70, 1), "fgm", n=40)
    limit = gflow.find_limit(problem, problem.network.init(0))
    assert limit.polished.theta.size == 4970
    assert limit.verdict.endswith("within a family") and limit.basin == "confirmed"
    predictor = np.asarray(problem.network.predictor(limit.direction))
    best = max_margin(problem.dataset, radius=0.1, order=2)
    np.testing.assert_allclose(predictor / np.linalg.norm(predictor), best.direction, atol=1e-9)
    # sup over layers of norm 1 in all: the margin of the predictor times (1/2)^(2/2).
    assert limit.margin == pytest.approx(best.margin / 2, rel=1e-10)
