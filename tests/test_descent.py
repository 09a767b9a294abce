"""Descent against NumPy and the flow: steps, clock, record, and what it says when it fails."""

import inspect
import json
import math
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _two_layer import descended, flat, loss_gradient, margins, shaped, unit

import gflow
from gflow import datasets, losses, networks
from gflow.descent import batch
from gflow.descent import run as running
from gflow.perturbations import fgm

DATA = datasets.gaussian(8, 3, gap=0.5, seed=1)
NETWORK, DEGREE, RADIUS = networks.mlp((3, 6, 1), power=2), 3, 0.1
PROBLEM = gflow.Problem(NETWORK, DATA, loss=losses.exponential(), perturbation=fgm(RADIUS))
_generator = np.random.default_rng(5)
START = (_generator.normal(size=(6, 3)) / 2, _generator.normal(size=(1, 6)) / 2)
STEP_SIZE, NUM_STEPS = 0.005, 300
# One object, so that all runs with it share one compiled program.
SGD = optax.sgd(STEP_SIZE)
LINEAR = gflow.Problem(networks.linear(3), DATA, loss=losses.exponential())
LINEAR_START = (np.array([[0.3, -0.2, 0.1]]),)

# Without the run-time type checks of the tests, as users have it.
unchecked_descend = inspect.unwrap(gflow.descend)


def points_of(run):
    """The parameters at every saved point. Shapes: (s, P)."""
    return np.exp(run.log_norm)[:, None] * run.vectors


@pytest.fixture(scope="module")
def run():
    """Every point of plain gradient descent; more steps than one compiled segment makes."""
    return gflow.descend(PROBLEM, START, SGD, num_steps=NUM_STEPS, save=None)


@pytest.fixture(scope="module")
def expected():
    """The same by NumPy: points and losses."""
    points, found = descended(START, DATA, RADIUS, STEP_SIZE, NUM_STEPS)
    return points, np.append(found, loss_gradient(shaped(points[-1], START), DATA, RADIUS)[1])


# Against NumPy


