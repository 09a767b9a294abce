"""A run that slides along kinks says so."""

import jax
import numpy as np
import pytest

import gflow
from gflow import losses, networks, perturbations
from gflow._layout import Layout
from gflow.flow.chattering import POINTS, num_chattering

DATA = gflow.datasets.gaussian(40, 5, gap=0.5, seed=0)
LINEAR = networks.linear(5)


def run(attack, until=None):
    trained = gflow.Problem(LINEAR, DATA, loss=losses.exponential(), perturbation=attack)
    until = gflow.Until(log_kappa=6.0) if until is None else until
    return gflow.integrate(trained, LINEAR.init(0), until=until, max_steps=700, throw=False)


def test_signs_without_smoothing_chatter():
    flow = run(perturbations.fgsm(0.365))
    assert flow.result_name == "chattering"
    # A weight that is about to be 0 is so for all examples.
    assert flow.stats["num_chattering"] == len(DATA.x)
    assert "chattering examples: 40" in repr(flow)
    assert "find_limit" in flow.message


@pytest.mark.parametrize(
    "attack", [perturbations.fgm(0.1), perturbations.fgsm(0.1, smoothing=0.1)], ids=["l2", "smooth"]
)
def test_smooth_problems_do_not(attack):
    flow = run(attack, gflow.Until(log_kappa=1.0))
    assert flow.stats["num_chattering"] == 0
    assert "chattering" not in repr(flow)


def test_kinks_that_are_crossed_or_far_do_not_count():
    trained = gflow.Problem(
        LINEAR, DATA, loss=losses.exponential(), perturbation=perturbations.fgsm(0.1)
    )
    layout = Layout.of(jax.tree.map(np.asarray, LINEAR.init(0)))
    line = np.linspace(-1.0, 1.0, POINTS)[:, None] * np.eye(5)[0] + np.eye(5)[1:].sum(axis=0)
    assert num_chattering(trained, layout, line) == 0
    # To and fro at some distance, and close by on one side.
    zigzag = line.copy()
    zigzag[:, 0] = 0.1 * (-1.0) ** np.arange(POINTS)
    assert num_chattering(trained, layout, zigzag) == len(DATA.x)
    zigzag[:, 0] = 1e-5
    assert num_chattering(trained, layout, zigzag) == len(DATA.x)
