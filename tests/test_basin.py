"""The cap in logits, whose limit it is, and what is visited on the way."""

import math

import numpy as np
import pytest

import gflow
from gflow import losses, networks, perturbations
from gflow._layout import Layout
from gflow.limit.basin import Handover, close, same_point
from gflow.limit.itinerary import departure, growth_per_log_kappa

# Two shapes of problem, each compiled once for all tests of this module.
SHALLOW = networks.mlp((3, 8, 1), power=2)
DEEP = networks.deep_linear((3, 2, 1))
GENERATOR = np.random.default_rng(5)
X = GENERATOR.normal(size=(8, 3))
Y = np.where(X @ np.array([1.0, -0.5, 0.3]) > 0, 1, -1)


def trained(network, scale=1.0, radius=0.05):
    return gflow.Problem(
        network,
        gflow.Dataset(scale * X, Y),
        loss=losses.logistic(),
        perturbation=perturbations.fgm(scale * radius),
    )


def in_units(network, scale, start):
    """The start from which scaled data give the same path: margins scale like scale^r."""
    power = -2.0 if network is SHALLOW else -1.0
    return tuple(scale ** (power / network.degree) * np.asarray(leaf) for leaf in start)


@pytest.mark.parametrize(
    "network",
    [SHALLOW, pytest.param(DEEP, marks=pytest.mark.slow)],
    ids=["ReLU^2", "deep linear"],
)
def test_units_do_not_matter(network):
    """Data, radius and start in other units: the same limit, and about as many steps."""
    start = network.init(2)
    first = gflow.find_limit(trained(network), start)
    unit = np.asarray(Layout.of(start).flatten(first.direction))
    for scale in (1e-9, 1e-3, 1e4, 1e9):
        other = gflow.find_limit(trained(network, scale), in_units(network, scale, start))
        there = np.asarray(Layout.of(start).flatten(other.direction))
        power = 2.0 if network is SHALLOW else 1.0
        assert other.margin / scale**power == pytest.approx(first.margin, rel=1e-9)
        # Deep linear networks have families, of which the flow's tolerance picks the member.
        assert np.linalg.norm(there - unit) < (1e-9 if network is SHALLOW else 1e-3)
        assert (other.verdict, other.basin) == (first.verdict, first.basin)
        assert other.num_flow_steps == pytest.approx(first.num_flow_steps, rel=0.3, abs=10)


@pytest.mark.parametrize("logits", [1e2, 1e3, 1e4])
def test_the_cap_is_where_the_smallest_margin_has_so_many_logits(logits):
    limit = gflow.find_limit(trained(DEEP), DEEP.init(2), cap_logits=logits)
    assert limit.cap_logits == pytest.approx(logits, rel=0.02)
    margin = float(limit.trajectory.margin[-1])
    assert math.exp(limit.log_kappa_cap) * margin == pytest.approx(limit.cap_logits, rel=1e-9)


def test_the_cap_is_never_below_the_start():
    problem = trained(DEEP)
    flow = gflow.integrate(problem, DEEP.init(2), until=gflow.Until(log_loss=-5000.0))
    limit = gflow.find_limit(problem, flow)
    assert limit.log_kappa_cap >= flow.log_kappa[-1] - 1e-9
    assert limit.cap_logits > 4900
    reference = gflow.max_margin(problem.dataset, radius=0.05, order=2)
    expected = gflow.measures.balanced_margin(reference.margin, 2)
    assert limit.margin == pytest.approx(expected, rel=1e-8)


def test_until_logits_holds_at_the_end():
    problem = trained(SHALLOW)
    flow = gflow.integrate(problem, SHALLOW.init(2), until=gflow.Until(logits=50.0))
    assert flow.stats["stopped_by"] == "logits"
    assert np.min(problem.margins(flow.params)) == pytest.approx(50.0, rel=1e-9)
    for wrong in (0.0, -1.0):
        with pytest.raises(ValueError, match="logits"):
            gflow.Until(logits=wrong)


def test_the_limit_of_a_limit_is_that_limit():
    problem = trained(DEEP)
    limit = gflow.find_limit(problem, DEEP.init(2))
    assert gflow.find_limit(problem, limit) is limit
    # From a rebuilt problem, which compares equal, as well.
    assert gflow.find_limit(trained(DEEP), limit) is limit
    far = limit.params(log_kappa=40.0)
    again = gflow.find_limit(problem, far)
    assert again.margin == pytest.approx(limit.margin, rel=1e-12)
    assert np.linalg.norm(flat(again) - flat(limit)) < 1e-9


def flat(limit):
    return np.asarray(Layout.of(limit.direction).flatten(limit.direction))


@pytest.mark.slow
def test_every_example_twice_leads_to_the_same_limit():
    once = trained(DEEP)
    data = gflow.Dataset(np.repeat(X, 2, axis=0), np.repeat(Y, 2))
    attack = perturbations.fgm(0.05)
    twice = gflow.Problem(DEEP, data, loss=losses.logistic(), perturbation=attack)
    first, second = (gflow.find_limit(problem, DEEP.init(2)) for problem in (once, twice))
    assert second.margin == pytest.approx(first.margin, rel=1e-9)
    products = [np.ravel(DEEP.predictor(limit.direction)) for limit in (first, second)]
    units = [product / np.linalg.norm(product) for product in products]
    np.testing.assert_allclose(units[1], units[0], atol=1e-9)


