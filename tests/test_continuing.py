"""`integrate(problem, trajectory)`: a run that goes on equals, bit for bit, the one without a stop;
and what it does depends neither on seconds nor on what is kept.
"""

import copy
import dataclasses
import math
import threading
import time

import diffrax
import jax
import numpy as np
import optax
import pytest

import gflow
from gflow import Until, losses, networks, perturbations
from gflow.flow.field import Field
from gflow.flow.place import Path, read
from gflow.flow.solvers import stiff_solver
from gflow.flow.starting import Tolerances

DATA = gflow.datasets.gaussian(12, 3, gap=0.5, seed=1)
NETWORK = networks.deep_linear((3, 4, 1))
PROBLEM = gflow.Problem(NETWORK, DATA, loss=losses.logistic(), perturbation=perturbations.fgm(0.1))
START = NETWORK.init(2)
FAR = Until(log_loss=-9.0)
NEAR = Until(log_loss=-4.0)

# One that becomes stiff after 751 steps.
SWITCHED = gflow.Problem(
    networks.mlp((3, 4, 1), power=2),
    gflow.datasets.gaussian(12, 3, gap=0.5, seed=0),
    loss=losses.logistic(),
)
SWITCHED_START = SWITCHED.network.init(0)


class Counted(diffrax.Heun):
    """A user's own solver, whose state holds a number and a flag beside the field."""

    def init(self, terms, t0, t1, y0, args):
        return {"count": 0, "before": (y0, False)}

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        y1, error, dense, _, result = super().step(terms, t0, t1, y0, args, None, made_jump)
        state = {"count": solver_state["count"] + 1, "before": (y0, solver_state["before"][1])}
        return y1, error, dense, state, result


SOLVERS = {
    "Tsit5": diffrax.Tsit5(),
    "Rosenbrock": gflow.Rosenbrock("Rodas4P"),
    "RungeKuttaChebyshev": gflow.RungeKuttaChebyshev(6, num_implicit=2),
    "Kvaerno3": diffrax.Kvaerno3(),
    "own": Counted(),
}


def assert_equal(left, right, *, stats=True):
    """Bit for bit; of the counts all but the seconds."""
    assert left.columns.keys() == right.columns.keys()
    for name, column in left.columns.items():
        np.testing.assert_array_equal(column, right.columns[name], err_msg=name)
    np.testing.assert_array_equal(left.vectors, right.vectors)
    assert left.result_name == right.result_name
    if stats:
        names = left.stats.keys() - {"seconds"}
        assert {name: left.stats[name] for name in names} == {
            name: right.stats[name] for name in names
        }


def run(start=START, problem=PROBLEM, **options):
    return gflow.integrate(problem, start, **{"until": FAR, "throw": False, **options})


def interrupted(start=START, after=2, **options):
    """A run that is interrupted after so many segments."""
    seen = []

    def stop(status):
        seen.append(status)
        if len(seen) == after:
            raise KeyboardInterrupt

    return run(start, progress=stop, **options)


STOPS = {
    "landed": lambda **options: run(until=Until(log_loss=-2.5), **options),
    "at a time": lambda **options: run(until=Until(time=7.0), **options),
    "step_budget_spent": lambda **options: run(max_steps=29, **options),
    "seconds_spent": lambda **options: run(max_seconds=1e-9, **options),
    "interrupted": interrupted,
    "at the start": lambda **options: run(until=Until(log_loss=100.0), **options),
}


@pytest.fixture(scope="module")
def whole():
    """The run without a stop, with gflow's own choice of solvers."""
    return run()


@pytest.mark.parametrize("stop", STOPS)
def test_going_on_equals_the_run_without_the_stop(whole, stop, tmp_path):
    first = STOPS[stop]()
    assert first.num_steps_at[-1] < whole.num_steps_at[-1]
    assert_equal(run(first), whole)
    loaded = gflow.load(first.save(tmp_path / "first"))
    assert_equal(run(loaded), whole)