def test_gradient_descent_is_a_loop_in_numpy(run, expected):
    points, found = expected
    # Rounding grows along the path like a small power of the number of steps.
    np.testing.assert_allclose(points_of(run), points, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(run.log_loss, np.log(found), atol=1e-9)
    np.testing.assert_array_equal(run.num_steps_at, np.arange(NUM_STEPS + 1))
    lengths = np.linalg.norm(points, axis=1)
    np.testing.assert_allclose(run.log_kappa, DEGREE * np.log(lengths), atol=1e-9)
    for index in (0, 100, -1):
        direction = unit(shaped(points[index], START))
        margin = margins(direction, DATA, RADIUS).min()
        assert run.margin[index] == pytest.approx(margin, abs=1e-9)
        assert run.clean_margin[index] == pytest.approx(margins(direction, DATA).min(), abs=1e-9)
    assert run.successful and run.kind == "descent"
    assert run.stats["num_steps"] == NUM_STEPS and run.stats["stopped_by"] == "num_steps"
    np.testing.assert_allclose(flat(run.params), points[-1], rtol=1e-9, atol=1e-10)


def test_time_is_the_sum_of_the_step_sizes(run):
    times = STEP_SIZE * np.arange(NUM_STEPS + 1)
    np.testing.assert_allclose(np.expm1(run.log1p_time), times, rtol=1e-12, atol=1e-15)


def test_descent_on_the_log_loss_divides_by_the_loss():
    step_size, num_steps = 0.003, 60
    run = gflow.descend(
        PROBLEM, START, optax.sgd(step_size), num_steps=num_steps, objective="log_loss", save=None
    )
    points, found = descended(START, DATA, RADIUS, step_size, num_steps, normalized=True)
    np.testing.assert_allclose(points_of(run), points, rtol=1e-10, atol=1e-11)
    times = np.cumsum(np.append(0.0, step_size / found))
    np.testing.assert_allclose(np.expm1(run.log1p_time), times, rtol=1e-10, atol=1e-12)


def all_finite(run):
    """Whether every column is, but `log(-log_loss)`, which exists for a loss below 1."""
    below_one = run.log_loss < 0
    finite = {name: np.isfinite(values) for name, values in run.columns.items()}
    finite["log_minus_log_loss"] |= ~below_one
    return all(np.all(values) for values in finite.values())


def test_the_log_loss_falls_where_the_loss_has_underflowed():
    """Time passes the largest double, and is read there in logarithms."""
    run = gflow.descend(
        LINEAR, LINEAR_START, optax.sgd(3.0), num_steps=800, objective="log_loss", save=None
    )
    assert run.log_loss[-1] < -1000 and run.log1p_time[-1] > 750
    assert all_finite(run)
    # The limit is that of the flow, which the steps approach like 1 / kappa.
    best = gflow.max_margin(DATA)
    assert np.linalg.norm(run.direction[0][0] - best.direction) < 1e-2
    assert run.margin[-1] <= best.margin
    early, late = (run.at(time=value) for value in (1e300, 1e305))
    assert np.linalg.norm(early[0]) < np.linalg.norm(late[0])
    with pytest.raises(ValueError, match="does not pass"):
        run.at(log_loss=-1e6)
    with pytest.raises(ValueError, match="to inf and does not pass"):
        run.at(time=-0.5)


def test_momentum_and_adam_are_loops_in_numpy():
    rate, momentum, num_steps = 1e-3, 0.9, 40
    point, trace = flat(START), 0.0
    heavy = [point]
    for _ in range(num_steps):
        trace = loss_gradient(shaped(point, START), DATA, RADIUS)[0] + momentum * trace
        point = point - rate * trace
        heavy.append(point)
    point, mean, square = flat(START), 0.0, 0.0
    adam = [point]
    for k in range(1, num_steps + 1):
        gradient = loss_gradient(shaped(point, START), DATA, RADIUS)[0]
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        root = np.sqrt(square / (1 - 0.999**k)) + 1e-8
        point = point - 0.01 * mean / (1 - 0.9**k) / root
        adam.append(point)
    for optimizer, points in (
        (optax.sgd(rate, momentum=momentum), heavy),
        (optax.adam(0.01), adam),
    ):
        run = gflow.descend(PROBLEM, START, optimizer, num_steps=num_steps, save=None)
        assert run.successful
        np.testing.assert_allclose(points_of(run), points, rtol=1e-9, atol=1e-10)
        # The clock counts each step's length along the negative gradient.
        times = [0.0]
        for before, after in pairwise(points):
            gradient = loss_gradient(shaped(before, START), DATA, RADIUS)[0]
            step = (before - after) @ gradient / (gradient @ gradient)
            times.append(times[-1] + max(step, 0.0))
        np.testing.assert_allclose(np.expm1(run.log1p_time), times, rtol=1e-9, atol=1e-12)


def test_steps_against_the_gradient_take_no_time():
    run = gflow.descend(LINEAR, LINEAR_START, optax.scale(0.01), num_steps=10, objective="log_loss")
    assert np.all(np.diff(run.log_loss) > 0)
    np.testing.assert_array_equal(run.log1p_time, 0.0)


# Against the flow


def test_the_distance_to_the_flow_falls_like_the_step_size(run):
    flow = gflow.integrate(PROBLEM, START, until=gflow.Until(time=1.0))
    half = gflow.descend(PROBLEM, START, optax.sgd(STEP_SIZE / 2), num_steps=400, save=2)
    ends = (run.at(time=1.0), half.params)
    assert np.expm1(half.log1p_time[-1]) == pytest.approx(1.0, rel=1e-12)
    errors = [np.linalg.norm(flat(end) - flat(flow.params)) for end in ends]
    # Euler's method: c h + O(h^2), so the ratio is 2 + O(h).
    assert errors[0] < 0.1
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.1)


# The record


@pytest.mark.parametrize("save", [2, 16, 301, 512])
def test_thinning_keeps_the_first_and_the_last_point(run, save):
    thin = gflow.descend(PROBLEM, START, SGD, num_steps=NUM_STEPS, save=save)
    kept = thin.num_steps_at
    assert 2 <= len(thin) <= save
    assert kept[0] == 0 and kept[-1] == NUM_STEPS
    assert len(set(np.diff(kept)[:-1])) <= 1  # evenly spread but for the end
    if save > NUM_STEPS:
        assert len(thin) == NUM_STEPS + 1
    np.testing.assert_array_equal(thin.vectors, run.vectors[kept])
    np.testing.assert_array_equal(thin.log_loss, run.log_loss[kept])


