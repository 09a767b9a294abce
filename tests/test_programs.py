"""Compiled programs are dropped before their memory maps end the process, and made again."""

import gc
import time
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gflow
from gflow import _compiling, _programs, losses, networks
from gflow._compiling import compiler_options, while_compiling, work_of
from gflow._programs import PROGRAMS, Programs, compiled
from gflow.progress import reporter

NETWORK = networks.linear(2)
START = (np.array([[1.0, 0.5]]),)


def problem_of(num_examples):
    angles = np.linspace(0.3, 3.0, num_examples)
    inputs = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = np.where(np.arange(num_examples) % 2, 1.0, -1.0)
    return gflow.Problem(NETWORK, gflow.Dataset(inputs, labels), loss=losses.logistic())


def loss_of(problem):
    """The same in NumPy."""
    margins = problem.dataset.y * (problem.dataset.x @ START[0][0])
    return np.log(np.sum(np.log1p(np.exp(-margins))))


def num_maps():
    gc.collect()
    found = _programs._num_maps()
    if found is None:
        pytest.skip("this system does not tell its memory maps")
    return found


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    """A registry that has met nothing yet, and afterwards nothing of these tests."""
    fresh = {
        "_ceiling": None,
        "_living": [],
        "_shapes": set(),
        "_dropped": set(),
        "_in_turn": False,
    }
    for name, value in fresh.items():
        monkeypatch.setattr(PROGRAMS, name, value)
    yield
    PROGRAMS.forget()


def entries():
    return sum(program.num_compiled() for program in PROGRAMS._programs)


# What compiling and forgetting do


def test_a_compiled_function_is_the_function():
    def square(x, *, shift=0.0):
        """Says what it does."""
        return x * x + shift

    fast = compiled(square)
    assert fast.__name__ == "square" and fast.__doc__ == "Says what it does."
    np.testing.assert_array_equal(fast(np.arange(3.0), shift=1.0), [1.0, 2.0, 5.0])
    assert jax.grad(fast)(3.0) == 6.0
    np.testing.assert_array_equal(jax.jit(jax.vmap(fast))(jnp.arange(3.0)), [0.0, 1.0, 4.0])


def test_what_was_forgotten_is_compiled_again():
    problem = problem_of(4)
    before = problem.log_loss(START)
    assert before == pytest.approx(loss_of(problem), rel=1e-14)
    PROGRAMS.forget()
    assert entries() == 0
    assert problem.log_loss(START) == before
    assert entries() > 0


def test_a_trajectory_outlives_its_programs():
    problem = problem_of(4)
    run = gflow.descend(problem, START, optax.sgd(0.1), num_steps=20, save=3)
    middle = run.at(log_loss=float(run.log_loss[1]) - 1e-3)
    PROGRAMS.forget()
    for left, right in zip(run.at(log_loss=float(run.log_loss[1]) - 1e-3), middle, strict=True):
        np.testing.assert_array_equal(left, right)


def test_programs_of_the_callers_own_stay():
    own = jax.jit(lambda x: x + 1)
    own(1.0)
    problem_of(4).log_loss(START)
    PROGRAMS.forget()
    assert own._cache_size() == 1


# The limit of the system


class Maps:
    """A process whose programs hold maps, and that holds others besides."""

    def __init__(self, most, others=0):
        self.held, self.most, self.others, self.drops = others, most, others, 0
        self.programs = Programs(lambda: self.held, lambda: self.most)
        self.programs.add(self)

    def forget(self):
        self.held, self.drops = self.others, self.drops + 1

    def compile(self, maps):
        self.held += maps
        self.programs.keep_within_limit()


@pytest.mark.slow
def test_half_of_the_limit_is_kept():
    process = Maps(1000, others=100)
    for _ in range(100):
        process.compile(30)
        assert process.held <= 500
    # 13 programs fit between 100 and 500; the next one is too much.
    assert process.drops == 100 // 14


@pytest.mark.slow
def test_what_others_hold_does_not_make_every_program_be_dropped():
    process = Maps(1000, others=800)
    for _ in range(100):
        process.compile(10)
        assert process.held <= 900
    # The first time at once; from then on, half of what is left may be spent.
    assert process.drops <= 1 + 100 // 10


def test_systems_that_tell_no_maps_drop_nothing():
    process = Maps(None)
    for _ in range(10):
        process.compile(10**6)
    assert process.drops == 0
    process.held = None
    process.programs.keep_within_limit()
    assert process.drops == 0