@pytest.mark.parametrize(
    "name",
    [
        "Tsit5",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("Rosenbrock", "RungeKuttaChebyshev", "Kvaerno3", "own")
        ),
    ],
)
def test_every_solver_goes_on_bit_for_bit(name, tmp_path):
    solver = SOLVERS[name]
    # Of order 2, so that the usual tolerance would take thousands of steps.
    options = {"tolerance": 1e-5} if name == "own" else {}
    first = run(solver=solver, until=Until(log_loss=-2.5), **options)
    expected = run(solver=solver, until=NEAR, **options)
    assert expected.successful and first.num_steps_at[-1] < expected.num_steps_at[-1]
    assert_equal(run(first, until=NEAR), expected)
    loaded = gflow.load(first.save(tmp_path / "first"))
    if name == "own":
        with pytest.raises(ValueError, match="Give the solver of the run again"):
            run(loaded, until=NEAR)
    else:
        assert_equal(run(loaded, until=NEAR), expected)
    assert_equal(run(loaded, solver=solver, until=NEAR), expected)


def test_many_short_calls_equal_one(whole):
    flow = run(max_steps=1)
    for _ in range(200):
        if flow.successful:
            break
        before = flow
        flow = run(flow, max_steps=7)
        assert before.clock[-1] < flow.clock[-1]
    assert_equal(flow, whole)