def test_reading_between_points_is_reading_a_polygon(run):
    points = points_of(run)
    for index, share in ((0, 0.5), (17, 0.25), (NUM_STEPS - 1, 0.9)):
        point = (1 - share) * points[index] + share * points[index + 1]
        read = run.at(time=STEP_SIZE * (index + share))
        np.testing.assert_allclose(flat(read), point, rtol=1e-9, atol=1e-12)
    for log_loss in run.log_loss[[40, 200]] - 1e-4:
        read = tuple(map(jnp.asarray, run.at(log_loss=log_loss)))
        assert float(PROBLEM.log_loss(read)) == pytest.approx(log_loss, abs=1e-10)
    log_kappa = 0.5 * (run.log_kappa[-1] + run.log_kappa[-2])
    length = np.linalg.norm(flat(run.at(log_kappa=log_kappa)))
    assert DEGREE * math.log(length) == pytest.approx(log_kappa, abs=1e-10)
    np.testing.assert_array_equal(flat(run.at(time=0.0)), flat(run.params_at_index(0)))
    batch = run.at(time=[0.1, 0.2])
    assert batch[0].shape == (2, 6, 3)
    for target in ({"time": 1e3}, {"time": -0.1}, {"log_loss": 50.0}, {"log_kappa": 1e3}):
        with pytest.raises(ValueError, match="does not pass"):
            run.at(**target)


def test_a_loss_that_first_rises_is_read_where_it_falls():
    def rate(count):
        """Ten steps up, then down."""
        return jnp.where(count < 10, 0.02, -0.02)

    optimizer = optax.scale_by_schedule(rate)
    run = gflow.descend(
        LINEAR, LINEAR_START, optimizer, num_steps=40, objective="log_loss", save=None
    )
    top = int(np.argmax(run.log_loss))
    assert 0 < top < 40 and run.log_loss[-1] < run.log_loss[0]
    target = 0.5 * (run.log_loss[0] + run.log_loss[top])
    read = run.at(log_loss=target)
    assert float(LINEAR.log_loss(tuple(map(jnp.asarray, read)))) == pytest.approx(target, abs=1e-10)
    index = int(np.flatnonzero(run.log_loss > target)[-1])
    ends = [np.ravel(run.params_at_index(i)[0]) for i in (index, index + 1)]
    length = np.linalg.norm(ends[1] - ends[0])
    assert all(np.linalg.norm(np.ravel(read[0]) - end) <= length for end in ends)


def test_saved_and_loaded(run, tmp_path):
    loaded = gflow.load(run.save(tmp_path / "run"))
    for name, values in run.columns.items():
        np.testing.assert_array_equal(loaded.columns[name], values)
    np.testing.assert_array_equal(loaded.vectors, run.vectors)
    assert loaded.kind == "descent" and loaded.settings == run.settings
    assert loaded.problem == run.problem and loaded.result_name == "successful"
    assert jax.tree.structure(loaded.params) == jax.tree.structure(run.params)
    np.testing.assert_array_equal(flat(loaded.params), flat(run.params))
    for target in ({"time": 0.7}, {"log_loss": float(run.log_loss[50]) - 1e-5}):
        np.testing.assert_array_equal(flat(loaded.at(**target)), flat(run.at(**target)))
    json.dumps(loaded.to_dict(), allow_nan=False)


# Interrupts and failures


def test_progress_is_reported_after_every_segment(run):
    reports = []
    gflow.descend(PROBLEM, START, SGD, num_steps=NUM_STEPS, progress=reports.append)
    # Segments become four times as long.
    assert [report["steps"] for report in reports] == [16, 80, NUM_STEPS]
    assert reports[-1]["log_loss"] == run.log_loss[-1]
    assert set(reports[-1]) == {"steps", "log_kappa", "log_loss", "margin", "stationarity"}


def test_an_interrupt_keeps_what_was_computed(run):
    def interrupt(status):
        raise KeyboardInterrupt

    stopped = gflow.descend(PROBLEM, START, SGD, num_steps=10_000, progress=interrupt)
    assert stopped.result_name == "interrupted" and not stopped.successful
    assert stopped.num_steps_at[-1] == stopped.stats["num_steps"] == 16
    np.testing.assert_array_equal(stopped.vectors, run.vectors[: len(stopped)])


def test_an_interrupt_before_the_first_step_is_passed_on(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "advance", interrupt)
    with pytest.raises(KeyboardInterrupt):
        gflow.descend(PROBLEM, START, SGD, num_steps=10)


@pytest.fixture(scope="module")
def diverged():
    return gflow.descend(PROBLEM, START, DIVERGING, num_steps=1000, throw=False)


DIVERGING = optax.sgd(1e4)


def test_divergence_is_a_result(diverged):
    assert diverged.result_name == "diverged" and not diverged.successful
    assert 0 < diverged.stats["num_steps"] < 1000 and diverged.stats["stopped_by"] is None
    assert "step size" in diverged.message
    assert all_finite(diverged)
    assert np.all(np.isfinite(diverged.vectors))
    assert np.all(np.isfinite(flat(diverged.params)))
    json.dumps(diverged.to_dict(), allow_nan=False)


