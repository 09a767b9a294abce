"""The temperature led to 0: it ends where Newton's method on the right active margins does."""

import dataclasses
import itertools
from unittest import mock

import jax
import numpy as np
import pytest

import gflow
from gflow import losses, networks, perturbations
from gflow._layout import Layout
from gflow.kkt import system as kkt
from gflow.kkt.settings import Sizes
from gflow.limit import cooling_system
from gflow.limit import polish as polishing
from gflow.limit.cooling import cool
from gflow.limit.cooling_newton import CoolingNewton
from gflow.limit.polish import polish, polish_capped
from gflow.limit.settings import REFINE

LOG_CAP = np.log(3000.0)


def settings_of(formed):
    """Matrices formed up to so many parameters; beyond, GMRES."""
    return dataclasses.replace(REFINE, sizes=Sizes(formed=formed))


@pytest.fixture(scope="module")
def arrived():
    """A capped flow under FGM that nearly rests, and its problem."""
    generator = np.random.default_rng(3)
    x = generator.normal(size=(12, 4))
    y = np.where(generator.random(12) < 0.5, -1, 1)
    network = networks.mlp((4, 10, 1), power=2)
    trained = gflow.Problem(
        network,
        gflow.Dataset(x, y),
        loss=losses.exponential(),
        perturbation=perturbations.fgm(0.1),
    )
    flow = gflow.integrate(
        trained,
        network.init(3),
        until=gflow.Until(stationarity=1e-3),
        solver=gflow.Rosenbrock(),
        tolerance=1e-2,
        kappa_cap=3000.0,
    )
    return trained, flow


@pytest.fixture(scope="module")
def cooled(arrived):
    trained, flow = arrived
    weights = np.asarray(trained.ascent(flow.direction, LOG_CAP).weights)
    return cool(trained, flow.layout, flow.vectors[-1], weights, LOG_CAP)


def test_it_ends_at_a_kkt_point(arrived, cooled):
    trained, flow = arrived
    assert cooled.temperature <= 1e-8 and cooled.converged
    margins = np.asarray(trained.margins(flow.layout.unflatten(cooled.theta)))
    active = cooled.multipliers > 1e-6 * cooled.multipliers.max()
    # Margins are off by log(lambda) / s.
    np.testing.assert_allclose(margins[active], 1.0, atol=1e-6)
    assert margins.min() > 1 - 1e-6 and 0 < active.sum() < 12
    gradients = np.asarray(
        np.concatenate(
            [
                np.asarray(leaf).reshape(12, -1)
                for leaf in trained.margin_gradients(
                    flow.layout.unflatten(cooled.theta), np.arange(12)
                )
            ],
            axis=1,
        )
    )
    residual = cooled.theta - cooled.multipliers @ gradients
    assert np.linalg.norm(residual) < 1e-8 * np.linalg.norm(cooled.theta)


def test_newton_with_the_right_margins_ends_there_too(arrived, cooled):
    trained, flow = arrived
    layout = Layout.of(flow.direction)
    point = cooled.theta / np.linalg.norm(cooled.theta)
    exact = polish(trained, layout, point, cooled.multipliers, support=1e-6)
    assert exact.converged
    # Rounding of sums over 12 examples and 50 weights, after one step more than 1e-12 needs.
    assert exact.residual < 3e-14
    assert np.linalg.norm(exact.direction - point) < 1e-6


def test_an_isolated_point_is_polished_once(arrived, monkeypatch):
    trained, flow = arrived
    weights = np.asarray(trained.ascent(flow.direction, LOG_CAP).weights)
    given = trained, flow.layout, flow.vectors[-1], weights, LOG_CAP
    found = polish_capped(*given)
    monkeypatch.setattr(polishing, "reciprocal_condition", lambda matrix: 0.0)
    twice = polish_capped(*given)
    assert found.converged and twice.converged
    assert found.num_iterations < twice.num_iterations
    # Both to the rounding of sums over 12 examples, by a matrix with a condition of some hundreds.
    np.testing.assert_allclose(found.direction, twice.direction, atol=1e-11)