def test_targets_on_the_way_leave_no_trace(whole):
    flow = START
    for log_loss in (0.0, -1.0, -1.0 - 1e-9, -4.0, -8.9, -9.0):
        flow = run(flow, until=Until(log_loss=log_loss))
        assert flow.log_loss[-1] == pytest.approx(log_loss, abs=1e-11)
        assert flow.stats["stopped_by"] == "log_loss"
    assert_equal(flow, whole)
    for a, b in zip(flow.at(log_loss=-4.0), run(until=Until(log_loss=-4.0)).params, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_points_before_are_kept_and_counts_add_up(whole):
    first = run(until=Until(log_loss=-2.5))
    rest = run(first)
    shared = len(set(first.num_steps_at) & set(rest.num_steps_at))
    assert shared > 20
    np.testing.assert_array_equal(rest.vectors[: shared - 8], first.vectors[: shared - 8])
    assert rest.log1p_time[0] == 0 and rest.log1p_time[-1] > first.log1p_time[-1]
    assert rest.stats["seconds"] > first.stats["seconds"]


@pytest.mark.parametrize(("before", "after"), [(512, 16), (16, 16), (None, 512), (16, 512)])
def test_save_chooses_what_is_kept_and_nothing_else(whole, before, after):
    rest = run(run(until=Until(log_loss=-2.5), save=before), save=after)
    end = {name: rest.stats[name] for name in ("num_steps", "num_accepted_steps", "stopped_by")}
    assert end == {name: whole.stats[name] for name in end}
    np.testing.assert_array_equal(rest.vectors[-1], whole.vectors[-1])
    assert 2 <= len(rest) <= after
    if (before, after) != (16, 512):
        assert_equal(rest, run(save=after))


def test_all_points_are_kept_from_where_all_are_asked_for():
    rest = run(run(until=Until(log_loss=-2.5), save=8), save=None)
    last = rest.num_steps_at[-20:]
    np.testing.assert_array_equal(np.diff(last), 1)


@pytest.mark.parametrize("seed", range(3))
def test_the_clock_on_the_wall_decides_nothing(whole, monkeypatch, seed):
    generator, now = np.random.default_rng(seed), [0.0]

    def wild():
        now[0] += float(10.0 ** generator.uniform(-7, 3))
        return now[0]

    monkeypatch.setattr(time, "perf_counter", wild)
    assert_equal(run(), whole)


def test_load_decides_nothing(whole):
    busy = threading.Event()

    def work():
        while not busy.is_set():
            np.linalg.svd(np.random.default_rng(0).normal(size=(60, 60)))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        first = interrupted(after=2)
        assert_equal(run(first, save=64), run(save=64))
        assert_equal(run(first), whole)
    finally:
        busy.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("name", ["save", "segments"])
def test_hopelessness_does_not_depend_on_what_is_kept(name):
    x, y = DATA.x[:6], DATA.y[:6]
    torn = gflow.Dataset(np.concatenate([x, x]), np.concatenate([y, -y]))
    trained = varied(dataset=torn, perturbation=perturbations.fgm(0.0))
    options = {"problem": trained, "solver": diffrax.Tsit5()}
    one = run(**options, max_steps=1500)
    assert one.result_name == "not_separated"
    if name == "save":
        other = run(**options, max_steps=1500, save=3)
    else:
        part = run(**options, max_steps=700)
        other = run(part, **options, max_steps=1500 - part.stats["num_steps"])
    assert other.result_name == one.result_name
    assert other.stats["num_steps"] == one.stats["num_steps"]


# The switch of solvers, and far out


@pytest.fixture(scope="module")
def switched():
    flow = gflow.integrate(SWITCHED, SWITCHED_START, until=Until(log_loss=-810.0))
    assert 600 < flow.stats["stiff_from"] < flow.stats["num_accepted_steps"]
    return flow


@pytest.mark.slow
@pytest.mark.parametrize("end", [-100.0, -700.0, -760.0])
def test_the_switch_of_solvers_comes_at_the_same_step(switched, end, tmp_path):
    first = gflow.integrate(SWITCHED, SWITCHED_START, until=Until(log_loss=end))
    for trajectory in (first, gflow.load(first.save(tmp_path / "first"))):
        rest = gflow.integrate(SWITCHED, trajectory, until=Until(log_loss=-810.0))
        assert_equal(rest, switched)
    assert rest.stats["stiff_from"] == switched.stats["stiff_from"]


@pytest.mark.slow
@pytest.mark.parametrize("end", [-100.0, -700.0, -760.0])
def test_parameters_far_out_are_as_good_a_start(switched, end):
    first = gflow.integrate(SWITCHED, SWITCHED_START, until=Until(log_loss=end))
    anew = gflow.integrate(SWITCHED, first.params, until=Until(log_loss=-810.0))
    assert anew.stats["num_steps"] < switched.stats["num_steps"]
    np.testing.assert_allclose(anew.vectors[-1], switched.vectors[-1], atol=1e-5)
    assert anew.log1p_time[0] == 0
    # The time before was a factor exp(-50) of it, or less.
    assert anew.log1p_time[-1] == pytest.approx(switched.log1p_time[-1], rel=1e-8)


@pytest.mark.slow
def test_capped_flow_goes_on_at_a_kappa_that_is_no_number(tmp_path):
    options = {"kappa_cap": 1e3, "solver": gflow.Rosenbrock(), "tolerance": 1e-4}
    whole = gflow.integrate(SWITCHED, SWITCHED_START, until=Until(log_kappa=5000.0), **options)
    for log_kappa in (5.0, 4000.0):
        first = gflow.integrate(
            SWITCHED, SWITCHED_START, until=Until(log_kappa=log_kappa), **options
        )
        for trajectory in (first, gflow.load(first.save(tmp_path / "first"))):
            rest = gflow.integrate(SWITCHED, trajectory, until=Until(log_kappa=5000.0))
            assert_equal(rest, whole)
            assert rest.settings == {**whole.settings}
    with pytest.raises(ValueError, match="kappa_cap=10000"):
        gflow.integrate(SWITCHED, first, until=Until(log_kappa=5000.0), kappa_cap=1e4)


@pytest.mark.parametrize("log_weight", [-3.0, 5.0, 300.0, 700.0, 760.0, 2000.0])
def test_time_from_a_start_far_out_has_its_closed_form(log_weight):
    # An example and its mirror image, exponential loss: dw/dt = 2 c exp(-c w), so that
    # exp(c w) = exp(c w0) + 2 c^2 t.
    c = 0.8
    problem = gflow.Problem(
        networks.linear(1), gflow.Dataset([[c], [-c]], [1, -1]), loss=losses.exponential()
    )
    first, last = log_weight / c, (abs(log_weight) + 9.0) / c
    if first < 0:
        first = -first / 10
    target = Until(log_kappa=np.log(last))
    flow = gflow.integrate(problem, (np.array([[first]]),), until=target)
    weights = np.exp(flow.log_norm[1:])
    log_time = c * weights + np.log(-np.expm1(c * (first - weights))) - np.log(2 * c**2)
    expected = np.logaddexp(0.0, log_time)
    # An error of log w of 1e-8, the tolerance, is one of c w times that of log t.
    np.testing.assert_allclose(flow.log1p_time[1:], expected, atol=1e-7 * (1 + c * last))
    assert flow.log1p_time[0] == 0 and flow.stats["num_steps"] < 400
    middle = 0.5 * (expected[0] + expected[-1]) if log_weight < 100 else expected[-1] - 3.0
    if middle < 700:
        at = flow.at(time=float(np.expm1(middle)))[0].item()
        exact = np.logaddexp(c * first, np.log(np.expm1(middle)) + np.log(2 * c**2)) / c
        assert at == pytest.approx(exact, rel=1e-7)


def test_scales_of_time_are_inverse_to_each_other():
    layout = gflow.integrate(PROBLEM, START, until=Until(log_loss=100.0)).layout
    times = np.array([0.0, 1e-3, 1.0, 40.0, 700.0, 3000.0])
    for scale in (0.0, 0.5, 30.0, 800.0):
        field = Field(PROBLEM, layout, np.asarray(np.inf), np.asarray(scale))
        for value in times:
            back = float(
                field.log1p_time(np.append(np.zeros(layout.size + 1), field.log_time(value)))
            )
            # A time far below the scale is lost beside it.
            if value == 0 or value > scale - 30:
                accuracy = 1e-15 * max(1.0, np.exp(min(scale - value, 30.0))) * max(scale, 1.0)
                assert back == pytest.approx(value, rel=1e-14, abs=4 * accuracy)


# Other options


def test_other_tolerances_and_solvers_go_on_from_the_last_point(whole, tmp_path):
    first = run(until=Until(log_loss=-2.5), tolerance=1e-6, save=None)
    assert_equal(run(first, tolerance=1e-6), run(first))
    for options in ({"tolerance": 1e-9}, {"solver": diffrax.Heun()}):
        rest = run(first, save=None, **options)
        assert rest.successful
        assert set(first.num_steps_at) <= set(rest.num_steps_at)
        np.testing.assert_array_equal(rest.vectors[: len(first) - 1], first.vectors[:-1])
        # The last point is where the integration begins anew, brought to norm 1 once more.
        np.testing.assert_allclose(rest.vectors[len(first) - 1], first.vectors[-1], atol=1e-15)
        assert rest.stats["num_steps"] > first.stats["num_steps"]
        np.testing.assert_allclose(rest.vectors[-1], whole.vectors[-1], atol=1e-5)
        (earlier,) = rest.settings["earlier"]
        assert earlier["tolerance"] == 1e-6 and earlier["num_steps_at"] == first.num_steps_at[-1]
        again = gflow.load(rest.save(tmp_path / "rest"))
        assert again.settings == rest.settings
        for log_loss in (-1.0, -5.0):
            for a, b in zip(again.at(log_loss=log_loss), whole.at(log_loss=log_loss), strict=True):
                np.testing.assert_allclose(a, b, atol=1e-5)
        further = {"until": Until(log_loss=-9.1), "save": None}
        assert_equal(run(again, **further), run(rest, **further))


def test_files_of_earlier_versions_go_on_from_their_last_point(whole):
    first = run(until=Until(log_loss=-2.5))
    settings = {k: v for k, v in first.settings.items() if k != "log_time_scale"}
    old = dataclasses.replace(first, checkpoint=None, settings=settings)
    rest = run(old)
    assert rest.successful and len(rest) > len(first)
    np.testing.assert_array_equal(rest.vectors[: len(first) - 1], first.vectors[:-1])
    # The last point is where the integration begins anew, brought to norm 1 once more.
    np.testing.assert_allclose(rest.vectors[len(first) - 1], first.vectors[-1], atol=1e-15)
    np.testing.assert_allclose(rest.vectors[-1], whole.vectors[-1], atol=1e-6)
    assert rest.log1p_time[-1] == pytest.approx(whole.log1p_time[-1], abs=1e-6)
    # From there on it has a checkpoint of its own.
    further = Until(log_loss=-12.0)
    assert_equal(run(rest, until=further), run(old, until=further))


def test_a_cap_that_has_not_acted_may_be_another(whole):
    first = run(until=Until(log_loss=-2.5))
    rest = run(first, kappa_cap=1e200)
    np.testing.assert_array_equal(rest.vectors, whole.vectors)
    with pytest.raises(ValueError, match="beyond where the two are the same"):
        run(first, kappa_cap=1.01)


def test_a_checkpoint_of_another_solver_is_not_taken():
    first = run(until=Until(log_loss=-2.5))
    path = Path(Field(PROBLEM, first.layout), Tolerances(1e-8, 1e-8, 0.1))
    assert read(path, stiff_solver(1e-8), first.checkpoint) is None
    assert read(path, diffrax.Tsit5(), first.checkpoint) is not None


# Targets that are met, interrupts, seconds


def test_a_target_that_is_met_takes_no_step(whole):
    flow = whole
    assert run(flow) is flow
    for until, name in ((Until(log_loss=-3.0), "log_loss"), (Until(time=1.0), "time")):
        again = run(flow, until=until)
        assert_equal(again, flow, stats=False)
        assert again.successful and again.stats["stopped_by"] == name
        assert again.stats["num_steps"] == flow.stats["num_steps"]
    spent = run(max_steps=40)
    assert spent.result_name == "step_budget_spent"
    reached = run(spent, until=Until(log_loss=float(spent.log_loss[-1]) + 0.1))
    assert reached.successful and len(reached) == len(spent)
    assert_equal(run(reached), flow)


def test_interrupt_before_the_old_end_returns_what_there_was():
    first = run(until=Until(log_loss=-2.5))
    again = interrupted(first, after=1, until=Until(log_loss=-9.0))
    assert again.result_name == "interrupted"
    assert again.clock[-1] >= first.clock[-1]


@pytest.mark.parametrize("value", [0, -1.0, math.nan, "3", True, (1,)])
@pytest.mark.usefixtures("own_words")
def test_seconds_that_are_none(value):
    for call in (
        lambda: run(max_seconds=value),
        lambda: gflow.descend(PROBLEM, START, SGD, num_steps=5, max_seconds=value),
    ):
        with pytest.raises(ValueError, match=r"max_seconds=.*positive number of seconds"):
            call()


SGD = optax.sgd(1e-3)


def test_spent_seconds_are_a_result():
    flow = run(max_seconds=1e-9)
    assert flow.result_name == "seconds_spent" and not flow.successful
    assert "max_seconds" in flow.message and flow.stats["stopped_by"] is None
    assert 0 < flow.stats["num_steps"] <= 16
    with pytest.raises(gflow.RunFailed) as failure:
        run(max_seconds=1e-9, throw=True)
    assert_equal(failure.value.trajectory, flow)
    assert run(max_seconds=1e9).successful


def test_descent_ends_when_its_seconds_are_spent():
    descent = gflow.descend(
        PROBLEM, START, SGD, num_steps=500, max_seconds=1e-9, throw=False, save=None
    )
    assert descent.result_name == "seconds_spent"
    made = descent.stats["num_steps"]
    assert 0 < made < 500
    whole = gflow.descend(PROBLEM, START, SGD, num_steps=500, save=None)
    np.testing.assert_array_equal(descent.vectors, whole.vectors[: made + 1])
    with pytest.raises(gflow.RunFailed, match="max_seconds"):
        gflow.descend(PROBLEM, START, SGD, num_steps=500, max_seconds=1e-9)


# Wrong use


def varied(**options):
    kinds = {
        "network": NETWORK,
        "dataset": DATA,
        "loss": losses.logistic(),
        "perturbation": perturbations.fgm(0.1),
        **options,
    }
    gradient = kinds.pop("gradient", "frozen")
    network, dataset = kinds.pop("network"), kinds.pop("dataset")
    return gflow.Problem(network, dataset, **kinds, gradient=gradient)


OTHERS = {
    "network": varied(network=networks.mlp((3, 4, 1), power=1, smoothing=0.1)),
    "dataset": varied(dataset=gflow.Dataset(DATA.x * (1 + 1e-9), DATA.y)),
    "loss": varied(loss=losses.exponential()),
    "perturbation": varied(perturbation=perturbations.fgm(0.1000001)),
    "gradient mode": varied(gradient="total"),
}


@pytest.mark.parametrize("part", OTHERS)
def test_another_problem_is_refused(part):
    first = run(until=Until(log_loss=0.0))
    with pytest.raises(ValueError, match=f"another problem: the {part}"):
        run(first, problem=OTHERS[part])


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("rivals", "each", "the rivals"),
        ("rival_smoothing", 0.1, "the rounding of the choice among rivals"),
        ("attack_floor", 0.1, "the size of a gradient"),
        ("attacked_network", NETWORK, "the network whose gradients"),
    ],
)
def test_a_problem_that_differs_in_any_field_is_another(field, value, words):
    first = run(until=Until(log_loss=0.0))
    other = copy.copy(PROBLEM)
    object.__setattr__(other, field, value)
    with pytest.raises(ValueError, match=f"another problem: {words}"):
        run(first, problem=other)