def many_shapes(monkeypatch, count):
    """The most maps held, where gflow may take 150 and so many problems stay in use.

    Maps that were there before do not count, neither here nor for gflow: next to many of them it
    would take half of the rest, which depends on what ran in this process before.
    """
    problems = [problem_of(n) for n in range(3, 3 + count)]
    problems[0].log_loss(START)
    PROGRAMS.forget()
    base, all_maps = num_maps(), _programs._num_maps
    monkeypatch.setattr(PROGRAMS, "_num_maps", lambda: (all_maps() or 0) - base)
    monkeypatch.setattr(PROGRAMS, "_most_maps", lambda: 300)
    peak = 0
    for problem in problems:
        assert problem.log_loss(START) == pytest.approx(loss_of(problem), rel=1e-13)
        peak = max(peak, (all_maps() or 0) - base)
    for problem in problems[::20]:
        assert problem.log_loss(START) == pytest.approx(loss_of(problem), rel=1e-13)
    return peak


def test_many_shapes_stay_below_the_limit(monkeypatch):
    # A program or two, and what the allocator of Python maps, may be beyond.
    assert many_shapes(monkeypatch, 20) <= 150 + 60


@pytest.mark.slow
def test_a_hundred_shapes_stay_below_the_limit(monkeypatch):
    # Without dropping a shape holds some twenty; one that each leaves behind is too much.
    assert many_shapes(monkeypatch, 100) <= 150 + 60


# Shapes that nobody uses any more


@pytest.mark.slow
def test_programs_of_problems_that_ended_are_dropped():
    counts = []
    for n in (4, 5, 6, 7, 8):
        problem_of(n).log_loss(START)
        counts.append((entries(), num_maps()))
    first = counts[0][0]
    assert [count for count, _ in counts] == [first] * 5
    # Whatever is left of a shape: less than one map in ten of what it held.
    assert counts[-1][1] - counts[0][1] <= 40


def test_programs_of_problems_in_use_stay():
    problems = [problem_of(n) for n in (4, 5, 6)]
    for problem in problems:
        problem.log_loss(START)
    held = entries()
    fresh = problem_of(7)
    assert entries() == held
    del problem, problems, fresh
    gc.collect()
    problem_of(8)
    assert entries() == 0


def test_another_problem_of_the_same_shape_uses_the_same_program():
    problem_of(4).log_loss(START)
    held = entries()
    for _ in range(3):
        problem_of(4).log_loss(START)
    assert entries() == held


def test_shapes_that_take_turns_are_compiled_twice_at_most(monkeypatch):
    drops = []
    forget = PROGRAMS.forget
    monkeypatch.setattr(PROGRAMS, "forget", lambda: (drops.append(1), forget()))
    for _ in range(4):
        for n in (4, 5, 6):
            problem_of(n).log_loss(START)
    # 4 at 5, 5 at 6; then 4 comes back, and everything stays.
    assert len(drops) == 2
    held = entries()
    problem_of(5).log_loss(START)
    assert entries() == held


def test_problems_made_inside_a_transformation_count_for_nothing():
    problem_of(4).log_loss(START)
    held = entries()

    def loss(shift):
        angles = np.linspace(0.3, 3.0, 9)
        inputs = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        data = gflow.Dataset(inputs, np.where(np.arange(9) % 2, 1.0, -1.0))
        attack = gflow.perturbations.fgm(shift)
        problem = gflow.Problem(NETWORK, data, loss=losses.logistic(), perturbation=attack)
        return problem.log_loss(START)

    assert np.isfinite(jax.grad(loss)(0.1))
    assert entries() >= held


# Options of the compiler


