"""Compiled programs as files: found again only where they are the same, and then the same."""

import dataclasses
import functools
import json
import os
import pickle
import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

import gflow
from gflow import _executables, losses, networks, perturbations
from gflow._program_names import program_name
from gflow.problem import Problem

X = np.array([[1.0, 0.5], [-0.5, 1.0], [-1.0, -0.25]])
DATA = gflow.Dataset(X, np.array([1, 1, -1]))


def problem_of(network=None, data=DATA, radius=0.1, loss=None, **options):
    return Problem(
        networks.linear(2) if network is None else network,
        data,
        loss=losses.logistic() if loss is None else loss,
        perturbation=perturbations.fgm(radius),
        **options,
    )


# Names

MARGINS = Problem.margins
BASE = problem_of()


def name_of(arguments=BASE, function=MARGINS, options=None):
    return program_name(function.__wrapped__, arguments, {} if options is None else options)


class OwnLoss(type(losses.logistic())):
    """As one that a user writes."""


class OwnNetwork(type(networks.linear(2))):
    """Likewise."""


SAME = {
    "another radius": problem_of(radius=0.2),
    "other data": problem_of(data=gflow.Dataset(2.0 * X, np.array([-1, 1, 1]))),
}
OTHER = {
    "another loss": problem_of(loss=losses.exponential()),
    "total gradient": problem_of(gradient="total"),
    "one example less": problem_of(data=DATA.take([0, 2])),
    "another network": problem_of(network=networks.mlp((2, 3, 1))),
    "wider": problem_of(network=networks.mlp((2, 4, 1))),
    "smoothed": problem_of(network=networks.mlp((2, 3, 1), smoothing=0.1)),
    "pair": (BASE, BASE),
    "list": [BASE],
    "single precision": (BASE, np.float32(1)),
    "double precision": (BASE, np.float64(1)),
    "weak type": (BASE, jnp.asarray(1.0)),
    "a number": (BASE, 1.0),
    "an integer": (BASE, 1),
    "true": (BASE, True),
    "minus zero": (BASE, -0.0),
    "zero": (BASE, 0.0),
    "text": (BASE, "1"),
    "a structure": (BASE, jax.tree.structure((1, 2))),
    "another structure": (BASE, jax.tree.structure([1, 2])),
    "a function": (BASE, gflow.datasets.gaussian),
    "a solver": (BASE, gflow.Rosenbrock()),
}
NONE = {
    "a loss of the user": problem_of(loss=OwnLoss()),
    "a function of the user": (BASE, problem_of),
    "a lambda": (BASE, lambda: 0),
    "a class of the user": (BASE, OwnNetwork),
    "a set": (BASE, {1, 2}),
    "an object": (BASE, object()),
    "deep beyond bounds": (BASE, functools.reduce(lambda a, _: (a,), range(5000), 0)),
}


@pytest.mark.parametrize("arguments", SAME.values(), ids=SAME)
def test_values_of_arrays_do_not_count(arguments):
    assert name_of(arguments) == name_of() is not None


def test_all_else_does():
    names = [name_of(), *(name_of(arguments) for arguments in OTHER.values())]
    names += [name_of(function=Problem._ascent), name_of(options={"level": 0})]
    with jax.default_matmul_precision("float32"):
        names.append(name_of())
    with jax.enable_x64(False):
        names.append(name_of())
    assert None not in names
    assert len(set(names)) == len(names) == len(OTHER) + 5


@pytest.mark.parametrize("arguments", NONE.values(), ids=NONE)
def test_what_may_be_another_thing_elsewhere_has_no_name(arguments):
    assert name_of(arguments) is None


@dataclasses.dataclass
class _Static:
    content: object = dataclasses.field(metadata={"static": True})


_Static.__module__ = "gflow.problem"


def test_an_array_as_a_constant_has_no_name(monkeypatch):
    monkeypatch.setattr(gflow.problem, "_Static", _Static, raising=False)
    assert name_of(_Static((1, 2.0))) is not None
    assert name_of(_Static(np.arange(2))) is None