def test_the_problem_built_again_is_the_same(whole):
    assert_equal(run(run(until=Until(log_loss=-2.5)), problem=varied()), whole)


def test_without_its_problem_a_trajectory_knows_its_margins(whole):
    first = dataclasses.replace(run(until=Until(log_loss=-2.5)), problem=None)
    assert_equal(run(first), whole)
    for part in ("dataset", "loss", "gradient mode", "network"):
        problem = OTHERS[part]
        if part == "dataset":
            problem = varied(dataset=gflow.Dataset(DATA.x * 1.001, DATA.y))
        with pytest.raises(ValueError, match="another problem"):
            run(first, problem=problem)


@pytest.mark.usefixtures("own_words")
def test_what_is_no_flow_is_refused():
    descent = gflow.descend(PROBLEM, START, SGD, num_steps=3)
    with pytest.raises(ValueError, match=r"trajectory of `descend`"):
        run(descent)
    flow = run(until=Until(log_loss=0.0))
    with pytest.raises(TypeError, match=r"expected a `gflow.Problem`"):
        run(flow, problem=NETWORK)
    with pytest.raises(ValueError, match="at most 700 can be asked for"):
        run(flow, until=Until(log_kappa=800.0))


def test_a_damaged_checkpoint_is_no_trajectory(tmp_path):
    flow = run(until=Until(log_loss=0.0))
    facts = flow.checkpoint.facts
    for change in ({"budget": 0}, {"stride": 1.5}, {"automatic": None}, {"more": 1}):
        checkpoint = dataclasses.replace(flow.checkpoint, facts={**facts, **change})
        path = dataclasses.replace(flow, checkpoint=checkpoint).save(tmp_path / "broken")
        with pytest.raises(ValueError, match="not a trajectory that gflow can read"):
            gflow.load(path)


