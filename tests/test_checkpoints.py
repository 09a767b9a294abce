"""`checkpoint=...` of `integrate`, `descend` and `find_limit`: a call that was stopped anywhere and
made again ends, bit for bit, as if it had not been; and a file of another call is refused.
"""

import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gflow
from gflow import losses, networks, perturbations, saving
from gflow._archive import read_archive, write_archive
from gflow._fingerprint import fingerprint
from gflow.descent import run as descent_run
from gflow.limit.stored import put_all

DATA = gflow.datasets.gaussian(10, 3, gap=0.5, seed=1)
NETWORK = networks.deep_linear((3, 4, 1))
PROBLEM = gflow.Problem(NETWORK, DATA, loss=losses.logistic(), perturbation=perturbations.fgm(0.1))
START = NETWORK.init(2)
KINKED = gflow.Problem(networks.mlp((3, 4, 1)), DATA, loss=losses.logistic())


def own(params, x):
    return (params[1] @ (params[0] @ x))[0]


OWN = gflow.Problem(
    networks.custom(own, degree=2),
    DATA,
    loss=losses.logistic(),
    perturbation=perturbations.fgm(0.1),
)


def integrated(**options):
    until = gflow.Until(log_loss=-90.0)
    return gflow.integrate(PROBLEM, START, **{"until": until, "throw": False, **options})


def gone_on(**options):
    """A flow that goes on with another, past its target, by a solver that gflow chooses."""
    first = integrated(until=gflow.Until(log_loss=-2.0))
    until = gflow.Until(log_loss=-90.0)
    return gflow.integrate(PROBLEM, first, until=until, **options)


def descended(optimizer, **options):
    given = {"num_steps": 300, "save": 30, "throw": False, **options}
    return gflow.descend(PROBLEM, START, optimizer, **given)


def searched(problem=PROBLEM, start=START, **options):
    return gflow.find_limit(problem, start, **{"throw": False, **options})


MOMENTUM = {"batch_size": 4, "seed": 3}
CALLS = {
    "automatic": integrated,
    "Rosenbrock": lambda **options: integrated(solver=gflow.Rosenbrock(), **options),
    "gone on": gone_on,
    # An optimizer is made anew by every call, as in another process.
    "momentum": lambda **options: descended(optax.sgd(0.05, momentum=0.9), **MOMENTUM, **options),
    "keys": lambda **options: descended(
        optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(1)), optax.sgd(0.02)), **options
    ),
    "limit": searched,
    "reproduced": lambda **options: searched(reproduce=True, **options),
    "kinks": lambda **options: searched(KINKED, KINKED.network.init(0), **options),
    "own function": lambda **options: searched(OWN, **options),
}


def told(outcome):
    """All of an outcome as JSON, with the bytes of its arrays in their places; but for seconds, and
    for functions, which files do not hold.
    """
    header, arrays = put_all(outcome)
    content = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}

    def resolved(value):
        if isinstance(value, dict):
            if "opaque" in value:
                return None
            return {key: resolved(item) for key, item in value.items() if key != "seconds"}
        if isinstance(value, list):
            return [resolved(item) for item in value]
        return content.get(value, value) if isinstance(value, str) else value

    return json.dumps(resolved(header), sort_keys=True)


@pytest.fixture
def copies(monkeypatch):
    """The files of a checkpoint, copied whenever one was written."""
    found, write = [], saving.write_archive

    def written(path, *content):
        write(path, *content)
        found.append(path.with_name(f"copy{len(found)}.npz"))
        shutil.copy(path, found[-1])

    monkeypatch.setattr(saving, "write_archive", written)
    yield found


QUICK = {"automatic", "gone on", "momentum", "limit"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in CALLS]
)
def test_a_call_goes_on_bit_for_bit_from_wherever_it_was_kept(name, copies, tmp_path, monkeypatch):
    monkeypatch.setattr(descent_run, "_DRAWN", 256)  # several tables of batches
    call, file = CALLS[name], tmp_path / "call.npz"
    alone = told(call())
    assert told(call(checkpoint=file, checkpoint_seconds=0)) == alone
    kept = list(copies)
    assert len(kept) >= 3
    header, _ = read_archive(kept[-2])
    assert not header["finished"]
    every = 1 if name not in QUICK else len(kept) // 4
    for path in kept[:: max(1, every)]:
        assert told(call(checkpoint=path)) == alone
        assert read_archive(path)[0]["finished"]
    assert told(call(checkpoint=file)) == alone