def test_within_a_family_the_nearest_point_is_sought():
    """Of a deep linear network whose limit one example decides: the layers can be turned against
    one another.
    """
    network = networks.deep_linear((2, 2, 1))
    data = gflow.Dataset(np.array([[3.0, 4.0], [-6.0, -8.0]]), [1, -1])
    problem = gflow.Problem(network, data, loss=losses.exponential())
    layout = Layout.of(network.init(0))
    turned, across = np.array([0.6, 0.8]), np.array([1.0, 1.0]) / np.sqrt(2)
    direction = np.concatenate([np.outer(across, turned).ravel(), across]) / np.sqrt(2)
    asked = []
    search = polishing.polish

    def counted(*given, **options):
        asked.append(options["most_iterations"])
        return search(*given, **options)

    with mock.patch.object(polishing, "polish", counted):
        found = polish_capped(problem, layout, direction, np.array([1.0, 1e-9]), 7.0)
    assert found.converged and len(asked) == 2
    np.testing.assert_allclose(found.direction, direction, atol=1e-8)


def test_where_the_residual_does_not_halve_it_may_give_up(arrived):
    trained, flow = arrived
    early = np.flatnonzero((flow.stationarity < 0.2) & (flow.log_kappa > LOG_CAP))[0]
    weights = np.asarray(trained.ascent(flow.direction, LOG_CAP).weights)
    given = trained, flow.layout, flow.vectors[early], weights
    systems = [polish(*given, patient=patient).num_iterations for patient in (True, False)]
    assert systems[1] < systems[0]


def test_one_matrix_serves_steps_of_all_lengths(arrived, cooled, monkeypatch):
    trained, flow = arrived
    formed = []

    def counted(*given, **options):
        formed.append(given)
        return kkt.kkt_system(*given, **options)

    monkeypatch.setattr(cooling_system, "kkt_system", counted)
    newton = CoolingNewton(trained, flow.layout, cooled.multipliers.max(), REFINE)
    system = newton.at(1.01 * cooled.theta, cooled.multipliers, 1e-2)
    first, second = system.solve(1e9), system.solve(1.0)
    colder = newton.at(system.theta, system.multipliers, 1e-3, known=system.known)
    third = colder.solve(1.0)
    assert len(formed) == 1
    fresh = newton.at(system.theta, system.multipliers, 1e-3).solve(1.0)
    assert len(formed) == 2
    np.testing.assert_array_equal(third, fresh)
    assert np.linalg.norm(second[: len(system.theta)]) < np.linalg.norm(first[: len(system.theta)])


def test_steps_to_and_fro_end_soon(arrived):
    trained, flow = arrived
    errors = itertools.cycle([7e-3, 1e-3])

    class OfError(cooling_system.CoolingSystem):
        def __init__(self, error):
            self.error, self.temperature = error, 1e-5

    class ToAndFro(CoolingNewton):
        def stepped(self, system, time):
            self.num_iterations += 1
            return OfError(next(errors))

    newton = ToAndFro(trained, flow.layout, 1.0, REFINE)
    found, _ = newton.rest(OfError(1e-3))
    assert found is None
    # A step and a correction each.
    assert newton.num_iterations == 2 * (REFINE.cooling.most_in_vain + 1)


def test_iterations_are_as_good_as_factors(arrived, cooled):
    trained, flow = arrived
    weights = np.asarray(trained.ascent(flow.direction, LOG_CAP).weights)
    iterated = cool(
        trained, flow.layout, flow.vectors[-1], weights, LOG_CAP, settings=settings_of(0)
    )
    np.testing.assert_allclose(iterated.theta, cooled.theta, atol=1e-6)
    np.testing.assert_allclose(iterated.multipliers, cooled.multipliers, atol=1e-6)


def test_units_of_the_inputs_do_not_matter():
    """Multipliers at unit margin have the units of 1 / x^2: those of other examples underflow."""
    generator = np.random.default_rng(4)
    x = generator.normal(size=(9, 3))
    data, network = gflow.Dataset(x, np.sign(x @ np.ones(3))), networks.linear(3)
    reference = gflow.max_margin(data)
    vector, weights = reference.direction, reference.multipliers / reference.multipliers.sum()
    directions = []
    for scale in (1e-12, 1.0, 1e12):
        scaled = gflow.Dataset(scale * data.x, data.y)
        trained = gflow.Problem(network, scaled, loss=losses.exponential())
        log_kappa = LOG_CAP - np.log(scale * reference.margin)
        found = cool(trained, Layout.of((vector[None],)), vector, weights, log_kappa)
        assert found.temperature <= 1e-8
        directions.append(found.direction)
    np.testing.assert_allclose(directions, np.tile(vector, (3, 1)), atol=1e-7)


