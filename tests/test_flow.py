"""`integrate`: what it stops at, what it keeps, what it says when it fails."""

import dataclasses
import inspect
import json
import subprocess
import sys

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow import losses, networks, perturbations
from gflow._layout import Layout
from gflow.flow.control import make_controller
from gflow.flow.field import Field, vector_field
from gflow.flow.segment import advance
from gflow.flow.starting import initial_state, start_cursor
from gflow.flow.until import Until

DATA = gflow.datasets.gaussian(12, 3, gap=0.5, seed=1)
NETWORK = networks.deep_linear((3, 4, 1))
PROBLEM = gflow.Problem(NETWORK, DATA, loss=losses.logistic(), perturbation=perturbations.fgm(0.1))


# Without the run-time type checks of the tests, as users have it.
unchecked_integrate = inspect.unwrap(gflow.integrate)


@pytest.fixture(scope="module")
def start():
    return NETWORK.init(2)


@pytest.fixture(scope="module")
def flow(start):
    return gflow.integrate(PROBLEM, start, until=Until(log_loss=-6.0))


def test_first_and_last_points(flow, start):
    length = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in start))
    assert flow.log_norm[0] == pytest.approx(np.log(length), abs=1e-15)
    assert flow.log1p_time[0] == 0
    assert flow.log_loss[0] == pytest.approx(float(PROBLEM.log_loss(start)), abs=1e-13)
    assert flow.log_loss[-1] == pytest.approx(-6.0, abs=1e-11)
    assert float(PROBLEM.log_loss(flow.params)) == pytest.approx(-6.0, abs=1e-10)
    assert flow.stats["stopped_by"] == "log_loss"
    assert flow.successful


def test_columns_are_what_the_problem_says(flow):
    for index in (0, len(flow) // 2, -1):
        params = flow.params_at_index(index)
        direction = flow.layout.unflatten(flow.vectors[index])
        margins = np.asarray(PROBLEM.margins(direction))
        assert flow.margin[index] == pytest.approx(margins.min(), abs=1e-14)
        clean = np.asarray(PROBLEM.clean_margins(direction))
        assert flow.clean_margin[index] == pytest.approx(clean.min(), abs=1e-14)
        log_loss = float(PROBLEM.log_loss(params))
        assert flow.log_loss[index] == pytest.approx(log_loss, abs=1e-11)
        smoothed = -np.log(np.expm1(np.exp(log_loss))) / np.exp(flow.log_kappa[index])
        assert flow.smoothed_margin[index] == pytest.approx(smoothed, abs=1e-10)
    assert np.all(np.diff(flow.log1p_time) > 0)
    assert np.all(np.diff(flow.clock) > 0)
    np.testing.assert_allclose(np.linalg.norm(flow.vectors, axis=1), 1, atol=1e-14)


@pytest.mark.parametrize(
    ("target", "value"),
    [("log_kappa", 2.5), ("time", 7.0), ("stationarity", 0.4)],
)
def test_run_ends_on_its_target(start, target, value):
    flow = gflow.integrate(PROBLEM, start, until=Until(**{target: value}))
    column = {"time": np.expm1(flow.log1p_time)}.get(target)
    column = getattr(flow, target) if column is None else column
    assert column[-1] == pytest.approx(value, rel=1e-10)
    assert flow.stats["stopped_by"] == target


def test_first_of_several_targets_ends_the_run(start, flow):
    both = gflow.integrate(PROBLEM, start, until=Until(log_loss=-6.0, log_kappa=2.0))
    assert both.stats["stopped_by"] == "log_kappa"
    assert both.log_kappa[-1] == pytest.approx(2.0, abs=1e-11)
    assert both.log1p_time[-1] < flow.log1p_time[-1]


def test_target_met_at_the_start_takes_no_step(start):
    flow = gflow.integrate(PROBLEM, start, until=Until(log_loss=100.0))
    assert len(flow) == 1
    assert flow.successful
    assert flow.stats["stopped_by"] == "log_loss"
    for name in ("num_steps", "num_accepted_steps", "num_rejected_steps"):
        assert flow.stats[name] == 0
    for left, right in zip(flow.params, start, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-15)


def test_reading_at_time_loss_and_norm(flow):
    # Late enough for the norm, which first shrinks, to have passed its start.
    for index in (len(flow) // 2, 3 * len(flow) // 4):
        time = float(np.expm1(0.5 * (flow.log1p_time[index] + flow.log1p_time[index + 1])))
        params = flow.at(time=time)
        by_loss = flow.at(log_loss=float(PROBLEM.log_loss(params)))
        length = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in params))
        by_norm = flow.at(log_kappa=NETWORK.degree * np.log(length))
        for a, b, c in zip(params, by_loss, by_norm, strict=True):
            np.testing.assert_allclose(b, a, atol=1e-8)
            np.testing.assert_allclose(c, a, atol=1e-8)
    batch = flow.at(log_loss=[-1.0, -3.0])
    assert batch[0].shape == (2, 4, 3)