def test_seconds_that_are_spent_and_interrupts_are_no_end(tmp_path):
    """Each call makes one segment more; nothing is written before its end."""
    for call in (integrated, searched):
        alone, made = told(call()), 0
        file = tmp_path / f"{call.__name__}.npz"
        rare = {"checkpoint": file, "checkpoint_seconds": 1e9}
        while call(**rare, max_seconds=1e-9).result_name == "seconds_spent":
            made += 1
        assert made >= 2 and told(call(**rare)) == alone

    def interrupt(status):
        raise KeyboardInterrupt

    file, alone = tmp_path / "descended.npz", told(CALLS["momentum"]())
    assert CALLS["momentum"](checkpoint=file, progress=interrupt).result_name == "interrupted"
    assert read_archive(file)[0]["content"]["length"] > 16
    assert told(CALLS["momentum"](checkpoint=file)) == alone


def test_a_failure_is_kept_and_raised_again(tmp_path):
    file = tmp_path / "run.npz"
    for _ in range(2):
        with pytest.raises(gflow.RunFailed, match="max_steps"):
            integrated(max_steps=3, checkpoint=file, throw=True)
    file = tmp_path / "limit.npz"
    for _ in range(2):
        with pytest.raises(gflow.LimitFailed, match="max_steps"):
            searched(max_steps=3, checkpoint=file, throw=True)


def test_the_file_of_another_call_is_refused(tmp_path):
    file = tmp_path / "call.npz"
    descended(optax.sgd(0.05), checkpoint=file)
    refused = {
        "`optimizer`": lambda: descended(optax.sgd(0.06), checkpoint=file),
        "`save` was `30`; here it is `31`": lambda: descended(
            optax.sgd(0.05), checkpoint=file, save=31
        ),
        "belongs to a call of `descend`": lambda: integrated(checkpoint=file),
    }
    integrated(checkpoint=tmp_path / "flow.npz")
    searched(checkpoint=tmp_path / "limit.npz")
    flow, limit = {"checkpoint": tmp_path / "flow.npz"}, {"checkpoint": tmp_path / "limit.npz"}
    other = jax.tree.map(lambda leaf: 1.001 * leaf, START)
    refused |= {
        "with another `params`": lambda: gflow.integrate(
            PROBLEM, other, until=gflow.Until(log_loss=-90.0), **flow
        ),
        "`until` was .*-90.0.*; here it is .*-8.0": lambda: integrated(
            until=gflow.Until(log_loss=-8.0), **flow
        ),
        "`solver` was `None`; here": lambda: integrated(solver=diffrax.Tsit5(), **flow),
        "with another `start`": lambda: searched(start=other, **limit),
        "with another `problem`": lambda: searched(OWN, **limit),
        "`escape` was `True`; here it is `False`": lambda: searched(escape=False, **limit),
    }
    for words, call in refused.items():
        before = [path.read_bytes() for path in sorted(tmp_path.glob("*.npz"))]
        with pytest.raises(ValueError, match=words):
            call()
        assert [path.read_bytes() for path in sorted(tmp_path.glob("*.npz"))] == before


@pytest.mark.parametrize("name", ["automatic", "momentum", "search"])
def test_a_checkpoint_without_one_of_its_arrays_is_refused(name, tmp_path):
    calls = {**CALLS, "search": searched}
    file = tmp_path / "run.npz"
    calls[name](checkpoint=file)
    header, arrays = read_archive(file)
    for missing in list(arrays)[::9]:
        write_archive(file, header, {key: arrays[key] for key in arrays if key != missing})
        before = file.read_bytes()
        with pytest.raises(ValueError, match="no checkpoint that gflow can read"):
            calls[name](checkpoint=file)
        assert file.read_bytes() == before


