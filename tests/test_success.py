"""Success is earned: what no weights separate, or only just, is never called successful."""

import dataclasses
import math

import numpy as np
import pytest
from scipy.optimize import linprog

import gflow
from gflow import losses, networks, perturbations
from gflow.limit.earned import earned
from gflow.results import RESULTS, name_of

LINEAR = networks.linear(2)


def with_one_label_flipped(seed):
    """20 points in the plane that no hyperplane separates, by SciPy's linear program."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(20, 2))
    score = x @ [1.0, 2.0]
    y = np.where(score > 0, 1.0, -1.0)
    y[np.abs(score).argmax()] *= -1
    found = linprog(np.zeros(2), A_ub=-(y[:, None] * x), b_ub=-np.ones(20), bounds=(None, None))
    assert found.status == 2
    return x, y


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-9, 1e6])
def test_what_no_hyperplane_separates_is_not_separated_at_any_scale(scale):
    for seed in range(4):
        x, y = with_one_label_flipped(seed)
        problem = gflow.Problem(LINEAR, gflow.Dataset(scale * x, y), loss=losses.logistic())
        limit = gflow.find_limit(problem, LINEAR.init(0), throw=False)
        assert limit.result_name == "not_separated"
        assert limit.verdict == "unknown" and math.isnan(limit.cap_logits)


@pytest.mark.parametrize("gap", [1e-2, 1e-5, 1e-7, 0.0, -1e-9, -1e-5, -0.5])
def test_at_the_largest_feasible_radius(gap):
    """Below it the margin that is left is found; at and above it nothing is called right."""
    x = np.array([[0.6, 0.8], [-0.6, -0.8], [1.2, 0.9], [-0.9, -1.9]])
    data = gflow.Dataset(x, [1, -1, 1, -1])
    largest = gflow.max_margin(data, radius=0.0, order=2).margin
    attack = perturbations.fgm(largest * (1 - gap))
    problem = gflow.Problem(LINEAR, data, loss=losses.logistic(), perturbation=attack)
    limit = gflow.find_limit(problem, (np.array([[0.3, -0.2]]),), throw=False)
    if gap > 0:
        assert limit.successful
        # Rounding of the data's size in a margin that is a small part of it.
        assert limit.margin == pytest.approx(largest * gap, rel=1e-6 + 1e-14 / gap)
    else:
        assert not limit.successful
        assert limit.result_name in ("radius_above_margin", "step_budget_spent")


@pytest.mark.parametrize("gap", [1e-5, 1e-6])
def test_a_margin_of_which_rounding_takes_most_digits_is_found(gap):
    """Twenty points, two support vectors: the flow at the cap never comes to rest for rounding."""
    data = gflow.datasets.gaussian(20, 4, gap=0.5, seed=1)
    radius = (1 - gap) * gflow.reference.largest_feasible_radius(data)
    network = networks.linear(4)
    problem = gflow.Problem(
        network, data, loss=losses.logistic(), perturbation=perturbations.fgm(radius)
    )
    limit = gflow.find_limit(problem, network.init(0))
    reference = gflow.max_margin(data, radius=radius)
    assert limit.margin == pytest.approx(reference.margin, rel=1e-6)
    np.testing.assert_allclose(np.ravel(limit.direction[0]), reference.direction, atol=1e-8)
    # That the flow arrived cannot be seen where rounding decides it.
    assert gap > 1e-6 or limit.basin == "undecided"


@pytest.mark.parametrize("depth", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("gap", [pytest.param(1e-5, marks=pytest.mark.slow), 1e-7, -1e-6])
def test_the_radius_is_called_too_large_only_where_it_is(depth, gap):
    """Exact signs: the search may lose so small a margin, but must not say that there is none."""
    data = gflow.datasets.gaussian(20, 4, gap=0.5, seed=1)
    radius = (1 - gap) * gflow.reference.largest_feasible_radius(data, order=np.inf)
    network = networks.deep_linear((*(4, 3, 1)[:depth], 1))
    problem = gflow.Problem(
        network, data, loss=losses.logistic(), perturbation=perturbations.fgsm(radius)
    )
    limit = gflow.find_limit(problem, network.init(0), throw=False)
    if gap < 0:
        assert not limit.successful
    else:
        assert limit.result_name != "radius_above_margin"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_deep_networks_of_small_margins_are_followed_until_they_separate(seed):
    data = gflow.datasets.random_labels(10, 4, seed=1)
    network = networks.mlp((4, 8, 8, 1), power=2)
    problem = gflow.Problem(network, data, loss=losses.exponential())
    limit = gflow.find_limit(problem, network.init(seed), throw=False)
    first, second, last = (np.asarray(leaf) for leaf in limit.direction)
    hidden = np.maximum(np.asarray(data.x) @ first.T, 0) ** 2
    outputs = np.maximum(hidden @ second.T, 0) ** 2 @ last[0]
    margin = float((np.asarray(data.y) * outputs).min())
    assert limit.successful and 0 < margin < 1e-3
    assert margin == pytest.approx(limit.margin, rel=1e-9)


@pytest.mark.slow
def test_a_blank_example_of_a_network_without_bias_is_never_separated():
    x = np.array([[2.1806, 0.5989], [0.0, 0.0], [1.0028, -0.0043], [2.1381, -0.3535]])
    start = (
        np.array([[0.7331, 0.5301], [-0.2497, -0.1136], [-0.1218, -1.1545]]),
        np.array([[0.0225, -0.1937, -0.4796]]),
    )
    network = networks.mlp((2, 3, 1))
    problem = gflow.Problem(network, gflow.Dataset(x, [1, 1, -1, -1]), loss=losses.logistic())
    limit = gflow.find_limit(problem, start, throw=False)
    assert limit.result_name == "not_separated"


def separable():
    x, _ = with_one_label_flipped(0)
    return gflow.Dataset(x, np.where(x @ [1.0, 2.0] > 0, 1, -1))


@pytest.mark.parametrize("press", [1, 2])
def test_an_interrupt_ends_the_search(press):
    problem = gflow.Problem(LINEAR, separable(), loss=losses.logistic())
    presses = []

    def pressing(status):
        presses.append(status)
        if len(presses) == press:
            raise KeyboardInterrupt

    limit = gflow.find_limit(problem, LINEAR.init(0), progress=pressing)
    assert limit.result_name == "interrupted" and not limit.successful
    assert len(presses) == press
    assert {stage.kind for stage in limit.stages} == {"flow"}


def test_a_spent_budget_is_no_success():
    problem = gflow.Problem(LINEAR, separable(), loss=losses.logistic())
    whole = gflow.find_limit(problem, LINEAR.init(0))
    assert whole.successful
    for steps in range(1, whole.num_flow_steps, 9):
        part = gflow.find_limit(problem, LINEAR.init(0), max_steps=steps, throw=False)
        # A run of the flow has so many; what needs no more in each of its runs is done.
        longest = max(stage.num_steps for stage in whole.stages if stage.kind == "flow")
        assert part.successful == (steps >= longest)
        if not part.successful:
            assert part.result_name == "step_budget_spent"
            assert "`max_steps`" in part.message and "`until`" not in part.message


def test_a_tolerance_that_rounding_does_not_reach_is_no_success():
    problem = gflow.Problem(LINEAR, separable(), loss=losses.logistic())
    for tolerance in (1e-6, 1e-12, 1e-15):
        limit = gflow.find_limit(problem, LINEAR.init(0), tolerance=tolerance, throw=False)
        assert limit.successful == (limit.certificate.stationarity <= tolerance) or (
            limit.result_name in ("not_polished", "not_certified")
        )


def test_the_gate_lets_nothing_else_pass():
    problem = gflow.Problem(LINEAR, separable(), loss=losses.logistic())
    certificate = gflow.find_limit(problem, LINEAR.init(0)).certificate
    good = {"residual": 1e-15, "tolerance": 1e-8, "verdict": "strict maximum"}

    def outcome(result=RESULTS.successful, changed=None, **other):
        judged = certificate if changed is None else dataclasses.replace(certificate, **changed)
        return name_of(earned(result, judged, **(good | other)))

    assert outcome() == "successful"
    assert outcome(RESULTS.decided_by_rounding) == "decided_by_rounding"
    assert outcome(RESULTS.saddle) == "saddle"
    for wrong in (math.nan, 0.0, -1e-3):
        assert outcome(changed={"normalized_margin": wrong}) == "not_certified"
    for wrong in (math.nan, 1e-7, math.inf):
        assert outcome(changed={"stationarity": wrong}) == "not_certified"
        assert outcome(residual=wrong) == "not_certified"
    for verdict in ("saddle", "degenerate", "unknown"):
        assert outcome(verdict=verdict) == "not_certified"
    broken = np.full_like(certificate.multipliers, np.nan)
    assert outcome(changed={"multipliers": broken}) == "not_certified"