@pytest.mark.parametrize(("name", "target"), [("log_loss", 0.9), ("log_kappa", 2.5), ("time", 0.9)])
def test_reading_the_end_that_came_only_near_its_target(start, name, target):
    flow = gflow.integrate(PROBLEM, start, until=Until(**{name: target}))
    column = "log1p_time" if name == "time" else name

    def short_by(way):
        short = flow.columns[column].copy()
        short[-1] += way if name == "log_loss" else -way
        return dataclasses.replace(flow, columns={**flow.columns, column: short})

    for left, right in zip(short_by(5e-9).at(**{name: target}), flow.params, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-7)
    # As far as that from another value, or further from its own, it does not reach it.
    beyond = target + (-1e-9 if name == "log_loss" else 1e-9)
    for trajectory, value in ((flow, beyond), (short_by(5e-8), target)):
        with pytest.raises(ValueError, match="does not pass"):
            trajectory.at(**{name: value})


def test_reading_off_the_record_or_wrongly_is_refused(flow):
    with pytest.raises(ValueError, match="does not pass"):
        flow.at(log_loss=-50.0)
    with pytest.raises(ValueError, match="does not pass"):
        flow.at(time=-1e-3)
    with pytest.raises(TypeError, match="give one of"):
        flow.at(time=1.0, log_loss=-1.0)
    with pytest.raises(AttributeError, match="columns are"):
        flow.marginn  # noqa: B018


def test_thinned_record_reads_as_well_as_the_whole(start, flow):
    thin = gflow.integrate(PROBLEM, start, until=Until(log_loss=-6.0), save=8)
    assert 2 <= len(thin) <= 9
    assert thin.num_steps_at[0] == 0
    assert thin.num_steps_at[-1] == flow.num_steps_at[-1]
    np.testing.assert_allclose(thin.vectors[-1], flow.vectors[-1], atol=0)
    for log_loss in (-0.5, -2.0, -5.0):
        for left, right in zip(thin.at(log_loss=log_loss), flow.at(log_loss=log_loss), strict=True):
            np.testing.assert_allclose(left, right, atol=1e-7)


def segments(field, cursor, budget, num_steps):
    controller = make_controller(np.float64(1e-8), np.int64(budget), Until(log_kappa=600.0))
    for _ in range(num_steps // budget):
        cursor, block = advance(
            field, diffrax.Tsit5(), controller, cursor, np.int64(1), capacity=64
        )
    return cursor, block


def new_cursor(start):
    field = Field(PROBLEM, Layout.of(start))
    until = Until(log_kappa=600.0)
    return field, start_cursor(field, diffrax.Tsit5(), first_control(until), start)


def first_control(until):
    return make_controller(np.float64(1e-8), np.int64(1), until)


@pytest.mark.slow
def test_a_loaded_flow_is_read_in_a_process_of_its_own(start, tmp_path):
    flow = gflow.integrate(PROBLEM, start, until=Until(log_loss=-2.0))
    path = flow.save(tmp_path / "flow")
    lines = [
        "import jax",
        "jax.config.update('jax_enable_x64', True)",
        "import gflow",
        f"params = gflow.load({str(path)!r}).at(log_loss=-1.0)",
        "print(repr(float(params[0].ravel()[0])))",
    ]
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) == pytest.approx(float(flow.at(log_loss=-1.0)[0].ravel()[0]), rel=1e-9)


def test_segments_resume_bit_for_bit(start):
    field, cursor = new_cursor(start)
    whole, _ = segments(field, cursor, 60, 60)
    parts, _ = segments(field, cursor, 5, 60)
    np.testing.assert_array_equal(whole.state, parts.state)
    np.testing.assert_array_equal(whole.clock, parts.clock)
    assert int(whole.num_accepted) == int(parts.num_accepted)


