"""The slow flow at infinite kappa: to the rest point that Newton's method or SciPy reaches."""

import dataclasses
import math

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import gflow
from gflow import losses, networks, perturbations
from gflow._layout import Layout
from gflow.limit import drift as module
from gflow.limit.drift import drift
from gflow.limit.polish import polish, polish_drifted
from gflow.limit.settings import REFINE

CAP = math.log(1e3)


def problem_of(x, y, network, attack):
    return gflow.Problem(network, gflow.Dataset(x, y), loss=losses.logistic(), perturbation=attack)


def random_labels(seed, num_examples, dim):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(num_examples, dim))
    return x, np.where(generator.random(num_examples) < 0.5, -1, 1)


def handover(problem, start, stationarity=1e-3):
    """Direction and weights where the capped flow is close to rest."""
    options = {"kappa_cap": math.exp(CAP), "solver": gflow.Rosenbrock(), "tolerance": 1e-5}
    until = gflow.Until(log_kappa=CAP)
    run = gflow.integrate(problem, start, until=until, **options)
    until = gflow.Until(stationarity=stationarity, log_kappa=1e5)
    run = gflow.integrate(problem, run.params, until=until, throw=False, **options)
    unit = np.asarray(run.vectors[-1])
    params = Layout.of(start).unflatten(unit)
    return unit, np.asarray(problem.ascent(params, CAP).weights).ravel()


def at_fixed_kappa(problem, start, unit, log_kappa, span, tolerance):
    """SciPy's Radau for `du/d log |params|` with the weights of a fixed kappa. Shapes: (P,)."""
    unflatten = jax.flatten_util.ravel_pytree(start)[1]

    @jax.jit
    def field(vector):
        here = vector / jnp.linalg.norm(vector)
        ascent = problem.ascent(unflatten(here), log_kappa)
        pull = jax.flatten_util.ravel_pytree(ascent.vector)[0]
        growth = problem.degree * jnp.sum(ascent.weights * ascent.margins)
        return (pull - here * (here @ pull)) / growth

    jacobian = jax.jit(jax.jacfwd(field))
    run = solve_ivp(
        lambda _, u: np.asarray(field(u)),
        (0, span),
        unit,
        method="Radau",
        jac=lambda _, u: np.asarray(jacobian(u)),
        rtol=tolerance,
        atol=1e-3 * tolerance,
    )
    return run.y[:, -1] / np.linalg.norm(run.y[:, -1])


@pytest.mark.parametrize(
    "attack", [pytest.param(perturbations.clean(), marks=pytest.mark.slow), perturbations.fgm(0.1)]
)
def test_a_linear_network_drifts_to_the_maximum_margin(attack):
    """From anywhere with positive margins: any weights, any direction."""
    data = gflow.datasets.gaussian(12, 4, gap=0.7, seed=0)
    network = networks.linear(4)
    problem = problem_of(data.x, data.y, network, attack)
    radius = 0.1 if hasattr(attack, "radius") else 0.0
    best = gflow.max_margin(data, radius=radius, order=2)
    layout, generator = Layout.of(network.init(0)), np.random.default_rng(0)
    tried = 0
    for _ in range(20):
        unit = best.direction + 0.2 * generator.normal(size=4)
        unit /= np.linalg.norm(unit)
        if np.min(problem.margins(layout.unflatten(unit))) <= 0:
            continue
        tried += 1
        found = drift(problem, layout, unit, generator.random(12))
        assert found.rests and not found.stuck
        assert np.linalg.norm(found.direction - best.direction) < 1e-7
        polished = polish_drifted(problem, layout, found)
        assert polished.converged
        assert np.linalg.norm(polished.direction - best.direction) < 1e-10
        # The clock is log |params|: a linear flow settles in some tens of them, not in thousands.
        assert found.log_growth > 1
    assert tried >= 5