def test_going_on_compiles_nothing_new(whole, tmp_path):
    first = run(until=Until(log_loss=-2.5))
    run(first)
    path = first.save(tmp_path / "first")
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    assert_equal(run(gflow.load(path)), whole)
    assert not compiled
    jax.jit(lambda x: x + 1.5)(np.arange(3.0))
    assert compiled  # the listener hears


def test_a_flow_through_zero_goes_on_from_anywhere():
    line = gflow.Dataset([[0.8], [-0.8]], [1, -1])
    problem = gflow.Problem(networks.linear(1), line, loss=losses.exponential())
    start = (np.array([[-2.5]]),)
    whole = run(start, problem=problem, until=Until(log_loss=-3.0))
    assert whole.successful and whole.stats["through_zero"]
    ((begun, past),) = whole.stats["through_zero"]
    for max_steps in (max(begun // 2, 1), begun + 3, past + 2):
        part = run(start, problem=problem, until=Until(log_loss=-3.0), max_steps=max_steps)
        assert part.result_name == "step_budget_spent"
        assert_equal(run(part, problem=problem, until=Until(log_loss=-3.0)), whole)


@pytest.mark.slow
def test_sliding_is_found_at_the_same_step(tmp_path):
    network = networks.mlp((3, 6, 1))
    problem = gflow.Problem(
        network, DATA, loss=losses.logistic(), perturbation=perturbations.fgsm(0.2)
    )
    options = {"problem": problem, "until": Until(log_loss=-40.0), "max_steps": 6000}
    whole = run(network.init(1), **options)
    assert whole.result_name == "chattering"
    part = run(network.init(1), **{**options, "max_steps": whole.stats["num_steps"] // 2})
    rest = run(gflow.load(part.save(tmp_path / "part")), **options, save=100)
    assert rest.result_name == "chattering"
    assert rest.stats["num_steps"] == whole.stats["num_steps"]
    np.testing.assert_array_equal(rest.vectors[-1], whole.vectors[-1])