def test_segment_under_vmap_equals_a_loop(start):
    until = Until(log_kappa=600.0)
    controller = make_controller(np.float64(1e-8), np.int64(20), until)
    layout = Layout.of(start)

    def run(radius):
        trained = gflow.Problem(
            NETWORK, DATA, loss=losses.logistic(), perturbation=perturbations.fgm(radius)
        )
        field = Field(trained, layout)
        cursor = start_cursor(field, diffrax.Tsit5(), first_control(until), start)
        after, block = advance(field, diffrax.Tsit5(), controller, cursor, np.int64(1), capacity=20)
        return after.state, block.rows.measures.margin, block.num_rows

    radii = jnp.asarray([0.0, 0.1, 0.2])
    together = jax.jit(jax.vmap(run))(radii)
    for index, radius in enumerate(radii):
        alone = run(radius)
        # The first steps' error estimates are rounding, and so are the step sizes they lead to:
        # the two runs agree to the tolerance per step only.
        np.testing.assert_allclose(together[0][index], alone[0], atol=20 * 1e-8)
        last = int(alone[2]) - 1
        assert int(together[2][index]) == int(alone[2])
        np.testing.assert_allclose(together[1][index, last], alone[1][last], atol=20 * 1e-8)


def test_one_trace_serves_radii_targets_tolerances_and_data(start):
    traces = 0

    def apply(params, x):
        nonlocal traces
        traces += 1
        return params[1][0] @ (params[0] @ x)

    network = networks.custom(apply, degree=2)

    def run(radius, seed, **options):
        data = gflow.datasets.gaussian(12, 3, seed=seed)
        trained = gflow.Problem(
            network, data, loss=losses.logistic(), perturbation=perturbations.fgm(radius)
        )
        return gflow.integrate(trained, start, **options)

    run(0.1, 1, until=Until(log_loss=-1.0))
    first = traces
    assert first > 0
    run(0.05, 2, until=Until(log_loss=0.0), tolerance=1e-6)
    run(0.0, 3, until=Until(time=0.5), max_steps=3000, save=16)
    assert traces - first <= 2  # the door looks at shapes again; nothing is compiled


def test_compiled_segment_holds_no_host_callback(start):
    field, cursor = new_cursor(start)
    controller = make_controller(np.float64(1e-8), np.int64(5), Until(log_kappa=600.0))
    arguments = (field, diffrax.Tsit5(), controller, cursor, np.int64(1))
    text = advance.lower(*arguments, capacity=64).as_text()
    assert "while" in text
    assert "callback" not in text


def test_field_is_the_projected_negative_gradient(start):
    field = Field(PROBLEM, Layout.of(start))
    state = jnp.asarray(initial_state(field.layout, start))
    slope = np.asarray(vector_field(jnp.zeros(()), state, field))
    rho = np.exp(float(state[-2]))
    raw = -np.concatenate([np.ravel(leaf) for leaf in PROBLEM.gradient(start)])
    # In physical time: d log(1+t)/dt = 1 at t = 0, so the clock's rate is dtau/dt = 1/slope[-1].
    velocity = rho * (slope[:-2] + slope[-2] * np.asarray(state[:-2])) / slope[-1]
    np.testing.assert_allclose(velocity, raw, rtol=1e-12, atol=1e-13)


def fails(start, expected, trained=PROBLEM, **options):
    flow = gflow.integrate(trained, start, throw=False, **options)
    assert flow.result_name == expected
    assert not flow.successful
    assert flow.message == gflow.RESULTS[flow.result]
    assert len(flow) >= 1
    assert np.all(np.isfinite(flow.vectors))
    with pytest.raises(gflow.RunFailed) as caught:
        gflow.integrate(trained, start, **options)
    assert caught.value.trajectory.result_name == expected
    return flow


def test_spent_step_budget_is_a_result(start):
    flow = fails(start, "step_budget_spent", until=Until(log_kappa=600.0), max_steps=150)
    assert flow.stats["num_steps"] == 150
    assert flow.margin[-1] > 0


def test_radius_above_the_margin_is_a_result(start):
    radius = 1.2 * float(gflow.max_margin(DATA).margin)
    attack = perturbations.fgm(radius)
    wide = gflow.Problem(NETWORK, DATA, loss=losses.logistic(), perturbation=attack)
    flow = fails(start, "radius_above_margin", wide, until=Until(log_loss=-6.0), max_steps=4000)
    assert flow.margin[-1] <= 0


def test_contradictory_labels_are_a_result(start):
    x = np.concatenate([DATA.x, DATA.x])
    torn = gflow.Dataset(x, np.concatenate([DATA.y, -DATA.y]))
    trained = gflow.Problem(NETWORK, torn, loss=losses.logistic())
    flow = fails(start, "not_separated", trained, until=Until(log_loss=-6.0), max_steps=4000)
    assert not gflow.certify(trained, flow.params).separated


