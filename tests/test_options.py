"""Options of another kind, or out of range, are refused by the name of the call, in gflow's words;
and what is as good as what is asked for is taken.
"""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gflow
from gflow import datasets, losses, networks, perturbations

pytestmark = pytest.mark.usefixtures("own_words")

NETWORK = networks.linear(3)
PROBLEM = gflow.Problem(NETWORK, datasets.gaussian(6, 3, seed=1), loss=losses.logistic())
START = (np.array([[0.5, -0.2, 0.1]]),)
UNTIL = gflow.Until(log_loss=-1.0)


@pytest.fixture(scope="module")
def flow():
    return gflow.integrate(PROBLEM, START, until=UNTIL)


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        ({"time": "10"}, TypeError, "Until(time='10')"),
        ({"time": True}, TypeError, "Until(time=True)"),
        ({"log_loss": [-1, -2]}, TypeError, "Until(log_loss=[-1, -2])"),
        ({"log_kappa": 1j}, TypeError, "Until(log_kappa=1j)"),
        ({"stationarity": np.nan}, ValueError, "finite"),
        ({"time": 1.0, "accuracy": "0.1"}, TypeError, "Until(accuracy='0.1')"),
        ({"time": 1.0, "accuracy": 0.0}, ValueError, "Until(accuracy=0.0)"),
        ({"time": 1.0, "accuracy": np.nan}, ValueError, "Until(accuracy=nan)"),
    ],
)
def test_targets(target, error, words):
    with pytest.raises(error) as refusal:
        gflow.Until(**target)
    assert words in str(refusal.value)


@pytest.mark.parametrize("value", [-1, np.float32(-1), np.array(-1.0), jnp.asarray(-1.0)])
def test_every_real_number_is_a_target(value):
    assert gflow.Until(log_loss=value).as_dict() == {"log_loss": -1.0}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"tolerance": "1e-8"}, TypeError, "integrate(tolerance='1e-8')"),
        ({"tolerance": None}, TypeError, "integrate(tolerance=None)"),
        ({"tolerance": True}, TypeError, "integrate(tolerance=True)"),
        ({"tolerance": np.nan}, ValueError, "integrate(tolerance=nan)"),
        ({"max_steps": True}, ValueError, "integrate(max_steps=True)"),
        ({"max_steps": 10.0}, ValueError, "integrate(max_steps=10.0)"),
        ({"save": True}, ValueError, "integrate(save=True)"),
        ({"progress": "yes"}, TypeError, "integrate(progress='yes')"),
    ],
)
def test_options_of_the_flow(options, error, words):
    with pytest.raises(error) as refusal:
        gflow.integrate(PROBLEM, START, until=UNTIL, **options)
    assert words in str(refusal.value)


def test_integers_of_numpy_are_options_of_the_flow(flow):
    options = {"max_steps": np.int64(5000), "save": np.int64(5), "tolerance": np.float32(1e-6)}
    thin = gflow.integrate(PROBLEM, START, until=UNTIL, **options)
    assert thin.successful and 2 <= len(thin) <= 6
    assert type(thin.settings["max_steps"]) is int and type(thin.settings["save"]) is int


def test_progress_of_descent():
    with pytest.raises(TypeError, match=r"`descend\(progress='yes'\)`"):
        gflow.descend(PROBLEM, START, optax.sgd(0.1), num_steps=3, progress="yes")


@pytest.mark.parametrize(
    ("where", "error", "words"),
    [
        ({"time": "3"}, TypeError, "trajectory.at(time='3')"),
        ({"time": True}, TypeError, "trajectory.at(time=True)"),
        ({"time": [1.0, "a"]}, TypeError, "trajectory.at(time=[1.0, 'a'])"),
        ({"time": [[1.0], [1.0, 2.0]]}, TypeError, "trajectory.at("),
        ({"time": [[1.0]]}, ValueError, "trajectory.at(time=[[1.0]])"),
        ({"time": -5.0}, ValueError, "does not pass"),
        ({"time": -1.0}, ValueError, "does not pass"),
        ({"log_loss": []}, ValueError, "trajectory.at(log_loss=[])"),
        ({"log_loss": np.nan}, ValueError, "does not pass"),
    ],
)
def test_reading(flow, where, error, words):
    with pytest.raises(error) as refusal:
        flow.at(**where)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: perturbations.pgd(0.1, step_size=0.0), ValueError, "pgd(step_size=0.0)"),
        (lambda: datasets.digits("3", 8), TypeError, "digits(positive='3')"),
        (lambda: datasets.digits(3, True), TypeError, "digits(negative=True)"),
        (lambda: datasets.mnist(negative=7.0), TypeError, "mnist(negative=7.0)"),
    ],
)
def test_makers(call, error, words):
    with pytest.raises(error) as refusal:
        call()
    assert words in str(refusal.value)