def test_what_an_instance_holds_besides_its_fields_is_seen():
    network = networks.linear(2)
    object.__setattr__(network, "more", 1)
    assert name_of(network) is None


@pytest.mark.parametrize("setting", ["jax_debug_nans", "jax_disable_jit"])
def test_where_jax_checks_there_is_no_name(setting):
    before = getattr(jax.config, setting)
    jax.config.update(setting, True)
    try:
        assert name_of() is None
    finally:
        jax.config.update(setting, before)


# Files


@pytest.fixture
def kept_in(monkeypatch, tmp_path):
    """A folder of programs, and no programs in memory; without JAX's cache after."""
    before = {
        name: getattr(jax.config, name)
        for name in (
            "jax_enable_compilation_cache",
            "jax_compilation_cache_dir",
            "jax_compilation_cache_max_size",
            "jax_persistent_cache_min_compile_time_secs",
        )
    }
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.delenv("GFLOW_NO_CACHE", raising=False)
    MARGINS.forget()
    folder = gflow.use_compilation_cache(tmp_path)
    assert folder is not None
    yield folder / "programs"
    MARGINS.forget()
    for name, value in before.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()


def margins(problem=BASE):
    return np.asarray(problem.margins((np.array([[1.0, 2.0]]),)))


def forgotten_margins(problem=BASE):
    MARGINS.forget()
    return margins(problem)


@pytest.fixture(scope="module")
def expected():
    """sum y_i w . x_i - radius |w|, what a linear network has under FGM, in NumPy."""
    weights = np.array([1.0, 2.0])
    return np.asarray(DATA.y) * (X @ weights) - 0.1 * np.linalg.norm(weights)


def programs_in(folder):
    return sorted(folder.glob("*.program"))


@pytest.fixture
def loaded(monkeypatch):
    """Of each program so far, whether it was read from a file."""
    found, load = [], _executables.load

    def watched(*args):
        kept = load(*args)
        found.append(kept is not None)
        return kept

    monkeypatch.setattr(_executables, "load", watched)
    return found


def test_a_program_is_found_again(kept_in, loaded, expected):
    np.testing.assert_allclose(margins(), expected, rtol=1e-14)
    (file,) = programs_in(kept_in)
    content, before = file.read_bytes(), margins()
    np.testing.assert_array_equal(forgotten_margins(), before)
    assert loaded == [False, True]
    # The radius is an argument of it.
    np.testing.assert_allclose(
        forgotten_margins(problem_of(radius=0.0)), expected + 0.1 * np.sqrt(5.0), rtol=1e-14
    )
    assert [file] == programs_in(kept_in) and file.read_bytes() == content
    assert not list(kept_in.parent.glob("jit_margins*"))  # not in JAX's cache as well


@pytest.mark.parametrize("keep", [0, 10, 2000, -1])
def test_a_damaged_file_is_made_again(kept_in, loaded, expected, keep):
    margins()
    (file,) = programs_in(kept_in)
    content = file.read_bytes()
    assert len(content) > 2000
    file.write_bytes(content[:keep] + (b"?" if keep == -1 else b""))
    np.testing.assert_allclose(forgotten_margins(), expected, rtol=1e-14)
    assert programs_in(kept_in) == [file]
    forgotten_margins()
    assert loaded == [False, False, True]


def test_a_whole_file_of_another_kind_is_made_again(kept_in, loaded, expected):
    margins()
    (file,) = programs_in(kept_in)
    content = zlib.compress(pickle.dumps("something else"))
    file.write_bytes(_executables._head(content) + b"\n" + content)
    np.testing.assert_allclose(forgotten_margins(), expected, rtol=1e-14)
    forgotten_margins()
    assert loaded == [False, False, True]


