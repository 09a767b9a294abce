"""The flow against closed forms, an independent integrator, and conservation laws."""

from itertools import pairwise

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import gflow
from gflow import losses, measures, networks, perturbations

DATA = gflow.datasets.gaussian(12, 3, gap=0.5, seed=1)
DEEP = networks.deep_linear((3, 4, 1))
SQUARE = networks.mlp((3, 5, 1), power=2)


def problem(network, perturbation, *, loss=None, gradient="frozen", dataset=DATA):
    loss = losses.exponential() if loss is None else loss
    return gflow.Problem(network, dataset, loss=loss, perturbation=perturbation, gradient=gradient)


@pytest.mark.parametrize("radius", [0.0, 0.3])
def test_scalar_flow_follows_its_closed_form(radius):
    # f = w x with x = +-1: both examples have margin c w, c = 1 - radius, and
    # dw/dt = 2 c exp(-c w), so w(t) = log(e^(c w0) + 2 c^2 t) / c.
    data = gflow.Dataset([[1.0], [-1.0]], [1, -1])
    scalar = problem(networks.linear(1), perturbations.fgm(radius), dataset=data)
    start, slope = 0.1, 1 - radius
    flow = gflow.integrate(
        scalar, (np.array([[start]]),), until=gflow.Until(time=1e12), tolerance=1e-11
    )
    times = np.array([1e-3, 1.0, 1e3, 1e6, 1e9, 1e12])
    exact = np.log(np.exp(slope * start) + 2 * slope**2 * times) / slope
    np.testing.assert_allclose(flow.at(time=times)[0].ravel(), exact, atol=1e-9, rtol=0)


def raw_flow(network, radius, params, times):
    """dparams/dt = -grad sum exp(-y f(x + delta)), delta fixed: by SciPy, from plain gradients."""
    x, y = jnp.asarray(DATA.x), jnp.asarray(DATA.y)
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def outputs(vector, inputs):
        return jax.vmap(network.apply, (None, 0))(unravel(vector), inputs)

    @jax.jit
    def velocity(vector):
        slopes = jax.vmap(jax.grad(lambda point: network.apply(unravel(vector), point)))(x)
        lengths = jnp.linalg.norm(slopes, axis=1, keepdims=True)
        attacked = x - radius * y[:, None] * slopes / lengths
        return -jax.grad(lambda free: jnp.sum(jnp.exp(-y * outputs(free, attacked))))(vector)

    solution = solve_ivp(
        lambda _, vector: np.asarray(velocity(vector)),
        (0, times[-1]),
        np.asarray(flat),
        method="DOP853",
        t_eval=times,
        rtol=1e-12,
        atol=1e-14,
    )
    return solution.y.T


@pytest.mark.parametrize("radius", [0.0, 0.1])
@pytest.mark.parametrize("network", [DEEP, SQUARE], ids=["deep_linear", "relu_squared"])
def test_raw_flow_by_an_independent_integrator(network, radius):
    params = network.init(3)
    times = np.array([0.5, 5.0, 30.0])
    expected = raw_flow(network, radius, params, times)
    trained = problem(network, perturbations.fgm(radius))
    flow = gflow.integrate(trained, params, until=gflow.Until(time=30.0), tolerance=1e-10)
    found = flow.at(time=times)
    for index, reference in enumerate(expected):
        vector = np.concatenate([leaf[index].ravel() for leaf in found])
        assert np.linalg.norm(vector - reference) < 1e-7 * np.linalg.norm(reference)


@pytest.fixture(scope="module")
def three_layers():
    """A run of a deep linear net under attack, from an unbalanced start."""
    network = networks.deep_linear((3, 4, 2, 1))
    start = network.init(0)
    trained = problem(network, perturbations.fgm(0.1))
    until = gflow.Until(log_loss=-8.0)
    return start, gflow.integrate(trained, start, until=until, tolerance=1e-11)


def saved_params(flow):
    return [flow.params_at_index(i) for i in range(len(flow))]


