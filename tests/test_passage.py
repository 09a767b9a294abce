"""Flows of degree 1 through 0, against closed forms and SciPy's integrators of the parameters."""

import jax
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from scipy.special import expit

import gflow
from gflow import losses, networks, perturbations

LINE = networks.linear(1)
PLANE = networks.linear(2)
TIMES = (0.05, 0.3, 1.0, 3.0)


def line(x, loss, radius=0.0):
    """One example and its mirror image: f = w x, both margins w x - radius |w|."""
    data = gflow.Dataset([[x], [-x]], [1, -1])
    return gflow.Problem(LINE, data, loss=loss, perturbation=perturbations.fgm(radius))


def run(problem, start, until, **options):
    return gflow.integrate(problem, (np.atleast_2d(start),), until=until, **options)


@pytest.mark.parametrize("x", [1e-4, 1.0, 10.0])
def test_the_line_by_its_closed_form(x):
    # exp(w x) grows by 2 x^2 a unit of time, across 0 as elsewhere; w(0) = -2 / x.
    problem = line(x, losses.exponential())
    rate = 2 * x**2
    crossing = -np.expm1(-2.0) / rate
    flow = run(problem, -2.0 / x, gflow.Until(log_loss=-3.0))
    spans = flow.stats["through_zero"]
    assert len(spans) == 1
    assert 0 < spans[0][0] < spans[0][1] <= flow.stats["num_accepted_steps"]
    times = crossing * np.array([0.1, 0.9, 0.999, 1 - 1e-7, 1 + 1e-7, 1.001, 1.1, 5.0])
    read = x * np.ravel(flow.at(time=times)[0])
    # The tolerance of a time is one of 1 + t.
    resolution = 1e-7 + 1e-8 * rate
    np.testing.assert_allclose(read, np.log(np.exp(-2.0) + rate * times), atol=resolution)
    assert float(flow.params[0][0, 0]) * x == pytest.approx(3.0 + np.log(2.0), rel=1e-7)
    # Read at a loss that it has close to 0, and from a target there.
    near = np.log(2.0) + 1e-6
    assert x * float(flow.at(log_loss=near)[0][0, 0]) == pytest.approx(-1e-6, abs=1e-12)
    there = run(problem, -2.0 / x, gflow.Until(log_loss=np.log(2.0) - 1e-9))
    assert x * float(there.params[0][0, 0]) == pytest.approx(1e-9, abs=1e-12)


def reference(problem, start, times, radius, order):
    """The parameters by SciPy, with the loss and the attack written out; FGM is stopped at 0."""
    z = problem.dataset.y[:, None] * problem.dataset.x

    def slope(_, w):
        size = np.linalg.norm(w)
        push = z - radius * (w / size if order == 2 else np.sign(w))
        return expit(-(z @ w - radius * np.linalg.norm(w, 1 if order == np.inf else 2))) @ push

    options = {"rtol": 1e-11, "atol": 1e-13, "method": "DOP853"}
    return solve_ivp(slope, (0.0, times[-1]), start, t_eval=times, **options).y.T


DATA = gflow.datasets.gaussian(12, 2, gap=1.0, seed=3)
MEAN = np.mean(DATA.y[:, None] * DATA.x, axis=0)


@pytest.mark.parametrize("scale", [-0.4, -1.0])
@pytest.mark.parametrize("turn", [0.0, 1e-13, 1e-6, 1e-3, 0.3])
def test_the_plane_by_scipy_straight_through_0_and_past_it(scale, turn):
    # Mirrored at the line through the mean: from there the flow runs along it, through 0.
    normal = np.array([-MEAN[1], MEAN[0]]) / np.linalg.norm(MEAN)
    x = np.concatenate([DATA.x, DATA.x - 2 * np.outer(DATA.x @ normal, normal)])
    data = gflow.Dataset(x, np.concatenate([DATA.y, DATA.y]))
    problem = gflow.Problem(PLANE, data, loss=losses.logistic())
    start = scale * (MEAN + turn * np.linalg.norm(MEAN) * normal)
    flow = run(problem, start, gflow.Until(time=TIMES[-1]))
    expected = reference(problem, start, TIMES, 0.0, 2)
    np.testing.assert_allclose(flow.at(time=TIMES)[0][:, 0], expected, atol=1e-7)


@pytest.mark.parametrize("radius", [0.05, 0.3])
@pytest.mark.parametrize("solver", [None, gflow.Rosenbrock()], ids=["Tsit5", "Rosenbrock"])
def test_an_attack_that_turns_at_0(radius, solver):
    # On the line l_2 and l_inf are one: w' = sum_i expit(-q_i) (z_i - radius sign(w)).
    data = gflow.Dataset([[1.0], [2.0], [0.5], [-0.7]], [1, 1, 1, -1])
    problem = gflow.Problem(
        LINE, data, loss=losses.logistic(), perturbation=perturbations.fgm(radius)
    )
    z = np.array([1.0, 2.0, 0.5, 0.7])

    def rate(w, side):
        return expit(-(z * w - radius * abs(w))) @ (z - radius * side)

    def until_zero(t):
        end = solve_ivp(lambda _, w: [rate(w[0], -1)], (0, t), [-0.8], rtol=1e-12, atol=1e-14)
        return end.y[0, -1]

    crossing = brentq(until_zero, 1e-3, 3.0, xtol=1e-14)
    after = solve_ivp(
        lambda _, w: [rate(w[0], 1)], (0, 2.0), [0.0], rtol=1e-12, atol=1e-14, method="DOP853"
    )
    flow = run(problem, -0.8, gflow.Until(time=crossing + 2.0), solver=solver)
    assert flow.stats["through_zero"]
    assert float(flow.params[0][0, 0]) == pytest.approx(after.y[0, -1], abs=1e-6)
    np.testing.assert_allclose(flow.at(time=crossing)[0], 0.0, atol=1e-7)


def test_a_flow_drawn_into_0_does_not_pass_it():
    problem = line(1.0, losses.logistic(), radius=1.5)
    flow = run(problem, -0.7, gflow.Until(time=100.0), throw=False)
    assert flow.result_name == "radius_above_margin"
    assert flow.log_norm[-1] < -300


def test_other_degrees_and_flows_away_from_0_keep_their_solver():
    net = networks.deep_linear((2, 2, 1))
    problem = gflow.Problem(net, DATA, loss=losses.logistic())
    start = jax.tree.map(lambda leaf: 0.1 * leaf, net.init(0))
    flow = gflow.integrate(problem, start, until=gflow.Until(time=5.0))
    assert flow.stats["through_zero"] == []
    flow = run(gflow.Problem(PLANE, DATA, loss=losses.logistic()), MEAN, gflow.Until(time=1.0))
    assert flow.stats["through_zero"] == []


def test_the_limit_lies_on_the_other_side():
    problem = gflow.Problem(PLANE, DATA, loss=losses.exponential())
    expected = np.ravel(gflow.max_margin(DATA).direction)
    for scale in (1e-6, 1.0, 1e3):
        limit = gflow.find_limit(problem, (-scale * MEAN[None],))
        np.testing.assert_allclose(np.ravel(limit.direction[0]), expected, atol=1e-8)