@pytest.mark.parametrize("max_steps", [1, 6])
def test_few_steps_do_not_say_that_the_examples_cannot_be_separated(start, max_steps):
    wrong_side = (start[0], -start[1])
    until = Until(log_loss=-6.0)
    flow = fails(wrong_side, "step_budget_spent", until=until, max_steps=max_steps)
    assert flow.margin[-1] < 0
    assert "not separated yet" in " ".join(flow.message.split())
    assert gflow.integrate(PROBLEM, wrong_side, until=until).margin[-1] > 0


@pytest.mark.parametrize("until", [Until(log_loss=-6.0), Until(time=1e6)])
def test_norm_that_decays_to_nothing_ends_the_run(until):
    # The radius exceeds all distances: every perturbed margin is negative, and w shrinks to 0,
    # which it reaches at a finite time.
    network = networks.linear(3)
    attack = perturbations.fgm(5.0)
    wide = gflow.Problem(network, DATA, loss=losses.logistic(), perturbation=attack)
    flow = fails(network.init(2), "radius_above_margin", wide, until=until)
    assert flow.stats["num_steps"] < 1000
    assert -650 < flow.log_norm[-1] < -300
    assert np.any(flow.params[0])


def test_network_that_turns_nan_is_a_result():
    def apply(params, x):  # degree 1, and NaN once the direction has turned far enough
        return jnp.where(turned(params[0]), jnp.nan, 1.0) * (params[0] @ x)

    flow = fails((np.array([0.1, 1.0]),), "not_finite", pair(apply), until=Until(log_loss=-9.0))
    assert len(flow) > 10
    assert not turned(flow.params[0])


def test_kink_that_throws_the_flow_back_is_a_result():
    def apply(params, x):  # at the kink the field jumps from moving on to moving back fast
        (w,) = params
        beyond = jnp.maximum(w[0] - 0.9 * jnp.sqrt(w @ w), 0.0)
        return w @ x - 1e6 * x[0] * beyond

    until = Until(log_loss=-90.0)
    start = (np.array([0.1, 1.0]),)
    flow = fails(start, "step_underflow", pair(apply), until=until, tolerance=1e-14)
    np.testing.assert_allclose(flow.direction[0][0], 0.9, atol=1e-9)


def turned(w):
    return w[0] > 0.9 * jnp.sqrt(w @ w)


def pair(apply):
    """Two opposite examples for a network of degree 1."""
    data = gflow.Dataset([[2.0, 0.1], [-2.0, -0.1]], [1, -1])
    return gflow.Problem(networks.custom(apply, degree=1), data, loss=losses.exponential())


def test_norm_beyond_floating_point_numbers_is_a_result():
    # Inputs so small that the loss has hardly moved where kappa overflows.
    data = gflow.Dataset([[1e-303], [-1e-303]], [1, -1])
    network = networks.deep_linear((1, 1, 1))
    trained = gflow.Problem(network, data, loss=losses.logistic())
    half = np.full((1, 1), np.exp(0.5 * 699.0) / np.sqrt(2))
    flow = fails((half, half), "kappa_overflow", trained, until=Until(log_loss=-1e3))
    assert flow.log_kappa[-1] == pytest.approx(700.0, rel=1e-12)


def test_interrupt_keeps_what_was_computed(start):
    seen = []

    def stop_soon(status):
        seen.append(status)
        if len(seen) == 2:
            raise KeyboardInterrupt

    flow = gflow.integrate(PROBLEM, start, until=Until(log_kappa=600.0), progress=stop_soon)
    assert flow.result_name == "interrupted"
    assert len(flow) > 2
    assert seen[-1]["steps"] == flow.stats["num_steps"]
    assert set(seen[0]) == {"stage", "steps", "log_kappa", "log_loss", "margin", "stationarity"}
    assert seen[0]["stage"] == "flow"


def test_progress_line_is_drawn(start, capsys):
    gflow.integrate(PROBLEM, start, until=Until(log_loss=0.0), progress=True)
    assert "log_loss" in capsys.readouterr().err


def test_saved_file_gives_the_same_trajectory(flow, tmp_path):
    path = flow.save(tmp_path / "run")
    loaded = gflow.load(path)
    for name, column in flow.columns.items():
        np.testing.assert_array_equal(getattr(loaded, name), column)
    np.testing.assert_array_equal(loaded.vectors, flow.vectors)
    assert loaded.problem == PROBLEM
    assert loaded.settings == flow.settings
    assert loaded.stats == flow.stats
    assert loaded.result_name == "successful"
    for left, right in zip(loaded.at(log_loss=-2.0), flow.at(log_loss=-2.0), strict=True):
        np.testing.assert_array_equal(left, right)