def test_a_search_that_ran_out_of_steps_or_seconds_goes_on():
    problem = trained(DEEP)
    whole = gflow.find_limit(problem, DEEP.init(2))
    part = gflow.find_limit(problem, DEEP.init(2), max_steps=20, throw=False)
    assert part.result_name == "step_budget_spent" and part.verdict == "unknown"
    rest = gflow.find_limit(problem, part)
    assert rest.margin == pytest.approx(whole.margin, rel=1e-12)
    # The record is that of the whole flow, whose steps are the same.
    assert rest.trajectory.log1p_time[0] == 0
    assert rest.num_flow_steps == whole.num_flow_steps
    np.testing.assert_array_equal(rest.trajectory.vectors[-1], whole.trajectory.vectors[-1])
    late = gflow.find_limit(problem, DEEP.init(2), max_seconds=1e-6, throw=False)
    assert late.result_name == "seconds_spent" and not late.successful


def test_a_search_goes_on_from_a_trajectory_with_its_record():
    problem = trained(DEEP)
    flow = gflow.integrate(problem, DEEP.init(2), until=gflow.Until(log_loss=-5.0))
    limit = gflow.find_limit(problem, flow)
    assert limit.trajectory.log1p_time[0] == 0 and len(limit.trajectory) > len(flow)
    assert limit.trajectory.log1p_time[-1] > flow.log1p_time[-1]


def test_params_lie_along_the_direction_at_the_norm_asked_for():
    limit = gflow.find_limit(trained(DEEP), DEEP.init(2))
    params = limit.params(log_kappa=7.0)
    vector = np.asarray(Layout.of(params).flatten(params))
    assert 2 * math.log(np.linalg.norm(vector)) == pytest.approx(7.0)
    np.testing.assert_allclose(vector / np.linalg.norm(vector), flat(limit), atol=1e-14)
    for wrong in (1e4, -1e5, math.nan):
        with pytest.raises(ValueError, match="log_kappa"):
            limit.params(log_kappa=wrong)


def test_reproducing_searches_three_times():
    limit = gflow.find_limit(trained(DEEP), DEEP.init(2), reproduce=True)
    assert limit.basin == "reproduced"
    assert limit.differing == ()


def test_a_limit_tells_its_basin_and_how_it_was_handed_over():
    limit = gflow.find_limit(trained(DEEP), DEEP.init(2))
    assert limit.basin == "confirmed"
    assert limit.handover_stationarity <= 1.1e-3
    assert limit.newton_displacement < 0.015
    assert limit.saddles_met == 0
    (visit,) = limit.itinerary
    assert visit.certain and math.isinf(visit.departure)
    assert visit.margin == pytest.approx(limit.margin)
    assert "basin confirmed" in repr(limit) and "logits at the cap" in repr(limit)
    for words in ("basin                confirmed", "saddles met 0", "capped at"):
        assert words in str(limit)
    assert limit.to_dict()["basin"] == "confirmed"
    assert limit.to_dict()["itinerary"][0]["departure"] is None


@pytest.mark.slow
def test_a_saddle_on_the_way_is_told_and_leaves_the_basin_undecided():
    """Copies of a neuron stay copies: where they end, as copies, is a saddle."""
    network = networks.mlp((4, 20, 1), smoothing=0.05)
    generator = np.random.default_rng(7)
    x = generator.normal(size=(8, 4))
    y = np.where(generator.random(8) < 0.5, -1, 1)
    problem = gflow.Problem(network, gflow.Dataset(x, y), loss=losses.exponential())
    inner, outer = networks.mlp((4, 5, 1), smoothing=0.05).init(7)
    start = (np.repeat(inner, 4, axis=0), np.repeat(outer, 4, axis=1))
    limit = gflow.find_limit(problem, start)
    assert limit.basin == "undecided" and limit.saddles_met >= 1
    first, *_, last = limit.itinerary
    assert first.verdict == "saddle" and first.arrival < first.departure < math.inf
    assert first.growth > 0 and last.departure == math.inf and not last.certain
    # The offset from the saddle grew by several factors e before it was left.
    assert first.departure - first.arrival > 5 / first.growth
    assert "held by saddles at margin" in repr(limit)
    assert "held by a saddle     at margin" in str(limit)


def test_a_departure_follows_from_the_linear_flow():
    """An offset d grows like `exp(a s / L)` in s = log kappa; the first to reach D decides."""
    rates, offset, degree = np.array([0.5, 0.2]), np.array([1e-6, -1e-3]), 2.0
    found = departure(10.0, offset, rates, 0.05, degree)
    times = [degree * math.log(0.05 / abs(d)) / a for d, a in zip(offset, rates, strict=True)]
    assert found == pytest.approx(10.0 + min(times))
    sizes = abs(offset) * np.exp(growth_per_log_kappa(1.0, degree) * rates * (found - 10.0))
    assert sizes.max() == pytest.approx(0.05)
    assert departure(3.0, np.array([1.0]), np.array([0.5]), 0.05, 2.0) == 3.0


def test_the_basin_test_judges_by_arrival_and_displacement():
    assert close(Handover(True, 1e-3, 1e-3))
    assert not close(Handover(False, 1e-3, 1e-3))
    assert not close(Handover(True, 1e-3, 0.1))
    assert not close(Handover(True, 1e-3, math.nan))
    here, there = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert same_point((0.1, 0.1), (here, here))
    assert not same_point((0.1, 0.1), (here, there))
    assert not same_point((0.1, 0.11), (here, here))
    assert not same_point((0.1, 0.0), (here, here))