def test_what_is_no_checkpoint_is_refused_and_left_alone(tmp_path):
    file = tmp_path / "run.npz"
    integrated().save(file)
    with pytest.raises(ValueError, match="no checkpoint that gflow can read"):
        integrated(checkpoint=file)
    assert gflow.load(file).successful
    whole = tmp_path / "whole.npz"
    integrated(checkpoint=whole)
    content = bytearray(whole.read_bytes())
    content[len(content) // 2] ^= 1
    whole.write_bytes(content)
    with pytest.raises(ValueError, match="no checkpoint that gflow can read"):
        integrated(checkpoint=whole)
    with pytest.raises(ValueError, match="checkpoint_seconds"):
        integrated(checkpoint=whole, checkpoint_seconds=-1)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        descended(optax.sgd(0.05), checkpoint=tmp_path / "none" / "run.npz")


def test_two_runs_cannot_use_one_file(tmp_path):
    file, met = tmp_path / "run.npz", []

    def second(status):
        for call in (integrated, searched):
            with pytest.raises(RuntimeError, match="another run is writing into this file"):
                call(checkpoint=file)
        met.append(integrated(checkpoint=tmp_path / "other.npz").successful)

    assert integrated(checkpoint=file, progress=second).successful
    assert met and all(met)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.npz", "run.npz"]


class Held:
    def __init__(self, value):
        self.value = value

    def method(self):
        return self.value


def test_fingerprints_tell_values_apart():
    """Each pair is unequal, and each of its halves equal to itself made anew."""

    def adding(value):
        return lambda other: value + other

    pairs = [
        lambda: (1, 1.0),
        lambda: (True, 1),
        lambda: (np.float32([1]), np.float64([1])),
        lambda: (np.zeros((1, 2)), np.zeros((2, 1))),
        lambda: (np.array([0.0]), np.array([-0.0])),
        lambda: ((1, 2), [1, 2]),
        lambda: ({"a": 1}, {"a": 2}),
        lambda: (adding(1), adding(2)),
        lambda: (lambda x: x + 1, lambda x: x + 2),
        lambda: (lambda x: jnp.sin(x), lambda x: jnp.cos(x)),
        lambda: (lambda x, y=1: x, lambda x, y=2: x),
        lambda: (jax.jit(adding(1)), jax.jit(adding(2))),
        lambda: (functools.partial(adding, 1), functools.partial(adding, 2)),
        lambda: (Held(1), Held(2)),
        lambda: (Held(1).method, Held(2).method),
        lambda: (jax.random.key(0), jax.random.key(1)),
        lambda: (optax.adam(0.1), optax.adam(0.1, b1=0.8)),
        lambda: (
            optax.sgd(optax.linear_schedule(1, 0, 5)),
            optax.sgd(optax.linear_schedule(1, 0, 6)),
        ),
        lambda: (OWN, PROBLEM),
        lambda: (diffrax.Tsit5(), diffrax.Dopri5()),
    ]
    for pair in pairs:
        (left, right), (again, _) = pair(), pair()
        assert fingerprint(left) == fingerprint(again)
        assert fingerprint(left) != fingerprint(right)

    def itself():
        return itself

    assert fingerprint(itself) == fingerprint(itself)


CHILD = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
sys.path.insert(0, {tests!r})
from test_checkpoints import CALLS
CALLS[{name!r}](checkpoint={file!r}, checkpoint_seconds=0)
"""


@pytest.mark.parametrize(
    "name",
    ["limit", *(pytest.param(n, marks=pytest.mark.slow) for n in ("Rosenbrock", "momentum"))],
)
def test_a_call_that_is_killed_goes_on_bit_for_bit(name, tmp_path):
    file = tmp_path / f"{name}.npz"
    code = CHILD.format(tests=os.path.dirname(__file__), name=name, file=str(file))
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        while not file.exists():
            assert child.poll() is None
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
    assert not read_archive(file)[0]["finished"]
    assert told(CALLS[name](checkpoint=file)) == told(CALLS[name]())