def test_divergence_raises_where_asked_and_hands_over_the_run(diverged):
    with pytest.raises(gflow.RunFailed, match="step size is too large") as caught:
        gflow.descend(PROBLEM, START, DIVERGING, num_steps=1000)
    np.testing.assert_array_equal(caught.value.trajectory.vectors, diverged.vectors)


def test_a_start_beyond_all_numbers_diverges_at_once():
    far = tuple(1e120 * leaf for leaf in START)  # kappa = 1e360
    run = gflow.descend(PROBLEM, far, SGD, num_steps=5, throw=False)
    assert run.result_name == "diverged" and len(run) == 1
    assert run.to_dict()["log_loss"] == [None]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"num_steps": 0}, ValueError, "num_steps=0"),
        ({"num_steps": 2.5}, ValueError, r"num_steps=2\.5"),
        ({"num_steps": True}, ValueError, "num_steps=True"),
        ({"save": 1}, ValueError, "save=1"),
        ({"save": True}, ValueError, "save=True"),
        ({"objective": "logloss"}, ValueError, "choose 'loss' or 'log_loss'"),
        ({"optimizer": 0.1}, TypeError, r"optax\.sgd"),
        ({"optimizer": optax.sgd}, TypeError, r"optax\.sgd"),
        ({"params": (np.zeros((6, 3)), np.zeros((1, 6)))}, ValueError, "zero"),
        ({"params": (np.ones((6, 4)), np.ones((1, 6)))}, ValueError, "fit"),
    ],
)
def test_impossible_options_are_refused(options, error, words):
    arguments = {"params": START, "optimizer": SGD, "num_steps": 3} | options
    with pytest.raises(error, match=words):
        unchecked_descend(PROBLEM, **arguments)


def test_numbers_of_numpy_count_as_integers():
    run = unchecked_descend(PROBLEM, START, SGD, num_steps=np.int64(3), save=np.int64(8))
    assert len(run) == 4
    json.dumps(run.to_dict(), allow_nan=False)


# Optimizers that look at the objective

LOOKING = {
    "lbfgs": optax.lbfgs(memory_size=4),
    "polyak": optax.polyak_sgd(0.1),
    "plateau": optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=2)),
    "backtracking": optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15)),
}


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        pytest.param("lbfgs", "log_loss", marks=pytest.mark.slow),
        ("polyak", "loss"),
        ("plateau", "log_loss"),
        ("backtracking", "loss"),
    ],
)
def test_they_see_what_they_would_in_a_loop_of_their_own(name, objective):
    optimizer, steps = LOOKING[name], 5
    signed = jnp.asarray(DATA.y[:, None] * DATA.x)

    def value(params):
        found = jax.nn.logsumexp(-signed @ params[0][0])
        return found if objective == "log_loss" else jnp.exp(found)

    @jax.jit
    def step(params, state):
        with jax.numpy_dtype_promotion("standard"):
            found, gradient = jax.value_and_grad(value)(params)
            options = {"value": found, "grad": gradient, "value_fn": value}
            update, state = optimizer.update(gradient, state, params, **options)
            return optax.apply_updates(params, update), state

    params = jax.tree.map(jnp.asarray, LINEAR_START)
    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    run = gflow.descend(LINEAR, LINEAR_START, optimizer, num_steps=steps, objective=objective)
    assert np.linalg.norm(flat(params) - flat(LINEAR_START)) > 1e-3
    np.testing.assert_allclose(flat(run.params), flat(params), rtol=1e-9)


def test_the_objective_that_they_see_has_the_gradient_of_the_mode():
    """Frozen: that of adversarial training, which is not the derivative of the adversarial loss."""
    found = {}
    for mode in ("frozen", "total"):
        problem = gflow.Problem(
            NETWORK, DATA, loss=losses.exponential(), perturbation=fgm(RADIUS), gradient=mode
        )
        start, rules = jax.tree.map(jnp.asarray, START), batch.Rules("loss", False, False)
        value, gradient = jax.jit(
            lambda params, problem=problem, rules=rules: jax.value_and_grad(
                batch.slope_at(problem, rules, params, None).value_fn
            )(params)
        )(start)
        assert float(value) == pytest.approx(float(jnp.exp(problem.log_loss(start))), rel=1e-13)
        np.testing.assert_allclose(flat(gradient), flat(problem.gradient(start)), rtol=1e-12)
        found[mode] = flat(gradient)
    assert np.linalg.norm(found["frozen"] - found["total"]) > 1e-3