@pytest.mark.slow
def test_it_ends_where_newtons_method_does():
    network, attack = networks.mlp((4, 10, 1), power=2), perturbations.fgm(0.1)
    agreed = 0
    for seed in range(4):
        problem = problem_of(*random_labels(seed, 12, 4), network, attack)
        start = network.init(seed)
        unit, weights = handover(problem, start)
        layout = Layout.of(start)
        named = polish(problem, layout, unit, weights)
        if np.min(problem.margins(layout.unflatten(unit))) <= 0 or not named.converged:
            continue
        agreed += 1
        found = drift(problem, layout, unit, weights)
        assert found.rests and found.speed < 1e-9
        assert np.linalg.norm(found.direction - named.direction) < 1e-6
        active = found.multipliers > 1e-6 * found.multipliers.max()
        np.testing.assert_array_equal(active, named.active)
    assert agreed >= 2


def test_a_spent_budget_and_a_failing_step_are_told_apart(monkeypatch):
    data = gflow.datasets.gaussian(12, 4, gap=0.7, seed=0)
    network = networks.linear(4)
    problem = problem_of(data.x, data.y, network, perturbations.clean())
    start = network.init(0)
    unit, weights = handover(problem, start, 1e-1)
    layout = Layout.of(start)
    few = dataclasses.replace(REFINE.drift, most_steps=2)
    short = drift(problem, layout, unit, weights, settings=few)
    assert not short.rests and not short.stuck and short.num_steps <= 2
    monkeypatch.setattr(module._SmoothNewton, "solve", lambda *_, **__: None)
    stuck = drift(problem, layout, unit, weights)
    assert stuck.stuck and not stuck.rests and stuck.num_steps == 0


@pytest.fixture(scope="module")
def drifting():
    """An ordinary problem with no KKT point near where the flow comes to a speed of 1e-6."""
    network = networks.mlp((7, 8, 1), smoothing=0.05)
    problem = problem_of(*random_labels(5, 30, 7), network, perturbations.fgm(0.05))
    return problem, network.init(0)


@pytest.mark.slow
def test_a_drift_is_followed_to_its_rest(drifting):
    problem, start = drifting
    limit = gflow.find_limit(problem, start)
    assert limit.successful and limit.verdict == "stable rest point"
    stage = next(stage for stage in limit.stages if stage.kind == "drift")
    assert stage.stationarity < 1e-9
    # It takes as long as it does: from a saddle's ghost, 5e4 units of log |params|.
    assert 2e4 < stage.log_growth < 2e5 and stage.moved > 0.1
    assert limit.certificate.stationarity < 1e-12 < limit.certificate.total_stationarity


@pytest.mark.slow
def test_scipy_reproduces_the_drift(drifting):
    problem, start = drifting
    unit, weights = handover(problem, start)
    layout = Layout.of(start)
    found = drift(problem, layout, unit, weights)
    assert found.rests
    log_kappa = math.log(1e4) - math.log(np.linalg.norm(found.theta) ** -problem.degree)
    # The end at a fixed temperature is off by 1/(kappa gamma), whatever SciPy's tolerance.
    end = at_fixed_kappa(problem, start, unit, log_kappa, 3 * found.log_growth, 1e-4)
    assert np.linalg.norm(end - found.direction) < 1e-2
    assert np.linalg.norm(unit - found.direction) > 0.2


@pytest.mark.slow
def test_a_drift_that_does_not_end_is_an_outcome(drifting):
    """The budget of its steps spent on the way: no success, and the speed is that of the flow."""
    problem, start = drifting
    few = dataclasses.replace(REFINE.drift, most_steps=20)
    settings = gflow.LimitSettings(refine=dataclasses.replace(REFINE, drift=few))
    with pytest.raises(gflow.LimitFailed, match="drifts") as raised:
        gflow.find_limit(problem, start, settings=settings)
    limit = raised.value.limit
    assert limit.result_name == "drifting" and not limit.successful
    assert limit.verdict == "unknown" and "drift" in limit.message
    stage = limit.stages[-1]
    assert stage.kind == "drift" and 1e-9 < stage.stationarity < 1e-3
    unit = np.asarray(Layout.of(start).flatten(limit.direction))
    span = 0.01 / stage.stationarity
    log_kappa = math.log(1e4 / limit.margin)
    end = at_fixed_kappa(problem, start, unit, log_kappa, span, 1e-6)
    assert np.linalg.norm(end - unit) == pytest.approx(0.01, rel=0.3)