@pytest.fixture
def no_flags(monkeypatch):
    """Without the flags that the suite compiles with."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)


def cubed(x):
    return x * x * x


@pytest.mark.usefixtures("no_flags")
def test_small_programs_on_cpu_are_compiled_fast():
    small, large = _compiling._SMALL, _compiling._SMALL + 1
    assert compiler_options(small)["xla_backend_optimization_level"] == 0
    assert compiler_options(large) == {}


@pytest.mark.usefixtures("no_flags")
def test_hessians_are_optimised_a_little_beyond_tiny_sizes():
    def level(num_examples, num_weights):
        problem = problem_of(num_examples)
        options = program._options(((problem, np.zeros(num_weights)), {}))
        return options.get("xla_backend_optimization_level")

    program = _programs.compiled_for_hessians(cubed)
    # Tiny, small, and as large as other programs that a search calls some ten times.
    bound = _compiling._SMALL_HESSIAN * _compiling._SMALL
    many = int(np.sqrt(bound / 7))
    assert level(7, many) == 0
    assert level(7, many + 1) == 1
    assert level(7, _compiling.CALLED_LESS * _compiling._SMALL) is None
    # Other programs take no Hessian.
    program = _programs.compiled_for_some_calls(cubed)
    assert level(7, many + 1) == 0


def test_flags_of_the_user_come_before_options(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=2")
    assert compiler_options(1) == {}
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    assert compiler_options(1) != {}


@pytest.mark.usefixtures("no_flags")
def test_other_devices_have_no_options(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler_options(1) == {}


def test_the_work_is_examples_times_the_largest_array_beside_the_data():
    problem = problem_of(7)
    assert work_of(((problem, START), {})) == 7 * 2
    assert work_of(((problem, np.zeros(5)), {"hint": np.zeros((3, 4))})) == 7 * 12
    assert work_of(((np.zeros((3, 4)), "name"), {})) == 12
    # The inputs do not count: a network is evaluated at each as often as it has weights.
    data = gflow.Dataset(np.eye(4, 50), np.array([1, -1, 1, -1]))
    wide = gflow.Problem(networks.linear(50), data, loss=losses.logistic())
    assert work_of((wide, np.zeros(3))) == 4 * 3
    # A row of a table of the examples counts, and no indices.
    assert work_of((problem, START, np.zeros((7, 5)), np.zeros(99, int))) == 7 * 5


@pytest.mark.usefixtures("no_flags")
def test_with_options_the_results_are_the_same_wherever_it_is_called():
    fast = compiled(cubed)
    x = jnp.arange(4.0)
    np.testing.assert_array_equal(fast(x), [0.0, 1.0, 8.0, 27.0])
    # JAX refuses options of programs that are traced into others, or without an argument traced.
    np.testing.assert_array_equal(jax.jit(fast)(x), fast(x))
    np.testing.assert_array_equal(jax.jit(lambda y: y + fast(x))(x), x + fast(x))
    np.testing.assert_array_equal(jax.vmap(fast)(x), fast(x))
    assert jax.grad(fast)(2.0) == 12.0
    assert fast.num_compiled() == 1


@pytest.mark.usefixtures("no_flags")
def test_options_that_this_jaxlib_does_not_know_are_dropped(monkeypatch):
    monkeypatch.setattr(_compiling, "_QUICK", {"xla_no_such_option": 1})
    np.testing.assert_array_equal(compiled(cubed)(jnp.arange(3.0)), [0.0, 1.0, 8.0])


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_garbage_is_not_collected_while_a_program_is_traced(allowed, fails):
    """And is again afterwards, where the caller has it collected at all."""
    seen = []

    def looked(x):
        seen.append(gc.isenabled())
        if fails:
            raise ValueError("as asked for")
        return x + 1

    program = compiled(looked)
    (gc.enable if allowed else gc.disable)()
    try:
        with pytest.raises(ValueError, match="as asked for") if fails else nullcontext():
            program(jnp.ones(3))
        assert seen == [False]
        assert gc.isenabled() == allowed
    finally:
        gc.enable()


def test_errors_of_the_function_pass_through():
    def fails(x):
        raise ValueError("no compile option")

    with pytest.raises(ValueError, match="no compile option"):
        compiled(fails)(1.0)


# While something compiles


@pytest.fixture
def slow(monkeypatch):
    """A function that takes far longer to compile than is waited for until it is said."""
    monkeypatch.setattr(_compiling, "NOTICE_SECONDS", 0.01)

    def cubed_slowly(x):
        time.sleep(0.5)
        return cubed(x)

    return compiled(cubed_slowly)


def test_what_compiles_for_long_is_named_until_it_is_compiled(slow):
    told = []
    with while_compiling(told.append):
        slow(1.0)
        assert told == ["cubed_slowly", None]
        slow(1.0)
    slow(np.ones(2))
    assert told == ["cubed_slowly", None]


def test_what_compiles_fast_is_not_named(monkeypatch):
    monkeypatch.setattr(_compiling, "NOTICE_SECONDS", 1e6)
    told = []
    with while_compiling(told.append):
        compiled(cubed)(1.0)
    assert told == []


def test_the_progress_line_names_what_compiles(slow, capsys):
    with reporter(True, "flow"):
        slow(1.0)
    assert "flow, compiling cubed_slowly" in capsys.readouterr().err


def test_without_progress_nothing_is_written(slow, capsys):
    with reporter(False, "flow"):
        slow(1.0)
    with reporter(lambda status: None, "flow"):
        slow(np.ones(2))
    assert capsys.readouterr() == ("", "")