def test_file_without_its_problem_asks_for_it(start, tmp_path):
    network = networks.custom(lambda params, x: params["w"] @ x, degree=1)
    trained = gflow.Problem(network, DATA, loss=losses.logistic())
    flow = gflow.integrate(trained, {"w": np.ones(3)}, until=Until(log_loss=0.0))
    path = flow.save(tmp_path / "custom.npz")
    loaded = gflow.load(path)
    assert set(loaded.params) == {"w"}
    with pytest.raises(ValueError, match="problem=problem"):
        loaded.measure(lambda problem, direction: problem.log_loss(direction))
    attached = gflow.load(path, problem=trained)
    values = attached.measure(lambda problem, direction: jnp.min(problem.margins(direction)))
    np.testing.assert_allclose(values, flow.margin, atol=1e-14)


def test_dots_in_a_file_name_are_kept(flow, tmp_path):
    names = ["eps=0.1", "eps=0.2", "run.v2.npz"]
    paths = [flow.save(tmp_path / name) for name in names]
    assert [path.name for path in paths] == ["eps=0.1.npz", "eps=0.2.npz", "run.v2.npz"]
    assert all(path.is_file() for path in paths)


def one_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def not_gflows_header(path):
    np.savez(path, header=np.asarray("[1]"))


def pickled(path):
    np.savez(path, header=np.array([{}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (one_array, "no .npz file"),
        (lambda path: path.write_text("log_loss, margin\n1, 2\n"), "no .npz file"),
        (not_gflows_header, "header"),
        (lambda path: np.savez(path, header=np.asarray('{"format": 99}')), "format 99"),
        (lambda path: np.savez(path, header=np.asarray('{"format": 1}')), "kind"),
        (pickled, "no plain array"),
    ],
)
def test_file_of_another_kind_is_refused(tmp_path, write, words):
    path = tmp_path / "other.npz"
    write(path)
    with pytest.raises(ValueError, match=r"not a trajectory") as refusal:
        gflow.load(path)
    assert words in str(refusal.value)
    assert "pickle" not in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
def test_unreadable_file_is_refused(tmp_path, content):
    path = tmp_path / "broken.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a trajectory"):
        gflow.load(path)
    with pytest.raises(FileNotFoundError):
        gflow.load(tmp_path / "absent.npz")
    np.savez(path, other=np.zeros(3))
    with pytest.raises(ValueError, match="not a trajectory"):
        gflow.load(path)


def test_to_dict_is_json(flow):
    values = json.loads(json.dumps(flow.to_dict(), allow_nan=False))
    assert values["log_loss"] == flow.log_loss.tolist()
    assert values["result"] == "successful"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"until": -3.0}, TypeError, "gflow.Until"),
        ({"tolerance": 0.0}, ValueError, "tolerance"),
        ({"save": 1}, ValueError, "save"),
        ({"max_steps": 0}, ValueError, "max_steps"),
        ({"solver": "Tsit5"}, TypeError, "diffrax"),
        ({"unknown": 1}, TypeError, "unknown"),
    ],
)
def test_impossible_options_are_refused(start, options, error, words):
    with pytest.raises(error, match=words):
        unchecked_integrate(PROBLEM, start, **{"until": Until(log_loss=0.0), **options})


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ({}, "asks for nothing"),
        ({"time": 0.0}, "positive"),
        ({"time": np.nan}, "finite"),
        ({"stationarity": 1.0}, "between 0 and 1"),
    ],
)
def test_impossible_targets_are_refused(targets, words):
    with pytest.raises(ValueError, match=words):
        Until(**targets)


def test_kappa_beyond_floating_point_needs_a_cap(start):
    until = Until(log_kappa=1e4)
    with pytest.raises(ValueError, match="kappa_cap"):
        gflow.integrate(PROBLEM, start, until=until)
    with pytest.raises(ValueError, match="positive"):
        gflow.integrate(PROBLEM, start, until=until, kappa_cap=0.0)
    with pytest.raises(ValueError, match="atol_logit"):
        gflow.integrate(PROBLEM, start, until=until, kappa_cap=1e4, atol_logit=0.0)


def test_solver_class_and_solver_without_error_estimate_are_refused(start):
    until = Until(log_loss=0.0)
    with pytest.raises(TypeError, match=r"pass `Tsit5\(\)`"):
        unchecked_integrate(PROBLEM, start, until=until, solver=diffrax.Tsit5)
    with pytest.raises(TypeError, match="error estimate"):
        unchecked_integrate(PROBLEM, start, until=until, solver=diffrax.Euler())