def test_what_jax_has_from_its_cache_is_not_written_again(kept_in, expected, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(_executables, "folder", lambda: None)
        forgotten_margins()  # into JAX's cache
    assert not programs_in(kept_in) and list(kept_in.parent.glob("jit_margins*"))
    np.testing.assert_allclose(forgotten_margins(), expected, rtol=1e-14)
    assert not programs_in(kept_in)


def test_a_program_that_does_not_fit_runs_as_usual(kept_in, expected):
    margins()
    forgotten_margins()
    (call,) = MARGINS._calls.values()

    def refuse(_):
        raise ValueError("the arrays stand on another device")

    call._executable = refuse
    np.testing.assert_allclose(margins(), expected, rtol=1e-14)
    assert call._executable is None


def test_a_folder_that_cannot_be_written_to_changes_nothing(kept_in, expected):
    kept_in.write_text("a file")
    np.testing.assert_allclose(forgotten_margins(), expected, rtol=1e-14)
    np.testing.assert_allclose(forgotten_margins(), expected, rtol=1e-14)
    assert kept_in.read_text() == "a file"


def test_where_the_cache_is_turned_off_later_nothing_is_kept(kept_in):
    jax.config.update("jax_enable_compilation_cache", False)
    forgotten_margins()
    assert not kept_in.exists()


def test_those_not_used_for_longest_go_first(tmp_path):
    paths = [tmp_path / f"{n}.program" for n in range(4)]
    for second, path in enumerate(paths):
        path.write_bytes(bytes(100))
        os.utime(path, (second, second))
    os.utime(paths[0], (9, 9))
    (tmp_path / "another file").write_bytes(bytes(1000))
    _executables._make_room(tmp_path, 250)
    assert [path.exists() for path in paths] == [True, False, False, True]
    assert (tmp_path / "another file").exists()


def test_the_folder_stays_within_its_size(kept_in):
    margins()
    size = programs_in(kept_in)[0].stat().st_size
    _executables.keep_in(kept_in, 2 * size + size // 2)
    for count in (2, 3, 4):
        margins(problem_of(data=DATA.take([0] * count)))
    assert 1 <= len(programs_in(kept_in)) <= 2
    _executables.keep_in(kept_in, size // 2)
    margins(problem_of(data=DATA.take([0] * 5)))
    assert not programs_in(kept_in)


# From process to process

SEARCH = """
import json, sys
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
import gflow
from gflow import losses, networks, perturbations
if sys.argv[1]:
    gflow.use_compilation_cache(sys.argv[1])
traced = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, _, **facts: traced.append(facts.get("fun_name"))
    if name.endswith("jaxpr_trace_duration") else None
)
data = gflow.Dataset(np.array([[1.0, 0.5], [-0.5, 1.0], [-1.0, -0.25]]), np.array([1, 1, -1]))
network = networks.deep_linear((2, 2, 1))
problem = gflow.Problem(
    network, data, loss=losses.logistic(), perturbation=perturbations.fgm(0.1)
)
limit = gflow.find_limit(problem, network.init(0))
leaves = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(limit.direction)]
print(json.dumps([limit.successful, limit.num_flow_steps, float(limit.margin), leaves]))
print(json.dumps(sorted({str(name) for name in traced})))
"""


@pytest.mark.slow
def test_a_later_process_finds_the_same_limit_without_tracing(tmp_path):
    """Bit for bit, and as without any cache. The seed of Python's hashes differs."""

    def ran(folder, seed):
        changed = ("JAX_ENABLE_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR", "GFLOW_NO_CACHE")
        environment = {k: v for k, v in os.environ.items() if k not in changed}
        environment["PYTHONHASHSEED"] = seed
        run = subprocess.run(
            [sys.executable, "-c", SEARCH, folder],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
        assert run.stderr == ""
        return [json.loads(line) for line in run.stdout.splitlines()]

    plain, _ = ran("", "0")
    first, traced = ran(str(tmp_path), "1")
    later, then = ran(str(tmp_path), "2")
    assert plain == first == later
    assert plain[0] is True
    assert {"advance", "_lagrangian"} <= set(traced)
    assert not set(then) & {"advance", "_lagrangian", "_begin_at", "margins_and_rows", "_ascent"}