def test_balancedness_of_a_deep_linear_net_is_conserved(three_layers):
    start, flow = three_layers
    before = measures.balancedness(start)
    assert max(float(jnp.max(jnp.abs(gap))) for gap in before) > 0.1  # an unbalanced start
    for params in saved_params(flow)[:: len(flow) // 20]:
        for gap, reference in zip(measures.balancedness(params), before, strict=True):
            np.testing.assert_allclose(gap, reference, atol=1e-8, rtol=0)


def test_ji_telgarsky_bound_holds_at_every_saved_point(three_layers):
    start, flow = three_layers
    bound = float(measures.ji_telgarsky_bound(start))
    excess = flow.measure(lambda _, direction: measures.ji_telgarsky_excess(direction))
    excess = excess * np.exp(2 * flow.log_norm)[:, None]
    assert excess.shape == (len(flow), 3)
    assert np.all(excess <= bound * (1 + 1e-12))
    assert np.max(excess) > 0.01 * bound  # the bound is not idle


@pytest.mark.parametrize("attack", ["l2", "linf"])
@pytest.mark.parametrize("degree", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_deep_linear_limit_is_the_max_margin_direction(degree, attack):
    order = {"l2": 2, "linf": np.inf}[attack]
    data = gflow.datasets.gaussian(20, 2, gap=0.8, seed=4)
    perturbation = perturbations.fgm(0.1, order=order)
    network = networks.deep_linear((2,) * degree + (1,))
    trained = problem(network, perturbation, dataset=data)
    reference = gflow.max_margin(data, radius=0.1, order=order).direction
    start = network.init(1)
    flow = gflow.integrate(trained, start, until=gflow.Until(log_kappa=8.0), tolerance=1e-7)
    errors = []
    for log_kappa in (5.0, 6.5, 8.0):
        predictor = np.asarray(network.predictor(flow.at(log_kappa=log_kappa)))
        errors.append(np.linalg.norm(predictor / np.linalg.norm(predictor) - reference))
    scaled = errors * np.exp([5.0, 6.5, 8.0])
    # Falling like 1/kappa: the products stay within a factor 3 of each other over a factor 20.
    assert scaled.max() < 3 * scaled.min()
    assert errors[-1] < 50 / np.exp(8.0)


@pytest.mark.parametrize("loss", [losses.exponential(), losses.logistic()], ids=["exp", "logistic"])
def test_smoothed_margin_never_falls_once_separated(loss):
    trained = problem(SQUARE, perturbations.fgm(0.1), loss=loss, gradient="total")
    until = gflow.Until(log_loss=-6.0)
    flow = gflow.integrate(trained, SQUARE.init(3), until=until, tolerance=1e-10)
    separated = flow.log_loss < float(loss.log_value(jnp.zeros(())))
    steps = np.diff(flow.smoothed_margin[separated])
    assert len(steps) > 50
    # Each value carries the error of the run so far, at most its steps times their tolerance.
    assert np.min(steps) > -1e-8
    assert np.max(steps) > 1e-5


def test_smoothed_margin_bounds_the_normalized_margin(three_layers):
    _, flow = three_layers
    gap = flow.margin - flow.smoothed_margin
    assert np.all(gap >= -1e-12)
    assert np.all(gap <= np.log(len(DATA)) / np.exp(flow.log_kappa) + 1e-12)


@pytest.mark.parametrize(
    "network",
    [DEEP, pytest.param(SQUARE, marks=pytest.mark.slow)],
    ids=["deep_linear", "relu_squared"],
)
def test_two_clocks_give_one_path(network):
    # The raw field in its own time, by diffrax's controller, against the sphere and its clock tau:
    # at equal loss they are at the same point, and agree on when.
    trained = problem(network, perturbations.fgm(0.1))
    raw = start = jax.tree.map(jnp.asarray, network.init(3))
    flow = gflow.integrate(trained, start, until=gflow.Until(time=200.0), tolerance=1e-10)
    for earlier, time in pairwise([0.0, 0.1, 1.0, 10.0, 100.0]):
        raw = raw_by_diffrax(trained, raw, earlier, time)
        log_loss = float(trained.log_loss(raw))
        on_sphere = jax.tree.map(jnp.asarray, flow.at(log_loss=log_loss))
        assert float(measures.direction_distance(raw, on_sphere)) < 1e-7
        for left, right in zip(raw, on_sphere, strict=True):
            np.testing.assert_allclose(left, right, atol=1e-6, rtol=0)
        assert float(trained.log_loss(flow.at(time=time))) == pytest.approx(log_loss, abs=1e-7)
    assert log_loss < -3  # far enough for the clocks to differ: tau is some log t
    assert flow.clock[-1] < 20


def raw_by_diffrax(trained, params, start, end):
    """dparams/dt = -grad Loss from one physical time to another."""

    def velocity(time, point, _):
        return jax.tree.map(jnp.negative, trained.gradient(point))

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        diffrax.Dopri8(),
        t0=start,
        t1=end,
        dt0=1e-4,
        y0=params,
        stepsize_controller=diffrax.PIDController(rtol=1e-10, atol=1e-12),
        max_steps=20_000,
    )
    return jax.tree.map(lambda leaf: leaf[0], solution.ys)


def test_error_follows_the_tolerance():
    trained = problem(SQUARE, perturbations.fgm(0.1))
    start, until = SQUARE.init(3), gflow.Until(time=10.0)

    def end(tolerance):
        flow = gflow.integrate(trained, start, until=until, tolerance=tolerance)
        return np.concatenate([np.ravel(leaf) for leaf in flow.params]), flow.stats["num_steps"]

    reference, _ = end(1e-12)
    errors = []
    for tolerance in (1e-5, 1e-8):
        vector, num_steps = end(tolerance)
        errors.append(np.linalg.norm(vector - reference) / np.linalg.norm(reference))
        # Each step errs by the tolerance at most, and the flow does not amplify that tenfold here.
        assert errors[-1] < 10 * num_steps * tolerance
    # Where a ReLU^2 neuron changes sides the field is only once differentiable, and the order of
    # the solver falls: less than the factor of the tolerances, but never a standstill.
    assert errors[1] < errors[0] / 10


def test_implicit_solver_and_both_gradient_modes_agree_on_a_linear_net():
    until = gflow.Until(log_loss=-2.0)
    start = DEEP.init(2)
    flows = [
        gflow.integrate(problem(DEEP, perturbations.fgm(0.1)), start, until=until),
        gflow.integrate(
            problem(DEEP, perturbations.fgm(0.1), gradient="total"), start, until=until
        ),
        gflow.integrate(
            problem(DEEP, perturbations.fgm(0.1)),
            start,
            until=until,
            solver=diffrax.Kvaerno5(),
            tolerance=1e-7,
        ),
    ]
    for flow in flows[1:]:
        for left, right in zip(flow.params, flows[0].params, strict=True):
            np.testing.assert_allclose(left, right, atol=1e-5, rtol=0)