@pytest.mark.parametrize("formed", [0, 1000])
def test_it_comes_to_rest_from_afar(arrived, formed):
    trained, flow = arrived
    # Where the flow was on its way, and Newton's method alone would leave it.
    early = np.flatnonzero((flow.stationarity < 0.2) & (flow.log_kappa > LOG_CAP))[0]
    vector = flow.vectors[early]
    weights = np.asarray(trained.ascent(flow.layout.unflatten(vector), LOG_CAP).weights)
    found = cool(trained, flow.layout, vector, weights, LOG_CAP, settings=settings_of(formed))
    assert found.temperature <= 1e-8
    at = kkt.kkt_system(trained, flow.layout, found.theta, found.multipliers)
    assert np.linalg.norm(at.stationarity) < 1e-8 * np.linalg.norm(found.theta)
    assert at.margins.min() > 1 - 1e-7 and found.multipliers.min() >= 0


@pytest.mark.parametrize("formed", [0, 1000])
def test_what_underflows_beside_a_dead_neuron_does_no_harm(formed):
    generator = np.random.default_rng(2)
    network = networks.mlp((4, 3, 1), smoothing=0.05)
    dataset = gflow.Dataset(generator.normal(size=(7, 4)), np.resize([-1, 1], 7))
    attack = perturbations.fgm(0.1)
    trained = gflow.Problem(network, dataset, loss=losses.exponential(), perturbation=attack)
    first, second = jax.tree.leaves(network.init(0))
    dying = np.array([1e-156, 1.0, 1.0])
    params = jax.tree.unflatten(
        jax.tree.structure(network.init(0)), [first * dying[:, None], second * dying]
    )
    layout = Layout.of(params)
    theta = np.asarray(layout.flatten(params))
    for rows in kkt.slopes_and_gradients(trained, layout, theta):
        assert np.isfinite(rows).all()
    multipliers = generator.random(7)
    newton = CoolingNewton(trained, layout, multipliers.max(), settings_of(formed))
    step = newton.at(theta, multipliers, 1e-2).solve(1.0)
    assert step is not None and np.isfinite(step).all()


def test_examples_that_do_not_push_are_left_out():
    generator = np.random.default_rng(1)
    network = networks.mlp((4, 3, 3), smoothing=0.1)
    dataset = gflow.Dataset(generator.normal(size=(11, 4)), np.arange(11) % 3)
    attack = perturbations.pgd(0.1, step_size=0.05, num_steps=2, random_start=3)
    trained = gflow.Problem(network, dataset, loss=losses.logistic(), perturbation=attack)
    params = network.init(0)
    layout = Layout.of(params)
    theta = np.asarray(layout.flatten(params))
    multipliers = np.where(np.repeat(np.arange(11), 2) % 4 == 1, generator.random(22), 0.0)
    whole = kkt.kkt_system(trained, layout, theta, multipliers)
    fewer = kkt.kkt_system(trained, layout, theta, multipliers, sizes=Sizes(formed=0))
    for part, of_whole in zip(fewer[:5], whole[:5], strict=True):
        np.testing.assert_allclose(part, of_whole, atol=1e-13)


def test_at_a_margin_of_nothing_there_is_no_system():
    """Rounding may lift a margin of 0 above it in one program and not in the next."""
    data = gflow.Dataset(np.array([[0.6, 0.8], [-0.6, -0.8]]), [1, -1])
    problem = gflow.Problem(
        gflow.networks.linear(2),
        data,
        loss=gflow.losses.exponential(),
        perturbation=gflow.perturbations.fgm(1.0),
    )
    layout = Layout.of((np.zeros((1, 2)),))
    for direction in ([0.6, 0.8], [0.8, 0.6], [-0.6, -0.8]):
        found = polish_capped(problem, layout, np.array(direction), np.full(2, 0.5), 7.0)
        assert not found.converged or found.residual < 1e-12
        if max(problem.margins(layout.unflatten(np.array(direction)))) <= 0:
            assert not found.converged and found.residual == np.inf
