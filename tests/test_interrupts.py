"""An interrupt that Python drops, since it fell into a callback, ends a call all the same."""

import sys
import weakref

import optax
import pytest
from _sweeps import DATA, NETWORK, make

import gflow
from gflow import losses, networks, perturbations

PROBLEM = gflow.Problem(
    NETWORK, DATA, loss=losses.exponential(), perturbation=perturbations.fgm(0.05)
)
START = NETWORK.init(0)


class Thing:
    pass


def drop(error):
    """Raises in the callback of a weak reference, which Python reports and forgets."""

    def raising(_):
        raise error

    thing = Thing()
    reference = weakref.ref(thing, raising)
    del thing
    assert reference() is None


def interrupt(*_):
    drop(KeyboardInterrupt())


CALLS = {
    "integrate": lambda: [gflow.integrate(PROBLEM, START, until=FAR, progress=interrupt)],
    "descend": lambda: [
        gflow.descend(PROBLEM, START, optax.sgd(0.1), num_steps=10_000, progress=interrupt)
    ],
    "find_limit": lambda: [gflow.find_limit(PROBLEM, START, throw=False, progress=interrupt)],
    "find_limits": lambda: gflow.find_limits([PROBLEM], [START], progress=interrupt),
    "sweep": lambda: [
        run.limit for run in gflow.sweep(make, {"seed": [0, 1]}, chunk=1, progress=interrupt)
    ],
}
FAR = gflow.Until(log_kappa=600.0)


@pytest.mark.parametrize("name", CALLS)
def test_a_dropped_interrupt_ends_the_call(name):
    hook = sys.unraisablehook
    outcomes = [None if one is None else one.result_name for one in CALLS[name]()]
    assert "interrupted" in outcomes or outcomes == [None, None]
    assert sys.unraisablehook is hook


class Radius(float):
    """A radius that is asked for once the call has begun, when it drops an interrupt."""

    def __float__(self):
        interrupt()
        return 0.1


def interrupting(problem):
    """The problem, its network one whose evaluation drops an interrupt while it is traced."""

    def apply(params, x):
        interrupt()
        return problem.network.apply(params, x)

    return gflow.Problem(
        networks.custom(apply, degree=1), DATA, loss=problem.loss, perturbation=problem.perturbation
    )


SHORT = {
    "certify": lambda: gflow.certify(interrupting(PROBLEM), START),
    "backward_error_flow": lambda: gflow.backward_error_flow(
        interrupting(PROBLEM), START, step_size=0.1, num_steps=3
    ),
    "max_margin": lambda: gflow.max_margin(DATA, radius=Radius()),
}


@pytest.mark.parametrize("name", SHORT)
def test_an_interrupt_that_comes_last_is_not_lost(name):
    with pytest.raises(KeyboardInterrupt):
        SHORT[name]()


def test_other_exceptions_go_to_the_hook_of_the_user(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: seen.append(dropped.exc_type))
    told = []

    def progress(status):
        told.append(status)
        drop(ValueError())

    run = gflow.integrate(
        PROBLEM, START, until=gflow.Until(log_loss=-20.0), tolerance=1e-4, progress=progress
    )
    assert run.successful and seen == [ValueError] * len(told)
    # Outside of a call an interrupt is none of gflow's business.
    interrupt()
    assert seen[-1] is KeyboardInterrupt
    assert gflow.integrate(PROBLEM, run, until=gflow.Until(log_loss=-21.0)).successful
